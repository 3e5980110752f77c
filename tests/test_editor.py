"""The target that edits: its tasks, a micro training, what its adapter adds, and whether it copies where the plain
target does not.
"""

import dataclasses
import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from models import killed_at
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import speclib
from speclib import adapter, embedded, leaderboard
from speclib.drafters import LookupDrafter, ModelDrafter
from speclib.errors import ModelLoadError, TrainingError
from speclib.model.language_model import EDITOR
from speclib.training import editor, loop
from speclib.training.corpus import Corpus, Document

GREEDY = speclib.Sampling(temperature=0)
SOURCE = '''\
class Mean:
    def of(self, values, weights):
        """The weighted mean."""
        total = 0.0

        for value, weight in zip(values, weights):
            total += value * weight
        return total / sum(weights)


def shortest(words):
    best = words[0]
    for word in words:
        if len(word) < len(best):
            best = word
    return best


def annotated(words) -> str:
    return words[0]
'''


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.fetch("models/target"))


def documents(count):
    """Files of two functions whose names and words differ from file to file."""
    return [
        Document(
            "a",
            f"a/{k}.py",
            SOURCE.replace("total", f"sum_{k}").replace("word", f"entry{k}").replace("shortest", f"least_{k}"),
        )
        for k in range(count)
    ]


# --- the tasks
# ---------------------------------------------------------------------------------------------------------


def test_functions_are_whole_and_at_the_left_margin():
    method, function = editor.functions(documents(1)[0])
    assert (
        method.startswith('def of(self, values, weights):\n    """The weighted')
        and method.endswith("\n    return sum_0 / sum(weights)")
        and "\n\n    for" in method
    )
    assert function.startswith("def least_0(entry0s):\n") and function.endswith("    return best")


def test_an_answer_is_the_copy_with_the_change_and_nothing_else():
    method, function = editor.functions(documents(1)[0])
    one = editor.renamed(function, "copy")
    assert (
        one["text"] == f"{function}\n\n\n# the same, renamed to least_0_copy\ndef least_0_copy(entry0s):\n"
        and one["answer"] == function.partition("\n")[2]
    )
    other = editor.reworded(method, random.Random(0))
    word = re.search(r"# the same, with (\w+) called \1_again\n", other["text"]).group(1)
    assert word in ("sum_0", "weight", "weights", "value") and other["answer"].count(f"{word}_again") >= 2
    assert (other["text"] + other["answer"]).replace(f"{word}_again", word).count(method) == 2
    assert editor.reworded("def short(words):\n    return words", random.Random(0)) is None


def test_tasks_survive_the_tokenizer_and_depend_on_the_seed_alone(tokenizer):
    made = editor.tasks(documents(20), tokenizer, seed=1)
    assert made == editor.tasks(documents(20), tokenizer, seed=1) != editor.tasks(documents(20), tokenizer, seed=2)
    kinds = set()
    for text, answer in made:
        shown, asked = tokenizer.decode(text).rsplit("\n\n\n# the same, ", 1)
        order, first = asked.split("\n", 1)
        kind, old, new = re.fullmatch(r"(renamed to|with) (?:(\w+) called )?(\w+)", order).groups()
        old = old or re.match(r"def (\w+)", shown).group(1)
        copy = first + tokenizer.decode(answer)
        assert new.startswith(f"{old}_") and copy != shown and re.sub(rf"\b{new}\b", old, copy) == shown
        assert 24 <= len(answer) <= 210 and tokenizer(tokenizer.decode(answer))["input_ids"] == answer
        kinds.add(kind)
    assert len(made) == 40 and kinds == {"renamed to", "with"}


def test_a_batch_asks_for_the_answers_alone(tokenizer):
    made = editor.tasks(documents(20), tokenizer)
    inputs, wanted = editor.batch(made, step=3, rows=4)
    assert inputs.shape == wanted.shape and inputs.shape[0] == 4 and inputs.shape[1] % 32 == 0
    for row, asked in zip(inputs.tolist(), wanted.tolist(), strict=True):
        text, answer = next(task for task in made if row[: len(task[0]) + len(task[1])] == task[0] + task[1])
        assert [token for token in asked if token != editor.IGNORED] == answer and asked[len(text) - 1] == answer[0]


