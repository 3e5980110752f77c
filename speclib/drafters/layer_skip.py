"""Layer skipping: the target drafts with its own first layers, and verifies with all of them.

The draft is the target cut off after `layers` blocks, with the target's own output matrix on top. It needs no memory
for weights, and its keys and values are those that the target's first layers would compute anyway. Sources: Draft &
Verify (2309.08168), LayerSkip (2404.16710).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from .. import embedded
from ..errors import IncompatibleModels, InvalidArgument, ModelLoadError, UnsupportedModel
from ..files import reading
from ..law.distributions import Draw, Sampling
from ..model import fast
from ..model.context import Context
from ..model.fast import Decoder, FastContext
from .base import Drafter, Drafting, Kept, always, placed
from .model import ModelSession


class Exits(nn.Module):
    """Translators from the state after some layers into the state that the output matrix expects: x + W norm(x) + b,
    one per layer.

    The tuned lens of Belrose et al. (2303.08112), in residual form. Untrained (zeros) they change nothing.
    """

    def __init__(self, layers: tuple[int, ...], width: int):
        super().__init__()
        self.layers = tuple(layers)
        self.weight = nn.Parameter(torch.zeros(len(layers), width, width))
        self.bias = nn.Parameter(torch.zeros(len(layers), width))

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """x [..., d] after `layer` blocks -> [..., d]. Raises InvalidArgument for a layer without a translator."""
        if layer not in self.layers:
            raise InvalidArgument(
                f"there is no trained exit after layer {layer}, only after {', '.join(map(str, self.layers))}"
            )
        k = self.layers.index(layer)
        return x + linear(rms_norm(x, x.shape[-1:]), self.weight[k], self.bias[k])


def load_exits(name: str = "exits") -> Exits:
    """The embedded target's trained exits. Raises ModelLoadError if they are missing or not what was registered."""
    return read_exits(embedded.fetch(f"models/{name}"))


def read_exits(folder: Path) -> Exits:
    """Exits from a folder that `python -m speclib train exits` wrote."""
    with reading(
        folder, "make them again with: python -m speclib train exits, --target NAME for another", ModelLoadError
    ):
        tensors = load_file(Path(folder) / "model.safetensors")
        exits = Exits(tuple(tensors.pop("layers").tolist()), tensors["weight"].shape[-1])
        exits.load_state_dict(tensors)
    return exits.eval().requires_grad_(False)


class LayerSkipDrafter(Drafter):
    """Drafts with the target's own first `layers` blocks, optionally through a trained exit.

    On the fast backend the draft writes into the target's cache, behind the text; the check overwrites it. On the eager
    one it keeps a cache of its own. At start it raises InvalidArgument unless 1 <= layers <= the target's, and
    UnsupportedModel for an architecture that `fast` cannot read.
    """

    def __init__(self, layers: int, exits: Exits | None = None):
        if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
            raise InvalidArgument(f"layers must be a whole number >= 1, not {layers!r}")
        if exits is not None and layers not in exits.layers:
            raise InvalidArgument(
                f"there is no trained exit after layer {layers}, only after {', '.join(map(str, exits.layers))}"
            )
        self.layers, self.exits = layers, exits
        self.kept = Kept(self.shortened, exits)

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> ModelSession:
        target = context.language_model
        decoder = self.kept(target)
        reading = (SharedContext if isinstance(context, FastContext) else ShortContext)(context, decoder)
        session = SharedSession if isinstance(reading, SharedContext) else ModelSession
        return session(reading, target.vocabulary, sampling, draw)

    def shortened(self, target) -> Decoder:
        """The target's decoder with the first blocks only, its head behind the exit."""
        if target.encoder_decoder:
            raise UnsupportedModel(
                f"layers can be skipped in Llama-shaped and GPT-2 models, but {target.name} is an encoder-decoder model"
            )
        whole = target.decoder or fast.decoder(target.model)
        if self.layers > len(whole.blocks):
            raise InvalidArgument(
                f"{target.name} has {len(whole.blocks)} layers: it cannot draft with the first {self.layers}"
            )
        if self.exits is None:
            return replace(whole, blocks=whole.blocks[: self.layers])
        width = target.model.get_input_embeddings().weight.shape[1]
        if self.exits.weight.shape[-1] != width:
            raise IncompatibleModels(
                f"the exits were trained for a model of width {self.exits.weight.shape[-1]}, but {target.name} has "
                f"{width}"
            )
        exits = placed(self.exits, target.device, target.dtype)
        return replace(whole, blocks=whole.blocks[: self.layers], norm=lambda x: whole.norm(exits(x, self.layers)))


class ShortContext(FastContext):
    """A text in front of a shortened decoder, with a cache of its own."""

    def __init__(self, target: Context, decoder: Decoder):
        self.target, self.decoder = target, decoder  # and not the language model's
        Context.__init__(self, target.language_model, batch=target.batch)


class SharedContext(ShortContext):
    """The same, with the first layers of the target's cache as its own. What the target has read need not be read
    again.
    """

    def _empty_cache(self) -> None:
        self.slots = self.target.slots

    @property
    def capacity(self) -> int:
        return self.target.capacity

    @property
    def cache(self) -> list[tuple[Tensor, Tensor]]:
        return self.target.cache

    def make_room(self, end: int) -> None:
        self.target.make_room(end)

    @property
    def row(self) -> int:
        return self.target.row

    @row.setter
    def row(self, row: int) -> None:
        """The target's, whatever a new text is given."""

    def follow(self, room: int) -> None:
        """Takes the target's text as read, with room for `room` more tokens: growing later would lose the guesses
        behind the text."""
        self.length = self.target.length
        self.target.make_room(self.length + room)


class SharedSession(ModelSession):
    """Nothing to prepare and nothing to roll back: the target's cache is always in step with the text."""

    def prepare(self, text: list[int]) -> None:
        pass

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        self.context.follow(n + 1)
        return super().drafting(text, n, goes_on)

    def _synchronise(self, text: list[int]) -> None:
        pass
