"""How well failures are named: every fault of the museum, drawn many times. `python -m speclib.exactness.fingerprints`
records it.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .judge import LEVEL, SUSPECTS, N, Suite, chosen

PASSED, UNNAMED = "passed", "not named"


def named(suite: Suite, s: int, n: int, level: float, rng: np.random.Generator) -> str:
    """What a run is told whose draws follow row s of the suite's laws (0: the right ones)."""
    counts = {i: rng.multinomial(n, laws[s] / laws[s].sum()) for i, laws in enumerate(suite.laws)}
    if min(suite.p_values(counts).values()) >= level / len(suite.cases):
        return PASSED
    return next(iter(suite.fitting(counts, level)[0]), UNNAMED)


def confusion(suite: Suite, runs: int = 20, right: int = 200, n: int = N, level: float = LEVEL, seed: int = 0) -> dict:
    """What `runs` runs of each suspect, and `right` runs of the right law, were told. Suspects that equal the right law
    have none.
    """
    rng = np.random.default_rng(seed)
    alike = [sorted(group) for group in suite.alike()]
    hidden = {name for group in alike if "right" in group for name in group}
    told = {"right": Counter(named(suite, 0, n, level, rng) for _ in tqdm(range(right), desc="right"))}
    for s, name in enumerate(tqdm(SUSPECTS), 1):
        if name not in hidden:
            told[name] = Counter(named(suite, s, n, level, rng) for _ in range(runs))
    settings = {
        "cases": len(suite.cases),
        "draws a case": n,
        "level": level,
        "seed": seed,
        "runs": runs,
        "right runs": right,
    }
    return settings | {"indistinguishable": alike, "told": {name: dict(counter) for name, counter in told.items()}}


if __name__ == "__main__":
    path = Path("data/results/certify.json")
    path.write_text(json.dumps(confusion(Suite(chosen())), indent=1) + "\n", encoding="utf-8")
    print(path)
