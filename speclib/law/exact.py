"""The exact law of the text that a decoder emits, by summing over chance instead of drawing from it.

`outcomes` enumerates any program whose chance passes through one `draw` function, such as `generate` as it stands.
`rule_law` enumerates whole batches of drafts at once over small table models, and `sample_many` draws from those; they
are fast enough for thousands of comparisons. All call the rules that decode, so what is summed or drawn here is what
runs there.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from .distributions import Draw, seeded
from .rules import Law, Rule, find, token_law

TextLaw = dict[tuple[int, ...], float]


# --- any program ---------------------------------------------------------------------------------------------------


def outcomes(run: Callable[[Draw], Hashable], limit: int = 100_000) -> dict[Hashable, float]:
    """The law of `run(draw)`: every result with its probability.

    `run` is called once for each path through its draws: it must take all its chance from `draw`, return something
    hashable, and start afresh each time. A draw from several rows branches over the rows in turn. Raises
    InvalidArgument after `limit` paths, when a row is no distribution, or when `run` is not repeatable.
    """

    def every(row, mass):
        return [(token, mass * chance) for token, chance in enumerate(row.tolist()) if chance > 0]

    return walk(run, 1.0, every, limit)


def walk(
    run: Callable[[Draw], Hashable], whole: float, split: Callable[[Tensor, float], list[tuple[int, float]]], limit: int
) -> dict:
    """Takes every path through the draws of `run`, depth first, and adds up what arrives at each result.

    split: (a row [V], the amount that arrived at it) -> the tokens to follow, each with its part of the amount.
    """
    totals: dict[Hashable, float] = {}
    # of each draw: its row, and the branches left, the one being followed last
    path: list[tuple[list[float], list[tuple[int, float]]]] = []
    for _ in range(limit):
        depth, amount = 0, whole

        def draw(probabilities: Tensor) -> Tensor:
            nonlocal depth, amount
            tokens = []
            for row in probabilities.detach().cpu().double().reshape(-1, probabilities.shape[-1]):
                values = row.tolist()
                if depth == len(path):
                    if not abs(sum(values) - 1) < 1e-4 or min(values) < 0:
                        raise InvalidArgument(
                            f"a draw from something that is no distribution: it sums to {sum(values)}, its least "
                            f"entry is {min(values)}"
                        )
                    path.append((values, split(row, amount)[::-1]))
                known, branches = path[depth]
                if values != known:
                    raise InvalidArgument(
                        "the run is not repeatable: the same draws before led to other probabilities here"
                    )
                token, amount = branches[-1]
                tokens.append(token)
                depth += 1
            return torch.tensor(tokens, device=probabilities.device).reshape(probabilities.shape[:-1])

        result = run(draw)
        if depth != len(path):
            raise InvalidArgument(
                "the run is not repeatable: it drew less often than the last time with the same draws"
            )
        totals[result] = totals.get(result, 0) + amount
        while path and len(path[-1][1]) == 1:
            path.pop()
        if not path:
            return totals
        path[-1][1].pop()
    raise InvalidArgument(f"more than {limit:,} paths: take fewer tokens, a smaller vocabulary, or raise `limit`")


# --- models as tables ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TableModel:
    """A language model one can look up: `row(prefix)` gives the next-token probabilities [V] after a tuple of
    tokens.
    """

    vocabulary: int
    row: Callable[[tuple[int, ...]], Sequence[float] | np.ndarray]
    _rows: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, prefix: Sequence[int]) -> Tensor:
        """The next-token probabilities after `prefix`. [V], float64"""
        code = 0
        for token in prefix:
            code = code * self.vocabulary + token
        return self.rows(len(prefix))[code]

    def rows(self, depth: int) -> Tensor:
        """The probabilities after every prefix of that many tokens, in lexicographic order. [V**depth, V], float64"""
        if depth not in self._rows:
            prefixes = (self.prefix(code, depth) for code in range(self.vocabulary**depth))
            self._rows[depth] = torch.from_numpy(np.array([self.row(prefix) for prefix in prefixes], dtype=np.float64))
        return self._rows[depth]

    def prefix(self, code: int, depth: int) -> tuple[int, ...]:
        """The prefix whose place in `rows(depth)` is `code`."""
        tokens = []
        for _ in range(depth):
            code, token = divmod(code, self.vocabulary)
            tokens.append(token)
        return tuple(reversed(tokens))


def _chance(seed: int, prefix: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng([seed, len(prefix), *prefix])  # the length keeps (0,) apart from (0, 0)


def fixed_table(probabilities: Sequence[float]) -> TableModel:
    """A model that ignores its context."""
    row = np.asarray(probabilities, dtype=np.float64)
    return TableModel(len(row), lambda prefix: row)


def random_table(vocabulary: int, seed: int, zeros: float = 0.0, point_masses: float = 0.0) -> TableModel:
    """A row of Dirichlet(1) for every prefix, the same each time.

    zeros: the share of tokens made impossible; point_masses: the share of rows that leave nothing to chance.
    """

    def row(prefix):
        rng = _chance(seed, prefix)
        weights = rng.dirichlet(np.ones(vocabulary))
        favourite = rng.integers(vocabulary)
        out = rng.random(vocabulary) < zeros
        if rng.random() < point_masses:
            out[:] = True
        out[favourite] = False
        weights[out] = 0
        return weights / weights.sum() if weights.sum() > 0 else np.eye(vocabulary)[favourite]

    return TableModel(vocabulary, row)


def warped(table: TableModel, warp: Callable[[Tensor], Tensor]) -> TableModel:
    """The table seen through a filter of probabilities, [..., V] -> [..., V]."""
    return TableModel(table.vocabulary, lambda prefix: warp(table(prefix)).numpy())


# --- speculative decoding over tables --------------------------------------------------------------------------------


def as_it_is(p: Tensor) -> Tensor:
    """What an honest loop does to the target's rows: nothing."""
    return p


