"""The encoder-decoder pair of notebook 11: it repairs small slips in Python source.

The source is a few lines of code with slips put in by fixed rules (`mangle`), the target the lines as they were. Most
of the answer stands in the question, a few tokens of it do not: an easy task with hard places, which a model of a few
million parameters learns in minutes. T5-shaped (Raffel et al. 1910.10683, gated as in 1.1); target deep and narrow,
draft with a single decoder layer, distilled.
"""

import random
import re
import textwrap
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from .. import embedded
from ..errors import SpeclibError
from ..files import digest
from .corpus import Corpus, Document
from .loop import DEVICE, IGNORED, Training, adamw, language_loss, muon, run
from .recipes import TARGET
from .state import identity
from .tokenizer import check_tasks, encoded

LONGEST = 47  # tokens of a source, and of a target without its end-of-text


@dataclass(frozen=True)
class Seq2SeqRecipe:
    """One model to train. `tokens` counts the target tokens seen; padding is not counted."""

    name: str
    encoder_layers: int
    decoder_layers: int
    tokens: int
    width: int = 192
    heads: int = 3
    feed_forward: int = 384
    learning_rate: float = 0.02  # of Muon, for the matrices inside the layers
    embedding_rate: float = 0.003  # of AdamW, for embeddings, norms and position biases
    batch_rows: int = 64
    teacher: str | None = None


T5_TARGET = Seq2SeqRecipe("t5-target", encoder_layers=3, decoder_layers=8, tokens=2_400_000)
# The draft's encoder runs once a text: it may as well be as deep as the target's.
_GENTLY = {"learning_rate": 0.015, "embedding_rate": 0.001, "batch_rows": 32}
T5_DRAFT = Seq2SeqRecipe("t5-draft", encoder_layers=3, decoder_layers=1, tokens=320_000, teacher="t5-target", **_GENTLY)
PAIR = (T5_TARGET, T5_DRAFT)


# --- the task ---------------------------------------------------------------------------------------------------------


OTHER_QUOTES = str.maketrans("'\"", "\"'")

# (name, where the slip can happen, what it leaves, how often)
SLIPS = (
    ("letters", re.compile(r"(?<![\w\\])([a-z_])([a-z_])([a-z_])([a-z_]+)\b"), lambda m: m.expand(r"\1\3\2\4"), 0.08),
    ("case", re.compile(r"\b[a-z_]*[A-Z]\w*\b"), lambda match: match[0].lower(), 0.3),
    ("quotes", re.compile(r"(['\"])([^'\"\n]+)\1"), lambda match: match[0].translate(OTHER_QUOTES), 0.25),
    ("blanks", re.compile(r"(?<=\S) (==|!=|<=|>=|\+=|-=|->|=|\+|-|\*|/|<|>|%) (?=\S)"), lambda match: match[1], 0.3),
    ("commas", re.compile(r", (?=\S)"), lambda match: ",", 0.25),
    ("colons", re.compile(r":$", re.M), lambda match: "", 0.4),
)


def mangle(text: str, rng: random.Random) -> str:
    """`text` with slips: letters exchanged, capitals lost, quotes of the other kind, blanks and colons left out."""
    for _, place, slip, share in SLIPS:
        text = place.sub(lambda match, slip=slip, share=share: slip(match) if rng.random() < share else match[0], text)
    return text


