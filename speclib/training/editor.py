"""A target that edits: the embedded target, taught by a small adapter to write a changed copy of what it has just read.

A model of 20 million parameters that has read 22 million tokens does not copy of its own accord, and a guesser that
copies is only as good as the target's wish to. The adapter adds a product of two thin matrices to each attention matrix
(LoRA, Hu et al. 2106.09685); everything else stays as it was. Training is resumable as in `train`.
"""

import platform
import random
import re
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

import pooch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import TrainingError
from ..model import adapter
from ..model.language_model import EDITOR
from .corpus import Document
from .loop import SAVE_EVERY_SECONDS, schedule
from .state import identity, load_state, save_card, save_state

RANK = 16
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
TOKENS = 2_500_000
RATE = 2e-3
IGNORED = -100  # what cross_entropy passes over
SUFFIXES = "again copy new old two next other alt fast slow".split()
TOO_COMMON = (
    "self and are assert def del elif else except for from global import lambda not pass raise return the "
    "this try while with yield int str that"
).split()

Task = tuple[list[int], list[int]]  # the ids of a text, and of the answer that is to follow it


# --- the tasks
# ---------------------------------------------------------------------------------------------------------


def functions(document: Document) -> list[str]:
    """Every whole function of a file that says nothing about its result's type, methods moved to the left margin."""
    found = re.finditer(r"^( *)def \w+\([^)]*\):\n(?:(?:\1    .*)?\n)+", document.text, re.M)
    whole = [textwrap.dedent(match.group(0)).rstrip() for match in found]
    return [function for function in whole if "):\n" in function]  # some have nothing but blank lines below them


def renamed(function: str, suffix: str = "again") -> dict[str, str]:
    """The task of writing a function again under another name: "text" ends with the copy's signature, "answer" is the
    rest of it.
    """
    old = re.match(r"def (\w+)", function).group(1)
    return _task(function, f"the same, renamed to {old}_{suffix}", old, f"{old}_{suffix}")


def reworded(function: str, choice: random.Random, suffix: str = "again") -> dict[str, str] | None:
    """The task of writing a function again with one of its words exchanged, or None if none stands three times below
    its signature.
    """
    name, body = re.match(r"def (\w+)", function).group(1), function.split("):\n", 1)[1]
    counts = {word: len(re.findall(rf"\b{word}\b", body)) for word in sorted(set(re.findall(r"\b[a-z]\w{2,}\b", body)))}
    words = [word for word, count in counts.items() if count >= 3 and word not in (name, *TOO_COMMON)]
    if not words:
        return None
    word = choice.choice(words)
    return _task(function, f"the same, with {word} called {word}_{suffix}", word, f"{word}_{suffix}")


def _task(function: str, order: str, old: str, new: str) -> dict[str, str]:
    first, rest = re.sub(rf"\b{old}\b", new, function).split("):\n", 1)
    return {"text": f"{function}\n\n\n# {order}\n{first}):\n", "answer": rest}


def tasks(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, seed: int = 0, least: int = 24, most: int = 210
) -> list[Task]:
    """A task for every function whose answer has `least` to `most` tokens, half of them `reworded` where a word allows
    it, in an order that the seed decides.
    """
    choice, found = random.Random(seed), []
    for document in documents:
        for function in functions(document):
            if 3 * least < len(function) < 5 * most:  # in characters: tokenizing the others would be a waste
                task = reworded(function, choice, choice.choice(SUFFIXES)) if choice.random() < 0.5 else None
                found.append(task or renamed(function, choice.choice(SUFFIXES)))
    choice.shuffle(found)
    sides = [
        [e.ids for e in tokenizer.backend_tokenizer.encode_batch([task[side] for task in found])]
        for side in ("text", "answer")
    ]
    return [
        (text, answer)
        for text, answer in zip(*sides, strict=True)
        if least <= len(answer) <= most and len(text) + len(answer) <= 2 * most + 30
    ]


def batch(tasks: list[Task], step: int, rows: int, pool: int = 32) -> tuple[Tensor, Tensor]:
    """Batch number `step`: (inputs [B, T], the token to predict at each place [B, T], IGNORED where it is not the
    answer's).

    Tasks of like length go together: each `pool` batches are sorted before they are cut.
    """
    group, place = divmod(step, pool)
    first = group * pool * rows % max(1, len(tasks) - pool * rows)
    near = sorted(tasks[first : first + pool * rows], key=lambda task: len(task[0]) + len(task[1]))
    place = place * 13 % pool  # short ones and long ones take turns
    chosen = near[place * rows : (place + 1) * rows] or near[:rows]
    width = max(len(text) + len(answer) for text, answer in chosen)
    width = -(-width // 32) * 32  # few different shapes
    inputs, wanted = torch.zeros(len(chosen), width, dtype=torch.long), torch.full((len(chosen), width), IGNORED)
    for row, (text, answer) in enumerate(chosen):
        ids = torch.tensor(text + answer)
        inputs[row, : len(ids)] = ids
        wanted[row, len(text) - 1 : len(ids) - 1] = ids[len(text) :]
    return inputs, wanted


# --- the adapter
# -------------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """W -> W + up @ down, with up [out, r] zero at first and down [r, in]."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt(model: LlamaForCausalLM, rank: int = RANK) -> nn.ModuleDict:
    """Puts a `LowRank` on each attention matrix of `model`, whose own weights no longer learn. Keys are the matrices'
    names, with / for the dot.
    """
    model.requires_grad_(False)
    found = nn.ModuleDict()
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] in MATRICES:
            found[name.replace(".", "/")] = low_rank = LowRank(module.weight, rank).to(module.weight.device)
            parametrize.register_parametrization(module, "weight", low_rank)
    return found


