"""Notebook 99, the glossary's quiz."""

from .common import chance, exercise, two_laws, width_prices


@exercise(
    "lower than alpha, though it speaks of the same draft",
    [
        ((0.8,), "(0.8 + 0.64) / 2: the second guess counts only behind an accepted first"),
        ((1.0,), "all accepted"),
        ((0.0,), "none"),
    ],
    lambda r: (chance(r),),
)
def accepted_share(alpha=0.8):
    """(a + a^2) / 2 at gamma 2."""
    return (alpha + alpha**2) / 2


def _margins(alpha, c, T):
    """By how much each draft length beats plain decoding, in plain steps a round."""
    return [sum(alpha**k for k in range(n)) - (n - 1) * c - T[n] for n in T if n > 1]


def _curve(r):
    """alpha, c and a width curve; None where hardly anything is won or lost by rounding alone."""
    T = {n: price for n, price in width_prices(r, 1.0).items() if n < r.randint(3, 12)}
    if r.random() < 0.5:  # flat: what decides is alpha > c
        T = dict.fromkeys(T, 1.0)
    drawn = r.choice([chance(r), round(r.uniform(0.3, 0.95), 2)]), r.choice([chance(r), round(r.random() / 4, 2)]), T
    return drawn if all(margin == 0 or abs(margin) > 1e-3 for margin in _margins(*drawn)) else None


_FLAT = {n: 1.0 for n in range(1, 6)}


@exercise(
    "alpha > c (Leviathan et al., corollary 3.9) is the case of a flat width curve",
    [
        ((0.5, 0.1, _FLAT), "a flat curve, and alpha is above c"),
        ((0.1, 0.2, _FLAT), "less acceptance than cost"),
        ((0.5, 0.5, _FLAT), "at equality nothing is won"),
        ((0.15, 0.12, {n: 1 + 0.05 * (n - 1) for n in range(1, 6)}), "1.15 tokens for 0.12 + 1.05; more are worse"),
        ((0.8, 0.05, {1: 1.0, 2: 1.9, 3: 1.9, 4: 1.9}), "one guess does not pay, two do: 2.44 tokens for 0.1 + 1.9"),
    ],
    _curve,
)
def pays(alpha, c, T):
    """Whether some draft length beats plain decoding, with the width curve."""
    return any(margin > 0 for margin in _margins(alpha, c, T))


@exercise(
    "the same residual, other letters",
    [
        (([0.9, 0.1], [0.5, 0.5]), "their q is the target: what it has above the draft"),
        (([0.2, 0.4, 0.4], [0.4, 0.5, 0.1]), "0.2 and 0.1"),
        (([0.0, 1.0], [1.0, 0.0]), "disjoint supports leave all of the target"),
    ],
    lambda r: (lambda both: both if both[0] != both[1] else None)(two_laws(r)),
)
def chens_residual(p, q):
    """norm((q - p)+), with Chen's letters."""
    excess = [max(b - a, 0) for a, b in zip(p, q, strict=True)]
    return [e / sum(excess) for e in excess]
