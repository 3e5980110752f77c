"""The fastest way to decode on this machine, by a short trial: backend and dtype for plain decoding, and for
speculative decoding by itself.

One setting for both flatters one of them: where a processor has no instructions for bfloat16, one token is fastest in
it and a check of several hopeless. So a speed-up is told over the best plain decoding of the machine, whatever that is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import UnsupportedModel
from ..model import language_model
from ..model.language_model import LanguageModel, Pair
from . import experiments
from .experiments import WAY, Way

DTYPES = ("float32", "bfloat16")
PLAIN, SPECULATIVE = "plain", "speculative"  # the kinds of which each has a fastest way

# (backend, dtype) -> what decodes there; raises UnsupportedModel where a backend cannot read it
Load = Callable[[str, str], Any]


@dataclass(frozen=True)
class Chosen:
    """The fastest way of each kind, and the tokens/s of every way that was tried."""

    ways: dict[str, Way]
    speeds: dict[Way, float]

    def __str__(self) -> str:
        tried = sorted(self.speeds, key=self.speeds.get, reverse=True)
        best = "; ".join(f"{kind}: {way}" for kind, way in self.ways.items())
        lines = (f"  {way!s:50} {self.speeds[way]:7.1f} tokens/s" for way in tried)
        return "\n".join((f"chosen by a short trial - {best}", *lines))


def loader(load: Callable[[str], Any], dress: Callable[[Any], Any] = lambda models: models) -> Load:
    """Loads once per dtype; the backends share the weights.

    load: the models on the eager backend, by dtype. dress: what is made of them on each backend, once: a program
    belongs to the drafter that it was made for.
    """
    loaded = cache(load)
    return cache(lambda backend, dtype: dress(on(loaded(dtype), backend)))


def on(models: Pair | LanguageModel, backend: str) -> Pair | LanguageModel:
    """The same weights on another backend."""
    if isinstance(models, Pair):
        return Pair(on(models.target, backend), on(models.draft, backend))
    if backend == models.backend:
        return models
    return LanguageModel(models.model, models.tokenizer, models.name, backend)


def choose(
    load: Load,
    kinds: Mapping[str, Callable[[Any], Mapping[str, experiments.Method]]],
    prompts: Sequence[str],
    backends: Sequence[str] = language_model.BACKENDS,
    dtypes: Sequence[str] = DTYPES,
    near: float = 1.0,
    progress: bool = False,
) -> Chosen:
    """Times every method of every kind, taking turns, on these prompts, and names the fastest way of each kind.

    kinds: by name, what makes the methods of that kind, each with a name of its own, for what was loaded. Programs take
    long to make, so on the compiled backend a kind is tried only in dtypes whose best way on the other backends reaches
    the share `near` of the best, and by that method alone. A backend that cannot read the models is left out. Raises
    UnsupportedModel if none can.
    """
    speeds: dict[str, dict[Way, float]] = {kind: {} for kind in kinds}
    best: dict[str, Way] = {}
    found: dict[Way, tuple[str, experiments.Method]] = {}
    refused = UnsupportedModel("there is no backend to try")

    def promising(kind: str, name: str, dtype: str) -> bool:
        """Whether a program may win: of a method that is the best of its dtype elsewhere, and near the best of all."""
        here = {way: speed for way, speed in speeds[kind].items() if way.dtype == dtype}
        first = max(here, key=here.get, default=None)
        most = max(speeds[kind].values(), default=0.0)
        return not speeds[kind] or (first is not None and first.method == name and here[first] >= near * most)

    for quick in (True, False):
        found = {way: found[way] for way in best.values()}  # again, in the same minutes
        for backend, dtype in [(b, d) for d in dtypes for b in backends if (b != "compiled") == quick]:
            try:
                models = load(backend, dtype)
            except UnsupportedModel as error:
                refused = error
                continue
            for kind, make in kinds.items():
                for name, method in make(models).items():
                    if quick or promising(kind, name, dtype):
                        found[Way(name, backend, dtype)] = kind, method
        if len(found) == len(best):
            continue  # nothing new to try
        methods = {way: method for way, (_, method) in found.items()}
        totals = experiments.interleaved(methods, prompts, progress=progress).groupby(WAY)[["tokens", "seconds"]].sum()
        for way, speed in (totals["tokens"] / totals["seconds"]).sort_values().items():
            kind = found[Way(*way)][0]
            speeds[kind][Way(*way)] = speed
            best[kind] = Way(*way)  # the last is the fastest
    if len(best) < len(kinds):
        raise refused
    tried = {way: speed for own in speeds.values() for way, speed in own.items()}
    return Chosen({kind: best[kind] for kind in kinds}, tried)