def honestly(q: Tensor) -> tuple[Tensor, Tensor]:
    """What an honest drafter says: it draws from q, and q is what it hands to the rule."""
    return q, q


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Speculative decoding in three parts, so that each can be replaced by a wrong one.

    law: the verification rule. sees: what becomes of the target's rows [B, n+1, V] before the rule gets them. proposes:
    the draft's row [B, V] -> (the row that is drawn from, the row that the rule is told).
    """

    law: Law = token_law
    sees: Callable[[Tensor], Tensor] = as_it_is
    proposes: Callable[[Tensor], tuple[Tensor, Tensor]] = honestly

    def run(
        self, target: TableModel, draft: TableModel, gamma: int, length: int, draw: Draw, eos: int | None = None
    ) -> tuple[int, ...]:
        """Emit `length` tokens, or fewer if `eos` comes: the loop as one would write it, one text at a time.

        Each round drafts min(gamma, tokens still wanted - 1) tokens. The end-of-text token is part of the text.
        """
        text: list[int] = []
        while len(text) < length:
            n = min(gamma, length - len(text) - 1)
            drafted, q = [], []
            for _ in range(n):
                sampled, reported = self.proposes(draft([*text, *drafted])[None])
                drafted.append(int(draw(sampled)))
                q.append(reported[0])
            p = self.sees(torch.stack([target([*text, *drafted[:i]]) for i in range(n + 1)])[None])
            told = torch.stack(q)[None] if n else p[:, :0]
            stop, following = self.law(p, told, torch.tensor(drafted, dtype=torch.long).reshape(1, n)).draw(draw)
            for token in [*drafted[: int(stop)], int(following)]:
                text.append(token)
                if token == eos:
                    return tuple(text)
        return tuple(text)


def loop_of(rule: str | Rule | Law | Loop) -> Loop:
    """The honest loop around a rule, by name, as a Rule or as a bare law; a Loop passes through."""
    if isinstance(rule, Loop):
        return rule
    return Loop(law=rule if callable(rule) else find(rule).law)


def plain_law(target: TableModel, length: int, eos: int | None = None) -> TextLaw:
    """The law of the first `length` tokens that the target writes on its own; a text ends with its first `eos`."""
    finished: TextLaw = {}
    growing: TextLaw = {(): 1.0}
    for _ in range(length):
        longer = {}
        for prefix, mass in growing.items():
            for token, probability in enumerate(target(prefix).tolist()):
                if probability > 0:
                    (finished if token == eos else longer)[(*prefix, token)] = mass * probability
        growing = longer
    return finished | growing


def rule_law(
    rule: str | Rule | Law | Loop,
    target: TableModel,
    draft: TableModel,
    gamma: int,
    length: int,
    eos: int | None = None,
) -> TextLaw:
    """The law of the first `length` tokens of speculative decoding with drafts of `gamma` tokens, as `Loop.run` does
    it.

    Every draft of every round goes through the rule, [all prefixes x all drafts] in one batch: the work is of the order
    of V**length.
    """

    def start(mass):  # every prefix that can occur, once
        nodes = mass.nonzero().flatten()
        return [(nodes, mass[nodes])]

    return _emit(loop_of(rule), target, draft, gamma, length, eos, 1.0, start, _every)


def sample_many(
    rule: str | Rule | Law | Loop,
    target: TableModel,
    draft: TableModel,
    gamma: int,
    length: int,
    n: int,
    seed: int,
    eos: int | None = None,
) -> dict[tuple[int, ...], int]:
    """How often each text came in `n` independent runs: the same rounds as `rule_law`, drawn and not summed.

    Every decision of every run is a draw of its own from the probabilities that the rule returns; millions take
    seconds.
    """
    draw = seeded(seed)

    def start(mass):  # every run on its own, in batches that fit into memory
        nodes = torch.arange(len(mass)).repeat_interleave(mass.long())
        return [(part, torch.ones(len(part), dtype=torch.float64)) for part in nodes.split(2**18)]

    def spread(weights, probabilities):  # draw one token for each run
        return torch.arange(len(weights)), draw(probabilities), weights

    counts = _emit(loop_of(rule), target, draft, gamma, length, eos, float(n), start, spread)
    return {text: round(count) for text, count in counts.items()}


def _every(weights: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Follow every token that can be drawn: weights [R], probabilities [R, V] -> rows, tokens and weights of what
    follows.
    """
    rows, tokens = probabilities.nonzero(as_tuple=True)
    return rows, tokens, weights[rows] * probabilities[rows, tokens]


