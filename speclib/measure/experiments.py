"""Honest measurements: methods take turns on the same prompts, every figure has its spread, and nothing is lost.

The baseline is plain decoding with a cache, on the same backend, in the same run. Figures are in tokens, over the whole
time from prompt to last token.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm
from transformers import GenerationConfig

from .. import embedded
from ..drafters import Drafter, ModelDrafter
from ..errors import InvalidArgument
from ..files import reading
from ..law import rules, theory
from ..law.distributions import Sampling, overlap, seeded
from ..law.statistics import jackknife_interval
from ..loop.decoding import Output, generate
from ..loop.lengths import Length
from ..model import compiled, products
from ..model.context import ancestry
from ..model.language_model import BACKENDS, DEFAULT_DRAFT, LanguageModel, Pair, load_model
from ..model.language_model import ladder as draft_names
from . import latency

MAX_LENGTH = 8  # the longest draft that the ladder considers

# One trial: (prompt, seed) -> what is to be recorded, with at least "tokens" and "seconds".
Method = Callable[[str, int], dict]


class Way(NamedTuple):
    """One way to decode: a method by name, and whose forwards run it in which dtype."""

    method: str
    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.method} ({self.backend}, {self.dtype})"


WAY = list(Way._fields)
BY_ROUND = ["text", "widths", "accepted"]  # what a trial has a list of


def machine() -> dict:
    """What a figure was measured on: processor with its instructions, threads, GPU, versions, date."""
    name, instructions = products.processor()
    return {
        "cpu": name,
        "instructions": instructions,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }


def peak_memory() -> float:
    """The most memory that this process has held so far, in GB: the GPU's if there is one."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    try:
        import resource
    except ImportError:  # Windows keeps this elsewhere
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def dtype_of(model: LanguageModel) -> str:
    """Its dtype in a word: "float32"."""
    return str(model.dtype).removeprefix("torch.")


def ours(
    target: LanguageModel,
    drafter: Drafter | None,
    sampling: Sampling,
    draft_length: int | Length,
    tokens: int,
    rule: str = "token",
    stop: Sequence[int | str] | None = (),
    batch_size: int | None = None,
    more: Callable[[Output], dict] = lambda out: {},
) -> Method:
    """`generate` as a method: exactly `tokens` new tokens a text, whatever comes, unless `stop` says otherwise. A trial
    in which a program was made is made again: that is no part of decoding. By round are recorded "widths", the tokens
    that its forward read, and "accepted", the guesses that it kept; and what `more` finds. "text" is the first's."""

    def trial(prompt: str | list, seed: int) -> dict:
        made, settings = None, {"stop": stop, "seed": seed, "batch_size": batch_size}
        while made != compiled.Programs.made:
            made = compiled.Programs.made
            out = generate(target, prompt, drafter, sampling, draft_length, rule, tokens, **settings)
        summary, rounds = out.summary(), out.trace.rounds
        seconds = summary.pop("seconds")
        return {
            **summary,
            "reached": sum(min(r.accepted + 1, len(r.drafted)) for r in rounds),
            "widths": [1 + len(r.drafted) for r in rounds],
            "accepted": [r.accepted for r in rounds],
            **{f"{phase}_seconds": value for phase, value in seconds.items()},
            "seconds": seconds["total"],
            "text": out.tokens[0].tolist(),
            **more(out),
        }

    return trial


def assists() -> bool:
    """Whether the assisted generation of this transformers can be measured. That of 5.15 leaves refused guesses in the
    draft's cache, all but one: it guesses behind what nobody wrote, or fails. 5.14 and 5.16 remove them.
    """
    return not transformers.__version__.startswith("5.15.")


