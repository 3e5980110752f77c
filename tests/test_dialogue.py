"""What drafts of a chat model learn from, and that they do learn: questions apart by topic, answers that the model
gave, and a reader taught by them."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from models import small_chat
from safetensors.torch import load_file
from torch.nn.functional import log_softmax

from speclib import Sampling, embedded, experiments, generate, load_model
from speclib.__main__ import main
from speclib.commands import train
from speclib.drafters import BlockDrafter, EagleDrafter, LayerSkipDrafter, ModelDrafter
from speclib.drafters.block import read_block
from speclib.drafters.eagle import read_eagle
from speclib.drafters.layer_skip import read_exits
from speclib.training import dialogue, loop, readers
from speclib.training.corpus import Corpus, Document

SOURCE = [
    Document(
        "a",
        f"a/{i}.py",
        f'"""A file of {i} words.\n\nThe first sentence of '
        f"a longer paragraph says nothing at all. The second sentence of it, number {i}, says no more than the first "
        f'one.\n"""\n\n\ndef function_{i}(x, y):\n    """Adds what it is given, and more."""\n    return x + y + {i}\n',
    )
    for i in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shape = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    place = tmp_path_factory.mktemp("models") / "small"
    return small_chat(place, **shape, max_position_embeddings=256, initializer_range=0.3)


def test_questions_are_distinct_and_those_held_out_are_about_other_things():
    asked, held_out = dialogue.questions(SOURCE[:3], SOURCE[3:], count=6000)
    assert len(set(asked)) == len(asked) == 6000 and len(set(held_out)) == len(held_out) > 250
    assert not set(asked) & set(held_out) and asked == dialogue.questions(SOURCE[:3], SOURCE[3:], count=6000)[0]
    topics, others = dialogue._names(dialogue.TOPICS), dialogue._names(dialogue.HELD_OUT_TOPICS)
    assert len(topics) == len(set(topics)) > 200 and not set(topics) & set(others)
    assert any("function_1(" in question for question in asked)
    for apart in (["function_3", "number 4,"], others[:5]):
        assert any(any(word in question for word in apart) for question in held_out)
        assert not any(any(word in question for word in apart) for question in asked)
    measured = {entry["prompt"] for entry in embedded.chat_prompts()}
    assert not measured & {*asked, *held_out}, "what is measured on is never learnt from"


def test_without_functions_there_are_questions_about_topics_and_sums():
    asked, _ = dialogue.questions([], [], count=500)
    assert len(asked) == 500 and not any("def " in question for question in asked)


def test_answers_are_the_models_own(folder):
    """At a temperature of next to nothing they are its greedy text, whatever stands beside them in the batch."""
    target = load_model(folder, dtype="float32")
    questions = ["Why?", "A much longer question about nothing?", "When?"]
    written = dialogue.answers(target, questions, 1e-4, 0, most=12)
    wanted = [generate(target, [target.chat(q)], None, Sampling(0), max_new_tokens=12).tokens[0] for q in questions]
    assert written.dtype == np.uint16
    asked = [[(token, 0) for token in target.chat(q)] for q in questions]
    said = [[(token, 1) for token in text.tolist()] for text in wanted]
    assert [*map(tuple, written.tolist())] == sum(map(sum, zip(asked, said, strict=True), [[]] * 3), [])


def test_answers_go_on_after_a_kill_and_need_nobody_who_watches(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dialogue, "tqdm", partial(dialogue.tqdm, disable=True))  # as TQDM_DISABLE=1 has it
    target, asked = load_model(folder, dtype="float32"), ["Why?", "When?", "Where to?"]
    made, honest = [], dialogue.answers

    def counted(*arguments):
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return honest(*arguments, most=8)

    monkeypatch.setattr(dialogue, "answers", counted)
    with pytest.raises(KeyboardInterrupt):
        dialogue.own_text(target, "a hash", asked, 150, tmp_path)
    again = dialogue.own_text(target, "a hash", asked, 150, tmp_path)
    assert 150 <= len(again) < 400 and [arguments[3] for arguments in made[:4]] == [0, 1, 2, 2], "two batches were kept"
    assert {arguments[2] for arguments in made} == {1.0, 0.6}
    assert np.array_equal(again, dialogue.own_text(target, "a hash", asked, 150, tmp_path))
    before = len(made)
    dialogue.own_text(target, "another hash", asked, 150, tmp_path)
    assert len(made) > before, "another model's answers are its own"


