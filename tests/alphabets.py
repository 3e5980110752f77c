"""Small tokenizers of the three common kinds: what one token means depends in each on its neighbours, in another
way.
"""

import random
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("byte-level", "Llama", "WordPiece")
TEXT = "the quick brown fox jumps over the lazy dog, naïve café 日本語 🎉 I don't think so . "


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    if kind == "byte-level":
        inner, trainer = (
            Tokenizer(models.BPE()),
            trainers.BpeTrainer(
                vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            ),
        )
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        inner.train_from_iterator(["the quick fox "] * 9, trainer)  # all else is bytes
    elif (
        kind == "Llama"
    ):  # SentencePiece: a space belongs to the word behind it, the first one is left out, unknown characters are bytes
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = ["<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
        inner.train_from_iterator(
            ["the quick brown fox, café "] * 40,
            trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False),
        )
    else:  # words and ## pieces; spaces before marks are taken back when the mark is there
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=True)
        inner.train_from_iterator(
            [TEXT] * 40, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def some_tokens(kind: str, seed: int, count: int = 60) -> list[int]:
    """Random tokens, torn characters among them; with an odd seed a sensible sentence stands in the middle."""
    chance, tokens = random.Random(seed), tokenizer(kind)
    drawn = [chance.randrange(len(tokens)) for _ in range(count)]
    return drawn[: count // 2] + tokens(TEXT)["input_ids"] * (seed % 2) + drawn[count // 2 :]
