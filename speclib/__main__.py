"""python -m speclib: the workbook from a terminal."""

import argparse
import sys
from importlib.metadata import distributions

# Before anything else is imported: in an environment with both, speclib/__init__.py may be the other's.
if any(not (d.metadata["Summary"] or "").startswith("Speculative sampling") for d in distributions(name="speclib")):
    sys.exit("speclib: PyPI's speclib, a library of spectra, is installed here and overwrites this one: pip uninstall speclib, then install this one again")

from . import __version__, bench, demo, indexing  # noqa: E402
from .errors import SpeclibError  # noqa: E402
from .training import cli as train  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code: 2 for a mistake in the call, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m speclib", description="Speculative sampling: see it, measure it, make its models again.")
    parser.add_argument("--version", action="version", version=f"speclib {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, bench, indexing, train):
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