def test_the_command_teaches_readers_of_another_target(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dialogue, "python_source", lambda: SOURCE)
    monkeypatch.setattr(dialogue, "split", lambda documents: (documents[:3], documents[3:]))
    few = {"tokens": 4 * 128, "rows": 2, "width": 64}
    others = {
        name: dataclasses.replace(reader, **few, keeps=reader.keeps and 300) for name, reader in readers.OTHERS.items()
    }
    monkeypatch.setattr(readers, "OTHERS", others)
    options = ["--target", str(folder), "--answers", "2000", "--out", str(tmp_path), "--no-compile"]
    assert main(["train", *options]) == 0
    target = load_model(folder, dtype="float32")
    prompt, greedy = target.chat("Why?"), Sampling(0)
    plain = generate(target, [prompt], None, greedy, max_new_tokens=20, stop=[]).tokens[0]
    exits = read_exits(tmp_path / "small-exits")
    out = generate(target, [prompt], LayerSkipDrafter(1, exits), greedy, 3, max_new_tokens=20, stop=[])
    assert torch.equal(out.tokens[0], plain) and exits.weight.abs().max() > 0
    for name, read, drafter in (("eagle", read_eagle, EagleDrafter), ("block", read_block, BlockDrafter)):
        made = tmp_path / f"small-{name}"
        card, reader = json.loads((made / "card.json").read_text("utf-8")), read(made)
        assert card["kept"] == len(reader.kept) == 300 and 0 < card["kept_share_of_held_out"] <= 1
        assert load_file(made / "model.safetensors")["kept"].dtype == torch.int64
        out = generate(target, [prompt], drafter(reader), greedy, 3, max_new_tokens=20, stop=[])
        assert torch.equal(out.tokens[0], plain)
        drafted = {token for round in out.trace.rounds for token in round.drafted}
        assert drafted <= set(reader.kept.tolist())
    draft = load_model(tmp_path / "small-draft", dtype="float32")
    out = generate(target, [prompt], ModelDrafter(draft), greedy, 3, max_new_tokens=20, stop=[])
    assert torch.equal(out.tokens[0], plain) and draft.vocabulary == target.vocabulary
    assert len(json.loads((tmp_path / "small-draft" / "card.json").read_text("utf-8"))["held_out_overlap"]) == 1
    assert main(["train", *options]) == 0 and "finished already" in capsys.readouterr().out
    eagle = tmp_path / "small-eagle"
    more = [*options[:-2], str(tmp_path / "more"), "--no-compile", "--start", str(eagle), "--tokens", "128", "eagle"]
    assert main(["train", *more]) == 0
    first, second = (json.loads((p / "card.json").read_text("utf-8")) for p in (eagle, tmp_path / "more/small-eagle"))
    assert second["tokens_seen"] == first["tokens_seen"] + 128 and second["started_from"] == "small-eagle"
    before, after = (load_file(p / "model.safetensors") for p in (eagle, tmp_path / "more/small-eagle"))
    assert torch.equal(before["kept"], after["kept"])
    gone = torch.tensor(
        [float((after[name] - before[name]).norm() / before[name].norm()) for name in before.keys() - {"kept"}]
    )
    assert 0 < gone.max() < 0.3, "a step away from where it began"
    models = tmp_path / "small-draft" / "tokenizer.json"
    assert models.is_file() and train._check_tokenizers(load_model("target").tokenizer, tmp_path) is None
    capsys.readouterr()
    assert main(["train", *more[:-4], str(tmp_path / "small-block"), *more[-3:]]) == 2
    assert "start from one of the shape of small-eagle" in capsys.readouterr().err
    data = tmp_path / "data"
    (data / "models" / "small-eagle" / "older").mkdir(parents=True)
    monkeypatch.setattr(embedded, "DATA", data)
    monkeypatch.setattr(embedded, "REGISTRY", data / "registry.txt")
    monkeypatch.setattr(embedded, "CHECKOUT", True)
    assert main(["train", *options, "eagle", "--install"]) == 0, "what is named, and nothing of the embedded pair's"
    assert [path.name for path in (data / "models").iterdir()] == ["small-eagle"]
    registered = [line.split()[0] for line in (data / "registry.txt").read_text().splitlines()]
    assert sorted(registered) == [
        f"models/small-eagle/{name}" for name in ("card.json", "config.json", "model.safetensors")
    ]


