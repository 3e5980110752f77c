"""What is trained: the target and its ladder of drafts, from nearly useless to very similar.

All are Llama-shaped. The target is deep and narrow, because a decoder's latency grows with its depth while its quality
grows with its size: a one-layer draft then costs a small part of a target forward. A teacher's name makes a recipe a
distillation: the student learns the teacher's probabilities, not only the next token.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """One model to train. `tokens` counts every token seen; `long_share` of them in the full context."""

    name: str
    width: int
    layers: int
    heads: int
    feed_forward: int
    tokens: int
    learning_rate: float = 0.02  # of Muon, for the matrices inside the layers
    embedding_rate: float = 0.004  # of AdamW, for embeddings and norms
    batch_tokens: int = 8192
    context: int = 512  # what the saved model accepts
    short_context: int = 256  # what most of the training sees: attention is cheaper there
    long_share: float = 0.12
    start_from: str | None = None  # a recipe of the same width, whose weights are the start; fewer layers are grown
    teacher: str | None = None
    teacher_samples: float = 0.0  # share of the batches that are the teacher's own text
    checkpoint_at: tuple[float, ...] = ()  # shares of the training at which a copy is kept as a model of its own


_TAUGHT = {"teacher": "target-shallow", "teacher_samples": 0.25}
_GENTLY = {"learning_rate": 0.01, "embedding_rate": 0.002}

# In what follows: name, width, layers, heads, feed-forward width, tokens. The target is trained shallow, then grown:
# blocks that at first do nothing are put between its layers, and training goes on.
SHALLOW = Recipe("target-shallow", 256, 14, 4, 704, 16_000_000)
TARGET = Recipe("target", 256, 24, 4, 704, 6_000_000, 0.014, 0.002, start_from="target-shallow")

# From the fewest parameters to the most. One layer costs least but cannot look up what followed an earlier occurrence
# of a word (that takes two layers of attention); width is nearly free where overhead rules. "early" is a stage, taught
# by the shallow target.
_EARLY = Recipe("draft-d384x1-early", 384, 1, 6, 1536, 3_500_000, start_from="draft-d384x1", **_GENTLY, **_TAUGHT)
LADDER = (
    Recipe("draft-d64x1", 64, 1, 1, 176, 2_000_000, checkpoint_at=(0.02,)),
    Recipe("draft-d128x1", 128, 1, 2, 352, 2_500_000),
    Recipe("draft-d256x2-distilled", 256, 2, 4, 704, 3_500_000, **_TAUGHT),
    Recipe("draft-d384x1", 384, 1, 6, 1536, 3_000_000),
    _EARLY,
    replace(_EARLY, name="draft-d384x1-distilled", tokens=5_000_000, start_from=_EARLY.name, teacher="target"),
)

# Steps on the way to another model, which do not ship.
UNSHIPPED = (SHALLOW.name, _EARLY.name)
