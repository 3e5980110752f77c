"""`python -m speclib demo`: a real model answers a question twice, plainly and speculatively, where its package is
installed; then the headline of the embedded pair on this machine, over the best plain decoding that it has.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import torch

from .. import console, embedded
from ..drafters import LookupDrafter, ModelDrafter
from ..errors import InvalidArgument, ModelLoadError
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
GUESSERS = {"draft model": pairs.MODEL, "eagle": pairs.EAGLE}
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
    if args.repeats < 1:
        raise InvalidArgument(f"--repeats must be at least 1, not {args.repeats}")
    check_output(args.out, FIGURES)
    sampling = Sampling(temperature=args.temperature)
    gamma, prompt = args.draft_length, args.prompt if args.prompt is not None else embedded.prompts("code")[16]
    load = pairs.loader(draft=args.draft)
    question = embedded.chat_prompts()[QUESTION]["prompt"] if args.question is None else args.question
    at = load("eager", args.dtype[0])  # a token first: what cannot work is said before the real model answers
    generate(at.pair.target, prompt, at.drafters[pairs.MODEL], sampling, gamma, max_new_tokens=min(args.tokens, 1))
    if busy := machine.busy():
        print(busy, flush=True)
    if gguf.packaged() and question:
        try:
            twice(question, args.tokens, args.backend, args.dtype, args.seed)
        except ModelLoadError as error:
            print(f"The real model stays out, and the embedded pair goes on: {error}\n")
    print("two short trials choose what runs plain and speculative decoding fastest here ...", flush=True)

    def speculative(at: pairs.Place, tokens: int) -> dict[str, experiments.Method]:
        return {title: at.method(name, sampling, gamma, tokens) for title, name in GUESSERS.items()}

    def plain(at: pairs.Place, tokens: int) -> experiments.Method:
        return at.method(trials.PLAIN, sampling, 0, tokens)

    few = min(args.tokens, TRIED)
    kinds = {
        trials.PLAIN: lambda at: {trials.PLAIN: plain(at, few)},
        trials.SPECULATIVE: lambda at: speculative(at, few),
    }
    chosen = trials.choose(load, kinds, [prompt] * 2, args.backend, args.dtype)
    alone, guided = chosen.ways.values()
    at = load(guided.backend, guided.dtype)
    pair, drafter = at.pair, at.drafters[pairs.MODEL]
    print(f"{pair.target}\n{pair.draft}\n{chosen}\n")

    # plain decoding also by the forwards that speculative decoding runs
    same, draft_model, eagle = (guided._replace(method=name) for name in (trials.PLAIN, *GUESSERS))
    methods = {alone: plain(load(alone.backend, alone.dtype), args.tokens), same: plain(at, args.tokens)}
    methods |= {guided._replace(method=name): method for name, method in speculative(at, args.tokens).items()}
    shown = generate(pair.target, prompt, drafter, sampling, gamma, max_new_tokens=args.tokens, stop=[], seed=args.seed)
    frame = experiments.interleaved(methods, [prompt], args.repeats, seed=args.seed)
    c, widths = experiments.costs(pair, (1, gamma + 1))
    plain = generate(pair.target, prompt, None, sampling, max_new_tokens=args.tokens, stop=[], seed=args.seed)
    with console.loading():
        from ..workbook import n00  # figures are slow to import

    with replacing(args.out) as image:
        n00.race([shown.trace, plain.trace]).savefig(image)

    print(f"\n{prompt}", end="")
    print(_coloured(shown.trace.to_ansi()))
    print(
        "(green: guesses that passed; red, struck out: the first guess that did not; plain: the target's own tokens)\n"
    )
    speed = {}
    for way, runs in experiments.by_way(frame, sort=False):
        speed[way], low, high = (runs["tokens"] / runs["seconds"]).quantile([0.5, 0.25, 0.75])
        print(
            f"{Way(*way)!s:30} {runs['target_forwards'].mean():6.1f} target forwards  {speed[way]:7.1f} tokens/s "
            f"(middle half {low:.1f} to {high:.1f}, {args.repeats} runs)"
        )
    seen, measured, own = experiments.acceptance(frame), *(experiments.speedups(frame, way) for way in (alone, same))
    best = max((draft_model, eagle), key=speed.get)
    print(
        f"\nspeculative over the best plain decoding of this machine: {measured.loc[best, 'speedup']:.2f}x "
        f"({measured.loc[best, 'tokens_per_second']:.0f} tokens/s, {best.method}, against "
        f"{measured.loc[alone, 'tokens_per_second']:.0f})"
    )
    if gamma and len(seen):
        alpha, per_round, share = seen.loc[draft_model, ["alpha", "tokens_per_round", "accepted_share"]]
        predicted = experiments.predict(alpha, per_round, gamma, c, widths)["width"]
        print(
            f"on the same backend and in the same dtype ({guided.backend}, {guided.dtype}), over "
            f"{own.loc[same, 'tokens_per_second']:.0f} tokens/s:"
        )
        print(
            f"  draft model {own.loc[draft_model, 'speedup']:.2f}x measured, {predicted:.2f}x predicted from alpha "
            f"{alpha:.2f}, cost ratio c {c:.3f} and the width curve"
        )
        print(f"  (accepted share {share:.2f}, tokens per round {per_round:.2f})")
        print(
            f"  eagle, which reads the target's states (notebook 07): alpha "
            f"{seen['alpha'].get(eagle, float('nan')):.2f}, {own.loc[eagle, 'speedup']:.2f}x measured"
        )
    print(f"lossless? {lossless_check(pair, prompt, sampling, gamma, args.seed)}")
    print(
        f"\nfigure: {args.out}\nnext: `make lab` opens the workbook at notebook 00; `python -m speclib bench pair` "
        f"measures thoroughly"
    )
    return 0


def twice(question: str, tokens: int, backends: list[str], dtypes: list[str], seed: int) -> None:
    """SmolLM2 answers greedily, plainly and then with prompt lookup, each on the backend and in the dtype that is
    fastest for it here; the same at temperature 1, of which only the speeds are shown."""
    print("Loading SmolLM2-135M-Instruct, the first time half a minute ...", flush=True)

    load = trials.Loader(lambda dtype: language_model.load_model("smollm2", dtype=dtype))
    kinds = {
        kind: lambda model, kind=kind, drafter=drafter: {
            kind: experiments.ours(model, drafter, Sampling(0), categories.GUESSES, min(tokens, FEW))
        }
        for kind, drafter in ((trials.PLAIN, None), ("lookup", LookupDrafter()))
    }
    messages = [{"role": "user", "content": question}]
    prompt = load("eager", dtypes[0]).chat(messages)
    chosen = trials.choose(load, kinds, [[prompt]], backends, dtypes)
    titles = tuple(str(way) for way in chosen.ways.values())
    print(f"\n> {question}\n")
    page, outs = chat.Columns(titles), {}
    for temperature in (0.0, 1.0):
        for k, (kind, way) in enumerate(chosen.ways.items()):
            drafter = None if kind == trials.PLAIN else LookupDrafter()
            show = page.column(k) if temperature == 0 else lambda stream: None
            model, sampling = load(way.backend, way.dtype), Sampling(temperature)
            outs[temperature, k] = chat.answered(model, messages, drafter, sampling, tokens, show, seed)
        if temperature == 0:
            page.close()
    for temperature, name in ((0.0, "greedy"), (1.0, "temperature 1")):
        plain, spec = (outs[temperature, k].summary() for k in (0, 1))
        print(
            f"{name + ':':15}{plain['tokens_per_second']:6.1f} tokens/s plainly, {spec['tokens_per_second']:6.1f} by "
            f"lookup, {spec['tokens_per_round']:.2f} tokens per round: "
            f"{spec['tokens_per_second'] / plain['tokens_per_second']:.2f}x"
        )
    same = outs[0.0, 0].texts == outs[0.0, 1].texts
    why = "their dtypes differ" if len({way.dtype for way in chosen.ways.values()}) > 1 else "rounding at a near tie"
    print(
        f"greedy, the two texts are {'the same' if same else f'not the same: {why} (notebook 13)'}. Lookup copies from "
        "question and answer: a text that is\nto be written again gains, an explanation hardly. `python -m speclib "
        "chat` takes your own questions.\n"
    )


def lossless_check(
    pair: language_model.Pair, prompt: str, sampling: Sampling, gamma: int, seed: int = 0, texts: int = LOSSLESS_TEXTS
) -> str:
    """A verdict in words. Greedy: the same text, token by token. Otherwise a G-test on the first token of many texts.

    Each speculative text is one round: drafts from the draft model, verdict from the production rule. Its first
    token must follow the target's own probabilities, which are known exactly. The significance is fixed: 1e-6.
    """
    drafter, ids = ModelDrafter(pair.draft), pair.tokenizer(prompt)["input_ids"]
    if sampling.temperature == 0:
        plain, spec = (
            generate(pair.target, [ids], d, sampling, gamma, max_new_tokens=64, stop=[]).tokens[0]
            for d in (None, drafter)
        )
        return (
            "yes: greedy text is the same, token for token"
            if torch.equal(plain, spec)
            else "the greedy texts differ: rounding at a near tie (notebook 04)"
        )
    ids = torch.tensor([ids], device=pair.target.device)
    p = sampling.probabilities(pair.target.context().extend(ids, keep=1)[:, -1])  # [1, V]
    q = sampling.probabilities(pair.draft.context().extend(ids, keep=1)[:, -1])
    draw = seeded(seed, p.device)
    drafted = draw(q.expand(texts, -1))[:, None]  # [N, 1]
    verdict = RULES["token"].law(p.expand(texts, 1, -1).repeat(1, 2, 1), q.expand(texts, 1, -1), drafted)
    accepted, following = verdict.draw(draw)  # [N], [N]
    first = torch.where(accepted == 1, drafted[:, 0], following)
    counts = torch.bincount(first, minlength=p.shape[-1]).double()
    result = statistics.g_test(counts.cpu().numpy(), p[0].double().cpu().numpy())
    verdict = "no difference seen" if result.p_value > statistics.SIGNIFICANCE else "DIFFERENT"
    return (
        f"{verdict}: first tokens of {texts:,} speculative texts against the target's law, p = "
        f"{result.p_value:.3f}; notebook 04 proves it exactly"
    )


def _coloured(text: str) -> str:
    """The text without its colours where nobody could see them."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return text
    return re.sub(r"\x1b\[[0-9;]*m", "", re.sub(r"\x1b\[31;9m.*?\x1b\[0m", "", text, flags=re.S))