def _emit(loop, target, draft, gamma, length, eos, total, start, spread) -> TextLaw:
    """Carry `total` from the empty text to finished ones. A text is (its length, its place among all texts of it)."""
    vocabulary = target.vocabulary
    growing = [torch.zeros(vocabulary**depth, dtype=torch.float64) for depth in range(length + 1)]
    finished = [mass.clone() for mass in growing]
    growing[0][0] = total
    for depth in range(length):
        n = min(gamma, length - depth - 1)
        for nodes, weights in start(growing[depth]):
            path, drafted, q, weights = _propose(loop, draft, depth, nodes, weights, n, spread)
            p = loop.sees(torch.stack([target.rows(depth + i)[path[:, i]] for i in range(n + 1)], 1))
            verdict = loop.law(p, q, drafted)
            rows, stops, weights = spread(weights, verdict.stop_probs)
            picked, tokens, weights = spread(weights, verdict.next_probs[rows, stops])
            rows, stops = rows[picked], stops[picked]
            places = path[rows, stops] * vocabulary + tokens
            lengths = depth + stops + 1
            over = tokens == eos if eos is not None else torch.zeros_like(tokens, dtype=torch.bool)
            if eos is not None and n:  # an accepted end of text cuts off what follows it
                ends = (
                    torch.cat([drafted == eos, torch.ones_like(drafted[:, :1], dtype=torch.bool)], 1)
                    .long()
                    .argmax(1)[rows]
                )
                early = ends < stops
                places = torch.where(early, path[rows, (ends + 1).clamp(max=n)], places)
                lengths = torch.where(early, depth + ends + 1, lengths)
                over = over | early
            for reached in range(depth + 1, length + 1):
                here = lengths == reached
                growing[reached].index_add_(0, places[here & ~over], weights[here & ~over])
                finished[reached].index_add_(0, places[here & over], weights[here & over])
    finished[length] += growing[length]
    return {
        target.prefix(place, depth): float(mass[place])
        for depth, mass in enumerate(finished)
        for place in mass.nonzero().flatten().tolist()
    }


def _propose(loop, draft, depth, nodes, weights, n, spread):
    """Draft n tokens after each prefix -> places along the path [R, n+1], tokens [R, n], what the rule is told [R, n,
    V], weights [R].
    """
    path, drafted = nodes[:, None], nodes.new_zeros(len(nodes), 0)
    q = torch.zeros(len(nodes), 0, draft.vocabulary, dtype=torch.float64)
    for i in range(n):
        sampled, reported = loop.proposes(draft.rows(depth + i)[path[:, -1]])
        rows, tokens, weights = spread(weights, sampled)
        q = torch.cat([q, reported[:, None]], 1)[rows]
        drafted = torch.cat([drafted[rows], tokens[:, None]], 1)
        path = torch.cat([path[rows], (path[rows, -1] * draft.vocabulary + tokens)[:, None]], 1)
    return path, drafted, q, weights


def expected_accepted(rule: str | Rule | Law | Loop, target: TableModel, draft: TableModel, gamma: int) -> float:
    """The mean number of accepted drafts in a first round of `gamma`."""
    loop = loop_of(rule)
    root, certain = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.float64)
    path, drafted, q, weights = _propose(loop, draft, 0, root, certain, gamma, _every)
    p = loop.sees(torch.stack([target.rows(i)[path[:, i]] for i in range(gamma + 1)], 1))
    accepted = loop.law(p, q, drafted).stop_probs @ torch.arange(gamma + 1, dtype=torch.float64)
    return float(weights @ accepted)


def max_difference(law: dict, other: dict) -> float:
    """The largest difference in the probability of one outcome."""
    return max((abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in law.keys() | other.keys()), default=0.0)


def law_variation(law: dict, other: dict) -> float:
    """The total variation between two laws: the largest difference in the probability of any event."""
    return 0.5 * sum(abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in law.keys() | other.keys())
