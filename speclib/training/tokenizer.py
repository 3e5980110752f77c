"""A byte-level BPE tokenizer of 4,096 tokens, trained on the corpus: every text can be written with it."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import TrainingError

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A transformers tokenizer learnt from `texts`; runs of blanks merge, as Python's indentation asks for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def encoded(tasks: list[dict], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """The ids of each task's "text", and of its "answer"."""
    sides = ([task[side] for task in tasks] for side in ("text", "answer"))
    texts, answers = ([e.ids for e in tokenizer.backend_tokenizer.encode_batch(side)] for side in sides)
    return list(zip(texts, answers, strict=True))


def check_tasks(name: str, what: str, learnt: list, held_out: list) -> None:
    """Raises TrainingError if a corpus has no tasks to learn from, or none to be held out."""
    if not learnt or not held_out:
        found = f"the corpus has {len(learnt)} tasks for it to learn from, and {len(held_out)} held out"
        raise TrainingError(f"{name} learns to {what}, and {found}")
