"""A target that edits: the embedded target, taught by a small adapter to write a changed copy of what it has just read.

A model of 20 million parameters that has read 22 million tokens does not copy of its own accord, and a guesser that
copies is only as good as the target's wish to. The adapter adds a product of two thin matrices to each attention matrix
(LoRA, Hu et al. 2106.09685); everything else stays as it was.
"""

import random
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..model import adapter
from ..model.language_model import EDITOR
from .corpus import Corpus, Document
from .loop import DEVICE, IGNORED, Training, adamw, run
from .recipes import TARGET
from .state import identity
from .tokenizer import check_tasks, encoded
from .train import load

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
SUFFIXES = "again copy new old two next other alt fast slow".split()
TOO_COMMON = (
    "self and are assert def del elif else except for from global import lambda not pass raise return the "
    "this try while with yield int str that"
).split()


@dataclass(frozen=True)
class Editor:
    """What is trained. `tokens` counts every token seen, prompts and padding included."""

    name: str = EDITOR
    tokens: int = 2_500_000
    rate: float = 2e-3  # of AdamW
    rows: int = 8
    rank: int = 16


Task = tuple[list[int], list[int]]  # the ids of a text, and of the answer that is to follow it


# --- the tasks --------------------------------------------------------------------------------------------------------


def functions(document: Document, margin: str = " *") -> list[str]:
    """Every whole function of a file that says nothing about its result's type, methods moved to the left margin; only
    those that stand there already if `margin` is empty.
    """
    found = re.finditer(rf"^({margin})def \w+\([^)]*\):\n(?:(?:\1    .*)?\n)+", document.text, re.M)
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
    return [
        (text, answer)
        for text, answer in encoded(found, tokenizer)
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
    return inputs.to(DEVICE), wanted.to(DEVICE)


# --- the adapter ------------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """W -> W + up @ down, with up [out, r] zero at first and down [r, in]."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt(model: LlamaForCausalLM, rank: int = Editor.rank) -> nn.ModuleDict:
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


# --- the training -----------------------------------------------------------------------------------------------------


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
    steps = range(min(batches, max(1, len(tasks) // rows)))
    values = [torch.stack(loss_of(model, *batch(tasks, step, rows))) for step in steps]
    return tuple(torch.stack(values).double().mean(0).tolist())


def train(recipe: Editor, corpus: Corpus, folder: Path, seed: int = 0, compile: bool = True) -> Path:
    """Trains the adapter for the target in `folder`; writes safetensors and a card beside it (see `loop.run`).

    It is never compiled: its batches have many shapes. Raises TrainingError without a target or without functions to
    copy, for a state of another training, or when the loss stops being finite.
    """
    own = identity(recipe, corpus, seed, folder / TARGET.name)
    learnt, unseen = (tasks(documents, corpus.tokenizer, seed) for documents in (corpus.learnt, corpus.held_out))
    check_tasks(recipe.name, "copy Python functions", learnt, unseen)
    torch.manual_seed(seed)
    model = load(folder / TARGET.name, torch.float32)
    adapters = adapt(model, recipe.rank)

    def step(number: int, progress: float):
        inputs, wanted = batch(learnt, number, recipe.rows)
        loss, right = loss_of(model, inputs, wanted)
        return loss, [loss, right], inputs.numel()

    def save(path: Path) -> dict:
        path.mkdir(parents=True, exist_ok=True)
        adapter.save({name.replace("/", "."): value for name, value in adapters.state_dict().items()}, path)
        nats, right = held_out_loss(model, unseen)
        return {
            "adapter_of": TARGET.name,
            "target_sha256": own["weights"][TARGET.name],
            "rank": recipe.rank,
            "held_out_nats_per_token": round(nats, 4),
            "held_out_first_choice": round(right, 4),
        }

    columns, optims = (
        ("training loss (nats)", "share of first choices"),
        [adamw(adapters.parameters(), recipe.rate, 0.98)],
    )
    return run(Training(recipe, adapters, optims, step, save, own, columns), folder)
