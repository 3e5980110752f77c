"""Holds answers against exact laws: what a run can see, whether it saw anything, and what the sampler most probably
does instead.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from xml.etree import ElementTree

import numpy as np

from ..errors import InvalidArgument
from ..law.exact import max_difference
from ..law.statistics import detection, g_test
from . import cases
from .library import SUSPECTS, expected, law, numbers
from .reference import emitted

N = 5_000  # draws a case
LEVEL = 1e-4  # the chance that a right sampler fails a run
TOLERANCE = 1e-6  # of a stated probability
SEEN = 0.999  # the power that counts as seeing
FEATURES = ("text", "settings", "tree", "mask", "not made", "no guess")
ANSWERS = ("draws", "law")


class Unanswered(Exception):
    """A case got no usable answer. `over`: neither will any later one."""

    def __init__(self, message: str, over: bool = False):
        super().__init__(message)
        self.over = over


def features(case: dict) -> set[str]:
    """What a program must be able to do to answer a case, out of FEATURES."""
    if case["task"] == "text":
        return {"text", "settings"} if case["sampling"] else {"text"}
    found = {"tree": case["parents"] is not None, "mask": case["mask"] is not None, "no guess": not case["drafted"]}
    return {name for name, there in found.items() if there} | (
        {"not made"} if any(not any(row) for row in case["q"]) else set()
    )


@cache
def all_cases() -> list[dict]:
    """Every vector, with numbers in place of fractions."""
    return [numbers(case) for make in cases.FILES.values() for case in make()]


def chosen(rules: Sequence[str] = ("token",), skip: Iterable[str] = (), quick: bool = False) -> list[dict]:
    """The cases of these rules without those that need a feature in `skip`; quick: one of each kind, the one with most
    outcomes.

    Raises InvalidArgument for a rule or a feature that does not exist, or when nothing is left.
    """
    every = all_cases()
    known = {case["rule"] for case in every}
    if unknown := [*(set(rules) - known), *(set(skip) - set(FEATURES))]:
        raise InvalidArgument(
            f"{unknown[0]!r} is neither a rule ({', '.join(sorted(known))}) "
            f"nor a feature to skip ({', '.join(FEATURES)})"
        )
    found = [case for case in every if case["rule"] in rules and not features(case) & set(skip)]
    if quick:
        most = {(case["rule"], case["kind"]): case for case in sorted(found, key=lambda case: len(expected(case)))}
        found = [case for case in found if most[case["rule"], case["kind"]] is case]
    if not found:
        raise InvalidArgument("no case is left: skip less")
    return found


@dataclass(frozen=True, eq=False)
class Suite:
    """Cases, and the law of each under the right rule (row 0) and under every suspect: laws[case] is [1 + suspects,
    outcomes].
    """

    cases: list[dict]

    @cached_property
    def outcomes(self) -> list[dict[tuple[int, ...], int]]:
        return [{text: i for i, text in enumerate(sorted(set().union(*laws)))} for laws in self._laws]

    @cached_property
    def laws(self) -> list[np.ndarray]:
        return [
            np.array([[one.get(text, 0.0) for text in outcomes] for one in laws])
            for laws, outcomes in zip(self._laws, self.outcomes, strict=True)
        ]

    @cached_property
    def _laws(self) -> list[list[dict]]:
        return [[expected(case), *(law(case, suspect) for suspect in SUSPECTS.values())] for case in self.cases]

    @cached_property
    def differences(self) -> np.ndarray:
        """The largest difference of each suspect from the right law, by case. [suspects, cases]"""
        return np.array([np.abs(laws[1:] - laws[0]).max(1) for laws in self.laws]).T

    def power(self, n: int | None, level: float = LEVEL) -> dict[str, float]:
        """The chance that each suspect fails a run of n draws a case (None: of stated laws). 0: no case shows it."""
        if n is None:
            return {
                name: float(seen) for name, seen in zip(SUSPECTS, (self.differences > TOLERANCE).any(1), strict=True)
            }
        found = {}
        for s, name in enumerate(SUSPECTS):
            shows = np.flatnonzero(self.differences[s] > 1e-9)
            missed = [1 - detection(self.laws[i][s + 1], self.laws[i][0], n, level / len(self.cases)) for i in shows]
            found[name] = float(1 - np.prod(missed))
        return found

    def alike(self) -> list[set[str]]:
        """Suspects whose laws agree on every case: draws cannot tell which it is."""
        names, groups = ["right", *SUSPECTS], {}
        for s, name in enumerate(names):
            signature = tuple(np.round(laws[s], 9).tobytes() for laws in self.laws)
            groups.setdefault(signature, set()).add(name)
        return [group for group in groups.values() if len(group) > 1]

    def counts(self, draws: dict[int, Counter]) -> dict[int, np.ndarray | None]:
        """Counters of emitted tokens -> arrays in the order of `outcomes`; None where something came that no law
        allows.
        """
        return {
            i: np.array([counter[text] for text in self.outcomes[i]])
            if counter.keys() <= self.outcomes[i].keys()
            else None
            for i, counter in draws.items()
        }

    def p_values(self, counts: dict[int, np.ndarray | None], s: int = 0) -> dict[int, float]:
        """G-tests of each case's counts against the right law, or against that of suspect number s - 1."""
        return {
            i: 0.0 if observed is None else g_test(observed, self.laws[i][s]).p_value for i, observed in counts.items()
        }

    def fitting(self, counts: dict[int, np.ndarray | None], level: float) -> tuple[list[str], float]:
        """The suspects that explain the counts, likeliest first, and log10 of how much likelier the first is than the
        right law.

        A suspect explains them if its own tests pass, and if it is not a thousand times less likely than the first.
        """
        if not counts or any(observed is None for observed in counts.values()):
            return [], 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = sum(
                np.where(observed > 0, observed * np.log(self.laws[i]), 0.0).sum(1) for i, observed in counts.items()
            )
        if scores[1:].max() == -np.inf:
            return [], 0.0
        near = [s for s in np.argsort(-scores[1:], kind="stable") + 1 if scores[s] > scores[1:].max() - np.log(1000)]
        right = [s for s in near if min(self.p_values(counts, s).values()) >= level / len(self.cases)]
        return [list(SUSPECTS)[s - 1] for s in right], float((scores[1:].max() - scores[0]) / np.log(10))


