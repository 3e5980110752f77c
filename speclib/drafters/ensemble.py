"""Several drafters at once: each guesses a chain of its own, and all chains hang below the text as one tree.

The chains are drawn independently of each other, which is all that the tree rule asks: where the first drafter's guess
fails, the second's is tried against what is left. SpecInfer (2305.09781), section 3.
"""

from collections.abc import Callable, Sequence

import torch

from ..errors import InvalidArgument
from ..law.distributions import Draw, Sampling
from ..model.context import Context
from .base import Draft, Drafter, Drafting, ModelledSession, Session, always


class EnsembleDrafter(Drafter):
    """Asks each of `drafters`, and puts the first one's guesses first. Raises InvalidArgument for an empty list."""

    grows_trees = True

    def __init__(self, drafters: Sequence[Drafter]):
        if not drafters:
            raise InvalidArgument("an ensemble needs at least one drafter")
        self.drafters = list(drafters)

    def models(self) -> list:
        return [model for drafter in self.drafters for model in drafter.models()]

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "EnsembleSession":
        return EnsembleSession([drafter.start(context, sampling, draw) for drafter in self.drafters])


class EnsembleSession(ModelledSession):
    def __init__(self, sessions: list[Session]):
        self.sessions = sessions

    def prepare(self, text: list[int]) -> None:
        for session in self.sessions:
            session.prepare(text)

    def drafting(self, text: list[int], n: int, goes_on: Callable[[torch.Tensor], bool] = always) -> Drafting:
        tokens, probs, parents = [], [], []
        for session in self.sessions:
            draft = yield from session.drafting(text, n, goes_on)
            first, count = len(parents), len(draft.tokens)
            own = draft.parents if draft.parents is not None else range(-1, count - 1)
            parents += [parent + first if parent >= 0 else -1 for parent in own]
            tokens.append(draft.tokens)
            probs.append(draft.probs)
        return Draft(torch.cat(tokens), torch.cat(probs), parents)

    def follow(self, text: list[int]) -> None:
        for session in self.sessions:
            session.follow(text)
