"""Where a text ends early: after an id, or as soon as it contains a string."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from .errors import InvalidArgument
from .models import LanguageModel


@dataclass(frozen=True)
class Stops:
    """Where text ends early: after any of these ids, or as soon as the text contains any of these strings."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: object

    @classmethod
    def of(cls, target: LanguageModel, stop: Sequence[int | str] | None) -> "Stops":
        """From the `stop` argument of `generate`. Raises InvalidArgument for anything but ids and non-empty strings."""
        if stop is None:
            return cls(target.end_tokens, (), target.tokenizer)
        if isinstance(stop, str | int):
            raise InvalidArgument(f"stop must be a list such as [{stop!r}], [] for never, or None for the model's end-of-text")
        stop = list(stop)  # a generator can be looked at once
        for item in stop:
            if isinstance(item, bool) or not isinstance(item, str | Integral) or item == "":
                raise InvalidArgument(f"stop takes token ids and non-empty strings, not {item!r}")
        strings = tuple(s for s in stop if isinstance(s, str))
        if strings and target.tokenizer is None:
            raise InvalidArgument("stop strings need a model with a tokenizer; use token ids")
        return cls(frozenset(int(s) for s in stop if isinstance(s, Integral)), strings, target.tokenizer)

    def cut(self, before: list[int], emitted: list[int]) -> tuple[list[int], bool]:
        """The part of `emitted` that plain decoding would have produced after `before`, and whether the text ended.

        Looked at token by token, because an end may lie inside an accepted block, and a stop string may straddle two.
        """
        if not self.ids and not self.strings:
            return emitted, False
        for i, token in enumerate(emitted):
            if token in self.ids:
                return emitted[: i + 1], True
            if self.strings:
                text = self.tokenizer.decode(before + emitted[: i + 1])
                if any(string in text for string in self.strings):
                    return emitted[: i + 1], True
        return emitted, False
