"""Notebook 08, the search engine as oracle: matches and what followed them."""

import html
from collections import Counter
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import seaborn as sns

from ..law.statistics import mean_interval
from ..loop.trace import harmless, pieces
from .common import DRAFT, box, exercise, integer, law, plt, tight, visible


def match_lengths(rounds: dict[str, list[list[tuple[int, int]]]], longest: int) -> plt.Figure:
    """How long the match was in how many rounds, and how many guesses passed then, one panel a kind of text; rounds:
    of each prompt, (match length, accepted).
    """
    figure, axes = plt.subplots(1, len(rounds), figsize=(3.6 * len(rounds) + 0.8, 3.6), sharey=True, squeeze=False)
    for axis, (name, prompts) in zip(axes[0], rounds.items(), strict=True):
        pairs, sizes = sum(prompts, []), range(longest + 1)
        shares = [sum(s == size for s, _ in pairs) / len(pairs) for size in sizes]
        axis.bar(sizes, shares, color=DRAFT, edgecolor="black", linewidth=0.5, hatch="//")
        for size, share in zip(sizes, shares, strict=True):
            passed = [a for s, a in pairs if s == size]
            axis.text(
                size, share, f"{sum(passed) / len(passed):.1f}" if passed else "", ha="center", va="bottom", fontsize=10
            )
        axis.set(
            title=f"{name} ({len(pairs)} rounds)", xlabel="length of the match (tokens)", xticks=sizes, ylim=(0, 1.1)
        )
    axes[0, 0].set_ylabel("share of rounds")
    figure.suptitle("Above each bar: mean number of guesses that passed", fontsize=11)
    return tight(figure)


def worth(rounds: dict[str, list[list[tuple[int, int]]]], sizes: Sequence[tuple[int, int]], price: float) -> str:
    """What guesses were worth behind matches of these lengths (least, most), a line for each kind of text; rounds: as
    above; price: what their check costs more than a plain forward, in plain forwards. They pay or lose where the 95%
    interval of a prompt's gain, the guesses that passed less the price of their checks, lies on one side of 0.
    """
    lines = []
    for name, prompts in rounds.items():
        for least, most in sizes:
            chosen = [[accepted for size, accepted in pairs if least <= size <= most] for pairs in prompts]
            gain = mean_interval([sum(passed) - price * len(passed) for passed in chosen])
            verdict = "pays" if gain.low > 0 else "loses" if gain.high < 0 else "within noise"
            passed = sum(chosen, [])
            lines.append(
                f"{name:5} {least} to {most} tokens: {len(passed) / sum(map(len, prompts)):4.0%} of rounds, "
                f"{np.mean(passed or [0]):.2f} guesses pass, the check costs {price:.2f} more: "
                f"{verdict if sum(map(bool, chosen)) > 1 else 'too few'}"
            )
    return "\n".join(lines)


def search_race(table, order: tuple[str, ...]) -> plt.Figure:
    """Speed-up over plain decoding of each method, with intervals, by kind of text; one panel a temperature. An
    interval that goes on above the axis is cut, and its end stands there.
    """
    over = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the intervals of neighbours
    temperatures, top = sorted(table["temperature"].unique()), 1.6 * table["speedup"].max()
    figure, axes = plt.subplots(1, len(temperatures), figsize=(5.6 * len(temperatures), 4), sharey=True, squeeze=False)
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for k, (name, colour, marker) in enumerate(
            zip(order, sns.color_palette("colorblind", len(order)).as_hex(), "osD^v", strict=False)
        ):
            rows = table[(table["temperature"] == temperature) & (table["method"] == name)]
            places = np.arange(len(rows)) + 0.15 * (k - (len(order) - 1) / 2)
            ends = [(rows["speedup"] - rows["low"]).clip(lower=0), (rows["high"] - rows["speedup"]).clip(lower=0)]
            axis.errorbar(places, rows["speedup"], yerr=ends, fmt=marker, color=colour, capsize=3, label=name)
            for place, high in zip(places, rows["high"], strict=True):
                if high > top:
                    end = {"xytext": (2, -2 - 13 * k), "textcoords": "offset points", "va": "top", "fontsize": 9}
                    axis.annotate(f"↑{high:.1f}", (place, top), color=colour, bbox=over, **end)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(
            title=f"T = {temperature:g}" if temperature else "greedy",
            xticks=range(len(rows)),
            xticklabels=list(rows["domain"]),
            xlabel="kind of text",
        )
    axes[0, 0].set_ylabel("speed-up over plain decoding")
    axes[0, 0].set_ylim(0, top)  # an interval over few prompts may go on for ever
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1), ncol=5)
    return tight(figure)


YELLOW, GREY = "background:#fbe7b2;border-bottom:2px solid #b8860b", "background:#e6e6e6;border-bottom:2px dotted #555"
BOTH = "background:#fbe7b2;border-bottom:2px dotted #555"
GREEN, RED = "background:#cfe8d5;border-bottom:2px solid #2e7d46", "background:#f6d5d0;text-decoration:line-through"
LEGEND = {
    YELLOW: "yellow: the end of the text, and where it stood before",
    GREY: "grey, dotted: what followed there",
    BOTH: "yellow, dotted: both at once",
    GREEN: "green: guesses accepted",
    RED: "struck out: guesses that were not",
}


