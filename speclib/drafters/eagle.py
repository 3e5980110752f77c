"""Eagle: a draft of one layer that starts from the target's hidden states.

A draft model has to understand the text by itself. Eagle need not: at each token it is given the target's last hidden
state at the token before, in which all of the target's layers have had their say, beside the token's embedding. From
both its one layer makes a state of its own, and the target's output matrix turns that into logits.

The target's state is known up to the token before the last. Behind the first guess it is not, so there eagle's own
state takes its place, and each further guess stands on less sure ground. After the check the guessed entries of its
cache are dropped and read anew from the target's states.

Sources: EAGLE (2401.15077); training on its own states is from EAGLE-3 (2503.01840).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import embedding, pad, rms_norm
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .. import embedded
from ..errors import IncompatibleModels, ModelLoadError
from ..files import reading
from ..law.distributions import Draw, Sampling, invert
from ..model import fast
from ..model.batch import Batch
from ..model.compiled import Cache, CompiledContext, Law, Program, Programs
from ..model.context import PIECE, Context, Drawing, Guess, Guesses, Logits, Read
from ..model.fast import Decoder, FastContext
from ..model.products import product
from .base import Draft, Drafter, Drafting, Guessed, Kept, ModelledSession, always, drawing, placed

REAL, REAL_SHAPE = "smollm2-eagle", (576, 30, 49_152)  # of the eagle for SmolLM2; width, layers, vocabulary


class Eagle(nn.Module):
    """x = M [state before, embedding], one layer of a Llama over it, and a norm: a state like the target's, one token
    further on.

    config: the layer's shape; its `hidden_size` is the target's. kept: the ids of the tokens that it may guess [K], or
    None for all: most of a large vocabulary is hardly ever written, and its rows cost time at each guess.
    """

    def __init__(self, config: LlamaConfig, kept: Tensor | None = None):
        super().__init__()
        self.config = config
        self.register_buffer("kept", kept)
        self.mix = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)  # M
        self.layer = LlamaDecoderLayer(config, 0)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config)

    def joined(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """The state at each token [..., d] and the embedding of the token behind it [..., d] -> [..., d]."""
        width = states.shape[-1:]
        return self.mix(torch.cat([rms_norm(states, width), rms_norm(embeddings, width)], -1))


def load_eagle(name: str = "eagle") -> Eagle:
    """The one that was trained for the embedded target. Raises ModelLoadError if it is missing or not what was
    registered.
    """
    return read_eagle(embedded.fetch(f"models/{name}"))


def eagle_for(target) -> Eagle | None:
    """The eagle that ships for a target that has the shape of SmolLM2-135M-Instruct (of other weights it would guess
    worse, and the text's law is the target's all the same), or None for any other target.
    """
    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    shape = tuple(getattr(target.model.config, name, None) for name in names)
    return load_eagle(REAL) if shape == REAL_SHAPE and target.vocabulary == shape[2] else None


def read_eagle(folder: Path) -> Eagle:
    """One from a folder that `python -m speclib train eagle` wrote."""
    with reading(folder, "make it again with: python -m speclib train eagle", ModelLoadError):
        tensors = load_file(Path(folder) / "model.safetensors")
        eagle = Eagle(LlamaConfig.from_pretrained(folder), tensors.get("kept"))
        eagle.load_state_dict(tensors)
    return eagle.eval().requires_grad_(False)


class EagleDrafter(Drafter):
    """Guesses a chain with `eagle`. Raises IncompatibleModels at start if it was trained for a target of another
    width.
    """

    def __init__(self, eagle: Eagle):
        self.eagle = eagle
        self.kept = Kept(self._made, eagle)

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "EagleSession":
        target = context.language_model
        context.wants_hidden = True
        own, made, programs = self.kept(target)
        if programs is None or context.batch:
            reading = EagleContext(target, made, own, context.batch)
        else:
            reading = CompiledEagleContext(target, made, own, programs)
        return EagleSession(context, reading, sampling, draw)

    def _made(self, target) -> "tuple[Eagle, Decoder, Programs | None]":
        own = placed(self.eagle, target.device, target.dtype)
        made = decoder(own, target)
        return own, made, Programs(made, "eagle") if target.programs else None


def decoder(eagle: Eagle, target) -> Decoder:
    """Eagle's layer between the target's embedding and output matrices."""
    table = target.model.get_input_embeddings().weight.detach()
    output = target.model.get_output_embeddings().weight.detach()
    config = eagle.config
    if not config.hidden_size == table.shape[1] == output.shape[1]:
        raise IncompatibleModels(
            f"this {type(eagle).__name__.lower()} was trained for a target of width {config.hidden_size}, but "
            f"{target.name} has {output.shape[1]}"
        )
    if eagle.kept is not None and int(eagle.kept.max()) >= target.vocabulary:
        raise IncompatibleModels(
            f"this {type(eagle).__name__.lower()} guesses tokens that {target.name} has not: it was trained for a "
            f"vocabulary of more than {target.vocabulary}"
        )
    rotary = fast.rotary_tables(
        eagle.rotary, target.context_length or config.max_position_embeddings, target.dtype, target.device
    )
    norm, eps = eagle.norm.weight, config.rms_norm_eps
    heads, size = config.num_key_value_heads, eagle.layer.self_attn.head_dim
    return Decoder(
        lambda tokens, _: embedding(tokens, table),
        (fast.llama_block(eagle.layer, config),),
        lambda x: rms_norm(x, norm.shape, norm, eps),
        output_over(output[: target.vocabulary], eagle.kept),
        rotary,
        heads,
        size,
        target.dtype,
        target.device,
    )


def output_over(matrix: Tensor, kept: Tensor | None) -> Callable[[Tensor], Tensor]:
    """States [..., d] -> logits [..., V] by a matrix [V, d]; with `kept` ids [K] by those rows alone, and -inf for the
    others, which are then never guessed: q = 0 there, which every rule allows.
    """
    if kept is None:
        return product(matrix)
    rows, count = product(matrix[kept]), len(matrix)

    def logits(states: Tensor) -> Tensor:
        known = rows(states)
        return known.new_full((*known.shape[:-1], count), -torch.inf).index_copy(-1, kept, known)

    return logits


class EagleContext(FastContext):
    """Eagle's key-value cache. Entry i comes from the state at token i, the target's or in its place eagle's own, and
    from the embedding of token i + 1.
    """

    def __init__(self, language_model, decoder: Decoder, eagle: Eagle, batch: Batch | None = None):
        self.decoder, self.eagle = decoder, eagle
        Context.__init__(self, language_model, batch=batch)
        self.wants_hidden = True

    def embedded(self, tokens: Tensor, positions: Tensor, states: Tensor) -> Tensor:
        return self.eagle.joined(states, self.decoder.embed(tokens, positions))

    def read(self, read: Read) -> Tensor:
        """Appends k entries, a chain or a tree, made of the states [k, d] of a read and the tokens [k] that follow
        them; the first is entry `position` of the text. -> logits [1, kept, V] of the last `kept`.
        """
        d, start, end = self.decoder, self.length, self.length + read.count
        self.make_room(end)
        positions, mask = torch.tensor([read.position], device=d.device), None  # of one entry, as most reads are
        if read.count > 1:
            sees, depths = read.layout()  # of a block the masks see each other
            mask = torch.from_numpy(np.concatenate([np.ones((read.count, start), dtype=bool), sees], 1)).to(d.device)
            positions = torch.from_numpy(depths + read.position).to(d.device)
        x = self.embedded(read.tokens[0], positions, read.states)
        attend = fast.attention(slice(start, end), end, mask)
        states = d.norm(fast.layers(d, d.blocks, x, positions, self.cache, attend))
        if self.wants_hidden:
            self.hidden = states[None]
        return self.entered(d.output(states[-read.kept :])[None], read.count)

    def entering(self, states: Tensor, tokens: Tensor, position: int) -> Read:
        """The request to append these entries, as a session hands it to the loop, which may batch it."""
        return Read(self, tokens[None], keep=1, states=states, position=position)

    def guesses(self, new: tuple[Tensor, Tensor, int], n: int, how: Drawing) -> Guesses:
        """Appends `new` entries (states [k, d], tokens [k], position of the first), then guesses n tokens from there.
        See `Context.guesses`.
        """
        return (yield from self._one_by_one(self.entering(*new), n, how))

    def _behind(self, read: Read, token: Tensor) -> Read:
        return self.entering(self.hidden[0, -1:], token, read.position + read.count)


class CompiledEagleContext(EagleContext, CompiledContext):
    """The same, on the compiled backend."""

    def __init__(self, language_model, decoder: Decoder, eagle: Eagle, programs: Programs):
        self.programs = programs
        super().__init__(language_model, decoder, eagle)

    def guesses(self, new: tuple[Tensor, Tensor, int], n: int, how: Drawing) -> Guesses:
        if uniform := self.uniform(n, how):
            (states, tokens, position), rows = new, n + 1
            # after a round of n guesses there is something new at n + 1 tokens at most: one program reads as many
            if len(tokens) > rows:  # after rounds of another guesser
                self.read(self.entering(states[:-rows], tokens[:-rows], position))
                new = states, tokens, position = states[-rows:], tokens[-rows:], position + len(tokens) - rows
            k = len(tokens)
            padded = pad(states, (0, 0, 0, rows - k)), pad(tokens, (0, rows - k))
            numbers = (self.programs.number(value) for value in (k, self.length, position))
            slots = self._looked_at(self.length + k + rows)
            drawn = self.programs.run(
                "guesses",
                (n, how.settings),
                f"{n} guess{'es' * (n > 1)}",
                lambda: guesses_of(self.decoder, self.eagle, how.law, n),
                (*padded, *numbers, uniform(n, 1)),
                slots,
                self.cache,
            )
            self.length += k + n - 1
            return drawn
        return (yield from super().guesses(new, n, how))


def guesses_of(d: Decoder, eagle: Eagle, law: Law, n: int) -> Program:
    """Eagle's n guesses as one function, over n + 1 new entries of which the first k count: after a round of n guesses
    at most n + 1 tokens are new, so one program serves, and the rest is padding that nothing sees.

    (states [n+1, d], tokens [n+1], k, entries in the cache, place of the first in the text, uniform numbers [n], slots,
    cache) -> tokens [n], the laws they were drawn from [n, V].
    """

    def guesses(
        states: Tensor,
        tokens: Tensor,
        k: Tensor,
        start: Tensor,
        position: Tensor,
        uniform: Tensor,
        slots: Tensor,
        cache: Cache,
    ) -> tuple[Tensor, Tensor]:
        drawn, laws = [], []
        for i in range(n):
            # padding lies behind the k-th: no query before it sees that far, and the next guess overwrites it
            own = start + torch.arange(len(tokens), device=d.device)
            x = eagle.joined(states, d.embed(tokens, own))
            attend = fast.attention(own, slots.shape[0], slots <= own[:, None])
            x = fast.layers(d, d.blocks, x, own - start + position, cache, attend)
            states = d.norm(x.index_select(0, (k - 1).reshape(1)) if i == 0 else x)
            laws.append(law(d.output(states)))
            tokens = invert(laws[-1], uniform[i : i + 1])
            drawn.append(tokens)
            start, position = (start + k, position + k) if i == 0 else (start + 1, position + 1)
        return torch.cat(drawn), torch.cat(laws)

    return guesses


class EagleSession(ModelledSession):
    def __init__(self, context: Context, own: EagleContext, sampling: Sampling, draw: Draw):
        self.context, self.own, self.sampling, self.draw = context, own, sampling, draw
        self.known = 0  # entries made of the target's states; what lies behind them was guessed
        self.waiting: list[Tensor] = []  # the target's states [k, d] that are to be read next
        self.next = self.end = 0  # where they begin and end in the text
        self.reached: list[Tensor] = []  # of a tree: own states at the end of the text, and at each node [1, d]

    def prepare(self, text: list[int]) -> None:
        if len(text) > 2:  # the last entry is read with the first guess
            for end in (*range(PIECE + 1, len(text) - 1, PIECE), len(text) - 1):
                self.own.entering(*self._new(text[:end])).alone()

    def drafting(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Drafting:
        if self.context.hidden is None:  # a text of one token: the target has read nothing yet
            return Draft(torch.zeros(0, dtype=torch.long), torch.zeros(0, self.context.language_model.vocabulary))
        settings = id(self.own.eagle), self.sampling
        how = drawing(self.law, self.draw, settings, self.sampling, goes_on)
        return Draft(*(yield from self.own.guesses(self._new(text), n, how)))

    def root(self, text: list[int], n: int) -> Logits:
        if self.context.hidden is None:
            return None  # as in `drafting`
        logits = yield Guess(self.own.entering(*self._new(text)))
        self.reached = [self.own.hidden[0, -1:]]
        return logits[0]

    def below(self, text: list[int], tokens: list[int], parents: list[int], last: int) -> Logits:
        states, start = torch.cat([self.reached[parent + 1] for parent in parents]), self.own.length
        nodes = torch.tensor([tokens], device=states.device)
        logits = yield Guess(Read(self.own, nodes, last, parents, states=states, position=self.next))
        self.reached = [self.reached[0], *self.own.hidden[0].split(1)]
        self.own.rollback(start)
        return logits[0]

    def law(self, logits: Tensor, guessed: Guessed | None = None) -> Tensor:
        return self.sampling.probabilities(logits, check=False, guessed=guessed)

    def follow(self, text: list[int]) -> None:
        """Keeps the target's states at the tokens that the text has gained, for eagle to read before its next guess;
        called in rounds in which another guesser is asked.

        The context holds the states of its last forward only. Those of a round without a guess, of which nobody told,
        are lost: eagle's cache then has a gap, its guesses get worse, and the text's law stays what it is.
        """
        first = self.context.length - self.context.hidden.shape[1]
        if first > self.end:
            self.waiting, self.next = [], first
        self.waiting.append(self.context.hidden[0, max(self.end - first, 0) : len(text) - 1 - first])
        self.end = len(text) - 1

    def _new(self, text: list[int]) -> tuple[Tensor, Tensor, int]:
        """What eagle has to read before it guesses again: (the target's states [k, d] since it last guessed, the tokens
        that follow them [k], the place of the first in the text). Its guessed entries are dropped.
        """
        self.own.rollback(self.known)
        self.follow(text)
        states, start = torch.cat(self.waiting) if len(self.waiting) > 1 else self.waiting[0], self.next
        self.waiting, self.next, self.known = [], self.end, self.known + len(states)
        return states, torch.tensor(text[start + 1 :], device=states.device), start