def theirs(
    pair: Pair,
    sampling: Sampling,
    tokens: int,
    assistant_tokens: int | str | None = None,
    lookup_tokens: int | None = None,
    batch_size: int = 1,
    ends: bool = False,
) -> Method:
    """transformers' `generate` as a method: plain, assisted by the draft ("default" or a constant number of tokens), or
    prompt lookup. A list of token ids is decoded `batch_size` prompts at a time, left-padded, one after the other.
    ends: where the target ends its text, instead of after exactly `tokens` tokens.
    """
    model, assistant = pair.target.model, pair.draft.model
    options = {"max_new_tokens": tokens, "pad_token_id": 0, "do_sample": sampling.temperature > 0}
    if sampling.temperature:
        options |= {"temperature": float(sampling.temperature), "top_k": 0}
    if ends:
        options["eos_token_id"] = sorted(pair.target.end_tokens) or None
    if lookup_tokens:
        options["prompt_lookup_num_tokens"] = lookup_tokens
    if assistant_tokens:
        options["assistant_model"] = assistant

    def trial(prompts: str | list[list[int]], seed: int) -> dict:
        torch.manual_seed(seed)
        texts, new = [pair.tokenizer(prompts)["input_ids"]] if isinstance(prompts, str) else prompts, []
        with without_end_of_text(model, assistant):
            if isinstance(assistant_tokens, int):
                constant = {"num_assistant_tokens": assistant_tokens, "num_assistant_tokens_schedule": "constant"}
                assistant.generation_config.update(**constant, assistant_confidence_threshold=0.0)
            began = time.perf_counter()
            for part in (texts[k : k + batch_size] for k in range(0, len(texts), batch_size)):
                most = max(map(len, part))
                padded = torch.tensor([[0] * (most - len(p)) + p for p in part], device=model.device)
                mask = torch.tensor([[0] * (most - len(p)) + [1] * len(p) for p in part], device=model.device)
                new += model.generate(padded, attention_mask=mask, **options)[:, most:].tolist()
            seconds = time.perf_counter() - began
        return {"tokens": sum(map(len, new)), "seconds": seconds, "text": new[0]}

    return trial


@contextmanager
def without_end_of_text(*models) -> Iterator[None]:
    """Within, generation runs to its full length; afterwards each model has its own generation config again."""
    kept = [model.generation_config for model in models]
    for model in models:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for model, config in zip(models, kept, strict=True):
            model.generation_config = config


# a part's name and what does it -> its result, as JSON has it; a journal's keeps it, and does not do it again
Once = Callable[[object, Callable[[], Any]], Any]


def now(name: object, work: Callable[[], Any]) -> Any:
    """`Once` without a journal."""
    return work()


def within(once: Once, part: object) -> Once:
    """The same for what is done within a part: its names need be unique there alone."""
    return lambda name, work: once([part, name], work)


def interleaved(
    methods: Mapping[str | tuple, Method],
    prompts: Sequence[str],
    repeats: int = 1,
    seed: int = 0,
    progress: bool = True,
    between: Callable[[], None] = lambda: None,
    once: Once = now,
) -> pd.DataFrame:
    """Every method on every prompt, taking turns, in an order that rotates: one row per method, prompt and repeat.

    Each method is warmed up once, unrecorded. The fields of a named tuple, such as `Way`, are columns, and a name is
    the method. between: is called before each prompt's first trial, for what is to be measured in the same minutes.
    once: keeps each trial (see `Once`).
    """
    if not methods or not prompts or repeats < 1:
        raise InvalidArgument("interleaved needs at least one method, one prompt and one repeat")
    names, found, warm = list(methods), [], set()
    turns = [(repeat, p) for repeat in range(repeats) for p in range(len(prompts))]
    with tqdm(total=len(turns) * len(names), desc="trials", unit="text", leave=False, disable=not progress) as bar:
        for repeat, p in turns:
            first = (p + repeat) % len(names)
            for k, name in enumerate(names[first:] + names[:first]):

                def trial(k=k, name=name, p=p, repeat=repeat) -> dict:
                    if name not in warm:
                        methods[name](prompts[-1], seed)
                        warm.add(name)
                    if k == 0:
                        between()
                    return methods[name](prompts[p], seed + 1000 * repeat + p)

                about = name._asdict() if isinstance(name, tuple) else {"method": name}
                found.append({**about, "prompt": p, "repeat": repeat, **once([name, p, repeat], trial)})
                bar.update()
    return pd.DataFrame(found)


def by_way(frame: pd.DataFrame, sort: bool = True):
    """A frame's trials grouped by method, or by all columns of a `Way`, if it has them."""
    return frame.groupby(WAY if WAY[1] in frame else WAY[0], sort=sort)


