"""generate(): the one loop. Plain decoding is the same loop with nothing drafted, which makes it a fair baseline.

Each round drafts up to gamma tokens for every text, checks them all in one forward of the target, and draws from the
rule's law how many pass and which token comes next. Texts of a batch accept, stop and finish on their own.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from ..drafters import Drafter
from ..drafters.base import Draft, Session, always, draft_together
from ..law import rules
from ..law.distributions import Draw, Sampling, check_finite, drawn, invert, overlap, seeded
from ..model.batch import Batch, together
from ..model.context import Context, Read
from ..model.language_model import LanguageModel
from .arguments import check, encode, rows_at_once
from .lengths import FixedLength, Length, Plan
from .processors import Places, at_work
from .stops import Stops
from .trace import Round, Trace

SPARE = 64  # slots of a batch behind its longest text, for guesses and padding


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
    batch_size: int | None = None,
    watch: Callable[[Round], None] | None = None,
) -> Output:
    """Continues each prompt, with the law of the target alone whatever drafts (if the rule is lossless).

    target: the model whose text this is. drafter: None decodes plainly, one token per forward. draft_length: gamma, the
    guesses per round (of a tree: its depth), or a plan from `lengths`. stop: None stops after the model's end-of-text,
    [] never, else after any of these token ids and strings; the text is cut exactly where plain decoding would have
    stopped. seed: same seed, same text; row i of a list does not depend on its neighbours. draw: replaces chance (see
    `exact`). watch: is called with each round of each text as it ends.

    A list of prompts is decoded as one batch, `batch_size` texts at a time (None: as many as fit in memory, up to 32);
    the place of a text that has ended is taken by the next prompt. Encoder-decoder models, and models that take no
    masks or positions from outside, go row by row. Sources: Leviathan et al. 2211.17192; Chen et al. 2302.01318. Raises
    InvalidArgument, ContextOverflow, IncompatibleModels before any work; NonFiniteLogits during it.
    """
    sampling = Sampling() if sampling is None else sampling
    rule = rules.find(rule)
    length = draft_length if hasattr(draft_length, "start") else FixedLength(draft_length)
    texts = encode(target, prompts)
    check(target, drafter, sampling, rule, texts, max_new_tokens, seed, draw)
    at_once = rows_at_once(target, drafter, texts, max_new_tokens, batch_size)
    stops = Stops.of(target, stop)
    fixed = drafter.lengths(length.gamma) if drafter and isinstance(length, FixedLength) else ()
    target.announce({1, *(n + 1 for n in fixed)})

    tokenizer = target.tokenizer
    trace = Trace(tokenizer.decode if tokenizer else None)
    settings = Settings(target, drafter, sampling, length, rule, max_new_tokens, stops)
    outputs: list[list[int]] = [[] for _ in texts]
    start = now(target.device)
    with tqdm(total=len(texts) * max_new_tokens, desc="decoding", unit="tok", disable=not progress) as bar:

        def draws(row: int) -> Draw:
            return draw or seeded(_row_seed(seed, row), target.device)

        for done in decode(settings, texts, draws, at_once, trace):
            trace.rounds.append(done)
            outputs[done.row] += done.emitted
            bar.update(len(done.emitted))
            if watch:
                watch(done)
        bar.update(bar.total - bar.n)  # of texts that have ended early
    trace.seconds = now(target.device) - start
    trace.rounds.sort(key=lambda done: done.row)
    decoded = [tokenizer.decode(t, skip_special_tokens=True) if tokenizer else " ".join(map(str, t)) for t in outputs]
    return Output([torch.tensor(t, dtype=torch.long) for t in outputs], decoded, trace)


@dataclass(frozen=True)
class Settings:
    """What all rows of a call have in common."""

    target: LanguageModel
    drafter: Drafter | None
    sampling: Sampling
    length: Length
    rule: rules.Rule
    max_new_tokens: int
    stops: Stops


@dataclass
class Row:
    """One text at work. sampling: as the target's logits are looked at; last: the one token not read yet [1]."""

    number: int
    context: Context
    sampling: Sampling
    places: Places | None
    draw: Draw
    session: Session | None
    plan: Plan
    text: list[int]
    last: Tensor
    new: list[int] = field(default_factory=list)

    @property
    def goes_on(self) -> Callable[[Tensor], bool]:
        """A session that need not ask can make all its guesses at once."""
        return always if isinstance(self.plan, FixedLength) else self.plan.goes_on


