"""pyproject.toml, constraints.txt, environment.yml and .binder/ say the same, and the address stands in one place."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import install
from notebooks import build
from tests import matrix

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
FURTHER = {r.name: r.specifier for r in EXTRAS["lab"]}  # what JupyterLab asks of them beside
DIRECT = REQUIRED + EXTRAS["lab"] + EXTRAS["test"]
CONDA = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}  # conda-forge's names for the same things

# What Colab had in August 2026 (those of our dependencies whose version is known).
COLAB = {"torch": "2.11.0", "transformers": "5.15.0", "numpy": "2.1.0", "pandas": "2.2.0", "ipywidgets": "7.7.0"}


def pins() -> dict[str, str]:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def conda(name: str) -> dict[str, Requirement]:
    lines = re.findall(r"^  - (\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.M)
    return {
        r.name: r
        for r in (
            Requirement(re.sub(r"(?<![=<>!~])=(?!=)", "==", line))
            for line in lines
            if line not in ("conda-forge", "pip:")
        )
    }


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


def test_torch_is_installed_first_wherever_it_is_written():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index(f"pip install torch=={pins()['torch']} -c constraints.txt") < readme.index(
        "pip install -c constraints.txt -e '.[all]'"
    )
    assert install.wanted()[1] == pins()["torch"]
    assert [Requirement(line) for line in install.wanted()[0]] == DIRECT


def test_the_distribution_is_not_somebody_elses():
    """PyPI's speclib is a library of spectra; nothing that we write may install it."""
    assert (
        PROJECT["name"]
        == "speculative-sampling-workbook"
        == Requirement(PROJECT["optional-dependencies"]["all"][0]).name
    )
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in (*ROOT.glob("*.md"), *ROOT.glob("*.yml"), ROOT / "Makefile", ROOT / "notebooks/build.py")
    }
    assert [path.name for path, text in texts.items() if re.search(r"(?<!Not `)pip install speclib", text)] == []


@pytest.mark.parametrize(
    "summary, told",
    [("Federated spectral signature library", True), ("Speculative sampling of language models", False)],
)
def test_a_clash_with_the_other_speclib_is_told_in_one_line(tmp_path, summary, told):
    (tmp_path / "speclib-1.0.1.dist-info").mkdir()
    (tmp_path / "speclib-1.0.1.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: speclib\nVersion: 1.0.1\nSummary: {summary}\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "speclib", "--version"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, "library of spectra" in done.stderr) == (int(told), told)
    assert not told or len(done.stderr.splitlines()) == 1  # nothing of ours was imported before


def test_conda_has_the_same_ranges_and_brings_the_package():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = conda("environment.yml")
    ranges = {requirement.name: requirement.specifier for requirement in DIRECT}  # an extra's is the narrower one
    for name, specifier in ranges.items():
        assert environment[CONDA.get(name, name)].specifier == specifier, name
    assert len(environment) == len(ranges) + 2  # and python, pip
    assert "  - python=3.12\n" in text and text.endswith("  - pip:\n    - -e .\n")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.12")


def test_binder_has_the_same_environment_and_then_installs_the_package_without_dependencies():
    binder = ROOT / ".binder"
    assert conda(".binder/environment.yml") == conda("environment.yml")
    assert "pip:" not in (binder / "environment.yml").read_text(encoding="utf-8")  # made before the repository is there
    assert os.access(binder / "postBuild", os.X_OK)
    lines = (binder / "postBuild").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "set -e"
    assert any(line.startswith("pip install") and "--no-deps" in line for line in lines)


def test_no_checkout_changes_the_bytes_of_a_registered_file(tmp_path):
    """Git for Windows turns line ends round unless .gitattributes forbids it."""
    names = [
        f"data/{line.split()[0]}" for line in (ROOT / "speclib/registry.txt").read_text(encoding="utf-8").splitlines()
    ]
    kept = [*names, "speclib/registry.txt", ".ci/run", ".binder/postBuild", "Makefile"]
    command = ["git", "-c", f"core.attributesFile={os.devnull}", "check-attr", "text", "eol", "--", *kept]
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        shutil.copy(ROOT / ".gitattributes", tmp_path)
        lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        pytest.skip("git is missing")
    safe = {line.rsplit(": ", 2)[0] for line in lines if line.endswith((": text: unset", ": eol: lf"))}
    assert safe == set(kept)


PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
VERSIONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")


def test_the_tested_set_can_be_had_for_every_python_and_system_that_the_readme_names(tmp_path):
    uv = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "-q",
        "pyproject.toml",
        "--extra",
        "all",
        "-c",
        "constraints.txt",
        "--only-binary",
        ":all:",
    ]
    env = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # torch's wheels want macOS 14

    def resolve(case):
        version, system = case
        command = [
            *uv,
            "--python-version",
            version,
            "--python-platform",
            system,
            "-o",
            str(tmp_path / f"{version}-{system}.txt"),
        ]
        for where in (
            ["--offline"],
            [],
        ):  # pins do not change: what an earlier run looked up still holds, and takes a second
            done = subprocess.run([*command, *where], cwd=ROOT, env=env, capture_output=True, text=True)
            if done.returncode == 0:
                break
        return case, done.returncode, done.stderr

    if subprocess.run([*uv[:3], "--version"], capture_output=True).returncode:
        pytest.skip("uv is missing: it is in the extra `test`")
    cases = [(version, system) for version in VERSIONS for system in PLATFORMS]
    first = resolve(cases[0])
    if re.search("error sending request|dns error|[Ff]ailed to fetch|client error|timed out", first[2]):
        pytest.skip(f"the package index cannot be reached: {first[2].strip().splitlines()[-1]}")
    with ThreadPoolExecutor(8) as pool:
        results = [first, *pool.map(resolve, cases[1:])]
    assert {case: said for case, code, said in results if code} == {}
    names = {name for path in tmp_path.glob("*.txt") for name in re.findall(r"^([\w.-]+)==", path.read_text(), re.M)}
    with_cuda = ("nvidia-", "cuda-", "triton")  # what PyPI's torch for Linux names exactly by itself
    assert {name for name in names if not name.startswith(with_cuda)} <= set(pins())


