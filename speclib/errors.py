"""The errors speclib raises: each says what is wrong and what to do, before any work is done."""


class SpeclibError(Exception):
    """The parent of every error that speclib raises on purpose."""


class InvalidArgument(SpeclibError, ValueError):
    """An argument is outside its range: a negative temperature, an empty prompt, an unknown rule."""


class ContextOverflow(SpeclibError, ValueError):
    """Prompt and new tokens do not fit into the context a model was built for."""


class NonFiniteLogits(SpeclibError, ArithmeticError):
    """A model returned NaN or infinite logits, so no distribution exists to sample from."""


class IncompatibleModels(SpeclibError, ValueError):
    """Target and draft do not speak about the same tokens."""


class UnsupportedModel(SpeclibError, TypeError):
    """The model's cache cannot be rolled back, or it is not a causal language model."""


class ModelLoadError(SpeclibError, OSError):
    """A model is missing, unreadable, or not what its manifest says (a corrupted weight file)."""


class IndexLoadError(SpeclibError, OSError):
    """A search index is missing, or its files are not what was saved."""


class TrainingError(SpeclibError, RuntimeError):
    """Training cannot start or go on: no text, a foreign checkpoint, a loss that is not finite."""


class FileError(SpeclibError, OSError):
    """A file cannot be written where it is to go, or one that was written is torn or foreign."""
