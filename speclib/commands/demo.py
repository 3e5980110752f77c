"""`python -m speclib demo`: a real model answers a question twice, plainly and speculatively, where its package is
installed; then the headline of the embedded pair on this machine, over the best plain decoding that it has.
"""

import argparse
import os
import re
import sys
from math import nan
from pathlib import Path

import pandas as pd
import torch

from .. import console, embedded
from ..drafters import ModelDrafter
from ..errors import ModelLoadError
from ..files import check_output, replacing
from ..law import statistics
from ..law.distributions import Sampling, seeded
from ..law.rules import RULES
from ..loop.decoding import generate
from ..measure import categories, experiments, machine, trials
from ..measure.experiments import Way
from ..model import gguf, language_model
from . import chat, pairs
from .options import command

LOSSLESS_TEXTS = 3000
FIGURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")  # what the figure can be
TRIED = 32  # tokens of the trial
FEW = 12  # the same of the real model's
QUESTION = 27  # of the chat prompts: a text to correct


def add_parser(subparsers) -> None:
    """Registers the subcommand with argparse."""
    options = {
        "question": {"help": "for the real model; '' leaves it out (default: a text to correct)"},
        "prompt": {"help": "your own text for the pair (default: a held-out function head)"},
        "draft": {"help": "an embedded draft (default: the best one)"},
        "backends": {"default": ["eager", "fast"]},
        "dtypes": {"choices": trials.DTYPES},
        "temperature": {},
        "tokens": {"help": "new tokens"},
        "draft-length": {"default": 4, "help": "gamma, guesses per round"},
        "repeats": {"default": 5, "help": "how often each way is timed"},
        "seed": {},
        "out": {"default": Path("demo.png"), "help": "where the figure goes"},
    }
    about = {
        "help": "one prompt, plain and speculative: text, target passes, speed, and a check that nothing was lost",
        "description": "Decodes a held-out prompt plainly (with a cache) and by speculative sampling, two guessers "
        "and several turns, each on the backend and in the dtype that a short trial finds fastest for it here; "
        "shows which guesses passed, compares the measured speed-up with the predicted one, tests that the text's law "
        "is unchanged, and saves a figure. Works offline. `--backend eager fast compiled` tries the compiled backend "
        "too, which is often the fastest and makes its programs first: some minutes.",
    }
    command(subparsers, "demo", run, options, **about)


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration and returns the exit code."""
    check_output(args.out, FIGURES)
    sampling, gamma = Sampling(temperature=args.temperature), args.draft_length
    prompt = args.prompt if args.prompt is not None else embedded.prompts("code")[16]
    load = pairs.loader(draft=args.draft)
    question = embedded.chat_prompts()[QUESTION]["prompt"] if args.question is None else args.question
    at = load("eager", args.dtype[0])  # a token first: what cannot work is said before the real model answers
    generate(at.pair.target, prompt, at.drafters[pairs.MODEL], sampling, gamma, max_new_tokens=1)
    if busy := machine.busy():
        print(busy, flush=True)
    if gguf.packaged() and question:
        try:
            twice(question, args.tokens, args.backend, args.dtype, args.seed)
        except ModelLoadError as error:
            print(f"The real model stays out, and the embedded pair goes on: {error}\n")
    print("two short trials choose what runs plain and speculative decoding fastest here ...", flush=True)
    guesses = {pairs.MODEL: (gamma,), pairs.EAGLE: (gamma,)}
    few, whole = (pairs.kinds(sampling, n, guesses) for n in (min(args.tokens, TRIED), args.tokens))
    chosen = trials.choose(load, few, [prompt] * 2, args.backend, args.dtype)
    alone, guided = chosen.ways.values()
    at, same = load(*guided[1:]), guided._replace(method=trials.PLAIN)
    pair, drafter = at.pair, at.drafters[pairs.MODEL]
    print(f"{pair.target}\n{pair.draft}\n{chosen}\n")

    # plain decoding also by the forwards that speculative decoding runs
    methods = {way: whole[trials.PLAIN](load(*way[1:]))[trials.PLAIN] for way in (alone, same)}
    methods |= {guided._replace(method=name): own for name, own in whole[trials.SPECULATIVE](at).items()}
    settings = {"max_new_tokens": args.tokens, "stop": [], "seed": args.seed}
    shown = generate(pair.target, prompt, drafter, sampling, gamma, **settings).trace
    frame = experiments.interleaved(methods, [prompt], args.repeats, seed=args.seed)
    costs = experiments.costs(pair, (1, gamma + 1))
    plain = generate(pair.target, prompt, None, sampling, **settings).trace
    with console.loading():
        from ..workbook import n00  # figures are slow to import

    with replacing(args.out) as image:
        n00.race([shown, plain]).savefig(image)

    print(f"\n{prompt}{_coloured(shown.to_ansi())}")
    print("(green: guesses that passed; red, struck out: the first that did not; plain: the target's own tokens)\n")
    print("\n".join(told(frame, alone, same, gamma, *costs)))
    print(f"lossless? {lossless_check(pair, prompt, sampling, gamma, args.seed)}")
    print(f"\nfigure: {args.out}\nnext: `make lab` opens the workbook at notebook 00; ", end="")
    print("`python -m speclib bench pair` measures thoroughly")
    return 0


def told(frame: pd.DataFrame, alone: Way, same: Way, gamma: int, c: float, widths: pd.DataFrame) -> list[str]:
    """The trials in words: over `alone`, the best plain decoding, and over the `same` forwards' own."""
    speeds, lines = {}, []
    for way, runs in experiments.by_way(frame, sort=False):
        speed, low, high = (runs["tokens"] / runs["seconds"]).quantile([0.5, 0.25, 0.75])
        spread = f"(middle half {low:.1f} to {high:.1f}, {len(runs)} runs)"
        passes, speeds[Way(*way)] = runs["target_forwards"].mean(), speed
        lines.append(f"{Way(*way)!s:40} {passes:6.1f} target forwards  {speed:7.1f} tokens/s {spread}")
    seen, over_best, own = experiments.acceptance(frame), *(experiments.speedups(frame, way) for way in (alone, same))
    model, eagle = (same._replace(method=pairs.titled(name, gamma)) for name in (pairs.MODEL, pairs.EAGLE))
    best = max((model, eagle), key=speeds.get)
    lines.append("\nspeculative " + pairs.over_best(over_best, alone, best))
    if gamma and len(seen):
        alpha, share, per_round = seen.loc[model]
        predicted = experiments.predict(alpha, per_round, gamma, c, widths)["width"]
        there = f"({same.backend}, {same.dtype}), over {own.loc[same, 'tokens_per_second']:.0f} tokens/s"
        lines += [
            f"on the same backend and in the same dtype {there}:",
            f"  draft model {own.loc[model, 'speedup']:.2f}x measured, {predicted:.2f}x predicted from alpha "
            f"{alpha:.2f}, cost ratio c {c:.3f} and the width curve",
            f"  (accepted share {share:.2f}, tokens per round {per_round:.2f})",
            f"  eagle, which reads the target's states (notebook 07): alpha {seen['alpha'].get(eagle, nan):.2f}, "
            f"{own.loc[eagle, 'speedup']:.2f}x measured",
        ]
    return lines


