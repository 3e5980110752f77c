"""A language model made of counts: which token came next, after these last few?

It learns the running text as it grows and, if given one, a corpus. Nothing is trained: a guess costs a few look-ups.
Every context from the empty one to the longest has a say, mixed by Witten and Bell's rule (1991): a context seen N
times, with m different tokens behind it, gets the weight N / (N + m), and the shorter contexts get the rest. The last
rest is uniform. So no token is impossible, there is nothing to tune, and the result is a probability distribution, as a
draft's must be; the faster "stupid backoff" (Brants et al. 2007) is none.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import IncompatibleModels, InvalidArgument
from ..law.distributions import Draw, Sampling, point_mass
from ..model.context import Context
from .base import Draft, Drafter, Guessed, TextSession, always


class NgramDrafter(Drafter):
    """Guesses each token from the `order` - 1 tokens before it.

    corpus: token ids to count beforehand, such as the text of earlier sessions; None: the running text alone.
    probabilities: "counts" draws from the mixture, under the target's sampling settings, and hands it over as q;
    "point" takes the likeliest token, as a point mass. Raises InvalidArgument unless 1 <= order, and for a corpus whose
    n-grams of that order do not fit into 64 bits.
    """

    def __init__(self, order: int = 3, corpus: Sequence[int] | None = None, probabilities: str = "counts"):
        if not isinstance(order, int) or isinstance(order, bool) or order < 1:
            raise InvalidArgument(f"order must be a whole number >= 1, not {order!r}")
        if probabilities not in ("counts", "point"):
            raise InvalidArgument(f"probabilities must be 'counts' or 'point', not {probabilities!r}")
        self.order, self.point = order, probabilities == "point"
        self.table = None if corpus is None else CountTable(corpus, order)

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "NgramSession":
        vocabulary = context.language_model.vocabulary
        if self.table is not None and self.table.largest >= vocabulary:
            raise IncompatibleModels(
                f"the corpus holds token {self.table.largest}, but {context.language_model.name} has {vocabulary} "
                f"tokens; count a corpus of its tokens"
            )
        return NgramSession(self, context, sampling, draw)


class CountTable:
    """What follows each context of 0 ... order - 1 tokens in a corpus, and how often: sorted arrays, read by binary
    search.

    An n-gram is packed into one 64-bit number, its first token foremost; all n-grams that begin with a context then lie
    side by side.
    """

    def __init__(self, corpus: Sequence[int], order: int):
        tokens = np.asarray(corpus)
        if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0:
            raise InvalidArgument("corpus must be a list or one-dimensional array of token ids, at least one")
        self.largest = int(tokens.max())
        self.bits = max(1, self.largest.bit_length())
        if order * self.bits > 64:
            raise InvalidArgument(
                f"{order} tokens of {self.bits} bits do not fit into 64 bits; with this corpus the order is at most "
                f"{64 // self.bits}"
            )
        self.grams, self.counts = [], []
        for size in range(1, min(order, len(tokens)) + 1):
            packed = np.zeros(len(tokens) - size + 1, dtype=np.uint64)
            for i in range(size):
                packed = (packed << np.uint64(self.bits)) | tokens[i : len(tokens) - size + 1 + i].astype(np.uint64)
            grams, counts = np.unique(packed, return_counts=True)
            self.grams.append(grams)
            self.counts.append(counts)

    def after(self, context: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The different tokens that followed `context` and how often each did: [m], [m]."""
        if len(context) >= len(self.grams) or max(context, default=0) > self.largest:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        first = 0
        for token in context:
            first = first << self.bits | token
        first <<= self.bits
        mask = (1 << self.bits) - 1
        grams = self.grams[len(context)]
        low, high = np.searchsorted(grams, np.uint64(first)), np.searchsorted(grams, np.uint64(first | mask), "right")
        return (grams[low:high] & np.uint64(mask)).astype(np.int64), self.counts[len(context)][low:high]


class NgramSession(TextSession):
    def __init__(self, drafter: NgramDrafter, context: Context, sampling: Sampling, draw: Draw):
        super().__init__(context)
        self.order, self.table, self.point = drafter.order, drafter.table, drafter.point
        self.sampling, self.draw = sampling, draw
        self.seen: dict[tuple[int, ...], Counter] = {}  # context -> what followed it in this text
        self.read = 0

    def prepare(self, text: list[int]) -> None:
        """Counts what is new in the text."""
        text = self.source + text
        for place in range(self.read, len(text)):
            for size in range(min(self.order - 1, place) + 1):
                self.seen.setdefault(tuple(text[place - size : place]), Counter())[text[place]] += 1
        self.read = max(self.read, len(text))

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        self.prepare(text)
        recent, tokens, probs = text[max(0, len(text) - self.order + 1) :], [], []
        for i in range(n):
            q = self._probabilities(recent, lambda: [tokens])  # [V]
            if i and not goes_on(q):
                break
            token = int(self.draw(q)) if not self.point else int(q.argmax())
            tokens.append(token)
            probs.append(q)
            recent = [*recent, token][max(0, len(recent) + 2 - self.order) :]
        return Draft(torch.tensor(tokens, dtype=torch.long, device=self.device), torch.stack(probs))

    def _probabilities(self, recent: list[int], guessed: Guessed | None = None) -> Tensor:
        """The distribution that the next guess is taken from. [V]"""
        mixture = torch.from_numpy(self.mixture(recent)).to(self.device, self.dtype)
        if self.point:
            return point_mass(mixture.argmax(), self.vocabulary, self.dtype)
        return self.sampling.probabilities(mixture.log(), guessed=guessed)

    def mixture(self, recent: Sequence[int]) -> np.ndarray:
        """The counts' own distribution after the tokens `recent`, before any sampling settings. [V], float64

        From the empty context to the longest; at each length first the corpus, then the text at hand, which knows
        better.
        """
        q = np.full(self.vocabulary, 1 / self.vocabulary)
        for size in range(min(self.order - 1, len(recent)) + 1):
            context = tuple(recent[len(recent) - size :])
            if self.table is not None:
                _mix(q, *self.table.after(context))
            if followed := self.seen.get(context):
                _mix(q, np.fromiter(followed.keys(), np.int64), np.fromiter(followed.values(), np.int64))
        return q


def _mix(q: np.ndarray, tokens: np.ndarray, counts: np.ndarray) -> None:
    """Witten and Bell: (counts + m q) / (N + m), in place."""
    if len(tokens):
        total = counts.sum() + len(tokens)
        q *= len(tokens) / total
        q[tokens] += counts / total