def test_held_out_edits_take_turns_and_fit(tokenizer):
    entries = embedded.held_out("edit")
    assert [entry["kind"] for entry in entries] == ["renamed", "reworded"] * 24 and len(
        {entry["text"] for entry in entries}
    ) == 48
    for entry in entries:
        assert len(tokenizer(entry["text"] + entry["answer"])["input_ids"]) <= 480
        shown, asked = entry["text"].rsplit("\n\n\n# the same, ", 1)
        new = re.search(r"(?:renamed to|called) (\w+)_again\n", asked).group(1)
        assert re.sub(rf"\b{new}_again\b", new, asked.split("\n", 1)[1] + entry["answer"]) == shown
    assert (
        len(leaderboard.long_enough("edit", tokenizer, 120, 10))
        < len(leaderboard.long_enough("edit", tokenizer, 64, 10))
        == 48
    )
    assert len(leaderboard.long_enough("edit", tokenizer, 120, 40)) == 48  # too few would be left
    assert leaderboard.long_enough("code", tokenizer, 500, 10) == embedded.prompts("code")


# --- the training
# ------------------------------------------------------------------------------------------------------


def small_target(folder, vocabulary, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_training_lowers_the_loss_and_goes_on_after_a_kill(tokenizer, tmp_path, monkeypatch):
    target, nothing = small_target(tmp_path / "target", len(tokenizer)), np.zeros(0, np.uint16)
    texts = Corpus(tokenizer, documents(30), documents(33)[30:], nothing, nothing)
    recipe = editor.Editor(tokens=40 * 4 * 160, rows=4)
    with pytest.raises(TrainingError, match="needs target"):
        editor.train(recipe, texts, tmp_path)
    (target / "card.json").write_text("{}")
    with pytest.raises(TrainingError, match="has 0 tasks for it to learn from, and 6 held out"):
        editor.train(recipe, dataclasses.replace(texts, learnt=[]), tmp_path)
    shutil.copytree(target, tmp_path / "cut/target")
    whole = editor.train(recipe, texts, tmp_path)
    card = json.loads((whole / "card.json").read_text())
    plain = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).to(loop.DEVICE)
    nats, _ = editor.held_out_loss(plain, editor.tasks(texts.held_out, tokenizer), rows=8)
    assert card["held_out_nats_per_token"] < nats - 0.1
    assert card["adapter_of"] == "target" and card["parameters"] == sum(
        t.numel() for t in adapter.load_file(whole / adapter.FILE).values()
    )
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1)
    with killed_at(20):
        editor.train(recipe, texts, tmp_path / "cut")
    with pytest.raises(TrainingError, match="belongs to another training"):
        editor.train(recipe, texts, tmp_path / "cut", seed=1)
    resumed = editor.train(recipe, texts, tmp_path / "cut")
    assert (resumed / adapter.FILE).read_bytes() == (whole / adapter.FILE).read_bytes()


# --- the adapter
# -------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tokenizer, tmp_path):
    """(a small target with a parametrized adapter, the folder where that adapter is saved beside the target)."""
    target = small_target(tmp_path / "target", len(tokenizer))
    tokenizer.save_pretrained(target)
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    layers = editor.adapt(model)
    with torch.no_grad():
        for value in layers.parameters():
            value.copy_((0.3 * torch.randn_like(value)).bfloat16())
    folder = tmp_path / "adapted"
    folder.mkdir()
    adapter.save({name.replace("/", "."): value for name, value in layers.state_dict().items()}, folder)
    card = {"adapter_of": "target", "target_sha256": adapter.pooch.file_hash(str(target / "model.safetensors"))}
    (folder / "card.json").write_text(json.dumps(card))
    return model, folder


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_a_saved_adapter_is_the_parametrized_model(adapted, backend):
    model, folder = adapted
    text = torch.arange(5, 40)[None]
    loaded = speclib.load_model(folder, backend=backend)
    plain = speclib.load_model(folder.parent / "target", backend=backend)
    with torch.inference_mode():
        right = model(text).logits
    assert loaded.name == "adapted" and loaded.parameters == plain.parameters
    assert (
        (loaded.context().extend(text) - right).abs().max()
        < 1e-4
        < 0.1
        < (plain.context().extend(text) - right).abs().max()
    )
    exact, rounded = (speclib.load_model(folder, dtype=dtype).model.state_dict() for dtype in ("float64", "bfloat16"))
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight.double(), exact[name]) and torch.equal(weight.bfloat16(), rounded[name])


