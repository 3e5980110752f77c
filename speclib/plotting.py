"""Every figure of the workbook, one function each. Colour-blind palette, a second cue beside colour, opaque background."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.transforms import Bbox

from . import statistics, theory

TARGET, DRAFT, ACCEPTED, REJECTED, PREDICTED = sns.color_palette("colorblind", 10).as_hex()[0:5]


def style() -> None:
    """One look for all figures: call it once, after the imports."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (8, 4.2), "figure.dpi": 90, "savefig.dpi": 150, "figure.facecolor": "white", "axes.facecolor": "white", "legend.frameon": True})


def headline(result: dict) -> plt.Figure:
    """Tokens per second of every method of `python -m speclib bench`, one panel a sampling setting (of the first dtype and domain), with
    95% intervals of the ratio to plain decoding on the same backend."""
    style()
    first = result["tables"][0]
    tables = [t for t in result["tables"] if (t["dtype"], t["domain"]) == (first["dtype"], first["domain"])]
    figure, axes = plt.subplots(1, len(tables), figsize=(4.3 * len(tables) + 1, 4.6), sharey=True, squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        rows = table["methods"]
        for k, r in enumerate(rows):
            ours = not r["method"].startswith("transformers")
            colour = "#999999" if not ours else TARGET if r["method"].startswith("plain") else ACCEPTED
            speed, base = r["tokens_per_second"], r["tokens_per_second"] / r["speedup"]
            axis.barh(r["method"], speed, color=colour, edgecolor="black", linewidth=0.5, hatch="" if ours else "//")
            axis.plot([base * r["low"], base * r["high"]], [k, k], color="black", linewidth=1.5)
            length = f", $\\gamma$ {r['draft_length']:g}" if r["draft_length"] else ""
            axis.text(base * r["high"], k, f" {r['speedup']:.2f}x{length}", va="center", fontsize=9)
        axis.set(title=f"T = {table['temperature']:g}" if table["temperature"] else "greedy", xlabel="tokens per second")
        axis.set_xlim(0, 1.35 * max(r["tokens_per_second"] / r["speedup"] * r["high"] for r in rows))
    axes[0][0].invert_yaxis()
    where = result["machine"]["gpu"] or f"{result['machine']['cpu']}, {result['machine']['threads']} threads"
    figure.suptitle(f"One pair, many ways to decode it; times over plain decoding on the same backend ({where}, {first['dtype']})", fontsize=12)
    figure.tight_layout()
    return figure


def race(traces: list, labels: tuple[str, ...] = ("speculative", "plain"), until: float | None = None) -> plt.Figure:
    """Tokens written against seconds, a step a round, for several traces of the same prompt; up to `until` seconds if given."""
    style()
    figure, axis = plt.subplots()
    for trace, label, colour, line in zip(traces, labels, (ACCEPTED, TARGET), ("-", "--"), strict=True):
        times, tokens = [trace.prefill_seconds], [0]
        for r in trace.rounds:
            times.append(times[-1] + r.seconds)
            tokens.append(tokens[-1] + len(r.emitted))
        shown = [k for k, t in enumerate(times) if until is None or t <= until]
        axis.step([times[k] for k in shown], [tokens[k] for k in shown], where="post", color=colour, linestyle=line, label=f"{label}, {len(trace.rounds)} target forwards")
        if shown:
            axis.plot(times[shown[-1]], tokens[shown[-1]], "o" if label == labels[0] else "s", color=colour)
    axis.set(xlabel="seconds", ylabel="new tokens", title="The same target, the same prompt, on this machine")
    axis.set_xlim(0, 1.03 * max(t.seconds for t in traces))
    axis.set_ylim(0, 1.05 * max(sum(len(r.emitted) for r in t.rounds) for t in traces))
    axis.legend(loc="upper left")
    figure.tight_layout()
    return figure


def two_distributions(p, q, names: list[str] | None = None, axis: plt.Axes | None = None) -> plt.Axes:
    """Bars of p (target) and q (draft) over the same tokens [V], their overlap dark, what p has above q hatched."""
    if axis is None:
        _, axis = plt.subplots()
    p, q = [float(v) for v in p], [float(v) for v in q]
    places = range(len(p))
    axis.bar(places, p, 0.8, color=TARGET, alpha=0.35, edgecolor=TARGET, linewidth=1.5, label="target p")
    axis.bar(places, [max(a - b, 0) for a, b in zip(p, q, strict=True)], 0.8, bottom=[min(a, b) for a, b in zip(p, q, strict=True)],
             color="none", edgecolor=TARGET, hatch="///", linewidth=0, label="p above q: the residual")  # fmt: skip
    axis.bar(places, [min(a, b) for a, b in zip(p, q, strict=True)], 0.8, color=ACCEPTED, alpha=0.75, label="overlap min(p, q)")
    axis.plot(places, q, linestyle="none", marker="_", markersize=34 if len(p) < 8 else 22, markeredgewidth=3, color=DRAFT, label="draft q")
    axis.set_xticks(list(places), names or [str(k) for k in places])
    axis.set(xlabel="token", ylabel="probability")
    axis.legend(fontsize=9, markerscale=0.5)
    return axis


def position(record: dict, tokenizer, top: int = 8) -> plt.Figure:
    """One drafted position, from `widgets.record_rounds`: p and q over the tokens that either finds probable, and what happened."""
    figure, axis = plt.subplots(figsize=(8.5, 4.2))
    p, q, drafted = record["p"], record["q"], record["drafted"]
    marks = {record["replacement"]: "\n(drawn\ninstead)", drafted: "\n(drafted)"}
    shown = [t for t in (p + q).topk(top).indices.tolist() if t not in marks]
    named = [t for t in marks if t is not None]
    shown = sorted(named + shown[: top - len(named)], key=lambda t: -float(p[t] + q[t]))
    names = [repr(tokenizer.decode([t]))[1:-1].replace("$", r"\$") + marks.get(t, "") for t in shown]
    two_distributions(p[shown], q[shown], names, axis)
    axis.set_title(record["title"], fontsize=11)
    figure.tight_layout()
    return figure


def baselines(clocks: dict[str, list[float]], where: str = "this machine") -> plt.Figure:
    """Seconds at which each token was there, a line a program, and how many times as fast the last program is as each other one.

    clocks: name -> seconds by token, the program that is praised last; `where` names the machine.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    best = np.array(list(clocks.values())[-1])
    tokens = np.arange(1, len(best) + 1)
    for (name, seconds), colour, line in zip(clocks.items(), (REJECTED, TARGET, ACCEPTED), (":", "--", "-"), strict=True):
        left.plot(tokens, seconds, color=colour, linestyle=line, linewidth=2, label=name)
        if name != list(clocks)[-1]:
            right.plot(tokens[8:], (np.array(seconds) / best)[8:], color=colour, linestyle=line, linewidth=2, label=f"over {name}")
    right.axhline(1, color="black", linewidth=1)
    left.set(xlabel="new tokens", ylabel="seconds, with the prompt", title="One text, three programs")
    right.set(xlabel="new tokens", ylabel="times as fast", title="The speed-up of the same program")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.legend(fontsize=9)
    figure.suptitle(where, fontsize=10)
    figure.tight_layout()
    return figure


# --- notebook 05 -------------------------------------------------------------------------------------------------------

MARKERS = "osD^vPX*"


def similarity_histogram(betas: dict[str, list[float]]) -> plt.Figure:
    """How often a draft is how similar to the target: sum(min(p, q)) at each position, one panel a draft, its mean marked."""
    figure, axes = plt.subplots(1, len(betas), figsize=(4 * len(betas), 3.4), sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes[0], betas.items(), strict=True):
        mean = sum(values) / len(values)
        axis.hist(values, bins=20, range=(0, 1), weights=[1 / len(values)] * len(values), color=DRAFT, edgecolor="white")
        axis.axvline(mean, color="black", linestyle="--", label=f"mean {mean:.2f}")
        axis.set(title=name, xlabel="1 - TV(p, q) at a position")
        axis.legend()
    axes[0, 0].set_ylabel("share of positions")
    figure.tight_layout()
    return figure


def dial(points, gamma: int) -> plt.Figure:
    """Tokens per round against alpha: theory's curve, and points (columns alpha, tokens_per_round, low, high) measured by turning the dial."""
    figure, axis = plt.subplots()
    alphas = np.linspace(0, 1, 200)
    axis.plot(alphas, theory.expected_tokens(alphas, gamma), color=PREDICTED, label="(1 - alpha^(gamma+1)) / (1 - alpha)")
    spread = [points["tokens_per_round"] - points["low"], points["high"] - points["tokens_per_round"]]
    axis.errorbar(points["alpha"], points["tokens_per_round"], yerr=spread, fmt="o", color=ACCEPTED, capsize=3, label="measured, 95% over prompts")
    axis.set(xlabel="alpha", ylabel="tokens per round", title=f"The dial: similarity set by hand, gamma = {gamma}", ylim=(0.9, gamma + 1.3))
    axis.legend(loc="upper left")
    figure.tight_layout()
    return figure


def ladder(drafts) -> plt.Figure:
    """Speed-up against alpha, one marker a draft (columns method, alpha, speedup, low, high, c), larger for a more costly one."""
    figure, axis = plt.subplots(figsize=(9, 4.6))
    for k, row in enumerate(drafts.sort_values("alpha").itertuples()):
        colour, marker = f"C{k}", MARKERS[k % len(MARKERS)]
        axis.errorbar(row.alpha, row.speedup, yerr=[[row.speedup - row.low], [row.high - row.speedup]], color=colour, capsize=3)
        label = f"{row.method.removeprefix('draft-')}, c = {row.c:.2f}"
        axis.scatter(row.alpha, row.speedup, s=40 + 500 * row.c, color=colour, marker=marker, edgecolor="black", label=label, zorder=3)
    axis.axhline(1, color="black", linestyle=":", label="plain decoding")
    axis.set(xlabel="alpha", ylabel="speed-up over cached plain decoding", title="The ladder: measured, with 95% intervals over prompts (larger mark: larger c)")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    figure.tight_layout()
    return figure


def predicted_and_measured(table) -> plt.Figure:
    """Measured against predicted speed-up (columns condition, width, speedup, low, high), with the diagonal and 90% of it."""
    figure, axis = plt.subplots(figsize=(6, 5))
    for k, (condition, rows) in enumerate(table.groupby("condition", sort=False)):
        spread = [rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]]
        axis.errorbar(rows["width"], rows["speedup"], yerr=spread, fmt=MARKERS[k], color=f"C{k}", capsize=3, label=condition)
    ends = [0.95 * min(table["width"].min(), table["low"].min()), 1.05 * max(table["width"].max(), table["high"].max())]
    axis.plot(ends, ends, color="black", label="measured = predicted")
    axis.plot(ends, [0.9 * end for end in ends], color="black", linestyle=":", label="90% of it")
    axis.set(xlabel="predicted from alpha, c and the width curve", ylabel="measured", title="Speed-up over plain decoding")
    axis.legend()
    figure.tight_layout()
    return figure


