"""Notebook 12, the engine: what a forward waits for on each backend, and the price of one fixed width."""

import pandas as pd

from .common import ACCEPTED, DRAFT, MARKERS, REJECTED, TARGET, exercise, plt, style, tight, width_prices

PARTS = {"memory": (TARGET, ""), "products beyond that": ("#7fb8d9", ".."), "overhead": ("white", "//")}


def waits(table) -> plt.Figure:
    """Milliseconds of a token by what it waits for: a row an engine, columns as in PARTS."""
    figure, axis = plt.subplots(figsize=(9, 0.6 * len(table) + 1.4))
    left = [0.0] * len(table)
    for part, (colour, hatch) in PARTS.items():
        axis.barh(table.index, table[part], left=left, color=colour, hatch=hatch, edgecolor="black", label=part)
        left = [a + b for a, b in zip(left, table[part], strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="ms of a forward over one token")
    axis.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=len(PARTS))
    return tight(figure)


def dtypes(curves) -> plt.Figure:
    """Milliseconds of a fast forward against its tokens: a column a dtype, the index tokens."""
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for marker, name in zip(MARKERS, curves, strict=False):
        axis.plot(curves.index, curves[name], marker + "-", label=name)
    axis.set(xlabel="tokens in one forward", ylabel="ms", ylim=(0, None))
    axis.legend(fontsize=9)
    return tight(figure)


def headline(result: dict) -> plt.Figure:
    """Tokens per second of every method of `python -m speclib bench pair`, one panel a sampling setting (of the first
    dtype and domain), with 95% intervals of the ratio to plain decoding on the same backend.
    """
    style()
    first = result["tables"][0]
    tables = [t for t in result["tables"] if (t["dtype"], t["domain"]) == (first["dtype"], first["domain"])]
    figure, axes = plt.subplots(1, len(tables), figsize=(4.6 * len(tables) + 1.6, 7), sharey=True, squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        rows = table["methods"]
        for k, r in enumerate(rows):
            ours = r["backend"] != "transformers"
            colour = "#999999" if not ours else TARGET if r["method"].startswith("plain") else ACCEPTED
            speed, base = r["tokens_per_second"], r["tokens_per_second"] / r["speedup"]
            axis.barh(r["method"], speed, color=colour, edgecolor="black", linewidth=0.5, hatch="" if ours else "//")
            axis.plot([base * r["low"], base * r["high"]], [k, k], color="black", linewidth=1.5)
            length = f", $\\gamma$ {r['draft_length']:g}" if r["draft_length"] else ""
            axis.text(base * r["high"], k, f" {r['speedup']:.2f}x{length}", va="center", fontsize=11)
        axis.set(
            title=f"T = {table['temperature']:g}" if table["temperature"] else "greedy", xlabel="tokens per second"
        )
        axis.set_xlim(0, 1.35 * max(r["tokens_per_second"] / r["speedup"] * r["high"] for r in rows))
    axes[0][0].invert_yaxis()
    where = result["machine"]["gpu"] or f"{result['machine']['cpu']}, {result['machine']['threads']} threads"
    figure.suptitle(
        f"One pair, many ways to decode it; times over plain decoding on the same backend ({where}, {first['dtype']})",
        fontsize=12,
    )
    return tight(figure)


def methods_of(record: dict, dtype: str, methods: tuple[str, ...]) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each recorded table of one dtype: the methods whose names begin so, with readable columns."""
    found = []
    for table in (t for t in record["tables"] if t["dtype"] == dtype):
        rows = pd.DataFrame(table["methods"]).rename(columns={"share_of_predicted": "of predicted"})
        rows["interval"] = [f"[{a:.2f}, {b:.2f}]" for a, b in zip(rows["low"], rows["high"], strict=True)]
        title = f"{dtype}, " + (f"temperature {table['temperature']:g}" if table["temperature"] else "greedy")
        found.append((title, rows[rows["method"].str.startswith(methods)]))
    return found


def growth(record: dict) -> plt.Figure:
    """Milliseconds per token by phase, against the length of the text, the draft length and the vocabulary (`python -m
    speclib bench growth`).
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for axis, (name, unit) in zip(
        axes,
        (("length", "tokens in the prompt"), ("gamma", "draft length"), ("vocabulary", "tokens in the vocabulary")),
        strict=True,
    ):
        rows = [r for r in record[name] if r["gamma"] or name == "gamma"]
        x = [r["value"] for r in rows]
        for phase, marker, colour in (("target", "o", TARGET), ("draft", "s", DRAFT), ("other", "^", REJECTED)):
            label = {"other": "loop: drawing, rule, record"}.get(phase, phase)
            axis.plot(x, [r[phase] for r in rows], marker=marker, color=colour, label=label)
        plain = [r for r in record[name] if not r["gamma"]]
        if name == "gamma":
            axis.axhline(plain[0]["target"], color="black", linestyle=":", label="plain decoding")
        else:
            curve = pd.DataFrame(plain)
            axis.plot(curve["value"], curve["target"], ":x", color="black", label="plain decoding")
            axis.set_xscale("log", base=2)
        axis.set(xlabel=unit, ylim=(0, None))
    axes[0].set_ylabel("ms per new token")
    axes[1].set_xticks(range(0, 17, 4))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1), ncol=4)
    return tight(figure)


