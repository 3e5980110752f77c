"""What `generate` is given, brought to one form and checked before any work."""

from collections.abc import Sequence

from torch import Tensor

from . import rules
from .distributions import Sampling
from .drafters import Drafter
from .errors import ContextOverflow, InvalidArgument
from .models import LanguageModel


def encode(target: LanguageModel, prompts: str | Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each prompt. Raises InvalidArgument for no prompt, an empty one, or ids outside the vocabulary."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, Sequence) and prompts and isinstance(prompts[0], int):
        raise InvalidArgument("prompts must be a string, a list of strings, or a list of token-id lists; wrap one list of ids as [ids]")
    if not isinstance(prompts, Sequence) or not prompts:
        raise InvalidArgument("there is no prompt; give a string, a list of strings, or a list of token-id lists")
    texts = []
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if target.tokenizer is None:
                raise InvalidArgument("prompts as text need a model with a tokenizer; give lists of token ids")
            prompt = target.tokenizer(prompt)["input_ids"]
        ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
        if not ids:
            raise InvalidArgument(f"prompt {row} is empty; begin with at least one token, such as the model's beginning-of-text")
        for token in ids:
            if not isinstance(token, int) or not 0 <= token < target.vocabulary:
                raise InvalidArgument(f"prompt {row} holds {token!r}, which is not a token id between 0 and {target.vocabulary - 1}")
        texts.append(ids)
    return texts


def check(
    target: LanguageModel, drafter: Drafter | None, sampling: Sampling, rule: rules.Rule, texts: list[list[int]], max_new_tokens: int, seed: int
) -> None:
    """Everything that can be known to fail is found here, before the first forward."""
    if not isinstance(target, LanguageModel):
        raise InvalidArgument(f"target must be a speclib LanguageModel, such as load_pair().target, not a {type(target).__name__}")
    if not isinstance(sampling, Sampling):
        raise InvalidArgument(f"sampling must be a speclib.Sampling, not {sampling!r}")
    if drafter is not None and not isinstance(drafter, Drafter):
        raise InvalidArgument(f"drafter must be None or a speclib.drafters.Drafter, such as ModelDrafter(pair.draft), not a {type(drafter).__name__}")
    if drafter and drafter.grows_trees and rule.tree is None:
        raise InvalidArgument(f"a tree of guesses is checked by the token rule, not by {rule.name!r}; leave rule out")
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise InvalidArgument(f"max_new_tokens must be a whole number >= 1, not {max_new_tokens!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidArgument(f"seed must be a whole number >= 0, not {seed!r}")
    longest = max(len(text) for text in texts) + max_new_tokens
    for model in (target, *(drafter.models() if drafter else ())):
        if model.model.training:
            raise InvalidArgument(f"{model.name} is in training mode, where dropout changes its text; call model.eval() first")
        if model.context_length and longest > model.context_length:
            raise ContextOverflow(
                f"prompt and new tokens need {longest} places, but {model.name} has a context of {model.context_length}; "
                f"shorten the prompt or ask for at most {max(0, max_new_tokens - (longest - model.context_length))} new tokens"
            )
