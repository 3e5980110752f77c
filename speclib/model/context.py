"""One text that a model decodes, and the key-value cache of what the model has read of it.

Speculative sampling asks for three things: read several tokens in one forward (`extend`), forget the rejected ones
(`rollback`), and, when the guesses form a tree, keep one branch of it (`retain`).
"""

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from ..errors import InvalidArgument, UnsupportedModel
from ..law.distributions import Draw

# tokens of a prompt that one forward reads: its masks [PIECE, L] and its states, and the logits [PIECE, V] of models
# that know no others, are what a long prompt would fill the memory with
PIECE = 512


@dataclass(frozen=True)
class Read:
    """A forward that is asked for: what `Context.extend` takes. states, position: see `drafters.eagle`."""

    context: "Context"
    tokens: Tensor  # [1, k]
    keep: int | None = None
    parents: Sequence[int] | None = None
    states: Tensor | None = None
    position: int | None = None

    @property
    def count(self) -> int:
        return self.tokens.shape[1]

    @property
    def kept(self) -> int:
        return self.keep or self.count

    def alone(self) -> Tensor:
        """The forward itself: logits [1, keep, V]."""
        if self.states is None:
            return self.context.extend(self.tokens, self.keep, self.parents)
        return self.context.read(self)

    def layout(self) -> tuple[np.ndarray, np.ndarray]:
        """(who sees whom of the new tokens [k, k], depth of each [k])."""
        if self.parents is None:
            return np.tri(self.count, dtype=bool), np.arange(self.count)
        sees, depths = ancestry(self.parents)
        return sees.numpy(), depths.numpy()


@dataclass(frozen=True)
class Drawing:
    """How logits become guesses.

    law: logits [k, V], and with processors the guesses before them -> probabilities [k, V]; draw: a token from these;
    settings: all that `law` depends on, so that texts with the same are drawn for at once. goes_on: asked before each
    guess but the first about the distribution [V] that it would be drawn from; None where nobody need be asked.
    """

    law: Callable[..., Tensor]
    draw: Draw
    settings: Hashable
    goes_on: Callable[[Tensor], bool] | None = None


@dataclass(frozen=True)
class Guess:
    """A forward that a session asks for. It is sent the logits [1, keep, V], or if it says how to draw, (probabilities
    [1, V], token [1]) of the last."""

    read: Read
    how: Drawing | None = None


Logits = Generator[Guess, Tensor, Tensor]  # one forward handed out -> logits [k, V]
# Forwards handed out one after the other, each answered by what came of it; in the end (tokens [n], what each was drawn
# from [n, V]).
Guesses = Generator[Guess, "Tensor | tuple[Tensor, Tensor]", tuple[Tensor, Tensor]]


