"""Where a text ends early: after an id, or as soon as it contains a string."""

# transformers' StopStringCriteria does not serve here: it looks a token up by that token's own text, and so never sees
# a character that is split over two.

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from ..errors import InvalidArgument
from ..model.language_model import LanguageModel

LEAD, SLACK = 4, 16  # tokens; no character is split over more than LEAD


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
            raise InvalidArgument(
                f"stop must be a list such as [{stop!r}], [] for never, or None for the model's end-of-text"
            )
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
            if self.strings and self._reached(before, emitted[: i + 1]):
                return emitted[: i + 1], True
        return emitted, False

    def _reached(self, before: list[int], emitted: list[int]) -> bool:
        """Whether a stop string stands at the end of the text, which held none before its last token.

        Only so much of the end is decoded as can hold one. What the first tokens of a part come to depends on those
        before them (a space is left out, a character is torn), so LEAD of them are not looked at.
        """
        decode, longest, count = self.tokenizer.decode, max(map(len, self.strings)), len(before) + len(emitted)
        size = longest + SLACK
        while size < count:
            tokens = [*before[max(0, count - size) :], *emitted][-size:]
            lead = len(decode(tokens[:LEAD]))
            if len(decode(tokens[:-1])) - lead >= longest + LEAD:
                return any(string in decode(tokens)[lead:] for string in self.strings)
            size *= 2  # some tokens have no text, or several make one character
        text = decode([*before, *emitted])
        return any(string in text for string in self.strings)
