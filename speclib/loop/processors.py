"""Logits processors under speculation: every drafted position, a place, is processed with its own true prefix.

A processor (transformers' LogitsProcessor, or anything called like one) changes logits [1, V] in view of the tokens so
far [1, L]: it penalises repetition, forbids words, keeps to a grammar. Plain decoding calls it once a token, in the
text's order. A round asks for several places at once, most of which may never be reached; so each place is processed by
a copy of the processors, as they stood at the place before it in its own branch, and when the round is over those of
the place where verification stopped stay. A processor with a state is moved by accepted tokens alone. Draft and target
are processed alike, each with copies of its own.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PrefixConstrainedLogitsProcessor, PreTrainedTokenizerBase

from ..errors import InvalidArgument, NonFiniteLogits
from ..law.distributions import Sampling

Branch = tuple[int, ...]  # guesses that follow the text one after the other; () is the text itself

# Of a generation_config: what changes logits, and the value at which it does not (None never does).
FOLLOWED = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
NOT_FOLLOWED = {"guidance_scale": 1.0, "watermarking_config": None}
# transformers' others are functions of the prefix
STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")
NOT_FOLLOWED_WHEN_SAMPLING = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}


def implied(model, prompt: Sequence[int], begin: Sequence[int], max_new_tokens: int) -> list[Callable]:
    """The processors that `model.generate` would make of the model's generation_config for one prompt, in its order.

    begin: the tokens with which the text starts (the prompt, or a decoder's start token). Warns once a model of
    settings that are not followed. Temperature and filters there are defaults of `model.generate`; here `Sampling` says
    them.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return []

    def meant(settings):
        return [name for name, neutral in settings.items() if getattr(config, name, None) not in (None, neutral)]

    ignored = meant(NOT_FOLLOWED) + (meant(NOT_FOLLOWED_WHEN_SAMPLING) if config.do_sample else [])
    if not hasattr(model, "_get_logits_processor"):  # not one of transformers' own
        ignored += meant(FOLLOWED)
    if ignored:
        warnings.warn(f"generation_config asks for {', '.join(ignored)}, which speclib does not follow", stacklevel=2)
    if not set(meant(FOLLOWED)) - set(ignored):
        return []
    config = copy.deepcopy(config)
    for name in ignored:
        setattr(config, name, None)
    config.do_sample, config.max_length = False, len(begin) + max_new_tokens
    ends = [] if config.eos_token_id is None else torch.as_tensor(config.eos_token_id).flatten().tolist()
    config._eos_token_tensor = torch.tensor(ends, device=model.device) if ends else None
    encoder = torch.tensor([list(prompt)], device=model.device) if model.config.is_encoder_decoder else None
    if encoder is None:  # generate itself leaves these out where there is no encoder, with a warning
        config.encoder_repetition_penalty = config.encoder_no_repeat_ngram_size = None
    return list(model._get_logits_processor(config, len(begin), encoder_input_ids=encoder, device=model.device))


@dataclass(frozen=True)
class ProcessedSampling(Sampling):
    """`Sampling` at work on one text. side: "target" or "draft", whose logits these are."""

    places: "Places" = None
    side: str = "draft"

    def probabilities(
        self, logits: Tensor, check: bool = True, guessed: Callable[[], Sequence[Sequence[int]]] | None = None
    ) -> Tensor:
        """As `Sampling.probabilities`; guessed: makes, for each of the rows of `logits`, the list of guesses between
        the text and it.
        """
        if guessed is None:
            return super().probabilities(logits, check)  # which raises
        rows = logits.double() if logits.dtype == torch.float64 else logits.float()
        rows = self.places.process(
            self.side, rows.reshape(-1, logits.shape[-1]), [tuple(branch) for branch in guessed()]
        )
        return super().probabilities(rows.reshape(logits.shape), check, guessed)

    def plainly(self) -> "Sampling":
        """The same processors, with no temperature and no filter."""
        return ProcessedSampling(processors=self.processors, places=self.places, side=self.side)


@dataclass
class Place:
    """One place: the processors after they were called there, and the tokens they left possible [V]."""

    processors: list[Callable]
    possible: Tensor


@dataclass
class Places:
    """All places that one round of one text asks for.

    text: the tokens so far; processors: as they stand after all places before its end. Raises InvalidArgument when made
    with a processor that cannot be copied.
    """

    text: list[int]
    processors: list[Callable]
    device: torch.device
    seen: dict[str, dict[Branch, Place | None]] = field(default_factory=lambda: {"target": {}, "draft": {}})

    def __post_init__(self):
        self.processors = self.copies(self.processors)

    def process(self, side: str, logits: Tensor, branches: Sequence[Branch]) -> Tensor:
        """logits [k, V], the places [k] that they belong to, each after its parent -> processed [k, V].

        A place behind a token that cannot come is never reached: its processors are not asked, and it keeps its logits.
        So does a place where they leave no token, until the text comes to it (`move`).
        """
        return torch.stack(
            [self._process(self.seen[side], row, branch) for row, branch in zip(logits, branches, strict=True)]
        )

    def move(self, text: Sequence[int], branch: Branch) -> None:
        """The round is over: verification stopped after `branch`, and the text goes on.

        Raises NonFiniteLogits if no token was possible there, InvalidArgument if a rule accepted what the processors
        forbid.
        """
        way = [self.seen["target"][branch[:size]] for size in range(len(branch) + 1)]
        for size, place in enumerate(way):
            if place is None:
                raise InvalidArgument(
                    "the verification rule accepted a token of probability 0, which the logits processors forbid"
                )
            if not bool(place.possible.any()):
                raise NonFiniteLogits(
                    f"the logits processors leave no token possible after {len(self.text) + size} tokens"
                )
        self.text, self.processors = list(text), way[-1].processors
        for places in self.seen.values():
            places.clear()

    def copies(self, processors: Sequence[Callable]) -> list[Callable]:
        """Copies of the processors, each with a state of its own."""
        return [copied(processor) for processor in processors]

    def _process(self, places: dict[Branch, Place | None], logits: Tensor, branch: Branch) -> Tensor:
        before = self.processors
        if branch:
            if branch[:-1] not in places:  # a drafter that does not ask at every place, such as a copier in an ensemble
                self._process(places, logits, branch[:-1])
            parent = places[branch[:-1]]
            if parent is None or not parent.possible[branch[-1]]:
                places[branch] = None
                return logits
            before = parent.processors
        processors, scores = self.copies(before), logits[None].clone()  # [1, V]: some write into what they are given
        tokens = torch.tensor([[*self.text, *branch]], device=self.device)
        for processor in processors:
            scores = processor(tokens, scores)
        places[branch] = Place(processors, scores[0] > -torch.inf)
        return scores[0] if bool(places[branch].possible.any()) else logits


def at_work(sampling: Sampling, context, max_new_tokens: int, row: int) -> tuple[Sampling, Places | None]:
    """The settings for one text: with processors of its own, those that the model's generation_config implies first, or
    as they are if there are none.
    """
    model = context.language_model
    processors = implied(model.model, context.prompt, context.begin, max_new_tokens) + [
        _of_row(processor, row) for processor in sampling.processors
    ]
    if not processors:
        return sampling, None
    places = Places(list(context.begin), processors, model.device)
    settings = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
    return ProcessedSampling(**settings | {"processors": tuple(processors)}, places=places), places


def _of_row(processor: Callable, row: int) -> Callable:
    """prefix_allowed_tokens_fn(row, tokens) is asked about its row, though a place is processed alone."""
    if not isinstance(processor, PrefixConstrainedLogitsProcessor) or not row:
        return processor
    return PrefixConstrainedLogitsProcessor(lambda _, tokens: processor._prefix_allowed_tokens_fn(row, tokens), 1)


def copied(processor: Callable) -> Callable:
    """A deep copy. Matchers that copy themselves (llguidance's deep_copy, xgrammar's fork) are asked to; tokenizers and
    modules are shared.

    Raises InvalidArgument for a processor that holds something else that cannot be copied.
    """
    if type(processor).__module__ == LogitsProcessor.__module__ and type(processor).__name__ not in STATEFUL:
        return processor
    memo: dict[int, object] = {}
    held = list(getattr(processor, "__dict__", {}).values()) if not hasattr(processor, "__deepcopy__") else []
    for item in held:
        if isinstance(item, list | tuple | dict) and len(held) < 10_000:
            held += item.values() if isinstance(item, dict) else item
        forks = [getattr(item, name) for name in ("deep_copy", "fork") if callable(getattr(item, name, None))]
        if forks:
            memo[id(item)] = forks[0]()
        elif isinstance(item, PreTrainedTokenizerBase | torch.nn.Module) or type(item).__name__.endswith("Tokenizer"):
            memo[id(item)] = item
    try:
        return copy.deepcopy(processor, memo)
    except Exception as error:
        raise InvalidArgument(
            f"the logits processor {type(processor).__name__} cannot be copied ({error}), and so cannot be kept "
            f"apart from rejected guesses; "
            "give it a method __deepcopy__"
        ) from error


class GrammarProcessor(LogitsProcessor):
    """Keeps a text to a grammar: a processor around llguidance's LLMatcher, which knows JSON schemas, regular
    expressions and Lark grammars.

    matcher: at the grammar's beginning; the grammar speaks of the new tokens, not of the prompt. Once it is complete,
    the end token alone is possible.
    """

    def __init__(self, matcher):
        self.matcher, self.read = matcher, None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """tokens so far [1, L], logits [1, V] -> [1, V], -inf where the grammar forbids. Raises InvalidArgument for a
        text that breaks it.
        """
        tokens = input_ids[0].tolist()
        new = tokens[len(tokens) if self.read is None else self.read :]
        self.read = len(tokens)
        if new and not self.matcher.is_stopped() and not self.matcher.consume_tokens(new):
            raise InvalidArgument(f"the grammar does not allow {new} here: {self.matcher.get_error()}")
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")[
            : scores.shape[-1]
        ]
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)  # a model may know more tokens than its tokenizer
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)
