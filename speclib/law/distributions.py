"""From logits to probabilities, and what one can do with two distributions over the same tokens.

Everything here is a pure function of tensors whose last axis is the vocabulary. Sampling settings are applied by
transformers' own warpers, in the order in which `generate` applies them, and to target and draft alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import InvalidArgument, NonFiniteLogits

# Draws an index from the last axis of a tensor of probabilities: [..., V] -> [...]. All chance in speclib passes
# through one such function, so that `exact` can replace chance by enumeration.
Draw = Callable[[Tensor], Tensor]
AT_ONCE = 256  # uniform numbers that are made together
SINGLE = {"mps"}  # devices without double precision: Apple's GPUs


@dataclass(frozen=True)
class Sampling:
    """How logits become probabilities: processors, then temperature, then top-k, then top-p, then min-p.

    temperature: 0 is greedy, a point mass on the first argmax, else at least 1e-6; top_k: at least 1; top_p in (0, 1];
    min_p in [0, 1]. None leaves a filter out. processors: transformers' LogitsProcessor objects, or functions (tokens
    so far [1, L], logits [1, V]) -> logits [1, V], after those that the target's generation_config implies; see
    `processors`. Raises InvalidArgument when made with a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()

    def __post_init__(self):
        def check(ok, message):
            if not ok:
                raise InvalidArgument(message)

        for name in ("temperature", "top_k", "top_p", "min_p"):  # numpy's numbers count as Python's
            if isinstance(value := getattr(self, name), np.generic):
                object.__setattr__(self, name, value.item())
        number = (int, float)
        check(
            isinstance(self.temperature, number) and (self.temperature == 0 or 1e-6 <= self.temperature < float("inf")),
            f"temperature must be 0 (greedy) or at least 1e-6 (below, logits overflow when divided by it), not "
            f"{self.temperature!r}",
        )
        check(
            self.top_k is None
            or (isinstance(self.top_k, int) and not isinstance(self.top_k, bool) and self.top_k >= 1),
            f"top_k must be a whole number >= 1, or None for no limit, not {self.top_k!r}",
        )
        check(
            self.top_p is None or (isinstance(self.top_p, number) and 0 < self.top_p <= 1),
            f"top_p must be above 0 and at most 1, or None, not {self.top_p!r}",
        )
        check(
            self.min_p is None or (isinstance(self.min_p, number) and 0 <= self.min_p <= 1),
            f"min_p must be between 0 and 1, or None, not {self.min_p!r}",
        )
        check(
            isinstance(self.processors, Sequence) and all(callable(processor) for processor in self.processors),
            f"processors must be a list of functions such as transformers' LogitsProcessor objects, not "
            f"{self.processors!r}",
        )
        # the settings are frozen, and keys of what was compiled for them
        object.__setattr__(self, "processors", tuple(self.processors))
        warpers = LogitsProcessorList()
        if self.temperature not in (0, 1):
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        if self.min_p:
            warpers.append(MinPLogitsWarper(float(self.min_p)))
        object.__setattr__(self, "_warpers", warpers)

    def probabilities(
        self, logits: Tensor, check: bool = True, guessed: Callable[[], Sequence[Sequence[int]]] | None = None
    ) -> Tensor:
        """logits [..., V] -> probabilities [..., V], in float32 (float64 stays float64).

        Raises NonFiniteLogits when a row holds NaN or +inf, or nothing but -inf. With check=False such a row holds NaN
        instead, for callers that look later: to look is to wait for the device. guessed: of use to processors alone,
        see `processors.ProcessedSampling`.
        """
        if self.processors and guessed is None:
            raise InvalidArgument(
                "with logits processors, probabilities depend on the tokens before: generate() applies them, place "
                "by place"
            )
        if logits.dtype != torch.float64:
            logits = logits.float()
        if check:
            check_finite(float(logits.amax(-1).sum()))  # NaN and +inf both survive a maximum, so a few numbers tell
        if self.temperature == 0:
            top, best = logits.max(-1, keepdim=True)
            # softmax of one number: 1, or NaN where it is none
            return torch.zeros_like(logits).scatter_(-1, best, top.softmax(-1))
        if self._warpers:
            logits = self._warpers(None, logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)
        return logits.softmax(-1)

    def plainly(self) -> "Sampling":
        """The same processors, with no temperature and no filter."""
        return Sampling()