def decomposition(steps: dict[str, float], title: str) -> plt.Figure:
    """A waterfall from the ideal speed-up to the measured one. `steps`: label -> the speed-up when that is also counted."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    labels, values = list(steps), list(steps.values())
    for k, (value, before) in enumerate(zip(values, [None, *values[:-1]], strict=True)):
        whole = k in (0, len(values) - 1)
        if not whole:
            axis.bar(k, abs(value - before), bottom=min(value, before), color=REJECTED if value < before else ACCEPTED, hatch="//" if value < before else "..", edgecolor="black")
        else:
            axis.bar(k, value, color=PREDICTED if k == 0 else TARGET, edgecolor="black")
        axis.text(k, max(value, value if whole else before) + 0.02 * max(values), f"{value:.2f}x", ha="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axis.axhline(1, color="black", linestyle=":")
    axis.set(ylabel="speed-up", title=title, ylim=(0, 1.15 * max(values)))
    axis.set_xticks(range(len(labels)), labels, fontsize=9)
    figure.tight_layout()
    return figure


def speed_map(points, alpha: float | None = None, gamma: int | None = None, c: float = 0.1, title: str = "The map of theory, best gamma") -> plt.Figure:
    """Theory's speed-up against alpha, with measured and published points (columns label, kind, alpha, speedup).

    Without `gamma`: curves of the best gamma for several c. With it: the curve of that gamma and c, and one point at `alpha`.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.8))
    grid = np.linspace(0, 0.97, 195)
    if gamma is None:
        for cost, line in ((0.0, "-"), (0.05, "--"), (0.1, "-."), (0.3, ":")):
            best = theory.speedup(grid, theory.optimal_gamma(grid, cost), cost)
            axis.plot(grid, best, linestyle=line, color=PREDICTED, label=f"theory, c = {cost:g}")
    else:
        axis.plot(grid, theory.speedup(grid, gamma, c), color=PREDICTED, label=f"theory, gamma = {gamma}, c = {c:g}")
        axis.plot(alpha, theory.speedup(alpha, gamma, c), "o", color="black", markersize=10, label=f"alpha = {alpha:g}: {theory.speedup(alpha, gamma, c):.2f}x")
    for (kind, rows), colour, marker in zip(points.groupby("kind", sort=False), (TARGET, DRAFT, ACCEPTED), "osD", strict=False):
        axis.scatter(rows["alpha"], rows["speedup"], color=colour, marker=marker, edgecolor="black", label=kind, zorder=3)
    axis.axhline(1, color="black", linewidth=1)
    axis.set(xlabel="alpha", ylabel="speed-up", title=title, ylim=(0, 5), xlim=(0, 1))
    axis.legend(loc="upper left", fontsize=9)
    figure.tight_layout()
    return figure


