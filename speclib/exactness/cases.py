"""The exactness vectors: what is asked, and the exact answer. `python -m speclib vectors` writes them.

The page that defines every field is data/vectors/README.md. Nothing is drawn by a generator whose stream may change
with Python's version: all chance is Random.random(), which the language promises to keep.
"""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random

from . import reference
from .reference import ONE, ZERO, Row

VERSION = "speclib-vectors/1"
LOSSY = {
    "typical": {"epsilon": Fraction(9, 100), "delta": Fraction(3, 10)},
    "lenience": {"lenience": Fraction(1, 2)},
    "ensemble": {"weight": Fraction(3, 5)},
}
SETTINGS = (
    {"temperature": Fraction(1, 2)},
    {"top_k": 2},
    {"top_p": Fraction(4, 5)},
    {"temperature": Fraction(1, 2), "top_k": 3, "top_p": Fraction(9, 10)},
)


class Chance:
    """Rows of small fractions, and tokens drawn from them."""

    def __init__(self, seed: str):
        self.random = Random(seed).random

    def whole(self, low: int, high: int) -> int:
        """A whole number between low and high, both possible."""
        return low + int(self.random() * (high - low + 1))

    def row(self, vocabulary: int, low: int = 1, high: int = 8, zeros: int = 0) -> Row:
        """Weights between low and high; exactly `zeros` tokens are impossible."""
        weights = [self.whole(low, high) for _ in range(vocabulary)]
        for token in self.some(vocabulary, zeros):
            weights[token] = 0
        return reference.normal([Fraction(weight) for weight in weights])

    def some(self, vocabulary: int, count: int) -> list[int]:
        """That many different tokens, in a random order."""
        tokens = list(range(vocabulary))
        return [tokens.pop(self.whole(0, len(tokens) - 1)) for _ in range(count)]

    def drawn(self, row: Row) -> int:
        """A token that the row can yield: any of them with the same chance, so that the unlikely ones are seen too."""
        possible = [token for token, chance in enumerate(row) if chance]
        return possible[self.whole(0, len(possible) - 1)]


def point(token: int, vocabulary: int) -> Row:
    """All on one token."""
    return [ONE if x == token else ZERO for x in range(vocabulary)]


# --- kinds of rounds: (chance, V, n) -> p, q -------------------------------------------------------------------------


def ordinary(c, v, n):
    return [c.row(v) for _ in range(n + 1)], [c.row(v) for _ in range(n)]


def zeros_in_p(c, v, n):
    return [c.row(v, zeros=c.whole(1, v - 1)) for _ in range(n + 1)], [c.row(v) for _ in range(n)]


def zeros_in_q(c, v, n):
    return [c.row(v) for _ in range(n + 1)], [c.row(v, zeros=c.whole(1, v - 1)) for _ in range(n)]


def ties(c, v, n):
    return [c.row(v, 1, 2) for _ in range(n + 1)], [c.row(v, 1, 2) for _ in range(n)]


def equal(c, v, n):
    p = [c.row(v, 0, 6) if k % 2 else c.row(v) for k in range(n + 1)]
    return p, p[:n]


def disjoint(c, v, n):
    sides = [c.some(v, c.whole(1, v - 1)) for _ in range(n)]
    rows = [(c.row(v), side) for side in sides]
    p = [reference.masked(row, [x in side for x in range(v)]) for row, side in rows]
    return [*p, c.row(v)], [reference.masked(c.row(v), [x not in side for x in range(v)]) for side in sides]


def points_in_q(c, v, n):
    return [c.row(v) for _ in range(n + 1)], [point(c.whole(0, v - 1), v) for _ in range(n)]


def points_in_p(c, v, n):
    return [point(c.whole(0, v - 1), v) for _ in range(n + 1)], [c.row(v) for _ in range(n)]


def points_in_both(c, v, n):
    p = [point(c.whole(0, v - 1), v) for _ in range(n + 1)]
    return p, [row if c.whole(0, 3) else point(c.whole(0, v - 1), v) for row in p[:n]]


def filter_on_the_draft(c, v, n):
    return [c.row(v) for _ in range(n + 1)], [reference.filtered(c.row(v, 1, 30), top_k=2) for _ in range(n)]


def filter_on_the_target(c, v, n):
    return [reference.filtered(c.row(v, 1, 30), top_k=2) for _ in range(n + 1)], [c.row(v) for _ in range(n)]


def not_made(c, v, n):
    p, q = ordinary(c, v, n)
    made = c.whole(0, n - 1)
    return p, [row if k < made else [ZERO] * v for k, row in enumerate(q)]


