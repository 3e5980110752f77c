"""The encoder-decoder pair of notebook 10: it repairs small slips in Python source.

The source is a few lines of code with slips put in by fixed rules (`mangle`), the target the lines as they were. Most
of the answer stands in the question, a few tokens of it do not: an easy task with hard places, which a model of a few
million parameters learns in minutes. T5-shaped (Raffel et al. 1910.10683, gated as in 1.1); target deep and narrow,
draft with a single decoder layer, distilled.
"""

import platform
import random
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from .. import embedded
from ..errors import SpeclibError, TrainingError
from .corpus import Document
from .loop import SAVE_EVERY_SECONDS, schedule
from .state import identity, load_state, save_card, save_state

LONGEST = 47  # tokens of a source, and of a target without its end-of-text
IGNORED = -100  # labels that cross_entropy leaves out


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
T5_DRAFT = Seq2SeqRecipe(
    "t5-draft",
    encoder_layers=3,
    decoder_layers=1,
    tokens=320_000,
    learning_rate=0.015,
    embedding_rate=0.001,
    batch_rows=32,
    teacher="t5-target",
)
PAIR = (T5_TARGET, T5_DRAFT)


# --- the task
# ----------------------------------------------------------------------------------------------------------


def _swapped(match: re.Match) -> str:
    """A word with its second and third letter exchanged."""
    word = match[0]
    return word[0] + word[2] + word[1] + word[3:]


