"""Notebook 03, speculative sampling: one position at a time, and three programs for one text."""

from collections.abc import Callable

import ipywidgets as widgets
import numpy as np

from ..drafters import ModelDrafter
from ..law.rules import RULES, Rule
from ..loop.decoding import generate
from .common import ACCEPTED, REJECTED, TARGET, _law, _number, _verdict, picture, plt, tight, two_distributions


def position(record: dict, tokenizer, top: int = 8) -> plt.Figure:
    """One drafted position, from `widgets.record_rounds`: p and q over the tokens that either finds probable, and what
    happened.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.2))
    p, q, drafted = record["p"], record["q"], record["drafted"]
    marks = {record["replacement"]: "\n(drawn\ninstead)", drafted: "\n(drafted)"}
    shown = [t for t in (p + q).topk(top).indices.tolist() if t not in marks]
    named = [t for t in marks if t is not None]
    shown = sorted(named + shown[: top - len(named)], key=lambda t: -float(p[t] + q[t]))
    names = [repr(tokenizer.decode([t]))[1:-1].replace("$", r"\$") + marks.get(t, "") for t in shown]
    two_distributions(p[shown], q[shown], names, axis)
    axis.set_title(record["title"], fontsize=11)
    return tight(figure)


def baselines(clocks: dict[str, list[float]], where: str = "this machine") -> plt.Figure:
    """Seconds at which each token was there, a line a program, and how many times as fast the last program is as each
    other one.

    clocks: name -> seconds by token, the program that is praised last; `where` names the machine.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    best = np.array(list(clocks.values())[-1])
    tokens = np.arange(1, len(best) + 1)
    for (name, seconds), colour, line in zip(
        clocks.items(), (REJECTED, TARGET, ACCEPTED), (":", "--", "-"), strict=True
    ):
        left.plot(tokens, seconds, color=colour, linestyle=line, linewidth=2, label=name)
        if name != list(clocks)[-1]:
            right.plot(
                tokens[8:],
                (np.array(seconds) / best)[8:],
                color=colour,
                linestyle=line,
                linewidth=2,
                label=f"over {name}",
            )
    right.axhline(1, color="black", linewidth=1)
    left.set(xlabel="new tokens", ylabel="seconds, with the prompt", title="One text, three programs")
    right.set(xlabel="new tokens", ylabel="times as fast", title="The speed-up of the same program")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.legend(fontsize=9)
    figure.suptitle(where, fontsize=10)
    return tight(figure)


def record_rounds(pair, prompt: str, draft_length: int = 4, tokens: int = 24, seed: int = 1) -> list[dict]:
    """Every drafted position of a run that verification reached: p [V], q [V], the drafted token, its replacement (None
    if kept), a title.
    """
    seen = []

    def watched(p, q, drafted):
        seen.append((p[0], q[0], drafted[0]))
        return RULES["token"].law(p, q, drafted)

    rule = Rule("watched", watched, True, "the token rule, observed")
    out = generate(
        pair.target,
        prompt,
        ModelDrafter(pair.draft),
        draft_length=draft_length,
        rule=rule,
        max_new_tokens=tokens,
        stop=[],
        seed=seed,
    )
    rounds = [r for r in out.trace.rounds if r.drafted]
    records = []
    for number, (r, (p, q, drafted)) in enumerate(zip(rounds, seen, strict=True), 1):
        for i, token in enumerate(drafted.tolist()[: r.accepted + 1]):
            passed, own = i < r.accepted, r.emitted[-1]
            fate = "kept" if passed else f"rejected; the residual gave {pair.tokenizer.decode([own])!r}"
            if r.accepted == len(r.drafted) == i + 1:
                fate += f"; all passed, and the bonus token is {pair.tokenizer.decode([own])!r}"
            keep = r.position + len(r.emitted) - 1  # the newest token is read in the next round
            # nobody read the draft's last guess
            lengths = f"target {keep}, draft {min(keep, r.position + len(r.drafted) - 1)}"
            chance = (
                f"accepted with probability {min(1.0, float(p[i, token] / q[i, token])):.2f}; overlap "
                f"{r.overlaps[i]:.2f}"
            )
            title = (
                f"Round {number}, guess {i + 1} of {len(r.drafted)}: {chance}\n{fate}\ncaches after the round: "
                f"{lengths} tokens"
            )
            records.append(
                {
                    "p": p[i],
                    "q": q[i],
                    "drafted": token,
                    "replacement": None if passed else own,
                    "title": title.replace("$", r"\$"),
                }
            )
    return records


def round_stepper(pair, prompt: str) -> widgets.VBox:
    """A slider over the drafted positions of a run: p, q, their overlap, and what became of each guess."""
    records = record_rounds(pair, prompt)
    slider = widgets.IntSlider(1, 1, len(records), continuous_update=False, description="position")
    image = picture(position(records[0], pair.tokenizer))

    def show(change):
        image.value = picture(position(records[change["new"] - 1], pair.tokenizer)).value

    slider.observe(show, "value")
    return widgets.VBox([slider, image])


def my_residual(function: Callable) -> None:
    """norm(max(p - q, 0)), with its limit."""
    cases = [
        (
            ([0.4, 0.3, 0.15, 0.15], [0.2, 0.45, 0.05, 0.3]),
            _law([2 / 3, 0, 1 / 3, 0], "clip p - q at 0, then divide by the sum"),
        ),
        (([1.0, 0.0], [0.0, 1.0]), _law([1.0, 0.0], "disjoint supports leave all of p")),
        (([0.5, 0.5], [0.5, 0.5]), _law([0.5, 0.5], "where p and q agree the sum is 0 and the limit is p")),
    ]
    _verdict(function, cases, "after a rejection the text continues from here")


def threshold_law(function: Callable) -> None:
    """The law of the rule that accepts iff q <= p."""
    cases = [
        (
            ([0.5, 0.5], [0.8, 0.2]),
            _law([0.0, 1.0], "drafts of token 0 are always rejected, and the residual holds only token 1"),
        ),
        (
            ([0.5, 0.3, 0.2], [0.5, 0.4, 0.1]),
            _law([0.5, 0.0, 0.5], "token 0 is kept (0.5 <= 0.5), token 1 never, and all of its mass moves to token 2"),
        ),
    ]
    _verdict(function, cases, "the rule is biased: it starves the tokens that the draft overrates")


def tokens_per_round(function: Callable) -> None:
    """1 + a + ... + a^gamma."""
    cases = [
        ((0.0, 3), _number(1.0, "with no guess accepted a round still yields the target's own token")),
        ((0.5, 2), _number(1.75, "1 + 0.5 + 0.25")),
        ((1.0, 4), _number(5.0, "all guesses and the bonus token")),
    ]
    _verdict(function, cases, "Leviathan et al., equation 1")
