"""Matrix products with few rows, x W^T: most of a forward's time, and how to have them quickly on this processor.

Decoding multiplies 1 to some 30 rows (a row a token) by large matrices of weights. torch has several kernels for that,
by the layout of the weights in memory:

- "as-they-lie": W [out, in] as the model stores it;
- "exchanged": the same bytes, but computed as (W x^T)^T;
- "transposed": a copy W^T;
- "laid-out": a copy in the blocks that oneDNN's kernels read, which torch.compile makes too when it freezes a model.

Which is the quickest depends on the processor, the dtype, the shape and the number of rows. On one machine laid-out
weights checked five tokens in the time of one; on another, weights as they lie wrote one token in two thirds of the
time of laid-out ones. So `layouts` times all four, once per machine and shape, and keeps the choice on disk. The
results are the same up to rounding.

SPECLIB_LAYOUT in the environment, one of the names in `LAYOUTS`, forces a layout wherever it can be had, and nothing is
timed; `forced` does so for a while.
"""

import hashlib
import json
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import cycle
from pathlib import Path

import pooch
import torch
from torch import Tensor
from torch.nn.functional import linear

from ..errors import FileError, InvalidArgument
from ..files import write_text

Product = Callable[[Tensor], Tensor]

FOLDER = Path(pooch.os_cache("speclib")) / "layouts"
# the numbers of rows that are timed; others are taken for the next of these, or for the last
ROWS = (*range(1, 17), 24, 48)
SMALL = 2**14  # so few weights lie in the fastest cache anyway: nothing to choose
PART = 2**19  # of a larger matrix only so many weights are timed: the rest takes as much longer in every layout
COLD = 10_000_000  # bytes of different weights in each layout: together more than most caches hold, as a model's are
TURNS = 3  # calls of each layout, of which the quickest counts
MARGIN = 0.96  # the usual layout stays unless weights as they lie take less than this share of its time,
# or one of the others less than this share of the better of the two: they depend more on where a process has its memory
CLEAR = 0.9
LONGEST = (
    0.3  # seconds for a shape; on a machine so busy that they do not suffice, the rest is left to the next process
)


