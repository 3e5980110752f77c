"""Notebook 14, batches: why one fills the chip, what happens in a ragged one, what speculation brings there."""

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from ..law import theory
from ..loop.trace import Round
from ..measure import batches
from . import common
from .common import ACCEPTED, DRAFT, MARKERS, PREDICTED, REJECTED, TARGET, box, chance, exercise, plt, tight


def recorded_on(record: dict) -> str:
    """Where a record was made, and whether its times are worth quoting."""
    facts = record["machine"]
    busy = ";\nother programs were running, so its times are no figures to quote" if facts["busy"] else ""
    return f"recorded on {common.place(facts)}, {facts['date']}{busy}"


def fills(grid: pd.DataFrame, n: int = 4) -> plt.Figure:
    """Left: the time of a forward against all its tokens, a mark a batch size. Right: a check over a plain forward."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for marker, (rows, part) in zip(MARKERS, grid.groupby("rows"), strict=False):
        spread = [(part["ms"] - part["low"]).clip(lower=0), (part["high"] - part["ms"]).clip(lower=0)]
        left.errorbar(rows * part["tokens"], part["ms"], spread, fmt=f"{marker}-", capsize=2, label=f"{rows} rows")
    left.set(xscale="log", yscale="log", xlabel="rows x tokens of a forward", ylabel="milliseconds")
    left.set_title("One forward")
    left.legend(fontsize=9)
    table = grid.pivot(index="rows", columns="tokens", values="ms")
    places = range(len(table))
    right.plot(places, table[n + 1] / table[1], "o-", color=TARGET, label=f"T(rows, {n + 1}) / T(rows, 1), measured")
    right.axhline(n + 1, color=REJECTED, linestyle="--", label="every token is paid for")
    right.axhline(1, color="black", linestyle=":", label="checking is free")
    right.set_xticks(places, table.index)
    right.set(xlabel="rows", ylabel="times a plain forward", ylim=(0, n + 3), title=f"A check of {n} guesses")
    right.legend(fontsize=9, loc="upper left")
    return tight(figure)


# --- a batch in pictures ---------------------------------------------------------------------------------------------

# rows of the schematic: the text's name, tokens in the cache, guesses, how many of them pass
STORY = [("a", 7, 3, 2), ("b", 3, 3, 0), ("c", 5, 2, 2), ("d", 4, 3, 1)]


def ragged() -> plt.Figure:
    """One round of four texts in one cache, and the round after: what is kept, what is overwritten, who has left."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.3), sharey=True)
    figure.suptitle("A ragged batch: rows accept different numbers of guesses; c has ended, and e takes its place")
    after = [(n, 2 if n == "e" else length + kept + 1, 3, None) for n, length, _, kept in STORY]
    after[2] = ("e", 2, 3, None)
    for axis, rows, title in zip(axes, (STORY, after), ("this round", "the next"), strict=True):
        for y, (name, length, guesses, kept) in enumerate(rows):
            for slot in range(14):
                place = slot - length  # 0: the last token of the text, not read yet; behind it the guesses
                colour, hatch, said = "white", "", ""
                if place < 0:
                    colour = "#cfd8e6"
                elif place == 0:
                    colour, said = TARGET, "t"
                elif place <= guesses:
                    passed = kept is None or place <= kept
                    colour, said = (DRAFT if kept is None else ACCEPTED if passed else REJECTED), "g"
                    hatch = "" if passed else "///"
                style = {"facecolor": colour, "edgecolor": "#555", "hatch": hatch, "linewidth": 0.7}
                axis.add_patch(Rectangle((slot, y + 0.1), 0.95, 0.8, alpha=1 if colour == "white" else 0.75, **style))
                axis.text(slot + 0.48, y + 0.5, said, ha="center", va="center", fontsize=9)
            axis.text(-0.3, y + 0.5, name, ha="right", va="center", fontsize=11)
        axis.set(xlim=(-1, 14.1), ylim=(4.1, 0), xlabel="slot of the cache", title=title, yticks=[])
        axis.grid(False)
    kinds = {"text in the cache": "#cfd8e6", "t: last token": TARGET, "g: guess": DRAFT}
    kinds |= {"guess that passed": ACCEPTED, "rejected: overwritten next": REJECTED, "free": "white"}
    parts = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#555", alpha=0.75) for colour in kinds.values()]
    figure.legend(parts, kinds, ncol=6, loc="lower center", bbox_to_anchor=(0.5, -0.09), fontsize=9)
    return tight(figure)


