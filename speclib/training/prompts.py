"""The prompts every figure is measured on: cut from held-out modules, so that no model has seen them.

"code": the head of a function with what stands before it. "prose": package descriptions, which nobody trained on and
which do not look like code: what happens to a draft away from home. "repair": tasks of the encoder-decoder pair. "edit": a function shown
in full and begun again, so that most of what follows stands in the prompt.
"""

import importlib.metadata
import json
import re
from pathlib import Path

from .corpus import Document
from .seq2seq import repair_prompts

PROSE_FROM = "jinja2 pandas scipy seaborn torch transformers joblib ipywidgets matplotlib hypothesis tqdm pooch networkx click rich numpy".split()


def code_prompts(held_out: list[Document], tokenizer, count: int = 60, tokens: int = 100) -> list[dict]:
    """Prompts of whole lines, at most `tokens` tokens, that end with the first line of a function, spread over the held-out modules."""
    found = []
    for document in held_out:
        places = [m.end() for m in re.finditer(r"\n +def \w+\([^)]*\):\n|\ndef \w+\([^)]*\):\n", document.text)]
        places = [p for p in places if p > 5 * tokens and len(document.text) - p > 800]
        for place in places[len(places) // 3 :: max(1, len(places) // 3)][:2]:
            ids = tokenizer(document.text[max(0, place - 8 * tokens) : place])["input_ids"][-tokens:]
            whole_lines = tokenizer.decode(ids).partition("\n")[2]
            found.append({"source": document.name, "text": whole_lines})
    step = max(1, len(found) // count)
    return found[::step][:count]


def prose_prompts(tokenizer, count: int = 24, tokens: int = 100) -> list[dict]:
    """The opening of package descriptions and licences as installed with the packages."""
    found = []
    for package in PROSE_FROM:
        try:
            text = importlib.metadata.metadata(package).get_payload() or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        paragraphs = [p for p in re.split(r"\n\s*\n", text) if len(p) > 200 and p[0].isalpha() and "http" not in p and "|" not in p and p.isascii()]
        for paragraph in paragraphs[:3]:
            ids = tokenizer(" ".join(paragraph.split()))["input_ids"][:tokens]
            if len(ids) > 40:
                found.append({"source": f"{package} description", "text": tokenizer.decode(ids)})
    return found[:count]


def edit_prompts(held_out: list[Document], tokenizer, count: int = 24, least: int = 90, most: int = 200) -> list[dict]:
    """A whole function of `least` to `most` tokens, a comment that announces a renamed copy, and the copy's first line; "answer" is the rest of it."""
    found = []
    for document in held_out:
        functions = [m.group(0).rstrip() for m in re.finditer(r"^def \w+\([^)]*\):\n(?:(?:    .*)?\n)+", document.text, re.M)]
        fitting = [f for f in functions if least <= len(tokenizer(f)["input_ids"]) <= most]
        for function in fitting[:2]:
            name = re.match(r"def (\w+)", function).group(1)
            first, rest = re.sub(rf"\b{name}\b", f"{name}_again", function).split("):\n", 1)
            text = f"{function}\n\n\n# the same, renamed to {name}_again\n{first}):\n"
            found.append({"source": document.name, "text": text, "answer": rest})
    return found[:: max(1, len(found) // count)][:count]


def write_prompts(held_out: list[Document], tokenizer, path: Path) -> dict[str, list[dict]]:
    """Saves all kinds as JSON at `path` and returns them."""
    content = {"code": code_prompts(held_out, tokenizer), "prose": prose_prompts(tokenizer), "repair": repair_prompts(held_out, tokenizer), "edit": edit_prompts(held_out, tokenizer)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return content