def claim(table, where: str = "this machine") -> plt.Figure:
    """Speed-up against the number of right guesses: measured with its spread, the n + 1 claim, and the width curve's prediction.

    table has the columns n, speedup, low, high, claim, width_curve; `where` names the machine.
    """
    figure, axis = plt.subplots()
    axis.plot(table["n"], table["claim"], linestyle=":", color=REJECTED, label="the claim: n + 1")
    axis.plot(table["n"], table["width_curve"], linestyle="--", marker="s", markersize=5, color=PREDICTED, label="predicted: (n + 1) T(1) / T(n + 1)")
    spread = [table["speedup"] - table["low"], table["high"] - table["speedup"]]
    axis.errorbar(table["n"], table["speedup"], yerr=spread, marker="o", capsize=3, color=ACCEPTED, label="measured: median, smallest and largest")
    axis.set(xlabel="right guesses a round, n", ylabel="speed-up over cached plain decoding")
    axis.set_title(f"A perfect oracle that costs nothing\n{where}", fontsize=11)
    axis.legend()
    figure.tight_layout()
    return figure


def wrong_guesses(table, where: str = "this machine") -> plt.Figure:
    """Speed-up against the probability a that a guess is right, for each number n of guesses: measured with spread, predicted, break-even.

    table has the columns a, n, speedup, low, high, predicted; `where` names the machine.
    """
    figure, axis = plt.subplots()
    for (n, rows), colour, marker in zip(table.groupby("n"), (ACCEPTED, TARGET), "os", strict=False):
        spread = [rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]]
        axis.errorbar(rows["a"], rows["speedup"], yerr=spread, fmt=marker, capsize=3, color=colour, label=f"{n} guesses a round, measured")
        axis.plot(rows["a"], rows["predicted"], linestyle="--", color=colour, label=f"{n} guesses a round, predicted")
    axis.axhline(1, color="black", linewidth=1.5, linestyle=":", label="plain decoding")
    axis.set(xlabel="probability a that a guess is right", ylabel="speed-up over cached plain decoding", yscale="log")
    axis.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.set_title(f"Free guesses, some of them wrong\n{where}", fontsize=11)
    axis.legend(fontsize=9)
    figure.tight_layout()
    return figure