def forwards(rounds: Sequence[Round]) -> list[list[Round]]:
    """Rounds as `watch` hears of them, those that shared a forward together."""
    found, rest = [], list(rounds)
    while rest:
        found.append(rest[: rest[0].rows])
        rest = rest[rest[0].rows :]
    return found


def lanes(rounds: Sequence[Round]) -> plt.Figure:
    """A batch as it was decoded: what each text (lines) got from each forward of the target (columns)."""
    together = forwards(rounds)
    table = np.full((1 + max(r.row for r in rounds), len(together)), np.nan)
    for k, shared in enumerate(together):
        for r in shared:
            table[r.row, k] = len(r.emitted)
    figure, axis = plt.subplots(figsize=(10, 0.35 * len(table) + 1.4))
    axis.imshow(table, cmap="viridis", aspect="auto", vmin=0, vmax=np.nanmax(table) + 3)
    for (row, k), tokens in np.ndenumerate(table):
        if not np.isnan(tokens):
            axis.text(k, row, f"{tokens:.0f}", ha="center", va="center", color="white", fontsize=8)
    axis.set(xlabel="forward of the target", ylabel="text", yticks=range(len(table)), xticks=range(len(together)))
    axis.set_title("Tokens that each text got from each forward")
    axis.grid(False)
    return tight(figure)


# --- what it brings --------------------------------------------------------------------------------------------------


def gains(table: pd.DataFrame, title: str, methods: Sequence[str] = ("draft model", "eagle", "lookup")) -> plt.Figure:
    """Speed-up over plain decoding of the same batch: measured in full rounds (marks), predicted (dashed)."""
    figure, axis = plt.subplots()
    sizes = sorted(table["rows"].unique())
    for name, marker, colour in zip(methods, MARKERS, (ACCEPTED, TARGET, DRAFT), strict=False):
        part = table[table["method"] == name].set_index("rows").reindex(sizes)
        if part["full"].notna().any():
            axis.plot(range(len(sizes)), part["full"], marker, color=colour, label=f"{name}, measured")
            axis.plot(range(len(sizes)), part["predicted"], "--", color=colour, label=f"{name}, predicted")
    axis.axhline(1, color="black", linestyle=":")
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(xlabel="rows of the batch", ylabel="times plain decoding", ylim=(0, None), title=title)
    axis.legend(fontsize=9)
    return tight(figure)


def predictions(grid: pd.DataFrame, each: dict[int, float], alpha: float, most: int = 8) -> pd.DataFrame:
    """Predicted gain by rows (lines) and draft length (columns). each: ms of one draft forward, by rows."""
    lengths = [n for n in range(1, most + 1) if n + 1 in set(grid["tokens"])]
    rows = sorted(each)
    gain = [
        [batches.predicted(grid, b, float(theory.expected_tokens(alpha, n)), n, n * each[b]) for n in lengths]
        for b in rows
    ]
    return pd.DataFrame(gain, index=pd.Index(rows, name="rows"), columns=pd.Index(lengths, name="guesses"))


