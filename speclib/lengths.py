"""How far to guess ahead, in each round of each text.

A `Length` is a setting; `start` gives the `Plan` for one text, which may learn from its rounds. Whatever a plan decides must
follow from what is known before the next guess is drawn, or the text is biased (notebook 06).
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .errors import InvalidArgument
from .trace import Round


class Plan(Protocol):
    """How far to guess in one text."""

    def next_length(self) -> int:
        """The most guesses to make in the coming round, >= 0."""

    def goes_on(self, probs: Tensor) -> bool:
        """Whether to draw one more guess from the draft's distribution [V]. It must not depend on what is drawn."""

    def observe(self, round: Round) -> None:
        """Told what became of each round."""


class Length(Protocol):
    """Settings of a plan; `start` makes the plan for one text."""

    def start(self) -> Plan: ...


@dataclass(frozen=True)
class FixedLength:
    """The same draft length gamma in every round. Raises InvalidArgument unless it is a whole number >= 0."""

    gamma: int

    def __post_init__(self):
        if not isinstance(self.gamma, int) or isinstance(self.gamma, bool) or self.gamma < 0:
            raise InvalidArgument(f"draft_length must be a whole number >= 0 (0 drafts nothing), not {self.gamma!r}")

    def start(self) -> "FixedLength":
        return self  # nothing to learn

    def next_length(self) -> int:
        return self.gamma

    def goes_on(self, probs: Tensor) -> bool:
        return True

    def observe(self, round: Round) -> None:
        pass
