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
    """Finished parts of one measurement by name, written after each of them; without a path they are not kept."""

    def __init__(self, path: Path | None = None, settings: Mapping[str, Any] | None = None):
        """settings: what the measurement is called with, among them files and folders by path, whose content counts.

        A file at `path` goes on if it belongs to the same settings, machine, versions, code and files, and is replaced
        if not. Raises FileError if it is damaged.
        """
        self.path, self.found, self.identity = path, {}, {}
        if path is None:
            return
        self.identity = json.loads(json.dumps(identity(settings or {})))
        if path.exists():
            with reading(path, "delete it to start afresh"):
                kept = json.loads(path.read_text("utf-8"))
                if kept.get("identity") == self.identity:
                    self.found = dict(kept["found"])
                else:
                    other = differing(kept.get("identity"), self.identity)
                    print(f"{path} is of another measurement (other {other}): starting afresh", file=sys.stderr)

    def once(self, name: object, work: Callable[[], Any]) -> Any:
        """What `work` returned when it was done for this name, now or before the interruption, as JSON has it."""
        key = json.dumps(name)
        if key not in self.found:
            self.found[key] = json.loads(json.dumps(work()))
            if self.path:
                write_text(self.path, json.dumps({"identity": self.identity, "found": self.found}))
        return self.found[key]


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a measurement the same: its settings, the files that they name, machine, versions and code."""
    named = [Path(value) for value in settings.values() if isinstance(value, str | Path)]
    files = [file for path in named for file in ([path] if path.is_file() else sorted(path.glob("*.safetensors")))]
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    here = {name: value for name, value in experiments.machine().items() if name != "date"}
    return plain | here | {"weights": {str(file): pooch.file_hash(file) for file in files}, "code": code_version()}
