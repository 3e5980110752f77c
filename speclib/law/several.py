"""Several drafts: the best that any rule could do with those at one place, and the block rule on several paths."""

from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import linprog
from torch import Tensor

from ..errors import InvalidArgument
from .rules import Verdict, block_law

MOST = 20_000  # places of a linear program's matrix that are still quick to fill and to solve: a second


def draft_tuples(q: ArrayLike, n: int, replacement: bool = True) -> dict[tuple[int, ...], float]:
    """The law of n drafts from q [V], in the order in which they were drawn: independent ones, or all different."""
    q = np.asarray(q, dtype=float)
    support = np.flatnonzero(q)
    if replacement:
        return {drawn: float(q[list(drawn)].prod()) for drawn in product(support.tolist(), repeat=n)}
    found = {}
    for drawn in permutations(support.tolist(), min(n, len(support))):
        left = 1 - np.cumsum([0, *q[list(drawn)][:-1]])  # what the ones before leave of q
        found[drawn] = float((q[list(drawn)] / left).prod())
    return found


def best_acceptance(p: ArrayLike, drafts: dict[tuple[int, ...], float]) -> float:
    """The greatest probability with which any rule that keeps the law p [V] can keep one of the drafts.

    A rule is a transport plan from tuples of drafts to the token that is kept: no more leaves a tuple than its
    probability, no more arrives at a token than p gives it. Sun et al., SpecTr (2310.15141), section 4. Raises
    InvalidArgument where that linear program is too large to write down.
    """
    p, masses = np.asarray(p, dtype=float), np.array(list(drafts.values()))
    ways = [(row, token) for row, drawn in enumerate(drafts) for token in sorted(set(drawn))]
    if len(ways) * (len(masses) + len(p)) > 200 * MOST:
        raise InvalidArgument(f"{len(ways):,} ways from {len(masses):,} tuples: take fewer tokens or fewer drafts")
    bounds = np.zeros((len(masses) + len(p), len(ways)))
    for column, (row, token) in enumerate(ways):
        bounds[row, column] = bounds[len(masses) + token, column] = 1
    return float(-linprog(-np.ones(len(ways)), A_ub=bounds, b_ub=np.append(masses, p), bounds=(0, None)).fun)


def paths_law(p: Tensor, q: Tensor, drafted: Tensor, paths: int) -> Verdict:
    """The block rule on independent paths of n guesses each: path after path, on what the ones before have left of p.

    p [B, paths n + 1, V]: first after the text, then after each guess, path by path; q [B, paths n, V], drafted
    [B, paths n] -> a Verdict over those places. A path is asked where the ones before it stopped, if it comes by there:
    behind that place it is a fresh draw from the draft, and what is wanted there is the residual. So a text keeps its
    law by the block rule's own proof, and no fewer guesses are kept than by the block rule on the first path alone.
    2602.16961 asks for the best rule on several paths; this one is the plain way, as SpecInfer (2305.09781) goes from
    sibling to sibling.
    """
    batch, n = len(drafted), drafted.shape[1] // paths
    tokens = drafted.view(batch, paths, n)
    # (path, guesses kept) -> the probability that verification stands there, and the law of the token that follows
    places = {(0, 0): (p.new_ones(batch), p[:, 0])}
    for path in range(paths):
        behind = slice(path * n + 1, (path + 1) * n + 1)
        for (other, kept), (chance, law) in list(places.items()):
            if kept == n:
                continue
            shared = (tokens[:, path, :kept] == tokens[:, other, :kept]).all(-1)
            rows = torch.cat([law[:, None], p[:, behind][:, kept:]], 1)
            own = q[:, path * n + kept : (path + 1) * n] * shared[:, None, None]  # a guess not made has q = 0
            verdict = block_law(rows, own, tokens[:, path, kept:])
            reached = chance[:, None] * verdict.stop_probs
            places[other, kept] = reached[:, 0], torch.where(shared[:, None], verdict.next_probs[:, 0], law)
            for far in range(1, n - kept + 1):  # one comes there from several places: what follows is their mixture
                before, held = places.get((path, kept + far), (0 * chance, verdict.next_probs[:, far]))
                together = before + reached[:, far]
                share = torch.where(together > 0, reached[:, far] / together, 1.0)[:, None]
                places[path, kept + far] = together, held + share * (verdict.next_probs[:, far] - held)
    order = [(0, 0), *product(range(paths), range(1, n + 1))]
    return Verdict(*(torch.stack([places[place][side] for place in order], 1) for side in (0, 1)))