def test_a_draft_model_begins_with_what_its_targets_embeddings_say_of_each_other(folder, monkeypatch):
    target = readers.load(folder, torch.float32)
    made = readers.draft_model(target)
    tables = [model.get_input_embeddings().weight.detach().double() for model in (target, made)]
    products = [table @ table.mT for table in tables]
    assert torch.allclose(*products, atol=1e-4), "as wide as the target, nothing is lost"
    assert made.lm_head.weight is made.get_input_embeddings().weight
    assert made.config.vocab_size == target.config.vocab_size and made.config.num_hidden_layers == 2
    monkeypatch.setattr(readers, "DRAFT_WIDTH", 16)
    thin = readers.draft_model(target).get_input_embeddings().weight.detach().double()
    assert thin.shape[1] == 16 and thin.norm() ** 2 > tables[0].norm() ** 2 / 2, "the larger half of the directions"


def test_losses_are_compared_with_all_else_alike(folder, tmp_path, monkeypatch, capsys):
    """Everything but the loss and the seed is one recipe; what is finished is not trained again."""
    monkeypatch.setattr(dialogue, "python_source", lambda: SOURCE)
    monkeypatch.setattr(dialogue, "split", lambda documents: (documents[:3], documents[3:]))
    few = {"rows": 2, "width": 64, "keeps": 300}
    monkeypatch.setattr(readers, "OTHERS", {"eagle": dataclasses.replace(readers.OTHERS["eagle"], **few)})
    monkeypatch.setattr(train, "SEEDS", 2)
    monkeypatch.setattr(embedded, "RESULTS", tmp_path / "results")
    command = ["train", "--target", str(folder), "--losses", "--answers", "2000", "--tokens", "256", "--no-compile"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    record = experiments.recorded("losses")
    assert [(row["loss"], row["seed"]) for row in record["rows"]] == [(x, k) for k in range(2) for x in loop.LOSSES]
    cards = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "losses").glob("*/card.json")]
    recipes = {re.sub(r"(name|loss)='[^']*'", "", card["identity"]["recipe"]) for card in cards}
    assert len(cards) == 2 * len(loop.LOSSES) and len(recipes) == 1
    weights = {path.read_bytes() for path in (tmp_path / "losses").glob("*/model.safetensors")}
    assert len(weights) == len(cards) and {len(row["overlaps"]) for row in record["rows"]} == {
        readers.OTHERS["eagle"].count
    }
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path)]) == 0 and experiments.recorded("losses")["rows"] == record["rows"]
    assert capsys.readouterr().out.count("finished already") == len(cards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "nowhere"], "has no model.safetensors"),
        (["--target", "{target}"], "has no chat template"),
        (["--target", "{t5}"], "no model of Llama's shape"),
        (["--target", "{target}", "heads"], "no recipe is called heads; choose from exits, eagle, block, draft"),
        (["--target", "{target}", "--corpus", "x.txt"], "without --corpus"),
        (["--target", "{target}", "--start", "nowhere"], "--start goes with --target and one of eagle, block"),
        (["--start", "nowhere", "eagle"], "--start goes with --target and one of eagle, block"),
        (["--losses", "draft"], "no recipe is called draft; choose from heads, exits, eagle, block"),
        (["--target", "{target}", "--install"], "name what --install is to ship: exits, eagle, block, draft"),
        (["--target", "{shallow}", "exits"], "has one layer, and so no earlier exit"),
    ],
)
def test_what_cannot_teach_is_said_before_any_work(options, message, tmp_path, capsys):
    folders = {"target": "target", "t5": "t5-target", "shallow": "draft-d64x1"}
    places = {name: embedded.fetch(f"models/{folder}") for name, folder in folders.items()}
    assert main(["train", *(option.format(**places) for option in options), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config", ["[1]", '"x"', '{"model_type": "llama"}', '{"model_type": "llama", "vocab_size": null}']
)
def test_a_configuration_that_is_none_is_said(config, tmp_path, capsys):
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"")
    (place / "config.json").write_text(config)
    assert main(["train", "--target", str(place), "eagle", "--out", str(tmp_path / "out")]) == 2
    assert "give a model as transformers saves it" in capsys.readouterr().err


