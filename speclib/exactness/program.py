"""A program that answers JSON lines on its standard input and output, as data/vectors/PROTOCOL.md says."""

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from ..errors import InvalidArgument
from .judge import ANSWERS, Unanswered

VERSION = 1


class Program:
    """A running program, and what it said of itself. Use it in a `with`: it is ended when that is left.

    Raises InvalidArgument when it cannot be started, and Unanswered when it does not introduce itself within `timeout`
    seconds.
    """

    def __init__(self, command: Sequence[str], timeout: float = 60.0):
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the program is left)
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        except OSError as error:
            raise InvalidArgument(f"cannot start {command[0]!r}: {error.strerror}") from None
        self.lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            hello = self.ask({"op": "hello", "id": "hello", "version": VERSION})
            self.name, self.answers = str(hello.get("name", command[0])), hello.get("answers")
            self.rules, self.skip = hello.get("rules", ["token"]), hello.get("skip", [])
            lists = isinstance(self.rules, list) and isinstance(self.skip, list)
            if self.answers not in ANSWERS or not lists or not all(isinstance(x, str) for x in self.rules + self.skip):
                raise Unanswered(
                    'hello must say "answers": "draws" or "law", and lists "rules" and "skip"; '
                    f"it was {str(hello)[:80]}",
                    over=True,
                )
        except BaseException:
            self.__exit__()
            raise

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")  # the end

    def ask(self, request: dict) -> dict:
        """The answer to a request with an id. Raises Unanswered: over, if the program has died or stays silent."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise Unanswered(self.death(), over=True) from None
        while True:
            try:
                line = self.lines.get(timeout=self.timeout)
            except queue.Empty:
                self.process.kill()
                raise Unanswered(f"no answer within {self.timeout:g} s", over=True) from None
            if not line:
                raise Unanswered(self.death(), over=True)
            try:
                answer = json.loads(line)
                number = answer["id"]
            except (ValueError, TypeError, KeyError):
                shown = line[:60].decode(errors="replace").strip()
                raise Unanswered(
                    f'an answer is one line, a JSON object with the request\'s "id", not {shown!r}'
                ) from None
            if number == request["id"]:
                return answer  # else: late, of a request that was given up

    def death(self) -> str:
        """How the program ended, with the last line of its error stream."""
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"it ended with exit code {code}" + (f": {last[:200]}" if last else "")

    def answer(self, case: dict, n: int | None, seed: int):
        """What `judge` asks for: n draws of a case, or its law where n is None."""
        request = (
            {"op": "law", "id": case["id"], "case": case}
            if n is None
            else {"op": "draw", "id": case["id"], "n": n, "seed": seed, "case": case}
        )
        answer = self.ask(request)
        if "skip" in answer or n is None:
            return answer
        if "draws" not in answer:
            raise Unanswered('an answer to "draw" has the field "draws"')
        return answer["draws"]

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # what it did not read any more
            self.process.stdin.close()
        self.errors.close()
