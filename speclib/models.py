"""A transformers model as speculative sampling needs it: extend the text by some tokens, roll some back.

`LanguageModel` wraps a model and its tokenizer and never changes them. Each text being decoded has a `Context` of its
own, which holds the key-value cache; dropping it, even in an exception, leaves nothing behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from . import adapter, embedded, fast
from .compiled import CompiledContext, Programs
from .context import Context, EncoderDecoderContext
from .errors import IncompatibleModels, InvalidArgument, ModelLoadError, UnsupportedModel
from .fast import FastContext

TARGET = "target"
EDITOR = "target-editor"  # the target with an adapter, taught to write a changed copy of a function
DEFAULT_DRAFT = "draft-d384x1-distilled"
BACKENDS = ("eager", "fast", "compiled")


class LanguageModel:
    """A language model with its tokenizer: `.model` and `.tokenizer` are the transformers objects themselves.

    `vocabulary` is the number of tokens that both the tokenizer and the model's output know: many checkpoints pad
    their output to a round number, and a padded slot must never be drawn. backend: "eager" runs transformers' own forward;
    "fast" runs the same weights through plain functions (see `fast`), and raises UnsupportedModel for an architecture it cannot read;
    "compiled" makes programs of the fast forwards at their first use, which takes a minute once per machine (see `compiled`).
    """

    def __init__(self, model, tokenizer=None, name: str | None = None, backend: str = "eager"):
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        if backend not in BACKENDS:
            raise InvalidArgument(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        self.encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        config = model.config.get_text_config(decoder=True)
        if not self.encoder_decoder:
            _check_cache(model, config, self.name)
        self.model, self.tokenizer, self.backend = model, tokenizer, backend
        self.context_length: int | None = None if self.encoder_decoder else getattr(config, "max_position_embeddings", None)
        width = model.get_output_embeddings().weight.shape[0]
        self.vocabulary = width if tokenizer is None else min(width, len(tokenizer))
        self.decoder = None if backend == "eager" else fast.decoder(model)
        self.programs = Programs(self.decoder, self.name, self.vocabulary) if backend == "compiled" else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def size(self) -> str:
        """The number of parameters, in words."""
        return f"{self.parameters / 1e6:.1f}M parameters"

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Every token of the tokenizer with its id."""
        return self.tokenizer.get_vocab()

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids after which the model says that its text has ended."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def context(self, prompt: Sequence[int] = ()) -> Context:
        """A text in front of this model with nothing read yet; the encoder of an encoder-decoder model reads the prompt here."""
        if self.encoder_decoder:
            return EncoderDecoderContext(self, prompt)
        return {"eager": Context, "fast": FastContext, "compiled": CompiledContext}[self.backend](self, prompt)

    def announce(self, widths: Iterable[int]) -> None:
        """Says how many tokens forwards will often read at once: the compiled backend makes a program for each. `generate` calls this."""
        if self.programs is not None:
            self.programs.announce(widths)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name}, {self.size}, {dtype}, {self.device}{'' if self.backend == 'eager' else f', {self.backend}'})"


def _check_cache(model, config, name: str) -> None:
    """Raises UnsupportedModel unless the model keeps keys and values of every token, which can be rolled back."""
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        raise UnsupportedModel(f"{type(model).__name__} keeps a state that cannot be rolled back; speculative sampling needs a key-value cache")
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    window = getattr(config, "sliding_window", None)
    if kinds - {"DynamicLayer"} and not (kinds == {"DynamicSlidingWindowLayer"} and window and window >= (getattr(config, "max_position_embeddings", None) or 0)):
        raise UnsupportedModel(f"{name} has a sliding-window or recurrent cache ({', '.join(sorted(kinds))}); it cannot be rolled back")


@dataclass(frozen=True)
class Pair:
    """A target and a draft model that speak about the same tokens."""

    target: LanguageModel
    draft: LanguageModel

    @property
    def tokenizer(self):
        return self.target.tokenizer


