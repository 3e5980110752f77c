"""`bench batches`: tokens/s against batch size, or whether each row of a batch is the text that it is alone."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from .. import embedded
from ..errors import InvalidArgument
from ..measure import batches

SHOWN = "rows method tokens_per_second speedup low high full predicted alpha tokens_per_round guesses".split()


def add_parser(subparsers) -> None:
    """Adds `batches` to the subcommands of `bench`."""
    parser = subparsers.add_parser(
        "batches", help="tokens/s against batch size, beside transformers' batched generate and a prediction"
    )
    parser.add_argument("--rows", type=int, nargs="+", help=f"batch sizes (default: {batches.SIZES})")
    parser.add_argument("--prompts", type=int, help="texts in a list (default: 32; with --identity 256)")
    parser.add_argument("--tokens", type=int, help="new tokens of each text (default: 64; with --identity 32)")
    parser.add_argument("--sets", type=int, default=5, help="lists of texts (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few short texts, to see that it works")
    parser.add_argument(
        "--identity", action="store_true", help="compare each row of a batch of 16 with the text alone instead"
    )
    parser.add_argument("--out", type=Path, help="(default: batches.json or batches_identity.json)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, writes, prints; returns the exit code. Raises InvalidArgument for settings that cannot work."""
    count, tokens = (8, 12) if args.quick else (256, 32) if args.identity else (32, 64)
    count, tokens = args.prompts or count, args.tokens or tokens
    sizes, sets = args.rows or ((1, 4) if args.quick else batches.SIZES), 1 if args.quick else args.sets
    if min(count, tokens, sets, *sizes) < 1:
        raise InvalidArgument("--rows, --prompts, --tokens and --sets must be at least 1")
    out = args.out or embedded.RESULTS / ("batches_identity.json" if args.identity else "batches.json")
    if args.identity:
        found = pd.DataFrame(batches.identity(out, count, tokens=tokens, progress=sys.stderr.isatty()))
        print(found.assign(gaps=found["gaps"].map(lambda gaps: max(gaps, default=0.0))).to_string(index=False))
        print(f"\nwritten: {out}")
        return 0 if (found["same"] == found["of"])[found["dtype"] == "float64"].all() else 1
    if max(sizes) > count:
        raise InvalidArgument(f"a batch of {max(sizes)} rows needs as many texts; take --prompts {max(sizes)}")
    found = batches.record(out, sorted(sizes), count, tokens, sets, progress=sys.stderr.isatty())
    print(pd.DataFrame(found["table"])[SHOWN].to_string(index=False, na_rep="", float_format="{:.3g}".format))
    print("\na round at 8 rows: " + ", ".join(f"{name} {share:.1%}" for name, share in found["round"].items()))
    print(f"\nwritten: {out}")
    return 0
