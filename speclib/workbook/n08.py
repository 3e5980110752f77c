"""Notebook 08, the search engine as oracle: matches and what followed them."""

import html
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import seaborn as sns

from .common import DRAFT, _law, _same, _verdict, plt, tight


def match_lengths(rounds: dict[str, list[tuple[int, int]]], longest: int) -> plt.Figure:
    """How long the match was in how many rounds, and how many guesses passed then, one panel a kind of text; rounds:
    (match length, accepted).
    """
    figure, axes = plt.subplots(1, len(rounds), figsize=(3.6 * len(rounds) + 0.8, 3.6), sharey=True, squeeze=False)
    for axis, (name, pairs) in zip(axes[0], rounds.items(), strict=True):
        sizes = range(longest + 1)
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


def search_race(table, order: tuple[str, ...]) -> plt.Figure:
    """Speed-up over plain decoding of each method, with intervals, by kind of text; one panel a temperature."""
    temperatures = sorted(table["temperature"].unique())
    figure, axes = plt.subplots(1, len(temperatures), figsize=(5.6 * len(temperatures), 4), sharey=True, squeeze=False)
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for k, (name, colour, marker) in enumerate(
            zip(order, sns.color_palette("colorblind", len(order)).as_hex(), "osD^v", strict=False)
        ):
            rows = table[(table["temperature"] == temperature) & (table["method"] == name)]
            places = np.arange(len(rows)) + 0.15 * (k - (len(order) - 1) / 2)
            ends = [(rows["speedup"] - rows["low"]).clip(lower=0), (rows["high"] - rows["speedup"]).clip(lower=0)]
            axis.errorbar(places, rows["speedup"], yerr=ends, fmt=marker, color=colour, capsize=3, label=name)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(
            title=f"T = {temperature:g}" if temperature else "greedy",
            xticks=range(len(rows)),
            xticklabels=list(rows["domain"]),
            xlabel="kind of text",
        )
    axes[0, 0].set_ylabel("speed-up over plain decoding")
    axes[0, 0].legend(fontsize=9)
    return tight(figure)


def last_match(text: list[int], most: int) -> tuple[int, int]:
    """(size, end): the longest end of `text` of at most `most` tokens that occurred before, and where its latest
    occurrence ended; (0, 0) for none.
    """
    for size in range(min(most, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return size, end
    return 0, 0


def lookup_round(tokenizer, text: list[int], drafted: list[int], accepted: int, most: int = 4, shown: int = 160) -> str:
    """One round of prompt lookup as HTML: the last tokens of the text, the match, where it stood before, and what
    became of the guesses.
    """
    size, end = last_match(text, most)
    marks = {
        k: "background:#fbe7b2;border-bottom:2px solid #b8860b"
        for k in [*range(end - size, end), *range(len(text) - size, len(text))]
    }
    marks |= (
        {
            k: "background:#e6e6e6;border-bottom:2px dotted #555"
            for k in range(end, min(end + len(drafted), len(text) - size))
        }
        if size
        else {}
    )
    guessed = [
        "background:#cfe8d5;border-bottom:2px solid #2e7d46"
        if i < accepted
        else "background:#f6d5d0;text-decoration:line-through"
        for i in range(len(drafted))
    ]
    pieces = [(token, marks.get(k, "")) for k, token in enumerate(text)][-shown:] + list(
        zip(drafted, guessed, strict=True)
    )
    spans = "".join(
        f'<span style="white-space:pre-wrap;{style}">{shown_token(tokenizer, token)}</span>' for token, style in pieces
    )
    words = (
        f"a match of {size} token{'s' * (size != 1)}, {accepted} of {len(drafted)} guesses accepted"
        if size
        else "no match: no guess"
    )
    legend = (
        "yellow, underlined: the end of the text, and where it stood before; grey, dotted: what followed there; "
        "then the guesses, green if accepted, struck out if not"
    )
    return (
        '<div style="font-family:monospace;font-size:13px;line-height:1.5;background:#fff;color:#222;padding:8px;'
        f'max-width:100ch"><b>{words}</b><br>{spans}'
        f'<div style="margin-top:8px;font-size:12px">{legend}</div></div>'
    )


def shown_token(tokenizer, token: int) -> str:
    """A token's text, harmless in HTML: escaped, and without control or bidirectional characters."""
    text = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in tokenizer.decode([token])
    )
    return html.escape(text, quote=True).replace("$", "&#36;")


def lookup_rounds(tokenizer, text: list[int], rounds: list, most: int = 4) -> widgets.VBox:
    """A slider over the rounds of a run of prompt lookup on one text: `lookup_round` of each. text: prompt and new
    tokens.
    """
    slider = widgets.IntSlider(1, 1, len(rounds), continuous_update=False, description="round")
    page = widgets.HTML()

    def show(_change=None):
        r = rounds[slider.value - 1]
        page.value = lookup_round(tokenizer, text[: r.position], r.drafted, r.accepted, most)

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, page])


def longest_match(function: Callable) -> None:
    """The length of the longest end of a text, up to `most` tokens, that occurred before."""
    cases = [
        (([1, 2, 3, 1, 2], 4), _same(2, "1, 2 stood at the beginning; 3, 1, 2 never before")),
        (([1, 2, 3], 4), _same(0, "3 was never seen before; the end itself is no earlier occurrence")),
        (([5, 5, 5, 5], 4), _same(3, "5, 5, 5 ended one token earlier: an occurrence may overlap the end")),
        (([5, 5, 5, 5], 2), _same(2, "at most `most` tokens")),
    ]
    _verdict(function, cases, "the longer the match, the safer the guess")


def witten_bell(function: Callable) -> None:
    """(counts + m shorter) / (N + m)."""
    cases = [
        (
            ([3, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]),
            _law([3.5 / 6, 1.5 / 6, 0.5 / 6, 0.5 / 6], "N = 4 and m = 2: the shorter context weighs 2 / 6"),
        ),
        (
            ([0, 0], [0.3, 0.7]),
            _law([0.3, 0.7], "a context that was never seen leaves all to the shorter one; mind the division by 0"),
        ),
        (
            ([5, 0], [0.5, 0.5]),
            _law([5.5 / 6, 0.5 / 6], "N = 5 and m = 1: a context that is always followed by one token is trusted more"),
        ),
    ]
    _verdict(function, cases, "a distribution, with nothing to tune")


def most_followed(function: Callable) -> None:
    """The most frequent first token, then the most frequent second one among those that agree, and so on."""
    cases = [
        (
            ([[1, 2], [1, 3], [1, 3], [4, 3]],),
            _same([1, 3], "1 is the most frequent; behind it comes 3 twice and 2 once"),
        ),
        (
            ([[1, 2], [1, 3], [4, 5], [4, 5], [1, 6], [1, 6]],),
            _same([1, 6], "4, 5 never comes up: 1 wins the first vote"),
        ),
        (([[7, 7, 7]],), _same([7, 7, 7], "one occurrence decides alone")),
    ]
    _verdict(function, cases, "REST's idea, as a chain; notebook 09 makes trees of such branches")
