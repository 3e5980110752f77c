"""`python -m speclib train`: makes tokenizer, target and ladder, from the first file read to the registry."""

import argparse
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pooch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .. import embedded
from ..errors import TrainingError
from ..files import check_folder, reading, replacing, write_text
from ..measure import experiments
from ..measure.machine import usual_dtype
from ..model import gguf
from ..model.language_model import load_model
from ..training import corpus, dialogue, editor, loop, prompts, readers, seq2seq, train
from ..training.recipes import LADDER, SHALLOW, TARGET, UNSHIPPED
from ..training.state import finished, read_card
from ..training.tokenizer import train_tokenizer
from .options import command, count

SEEDS, RECORD = 3, "losses.json"  # of the comparison of losses
CAUSAL = (SHALLOW, TARGET, *LADDER)
# What can be asked for: (how it is trained, recipes), in an order in which each finds finished what it needs.
MODELS = {recipe.name: (train.train, [recipe]) for recipe in CAUSAL}
MODELS |= {name: (readers.train, [reader]) for name, reader in readers.READERS.items()}
MODELS |= {"editor": (editor.train, [editor.Editor()]), "t5": (seq2seq.train, seq2seq.PAIR)}


def add_parser(subparsers) -> None:
    """Registers the subcommand with argparse."""
    names = [recipe.name for recipe in CAUSAL]
    about = {
        "help": "make the embedded models again, or models from your own text",
        "description": "Trains the tokenizer, the target and the ladder of drafts from the Python source installed "
        "here (or --corpus FILE). Interrupt it at any time: the same command goes on from the last checkpoint, at most "
        "two minutes back.",
        "epilog": "On Linux CPUs, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=1000000000 "
        "saves about a tenth of the time.",
    }
    options = {
        "target": {
            "metavar": "NAME",
            "help": "a chat model that exits, eagle, block or draft (a small model) are to be taught by, from its own "
            "answers, instead of the embedded target: smollm2, a GGUF file, or a folder with model.safetensors, of "
            "Llama's shape",
        },
        "answers": {"default": 1_000_000, "type": count, "help": "tokens of answers that it writes first"},
        "start": {"metavar": "DIR", "help": "with --target: an eagle or a block of its own, from which that goes on"},
        "corpus": {"metavar": "FILE", "help": "a UTF-8 text to learn from instead of the installed Python source"},
        "out": {"default": Path("runs/models"), "help": "where models and checkpoints go"},
        "tokens": {
            "default": None,
            "help": "tokens to see, for every model trained; default: each recipe's own number",
        },
        "seed": {"help": "order of the data and initial weights"},
        "no-compile": {"default": False, "help": "without torch.compile: slower, but needs no C++ compiler"},
        "install": {
            "default": False,
            "help": "afterwards copy the finished models to data/ and write the registry",
        },
        "losses": {
            "default": False,
            "help": "train eagle (or block) by each loss instead, three seeds each, and write what overlaps they reach "
            f"to {RECORD}",
        },
    }
    parser = command(subparsers, "train", run, options, **about)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"which to train: {', '.join(names)}; all of them if none is named; or heads, exits, eagle, block: what "
        f"reads the finished target; or editor: an adapter that teaches it to copy with changes; or t5: the "
        f"encoder-decoder pair",
    )


def compare(args: argparse.Namespace) -> int:
    """Trains the named readers of a target, the embedded one if none is named, by each loss, everything else alike, and
    records the overlap of each guess with the target on held-out text."""
    folder, rows, names = args.out / "losses", [], args.models or ["eagle"]
    if args.target:
        texts, asked = _other(args, args.out, names)
    else:
        place = embedded.fetch(f"models/{TARGET.name}")
        texts = _read(args.corpus, folder, _read_tokenizer(place))
        asked = [(partial(readers.train, other=place), readers.READERS[name]) for name in names]
    for make, reader in asked:
        for loss, seed in [(loss, args.seed + k) for k in range(SEEDS) for loss in loop.LOSSES]:
            tokens = args.tokens or reader.tokens
            name = f"{loss}-{seed}-{reader.name}"
            one = dataclasses.replace(reader, name=name, loss=loss, tokens=tokens, samples=0.0)  # given text alone
            if not finished(folder / one.name, recipe=repr(one), seed=seed):
                make(one, texts, folder, seed, not args.no_compile)
            overlaps = read_card(folder / one.name)["held_out_overlap"]
            print(f"{reader.name} by {loss}, seed {seed}:", *(f"{value:.3f}" for value in overlaps))
            rows.append({"reader": reader.name, "loss": loss, "seed": seed, "tokens": tokens, "overlaps": overlaps})
    write_text(embedded.RESULTS / RECORD, json.dumps({"machine": experiments.machine(), "rows": rows}) + "\n")
    return 0


