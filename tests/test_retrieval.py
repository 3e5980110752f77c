"""The search index against brute force, on disk and off, and the law of what is emitted with it."""

import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from models import law_of, llama, right_law

from speclib.__main__ import main
from speclib.drafters import RetrievalDrafter, build_index, load_index
from speclib.drafters.retrieval import DEPTH, FILES, MOST_PLACES, fingerprint
from speclib.errors import IncompatibleModels, IndexLoadError, InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import max_difference
from speclib.loop.decoding import generate
from speclib.model.language_model import load_model

CORPUS = np.random.default_rng(3).choice(3, 400, p=[0.5, 0.3, 0.2])


def tiny(vocabulary=3):
    return llama(vocabulary, 1, 1, context=64, scale=12)


def guesser(drafter, sampling=None, vocabulary=3):
    return drafter.start(tiny(vocabulary).context([0]), sampling or Sampling(), seeded(0))


def scan(corpus, phrase, last):
    return [i for i in range(last) if list(corpus[i : i + len(phrase)]) == list(phrase)]


@pytest.mark.parametrize("vocabulary", [3, 300, 70_000], ids=["2 bits", "9 bits", "17 bits, 4 bytes a token"])
def test_every_phrase_is_found_where_it_stands(vocabulary):
    rng = np.random.default_rng(vocabulary)
    corpus = rng.choice(rng.choice(vocabulary, 3, replace=False), 500)
    index = build_index(corpus, vocabulary)
    assert (
        index.depth >= DEPTH and len(index.places) == len(corpus) - index.depth and np.array_equal(index.tokens, corpus)
    )
    for size in range(1, DEPTH + 1):
        for phrase in [corpus[i : i + size].tolist() for i in range(0, 480, 37)] + [
            rng.choice(np.unique(corpus), size).tolist()
        ]:
            assert sorted(index.find(phrase).tolist()) == scan(corpus, phrase, len(index.places))
    assert len(index.find([vocabulary - 1] * DEPTH)) == len(scan(corpus, [vocabulary - 1] * DEPTH, len(index.places)))


def test_places_are_sorted_by_what_stands_there():
    index = build_index(CORPUS, 3)
    there = [tuple(CORPUS[p : p + index.depth]) for p in index.places]
    assert there == sorted(there) and sorted(index.places.tolist()) == list(range(len(CORPUS) - index.depth))


def test_the_longest_end_that_occurs():
    index, rng = build_index(CORPUS, 3), np.random.default_rng(0)
    lengths = Counter()
    for _ in range(100):
        text = rng.integers(0, 3, 12).tolist()
        size, places = index.longest(text, DEPTH)
        wanted = max((s for s in range(1, DEPTH + 1) if scan(CORPUS, text[-s:], len(index.places))), default=0)
        assert size == wanted and sorted(places.tolist()) == scan(CORPUS, text[-size:], len(index.places))
        lengths[size] += 1
    assert len(lengths) > 2
    assert index.longest([0, 1], 8)[0] == 2 and index.longest([0], 8, least=2)[0] == 0


def continuation(text, n):
    """The most frequent next token among the occurrences of the longest end, then among those that agree, and so on;
    the smaller token of equals.
    """
    last = len(CORPUS) - DEPTH
    size = max(s for s in range(1, DEPTH + 1) if scan(CORPUS, text[-s:], last))
    places, tokens = scan(CORPUS, text[-size:], last), []
    for i in range(n):
        counts = Counter(int(CORPUS[min(p + size + i, len(CORPUS) - 1)]) for p in places)
        tokens.append(min(counts, key=lambda t: (-counts[t], t)))
        places = [p for p in places if CORPUS[min(p + size + i, len(CORPUS) - 1)] == tokens[-1]]
    return tokens


