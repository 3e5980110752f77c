"""`python -m speclib train`: makes tokenizer, target and ladder, from the first file read to the registry."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .. import embedded
from ..errors import TrainingError
from ..files import check_folder, reading, replacing, write_text
from ..training import corpus, editor, prompts, readers, seq2seq, train
from ..training.recipes import LADDER, SHALLOW, TARGET, UNSHIPPED
from ..training.state import finished, read_card
from ..training.tokenizer import train_tokenizer

CAUSAL = (SHALLOW, TARGET, *LADDER)
# What can be asked for: (how it is trained, recipes), in an order in which each finds finished what it needs.
MODELS = {recipe.name: (train.train, [recipe]) for recipe in CAUSAL}
MODELS |= {name: (readers.train, [reader]) for name, reader in readers.READERS.items()}
MODELS |= {"editor": (editor.train, [editor.Editor()]), "t5": (seq2seq.train, seq2seq.PAIR)}


def add_parser(subparsers) -> None:
    """Registers the subcommand with argparse."""
    parser = subparsers.add_parser(
        "train",
        help="make the embedded models again, or models from your own text",
        description="Trains the tokenizer, the target and the ladder of drafts from the Python source installed here "
        "(or --corpus FILE). "
        "Interrupt it at any time: the same command goes on from the last checkpoint, at most two minutes back.",
        epilog="On Linux CPUs, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=1000000000 "
        "saves about a tenth of the time.",
    )
    names = [recipe.name for recipe in CAUSAL]
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"which to train: {', '.join(names)}; all of them if none is named; or heads, exits, eagle: what reads "
        f"the finished target; or editor: an adapter that teaches it to copy with changes; or t5: the "
        f"encoder-decoder pair",
    )
    parser.add_argument(
        "--corpus", metavar="FILE", help="a UTF-8 text to learn from instead of the installed Python source"
    )
    parser.add_argument(
        "--out", default="runs/models", metavar="DIR", help="where models and checkpoints go (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="tokens to see, for every model trained; default: each recipe's own number",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="order of the data and initial weights (default: %(default)s)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile: slower, but needs no C++ compiler"
    )
    parser.add_argument(
        "--install", action="store_true", help="afterwards copy the finished models to data/ and write the registry"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains what `args` asks for, skipping what is finished. Returns the exit code."""
    transformers_logging.disable_progress_bar()
    unknown = set(args.models) - MODELS.keys()
    if unknown:
        raise TrainingError(f"no recipe is called {', '.join(sorted(unknown))}; choose from {', '.join(MODELS)}")
    if args.tokens is not None and args.tokens < 1:
        raise TrainingError(f"--tokens must be at least 1, not {args.tokens}")
    if args.install and not embedded.CHECKOUT:
        raise TrainingError("--install puts models into the data/ of a checkout, and this is an installed package")
    out = Path(args.out)
    check_folder(out)
    texts = _read(args.corpus, out)
    asked = args.models or [recipe.name for recipe in CAUSAL]
    for make, recipes in (made for name, made in MODELS.items() if name in asked):
        for recipe in recipes:
            recipe = recipe if args.tokens is None else dataclasses.replace(recipe, tokens=args.tokens)
            if finished(out / recipe.name, recipe=repr(recipe), seed=args.seed):
                continue
            path = make(recipe, texts, out, args.seed, not args.no_compile)
            card = read_card(path)
            found = ", ".join(f"{key.replace('_', ' ')} {card[key]}" for key in card if key.startswith("held_out"))
            print(f"{recipe.name}: {found} after {card['tokens_seen']:,} tokens, in {path}")
    if args.install:
        install(out, texts)
    return 0


def _read(file: str | None, out: Path) -> corpus.Corpus:
    """The corpus, its tokenizer and tokens, kept in `out` between runs."""
    learnt, held_out = corpus.split(corpus.text_file(file) if file else corpus.python_source())
    corpus.write_manifest(learnt, held_out, out / "corpus.json")
    tokenizer = _tokenizer(learnt, out / "tokenizer")
    _check_tokenizers(tokenizer, out)
    tokens, held = (corpus.tokenized(documents, tokenizer, out / "cache") for documents in (learnt, held_out))
    return corpus.Corpus(tokenizer, learnt, held_out, tokens, np.array(held))


def install(out: Path, texts: corpus.Corpus) -> None:
    """Copies every finished model to data/models, writes prompts and registry."""
    for card in sorted(card for card in out.glob("*/card.json") if card.parent.name not in UNSHIPPED):
        with replacing(embedded.DATA / "models" / card.parent.name) as folder:
            shutil.copytree(card.parent, folder)
            for file in folder.glob("tokenizer.json"):  # written for reading, at twice the size
                content = json.loads(file.read_text("utf-8"))
                write_text(file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    shutil.copy(out / "corpus.json", embedded.DATA / "models" / "corpus.json")
    prompts.write_prompts(texts.held_out, texts.tokenizer, embedded.DATA / "prompts" / "held_out.json")
    print(f"installed to {embedded.DATA}; {embedded.write_registry()} files registered")


def _tokenizer(documents: list[corpus.Document], folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        print("training the tokenizer")
        trained = train_tokenizer([d.text for d in documents[:: 3 if len(documents) > 3000 else 1]])
        with replacing(folder) as partial:
            trained.save_pretrained(partial)
    return _read_tokenizer(folder)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    with reading(folder, "delete it to make it again", TrainingError):
        return PreTrainedTokenizerFast.from_pretrained(folder)


def _check_tokenizers(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Raises TrainingError if a model in `out`, which others may start from, has another tokenizer than they will."""
    for card in sorted(out.glob("*/card.json")):
        folder, own = card.parent, out / "tokenizer"
        if (folder / "tokenizer.json").exists() and _read_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise TrainingError(
                f"{folder} has another tokenizer than {own}; choose another --out, or delete one of them"
            )
