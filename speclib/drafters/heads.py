"""Parallel heads: all guesses at once, from the target's last hidden state.

Each head looks at the target's last hidden state and at the newest token, and guesses the token one, two, three ...
places on. No guess waits for another, so all of them cost one small product; none knows what the others drew, so they
grow worse with distance. Sources: blockwise decoding (1811.03115); Medusa (2401.10774); feeding the newest token to the
heads is from Hydra (2402.05109).
"""

from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, rms_norm, silu

from .. import embedded
from ..errors import IncompatibleModels, InvalidArgument, ModelLoadError
from ..files import reading
from ..law.distributions import Draw, Sampling, point_mass
from ..model.context import Context
from .base import Draft, Drafter, Session, always, placed
from .tree import without


class Heads(nn.Module):
    """`count` heads of one residual block each: h + B silu(A [h, e]), with h the hidden state and e the newest token's
    embedding.

    What comes out goes through the target's own output matrix.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.count, self.width = count, width
        self.mix = nn.Parameter(torch.randn(count, width, 2 * width) / (2 * width) ** 0.5)  # A
        # B: at first every head predicts from the target's own state
        self.out = nn.Parameter(torch.zeros(count, width, width))

    def forward(self, hidden: Tensor, newest: Tensor) -> Tensor:
        """hidden, newest [..., d] -> one state per head [..., count, d]."""
        seen = torch.cat([hidden, rms_norm(newest, newest.shape[-1:])], -1)  # [..., 2d]
        # [..., count, d], by one product
        mixed = silu(linear(seen, self.mix.flatten(0, 1))).unflatten(-1, (self.count, self.width))
        return hidden.unsqueeze(-2) + torch.stack(
            [linear(mixed[..., i, :], self.out[i]) for i in range(self.count)], -2
        )


def load_heads(name: str = "heads") -> Heads:
    """The embedded target's trained heads. Raises ModelLoadError if they are missing or not what was registered."""
    return read_heads(embedded.fetch(f"models/{name}"))


def read_heads(folder: Path) -> Heads:
    """Heads from a folder that `python -m speclib train heads` wrote."""
    with reading(folder, "make them again with: python -m speclib train heads", ModelLoadError):
        tensors = load_file(Path(folder) / "model.safetensors")
        heads = Heads(tensors["mix"].shape[0], tensors["mix"].shape[1])
        heads.load_state_dict(tensors)
    return heads.eval().requires_grad_(False)


class HeadsDrafter(Drafter):
    """Guesses with `heads`, as a chain, or with `width` > 1 as a tree.

    The tree gives a guess that is its head's first, second, ... choice the rank 1, 2, ..., and holds every branch whose
    ranks multiply to at most `width`: a branch spends its alternatives where they can still be reached. choices:
    "drawn" takes siblings from the heads' distributions without replacement; "top" takes the likeliest tokens, as point
    masses (Medusa's way). Raises InvalidArgument for other values.
    """

    def __init__(self, heads: Heads, width: int = 1, choices: str = "drawn"):
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise InvalidArgument(f"width must be a whole number >= 1, not {width!r}")
        if choices not in ("drawn", "top"):
            raise InvalidArgument(f"choices must be 'drawn' or 'top', not {choices!r}")
        self.heads, self.width, self.choices = heads, width, choices
        self.grows_trees = width > 1

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "HeadsSession":
        target = context.language_model
        table, output = (
            target.model.get_input_embeddings().weight.detach(),
            target.model.get_output_embeddings().weight.detach(),
        )
        if not self.heads.width == table.shape[1] == output.shape[1]:
            raise IncompatibleModels(
                f"the heads were trained for a model of width {self.heads.width}, but {target.name} has "
                f"{output.shape[1]}"
            )
        context.wants_hidden = True
        heads = placed(self.heads, target.device, target.dtype)
        return HeadsSession(self, heads, context, table, output[: target.vocabulary], sampling, draw)


