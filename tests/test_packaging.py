"""pyproject.toml, constraints.txt, environment.yml and .binder/ say the same, and the address stands in one place."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from notebooks import build

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
DIRECT = REQUIRED + EXTRAS["lab"] + EXTRAS["test"]
CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}  # conda-forge's names for the same things

# What Colab had in August 2026 (those of our dependencies whose version is known).
COLAB = {"torch": "2.11.0", "transformers": "5.15.0", "numpy": "2.1.0", "pandas": "2.2.0", "ipywidgets": "7.7.0"}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def conda() -> dict[str, Requirement]:
    lines = re.findall(r"^  - (\S+)$", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.M)
    return {r.name: r for r in (Requirement(re.sub(r"(?<![=<>!~])=(?!=)", "==", line)) for line in lines if line != "conda-forge")}


def imported(source: str) -> set[str]:
    """Top-level names of the packages that a piece of Python imports absolutely, IPython magics aside."""
    plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    nodes = list(ast.walk(ast.parse(plain)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_the_tested_set_pins_every_direct_dependency_within_its_range(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", COLAB)
def test_the_ranges_include_what_colab_has(name):
    (requirement,) = [r for r in REQUIRED if r.name == name]
    assert requirement.specifier.contains(COLAB[name])


def test_every_range_is_a_range():
    assert [str(r) for r in DIRECT if not r.specifier or "==" in str(r.specifier)] == []


def test_torch_is_installed_first_and_alike_wherever_it_is_written():
    command = f"pip install torch=={pins()['torch']} -c constraints.txt"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first, rest = (re.search(rf"pip install .*{what}", makefile).start() for what in (rf"torch=={pins()['torch']} -c constraints\.txt", r"-e '\.\[all\]'"))
    assert first < rest


def test_conda_has_the_same_ranges():
    environment = conda()
    for requirement in REQUIRED + EXTRAS["lab"]:
        assert environment[CONDA.get(requirement.name, requirement.name)].specifier == requirement.specifier, requirement.name
    assert len(environment) == len(REQUIRED + EXTRAS["lab"]) + 2  # and python, pip
    assert "  - python=3.12\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.12")


def test_binder_uses_the_root_environment_and_installs_without_dependencies():
    binder = ROOT / ".binder"
    assert os.readlink(binder / "environment.yml") == "../environment.yml"
    assert os.access(binder / "postBuild", os.X_OK)
    lines = (binder / "postBuild").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "set -e"
    assert any(line.startswith("pip install") and "--no-deps" in line for line in lines)


def test_ci_runs_what_a_reader_runs():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    for name in (".ci/run", ".github/workflows/test.yml"):
        assert "make test" in (ROOT / name).read_text(encoding="utf-8")


def test_every_import_is_declared():
    declared = {r.name for r in REQUIRED} | {"speclib"}
    for path in (ROOT / "speclib").rglob("*.py"):
        assert imported(path.read_text(encoding="utf-8")) <= declared, path.name
    for entry in build.present():
        for cell in build.read(build.FOLDER / entry.file).cells:
            if cell.cell_type == "code" and "setup" not in build.tags(cell):
                assert imported(cell.source) <= declared | {"IPython"}, (entry.file, cell.source)
    tests = {canonicalize_name(r.name) for r in DIRECT} | {"speclib", "notebooks", "tests"}
    for path in (*(ROOT / "tests").glob("*.py"), ROOT / "notebooks/build.py"):
        own = {other.stem for other in path.parent.glob("*.py")}
        assert imported(path.read_text(encoding="utf-8")) <= tests | own, path.name


def test_the_version_is_the_same_everywhere():
    import speclib

    assert speclib.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert Version(PROJECT["version"]).release


def test_a_fork_changes_the_address_in_one_place(tmp_path):
    fork = tmp_path / "fork"
    unwanted = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info", "models", "*.png", "build", "runs")
    shutil.copytree(ROOT, fork, ignore=unwanted, symlinks=True)
    project = fork / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace(build.address(), "https://github.com/some-one/a-fork"), encoding="utf-8")
    subprocess.run([sys.executable, "notebooks/build.py", "headers"], cwd=fork, check=True)
    owner = build.address().removeprefix("https://github.com/")
    texts = {path.relative_to(fork).as_posix(): path.read_text(encoding="utf-8", errors="ignore") for path in fork.rglob("*") if path.is_file()}
    assert [name for name, text in texts.items() if owner in text] == []
    assert all("some-one/a-fork" in texts[name] for name in ("README.md", "CITATION.cff", *(f"notebooks/{e.file}" for e in build.present())))


def test_what_is_generated_is_up_to_date():
    for name, sections in build.generated().items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for marker, content in sections.items():
            assert build.fill(text, marker, content) == text, f"{name}: run notebooks/build.py headers"


def test_the_set_up_cell_touches_nothing_but_this_package_on_colab_and_nothing_elsewhere(monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(os, "chdir", lambda folder: commands.append(["cd", folder]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(build.setup(), {})
    assert commands == []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(build.setup(), {})
    clone, install, enter = commands
    home = clone[-1]
    assert clone[:2] == ["git", "clone"] and build.address() in clone
    assert install[1:4] == ["-m", "pip", "install"] and "--no-deps" in install and install[-1] == home
    assert enter == ["cd", home + "/notebooks"] and sys.path[0] == home


def test_the_data_stays_small_enough_to_clone():
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*") if path.is_file()) < 110_000_000