def test_the_proposal_is_the_most_frequent_continuation():
    at_work, rng = guesser(RetrievalDrafter(build_index(CORPUS, 3))), np.random.default_rng(1)
    for _ in range(60):
        text = rng.integers(0, 3, 9).tolist()
        draft = at_work.propose(text, 4)
        assert draft.tokens.tolist() == continuation(text, 4)
        assert torch.equal(draft.probs, torch.eye(3, dtype=torch.float64)[draft.tokens])


def test_proportions_are_handed_over():
    corpus = [0, 1, 2, 0, 1, 2, 0, 1, 1, 0] * 5
    at_work = guesser(RetrievalDrafter(build_index(corpus, 3), longest=2, probabilities="counts"))
    places = scan(corpus, [0, 1], len(corpus) - DEPTH)
    share = np.mean([corpus[p + 2] == 2 for p in places])
    draft = at_work.propose([2, 0, 1], 1)
    np.testing.assert_allclose(draft.probs[0].numpy(), [0, 1 - share, share], atol=1e-15)


def test_of_very_many_occurrences_some_are_looked_at():
    index = build_index([0] * 10 * MOST_PLACES + [1] * 30, 3)
    assert MOST_PLACES / 2 < len(index.behind(index.find([0, 0]), 2, 3)) <= MOST_PLACES


def test_no_match_is_no_guess():
    drafter = RetrievalDrafter(build_index([0, 1] * 40, 2))
    at_work = guesser(drafter)
    assert at_work.propose([0, 1, 2], 3).probs.shape == (0, 3)  # token 2 is none of the index's
    assert at_work.propose([2, 0, 1], 3).tokens.tolist() == [0, 1, 0]
    assert len(guesser(RetrievalDrafter(build_index([0, 1] * 40, 3), shortest=3)).propose([1, 1, 1], 3).tokens) == 0


def test_saved_and_mapped_it_is_the_same(tmp_path):
    built = build_index(CORPUS, 3, alphabet="abc")
    built.save(tmp_path / "index")
    mapped = load_index(tmp_path / "index")
    assert isinstance(mapped.places, np.memmap) and (mapped.depth, mapped.vocabulary, mapped.alphabet) == (
        built.depth,
        3,
        "abc",
    )
    assert np.array_equal(mapped.places, built.places) and np.array_equal(mapped.tokens, built.tokens)
    for phrase in itertools.product(range(3), repeat=3):
        assert np.array_equal(mapped.find(phrase), built.find(phrase))


