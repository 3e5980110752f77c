"""What is trained: the target and its ladder of drafts, from nearly useless to very similar.

All are Llama-shaped. The target is deep and narrow, because a decoder's latency grows with its depth while
its quality grows with its size: a one-layer draft then costs a small part of a target forward. A teacher's
name makes a recipe a distillation: the student learns the teacher's probabilities, not only the next token.
"""

from dataclasses import dataclass


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
    start_from: str | None = (
        None  # a finished recipe of the same width whose weights are the start; fewer layers are grown
    )
    teacher: str | None = None
    teacher_samples: float = 0.0  # share of the batches that are the teacher's own text
    checkpoint_at: tuple[float, ...] = ()  # shares of the training at which a copy is kept as a model of its own


# The target is trained shallow, then grown: blocks that at first do nothing are put between its layers, and training
# goes on.
SHALLOW = Recipe("target-shallow", width=256, layers=14, heads=4, feed_forward=704, tokens=16_000_000)
TARGET = Recipe(
    "target",
    width=256,
    layers=24,
    heads=4,
    feed_forward=704,
    tokens=6_000_000,
    start_from="target-shallow",
    learning_rate=0.014,
    embedding_rate=0.002,
)

_DISTILLED = {"teacher": "target", "teacher_samples": 0.25, "learning_rate": 0.01, "embedding_rate": 0.002}

# From the fewest parameters to the most. One layer costs least but cannot look up what followed an earlier occurrence
# of a word (that takes two layers of attention); width is nearly free where overhead rules. "early" is a stage, taught
# by the shallow target.
LADDER = (
    Recipe("draft-d64x1", width=64, layers=1, heads=1, feed_forward=176, tokens=2_000_000, checkpoint_at=(0.02,)),
    Recipe("draft-d128x1", width=128, layers=1, heads=2, feed_forward=352, tokens=2_500_000),
    Recipe(
        "draft-d256x2-distilled",
        width=256,
        layers=2,
        heads=4,
        feed_forward=704,
        tokens=3_500_000,
        teacher="target-shallow",
        teacher_samples=0.25,
    ),
    Recipe("draft-d384x1", width=384, layers=1, heads=6, feed_forward=1536, tokens=3_000_000),
    Recipe(
        "draft-d384x1-early",
        width=384,
        layers=1,
        heads=6,
        feed_forward=1536,
        tokens=3_500_000,
        start_from="draft-d384x1",
        **{**_DISTILLED, "teacher": "target-shallow"},
    ),
    Recipe(
        "draft-d384x1-distilled",
        width=384,
        layers=1,
        heads=6,
        feed_forward=1536,
        tokens=5_000_000,
        start_from="draft-d384x1-early",
        **_DISTILLED,
    ),
)

# Steps on the way to another model, which do not ship.
UNSHIPPED = ("target-shallow", "draft-d384x1-early")
