"""`python -m speclib train`: makes tokenizer, target and ladder, from the first file read to the registry."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pooch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .. import embedded
from ..errors import TrainingError
from ..files import check_folder, code_version, digest, reading, replacing, write_text
from ..model.language_model import EDITOR
from ..training import corpus, editor, prompts, readers, seq2seq
from ..training.recipes import LADDER, SHALLOW, TARGET, UNSHIPPED, Recipe
from ..training.state import finished, need
from ..training.tokenizer import train_tokenizer
from ..training.train import load, sample_text, train

SAMPLE_TOKENS = 400_000  # of the teacher's own text, for distillation


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
    names = [r.name for r in (SHALLOW, TARGET, *LADDER)]
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
    chosen = {r.name: r for r in (SHALLOW, TARGET, *LADDER)}
    others = (*readers.READERS, "editor", "t5")
    unknown = set(args.models) - {*chosen, *others}
    if unknown:
        raise TrainingError(
            f"no recipe is called {', '.join(sorted(unknown))}; choose from {', '.join([*chosen, *others])}"
        )
    if args.tokens is not None and args.tokens < 1:
        raise TrainingError(f"--tokens must be at least 1, not {args.tokens}")
    if args.install and not embedded.CHECKOUT:
        raise TrainingError("--install puts models into the data/ of a checkout, and this is an installed package")
    out = Path(args.out)
    check_folder(out)
    train_documents, held_documents = corpus.split(
        corpus.text_file(args.corpus) if args.corpus else corpus.python_source()
    )
    manifest = corpus.write_manifest(train_documents, held_documents, out / "corpus.json")
    tokenizer = _tokenizer(train_documents, out / "tokenizer")
    _check_tokenizers(tokenizer, out)
    tokens = corpus.tokenized(train_documents, tokenizer, out / "cache")
    held = np.array(corpus.tokenized(held_documents, tokenizer, out / "cache"))
    for name in [name for name in args.models if name in chosen] if args.models else chosen:
        recipe = chosen[name] if args.tokens is None else dataclasses.replace(chosen[name], tokens=args.tokens)
        if finished(out / name, recipe=repr(recipe), seed=args.seed):
            continue
        teacher, samples = _teacher(recipe, out, tokens)
        path = train(
            recipe,
            tokens,
            held,
            manifest["held_out_bytes"],
            tokenizer,
            out,
            teacher,
            samples,
            args.seed,
            not args.no_compile,
        )
        card = json.loads((path / "card.json").read_text())
        print(
            f"{name}: {card['held_out_bits_per_byte']} bits per byte of held-out text after {card['tokens_seen']:,} "
            f"tokens, in {path}"
        )
    for name in [name for name in readers.READERS if name in args.models]:
        if finished(out / name, amount=args.tokens or readers.READERS[name].tokens, seed=args.seed):
            continue
        samples = _samples(out, TARGET.name, tokens) if readers.READERS[name].samples else None
        path = readers.train(
            name,
            tokens,
            held,
            out / TARGET.name,
            out,
            args.tokens,
            args.seed,
            samples=samples,
            compile=not args.no_compile,
        )
        card = json.loads((path / "card.json").read_text())
        print(
            f"{name}: overlap with the target on held-out text {card['held_out_overlap']} at {card['guesses']}, in "
            f"{path}"
        )
    if "editor" in args.models and not finished(out / EDITOR, amount=args.tokens or editor.TOKENS, seed=args.seed):
        path = editor.train(train_documents, held_documents, tokenizer, out / TARGET.name, out, args.tokens, args.seed)
        card = json.loads((path / "card.json").read_text())
        print(
            f"{EDITOR}: {card['held_out_first_choice']:.1%} of the tokens of held-out answers are its first choice, "
            f"in {path}"
        )
    for recipe in seq2seq.PAIR if "t5" in args.models else ():
        recipe = recipe if args.tokens is None else dataclasses.replace(recipe, tokens=args.tokens)
        if finished(out / recipe.name, recipe=repr(recipe), seed=args.seed):
            continue
        embeddings = seq2seq.target_embeddings(out, tokenizer)
        texts = (train_documents, held_documents)
        path = seq2seq.train(recipe, *texts, tokenizer, out, embeddings, args.seed, not args.no_compile)
        print(
            f"{recipe.name}: {json.loads((path / 'card.json').read_text())['held_out_nats_per_token']} nats per "
            f"token of held-out answers, in {path}"
        )
    if args.install:
        install(out, held_documents, tokenizer)
    return 0


def install(out: Path, held_documents: list[corpus.Document], tokenizer: PreTrainedTokenizerFast) -> None:
    """Copies every finished model to data/models, writes prompts and registry."""
    for card in sorted(card for card in out.glob("*/card.json") if card.parent.name not in UNSHIPPED):
        with replacing(embedded.DATA / "models" / card.parent.name) as folder:
            shutil.copytree(card.parent, folder)
            for file in folder.glob("tokenizer.json"):  # written for reading, at twice the size
                content = json.loads(file.read_text("utf-8"))
                write_text(file, json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    shutil.copy(out / "corpus.json", embedded.DATA / "models" / "corpus.json")
    prompts.write_prompts(held_documents, tokenizer, embedded.DATA / "prompts" / "held_out.json")
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


def _teacher(recipe: Recipe, out: Path, tokens: np.ndarray) -> tuple[LlamaForCausalLM | None, np.ndarray | None]:
    """The teacher a distillation needs, and text that it wrote, kept in `out` between runs."""
    for needed in filter(None, (recipe.start_from, recipe.teacher)):
        need(recipe.name, out / needed)
    if recipe.teacher is None:
        return None, None
    return load(out / recipe.teacher), _samples(out, recipe.teacher, tokens)


def _samples(out: Path, name: str, tokens: np.ndarray) -> np.ndarray:
    """Text that a finished model wrote, kept in `out` between runs. Raises TrainingError if there is no such model."""
    need(f"text written by {name}", out / name)
    weights = pooch.file_hash(str(out / name / "model.safetensors"))
    path = out / "cache" / f"samples-{name}-{digest(weights, tokens, code_version('training'))}.npy"
    if not path.exists():
        with replacing(path) as partial:
            np.save(partial, sample_text(load(out / name), tokens, SAMPLE_TOKENS))
    with reading(path, "delete it to make it again", TrainingError):
        return np.load(path)
