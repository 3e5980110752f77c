"""What a long measurement has found so far, on disk: interrupted, the same measurement goes on where it stopped."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pooch

from ..files import code_version, differing, reading, write_text
from . import experiments


class Journal:
    """Finished parts of one measurement by name, kept on disk.

    JSON lines: the first says whose parts they are, each of the others is one part, [name, result], appended
    when it is finished.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None):
        """settings: what the measurement is called with, among them files and folders by path, whose content counts.

        A file at `path` goes on if it belongs to the same settings, machine, versions, code and files, and is replaced
        if not. Raises FileError if it is damaged.
        """
        self.path, self.found, self.identity, self.begun = path, {}, {}, False
        self.identity = json.loads(json.dumps(identity(settings or {})))
        if path.exists():
            with reading(path, "delete it to start afresh"):
                head, *parts = path.read_text("utf-8").split("\n")
                kept = json.loads(head).get("identity")
                if kept == self.identity:
                    self.found = dict(map(json.loads, parts[:-1]))  # behind the last line's end is a torn part, if any
                else:
                    other = differing(kept, self.identity)
                    print(f"{path} is of another measurement (other {other}): starting afresh", file=sys.stderr)

    def once(self, name: object, work: Callable[[], Any]) -> Any:
        """What `work` returned when it was done for this name, now or before the interruption, as JSON has it."""
        key = json.dumps(name)
        if key not in self.found:
            self.found[key] = json.loads(json.dumps(work()))
            self._keep(key)
        return self.found[key]

    def _keep(self, key: str) -> None:
        """Appends a part. The first of this process goes into the file anew, behind all that came before it, so that
        nothing is appended to a torn line."""
        if self.begun:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps([key, self.found[key]]) + "\n")
        else:
            lines = [{"identity": self.identity}, *self.found.items()]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
            self.begun = True


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a measurement the same: its settings, the files that they name, machine, versions and code."""
    values = [v for value in settings.values() for v in (value if isinstance(value, list | tuple) else [value])]
    named = [Path(value) for value in values if isinstance(value, str | Path)]
    files = [file for path in named for file in ([path] if path.is_file() else sorted(path.glob("*.safetensors")))]
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    here = {name: value for name, value in experiments.machine().items() if name != "date"}
    return plain | here | {"weights": {str(file): pooch.file_hash(file) for file in files}, "code": code_version()}
