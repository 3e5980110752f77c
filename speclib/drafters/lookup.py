"""Prompt lookup, the search engine in its simplest form: what followed the last time the text read like this?

Prompt lookup decoding, after LLMA (2304.04487): no model, no training, and almost no time.
"""

from collections.abc import Callable

import torch

from ..errors import InvalidArgument
from ..law.distributions import Draw, Sampling, point_mass
from ..model.context import Context
from .base import Draft, Drafter, TextSession, always


class LookupDrafter(Drafter):
    """Finds the longest suffix of the text (at most `longest` tokens) that occurred before, most recent match first,
    and proposes what followed it. Where that runs into the end of the text, the text is going round in a circle, and so
    does the guess. Raises InvalidArgument unless 1 <= shortest <= longest.
    """

    def __init__(self, longest: int = 4, shortest: int = 1):
        if not 1 <= shortest <= longest:
            raise InvalidArgument(f"lookup needs 1 <= shortest <= longest, not shortest={shortest}, longest={longest}")
        self.longest, self.shortest = longest, shortest

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "LookupSession":
        return LookupSession(self.longest, self.shortest, context)


class LookupSession(TextSession):
    def __init__(self, longest: int, shortest: int, context: Context):
        super().__init__(context)
        self.sizes = range(longest, shortest - 1, -1)
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence ended
        self.read = 0

    def prepare(self, text: list[int]) -> None:
        self._index(self.source + text)

    def propose(self, text: list[int], n: int, goes_on: Callable[[torch.Tensor], bool] = always) -> Draft:
        text = self.source + text
        self._index(text)
        end = next(
            (self.ends[key] for size in self.sizes if (key := tuple(text[-size:])) in self.ends and len(key) == size),
            len(text),
        )
        followed = text[end : end + n]  # fewer than n where the text ends
        tokens = torch.tensor((followed * n)[:n], dtype=torch.long, device=self.device)
        return Draft(tokens, point_mass(tokens, self.vocabulary, self.dtype))

    def _index(self, text: list[int]) -> None:
        """Enters every n-gram that ends before the last token: the suffix itself must not find itself."""
        for end in range(max(self.read, 1), len(text)):
            for size in self.sizes:
                if end >= size:
                    self.ends[tuple(text[end - size : end])] = end
        self.read = max(self.read, len(text))
