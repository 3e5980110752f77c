"""What a command owes its terminal: text in any character set, a quiet end. Imports nothing heavy."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells report after SIGINT and SIGPIPE
MESSAGE = "\nspeclib: interrupted; the same command goes on where it can\n"


@contextmanager
def loading() -> Iterator[None]:
    """Around slow imports: Ctrl-C ends `python -m speclib` at once, without a traceback. Other programs notice nothing.

    A handler and no `except`, because libraries turn a KeyboardInterrupt inside their imports into errors of their own.
    """
    words = sys.orig_argv
    ours = Path(sys.argv[0]).stem == "speclib" or ("-m", "speclib") in zip(words, words[1:], strict=False)
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, MESSAGE.encode())
    os._exit(INTERRUPTED)


def any_text() -> None:
    """A character that the console or file behind standard output does not know is shown as "?", and stops nothing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def close_quietly() -> None:
    """Nobody reads standard output any more: what is still written there, at Python's end too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
