"""Every figure of the workbook, one function each. Colour-blind palette, a second cue beside colour, opaque background."""

import matplotlib.pyplot as plt
import seaborn as sns

TARGET, DRAFT, ACCEPTED, REJECTED, PREDICTED = sns.color_palette("colorblind", 10).as_hex()[0:5]


def style() -> None:
    """One look for all figures: call it once, after the imports."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (8, 4.2), "figure.dpi": 90, "savefig.dpi": 150, "figure.facecolor": "white", "axes.facecolor": "white", "legend.frameon": True})


def headline(result: dict) -> plt.Figure:
    """Tokens per second of every method of `python -m speclib bench`, one panel a sampling setting, with 95% intervals of the ratio to plain."""
    style()
    tables = result["tables"]
    figure, axes = plt.subplots(1, len(tables), figsize=(4.3 * len(tables), 4), sharey=True)
    for axis, (label, table) in zip(axes, tables.items(), strict=True):
        rows = table["methods"]
        base = rows[0]["tokens_per_second"]
        colours = [TARGET if r["method"] == "plain" else ACCEPTED if not r["method"].startswith("transformers") else "#999999" for r in rows]
        axis.barh([r["method"] for r in rows], [r["tokens_per_second"] for r in rows], color=colours, edgecolor="black", linewidth=0.5)
        for k, r in enumerate(rows):
            axis.plot([base * r["low"], base * r["high"]], [k, k], color="black", linewidth=1.5)
            axis.text(base * r["high"], k, f" {r['speedup']:.2f}x", va="center", fontsize=9)
        axis.axvline(base, color="black", linestyle=":", linewidth=1)
        axis.set(title=f"{label}, gamma = {table['gamma']}", xlabel="tokens per second")
        axis.set_xlim(0, 1.18 * base * max(r["high"] for r in rows))
    axes[0].invert_yaxis()
    where = result["machine"]["gpu"] or f"{result['machine']['cpu']}, {result['machine']['threads']} threads"
    figure.suptitle(f"Plain and speculative decoding of the same pair ({where})", fontsize=12)
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
    shown = (p + q).topk(top).indices.tolist()
    shown = shown if drafted in shown else [*shown[:-1], drafted]
    names = [repr(tokenizer.decode([t]))[1:-1].replace("$", r"\$") + ("\n(drafted)" if t == drafted else "") for t in shown]
    two_distributions(p[shown], q[shown], names, axis)
    axis.set_title(record["title"], fontsize=11)
    figure.tight_layout()
    return figure