def twice(question: str, tokens: int, backends: list[str], dtypes: list[str], seed: int) -> None:
    """SmolLM2 answers greedily, plainly and then with guesses (`categories.usual`), each on the backend and in the
    dtype that is fastest for it here; the same at temperature 1, of which only the speeds are shown."""
    print("Loading SmolLM2-135M-Instruct, the first time half a minute ...", flush=True)
    load, messages = categories.loader("smollm2"), [{"role": "user", "content": question}]
    prompt = load("eager", dtypes[0])[0].chat(messages)
    ways = categories.choose(load, Sampling(0), min(tokens, FEW), [[prompt]], backends, dtypes).ways.values()
    models = [load(*way[1:])[0] for way in ways]
    drafters = None, categories.usual(models[1])
    for heat in (0, 1):  # weights are laid out and programs made, once
        generate(models[1], [prompt], drafters[1], Sampling(heat), categories.GUESSES, max_new_tokens=8)
    print(f"\n> {question}\n")
    page, texts, lines = chat.Columns(tuple(map(str, ways))), [], []
    for temperature, name in ((0.0, "greedy:"), (1.0, "temperature 1:")):
        outs = []
        for k, (model, drafter) in enumerate(zip(models, drafters, strict=True)):
            show = (lambda stream: None) if temperature else page.column(k)
            outs.append(chat.answered(model, messages, drafter, Sampling(temperature), tokens, show, seed))
        plain, spec = (out.summary() for out in outs)
        speed, faster, texts = plain["tokens_per_second"], spec["tokens_per_second"], texts or [o.texts for o in outs]
        per_round = f"{spec['tokens_per_round']:.2f} tokens per round: {faster / speed:.2f}x"
        if not temperature:
            page.close()
        lines.append(f"{name:15}{speed:6.1f} tokens/s plainly, {faster:6.1f} with guesses, {per_round}")
    why = "their dtypes differ" if len({way.dtype for way in ways}) > 1 else "rounding at a near tie"
    same = "the same" if texts[0] == texts[1] else f"not the same: {why} (notebook 13)"
    print("\n".join(lines))
    print(
        f"greedy, the two texts are {same}. What stands in question and answer is copied,\nand a layer that was taught "
        "by the model guesses the rest: a text that is to be written again gains most.\n`python -m speclib chat` takes "
        "your own questions.\n"
    )


