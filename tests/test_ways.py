"""Each way beside make that the README walks through, once, with the heavy packages borrowed and not installed.

Slow (environments, a build, a network): python -m pytest -m slow tests/test_ways.py
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
CODE = "import importlib.metadata as m, speclib; print(speclib.__file__, m.version('speculative-sampling-workbook'))"


def run(*command, cwd, ok=True):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture
def clone(tmp_path):
    """The folder as a clone would have it, without the notebooks' outputs and the museum of results."""
    unwanted = (".git", ".venv*", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info", "build", "runs", "solutions")
    return Path(shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(*unwanted)))


def borrow(python, cwd):
    """Puts the packages of this environment within reach of another one, after its own."""
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=cwd).strip()
    Path(site, "zz-borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return site


def make_venv(folder):
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def test_pip_in_the_clone(clone, tmp_path):
    python = make_venv(clone / ".venv")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", ".", cwd=clone)
    borrow(python, tmp_path)
    assert run(python, "-c", CODE, cwd=tmp_path).startswith(str(clone / "speclib"))
    assert "target" in run(python, "-c", "import speclib; print(speclib.load_pair())", cwd=tmp_path)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_wheel_or_an_sdist_in_an_empty_folder(clone, tmp_path, kind):
    python, empty = make_venv(tmp_path / "venv"), tmp_path / "empty"
    empty.mkdir()
    if kind == "wheel":
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, clone, cwd=tmp_path)
    else:
        run(python, "-m", "pip", "install", "-q", "build", cwd=tmp_path)
        run(python, "-m", "build", "-q", "--sdist", "-o", tmp_path, clone, cwd=tmp_path)
    ending = "whl" if kind == "wheel" else "tar.gz"
    (made,) = tmp_path.glob(f"speculative_sampling_workbook-*.{ending}")
    run(python, "-m", "pip", "install", "-q", "--no-deps", made, cwd=empty)
    site = borrow(python, empty)
    assert run(python, "-c", CODE, cwd=empty).startswith(site)
    assert run(python, "-m", "speclib", "--version", cwd=empty).startswith("speclib ")
    assert list(empty.iterdir()) == []


def test_uv(clone, tmp_path):
    uv = (pytest.importorskip("uv").find_uv_bin(),)  # `python -m uv` would install beside itself
    run(*uv, "venv", "-q", "--python", sys.executable, cwd=clone)
    run(*uv, "pip", "install", "-q", "--no-deps", "-c", "constraints.txt", "-e", ".[all]", cwd=clone)
    python = clone / (".venv/Scripts/python.exe" if os.name == "nt" else ".venv/bin/python")
    borrow(python, tmp_path)
    assert run(python, "-c", CODE, cwd=tmp_path).startswith(str(clone / "speclib"))
    assert "unmanaged" in run(*uv, "sync", cwd=clone, ok=False)


@pytest.mark.skipif(shutil.which("conda") is None and shutil.which("mamba") is None, reason="conda is missing")
def test_conda(clone):
    conda = shutil.which("mamba") or shutil.which("conda")
    run(conda, "env", "create", "-q", "-f", "environment.yml", "-p", clone / "env", cwd=clone)
    assert "figure:" in run(conda, "run", "-p", clone / "env", "python", "-m", "speclib", "demo", cwd=clone)