def priced_oracle(times, quality: float, prices: tuple[float, ...]) -> plt.Figure:
    """Predicted speed-up against the number of guesses, a line a price, the best of each marked.

    times: milliseconds by width (a Series); quality: how often a guess is right; prices: a guess over a target forward.
    """
    lengths = [width - 1 for width in times.index]
    figure, axis = plt.subplots(figsize=(7.5, 3.6))
    for k, price in enumerate(prices):
        speed = [float(theory.speedup(quality, n, price, times[n + 1] / times[1])) for n in lengths]
        best = max(range(len(lengths)), key=speed.__getitem__)
        label = f"a guess costs {price:g}: best {lengths[best]} guesses, {speed[best]:.2f}x"
        axis.plot(lengths, speed, marker=MARKERS[k], markersize=4, linestyle=("-", "--", "-.")[k % 3], color=f"C{k}", label=label)
        axis.plot(lengths[best], speed[best], marker=MARKERS[k], markersize=11, color=f"C{k}", markeredgecolor="black")
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="guesses a round", ylabel="predicted speed-up", title=f"Guesses right with probability {quality:g}")
    axis.margins(y=0.08)  # the best is marked by a large dot
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=9)
    figure.tight_layout()
    return figure


def joint_histograms(counted: dict, law: dict) -> plt.Figure:
    """Shares of each text, one panel per set of counts, with 99.9% intervals, and the exact probabilities as dots."""
    figure, axes = plt.subplots(1, len(counted), figsize=(5.2 * len(counted), 3.8), sharey=True)
    texts = sorted(law, key=law.get, reverse=True)
    places = range(len(texts))
    for axis, (name, counts) in zip(axes, counted.items(), strict=True):
        seen = [counts.get(text, 0) for text in texts]
        low, high = statistics.cell_intervals(seen, level=0.999)
        shares = [c / sum(seen) for c in seen]
        errors = [[max(s - lo, 0) for s, lo in zip(shares, low, strict=True)], [max(h - s, 0) for s, h in zip(shares, high, strict=True)]]
        outside = [not lo <= law[text] <= h for text, lo, h in zip(texts, low, high, strict=True)]
        axis.bar(places, shares, color=[REJECTED if out else ACCEPTED for out in outside], alpha=0.6, yerr=errors, ecolor="black", error_kw={"linewidth": 0.8})
        axis.plot(places, [law[text] for text in texts], "D", color="black", markersize=4, label="exact probability")
        axis.set(title=f"{name}: {sum(outside)} of {len(texts)} cells outside", xlabel="text of three tokens, most probable first")
        axis.legend()
    axes[0].set_ylabel("share of texts")
    figure.tight_layout()
    return figure


def power_curve(cells: tuple[int, ...]) -> plt.Figure:
    """Samples that a G-test needs to see a total variation, one line per number of cells (significance 1e-6, power 99.9%)."""
    figure, axis = plt.subplots()
    variations = [0.001 * 1.3**k for k in range(20)]
    for count, line in zip(cells, ("-", "--", "-."), strict=True):
        needed = [statistics.samples_for_variation(v, count) for v in variations]
        axis.loglog(variations, needed, linestyle=line, label=f"{count} cells")
    axis.axhline(2e6, color="black", linestyle=":", linewidth=1)
    axis.text(variations[-1], 2.2e6, "2,000,000: this project's tests", ha="right", fontsize=9)
    axis.set(xlabel="total variation to be seen", ylabel="samples needed", title="Significance one in a million, power 99.9%")
    axis.legend()
    figure.tight_layout()
    return figure


