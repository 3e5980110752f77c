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
    teacher: str | None = None
    teacher_samples: float = 0.0  # share of the batches that are the teacher's own text
    checkpoint_at: tuple[float, ...] = ()  # shares of the training at which a copy is kept as a model of its own


TARGET = Recipe("target", width=256, layers=14, heads=4, feed_forward=704, tokens=16_000_000)
