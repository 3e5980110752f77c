"""The trainer: a killed run ends in the same weights, a grown model is the same function, and bad input is one clear
line.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from models import killed_at
from transformers import LlamaConfig, LlamaForCausalLM

from speclib import files
from speclib.errors import TrainingError
from speclib.training import corpus, loop, train
from speclib.training.recipes import LADDER, SHALLOW, TARGET, Recipe
from speclib.training.tokenizer import train_tokenizer

BASE = Recipe(
    "base",
    width=16,
    layers=2,
    heads=2,
    feed_forward=24,
    tokens=12 * 64,
    batch_tokens=64,
    context=16,
    short_context=8,
    checkpoint_at=(0.5,),
)
GROWN = dataclasses.replace(
    BASE, name="grown", layers=3, start_from="base", teacher="base", teacher_samples=0.5, checkpoint_at=()
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words, some more words and some numbers: 1, 2, 3\n"] * 20, vocabulary=280)


@pytest.fixture(scope="module")
def texts(tokenizer):
    tokens = np.random.default_rng(0).integers(0, 280, 4000).astype(np.uint16)
    return corpus.Corpus(tokenizer, [], [corpus.Document("a", "a/b.py", "word " * 400)], tokens[:3500], tokens[3500:])


@pytest.fixture(autouse=True)
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(train, "samples_of", lambda folder, tokens: tokens[::-1].copy())


def run(recipe, texts, folder, seed=0):
    return train.train(recipe, texts, folder, seed, compile=False)


def state(folder, name):
    return torch.load(folder / f"{name}.state", weights_only=True)


def same(one, other):
    """Whether two states hold the same numbers: tensors bit by bit, all but the times."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_killed_run_ends_in_the_same_weights(texts, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(BASE, texts, straight)
    with killed_at(5):
        run(BASE, texts, resumed)
    assert state(resumed, "base")["step"] == 5 and not (resumed / "base").exists()
    assert not same(state(resumed, "base")["model"], state(straight, "base")["model"])
    with killed_at(3):  # again, after three steps more
        run(BASE, texts, resumed)
    run(BASE, texts, resumed)
    one, other = state(straight, "base"), state(resumed, "base")
    assert one["step"] == other["step"] == 12 and one["seen"] == 12 * 64
    assert same(one["model"], other["model"]) and same(one["optims"], other["optims"])
    rates = [optim["param_groups"][0]["lr"] for optim in one["optims"]]
    assert rates == pytest.approx([rate * loop.schedule(11 / 12) for rate in (BASE.learning_rate, BASE.embedding_rate)])
    assert [row[:2] for row in one["curve"]] == [row[:2] for row in other["curve"]] or len(one["curve"]) == len(
        other["curve"]
    )
    saved = [LlamaForCausalLM.from_pretrained(folder / "base").state_dict() for folder in (straight, resumed)]
    assert same(*saved)
    # the recipe that starts from it, grown by a layer and taught by it
    for folder in (straight, resumed):
        if folder == resumed:
            with killed_at(7):
                run(GROWN, texts, folder)
        run(GROWN, texts, folder)
    assert same(state(straight, "grown")["model"], state(resumed, "grown")["model"])
    cards = {path.parent.name: json.loads(path.read_text()) for path in straight.glob("*/card.json")}
    assert cards.keys() == {"base", "base-at-50", "grown"}
    assert (
        cards["base"]["tokens_seen"] == 768
        and cards["grown"]["tokens_seen"] == 2 * 768
        and cards["grown"]["teacher"] == "base"
    )
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_state_of_another_training_is_refused(texts, tmp_path):
    run(BASE, texts, tmp_path)
    with killed_at(2):
        run(GROWN, texts, tmp_path)
    before = (tmp_path / "grown.state").read_bytes()
    another = train_tokenizer(["quite another text, and quite other merges of its letters\n"] * 20, vocabulary=280)
    other = {
        "recipe": (dataclasses.replace(GROWN, learning_rate=0.5), texts, 0),
        "seed": (GROWN, texts, 1),
        "corpus": (GROWN, dataclasses.replace(texts, tokens=texts.tokens[::-1]), 0),
        "tokenizer": (GROWN, dataclasses.replace(texts, tokenizer=another), 0),
    }
    for what, (recipe, corpus_, seed) in other.items():
        with pytest.raises(TrainingError, match=f"belongs to another training .other {what}.; delete it"):
            run(recipe, corpus_, tmp_path, seed)
    (tmp_path / "base.state").unlink()
    run(BASE, texts, tmp_path, seed=1)
    with pytest.raises(TrainingError, match="belongs to another training .other weights.; delete it"):
        run(GROWN, texts, tmp_path)
    assert (tmp_path / "grown.state").read_bytes() == before
    with pytest.raises(TrainingError, match="grown needs base, which is not in .*empty; train it first"):
        run(GROWN, texts, tmp_path / "empty")