def museum(table) -> plt.Figure:
    """Each exhibit's samples needed against its exact total variation from the right law, with its name."""
    figure, axis = plt.subplots(figsize=(8.5, 5))
    ordered = table.sort_values("samples")
    axis.barh(ordered.index, ordered["samples"], color=REJECTED, alpha=0.6, edgecolor="black", linewidth=0.5)
    for k, (samples, variation) in enumerate(zip(ordered["samples"], ordered["variation"], strict=True)):
        axis.text(samples, k, f" {int(samples):,} texts; variation {variation:.3f}", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlim(10, 30 * ordered["samples"].max())
    axis.set(xlabel="texts of three tokens that catch it (log scale)", title="The museum: what it takes to notice")
    figure.tight_layout()
    return figure


def cached_against_uncached(rows: list[dict]) -> plt.Figure:
    """Milliseconds for one more token against the length of the text, with and without a cache."""
    figure, axis = plt.subplots()
    lengths = [r["length"] for r in rows]
    axis.plot(lengths, [r["uncached"] for r in rows], marker="s", linestyle="--", color=REJECTED, label="no cache: read everything again")
    axis.plot(lengths, [r["cached"] for r in rows], marker="o", color=ACCEPTED, label="cached: read the newest token")
    axis.set(xlabel="tokens in the text", ylabel="ms for one more token", ylim=(0, None), title="What the key-value cache saves, on this machine")
    axis.legend()
    figure.tight_layout()
    return figure


def width_curve(table, mark: int | None = None) -> plt.Figure:
    """Milliseconds of a forward against its width, with quartiles; the dotted line is one forward per token."""
    figure, axis = plt.subplots()
    axis.fill_between(table["width"], table["low"], table["high"], color=TARGET, alpha=0.25, label="middle half")
    axis.plot(table["width"], table["ms"], marker="o", color=TARGET, label="one forward over n tokens")
    one = table["ms"].iloc[0]
    axis.plot(table["width"], one * table["width"], linestyle=":", color="black", label="n forwards over one")
    if mark is not None:
        row = table[table["width"] == mark].iloc[0]
        axis.plot(mark, row["ms"], "D", color=REJECTED, markersize=11)
        axis.set_title(f"{mark} token{'s' * (mark > 1)}: {row['ms']:.1f} ms, {row['ms'] / one:.2f} times one, {row['ms'] / mark:.2f} ms a token")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens in one forward, n", ylabel="ms", ylim=(0, 1.4 * table["high"].max()))
    axis.legend()
    figure.tight_layout()
    return figure


def layouts(table, floor: float) -> plt.Figure:
    """Milliseconds of the same products against the rows they are computed for, a line for each value of `weights`; floor: ms that reading the weights takes."""
    figure, axis = plt.subplots()
    sns.lineplot(table, x="rows", y="ms", hue="weights", style="weights", markers=True, dashes=False, ax=axis)
    axis.axhline(floor, linestyle="--", color="black", label="reading the weights from memory")
    axis.set(xlabel="rows (tokens in one forward)", ylabel="all products, ms", ylim=(0, 1.4 * table["ms"].max()))
    axis.legend()
    figure.tight_layout()
    return figure


def where_time_goes(profiles: dict) -> plt.Figure:
    """The parts of one forward, from `latency.profile`, one bar for each name in `profiles`."""
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.8 * len(profiles)))
    hatches = ("", "//", "..", "xx", "--", "\\\\")
    for row, (name, table) in enumerate(profiles.items()):
        left = 0.0
        for k, part in enumerate(table.itertuples()):
            label = part.kind if row == 0 else None
            axis.barh(name, part.ms, left=left, label=label, color=sns.color_palette("colorblind")[k], hatch=hatches[k % len(hatches)], edgecolor="white")
            left += part.ms
        axis.text(left, row, f" {left:.1f} ms", va="center")
    axis.set(xlabel="ms of one forward over one token")
    axis.set_xlim(0, 1.12 * axis.get_xlim()[1])
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncol=3, fontsize=9)
    figure.tight_layout()
    return figure


def growth(record: dict) -> plt.Figure:
    """Milliseconds per token by phase, against the length of the text, the draft length and the vocabulary (`python -m speclib bench --growth`)."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for axis, (name, unit) in zip(axes, (("length", "tokens in the prompt"), ("gamma", "draft length"), ("vocabulary", "tokens in the vocabulary")), strict=True):
        rows = [r for r in record[name] if r["gamma"] or name == "gamma"]
        x = [r["value"] for r in rows]
        for phase, marker, colour in (("target", "o", TARGET), ("draft", "s", DRAFT), ("other", "^", REJECTED)):
            axis.plot(x, [r[phase] for r in rows], marker=marker, color=colour, label={"other": "loop: drawing, rule, record"}.get(phase, phase))
        plain = [r for r in record[name] if not r["gamma"]]
        if name == "gamma":
            axis.axhline(plain[0]["target"], color="black", linestyle=":", label="plain decoding")
        else:
            axis.plot([r["value"] for r in plain], [r["target"] for r in plain], color="black", linestyle=":", marker="x", label="plain decoding")
            axis.set_xscale("log", base=2)
        axis.set(xlabel=unit, ylim=(0, None))
    axes[0].set_ylabel("ms per new token")
    axes[1].set_xticks(range(0, 17, 4))
    axes[2].legend(fontsize=9)
    figure.tight_layout()
    return figure


def roofline(roof: dict, table, counts: list[tuple[int, int]]) -> plt.Figure:
    """The machine's two limits, and forwards of each width between them. counts: (bytes, operations) of each row of the table."""
    figure, axis = plt.subplots()
    intensity = [operations / read for read, operations in counts]
    speed = [operations / (1e6 * ms) for (_, operations), ms in zip(counts, table["ms"], strict=True)]
    grid = [min(intensity) / 2 * 1.2**k for k in range(45)]
    axis.loglog(grid, [min(roof["bytes_per_second"] * x, roof["operations_per_second"]) / 1e9 for x in grid], color="black", label="memory, then arithmetic")
    axis.loglog(intensity, speed, "o", color=TARGET, label="forwards of this model")
    for width in (1, 8, 64):
        k = list(table["width"]).index(width)
        axis.annotate(f"{width} token{'s' if width > 1 else ''}", (intensity[k], speed[k]), textcoords="offset points", xytext=(6, -14), fontsize=9)
    axis.set(xlabel="operations per byte of weights read", ylabel="GFLOP/s", title="Roofline, measured on this machine")
    axis.legend()
    figure.tight_layout()
    return figure


