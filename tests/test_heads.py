"""Parallel heads: the law of the text as a chain and as a tree, and a micro training. By chance, and with a control:
test_every_guesser.py.
"""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from models import GREEDY, killed_at, law_of, right_law, tiny
from transformers import LlamaConfig, LlamaForCausalLM

import speclib
from speclib.drafters import Heads, HeadsDrafter
from speclib.drafters.block import read_block
from speclib.drafters.eagle import read_eagle
from speclib.drafters.heads import branches, read_heads
from speclib.drafters.layer_skip import read_exits
from speclib.errors import IncompatibleModels, InvalidArgument, TrainingError
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import max_difference
from speclib.training import loop
from speclib.training import readers as training
from speclib.training.corpus import Corpus
from speclib.training.tokenizer import train_tokenizer


def some_heads(count=3, width=8):
    torch.manual_seed(2)
    heads = Heads(count, width)
    with torch.no_grad():
        heads.out.normal_()
    return heads.double().requires_grad_(False)


@pytest.mark.parametrize(
    ("backend", "vocabulary", "width", "choices", "sampling", "length", "prompt"),
    [
        ("eager", 3, 1, "drawn", Sampling(), 3, [0, 1]),
        # a prompt of one token: no hidden state in the first round
        ("fast", 2, 1, "drawn", Sampling(temperature=0.7), 4, [0]),
        ("fast", 3, 1, "top", Sampling(), 3, [0, 1]),
        ("eager", 2, 2, "drawn", Sampling(), 3, [0, 1]),
        ("fast", 3, 2, "drawn", Sampling(), 2, [0, 1]),
        ("fast", 3, 3, "drawn", Sampling(top_k=2), 3, [0, 1]),  # fewer choices than the tree is wide
        ("fast", 3, 2, "top", Sampling(), 3, [0, 1]),
    ],
)
def test_generate_keeps_the_law(backend, vocabulary, width, choices, sampling, length, prompt):
    target = tiny(backend=backend, vocabulary=vocabulary)
    law = law_of(target, HeadsDrafter(some_heads(), width, choices), sampling, 2, length, prompt)
    assert max_difference(law, right_law(target, sampling, length, prompt)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and len(law) > 2


@pytest.mark.parametrize(("width", "choices"), [(1, "drawn"), (1, "top"), (3, "top"), (2, "drawn")])
def test_greedy_identity(width, choices):
    target = tiny(backend="fast", vocabulary=30, context=64, scale=3)
    plain = speclib.generate(target, [[1, 2], [3]], None, GREEDY, max_new_tokens=40, stop=[])
    fast = speclib.generate(
        target, [[1, 2], [3]], HeadsDrafter(some_heads(), width, choices), GREEDY, 3, max_new_tokens=40, stop=[]
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, fast.tokens, strict=True))


def test_a_guess_does_not_depend_on_the_ones_before_it():
    target, text = tiny(backend="fast", vocabulary=5), [0, 1, 2, 3]
    rows = []
    for seed in range(8):
        context = target.context(text)
        guesser = HeadsDrafter(some_heads()).start(context, Sampling(), seeded(seed))
        context.extend(torch.tensor([text[:-1]]))
        draft = guesser.propose(text, 3)
        rows.append((draft.tokens.tolist(), draft.probs))
    assert len({tuple(tokens) for tokens, _ in rows}) > 1
    assert all(torch.equal(probs, rows[0][1]) for _, probs in rows)
    assert guesser.propose(text, 2).tokens.shape == (2,) and guesser.propose(text, 9).probs.shape == (3, 5)
    assert guesser.propose(text, 3, lambda probs: False).tokens.shape == (1,)


def test_the_shape_of_the_tree():
    assert branches(1, 3) == [(0,), (1,), (2,)]
    assert branches(2, 3) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert branches(3, 1) == [(0, 0, 0)]


def test_refusals_are_one_line():
    for options, message in (({"width": 0}, "width must be"), ({"choices": "all"}, "choices must be")):
        with pytest.raises(InvalidArgument, match=message):
            HeadsDrafter(some_heads(), **options)
    with pytest.raises(IncompatibleModels, match="width 4"):
        speclib.generate(tiny(), [[0, 1]], HeadsDrafter(Heads(2, 4)), max_new_tokens=4)
    with pytest.raises(InvalidArgument, match="tree of guesses"):
        speclib.generate(tiny(), [[0, 1]], HeadsDrafter(some_heads(), 2), rule="block", max_new_tokens=4)


@pytest.mark.parametrize(
    ("name", "read"), [("heads", read_heads), ("exits", read_exits), ("eagle", read_eagle), ("block", read_block)]
)
def test_training_raises_the_overlap_and_goes_on_after_a_kill(name, read, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    tokens = np.random.default_rng(0).integers(0, 40, 20_000).astype(np.uint16)
    texts = Corpus(train_tokenizer(["some words"], 260), [], [], tokens, tokens[-2000:])
    reader = dataclasses.replace(training.READERS[name], tokens=60 * 4 * 32, width=32, rows=4)
    monkeypatch.setattr(training, "samples_of", lambda folder, tokens: tokens[::-1])
    with pytest.raises(TrainingError, match="needs target"):
        training.train(reader, texts, tmp_path, compile=False)
    (tmp_path / "target/card.json").write_text("{}")
    shutil.copytree(tmp_path / "target", tmp_path / "cut/target")
    whole, target = training.train(reader, texts, tmp_path, compile=False), training.load(tmp_path / "target")
    before, after = (
        training.held_out_overlap(reader, module.to(target.device), target, tokens[-2000:], tokens[-2000:] >= 0)
        for module in (training.make(reader, target), read(whole).float())
    )
    assert np.mean(after) > np.mean(before) + 0.02
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0)
    with killed_at(30):
        training.train(reader, texts, tmp_path / "cut", compile=False)
    resumed = training.train(reader, texts, tmp_path / "cut", compile=False)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
