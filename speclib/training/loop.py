"""The one training loop, resumable after a kill at any moment. A recipe says what is learnt, from what, by which loss.

State (weights, optimisers, how far it is) is written beside the model every few minutes, as a whole (see `state`). What
a step reads depends on its number and the seed alone: a resumed run sees exactly the batches that an undisturbed one
would have seen.
"""

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from tqdm.auto import tqdm

from ..errors import TrainingError
from .state import load_state, save_card, save_state

SAVE_EVERY_SECONDS = 120
CURVE_EVERY_STEPS = 50
IGNORED = -100  # the label of what is not learnt
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Training:
    """What a recipe (which has a name and an amount of tokens) gives the loop.

    step(number, share of the training that is done) -> (loss, what the curve shows: scalars or vectors, tokens read).
    save(folder) writes the weights, and returns what the card says of them. Each group of an optimiser has its learning
    rate as "rate" (see `muon`, `adamw`). At each of the shares `marks` a copy is saved as a model of its own. `before`
    counts the tokens that a model read before this training.
    """

    recipe: object
    model: nn.Module  # what learns: a whole model, or what is added to a frozen one
    optimizers: list[torch.optim.Optimizer]
    step: Callable[[int, float], tuple[Tensor, Sequence[Tensor], int]]
    save: Callable[[Path], dict]
    identity: dict  # see `state.identity`
    columns: tuple[str, ...] = ("training loss (nats)",)
    marks: tuple[float, ...] = ()
    before: int = 0


def schedule(progress: float) -> float:
    """Learning-rate factor at a share of the training: short warm-up, plateau, linear descent over the last half."""
    return min(1.0, progress / 0.01 + 0.02, (1.0 - progress) / 0.5 + 0.01)


def muon(*groups: tuple[Iterable[nn.Parameter], float]) -> torch.optim.Muon:
    """Muon for matrices (more learning per token on a CPU's budget), in groups with a learning rate each."""
    groups = [{"params": list(params), "rate": rate} for params, rate in groups]
    return torch.optim.Muon(groups, momentum=0.95, weight_decay=0.01)


def adamw(params: Iterable[nn.Parameter], rate: float, memory: float = 0.95, decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW, for embeddings, norms and all that is small; `memory` is its second beta."""
    groups = [{"params": list(params), "rate": rate}]
    return torch.optim.AdamW(groups, betas=(0.9, memory), weight_decay=decay, fused=True)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of (total variation, KL(teacher || student)) at each place
    "both": lambda variation, divergence: variation + 0.3 * divergence,  # KL keeps the gradient alive where variation
    "kl": lambda variation, divergence: divergence,  # has hardly any, because the two barely overlap
    "tv": lambda variation, divergence: variation,
    "lk": lambda variation, divergence: -torch.log1p(-variation),  # the likelihood of acceptance (2602.23881)
}


def distances(
    student: Tensor, teacher: Tensor, kept: Tensor | None = None, loss: str = "both"
) -> tuple[Tensor, Tensor]:
    """(a student's loss, the total variation between it and its teacher) at each place, of logits [..., V]; the
    student's may be of the `kept` tokens alone [..., K].

    The acceptance rate *is* one minus the total variation (Leviathan et al., Theorem 3.5).
    """
    student, teacher = log_softmax(student.float(), -1), log_softmax(teacher.float(), -1)
    teacher = teacher if kept is None else teacher[..., kept]
    p = teacher.exp()
    variation = 1 - torch.minimum(p, student.exp()).sum(-1)
    return LOSSES[loss](variation, (p * (teacher - student)).sum(-1)), variation


def language_loss(logits_of: Callable[[nn.Module], Tensor], labels: Tensor, model, teacher=None) -> Tensor:
    """Mean loss per token of logits_of(model) [B, T, V]: cross entropy in nats with labels [B, T], or with a teacher
    the `distances` from it. Where a label is IGNORED there is nothing.
    """
    with torch.autocast(labels.device.type, dtype=torch.bfloat16):
        logits = logits_of(model)
        if teacher is not None:
            with torch.no_grad():
                wanted = logits_of(teacher)
    if teacher is None:
        return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    there = labels != IGNORED
    return (distances(logits, wanted)[0] * there).sum() / there.sum()


def run(training: Training, folder: Path) -> Path:
    """Trains to the end and saves the model with its card under `folder`/name; resumes from `folder`/name.state.

    Raises TrainingError if that state belongs to another training, or the loss stops being finite.
    """
    name, total, model = training.recipe.name, training.recipe.tokens, training.model
    path = folder / f"{name}.state"
    step, seen, seconds, curve, smooth = 0, 0, 0.0, [], None
    if state := load_state(path, training.identity, next(model.parameters()).device):
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(training.optimizers, state["optims"], strict=True):
            optimizer.load_state_dict(saved)
        step, seen, seconds, curve = (state[key] for key in ("step", "seen", "seconds", "curve"))

    def save(name: str) -> Path:
        found = training.save(folder / name)
        parameters, tokens = sum(p.numel() for p in model.parameters()), training.before + seen
        times = {"seconds": round(seconds), "machine": machine(), "torch": torch.__version__, "corpus": "corpus.json"}
        rows = {"loss_curve": {"columns": ["tokens", *training.columns, "seconds"], "rows": curve}}
        card = {"name": name, "parameters": parameters, "tokens_seen": tokens, **times, **found, **rows}
        save_card(folder / name, card, training.identity)
        return folder / name

    saved_at = last = time.perf_counter()
    with tqdm(total=total, initial=seen, desc=name, unit="tok", unit_scale=True, mininterval=5) as bar:
        while seen < total:
            progress = seen / total
            factor = schedule(progress)
            for optimizer in training.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * factor
            loss, shown, new = training.step(step, progress)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss of {name} is {loss.item()} at step {step}; try a lower learning rate")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in training.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            now = time.perf_counter()
            step, seen, seconds, last = step + 1, seen + new, seconds + now - last, now
            values = [np.array(value.tolist()) for value in shown]
            smooth = values if smooth is None else [0.95 * a + 0.05 * b for a, b in zip(smooth, values, strict=True)]
            bar.update(new)
            if step % CURVE_EVERY_STEPS == 0 or seen >= total:
                curve.append([seen, *(value.round(4).tolist() for value in smooth), round(seconds, 1)])
                bar.set_postfix_str(" ".join(f"{value:.3f}" for value in np.hstack(smooth)))
            for share in training.marks:
                if progress < share <= seen / total:
                    save(f"{name}-at-{round(100 * share):02d}")
            if now - saved_at > SAVE_EVERY_SECONDS or seen >= total:
                weights = {"model": model.state_dict(), "optims": [o.state_dict() for o in training.optimizers]}
                save_state(path, training.identity, **weights, step=step, seen=seen, seconds=seconds, curve=curve)
                saved_at = now
    return save(name)


def machine() -> str:
    """What it is trained on, for the card."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"{name}, {torch.get_num_threads()} threads"