def run(args: argparse.Namespace) -> int:
    """Trains what `args` asks for, skipping what is finished. Returns the exit code."""
    transformers_logging.disable_progress_bar()
    known = readers.OTHERS if args.target else readers.READERS if args.losses else MODELS
    if unknown := set(args.models) - known.keys():
        raise TrainingError(f"no recipe is called {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if args.target and args.corpus:
        raise TrainingError("--target learns from the target's own answers, without --corpus")
    if args.start and not (args.target and args.models in (["eagle"], ["block"])):
        raise TrainingError("--start goes with --target and one of eagle, block")
    if args.install and args.target and not args.models:
        raise TrainingError(f"name what --install is to ship: {', '.join(readers.OTHERS)}")
    if args.install and not embedded.CHECKOUT:
        raise TrainingError("--install puts models into the data/ of a checkout, and this is an installed package")
    out = args.out
    check_folder(out)
    if args.losses:
        return compare(args)
    if args.target:
        texts, asked = _other(args, out, args.models or [*readers.OTHERS])
    else:
        texts = _read(args.corpus, out)
        names = args.models or [recipe.name for recipe in CAUSAL]
        asked = [(make, recipe) for name, (make, some) in MODELS.items() if name in names for recipe in some]
    for make, recipe in asked:
        recipe = recipe if args.tokens is None else dataclasses.replace(recipe, tokens=args.tokens)
        if finished(out / recipe.name, recipe=repr(recipe), seed=args.seed):
            continue
        path = make(recipe, texts, out, args.seed, not args.no_compile)
        card = read_card(path)
        found = ", ".join(f"{key.replace('_', ' ')} {card[key]}" for key in card if key.startswith("held_out"))
        print(f"{recipe.name}: {found} after {card['tokens_seen']:,} tokens, in {path}")
    if args.install:
        install([out / recipe.name for _, recipe in asked] if args.target else finished_models(out))
        if not args.target:
            shutil.copy(out / "corpus.json", embedded.DATA / "models" / "corpus.json")
            prompts.write_prompts(texts.held_out, texts.tokenizer, embedded.DATA / "prompts" / "held_out.json")
        print(f"installed to {embedded.DATA}; {embedded.write_registry()} files registered")
    return 0


def _other(args: argparse.Namespace, out: Path, names: list[str]) -> tuple[corpus.Corpus, list[tuple]]:
    """The answers of another target, and (how, reader) of each of `names`. Raises TrainingError for a model that cannot
    teach it."""
    folder = _weights(args.target)
    with reading(folder, "give a model as transformers saves it", TrainingError):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        small = config["model_type"] == "llama" and config["vocab_size"] <= 2**16
        layers = config["num_hidden_layers"] if small else 0
    if not small:
        raise TrainingError(f"{folder} is no model of Llama's shape with at most {2**16:,} tokens")
    if "exits" in names and layers == 1:
        raise TrainingError(
            f"{folder} has one layer, and so no earlier exit; name what is to be taught: eagle, block, draft"
        )
    target = load_model(folder, dtype=usual_dtype())
    target.chat("Is there a chat template?")
    stem = Path(args.target).stem
    asked = [dataclasses.replace(readers.OTHERS[name], name=f"{stem}-{name}") for name in names]
    if args.start:
        begin = Path(args.start)
        readers.started(dataclasses.replace(asked[0], start=begin), target.model)
        sha256 = pooch.file_hash(str(begin / "model.safetensors"))
        asked = [dataclasses.replace(asked[0], start=begin, start_sha256=sha256)]
    weights = pooch.file_hash(str(folder / "model.safetensors"))
    texts = dialogue.conversations(target, weights, out / "cache", args.answers)
    return texts, [(partial(readers.train, other=folder), reader) for reader in asked]


def _weights(name: str) -> Path:
    """The folder in which a target's weights lie."""
    file = gguf.packaged() if name == "smollm2" else Path(name)
    if file is None:
        raise TrainingError(f"smollm2 is not installed here; {gguf.COMMAND} brings it")
    folder = gguf.dequantised(file) if file.suffix == ".gguf" else file
    if not (folder / "model.safetensors").is_file():
        raise TrainingError(f"{folder} has no model.safetensors; give smollm2, a GGUF file, or a folder that has one")
    return folder


def _read(file: str | None, out: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> corpus.Corpus:
    """The corpus and its tokens, kept in `out` between runs, like its tokenizer, unless one is given."""
    learnt, held_out = corpus.split(corpus.text_file(file) if file else corpus.python_source())
    corpus.write_manifest(learnt, held_out, out / "corpus.json")
    if tokenizer is None:
        tokenizer = _tokenizer(learnt, out / "tokenizer")
        _check_tokenizers(tokenizer, out)
    tokens, held = (corpus.tokenized(documents, tokenizer, out / "cache") for documents in (learnt, held_out))
    return corpus.Corpus(tokenizer, learnt, held_out, tokens, np.array(held))


def finished_models(out: Path) -> list[Path]:
    """The folders of all that was trained there and ships."""
    return sorted(card.parent for card in out.glob("*/card.json") if card.parent.name not in UNSHIPPED)


def install(models: list[Path]) -> None:
    """Copies finished models to data/models, each as a whole in place of the old one."""
    for model in models:
        with replacing(embedded.DATA / "models" / model.name) as folder:
            shutil.copytree(model, folder)
            for file in folder.glob("tokenizer.json"):  # written for reading, at twice the size
                content = json.loads(file.read_text("utf-8"))
                write_text(file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))


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
    for card in sorted(card for card in out.glob("*/card.json") if card.parent.name in MODELS):
        folder, own = card.parent, out / "tokenizer"
        if (folder / "tokenizer.json").exists() and _read_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise TrainingError(f"{folder} has another tokenizer than {own}; delete one, or choose another --out")
