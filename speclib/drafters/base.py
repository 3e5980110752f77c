"""What the loop asks of a drafter: at most n tokens to follow the text, and the distribution each was drawn from.

That is all a verification rule needs to keep the target's law, as long as it is true: `probs` must be the very
distribution the tokens were drawn from. A guess that involves no chance is a point mass.
"""

from collections.abc import Callable, Generator, Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..law.distributions import Draw, Sampling, drawn
from ..model.batch import together
from ..model.context import Context, Drawing, Guess
from ..model.fast import fingerprint


@dataclass(frozen=True)
class Draft:
    """n guessed tokens [n] and the distribution each was drawn from [n, V]. n may be 0: no guess.

    parents: None for a chain; for a tree the guess that each guess follows, before it in the list, or -1 for the text.
    Siblings are tried in their order, and the distribution of each may depend on the ones before it: drawn without
    replacement, they are left out of it.
    """

    tokens: Tensor
    probs: Tensor
    parents: list[int] | None = None


# For each row of logits, the guesses between the text and it; asked for by logits processors alone, since it waits for
# the device.
Guessed = Callable[[], list[list[int]]]


def always(probs: Tensor) -> bool:
    """Go on guessing, whatever the next distribution is."""
    return True


def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module as `device` and `dtype` want it: itself, or a copy, so that the caller's, which other drafters may
    hold too, stays as it is."""
    if all(p.device == device and p.dtype == dtype for p in module.parameters()):
        return module
    return deepcopy(module).to(device, dtype)


class Kept:
    """What a drafter makes of a target's weights and its own module's, kept as long as the next text is the same
    target's and both have the same weights: fusing them takes longer than a round."""

    def __init__(self, make: Callable[..., Any], module: nn.Module | None):
        self.make, self.module, self.made_of, self.made = make, module, None, None

    def __call__(self, target) -> Any:
        now = target, target.made_of(), self.module and fingerprint(self.module, numbers=True)
        if now != self.made_of:
            self.made_of, self.made = now, self.make(target)
        return self.made


# What a session at work is: it hands out the forwards that it needs, is sent what came of each, and returns its Draft.
Drafting = Generator[Guess, "Tensor | tuple[Tensor, Tensor]", Draft]


def drawing(
    law: Callable[..., Tensor], draw: Draw, settings: Hashable, sampling: Sampling, goes_on: Callable[[Tensor], bool]
) -> Drawing:
    """As a session draws that makes each guess from what it made of the one before."""
    return Drawing(law, draw, settings, None if goes_on is always and not sampling.processors else goes_on)


def draft_alone(session: Drafting) -> Draft:
    """Runs one session: `draft_together` without the bookkeeping of rows, for which a text alone would pay."""
    answer = None
    try:
        while True:
            guess = session.send(answer)
            answer = guess.read.alone()
            if guess.how is not None:
                q = guess.how.law(answer[:, -1])  # [1, V]
                answer = q, guess.how.draw(q)
    except StopIteration as end:
        return end.value


def draft_together(sessions: Sequence[Drafting]) -> list[Draft]:
    """Runs sessions side by side: forwards that are asked for at the same time are made by one (`batch.together`)."""
    if len(sessions) == 1:
        return [draft_alone(sessions[0])]
    drafts: list[Draft | None] = [None] * len(sessions)
    answers: dict[int, object] = dict.fromkeys(range(len(sessions)))
    while answers:
        asked: dict[int, Guess] = {}
        for i, answer in answers.items():
            try:
                asked[i] = sessions[i].send(answer)
            except StopIteration as end:
                drafts[i] = end.value
        logits = dict(zip(asked, together([guess.read for guess in asked.values()]), strict=True))
        answers = {i: logits[i] for i, guess in asked.items() if guess.how is None}
        groups: dict[Hashable, list[int]] = {}
        for i, guess in asked.items():
            if guess.how is not None:
                groups.setdefault(guess.how.settings, []).append(i)
        for rows in groups.values():
            hows = [asked[i].how for i in rows]
            q = hows[0].law(torch.cat([logits[i][:, -1] for i in rows]))  # [B, V]
            tokens = drawn([how.draw for how in hows], q)  # [B]
            answers |= {i: (q[k : k + 1], tokens[k : k + 1]) for k, i in enumerate(rows)}
    return drafts


class Session:
    """A drafter at work on one text. `propose` is its own (or `drafting`, see `ModelledSession`); the rest has
    defaults."""

    def prepare(self, text: list[int]) -> None:
        """Reads the prompt ahead of the first round, so that its cost counts as prefill."""

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        """At most n tokens in a row to follow `text`, the whole text so far. The text may have lost earlier guesses.

        Before each guess but the first, `goes_on` is asked about the distribution [V] it would be drawn from.
        """
        raise NotImplementedError

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        """`propose` in steps, so that the rows of a batch can take them together."""
        yield from ()  # without a forward there is one step
        return self.propose(text, n, goes_on)

    def follow(self, text: list[int]) -> None:
        """Hears of a round in which another is asked."""

    def told(self, drafted: list[int]) -> None:
        """Hears which tokens it drafted last, once the loop has fetched them with the rest of the round: to ask the
        device again would be to wait for it.
        """


class ModelledSession(Session):
    """A session that runs a model: `drafting` is its own, and `propose` takes all steps at once."""

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        raise NotImplementedError

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        return draft_alone(self.drafting(text, n, goes_on))


class TextSession(Session):
    """A session that looks at the text alone. dtype: of the laws of its guesses."""

    def __init__(self, context: Context):
        target = context.language_model
        self.vocabulary, self.device = target.vocabulary, target.device
        self.dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
        # what an encoder has read is text to look at, too; elsewhere the prompt is part of the text
        self.source = [] if context.begin == context.prompt else context.prompt


class Drafter:
    """Settings of whoever guesses; `start` makes the session for one text, given the target's context of that text."""

    grows_trees = False

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> Session:
        raise NotImplementedError

    def models(self) -> list:
        """The LanguageModels that it runs, so that what they cannot do is found before any work."""
        return []

    def lengths(self, n: int) -> set[int]:
        """How many guesses it makes when it is asked for n. The compiled backend prepares for them."""
        return {n}