def lossless_check(
    pair: language_model.Pair, prompt: str, sampling: Sampling, gamma: int, seed: int = 0, texts: int = LOSSLESS_TEXTS
) -> str:
    """A verdict in words. Greedy: the same text, token by token. Otherwise a G-test on the first token of many texts.

    Each speculative text is one round: drafts from the draft model, verdict from the production rule. Its first token
    must follow the target's own probabilities, which are known exactly. The significance is fixed: 1e-6.
    """
    drafter, ids = ModelDrafter(pair.draft), pair.tokenizer(prompt)["input_ids"]
    if sampling.temperature == 0:
        options = {"max_new_tokens": 64, "stop": []}
        plain, spec = (generate(pair.target, [ids], d, sampling, gamma, **options).tokens[0] for d in (None, drafter))
        if torch.equal(plain, spec):
            return "yes: greedy text is the same, token for token"
        return "the greedy texts differ: rounding at a near tie (notebook 04)"
    ids = torch.tensor([ids], device=pair.target.device)
    models = pair.target, pair.draft
    p, q = (sampling.probabilities(model.context().extend(ids, keep=1)[:, -1]) for model in models)  # [1, V]
    draw = seeded(seed, p.device)
    drafted = draw(q.expand(texts, -1))[:, None]  # [N, 1]
    verdict = RULES["token"].law(p.expand(texts, 1, -1).repeat(1, 2, 1), q.expand(texts, 1, -1), drafted)
    accepted, following = verdict.draw(draw)  # [N], [N]
    first = torch.where(accepted == 1, drafted[:, 0], following)
    counts, law = torch.bincount(first.cpu(), minlength=p.shape[-1]), p[0].cpu().double()
    result = statistics.g_test(counts.numpy(), (law / law.sum()).numpy())  # of single precision it misses 1 by rounding
    verdict = "no difference seen" if result.p_value > statistics.SIGNIFICANCE else "DIFFERENT"
    against = f"first tokens of {texts:,} speculative texts against the target's law"
    return f"{verdict}: {against}, p = {result.p_value:.3f}; notebook 04 proves it exactly"


def _coloured(text: str) -> str:
    """The text without its colours where nobody could see them."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return text
    return re.sub(r"\x1b\[[0-9;]*m", "", re.sub(r"\x1b\[31;9m.*?\x1b\[0m", "", text, flags=re.S))
