"""Token trees: several guesses for the same position, each followed by guesses of its own.

The target checks the whole tree in one forward, in which each node sees the text and its own ancestors (tree
attention). Siblings are tried one after the other, so a second guess may be kept where the first was not. SpecInfer
(2305.09781); Medusa (2401.10774), section 2.1.2; best-first shapes after EAGLE-2 (2406.16858), section 4.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import torch

from ..errors import InvalidArgument
from ..law.distributions import Draw, Sampling, check_finite, point_mass
from ..model.context import Context, Guess
from ..model.language_model import LanguageModel
from .base import Draft, Drafter, Drafting, ModelledSession, always
from .eagle import EagleDrafter, EagleSession
from .model import ModelDrafter, ModelSession


class TreeDrafter(Drafter):
    """Guesses a tree, level by level: a node at depth i gets branching[i] children, depth i = 0 being the end of the
    text. The draft length of `generate` caps the depth.

    guesser: a draft model or an `EagleDrafter`.
    sampled: True draws a node's children from the draft's distribution without replacement, and q of each is the law it
        was drawn from. False takes the most probable tokens; q of each is a point mass. At temperature 0 use False:
        there is one token to draw.
    budget: at most so many nodes, wherever they are worth most, instead of all that `branching` allows. Without
        sampling each level keeps its most probable nodes, and of all levels those of highest joint probability under
        the draft stay. With sampling no drawn node may be dropped: which one is dropped would depend on the token
        drawn, and the text's law would no longer be the target's. So the tree is grown node by node, at the place that
        `chance_kept` rates highest *before* the draw, at the price of a draft forward for each node.

    Raises InvalidArgument for a shape that cannot be.
    """

    grows_trees = True

    def __init__(
        self,
        guesser: LanguageModel | EagleDrafter,
        branching: Sequence[int] = (3, 2, 1, 1),
        sampled: bool = True,
        budget: int | None = None,
    ):
        if not branching or min(branching) < 1:
            raise InvalidArgument(f"branching must be whole numbers >= 1, one for each level, not {tuple(branching)!r}")
        if budget is not None and budget < 1:
            raise InvalidArgument(f"a budget of nodes must be at least 1, not {budget!r}")
        if not isinstance(guesser, LanguageModel | EagleDrafter):
            raise InvalidArgument(f"a tree is grown by a draft model or an EagleDrafter, not by {guesser!r}")
        self.guesser = ModelDrafter(guesser) if isinstance(guesser, LanguageModel) else guesser
        self.branching, self.sampled, self.budget = tuple(branching), sampled, budget

    def models(self) -> list[LanguageModel]:
        return self.guesser.models()

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "TreeSession":
        # where nothing is drawn, temperature 0 would leave one candidate: rank by the unwarped distribution
        ranked = sampling.plainly() if sampling.temperature == 0 and not self.sampled else sampling
        return TreeSession(self, self.guesser.start(context, ranked, draw), draw, context.language_model.device)


@dataclass(frozen=True)
class Node:
    """One guess. probs: what it was drawn from [V]; parent: its place in the list of nodes, or -1; joint:
    log-probability under the draft, with its ancestors'.
    """

    token: int
    probs: torch.Tensor
    parent: int
    joint: float


class Place(NamedTuple):
    """Where the next node may be drawn, in a heap whose least element is the best place. (Places compare as tuples; the
    first three fields already tell any two apart, so tensors are never compared.)
    """

    loss: float  # minus the probability that verification comes there and keeps what is drawn
    offered: int  # nodes that the tree had when this was found: of equals the earlier
    elder: int  # siblings drawn before
    parent: int  # the place of the node above in the list of nodes, or -1
    depth: int
    row: torch.Tensor  # what is left to draw from [V]
    top: float  # the draft's highest probability there, before any sibling was drawn
    reached: float  # the probability that verification comes to the parent


class TreeSession(ModelledSession):
    """Grows trees from what `inner`, a session of the draft, says may follow the text (`root`) and each node (`below`).
    Nodes are not kept in the draft's cache: after `below` it holds the text alone.
    """

    def __init__(self, settings: TreeDrafter, inner: ModelSession | EagleSession, draw: Draw, device: torch.device):
        self.settings, self.inner, self.draw, self.device = settings, inner, draw, device
        self.prepare, self.follow = inner.prepare, inner.follow

    def drafting(self, text: list[int], n: int, goes_on: Callable[[torch.Tensor], bool] = always) -> Drafting:
        logits = yield from self.inner.root(text, n)
        if logits is None:  # eagle, behind a text of one token
            return (yield from self.inner.drafting(text, n))
        rows = self._law(logits, lambda: [[]])  # [1, V]
        if self.settings.sampled and self.settings.budget is not None:
            return self._draft((yield from self._grown(text, rows[0], n)))
        nodes: list[Node] = []
        frontier, widths = [-1], self.settings.branching[:n]
        for depth, width in enumerate(widths):
            grown = []
            for place, row in zip(frontier, rows, strict=True):
                before = nodes[place].joint if place >= 0 else 0.0
                grown += [
                    Node(token, probs, place, before + float(row[token].log()))
                    for token, probs in self._children(row, width)
                ]
            if self.settings.budget is not None:  # a node outside the best of its level cannot be among the best of all
                grown = sorted(grown, key=lambda node: -node.joint)[: self.settings.budget]
            frontier = list(range(len(nodes), len(nodes) + len(grown)))
            nodes += grown
            if depth + 1 < len(widths) and frontier:
                rows = yield from self._read(text, nodes, len(frontier))
        return self._draft(self._pruned(nodes))

    def _law(self, logits: torch.Tensor, guessed: Callable[[], list[list[int]]]) -> torch.Tensor:
        q = self.inner.law(logits, guessed)
        check_finite(float(q.sum()))  # a tree is grown on the host, which cannot go on with NaN
        return q

    def _draft(self, nodes: list[Node]) -> Draft:
        return Draft(
            torch.tensor([node.token for node in nodes], device=self.device),
            torch.stack([node.probs for node in nodes]),
            [node.parent for node in nodes],
        )

    def _grown(self, text: list[int], row: torch.Tensor, n: int) -> Generator[Guess, torch.Tensor, list[Node]]:
        """A sampled tree of at most `budget` nodes. Each is drawn at the place where verification is likeliest to
        arrive and to keep it, as estimated before the draw.
        """
        nodes: list[Node] = []
        places: list[Place] = []
        widths = self.settings.branching[:n]

        def offer(parent: int, depth: int, elder: int, row: torch.Tensor, top: float, reached: float) -> None:
            if elder < widths[depth]:
                loss = -reached * chance_kept(top, elder)
                heappush(places, Place(loss, len(nodes), elder, parent, depth, row, top, reached))

        offer(-1, 0, 0, row, float(row.max()), 1.0)
        while places and len(nodes) < self.settings.budget:
            at = heappop(places)
            token = int(self.draw(at.row))
            nodes.append(Node(token, at.row, at.parent, 0.0))
            rest, mass = without(at.row, token)
            if mass > 0:
                offer(at.parent, at.depth, at.elder + 1, rest, at.top, at.reached)
            if at.depth + 1 < len(widths) and len(nodes) < self.settings.budget:
                below = (yield from self._read(text, nodes, 1))[0]
                offer(len(nodes) - 1, at.depth + 1, 0, below, float(below.max()), -at.loss)
        return nodes

    def _children(self, row: torch.Tensor, width: int) -> list[tuple[int, torch.Tensor]]:
        """Up to `width` tokens to follow, each with the distribution [V] it was drawn from."""
        if not self.settings.sampled:
            likely = row.topk(min(width, row.numel()))
            tokens = [token for token, p in zip(likely.indices.tolist(), likely.values.tolist(), strict=True) if p > 0]
            return [
                (token, point_mass(torch.tensor(token, device=row.device), row.numel(), row.dtype)) for token in tokens
            ]
        children = []
        for _ in range(width):
            token = int(self.draw(row))
            children.append((token, row))
            row, mass = without(row, token)
            if not mass > 0:
                break
        return children

    def _read(self, text: list[int], nodes: list[Node], last: int) -> Generator[Guess, torch.Tensor, torch.Tensor]:
        """The draft's distributions after the last nodes [last, V]."""
        tokens, parents = [node.token for node in nodes], [node.parent for node in nodes]
        logits = yield from self.inner.below(text, tokens, parents, last)
        return self._law(logits, lambda: [_guesses(nodes, node) for node in nodes[-last:]])

    def _pruned(self, nodes: list[Node]) -> list[Node]:
        """The most probable `budget` nodes, in their order. A parent is never less probable than its child, so it stays
        with it.
        """
        if self.settings.budget is None or len(nodes) <= self.settings.budget:
            return nodes
        kept = sorted(sorted(range(len(nodes)), key=lambda k: (-nodes[k].joint, k))[: self.settings.budget])
        place = {old: new for new, old in enumerate(kept)} | {-1: -1}
        return [Node(nodes[k].token, nodes[k].probs, place[nodes[k].parent], nodes[k].joint) for k in kept]


def _guesses(nodes: list[Node], node: Node) -> list[int]:
    """The tokens from the text to a node."""
    return [*(_guesses(nodes, nodes[node.parent]) if node.parent >= 0 else ()), node.token]


def without(row: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A distribution [V] without one token, made to sum to 1 again, and the mass that was left."""
    row = row.index_fill(0, torch.tensor([token], device=row.device), 0.0)
    mass = row.sum()
    return row / mass.where(mass > 0, torch.ones_like(mass)), mass


def chance_kept(top: float, elder: int) -> float:
    """About how likely a drawn guess is kept, from the draft's highest probability and the number of elder siblings.

    Read off the embedded pair on prompts set aside. A wrong estimate costs speed and nothing else.
    """
    first = 0.45 + 0.5 * top
    return first if elder == 0 else (1 - first) * 0.2 * 0.5 ** (elder - 1)