def snippets(documents: list[Document], rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """(name of the file, one to four lines of it that hold code, as far to the left as they go), at most `count`."""
    for _ in range(count):
        document = rng.choice(documents)
        lines = document.text.split("\n")
        start = rng.randrange(len(lines))
        block: list[str] = []
        for line in lines[start : start + 4]:
            if not line.strip() or sum(map(len, block)) + len(line.strip()) > 150:
                break
            block.append(line.rstrip())
        text = textwrap.dedent("\n".join(block))
        if len(text) > 40 and text.isascii() and re.search(r"[\w\])] ?[=(\[]", text):
            yield document.name, text


def examples(documents: list[Document], tokenizer: PreTrainedTokenizerFast, count: int, seed: int = 0) -> list[dict]:
    """At most `count` tasks {"source": file, "text": mangled, "answer": as it was}, both sides between 12 and LONGEST
    tokens.
    """
    rng = random.Random(seed)
    found = [(name, mangle(text, rng), text) for name, text in snippets(documents, rng, count)]
    found = [{"source": name, "text": text, "answer": answer} for name, text, answer in found if text != answer]
    sizes = [[len(ids) for ids in both] for both in encoded(found, tokenizer)]
    return [e for e, both in zip(found, sizes, strict=True) if min(both) >= 12 and max(both) <= LONGEST]


def repair_prompts(held_out: list[Document], tokenizer, count: int = 60, least: int = 18, most: int = 29) -> list[dict]:
    """`count` held-out tasks for `held_out.json`, as in `examples`, no snippet twice: `least` to `most` tokens, where
    one line lost the colon at its end.

    A light task, so that a pair in order repairs most of them (data/README.md has the counts) and a bug is seen.
    """
    rng, found = random.Random(1), {}
    for name, text in snippets(held_out, rng, 100 * count):
        colons = [match.start() for match in re.finditer(r":$", text, re.M)]
        if colons and least <= len(tokenizer(text)["input_ids"]) <= most:
            at = rng.choice(colons)
            found[text] = {"source": name, "text": text[:at] + text[at + 1 :], "answer": text}
    return list(found.values())[:count]


def tensors(tasks: list[dict], tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """(sources [N, LONGEST], targets [N, LONGEST + 1] with their end-of-text) as int16, IGNORED where there is
    nothing.
    """
    sources, targets = (np.full((len(tasks), LONGEST + k), IGNORED, dtype=np.int16) for k in (0, 1))
    for row, (text, answer) in enumerate(encoded(tasks, tokenizer)):
        sources[row, : len(text)] = text
        targets[row, : len(answer) + 1] = [*answer, tokenizer.eos_token_id]
    return sources, targets


# --- the models -------------------------------------------------------------------------------------------------------


def build(
    recipe: Seq2SeqRecipe, tokenizer: PreTrainedTokenizerFast, embeddings: Tensor | None = None
) -> T5ForConditionalGeneration:
    """A freshly initialised T5. With the embeddings [V, d] of another model it starts from their main components."""
    shape = {"d_model": recipe.width, "d_kv": recipe.width // recipe.heads, "d_ff": recipe.feed_forward}
    shape |= {"num_layers": recipe.encoder_layers, "num_decoder_layers": recipe.decoder_layers}
    kind = {"feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 64, "dropout_rate": 0.0}
    words = {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    words |= dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), tokenizer.eos_token_id)
    model = T5ForConditionalGeneration(T5Config(num_heads=recipe.heads, **shape, **kind, **words))
    if embeddings is not None:
        centred = embeddings.float() - embeddings.float().mean(0)
        directions = torch.linalg.svd(centred.T @ centred)[0][:, : recipe.width]
        with torch.no_grad():
            main = centred @ directions
            model.shared.weight.copy_(main / main.std())
    return model


def optimizers(model: T5ForConditionalGeneration, recipe: Seq2SeqRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest.

    T5 does not divide attention scores by sqrt(d_kv) but folds that into its queries; their rate is divided by it
    instead.
    """
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ".layer." in n and "relative" not in n}
    others = [p for n, p in model.named_parameters() if n not in matrices]
    queries, rest = ([p for n, p in matrices.items() if n.endswith(".q.weight") is asked] for asked in (True, False))
    rate = recipe.learning_rate
    return [muon((rest, rate), (queries, rate / model.config.d_kv**0.5)), adamw(others, recipe.embedding_rate)]


def logits_of(model: T5ForConditionalGeneration, source: Tensor, target: Tensor) -> Tensor:
    """Logits of every target token, each given the source and the true tokens before it. [B, S], [B, T] -> [B, T, V]"""
    begin = target.new_full((len(target), 1), model.config.decoder_start_token_id)
    return model(
        input_ids=source.clamp(min=0),
        attention_mask=(source != IGNORED).long(),
        decoder_input_ids=torch.cat([begin, target[:, :-1].clamp(min=0)], 1),
        use_cache=False,
    ).logits


def loss_of(model, source: Tensor, target: Tensor, teacher: T5ForConditionalGeneration | None = None) -> Tensor:
    """The `language_loss` on targets [B, T] for sources [B, S]."""
    return language_loss(lambda m: logits_of(m, source, target), target, model, teacher)


def batch(sources: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Some rows of `tensors`, as they are learnt from."""
    return tuple(torch.from_numpy(side[rows].astype(np.int64)).to(DEVICE) for side in (sources, targets))


@torch.no_grad()
def held_out_nats(model: T5ForConditionalGeneration, sources: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross entropy in nats per target token."""
    total = count = 0.0
    for rows in np.array_split(np.arange(len(sources)), -(-len(sources) // 64)):
        source, target = batch(sources, targets, rows)
        there = (target != IGNORED).sum().item()
        total, count = total + loss_of(model, source, target).item() * there, count + there
    return total / count


def train(recipe: Seq2SeqRecipe, corpus: Corpus, folder: Path, seed: int = 0, compile: bool = True) -> Path:
    """Trains `recipe` on tasks made from a corpus and saves model and card under `folder`/name (see `loop.run`).

    It starts from the embeddings of the causal target, if that has the same tokenizer, and a student from its teacher's
    first layers. Raises TrainingError if the teacher is missing, for a state of another training, or when the loss
    stops being finite.
    """
    tokenizer, embeddings, teacher = corpus.tokenizer, target_embeddings(folder, corpus.tokenizer), None
    start = None if embeddings is None else digest(embeddings.float().cpu().numpy())
    own = identity(recipe, corpus, seed, *([folder / recipe.teacher] if recipe.teacher else []), embeddings=start)
    if recipe.teacher:
        teacher = T5ForConditionalGeneration.from_pretrained(folder / recipe.teacher, dtype=torch.bfloat16)
        teacher = teacher.to(DEVICE).eval()
    torch.manual_seed(seed)
    model = build(recipe, tokenizer, embeddings).to(DEVICE).train()
    if teacher is not None:
        model.load_state_dict({name: teacher.state_dict()[name] for name in model.state_dict()})
    # of the places looked at about a third hold a task, of about 35 tokens
    learnt = examples(corpus.learnt, tokenizer, max(400, recipe.tokens // 8), seed)
    unseen = examples(corpus.held_out, tokenizer, 2000, seed=2)
    check_tasks(recipe.name, "repair Python source", learnt, unseen)
    (sources, targets), held = tensors(learnt, tokenizer), tensors(unseen, tokenizer)
    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(number: int, progress: float):
        rows = np.arange(number * recipe.batch_rows, (number + 1) * recipe.batch_rows) % len(sources)
        source, target = batch(sources, targets, rows)
        loss = loss_function(model, source, target, teacher)
        return loss, [loss], int((target != IGNORED).sum())

    def save(path: Path) -> dict:
        deepcopy(model).to(torch.bfloat16).save_pretrained(path)
        tokenizer.save_pretrained(path)
        shape = ("encoder_layers", "decoder_layers", "width", "heads", "feed_forward")
        return {
            "task": "repair of slips in Python source, made by the rules of speclib/training/seq2seq.py",
            "shape": {key: getattr(recipe, key) for key in shape},
            "teacher": recipe.teacher,
            "held_out_nats_per_token": round(held_out_nats(model, *held), 4),
        }

    columns = ("training loss (0.3 KL + TV)" if recipe.teacher else "training loss (nats)",)
    return run(Training(recipe, model, optimizers(model, recipe), step, save, own, columns), folder)


def target_embeddings(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Tensor | None:
    """The input embeddings [V, d] of the causal target in `folder`, or of the embedded one: if it has this
    tokenizer.
    """
    own = folder / TARGET.name
    try:
        source = own if (own / "card.json").exists() else embedded.fetch(f"models/{TARGET.name}")
    except SpeclibError:
        return None
    alike = PreTrainedTokenizerFast.from_pretrained(source).get_vocab() == tokenizer.get_vocab()
    return load_file(source / "model.safetensors")["model.embed_tokens.weight"] if alike else None
