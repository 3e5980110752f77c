"""The classic drafter: a smaller language model, drafting one token after the other."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ContextOverflow
from ..law.distributions import Draw, Sampling
from ..model.context import Context, Guess, Logits, Read
from ..model.language_model import LanguageModel, check_compatible
from .base import Draft, Drafter, Drafting, Guessed, ModelledSession, always, drawing


class ModelDrafter(Drafter):
    """Drafts with a causal model that shares the target's tokenizer (Leviathan et al.; Chen et al.)."""

    def __init__(self, language_model: LanguageModel):
        self.language_model = language_model

    def models(self) -> list[LanguageModel]:
        return [self.language_model]

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "ModelSession":
        target = context.language_model
        check_compatible(target, self.language_model)
        return ModelSession(context.beside(self.language_model), target.vocabulary, sampling, draw)


class ModelSession(ModelledSession):
    """Keeps the draft model's cache in step with the text: what was rejected is rolled back, what is new is read."""

    def __init__(self, context: Context, vocabulary: int, sampling: Sampling, draw: Draw):
        model = context.language_model
        self.context, self.sampling, self.draw = context, sampling, draw
        self.device, self.vocabulary, self.limit = model.device, vocabulary, model.context_length
        self.read: list[int] = []  # the text as it was read
        self.guesses: list[int] | Tensor = []  # and the guesses after it, all but the last of which were read too

    def prepare(self, text: list[int]) -> None:
        if len(text) > 1:
            self.context.extend(torch.tensor([text[:-1]], device=self.device), keep=1)
            self.read = list(text[:-1])

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        self._check_room(text, n)
        self._synchronise(text)
        how = drawing(self.law, self.draw, self._settings(), self.sampling, goes_on)
        tokens, probs = yield from self.context.guesses(text, n, how)
        self.read, self.guesses = list(text), tokens
        return Draft(tokens, probs)

    def told(self, drafted: list[int]) -> None:
        self.guesses = drafted

    def root(self, text: list[int], n: int) -> Logits:
        """For a tree of depth n: logits [1, V] after the text."""
        self._check_room(text, n)
        self._synchronise(text)
        new = torch.tensor([text[self.context.length :]], device=self.device)
        logits = yield Guess(Read(self.context, new, keep=1))
        self.read = list(text)
        return logits[0]

    def below(self, text: list[int], tokens: list[int], parents: list[int], last: int) -> Logits:
        """Logits [last, V] after the last nodes of a tree, all of which is read again, in one forward."""
        nodes = torch.tensor([tokens], device=self.device)
        logits = yield Guess(Read(self.context, nodes, last, parents))
        self.context.rollback(len(text))
        return logits[0]

    def _settings(self) -> Hashable:
        """All that `law` depends on beside the logits."""
        return type(self), self.sampling, self.vocabulary

    def _check_room(self, text: list[int], n: int) -> None:
        if self.limit and len(text) + n > self.limit:
            raise ContextOverflow(
                f"the draft model's context holds {self.limit} tokens, fewer than the {len(text) + n} that are needed"
            )

    def _synchronise(self, text: list[int]) -> None:
        """Rolls back to what cache and text have in common; at least one token of the text stays to be read."""
        # where nobody told them, as in an ensemble
        guesses = self.guesses if isinstance(self.guesses, list) else self.guesses.tolist()
        cached = (self.read + guesses)[: self.context.length]
        common, limit = 0, min(len(cached), len(text) - 1)
        while common < limit and cached[common] == text[common]:
            common += 1
        self.context.rollback(common)

    def law(self, logits: Tensor, guessed: Guessed | None = None) -> Tensor:
        """The draft's probabilities over the target's vocabulary: [k, V_draft] -> [k, V]. NaN where the logits are no
        numbers: the loop looks.
        """
        missing = max(0, self.vocabulary - logits.shape[-1])  # tokens that only the target has are never guessed
        logits = pad(logits, (0, missing), value=-torch.inf) if missing else logits[..., : self.vocabulary]
        return self.sampling.probabilities(logits, check=False, guessed=guessed)
