"""The classic guesser: a smaller language model, drafting one token after the other."""

from collections.abc import Callable

import torch
from torch.nn.functional import pad

from ..context import Context
from ..distributions import Draw, Sampling
from ..errors import ContextOverflow
from ..models import LanguageModel, check_compatible
from .base import Draft, always


class ModelDrafter:
    """Drafts with a causal model that shares the target's tokenizer (Leviathan et al.; Chen et al.)."""

    def __init__(self, language_model: LanguageModel):
        self.language_model = language_model

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "ModelGuesser":
        target = context.language_model
        check_compatible(target, self.language_model)
        self.language_model.announce((1, 2))  # after a full acceptance, two tokens are new to it
        return ModelGuesser(self.language_model.context(context.prompt), target.vocabulary, sampling, draw)


class ModelGuesser:
    """Keeps the draft model's cache in step with the text: what was rejected is rolled back, what is new is read."""

    def __init__(self, context: Context, vocabulary: int, sampling: Sampling, draw: Draw):
        model = context.language_model
        self.context, self.sampling, self.draw = context, sampling, draw
        self.device, self.vocabulary, self.limit = model.device, vocabulary, model.context_length
        self.cached: list[int] = []  # the tokens that the context holds

    def prepare(self, text: list[int]) -> None:
        if len(text) > 1:
            self.context.extend(torch.tensor([text[:-1]], device=self.device), keep=1)
            self.cached = list(text[:-1])

    def propose(self, text: list[int], n: int, goes_on: Callable[[torch.Tensor], bool] = always) -> Draft:
        self._check_room(text, n)
        self._synchronise(text)
        new, tokens, probs = torch.tensor([text[len(self.cached) :]], device=self.device), [], []
        read = 0
        for i in range(n):
            q = self._probabilities(self.context.extend(new, keep=1)[:, -1])  # [1, V]
            read = i
            if i and not goes_on(q[0]):
                break
            new = self.draw(q).unsqueeze(-1)  # [1, 1]
            tokens.append(new)
            probs.append(q)
        drafted = torch.cat(tokens, 1)[0]
        self.cached = text + drafted[:read].tolist()
        return Draft(drafted, torch.cat(probs))

    def _check_room(self, text: list[int], n: int) -> None:
        if self.limit and len(text) + n > self.limit:
            raise ContextOverflow(f"the draft model's context holds {self.limit} tokens, fewer than the {len(text) + n} that are needed")

    def _synchronise(self, text: list[int]) -> None:
        """Rolls back to what cache and text have in common; at least one token of the text stays to be read."""
        common, limit = 0, min(len(self.cached), len(text) - 1)
        while common < limit and self.cached[common] == text[common]:
            common += 1
        self.context.rollback(common)
        self.cached = self.cached[:common]

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The draft's probabilities over the target's vocabulary: [1, V_draft] -> [1, V]."""
        q = self.sampling.probabilities(logits[..., : self.vocabulary])
        return pad(q, (0, self.vocabulary - q.shape[-1])) if q.shape[-1] < self.vocabulary else q
