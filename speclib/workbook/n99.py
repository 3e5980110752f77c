"""Notebook 99, the glossary's quiz."""

from collections.abc import Callable

from .common import _law, _number, _same, _verdict


def accepted_share(function: Callable) -> None:
    """(a + a^2) / 2 at gamma 2."""
    cases = [
        ((0.8,), _number(0.72, "(0.8 + 0.64) / 2: the second guess counts only behind an accepted first")),
        ((1.0,), _number(1.0, "all accepted")),
    ]
    _verdict(function, cases, "lower than alpha, though it speaks of the same draft")


def pays(function: Callable) -> None:
    """Whether some draft length beats plain decoding, with the width curve."""
    flat, slope = {n: 1.0 for n in range(1, 6)}, {n: 1 + 0.05 * (n - 1) for n in range(1, 6)}
    step = {1: 1.0, 2: 1.9, 3: 1.9, 4: 1.9}
    cases = [
        ((0.5, 0.1, flat), _same(True, "a flat curve, and alpha is above c")),
        ((0.1, 0.2, flat), _same(False, "less acceptance than cost")),
        ((0.3, 0.3, flat), _same(False, "at equality nothing is won")),
        ((0.15, 0.12, slope), _same(False, "one guess: 1.15 tokens for 0.12 + 1.05; more guesses are worse")),
        ((0.8, 0.05, step), _same(True, "one guess does not pay, two do: 2.44 tokens for 0.1 + 1.9")),
    ]
    _verdict(function, cases, "alpha > c (Leviathan et al., corollary 3.9) is the case of a flat width curve")


def chens_residual(function: Callable) -> None:
    """norm((q - p)+), with Chen's letters."""
    cases = [
        (([0.9, 0.1], [0.5, 0.5]), _law([0.0, 1.0], "their q is the target: what it has above the draft")),
        (([0.2, 0.4, 0.4], [0.4, 0.5, 0.1]), _law([2 / 3, 1 / 3, 0.0], "0.2 and 0.1")),
    ]
    _verdict(function, cases, "the same residual, other letters")