@cache
def suite_of(rules: tuple[str, ...], skip: frozenset[str], quick: bool) -> Suite:
    """The suite of `chosen` cases: its laws take seconds, and are the same each time."""
    return Suite(chosen(rules, skip, quick))


# --- a run -----------------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """What became of a case: right, wrong, skipped or unanswered, and why."""

    id: str
    kind: str
    outcome: str
    detail: str = ""
    p_value: float | None = None
    difference: float | None = None


@dataclass
class Report:
    """A run: true if nothing asked was wrong and all was answered. power: see Suite.power, computed before the first
    question.

    named: the suspects that explain the failure, likeliest first; ratio: log10 of how much likelier than the right law
    the first is.
    """

    name: str
    rules: list[str]
    answers: str
    n: int | None
    level: float
    power: dict[str, float]
    findings: list[Finding] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    ratio: float = 0.0

    def count(self, outcome: str) -> int:
        return sum(finding.outcome == outcome for finding in self.findings)

    @property
    def code(self) -> int:
        """0: all that was asked is right; 1: something is wrong; 2: nothing is, but not everything was answered."""
        return 1 if self.count("wrong") else 2 if self.count("unanswered") or not self.count("right") else 0

    def __bool__(self) -> bool:
        return self.code == 0

    def before(self) -> str:
        """What the run can see, said before it begins."""
        how = (
            "laws, compared at 1e-6" if self.n is None else f"{self.n:,} draws a case, family-wise level {self.level:g}"
        )
        sure = [name for name, power in self.power.items() if power >= SEEN]
        unsure = [f"{name} ({power:.2g})" for name, power in self.power.items() if 0 < power < SEEN]
        blind = [
            name
            for name, power in self.power.items()
            if power == 0 and name not in {f"the {rule} rule" for rule in self.rules}
        ]
        lines = [f"{self.name}: rule {', '.join(self.rules)}; {how}", f"would be seen: {', '.join(sure) or 'nothing'}"]
        lines += [f"perhaps seen (with this probability): {', '.join(unsure)}"] if unsure else []
        return "\n".join(lines + ([f"COULD NOT BE SEEN by this run: {', '.join(blind)}"] if blind else []))

    def verdict(self) -> str:
        """What the run found."""
        lines = [
            f"{len(self.findings)} cases: "
            + ", ".join(f"{self.count(o)} {o}" for o in ("right", "wrong", "skipped", "unanswered"))
        ]
        lines += [f"  wrong: {f.id}: {f.detail}" for f in self.findings if f.outcome == "wrong"][:5]
        rest = Counter((f.outcome, f.detail) for f in self.findings if f.outcome in ("skipped", "unanswered"))
        lines += [f"  {outcome}: {count} times: {detail}" for (outcome, detail), count in rest.most_common(5)]
        if self.named:
            first = SUSPECTS[self.named[0]]
            odds = (
                "the right law cannot give these answers"
                if self.ratio == np.inf
                else f"1e{self.ratio:.0f} times as likely as the right law"
            )
            odds = odds if self.n else "exactly the law that was stated"
            lines += [f"MOST PROBABLY {first.name}: {first.what} ({odds}; see {first.see})"]
            lines += [f"  hardly to be told from: {', '.join(self.named[1:])}"] if self.named[1:] else []
        elif self.count("wrong"):
            lines += ["no fault of the museum explains these answers: it is something else, or several at once"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.before()}\n{self.verdict()}"

    __repr__ = __str__  # what pytest shows of `assert certify(...)`

    def to_json(self) -> str:
        """Everything, as one JSON object; `code` is the exit code."""
        return json.dumps(
            asdict(self) | {"code": self.code, "ratio": self.ratio if np.isfinite(self.ratio) else None}, indent=1
        )

    def to_junit(self) -> str:
        """The findings as a JUnit test suite."""
        counts = {
            "tests": len(self.findings),
            "failures": self.count("wrong"),
            "errors": self.count("unanswered"),
            "skipped": self.count("skipped"),
        }
        suite = ElementTree.Element(
            "testsuite", {"name": f"speclib certify: {self.name}"} | {key: str(value) for key, value in counts.items()}
        )
        tags = {"wrong": "failure", "unanswered": "error", "skipped": "skipped"}
        for finding in self.findings:
            case = ElementTree.SubElement(suite, "testcase", {"classname": finding.kind, "name": finding.id})
            if finding.outcome in tags:
                ElementTree.SubElement(case, tags[finding.outcome], {"message": finding.detail})
        ElementTree.SubElement(suite, "system-out").text = str(self)
        return ElementTree.tostring(suite, encoding="unicode")


