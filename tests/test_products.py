"""Every layout gives the same products; the quickest is chosen by timing, once, whatever happens to the file that keeps
the choice."""

import json
import platform
from functools import partial

import pytest
import torch

from speclib import products
from speclib.errors import InvalidArgument
from speclib.model.products import LAYOUTS, ROWS, can_pack, layout_for, layouts, product

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-13}


def matrices(dtype, bias, rows):
    chance = torch.Generator().manual_seed(0)
    x, weight, added = (
        torch.randn(*shape, generator=chance, dtype=torch.float64).to(dtype) for shape in ((rows, 48), (80, 48), (80,))
    )
    return x, weight, added if bias else None


def right(x, weight, bias):
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@torch.inference_mode()
def test_the_product_whatever_the_layout_and_the_number_of_rows(dtype, bias, layout, monkeypatch):
    monkeypatch.setenv("SPECLIB_LAYOUT", layout)
    for rows in (1, 2, 5, 16, 33):
        x, weight, added = matrices(dtype, bias, rows)
        got = product(weight, added)(x)
        assert got.dtype == dtype and got.shape == (rows, 80) and got.is_contiguous()
        assert (
            (got.double() - right(x, weight, added)).abs() <= ROUNDING[dtype] * (1 + right(x, weight, added).abs())
        ).all()


@torch.inference_mode()
def test_a_part_of_a_matrix_and_rows_that_do_not_lie_together():
    x, weight, _ = matrices(torch.float32, False, 10)
    wide = torch.cat([x, x], 1)[::2, 24:72]
    assert (product(weight[3:70])(wide).double() - right(wide, weight[3:70], None)).abs().max() < 1e-4


def test_where_weights_are_not_laid_out(monkeypatch):
    _, weight, _ = matrices(torch.float32, False, 1)
    assert not can_pack(weight.double()) and not can_pack(weight.half()) and not can_pack(weight.to("meta"))
    assert product(weight.to("meta"))(torch.ones(2, 48, device="meta")).shape == (2, 80)
    if can_pack(weight):  # else there is nothing to switch off
        with torch.backends.mkldnn.flags(enabled=False):
            assert not can_pack(weight)
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert not can_pack(weight)


def test_the_weights_are_a_copy_without_a_gradient():
    x, weight, _ = matrices(torch.float32, False, 4)
    weight = torch.nn.Parameter(weight)
    made = product(weight)
    assert not made(x).requires_grad
    if can_pack(weight):
        before = made(x)
        weight.data.zero_()
        assert torch.equal(made(x), before)


needs_choice = pytest.mark.skipif(
    not can_pack(torch.ones(1, 1)), reason="oneDNN lays nothing out here, so there is nothing to choose"
)


@needs_choice
def test_torch_knows_the_shape_of_what_comes_out():
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(80, 48))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        out = torch.ops.speclib.product(fake.from_tensor(torch.ones(3, 48)), packed, None)
    assert out.shape == (3, 80) and out.dtype == torch.float32


REAL_RACE = products.race
TORN = ["", "{", "[]", "null", "\0\1", None, 5, ["laid-out"], [["laid-out"]] * len(ROWS), ["upside down"] * len(ROWS)]
WEIGHT = torch.ones(150, 120)  # more than `SMALL`
QUICK = {1: "transposed", 2: "exchanged", 3: "exchanged", 24: "as-they-lie"}  # and elsewhere the usual layout


class Clock:
    """Stands in for `race`: QUICK takes half as long as all others; `said` counts what was asked."""

    def __init__(self, **seconds):
        self.seconds, self.said = seconds, 0

    def __call__(self, made, x):
        self.said += 1
        own = self.seconds or {QUICK.get(len(x), "laid-out"): 0.5}
        return {name: (value(len(x)) if callable(value := own.get(name, 1.0)) else value) for name in made}


@pytest.fixture
def timing(monkeypatch, tmp_path):
    """Sets the clock, in a folder of its own and as a new process would see it."""
    monkeypatch.delenv("SPECLIB_LAYOUT")
    monkeypatch.setattr(products, "FOLDER", tmp_path / "layouts")

    def begin(clock=None):
        products._known.cache_clear()
        clock = clock or Clock()
        monkeypatch.setattr(products, "race", clock)
        return clock

    yield begin
    products._known.cache_clear()


@needs_choice
def test_the_quickest_layout_is_taken_for_each_number_of_rows(timing, monkeypatch):
    timing()
    expected = {rows: QUICK.get(rows, "laid-out") for rows in ROWS}
    assert dict(zip(ROWS, layouts(WEIGHT), strict=True)) == expected
    used = []
    for name, layout in LAYOUTS.items():

        def noting(weight, bias, name=name, layout=layout):
            made = layout(weight, bias)
            return lambda x: used.append(name) or made(x)

        monkeypatch.setitem(LAYOUTS, name, noting)
    made = product(WEIGHT)
    for rows in (1, 2, 4, 16, 17, 24, 25, 48, 400):
        assert torch.equal(made(torch.ones(rows, 120)), torch.full((rows, 150), 120.0))
    assert used == [
        "transposed",
        "exchanged",
        "laid-out",
        "laid-out",
        "as-they-lie",
        "as-they-lie",
        "laid-out",
        "laid-out",
        "laid-out",
    ]
    assert [layout_for(layouts(WEIGHT), rows) for rows in (1, 3, 20, 1000)] == [
        "transposed",
        "exchanged",
        "as-they-lie",
        "laid-out",
    ]


