"""Notebook 00, start here: a race of two texts, and its exercises."""

import ipywidgets as widgets

from ..loop.trace import Trace
from .common import ACCEPTED, TARGET, box, exercise, pairs, plt, real, style, tight


def race(traces: list, labels: tuple[str, ...] = ("speculative", "plain"), until: float | None = None) -> plt.Figure:
    """Tokens written against seconds, a step a round, for several traces of the same prompt; up to `until` seconds if
    given.
    """
    style()
    figure, axis = plt.subplots()
    for trace, label, colour, line in zip(traces, labels, (ACCEPTED, TARGET), ("-", "--"), strict=True):
        times, tokens = [trace.prefill_seconds], [0]
        for r in trace.rounds:
            times.append(times[-1] + r.seconds)
            tokens.append(tokens[-1] + len(r.emitted))
        shown = [k for k, t in enumerate(times) if until is None or t <= until]
        name = f"{label}, {len(trace.rounds)} target forwards"
        axis.step(times[: len(shown)], tokens[: len(shown)], line, where="post", color=colour, label=name)
        if shown:
            axis.plot(times[shown[-1]], tokens[shown[-1]], "o" if label == labels[0] else "s", color=colour)
    axis.set(xlabel="seconds", ylabel="new tokens", title="The same target, the same prompt, on this machine")
    axis.set_xlim(0, 1.03 * max(t.seconds for t in traces))
    axis.set_ylim(0, 1.05 * max(sum(len(r.emitted) for r in t.rounds) for t in traces))
    axis.legend(loc="lower right")
    return tight(figure)


def race_slider(speculative, plain, steps: int = 20) -> widgets.VBox:
    """Two recorded outputs of `generate`, replayed against their own clocks: a slider over the seconds."""
    traces = [speculative.trace, plain.trace]
    end = max(t.seconds for t in traces)

    def draw(seconds):
        names = zip(traces, ("speculative", "plain"), strict=True)
        return race(traces, until=seconds), "".join(_until(trace, seconds, name) for trace, name in names)

    return box("race", [real("seconds", end * (steps // 3) / steps, 0.0, end, end / steps)], draw)


def _until(trace: Trace, seconds: float, name: str) -> str:
    """What one trace had written after so many seconds, as HTML under its name."""
    clock, rounds = trace.prefill_seconds, []
    for r in trace.rounds:
        clock += r.seconds
        if clock <= seconds:
            rounds.append(r)
    return f"<b>{name}</b>" + Trace(trace.decode, rounds).to_html()


@exercise(
    "also called block efficiency",
    [
        ((96, 96), "plain decoding yields one token a pass"),
        ((96, 40), "tokens over passes"),
        ((50, 20), "two and a half tokens a pass: a mean need not be a whole number"),
    ],
    lambda r: (r.randint(1, 300), r.randint(1, 150)),
)
def per_round(tokens, passes):
    """Tokens over target forwards."""
    return tokens / passes


@exercise(
    "no guesser, however good, gets below that",
    [
        ((96, 0), "without guesses every token is a pass"),
        ((96, 5), "each pass yields its guesses and one token of the target's own"),
        ((96, 4), "the last, shorter round is a pass too: round up"),
    ],
    lambda r: (r.randint(1, 200), r.randint(0, 12)),
)
def fewest_passes(tokens, gamma):
    """tokens / (gamma + 1), rounded up."""
    return -(-tokens // (gamma + 1))


@exercise(
    "not to be mixed up with alpha, the mean acceptance probability of a position",
    [
        (([(4, 4)],), "all four passed"),
        (([(4, 2), (4, 0)],), "two of eight"),
        (([(4, 4), (1, 0)],), "four of five: sum over rounds before dividing"),
    ],
    lambda r: (pairs(r),),
)
def share(rounds):
    """Accepted over proposed, over all rounds."""
    return sum(accepted for _, accepted in rounds) / sum(proposed for proposed, _ in rounds)
