"""What the reader moves. Core ipywidgets only (7.7 and 8): sliders and buttons that redraw an Image or an HTML."""

import io

import ipywidgets as widgets

from . import plotting
from .decoding import generate
from .drafters import ModelDrafter
from .rules import RULES, Rule


def picture(figure) -> widgets.Image:
    """A matplotlib figure as an image widget; the figure is closed, so that it is not shown a second time."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return widgets.Image(value=buffer.getvalue(), format="png")


def record_rounds(pair, prompt: str, draft_length: int = 4, tokens: int = 24, seed: int = 1) -> list[dict]:
    """Every drafted position of a run that verification reached, with p [V], q [V], the drafted token and a title."""
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
            ratio = min(1.0, float(p[i, token] / q[i, token]))
            fate = "kept" if i < r.accepted else f"rejected; the residual gave {pair.tokenizer.decode(r.emitted[-1:])!r}"
            kept = r.position + len(r.emitted) - 1
            title = f"Round {number}, guess {i + 1} of {len(r.drafted)}: accepted with probability {ratio:.2f}, {fate}\nafter the round both caches hold at most {kept} tokens"
            records.append({"p": p[i], "q": q[i], "drafted": token, "title": title.replace("$", r"\$")})
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
