"""Every drafter on the same prompts, in one interleaved run: what `python -m speclib bench leaderboard` records.

The baseline is plain decoding on the same backend; each drafter's draft length is chosen on prompts of its own. Edits
are written by the target that was taught to (`language_model.EDITOR`): what guesses for it was trained for the plain
target, draft, heads and exits alike.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import nn

from .. import drafters, embedded
from ..errors import SpeclibError
from ..law.distributions import Sampling
from ..loop.lengths import ConfidenceLength, CostAwareLength, FixedLength, Length
from ..model import language_model
from ..model.language_model import LanguageModel, Pair
from ..model.quantized import rounded_copy, weight_bytes
from . import experiments
from .experiments import Method, Once, now, within

# domain and temperature of each table
SETTINGS = (("code", 1.0), ("code", 0.0), ("prose", 1.0), ("edit", 1.0), ("edit", 0.0))
PLANS = {ConfidenceLength: "confidence", CostAwareLength: "costaware"}  # in the table, where a length is no number
WIDEST = 21  # nodes of a tree and one more, as far as the width curve is measured: an ensemble's two chains of 10


@dataclass(frozen=True)
class Entry:
    """A drafter, the lengths to choose from, the rule that checks it, and the memory it needs beside the target's, in
    MB.
    """

    drafter: drafters.Drafter
    lengths: Sequence[int | Length]
    megabytes: float = 0.0
    rule: str = "token"

    def method(self, target: LanguageModel, sampling: Sampling, length: int | Length, tokens: int) -> Method:
        """`experiments.ours` with one of its lengths."""
        return experiments.ours(target, self.drafter, sampling, length, tokens, self.rule)


def memory(held: LanguageModel | nn.Module | drafters.SearchIndex, dtype: torch.dtype) -> float:
    """The memory of weights, kept in this dtype, or of what an index maps, in MB."""
    if isinstance(held, LanguageModel):
        return weight_bytes(held) / 1e6
    if isinstance(held, nn.Module):
        return sum(p.numel() for p in held.parameters()) * dtype.itemsize / 1e6
    return (len(held.tokens) * held.tokens.itemsize + held.places.nbytes) / 1e6


def entries(pair: Pair, costs: tuple[float, dict[int, float]]) -> dict[str, Entry]:
    """Every drafter of the workbook by name. costs: (c of the pair's draft, T(n)/T(1) by n). What is not there to be
    loaded is left out, and said.
    """
    (c, prices), draft, lookup = costs, pair.draft, drafters.LookupDrafter()
    small = language_model.load_model(language_model.ladder()[1], dtype=draft.dtype, backend=draft.backend)
    model, rounded, copies = drafters.ModelDrafter(draft), rounded_copy(draft), drafters.LookupDrafter(16, 3)
    cost_aware = CostAwareLength({n: t for n, t in prices.items() if n <= 9}, c)
    size, tree = memory(draft, draft.dtype), drafters.TreeDrafter(draft, (4, 2, 1, 1), sampled=False, budget=8)
    found = {
        "draft model": Entry(model, (2, 3, 4, 6), size),
        "draft model, block rule": Entry(model, (3, 4, 6), size, "block"),
        "draft model, confidence": Entry(model, (ConfidenceLength(0.3, 8), ConfidenceLength(0.5, 8)), size),
        "draft model, cost-aware": Entry(model, (cost_aware,), size),
        "smaller draft": Entry(drafters.ModelDrafter(small), (2, 4), memory(small, draft.dtype)),
        "draft in int8": Entry(drafters.ModelDrafter(rounded), (2, 4), memory(rounded, draft.dtype)),
        "target's first 4 layers": Entry(drafters.LayerSkipDrafter(4), (1, 2, 3)),
        "prompt lookup": Entry(lookup, (3, 6, 10, 16)),
        "n-gram, counts": Entry(drafters.NgramDrafter(3), (1, 3)),
        "n-gram, likeliest": Entry(drafters.NgramDrafter(3, probabilities="point"), (2, 5)),
        "tree, drawn": Entry(drafters.TreeDrafter(draft, (2, 2, 1, 1)), (2, 4), size),
        "tree, best first": Entry(tree, (3, 4), size),
        "lookup and draft model": Entry(drafters.EnsembleDrafter([lookup, model]), (3, 5, 10), size),
    }

    def lookup_and_eagle(eagle: nn.Module) -> drafters.Drafter:
        return drafters.EnsembleDrafter([lookup, drafters.EagleDrafter(eagle)])

    def lookup_else_eagle(eagle: nn.Module) -> drafters.Drafter:
        return drafters.FallbackDrafter(copies, drafters.EagleDrafter(eagle), most=4)

    heads_tree = partial(drafters.HeadsDrafter, width=3, choices="top")
    optional = {  # what is loaded, and what guesses with it
        "eagle": (drafters.load_eagle, drafters.EagleDrafter, (2, 3, 4, 6)),
        "eagle, block rule": (drafters.load_eagle, drafters.EagleDrafter, (3, 4, 6), "block"),
        "lookup and eagle": (drafters.load_eagle, lookup_and_eagle, (3, 5, 10)),
        "lookup, else eagle": (drafters.load_eagle, lookup_else_eagle, (4, 8, 15)),
        "parallel heads": (drafters.load_heads, drafters.HeadsDrafter, (2, 4)),
        "parallel heads, tree": (drafters.load_heads, heads_tree, (3, 4)),
        "first 4 layers, trained exit": (drafters.load_exits, partial(drafters.LayerSkipDrafter, 4), (1, 2, 3)),
        "retrieval": (drafters.load_index, drafters.RetrievalDrafter, (2, 4, 8)),
    }
    for name, (load, make, lengths, *rule) in optional.items():
        try:
            held = load()
        except SpeclibError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        found[name] = Entry(make(held), lengths, memory(held, draft.dtype), *rule)
    return found


def measure(
    pair: Pair,
    prompts: int = 8,
    tokens: int = 64,
    tuning: int = 2,
    settings: Sequence[tuple[str, float]] = SETTINGS,
    once: Once = now,
    progress: bool = False,
) -> dict:
    """{"machine", "settings", "rows"}: one row per domain, temperature and drafter, with the "target" that wrote the
    text, ready for JSON.

    once: keeps each trial. predicted: as `experiments.predicted`, by the width curve. extra_per_token: target tokens
    computed and thrown away for each emitted one.
    """

    def timed() -> tuple[float, list[dict]]:
        c, widths = experiments.costs(pair, range(1, WIDEST + 1))
        return c, experiments.rows(widths)

    c, curve = once("costs", timed)
    widths = pd.DataFrame(curve)
    prices = dict(zip(widths["width"].tolist(), (widths["ms"] / widths["ms"][0]).tolist(), strict=True))
    found, rows = entries(pair, (c, prices)), []
    for domain, temperature in settings:
        target, sampling, kept = writer(pair.target, domain), Sampling(temperature), within(once, [domain, temperature])
        texts = long_enough(domain, pair.tokenizer, tokens, prompts + tuning)
        methods, lengths = {"plain": experiments.ours(target, None, sampling, 0, tokens)}, {}
        for name, entry in found.items():
            tried = {k: entry.method(target, sampling, length, tokens) for k, length in enumerate(entry.lengths)}
            best = experiments.fastest(tried, texts[-tuning:], within(kept, name))
            methods[name], lengths[name] = tried[best], entry.lengths[best]
        frame = experiments.interleaved(methods, texts[:prompts], progress=progress, once=kept)
        sums = frame.groupby("method")[["tokens", "target_forwards", "proposed", "draft_seconds"]].sum()
        drafting = sums["draft_seconds"] / (widths["ms"][0] / 1e3)
        table = experiments.table(frame, "plain").assign(
            tokens_per_round=sums["tokens"] / sums["target_forwards"],
            cost_ratio=(drafting / sums["proposed"]).where(sums["proposed"] > 0),
            predicted=pd.Series({k: experiments.predicted(own, widths) for k, own in frame.groupby("method")}),
            extra_per_token=(sums["target_forwards"] + sums["proposed"]) / sums["tokens"] - 1,
            length=pd.Series({name: described(length) for name, length in lengths.items()}),
            megabytes=pd.Series({name: entry.megabytes for name, entry in found.items()}),
        )
        about = {"domain": domain, "temperature": temperature, "target": target.name}
        rows += experiments.rows(table.reset_index().assign(**about))
    about = {"prompts": prompts, "tokens": tokens, "target": repr(pair.target), "draft": repr(pair.draft)}
    about["dtype"] = experiments.dtype_of(pair.target)
    return {"machine": experiments.machine(), "settings": about, "rows": rows}


def writer(target: LanguageModel, domain: str) -> LanguageModel:
    """The model whose text is measured: of edits the embedded target that was taught to edit, else `target` itself."""
    if domain != "edit" or target.name != language_model.TARGET:
        return target
    like = {"device": target.device, "dtype": target.dtype, "backend": target.backend}
    return language_model.load_model(language_model.EDITOR, **like)


def long_enough(domain: str, tokenizer, tokens: int, wanted: int) -> list[str]:
    """The domain's prompts, without those whose answers are shorter than `tokens` if `wanted` others are left: behind
    its answer a text may be anything.
    """
    entries = embedded.held_out(domain)
    lasting = [e for e in entries if "answer" not in e or len(tokenizer(e["answer"])["input_ids"]) >= tokens]
    return [entry["text"] for entry in (lasting if len(lasting) >= wanted else entries)]


def described(length: int | Length) -> str:
    """A length in a word or two."""
    if isinstance(length, int | FixedLength):
        return str(getattr(length, "gamma", length))
    return f"{PLANS[type(length)]} {getattr(length, 'threshold', '')}".strip()
