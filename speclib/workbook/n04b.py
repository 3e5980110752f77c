"""Notebook 04b, the bug hunt: twelve samplers without names, a solver that finds all, and its checks."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from ..errors import InvalidArgument
from ..exactness.judge import Suite, chosen
from ..exactness.library import SUSPECTS
from .common import exercise, law

Text = tuple[int, ...]
Laws = dict[str, dict[str, dict[Text, float]]]

PLACES = (  # what may be asked: rounds of each kind, and whole texts
    "token/ordinary/3",
    "token/ordinary/7",
    "token/zeros-in-p/2",
    "token/ties/3",
    "token/point-masses-in-q/1",
    "tree/with-replacement/2",
    "tree/without-replacement/3",
    "token/mask-that-the-draft-knows/3",
    "token/text/v3-g2-l4",
    "token/text-zeros/v3-g2-l4",
    "token/text-settings-0/v3-g2-l4",
    "token/text-settings-2/v4-g1-l3",
)
HIDDEN = (
    "reseeded",
    "siblings apart",
    "argmax draft",
    "squared ratio",
    "bonus without its mask",
    "reused noise",
    "resample from p",
    "argmax bonus",
    "one-sided top-k",
    "r <= ratio",
    "dropped draft",
    "shared noise",
)
LIMIT = 20_000  # draws of one sampler
ODDS = 1e4


@cache
def suite() -> Suite:
    """The cases that may be asked, with the law of each suspect."""
    every = {case["id"]: case for case in chosen()}
    return Suite([every[name] for name in PLACES])


def laws() -> Laws:
    """Case -> suspect -> {what is emitted: its probability}. "right" is a suspect too."""
    names = ["right", *(name for name in SUSPECTS if not name.startswith("the "))]
    rows = [0, *(s for s, name in enumerate(SUSPECTS, 1) if not name.startswith("the "))]
    return {
        case: {
            name: {text: float(table[s, i]) for text, i in outcomes.items() if table[s, i] > 0}
            for s, name in zip(rows, names, strict=True)
        }
        for case, outcomes, table in zip(PLACES, suite().outcomes, suite().laws, strict=True)
    }


def suspects() -> pd.DataFrame:
    """The faults that a sampler may have, in words."""
    return pd.DataFrame(
        {name: suspect.what for name, suspect in SUSPECTS.items() if not name.startswith("the ")}.items(),
        columns=["suspect", "what it does"],
    )


def cases() -> pd.DataFrame:
    """What may be asked."""
    rows = [
        {"case": case["id"], "kind": case["kind"], "outcomes": len(o)}
        for case, o in zip(suite().cases, suite().outcomes, strict=True)
    ]
    return pd.DataFrame(rows)


class Sampler:
    """A sampler with a fault. `draw(case, n)` returns n texts; `draws` counts them all."""

    def __init__(self, number: int, seed: int = 0):
        self.number, self.draws = number, 0
        self._chance = np.random.default_rng([seed, number])

    def draw(self, case: str, n: int = 1) -> list[Text]:
        """n independent texts: of a round, the accepted guesses and the next token; of a text, all of it. Raises
        InvalidArgument for a case that does not exist, and after 20,000 draws.
        """
        if case not in PLACES or not isinstance(n, int) or not 1 <= n <= LIMIT - self.draws:
            raise InvalidArgument(
                f"ask for one of {len(PLACES)} cases, such as {PLACES[0]!r}, and for at most {LIMIT:,} draws in all"
            )
        self.draws += n
        place = PLACES.index(case)
        law, texts = (
            suite().laws[place][1 + list(SUSPECTS).index(HIDDEN[self.number - 1])],
            list(suite().outcomes[place]),
        )
        return [texts[i] for i in self._chance.choice(len(texts), n, p=law / law.sum())]

    def __repr__(self) -> str:
        return f"sampler {self.number}, {self.draws:,} draws so far"


def samplers(seed: int = 0) -> list[Sampler]:
    """The twelve, fresh."""
    return [Sampler(number, seed) for number in range(1, len(HIDDEN) + 1)]


def reference(sampler: Sampler) -> str:
    """One draw at a time, of the case in which the two likeliest suspects differ most, until the first is 10,000 times
    as likely.
    """
    known = laws()
    names = list(known[PLACES[0]])
    scores = dict.fromkeys(names, 0.0)
    while True:
        first, second = sorted(names, key=scores.get, reverse=True)[:2]
        if scores[first] - scores[second] > np.log(ODDS):
            return first
        case = max(PLACES, key=lambda case: distance(known[case][first], known[case][second]))
        (text,) = sampler.draw(case)
        for name in names:
            chance = known[case][name].get(text, 0.0)
            scores[name] += np.log(chance) if chance > 0 else -1e9


def distance(law: dict[Text, float], other: dict[Text, float]) -> float:
    """How far apart two laws are for one draw: minus the logarithm of the sum of sqrt(p q) (Bhattacharyya)."""
    return -np.log(max(sum((chance * other.get(text, 0.0)) ** 0.5 for text, chance in law.items()), 1e-300))


def score(solver: Callable[[Sampler], str], seed: int = 0) -> pd.DataFrame:
    """What a solver says of each sampler, whether it is right, and the draws that it took."""
    rows = []
    for sampler in samplers(seed):
        said = solver(sampler)
        rows.append(
            {
                "sampler": sampler.number,
                "said": said,
                "right": said == HIDDEN[sampler.number - 1],
                "draws": sampler.draws,
            }
        )
    return pd.DataFrame(rows).set_index("sampler")


# --- checks ----------------------------------------------------------------------------------------------------------


def _evidence(r):
    """Some texts, and a law of texts of up to three tokens that may forbid some of them."""
    every = [tuple(r.randint(0, 2) for _ in range(r.randint(1, 3))) for _ in range(8)]
    allowed = list(dict.fromkeys(every))[: r.randint(2, 6)]
    return r.choices(every, k=r.randint(0, 8)), dict(zip(allowed, law(r, len(allowed), zeros=False), strict=True))


@exercise(
    "one such text settles it, whatever the p-value",
    [
        (([(0,), (1, 2)], {(0,): 0.5, (1, 2): 0.5}), "nothing is forbidden"),
        (([(0,), (2,), (0,)], {(0,): 0.5, (1, 2): 0.5}), "(2,) never comes"),
        (([(1,), (1, 2), (1,)], {(0,): 0.5, (1, 2): 0.5}), "(1,) is no text of this law, and it came twice"),
        (([], {(0,): 1.0}), "no text, no suspicion"),
    ],
    _evidence,
)
def my_suspicion(texts, law):
    """Texts that the right law forbids."""
    return [text for text in texts if text not in law]


_LAW = {(0,): 0.5, (1,): 0.25, (1, 0): 0.25}


@exercise(
    "differences of this number say how much likelier one suspect is than another",
    [
        (([(0,)], _LAW), "log 0.5"),
        (([(1,), (1, 0), (0,), (0,)], _LAW), "each text counts, as often as it came"),
        (([], _LAW), "no text, no evidence"),
        (([(0,), (5,)], _LAW), "one text that cannot come rules the law out: minus infinity"),
    ],
    _evidence,
)
def my_log_likelihood(texts, law):
    """The sum of the logarithms."""
    return sum(math.log(law[text]) if text in law else -math.inf for text in texts)


@exercise(
    "all twelve; `n04b.score(my_detective)` counts the draws",
    [((sampler,), "that is not what it does") for sampler in samplers()],
    None,
    tell=False,
)
def my_detective(sampler):
    """All twelve."""
    suite()  # computed once, and not in the reader's time
    return HIDDEN[sampler.number - 1]
