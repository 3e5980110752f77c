"""How far to guess ahead. For now: always equally far."""

from dataclasses import dataclass

from .errors import InvalidArgument


@dataclass(frozen=True)
class FixedLength:
    """The same draft length gamma in every round. Raises InvalidArgument unless it is a whole number >= 0."""

    gamma: int

    def __post_init__(self):
        if not isinstance(self.gamma, int) or isinstance(self.gamma, bool) or self.gamma < 0:
            raise InvalidArgument(f"draft_length must be a whole number >= 0 (0 drafts nothing), not {self.gamma!r}")

    def next_length(self) -> int:
        return self.gamma
