"""What `generate` is given, brought to one form and checked before any work."""

from collections.abc import Iterable, Mapping
from numbers import Integral

from ..drafters import Drafter
from ..errors import ContextOverflow, InvalidArgument, UnsupportedModel
from ..law import rules
from ..law.distributions import Draw, Sampling
from ..model.language_model import LanguageModel, check_compatible, free_memory

FORMS = (
    "a string, a list of strings, a list of token-id lists, a tensor or array of token ids, or what a tokenizer returns"
)


def encode(target: LanguageModel, prompts) -> list[list[int]]:
    """Token ids of each prompt. A string, or a tensor or array of one dimension, is one prompt; of two dimensions, each
    row is one.

    What a tokenizer returns is taken by its "input_ids", of which its "attention_mask" hides the padding. Raises
    InvalidArgument for no prompt, an empty one, ids outside the vocabulary, and anything else, by its name.
    """
    masks, returned = None, isinstance(prompts, Mapping)
    if returned:
        if "input_ids" not in prompts:
            raise InvalidArgument(f"prompts must be {FORMS}, not a {type(prompts).__name__} without 'input_ids'")
        prompts, masks = prompts["input_ids"], _plain(prompts.get("attention_mask"))
    given = [prompts] if isinstance(prompts, str) else _plain(prompts)
    if not isinstance(given, list):
        raise InvalidArgument(f"prompts must be {FORMS}, not a {type(prompts).__name__}")
    if not given:
        raise InvalidArgument(f"there is no prompt; give {FORMS}")
    if not any(isinstance(part, Iterable) for part in given):
        if not returned and isinstance(prompts, list | tuple):
            raise InvalidArgument(
                f"a list of single values is no list of prompts; wrap one list of ids as [ids], or give {FORMS}"
            )
        given, masks = [given], None if masks is None else [masks]
    texts = [_ids(target, row, prompt) for row, prompt in enumerate(given)]
    if masks is not None:
        if len(masks) != len(texts):
            raise InvalidArgument(f"there are {len(texts)} prompts and attention masks for {len(masks)}")
        texts = [_unpadded(row, ids, _plain(mask)) for row, (ids, mask) in enumerate(zip(texts, masks, strict=True))]
    for row, ids in enumerate(texts):
        if not ids:
            raise InvalidArgument(
                f"prompt {row} is empty; begin with at least one token, such as the model's beginning-of-text"
            )
        if target.unwritten in ids and not target.encoder_decoder:
            raise InvalidArgument(
                f"prompt {row} holds the padding token {target.unwritten}, for which {target.name} counts no "
                f"position; leave it out"
            )
        if wrong := [token for token in ids if not 0 <= token < target.reads]:
            raise InvalidArgument(
                f"prompt {row} holds {wrong[0]!r}, which is not a token id between 0 and {target.reads - 1}"
            )
    return texts


def _plain(value):
    """Tensors, arrays and iterables as lists; text, mappings and single values as they are."""
    if hasattr(value, "tolist"):  # tensors, arrays and series
        return value.tolist()
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else value


def _ids(target: LanguageModel, row: int, prompt) -> list[int]:
    """One prompt as whole numbers."""
    if isinstance(prompt, str):
        if target.tokenizer is None:
            raise InvalidArgument("prompts as text need a model with a tokenizer; give lists of token ids")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"prompt {row} holds half a character at place {error.start} (a lone surrogate, "
                f"{prompt[error.start]!r}); decode the text again"
            ) from error
        prompt = target.tokenizer(prompt)["input_ids"]
    if isinstance(prompt, Mapping):
        if {"role", "content"} <= prompt.keys():
            raise InvalidArgument("prompts are chat messages; target.chat(messages) makes one prompt of them")
        raise InvalidArgument(f"prompt {row} is a {type(prompt).__name__}; prompts must be {FORMS}")
    ids = _plain(prompt)
    if not isinstance(ids, list):
        raise InvalidArgument(f"prompt {row} is a {type(prompt).__name__}; prompts must be {FORMS}")
    for token in (ids := [_plain(token) for token in ids]):
        if isinstance(token, Mapping):
            return _ids(target, row, token)  # says what it is
        if not isinstance(token, Integral) or isinstance(token, bool):
            kind = "another list" if isinstance(token, list) else f"{token!r} (a {type(token).__name__})"
            raise InvalidArgument(
                f"prompt {row} holds {kind}, but token ids are whole numbers; prompts must be {FORMS}"
            )
    return [int(token) for token in ids]


