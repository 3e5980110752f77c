"""The fastest way to decode on this machine, by a short trial: backend and dtype for plain decoding, and for
speculative decoding by itself.

One setting for both flatters one of them: where a processor has no instructions for bfloat16, one token is fastest in
it and a check of several hopeless. So a speed-up is told over the best plain decoding of the machine, whatever that is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ..errors import UnsupportedModel
from ..model import language_model
from ..model.language_model import LanguageModel, Pair
from . import experiments

DTYPES = ("float32", "bfloat16")
PLAIN, SPECULATIVE = "plain", "speculative"  # the kinds of which each has a fastest way

# (backend, dtype) -> the pair there; raises UnsupportedModel where a backend cannot read it
Load = Callable[[str, str], Pair]


@dataclass(frozen=True)
class Way:
    """One way to decode: a method by name, and whose forwards run it in which dtype."""

    method: str
    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.method} ({self.backend}, {self.dtype})"


@dataclass(frozen=True)
class Chosen:
    """The fastest way of each kind, and the tokens/s of every way that was tried."""

    ways: dict[str, Way]
    speeds: dict[Way, float]

    def __str__(self) -> str:
        tried = sorted(self.speeds, key=self.speeds.get, reverse=True)
        best = "; ".join(f"{kind}: {way}" for kind, way in self.ways.items())
        return f"chosen by a short trial - {best}\n" + "\n".join(
            f"  {way!s:50} {self.speeds[way]:7.1f} tokens/s" for way in tried
        )


def loader(target: str | None = None, draft: str | None = None, device: str | None = None) -> Load:
    """Loads the pair once per dtype; the backends share its weights."""

    @cache
    def load(backend: str, dtype: str) -> Pair:
        if backend == "eager":
            return language_model.load_pair(target=target, draft=draft, device=device, dtype=dtype)
        whole = load("eager", dtype)
        return Pair(*(LanguageModel(m.model, m.tokenizer, m.name, backend) for m in (whole.target, whole.draft)))

    return load


def choose(
    load: Load,
    kinds: Mapping[str, Callable[[Pair], Mapping[str, experiments.Method]]],
    prompts: Sequence[str],
    backends: Sequence[str] = language_model.BACKENDS,
    dtypes: Sequence[str] = DTYPES,
    near: float = 1.0,
    progress: bool = False,
) -> Chosen:
    """Times every method of every kind, taking turns, on these prompts, and names the fastest way of each kind.

    kinds: by name, what makes the methods of that kind for a pair. Programs take long to make, so on the compiled
    backend a kind is tried only in dtypes whose best way on the other backends reaches the share `near` of the best,
    and by that method alone. A backend that cannot read the models is left out. Raises UnsupportedModel if none can.
    """
    speeds: dict[str, dict[Way, float]] = {kind: {} for kind in kinds}
    refused = UnsupportedModel("there is no backend to try")

    def promising(kind: str, name: str, dtype: str) -> bool:
        here = {way: speed for way, speed in speeds[kind].items() if way.dtype == dtype}
        best = max(here, key=here.get, default=None)
        return not speeds[kind] or (
            best is not None and best.method == name and here[best] >= near * max(speeds[kind].values())
        )

    winners: dict[str, tuple[Way, experiments.Method]] = {}
    for quick in (True, False):
        found = {str(way): (kind, way, method) for kind, (way, method) in winners.items()}  # again, in the same minutes
        for backend, dtype in [(b, d) for d in dtypes for b in backends if (b != "compiled") == quick]:
            try:
                pair = load(backend, dtype)
            except UnsupportedModel as error:
                refused = error
                continue
            for kind, make in kinds.items():
                for name, method in make(pair).items():
                    if quick or promising(kind, name, dtype):
                        way = Way(name, backend, dtype)
                        found[str(way)] = kind, way, method
        if len(found) == len(winners):
            continue  # nothing new to try
        methods = {name: method for name, (_, _, method) in found.items()}
        frame = experiments.interleaved(methods, prompts, progress=progress)
        totals = frame.groupby("method")[["tokens", "seconds"]].sum()
        for name, speed in (totals["tokens"] / totals["seconds"]).sort_values().items():
            kind, way, method = found[name]
            speeds[kind][way] = speed
            winners[kind] = way, method  # the last is the fastest
    if len(winners) < len(kinds):
        raise refused
    tried = {way: speed for own in speeds.values() for way, speed in own.items()}
    return Chosen({kind: winners[kind][0] for kind in kinds}, tried)