def repair_race(table) -> plt.Figure:
    """Speed-up of each guesser with its interval, a panel a way of sampling, beside the three predictions: formula, rounds, predicted."""
    kinds = list(dict.fromkeys(table["sampling"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(9.5, 3.6), sharex=True, sharey=True, squeeze=False)
    marks = (("formula", "^", "formula, from alpha alone"), ("rounds", "s", "tokens per round as seen"), ("predicted", "D", "and the encoders"))
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = table[table["sampling"] == kind].reset_index()
        axis.barh(rows["method"], rows["speedup"], color=ACCEPTED, edgecolor="black", linewidth=0.5, height=0.5, label="measured, 95% interval")
        axis.errorbar(rows["speedup"], rows.index, xerr=[rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]], fmt="none", color="black", capsize=4)
        for shift, (column, marker, label) in zip((0.33, 0, -0.33), marks, strict=True):
            axis.plot(rows[column], rows.index + shift, marker, color="white", markeredgecolor=TARGET, markeredgewidth=2, markersize=8, label=label)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(title=kind, xlabel="times as fast as plain decoding")
    axes[0][0].set_ylim(-0.6, len(rows) - 0.4)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    return figure


def best_length(measured, curve: list[float], alpha: float) -> plt.Figure:
    """Speed-up against draft length: the formula's line, measured points with their intervals."""
    figure, axis = plt.subplots()
    axis.plot(range(1, len(curve) + 1), curve, "--o", color=PREDICTED, markersize=4, label=f"predicted at alpha {alpha:.2f}")
    error = [measured["speedup"] - measured["low"], measured["high"] - measured["speedup"]]
    axis.errorbar(measured["gamma"], measured["speedup"], yerr=error, fmt="s", capsize=3, color=ACCEPTED, label="measured, 95% over prompts")
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="draft length gamma", ylabel="times plain decoding", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    return figure


def streaks(runs: list[int], alpha: float, gamma: int) -> plt.Figure:
    """How many guesses passed in a round, against the law of independent coins of the same alpha."""
    figure, axis = plt.subplots()
    counts = np.bincount(runs, minlength=gamma + 1)
    low, high = np.array([statistics.wilson(int(k), len(runs)) for k in counts]).T
    share = counts / len(runs)
    axis.bar(range(gamma + 1), share, color=ACCEPTED, edgecolor="black", linewidth=0.5, label=f"{len(runs)} rounds, with 95% intervals")
    axis.errorbar(range(gamma + 1), share, yerr=[np.maximum(share - low, 0), np.maximum(high - share, 0)], fmt="none", color="black", capsize=3)
    coins = [alpha**k * (1 - alpha) for k in range(gamma)] + [alpha**gamma]
    axis.plot(range(gamma + 1), coins, "D--", color=REJECTED, label=f"independent coins, alpha {alpha:.2f}")
    axis.set(xlabel=f"accepted guesses of {gamma}", ylabel="share of rounds")
    axis.legend()
    figure.tight_layout()
    return figure


def plans(table) -> plt.Figure:
    """Tokens per plain step of each plan (columns), one mark a prompt (rows), and the mean."""
    figure, axis = plt.subplots(figsize=(8, 4.6))
    for k, name in enumerate(table.columns):
        special = name in ("hindsight", "oracle")
        axis.barh(k, table[name].mean(), color="#bbbbbb" if special else TARGET if name.startswith("fixed") else ACCEPTED, hatch="//" if special else "", edgecolor="black", linewidth=0.5)
        axis.plot(table[name], [k] * len(table), "o", color="black", markersize=4, alpha=0.6)
    axis.set_yticks(range(len(table.columns)), table.columns)
    axis.axvline(1, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.set(xlabel="tokens per plain step at measured prices (bar: mean, dots: prompts)")
    figure.tight_layout()
    return figure


def controller(trace, settings, upto: int | None = None) -> plt.Figure:
    """A cost-aware plan at work on one text: guesses asked for and passed in each round, and the running estimate of alpha."""
    plan, rounds = settings.start(), trace.rounds[:upto]
    estimates = []
    for r in rounds:
        estimates.append(plan.alpha)
        plan.observe(r)
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.6))
    places = range(1, len(rounds) + 1)
    top.plot(places, estimates, color=PREDICTED, marker=".")
    top.set(ylabel="estimate of alpha", ylim=(0, 1), xlim=(0, len(trace.rounds) + 1))
    bottom.bar(places, [len(r.drafted) for r in rounds], color="white", edgecolor="black", label="guessed")
    bottom.bar(places, [r.accepted for r in rounds], color=ACCEPTED, hatch="//", edgecolor="black", label="passed")
    bottom.set(xlabel="round", ylabel="tokens", ylim=(0, max(len(r.drafted) for r in trace.rounds) + 1))
    bottom.legend(loc="upper right", ncol=2)
    figure.tight_layout()
    return figure


def exits(table, chosen: int | None = None) -> plt.Figure:
    """Overlap with the target after each number of layers, as it is and through a trained exit (columns layers, untrained, trained)."""
    figure, axis = plt.subplots()
    axis.plot(table["layers"], table["untrained"], "--o", color=DRAFT, label="the output matrix as it is")
    taught = table.dropna(subset="trained")
    axis.plot(taught["layers"], taught["trained"], "-s", color=ACCEPTED, label="through a trained exit")
    if chosen is not None:
        axis.axvline(chosen, color="black", linestyle=":", label=f"{chosen} layers")
    axis.set(xlabel="layers that the guess takes", ylabel="overlap with the target, 1 - TV", ylim=(0, 1.02))
    axis.legend()
    figure.tight_layout()
    return figure