# --- the training
# ------------------------------------------------------------------------------------------------------


def loss_of(model: LlamaForCausalLM, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(mean loss in nats per token of the answers, the share of those tokens that are the model's first choice), of a
    `batch`.
    """
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model(inputs, use_cache=False).logits
    asked = wanted != IGNORED
    logits, wanted = logits[asked].float(), wanted[asked]
    return cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean()


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tasks: list[Task], rows: int = 8, batches: int = 24) -> tuple[float, float]:
    """(nats per token, share of first choices), the mean of at most `batches` batches of held-out tasks."""
    values = []
    for step in range(min(batches, max(1, len(tasks) // rows))):
        inputs, wanted = batch(tasks, step, rows)
        loss, right = loss_of(model, inputs.to(model.device), wanted.to(model.device))
        values.append((loss.item(), right.item()))
    return tuple(sum(column) / len(values) for column in zip(*values, strict=True))


def train(
    documents: list[Document],
    held_out: list[Document],
    tokenizer: PreTrainedTokenizerFast,
    target_folder: Path,
    folder: Path,
    amount: int | None = None,
    seed: int = 0,
    rows: int = 8,
) -> Path:
    """Trains the adapter for the target in `target_folder`; writes safetensors and a card to `folder`/target-editor.

    amount: tokens to see, prompts and padding included, else TOKENS. Resumes from `folder`/target-editor.state. Raises
    TrainingError without a target or without functions to copy, for a state of another training, or when the loss stops
    being finite.
    """
    if not (target_folder / "card.json").exists():
        raise TrainingError(f"{EDITOR} needs a finished target, which is not in {target_folder}; train it first")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learnt, unseen = tasks(documents, tokenizer, seed), tasks(held_out, tokenizer, seed)
    if not learnt or not unseen:
        raise TrainingError(
            f"{EDITOR} learns to copy Python functions, and the corpus has {len(learnt)} of fitting length, "
            f"{len(unseen)} of them held out"
        )
    digest = pooch.file_hash(str(target_folder / "model.safetensors"))
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(target_folder, dtype=torch.float32).to(device)
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")  # faster to train than sdpa on a CPU
    adapters = adapt(model)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    amount, state_path = amount or TOKENS, folder / f"{EDITOR}.state"
    texts = (document.text for document in (*documents, *held_out))
    own = identity(tokenizer, *texts, amount=amount, seed=seed, target=digest, rows=rows, rank=RANK)
    step, seen, seconds, curve = 0, 0, 0.0, []
    if state := load_state(state_path, own, device):
        adapters.load_state_dict(state["adapters"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, seconds, curve = state["step"], state["seen"], state["seconds"], state["curve"]

    def save() -> None:
        weights = {"adapters": adapters.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(state_path, own, **weights, step=step, seen=seen, seconds=seconds, curve=curve)

    saved_at = last = time.perf_counter()
    smooth = None
    with tqdm(total=amount, initial=seen, desc=EDITOR, unit="tok", unit_scale=True, mininterval=5) as bar:
        while seen < amount:
            optimizer.param_groups[0]["lr"] = RATE * schedule(seen / amount)
            inputs, wanted = batch(learnt, step, rows)
            loss, right = loss_of(model, inputs.to(device), wanted.to(device))
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss of {EDITOR} is {loss.item()} at step {step}; try a lower learning rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + inputs.numel()
            now = time.perf_counter()
            seconds, last = seconds + now - last, now
            values = (loss.item(), right.item())
            smooth = (
                values
                if smooth is None
                else tuple(0.95 * old + 0.05 * new for old, new in zip(smooth, values, strict=True))
            )
            bar.update(inputs.numel())
            if step % 50 == 0 or seen >= amount:
                curve.append([seen, *(round(value, 4) for value in smooth), round(seconds, 1)])
                bar.set_postfix(loss=f"{smooth[0]:.3f}", right=f"{smooth[1]:.3f}")
            if now - saved_at > SAVE_EVERY_SECONDS:
                save()
                saved_at = now
    save()
    return _save(model, adapters, unseen, folder / EDITOR, target_folder.name, own, seen, seconds, curve)


def _save(
    model: LlamaForCausalLM,
    adapters: nn.ModuleDict,
    unseen: list[Task],
    path: Path,
    target: str,
    identity: dict,
    seen: int,
    seconds: float,
    curve: list,
) -> Path:
    """Writes bf16 safetensors and `card.json` to `path`; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    adapter.save({name.replace("/", "."): value for name, value in adapters.state_dict().items()}, path)
    nats, right = held_out_loss(model, unseen)
    card = {
        "name": path.name,
        "parameters": sum(p.numel() for p in adapters.parameters()),
        "adapter_of": target,
        "target_sha256": identity["target"],
        "rank": RANK,
        "tokens_seen": seen,
        "held_out_nats_per_token": round(nats, 4),
        "held_out_first_choice": round(right, 4),
        "seconds": round(seconds),
        "machine": f"{torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ' CPU'}, "
        f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "corpus": "corpus.json",
        "loss_curve": {
            "columns": ["tokens", "training loss (nats)", "share of first choices", "seconds"],
            "rows": curve,
        },
    }
    save_card(path, card, identity)
    return path