Answer = Callable[[dict, "int | None", int], object]


def judge(
    name: str,
    answer: Answer,
    suite: Suite,
    *,
    rules: Sequence[str],
    answers: str = "draws",
    n: int = N,
    level: float = LEVEL,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    bar: Callable[[Iterable], Iterable] = iter,
) -> Report:
    """Asks every case of the suite and judges the answers.

    answer(case, n, seed): n lists of emitted tokens; or, where answers is "law", what PROTOCOL.md calls a law (n is
    None); or None: the case is skipped. It may raise Unanswered. say: hears what the run can see, before the first
    question. An interrupted run (Ctrl-C) is judged by what was answered.
    """
    report = Report(
        name,
        list(rules),
        answers,
        n if answers == "draws" else None,
        level,
        suite.power(n if answers == "draws" else None, level),
    )
    say(report.before())
    draws: dict[int, Counter] = {}
    stated: dict[int, dict] = {}
    over = ""
    for i, case in enumerate(bar(suite.cases)):
        finding = Finding(case["id"], case["kind"], "unanswered", over)
        report.findings.append(finding)
        if over:
            continue
        asked = {key: value for key, value in case.items() if key not in ("law", "kind")}
        try:
            given = answer(asked, report.n, seed + i)
            if given is None or isinstance(given, dict) and "skip" in given:
                finding.outcome, finding.detail = (
                    "skipped",
                    str(given["skip"]) if given else "the program does not do this",
                )
            elif answers == "law":
                stated[i] = read_law(given, case)
                finding.difference = max_difference(stated[i], expected(case))
                finding.outcome = "right" if finding.difference <= TOLERANCE else "wrong"
                finding.detail = f"a probability is off by {finding.difference:.3g}"
            else:
                draws[i] = read_draws(given, case, n)
        except Unanswered as problem:
            finding.detail, over = str(problem), f"not asked: {problem}" if problem.over else ""
        except KeyboardInterrupt:
            finding.detail = over = "not asked: interrupted"
    counts = suite.counts(draws)
    for i, p_value in suite.p_values(counts).items():
        finding = report.findings[i]
        finding.p_value, finding.outcome = p_value, "right" if p_value >= level / len(suite.cases) else "wrong"
        forbidden = [text for text in draws[i] if not expected(suite.cases[i]).get(text)]
        finding.detail = f"{list(forbidden[0])} came, which is impossible" if forbidden else f"p = {p_value:.3g}"
    if report.count("wrong"):
        if answers == "draws":
            report.named, report.ratio = suite.fitting(counts, level)
        else:
            off = {
                name: max(max_difference(one, law(suite.cases[i], suspect)) for i, one in stated.items())
                for name, suspect in SUSPECTS.items()
            }
            report.named = [name for name, difference in off.items() if difference <= TOLERANCE]
    return report


def read_draws(given: object, case: dict, n: int) -> Counter:
    """n lists of emitted tokens, counted. Raises Unanswered for anything else."""
    try:
        texts = [tuple(int(token) for token in text) for text in given]
    except (TypeError, ValueError):
        raise Unanswered(f"draws must be a list of lists of tokens, not {str(given)[:60]!r}") from None
    if len(texts) != n:
        raise Unanswered(f"asked for {n} draws, got {len(texts)}")
    if wrong := [text for text in texts if not text or not all(0 <= token < case["vocabulary"] for token in text)]:
        raise Unanswered(
            f"a draw must be a list of one or more tokens below {case['vocabulary']}, not {list(wrong[0])}"
        )
    return Counter(texts)


def read_law(given: object, case: dict) -> dict[tuple[int, ...], float]:
    """A stated law, as the law of what is emitted. Raises Unanswered for what is no law."""
    try:
        if case["task"] == "text":
            found = {tuple(map(int, text.split(","))): float(chance) for text, chance in given["law"].items()}
        else:
            stop, after = [float(x) for x in given["stop"]], [row and [float(x) for x in row] for row in given["next"]]
            if not len(stop) == len(after) == len(case["p"]) or any(
                row and len(row) != case["vocabulary"] for row in after
            ):
                raise Unanswered(
                    f"stop and next must have {len(case['p'])} entries, and a row {case['vocabulary']} probabilities"
                )
            found = emitted(stop, after, case["drafted"], case["parents"])
    except (TypeError, ValueError, KeyError, AttributeError):
        raise Unanswered(f"a law has the fields stop and next, or law for a text, not {str(given)[:60]!r}") from None
    if not abs(sum(found.values()) - 1) < 1e-5 or not min(found.values(), default=-1) >= 0:
        raise Unanswered(
            f"no law: its probabilities sum to {sum(found.values()):.6g}, "
            f"the least is {min(found.values(), default=0):.3g}"
        )
    return found


def certify(
    function: Callable,
    *,
    rules: Sequence[str] | str = "token",
    answers: str = "draws",
    n: int = N,
    level: float = LEVEL,
    seed: int = 0,
    skip: Iterable[str] = (),
    quick: bool = False,
) -> Report:
    """Holds a function of yours against the exactness vectors: `assert certify(function)` in a test of yours.

    function: (case, n, seed) -> n lists of emitted tokens; with answers="law": (case) -> {"stop": ..., "next": ...}, or
    {"law": ...} for a text. None skips a case. A case is a dictionary, as data/vectors/README.md defines it, with
    floats. rules: those it claims to follow; skip: what it cannot do, out of FEATURES; level: the chance that a right
    function fails. Raises InvalidArgument for other arguments.
    """
    if answers not in ANSWERS or not 0 < level < 1 or n < 100:
        raise InvalidArgument(
            f"answers must be one of {', '.join(ANSWERS)}, 0 < level < 1, and n at least 100: "
            f"not {answers!r}, {level}, {n}"
        )
    rules = [rules] if isinstance(rules, str) else list(rules)
    ask = function if answers == "draws" else lambda case, n, seed: function(case)
    suite = suite_of(tuple(rules), frozenset(skip), quick)
    return judge(
        getattr(function, "__name__", type(function).__name__),
        ask,
        suite,
        rules=rules,
        answers=answers,
        n=n,
        level=level,
        seed=seed,
    )