def decode(
    settings: Settings, texts: Sequence[list[int]], draws: Callable[[int], Draw], at_once: int, trace: Trace
) -> Iterable[Round]:
    """Every round of every text as it ends; `at_once` texts at a time."""
    waiting, rows = deque(enumerate(texts)), []
    longest = max(map(len, texts)) + settings.max_new_tokens + SPARE
    batch = Batch(at_once, longest) if at_once > 1 else None
    device = settings.target.device  # transformers looks for it among all modules
    stamp = _clock(device)
    while waiting or rows:
        began = now(device)
        while waiting and len(rows) < at_once:
            number, prompt = waiting.popleft()
            rows.append(begin(settings, number, prompt, draws(number), batch))
            trace.prefill_seconds += now(device) - began
            began = now(device)
        rounds, going = play(settings, rows, stamp)
        rows = [row for row, on in zip(rows, going, strict=True) if on]
        yield from rounds


@torch.inference_mode()
def begin(settings: Settings, number: int, prompt: list[int], draw: Draw, batch: Batch | None) -> Row:
    """A text before its first round: target and draft have read all but its last token."""
    target = settings.target
    context = target.context(prompt, batch)
    sampling, places = at_work(settings.sampling, context, settings.max_new_tokens, number)
    asked = replace(sampling, side="target") if places else sampling
    session = settings.drafter.start(context, sampling, draw) if settings.drafter else None
    text = list(context.begin)
    if len(text) > 1:
        context.extend(torch.tensor([text[:-1]], device=target.device), keep=1)
    if session:
        session.prepare(text)
    last = torch.tensor(text[-1:], device=target.device)
    return Row(number, context, asked, places, draw, session, settings.length.start(), text, last)


@torch.inference_mode()
def play(settings: Settings, rows: Sequence[Row], stamp: Callable) -> tuple[list[Round], list[bool]]:
    """One round of each row: propose, extend, verdict, draw, retain. -> (what happened, whether the row goes on)"""
    began, t0 = time.perf_counter(), stamp()
    drafts = propose(rows, settings.max_new_tokens)
    t1 = stamp()
    logits = together([reading(row, draft) for row, draft in zip(rows, drafts, strict=True)])  # [1, n+1, V] of each
    t2 = stamp()
    verdicts = judged(settings.rule, rows, logits, drafts)
    settled = [settle(settings, *each) for each in zip(rows, drafts, verdicts, strict=True)]
    shared = {
        "draft_seconds": _between(t0, t1) / len(rows),
        "target_seconds": _between(t1, t2) / len(rows),
        "seconds": (time.perf_counter() - began) / len(rows),
        "rows": len(rows),
    }
    rounds = [replace(done, **shared) for done, _ in settled]
    for row, done in zip(rows, rounds, strict=True):
        row.plan.observe(done)
    return rounds, [going for _, going in settled]


def propose(rows: Sequence[Row], max_new_tokens: int) -> list[Draft | None]:
    """What each row's session guesses, None for nothing; their forwards are made together."""
    drafts: list[Draft | None] = [None] * len(rows)
    asked = {}
    for i, row in enumerate(rows):
        # one token always comes from the target
        n = min(row.plan.next_length(), max_new_tokens - len(row.new) - 1) if row.session else 0
        if n > 0:
            asked[i] = row.session.drafting(row.text, n, row.goes_on)
    for i, draft in zip(asked, draft_together(list(asked.values())), strict=True):
        drafts[i] = draft if len(draft.tokens) else None
    return drafts