# (name, where the slip can happen, what it leaves, how often)
SLIPS = (
    ("letters", re.compile(r"(?<![\w\\])[a-z_]{4,}\b"), _swapped, 0.08),
    ("case", re.compile(r"\b[a-z_]*[A-Z]\w*\b"), lambda match: match[0].lower(), 0.3),
    (
        "quotes",
        re.compile(r"(['\"])([^'\"\n]+)\1"),
        lambda match: ("'" if match[1] == '"' else '"').join(["", match[2], ""]),
        0.25,
    ),
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
    found = [
        {"source": name, "text": mangle(text, rng), "answer": text} for name, text in snippets(documents, rng, count)
    ]
    found = [e for e in found if e["text"] != e["answer"]]
    sizes = [
        [len(x.ids) for x in tokenizer.backend_tokenizer.encode_batch([e[side] for e in found])]
        for side in ("text", "answer")
    ]
    return [e for e, *both in zip(found, *sizes, strict=True) if min(both) >= 12 and max(both) <= LONGEST]


def repair_prompts(held_out: list[Document], tokenizer: PreTrainedTokenizerFast, count: int = 60) -> list[dict]:
    """Held-out tasks for `held_out.json`, no two from the same place."""
    found = {
        e["answer"]: e
        for e in examples(held_out, tokenizer, 40 * count, seed=1)
        if len(tokenizer(e["answer"])["input_ids"]) >= 28
    }
    return list(found.values())[:count]


def tensors(tasks: list[dict], tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """(sources [N, LONGEST], targets [N, LONGEST + 1] with their end-of-text) as int16, IGNORED where there is
    nothing.
    """
    arrays = []
    for side, end in (("text", []), ("answer", [tokenizer.eos_token_id])):
        rows = np.full((len(tasks), LONGEST + len(end)), IGNORED, dtype=np.int16)
        for row, encoded in zip(
            rows, tokenizer.backend_tokenizer.encode_batch([task[side] for task in tasks]), strict=True
        ):
            ids = encoded.ids + end
            row[: len(ids)] = ids
        arrays.append(rows)
    return arrays[0], arrays[1]


# --- the models
# --------------------------------------------------------------------------------------------------------


def build(
    recipe: Seq2SeqRecipe, tokenizer: PreTrainedTokenizerFast, embeddings: Tensor | None = None
) -> T5ForConditionalGeneration:
    """A freshly initialised T5. With the embeddings [V, d] of another model it starts from their main components."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.feed_forward,
        num_layers=recipe.encoder_layers,
        num_decoder_layers=recipe.decoder_layers,
        num_heads=recipe.heads,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    model = T5ForConditionalGeneration(config)
    if embeddings is not None:
        centred = embeddings.float() - embeddings.float().mean(0)
        directions = torch.linalg.svd(centred.T @ centred)[0][:, : recipe.width]
        with torch.no_grad():
            main = centred @ directions
            model.shared.weight.copy_(main / main.std())
    return model


def cut(state: dict[str, Tensor], recipe: Seq2SeqRecipe) -> dict[str, Tensor]:
    """The first layers of a model's weights, as many as the recipe has: where its student starts."""
    layers = {"encoder": recipe.encoder_layers, "decoder": recipe.decoder_layers}

    def kept(name):
        stack, _, rest = name.partition(".block.")
        return not rest or int(rest.split(".")[0]) < layers[stack]

    return {name: value for name, value in state.items() if kept(name)}


def optimizers(model: T5ForConditionalGeneration, recipe: Seq2SeqRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest, each group with its "rate".

    T5 does not divide attention scores by sqrt(d_kv) but folds that into its queries; their rate is divided by it
    instead.
    """
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ".layer." in n and "relative" not in n}
    others = [p for n, p in model.named_parameters() if n not in matrices]
    queries = [p for n, p in matrices.items() if n.endswith(".q.weight")]
    rest = [p for n, p in matrices.items() if not n.endswith(".q.weight")]
    muon = torch.optim.Muon(
        [
            {"params": rest, "rate": recipe.learning_rate},
            {"params": queries, "rate": recipe.learning_rate / model.config.d_kv**0.5},
        ],
        lr=recipe.learning_rate,
        momentum=0.95,
        weight_decay=0.01,
    )
    return [
        muon,
        torch.optim.AdamW(
            [{"params": others, "rate": recipe.embedding_rate}], betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def logits_of(model: T5ForConditionalGeneration, source: Tensor, target: Tensor) -> Tensor:
    """Logits of every target token, each given the source and the true tokens before it. [B, S], [B, T] -> [B, T, V]"""
    begin = target.new_full((len(target), 1), model.config.decoder_start_token_id)
    return model(
        input_ids=source.clamp(min=0),
        attention_mask=(source != IGNORED).long(),
        decoder_input_ids=torch.cat([begin, target[:, :-1].clamp(min=0)], 1),
        use_cache=False,
    ).logits


def loss_of(
    model: T5ForConditionalGeneration, source: Tensor, target: Tensor, teacher: T5ForConditionalGeneration | None = None
) -> Tensor:
    """Mean loss per target token: cross entropy in nats, or with a teacher 0.3 KL + total variation, as in
    `train.loss_of`.
    """
    with torch.autocast(source.device.type, dtype=torch.bfloat16):
        logits = logits_of(model, source, target)
        if teacher is not None:
            with torch.no_grad():
                wanted = logits_of(teacher, source, target)
    if teacher is None:
        return cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    student, wanted = log_softmax(logits.float(), -1), log_softmax(wanted.float(), -1)
    p, q = wanted.exp(), student.exp()
    each = 0.3 * (p * (wanted - student)).sum(-1) + 0.5 * (p - q).abs().sum(-1)  # [B, T]
    there = target != IGNORED
    return (each * there).sum() / there.sum()


@torch.no_grad()
def held_out_nats(model: T5ForConditionalGeneration, sources: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross entropy in nats per target token."""
    model.eval()
    total = count = 0.0
    for k in range(0, len(sources), 64):
        source, target = (torch.from_numpy(a[k : k + 64].astype(np.int64)).to(model.device) for a in (sources, targets))
        with torch.autocast(source.device.type, dtype=torch.bfloat16):
            logits = logits_of(model, source, target)
        total += cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        count += (target != IGNORED).sum().item()
    model.train()
    return total / count


def train(
    recipe: Seq2SeqRecipe,
    documents: list[Document],
    held_out: list[Document],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    embeddings: Tensor | None = None,
    seed: int = 0,
    compile: bool = True,
) -> Path:
    """Trains `recipe` on tasks made from `documents` and saves model and card under `folder`/name; resumes from
    `folder`/name.state.

    embeddings: [V, d] of a finished model with the same tokenizer, to start from; a student starts from its teacher's
    first layers. Raises TrainingError if the state on disk belongs to another recipe, the teacher is missing, or the
    loss stops being finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = None
    if recipe.teacher:
        if not (folder / recipe.teacher / "card.json").exists():
            raise TrainingError(f"{recipe.name} needs {recipe.teacher}, which is not in {folder}; train it first")
        teacher = (
            T5ForConditionalGeneration.from_pretrained(folder / recipe.teacher, dtype=torch.bfloat16).to(device).eval()
        )
    torch.manual_seed(seed)
    model = build(recipe, tokenizer, embeddings).to(device).train()
    if teacher is not None:
        model.load_state_dict(cut(teacher.state_dict(), recipe))
    optims = optimizers(model, recipe)
    # of the places looked at about a third hold a task, of about 35 tokens
    tasks = examples(documents, tokenizer, recipe.tokens // 8, seed)
    sources, targets = tensors(tasks, tokenizer)
    held = tensors(examples(held_out, tokenizer, 2000, seed=2), tokenizer)
    state_path, texts = folder / f"{recipe.name}.state", [document.text for document in (*documents, *held_out)]
    start = [] if embeddings is None else [embeddings.float().cpu().numpy()]
    files = (folder / recipe.teacher / "model.safetensors",) if recipe.teacher else ()
    own = identity(tokenizer, *texts, *start, files=files, recipe=repr(recipe), seed=seed)
    step, seen, seconds, curve = 0, 0, 0.0, []
    if state := load_state(state_path, own, device):
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, seen, seconds, curve = state["step"], state["seen"], state["seconds"], state["curve"]

    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of
    began, saved_at, started_with, smooth = time.perf_counter(), time.perf_counter(), seconds, None
    bar = tqdm(total=recipe.tokens, initial=seen, desc=recipe.name, unit="tok", unit_scale=True, mininterval=5)
    while seen < recipe.tokens:
        rows = np.arange(step * recipe.batch_rows, (step + 1) * recipe.batch_rows) % len(sources)
        source, target = (torch.from_numpy(a[rows].astype(np.int64)).to(device) for a in (sources, targets))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = group["rate"] * schedule(seen / recipe.tokens)
        loss = loss_function(model, source, target, teacher)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of {recipe.name} is {loss.item()} at step {step}; try a lower learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        new = int((target != IGNORED).sum())
        step, seen, seconds = step + 1, seen + new, started_with + time.perf_counter() - began
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        bar.update(new)
        if step % 50 == 0:
            curve.append([seen, round(smooth, 4), round(seconds, 1)])
            bar.set_postfix(loss=f"{smooth:.3f}")
        if time.perf_counter() - saved_at > SAVE_EVERY_SECONDS or seen >= recipe.tokens:
            weights = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims]}
            save_state(state_path, own, **weights, step=step, seen=seen, seconds=seconds, curve=curve)
            saved_at = time.perf_counter()
    bar.close()
    return save_model(
        model, tokenizer, folder / recipe.name, recipe, seen, curve, held_out_nats(model, *held), seconds, own
    )


def save_model(
    model,
    tokenizer,
    path: Path,
    recipe: Seq2SeqRecipe,
    seen: int,
    curve: list,
    nats: float,
    seconds: float,
    identity: dict,
) -> Path:
    """Writes bf16 safetensors, the tokenizer and `card.json` to `path`; returns `path`."""
    copy = T5ForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    shape = {
        "encoder_layers": recipe.encoder_layers,
        "decoder_layers": recipe.decoder_layers,
        "width": recipe.width,
        "heads": recipe.heads,
        "feed_forward": recipe.feed_forward,
    }
    card = {
        "name": path.name,
        "task": "repair of slips in Python source, made by the rules of speclib/training/seq2seq.py",
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": shape,
        "tokens_seen": seen,
        "teacher": recipe.teacher,
        "held_out_nats_per_token": round(nats, 4),
        "seconds": round(seconds),
        "machine": f"{torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ' CPU'}, "
        f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "corpus": "corpus.json",
        "loss_curve": {
            "columns": [
                "tokens",
                "training loss (nats)" if recipe.teacher is None else "training loss (0.3 KL + TV)",
                "seconds",
            ],
            "rows": curve,
        },
    }
    save_card(path, card, identity)
    return path


def target_embeddings(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Tensor | None:
    """The input embeddings [V, d] of the causal target in `folder`, or of the embedded one: if it has this
    tokenizer.
    """
    from safetensors.torch import load_file

    try:
        source = folder / "target" if (folder / "target" / "card.json").exists() else embedded.fetch("models/target")
    except SpeclibError:
        return None
    alike = PreTrainedTokenizerFast.from_pretrained(source).get_vocab() == tokenizer.get_vocab()
    return load_file(source / "model.safetensors")["model.embed_tokens.weight"] if alike else None
