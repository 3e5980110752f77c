"""The laws once more, in fractions: written from the papers' definitions, and sharing no line with `rules` or `exact`.

What is exact here needs no tolerance: a lossless rule's text has the target's law, or it has not. A row is a list of
Fraction that sums to 1. The law of a round is (stop, after): stop[k] is the chance that verification ends at place k,
after[k] the next token's row there, or None where stop[k] is 0. The places of a chain are 0, 1, ..., n accepted
guesses; those of a tree are the text and its n nodes.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

Row = list[Fraction]
Round = tuple[list[Fraction], list[Row | None]]
ZERO, ONE = Fraction(0), Fraction(1)


def normal(row: Sequence[Fraction]) -> Row:
    """The row, made to sum to 1."""
    total = sum(row)
    return [x / total for x in row]


def above(p: Row, q: Row) -> Row:
    """What p has above q, made to sum to 1; p itself where there is nothing."""
    excess = [max(a - b, ZERO) for a, b in zip(p, q, strict=True)]
    return normal(excess) if any(excess) else p


# --- settings --------------------------------------------------------------------------------------------------------


def filtered(
    row: Row, temperature: Fraction | None = None, top_k: int | None = None, top_p: Fraction | None = None
) -> Row:
    """Temperature (1 / temperature must be whole), then the k most probable, then the fewest whose total is at least
    top_p.
    """
    if temperature is not None:
        row = normal([x ** int(1 / temperature) for x in row])
    ranked = sorted(range(len(row)), key=lambda token: -row[token])
    if top_k is not None:
        row = normal([x if token in ranked[:top_k] else ZERO for token, x in enumerate(row)])
    if top_p is not None:
        kept = next(k for k in range(1, len(row) + 1) if sum(row[token] for token in ranked[:k]) >= top_p)
        row = normal([x if token in ranked[:kept] else ZERO for token, x in enumerate(row)])
    return row


def masked(row: Row, allowed: Sequence[int]) -> Row:
    """The row without the tokens whose entry in `allowed` is 0."""
    return normal([x * bit for x, bit in zip(row, allowed, strict=True)])


# --- rounds ----------------------------------------------------------------------------------------------------------


def one_by_one(p: list[Row], accept: Sequence[Fraction], rejected: Sequence[Row]) -> Round:
    """Guess k is accepted with chance accept[k], and verification ends with the first that is not."""
    stop, reached = [], ONE
    for chance in accept:
        stop.append(reached * (1 - chance))
        reached *= chance
    return [*stop, reached], [*rejected, p[len(accept)]]


def token(p: list[Row], q: list[Row], drafted: Sequence[int]) -> Round:
    """Leviathan et al. 2211.17192, algorithm 1."""
    n = len(drafted)
    return one_by_one(
        p, [min(ONE, p[k][x] / q[k][x]) for k, x in enumerate(drafted)], [above(p[k], q[k]) for k in range(n)]
    )


def match(p: list[Row], q: list[Row], drafted: Sequence[int]) -> Round:
    """Draw from the target, keep the guess if it is the same token: the next token is the one that was drawn."""
    others = [[ZERO if token == x else chance for token, chance in enumerate(p[k])] for k, x in enumerate(drafted)]
    return one_by_one(
        p, [p[k][x] for k, x in enumerate(drafted)], [normal(row) if any(row) else p[k] for k, row in enumerate(others)]
    )


def lenience(p: list[Row], q: list[Row], drafted: Sequence[int], lenience: Fraction) -> Round:
    """Leviathan et al., appendix A.5: as if the draft had said lenience * q."""
    accept = [min(ONE, p[k][x] / (lenience * q[k][x])) for k, x in enumerate(drafted)]
    return one_by_one(p, accept, [above(p[k], [lenience * x for x in q[k]]) for k in range(len(drafted))])


def typical(p: list[Row], q: list[Row], drafted: Sequence[int], epsilon: Fraction, delta: Fraction) -> Round:
    """Medusa 2401.10774, section 2.3: accepted iff p(x) > min(epsilon, delta exp(-H(p)))."""
    kept = []
    for k, x in enumerate(drafted):
        bar = min(float(epsilon), float(delta) * math.exp(math.fsum(float(y) * math.log(y) for y in p[k] if y)))
        assert abs(float(p[k][x]) - bar) > 1e-6, "too near to the bar: floating point could decide either way"
        kept.append(ONE if p[k][x] > bar else ZERO)
    return one_by_one(p, kept, p[: len(drafted)])


def ensemble(p: list[Row], q: list[Row], drafted: Sequence[int], weight: Fraction) -> Round:
    """DIVERSE 2604.07622: drafted places are tested against weight p + (1 - weight) q, the bonus token is p's."""
    accept = [min(ONE, 1 - weight + weight * p[k][x] / q[k][x]) for k, x in enumerate(drafted)]
    return one_by_one(p, accept, [above(p[k], q[k]) for k in range(len(drafted))])


