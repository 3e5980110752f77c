"""Closed forms of speculative decoding: what a drafter of given quality and cost can bring.

Notation of Leviathan et al. (2211.17192). alpha: the mean probability that one draft is accepted; gamma: drafts a
round; c: the time of one draft forward over that of one target forward. The forms with one alpha take positions as
independent and alike. Every function takes numbers or numpy arrays and broadcasts.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidArgument

# T(n) / T(1): the time of a target forward over n tokens, relative to one token. A number, or a function of n.
WidthRatio = float | Callable[[np.ndarray], ArrayLike]


def _checked(alpha: ArrayLike, gamma: ArrayLike = 0, cost: ArrayLike = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    alpha, gamma, cost = (np.asarray(value, dtype=float) for value in (alpha, gamma, cost))
    if not ((alpha >= 0) & (alpha <= 1)).all():
        raise InvalidArgument("alpha must be between 0 and 1: it is a probability")
    if not (gamma >= 0).all():
        raise InvalidArgument("gamma must be at least 0: it counts drafted tokens")
    if not (cost >= 0).all():
        raise InvalidArgument("the cost ratio must be at least 0: it is a time over a time")
    return alpha, gamma, cost


def expected_tokens(alpha: ArrayLike, gamma: ArrayLike) -> np.ndarray:
    """Tokens per round: 1 + alpha + ... + alpha^gamma = (1 - alpha^(gamma+1)) / (1 - alpha). Equation 1."""
    alpha, gamma, _ = _checked(alpha, gamma)
    with np.errstate(divide="ignore", invalid="ignore"):
        series = -np.expm1((gamma + 1) * np.log(alpha)) / (1 - alpha)  # expm1 keeps the digits as alpha nears 1
    return np.where(alpha == 1, gamma + 1, series)[()]


def expected_tokens_from_positions(betas: ArrayLike) -> np.ndarray:
    """Tokens per round when the i-th draft, reached, is accepted with probability betas[..., i]: 1 + b_1 + b_1 b_2 +
    ... + b_1...b_gamma."""
    betas, _, _ = _checked(betas)
    return 1 + np.cumprod(betas, axis=-1).sum(-1)


def hazard_by_position(rounds: Iterable[tuple[Sequence[float], int]]) -> tuple[np.ndarray, np.ndarray]:
    """The chance that a guess at each position is kept if it is reached, and how often it was: [gamma], [gamma].

    rounds: of each the overlaps sum(min(p, q)) at its guesses, and how many passed. A position counts only where all
    before it passed (the rest is censored), by its overlap and not by its coin, which says the same with less noise.
    Rounds may differ in length; a position that was never reached has hazard nan. Raises InvalidArgument where more
    passed than were guessed.
    """
    sums, reached = [], []
    for overlaps, accepted in rounds:
        if not 0 <= accepted <= len(overlaps):
            raise InvalidArgument(f"{accepted} of {len(overlaps)} guesses cannot have passed")
        for k, overlap in enumerate(overlaps):
            if k == len(sums):
                sums.append(0.0)
                reached.append(0)
            if k <= accepted:
                sums[k] += float(overlap)
                reached[k] += 1
    with np.errstate(invalid="ignore"):
        return np.array(sums) / np.array(reached), np.array(reached)


def tokens_from_hazard(hazard: ArrayLike, gamma: int) -> float:
    """Tokens per round at a draft length that need not have been measured: 1 + h_1 + h_1 h_2 + ...; behind the last
    position that is known its hazard goes on. Raises InvalidArgument if no position was reached.
    """
    known = np.asarray(hazard, dtype=float)
    known = known[: int(np.isnan(known).argmax())] if np.isnan(known).any() else known
    if not known.size:
        raise InvalidArgument("a hazard needs at least one position that was reached")
    return float(expected_tokens_from_positions(known[np.minimum(np.arange(gamma), len(known) - 1)]))


def speedup(alpha: ArrayLike, gamma: ArrayLike, c: ArrayLike, width_ratio: WidthRatio = 1.0) -> np.ndarray:
    """Speed-up over cached plain decoding: E[tokens per round] / (gamma c + T(gamma+1)/T(1)). Theorem 3.8.

    The theorem has 1 for T(gamma+1)/T(1); give the measured ratio, or a function of the width, to do better. Without
    drafts (gamma = 0) the forward is one token wide and the ratio is 1 by definition.
    """
    alpha, gamma, c = _checked(alpha, gamma, c)
    ratio = width_ratio(gamma + 1) if callable(width_ratio) else width_ratio
    return expected_tokens(alpha, gamma) / (gamma * c + np.where(gamma == 0, 1.0, ratio))


def optimal_gamma(alpha: ArrayLike, c: ArrayLike, max_gamma: int = 32, width_ratio: WidthRatio = 1.0) -> np.ndarray:
    """The draft length of the greatest `speedup`, from 0 (do not speculate) to max_gamma. Ties go to the shorter."""
    gammas = np.arange(max_gamma + 1)
    alpha, c = np.broadcast_arrays(np.asarray(alpha, dtype=float), np.asarray(c, dtype=float))
    return speedup(alpha[..., None], gammas, c[..., None], width_ratio).argmax(-1)


def operations_factor(alpha: ArrayLike, gamma: ArrayLike, c_hat: ArrayLike) -> np.ndarray:
    """Arithmetic per token, relative to plain decoding: (1 - alpha)(gamma c_hat + gamma + 1) / (1 - alpha^(gamma+1)).

    c_hat: operations per token of the draft over those of the target. Theorem 3.11: speed is bought with operations.
    """
    alpha, gamma, c_hat = _checked(alpha, gamma, c_hat)
    return (gamma * c_hat + gamma + 1) / expected_tokens(alpha, gamma)


def minimum_gain(alpha: ArrayLike, c: ArrayLike) -> np.ndarray:
    """What gamma = 1 brings, (1 + alpha) / (1 + c): the best gamma brings at least that. Corollary 3.9.

    Above 1 exactly when alpha > c, which is the break-even: a drafter must be accepted more often than it costs.
    """
    alpha, _, c = _checked(alpha, 0, c)
    return (1 + alpha) / (1 + c)


def pays(alpha: ArrayLike, c: ArrayLike) -> np.ndarray:
    """Whether some draft length is faster than plain decoding (at equal forward time for all widths): alpha > c."""
    alpha, _, c = _checked(alpha, 0, c)
    return alpha > c