def _unpadded(row: int, ids: list[int], mask: list) -> list[int]:
    """The tokens that an attention mask shows, which must be neighbours."""
    if len(mask) != len(ids):
        raise InvalidArgument(f"prompt {row} has {len(ids)} tokens and an attention mask of {len(mask)}")
    shown = [place for place, seen in enumerate(mask) if seen]
    if shown and shown[-1] - shown[0] >= len(shown):
        raise InvalidArgument(
            f"the attention mask of prompt {row} hides tokens between others; only padding before or behind a text "
            f"can be left out"
        )
    return [ids[place] for place in shown]


def check(
    target: LanguageModel,
    drafter: Drafter | None,
    sampling: Sampling,
    rule: rules.Rule,
    texts: list[list[int]],
    max_new_tokens: int,
    seed: int,
    draw: Draw | None = None,
) -> None:
    """Everything that can be known to fail is found here, before the first forward."""
    if not isinstance(target, LanguageModel):
        raise InvalidArgument(
            f"target must be a speclib LanguageModel, such as load_pair().target, not a {type(target).__name__}"
        )
    if not isinstance(sampling, Sampling):
        raise InvalidArgument(f"sampling must be a speclib.Sampling, not {sampling!r}")
    if drafter is not None and not isinstance(drafter, Drafter):
        raise InvalidArgument(
            "drafter must be None or a speclib.drafters.Drafter, such as ModelDrafter(pair.draft), "
            f"not a {type(drafter).__name__}"
        )
    if drafter and drafter.grows_trees and rule.tree is None:
        raise InvalidArgument(f"a tree of guesses is checked by the token rule, not by {rule.name!r}; leave rule out")
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise InvalidArgument(f"{name} must be a whole number >= {least}, not {value!r}")
    if target.device.type == "meta" and draw is None:
        raise UnsupportedModel(
            f"the weights of {target.name} are on the meta device: they have shapes and no numbers; load them to a "
            f"device first"
        )
    models = drafter.models() if drafter else []
    if drafter and drafter.grows_trees:
        target.try_trees()
    for model in models:
        check_compatible(target, model)
    prompt = max(map(len, texts))
    for model in (target, *models):
        if model.model.training:
            raise InvalidArgument(
                f"{model.name} is in training mode, where dropout changes its text; call model.eval() first"
            )
        if model.source_length and prompt > model.source_length:
            raise ContextOverflow(
                f"a prompt has {prompt} tokens, but the encoder of {model.name} reads at most {model.source_length}; "
                f"shorten it"
            )
        longest = max_new_tokens + (1 if model.encoder_decoder else prompt)
        over = longest - (model.context_length or longest)
        if over > 0:
            left = max_new_tokens - over
            remedies = [f"ask for at most {left} new tokens"] if left > 0 else []
            if not model.encoder_decoder:
                remedies.insert(0, f"shorten the prompt by {over if left > 0 else 1 - left} tokens")
            raise ContextOverflow(
                f"{'start token' if model.encoder_decoder else 'prompt'} and new tokens need {longest} places, but "
                f"{model.name} has a context of {model.context_length}; {' or '.join(remedies)}"
                f"{'' if left > 0 else ' or more'}"
            )


MOST_ROWS = 32  # texts that are decoded together unless more are asked for


def rows_at_once(
    target: LanguageModel, drafter: Drafter | None, texts: list[list[int]], max_new_tokens: int, batch_size: int | None
) -> int:
    """How many texts are decoded together: their caches may take half of the memory that is free, or one text's all.
    Raises InvalidArgument for a batch_size, or for a text, whose caches do not fit.
    """
    if batch_size is not None and (
        not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise InvalidArgument(f"batch_size must be a whole number >= 1, or None, not {batch_size!r}")
    asked = min(len(texts), batch_size or MOST_ROWS)
    if asked > 1 and not target.reads_rows():
        asked = 1
    longest = max(map(len, texts)) + int(max_new_tokens)  # numpy's int32 could not count bytes
    each = sum(model.bytes_per_token for model in (target, *(drafter.models() if drafter else [])))
    each = max(each, 1) * 2 * longest  # of the slots some are to spare
    free = free_memory(target.device)
    fit = free // 2 // each or free // each
    if not fit or (batch_size is not None and asked > fit):
        count = 1 if batch_size is None else asked
        raise InvalidArgument(
            f"{count} text{'s' * (count > 1)} of up to {longest} tokens need {count * each / 1e9:.2g} GB of key-value "
            f"caches, and of the {free / 1e9:.2g} GB that are free a batch may have half, one text all; "
            + (f"take batch_size={fit} or less" if fit else "shorten the prompts, or ask for fewer new tokens")
        )
    return min(asked, fit)