class Context:
    """A text in front of a causal model, alone or as a row of `batch`. `length` tokens of it are in the cache.

    prompt: what the model is given; begin: the tokens with which the text starts (here the prompt itself). hidden: with
    `wants_hidden` set, the last layer's output at each token of the latest forward that is still kept.
    """

    decoder = None  # of transformers' own forward there is none

    def __init__(self, language_model, prompt: Sequence[int] = (), batch=None):
        self.language_model, self.batch, self.device = language_model, batch, language_model.device
        self.prompt, self.begin = list(prompt), list(prompt)
        self.slots, self.row = None, 0  # the cache that the texts of a batch share, and this text's row of it
        self.length = 0
        self.wants_hidden = self.trees_tried = False
        self.hidden: Tensor | None = None  # [1, k, d]
        self._latest = 0  # where the latest forward began
        self._cache = self._empty_cache()

    def beside(self, language_model) -> "Context":
        """The same prompt in front of another model, in the same batch."""
        return language_model.context(self.prompt, self.batch)

    @torch.inference_mode()
    def extend(self, tokens: Tensor, keep: int | None = None, parents: Sequence[int] | None = None) -> Tensor:
        """Appends tokens [1, k] and returns the logits after each [1, k, V], or after the last `keep` of them.

        One forward for all k tokens: this is what makes checking guesses cheap. With `parents` the tokens form a tree:
        token i follows token parents[i] < i of this same call (-1: it follows the text), and sees only the text and its
        own ancestors. A chain of which the last logits alone are kept, as a prompt is, is read in pieces of PIECE
        tokens; what the call leaves behind is the same.
        """
        if parents is not None:
            self.try_trees()
        start, states = self.length, []
        for piece in tokens.split(PIECE if keep == 1 and parents is None else tokens.shape[1], 1):
            logits = self._extend(piece, keep, parents)
            states.append(self.hidden)
        self._latest = start
        if self.wants_hidden and len(states) > 1:
            self.hidden = torch.cat(states, 1)
        return logits

    def try_trees(self) -> None:
        """`LanguageModel.try_trees`, once a text: to see that the weights are those that were tried takes as long as
        some of the layers."""
        if not self.trees_tried:
            self.language_model.try_trees(None if self.batch else type(self))
            self.trees_tried = True

    def _extend(self, tokens: Tensor, keep: int | None, parents: Sequence[int] | None) -> Tensor:
        return self.entered(self._forward(tokens, keep or tokens.shape[1], parents), tokens.shape[1])

    def entered(self, logits: Tensor, count: int) -> Tensor:
        """Takes `count` tokens as read, by a forward that gave these logits. -> logits of what may be written"""
        self._latest = self.length
        self.length += count
        logits, unwritten = logits[..., : self.language_model.vocabulary], self.language_model.unwritten
        if unwritten is None:
            return logits
        return logits.index_fill(-1, torch.tensor([unwritten], device=logits.device), -torch.inf)

    def guesses(self, text: Sequence[int], n: int, how: Drawing) -> Guesses:
        """Reads what it has not read of the text, and then draws at most n tokens of this model's own, all but the last
        of which it reads too. A backend that makes programs of it overrides this.
        """
        new = torch.tensor([text[self.length :]], device=self.device)
        return (yield from self._one_by_one(Read(self, new, keep=1), n, how))

    def _one_by_one(self, read: Read, n: int, how: Drawing) -> Guesses:
        tokens, laws = [], []
        for i in range(n):
            if how.goes_on is None:
                q, token = yield Guess(read, how)
            else:
                logits = yield Guess(read)
                q = how.law(logits[:, -1], lambda: [[int(token) for token in tokens]])  # [1, V]
                if i and not how.goes_on(q[0]):
                    break
                token = how.draw(q)
            tokens.append(token)
            laws.append(q)
            read = self._behind(read, token)
        return torch.cat(tokens), torch.cat(laws)

    def _behind(self, read: Read, token: Tensor) -> Read:
        """What is read after `read`, with the token [1] that was drawn there."""
        return Read(self, token[None], keep=1)

    def rollback(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises InvalidArgument if there are not as many."""
        if not 0 <= length <= self.length:
            raise InvalidArgument(f"cannot roll back to {length} tokens: the context holds {self.length}")
        if length < self.length:
            self._remove(self.length - length)
            self.length = length
            if self.hidden is not None:
                self.hidden = self.hidden[:, : max(0, length - self._latest)]

    def retain(self, path: Sequence[int]) -> None:
        """Of the tokens of the latest `extend`, forgets all but those at the places in `path`, which become
        consecutive.
        """
        start = self._latest
        if list(path) != list(range(len(path))):
            with torch.inference_mode():
                self._move([start + place for place in path], start)
            if self.hidden is not None:
                self.hidden = self.hidden[:, list(path)]
        self.rollback(start + len(path))

    def last_hidden(self) -> Tensor:
        """The last layer's output at the last token in the cache. [d]"""
        return self.hidden[0, -1]

    def _empty_cache(self):
        return DynamicCache()  # of whole layers, also where a window as long as the context would make rolling ones

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        tree = {} if parents is None else self._tree(parents)
        out = self.language_model.model(
            input_ids=tokens,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
            return_dict=True,
            output_hidden_states=self.wants_hidden,
            **tree,
        )
        if self.wants_hidden:
            self.hidden = out.hidden_states[-1]
        return out.logits

    def _tree(self, parents: Sequence[int]) -> dict[str, Tensor]:
        """A mask that shows each token its ancestors, and positions that follow depth."""
        sees, depths = ancestry(parents)
        device, dtype = self.device, self.language_model.dtype
        mask = torch.zeros(len(parents), self.length + len(parents), dtype=dtype)
        mask[:, self.length :].masked_fill_(~sees, torch.finfo(dtype).min)
        return {"attention_mask": mask[None, None].to(device), "position_ids": (depths + self.length)[None].to(device)}

    def _remove(self, count: int) -> None:
        self._cache.crop(-count)  # transformers counts what to remove, as a negative number

    def _stores(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [..., S, D] of each layer, of this text."""
        return [(layer.keys, layer.values) for layer in self._cache.layers]

    def _move(self, places: list[int], start: int) -> None:
        index = torch.tensor(places, device=self.device)
        for stores in self._stores():
            for store in stores:
                store[..., start : start + len(places), :] = store[..., index, :]


class EncoderDecoderContext(Context):
    """A text that the decoder of an encoder-decoder model writes. The encoder reads the prompt, once."""

    @torch.inference_mode()
    def __init__(self, language_model, prompt: Sequence[int] = (), batch=None):
        super().__init__(language_model, prompt)  # row by row: relative positions take no position ids
        self.begin = [start_token(language_model)]
        ids = torch.tensor([self.prompt], device=language_model.device)
        self._encoded = language_model.model.get_encoder()(ids)

    def _empty_cache(self):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        if parents is not None:
            raise UnsupportedModel(
                f"{self.language_model.name} is an encoder-decoder model; trees of guesses need position ids, which "
                f"it has not"
            )
        out = self.language_model.model(
            decoder_input_ids=tokens,
            encoder_outputs=self._encoded,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=self.wants_hidden,
        )
        if self.wants_hidden:
            self.hidden = out.decoder_hidden_states[-1]
        return out.logits[:, -keep:]


def start_token(language_model) -> int:
    """The token with which the decoder's text starts, where transformers' generate() looks for it. Raises
    UnsupportedModel if it is nowhere."""
    model = language_model.model
    first, generation = "decoder_start_token_id", model.generation_config
    places = [(generation, first), (generation, "bos_token_id")]
    places += [(model.config, first), (getattr(model.config, "decoder", None), first)]
    for place, name in places:
        found = ids(getattr(place, name, None))
        if len(found) == 1:
            return found[0]
    raise UnsupportedModel(
        f"nothing says with which token a text of {language_model.name} starts; set model.generation_config.{first}"
    )


def ids(value) -> list[int]:
    """Token ids that a configuration gives as None, a number, a list, or a tensor: without repeats, in their order."""
    if value is None:
        return []
    return list(dict.fromkeys(torch.as_tensor(value).flatten().tolist()))


def ancestry(parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(who sees whom [k, k], itself included; depth of each token [k]) in a tree given by each token's parent, -1 for
    none.

    Raises InvalidArgument if a parent does not come before its child.
    """
    k = len(parents)
    sees, depths = torch.eye(k, dtype=torch.bool), torch.zeros(k, dtype=torch.long)
    for child, parent in enumerate(parents):
        if not -1 <= parent < child:
            raise InvalidArgument(f"token {child} of a tree has parent {parent}; parents come before their children")
        if parent >= 0:
            sees[child] |= sees[parent]
            depths[child] = depths[parent] + 1
    return sees, depths
