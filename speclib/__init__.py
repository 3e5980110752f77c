"""Speculative sampling of language models, small enough to read: see the notebooks for the story."""

from . import console

with console.loading():
    from . import drafters
    from .decoding import Output, generate
    from .distributions import Sampling
    from .models import LanguageModel, Pair, ladder, load_model, load_pair

__all__ = ["LanguageModel", "Output", "Pair", "Sampling", "certify", "drafters", "generate", "ladder", "load_model", "load_pair"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "certify":  # it brings scipy.stats, which takes a second to import
        from .exactness.judge import certify

        return certify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
