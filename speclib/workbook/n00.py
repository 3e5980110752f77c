"""Notebook 00, start here: a race of two texts, and its exercises."""

from collections.abc import Callable

import ipywidgets as widgets

from ..loop.trace import Trace
from .common import ACCEPTED, TARGET, _number, _verdict, picture, plt, style, tight


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
        axis.step(
            [times[k] for k in shown],
            [tokens[k] for k in shown],
            where="post",
            color=colour,
            linestyle=line,
            label=f"{label}, {len(trace.rounds)} target forwards",
        )
        if shown:
            axis.plot(times[shown[-1]], tokens[shown[-1]], "o" if label == labels[0] else "s", color=colour)
    axis.set(xlabel="seconds", ylabel="new tokens", title="The same target, the same prompt, on this machine")
    axis.set_xlim(0, 1.03 * max(t.seconds for t in traces))
    axis.set_ylim(0, 1.05 * max(sum(len(r.emitted) for r in t.rounds) for t in traces))
    axis.legend(loc="upper left")
    return tight(figure)


def race_slider(speculative, plain, steps: int = 20) -> widgets.VBox:
    """Two recorded outputs of `generate`, replayed against their own clocks: a slider over the seconds."""
    traces = [speculative.trace, plain.trace]
    end = max(t.seconds for t in traces)
    slider = widgets.FloatSlider(
        end, min=0.0, max=end, step=end / steps, continuous_update=False, description="seconds", readout_format=".2f"
    )
    image, texts = picture(race(traces)), widgets.HTML()

    def show(_change=None):
        image.value = picture(race(traces, until=slider.value)).value
        texts.value = "".join(
            _until(t, slider.value, name) for t, name in zip(traces, ("speculative", "plain"), strict=True)
        )

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, image, texts])


def _until(trace: Trace, seconds: float, name: str) -> str:
    """What one trace had written after so many seconds, as HTML under its name."""
    clock, rounds = trace.prefill_seconds, []
    for r in trace.rounds:
        clock += r.seconds
        if clock <= seconds:
            rounds.append(r)
    return f"<b>{name}</b>" + Trace(trace.decode, rounds).to_html()


def per_round(function: Callable) -> None:
    """Tokens over target forwards."""
    cases = [
        ((96, 96), _number(1.0, "plain decoding yields one token a pass")),
        ((96, 40), _number(2.4, "tokens over passes")),
    ]
    _verdict(function, cases, "also called block efficiency")


def fewest_passes(function: Callable) -> None:
    """tokens / (gamma + 1), rounded up."""
    cases = [
        ((96, 0), _number(96, "without guesses every token is a pass")),
        ((96, 5), _number(16, "each pass yields its guesses and one token of the target's own")),
        ((96, 4), _number(20, "the last, shorter round is a pass too: round up")),
    ]
    _verdict(function, cases, "no guesser, however good, gets below that")


def share(function: Callable) -> None:
    """Accepted over proposed, over all rounds."""
    cases = [
        (([(4, 4)],), _number(1.0, "all four passed")),
        (([(4, 2), (4, 0)],), _number(0.25, "two of eight")),
        (([(4, 4), (1, 0)],), _number(0.8, "four of five: sum over rounds before dividing")),
    ]
    _verdict(function, cases, "not to be mixed up with alpha, the mean acceptance probability of a position")