def _as_they_lie(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda x: linear(x, weight, bias)


def _exchanged(weight: Tensor, bias: Tensor | None) -> Product:
    def product(x: Tensor) -> Tensor:
        out = (weight @ x.T).T.contiguous()
        return out if bias is None else out + bias

    return product


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    turned = weight.T.contiguous()
    return lambda x: x @ turned if bias is None else torch.addmm(bias, x, turned)


def _laid_out(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda x: (
        torch.ops.speclib.product(x, packed, bias)
        if torch.compiler.is_compiling()
        else _packed_product(x, packed, bias)
    )


LAYOUTS = {"as-they-lie": _as_they_lie, "exchanged": _exchanged, "transposed": _transposed, "laid-out": _laid_out}
PLAIN, USUAL = "as-they-lie", "laid-out"


def product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """x [k, in] -> x W^T + b [k, out], for W = weight [out, in] and b = bias [out] or None.

    The layout for each k is chosen here, once (see `layouts`). "transposed" and "laid-out" are copies of the weights,
    made if some k wants them.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    names = layouts(weight)
    made = {name: LAYOUTS[name](weight, bias) for name in dict.fromkeys(names)}
    if len(made) == 1:
        return made[names[0]]
    by_rows = tuple(made[layout_for(names, rows)] for rows in range(ROWS[-1] + 1))
    return lambda x: by_rows[min(x.shape[0], ROWS[-1])](x)


@contextmanager
def forced(layout: str | None) -> Iterator[None]:
    """Within, weights get this layout whatever the environment says; None: the one that is quickest here."""
    before = os.environ.pop("SPECLIB_LAYOUT", None)
    os.environ |= {} if layout is None else {"SPECLIB_LAYOUT": layout}
    try:
        yield
    finally:
        os.environ.pop("SPECLIB_LAYOUT", None)
        os.environ |= {} if before is None else {"SPECLIB_LAYOUT": before}


def layout_for(names: Sequence[str], rows: int) -> str:
    """The layout for so many rows among those that `layouts` named."""
    return names[min(bisect_left(ROWS, rows), len(ROWS) - 1)]


def layouts(weight: Tensor) -> tuple[str, ...]:
    """The layout of these weights [out, in] for each number of rows in ROWS: what SPECLIB_LAYOUT says, else what was
    quickest here when it was timed.

    It is timed once per shape, dtype, processor, number of threads and release of torch, in a fraction of a second, and
    kept in FOLDER. Within a process a choice once made stays. Raises InvalidArgument for a SPECLIB_LAYOUT that is none.
    """
    said, packs = os.environ.get("SPECLIB_LAYOUT"), can_pack(weight)
    if said and said not in LAYOUTS:
        raise InvalidArgument(f"SPECLIB_LAYOUT must be one of {', '.join(LAYOUTS)}, not {said!r}")
    if not packs or said or weight.numel() <= SMALL:
        wanted = said or USUAL
        return (wanted if packs or wanted != USUAL else "as-they-lie",) * len(ROWS)
    out, width = weight.shape
    out = min(out, max(256, PART // width))
    where = (*processor(), torch.get_num_threads(), torch.__version__)
    known, shape = _known(where), f"{weight.dtype} {out}x{width}".removeprefix("torch.")
    if shape not in known:
        names = timed(out, width, weight.dtype)
        known[shape] = names + [USUAL] * (len(ROWS) - len(names))
        if len(names) == len(ROWS):
            _keep(where, known)
    return tuple(known[shape])


@torch.inference_mode()
def timed(out: int, width: int, dtype: torch.dtype) -> list[str]:
    """The quickest layout for each number of rows in ROWS; fewer entries if LONGEST seconds did not suffice.

    Another layout than the usual one has to win clearly (`quickest`), twice.
    """
    copies = max(2, COLD // (out * width * dtype.itemsize))
    made = {
        name: cycle([layout(torch.ones(out, width, dtype=dtype), None) for _ in range(copies)])
        for name, layout in LAYOUTS.items()
    }
    began, best = time.perf_counter(), []
    for rows in ROWS:
        seconds = race(made, torch.ones(rows, width, dtype=dtype))
        best.append(quickest(seconds))
        if time.perf_counter() - began > LONGEST:
            break
    for k, name in enumerate(best):
        if name != USUAL:
            again = race(made, torch.ones(ROWS[k], width, dtype=dtype))
            best[k] = name if quickest(again) == name else USUAL
    return best


def quickest(seconds: Mapping[str, float]) -> str:
    """The layout to take, from the seconds of each."""
    best = PLAIN if seconds[PLAIN] < MARGIN * seconds[USUAL] else USUAL
    other = min(seconds, key=seconds.get)
    return other if seconds[other] < CLEAR * seconds[best] else best


def race(made: Mapping[str, Iterator[Product]], x: Tensor) -> dict[str, float]:
    """Seconds of a product with x [rows, in] by layout, the best of TURNS. Each call takes the next of several copies
    of the weights: in decoding too they come from memory, and not from the processor's caches.
    """
    best = dict.fromkeys(made, float("inf"))
    for _ in range(TURNS):
        for name, products in made.items():
            call = next(products)
            began = time.perf_counter()
            call(x)
            best[name] = min(best[name], time.perf_counter() - began)
    return best


@cache
def processor() -> tuple[str, str]:
    """The processor's name, and its model with the instructions that torch uses of it: "AMD EPYC" alone is the name of
    many."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    numbers = " ".join(f"{key} {told[key]}" for key in ("cpu family", "model", "stepping") if key in told)
    bfloat16 = ", bfloat16" if can_pack(torch.empty(1, 1, dtype=torch.bfloat16)) else ""
    return name, f"{numbers}, {torch.backends.cpu.get_cpu_capability()}{bfloat16}".removeprefix(", ")


@cache
def _known(where: tuple) -> dict[str, list[str]]:
    """What was chosen on this machine so far, by dtype and shape. A file that is missing, torn or of another kind holds
    nothing."""
    try:
        kept = json.loads(_file(where).read_text())["layouts"]
        return {
            shape: names
            for shape, names in kept.items()
            if len(names) == len(ROWS) and all(name in LAYOUTS for name in names)
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _keep(where: tuple, known: dict[str, list[str]]) -> None:
    """Writes the file, whole or not at all. Where it cannot be written, the next process times again."""
    with suppress(FileError):
        write_text(_file(where), json.dumps({"machine": where, "rows": ROWS, "layouts": known}))


def _file(where: tuple) -> Path:
    return FOLDER / (hashlib.sha256(json.dumps((where, ROWS)).encode()).hexdigest()[:16] + ".json")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can lay these weights out: float32, or bfloat16 where the processor has instructions for it. Tried
    on x86 only."""
    if (
        weight.device.type != "cpu"
        or platform.machine() not in ("x86_64", "AMD64")
        or not (torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available())
    ):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


# torch.compile accepts laid-out weights from its own freezing only, and that takes slower kernels for float32. An
# operation it cannot look into it calls as it is.
_library = torch.library.Library("speclib", "DEF")
_library.define("product(Tensor x, Tensor packed, Tensor? bias) -> Tensor")
_library.impl("product", _packed_product, "MkldnnCPU")
torch.library.register_fake(
    "speclib::product", lambda x, packed, bias: x.new_empty(x.shape[0], packed.shape[0]), lib=_library
)
