"""What the reader moves. Core ipywidgets only (7.7 and 8): sliders and buttons that redraw an Image or an HTML."""

import html
import io

import ipywidgets as widgets
import torch

from . import plotting, theory
from .decoding import generate
from .distributions import overlap
from .drafters import ModelDrafter, TreeDrafter
from .rules import RULES, Rule
from .trace import Trace


def picture(figure) -> widgets.Image:
    """A matplotlib figure as an image widget; the figure is closed, so that it is not shown a second time."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return widgets.Image(value=buffer.getvalue(), format="png")


def record_rounds(pair, prompt: str, draft_length: int = 4, tokens: int = 24, seed: int = 1) -> list[dict]:
    """Every drafted position of a run that verification reached: p [V], q [V], the drafted token, its replacement (None if kept), a title."""
    seen = []

    def watched(p, q, drafted):
        seen.append((p[0], q[0], drafted[0]))
        return RULES["token"].law(p, q, drafted)

    rule = Rule("watched", watched, True, "the token rule, observed")
    out = generate(pair.target, prompt, ModelDrafter(pair.draft), draft_length=draft_length, rule=rule, max_new_tokens=tokens, stop=[], seed=seed)
    rounds = [r for r in out.trace.rounds if r.drafted]
    records = []
    for number, (r, (p, q, drafted)) in enumerate(zip(rounds, seen, strict=True), 1):
        for i, token in enumerate(drafted.tolist()[: r.accepted + 1]):
            passed, own = i < r.accepted, r.emitted[-1]
            fate = "kept" if passed else f"rejected; the residual gave {pair.tokenizer.decode([own])!r}"
            if r.accepted == len(r.drafted) == i + 1:
                fate += f"; all passed, and the bonus token is {pair.tokenizer.decode([own])!r}"
            keep = r.position + len(r.emitted) - 1  # the newest token is read in the next round
            lengths = f"target {keep}, draft {min(keep, r.position + len(r.drafted) - 1)}"  # nobody read the draft's last guess
            chance = f"accepted with probability {min(1.0, float(p[i, token] / q[i, token])):.2f}; overlap {r.overlaps[i]:.2f}"
            title = f"Round {number}, guess {i + 1} of {len(r.drafted)}: {chance}\n{fate}\ncaches after the round: {lengths} tokens"
            records.append({"p": p[i], "q": q[i], "drafted": token, "replacement": None if passed else own, "title": title.replace("$", r"\$")})
    return records


def round_stepper(pair, prompt: str) -> widgets.VBox:
    """A slider over the drafted positions of a run: p, q, their overlap, and what became of each guess."""
    records = record_rounds(pair, prompt)
    slider = widgets.IntSlider(1, 1, len(records), continuous_update=False, description="position")
    image = picture(plotting.position(records[0], pair.tokenizer))

    def show(change):
        image.value = picture(plotting.position(records[change["new"] - 1], pair.tokenizer)).value

    slider.observe(show, "value")
    return widgets.VBox([slider, image])


def race(speculative, plain, steps: int = 20) -> widgets.VBox:
    """Two recorded outputs of `generate`, replayed against their own clocks: a slider over the seconds."""
    traces = [speculative.trace, plain.trace]
    end = max(t.seconds for t in traces)
    slider = widgets.FloatSlider(end, min=0.0, max=end, step=end / steps, continuous_update=False, description="seconds", readout_format=".2f")
    image, texts = picture(plotting.race(traces)), widgets.HTML()

    def show(_change=None):
        image.value = picture(plotting.race(traces, until=slider.value)).value
        texts.value = "".join(_until(t, slider.value, name) for t, name in zip(traces, ("speculative", "plain"), strict=True))

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, image, texts])


def _until(trace: Trace, seconds: float, name: str) -> str:
    """What one trace had written after so many seconds, as HTML under its name."""
    clock, rounds = trace.prefill_seconds, []
    for r in trace.rounds:
        clock += r.seconds
        if clock <= seconds:
            rounds.append(r)
    return f"<b>{name}</b>" + Trace(trace.decode, rounds).to_html()


def speed_map(points) -> widgets.VBox:
    """Sliders for alpha, gamma and c over the measured and published points of `plotting.speed_map`."""
    alpha = widgets.FloatSlider(value=0.6, min=0, max=0.95, step=0.05, description="alpha", continuous_update=False)
    gamma = widgets.IntSlider(value=4, min=0, max=12, description="gamma", continuous_update=False)
    cost = widgets.FloatSlider(value=0.1, min=0, max=1, step=0.05, description="c", continuous_update=False)
    image = widgets.Image(format="png")

    def redraw(_=None):
        image.value = picture(plotting.speed_map(points, alpha.value, gamma.value, cost.value, "What if?")).value

    for slider in (alpha, gamma, cost):
        slider.observe(redraw, names="value")
    redraw()
    return widgets.VBox([alpha, gamma, cost, image])


def oracle_dial(times) -> widgets.VBox:
    """Sliders for an oracle's quality and price; the predicted speed-up over the number of guesses, with a measured width curve (ms by width)."""
    quality = widgets.FloatSlider(0.7, min=0.0, max=1.0, step=0.05, continuous_update=False, description="right with a")
    price = widgets.FloatSlider(0.1, min=0.0, max=1.0, step=0.05, continuous_update=False, description="cost c")
    image = widgets.Image(format="png")

    def show(_change=None):
        image.value = picture(plotting.priced_oracle(times, quality.value, (price.value,))).value

    quality.observe(show, "value")
    price.observe(show, "value")
    show()
    return widgets.VBox([quality, price, image])


