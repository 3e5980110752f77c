"""The text the embedded models learn from: the Python source that every reader has installed.

Standard library and installed packages, tests left out, duplicates left out, no package above a cap (transformers alone
would be half of it, in near copies of itself). A fixed set of modules is held out: no model ever sees it, and every
reported figure and prompt comes from it.
"""

import hashlib
import importlib.metadata
import json
import platform
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from .. import files
from ..errors import TrainingError
from ..files import reading, replacing, write_text

CAP_BYTES = 8_000_000  # per package
LONGEST_FILE = 300_000
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "testing", "_vendor", "__pycache__", "site-packages", "lib2to3"}

# Held out by module name, so that the same files are held out in every version of a package.
HELD_OUT = (
    "stdlib/argparse.py stdlib/calendar.py stdlib/configparser.py stdlib/csv.py stdlib/difflib.py "
    "stdlib/fractions.py stdlib/heapq.py stdlib/json/decoder.py stdlib/logging/handlers.py stdlib/mailbox.py "
    "stdlib/shelve.py stdlib/shlex.py stdlib/statistics.py stdlib/tarfile.py stdlib/textwrap.py "
    "stdlib/unittest/case.py stdlib/urllib/parse.py stdlib/zipfile.py "
    "jinja2/lexer.py jinja2/filters.py matplotlib/ticker.py matplotlib/legend.py matplotlib/widgets.py "
    "numpy/lib/_function_base_impl.py numpy/polynomial/legendre.py pandas/core/resample.py "
    "pandas/core/arrays/period.py pandas/io/html.py scipy/optimize/_root.py scipy/stats/_kde.py "
    "scipy/signal/_filter_design.py seaborn/categorical.py seaborn/matrix.py torch/optim/rprop.py "
    "torch/nn/modules/pooling.py torch/distributions/dirichlet.py torch/utils/data/sampler.py "
    "transformers/trainer_callback.py transformers/models/pegasus/modeling_pegasus.py "
    "transformers/models/biogpt/modeling_biogpt.py networkx/algorithms/cycles.py click/core.py "
    "tornado/web.py urllib3/response.py rich/table.py"
).split()


@dataclass(frozen=True)
class Document:
    """One source file. `name` is package/path, the same on every machine; `text` is its content."""

    package: str
    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """What trainings read: documents to learn from and documents held out, and the tokens of both (uint16).

    written, held_out_written: which of the tokens a target wrote itself, where others are questions to it. bool [N]
    """

    tokenizer: PreTrainedTokenizerFast
    learnt: list[Document]
    held_out: list[Document]
    tokens: np.ndarray
    held_out_tokens: np.ndarray
    written: np.ndarray | None = None
    held_out_written: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        """A short hash of all texts, tokens and marks."""
        texts = (document.text for document in (*self.learnt, *self.held_out))
        arrays = (self.tokens, self.held_out_tokens, self.written, self.held_out_written)
        return files.digest(*texts, *(np.ascontiguousarray(array) for array in arrays if array is not None))


def python_source() -> list[Document]:
    """Every usable source file of the standard library and the installed packages, in a fixed order."""
    paths = sysconfig.get_paths()
    standard, site = Path(paths["stdlib"]), Path(paths["purelib"])
    found = [("stdlib" / p.relative_to(standard), p) for p in standard.rglob("*.py")]
    found = [(name.as_posix(), p) for name, p in found if "site-packages" not in name.parts]
    found += [(p.relative_to(site).as_posix(), p) for p in site.rglob("*.py")]
    documents, seen = [], set()
    for name, path in tqdm(sorted(found), desc="reading source", unit="file"):
        if SKIPPED_FOLDERS & set(Path(name).parts[:-1]) or Path(name).name.startswith("test_"):
            continue
        text = _readable(path)
        digest = hashlib.sha256(text.encode()).digest()
        if text and digest not in seen:
            seen.add(digest)
            documents.append(Document(name.split("/")[0], name, text))
    return documents


