"""Published sizes: shapes as published, predictions from a record, and the article's loops beside ours."""

import pytest
import torch
from models import build

import speclib
from speclib import LanguageModel, Pair, errors, published


def test_a_shape_has_the_published_number_of_parameters():
    assert published.random_model("distilgpt2").parameters == 81_912_576
    with pytest.raises(errors.InvalidArgument, match="no shape is called 'gpt9'"):
        published.random_model("gpt9")


def record(**milliseconds):
    """Forwards that cost the same at every width, with and without a cache."""
    model = lambda ms: {
        "widths": [{"width": w, "ms": ms} for w in range(1, 10)],
        "uncached": [{"length": n, "ms": 3 * ms} for n in (10, 30, 50)],
    }
    return {"models": {name: model(ms) for name, ms in milliseconds.items()}}


def test_predictions_by_hand():
    """gpt2-large with distilgpt2 at alpha 0.71: (1 - 0.71^5) / 0.29 tokens a round, for 4 x 0.1 + 1 forwards."""
    table = published.predictions(record(**{"gpt2-large": 10.0, "distilgpt2": 1.0}))
    assert table["predicted here"].tolist() == pytest.approx([(1 - 0.71**5) / 0.29 / 1.4])


def test_the_article_taken_apart():
    """Where a cache changes no ratio, the speed-up with a cache is the one without, and the cache alone brings the
    factor three.
    """
    found = published.article(record(**{"gpt2-xl": 10.0, "gpt2": 1.0}))
    assert found["both cached"] == pytest.approx(2.12) and found["plain, no cache (s)"] == pytest.approx(
        3 * found["plain, cached (s)"]
    )
    assert found["speculative without a cache over cached plain"] == pytest.approx(2.12 / 3)


def test_a_draft_that_costs_too_much_implies_an_upper_bound():
    """At half the target's price even a draft that is always right brings 5 tokens for 3 forwards."""
    found = published.article(record(**{"gpt2-xl": 10.0, "gpt2": 5.0}))
    assert found["alpha implied"] == 1 and found["article's kind of speed-up"] == pytest.approx(5 / 3)
    assert found["speculative without a cache over cached plain"] == pytest.approx(5 / 9)


class Words:
    """A tokenizer of numbers."""

    def __call__(self, text):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def get_vocab(self):
        return {str(k): k for k in range(48)}

    def __len__(self):
        return 48

    eos_token_id = None


@pytest.mark.parametrize("gamma", [1, 4])
def test_the_loops_without_a_cache_write_the_text_of_those_with_one(gamma):
    target, draft = (LanguageModel(build("gpt2", seed, torch.float64), Words()) for seed in (0, 1))
    for guesser in (draft, target):  # a draft that is mostly wrong, and one that never is
        pair = Pair(target, guesser)
        plain = (
            speclib.generate(target, [[3, 1, 4]], None, speclib.Sampling(0), max_new_tokens=13, stop=[])
            .tokens[0]
            .tolist()
        )
        assert published.uncached(pair, [3, 1, 4], 0, 13) == published.uncached(pair, [3, 1, 4], gamma, 13) == plain
        found = published.article_here(pair, "3 1 4", 13, gamma)
        assert found["one text"] == 1 and found["both cached"] == pytest.approx(
            found["plain, cached (s)"] / found["speculative, cached (s)"]
        )


def test_weights_are_used_where_they_lie_and_never_fetched(monkeypatch):
    asked = []

    def cached_file(name, file, local_files_only):
        asked.append((name, local_files_only))
        if missing:
            raise OSError("not here")

    monkeypatch.setattr(published, "cached_file", cached_file)
    monkeypatch.setattr(published, "load_pair", lambda *names: names)
    missing = False
    assert published.downloaded() == ("openai-community/gpt2-xl", "openai-community/gpt2")
    missing = True
    assert published.downloaded() is None and all(local for _, local in asked)