def reading(row: Row, draft: Draft | None) -> Read:
    """What the target reads in a round: the last token and the guesses [1, n+1]."""
    if draft is None:
        return Read(row.context, row.last[None])
    parents = None if draft.parents is None else [-1, *(parent + 1 for parent in draft.parents)]
    return Read(row.context, torch.cat([row.last, draft.tokens])[None], parents=parents)


def settle(settings: Settings, row: Row, draft: Draft | None, seen: "Seen") -> tuple[Round, bool]:
    """The text grows, the cache keeps what was accepted. -> (the round, whether the text goes on)"""
    check_finite(sum(seen.overlaps, seen.total))
    parents, overlaps = draft and draft.parents, seen.overlaps
    if draft:
        row.session.told(seen.drafted)
    path = list(range(seen.stop)) if parents is None else branch(parents, seen.stop - 1)
    if parents is not None:
        overlaps = taken(parents, path, seen.stop_probs)
    emitted, ended = settings.stops.cut(row.new, [seen.drafted[node] for node in path] + [seen.token])
    position = len(row.text)
    row.new += emitted
    row.text += emitted
    row.last = seen.next
    row.context.retain([0, *(node + 1 for node in path[: len(emitted) - 1])])  # the last token is not read yet
    going = not ended and len(row.new) < settings.max_new_tokens
    if row.places and not ended:
        row.places.move(row.text, tuple(seen.drafted[node] for node in path))
    what = position, seen.drafted, overlaps, seen.stop_probs, len(path), emitted
    done = Round(row.number, *what, 0.0, 0.0, 0.0, parents)  # its times: see `play`
    return done, going


@dataclass(frozen=True)
class Seen:
    """All that the host wants to know of one text's round, fetched from the device as one vector.

    next: the next token, still there [1]; total and overlaps are finite if all of p and q is.
    """

    next: Tensor
    token: int
    total: float
    stop: int
    drafted: list[int]
    stop_probs: list[float]
    overlaps: list[float]

    @staticmethod
    def pack(token: Tensor, total: Tensor, stop: Tensor, drafted: Tensor, probs: Tensor, overlaps: Tensor) -> Tensor:
        """[B], [B], [B], [B, n], [B, n+1], [B, m] -> [B, 3 + n + n + 1 + m]"""
        return torch.cat([token[:, None], total[:, None], stop[:, None], drafted, probs, overlaps], 1)

    @classmethod
    def unpack(cls, packed: Tensor, counts: Sequence[int]) -> "list[Seen]":
        """Back to one for each row [B], of whose n places `counts` were guesses."""
        if packed.shape[1] == 2:  # nothing was drafted
            return [
                cls(next_, int(token), total, 0, [], [1.0], [])
                for next_, (token, total) in zip(packed[:, 0].long().split(1), packed.tolist(), strict=True)
            ]
        n, found = max(counts), []
        for next_, row, count in zip(packed[:, 0].long().split(1), packed.tolist(), counts, strict=True):
            token, total, stop, *rest = row
            drafted, probs, overlaps = rest[:n], rest[n : 2 * n + 1], rest[2 * n + 1 :]
            drafted = [int(value) for value in drafted[:count]]
            found.append(cls(next_, int(token), total, int(stop), drafted, probs[: count + 1], overlaps[:count]))
        return found