def block(p: list[Row], q: list[Row], drafted: Sequence[int]) -> Round:
    """Sun et al. 2403.10444, algorithm 2. Where a place's test is 0 / 0 the text is the same either way: it goes on."""
    n, weight, passes, after = len(drafted), ONE, [], []
    for k in range(n + 1):
        excess = [max(weight * a - b, ZERO) for a, b in zip(p[k], q[k], strict=True)] if k < n else []
        room = sum(excess) + 1 - weight
        passes.append(ONE if k == 0 else weight if k == n else sum(excess) / room if room else ZERO)
        after.append(p[k] if not any(excess) else normal(excess))
        if k < n:
            weight = min(ONE, weight * p[k][drafted[k]] / q[k][drafted[k]])
    return [passes[k] * math.prod(1 - h for h in passes[k + 1 :]) for k in range(n + 1)], after


def tree(p: list[Row], q: list[Row], drafted: Sequence[int], parents: Sequence[int]) -> Round:
    """The token rule among siblings, each against what the ones before it left: SpecInfer 2305.09781, algorithm 2."""
    stop, after = [ZERO] * len(p), list(p)

    def visit(place: int, arrived: Fraction) -> None:
        left = p[place]
        for node, parent in enumerate(parents):
            if parent == place - 1:
                chance = min(ONE, left[drafted[node]] / q[node][drafted[node]])
                visit(node + 1, arrived * chance)
                arrived, left = arrived * (1 - chance), above(left, q[node])
        stop[place], after[place] = arrived, left

    visit(0, ONE)
    return stop, after


RULES = {"token": token, "block": block, "match": match, "typical": typical, "lenience": lenience, "ensemble": ensemble}


def round_law(
    rule: str, p: list[Row], q: list[Row], drafted: Sequence[int], parents: Sequence[int] | None = None, **parameters
) -> Round:
    """The law of a round in which some guesses may not have been made: their row of q is 0 everywhere.

    Such a guess, and all that follows it, is left out; the places behind it are never reached.
    """
    chain = parents is None
    kept: dict[int, int] = {-1: -1}  # guess -> its number among those that were made
    for node, parent in enumerate(range(-1, len(drafted) - 1) if chain else parents):
        if parent in kept and q[node][drafted[node]]:
            kept[node] = len(kept) - 1
    nodes = list(kept)[1:]
    rows, told, tokens = (
        [p[0], *(p[node + 1] for node in nodes)],
        [q[node] for node in nodes],
        [drafted[node] for node in nodes],
    )
    if chain:
        stop, after = RULES[rule](rows, told, tokens, **parameters)
    else:
        stop, after = tree(rows, told, tokens, [kept[parents[node]] for node in nodes])
    place = {0: 0} | {node + 1: kept[node] + 1 for node in nodes}
    stops = [stop[place[k]] if k in place else ZERO for k in range(len(p))]
    return stops, [after[place[k]] if stops[k] else None for k in range(len(p))]


def emitted(
    stop: Sequence, after: Sequence, drafted: Sequence[int], parents: Sequence[int] | None = None
) -> dict[tuple[int, ...], Fraction]:
    """What a round adds to the text: (accepted guesses and the next token) -> chance. Entries may be of any number
    type.
    """
    law: dict[tuple[int, ...], Fraction] = {}
    for place, row in enumerate(after):
        path, node = [], place - 1
        while node >= 0:
            path.append(drafted[node])
            node = node - 1 if parents is None else parents[node]
        for token, chance in enumerate(row or ()):
            if chance and stop[place]:
                text = (*reversed(path), token)
                law[text] = law.get(text, 0) + stop[place] * chance
    return law


# --- texts -----------------------------------------------------------------------------------------------------------

Table = dict[tuple[int, ...], Row]


def plain(p: Table, length: int, eos: int | None) -> dict[tuple[int, ...], Fraction]:
    """The target's own law of a text of at most `length` tokens, that ends with its first `eos`."""
    law = {(): ONE}
    for _ in range(length):
        longer = {}
        for text, mass in law.items():
            if eos in text:
                longer[text] = mass
            else:
                longer |= {(*text, token): mass * chance for token, chance in enumerate(p[text]) if chance}
        law = longer
    return law


def speculative(
    rule: str, p: Table, q: Table, gamma: int, length: int, eos: int | None, **parameters
) -> dict[tuple[int, ...], Fraction]:
    """The law of the text that rounds of at most `gamma` guesses write: every draft of every round, summed."""
    growing: dict[tuple[int, ...], Fraction] = {(): ONE}
    finished: dict[tuple[int, ...], Fraction] = {}
    for depth in range(length):
        for text in [text for text in growing if len(text) == depth]:
            arrived = growing.pop(text)
            n = min(gamma, length - depth - 1)
            for guesses, chance in drafts(q, text, n):
                rows = [p[text + guesses[:k]] for k in range(n + 1)]
                stop, after = RULES[rule](rows, [q[text + guesses[:k]] for k in range(n)], guesses, **parameters)
                for new, mass in emitted(stop, after, guesses).items():
                    whole = text + (new[: new.index(eos) + 1] if eos in new else new)
                    over = len(whole) == length or whole[-1] == eos
                    to = finished if over else growing
                    to[whole] = to.get(whole, ZERO) + arrived * chance * mass
    return finished


def drafts(q: Table, text: tuple[int, ...], n: int) -> list[tuple[tuple[int, ...], Fraction]]:
    """Every draft of n tokens after `text`, with its chance."""
    found = [((), ONE)]
    for _ in range(n):
        found = [
            ((*guesses, x), mass * chance)
            for guesses, mass in found
            for x, chance in enumerate(q[text + guesses])
            if chance
        ]
    return found
