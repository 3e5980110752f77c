"""A ragged batch: texts of different lengths that one model reads in one forward.

Its rows read different numbers of tokens, and end at different times. One key-value cache holds them all, [R, G, S, D]
in each layer: row r has its first `length` slots filled, token j of a forward goes to slot length + j, attends to the
slots below its row's length and to its own ancestors among the new ones, and has position length + depth. So rollback
lowers a number, nothing is padded on the left, and a row that has ended makes room for another. A row without anything
to read is padded: what it writes lies behind its length, where the mask hides it.
"""

from collections.abc import Callable, Sequence
from weakref import ref

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .context import Context, Read

FIRST = 256  # slots that a cache has at first


def together(reads: Sequence[Read]) -> list[Tensor]:
    """Logits [1, keep, V] of each; those whose texts lie in one cache, in front of one decoder, by one forward."""
    groups: dict[tuple, list[int]] = {}
    for i, read in enumerate(reads):
        slots = read.context.slots
        groups.setdefault((id(slots), id(read.context.decoder)) if slots else (i,), []).append(i)
    answers: list[Tensor | None] = [None] * len(reads)
    for places in groups.values():
        if len(places) == 1:
            answers[places[0]] = reads[places[0]].alone()
            continue
        group = [reads[i] for i in places]
        for read in group:
            if read.parents is not None:
                read.context.try_trees()
        with torch.inference_mode():
            outputs = type(group[0].context).forward_rows(group)
        for i, (logits, hidden) in zip(places, outputs, strict=True):
            context = reads[i].context
            if context.wants_hidden:
                context.hidden = hidden
            answers[i] = context.entered(logits, reads[i].count)
    return answers