def judge(
    rule: rules.Rule,
    sampling: Sampling,
    draw: Draw,
    logits: Tensor,
    q: Tensor | None = None,
    drafted: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """The verdict on the target's logits [B, n+1, V], and on the guesses [B, n] with what each was drawn from
    [B, n, V], if any, as `Seen.pack` packs it (with no guesses: next token and total alone, [B, 2]).

    A guess that a row has not made has a row of zeros in q, which no rule accepts.
    """

    def guessed() -> list[list[int]]:
        tokens = [] if drafted is None else drafted[0].tolist()
        nodes = range(-1, len(tokens))
        return [
            tokens[: node + 1] if parents is None else [tokens[place] for place in branch(parents, node)]
            for node in nodes
        ]

    p = sampling.probabilities(logits, check=False, guessed=guessed)  # [B, n+1, V]
    if q is None:
        return torch.stack([draw(p[:, 0]), p[:, 0].sum(-1)], 1)
    q = q.to(p.dtype)
    verdict = rule.verdict(p, q, drafted, parents)
    stop, token = verdict.draw(draw)
    if parents is None:
        total, overlaps = p[:, -1].sum(-1), overlap(p[:, :-1], q)
    else:
        total, overlaps = p.sum((1, 2)) + q.sum((1, 2)), p[:, 0, :0]
    return Seen.pack(token, total, stop, drafted, verdict.stop_probs, overlaps)


def judged(
    rule: rules.Rule, rows: Sequence[Row], logits: Sequence[Tensor], drafts: Sequence[Draft | None]
) -> list[Seen]:
    """The verdict on each row: chains at once, trees and rows under processors by themselves. Rows without guesses have
    no stop to draw, and so stand apart too: a row draws as often as it would alone."""
    groups: dict[Hashable, list[int]] = {}
    for i, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        alone = row.places or (draft and draft.parents is not None)
        groups.setdefault(i if alone else ("chains", draft is None), []).append(i)
    found: dict[int, Seen] = {}
    for places in groups.values():
        parts = ([every[i] for i in places] for every in (rows, logits, drafts))
        found |= dict(zip(places, judged_together(rule, *parts), strict=True))
    return [found[i] for i in range(len(rows))]


def judged_together(
    rule: rules.Rule, rows: Sequence[Row], logits: Sequence[Tensor], drafts: Sequence[Draft | None]
) -> list[Seen]:
    """The verdict on rows of one kind; as one compiled program where the backend has one, chance is a sequence of
    uniform numbers and no processor, which is Python, changes the logits."""
    counts = [len(draft.tokens) if draft else 0 for draft in drafts]
    n, parents = max(counts), drafts[0] and drafts[0].parents
    missing = [n - k for k in counts]  # places without a guess: the last logits again, where nothing can come
    padded = [pad(mine, (0, 0, 0, k), "replicate") if k else mine for mine, k in zip(logits, missing, strict=True)]
    inputs = [joined(padded)]  # [B, n+1, V]
    if n:
        made = ((d.probs[None], d.tokens[None], k) for d, k in zip(drafts, missing, strict=True))
        made = [(pad(q, (0, 0, 0, k)), pad(tokens, (0, k))) if k else (q, tokens) for q, tokens, k in made]
        inputs += map(joined, zip(*made, strict=True))  # [B, n, V], [B, n]
    draws, sampling = [row.draw for row in rows], rows[0].sampling
    uniform = getattr(draws[0], "uniform", None)
    if len(rows) == 1 and uniform and parents is None and not rows[0].places:

        def program(numbers: Tensor, *inputs: Tensor) -> Tensor:
            left = list(numbers.split(1))
            return judge(rule, sampling, lambda probs: invert(probs, left.pop(0)), *inputs)

        packed = rows[0].context.language_model.judge(program, (uniform(2 if n else 1, 1), *inputs), (rule, sampling))
    else:
        packed = judge(rule, sampling, partial(drawn, draws), *inputs, parents=parents)
    return Seen.unpack(packed, counts)


def joined(rows: Sequence[Tensor]) -> Tensor:
    """One after the other; a single one is not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


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


def now(device: torch.device) -> float:
    """Seconds, when all work on the device is done."""
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _clock(device: torch.device) -> "Callable[[], float | torch.cuda.Event]":
    """Tells moments of the device's own time: on a GPU the host runs ahead, and waiting for it at every phase would
    cost what it measures. (Apple's are waited for.)
    """

    def stamp() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return stamp if device.type == "cuda" else partial(now, device)


def _between(first: "float | torch.cuda.Event", second: "float | torch.cuda.Event") -> float:
    """Seconds from one stamp to another, both in the past."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3