def speedups(frame: pd.DataFrame, baseline: str | Way) -> pd.DataFrame:
    """Tokens/s of each method and its ratio to the baseline's, with a 95% interval over prompts
    (`statistics.jackknife_interval`).

    A prompt left out takes its trials of both methods with it: easy prompts are easy for both.
    """
    groups, rows = by_way(frame, sort=False), {}
    totals = {way: own.groupby("prompt")[["tokens", "seconds"]].sum() for way, own in groups}
    if baseline not in totals:
        raise InvalidArgument(f"the baseline {baseline!r} is not among the methods: {', '.join(map(str, totals))}")
    base = totals[baseline]

    def ratio(sample):
        tokens, seconds, base_tokens, base_seconds = sample.sum(0)
        return (tokens / seconds) / (base_tokens / base_seconds)

    for way, own in totals.items():
        interval = jackknife_interval(np.hstack([own.loc[base.index], base]), ratio)
        speed = {"tokens_per_second": own["tokens"].sum() / own["seconds"].sum(), "speedup": interval.estimate}
        rows[way] = {**speed, "low": interval.low, "high": interval.high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(groups.keys)


def acceptance(frame: pd.DataFrame) -> pd.DataFrame:
    """Alpha (over all positions that verification reached), accepted share and tokens per round of each method that
    drafts.
    """
    found = {}
    for way, own in by_way(frame[frame.get("proposed", pd.Series(0, frame.index)).fillna(0) > 0]):
        found[way] = {
            "alpha": np.average(own["alpha"], weights=own["reached"]),
            "accepted_share": np.average(own["accepted_share"], weights=own["proposed"]),
            "tokens_per_round": own["tokens"].sum() / own["target_forwards"].sum(),
        }
    found = pd.DataFrame.from_dict(found, orient="index", columns=["alpha", "accepted_share", "tokens_per_round"])
    return found.rename_axis(WAY) if found.index.nlevels > 1 else found


def table(frame: pd.DataFrame, baseline: str | Way) -> pd.DataFrame:
    """`speedups` and `acceptance` of each method, and how far its text repeats itself."""
    repeated = by_way(frame.assign(repeated_4_grams=frame["text"].map(repeated_share)))["repeated_4_grams"].mean()
    return speedups(frame, baseline).join(acceptance(frame)).join(repeated)


def rows(frame: pd.DataFrame) -> list[dict]:
    """A frame for JSON: NaN becomes null."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def fastest(methods: Mapping, prompts: Sequence[str], once: Once = now):
    """The key of the method with the most tokens/s on prompts set aside for choosing it."""
    keys = list(methods)
    if len(keys) > 1:
        frame = interleaved({str(k): methods[key] for k, key in enumerate(keys)}, prompts, progress=False, once=once)
        return keys[int(speedups(frame, "0")["tokens_per_second"].idxmax())]
    return keys[0]


def from_rounds(tokens_per_round: float, gamma: int, c: float, ratio: float) -> float:
    """The speed-up by the tokens per round that came, however they came: `theory.speedup`, where each guess that passes
    counts alike, of gamma + 1 of them."""
    return float(tokens_per_round / (gamma + 1) * theory.speedup(1.0, gamma, c, ratio))


def predicted(frame: pd.DataFrame, curve: pd.DataFrame, plain: pd.DataFrame | None = None) -> float:
    """The speed-up over plain decoding that rounds of these widths allow: their tokens, each at the price of one, over
    what forwards of such widths cost by the width `curve`, and the guesses; the prompt costs both the same.

    plain: trials of plain decoding in the same run, whatever its forwards. Then a token's price is what it took there,
    drawing and bookkeeping included, and these count on both sides. Rounds of different lengths have no closed form, so
    they are counted as they came.
    """
    ms = np.interp([width for row in frame["widths"] for width in row], curve["width"], curve["ms"])
    rest, own = 1e3 * frame["prefill_seconds"].sum(), 1e3 * frame["draft_seconds"].sum()
    one = float(np.interp(1, curve["width"], curve["ms"]))
    if plain is not None:
        own += 1e3 * frame["other_seconds"].sum()
        one = 1e3 * (plain["target_seconds"] + plain["other_seconds"]).sum() / plain["tokens"].sum()
    return (rest + frame["tokens"].sum() * one) / (rest + ms.sum() + own)


def predict(alpha: float, tokens_per_round: float, gamma: int, c: float, widths: pd.DataFrame) -> dict[str, float]:
    """The speed-up that theory allows, with each cost added in turn.

    ideal: the formula's tokens per round, drafts free and all widths equal; draft: drafts cost c each; width: a forward
    over gamma + 1 tokens costs what was measured (this is the prediction); rounds: as before, with the tokens per round
    that were seen instead of the formula's, which takes positions as independent and alike.
    """
    times = widths.set_index("width")["ms"]
    ratio = times[gamma + 1] / times[1]
    return {
        "ideal": float(theory.expected_tokens(alpha, gamma)),
        "draft": float(theory.speedup(alpha, gamma, c)),
        "width": float(theory.speedup(alpha, gamma, c, ratio)),
        "rounds": from_rounds(tokens_per_round, gamma, c, ratio),
    }


def repeated_share(tokens: Sequence[int], n: int = 4) -> float:
    """The share of n-grams that occurred before in the same text: how much it repeats itself."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def costs(pair: Pair, widths: Sequence[int] = latency.WIDTHS, context: int = 160) -> tuple[float, pd.DataFrame]:
    """(c, the target's width curve), both measured now; on the compiled backend at the widths that it has programs
    for.
    """
    if pair.target.programs is not None:
        widths = [width for width in widths if width in pair.target.programs.widths]
    return latency.cost_ratio(pair.target, pair.draft, context), latency.width_curve(pair.target, widths, context)


@torch.inference_mode()
def logits_after(target: LanguageModel, text: Sequence[int]) -> torch.Tensor:
    """What the target says of the token that follows a text, on the host. [V], float64"""
    return target.context().extend(torch.tensor([list(text)], device=target.device), keep=1)[0, -1].cpu().double()


@torch.inference_mode()
def overlaps(
    target: LanguageModel, draft: LanguageModel, prompt: str, continuation: Sequence[int], sampling: Sampling
) -> np.ndarray:
    """sum(min(p, q)) = 1 - total variation at every position of a continuation [n], both models reading the same text.

    No speculation happens: this is how similar the two are, and its mean over the target's own text foretells alpha.
    """
    ids = target.tokenizer(prompt)["input_ids"]
    text = torch.tensor([[*ids, *continuation][:-1]], device=target.device)
    p, q = (
        sampling.probabilities(model.context().extend(text, keep=len(continuation))[0, :, : target.vocabulary])
        for model in (target, draft)
    )
    return overlap(p, q).cpu().numpy()


@torch.inference_mode()
def round_means(
    target: LanguageModel,
    drafter: Drafter,
    depth: int,
    texts: Sequence[Sequence[int]],
    places: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
) -> np.ndarray:
    """The mean tokens of a round that starts at each of `places` of each text, given what is guessed there. [texts,
    places]

    Nothing is emitted and the verdict is not drawn: 1 + the mean number of guesses kept, by the rule's own law.
    Different drafters are compared at the same places, so that few texts tell them apart.
    """
    found = []
    for k, text in enumerate(texts):
        context, row = target.context(text), []
        session = drafter.start(context, sampling, seeded(seed + k, target.device))
        context.extend(torch.tensor([list(text[: places[0] - 1])], device=target.device), keep=1)
        for place in places:
            draft = session.propose(list(text[:place]), depth)
            above = draft.parents or range(-1, len(draft.tokens) - 1)
            # tokens of the text in front of the last, read again or for the first time
            kept = place - context.length - 1
            read = torch.tensor([[*text[context.length : place], *draft.tokens.tolist()]], device=target.device)
            parents = [*range(-1, kept), *(parent + kept + 1 for parent in above)]
            p = sampling.probabilities(context.extend(read, parents=parents))[:, kept:]
            context.rollback(place - 1)
            given = p, draft.probs.to(p.dtype)[None], draft.tokens[None]
            law = rules.tree_law(*given, draft.parents) if draft.parents else rules.token_law(*given)
            depths = [0, *(ancestry(above)[1] + 1).tolist()]
            row.append(1 + sum(p * far for p, far in zip(law.stop_probs[0].tolist(), depths, strict=True)))
        found.append(row)
    return np.array(found)


def ladder(
    prompts: int = 20,
    tokens: int = 128,
    dtype: str | None = None,
    backend: str = "eager",
    once: Once = now,
    progress: bool = False,
) -> dict:
    """Every embedded draft against plain decoding on held-out code at temperature 1; three of them also colder, greedy,
    and on prose.

    Each draft guesses as far ahead as the formula advises from its similarity on prompts set aside, its cost and the
    width curve. Returns {"machine", "settings", "widths", "drafts", "summary", "trials"}, ready for JSON.
    """
    target = load_model("target", dtype=dtype, backend=backend)
    drafts = {name: load_model(name, dtype=dtype, backend=backend) for name in draft_names()}
    code, prose = (embedded.prompts(domain) for domain in ("code", "prose"))
    tuning, code, prose = code[-4:], code[:prompts], prose[:prompts]
    curve = once("widths", lambda: rows(latency.width_curve(target, range(1, MAX_LENGTH + 2), 160)))
    widths = pd.DataFrame(curve)
    c = once("c", lambda: {name: latency.cost_ratio(target, draft, 160) for name, draft in drafts.items()})
    names, summaries, trials = list(drafts), [], []
    few = list(dict.fromkeys([names[0], names[len(names) // 2], DEFAULT_DRAFT]))
    cases = ("code", code, 1.0, names), ("code", code, 0.7, few), ("code", code, 0.0, few), ("prose", prose, 1.0, few)
    for domain, texts, temperature, chosen in cases:
        sampling, kept = Sampling(temperature), within(once, [domain, temperature])
        methods, gammas = {"plain": ours(target, None, sampling, 0, tokens)}, {}
        own = interleaved(methods, tuning, progress=False, once=within(kept, "tuning"))["text"]
        for name in chosen:
            similar = [overlaps(target, drafts[name], *pair, sampling) for pair in zip(tuning, own, strict=True)]
            gammas[name] = advised_length(np.concatenate(similar).mean(), c[name], widths)
            methods[name] = ours(target, ModelDrafter(drafts[name]), sampling, gammas[name], tokens)
        frame = interleaved(methods, texts, progress=progress, once=kept).drop(columns=BY_ROUND)
        summary = speedups(frame, "plain").join(acceptance(frame))
        where = {"domain": domain, "temperature": temperature}
        for name, gamma in gammas.items():
            steps = predict(*summary.loc[name, ["alpha", "tokens_per_round"]], gamma, c[name], widths)
            summary.loc[name, ["gamma", "c", *steps]] = [gamma, c[name], *steps.values()]
        summaries.append(summary.reset_index().assign(**where))
        trials.append(frame.assign(**where))
    return {
        "machine": machine(),
        "settings": {"prompts": len(code), "tokens": tokens, "dtype": dtype_of(target), "backend": backend},
        "widths": curve,
        "drafts": [{"draft": name, "parameters": model.parameters, "c": c[name]} for name, model in drafts.items()],
        "summary": rows(pd.concat(summaries)),
        "trials": rows(pd.concat(trials)),
    }


def advised_length(alpha: float, c: float, widths: pd.DataFrame) -> int:
    """The draft length of the greatest predicted speed-up, at least 1, as far as the width curve was measured."""
    price = lambda width: np.interp(width, widths["width"], widths["ms"] / widths["ms"][0])  # noqa: E731
    return max(1, int(theory.optimal_gamma(alpha, c, min(MAX_LENGTH, widths["width"].max() - 1), price)))


OTHERWISE = ("real_model", "gpu", "losses", "spec_bench")  # records that no subcommand of bench makes


def recorded(name: str) -> dict:
    """A recorded measurement, by its file's name without ending, from where `bench` writes it.

    Raises InvalidArgument if there is none, FileError if it is damaged.
    """
    file = embedded.RESULTS / f"{name}.json"
    made = {"bench": "pair", "batches_identity": "batches --identity"}.get(name, name)
    remedy = f"record it with: python -m speclib bench {made}" if name not in OTHERWISE else "data/README.md says how"
    if embedded.CHECKOUT:
        remedy += f", or restore it with: git checkout -- data/results/{name}.json"
    if not file.exists():
        raise InvalidArgument(f"{file} is missing; {remedy}")
    with reading(file, remedy):
        record = json.loads(file.read_text("utf-8"))
    return named(record) if name.startswith("bench") else record


def named(record: dict) -> dict:
    """A record of `bench pair` as it is shown, many backends in one table: a method's name with its backend's."""
    theirs = lambda row: row["backend"] not in BACKENDS  # noqa: E731
    name = lambda row: row["method"] if theirs(row) else f"{row['method']} ({row['backend']})"  # noqa: E731
    tables = [{**t, "methods": [{**row, "method": name(row)} for row in t["methods"]]} for t in record["tables"]]
    return {**record, "tables": tables}


def time_oracle(
    loop: Callable,
    target: LanguageModel,
    oracle: Callable,
    prompt: Sequence[int],
    lengths: Sequence[int],
    tokens: int,
    passes: int = 3,
) -> list[dict]:
    """Times loop(target, oracle, prompt, n, tokens) for each n, taking turns: rows with n, seconds (median), speedup
    over lengths[0], low, high.

    Reading the prompt, which no guess shortens, is timed apart (as 0 tokens) and taken off. low and high are the
    extremes over the passes of the ratio within a pass.
    """

    def timed(n: int, tokens: int) -> dict:
        began = time.perf_counter()
        loop(target, oracle, prompt, n, tokens)
        return {"tokens": tokens, "seconds": time.perf_counter() - began}

    methods = {str(n): lambda text, seed, n=n: timed(n, tokens) for n in lengths}
    frame = interleaved(methods, [prompt], passes, progress=False)
    reading = min(timed(0, 0)["seconds"] for _ in range(5))
    seconds = frame.pivot(index="repeat", columns="method", values="seconds")[list(methods)].to_numpy() - reading
    ratios = seconds[:, :1] / seconds
    columns = np.median(seconds, 0), np.median(ratios, 0), ratios.min(0), ratios.max(0)
    found = pd.DataFrame(dict(zip(("seconds", "speedup", "low", "high"), columns, strict=True)))
    return found.assign(n=list(lengths))[["n", *found]].to_dict("records")
