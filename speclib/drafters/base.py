"""What a guesser is. Anything that can propose tokens may draft; the verifier keeps the text lossless.

One condition holds for all: `Draft.probs` is the very distribution the tokens were drawn from. A guess that
involves no chance is a point mass.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..distributions import Draw, Sampling
from ..models import LanguageModel


@dataclass(frozen=True)
class Draft:
    """n guessed tokens [n] and the distribution each was drawn from [n, V]. n may be 0: no idea."""

    tokens: Tensor
    probs: Tensor


class Guesser(Protocol):
    """A drafter at work on one text."""

    def prepare(self, text: list[int]) -> None:
        """Reads the prompt ahead of the first round, so that its cost counts as prefill."""

    def propose(self, text: list[int], n: int) -> Draft:
        """At most n tokens to follow `text`, the whole text so far. The text may have lost earlier guesses."""


class Drafter(Protocol):
    """Settings of a guesser; `start` makes the guesser for one text."""

    def start(self, target: LanguageModel, sampling: Sampling, draw: Draw) -> Guesser: ...