@needs_choice
def test_the_usual_layout_stays_unless_another_wins_clearly_and_twice(timing):
    for shares, taken in (
        ({"exchanged": 0.92}, "laid-out"),
        ({"exchanged": 0.85}, "exchanged"),
        ({"as-they-lie": 0.97}, "laid-out"),
        ({"as-they-lie": 0.95}, "as-they-lie"),
        ({"as-they-lie": 0.9, "transposed": 0.85}, "as-they-lie"),
    ):
        timing(Clock(**shares))
        assert set(layouts(WEIGHT)) == {taken}
        products._file((*products.processor(), torch.get_num_threads(), torch.__version__)).unlink()
        products._known.cache_clear()
    seen = set()
    once = Clock(exchanged=lambda rows: 2.0 if rows in seen else seen.add(rows) or 0.5)
    timing(once)
    assert set(layouts(torch.ones(151, 120))) == {"laid-out"} and once.said == 2 * len(ROWS)


@needs_choice
def test_what_was_chosen_is_kept_for_the_next_process_and_stays_in_this_one(timing):
    first = timing()
    chosen = layouts(WEIGHT)
    (file,) = products.FOLDER.iterdir()
    assert first.said and file.suffix == ".json"
    assert products.processor()[0] in json.loads(file.read_text())["machine"]
    again = timing(Clock(exchanged=0.1))
    assert layouts(WEIGHT) == chosen and again.said == 0
    file.unlink()
    assert layouts(WEIGHT) == chosen and again.said == 0  # of this process
    assert set(layouts(WEIGHT.bfloat16())) <= {"exchanged", "laid-out", "as-they-lie"} and layouts(WEIGHT) == chosen


@needs_choice
@pytest.mark.parametrize("names", TORN)
def test_a_torn_file_costs_nothing_but_the_timing(timing, names):
    timing()
    chosen = layouts(WEIGHT)
    file = next(products.FOLDER.iterdir())
    file.write_text(names if isinstance(names, str) else json.dumps({"layouts": {"float32 150x120": names}}))
    again = timing()
    assert layouts(WEIGHT) == chosen and again.said
    assert json.loads(file.read_text())["layouts"]["float32 150x120"] == list(chosen)


@needs_choice
def test_a_folder_that_cannot_be_written_or_is_a_file_costs_nothing_but_the_timing(timing, monkeypatch):
    products.FOLDER.write_text("in the way")
    clock = timing()
    assert [layouts(WEIGHT)[0], layouts(WEIGHT)[0]] == ["transposed"] * 2
    assert clock.said == len(ROWS) + len(QUICK)
    products.FOLDER.unlink()

    def refuses(*_):
        raise PermissionError

    monkeypatch.setattr(products.os, "replace", refuses)
    timing()
    assert layouts(WEIGHT)[0] == "transposed"


@needs_choice
def test_other_threads_and_another_processor_have_choices_of_their_own(timing, monkeypatch):
    clock, threads = timing(), torch.get_num_threads()
    layouts(WEIGHT)
    for name, value in ((products.torch, threads + 1), (products, None)):
        asked = clock.said
        if value:
            monkeypatch.setattr(name, "get_num_threads", lambda: threads + 1)
        else:
            monkeypatch.setattr(name, "processor", lambda: ("another", "processor"))
        layouts(WEIGHT)
        assert clock.said > asked
    assert len(list(products.FOLDER.iterdir())) == 3


@needs_choice
def test_a_busy_machine_leaves_the_rest_as_usual_and_keeps_nothing(timing, monkeypatch):
    monkeypatch.setattr(products, "LONGEST", 0)
    timing(Clock(exchanged=0.5))
    assert layouts(WEIGHT) == ("exchanged", *["laid-out"] * (len(ROWS) - 1)) and not products.FOLDER.exists()


def test_a_layout_forced_for_a_while(monkeypatch):
    monkeypatch.setenv("SPECLIB_LAYOUT", "exchanged")
    with pytest.raises(KeyError), products.forced("transposed"):
        assert set(layouts(WEIGHT)) == {"transposed"}
        raise KeyError
    assert set(layouts(WEIGHT)) == {"exchanged"}


def test_a_forced_layout_is_taken_and_nothing_is_timed(timing, monkeypatch):
    clock = timing()
    for name in LAYOUTS:
        monkeypatch.setenv("SPECLIB_LAYOUT", name)
        assert set(layouts(WEIGHT)) == {name if can_pack(WEIGHT) or name != "laid-out" else "as-they-lie"}
        assert set(layouts(WEIGHT.double())) == {"as-they-lie" if name == "laid-out" else name}
    monkeypatch.setenv("SPECLIB_LAYOUT", "sideways")
    with pytest.raises(InvalidArgument, match="SPECLIB_LAYOUT must be one of as-they-lie, .*, not 'sideways'"):
        product(WEIGHT)
    monkeypatch.delenv("SPECLIB_LAYOUT")
    layouts(WEIGHT.double()), layouts(torch.ones(4, 4)), layouts(WEIGHT.to("meta"))
    assert clock.said == 0


@needs_choice
def test_really_timed(timing):
    """Every layout is called, over more weights than one, and the real clock's choice is one of the layouts."""
    timing(REAL_RACE)
    assert len(layouts(WEIGHT)) == len(ROWS) and set(layouts(WEIGHT)) <= set(LAYOUTS)
    calls = {name: [] for name in LAYOUTS}
    made = {name: iter([partial(calls[name].append)] * 10) for name in LAYOUTS}
    assert set(REAL_RACE(made, torch.ones(2, 3))) == set(LAYOUTS)
    assert {len(seen) for seen in calls.values()} == {products.TURNS}