def test_a_missing_index_names_the_command(tmp_path):
    with pytest.raises(IndexLoadError, match=r"no search index in .*; make one with: python -m speclib index --out"):
        RetrievalDrafter(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokens.bin", "places.npy", "index.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_index_is_refused(tmp_path, name, damage):
    build_index(CORPUS, 3).save(tmp_path)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    with pytest.raises(IndexLoadError, match="python -m speclib index"):
        load_index(tmp_path)


def test_an_index_says_what_it_was_made_of_and_by(tmp_path, monkeypatch):
    """Settings that were changed by hand are refused, and an index that other code has sorted."""
    build_index(CORPUS, 3, alphabet="abc").save(tmp_path)
    file = tmp_path / "index.json"
    text, facts = file.read_text(), json.loads(file.read_text())
    assert {"sha256", "alphabet", "vocabulary", "depth", "tokens", "code"} < facts.keys()
    for name, other in {"depth": 4, "vocabulary": 4, "alphabet": "abd", "tokens": facts["tokens"] - 1}.items():
        file.write_text(json.dumps(facts | {name: other}))
        with pytest.raises(IndexLoadError, match="was changed since; make it again with: python -m speclib index"):
            load_index(tmp_path)
    file.write_text(text)
    assert load_index(tmp_path).depth == facts["depth"]
    monkeypatch.setattr("speclib.drafters.retrieval.build_index", lambda tokens: "sorted otherwise")
    with pytest.raises(IndexLoadError, match="made by another version of speclib; make it again with: python"):
        load_index(tmp_path)


def test_an_interrupted_save_is_no_index_and_leaves_an_older_one(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    build_index(CORPUS, 3).save(old)
    monkeypatch.setattr(np, "save", lambda *_: 1 / 0)
    for folder in (old, new):
        with pytest.raises(ZeroDivisionError):
            build_index(CORPUS[::-1], 3).save(folder)
    with pytest.raises(IndexLoadError, match="no search index"):
        load_index(new)
    assert load_index(old).tokens.tolist() == list(CORPUS) and sorted(p.name for p in old.iterdir()) == sorted(FILES)


def test_bad_settings_are_refused():
    index = build_index(CORPUS, 3)
    for options in (
        {"longest": 0},
        {"longest": index.depth + 1},
        {"shortest": 0},
        {"longest": 2, "shortest": 3},
        {"probabilities": "soft"},
    ):
        with pytest.raises(InvalidArgument):
            RetrievalDrafter(index, **options)
    for tokens in ([0, 1], [[0] * 50], [0.5] * 50, [3] * 50, [-1] * 50):
        with pytest.raises(InvalidArgument):
            build_index(tokens, 3)


def test_an_index_of_another_tokenizer_is_refused():
    with pytest.raises(IncompatibleModels, match="another tokenizer"):
        guesser(RetrievalDrafter(build_index(CORPUS, 5)))
    assert fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0}) != fingerprint({"a": 1, "b": 0})


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7), Sampling(top_k=2), Sampling(temperature=0)],
    ids=["T=1", "T=0.7", "top-k", "greedy"],
)
@pytest.mark.parametrize("probabilities", ["counts", "point"])
def test_generate_keeps_the_law(probabilities, sampling):
    """Every path of `generate`, summed."""
    target, prompt = tiny(), [0, 1, 0, 1, 2]
    drafter = RetrievalDrafter(build_index(CORPUS, 3), probabilities=probabilities)
    law = law_of(target, drafter, sampling, 2, 4, prompt)
    assert max_difference(law, right_law(target, sampling, 4, prompt)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("probabilities", ["counts", "point"])
def test_greedy_text_is_the_targets(probabilities):
    prompts = [[0, 1, 2, 1], [2, 2, 0]]
    plain = generate(tiny(), prompts, None, Sampling(temperature=0), max_new_tokens=40, stop=[])
    ours = generate(
        tiny(),
        prompts,
        RetrievalDrafter(build_index(CORPUS, 3), probabilities=probabilities),
        Sampling(temperature=0),
        4,
        max_new_tokens=40,
        stop=[],
    )
    assert [t.tolist() for t in plain.tokens] == [t.tolist() for t in ours.tokens]
    assert sum(r.accepted for r in ours.trace.rounds) > 0


# --- the command, and its speed
# -----------------------------------------------------------------------------------------------


def test_a_phrase_is_found_in_under_a_millisecond():
    rng = np.random.default_rng(4)
    corpus = rng.zipf(1.3, 1_000_000) % 4096
    at_work = guesser(RetrievalDrafter(build_index(corpus, 4096)), vocabulary=4096)
    texts = [corpus[i : i + 20].tolist() for i in range(0, 900_000, 30_000)]
    times = []
    for text in texts:
        began = time.perf_counter()
        at_work.drafter.index.longest(text, DEPTH)
        times.append(time.perf_counter() - began)
    assert np.median(times) < 1e-3


def test_the_command_makes_an_index_that_finds_the_corpus(tmp_path, capsys):
    lines = [f"def function_{i}(argument):\n    return argument * {i}\n" for i in range(500)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    assert main(["index", "--corpus", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "index")]) == 0
    assert "tokens" in capsys.readouterr().out and sorted(f.name for f in (tmp_path / "index").iterdir()) == [
        "index.json",
        "places.npy",
        "tokens.bin",
    ]
    target = load_model("target")
    drafter = RetrievalDrafter(tmp_path / "index")
    text = target.tokenizer("def function_77(argument")["input_ids"]
    draft = drafter.start(target.context(text), Sampling(), seeded(0)).propose(text, 3)
    assert target.tokenizer.decode(draft.tokens).startswith("):\n")
