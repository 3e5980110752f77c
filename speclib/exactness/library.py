"""The library's own answer to a case, and that of each fault of the museum.

A case is a plain dictionary, as data/vectors/README.md defines it, with numbers in place of fractions. Laws are
mappings from what is emitted (a tuple of tokens) to its probability.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..law.distributions import Sampling
from ..law.exact import Loop, TableModel, TextLaw, rule_law, warped
from ..law.rules import RULES, Law, TreeLaw, Verdict, token_law, tree_law
from ..museum import EXHIBITS, GUESSERS, MATCH, PLAIN, by
from .reference import emitted

LAWS: dict[str, Law] = {name: rule.law for name, rule in RULES.items()} | {"match": MATCH.law}
TREES = {"token": tree_law}


def numbers(value):
    """A case as it stands in a file -> with every fraction as a float; names and counts stay."""
    if isinstance(value, dict):
        return {key: entry if key in ("id", "task", "kind", "rule") else numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [numbers(entry) for entry in value]
    return float(Fraction(value)) if isinstance(value, str) else value


def expected(case: dict) -> TextLaw:
    """The law of what is emitted, as the case itself states it."""
    if case["task"] == "text":
        return {tuple(map(int, text.split(","))): chance for text, chance in case["law"].items()}
    return emitted(case["law"]["stop"], case["law"]["next"], case["drafted"], case["parents"])


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """Something that a sampler may do instead of what it should. Parts that are honest are None.

    what: in words; see: where it is explained; loop: a chain's; settings: those under which the loop's rows are wrong
    (None: any); tree: a tree's; masks: the mask [n+1, V] -> what becomes of it.
    """

    name: str
    what: str
    see: str = "notebook 04"
    loop: Loop | None = None
    settings: Sampling | None = None
    tree: TreeLaw | None = None
    masks: Callable[[Tensor], Tensor] | None = None


def verdict(case: dict, suspect: Suspect | None = None) -> Verdict:
    """The law of a round to verify, B = 1, by the library or by a suspect."""
    p, q = torch.tensor([case["p"]], dtype=torch.float64), torch.tensor(case["q"], dtype=torch.float64)
    drafted = torch.tensor([case["drafted"]], dtype=torch.long)
    q = q.reshape(1, drafted.shape[1], p.shape[-1])
    if case["mask"] is not None:
        mask = torch.tensor(case["mask"], dtype=torch.float64)
        p = p * (suspect.masks(mask) if suspect and suspect.masks else mask)
        p = p / p.sum(-1, keepdim=True)
    if case["parents"] is not None:
        return (suspect and suspect.tree or TREES[case["rule"]])(p, q, drafted, case["parents"])
    if suspect and suspect.loop:
        return suspect.loop.law(p, q, drafted)
    return LAWS[case["rule"]](p, q, drafted, **case["parameters"])


def law(case: dict, suspect: Suspect | None = None) -> TextLaw:
    """The law of what is emitted, by the library or by a suspect."""
    if case["task"] == "verify":
        found = verdict(case, suspect)
        return emitted(found.stop_probs[0].tolist(), found.next_probs[0].tolist(), case["drafted"], case["parents"])
    settings = Sampling(**{name: int(value) if name == "top_k" else value for name, value in case["sampling"].items()})
    target, draft = (table(case, side) for side in "pq")
    loop = suspect.loop if suspect and suspect.loop else Loop(law=partial(LAWS[case["rule"]], **case["parameters"]))
    if (
        suspect is None or suspect.settings != settings
    ):  # the loop sees filtered rows; a suspect with settings filters on its own
        loop = (
            loop
            if suspect is None or suspect.settings is None
            else replace(loop, sees=Loop.sees, proposes=Loop.proposes)
        )
        target, draft = (warped(model, by(settings)) if settings != PLAIN else model for model in (target, draft))
    return rule_law(loop, target, draft, case["gamma"], case["length"], case["eos"])


def table(case: dict, side: str) -> TableModel:
    """The target ("p") or the draft ("q") of a text to write."""
    rows = {tuple(map(int, text.split(","))) if text else (): np.asarray(row) for text, row in case[side].items()}
    return TableModel(case["vocabulary"], rows.__getitem__)


# --- suspects --------------------------------------------------------------------------------------------------------


def other_rows(change: Callable, p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """The token rule, told other rows of q than the guesses were drawn from."""
    return token_law(p, change(q), drafted)


def elder_rows(p: Tensor, q: Tensor, drafted: Tensor, parents: Sequence[int]) -> Verdict:
    """The tree rule, told that each guess was drawn from its eldest sibling's row."""
    return tree_law(p, q[:, [list(parents).index(parent) for parent in parents]], drafted, parents)


def last_is_free(mask: Tensor) -> Tensor:
    """All is allowed behind the last guess."""
    return torch.cat([mask[:-1], torch.ones_like(mask[-1:])])


def _suspects() -> dict[str, Suspect]:
    chains = [
        Suspect(
            name=name, what=exhibit.what, loop=exhibit, settings=None if exhibit.sampling == PLAIN else exhibit.sampling
        )
        for name, exhibit in EXHIBITS.items()
    ]
    rows = {"copied as drawn": lambda q: torch.full_like(q, 1 / q.shape[-1]), "another head's q": lambda q: q.flip(-2)}
    guesses = [
        Suspect(name=name, what=GUESSERS[name].what, loop=Loop(law=partial(other_rows, change)))
        for name, change in rows.items()
    ]
    trees = [
        Suspect(
            name="siblings apart",
            what=GUESSERS["siblings apart"].what,
            see="notebook 09",
            tree=GUESSERS["siblings apart"].rule.tree,
        ),
        Suspect(name="with replacement", what=GUESSERS["with replacement"].what, see="notebook 09", tree=elder_rows),
    ]
    masks = [
        Suspect(
            name="bonus without its mask",
            what="forgets the mask behind the last guess: a forbidden token comes there",
            see="notebook 04b",
            masks=last_is_free,
        ),
        Suspect(
            name="mask on the draft alone",
            what="never masks the target: what replaces a rejected guess is free",
            see="notebook 04b",
            masks=torch.ones_like,
        ),
    ]
    rules = [
        Suspect(name=f"the {name} rule", what=f"follows the {name} rule", see="notebook 03", loop=Loop(law=LAWS[name]))
        for name in ("token", "block", "match", "typical")
    ]
    return {suspect.name: suspect for suspect in (*chains, *guesses, *trees, *masks, *rules)}


SUSPECTS = _suspects()