def _readable(path: Path) -> str:
    """The file's text, or "" for tables of data, generated files and other things that nobody reads."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""
    lines = text.count("\n") + 1
    ascii_share = len(text.encode("ascii", "ignore")) / max(len(text), 1)
    ordinary = 300 <= len(text) <= LONGEST_FILE and len(text) / lines < 80 and ascii_share > 0.99
    return text.replace("\r\n", "\n").replace("\t", "    ") if ordinary else ""


def text_file(path: str) -> list[Document]:
    """`--corpus FILE`: paragraphs of another text; each twentieth is held out by `split`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise TrainingError(f"cannot read the corpus {path}: {error}") from error
    blocks = [block for block in text.split("\n\n\n") if block.strip()] or [text]
    if len(text) < 10_000:
        raise TrainingError(f"the corpus {path} has {len(text)} characters; give at least 10,000 to learn from")
    if len(blocks) < 40:  # one long text: cut it into pieces so that some can be held out
        size = len(text) // 40 + 1
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
    return [Document("text", f"text/{i:06d}", block) for i, block in enumerate(blocks)]


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, held out). Training documents are shuffled by a hash of their name and capped per package."""
    if documents and documents[0].package == "text":
        return [d for i, d in enumerate(documents) if i % 20], documents[::20]
    held = [d for d in documents if d.name in HELD_OUT]
    rest = [d for d in documents if d.name not in HELD_OUT]
    rest.sort(key=lambda d: hashlib.sha256(d.name.encode()).digest())
    used, train = Counter(), []
    for document in rest:
        if used[document.package] < CAP_BYTES:
            used[document.package] += len(document.text)
            train.append(document)
    return train, held


def manifest(train: list[Document], held: list[Document]) -> dict:
    """What the corpus was: versions, sizes and one hash per package, so that a card can be checked."""
    try:
        distributions = importlib.metadata.packages_distributions()
    except Exception:  # a broken distribution elsewhere in the environment must not stop training
        distributions = {}

    def version(package):
        if package == "stdlib":
            return platform.python_version()
        name = distributions.get(package.removesuffix(".py"), [None])[0]
        return importlib.metadata.version(name) if name else "unknown"

    packages = {}
    for package in sorted({d.package for d in train}):
        own = [d for d in train if d.package == package]
        found = {"version": version(package), "files": len(own), "bytes": sum(len(d.text) for d in own)}
        packages[package] = {**found, "sha256": _sha256(own)}
    return {
        "train_bytes": sum(len(d.text) for d in train),
        "train_files": len(train),
        "held_out_bytes": sum(len(d.text) for d in held),
        "held_out": sorted(d.name for d in held) if len(held) < 200 else len(held),
        "held_out_digest": files.digest(*(text for d in held for text in (d.name, d.text))),
        "packages": packages,
    }


def _sha256(documents: list[Document], *more: str) -> str:
    return hashlib.sha256("".join((*(d.name + d.text for d in documents), *more)).encode()).hexdigest()


def tokenized(documents: list[Document], tokenizer: PreTrainedTokenizerFast, cache: Path) -> np.ndarray:
    """All documents as one uint16 array, an end-of-text token after each; kept in `cache` between runs."""

    def make() -> np.ndarray:
        pieces = []
        for start in tqdm(range(0, len(documents), 256), desc="tokenizing", unit="batch"):
            encoded = tokenizer.backend_tokenizer.encode_batch([d.text for d in documents[start : start + 256]])
            pieces += [np.array(e.ids + [tokenizer.eos_token_id], dtype=np.uint16) for e in encoded]
        return np.concatenate(pieces)

    return kept(cache / f"tokens-{_sha256(documents, tokenizer.backend_tokenizer.to_str())[:16]}.npy", make)


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array kept at `path`, made the first time. Raises TrainingError if it is damaged."""
    if not path.exists():
        with replacing(path) as partial:
            np.save(partial, make())
    with reading(path, "delete it to make it again", TrainingError):
        return np.load(path, mmap_mode="r")


def write_manifest(train: list[Document], held: list[Document], path: Path) -> None:
    """Saves `manifest` as JSON at `path`. Raises TrainingError beside a tokenizer of another corpus."""
    content, remedy = manifest(train, held), f"choose another --out, or delete {path.parent}"
    if (path.parent / "tokenizer").exists():
        with reading(path, remedy, TrainingError):
            before = json.loads(path.read_text("utf-8"))
            packages, others = content["packages"], before["packages"]
        if before != content:
            changed = sorted(name for name in packages.keys() | others.keys() if packages.get(name) != others.get(name))
            what = f"other content of {', '.join(changed[:3]) or 'what is held out'}{' and more' * (len(changed) > 3)}"
            raise TrainingError(f"{path.parent} holds what was made from another corpus ({what}); {remedy}")
    write_text(path, json.dumps(content, indent=1) + "\n")
