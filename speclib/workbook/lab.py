"""The laboratory, notebooks/lab/index.html, inside a notebook: a page that needs no kernel, in a frame of its own."""

import html
from pathlib import Path

from ..errors import InvalidArgument
from .common import Shown

PAGE = Path(__file__).resolve().parents[2] / "notebooks" / "lab" / "index.html"


def laboratory(state: str = "", height: int = 760) -> Shown:
    """The page, inlined whole: it works without network, and in a notebook that is only read.

    state: what follows # in the page's address, such as "rule=squared+ratio&g=3"; height: of the frame, in pixels.
    Raises InvalidArgument where only the package is installed: the page lies among the notebooks.
    """
    if not PAGE.is_file():
        raise InvalidArgument(f"the laboratory lies among the notebooks, and {PAGE} is missing: clone the repository")
    begin = f'<html data-state="{html.escape(state.lstrip("#"), quote=True)}" '
    page = html.escape(PAGE.read_text(encoding="utf-8").replace("<html ", begin, 1), quote=True)
    page = page.replace("\n", "&#10;")  # a notebook's file keeps it on one line, which a change of it replaces
    style = f"border:0;width:100%;height:{int(height)}px"
    return Shown(f'<div><iframe title="The laboratory" style="{style}" srcdoc="{page}"></iframe></div>')
