"""What a forward costs on this machine: the width curve, the cost ratio, and the roofline above them.

Timed with torch.utils.benchmark, which warms up and waits for a GPU to finish. Times are milliseconds.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.utils.benchmark import Timer

from ..drafters import Drafter
from ..errors import ContextOverflow, InvalidArgument
from ..law.distributions import Sampling, seeded
from ..loop.decoding import now
from ..model import products
from ..model.batch import Batch, together
from ..model.context import Read
from ..model.language_model import LanguageModel

WIDTHS = tuple(range(1, 10))
TURN = 16  # forwards of one kind behind each other, where kinds take turns


def timed(statement: str, min_seconds: float, **names) -> float:
    """Milliseconds of a statement over `names`: the median of runs that together take so long."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=min_seconds).median


def spread(
    works: Mapping[Hashable, Callable[[], None]], passes: int, min_seconds: float, names: list[str]
) -> pd.DataFrame:
    """Times of works by key, their parts in columns of these names, and ms (median), low and high (quartiles) over the
    passes. All take turns, so that a slow moment of the machine falls on all of them alike."""
    times: dict[Hashable, list[float]] = {key: [] for key in works}
    for _ in range(passes):
        for key, work in works.items():
            times[key].append(timed("work()", min_seconds, work=work))
    frame = pd.DataFrame(times).quantile([0.5, 0.25, 0.75]).T
    return frame.set_axis(["ms", "low", "high"], axis=1).rename_axis(names).reset_index()


def width_curve(
    language_model: LanguageModel,
    widths: Iterable[int] = WIDTHS,
    context: int = 128,
    passes: int = 5,
    min_seconds: float = 0.04,
) -> pd.DataFrame:
    """Time of one forward over `width` new tokens after `context` cached ones: columns width, ms (median), low, high.

    The widths take turns (see `spread`). Raises ContextOverflow if the model has no room, InvalidArgument for a width <
    1.
    """
    widths = list(widths)
    if not widths or min(widths) < 1 or passes < 1:
        raise InvalidArgument(f"widths must be whole numbers >= 1 and passes at least 1, not {widths!r} and {passes!r}")
    text = Filled(language_model, context, max(widths))
    return spread({width: partial(text.read, width) for width in widths}, passes, min_seconds, ["width"])


def layout_curves(
    language_model: LanguageModel,
    rows: Iterable[int] = range(1, 17),
    context: int = 128,
    passes: int = 5,
    min_seconds: float = 0.02,
) -> pd.DataFrame:
    """Time of a fast forward by the layout of its weights (see `products`): columns weights, rows, ms, low, high.

    weights: "as they lie", "laid out", or "chosen": the layouts that are quickest here, by shape and number of rows.
    The three take turns within each number of rows; times as in `width_curve`, which also raises what this does.
    """
    rows, made = list(rows), {}
    if not rows or min(rows) < 1 or passes < 1:
        raise InvalidArgument(f"rows must be whole numbers >= 1 and passes at least 1, not {rows!r} and {passes!r}")
    plain = language_model.model, language_model.tokenizer, language_model.name
    for name, layout in (("as they lie", "as-they-lie"), ("laid out", "laid-out"), ("chosen", None)):
        with products.forced(layout):
            made[name] = Filled(LanguageModel(*plain, "fast"), context, max(rows))
    works = {(name, n): partial(text.read, n) for n in rows for name, text in made.items()}
    return spread(works, passes, min_seconds, ["weights", "rows"])


def cost_ratio(
    target: LanguageModel, draft: LanguageModel, context: int = 128, drafts: int = 4, rounds: int = 40
) -> float:
    """c: the time of one draft forward over that of one target forward, both over a single token (Leviathan et al.,
    section 3.2).

    Measured as decoding runs them, `drafts` forwards of the draft behind each of the target, with medians over
    `rounds`: a draft timed on its own would find its weights still in the processor's cache, which the target's weights
    sweep out every time. Raises ContextOverflow if a model has no room.
    """
    texts, times = [Filled(model, context, 1) for model in (target, draft)], ([], [])
    for _ in range(rounds):
        for text, repeats, seen in zip(texts, (1, drafts), times, strict=True):
            began = now(target.device)
            for _ in range(repeats):
                text.read(1)
            seen.append((now(target.device) - began) / repeats)
    ours, theirs = (median(seen[2:]) for seen in times)  # the first rounds warm up
    return theirs / ours