def shifted_pair(shift: float, sharpness: float, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bell-shaped distributions [tokens]: the target in the middle, the draft `shift` tokens aside and `sharpness` times as sharp."""
    places = torch.arange(tokens) - (tokens - 1) / 2
    return (-(places**2) / 4).softmax(0), (-sharpness * (places - shift) ** 2 / 4).softmax(0)


def overlap_explorer() -> widgets.VBox:
    """Sliders for the draft's place and sharpness; overlap, residual, alpha and total variation."""
    shift = widgets.FloatSlider(1.5, min=-4, max=4, step=0.25, continuous_update=False, description="shift")
    sharpness = widgets.FloatSlider(1.4, min=0.2, max=5, step=0.2, continuous_update=False, description="sharpness")
    image, words = widgets.Image(format="png"), widgets.HTML()

    def show(_change=None):
        p, q = shifted_pair(shift.value, sharpness.value)
        image.value = picture(plotting.two_distributions(p, q).figure).value
        alpha = float(overlap(p, q))
        words.value = f"alpha = sum of min(p, q) = <b>{alpha:.3f}</b>, total variation = 1 - alpha = <b>{1 - alpha:.3f}</b>"

    shift.observe(show, "value")
    sharpness.observe(show, "value")
    show()
    return widgets.VBox([shift, sharpness, image, words])


def width_explorer(table, roof: dict, counts: list[tuple[int, int]]) -> widgets.VBox:
    """A slider over the measured widths: the place on the width curve, and how much of the machine's arithmetic is used."""
    slider = widgets.SelectionSlider(options=list(table["width"]), value=1, continuous_update=False, description="tokens")
    image, words = widgets.Image(format="png"), widgets.HTML()

    def show(_change=None):
        k = list(table["width"]).index(slider.value)
        image.value = picture(plotting.width_curve(table, slider.value)).value
        used = counts[k][1] / (1e-3 * table["ms"].iloc[k]) / roof["operations_per_second"]
        words.value = f"{counts[k][1] / counts[k][0]:.1f} operations per byte; <b>{used:.1%}</b> of the arithmetic this machine can do"

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, image, words])


def repair_stepper(source: str, output, tokenizer) -> widgets.VBox:
    """A slider over the rounds of one answer of an encoder-decoder: the source, what was guessed, what became of it, and both caches."""
    rounds = output.trace.rounds
    slider = widgets.IntSlider(1, 1, len(rounds), continuous_update=False, description="round")
    words = widgets.HTML()
    read = len(tokenizer(source)["input_ids"])

    def safe(text):
        return html.escape(text, quote=True).replace("$", "&#36;")  # a dollar sign would start a formula

    def show(_change=None):
        r = rounds[slider.value - 1]
        guesses = repr(tokenizer.decode(r.drafted)) if r.drafted else "nothing"
        facts = [
            f"Round {slider.value} of {len(rounds)}: guessed {guesses}; {r.accepted} of {len(r.drafted)} tokens passed",
            f"cross-attention cache: {read} tokens of the source, since before the first round",
            f"the decoder's own cache: read up to {r.position + len(r.drafted)}, kept {r.position + len(r.emitted) - 1}",
        ]
        shown = "".join(f"<div>{safe(fact)}</div>" for fact in facts)
        words.value = f"<pre>{safe(source)}</pre>{Trace(output.trace.decode, rounds[: slider.value]).to_html()}{shown}"

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, words])


def controller(trace: Trace, settings) -> widgets.VBox:
    """A slider over the rounds of one text: what a cost-aware plan knew, asked for and got, up to there."""
    slider = widgets.IntSlider(len(trace.rounds), 1, len(trace.rounds), continuous_update=False, description="round")
    image = picture(plotting.controller(trace, settings))

    def show(change):
        image.value = picture(plotting.controller(trace, settings, change["new"])).value

    slider.observe(show, "value")
    return widgets.VBox([slider, image])


def layer_dial(table) -> widgets.VBox:
    """A slider over the layers that a guess takes: overlap, cost and the best predicted speed-up. table: columns layers, untrained, trained, c."""
    slider = widgets.SelectionSlider(options=[int(k) for k in table["layers"]], continuous_update=False, description="layers")
    image, words = widgets.Image(format="png"), widgets.HTML()

    def show(_change=None):
        row = table[table["layers"] == slider.value].iloc[0]
        image.value = picture(plotting.exits(table, slider.value)).value
        lines = [f"cost of a guess: <b>{row['c']:.2f}</b> of a target forward"]
        for name in ("untrained", "trained"):
            if row[name] == row[name]:  # no exit was trained after every layer
                gamma = int(theory.optimal_gamma(row[name], row["c"], 8))
                lines.append(f"{name}: overlap {row[name]:.2f}, best gamma {gamma}, predicted speed-up <b>{float(theory.speedup(row[name], gamma, row['c'])):.2f}x</b>")
        words.value = "<br>".join(lines)

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, image, words])


