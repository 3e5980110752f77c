"""Speculative sampling of language models, small enough to read: see the notebooks for the story."""

import logging
import sys
from importlib import import_module

from . import console

# where a CUDA toolkit is and no GPU, it would say so whenever torch's Timer is imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

with console.loading():
    from . import drafters
    from .law.distributions import Sampling
    from .loop.decoding import Output, generate
    from .model.language_model import DEFAULT_DRAFT, LanguageModel, Pair, ladder, load_model, load_pair

__all__ = [
    "DEFAULT_DRAFT",
    "LanguageModel",
    "Output",
    "Pair",
    "Sampling",
    "certify",
    "drafters",
    "generate",
    "ladder",
    "load_model",
    "load_pair",
]
__version__ = "0.1.0"

ROOMS = {  # so that a reader writes `from speclib import theory`, and need not know in which room it stands
    "law": ("distributions", "exact", "rules", "several", "statistics", "theory"),
    "model": ("adapter", "compiled", "context", "fast", "gguf", "language_model", "probe", "products", "quantized"),
    "loop": ("arguments", "decoding", "lengths", "processors", "stops", "trace"),
    "measure": (
        "batches",
        "categories",
        "experiments",
        "growth",
        "latency",
        "leaderboard",
        "machine",
        "published",
        "trials",
    ),
    "commands": ("bench", "chat", "demo", "index", "train"),
}
for _room, _names in ROOMS.items():  # `from speclib.trace import Trace` as well, for what is imported already
    for _name in _names:
        if module := sys.modules.get(f"{__name__}.{_room}.{_name}"):
            sys.modules[f"{__name__}.{_name}"] = module


def __getattr__(name: str):
    if name == "certify":  # it brings scipy.stats, which takes a second to import
        return import_module(f"{__name__}.exactness.judge").certify
    for room, names in ROOMS.items():
        if name in names:
            return import_module(f"{__name__}.{room}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
