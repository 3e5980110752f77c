"""The compiled backend: the fast decoder's forward over few tokens, made into one program for each number of tokens.

A program has its shapes fixed in advance: so many new tokens, the cache in blocks of 64 slots. Where the text ends is
data, so nothing is made again as it grows. On a CPU torch.compile fuses the small operations between the matrix products; on a GPU the
forward is captured as a CUDA graph, and the host launches it as a whole. Everything else - prompts, trees, numbers of tokens
that nobody announced - takes the fast forward, with the same logits up to rounding.
"""

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FunctionType

import pooch
import torch
import torch._dynamo
from torch import Tensor
from tqdm.auto import tqdm

from .fast import Decoder, FastContext, through

STEP = 64  # the cache is handed over up to a multiple of this many slots: one program for all lengths of the text
ROOM = 1024  # slots that a cache has at first, or all of a shorter context: a program is made again when it grows
MOST = 32  # a forward over more tokens than this is no round of decoding

Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer [G, S, D]
Forward = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]  # (tokens [k], number of cached tokens [], 0..S-1 [S], cache) -> logits [k, V]


class Programs:
    """The forwards of one model that are made into programs, by number of tokens: those in `widths`, each at its first use."""

    def __init__(self, decoder: Decoder, name: str):
        self.name, self.device = name, decoder.device
        self.widths: set[int] = set()
        self.stores: dict[int, list[Tensor]] = {}  # caches that no text uses any more, by capacity: a CUDA graph knows its cache by address
        self._forward = forward_of(decoder)
        self._made: dict[tuple, Forward] = {}
        self.broken = False

    def announce(self, widths: Iterable[int]) -> None:
        """Says which numbers of tokens will be read often."""
        self.widths.update(width for width in widths if 1 <= width <= MOST)

    def run(self, tokens: Tensor, length: int, slots: Tensor, cache: Cache) -> Tensor | None:
        """The logits [k, V] after tokens [k] behind `length` cached ones, or None if there is no program for so many. Only `slots` of the cache are looked at."""
        width = tokens.shape[0]
        if width not in self.widths or self.broken:
            return None
        key = (width, cache[0][0].shape[1]) if self.device.type == "cpu" else (width, len(slots), cache[0][0].data_ptr())
        tokens, start = tokens.clone(), torch.tensor(length, device=self.device)  # both made here, in inference mode
        if key not in self._made:
            try:
                self._made[key] = self._make(tokens, start, slots, cache)
            except Exception as error:  # no compiler, or one that fails: the reasons are many and none is ours
                self.broken = True
                warnings.warn(f"{self.name} cannot be compiled here ({str(error).strip().splitlines()[0]}); going on with backend='fast'", stacklevel=2)
                return None
        return self._made[key](tokens, start, slots, cache)

    def _make(self, tokens: Tensor, start: Tensor, slots: Tensor, cache: Cache) -> Forward:
        with tqdm(total=1, desc=f"{self.name}: a program for {tokens.shape[0]} token{'s' * (tokens.shape[0] > 1)}", unit="program", leave=False) as bar:
            made = captured(self._forward, tokens, start, slots, cache) if self.device.type == "cuda" else fused(self._forward, cache[0][0].dtype)
            made(tokens, start, slots, cache)  # torch.compile begins to work here
            bar.update()
        return made


def forward_of(d: Decoder) -> Forward:
    """The decoder's forward with nothing in it that changes from token to token but its arguments."""

    def forward(tokens: Tensor, start: Tensor, slots: Tensor, cache: Cache) -> Tensor:
        own = start + torch.arange(tokens.shape[0], device=d.device)
        sees = slots <= own[:, None]  # [k, S]
        return d.head(through(d, d.blocks, tokens, own, own, slots.shape[0], cache, sees))[1]

    return forward


# In bfloat16 the matrix products gain from kernels chosen by trial, and from weights laid out for them; in float32 neither was seen to.
TRIED = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}


def fused(forward: Forward, dtype: torch.dtype) -> Forward:
    """The forward through torch.compile, whose work is kept on disk for the next process."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(pooch.os_cache("speclib")) / "programs"))
    own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)  # of one function torch makes eight programs, and no more
    return torch.compile(own, dynamic=False, fullgraph=True, options=TRIED if dtype == torch.bfloat16 else {})


def captured(forward: Forward, tokens: Tensor, start: Tensor, slots: Tensor, cache: Cache) -> Forward:
    """The forward as a CUDA graph over this very cache: torch's recipe, three forwards on a side stream first."""
    tokens, start = tokens.clone(), start.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(tokens, start, slots, cache)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(tokens, start, slots, cache)

    def replay(new: Tensor, length: Tensor, *_) -> Tensor:
        tokens.copy_(new)
        start.copy_(length)
        graph.replay()
        return logits.clone()  # the next replay writes into the same place

    return replay


class CompiledContext(FastContext):
    """A `FastContext` whose forwards over announced numbers of tokens are programs."""

    def _empty_cache(self) -> Cache:
        self.capacity = min(ROOM, self.language_model.context_length or ROOM)
        return self._allocate()

    @torch.inference_mode()  # as in every forward: a program looks at how its tensors were made
    def _allocate(self) -> Cache:
        d, free = self.decoder, self.language_model.programs.stores.setdefault(self.capacity, [])
        # zeros, for masked slots are multiplied too and 0 * NaN is NaN; room to spare, so that what is looked at is always a part, of which one program can be made
        store = free.pop() if free else torch.zeros(len(d.blocks), 2, d.heads, self.capacity + 2 * STEP, d.size, dtype=d.dtype, device=d.device)
        weakref.finalize(self, free.append, store)
        self._slots = torch.arange(store.shape[3], device=d.device)
        return [(layer[0], layer[1]) for layer in store]

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        programs, end = self.language_model.programs, self.length + tokens.shape[1]
        if parents is None and not self.wants_hidden and tokens.shape[1] in programs.widths:
            if end > self.capacity:
                self._grow(end)
            slots = self._slots[: -(-end // STEP) * STEP]
            torch._dynamo.mark_dynamic(slots, 0)  # its size may change
            logits = programs.run(tokens[0], self.length, slots, self._cache)
            if logits is not None:
                return logits[-keep:][None]
        return super()._forward(tokens, keep, parents)
