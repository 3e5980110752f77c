"""Files that are whole or not there: written beside their place and moved into it; checked before any work."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import FileError, SpeclibError

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with the same ending; it takes the place of `path` when the block ends
    well.

    Killed or out of disk half-way, the old file stays as it was. A folder takes the place of the whole old folder.
    Raises FileError if it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except SpeclibError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}; what was there is as it was") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as a whole (see `replacing`)."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


@contextmanager
def reading(path: str | Path, remedy: str, error: type[SpeclibError] = FileError) -> Iterator[None]:
    """Whatever goes wrong in the block is one line, raised as `error`: the file at `path` is damaged, and what to
    do.
    """
    try:
        yield
    except SpeclibError:
        raise
    except Exception as reason:
        said = f"{type(reason).__name__}: {reason}".strip().partition("\n")[0][:200]
        raise error(f"{path} is damaged or not what it should be ({said}); {remedy}") from reason


def check_output(path: str | Path, endings: tuple[str, ...] = ()) -> None:
    """Raises FileError unless a file can be written to `path`: asked before the work, that nothing is lost behind it.

    endings: those that `path` may have, such as ".json"; none: any.
    """
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        raise FileError(f"{path} must end in {' or '.join(endings)}")
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}; give the name of a file")
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: there is no folder {path.parent}; make it, or choose another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise FileError(f"{path} cannot be written: it is protected; choose another place")
    check_folder(path.parent)


def check_folder(folder: str | Path) -> None:
    """Raises FileError unless files can be written in `folder`, or it can be made: nothing is left behind."""
    folder = there = Path(os.path.abspath(folder))
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise FileError(f"{folder} cannot be written: {there} is no folder; choose another place")
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions do not tell of a full disk, or one mounted read-only
            pass
    except OSError as error:
        raise FileError(f"{folder} cannot be written: {error.strerror or error}; choose another place") from error


def code_version(*parts: str) -> str:
    """A short hash of the package's source and registry, or only of `parts` of it."""
    folders = [PACKAGE / part for part in parts] or [PACKAGE]
    found = sorted(file for folder in folders for name in ("*.py", "registry.txt") for file in folder.rglob(name))
    return digest(*(line for file in found for line in (file.relative_to(PACKAGE).as_posix(), file.read_text("utf-8"))))


def digest(*contents) -> str:
    """A short hash of texts, and of bytes or arrays that lie in one piece, in order."""
    found = hashlib.sha256()
    for content in contents:
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        found.update(len(content).to_bytes(8, "little"))  # so that pieces cannot run into each other
        found.update(content)
    return found.hexdigest()[:16]


def differing(one: object, other: dict) -> str:
    """The names under which a record's identity, as it was read, differs from `other`."""
    if not isinstance(one, dict):
        return "code"
    return ", ".join(key for key in other if one.get(key) != other[key]) or "entries"