def switch(grid: pd.DataFrame, each: dict[int, float], alpha: float, n: int) -> plt.Figure:
    """The predicted gain against batch size, of n guesses and of the best number; where each is down to 1."""
    table, (figure, axis) = predictions(grid, each, alpha), plt.subplots()
    places = range(len(table))
    curves = {f"{n} guesses": (table[n], "o-", ACCEPTED), "the best number": (table.max(axis=1), "s--", PREDICTED)}
    for name, (gain, line, colour) in curves.items():
        ends = batches.gain_ends(list(table.index), list(gain))
        where = (
            f"pays up to {ends:.0f} rows" if ends and gain.iloc[0] > 1 else "never pays" if ends else "pays throughout"
        )
        axis.plot(places, gain, line, color=colour, label=f"{name}: {where}")
    for k, (gain, best) in enumerate(zip(table.max(axis=1), table.idxmax(axis=1), strict=True)):
        axis.annotate(f"{best}", (k, gain), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    axis.axhline(1, color="black", linestyle=":")
    axis.set_xticks(places, table.index)
    top = max(3.5, 1.4 * table.to_numpy().max())
    axis.set(xlabel="rows of the batch", ylabel="times plain decoding", ylim=(0, top))
    axis.set_title(f"Predicted at alpha {alpha:.2f} (small numbers: the best draft length)")
    axis.legend(fontsize=9, loc="upper right")
    return tight(figure)


def switch_dial(grid: pd.DataFrame, each: dict[int, float], alpha: float) -> widgets.VBox:
    """Sliders for alpha and the draft length under the predicted gain against batch size."""
    lengths = list(predictions(grid, each, alpha).columns)
    controls = [common.real("alpha", round(alpha, 2), 0.0, 1.0, 0.05), common.choice("guesses", lengths[-1], lengths)]
    return box("batch", controls, lambda alpha, n: switch(grid, each, alpha, n))


# --- exercises -------------------------------------------------------------------------------------------------------


def _gain(alpha, gamma, rows, times, draft):
    one = times[rows, 1]
    return float(theory.speedup(alpha, gamma, draft[rows] / one, times[rows, gamma + 1] / one))


def _prices(r):
    """(times by (rows, tokens), the draft's by rows): in any order, with bumps, one token among the widths."""
    rows, widths = r.sample([1, 2, 4, 8, 16, 32], 3), [1, *r.sample(range(2, 10), 2)]
    full = r.choice([8, 20, 60])
    times = {(b, n): round(10 * (max(1, b * n / full) + r.random() / 2), 1) for b in rows for n in widths}
    return times, {b: round(times[b, 1] * r.choice([0.02, 0.1, 0.3]), 1) for b in rows}


def _one_batch(r):
    times, draft = _prices(r)
    rows, tokens = r.choice(list(times))
    return chance(r), tokens - 1, rows, times, draft


FLAT = {(1, 1): 10.0, (1, 5): 11.0, (8, 1): 12.0, (8, 5): 30.0}


@exercise(
    "the same formula as for one text, with the times of the batch",
    [
        (
            (0.5, 4, 1, FLAT, {1: 1.0, 8: 1.5}),
            "1.9375 tokens a round and row; a round takes 11 + 4 * 1 ms, a plain one 10",
        ),
        ((0.5, 4, 8, FLAT, {1: 1.0, 8: 1.5}), "the plain forward over 8 rows takes 12 ms, not 10, the draft's 1.5"),
        ((0.9, 0, 8, FLAT, {1: 1.0, 8: 1.5}), "without guesses it is plain decoding: 1"),
        ((1.0, 4, 8, FLAT, {1: 1.0, 8: 1.5}), "everything passes: five tokens"),
    ],
    _one_batch,
)
def batch_speedup(alpha, gamma, rows, times, draft):
    """Predicted speed-up over plain decoding of the same batch."""
    return _gain(alpha, gamma, rows, times, draft)


@exercise(
    "no row sees what is another's, or what lies behind its own length",
    [
        (([2, 1], [1, 1]), "one token each, in slots 2 and 1; row 1 has nothing in slot 2 that it may see"),
        (([1, 1], [2, 1]), "row 1 has one token; its second place is padding, which sees slot 0 alone"),
        (([3], [3]), "a chain: each new token sees those before it, and itself"),
        (([1, 4], [3, 2]), "as many slots as the longest row needs: 6"),
    ],
    lambda r: tuple(map(list, zip(*[(r.randint(1, 5), r.randint(1, 4)) for _ in range(r.randint(1, 3))], strict=True))),
)
def row_mask(lengths, counts):
    """Who sees which slot: [rows][places][slots]."""
    most, seen = max(counts), max(a + k for a, k in zip(lengths, counts, strict=True))
    return [
        [[slot <= length + place if place < count else slot == 0 for slot in range(seen)] for place in range(most)]
        for length, count in zip(lengths, counts, strict=True)
    ]


def _clear_cut(r):
    times, draft = _prices(r)
    alpha = chance(r)
    found = [_gain(alpha, n - 1, b, times, draft) for b, n in times if n > 1]
    return (alpha, times, draft) if min(abs(gain - 1) for gain in found) > 1e-3 else None


@exercise(
    "with the draft length chosen for each batch, speculation is switched off later",
    [
        (
            (0.6, FLAT, {1: 1.0, 8: 1.5}),
            "at 8 rows four guesses yield 2.31 tokens for 36 ms; plain rounds yield 3 in that time",
        ),
        (
            (0.6, {**FLAT, (8, 2): 15.0}, {1: 1.0, 8: 1.5}),
            "one guess still pays at 8 rows: 1.6 tokens for 16.5 ms, where a plain round takes 12",
        ),
        ((0.0, FLAT, {1: 1.0, 8: 1.5}), "nothing passes: it pays at no batch, 0"),
        (
            (0.6, {(32, 3): 20.0, (32, 1): 20.0, (4, 1): 10.0, (4, 3): 30.0}, {32: 1.0, 4: 1.0}),
            "a step of the width curve: it pays at 32 rows and not at 4",
        ),
    ],
    _clear_cut,
)
def last_batch(alpha, times, draft):
    """The largest batch at which some draft length pays; 0 if none does."""
    return max((b for b, n in times if n > 1 and _gain(alpha, n - 1, b, times, draft) > 1), default=0)
