"""Runs the ranges that pyproject.toml declares, each in an environment of its own, and records what came of it.

The record is data/results/matrix.json.

lowest: the lowest versions admitted, on the lowest Python found; newest: the newest, on the highest; both run the demo,
the unit tests and notebooks 00, 03 and 04. tested: constraints.txt on each Python found; the demo, notebooks 00 and 03.

    python tests/matrix.py                            all of it: an hour or two, one environment (1 to 6 GB) at a time
    python tests/matrix.py newest --python python3.13 --part demo     one part; the record keeps the others

What a machine cannot run stays "not run" in the record; write the reason behind it.
--override FILE takes versions whatever anybody asks (a requirements file, as uv's option); the record names them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import install  # noqa: E402  where torch comes from is decided there

RECORD = ROOT / "data" / "results" / "matrix.json"
RESOLUTION = {"lowest": ["--resolution", "lowest-direct"], "tested": ["-c", "constraints.txt"], "newest": ["--upgrade"]}


def parts(column: str, folder: str) -> dict[str, list[str]]:
    """Name -> arguments of python, for what a column runs."""
    strictly = ["-m", "pytest", "-q", "--nbval", "--nbval-sanitize-with", "notebooks/sanitize.cfg"]
    # that one would judge what is being made
    own = "tests/test_packaging.py::test_the_record_of_the_matrix_holds_every_column_without_a_failure"
    unit = {"unit tests": ["-m", "pytest", "-q", "-n", "2", "tests", "--deselect", own]} if column != "tested" else {}
    notebooks = sorted(ROOT.glob("notebooks/0[03]_*.ipynb" if column == "tested" else "notebooks/0[034]_*.ipynb"))
    books = {f"notebook {path.name[:2]}": [*strictly, str(path.relative_to(ROOT))] for path in notebooks}
    return {"demo": ["-m", "speclib", "demo", "--out", f"{folder}/demo.png"], **books, **unit}


def pythons() -> list[str]:
    """The Pythons on the path that the tested set supports, lowest first; of each version the one that runs."""
    minors = range(install.OLDEST[1], install.NEWEST[1] + 1)
    found = {minor: shutil.which(f"python3.{minor}") for minor in minors}
    return [path for minor, path in found.items() if path and install.version(path) == (3, minor)]


def resolve(column: str, python: str, override: Path | None, into: Path) -> list[str]:
    """Writes what uv resolves; returns pip's further options. Raises CalledProcessError if nothing fits."""
    cpu = sys.platform == "linux" and not install.gpu() and install.reachable("cpu")
    options = [
        *RESOLUTION[column],
        *(["--torch-backend", "cpu"] if cpu else []),
        *(["--override", str(override)] if override else []),
    ]
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "-q",
        "pyproject.toml",
        "--extra",
        "all",
        "--python",
        python,
        *options,
        "-o",
        str(into),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return ["--extra-index-url", install.INDEX + "cpu"] if cpu else []


def run(column: str, python: str, override: Path | None, chosen: list[str]) -> Iterator[dict]:
    """One environment, made, used for the chosen parts (or all), removed: after each part, its entry of the record."""
    entry = {
        "column": column,
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "overridden": [],
        "parts": {},
    }
    if override:
        entry["overridden"] = [line for line in override.read_text().split("\n") if line and not line.startswith("#")]
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        own, sets = Path(folder, "venv"), Path(folder, "sets.txt")
        inside = str(own / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PIP_USER": "0"}
        try:
            entry["python"] = install.output(python, "-c", "import platform; print(platform.python_version())")
            options = resolve(column, python, override, sets)
            subprocess.run([python, "-m", "venv", str(own)], check=True)
            subprocess.run(
                [inside, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "-r", str(sets), *options],
                check=True,
                env=env,
            )
        except subprocess.CalledProcessError as error:
            entry["parts"]["installation"] = f"failed: {(error.stderr or str(error)).strip().splitlines()[-1]}"
            yield entry
            return
        found = importlib.metadata.distributions(path=[install.site_packages(inside)])
        installed = {d.metadata["Name"].lower(): d.version for d in found}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        names = sorted(Requirement(line).name for line in project["dependencies"])
        entry["versions"] = {name: installed[name] for name in names}
        every = parts(column, folder)
        entry["parts"] = dict.fromkeys(every, "not run")
        for name in filter(every.get, chosen or every):
            begun = time.monotonic()
            command = [inside, *every[name]]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            done = subprocess.run(command, cwd=ROOT, env=env, **streams)
            said = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
            entry["parts"][name] = f"failed: {said}" if done.returncode else "passed"
            took = f"{time.monotonic() - begun:.0f} s"
            print(f"{column}, Python {entry['python']}, {name}, {took}: {entry['parts'][name]}", flush=True)
            if done.returncode:
                print(done.stdout[-6000:], flush=True)
            yield entry


def main() -> int:
    """Runs what was asked for and writes the record after each part; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    columns = [*RESOLUTION, []]
    parser.add_argument("columns", nargs="*", choices=columns, metavar="COLUMN", help="lowest, tested, newest; or all")
    parser.add_argument("--python", action="append", help="instead of those on the path; again for more, lowest first")
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        help="only this part, such as 'unit tests'; again for more (default: all)",
    )
    parser.add_argument("--override", type=Path, help="a requirements file: versions to take")
    args = parser.parse_args()
    if unknown := set(args.part) - set(parts("newest", "")):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(parts('newest', ''))}")
    found = args.python or pythons()
    chosen = {"lowest": found[:1], "tested": found, "newest": found[-1:]}
    entries = json.loads(RECORD.read_text()) if RECORD.exists() else []
    failed = False
    for column in args.columns or RESOLUTION:
        for python in chosen[column]:
            for new in run(column, python, args.override, args.part):
                failed |= any(result.startswith("failed") for result in new["parts"].values())
                old = [e for e in entries if (e["column"], e["python"]) == (new["column"], new["python"])]
                for name, result in new["parts"].items():
                    if result == "not run" and old and old[0].get("versions") == new["versions"]:
                        new["parts"][name] = old[0]["parts"].get(name, result)
                entries = [e for e in entries if e not in old] + [new]
                entries.sort(key=lambda e: (list(RESOLUTION).index(e["column"]), e["python"]))
                RECORD.write_text(json.dumps(entries, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
