"""The files that come with the workbook: where they are, and whether they are still what they were.

In a checkout they lie in `data/`. Where only the package is installed they are fetched once from the repository and
kept in a cache. Either way each file is compared with its SHA-256 in `registry.txt` first.
"""

import importlib.metadata
import json
from pathlib import Path

import pooch

from .errors import InvalidArgument, ModelLoadError
from .files import reading, write_text

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
REGISTRY = Path(__file__).with_name("registry.txt")


def in_checkout(root: Path = ROOT) -> bool:
    """Whether this package lies in its own repository: the project around it makes its command, and has models.

    A neighbour called `data` alone proves nothing.
    """
    project = root / "pyproject.toml"
    if not project.is_file() or not (root / "data" / "models").is_dir():
        return False
    return 'speclib = "speclib.__main__:main"' in project.read_text("utf-8", "replace")


CHECKOUT = in_checkout()
RESULTS = DATA / "results" if CHECKOUT else Path("speclib-results")  # an installed package writes nothing beside itself


def registry() -> dict[str, str]:
    """Path below data/ -> SHA-256, for every file that ships, from the smallest to the largest. Raises ModelLoadError
    if the list is missing or damaged.
    """
    if not REGISTRY.exists():
        raise ModelLoadError(f"{REGISTRY.name} is missing: the installation is incomplete; reinstall speclib")
    with reading(REGISTRY, "reinstall speclib", ModelLoadError):
        known = dict(line.split() for line in REGISTRY.read_text("utf-8").splitlines() if line.strip())
        if any(len(digest) != 64 for digest in known.values()):
            raise ValueError("a hash of another length")
        return known


def write_registry() -> int:
    """Hashes everything below data/models and data/prompts into registry.txt; returns the number of files."""
    files = sorted(p for folder in ("models", "prompts") for p in (DATA / folder).rglob("*") if p.is_file())
    files.sort(key=lambda p: p.stat().st_size)  # the order is known where the files are not
    write_text(REGISTRY, "".join(f"{p.relative_to(DATA).as_posix()} {pooch.file_hash(str(p))}\n" for p in files))
    return len(files)


def fetch(name: str) -> Path:
    """The file or folder `name` below data/, checked against the registry.

    Raises ModelLoadError if it does not ship, cannot be had, or differs from what was registered.
    """
    known = registry()
    wanted = [path for path in known if path == name or path.startswith(name + "/")]
    if not wanted:
        raise ModelLoadError(f"nothing called {name!r} comes with the workbook")
    if not CHECKOUT:
        remote = _remote(known)
        return _common_folder([Path(_retrieve(remote, path)) for path in wanted], name, wanted)
    for path in wanted:
        if not (DATA / path).is_file():
            raise ModelLoadError(f"data/{path} is missing; restore it with: git checkout -- data/{path}")
        if pooch.file_hash(str(DATA / path)) != known[path]:
            raise ModelLoadError(
                f"data/{path} is not the file that was registered (SHA-256 differs); restore it with: git checkout "
                f"-- data/{path}"
            )
    return DATA / name


def held_out(domain: str = "code") -> list[dict[str, str]]:
    """What was cut from text that no model has seen, each with its "source" and "text", the prompt: "code" or, to see a
    draft away from home, "prose", about 100 tokens each; "edit", of two "kind"s in turn: a function, and the signature
    of a copy "renamed" or "reworded" (120 to 250 tokens); "repair": a few lines that lost a colon, for
    the encoder-decoder pair. The last two have an "answer" too. Raises InvalidArgument for another domain.
    """
    content = json.loads(fetch("prompts/held_out.json").read_text("utf-8"))
    if domain not in content:
        raise InvalidArgument(f"no prompts called {domain!r}; choose one of {', '.join(content)}")
    return content[domain]


def prompts(domain: str = "code") -> list[str]:
    """The texts of `held_out`."""
    return [entry["text"] for entry in held_out(domain)]


def chat_prompts(file: str | Path | None = None) -> list[dict[str, str]]:
    """Questions for a chat model, each with its "category" and "prompt": nine each of explanation, code, sums,
    rewriting, lists, written for this project; or those of a file of such JSON lines. Raises FileError for another.
    """
    file = Path(file) if file else fetch("prompts/chat.jsonl")
    with reading(file, 'give JSON lines with "category" and "prompt", a text each'):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        found = [{key: line[key] for key in ("category", "prompt")} for line in lines]
        if not found or not all(isinstance(text, str) and text.strip() for entry in found for text in entry.values()):
            raise ValueError("no prompts, or an empty one")
    return found


def _remote(known: dict[str, str]) -> pooch.Pooch:
    """Where the files are fetched from: the repository that the installed distribution names."""
    try:
        addresses = importlib.metadata.metadata("speculative-sampling-workbook").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:  # copied and not installed; what is in the cache still serves
        addresses = []
    homes = [address.split(", ")[1] for address in addresses if address.startswith("Repository")]
    home = homes[0] if homes else "no known address"
    return pooch.create(path=pooch.os_cache("speclib"), base_url=home + "/raw/main/data/", registry=known)


def _retrieve(remote: pooch.Pooch, path: str) -> str:
    try:
        return remote.fetch(path)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ModelLoadError(
            f"data/{path} is neither here nor could it be fetched from {remote.base_url} ({reason}); connect to the "
            f"network once, or use a checkout of the repository: {remote.path} may hold a copy of its data/"
        ) from error


def _common_folder(found: list[Path], name: str, wanted: list[str]) -> Path:
    return found[0] if wanted == [name] else Path(str(found[0])[: -len(wanted[0])]) / name
