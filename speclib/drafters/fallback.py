"""The cheap drafter first, the dear one where it has nothing to say.

Where a text repeats itself, a copy is free and often long; where it says something new, a model guesses better. Who is
asked is settled by the text alone, before anything is drawn, so every guess is still drawn from the distribution that
it comes with, which is all that any rule asks. Source: SuffixDecoding (2411.04975) falls back on EAGLE in this way.
"""

from collections.abc import Callable

from torch import Tensor

from ..errors import InvalidArgument
from ..law.distributions import Draw, Sampling
from ..model.context import Context
from .base import Drafter, Drafting, ModelledSession, Session, always


class FallbackDrafter(Drafter):
    """Asks `first`, and where it makes no guess `other`, for `most` guesses at most (None: for as many as `first`).

    Copies cost nothing to make and may be long; a model's guesses cost a forward each. Raises InvalidArgument for most
    < 1.
    """

    def __init__(self, first: Drafter, other: Drafter, most: int | None = None):
        if most is not None and most < 1:
            raise InvalidArgument(f"most must be at least 1, or None for no limit, not {most}")
        self.drafters, self.most = (first, other), most
        self.grows_trees = any(drafter.grows_trees for drafter in self.drafters)

    def models(self) -> list:
        return [model for drafter in self.drafters for model in drafter.models()]

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "FallbackSession":
        return FallbackSession(*(drafter.start(context, sampling, draw) for drafter in self.drafters), self.most)

    def lengths(self, n: int) -> set[int]:
        first, other = self.drafters
        return first.lengths(n) | other.lengths(min(n, self.most or n))


class FallbackSession(ModelledSession):
    def __init__(self, first: Session, other: Session, most: int | None):
        self.first, self.other, self.most = first, other, most
        self.asked = first  # who guessed last

    def prepare(self, text: list[int]) -> None:
        self.first.prepare(text)
        self.other.prepare(text)

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        draft = yield from self.first.drafting(text, n, goes_on)
        self.asked = self.first if len(draft.tokens) else self.other
        if self.asked is self.other:
            return (yield from self.other.drafting(text, min(n, self.most or n), goes_on))
        self.other.follow(text)
        return draft

    def told(self, drafted: list[int]) -> None:
        self.asked.told(drafted)

    def follow(self, text: list[int]) -> None:
        for session in (self.first, self.other):
            session.follow(text)