def last_match(text: list[int], most: int) -> tuple[int, int]:
    """(size, end): the longest end of `text` of at most `most` tokens that occurred before, and where its latest occurrence ended; (0, 0) for none."""
    for size in range(min(most, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return size, end
    return 0, 0


def lookup_round(tokenizer, text: list[int], drafted: list[int], accepted: int, most: int = 4, shown: int = 160) -> str:
    """One round of prompt lookup as HTML: the last tokens of the text, the match, where it stood before, and what became of the guesses."""
    size, end = last_match(text, most)
    marks = {k: "background:#fbe7b2;border-bottom:2px solid #b8860b" for k in [*range(end - size, end), *range(len(text) - size, len(text))]}
    marks |= {k: "background:#e6e6e6;border-bottom:2px dotted #555" for k in range(end, min(end + len(drafted), len(text) - size))} if size else {}
    guessed = ["background:#cfe8d5;border-bottom:2px solid #2e7d46" if i < accepted else "background:#f6d5d0;text-decoration:line-through" for i in range(len(drafted))]
    pieces = [(token, marks.get(k, "")) for k, token in enumerate(text)][-shown:] + list(zip(drafted, guessed, strict=True))
    spans = "".join(f'<span style="white-space:pre-wrap;{style}">{_shown(tokenizer, token)}</span>' for token, style in pieces)
    words = f"a match of {size} token{'s' * (size != 1)}, {accepted} of {len(drafted)} guesses accepted" if size else "no match: no guess"
    legend = "yellow, underlined: the end of the text, and where it stood before; grey, dotted: what followed there; then the guesses, green if accepted, struck out if not"
    return (
        f'<div style="font-family:monospace;font-size:13px;line-height:1.5;background:#fff;color:#222;padding:8px;max-width:100ch"><b>{words}</b><br>{spans}'
        f'<div style="margin-top:8px;font-size:12px">{legend}</div></div>'
    )


def _shown(tokenizer, token: int) -> str:
    """A token's text, harmless in HTML: escaped, and without control or bidirectional characters."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in tokenizer.decode([token]))
    return html.escape(text, quote=True).replace("$", "&#36;")


def lookup_rounds(tokenizer, text: list[int], rounds: list, most: int = 4) -> widgets.VBox:
    """A slider over the rounds of a run of prompt lookup on one text: `lookup_round` of each. text: prompt and new tokens."""
    slider = widgets.IntSlider(1, 1, len(rounds), continuous_update=False, description="round")
    page = widgets.HTML()

    def show(_change=None):
        r = rounds[slider.value - 1]
        page.value = lookup_round(tokenizer, text[: r.position], r.drafted, r.accepted, most)

    slider.observe(show, "value")
    show()
    return widgets.VBox([slider, page])


def grown_tree(pair, prompt: str, branching: tuple[int, ...], sampled: bool = False, seed: int = 0) -> tuple[list[str], list[int], list[float], str]:
    """(tokens as text, parents, probability that verification comes to each node, a title) of one tree behind a prompt."""
    seen = []

    class Watched(TreeDrafter):
        def start(self, context, sampling, draw):
            guesser = super().start(context, sampling, draw)
            propose = guesser.propose

            def watched(*arguments):
                seen.append(propose(*arguments))
                return seen[-1]

            guesser.propose = watched
            return guesser

    drafter = Watched(pair.draft, branching, sampled)
    out = generate(pair.target, prompt, drafter, draft_length=len(branching), max_new_tokens=len(branching) + 1, stop=[], seed=seed)
    first = out.trace.rounds[0]
    parents, reached = seen[0].parents, list(first.stop_probs)
    for node in reversed(range(len(parents))):  # verification comes to a node if it stops there or below
        reached[parents[node] + 1] += reached[node + 1]
    expected = sum(reached[1:]) + 1
    words = [pair.tokenizer.decode([token]) for token in first.drafted]
    return words, parents, reached[1:], f"{len(parents)} nodes, {expected:.2f} tokens expected from this round"


def tree_builder(pair, prompt: str) -> widgets.VBox:
    """Sliders for the branching of each level: the tree they make, and what it would yield."""
    sliders = [widgets.IntSlider(value, 0, 3, continuous_update=False, description=f"level {k + 1}") for k, value in enumerate((3, 2, 1))]
    sliders[0].min = 1
    drawn = widgets.Checkbox(False, description="drawn, not top-k")
    image = picture(plotting.tree(*grown_tree(pair, prompt, (3, 2, 1))))

    def show(_):
        values = [slider.value for slider in sliders]
        branching = tuple(values[: values.index(0)] if 0 in values else values)
        image.value = picture(plotting.tree(*grown_tree(pair, prompt, branching, drawn.value))).value

    for control in (*sliders, drawn):
        control.observe(show, "value")
    return widgets.VBox([widgets.HBox([*sliders, drawn]), image])
