"""The search engine proper: has anyone written this before, and how did it go on?

REST (He et al., 2311.08252) looks the end of the text up in a large body of text; LLMA (Yang et al., 2304.04487) in
documents at hand. Here the body is the Python source installed on this machine, and the index is a list of its places
sorted by what stands there, as in a suffix array: whatever begins alike lies side by side, so that a binary search
finds all occurrences of a phrase. Both files stay on disk and are memory-mapped.
"""

import hashlib
import inspect
import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import IncompatibleModels, IndexLoadError, InvalidArgument
from ..files import digest, reading, replacing
from ..law.distributions import Draw, Sampling, point_mass
from ..model.context import Context
from .base import Draft, Drafter, Guessed, TextSession, always

MOST_PLACES = 256  # occurrences looked at; of more, every so-many-th
FILES = ("tokens.bin", "places.npy", "index.json")  # of an index; the last one has the hashes of the others
DEPTH = 8  # at least so many tokens decide the order


def default_folder() -> Path:
    """Where `python -m speclib index` puts its index: this user's cache."""
    return Path(pooch.os_cache("speclib")) / "index"


@dataclass(frozen=True, eq=False)
class SearchIndex:
    """Tokens [N], as big-endian bytes (so that comparing bytes compares tokens), and the places [M] sorted by the
    `depth` tokens that stand there.

    alphabet: a fingerprint of the tokenizer, or None for bare ids.
    """

    data: bytes | mmap.mmap
    places: np.ndarray
    depth: int
    vocabulary: int
    alphabet: str | None

    @property
    def width(self) -> int:
        """Bytes a token."""
        return _dtype(self.vocabulary).itemsize

    @property
    def tokens(self) -> np.ndarray:
        """The indexed text. [N]"""
        return np.frombuffer(self.data, _dtype(self.vocabulary))

    def find(self, phrase: Sequence[int]) -> np.ndarray:
        """Every place where `phrase` stands, at most `depth` tokens of it: the places right behind it. [m]"""
        size = self.width * len(phrase)
        wanted = np.array(phrase, dtype=_dtype(self.vocabulary)).tobytes()

        def there(place):
            start = self.width * int(place)
            return self.data[start : start + size]

        low = bisect_left(self.places, wanted, key=there)
        if low == len(self.places) or there(self.places[low]) != wanted:
            return self.places[:0]
        return self.places[low : bisect_right(self.places, wanted, low, key=there)]

    def longest(self, text: Sequence[int], most: int, least: int = 1) -> tuple[int, np.ndarray]:
        """The length of the longest end of `text` that occurs, between `least` and `most` tokens, and where it does;
        (0, none) if it does not.

        If a phrase occurs, so does its end: a binary search over the length needs three questions for eight tokens.
        """
        most = min(most, self.depth, len(text))
        size, found, low = 0, self.places[:0], least
        while low <= most:
            middle = (low + most) // 2
            places = self.find(text[len(text) - middle :])
            if len(places):
                size, found, low = middle, places, middle + 1
            else:
                most = middle - 1
        return size, found

    def behind(self, places: np.ndarray, size: int, n: int) -> np.ndarray:
        """What follows a phrase of `size` tokens at some of its places, at most MOST_PLACES of them: n tokens each. [m,
        n]
        """
        chosen = places[:: -(-len(places) // MOST_PLACES)].astype(np.int64)
        return self.tokens[np.minimum(chosen[:, None] + size + np.arange(n), len(self.tokens) - 1)].astype(np.int64)

    def save(self, folder: Path) -> None:
        """Writes FILES, which take the place of an older index only when all of them are written.

        index.json tells the corpus by the hash of its tokens, tokenizer, settings, and the code that sorted them.
        """
        tokens, places, facts = (folder / name for name in FILES)
        with replacing(facts) as new_facts, replacing(places) as new_places, replacing(tokens) as new_tokens:
            new_tokens.write_bytes(self.data)
            np.save(new_places, self.places)
            hashes = {FILES[0]: pooch.file_hash(str(new_tokens)), FILES[1]: pooch.file_hash(str(new_places))}
            about = {"depth": self.depth, "vocabulary": self.vocabulary, "alphabet": self.alphabet}
            about |= {"tokens": len(self.tokens), "sha256": hashes, "code": digest(inspect.getsource(build_index))}
            new_facts.write_text(json.dumps(about | {"digest": digest(json.dumps(about))}, indent=1) + "\n")


def build_index(
    tokens: Sequence[int], vocabulary: int, alphabet: str | None = None, progress: bool = False
) -> SearchIndex:
    """Sorts every place of a text [N] by the tokens that stand there. About 1 s a million tokens, 20 bytes of memory a
    token.

    The tokens are packed into 64-bit numbers, foremost first, and those are sorted: simpler than a full suffix array,
    and no phrase searched for is longer than the depth. Raises InvalidArgument for ids outside the vocabulary or a text
    of fewer than 3 * DEPTH tokens.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) < 3 * DEPTH or not np.issubdtype(tokens.dtype, np.integer):
        raise InvalidArgument(f"an index needs one list of at least {3 * DEPTH} token ids")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InvalidArgument(f"the text holds token {int(tokens.max())}, outside a vocabulary of {vocabulary}")
    bits = max(1, (vocabulary - 1).bit_length())
    per_number = min(64 // bits, DEPTH)
    numbers = -(-DEPTH // per_number)
    depth = numbers * per_number
    count = len(tokens) - depth  # the last places have too little behind them to be of use
    order = np.arange(count)
    for number in tqdm(
        reversed(range(numbers)), desc="sorting", unit="pass", total=numbers, disable=not progress
    ):  # the hindmost first: the sort is stable
        packed = np.zeros(count, dtype=np.uint64)
        for i in range(number * per_number, (number + 1) * per_number):
            packed = (packed << np.uint64(bits)) | tokens[i : i + count].astype(np.uint64)
        order = order[np.argsort(packed[order], kind="stable")]
    return SearchIndex(
        tokens.astype(_dtype(vocabulary)).tobytes(),
        order.astype(np.uint32 if len(tokens) < 2**32 else np.uint64),
        depth,
        vocabulary,
        alphabet,
    )


def load_index(folder: str | Path | None = None) -> SearchIndex:
    """An index that was saved, memory-mapped. Raises IndexLoadError if it is missing, not what was saved, or was sorted
    by other code than today's.
    """
    folder = default_folder() if folder is None else Path(folder)
    command = "python -m speclib index" + ("" if folder == default_folder() else f" --out {folder}")
    if not (folder / "index.json").is_file():
        raise IndexLoadError(f"there is no search index in {folder}; make one with: {command}")
    with reading(folder / "index.json", f"make it again with: {command}", IndexLoadError):
        facts = json.loads((folder / "index.json").read_text("utf-8"))
        if facts["code"] != digest(inspect.getsource(build_index)):
            raise IndexLoadError(f"{folder} was made by another version of speclib; make it again with: {command}")
        if facts.pop("digest") != digest(json.dumps(facts)):
            raise IndexLoadError(f"{folder / 'index.json'} was changed since; make it again with: {command}")
        for name, found in facts["sha256"].items():
            if not (folder / name).is_file() or pooch.file_hash(str(folder / name)) != found:
                raise IndexLoadError(
                    f"{folder / name} is not what was saved (SHA-256 differs); make it again with: {command}"
                )
        with open(folder / "tokens.bin", "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return SearchIndex(
            data, np.load(folder / "places.npy", mmap_mode="r"), facts["depth"], facts["vocabulary"], facts["alphabet"]
        )


def fingerprint(tokens: dict[str, int]) -> str:
    """A short name for a tokenizer: equal for equal tables of token -> id."""
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()[:16]


class RetrievalDrafter(Drafter):
    """Looks the end of the text up in an index and proposes how it went on there, token by token.

    index: a SearchIndex, a folder, or None for the one that `python -m speclib index` made. longest, shortest: tokens
    to match. probabilities: "point" follows the most frequent token at each step; "counts" draws it in proportion, and
    hands the proportions over as q. Raises InvalidArgument for other values and unless 1 <= shortest <= longest <=
    index.depth; IndexLoadError for a missing or damaged index.
    """

    def __init__(
        self,
        index: SearchIndex | str | Path | None = None,
        longest: int = DEPTH,
        shortest: int = 1,
        probabilities: str = "point",
    ):
        if probabilities not in ("counts", "point"):
            raise InvalidArgument(f"probabilities must be 'counts' or 'point', not {probabilities!r}")
        self.index = index if isinstance(index, SearchIndex) else load_index(index)
        if not 1 <= shortest <= longest <= self.index.depth:
            raise InvalidArgument(
                f"retrieval needs 1 <= shortest <= longest <= {self.index.depth}, not shortest={shortest}, "
                f"longest={longest}"
            )
        self.longest, self.shortest, self.point = longest, shortest, probabilities == "point"
        self._checked = None  # the model whose tokenizer was compared last

    def start(self, context: Context, sampling: Sampling, draw: Draw) -> "RetrievalSession":
        target, index = context.language_model, self.index
        if target is not self._checked:
            if index.vocabulary > target.vocabulary or (
                index.alphabet and target.tokenizer and fingerprint(target.tokens) != index.alphabet
            ):
                raise IncompatibleModels(
                    f"the index was made with another tokenizer than {target.name}'s; make one for it with build_index"
                )
            self._checked = target
        return RetrievalSession(self, context, sampling, draw)


class RetrievalSession(TextSession):
    def __init__(self, drafter: RetrievalDrafter, context: Context, sampling: Sampling, draw: Draw):
        super().__init__(context)
        self.drafter, self.sampling, self.draw = drafter, sampling, draw

    def propose(self, text: list[int], n: int, goes_on: Callable[[Tensor], bool] = always) -> Draft:
        index, known = self.drafter.index, self.drafter.index.vocabulary
        recent = text[-self.drafter.longest :]
        # no phrase holds a token the index does not know
        start = next((i + 1 for i in reversed(range(len(recent))) if recent[i] >= known), 0)
        size, places = index.longest(recent[start:], self.drafter.longest, self.drafter.shortest)
        tokens, probs = [], []
        followed = index.behind(places, size, n) if size else np.zeros((0, n), dtype=np.int64)  # [m, n]
        for i in range(n if size else 0):
            seen, counts = np.unique(followed[:, i], return_counts=True)
            q = self._probabilities(seen, counts, lambda: [tokens])  # [V]
            if i and not goes_on(q):
                break
            token = int(q.argmax()) if self.drafter.point else int(self.draw(q))
            tokens.append(token)
            probs.append(q)
            followed = followed[followed[:, i] == token]
        empty = torch.zeros(0, self.vocabulary, dtype=self.dtype, device=self.device)
        return Draft(torch.tensor(tokens, dtype=torch.long, device=self.device), torch.stack(probs) if probs else empty)

    def _probabilities(self, seen: np.ndarray, counts: np.ndarray, guessed: Guessed | None = None) -> Tensor:
        """The distribution that the next guess is taken from: what was seen [m], in proportion to how often [m]. [V]"""
        if self.drafter.point:
            return point_mass(torch.tensor(int(seen[counts.argmax()]), device=self.device), self.vocabulary, self.dtype)
        logits = torch.full((self.vocabulary,), -torch.inf, dtype=self.dtype, device=self.device)
        logits[torch.from_numpy(seen).to(self.device)] = torch.from_numpy(np.log(counts)).to(self.device, self.dtype)
        return self.sampling.probabilities(logits, guessed=guessed)


def _dtype(vocabulary: int) -> np.dtype:
    return np.dtype(">u2") if vocabulary <= 2**16 else np.dtype(">u4")
