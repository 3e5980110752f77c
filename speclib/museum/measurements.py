"""Wrong figures: each beside the right one, computed from the same facts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..law.rules import named


@dataclass(frozen=True)
class Mismeasurement:
    """A figure computed wrongly and rightly from the same facts: `wrong` and `right` take the same arguments."""

    name: str
    where: str
    what: str
    wrong: Callable[..., float]
    right: Callable[..., float]


def share_of_guesses(accepted: Sequence[int], proposed: Sequence[int]) -> float:
    """Accepted drafts over proposed drafts, from the counts of each round."""
    return sum(accepted) / sum(proposed)


def share_with_corrections(accepted: Sequence[int], proposed: Sequence[int]) -> float:
    """WRONG: counts the target's own token at the end of each round as an accepted draft."""
    return (sum(accepted) + len(accepted)) / sum(proposed)


def tokens_per_second(text: str, tokens: Sequence[int], seconds: float) -> float:
    """New tokens over seconds."""
    return len(tokens) / seconds


def characters_per_second(text: str, tokens: Sequence[int], seconds: float) -> float:
    """WRONG as tokens per second: counts characters."""
    return len(text) / seconds


def speedup_over_cached(cost: Callable[[int], float], prompt: int, new: int, seconds: float) -> float:
    """Plain decoding over speculative `seconds`; cost(n) is what a forward of n new tokens takes, in seconds."""
    return (cost(prompt) + (new - 1) * cost(1)) / seconds


def speedup_over_uncached(cost: Callable[[int], float], prompt: int, new: int, seconds: float) -> float:
    """WRONG: compares with a loop that reads the whole text again for every token."""
    return sum(cost(prompt + i) for i in range(new)) / seconds


MISMEASUREMENTS: dict[str, Mismeasurement] = named(
    Mismeasurement(
        "correction counted",
        "public code",
        "the target's own token counts as an accepted draft: the share can exceed 1",
        share_with_corrections,
        share_of_guesses,
    ),
    Mismeasurement(
        "characters counted",
        "public code",
        "characters are counted as tokens: the rate grows by the length of a token",
        characters_per_second,
        tokens_per_second,
    ),
    Mismeasurement(
        "uncached baseline",
        "tutorials and articles",
        "the baseline has no cache: the cache's gain is booked as the guesser's",
        speedup_over_uncached,
        speedup_over_cached,
    ),
)
