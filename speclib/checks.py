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
