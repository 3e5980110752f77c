"""Every notebook as a reader has it: JupyterLab in a headless Chromium, Run All, each control moved, light and dark.

`make test-browser` opens them all; the unit tests open 00 and 03. SCREENSHOTS=folder keeps a picture of every figure,
table and widget.
"""

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import browser as chromium
import nbformat
import pytest

from notebooks import build

ALWAYS = ("00", "03")
LAB = shutil.which("jupyter-lab", path=str(Path(sys.executable).parent))
why_not = chromium.missing() or (None if LAB else "JupyterLab is not installed")
pytestmark = pytest.mark.skipif(why_not is not None, reason=f"no browser: {why_not}")
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are on the page too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
# What the tests ask of the page. A control is moved by keys, as by a reader without a mouse.
PAGE = """window.lab = {
  panel: jupyterapp.shell.currentWidget,
  complaints() {
    const cells = this.panel.context.model.toJSON().cells;
    return cells.flatMap((cell, k) => (cell.outputs || []).filter(o => o.output_type === 'error' || o.name === 'stderr')
      .map(o => `cell ${k}: ${o.evalue || o.text}`));
  },
  outputs() { return [...this.panel.node.querySelectorAll('.jp-OutputArea-output')]; },
  blank() {  // figures and widgets of no size
    const all = this.outputs().flatMap(o => [...o.querySelectorAll('img, .widget-vbox')]);
    return all.filter(e => e.tagName === 'IMG' ? !e.naturalWidth : !e.offsetHeight).map(e => e.outerHTML.slice(0, 99));
  },
  pale(least) {  // words of ours that differ too little from what is behind them, by WCAG's contrast
    const light = c => c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
    const worded = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.offsetHeight;
    return this.outputs().flatMap(o => [...o.querySelectorAll(':not(.jp-RenderedText, .jp-RenderedText *)')])
      .filter(worded).filter(e => {
      const [one, other] = [numbers(getComputedStyle(e).color), ground(e)].map(c => light(c.slice(0, 3)));
      return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05) < least;
    }).map(e => e.textContent.trim().slice(0, 60));
  },
  controls() {
    return this.outputs().flatMap(o => [...o.querySelectorAll('.noUi-handle, .widget-checkbox input')])
      .filter(e => !e.disabled && !e.closest('[disabled]'));
  },
  focus(k) { const e = this.controls()[k]; e.scrollIntoView({block: 'center'}); e.focus(); return e.type || 'slider'; },
  async shown(k) {  // the bytes and words that a control stands above
    const box = this.controls()[k].closest('.jp-OutputArea-output');
    const images = [...box.querySelectorAll('img')].map(async i => [...new Uint8Array(
      await crypto.subtle.digest('SHA-256', await (await fetch(i.src)).arrayBuffer()))].join());
    return JSON.stringify([await Promise.all(images), [...box.querySelectorAll('.widget-html')].map(e => e.innerHTML)]);
  },
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab that serves a copy of the notebooks without their outputs: address, token, the copy's folder."""
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    shutil.copytree(build.FOLDER, home / "notebooks", ignore=shutil.ignore_patterns("solutions", "__pycache__"))
    for entry in build.present():
        nb = build.read(build.FOLDER / entry.file)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        build.write(nb, home / "notebooks" / entry.file)
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "IdentityProvider.token": token,
        "ServerApp.root_dir": home,
        "LabApp.user_settings_dir": home / "settings",
        "LabApp.workspaces_dir": home / "workspaces",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    path = os.pathsep.join(filter(None, [str(build.ROOT), os.environ.get("PYTHONPATH")]))
    places = {"JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    with open(home / "log", "wb") as log:
        running = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=os.environ | places | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/api?token={token}")
            break
        except OSError:
            time.sleep(0.2)
    yield address, token, home / "notebooks"
    running.terminate()
    running.wait(30)


def picture(page, name: str) -> None:
    """Keeps every output that is more than lines of text, if the environment says where."""
    if folder := os.environ.get("SCREENSHOTS"):
        shown = "lab.outputs().filter(o => o.querySelector('img, table, .widget-vbox, span[style], iframe'))"
        Path(folder).mkdir(parents=True, exist_ok=True)
        for k in range(page.evaluate(f"{shown}.length")):
            page.evaluate(f"void {shown}[{k}].scrollIntoView({{block: 'start'}})")
            time.sleep(0.2)
            clip = page.evaluate(f"(r => ({{x: r.x, y: r.y, width: r.width, height: r.height, scale: 1}}))"
                                 f"({shown}[{k}].getBoundingClientRect())")  # fmt: skip
            taken = page("Page.captureScreenshot", clip=clip)["data"]
            (Path(folder) / f"{name}_{k:02d}.png").write_bytes(base64.b64decode(taken))


def unmoved(page, seconds: float = 20) -> list[str]:
    """The controls whose moves change neither an image nor a word within so many seconds."""
    still = []
    for k in range(page.evaluate("lab.controls().length")):
        kind, before = page.evaluate(f"lab.focus({k})"), page.evaluate(f"lab.shown({k})")
        for key in (" ",) if kind == "checkbox" else ("ArrowRight", "ArrowLeft", "ArrowLeft"):
            page.press(key)
            try:
                page.until(f"lab.shown({k}).then(now => now !== {json.dumps(before)})", seconds)
                break
            except TimeoutError:
                continue
        else:
            still.append(page.evaluate(f"lab.controls()[{k}].closest('.jupyter-widgets').textContent"))
    return still


@contextmanager
def opened(server, file: str) -> Iterator[chromium.Browser]:
    """A page with one notebook in JupyterLab, after Run All."""
    address, token = server[:2]
    page = chromium.Browser()
    try:
        page.open(f"{address}/lab/tree/notebooks/{file}?token={token}", height=1200)
        page.until("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", 120)
        page.evaluate(f"void ({PAGE})")
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells').then(() => { lab.ran = true; })")
        page.until("lab.ran", 1200)
        yield page
        page.evaluate("lab.panel.sessionContext.shutdown()")
    finally:
        page.close()


def settled(page, script: str, wanted, seconds: float = 20):
    """What an expression is as soon as it is what is wanted, or after so long: a page draws what has come, a moment
    after it has come.
    """
    with suppress(TimeoutError):
        page.until(f"JSON.stringify({script}) === {json.dumps(json.dumps(wanted, separators=(',', ':')))}", seconds)
    return page.evaluate(script)


def dress(page, theme: str) -> None:
    page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.until(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, id=e.number, marks=() if e.number in ALWAYS else pytest.mark.slow) for e in build.present()],
)
def test_a_notebook_in_jupyterlab(server, entry):
    outputs = [o for cell in build.read(build.FOLDER / entry.file).cells for o in cell.get("outputs", [])]
    widgets = sum("(a widget" in output.get("data", {}).get("text/plain", "") for output in outputs)
    with opened(server, entry.file) as page:
        assert page.evaluate("lab.complaints()") == []
        shown = "lab.outputs().filter(o => o.querySelector('.widget-vbox')).length"
        assert settled(page, shown, widgets) == widgets
        for theme in ("Light", "Dark"):
            dress(page, theme)
            assert settled(page, "lab.blank()", []) == []
            assert settled(page, "lab.pale(3)", []) == []
            assert unmoved(page) == []
            picture(page, f"{entry.number}_{theme.lower()}")
        assert [error for error in page.errors if "Failed to load resource" not in error] == []


BROKEN = """
from IPython.display import HTML, Image; import ipywidgets as w, sys
print("oh", file=sys.stderr)
w.VBox([w.IntSlider(3, description="dead"), w.HTML("always this")])
HTML('<div style="background:#ffffff;color:#eeeeee">hardly there</div>')
Image(data=b"no picture", format="png")
1 / 0
"""


def test_each_fault_is_seen(server):
    cells = [nbformat.v4.new_code_cell(line) for line in BROKEN.strip().split("\n")]
    nb = nbformat.v4.new_notebook(cells=cells, metadata=build.KERNEL)
    nbformat.write(nb, server[2] / "broken.ipynb")
    with opened(server, "broken.ipynb") as page:
        assert page.evaluate("lab.complaints()") == ["cell 1: oh\n", "cell 5: division by zero"]
        dress(page, "Light")
        assert settled(page, "lab.blank().length", 1) == 1
        assert settled(page, "lab.pale(3)", ["hardly there"]) == ["hardly there"]
        assert unmoved(page, 2) == ["dead2"]  # its name and where it stands now