KINDS: dict[str, tuple[Callable, int]] = {  # name -> (its rows, how many cases for each lossless rule)
    "ordinary": (ordinary, 16),
    "zeros in p": (zeros_in_p, 6),
    "zeros in q": (zeros_in_q, 6),
    "ties": (ties, 6),
    "p = q": (equal, 4),
    "disjoint": (disjoint, 4),
    "point masses in q": (points_in_q, 6),
    "point masses in p": (points_in_p, 4),
    "point masses in both": (points_in_both, 4),
    "filter on the draft alone": (filter_on_the_draft, 5),
    "filter on the target alone": (filter_on_the_target, 5),
    "no guess": (ordinary, 2),
    "guess not made": (not_made, 6),
}


# --- cases -----------------------------------------------------------------------------------------------------------


def verify_case(name, kind, rule, p, q, drafted, parents=None, mask=None, parameters=None) -> dict:
    """A round to verify, with its law."""
    parameters = parameters or {}
    rows = p if mask is None else [reference.masked(row, allowed) for row, allowed in zip(p, mask, strict=True)]
    stop, after = reference.round_law(rule, rows, q, drafted, parents, **parameters)
    case = {
        "id": name,
        "task": "verify",
        "kind": kind,
        "rule": rule,
        "parameters": parameters,
        "vocabulary": len(p[0]),
        "p": p,
        "q": q,
    }
    case |= {"drafted": drafted, "parents": parents, "mask": mask, "law": {"stop": stop, "next": after}}
    return plain(case)


def chains() -> Iterator[dict]:
    """Chains under each lossless rule: the same rows for all, so that the rules can be compared."""
    for kind, (rows, count) in KINDS.items():
        for i in range(count):
            c = Chance(f"{kind} {i}")
            v = c.whole(2, 5) if kind != "filter on the target alone" else c.whole(3, 5)
            p, q = rows(c, v, 0 if kind == "no guess" else 1 + i % 4)
            drafted = [c.drawn(row) if any(row) else 0 for row in q]
            for rule in ("token", "block", "match"):
                yield verify_case(f"{rule}/{kind}/{i}".replace(" ", "-"), kind, rule, p, q, drafted)


def lossy_chains() -> Iterator[dict]:
    """Rules that do not keep the target's law, each with its parameters."""
    for rule, parameters in LOSSY.items():
        for kind in ("ordinary", "zeros in p", "point masses in q", "guess not made"):
            for i in range(3):
                c = Chance(f"{rule} {kind} {i}")
                p, q = KINDS[kind][0](c, c.whole(3, 5), 1 + i)
                drafted = [c.drawn(row) if any(row) else 0 for row in q]
                yield verify_case(
                    f"{rule}/{kind}/{i}".replace(" ", "-"), kind, rule, p, q, drafted, parameters=parameters
                )


SHAPES = ([-1, -1], [-1, -1, -1], [-1, -1, 0, 0], [-1, 0, -1, 2], [-1, -1, 0, 1, 1], [-1, 0, 0, 1, 2, -1])


def trees() -> Iterator[dict]:
    """Trees of guesses under the token rule: siblings drawn with or without replacement, the same guess twice, point
    masses, guesses not made.
    """
    kinds = ("with replacement", "without replacement", "twins", "point masses", "guess not made")
    for kind, (i, parents) in product(kinds, enumerate(SHAPES)):
        c = Chance(f"tree {kind} {i}")
        v = c.whole(3, 4)
        p = [c.row(v) if c.whole(0, 3) else c.row(v, zeros=1) for _ in range(len(parents) + 1)]
        base = {place: c.row(v) for place in range(-1, len(parents))}
        q, drafted = [], []
        for node, parent in enumerate(parents):
            elder = [drafted[other] for other in range(node) if parents[other] == parent]
            row = base[parent]
            if kind == "without replacement":
                row = reference.masked(row, [x not in elder for x in range(v)])
            if kind == "point masses":
                row = point(next(x for x in c.some(v, v) if x not in elder), v)
            token = elder[0] if kind == "twins" and elder else c.drawn(row)
            q.append([ZERO] * v if kind == "guess not made" and node % 3 == 1 else row)
            drafted.append(token)
        yield verify_case(f"tree/{kind}/{i}".replace(" ", "-"), f"tree, {kind}", "token", p, q, drafted, parents)


def masks() -> Iterator[dict]:
    """Places where some tokens are forbidden, the one behind the last guess included; the draft knows of it or does
    not.
    """
    for rule, knows, i in product(("token", "block", "match"), (True, False), range(4)):
        c = Chance(f"mask {knows} {i}")
        v, n = c.whole(3, 5), 1 + i % 3
        p, q = ordinary(c, v, n)
        mask = []
        for _ in range(n + 1):
            forbidden = c.some(v, c.whole(1, v - 2))
            mask.append([int(x not in forbidden) for x in range(v)])
        if knows:
            q = [reference.masked(row, allowed) for row, allowed in zip(q, mask, strict=False)]
        drafted = [c.drawn(row) for row in q]
        kind = "mask that the draft knows" if knows else "mask that the draft does not know"
        yield verify_case(f"{rule}/{kind}/{i}".replace(" ", "-"), kind, rule, p, q, drafted, mask=mask)


