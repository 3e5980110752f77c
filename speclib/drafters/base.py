"""What a guesser is. Anything that can propose tokens may draft; the verifier keeps the text lossless.

One condition holds for all: `Draft.probs` is the very distribution the tokens were drawn from. A guess that
involves no chance is a point mass.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..context import Context
from ..distributions import Draw, Sampling
from ..fast import fingerprint


@dataclass(frozen=True)
class Draft:
    """n guessed tokens [n] and the distribution each was drawn from [n, V]. n may be 0: no idea.

    parents: None for a chain; for a tree the guess that each guess follows, before it in the list, or -1 for the text. Siblings are tried in
    their order, and the distribution of each may depend on the ones before it: drawn without replacement, they are left out of it. ids: the
    tokens on the host, once the loop has fetched them with the rest of the round; empty before.
    """

    tokens: Tensor
    probs: Tensor
    parents: list[int] | None = None
    ids: list[int] = field(default_factory=list, compare=False)


def always(probs: Tensor) -> bool:
    """Go on guessing, whatever the next distribution is."""
    return True


def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module as `device` and `dtype` want it: itself, or a copy, so that the caller's, which other drafters may
    hold too, stays as it is."""
    if all(p.device == device and p.dtype == dtype for p in module.parameters()):
        return module
    return deepcopy(module).to(device, dtype)


def made_of(target, module: nn.Module | None) -> tuple:
    """What a decoder made of a target's weights and a module's depends on, to be compared later."""
    return target, fingerprint(target.model, numbers=True), module and fingerprint(module, numbers=True)


class Guesser(Protocol):
    """A drafter at work on one text."""

    def prepare(self, text: list[int]) -> None:
        """Reads the prompt ahead of the first round, so that its cost counts as prefill."""

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        """At most n tokens in a row to follow `text`, the whole text so far. The text may have lost earlier guesses.

        Before each guess but the first, `goes_on` is asked about the distribution [V] it would be drawn from. A guesser that needs to know of
        rounds in which another is asked has a method `follow(text)` for them.
        """


def tell(guesser: Guesser, text: list[int]) -> None:
    """Lets a guesser know of a round in which another is asked, if it needs to."""
    if hasattr(guesser, "follow"):
        guesser.follow(text)


class Drafter(Protocol):
    """Settings of a guesser; `start` makes the guesser for one text, given the target's context of that text."""

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> Guesser: ...


def usual_lengths(drafter: Drafter, n: int) -> set[int]:
    """How many guesses `drafter` makes when it is asked for n: n, unless it says otherwise in a method `lengths(n)`. The compiled backend prepares for them."""
    return drafter.lengths(n) if hasattr(drafter, "lengths") else {n}