def ladder() -> list[str]:
    """Names of the embedded drafts, as `load_pair(draft=...)` takes them, from the fewest parameters to the most."""
    sizes = embedded.sizes()
    found = [path for path in sizes if path.startswith("models/draft-") and path.endswith("model.safetensors")]
    return [Path(path).parent.name for path in sorted(found, key=sizes.get)]


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    backend: str = "eager",
) -> LanguageModel:
    """An embedded model by its name, or any transformers causal or encoder-decoder model from a folder or the hub.

    An embedded name means the embedded model wherever this runs; a folder of that name is given as "./NAME" or a Path.

    Where an adapter lies instead of weights (see `adapter`), the model it belongs to is loaded and changed. Only safetensors weights
    are read and no code of the repository is run. device None: cuda, then mps, then cpu. dtype None: bfloat16 on cuda, float32 elsewhere.
    Raises ModelLoadError or UnsupportedModel.
    """
    device = _device(device)
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InvalidArgument(f"dtype must be a torch dtype or its name, such as 'float32' or 'bfloat16', not {dtype!r}")
        dtype = getattr(torch, dtype)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    weights = [f"models/{name}/{file}" for file in ("model.safetensors", adapter.FILE)]
    own = isinstance(name, str) and any(file in embedded.registry() for file in weights)
    name = str(name)
    local = not own and Path(name).is_dir()
    folder = embedded.fetch(f"models/{name}") if own else Path(name) if local else None
    adapted = folder is not None and (folder / adapter.FILE).is_file()
    source = str(adapter.base(folder, local) if adapted else folder or name)
    try:
        with _quiet_bars(own or local):
            options = {"trust_remote_code": False, "revision": revision, "local_files_only": own or local}
            config = AutoConfig.from_pretrained(source, **options)
            loader = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = loader.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        if adapted:
            adapter.add(model, folder)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        choices = f"an embedded name ({', '.join([TARGET, EDITOR, *ladder()])}), a folder, or a hub name"
        raise ModelLoadError(f"cannot load {name!r} as a language model with safetensors weights: {reason} - give {choices}") from error
    return LanguageModel(model.to(device).eval(), tokenizer, Path(name).name if local else name, backend)


def load_pair(
    target: str | Path | None = None,
    draft: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    backend: str = "eager",
) -> Pair:
    """The embedded target with an embedded draft, or any two transformers models from folders or the hub.

    `revision` pins the target's revision on the hub (and the draft's, if both are in one repository).
    Raises ModelLoadError, UnsupportedModel, or IncompatibleModels when the two do not share a tokenizer.
    """
    if target is not None and draft is None:
        raise InvalidArgument(f"target {str(target)!r} needs a draft model with the same tokenizer: load_pair(target, draft)")
    options = {"device": device, "dtype": dtype, "revision": revision, "backend": backend}
    big, small = load_model(target or TARGET, **options), load_model(draft or DEFAULT_DRAFT, **options)
    check_compatible(big, small)
    return Pair(big, small)


def check_compatible(target: LanguageModel, draft: LanguageModel) -> None:
    """Raises IncompatibleModels unless both are of one kind and their tokenizers agree on every id. Sizes of padded outputs may differ."""
    if target.encoder_decoder != draft.encoder_decoder:
        raise IncompatibleModels(f"one of {target.name} and {draft.name} is an encoder-decoder model and the other is not; choose two of one kind")
    if target.tokenizer is None or draft.tokenizer is None:
        if target.vocabulary != draft.vocabulary:
            raise IncompatibleModels(f"{target.name} has {target.vocabulary} tokens and {draft.name} has {draft.vocabulary}; without tokenizers they cannot be matched")
        return
    ours, theirs = target.tokens, draft.tokens
    if ours != theirs:
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        example = differing[0]
        raise IncompatibleModels(
            f"{target.name} and {draft.name} have different tokenizers: {len(differing)} tokens differ, for example {example!r} is "
            f"{ours.get(example)} in one and {theirs.get(example)} in the other; choose two models of one family"
        )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise InvalidArgument(f"unknown device {device!r}; use 'cuda', 'mps' or 'cpu'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("device 'cuda' was asked for, but torch sees no GPU here; leave device out to use what there is")
    return device


@contextmanager
def _quiet_bars(quiet: bool) -> Iterator[None]:
    """No progress bar while reading local files; bars of downloads stay, and the setting is left as found."""
    shown = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            transformers_logging.enable_progress_bar()
