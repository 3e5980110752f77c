"""Acceptance by the position in a round. A position counts only where every guess before it was kept, so what is
measured is a hazard with censoring, as in the study of survival times.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
from tqdm.auto import tqdm

from .. import embedded
from ..drafters import ModelDrafter
from ..law import theory
from ..loop.decoding import Round, generate
from ..model.language_model import Pair
from . import experiments
from .experiments import Once, now

DOMAINS, LENGTHS = ("code", "prose", "edit"), (2, 3, 4, 6, 8)
HALVES = {"first": range(4), "second": range(4, 8)}  # seeds, in thousands: one half shows what chance does to the other


def acceptance_of(rounds: Iterable[Round], gamma: int) -> dict:
    """Of the rounds of a trace with all gamma guesses: tokens per round, alpha, accepted share, hazard and how often
    each position was reached. Tokens are the mean of the rule's own law, not of its coins.
    """
    full = [r for r in rounds if len(r.drafted) == gamma]
    tokens = [1 + np.dot(range(gamma + 1), r.stop_probs) for r in full]
    hazard, reached = theory.hazard_by_position((r.overlaps, r.accepted) for r in full)
    return {
        "gamma": gamma,
        "rounds": len(full),
        "tokens": float(np.mean(tokens)),
        "share": sum(r.accepted for r in full) / (gamma * len(full)),
        "hazard": hazard.tolist(),
        "reached": reached.tolist(),
        "alpha": float(np.average(hazard, weights=reached)),
    }


def pooled(rows: list[dict], domain: str = "all") -> dict:
    """The rows of `acceptance_of` at one length as one: all rounds together."""
    rounds, reached = [row["rounds"] for row in rows], np.array([row["reached"] for row in rows])
    means = {name: float(np.average([row[name] for row in rows], weights=rounds)) for name in ("tokens", "share")}
    hazard = np.average([row["hazard"] for row in rows], axis=0, weights=reached)
    alpha = float(np.average(hazard, weights=reached.sum(0)))
    whole = {"domain": domain, "gamma": rows[0]["gamma"], "rounds": sum(rounds), **means}
    return whole | {"hazard": hazard.tolist(), "reached": reached.sum(0).tolist(), "alpha": alpha}


def measure(pair: Pair, prompts: int = 24, tokens: int = 96, once: Once = now, progress: bool = False) -> dict:
    """{"machine", "settings", "first", "second"}: `acceptance_of` the draft model for each domain and draft length at
    temperature 1, over so many held-out prompts, twice, with other seeds, for JSON. No time is measured."""

    def row(domain: str, gamma: int, thousands: range) -> dict:
        run = partial(generate, pair.target, embedded.prompts(domain)[:prompts], ModelDrafter(pair.draft), None, gamma)
        rounds = []
        for k in thousands:
            rounds += run(max_new_tokens=tokens, stop=[], seed=1000 * k + gamma).trace.rounds
        return {"domain": domain, **acceptance_of(rounds, gamma)}

    cases = [(half, domain, gamma) for half in HALVES for domain in DOMAINS for gamma in LENGTHS]
    found = {half: [] for half in HALVES}
    for half, domain, gamma in tqdm(cases, desc="hazard", disable=not progress):
        found[half].append(once([half, domain, gamma], partial(row, domain, gamma, HALVES[half])))
    settings = {"drafter": "draft model", "temperature": 1.0, "rule": "token", "prompts": prompts, "new_tokens": tokens}
    settings["seeds"] = "1000 k + gamma, k = " + ", ".join(f"{k[0]} to {k[-1]} ({half})" for half, k in HALVES.items())
    return {"machine": experiments.machine(), "settings": settings, **found}
