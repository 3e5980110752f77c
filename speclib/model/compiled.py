"""The compiled backend: the fast decoder's forward as a compiled program, one for each small number of tokens.

A forward over one token is hundreds of small operations, and starting one often takes longer than doing it. A compiled
program starts fewer: on a CPU torch.compile fuses what lies between two matrix products into one operation; on a GPU a
CUDA graph records all operations once, and the host launches the whole with one call.

Both need fixed shapes, so there is a program for each number of new tokens (1 for plain decoding, draft length + 1
for a check, ...), and it reads the key-value cache in whole blocks of 64 slots. The end of the text within the cache
is an argument. So a growing text needs another program only when its cache grows, and on a GPU every 64 tokens. The n
guesses of a draft model are one program as well, with the drawing inside; on a GPU the verdict is another.

Everything else (prompts, trees, numbers of tokens that nobody announced) runs the fast backend's forward. Its logits
are the same up to rounding.
"""

import os
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from types import FunctionType

import pooch
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from tqdm.auto import tqdm

from ..errors import UnsupportedModel
from ..law.distributions import invert
from .batch import FIRST, Slots
from .context import Drawing, Guesses
from .fast import Decoder, FastContext, attention, attention_of_rows, layers
from .probe import COARSE, LIMITS, apart

STEP = 64  # the cache is handed over up to a multiple of this many slots: one program for all lengths of the text
ROOM = 1024  # slots that a cache has at first, or all of a shorter context: a program is made again when it grows
MOST = 32  # a forward over more tokens than this is no round of decoding

# tokens that a draft model reads before it guesses: after a full acceptance both are new to it, else it reads one
# again, for one program is enough then
NEW = 2
DEEPEST = 32  # layers that a program for several guesses may hold: torch.compile writes each of them out

Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer [G, S, D]
# (small tensors, and of a program that works on a text 0..S-1 [S] and the cache) -> tensors; only so many slots of the
# cache are looked at
Program = Callable[..., tuple[Tensor, ...] | Tensor]
Law = Callable[[Tensor], Tensor]  # logits [1, V] -> probabilities