def _rates(r) -> tuple:
    """Some ways to decode, plain ones among them: (method, backend, dtype, tokens/s)."""
    ways = [(m, b, d) for m in ("plain", "eagle", "lookup") for b in ("eager", "fast") for d in ("float32", "bfloat16")]
    taken = r.sample(ways, r.randint(3, 12))
    if all(m == "plain" for m, _, _ in taken) or all(m != "plain" for m, _, _ in taken):
        taken = [("plain", "fast", "bfloat16"), ("eagle", "eager", "float32")]
    return ([(*way, round(r.uniform(20, 300), 1)) for way in taken],)


@exercise(
    "the best over the best, whatever each runs on",
    [
        (([("plain", "fast", "float32", 100.0), ("eagle", "fast", "float32", 180.0)],), "one engine: 180 / 100"),
        (
            (
                [
                    ("plain", "eager", "float32", 50.0),
                    ("plain", "fast", "bfloat16", 120.0),
                    ("eagle", "eager", "float32", 110.0),
                ],
            ),
            "2.2 on its own backend; over the best plain decoding it loses",
        ),
        (
            (
                [
                    ("eagle", "eager", "float32", 90.0),
                    ("plain", "fast", "float32", 100.0),
                    ("lookup", "fast", "bfloat16", 150.0),
                ],
            ),
            "the fastest guesser counts, not the first",
        ),
    ],
    _rates,
)
def honest_headline(rates):
    """The fastest speculative decoding over the fastest plain decoding."""
    plain = max(rate for method, _, _, rate in rates if method == "plain")
    return max(rate for method, _, _, rate in rates if method != "plain") / plain


def _shares(r) -> tuple:
    whole = round(r.uniform(2, 40), 1)
    products = round(whole * r.random(), 2)
    return round(r.uniform(20, 400), 1), round(r.uniform(5, 60), 1), products, whole


@exercise(
    "three shares that add up to one",
    [
        ((80.0, 20.0, 6.0, 10.0), "80 MB at 20 GB/s are 4 ms: .4, .2, .4"),
        ((80.0, 20.0, 4.0, 10.0), "the products wait for memory and nothing else: .4, 0, .6"),
        ((80.0, 20.0, 3.0, 10.0), "products quicker than memory lie in a cache: .3, 0, .7"),
    ],
    _shares,
)
def wait_shares(megabytes, gigabytes_per_second, products_ms, whole_ms):
    """Shares of a token: memory, products beyond it, overhead."""
    memory = min(products_ms, megabytes / gigabytes_per_second)
    return [part / whole_ms for part in (memory, products_ms - memory, whole_ms - products_ms)]


def _fixed(r) -> tuple:
    T = width_prices(r)
    return T, r.randint(1, 15), round(r.uniform(1, 5), 2), round(r.uniform(0, 0.4), 2)


@exercise(
    "what identity to the bit costs each of the two",
    [
        (({1: 1.0, 4: 1.2, 5: 1.3}, 3, 2.4, 0.0), "plain 1 / 1.2; speculative 2.4 / 1.2: the ratio is 2.4"),
        (({1: 1.0, 4: 1.2, 5: 1.3}, 3, 2.4, 0.1), "a round of three guesses costs 0.3 + 1.2"),
        (({4: 2.0, 1: 1.0, 2: 1.1}, 1, 1.7, 0.2), "one guess: both read two tokens, T(2) = 1.1"),
    ],
    _fixed,
)
def at_fixed_width(T, gamma, tokens_per_round, c):
    """Tokens per ordinary plain step, plain and speculative, when every forward reads gamma + 1 tokens."""
    width = T[gamma + 1] / T[1]
    return [1 / width, tokens_per_round / (gamma * c + width)]