def test_what_is_promised_about_python_is_what_is_tried():
    assert (
        PROJECT["requires-python"] == f">={VERSIONS[0].removesuffix('.0')}" == ">=" + ".".join(map(str, install.OLDEST))
    )
    assert VERSIONS[-1] == f"{install.NEWEST[0]}.{install.NEWEST[1]}.0"
    named = readme_pythons()
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert re.search(r"python: \[(.*)\]", workflow).group(1) == ", ".join(f'"{version}"' for version in named)
    for column in matrix.RESOLUTION:
        assert f"{{column: {column}, python:" in workflow
    assert set(named) <= {version.rsplit(".", 1)[0] for version in VERSIONS}


def readme_pythons() -> tuple[str, ...]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"Python (3\.\d+), (3\.\d+) or (3\.\d+) with venv", text).groups()


def test_the_matrix_runs_these_notebooks():
    ends = [Path(arguments[-1]).stem for name, arguments in matrix.parts("newest", "").items() if "notebook" in name]
    assert ends == ["00_start_here", "03_speculative_sampling", "04_lossless"]
    every = [Path(arguments[-1]).stem for name, arguments in matrix.parts("tested", "").items() if "notebook" in name]
    assert every == ends[:2]


def test_the_record_of_the_matrix_holds_every_column_without_a_failure():
    """As the matrix is declared: the ends of the ranges and the tested set, on the Pythons that the README names."""
    entries = json.loads(matrix.RECORD.read_text(encoding="utf-8"))
    named = readme_pythons()
    held = [(entry["column"], entry["python"].rsplit(".", 1)[0]) for entry in entries]
    assert held == [("lowest", named[0]), *(("tested", version) for version in named), ("newest", named[-1])]
    for entry in entries:
        column, parts = entry["column"], entry["parts"]
        assert set(parts) == set(matrix.parts(column, "")), column
        assert set(parts.values()) == {"passed"}, (column, parts)
        assert entry["overridden"] == [], column
        for requirement in REQUIRED:
            version = Version(entry["versions"][requirement.name])
            if column == "tested":
                assert version.public == pins()[requirement.name], (column, requirement.name)
            admitted = requirement.specifier & FURTHER.get(requirement.name, SpecifierSet())
            assert admitted.contains(version), (column, requirement.name)
            floor = max(Version(part.version) for part in admitted if part.operator == ">=")
            at_floor = version.release[: len(floor.release)] == floor.release
            assert at_floor or column != "lowest", (column, requirement.name)


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
    tests = {canonicalize_name(r.name) for r in DIRECT} | {"speclib", "notebooks", "tests", "install"}
    tests |= {"PIL"}  # matplotlib draws with it
    for path in (*(ROOT / "tests").glob("*.py"), ROOT / "notebooks/build.py"):
        own = {other.stem for other in path.parent.glob("*.py")}
        assert imported(path.read_text(encoding="utf-8")) <= tests | own, path.name


def test_a_module_is_found_without_its_room():
    """In a Python of its own: what another test imported must not help."""
    code = """
import speclib
from speclib.trace import Trace
from speclib.decoding import generate
from speclib.loop import trace
assert Trace is trace.Trace and generate is speclib.generate
for room, names in speclib.ROOMS.items():
    for name in names:
        scope = {}
        exec(f"from speclib import {name} as short; from speclib.{room} import {name} as long", scope)
        assert scope["short"] is scope["long"] and scope["long"].__name__ == f"speclib.{room}.{name}", name
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_version_is_the_same_everywhere():
    import speclib

    assert speclib.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert Version(PROJECT["version"]).release


def test_a_fork_changes_the_address_in_one_place(tmp_path):
    fork = tmp_path / "fork"
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info", "models", "*.png", "build", "runs"
    )
    shutil.copytree(ROOT, fork, ignore=unwanted, symlinks=True)
    project = fork / "pyproject.toml"
    project.write_text(
        project.read_text(encoding="utf-8").replace(build.address(), "https://github.com/some-one/a-fork"),
        encoding="utf-8",
    )
    subprocess.run([sys.executable, "notebooks/build.py", "headers"], cwd=fork, check=True)
    owner = build.address().removeprefix("https://github.com/")
    texts = {
        path.relative_to(fork).as_posix(): path.read_text(encoding="utf-8", errors="ignore")
        for path in fork.rglob("*")
        if path.is_file()
    }
    assert [name for name, text in texts.items() if owner in text] == []
    assert all(
        "some-one/a-fork" in texts[name]
        for name in ("README.md", "CITATION.cff", *(f"notebooks/{e.file}" for e in build.present()))
    )


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