def fan(laws: list[dict[str, float]], truth: list[str]) -> plt.Figure:
    """What each parallel head expects: a panel a head, its likeliest tokens as bars; the token that came is hatched and named."""
    figure, axes = plt.subplots(1, len(laws), figsize=(2.7 * len(laws), 2.8), sharex=True, squeeze=False)
    for k, (axis, law, came) in enumerate(zip(axes[0], laws, truth, strict=True), 1):
        for token, probability in law.items():
            axis.barh(token, probability, color=ACCEPTED if token == came else TARGET, hatch="//" if token == came else "", edgecolor="black", linewidth=0.5)
        axis.invert_yaxis()
        axis.set_title(f"head {k}; {came} came", fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
        axis.set(xlabel="probability", xlim=(0, 1))
    figure.tight_layout()
    return figure


def by_distance(curves: dict[str, list[float]]) -> plt.Figure:
    """Overlap with the target of the first, second, third ... guess of a round, a line a guesser."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for k, (name, overlaps) in enumerate(curves.items()):
        axis.plot(range(1, len(overlaps) + 1), overlaps, "-" + MARKERS[k % len(MARKERS)], color=f"C{k}", label=name)
        axis.annotate(f"{overlaps[-1]:.2f}", (len(overlaps), overlaps[-1]), textcoords="offset points", xytext=(8, -4), fontsize=9)
    axis.set(xlabel="guess of the round", ylabel="overlap with the target, 1 - TV", ylim=(0, 1.02), xticks=range(1, 1 + max(map(len, curves.values()))))
    axis.legend(fontsize=9)
    figure.tight_layout()
    return figure


def oracles(table) -> plt.Figure:
    """Every oracle by its cost and its similarity, over lines of equal predicted speed-up (columns kind, alpha, c; the index names them)."""
    figure, axis = plt.subplots(figsize=(8.5, 5.6))
    costs, alphas = np.meshgrid(np.linspace(0.005, 1.05, 90), np.linspace(0.02, 0.995, 90))
    best = theory.speedup(alphas, theory.optimal_gamma(alphas, costs, 8), costs)
    lines = axis.contour(costs, alphas, best, levels=[1.001, 1.25, 1.5, 2, 3, 4], colors="black", linewidths=0.8, linestyles="dotted")
    axis.clabel(lines, fmt=lambda value: f"{value:.3g}x", fontsize=8)
    for k, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        axis.scatter(rows["c"], rows["alpha"], color=f"C{k}", marker=MARKERS[k % len(MARKERS)], edgecolor="black", s=70, label=kind, zorder=3)
    axis.set(xlabel="cost c: time of a guess over that of a target forward", ylabel="alpha", xlim=(0, max(1.05, 1.1 * table["c"].max())), ylim=(0, 1.03))
    axis.set_title("Dotted: predicted speed-up at the best draft length, checks of all widths alike", fontsize=11)
    axis.legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    write_beside(axis, {row.Index: (row.c, row.alpha) for row in table.itertuples()})
    return figure


def write_beside(axis: plt.Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the first of ten places where it stays inside and covers no mark, no name and no other text."""
    heights = (3, -9, 12, -18, 21)  # points above the mark's middle
    places = [(x, y, side) for y in heights for x, side in ((7, "left"), (-7, "right"))]
    covered = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in axis.transData.transform(list(points.values()))]
    covered += [text.get_window_extent() for text in axis.texts]
    for name, point in points.items():
        text = axis.annotate(name, point, textcoords="offset points", xytext=(0, 0), fontsize=8)
        for x, y, side in [*places, places[0]]:  # back to the first if none is free
            text.set(position=(x, y), ha=side)
            box = text.get_window_extent()
            if axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1) and not box.count_overlaps(covered):
                break
        covered.append(box)


# --- notebook 08 --------------------------------------------------------------------------------------------------------


def match_lengths(rounds: dict[str, list[tuple[int, int]]], longest: int) -> plt.Figure:
    """How long the match was in how many rounds, and how many guesses passed then, one panel a kind of text; rounds: (match length, accepted)."""
    figure, axes = plt.subplots(1, len(rounds), figsize=(3.6 * len(rounds) + 0.8, 3.6), sharey=True, squeeze=False)
    for axis, (name, pairs) in zip(axes[0], rounds.items(), strict=True):
        sizes = range(longest + 1)
        shares = [sum(s == size for s, _ in pairs) / len(pairs) for size in sizes]
        axis.bar(sizes, shares, color=DRAFT, edgecolor="black", linewidth=0.5, hatch="//")
        for size, share in zip(sizes, shares, strict=True):
            passed = [a for s, a in pairs if s == size]
            axis.text(size, share, f"{sum(passed) / len(passed):.1f}" if passed else "", ha="center", va="bottom", fontsize=10)
        axis.set(title=f"{name} ({len(pairs)} rounds)", xlabel="length of the match (tokens)", xticks=sizes, ylim=(0, 1.1))
    axes[0, 0].set_ylabel("share of rounds")
    figure.suptitle("Above each bar: mean number of guesses that passed", fontsize=11)
    figure.tight_layout()
    return figure


def search_race(table, order: tuple[str, ...]) -> plt.Figure:
    """Speed-up over plain decoding of each method, with intervals, by kind of text; one panel a temperature."""
    temperatures = sorted(table["temperature"].unique())
    figure, axes = plt.subplots(1, len(temperatures), figsize=(5.6 * len(temperatures), 4), sharey=True, squeeze=False)
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for k, (name, colour, marker) in enumerate(zip(order, sns.color_palette("colorblind", len(order)).as_hex(), "osD^v", strict=False)):
            rows = table[(table["temperature"] == temperature) & (table["method"] == name)]
            places = np.arange(len(rows)) + 0.15 * (k - (len(order) - 1) / 2)
            ends = [(rows["speedup"] - rows["low"]).clip(lower=0), (rows["high"] - rows["speedup"]).clip(lower=0)]
            axis.errorbar(places, rows["speedup"], yerr=ends, fmt=marker, color=colour, capsize=3, label=name)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(title=f"T = {temperature:g}" if temperature else "greedy", xticks=range(len(rows)), xticklabels=list(rows["domain"]), xlabel="kind of text")
    axes[0, 0].set_ylabel("speed-up over plain decoding")
    axes[0, 0].legend(fontsize=9)
    figure.tight_layout()
    return figure


