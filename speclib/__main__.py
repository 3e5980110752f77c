"""python -m speclib: the workbook from a terminal."""

import argparse
import sys
from importlib.metadata import distributions

# Before anything else is imported: in an environment with both, speclib/__init__.py may be the other's.
if any(not (d.metadata["Summary"] or "").startswith("Speculative sampling") for d in distributions(name="speclib")):
    sys.exit(
        "speclib: PyPI's speclib, a library of spectra, is installed here and overwrites this one: pip uninstall "
        "speclib, then install this one again"
    )

from . import __version__, console  # noqa: E402
from .errors import SpeclibError  # noqa: E402

with console.loading():
    from .commands import bench, chat, demo
    from .commands import certify as exactness
    from .commands import index as indexing
    from .commands import train as train


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code.

    2 for a mistake in the call, 1 for a disk that fails, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    console.any_text()
    parser = argparse.ArgumentParser(
        prog="python -m speclib", description="Speculative sampling: see it, measure it, make its models again."
    )
    parser.add_argument("--version", action="version", version=f"speclib {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, chat, bench, indexing, train, exactness):
        command.add_parser(subparsers)
    try:
        try:
            args = parser.parse_args(arguments)
            return args.run(args)
        finally:
            if sys.stdout:  # flushed here, and not when Python ends: a closed pipe is found in time
                sys.stdout.flush()
    except SpeclibError as error:
        print(f"speclib: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        console.close_quietly()
        return console.PIPE_CLOSED
    except OSError as error:  # a disk that is full, a folder that has gone
        console.close_quietly()
        print(f"speclib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(console.MESSAGE, end="", file=sys.stderr)
        return console.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
