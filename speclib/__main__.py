"""python -m speclib: the workbook from a terminal."""

import argparse
import sys

from . import __version__, bench, demo, indexing
from .errors import SpeclibError
from .exactness import command as exactness
from .training import cli as train


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code: 2 for a mistake in the call, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m speclib", description="Speculative sampling: see it, measure it, make its models again.")
    parser.add_argument("--version", action="version", version=f"speclib {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, bench, indexing, train, exactness):
        command.add_parser(subparsers)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except SpeclibError as error:
        print(f"speclib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nspeclib: interrupted; the same command goes on where it can", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