def tree_mask(sees, names: list[str]) -> plt.Figure:
    """Who sees whom in a tree of guesses: rows look, columns are seen; every row also sees the whole text."""
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    sns.heatmap(np.asarray(sees, dtype=float), annot=np.where(sees, "yes", ""), fmt="", cbar=False, cmap="Greens", vmin=0, vmax=2, linewidths=1, linecolor="#999999", xticklabels=names, yticklabels=names, ax=axis)
    axis.set(xlabel="is seen", ylabel="looks")
    figure.tight_layout()
    return figure


def tree(words: list[str], parents: list[int], reached: list[float], title: str = "") -> plt.Figure:
    """A tree of guesses: each node's token and the probability that verification comes there, the text at the top."""
    depths, places = [], {}
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    leaves = iter(range(len(parents)))

    def walk(node):  # leaves side by side, a parent above the middle of its children
        children = [child for child, parent in enumerate(parents) if parent == node]
        for child in children:
            walk(child)
        if node >= 0:
            places[node] = float(np.mean([places[child] for child in children])) if children else float(next(leaves))

    walk(-1)
    top = float(np.mean([places[node] for node, parent in enumerate(parents) if parent < 0]))
    width = max(places.values()) + 1
    figure, axis = plt.subplots(figsize=(min(13, max(6, 1.25 * width)), 1.6 + 1.1 * (max(depths) + 1)))
    axis.text(top, 0.9, "text", ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "#eeeeee", "edgecolor": "black"})
    for node, parent in enumerate(parents):
        x, y = places[node], -depths[node]
        x_above, y_above = (top, 0.9) if parent < 0 else (places[parent], -depths[parent])
        axis.plot([x_above, x], [y_above - 0.18, y + 0.22], color=ACCEPTED, linewidth=0.5 + 5 * reached[node], alpha=0.8, zorder=1)
        word = words[node].replace("\n", "\\n").replace("$", r"\$") or "?"
        axis.text(x, y, f"{word}\n{reached[node]:.2f}", ha="center", va="center", fontsize=8, family="monospace", bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": ACCEPTED})
    axis.set(xlim=(-0.8, width - 0.2), ylim=(-max(depths) - 0.6, 1.4), title=title)
    axis.axis("off")
    figure.tight_layout()
    return figure


def per_round_bars(table, title: str) -> plt.Figure:
    """Tokens per round of several guessers (rows), with their intervals."""
    figure, axis = plt.subplots(figsize=(8, 1 + 0.5 * len(table)))
    error = [table["tokens_per_round"] - table["low"], table["high"] - table["tokens_per_round"]]
    colours = [TARGET if name.startswith("chain") else ACCEPTED for name in table.index]
    axis.barh(table.index, table["tokens_per_round"], xerr=error, capsize=3, color=colours, edgecolor="black", linewidth=0.5)
    axis.axvline(1, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.set(xlabel="tokens per round (95% over prompts)", title=title)
    figure.tight_layout()
    return figure


def lossy(table) -> plt.Figure:
    """What rules yield against what they cost: tokens per round over total variation."""
    figure, axis = plt.subplots()
    for (name, row), marker in zip(table.iterrows(), "oosss^^^", strict=False):
        colour = ACCEPTED if "lossless" in name else REJECTED if "typical" in name else DRAFT
        axis.plot(row["variation"], row["tokens"], marker, color=colour, markersize=9)
        axis.annotate(" " + name, (row["variation"], row["tokens"]), xytext=(5, 3), textcoords="offset points", fontsize=9)
    axis.set(xlabel="total variation of three-token texts from the target's law (0: lossless)", ylabel="tokens per round, two guesses")
    axis.set_xlim(-0.01, 1.35 * max(0.01, table["variation"].max()))
    figure.tight_layout()
    return figure


def leaderboard(rows) -> plt.Figure:
    """Speed-up of every oracle with its interval, one panel for each domain and temperature; the cross is the prediction."""
    groups = list(rows.groupby(["domain", "temperature"], sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(3.6 * len(groups) + 2, 0.42 * rows["method"].nunique() + 1.4), sharey=True, squeeze=False)
    names = list(dict.fromkeys(rows["method"]))
    for axis, ((domain, temperature), part) in zip(axes[0], groups, strict=True):
        part = part.set_index("method")
        for k, name in enumerate(names):
            if name in part.index:
                row = part.loc[name]
                axis.barh(k, row["speedup"], color=TARGET if name == "plain" else ACCEPTED, edgecolor="black", linewidth=0.5)
                axis.plot([row["low"], row["high"]], [k, k], color="black")
                axis.plot(row["predicted"], k, "x", color=REJECTED, markersize=8)
        axis.axvline(1, color="black", linestyle=":")
        axis.set(title=f"{domain}, " + (f"T = {temperature:g}" if temperature else "greedy"), xlabel="times plain decoding", xlim=(0, None))
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure
