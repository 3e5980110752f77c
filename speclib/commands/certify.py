"""`python -m speclib vectors` writes the exactness vectors; `... certify` holds a program against them."""

import argparse
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import InvalidArgument
from ..exactness import cases
from ..exactness.judge import FEATURES, LEVEL, N, Unanswered, chosen, judge, suite_of
from ..exactness.library import SUSPECTS, expected, law
from ..exactness.program import Program
from ..files import check_output, write_text
from ..law.exact import max_difference
from .options import command

MARK = "<!-- suspects -->"


def add_parser(subparsers) -> None:
    """Registers both subcommands with argparse."""
    about = {
        "help": "write the exactness vectors: what a verifier must do, with exact answers",
        "description": "Writes data/vectors/*.json again, byte for byte, and the table in README.md beside them that "
        "says which vectors show which fault.",
    }
    folder = {"default": Path("data/vectors"), "help": "where they go"}
    command(subparsers, "vectors", write, {"out": folder}, **about)
    several, skip = {"action": "append", "metavar": "RULE"}, {"action": "append", "default": [], "metavar": "FEATURE"}
    options = {
        "n": {"default": N, "help": "draws a case, of a program that draws"},
        "level": {"default": LEVEL, "metavar": "P", "help": "the chance that a right program fails"},
        "quick": {"help": "one case of each kind"},
        "rule": several | {"help": "only this rule, of those that the program says it follows"},
        "skip": skip | {"help": f"leave cases out: {', '.join(FEATURES)}"},
        "seed": {"help": "passed on to the program with each request"},
        "timeout": {"default": 60.0, "metavar": "S", "help": "seconds to wait for an answer"},
        "json": {"type": Path, "metavar": "FILE", "help": "write the report there"},
        "junit": {"type": Path, "metavar": "FILE", "help": "write a JUnit report there"},
    }
    about = {
        "help": "hold a program of yours, in any language, against the exactness vectors",
        "usage": "%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        "description": "Starts COMMAND and asks it, in JSON lines, for the law or for draws of each case: "
        "data/vectors/PROTOCOL.md is the page to read. Exit code 0: all is right; 1: something is wrong; "
        "2: the program could not be judged.",
    }
    parser = command(subparsers, "certify", run, options, **about)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the program and its arguments, behind --")


def run(args: argparse.Namespace) -> int:
    """Judges the program. Returns the exit code."""
    if args.n < 100 or not 0 < args.level < 1 or not args.timeout > 0:
        raise InvalidArgument("--n must be at least 100, --level between 0 and 1, --timeout above 0")
    for path in filter(None, (args.json, args.junit)):
        check_output(path)
    try:
        with Program(args.command, args.timeout) as program:
            rules = args.rule or program.rules
            if unknown := set(rules) - set(program.rules):
                wrong, known = ", ".join(sorted(unknown)), ", ".join(program.rules)
                raise InvalidArgument(f"{program.name} does not follow {wrong}; it follows {known}")
            suite = suite_of(tuple(rules), frozenset([*program.skip, *args.skip]), args.quick)
            options = {"rules": rules, "answers": program.answers, "n": args.n, "level": args.level, "seed": args.seed}
            seen = {"say": partial(print, flush=True), "bar": partial(tqdm, unit="case")}
            report = judge(program.name, program.answer, suite, **options, **seen)
    except Unanswered as problem:
        raise InvalidArgument(f"{args.command[0]}: {problem}") from None
    print(report.verdict())
    for path, text in ((args.json, report.to_json()), (args.junit, report.to_junit())):
        if path is not None:
            write_text(path, text + "\n")
    return report.code


def write(args: argparse.Namespace) -> int:
    """Writes the vectors, and the table into the page beside them. Returns the exit code."""
    page = args.out / "README.md"
    try:
        sizes = cases.write(args.out)
        if page.exists() and page.read_text(encoding="utf-8").count(MARK) == 2:
            before, _, after = page.read_text(encoding="utf-8").split(MARK)
            page.write_text(f"{before}{MARK}\n{table()}\n{MARK}{after}", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"cannot write to {args.out}: {error.strerror}") from None
    print(f"{sum(sizes.values()) / 1e3:.0f} kB in {args.out}: " + ", ".join(f"{name}.json" for name in sizes))
    return 0


def table() -> str:
    """A line for each suspect: how many of the token rule's vectors it fails, the first and the last."""
    every = chosen()
    lines = ["| fault | what it does | fails | for instance |", "|---|---|---|---|"]
    for name, suspect in SUSPECTS.items():
        fails = [case["id"] for case in every if max_difference(law(case, suspect), expected(case)) > 1e-6]
        shown = ", ".join(f"`{case}`" for case in (fails[:1] + fails[-1:] if len(fails) > 1 else fails))
        if name != "the token rule":
            lines.append(f"| {name} | {suspect.what} | {len(fails)} of {len(every)} | {shown} |")
    return "\n".join(lines)