@pytest.mark.parametrize("part", ["training/loop.py", "drafters/eagle.py"])
def test_a_state_of_other_code_is_refused(part, texts, tmp_path, monkeypatch):
    """That of the trainer, and of the modules it trains."""
    for room in ("training", "drafters"):
        shutil.copytree(files.PACKAGE / room, tmp_path / room)
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    with killed_at(2):
        run(BASE, texts, tmp_path)
    with open(tmp_path / part, "a") as file:
        file.write("# another\n")
    with pytest.raises(TrainingError, match="belongs to another training .other code.; delete it"):
        run(BASE, texts, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a state at all"], ids=["empty", "garbage"])
def test_a_damaged_state_is_one_clear_line(content, texts, tmp_path):
    (tmp_path / "base.state").write_bytes(content)
    with pytest.raises(TrainingError, match="delete it to start afresh"):
        run(BASE, texts, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "loss_of", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(TrainingError, match="loss of base is nan at step 0"):
        run(BASE, texts, tmp_path)


def test_a_grown_model_computes_the_same_function():
    torch.manual_seed(0)
    shape = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    small = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **shape)).double().eval()
    text = torch.randint(30, (2, 12))
    for layers in range(3, 7):
        big = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).double().eval()
        big.load_state_dict(train.grow(small.state_dict(), layers))
        with torch.inference_mode():
            assert torch.equal(big(text).logits, small(text).logits)
        trained = [block.self_attn.o_proj.weight.any().item() for block in big.model.layers]
        assert sum(trained) == 3 and len(trained) == layers
        if layers == 6:
            assert trained == [True, False] * 3  # spread evenly, each copy behind its original
    grown = train.grow(small.state_dict(), 4)
    grown["model.norm.weight"].add_(1)  # tensors outside the layers are shared with the start: loading copies them
    for layers in (2, 7):
        with pytest.raises(TrainingError, match=f"between 3 and 6, not to {layers}"):
            train.grow(small.state_dict(), layers)


def test_batches_depend_on_step_and_seed_alone_and_repeat_nothing():
    tokens = np.arange(8 * 25 + 1, dtype=np.uint16)
    rows = torch.cat([train.batch(tokens, step, 5, 8, seed=3) for step in range(5)])
    assert rows.shape == (25, 9) and (rows.diff(dim=1) == 1).all()
    assert sorted(rows[:, 0].tolist()) == list(range(0, 200, 8))  # every window once
    assert torch.equal(train.batch(tokens, 3, 5, 8, seed=3), rows[15:20])
    assert not torch.equal(train.batch(tokens, 3, 5, 8, seed=4), rows[15:20])
    with pytest.raises(TrainingError, match="fewer than one window"):
        train.batch(tokens[:5], 0, 1, 8, 0)


def test_loss_of_a_student_who_knows_everything_is_zero(tokenizer):
    torch.manual_seed(0)
    student, teacher = train.build(BASE, tokenizer), train.build(BASE, tokenizer)
    inputs = torch.randint(280, (2, 9))
    assert train.loss_of(student, inputs, student).item() == pytest.approx(0, abs=1e-6)
    apart = train.loss_of(student, inputs, teacher).item()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        p, q = (model(inputs[:, :-1]).logits.float().softmax(-1) for model in (teacher, student))
    assert apart == pytest.approx(
        float(0.5 * (p - q).abs().sum(-1).mean() + 0.3 * (p * (p / q).log()).sum(-1).mean()), rel=1e-3
    )
    # no better than chance
    assert train.loss_of(student, inputs).item() == pytest.approx(np.log(len(tokenizer)), rel=0.1)


def test_a_corpus_that_cannot_be_used_is_one_clear_line(tmp_path):
    missing, empty, short, binary = (
        tmp_path / name for name in ("missing.txt", "empty.txt", "short.txt", "binary.txt")
    )
    empty.write_text("")
    short.write_text("too short")
    binary.write_bytes(b"caf\xe9 " * 5000)
    for path, words in (
        (missing, "cannot read the corpus"),
        (empty, "has 0 characters"),
        (short, "at least 10,000"),
        (binary, "cannot read the corpus"),
        (tmp_path, "cannot read the corpus"),
    ):
        with pytest.raises(TrainingError, match=words) as caught:
            corpus.text_file(str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_file_is_split_and_nothing_is_lost(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One long line of many words. " * 1000)
    documents = corpus.text_file(str(path))
    learnt, held = corpus.split(documents)
    assert "".join(d.text for d in documents) == path.read_text()
    assert (
        len(held) >= 2
        and {d.name for d in learnt} | {d.name for d in held} == {d.name for d in documents}
        and not {d.name for d in learnt} & {d.name for d in held}
    )


def test_held_out_modules_are_never_learnt_from():
    documents = [
        corpus.Document(name.split("/")[0], name, name * 50)
        for name in (*corpus.HELD_OUT, *(f"stdlib/other{i}.py" for i in range(50)))
    ]
    learnt, held = corpus.split(documents)
    assert (
        {d.name for d in held} == set(corpus.HELD_OUT)
        and not {d.name for d in learnt} & set(corpus.HELD_OUT)
        and len(learnt) == 50
    )


def test_tokens_are_cached_whole(tokenizer, tmp_path):
    documents = [corpus.Document("a", "a/b.py", "some words"), corpus.Document("a", "a/c.py", "more words")]
    first = corpus.tokenized(documents, tokenizer, tmp_path)
    assert tokenizer.decode(first.tolist()) == "some words<|endoftext|>more words<|endoftext|>"
    assert (
        np.array_equal(corpus.tokenized(documents, tokenizer, tmp_path), first) and len(list(tmp_path.iterdir())) == 1
    )
    corpus.tokenized(documents[:1], tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other text, other file


def test_recipes_name_what_exists():
    names = {recipe.name for recipe in (SHALLOW, TARGET, *LADDER)}
    for recipe in (SHALLOW, TARGET, *LADDER):
        assert {recipe.start_from, recipe.teacher} <= names | {None}
        assert recipe.width % recipe.heads == 0 and recipe.short_context <= recipe.context