class Programs:
    """The compiled programs of one model. Each is made when it is first needed, which takes seconds: forwards over the
    numbers of tokens in `widths`, and runs of several guesses.
    """

    made = 0  # programs of this process, of all models: who measures looks whether one was made meanwhile

    def __init__(self, decoder: Decoder, name: str):
        self.name, self.decoder = name, decoder
        self.graphs = decoder.device.type == "cuda"  # CUDA graphs, or torch.compile
        self.widths: set[int] = set()
        # caches that no text uses any more, by capacity: a CUDA graph knows its cache by address
        self.stores: dict[int, list[Tensor]] = {}
        self._made: dict[tuple, Program] = {}
        self.broken: set[str] = set()  # what could not be made here

    def announce(self, widths: Iterable[int]) -> None:
        """Says which numbers of tokens will be read often."""
        self.widths.update(width for width in widths if 1 <= width <= MOST)

    def reads(self, width: int) -> bool:
        """Whether forwards over so many tokens are programs."""
        return width in self.widths and "forward" not in self.broken

    def judge(self, program: Program, inputs: tuple[Tensor, ...], settings: Hashable) -> Tensor:
        """See `LanguageModel.judge`. On a CPU nothing is compiled: a program was seen to start as slowly as the few
        small operations in it.
        """
        width = inputs[1].shape[1]
        if not self.graphs or width not in self.widths:
            return program(*inputs)
        title = f"the verdict on {width - 1} guesses"
        return self.run("verdicts", ("verdict", width, settings), title, lambda: program, inputs)

    def number(self, value: int) -> Tensor:
        """A number as a program takes it: data, and no part of the program."""
        return torch.tensor(value, device=self.decoder.device)

    def run(
        self,
        kind: str,
        shape: tuple,
        title: str,
        make: Callable[[], Program],
        inputs: tuple[Tensor, ...],
        *place: Tensor | Cache,
    ) -> tuple[Tensor, ...] | Tensor:
        """Calls the function that `make()` returns on `inputs`, and on `place` behind them, by a compiled program.

        The program for this `shape` and size of cache (on a GPU its address) is made at the first call and kept. Where
        one cannot be made, it warns once, and from then on whatever is of this `kind` is called as the plain function.
        place: the slots and the cache of a text, for what reads one; title: what the progress bar calls the program.
        """
        if kind in self.broken:
            return make()(*inputs, *place)
        key = shape
        if place:
            slots, cache = place
            key += (len(slots), cache[0][0].data_ptr()) if self.graphs else (cache[0][0].shape[-2],)
        # a program is for one set of strides, and for tensors not made in inference mode; nobody checks (`UNASKED`)
        inputs = tuple(value.contiguous() if value.is_inference() else value.clone() for value in inputs)
        if key not in self._made:
            try:
                with tqdm(total=1, desc=f"{self.name}: a program for {title}", unit="program", leave=False) as bar:
                    self._made[key] = graphed(make(), inputs, *place) if self.graphs else fused(make())
                    outputs = self._made[key](*inputs, *place)  # torch.compile begins to work here
                    if kind == "forward" and self.decoder.device.type != "meta":
                        off = apart(outputs[1], make()(*inputs, *place)[1])
                        if off > LIMITS.get(self.decoder.dtype, COARSE):
                            raise UnsupportedModel(
                                f"its logits are apart from the fast forward's by {off:.2g} of their spread"
                            )
                    Programs.made += 1
                    bar.update()
            except Exception as error:  # no compiler, or one that fails: the reasons are many and none is ours
                self.broken.add(kind)
                warnings.warn(
                    f"{self.name} cannot be compiled here ({str(error).strip().splitlines()[0]}); going on with "
                    f"backend='fast'",
                    stacklevel=2,
                )
                return make()(*inputs, *place)
        return self._made[key](*inputs, *place)