def test_no_answers_teach_nothing(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--target", "smollm2", "--answers", "0"])
    assert "argument --answers: must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize("loss", loop.LOSSES)
def test_every_loss_is_least_where_student_and_teacher_agree(loss):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 7, generator=generator)
    at_best = loop.distances(teacher, teacher, loss=loss)
    assert max(value.abs().max() for value in at_best) < 1e-6
    student = torch.randn(5, 7, generator=generator).requires_grad_()
    value, variation = loop.distances(student, teacher, loss=loss)
    p, q = log_softmax(teacher, -1).exp(), log_softmax(student, -1).exp()
    tv, kl = 0.5 * (p - q).abs().sum(-1), (p * (p / q).log()).sum(-1)
    wanted = {"both": tv + 0.3 * kl, "kl": kl, "tv": tv, "lk": -(torch.minimum(p, q).sum(-1)).log()}[loss]
    assert torch.allclose(value, wanted, atol=1e-6) and torch.allclose(variation, tv, atol=1e-6)


def test_what_is_not_kept_counts_as_lost():
    teacher, kept = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 5])
    p = teacher.softmax(-1)
    _, variation = loop.distances(teacher[:, kept], teacher, kept)
    q = torch.zeros(3, 6).index_copy(1, kept, teacher[:, kept].softmax(-1))
    assert torch.allclose(variation, 0.5 * (p - q).abs().sum(-1), atol=1e-6)
    assert readers.most_frequent(np.array([3, 3, 1, 5, 5, 5]), 2).tolist() == [3, 5]


def test_what_is_learnt_is_what_the_target_wrote(folder, tmp_path, monkeypatch):
    """Of tokens from 20 on the target wrote each, of those below none: a place counts if what stands behind it does."""
    asked = []
    monkeypatch.setattr(readers, "loss_of", lambda *arguments: asked.append(arguments[3:5]) or 1 / 0)
    text = np.random.default_rng(0).integers(10, 30, 400).astype(np.uint16)
    texts = Corpus(load_model(folder).tokenizer, [], [], text, text, text >= 20, text >= 20)
    reader = dataclasses.replace(readers.OTHERS["eagle"], name="a-eagle", rows=2, width=64, keeps=300)
    with pytest.raises(ZeroDivisionError):
        readers.train(reader, texts, tmp_path, compile=False, other=folder)
    ((inputs, counts),) = asked
    assert torch.equal(counts[:, :-1] > 0, inputs[:, 1:] >= 20)


@pytest.mark.parametrize("name", [name for name in readers.OTHERS if name != "exits"])
@pytest.mark.parametrize("room", [10**9, 3 * 48 * 32 * 4, 0])
def test_windows_that_come_again_are_looked_at_once(name, room, folder):
    """Whatever is kept, the loss is the same; the last states are all that eagle, a block and a draft ask for."""
    torch.manual_seed(0)
    target, inputs = load_model(folder, dtype="float32").model, torch.randint(300, (4, 48))
    seen, read = readers.Seen(target, room), []
    target.model.register_forward_hook(lambda module, given, out: read.append(len(out.last_hidden_state)))
    reader = dataclasses.replace(readers.OTHERS[name], name=f"a-{name}")
    module, counts = readers.make(reader, target), torch.ones_like(inputs)
    for rows in (inputs[:2], inputs[1:], inputs):
        known = readers.loss_of(reader, module, target, rows, counts[: len(rows)], seen(rows))
        again = readers.loss_of(reader, module, target, rows, counts[: len(rows)])
        assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(known, again, strict=True))
        read.pop()  # the second loss looked for itself
    assert read == {10**9: [2, 2], 3 * 48 * 32 * 4: [2, 2, 1], 0: [2, 3, 4]}[room]


@pytest.mark.parametrize("name", readers.OTHERS)
def test_what_does_not_count_is_not_learnt(name, folder):
    """The overlap at all places is the mean of those at some of them and at the others, and no place counts twice."""
    torch.manual_seed(0)
    target = load_model(folder, dtype="float32").model
    reader = dataclasses.replace(readers.OTHERS[name], name=f"a-{name}", discount=1.0)
    module, inputs = readers.make(reader, target), torch.randint(300, (1, 48))
    some = torch.rand(1, 48) < 0.3
    places = readers.guesses(module, target, inputs, target(inputs, output_hidden_states=True), reader.count)[1]
    whole, part, rest = (readers.loss_of(reader, module, target, inputs, c) for c in (some | ~some, some, ~some))
    share = some[0, places].float().mean(0)
    assert torch.allclose(whole[1], share * part[1] + (1 - share) * rest[1], atol=2e-3) and part[1].ne(rest[1]).all()