def check_finite(total: float) -> None:
    """Raises NonFiniteLogits unless `total`, a sum over what a model returned, is finite."""
    if not math.isfinite(total):
        raise NonFiniteLogits(
            "the model returned NaN or infinite logits; check its weights, or try a wider dtype such as float32"
        )


def point_mass(tokens: Tensor, vocabulary: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """tokens [...] -> one-hot probabilities [..., V]: the law of a guess that involves no chance."""
    zeros = torch.zeros(*tokens.shape, vocabulary, dtype=dtype, device=tokens.device)
    return zeros.scatter_(-1, tokens.unsqueeze(-1), 1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)), the law of the token after a rejection (Leviathan et al., section 2.3). [..., V]

    Where nothing of p lies above q the rejection has probability 0 (up to rounding) and the limit is p itself.
    """
    excess = (p - q).clamp_(min=0)
    mass = excess.sum(-1, keepdim=True)
    return torch.where(mass > 0, excess.div_(mass), p)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the L1 distance: the largest difference in the probability of any event. [..., V] -> [...]"""
    return 0.5 * (p - q).abs().sum(-1)


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """sum(min(p, q)) = 1 - total variation: the probability beta that one draft is accepted. [..., V] -> [...]"""
    return torch.minimum(p, q).sum(-1)


def entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats. [..., V] -> [...]"""
    return torch.special.entr(p).sum(-1)


def precise(device: torch.device | str) -> torch.dtype:
    """The most precise dtype that a device has."""
    return torch.float32 if torch.device(device).type in SINGLE else torch.float64


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The draw that uniform numbers in [0, 1) stand for: [..., V], [..., 1] -> [...]. By the cumulative distribution,
    in the precision of `uniform`.
    """
    cumulative = probabilities.cumsum(-1, dtype=uniform.dtype)
    # the first token whose cumulative probability lies above: never one of probability 0, and u < 1 keeps u * total <
    # total
    found = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1)
    return found.clamp_(max=probabilities.shape[-1] - 1)  # only where probabilities are NaN, which is found out later


class seeded:  # noqa: N801  called like a function, as functools.partial is
    """A `Draw` with a generator of its own: the same seed gives the same draws, and no global state is touched.

    One uniform number a draw, where torch.multinomial takes one for every token of the vocabulary and ten times as
    long. They are made many at a time: to wake the generator takes longer than the draw.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.options = {"dtype": precise(device), "device": device, "generator": self.generator}
        # numbers [1] made and not used yet, the next one last: to slice a tensor takes ten times as long as to pop
        self.ahead: list[Tensor] = []

    def uniform(self, *shape: int) -> Tensor:
        """The numbers that the next draws stand for."""
        count = math.prod(shape)
        if not 0 < count <= AT_ONCE:
            return torch.rand(shape, **self.options)
        if count > len(self.ahead):
            self.ahead = [*reversed(torch.rand(AT_ONCE, **self.options).split(1)), *self.ahead]
        taken = [self.ahead.pop() for _ in range(count)]
        return taken[0].view(shape) if count == 1 else torch.cat(taken).view(shape)

    def __call__(self, probabilities: Tensor) -> Tensor:
        return invert(probabilities, self.uniform(*probabilities.shape[:-1], 1))


def drawn(draws: Sequence[Draw], probabilities: Tensor) -> Tensor:
    """One token a row [B, V], each by its own draw. -> [B]"""
    if len(draws) == 1:
        return draws[0](probabilities)
    uniforms = [getattr(draw, "uniform", None) for draw in draws]
    if all(uniforms):
        return invert(probabilities, torch.cat([uniform(1, 1) for uniform in uniforms]))
    return torch.cat([draw(row) for draw, row in zip(draws, probabilities.split(1), strict=True)])
