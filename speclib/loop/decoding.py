"""generate(): the one loop. Plain decoding is the same loop with nothing drafted, which makes it a fair baseline.

Each round drafts up to gamma tokens, checks them all in one forward of the target, and draws from the rule's law
how many pass and which token comes next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..drafters import Drafter
from ..drafters.base import always
from ..law import rules
from ..law.distributions import Draw, Sampling, check_finite, invert, overlap, seeded
from ..model.context import Context
from ..model.language_model import LanguageModel
from .arguments import check, encode
from .lengths import FixedLength, Length, Plan
from .processors import at_work
from .stops import Stops
from .trace import Round, Trace


@dataclass(frozen=True)
class Output:
    """What `generate` returns. tokens: the new tokens only, one LongTensor a row; texts: the same as text."""

    tokens: list[Tensor]
    texts: list[str]
    trace: Trace

    def summary(self) -> dict:
        """Alpha, accepted share, tokens per round, target forwards, seconds by phase: see `Trace.summary`."""
        return self.trace.summary()


def generate(
    target: LanguageModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    drafter: Drafter | None = None,
    sampling: Sampling | None = None,
    draft_length: int | Length = 5,
    rule: str | rules.Rule = "token",
    max_new_tokens: int = 128,
    stop: Sequence[int | str] | None = None,
    seed: int = 0,
    progress: bool = False,
    draw: Draw | None = None,
    watch: Callable[[Round], None] | None = None,
) -> Output:
    """Continues each prompt, with the law of the target alone whatever drafts (if the rule is lossless).

    target: the model whose text this is. drafter: None decodes plainly, one token per forward. draft_length: gamma, the
    guesses per round (of a tree: its depth), or a plan from `lengths`. stop: None stops after the model's end-of-text,
    [] never, else after any of these token ids and strings; the text is cut exactly where plain decoding would have
    stopped. seed: same seed, same text; row i of a list does not depend on its neighbours. draw: replaces chance (see
    `exact`). watch: hears each round as soon as it is over, to stream the text; its time counts.

    A list of prompts is decoded row by row. Sources: Leviathan et al. 2211.17192; Chen et al. 2302.01318.
    Raises InvalidArgument, ContextOverflow, IncompatibleModels before any work; NonFiniteLogits during it.
    """
    sampling = Sampling() if sampling is None else sampling
    rule = rules.find(rule)
    length = draft_length if hasattr(draft_length, "start") else FixedLength(draft_length)
    texts = encode(target, prompts)
    check(target, drafter, sampling, rule, texts, max_new_tokens, seed, draw)
    stops = Stops.of(target, stop)
    target.announce(
        {1, *(n + 1 for n in drafter.lengths(length.gamma))} if drafter and isinstance(length, FixedLength) else {1}
    )

    tokenizer = target.tokenizer
    trace = Trace(tokenizer.decode if tokenizer else None)
    outputs = []
    start = _now(target.device)
    with tqdm(total=len(texts) * max_new_tokens, desc="decoding", unit="tok", disable=not progress) as bar:
        for row, prompt in enumerate(texts):
            row_draw = draw or seeded(_row_seed(seed, row), target.device)
            outputs.append(
                _decode_row(
                    target,
                    drafter,
                    prompt,
                    sampling,
                    length.start(),
                    rule,
                    max_new_tokens,
                    stops,
                    row_draw,
                    row,
                    trace,
                    bar,
                    watch,
                )
            )
            bar.update((row + 1) * max_new_tokens - bar.n)
    trace.seconds = _now(target.device) - start
    decoded = [tokenizer.decode(t, skip_special_tokens=True) if tokenizer else " ".join(map(str, t)) for t in outputs]
    return Output([torch.tensor(t, dtype=torch.long) for t in outputs], decoded, trace)


@torch.inference_mode()
def _decode_row(
    target: LanguageModel,
    drafter: Drafter | None,
    prompt: list[int],
    sampling: Sampling,
    plan: Plan,
    rule: rules.Rule,
    max_new_tokens: int,
    stops: Stops,
    draw: Draw,
    row: int,
    trace: Trace,
    bar: tqdm,
    watch: Callable[[Round], None] | None = None,
) -> list[int]:
    """Decodes one prompt and appends its rounds to `trace`; returns the new tokens."""
    device = target.device
    began = _now(device)
    context = target.context(prompt)
    sampling, places = at_work(sampling, context, max_new_tokens, row)
    asked = replace(sampling, side="target") if places else sampling
    if places:
        draw = partial(draw)  # without uniform numbers of its own: processors are Python, and no program can hold them
    guesser = drafter.start(context, sampling, draw) if drafter else None
    stamp = _clock(device)
    # a guesser that need not ask can make all its guesses at once
    goes_on = always if isinstance(plan, FixedLength) else plan.goes_on
    text, new = list(context.begin), []
    if len(text) > 1:
        # all but the last: each round reads that itself
        context.extend(torch.tensor([text[:-1]], device=device), keep=1)
    if guesser:
        guesser.prepare(text)
    last = torch.tensor(text[-1:], device=device)
    trace.prefill_seconds += _now(device) - began

    while len(new) < max_new_tokens:
        began, t0 = time.perf_counter(), stamp()
        # one token always comes from the target
        n = min(plan.next_length(), max_new_tokens - len(new) - 1) if guesser else 0
        draft = guesser.propose(text, n, goes_on) if n > 0 else None
        n = draft.tokens.shape[0] if draft else 0
        t1 = stamp()
        parents = draft.parents if n else None
        read = torch.cat([last, draft.tokens]) if n else last
        # [1, n+1, V]
        logits = context.extend(
            read[None], parents=None if parents is None else [-1, *(parent + 1 for parent in parents)]
        )
        t2 = stamp()
        guesses = (draft.probs, draft.tokens) if n else ()
        seen = judged(context, rule, asked, draw, logits, *guesses, parents=parents)
        last = seen[:1].long()
        token, total, *told = seen.tolist()  # the one transfer of the round: each would wait for the device
        check_finite(sum(told[2 * n + 2 :], total))
        if n:
            drafted = [int(value) for value in told[1 : n + 1]]
            guesser.told(drafted)
            stop, stop_probs, overlaps = int(told[0]), told[n + 1 : 2 * n + 2], told[2 * n + 2 :]
            path = list(range(stop)) if parents is None else branch(parents, stop - 1)
            if parents is not None:
                overlaps = taken(parents, path, stop_probs)
        else:
            drafted, path, stop_probs, overlaps = [], [], [1.0], []
        emitted, ended = stops.cut(new, [drafted[node] for node in path] + [int(token)])
        new += emitted
        text += emitted
        context.retain([0, *(node + 1 for node in path[: len(emitted) - 1])])  # the last token is not read yet
        done = Round(
            row,
            len(text) - len(emitted),
            drafted,
            overlaps,
            stop_probs,
            len(path),
            emitted,
            _between(t0, t1),
            _between(t1, t2),
            time.perf_counter() - began,
            parents,
        )
        trace.rounds.append(done)
        plan.observe(done)
        bar.update(len(emitted))
        if watch:
            watch(done)
        if ended:
            break
        if places:
            places.move(text, tuple(drafted[node] for node in path))
    return new


def judge(
    rule: rules.Rule,
    sampling: Sampling,
    draw: Draw,
    logits: Tensor,
    q: Tensor | None = None,
    drafted: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """All that the host wants to know of a round: the target's logits [1, n+1, V], and the guesses [n] with what each
    was drawn from [n, V], if any.

    -> the next token, a total, and with guesses: where verification stops, the guesses [n], stop_probs [n+1], and of a
    chain the overlaps [n]. Total and overlaps are finite if all of p and q is.
    """

    def guessed() -> list[list[int]]:
        tokens = [] if drafted is None else drafted.tolist()
        nodes = range(-1, len(tokens))
        return [
            tokens[: node + 1] if parents is None else [tokens[place] for place in branch(parents, node)]
            for node in nodes
        ]

    p = sampling.probabilities(logits, check=False, guessed=guessed)  # [1, n+1, V]
    if q is None:
        return torch.cat([draw(p[0]), p[0].sum(-1)])
    q = q.to(p.dtype)[None]  # [1, n, V]
    verdict = rule.verdict(p, q, drafted[None], parents)
    stop, token = verdict.draw(draw)  # [1], [1]
    total, overlaps = (
        (p[0, -1:].sum(-1), overlap(p[0, :-1], q[0])) if parents is None else ((p.sum() + q.sum())[None], p[0, 0, :0])
    )
    return torch.cat([token, total, stop, drafted, verdict.stop_probs[0], overlaps])


def judged(
    context: Context,
    rule: rules.Rule,
    sampling: Sampling,
    draw: Draw,
    logits: Tensor,
    *guesses: Tensor,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """`judge`, as one program where the backend makes one and chance is a sequence of uniform numbers."""
    uniform = getattr(draw, "uniform", None)
    if uniform and parents is None:

        def program(numbers: Tensor, logits: Tensor, *guesses: Tensor) -> Tensor:
            left = list(numbers.split(1))
            return judge(rule, sampling, lambda probs: invert(probs, left.pop(0)), logits, *guesses)

        seen = context.judge(program, uniform, 2 if guesses else 1, (logits, *guesses), (rule, sampling))
        if seen is not None:
            return seen
    return judge(rule, sampling, draw, logits, *guesses, parents=parents)


def branch(parents: Sequence[int], node: int) -> list[int]:
    """The nodes of a tree from the first guess down to `node`, which may be -1: the text itself, no guess."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def taken(parents: Sequence[int], path: Sequence[int], stop_probs: Sequence[float]) -> list[float]:
    """The probability that some guess is taken at each place along a path of a tree, as far as there are guesses."""
    below = list(stop_probs)  # by node, the text first: the probability that verification comes to the node
    for node in reversed(range(len(parents))):
        below[parents[node] + 1] += below[node + 1]
    branching = {parent + 1 for parent in parents}
    return [1 - stop_probs[place] / below[place] for place in (0, *(node + 1 for node in path)) if place in branching]


def _row_seed(seed: int, row: int) -> int:
    """A seed for each row, so that a row's text does not depend on how many rows there are."""
    return (int(seed) * 1_000_003 + row * 7_919) % 2**63


def _now(device: torch.device) -> float:
    """Seconds, when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _clock(device: torch.device) -> "Callable[[], float | torch.cuda.Event]":
    """Tells moments of the device's own time: on a GPU the host runs ahead, and waiting for it at every phase would
    cost what it measures.
    """

    def stamp() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return stamp if device.type == "cuda" else time.perf_counter


def _between(first: "float | torch.cuda.Event", second: "float | torch.cuda.Event") -> float:
    """Seconds from one stamp to another, both in the past."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3
