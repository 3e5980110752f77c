"""`python -m speclib index`: makes the search index of notebook 08 from the Python source installed here."""

import argparse
import shutil
import time

from ..drafters import retrieval
from ..files import check_folder
from ..model import language_model
from ..training import corpus
from .options import command


def add_parser(subparsers) -> None:
    """Registers the subcommand with argparse."""
    folder = {"default": retrieval.default_folder(), "help": "where the index goes"}
    file = {"metavar": "FILE", "help": "a UTF-8 text to index instead of the installed Python source"}
    about = {
        "help": "make a search index of the installed Python source, for RetrievalDrafter",
        "description": "Tokenizes the Python source installed here (without the held-out modules), or FILE, and sorts "
        "every place in it by what stands there. Takes a few minutes and half a gigabyte of disk at most.",
    }
    command(subparsers, "index", run, {"corpus": file, "out": folder}, **about)


def run(args: argparse.Namespace) -> int:
    """Builds and saves the index, then looks something up in it. Returns the exit code."""
    began = time.perf_counter()
    check_folder(args.out)
    documents, _ = corpus.split(corpus.text_file(args.corpus) if args.corpus else corpus.python_source())
    target = language_model.load_model("target")
    scratch = args.out / "scratch"
    tokens = corpus.tokenized(documents, target.tokenizer, scratch)
    index = retrieval.build_index(tokens, target.vocabulary, retrieval.fingerprint(target.tokens), progress=True)
    index.save(args.out)
    shutil.rmtree(scratch, ignore_errors=True)
    size = sum((args.out / name).stat().st_size for name in retrieval.FILES)
    made = f"{len(documents)} files, {len(tokens):,} tokens, {size / 1e6:.0f} MB"
    print(f"{made} in {args.out}, {time.perf_counter() - began:.0f} s")
    return 0