@torch.inference_mode()
def round_costs(
    target: LanguageModel, drafter: Drafter, gamma: int, context: int = 128, turns: int = 3
) -> dict[str, float]:
    """{"plain", "draft", "check"} in ms: a forward of plain decoding, the gamma guesses of a round with their drawing,
    and the forward that checks them.

    Measured in the order of decoding, TURN plain forwards behind each other and then as many rounds, medians over
    `turns` of each: a forward over gamma + 1 tokens costs more behind a draft, whose weights have swept the target's
    out of the processor's cache, than behind its like (the width curve). Each round keeps its first guess, so that the
    text grows by two tokens; half-way it has `context`. Raises ContextOverflow if the target has no room.
    """
    rounds = (turns + 1) * TURN
    _check_room(target, context, rounds + gamma)
    device, times = target.device, {"plain": [], "draft": [], "check": []}
    target.announce((1, gamma + 1))
    text = (torch.arange(max(2, context - rounds)) % target.vocabulary).tolist()
    alone, guessed = target.context(text), target.context(text)
    session = drafter.start(guessed, Sampling(), seeded(0, device))
    for reading in (alone, guessed):
        reading.extend(torch.tensor([text[:-1]], device=device), keep=1)
    session.prepare(text)

    def timed(phase: str, work: Callable, *arguments) -> Any:
        began = now(device)
        done = work(*arguments)
        times[phase].append(now(device) - began)
        return done

    for _ in range(turns + 1):
        for k in range(TURN):
            timed("plain", alone.extend, torch.tensor([[k]], device=device))
        for _ in range(TURN):
            guesses = timed("draft", session.propose, text, gamma).tokens
            timed("check", guessed.extend, torch.cat([torch.tensor(text[-1:], device=device), guesses])[None])
            guessed.retain([0, 1])
            text = text + [int(guesses[0]), text[-1]]
    return {phase: 1e3 * median(seen[TURN:]) for phase, seen in times.items()}  # the first turn warms up


class Filled:
    """Texts, in one batch, of which `context` tokens each are cached, to read up to `new` more and forget them. Which
    tokens they are does not matter. Raises ContextOverflow if they do not fit.
    """

    def __init__(self, language_model: LanguageModel, context: int, new: int, rows: int = 1):
        _check_room(language_model, context, new)
        fill = torch.arange(max(context, new), device=language_model.device)[None] % language_model.vocabulary
        self.cached, self.fill = context, fill[:, :new]
        batch = Batch(rows, context + new) if rows > 1 else None
        # an encoder needs something to read
        given = fill[0, :context].tolist() if language_model.encoder_decoder else ()
        self.texts = [language_model.context(given, batch) for _ in range(rows)]
        together([Read(text, fill[:, :context], keep=1) for text in self.texts])

    def read(self, width: int) -> None:
        """One forward over so many tokens of each."""
        together([Read(text, self.fill[:, :width]) for text in self.texts])
        for text in self.texts:
            text.rollback(self.cached)


def _check_room(language_model: LanguageModel, context: int, new: int) -> None:
    limit = language_model.context_length
    if limit and context + new > limit:
        raise ContextOverflow(
            f"{context} cached and {new} new tokens do not fit into {language_model.name}'s context of {limit}"
        )


WARM_UP = 2  # forwards before those that count
# what an operation belongs to, by parts of its name; the first kind that fits
KINDS = {
    "matrix products": "aten::mm aten::addmm aten::bmm aten::linear linear_pointwise mkldnn_linear mkl_linear "
    "aten::matmul gemm gemv".split(),
    "attention": "attention flash fmha".split(),
    "cache": "aten::cat aten::copy_ aten::slice_scatter aten::index_copy_".split(),
    "norms, rotation, activation": "norm aten::mul aten::add aten::pow aten::mean aten::rsqrt aten::silu aten::neg "
    "aten::cos aten::sin gelu tanh".split(),
}