class HeadsSession(Session):
    def __init__(
        self,
        drafter: HeadsDrafter,
        heads: Heads,
        context: Context,
        table: Tensor,
        output: Tensor,
        sampling: Sampling,
        draw: Draw,
    ):
        # table [V', d], output [V, d]
        self.drafter, self.heads, self.context, self.table, self.output = (drafter, heads, context, table, output)
        self.sampling, self.draw = sampling, draw

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        if self.context.hidden is None:  # a text of one token: the target has read nothing yet
            return Draft(torch.zeros(0, dtype=torch.long), self.output.new_zeros(0, self.output.shape[0]))
        logits = self.logits(text[-1])[:n]  # [n, V]: fewer than asked for if there are fewer heads
        if self.sampling.processors:
            return self._place_by_place(logits, goes_on)
        n, q = len(logits), self.sampling.probabilities(logits)
        n = next((i for i in range(1, n) if not goes_on(q[i])), n)
        if self.drafter.width == 1 and self.drafter.choices == "drawn":
            return Draft(self.draw(q[:n]), q[:n])
        # [n, R], [n, R, V]
        tokens, probs = self._top(logits[:n], q.dtype) if self.drafter.choices == "top" else self._drawn(q[:n])
        paths = [
            path
            for depth in range(n)
            for path in branches(depth + 1, self.drafter.width)
            if max(path) < tokens.shape[1]
        ]
        numbers = {path: k for k, path in enumerate(paths)}
        parents = [numbers.get(path[:-1], -1) for path in paths]
        head, rank = (
            torch.tensor([len(path) - 1 for path in paths], dtype=torch.long),
            torch.tensor([path[-1] for path in paths], dtype=torch.long),
        )
        return Draft(tokens[head, rank], probs[head, rank], parents if self.drafter.grows_trees else None)

    def _place_by_place(self, logits: Tensor, goes_on: Callable[[Tensor], bool]) -> Draft:
        """With logits processors, what a head may guess depends on the guesses before: its distribution is another one
        in each branch.
        """
        tokens: dict[tuple[int, ...], int] = {}  # path of ranks -> guess
        laws: dict[tuple[int, ...], Tensor] = {}  # what is left to take it from [V]
        for depth, row in enumerate(logits):
            for path in branches(depth + 1, self.drafter.width):
                parent, elder = path[:-1], (*path[:-1], path[-1] - 1)
                if parent and parent not in tokens or path[-1] and elder not in tokens:
                    continue
                if path[-1]:
                    q, mass = without(laws[elder], tokens[elder])
                    if not mass > 0:
                        continue
                else:
                    before = [tokens[parent[: i + 1]] for i in range(depth)]
                    q = self.sampling.probabilities(row[None], guessed=lambda: [before])[0]  # noqa: B023 (asked for at once)
                    if depth and not any(parent) and not goes_on(q):
                        return self._draft(tokens, laws)
                tokens[path], laws[path] = int(q.argmax() if self.drafter.choices == "top" else self.draw(q)), q
        return self._draft(tokens, laws)

    def _draft(self, tokens: dict[tuple[int, ...], int], laws: dict[tuple[int, ...], Tensor]) -> Draft:
        """What was guessed at each path, and from what, as a tree or a chain."""
        numbers, guesses = (
            {path: k for k, path in enumerate(tokens)},
            torch.tensor(list(tokens.values()), device=self.output.device),
        )
        probs = torch.stack(list(laws.values()))
        if self.drafter.choices == "top":
            probs = point_mass(guesses, probs.shape[-1], probs.dtype)
        return Draft(
            guesses, probs, [numbers.get(path[:-1], -1) for path in tokens] if self.drafter.grows_trees else None
        )

    def logits(self, newest: int) -> Tensor:
        """What each head expects behind the newest token. [count, V]"""
        return linear(self.heads(self.context.last_hidden(), self.table[newest]), self.output)

    def _top(self, logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Each head's likeliest tokens [n, R] and their point masses [n, R, V]."""
        tokens = logits.topk(min(self.drafter.width, logits.shape[-1]), -1).indices
        return tokens, point_mass(tokens, logits.shape[-1], dtype)

    def _drawn(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens drawn without replacement [n, R], and what each was drawn from [n, R, V].

        All branches at one depth offer the same tokens. That is no bias: the check follows one branch only.
        """
        tokens, probs = [], []
        while (
            len(tokens) < self.drafter.width and (q.sum(-1) > 0).all()
        ):  # else some head has offered all that it holds possible
            q = q / q.sum(-1, keepdim=True) if tokens else q
            tokens.append(self.draw(q))
            probs.append(q)
            q = q * (1 - one_hot(tokens[-1], q.shape[-1]))
        return torch.stack(tokens, 1), torch.stack(probs, 1)


@cache
def branches(depth: int, width: int) -> list[tuple[int, ...]]:
    """Paths of `depth` ranks, from 0, whose product of all (rank + 1) is at most `width`; siblings in order of rank."""
    if depth == 0:
        return [()]
    return [(*path, rank) for path in branches(depth - 1, width) for rank in range(width // prod(r + 1 for r in path))]
