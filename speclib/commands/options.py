"""The options of commands: each is said once, and a command says what differs."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from ..measure.trials import DTYPES
from ..model.language_model import BACKENDS


def count(value: str) -> int:
    """A whole number of at least 1, as a type of argparse."""
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return int(value)


# By name, with a default from which its type follows; one with an "s" may be given several values, by the name without.
OPTIONS: dict[str, dict] = {
    "target": {"help": "an embedded name, a folder, or a hub name (default: the embedded target)"},
    "draft": {"help": "the same for the draft (default: the embedded draft)"},
    "prompts": {"default": 20, "type": count, "help": "held-out prompts"},
    "domain": {"default": ["code"], "help": "which held-out prompts: code, prose"},
    "tokens": {"default": 128, "type": count, "help": "new tokens per prompt"},
    "temperature": {"default": 1.0, "help": "0 is greedy"},
    "repeats": {"default": 1, "type": count, "help": "times each prompt is decoded by each method"},
    "seed": {"default": 0, "help": "where chance begins"},
    "dtype": {"help": "float32, bfloat16 or float16 (default: what suits the device)"},
    "dtypes": {"default": DTYPES, "help": "to choose from, or to go through"},
    "backend": {"default": "fast", "choices": BACKENDS, "help": "whose forwards decode"},
    "backends": {"default": BACKENDS, "choices": BACKENDS, "help": "to choose from, or to go through"},
    "threads": {"type": count, "help": "CPU threads (default: torch's own choice)"},
    "quick": {"default": False, "help": "a few short texts, to see that it works: no figures to quote"},
}
SEVERAL = {"dtypes": "dtype", "backends": "backend"}


def command(subparsers, name: str, run: Callable, options: Mapping[str, dict], **about: str) -> argparse.ArgumentParser:
    """Adds a command that `run`s. options: by name, what it has beside, or in place of, what OPTIONS says."""
    parser = subparsers.add_parser(name, **about)
    for option, own in options.items():
        more = OPTIONS.get(option, {}) | own
        default = more.get("default")
        if default is False:
            more["action"] = "store_true"
        elif default is not None and default != []:
            many = isinstance(default, list | tuple)
            more = ({"nargs": "+", "type": type(default[0])} if many else {"type": type(default)}) | more
            if "default:" not in more["help"]:
                more["help"] += f" (default: {' '.join(map(str, default)) if many else default})"
        if isinstance(default, Path):
            more["metavar"] = "PATH"
        parser.add_argument(f"--{SEVERAL.get(option, option)}", **more)
    parser.set_defaults(run=run)
    return parser