def last_match(text: list[int], most: int, followed: list[int] | None = None) -> tuple[int, int]:
    """(size, end): the longest end of `text`, of at most `most` tokens, that occurred before; where it ended last.

    followed: guesses; then an occurrence counts only where they were copied from it. (0, 0) for none.
    """
    for size in range(min(most, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:] and followed in (None, _copied(text, end, len(followed or ()))):
                return size, end
    return 0, 0


def _copied(text: list[int], end: int, n: int) -> list[int]:
    return (text[end : end + n] * n)[:n]  # round again where the text ends


def lookup_round(tokenizer, text: list[int], drafted: list[int], accepted: int, most: int = 4, shown: int = 160) -> str:
    """One round of prompt lookup as HTML: the end of the text, where it stood before, what followed there, the guesses.

    Shown are the last `shown` tokens, and the place of the match if it lies farther back. White space in a mark is
    visible.
    """
    size, end = last_match(text, most, drafted) if drafted else (0, 0)
    marks = {k: YELLOW for k in [*range(end - size, end), *range(len(text) - size, len(text))]}
    for k in range(end, min(end + len(drafted), len(text))) if size else ():
        marks[k] = BOTH if k in marks else GREY
    marks |= {len(text) + i: GREEN if i < accepted else RED for i in range(len(drafted))}
    first, places = max(0, len(text) - shown), range(len(text) + len(drafted))
    source = range(max(0, end - size - 20), end + len(drafted) + 8) if size else range(0)
    words = pieces(tokenizer.decode, [*text, *drafted])
    spans, before = [], -1
    for k in (k for k in places if k >= first or k in source):
        spans += ["<b> … </b>"] if k > before + 1 else []
        spans.append(f'<span style="white-space:pre-wrap;{marks.get(k, "")}">{_safe(words[k], k in marks)}</span>')
        before = k
    told = f"a match of {size} token{'s' * (size != 1)}" if size else "a guess that was copied from elsewhere"
    told = f"{told}, {accepted} of {len(drafted)} guesses accepted" if drafted else "no guess in this round"
    legend = "; ".join(text for style, text in LEGEND.items() if style in marks.values())
    page = "font-family:monospace;font-size:13px;line-height:1.5;background:#fff;color:#222;padding:8px;max-width:100ch"
    notes = f'<div style="margin-top:8px;font-size:12px">{legend}</div>'
    return f'<div style="{page}"><b>{told}</b><br>{"".join(spans)}{notes}</div>'


def _safe(text: str, marked: bool) -> str:
    """A token's text, harmless in HTML; in a mark white space is visible."""
    text = harmless(text)
    text = visible(text).replace("⏎", "⏎\n") if marked else text
    return html.escape(text, quote=True).replace("$", "&#36;")  # a dollar sign would start a formula


def lookup_rounds(tokenizer, text: list[int], rounds: list, most: int = 4) -> widgets.VBox:
    """A slider over the rounds of a run of prompt lookup on one text: `lookup_round` of each. text: prompt and new
    tokens.
    """

    def draw(k):
        r = rounds[k - 1]
        return lookup_round(tokenizer, text[: r.position], r.drafted, r.accepted, most)

    first = next((k for k, r in enumerate(rounds, 1) if r.drafted), 1)
    return box("lookup", [integer("round", first, 1, len(rounds))], draw)


@exercise(
    "the longer the match, the safer the guess",
    [
        (([1, 2, 3, 1, 2], 4), "1, 2 stood at the beginning; 3, 1, 2 never before"),
        (([1, 2, 3], 4), "3 was never seen before; the end itself is no earlier occurrence"),
        (([5, 5, 5, 5], 4), "5, 5, 5 ended one token earlier: an occurrence may overlap the end"),
        (([5, 5, 5, 5], 2), "at most `most` tokens"),
    ],
    lambda r: ([r.randint(0, 2) for _ in range(r.randint(1, 12))], r.randint(1, 6)),
)
def longest_match(text, most):
    """The length of the longest end of a text, up to `most` tokens, that occurred before."""
    return last_match(text, most)[0]


def _counts(r):
    size = r.randint(2, 5)
    unseen = r.random() < 0.15
    return [0 if unseen or r.random() < 0.4 else r.randint(1, 9) for _ in range(size)], law(r, size)


@exercise(
    "a distribution, with nothing to tune",
    [
        (([3, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]), "N = 4 and m = 2: the shorter context weighs 2 / 6"),
        (([0, 0], [0.3, 0.7]), "a context that was never seen leaves all to the shorter one; mind the division by 0"),
        (([5, 0], [0.5, 0.5]), "N = 5 and m = 1: a context that is always followed by one token is trusted more"),
    ],
    _counts,
)
def witten_bell(counts, shorter):
    """(counts + m shorter) / (N + m)."""
    total, different = sum(counts), sum(count > 0 for count in counts)
    if not total:
        return shorter
    return [(count + different * q) / (total + different) for count, q in zip(counts, shorter, strict=True)]


def _vote(continuations):
    """The winning chain; None where a vote is tied."""
    chain, left = [], continuations
    for i in range(len(continuations[0])):
        ranked = Counter(row[i] for row in left).most_common(2)
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            return None
        chain.append(ranked[0][0])
        left = [row for row in left if row[i] == chain[-1]]
    return chain


def _ballots(r):
    length = r.randint(1, 4)
    rows = [[r.choice([1, 2, 2, 3]) for _ in range(length)] for _ in range(r.choice([1, 3, 5, 6, 7, 9]))]
    return (rows,) if _vote(rows) else None


@exercise(
    "REST's idea, as a chain; notebook 09 makes trees of such branches",
    [
        (([[1, 2], [1, 3], [1, 3], [4, 3]],), "1 is the most frequent; behind it comes 3 twice and 2 once"),
        (([[1, 2], [1, 3], [4, 5], [4, 5], [1, 6], [1, 6]],), "4, 5 never comes up: 1 wins the first vote"),
        (([[7, 7, 7]],), "one occurrence decides alone"),
    ],
    _ballots,
)
def most_followed(continuations):
    """The most frequent first token, then the most frequent second one among those that agree, and so on."""
    return _vote(continuations)
