"""The classic drafter: a smaller language model, drafting one token after the other."""

from collections.abc import Callable, Generator, Hashable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ContextOverflow
from ..law.distributions import Draw, Sampling
from ..model.batch import Read
from ..model.context import Context
from ..model.language_model import LanguageModel, check_compatible
from .base import Draft, Drafter, Drafting, Guess, Guessed, Session, always


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


class ModelSession(Session):
    """Keeps the draft model's cache in step with the text: what was rejected is rolled back, what is new is read."""

    def __init__(self, context: Context, vocabulary: int, sampling: Sampling, draw: Draw):
        model = context.language_model
        self.context, self.sampling, self.draw = context, sampling, draw
        self.device, self.vocabulary, self.limit = model.device, vocabulary, model.context_length
        self.read: list[int] = []  # the text as it was read
        self.guesses: list[int] | Tensor = []  # and the guesses after it, all but the last of which were read too
        self.usual: int | None = None  # guesses asked for in the first round; there are fewer only near the end

    def prepare(self, text: list[int]) -> None:
        if len(text) > 1:
            self.context.extend(torch.tensor([text[:-1]], device=self.device), keep=1)
            self.read = list(text[:-1])

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        self._check_room(text, n)
        self._synchronise(text)
        made = self._at_once(text, n) if goes_on is always else None
        tokens, probs = made or (yield from self._one_by_one(text, n, goes_on))
        self.read, self.guesses = list(text), tokens
        return Draft(tokens, probs)

    def told(self, drafted: list[int]) -> None:
        self.guesses = drafted

    def _at_once(self, text: list[int], n: int) -> tuple[Tensor, Tensor] | None:
        """All n guesses by one compiled program, if the backend has one and chance is a sequence of uniforms."""
        self.usual = self.usual or n
        uniform = getattr(self.draw, "uniform", None)
        return (
            self.context.guess(text, n, uniform, self._probabilities, self._settings())
            if uniform and n == self.usual
            else None
        )

    def _settings(self) -> Hashable:
        """All that `_probabilities` depends on beside the logits."""
        return type(self), self.sampling, self.vocabulary

    def _one_by_one(
        self, text: list[int], n: int, goes_on: Callable[[Tensor], bool]
    ) -> Generator[Guess, object, tuple[Tensor, Tensor]]:
        if n == (self.usual or n):
            # after a full acceptance, two tokens are new to it
            self.context.language_model.announce((1, 2))
        new, tokens, probs = torch.tensor([text[self.context.length :]], device=self.device), [], []
        for i in range(n):
            read = Read(self.context, new, keep=1)
            if goes_on is always and not self.sampling.processors:
                q, token = yield Guess(read, self._probabilities, self.draw, self._settings())
            else:
                logits = yield Guess(read)
                q = self._probabilities(logits[:, -1], lambda: [[int(token) for token in tokens]])  # [1, V]
                if i and not goes_on(q[0]):
                    break
                token = self.draw(q)
            new = token.unsqueeze(-1)  # [1, 1]
            tokens.append(new)
            probs.append(q)
        return torch.cat(tokens, 1)[0], torch.cat(probs)

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

    def _probabilities(self, logits: Tensor, guessed: Guessed | None = None) -> Tensor:
        """The draft's probabilities over the target's vocabulary: [k, V_draft] -> [k, V]. NaN where the logits are no
        numbers: the loop looks.
        """
        missing = max(0, self.vocabulary - logits.shape[-1])  # tokens that only the target has are never guessed
        logits = pad(logits, (0, missing), value=-torch.inf) if missing else logits[..., : self.vocabulary]
        return self.sampling.probabilities(logits, check=False, guessed=guessed)
