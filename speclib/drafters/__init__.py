"""Who guesses. Each module is one kind of drafter; `base` says what all have in common."""

from .base import Draft, Drafter, Session
from .block import Block, BlockDrafter, load_block
from .eagle import Eagle, EagleDrafter, eagle_for, load_eagle
from .ensemble import EnsembleDrafter
from .fallback import FallbackDrafter
from .heads import Heads, HeadsDrafter, load_heads
from .layer_skip import Exits, LayerSkipDrafter, load_exits
from .lookup import LookupDrafter
from .model import ModelDrafter
from .ngram import NgramDrafter
from .retrieval import RetrievalDrafter, SearchIndex, build_index, load_index
from .synthetic import SyntheticDrafter
from .tree import TreeDrafter

__all__ = [
    "Block",
    "BlockDrafter",
    "Draft",
    "Drafter",
    "Eagle",
    "EagleDrafter",
    "EnsembleDrafter",
    "Exits",
    "FallbackDrafter",
    "Heads",
    "HeadsDrafter",
    "LayerSkipDrafter",
    "LookupDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "RetrievalDrafter",
    "SearchIndex",
    "Session",
    "SyntheticDrafter",
    "TreeDrafter",
    "build_index",
    "eagle_for",
    "load_block",
    "load_eagle",
    "load_exits",
    "load_heads",
    "load_index",
]
