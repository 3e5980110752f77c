"""Notebook 03, speculative sampling: one position at a time, and three programs for one text."""

import ipywidgets as widgets
import numpy as np

from ..drafters import ModelDrafter
from ..law.distributions import overlap
from ..law.rules import RULES, Rule
from ..loop.decoding import generate
from .common import (
    ACCEPTED,
    REJECTED,
    TARGET,
    box,
    chance,
    exercise,
    integer,
    plt,
    spaced,
    tight,
    two_distributions,
    two_laws,
)


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
    names = [spaced(tokenizer.decode([t])) + marks.get(t, "") for t in shown]
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
            ratio = np.array(seconds) / best
            right.plot(tokens[8:], ratio[8:], line, color=colour, linewidth=2, label=f"over {name}")
    right.axhline(1, color="black", linewidth=1)
    left.set(xlabel="new tokens", ylabel="seconds, with the prompt", title="One text, three programs")
    right.set(xlabel="new tokens", ylabel="times as fast", title="The speed-up of the same program")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.legend(fontsize=9)
    figure.suptitle(where, fontsize=10)
    return tight(figure)


def record_rounds(pair, prompt: str, draft_length: int = 4, tokens: int = 24, seed: int = 1) -> list[dict]:
    """Every drafted position that verification reached in a run.

    Of each: p [V], q [V], the drafted token, its replacement (None if kept), a title.
    """
    seen = []

    def watched(p, q, drafted):
        seen.append((p[0], q[0], drafted[0]))
        return RULES["token"].law(p, q, drafted)

    rule = Rule("watched", watched, True, "the token rule, observed")
    options = {"draft_length": draft_length, "rule": rule, "max_new_tokens": tokens, "stop": [], "seed": seed}
    out = generate(pair.target, prompt, ModelDrafter(pair.draft), **options)
    rounds = [r for r in out.trace.rounds if r.drafted]
    records = []
    for number, (r, (p, q, drafted)) in enumerate(zip(rounds, seen, strict=True), 1):
        for i, token in enumerate(drafted.tolist()[: r.accepted + 1]):
            passed, own = i < r.accepted, r.emitted[-1]
            fate = "kept" if passed else f"rejected; the residual gave {pair.tokenizer.decode([own])!r}"
            if r.accepted == len(r.drafted) == i + 1:
                fate += f"; all passed, and the bonus token is {pair.tokenizer.decode([own])!r}"
            keep = r.position + len(r.emitted) - 1  # the newest token is read in the next round
            draft = min(keep, r.position + len(r.drafted) - 1)  # nobody read the draft's last guess
            odds = f"accepted with probability {min(1.0, float(p[i, token] / q[i, token])):.2f}"
            title = f"Round {number}, guess {i + 1} of {len(r.drafted)}: {odds}; overlap {r.overlaps[i]:.2f}\n{fate}"
            title = (title + f"\ncaches after the round: target {keep}, draft {draft} tokens").replace("$", r"\$")
            replacement = None if passed else own
            records.append({"p": p[i], "q": q[i], "drafted": token, "replacement": replacement, "title": title})
    return records


def telling(records: list[dict]) -> list[dict]:
    """A kept and a rejected position, if there are: of each kind the one whose overlap comes nearest to a half."""
    kinds = [[r for r in records if (r["replacement"] is None) == kept] for kept in (True, False)]
    return [min(kind, key=lambda r: abs(float(overlap(r["p"], r["q"])) - 0.5)) for kind in kinds if kind]


def round_stepper(pair, prompt: str) -> widgets.VBox:
    """A slider over the drafted positions of a run: p, q, their overlap, and what became of each guess."""
    records, tokenizer = record_rounds(pair, prompt), pair.tokenizer  # what is drawn from: the models are not kept
    if not records:
        return box("round", [], lambda: "No guess was checked in this run: it is too short to make one.")
    return box("round", [integer("position", 1, 1, len(records))], lambda k: position(records[k - 1], tokenizer))


@exercise(
    "after a rejection the text continues from here",
    [
        (([0.4, 0.3, 0.15, 0.15], [0.2, 0.45, 0.05, 0.3]), "clip p - q at 0, then divide by the sum"),
        (([1.0, 0.0], [0.0, 1.0]), "disjoint supports leave all of p"),
        (([0.5, 0.5], [0.5, 0.5]), "where p and q agree the sum is 0 and the limit is p"),
    ],
    two_laws,
)
def my_residual(p, q):
    """norm(max(p - q, 0)), with its limit."""
    excess = [max(a - b, 0) for a, b in zip(p, q, strict=True)]
    mass = sum(excess)
    return [e / mass for e in excess] if mass else p


@exercise(
    "the rule is biased: it starves the tokens that the draft overrates",
    [
        (([0.5, 0.5], [0.8, 0.2]), "drafts of token 0 are always rejected, and the residual holds only token 1"),
        (
            ([0.5, 0.3, 0.2], [0.5, 0.4, 0.1]),
            "token 0 is kept (0.5 <= 0.5), token 1 never, and all of its mass moves to token 2",
        ),
        (([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]), "equal distributions keep every guess"),
    ],
    two_laws,
)
def threshold_law(p, q):
    """The law of the rule that accepts iff q <= p."""
    kept = [b if b <= a else 0.0 for a, b in zip(p, q, strict=True)]
    return [k + (1 - sum(kept)) * r for k, r in zip(kept, my_residual.__wrapped__(p, q), strict=True)]


@exercise(
    "Leviathan et al., equation 1",
    [
        ((0.0, 3), "with no guess accepted a round still yields the target's own token"),
        ((0.5, 2), "1 + 0.5 + 0.25"),
        ((0.5, 4), "1 + 0.5 + 0.25 + 0.125 + 0.0625: each guess counts only behind those before it"),
        ((1.0, 4), "all guesses and the bonus token"),
    ],
    lambda r: (chance(r), r.randint(0, 12)),
)
def tokens_per_round(a, gamma):
    """1 + a + ... + a^gamma."""
    return sum(a**i for i in range(gamma + 1))
