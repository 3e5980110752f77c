"""All guesses by one pass: a mask for each place ahead, and one layer that shows every mask what the target thought of
the text.

Eagle guesses in a row, a pass for each. Here the places ahead stand side by side and see each other, but no guess sees
what was drawn before it: what comes out are marginals, whose product is the law of independent draws, far from the
target's joint one wherever that leaves anything to chance. A first-order head mends the nearest part of it: it adds to
each guess's logits what the token before it makes likely, so that guesses are drawn one after the other though the
layer ran once. Sources: DFlash (2602.06036); the head is the idea of DSpark (2607.05147).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig

from .. import embedded
from ..errors import IncompatibleModels, InvalidArgument, ModelLoadError
from ..files import reading
from ..law.distributions import Draw, Sampling
from ..model import fast
from ..model.batch import Batch
from ..model.context import Context, Drawing, Guess, Guesses, Read
from ..model.fast import Decoder
from .base import Drafter, Kept, placed
from .eagle import Eagle, EagleContext, EagleSession, decoder


class Block(Eagle):
    """Eagle's entries and layer, and behind the last entry `count` masks: mask i stands i + 1 places on, starts as that
    entry plus a vector of its own, and says what comes i + 1 tokens after the text.

    config: as eagle's, with the target's `vocab_size` if there is a head; rank: of the first-order head, or 0 for none;
    kept: the token ids [K] that can be guessed, or None for all V.
    """

    def __init__(self, config: LlamaConfig, count: int, rank: int = 0, kept: Tensor | None = None):
        super().__init__(config, kept)
        self.count, self.rank = count, rank
        self.masks = nn.Parameter(torch.randn(count, config.hidden_size) / 10)
        if rank:  # adds after @ before[token]: nothing at first
            self.before = nn.Parameter(torch.zeros(config.vocab_size, rank))  # A
            guessed = config.vocab_size if kept is None else len(kept)
            self.after = nn.Parameter(torch.randn(guessed, rank) / rank**0.5)  # B

    def masked(self, entries: Tensor) -> Tensor:
        """What the masks behind entries [..., d] start as. -> [..., count, d]"""
        return entries.unsqueeze(-2) + self.masks

    def first_order(self, tokens: Tensor) -> Tensor:
        """What tokens [...] add to the logits of the guesses behind them. -> [..., K]"""
        return linear(self.before[tokens], self.after)


def load_block() -> Block:
    """The one that was trained for the embedded target. Raises ModelLoadError if it is missing or not what was
    registered.
    """
    return read_block(embedded.fetch("models/block"))


def read_block(folder: Path) -> Block:
    """One from a folder that `python -m speclib train block` wrote, for the embedded target or another."""
    with reading(
        folder, "make it again with: python -m speclib train block, --target NAME for another", ModelLoadError
    ):
        tensors = load_file(Path(folder) / "model.safetensors")
        rank = tensors["before"].shape[1] if "before" in tensors else 0
        block = Block(LlamaConfig.from_pretrained(folder), len(tensors["masks"]), rank, tensors.get("kept"))
        block.load_state_dict(tensors)
    return block.eval().requires_grad_(False)


class BlockDrafter(Drafter):
    """Guesses a chain of at most `block.count` tokens by one pass.

    claim: "marginal" draws each guess and says from what; "point" takes the likeliest token as a point mass, which is
    kept with the target's own probability of it. Both keep the law. Raises InvalidArgument for another claim, and at
    start IncompatibleModels for a target of another width or vocabulary.
    """

    def __init__(self, block: Block, claim: str = "marginal"):
        if claim not in ("marginal", "point"):
            raise InvalidArgument(f"claim must be 'marginal' or 'point', not {claim!r}")
        self.block, self.claim = block, claim
        self.kept = Kept(self._made, block)

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> EagleSession:
        target = context.language_model
        context.wants_hidden = True
        own, made = self.kept(target)
        claimed = replace(sampling, temperature=0) if self.claim == "point" else sampling
        return EagleSession(context, BlockContext(target, made, own, context.batch, claimed), sampling, draw)

    def _made(self, target) -> tuple[Block, Decoder]:
        own = placed(self.block, target.device, target.dtype)
        return own, decoder_of(own, target)

    def lengths(self, n: int) -> set[int]:
        return {min(n, self.block.count)}


def decoder_of(block: Block, target) -> Decoder:
    """Eagle's decoder, with rotary tables for the masks behind the longest text."""
    if block.rank and block.config.vocab_size < target.vocabulary:
        raise IncompatibleModels(
            f"this block was trained for a vocabulary of {block.config.vocab_size} tokens, but {target.name} has "
            f"{target.vocabulary}"
        )
    longest = target.context_length or block.config.max_position_embeddings
    rotary = fast.rotary_tables(block.rotary, longest + block.count, target.dtype, target.device)
    return replace(decoder(block, target), rotary=rotary)


class BlockRead(Read):
    """New entries and `keep` masks behind them, as what goes into the layer: states [k, d]."""

    def layout(self) -> tuple[np.ndarray, np.ndarray]:
        sees, depths = super().layout()
        sees[-self.keep :] = True  # masks see each other
        return sees, depths


class BlockContext(EagleContext):
    """What the block has read: eagle's entries, and behind them masks, which the next entries overwrite. claimed: how
    guesses are drawn.
    """

    def __init__(self, language_model, decoder: Decoder, block: Block, batch: Batch | None, claimed: Sampling):
        super().__init__(language_model, decoder, block, batch)
        self.wants_hidden, self.claimed = False, claimed

    def embedded(self, tokens: Tensor, positions: Tensor, states: Tensor) -> Tensor:
        return states  # made in `entering`

    def entering(self, states: Tensor, tokens: Tensor, position: int) -> BlockRead:
        """What the target has thought since, and the masks behind it."""
        x = self.eagle.joined(states, self.decoder.embed(tokens, tokens))
        x = torch.cat([x, self.eagle.masked(x[-1])])
        return BlockRead(self, tokens.new_zeros(1, len(x)), keep=self.eagle.count, states=x, position=position)

    def guesses(self, new: tuple[Tensor, Tensor, int], n: int, how: Drawing) -> Guesses:
        block = self.eagle
        logits = (yield Guess(self.entering(*new)))[0, :n]  # [n, V]: fewer than asked for if there are fewer masks
        if how.goes_on is None and not block.rank:
            q = self.claimed.probabilities(logits, check=False)
            return how.draw(q), q
        tokens, probs = [new[1][-1:]], []

        def guessed() -> list[list[int]]:
            return [[int(token) for token in tokens[1:]]]

        for i in range(len(logits)):
            row = logits[i : i + 1]
            if block.rank:
                added = block.first_order(tokens[-1])
                row = row + added[:, : row.shape[1]] if block.kept is None else row.index_add(1, block.kept, added)
            if i and how.goes_on and not how.goes_on(how.law(row, guessed)[0]):
                break
            probs.append(self.claimed.probabilities(row, check=False, guessed=guessed))
            tokens.append(how.draw(probs[-1]))
        return torch.cat(tokens[1:]), torch.cat(probs)
