"""The prompts every figure is measured on: cut from held-out modules, so that no model has seen them.

"code": the head of a function with what stands before it. "prose": package descriptions, which nobody trained on and
which do not look like code: what happens to a draft away from home. "repair": tasks of the encoder-decoder pair.
"edit": a function shown in full and begun again with a change, so that most of what follows stands in the prompt.
"""

import importlib.metadata
import json
import random
import re
from pathlib import Path

from ..files import write_text
from . import editor
from .corpus import Document
from .seq2seq import repair_prompts

PROSE_FROM = (
    "jinja2 pandas scipy seaborn torch transformers ipywidgets matplotlib hypothesis tqdm pooch "
    "networkx click rich numpy"
).split()


def code_prompts(held_out: list[Document], tokenizer, count: int = 60, tokens: int = 100) -> list[dict]:
    """Prompts of whole lines, at most `tokens` tokens, that end with the first line of a function, spread over the
    held-out modules.
    """
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
        paragraphs = [p for p in re.split(r"\n\s*\n", text) if len(p) > 200 and p[0].isalpha() and p.isascii()]
        paragraphs = [p for p in paragraphs if "http" not in p and "|" not in p]
        for paragraph in paragraphs[:3]:
            ids = tokenizer(" ".join(paragraph.split()))["input_ids"][:tokens]
            if len(ids) > 40:
                found.append({"source": f"{package} description", "text": tokenizer.decode(ids)})
    return found[:count]


def edit_prompts(
    held_out: list[Document], tokenizer, count: int = 24, least: int = 90, most: int = 200, longest: int = 480
) -> list[dict]:
    """`count` tasks of each "kind", taking turns: a function of `least` to `most` tokens to be written again "renamed",
    or "reworded" (see `editor`).

    "text" and "answer" have `longest` tokens at most, and no function comes twice.
    """

    def length(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    def fitting(document: Document, margin: str = " *") -> list[str]:
        return [function for function in editor.functions(document, margin) if least <= length(function) <= most]

    found, choice = {"renamed": [], "reworded": []}, random.Random(0)
    for document in held_out:
        chosen = fitting(document, margin="")[:2]
        others = [editor.reworded(function, choice) for function in fitting(document) if function not in chosen]
        others = [task for task in others if task and length(task["text"] + task["answer"]) <= longest]
        for kind, some in (("renamed", map(editor.renamed, chosen)), ("reworded", others[:2])):
            found[kind] += [{"source": document.name, "kind": kind, **task} for task in some]
    spread = [tasks[:: max(1, len(tasks) // count)][:count] for tasks in found.values()]
    return [task for both in zip(*spread, strict=True) for task in both]


def write_prompts(held_out: list[Document], tokenizer, path: Path) -> None:
    """Saves all kinds as JSON at `path`."""
    content = {"code": code_prompts(held_out, tokenizer), "prose": prose_prompts(tokenizer)}
    content |= {"repair": repair_prompts(held_out, tokenizer), "edit": edit_prompts(held_out, tokenizer)}
    write_text(path, json.dumps(content, indent=1) + "\n")
