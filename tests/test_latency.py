"""What a forward costs: the columns of the curve, the ratio of two models, and errors before anything is timed."""

import os

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speclib import LanguageModel, latency, products
from speclib.drafters import ModelDrafter
from speclib.errors import ContextOverflow, InvalidArgument


def tiny(layers, backend="eager", context=64):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LanguageModel(LlamaForCausalLM(config).eval(), name="tiny", backend=backend)


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_columns_of_the_width_curve(backend):
    frame = latency.width_curve(tiny(1, backend), (4, 1), context=8, passes=3, min_seconds=0.001)
    assert frame.columns.tolist() == ["width", "ms", "low", "high"] and frame["width"].tolist() == [4, 1]
    assert (frame["low"] > 0).all() and (frame["low"] <= frame["ms"]).all() and (frame["ms"] <= frame["high"]).all()


def test_median_and_quartiles_of_works_in_turn(monkeypatch):
    order, clock = [], iter([5.0, 10, 1, 20, 2, 30, 4, 40, 3, 50])  # ms: a, b, a, b, ...
    monkeypatch.setattr(latency, "timed", lambda statement, seconds, work: work() or next(clock))
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    frame = latency.spread(works, 5, 0.0, ["kind"])
    assert order == 5 * ["a", "b"]
    assert frame.to_dict("split")["data"] == [["a", 3, 2, 4], ["b", 30, 20, 40]]
    assert frame.columns.tolist() == ["kind", "ms", "low", "high"]


def test_a_width_that_does_not_fit_or_is_none_is_refused():
    model = tiny(1)
    for widths in ([], [0], [3, -1]):
        with pytest.raises(InvalidArgument, match="widths must be"):
            latency.width_curve(model, widths)
    with pytest.raises(InvalidArgument, match="passes"):
        latency.width_curve(model, [1], context=8, passes=0)
    with pytest.raises(ContextOverflow, match="60 cached and 5 new tokens do not fit into tiny's context of 64"):
        latency.width_curve(model, [1, 5], context=60)
    with pytest.raises(ContextOverflow):
        latency.cost_ratio(model, model)  # 128 tokens do not fit


def test_the_cost_ratio_is_draft_over_target():
    """One layer against twelve: which way round is beyond the noise of any machine."""
    deep, shallow = tiny(12), tiny(1)
    c = latency.cost_ratio(deep, shallow, context=16)
    assert 0 < c < 0.7
    assert latency.cost_ratio(shallow, deep, context=16) > 1 / 0.7


def test_what_a_round_costs():
    """A shallow draft before a deep target, every phase timed, and five guesses longer than one."""
    deep, shallow = tiny(12, "fast", 256), tiny(1, "fast", 256)
    one, five = (latency.round_costs(deep, ModelDrafter(shallow), gamma, context=64) for gamma in (1, 5))
    assert set(five) == {"plain", "draft", "check"} and min(five.values()) > 0
    assert one["draft"] < five["draft"] and one["draft"] < one["check"]
    with pytest.raises(ContextOverflow):
        latency.round_costs(deep, ModelDrafter(shallow), 5, context=200)


def test_bytes_and_operations_by_hand():
    """A shared embedding of 32 x 16; per layer four matrices of 16 x 16 and three of 16 x 32."""
    weights = 32 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert latency.bytes_and_operations(tiny(2)) == (4 * weights, 2 * weights)
    assert latency.bytes_and_operations(tiny(2), width=5)[1] == 10 * weights
    apart = tiny(2)
    apart.model.lm_head.weight = torch.nn.Parameter(apart.model.lm_head.weight.clone())
    assert latency.bytes_and_operations(apart) == (4 * weights, 2 * weights)  # looked up, not multiplied


def test_the_parts_of_a_forward_add_up():
    frame = latency.profile(tiny(2), context=16, forwards=3)
    assert frame.columns.tolist() == ["kind", "ms", "share"] and {"matrix products", "between operations"} <= set(
        frame["kind"]
    )
    assert (frame["ms"] >= 0).all() and frame["share"].sum() == pytest.approx(1)
    assert frame.set_index("kind")["ms"]["matrix products"] > 0
    for wrong in ({"width": 0}, {"forwards": 0}):
        with pytest.raises(InvalidArgument, match="width and forwards"):
            latency.profile(tiny(2), context=16, **wrong)


def test_layouts_are_timed_side_by_side_and_the_environment_is_left_as_found(monkeypatch):
    made = []
    real = products.layouts
    monkeypatch.setattr(
        products, "layouts", lambda weight: made.append(os.environ.get("SPECLIB_LAYOUT")) or real(weight)
    )
    for said in ("transposed", None):
        (monkeypatch.setenv("SPECLIB_LAYOUT", said) if said else monkeypatch.delenv("SPECLIB_LAYOUT"))
        made.clear()
        frame = latency.layout_curves(tiny(1), (1, 3), context=8, passes=2)
        assert frame.columns.tolist() == ["weights", "rows", "ms", "low", "high"] and (frame["ms"] > 0).all()
        assert {(row.weights, row.rows) for row in frame.itertuples()} == {
            (name, n) for name in ("as they lie", "laid out", "chosen") for n in (1, 3)
        }
        assert (
            list(dict.fromkeys(made)) == ["as-they-lie", "laid-out", None] and os.environ.get("SPECLIB_LAYOUT") == said
        )
    with pytest.raises(InvalidArgument, match="rows must be"):
        latency.layout_curves(tiny(1), [0])


def test_what_a_forward_waits_for_adds_up(monkeypatch):
    """4 ms of products of 9: at a slow memory they are all waiting for it, at a fast one the kernels' own time is
    left.
    """
    parts = pd.DataFrame(
        {
            "kind": ["matrix products", "attention", "between operations"],
            "ms": [4.0, 2.0, 3.0],
            "share": [4 / 9, 2 / 9, 3 / 9],
        }
    )
    monkeypatch.setattr(latency, "profile", lambda *_: parts)
    model = tiny(1)
    weights = latency.bytes_and_operations(model)[0]
    for bandwidth, expected in ((weights * 1e3, [1, 3, 5]), (weights * 1e1, [4, 0, 5])):
        frame = latency.waiting(model, bandwidth)
        assert frame["kind"].tolist() == ["memory", "products beyond that", "overhead"]
        assert frame["ms"].tolist() == pytest.approx(expected) and frame["share"].tolist() == pytest.approx(
            [ms / 9 for ms in expected]
        )