def table(c: Chance, vocabulary: int, length: int, settings: dict, zeros: int) -> reference.Table:
    """A row after every text of fewer than `length` tokens, a third of them with that many zeros; none whose filters a
    tie would decide.
    """
    found = {}
    for depth in range(length):
        for text in product(range(vocabulary), repeat=depth):
            row = c.row(vocabulary, 1, 9, zeros * (not c.whole(0, 2)))
            while settings and not clear(row, settings):
                row = c.row(vocabulary, 1, 9)
            found[text] = row
    return found


def clear(row: Row, settings: dict) -> bool:
    """Whether the filters leave the same set when every probability is a little different: no ties, and no total at the
    line itself.
    """
    if len(set(row)) < len(row):
        return False
    before = reference.filtered(row, **{name: value for name, value in settings.items() if name != "top_p"})
    ranked = sorted(before, reverse=True)
    return "top_p" not in settings or all(sum(ranked[:k]) != settings["top_p"] for k in range(len(ranked)))


def text_case(
    name, kind, rule, vocabulary, gamma, length, eos=None, settings=None, parameters=None, zeros=(0, 0)
) -> dict:
    """A whole text to write by rounds, with its law. zeros: how many in a row of p's and q's tables that has some."""
    settings, parameters = settings or {}, parameters or {}
    c = Chance(name.partition("/")[2])
    p, q = (table(c, vocabulary, length, settings, some) for some in zeros)
    seen = [{text: reference.filtered(row, **settings) for text, row in rows.items()} for rows in (p, q)]
    law = reference.speculative(rule, *seen, gamma, length, eos, **parameters)
    assert (law == reference.plain(seen[0], length, eos)) is (rule not in LOSSY), (
        f"{name}: {rule} keeps the target's law, or should not"
    )
    case = {
        "id": name,
        "task": "text",
        "kind": kind,
        "rule": rule,
        "parameters": parameters,
        "vocabulary": vocabulary,
        "gamma": gamma,
    }
    return plain(
        case | {"length": length, "eos": eos, "sampling": settings, "p": p, "q": q, "law": dict(sorted(law.items()))}
    )


def texts() -> Iterator[dict]:
    """Whole texts, longer than gamma + 1 tokens: the bonus token and what follows it are in them."""
    sizes = ((2, 1, 5), (2, 3, 6), (3, 1, 3), (3, 2, 4), (4, 2, 4))
    for rule in ("token", "block", "match"):
        for v, gamma, length in sizes:
            yield text_case(f"{rule}/text/v{v}-g{gamma}-l{length}", "text", rule, v, gamma, length)
        for v, gamma, length in ((3, 2, 4), (2, 2, 5)):
            yield text_case(
                f"{rule}/text-eos/v{v}-g{gamma}-l{length}", "text with an end token", rule, v, gamma, length, eos=v - 1
            )
        yield text_case(f"{rule}/text-zeros/v3-g2-l4", "text, zeros", rule, 3, 2, 4, zeros=(1, 1))
        yield text_case(f"{rule}/text-points/v3-g2-l4", "text, guesses without chance", rule, 3, 2, 4, zeros=(1, 2))
        yield text_case(f"{rule}/text-cap/v3-g3-l2", "text, cut by its cap", rule, 3, 3, 2)
        for i, settings in enumerate(SETTINGS):
            yield text_case(
                f"{rule}/text-settings-{i}/v4-g1-l3", "text, " + " ".join(settings), rule, 4, 1, 3, settings=settings
            )
            yield text_case(
                f"{rule}/text-settings-{i}/v3-g2-l4", "text, " + " ".join(settings), rule, 3, 2, 4, settings=settings
            )
    for rule, parameters in LOSSY.items():
        if rule != "typical":
            for gamma in (1, 2):
                yield text_case(f"{rule}/text/v3-g{gamma}-l4", "text, lossy", rule, 3, gamma, 4, parameters=parameters)


FILES: dict[str, Callable[[], Iterator[dict]]] = {
    "chains": chains,
    "lossy": lossy_chains,
    "trees": trees,
    "masks": masks,
    "texts": texts,
}


# --- on disk ---------------------------------------------------------------------------------------------------------


def plain(value):
    """Fractions as "3/8", tokens of a text as "0,2,1": what JSON can hold."""
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, dict):
        return {
            ",".join(map(str, key)) if isinstance(key, tuple) else key: plain(entry) for key, entry in value.items()
        }
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def written(name: str) -> str:
    """The file of that name: one case a line."""
    cases = ",\n".join(json.dumps(case, separators=(",", ":")) for case in FILES[name]())
    return f'{{"version":"{VERSION}","cases":[\n{cases}\n]}}\n'


def write(folder: Path) -> dict[str, int]:
    """Writes all files into a folder. Returns their sizes in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / f"{name}.json").write_bytes(written(name).encode())
    return {name: (folder / f"{name}.json").stat().st_size for name in FILES}
