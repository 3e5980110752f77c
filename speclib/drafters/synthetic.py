"""A dial for similarity: a drafter whose acceptance rate is set by hand.

It asks the target itself and mixes in a uniform distribution: q = similarity * p + (1 - similarity) / V. Its overlap
with the target is at least `similarity` and little more, at every temperature. As a drafter it is useless, since it
costs as much as the target; as an instrument it separates similarity from speed.
"""

from collections.abc import Hashable

import torch

from ..errors import InvalidArgument
from ..law.distributions import Draw, Sampling
from ..model.context import Context
from .base import Drafter, Guessed
from .model import ModelSession


class SyntheticDrafter(Drafter):
    """Drafts from the target's own distribution, degraded. Raises InvalidArgument unless 0 <= similarity <= 1."""

    def __init__(self, similarity: float):
        if not 0 <= similarity <= 1:
            raise InvalidArgument(f"similarity must be between 0 and 1, not {similarity!r}")
        self.similarity = similarity

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "SyntheticSession":
        return SyntheticSession(self.similarity, context, sampling, draw)


class SyntheticSession(ModelSession):
    def __init__(self, similarity: float, context: Context, sampling: Sampling, draw: Draw):
        target = context.language_model
        super().__init__(context.beside(target), target.vocabulary, sampling, draw)
        self.similarity = similarity

    def law(self, logits: torch.Tensor, guessed: Guessed | None = None) -> torch.Tensor:
        return self.similarity * super().law(logits, guessed) + (1 - self.similarity) / self.vocabulary

    def _settings(self) -> Hashable:
        return *super()._settings(), self.similarity