@torch.inference_mode()
def profile(language_model: LanguageModel, width: int = 1, context: int = 128, forwards: int = 12) -> pd.DataFrame:
    """Where the time of one forward goes, by torch.profiler: columns kind, ms, share.

    Kinds are those of KINDS, "other operations", and "between operations": the rest of the forward's time, which is
    Python, dispatch and the modules around them. The profiler takes time itself, for every operation, so the whole is
    timed without it: forwards with it and without it take turns, so that both see the same machine, and medians are
    taken, so that a forward that was held up does not tell. Raises ContextOverflow if the model has no room,
    InvalidArgument for a width < 1 or no forwards.
    """
    if width < 1 or forwards < 1:
        raise InvalidArgument(f"width and forwards must be whole numbers >= 1, not {width!r} and {forwards!r}")
    text, device = Filled(language_model, context, width), language_model.device
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on stderr
    own_time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    wholes, parts = [], []
    for _ in range(WARM_UP + forwards):
        start = now(device)
        text.read(width)
        wholes.append((now(device) - start) * 1e3)
        with torch.profiler.profile() as recorded:
            text.read(width)
        times = dict.fromkeys([*KINDS, "other operations"], 0.0)
        for event in recorded.key_averages():
            kinds = (kind for kind, names in KINDS.items() if any(name in event.key for name in names))
            times[next(kinds, "other operations")] += getattr(event, own_time) / 1e3
        parts.append(times)
    typical = pd.DataFrame(parts[WARM_UP:]).median().to_dict()
    return _shares(typical | {"between operations": max(0.0, median(wholes[WARM_UP:]) - sum(typical.values()))})


def waiting(language_model: LanguageModel, bytes_per_second: float, width: int = 1, context: int = 128) -> pd.DataFrame:
    """What a forward waits for: columns kind, ms, share. Raises as `profile`.

    "memory": its weights at this bandwidth (see `roofline`), as far as the matrix products take so long; "products
    beyond that": what else they take; "overhead": all the rest, which a model of larger matrices has no more of.
    """
    whole = profile(language_model, width, context).set_index("kind")["ms"]
    products_ms = whole["matrix products"]
    memory = min(products_ms, 1e3 * bytes_and_operations(language_model)[0] / bytes_per_second)
    beyond, overhead = products_ms - memory, whole.sum() - products_ms
    return _shares({"memory": memory, "products beyond that": beyond, "overhead": overhead})


def _shares(ms: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"kind": list(ms), "ms": list(ms.values())}).assign(
        share=lambda frame: frame.ms / frame.ms.sum()
    )


def bytes_and_operations(language_model: LanguageModel, width: int = 1) -> tuple[int, int]:
    """(bytes of weights read, floating-point operations) of a forward over `width` tokens; attention over the cache is
    left out.

    Each weight of a matrix is read once and used in one multiplication and one addition per token. An embedding that is
    not also the output matrix is looked up, not multiplied.
    """
    model = language_model.model
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    if embedding is not output:
        weights -= embedding.numel()
    return weights * output.element_size(), 2 * weights * width


def copy_speed(device: torch.device | str = "cpu", megabytes: int = 64, min_seconds: float = 0.3) -> float:
    """Bytes a second that a loop copying an array larger than any cache moves: read and written ones count."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    ms = timed("into.copy_(source)", min_seconds, into=torch.empty_like(source), source=source)
    return 2 * source.numel() * source.element_size() / (ms / 1e3)


def roofline(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, min_seconds: float = 0.3
) -> dict[str, float]:
    """What the machine can do: {"bytes_per_second", "operations_per_second"}, by a matrix-vector and a matrix-matrix
    product.

    The matrix of the first is far larger than any cache, so that its speed is that of the memory.
    """
    side = 8192 if torch.device(device).type == "cpu" else 16384
    big = torch.ones(side, side, dtype=dtype, device=device)
    read = timed("m @ v", min_seconds, m=big, v=big[0].clone())
    multiply = timed("m @ m", min_seconds, m=big[:2048, :2048].contiguous())
    return {
        "bytes_per_second": big.numel() * big.element_size() / (read / 1e3),
        "operations_per_second": 2 * 2048**3 / (multiply / 1e3),
    }
