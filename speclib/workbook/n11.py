"""Notebook 11, encoder-decoder: the race of repairs, and one repair round by round."""

import html

import ipywidgets as widgets

from ..loop.trace import Trace
from .common import ACCEPTED, TARGET, box, exercise, integer, plt


def repair_race(table) -> plt.Figure:
    """Speed-up of each guesser with its interval, a panel a way of sampling, beside the three predictions: formula,
    rounds, predicted.
    """
    kinds = list(dict.fromkeys(table["sampling"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(9.5, 3.6), sharex=True, sharey=True, squeeze=False)
    marks = (
        ("formula", "^", "formula, from alpha alone"),
        ("rounds", "s", "tokens per round as seen"),
        ("predicted", "D", "and the encoders"),
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = table[table["sampling"] == kind].reset_index()
        axis.barh(
            rows["method"],
            rows["speedup"],
            color=ACCEPTED,
            edgecolor="black",
            linewidth=0.5,
            height=0.5,
            label="measured, 95% interval",
        )
        axis.errorbar(
            rows["speedup"],
            rows.index,
            xerr=[rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]],
            fmt="none",
            color="black",
            capsize=4,
        )
        for shift, (column, marker, label) in zip((0.33, 0, -0.33), marks, strict=True):
            axis.plot(
                rows[column],
                rows.index + shift,
                marker,
                color="white",
                markeredgecolor=TARGET,
                markeredgewidth=2,
                markersize=8,
                label=label,
            )
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=kind, xlabel="times as fast as plain decoding")
    axes[0][0].set_ylim(-0.6, len(rows) - 0.4)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return figure


def repair_stepper(source: str, output, tokenizer) -> widgets.VBox:
    """A slider over the rounds of one answer of an encoder-decoder.

    It shows the source, what was guessed, what became of it, and both caches.
    """
    rounds, decode, read = output.trace.rounds, tokenizer.decode, len(tokenizer(source)["input_ids"])

    def safe(text):
        return html.escape(text, quote=True).replace("$", "&#36;")  # a dollar sign would start a formula

    def draw(number):
        r = rounds[number - 1]
        guesses = repr(decode(r.drafted)) if r.drafted else "nothing"
        kept = r.position + len(r.emitted) - 1
        said, written = f"{r.accepted} of {len(r.drafted)} tokens passed", min(r.accepted, len(r.emitted))
        if written < r.accepted:
            said += f"; {written} written, for the answer ends there"
        facts = [
            f"Round {number} of {len(rounds)}: guessed {guesses}; {said}",
            f"cross-attention cache: {read} tokens of the source, since before the first round",
            f"the decoder's own cache: read up to {r.position + len(r.drafted)}, kept {kept}",
        ]
        lines = "".join(f"<div>{safe(fact)}</div>" for fact in facts)
        return f"<pre>{safe(source)}</pre>{Trace(decode, rounds[:number]).to_html()}{lines}"

    return box("repair", [integer("round", 1, 1, len(rounds))], draw)


def _settings(r):
    chosen = r.choice([None, 0, r.randint(1, 9)]), r.choice([None, 0, r.randint(1, 9)])
    return chosen if chosen != (None, None) else None


@exercise(
    "the source never stands at the beginning of the answer",
    [
        ((2, 1), "the decoder start token, if the model names one"),
        ((None, 1), "T5's custom: without one, the padding token"),
        ((0, 5), "0 is a token like any other, and not the same as None"),
    ],
    _settings,
)
def first_token(decoder_start, pad):
    """decoder_start if there is one, else pad."""
    return decoder_start if decoder_start is not None else pad


@exercise(
    "the token that the round drew is read in the next one",
    [
        ((10, 30, 4, 4), "the newest token and four guesses were read, and all of them stay"),
        ((10, 30, 4, 1), "the newest token and one guess stay; the source has nothing to do with guesses"),
        ((0, 30, 0, 0), "a plain round reads one token"),
    ],
    lambda r: (r.randint(0, 40), r.randint(1, 60), n := r.randint(0, 8), r.randint(0, n)),
)
def caches_after(own, cross, drafted, accepted):
    """(own + 1 + accepted, cross)."""
    return own + 1 + accepted, cross


@exercise(
    "what is not sped up sets the limit (Amdahl's law)",
    [
        ((0, 40, 4.0, 1.0), "without an encoder it is the decoder's own speed-up"),
        ((40, 40, 4.0, 1.0), "80 steps against 40 + 10"),
        ((5, 30, 3.0, 1.5), "35 steps against 5 + 10 rounds of 1.5"),
    ],
    lambda r: (r.randint(0, 40), r.randint(1, 80), round(r.uniform(1, 6), 1), round(r.uniform(0.8, 3), 1)),
)
def whole_speedup(encoder, tokens, tokens_per_round, round_cost):
    """(E + N) / (E + N / tau cost)."""
    return (encoder + tokens) / (encoder + tokens / tokens_per_round * round_cost)
