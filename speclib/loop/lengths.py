"""How far to guess ahead, in each round of each text.

A `Length` is a setting; `start` gives the `Plan` for one text, which may learn from its rounds. Whatever a plan decides
must follow from what is known before the next guess is drawn, or the text is biased.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
from torch import Tensor

from ..errors import InvalidArgument
from ..law.theory import speedup
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
        if not isinstance(self.gamma, Integral) or isinstance(self.gamma, bool) or self.gamma < 0:
            raise InvalidArgument(f"draft_length must be a whole number >= 0 (0 drafts nothing), not {self.gamma!r}")

    def start(self) -> "FixedLength":
        return self  # nothing to learn

    def next_length(self) -> int:
        return self.gamma

    def goes_on(self, probs: Tensor) -> bool:
        return True

    def observe(self, round: Round) -> None:
        pass


@dataclass(frozen=True)
class ConfidenceLength:
    """Guess on while the draft's most probable next token has at least probability `threshold`, and at most `most`
    tokens.

    The largest probability is known before anything is drawn, so stopping on it leaves the text's law alone; stopping
    on the probability of the token that *was* drawn does not. Raises InvalidArgument unless 0 <= threshold <= 1 and
    most >= 0.
    """

    threshold: float = 0.4
    most: int = 8

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise InvalidArgument(f"threshold must be a probability between 0 and 1, not {self.threshold!r}")
        FixedLength(self.most)  # the same condition

    def start(self) -> "ConfidenceLength":
        return self

    def next_length(self) -> int:
        return self.most

    def goes_on(self, probs: Tensor) -> bool:
        return float(probs.max()) >= self.threshold

    def observe(self, round: Round) -> None:
        pass


@dataclass(frozen=True)
class HeuristicLength:
    """Two more after a round in which every guess passed, one fewer after any other: transformers' heuristic schedule.

    Raises InvalidArgument unless 1 <= first <= most.
    """

    first: int = 5
    most: int = 16

    def __post_init__(self):
        if not 1 <= self.first <= self.most:
            raise InvalidArgument(
                f"a heuristic length needs 1 <= first <= most, not first={self.first!r}, most={self.most!r}"
            )

    def start(self) -> "HeuristicPlan":
        return HeuristicPlan(self.first, self.most)


class HeuristicPlan:
    def __init__(self, first: int, most: int):
        self.length, self.most = first, most

    def next_length(self) -> int:
        return self.length

    def goes_on(self, probs: Tensor) -> bool:
        return True

    def observe(self, round: Round) -> None:
        passed = bool(round.drafted) and round.accepted == len(round.drafted)
        self.length = min(self.most, self.length + 2) if passed else max(1, self.length - 1)


@dataclass(frozen=True)
class CostAwareLength:
    """The length with the most expected tokens per unit of time, by a running estimate of alpha and by measured prices.

    widths: T(n) / T(1) of the target by n (`latency.width_curve`); c: the draft's cost ratio. The estimate is a mean of
    sum(min(p, q)) at the positions that verification reached, older ones fading by `memory` each, and worth `weight`
    positions of `prior` at the start. The prices need not grow steadily: where five tokens are checked faster than
    three, it never asks for three. A length of 0, plain decoding, is allowed; then every `probe`-th round guesses once,
    to notice when guessing pays again. Raises InvalidArgument for prices or estimates that cannot be.
    """

    widths: Mapping[int, float]
    c: float
    prior: float = 0.6
    weight: float = 4.0
    memory: float = 0.97
    probe: int = 16

    def __post_init__(self):
        if 1 not in self.widths or min(self.widths.values()) <= 0:
            raise InvalidArgument(
                "widths must give a positive T(n) / T(1) for n = 1 and for every length to choose from, as in {1: "
                "1.0, 2: 1.1}"
            )
        if not (self.c >= 0 and 0 <= self.prior <= 1 and self.weight > 0 and 0 < self.memory <= 1 and self.probe >= 1):
            raise InvalidArgument(
                "c must be >= 0, prior between 0 and 1, weight above 0, memory above 0 and at most 1, probe at least 1"
            )

    def start(self) -> "CostAwarePlan":
        return CostAwarePlan(self)

    def best(self, alpha: float) -> int:
        """The length of the most expected tokens per time at this alpha, among those whose width was measured."""
        lengths = np.array([*self.widths]) - 1
        prices = np.array([*self.widths.values()]) / self.widths[1]
        return int(lengths[speedup(alpha, lengths, self.c, prices).argmax()])


class CostAwarePlan:
    def __init__(self, settings: CostAwareLength):
        self.settings = settings
        self.total, self.count = settings.prior * settings.weight, settings.weight
        self.idle = 0  # rounds since something was guessed

    @property
    def alpha(self) -> float:
        """The running estimate."""
        return self.total / self.count

    def next_length(self) -> int:
        best = self.settings.best(self.alpha)
        return 1 if best == 0 and self.idle + 1 >= self.settings.probe else best

    def goes_on(self, probs: Tensor) -> bool:
        return True

    def observe(self, round: Round) -> None:
        self.idle = 0 if round.drafted else self.idle + 1
        for overlap in round.overlaps[: round.accepted + 1]:
            self.total = self.settings.memory * self.total + overlap
            self.count = self.settings.memory * self.count + 1