class Slots:
    """The key-value cache that the rows of a batch share: `layers` holds keys and values [R, G, S, D] of each."""

    def __init__(self, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.members: list[ref[Context]] = []  # the text of each row in use, the first rows

    def add(self, context: Context) -> None:
        """Gives a text a row. A text that nobody holds any more has none."""
        self.prune()
        if len(self.members) == self.rows:
            self._resize(2 * self.rows, self.capacity)
        context.row = len(self.members)
        self.members.append(ref(context))

    def prune(self) -> None:
        """Rows whose text has ended leave; the last row takes the place."""
        for row in reversed(range(len(self.members))):
            if self.members[row]() is None:
                last = self.members.pop()
                if row < len(self.members):
                    self.members[row], context = last, last()
                    context.row = row
                    for stores in self.layers:
                        for store in stores:
                            store[row] = store[len(self.members)]

    def make_room(self, end: int) -> None:
        """At least `end` slots a row."""
        if end > self.capacity:
            self._resize(self.rows, max(end, 2 * self.capacity))

    def row(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [G, S, D] of one row in each layer: parts of the whole."""
        return [(keys[row], values[row]) for keys, values in self.layers]

    def empty(self, like: Tensor) -> Tensor:
        """Zeros [R, G, S, D] for keys or values such as these [..., G, k, D]: what is masked is multiplied too."""
        return like.new_zeros(self.rows, like.shape[-3], self.capacity, like.shape[-1])

    def _resize(self, rows: int, capacity: int) -> None:
        old, self.rows, self.capacity, self.layers = self.layers, rows, capacity, []
        for stores in old:
            new = tuple(self.empty(store) for store in stores)
            for fresh, store in zip(new, stores, strict=True):
                fresh[: store.shape[0], :, : store.shape[2]] = store
            self.layers.append(new)


class Batch:
    """Texts that are decoded together: a cache for each model, or each layer of one's own, that reads them.

    rows: texts at a time; capacity: slots for the longest of them, as far as it is known.
    """

    def __init__(self, rows: int, capacity: int = FIRST):
        self.rows, self.capacity = rows, capacity
        self._slots: dict[int, tuple[object, Slots]] = {}

    def slots(self, model: object, make: Callable[[int, int], Slots]) -> Slots:
        """The cache of `model`, made with room for `rows` texts of `capacity` tokens at its first use."""
        if id(model) not in self._slots:
            self._slots[id(model)] = model, make(self.rows, self.capacity)
        return self._slots[id(model)][1]


class SlotLayer(CacheLayerMixin):
    """One layer of a `Slots` cache, as transformers' attention asks for it."""

    is_sliding = False

    def __init__(self, slots: "EagerSlots", index: int):
        super().__init__()
        self.slots, self.index = slots, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the layer's place is made when its first keys come."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Enters keys and values [B, G, K, D] where `slots` says, and returns all that may be seen [B, G, seen, D]."""
        slots = self.slots
        if len(slots.layers) == self.index:
            slots.layers.append((slots.empty(key_states), slots.empty(value_states)))
        rows, at, seen = slots.place
        found = []
        for store, new in zip(slots.layers[self.index], (key_states, value_states), strict=True):
            store[torch.arange(rows.start, rows.stop, device=at.device)[:, None], :, at] = new.transpose(1, 2)
            found.append(store[rows, :, :seen])
        return tuple(found)

    def get_seq_length(self) -> int:
        return self.slots.place[2] - self.slots.place[1].shape[1]

    def get_mask_sizes(self, query_length: int, *args) -> tuple[int, int]:
        return self.slots.place[2], 0

    def get_max_length(self) -> int:
        return -1  # no limit

    get_max_cache_shape = get_max_length  # as it was called before


class EagerSlots(Slots):
    """`Slots` in front of transformers' own forward."""

    def __init__(self, rows: int, capacity: int, layers: int):
        super().__init__(rows, capacity)
        self.place: tuple[slice, Tensor, int]  # of the forward at hand: its rows, their slots [B, K], how many are seen
        self.cache = Cache(layers=[SlotLayer(self, index) for index in range(layers)])


class RowContext(Context):
    """A text in a batch, in front of transformers' own forward."""

    def _empty_cache(self) -> None:
        layers = self.language_model.model.config.get_text_config(decoder=True).num_hidden_layers
        self.slots = self.batch.slots(self.language_model, lambda rows, capacity: EagerSlots(rows, capacity, layers))
        self.slots.add(self)

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        [(logits, hidden)] = self.forward_rows([Read(self, tokens, keep, parents)])
        if self.wants_hidden:
            self.hidden = hidden
        return logits

    @staticmethod
    def forward_rows(reads: Sequence[Read]) -> list[tuple[Tensor, Tensor | None]]:
        """(logits [1, keep, V], last states [1, k, d] or None) of each, by one forward over all rows of the cache."""
        model, slots = reads[0].context.language_model, reads[0].context.slots
        slots.prune()
        first, rows = (reads[0].context.row, 1) if len(reads) == 1 else (0, len(slots.members))
        contexts = [member() for member in slots.members[first : first + rows]]
        lengths = np.array([context.length for context in contexts])
        most = max(read.count for read in reads)  # K
        seen = max(read.context.length + read.count for read in reads)
        slots.make_room(int(lengths.max()) + most)
        tokens = torch.zeros(rows, most, dtype=torch.long, device=model.device)
        at = lengths[:, None] + np.arange(most)  # [B, K]
        positions, mask = at.copy(), np.zeros((rows, most, seen), dtype=bool)
        mask[:, :, 0] = True  # padding attends to one slot, or its softmax would be of nothing
        for read in reads:  # at the end of each row, so that the last logits are those asked for; padding stands before
            row, start, k = read.context.row - first, read.context.length, read.count
            sees, depths = read.layout()
            tokens[row, most - k :] = read.tokens[0]
            at[row] = [*range(start + k, start + most), *range(start, start + k)]
            positions[row] = [*([start] * (most - k)), *(start + depths)]
            mask[row, most - k :, :start] = True
            mask[row, most - k :, start : start + k] = sees
        at = torch.from_numpy(at).to(model.device)
        slots.place = slice(first, first + rows), at, seen
        limit = model.context_length or seen
        shown = torch.zeros(mask.shape, dtype=model.dtype).masked_fill_(
            ~torch.from_numpy(mask), torch.finfo(model.dtype).min
        )
        wants = any(read.context.wants_hidden for read in reads)
        out = model.model(
            input_ids=tokens,
            attention_mask=shown[:, None].to(model.device),
            position_ids=torch.from_numpy(positions.clip(max=limit - 1)).to(model.device),
            past_key_values=slots.cache,
            use_cache=True,
            logits_to_keep=max(read.kept for read in reads),
            return_dict=True,
            output_hidden_states=wants,
        )
        rows_of = [read.context.row - first for read in reads]
        return [
            (
                out.logits[row : row + 1, -read.kept :],
                out.hidden_states[-1][row : row + 1, -read.count :] if wants else None,
            )
            for row, read in zip(rows_of, reads, strict=True)
        ]

    def _remove(self, count: int) -> None:
        pass  # what lies behind `length` is overwritten before it is seen

    def _stores(self) -> list[tuple[Tensor, Tensor]]:
        return self.slots.row(self.row)
