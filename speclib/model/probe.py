"""A model is believed when it has been tried.

Class names say little: some models take a cache and keep nothing, some count positions by slots, and a hook or an
adapter changes what the fast backend would read past. So a few tokens are read in every way that speculative sampling
needs, and the logits must agree with the model's own forward without a cache. What a few tokens cannot show (factors
that depend on the length of the text, local windows) is refused by configuration: `check_configuration`, and
`check_trees` for trees.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..errors import SpeclibError, UnsupportedModel
from .batch import Batch, together
from .context import Context, EncoderDecoderContext, Read
from .fast import FastContext, fingerprint

TOKENS = 8  # in the text of a probe
TREE = [-1, -1, 0, 1, 0]  # two guesses for one place, three branches
CHAIN = "use a drafter that guesses a chain, such as ModelDrafter or LookupDrafter"
LEAVES = [[0, 2], [1, 3], [0, 4]]

# How far logits may be apart, as a share of their spread: root mean square over the vocabulary, at the worst token. Two
# right forwards of different widths differ by rounding alone: of 2e-7 to 1e-5 in float32 (also in much of a float64
# model: norms and rotary tables are computed in float32 there), of some 1e-3 in float16 and 1e-2 in bfloat16, several
# times that where logits are far from zero or a mixture of experts routes a near tie the other way. Forwards that see
# another text, other positions or other weights differ by 0.01 to 1.4.
LIMITS = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
COARSE = 0.2  # for weights in 8 bits or fewer, whose products round as bfloat16 does

# Models that count no position for their padding token (RoBERTa's kind, M2M100): read in pieces, what follows it would
# move. They never write it.
unwritten: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_rows_told: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()  # what `rows` found, and of which weights
# of which weights each comparison has passed
_tried: WeakKeyDictionary[nn.Module, dict[str, tuple]] = WeakKeyDictionary()


def cache(language_model) -> None:
    """Compares pieces read with the cache, and reading after a rollback, with one forward without it. Raises
    UnsupportedModel."""
    kind = EncoderDecoderContext if language_model.encoder_decoder else Context

    def compare() -> None:
        unwritten.pop(language_model.model, None)
        try:
            _pieces(language_model, kind, "its key-value cache")
        except UnsupportedModel:
            if _padding(language_model.model) is None:
                raise
            _pieces(language_model, kind, "its key-value cache", padded=False)
            unwritten[language_model.model] = _padding(language_model.model)

    _try(language_model, "cache", compare)


def fast(language_model) -> None:
    """Compares the fast forward, whole, in pieces and after a rollback, with the model's own. Raises
    UnsupportedModel."""
    instead = (
        "the fast backend reads other weights than this model computes with (an adapter, a hook, another activation?)"
    )
    _pieces(language_model, FastContext, "the fast forward", f"{instead}; use backend='eager'")


def trees(language_model, kind: type[Context]) -> None:
    """Compares a tree in one forward with its branches, each read alone without a cache. Raises UnsupportedModel."""
    check_trees(language_model)
    _try(language_model, f"trees {kind.__name__}", lambda: _tree(language_model, kind))


def rows(language_model, kind: type[Context]) -> bool:
    """Whether two texts of different lengths are read in one forward as each is alone. Nothing is raised: what cannot
    be read together is read one text after the other."""
    found = _rows_told.setdefault(language_model.model, {})
    now = (kind, fingerprint(language_model.model))
    if found.get("now") != now:
        try:
            check_trees(language_model)
            right = skipped(language_model) or not language_model.probe or _rows(language_model, kind)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model of any kind, which refuses masks or positions of our own in a way of its own
            right = False
        found.update(now=now, right=right)
    return found["right"]


@torch.inference_mode()
def _rows(language_model, kind: type[Context]) -> bool:
    if (language_model.context_length or TOKENS) < TOKENS:
        return False
    one, other = _tokens(language_model, TOKENS), _tokens(language_model, TOKENS).flip(1)[:, : TOKENS // 2]
    batch = Batch(2)
    contexts = [kind(language_model, (), batch) for _ in range(2)]
    contexts[0].extend(one[:, :5])
    contexts[1].extend(other[:, :1])
    together([Read(contexts[0], one[:, 5:6]), Read(contexts[1], other[:, 1:4])])
    contexts[1].rollback(2)
    got = together([Read(contexts[0], one[:, 6:8]), Read(contexts[1], other[:, 2:3])])
    return all(
        apart(logits[0], _alone(language_model, None, text)[end - logits.shape[1] : end])
        <= tolerance(language_model.model)
        for logits, text, end in zip(got, (one, other), (8, 3), strict=True)
    )


def skipped(language_model) -> bool:
    """Whether there is nothing to compare: weights without numbers, or dropout."""
    return language_model.device.type == "meta" or language_model.model.training


def _try(language_model, what: str, compare: Callable[[], None]) -> None:
    """Runs a comparison unless these very weights have passed it."""
    if skipped(language_model):
        return
    passed, now = _tried.setdefault(language_model.model, {}), fingerprint(language_model.model)
    if passed.get(what) != now:
        compare()
        passed[what] = now


@contextmanager
def _typed(name: str, what: str, instead: str = "") -> Iterator[None]:
    """An error of the model's own becomes one that says what was tried; one for lack of memory is none of these."""
    try:
        yield
    except (SpeclibError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(
            f"{name}: {what} failed ({type(error).__name__}: {reason}){instead and '; ' + instead}"
        ) from error


@torch.inference_mode()
def _pieces(language_model, kind: type[Context], what: str, instead: str = "", padded: bool = True) -> None:
    name, n = language_model.name, min(TOKENS, language_model.context_length or TOKENS)
    if n < 2:
        return
    tokens = _tokens(language_model, n, padded=padded)
    with _typed(name, "a forward without a cache"):
        context = kind(language_model, _tokens(language_model, n, language_model.reads)[0].tolist())
        right = _alone(language_model, context, tokens)
        if language_model.encoder_decoder:
            tokens = torch.cat([torch.tensor([context.begin], device=tokens.device), tokens[:, :-1]], 1)
    half, more = n // 2, n - n // 4
    instead = (
        instead
        or "choose a causal model that keeps keys and values of every token and counts a position for its padding "
        "token too"
    )
    with _typed(name, f"reading in pieces with {what}"):
        got = torch.cat([context.extend(tokens[:, :half]), context.extend(tokens[:, half:more])], 1)[0]
    _compare(language_model, got, right[:more], f"reading in pieces with {what}", instead)
    with _typed(name, f"a rollback of {what}"):
        context.rollback(half - 1)
        got = torch.cat([context.extend(tokens[:, a:b]) for a, b in ((half - 1, half), (half, n)) if b > a], 1)[0]
    _compare(language_model, got, right[half - 1 :], f"reading after a rollback of {what}", instead)


@torch.inference_mode()
def _tree(language_model, kind: type[Context]) -> None:
    name, room = language_model.name, language_model.context_length or TOKENS
    before = min(TOKENS, room) - 3
    if before < 1:
        return
    tokens = _tokens(language_model, before + len(TREE) + 1)
    text, guesses, after = tokens[:, :before], tokens[:, before:-1], tokens[:, -1:]
    with _typed(name, "a tree of guesses", CHAIN):
        right = torch.stack(
            [_alone(language_model, None, torch.cat([text, guesses[:, leaf], after], 1)) for leaf in LEAVES]
        )
        context = kind(language_model)
        context.extend(text, keep=1)
        got = context._extend(guesses, None, TREE)[0]
        context.retain(LEAVES[2])
        kept = context.extend(after)[0]
    want = torch.stack([right[0, -3], right[1, -3], right[0, -2], right[1, -2], right[2, -2]])
    _compare(language_model, got, want, "a tree of guesses read in one forward", CHAIN)
    _compare(language_model, kept, right[2, -1:], "reading after one branch of a tree was kept", CHAIN)


def _tokens(language_model, n: int, below: int | None = None, padded: bool = True) -> Tensor:
    """n seeded tokens [1, n], one of them the padding token, or none: some models count no position for it."""
    below, padding = below or language_model.vocabulary, _padding(language_model.model)
    tokens = torch.randint(below, (1, n), generator=torch.Generator().manual_seed(0))
    if padding is not None and padding < below:
        tokens[tokens == padding] = (padding + 1) % below
        if n > 2 and padded:
            tokens[0, 2] = padding
    return tokens.to(language_model.device)


def _padding(model: nn.Module) -> int | None:
    padding = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    return padding if isinstance(padding, int) and padding >= 0 else None


def _alone(language_model, context: Context | None, tokens: Tensor) -> Tensor:
    """The model's own logits [k, V] after tokens [1, k] (of an encoder-decoder model: after its first token and all but
    the last), without a cache."""
    inputs = {"input_ids": tokens}
    if language_model.encoder_decoder:
        begin = torch.tensor([context.begin], device=tokens.device)
        inputs = {
            "input_ids": torch.tensor([context.prompt], device=tokens.device),
            "decoder_input_ids": torch.cat([begin, tokens[:, :-1]], 1),
        }
    out = language_model.model(**inputs, use_cache=False, return_dict=True)
    return out.logits[0, :, : language_model.vocabulary]


def tolerance(model: nn.Module) -> float:
    """The share of the logits' spread by which two right forwards may differ: that of the coarsest arithmetic in the
    model."""
    dtypes = {
        t.dtype
        for t in (*model.parameters(), *model.buffers())
        if t.dtype.is_floating_point or t.element_size() == 1 and t.dtype != torch.bool
    }
    if torch.get_float32_matmul_precision() != "highest":
        dtypes.add(torch.bfloat16)
    return max((LIMITS.get(dtype, COARSE) for dtype in dtypes), default=COARSE)


def apart(got: Tensor, right: Tensor) -> float:
    """The largest root mean square difference of two rows of logits [k, V], as a share of the spread of all that are
    `right`.

    0 where `right` is not finite, which decoding finds out; infinite where only `got` is not.
    """
    got, right = got.cpu().double(), right.cpu().double()  # on the host: some devices have no double precision
    if right.isnan().any():
        return 0.0
    finite = right[right.isfinite()]
    spread = max(float(finite.std(correction=0)), 1e-6 * float(finite.abs().max()), 1e-30) if len(finite) else 1.0
    difference = (got - right).masked_fill(got == right, 0).square().mean(-1).sqrt().amax()
    return float(difference.nan_to_num(torch.inf)) / spread


def _compare(language_model, got: Tensor, right: Tensor, what: str, instead: str) -> None:
    off, allowed = apart(got, right), tolerance(language_model.model)
    if off > allowed:
        raise UnsupportedModel(
            f"{language_model.name}: {what} gives other logits than one forward without a cache "
            f"(apart by {off:.2g} of their spread, rounding explains {allowed:g}); {instead}"
        )


# --- what a few tokens cannot show ------------------------------------------------------------------------------------


def check_configuration(model, config, name: str, context_length: int | None) -> None:
    """Raises UnsupportedModel unless the model keeps keys and values of every token, whatever the length of the
    text."""
    for rope in _ropes(config):
        change = rope.get("original_max_position_embeddings")
        # `dynamic` factors change behind max_position_embeddings only, where no text goes; LongRoPE's long before
        if rope.get("rope_type") == "longrope" and change and (context_length or change + 1) > change:
            raise UnsupportedModel(
                f"{name} has LongRoPE, whose factors depend on how many tokens a forward reads past token {change}; "
                f"guesses would change the text "
                f"there. Set config.max_position_embeddings = {change} before the model is made, and stay below"
            )
    if getattr(config, "expert_capacity", None):
        raise UnsupportedModel(
            f"{name} sends no more than {config.expert_capacity} tokens of a forward to an expert and drops the "
            f"others, so its text depends on how many "
            "are read at once; choose a model whose experts take all tokens"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        return
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        raise UnsupportedModel(
            f"{type(model).__name__} keeps a state that cannot be rolled back; speculative sampling needs a "
            f"key-value cache"
        )
    with _typed(name, "a cache of the configuration's kind"):
        kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    window = getattr(config, "sliding_window", None)
    all_of_it = kinds == {"DynamicSlidingWindowLayer"} and window and context_length and window >= context_length
    if kinds - {"DynamicLayer"} and not all_of_it:
        raise UnsupportedModel(
            f"{name} has a sliding-window or recurrent cache ({', '.join(sorted(kinds))}); it cannot be rolled back"
        )


def _ropes(config) -> list[dict]:
    """The settings of every kind of rotary embedding in a model: one, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return [found, *(part for part in found.values() if isinstance(part, dict))]


def check_trees(language_model) -> None:
    """Raises UnsupportedModel where a tree cannot be shown to the model: attention without masks of our own, windows by
    slot and not by depth."""
    model, context_length = language_model.model, language_model.context_length
    config = model.config.get_text_config(decoder=True)
    attention = getattr(config, "_attn_implementation", None) or ""
    if language_model.backend == "eager" and attention.split("|")[-1].startswith(("flash", "flex")):
        raise UnsupportedModel(
            f"{language_model.name}: {attention} takes no mask that shows a tree of guesses; call "
            f"model.set_attn_implementation('sdpa'), or {CHAIN}"
        )
    local = "local" in str(getattr(config, "attention_layers", ""))
    window = getattr(config, "window_size", None) if local else getattr(config, "sliding_window", None)
    if window and window < (context_length or window + 1):
        raise UnsupportedModel(
            f"{language_model.name} attends to the last {window} slots, and branches of a tree lie side by side in "
            f"them; {CHAIN}"
        )


def limits(model) -> tuple[int | None, int | None]:
    """How many tokens the encoder (of an encoder-decoder model) and the decoder can read; None where nothing says so.

    The smaller of what the configuration declares and what tables of learned positions hold.
    """
    found = []
    for part, names in (
        ("encoder", "max_position_embeddings max_source_positions max_encoder_position_embeddings"),
        ("decoder", "max_position_embeddings max_target_positions max_decoder_position_embeddings max_seq_len"),
    ):
        if part == "encoder" and not model.config.is_encoder_decoder:
            found.append(None)
            continue
        config = model.config.get_text_config(**{part: True})
        declared = [getattr(config, name, None) for name in names.split()]
        module = model.get_encoder() if part == "encoder" else model.get_decoder()
        tables = [_places(table) for name, table in module.named_modules() if _is_positions(name, table)]
        found.append(
            min((value for value in (*declared, *tables) if isinstance(value, int) and value > 0), default=None)
        )
    return tuple(found)


def _is_positions(name: str, module: nn.Module) -> bool:
    name = name.rpartition(".")[2]
    return isinstance(module, nn.Embedding) and (
        name == "wpe" or name.startswith(("position", "embed_positions", "pos_"))
    )


def _places(table: nn.Embedding) -> int:
    """Positions in a table: some begin with an offset, some behind the padding token's row."""
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - getattr(table, "offset", first)