def forward_of(d: Decoder) -> Program:
    """The decoder's forward as a function of tensors alone, so that one program serves every place in the text:
    (tokens [k], start: tokens in the cache, slots 0..S-1 [S], cache) -> states [k, d], logits [k, V].
    """

    def forward(tokens: Tensor, start: Tensor, slots: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        own = start + torch.arange(tokens.shape[0], device=d.device)
        sees = slots <= own[:, None]  # [k, S]
        x = d.embed(tokens, own)
        states = d.norm(layers(d, d.blocks, x, own, cache, attention(own, slots.shape[0], sees)))
        return states, d.output(states)

    return forward


def rows_of(d: Decoder, limit: int) -> Program:
    """`forward_of` for the rows of a batch: tokens [R, K] behind `lengths` [R] cached ones, of at most `limit`
    positions. -> states [R, K, d], logits [R, K, V]"""

    def forward(tokens: Tensor, lengths: Tensor, slots: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        rows, most = tokens.shape
        own = lengths[:, None] + torch.arange(most, device=d.device)  # [R, K]
        index = (
            torch.arange(rows, device=d.device)[:, None].expand(-1, most).reshape(-1),
            torch.arange(most, device=d.device).expand(rows, -1).reshape(-1),
        )
        positions = own.clamp(max=limit - 1).flatten()  # of padding there may be more
        attend = attention_of_rows(index, own.flatten(), True, slots <= own[..., None])
        x = layers(d, d.blocks, d.embed(tokens.flatten(), positions), positions, cache, attend)
        states = d.norm(x)
        return states.view(rows, most, -1), d.output(states).view(rows, most, -1)

    return forward


def guesses_of(d: Decoder, vocabulary: int, law: Law, k: int, n: int) -> Program:
    """A draft's n guesses as one function: a forward over the last k tokens of the text, then n - 1 over the token just
    drawn. (tokens [k], start, uniform numbers [n], slots, cache) -> tokens [n], the laws they were drawn from [n, V].
    """
    forward = forward_of(d)

    def guesses(tokens: Tensor, start: Tensor, uniform: Tensor, slots: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        drawn, laws = [], []
        for i in range(n):
            logits = forward(tokens, start + (k + i - 1 if i else 0), slots, cache)[1]
            laws.append(law(logits[-1:, :vocabulary]))
            tokens = invert(laws[-1], uniform[i : i + 1])
            drawn.append(tokens)
        return torch.cat(drawn), torch.cat(laws)

    return guesses


# Before each call torch.compile checks its guards: whether shapes, strides and globals are those it compiled for. Here
# `Programs.run` finds a program by shape and cache and makes all inputs alike, and the globals do not change. So the
# guards are left out: a tenth of a one-token forward's time.
UNASKED = {
    "size_asserts": False,
    "alignment_asserts": False,
    "scalar_asserts": False,
    "guard_filter_fn": lambda guards: [False] * len(guards),
}


def fused(program: Program) -> Program:
    """The program through torch.compile, whose work is kept on disk for the next process."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(pooch.os_cache("speclib")) / "programs"))
    # of one function torch makes eight programs, and no more
    own = FunctionType(program.__code__.replace(), program.__globals__, closure=program.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True, options=UNASKED)


def graphed(program: Program, inputs: tuple[Tensor, ...], *place: Tensor | Cache) -> Program:
    """The program as a CUDA graph over this very cache.

    Not by torch.compile(mode="reduce-overhead"): on an H200 in float32 both gave the eager texts, but that took 60 s
    for 8 programs of a small model and had not made those of SmolLM2 for two widths in 150 s; this made 47 programs in
    11 s.
    """
    tensors, form = tree_flatten((*(value.clone() for value in (*inputs, *place[:1])), *place[1:]))
    graph = torch.cuda.make_graphed_callables(lambda *now: program(*tree_unflatten(now, form)), tuple(tensors))
    return lambda *now: tree_map(torch.clone, graph(*tree_leaves(now)))  # the next replay writes into the same place


class CompiledContext(FastContext):
    """A `FastContext` that runs compiled programs: for a forward over an announced number of tokens, and for the n
    guesses of a round together.
    """

    usual: int | None = None  # guesses asked for in the first round; there are fewer only near the end

    def __init__(self, language_model, prompt: Sequence[int] = (), batch=None):
        self.programs: Programs = language_model.programs
        super().__init__(language_model, prompt, batch)

    def _empty_cache(self) -> Cache | None:
        if self.batch:
            return super()._empty_cache()
        self._capacity = min(ROOM, self.language_model.context_length or ROOM)
        return self._allocate()

    @torch.inference_mode()  # as in every forward: a program looks at how its tensors were made
    def _allocate(self) -> Cache:
        d, free = self.decoder, self.programs.stores.setdefault(self.capacity, [])
        # zeros, for masked slots are multiplied too and 0 * NaN is NaN; room to spare, so that what is looked at is
        # always a part, of which one program can be made
        shape = len(d.blocks), 2, d.heads, self.capacity + 2 * STEP, d.size
        store = free.pop() if free else torch.zeros(shape, dtype=d.dtype, device=d.device)
        weakref.finalize(self, free.append, store)
        self._slots = torch.arange(store.shape[3], device=d.device)
        return [(layer[0], layer[1]) for layer in store]

    def _looked_at(self, end: int) -> Tensor:
        """The slots of a cache with room for `end` tokens, up to a whole number of steps."""
        self.make_room(end)
        slots = self._slots[: -(-end // STEP) * STEP]
        torch._dynamo.mark_dynamic(slots, 0)  # its size may change
        return slots

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        k, programs = tokens.shape[1], self.programs
        if parents is not None or self.batch or not programs.reads(k):
            return super()._forward(tokens, keep, parents)
        title, slots = f"{k} token{'s' * (k > 1)}", self._looked_at(self.length + k)
        inputs = tokens[0], programs.number(self.length)
        states, logits = programs.run(
            "forward", (k,), title, lambda: forward_of(self.decoder), inputs, slots, self.cache
        )
        if self.wants_hidden:
            self.hidden = states[None]
        return logits[-keep:][None]

    def _shared(self, rows: int, capacity: int) -> Slots:
        # whole blocks, so that texts of about one length share programs, and room to spare as above
        return super()._shared(rows, -(-capacity // FIRST) * FIRST + 2 * STEP)

    @staticmethod
    def forward_rows(reads: Sequence) -> list[tuple[Tensor, Tensor]]:
        """As `FastContext.forward_rows`, by one program for all rows of the cache, padded to the most tokens of any:
        what changes from round to round, lengths and what is seen, is data."""
        context, slots = reads[0].context, reads[0].context.slots
        d, programs, most = context.decoder, context.programs, max(read.count for read in reads)
        if not programs.reads(most) or any(read.parents is not None for read in reads):
            return FastContext.forward_rows(reads)
        slots.prune()
        lengths = [member().length for member in slots.members] + [0] * (slots.rows - len(slots.members))
        end = max(lengths) + most
        slots.make_room(end + 2 * STEP)
        tokens = torch.zeros(slots.rows, most, dtype=torch.long, device=d.device)
        for read in reads:
            tokens[read.context.row, : read.count] = read.tokens[0]
        seen = torch.arange(-(-end // STEP) * STEP, device=d.device)
        torch._dynamo.mark_dynamic(seen, 0)
        limit = context.language_model.context_length or slots.capacity
        title = f"{most} token{'s' * (most > 1)} of {slots.rows} texts"
        inputs = tokens, torch.tensor(lengths, device=d.device)
        states, logits = programs.run(
            "forward", (slots.rows, most), title, lambda: rows_of(d, limit), inputs, seen, slots.layers
        )
        return [
            (logits[None, row, read.count - read.kept : read.count], states[None, row, : read.count])
            for read in reads
            for row in [read.context.row]
        ]

    def uniform(self, n: int, how: Drawing) -> Callable[[int, int], Tensor] | None:
        """Where the numbers of n guesses by one program come from; None if they are to be made one by one: where chance
        is no sequence of uniform numbers, where nothing compiles, and near the end, where there are fewer than usual.
        """
        self.usual = self.usual or n
        at_once = how.goes_on is None and n == self.usual and "guesses" not in self.programs.broken
        return getattr(how.draw, "uniform", None) if at_once else None

    def guesses(self, text: Sequence[int], n: int, how: Drawing) -> Guesses:
        programs, start, end = self.programs, len(text) - NEW, len(text) + n - 1
        short = programs.graphs or len(self.decoder.blocks) * n <= DEEPEST
        # the rows of a batch draft together, one token of each after the other
        fits = 0 <= start <= self.length and short and not self.wants_hidden and not self.batch
        uniform = self.uniform(n, how)
        if fits and uniform:
            with torch.inference_mode():
                tokens = torch.tensor(text[start:], device=self.decoder.device)
                k, vocabulary = len(tokens), self.language_model.vocabulary
                drawn = programs.run(
                    "guesses",
                    (k, n, how.settings),
                    f"{n} guess{'es' * (n > 1)}",
                    lambda: guesses_of(self.decoder, vocabulary, how.law, k, n),
                    (tokens, programs.number(start), uniform(n, 1)),
                    self._looked_at(end),
                    self.cache,
                )
            self._latest, self.length = start, end
            return drawn
        if n == self.usual:
            self.language_model.announce((1, 2))  # after a full acceptance, two tokens are new to it
        return (yield from super().guesses(text, n, how))
