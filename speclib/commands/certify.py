"""`python -m speclib vectors` writes the exactness vectors; `... certify` holds a program against them."""

import argparse
import os
from pathlib import Path

from tqdm.auto import tqdm

from ..errors import InvalidArgument
from ..exactness import cases
from ..exactness.judge import FEATURES, LEVEL, N, Unanswered, chosen, judge, suite_of
from ..exactness.library import SUSPECTS, expected, law
from ..exactness.program import Program
from ..law.exact import max_difference

MARK = "<!-- suspects -->"


def add_parser(subparsers) -> None:
    """Registers both subcommands with argparse."""
    vectors = subparsers.add_parser(
        "vectors",
        help="write the exactness vectors: what a verifier must do, with exact answers",
        description="Writes data/vectors/*.json again, byte for byte, and the table in README.md beside them that "
        "says which vectors show which fault.",
    )
    vectors.add_argument(
        "--out", type=Path, default=Path("data/vectors"), metavar="DIR", help="where they go (default: %(default)s)"
    )
    vectors.set_defaults(run=write)
    parser = subparsers.add_parser(
        "certify",
        help="hold a program of yours, in any language, against the exactness vectors",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description="Starts COMMAND and asks it, in JSON lines, for the law or for draws of each case: "
        "data/vectors/PROTOCOL.md is the page to read. Exit code 0: all is right; 1: something is wrong; "
        "2: the program could not be judged.",
    )
    parser.add_argument(
        "--n", type=int, default=N, metavar="N", help="draws a case, of a program that draws (default: %(default)s)"
    )
    parser.add_argument(
        "--level",
        type=float,
        default=LEVEL,
        metavar="P",
        help="the chance that a right program fails (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="one case of each kind")
    parser.add_argument(
        "--rule", action="append", metavar="RULE", help="only this rule, of those that the program says it follows"
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="FEATURE", help=f"leave cases out: {', '.join(FEATURES)}"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="passed on to the program with each request (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for an answer (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit report there")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the program and its arguments, behind --")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judges the program. Returns the exit code."""
    if args.n < 100 or not 0 < args.level < 1 or not args.timeout > 0:
        raise InvalidArgument("--n must be at least 100, --level between 0 and 1, --timeout above 0")
    for path in filter(None, (args.json, args.junit)):  # before the work, not after it
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise InvalidArgument(f"cannot write {path}: give a file in a folder that exists and can be written to")
    try:
        with Program(args.command, args.timeout) as program:
            rules = args.rule or program.rules
            if unknown := set(rules) - set(program.rules):
                raise InvalidArgument(
                    f"{program.name} does not follow {', '.join(sorted(unknown))}; "
                    f"it follows {', '.join(program.rules)}"
                )
            suite = suite_of(tuple(rules), frozenset([*program.skip, *args.skip]), args.quick)
            options = {"rules": rules, "answers": program.answers, "n": args.n, "level": args.level, "seed": args.seed}
            report = judge(
                program.name,
                program.answer,
                suite,
                **options,
                say=lambda text: print(text, flush=True),
                bar=lambda x: tqdm(x, unit="case"),
            )
    except Unanswered as problem:
        raise InvalidArgument(f"{args.command[0]}: {problem}") from None
    print(report.verdict())
    for path, text in ((args.json, report.to_json()), (args.junit, report.to_junit())):
        if path is not None:
            path.write_text(text + "\n", encoding="utf-8")
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