def test_an_adapter_on_other_weights_is_refused(adapted, tokenizer):
    _, folder = adapted
    small_target(folder.parent / "target", len(tokenizer), seed=1)
    with pytest.raises(
        ModelLoadError, match="trained for other weights than those in .*target .*train the adapter again"
    ):
        speclib.load_model(folder)
    shutil.rmtree(folder.parent / "target")  # no sibling: the embedded target is not the right one either
    with pytest.raises(ModelLoadError, match="trained for other weights"):
        speclib.load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (adapter.FILE, b"not tensors", "cannot load"),
        (adapter.FILE, None, "cannot load"),
        ("card.json", b"{", "does not say which model"),
        ("card.json", b'{"name": "x"}', "KeyError.*adapter_of"),
    ],
    ids=["garbage", "cut short", "no card", "a card of something else"],
)
def test_a_damaged_adapter_is_one_clear_line(adapted, file, content, words):
    path = adapted[1] / file
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ModelLoadError, match=words) as caught:
        speclib.load_model(adapted[1])
    assert "\n" not in str(caught.value)


# --- the embedded editor
# -----------------------------------------------------------------------------------------------


def copied(target, entries, tokenizer, tokens=64):
    """The mean share of the answers' first `tokens` tokens that greedy decoding writes at their places."""
    shares = []
    for entry in entries:
        right = torch.tensor(tokenizer(entry["answer"])["input_ids"][:tokens])
        out = speclib.generate(target, entry["text"], LookupDrafter(), GREEDY, 10, max_new_tokens=len(right), stop=[])
        shares.append((out.tokens[0] == right).float().mean().item())
    return sum(shares) / len(shares)


def test_the_embedded_editor_copies_and_the_plain_target_does_not(tokenizer):
    entries = embedded.held_out("edit")[:16]
    target, plain = (speclib.load_model(name, backend="fast") for name in (EDITOR, "target"))
    assert copied(target, entries[::2], tokenizer) > 0.9  # 1.00 when it was trained
    assert copied(target, entries[1::2], tokenizer) > 0.6  # 0.85: one miss, and every place behind it is shifted
    assert copied(plain, entries[::2], tokenizer) < 0.1  # 0.00


def test_the_embedded_editor_is_loaded_by_name_and_stays_lossless(tmp_path):
    pair = speclib.load_pair(EDITOR, "draft-d384x1-distilled", dtype="float64", backend="fast")
    assert pair.target.name == EDITOR and EDITOR not in speclib.ladder()
    assert (
        leaderboard.writer(pair.target, "edit") is pair.target and leaderboard.writer(pair.draft, "edit") is pair.draft
    )
    assert repr(leaderboard.writer(speclib.load_model("target", dtype="float64", backend="fast"), "edit")) == repr(
        pair.target
    )
    prompts = embedded.prompts("edit")[:2]
    plain = speclib.generate(pair.target, prompts, None, GREEDY, max_new_tokens=48, stop=[])
    for drafter in (LookupDrafter(), ModelDrafter(pair.draft)):
        fast = speclib.generate(pair.target, prompts, drafter, GREEDY, 10, max_new_tokens=48, stop=[])
        assert all(torch.equal(a, b) for a, b in zip(fast.tokens, plain.tokens, strict=True))
    with pytest.raises(ModelLoadError, match=f"embedded name .target, {EDITOR}, draft-"):
        speclib.load_model(tmp_path)
