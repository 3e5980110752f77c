"""Who guesses. Each module is one kind of oracle; `base` says what all have in common."""

from .base import Draft, Drafter, Guesser
from .lookup import LookupDrafter
from .model import ModelDrafter
from .synthetic import SyntheticDrafter

__all__ = ["Draft", "Drafter", "Guesser", "LookupDrafter", "ModelDrafter", "SyntheticDrafter"]
