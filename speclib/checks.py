"""What an exercise is told. Each check takes the reader's function, prints one verdict and never raises.

"not done yet" while the stub returns `...`; what differs, in words that teach; or "correct".
"""

from collections.abc import Callable, Iterable
from typing import Any


def _verdict(function: Callable, cases: Iterable[tuple[tuple, Callable[[Any], str | None]]], praise: str) -> None:
    """Runs `function` on each case's arguments; the case says what is wrong with the answer, or None if nothing is."""
    for arguments, complaint in cases:
        try:
            answer = function(*arguments)
        except Exception as error:
            print(f"{function.__name__} raised {type(error).__name__}: {error}")
            return
        if answer is ...:
            print("not done yet: replace the ... and run this cell again")
            return
        try:
            wrong = complaint(answer)
        except Exception as error:
            wrong = f"returned {answer!r}, which could not be compared ({type(error).__name__}: {error})"
        if wrong:
            print(f"not yet: {wrong}")
            return
    print(f"correct: {praise}")


def _law(wanted: list[float], why: str) -> Callable[[Any], str | None]:
    """A complaint about a list of probabilities that is not `wanted`."""

    def complaint(answer):
        values = [float(v) for v in answer]
        close = len(values) == len(wanted) and all(abs(a - b) < 1e-9 for a, b in zip(values, wanted, strict=True))
        return None if close else f"expected {[round(v, 4) for v in wanted]}, got {[round(v, 4) for v in values]}: {why}"

    return complaint


def _number(wanted: float, why: str) -> Callable[[Any], str | None]:
    """A complaint about a number that is not `wanted`."""
    return lambda answer: None if abs(float(answer) - wanted) < 1e-9 else f"expected {wanted:.6g}, got {float(answer):.6g}: {why}"


# --- notebook 03 -------------------------------------------------------------------------------------------------------


def my_residual(function: Callable) -> None:
    """norm(max(p - q, 0)), with its limit."""
    cases = [
        (([0.4, 0.3, 0.15, 0.15], [0.2, 0.45, 0.05, 0.3]), _law([2 / 3, 0, 1 / 3, 0], "clip p - q at 0, then divide by the sum")),
        (([1.0, 0.0], [0.0, 1.0]), _law([1.0, 0.0], "disjoint supports leave all of p")),
        (([0.5, 0.5], [0.5, 0.5]), _law([0.5, 0.5], "where p and q agree the sum is 0 and the limit is p")),
    ]
    _verdict(function, cases, "after a rejection the text continues from here")


def threshold_law(function: Callable) -> None:
    """The law of the rule that accepts iff q <= p."""
    cases = [
        (([0.5, 0.5], [0.8, 0.2]), _law([0.0, 1.0], "drafts of token 0 are always rejected, and the residual holds only token 1")),
        (([0.5, 0.3, 0.2], [0.5, 0.4, 0.1]), _law([0.5, 0.0, 0.5], "token 0 is kept (0.5 <= 0.5), token 1 never, and all of its mass moves to token 2")),
    ]
    _verdict(function, cases, "the rule is biased: it starves the tokens that the draft overrates")


def tokens_per_round(function: Callable) -> None:
    """1 + a + ... + a^gamma."""
    cases = [
        ((0.0, 3), _number(1.0, "with no guess accepted a round still yields the target's own token")),
        ((0.5, 2), _number(1.75, "1 + 0.5 + 0.25")),
        ((1.0, 4), _number(5.0, "all guesses and the bonus token")),
    ]
    _verdict(function, cases, "Leviathan et al., equation 1")
