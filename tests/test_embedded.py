"""Where the workbook's files are looked for: by the package, never in a neighbour or in the working directory; and
nothing is written beside an installed package.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import speclib
from speclib import embedded, errors

PACKAGE = Path(speclib.__file__).resolve().parent
CATEGORIES = ("explanation", "code", "sums", "rewriting", "lists")
OURS = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("project", "folders", "right"),
    [
        (OURS, ["data/models"], True),
        (OURS, ["data"], False),  # a source distribution, whose data/ holds what a command wrote
        (OURS, [], False),
        (None, ["data/models"], False),  # another package's data/ in site-packages
        ('[project]\nname = "other"\n', ["data/models"], False),  # the package was copied into somebody's project
        # the spectra
        ('[project]\nname = "speclib"\n[project.scripts]\nspeclib = "speclib.cli:main"\n', ["data/models"], False),
        (b"\xff\xfe\x00", ["data/models"], False),
    ],
)
def test_a_checkout_is_known_by_its_project(project, folders, right, tmp_path):
    if project is not None:
        (tmp_path / "pyproject.toml").write_bytes(project if isinstance(project, bytes) else project.encode())
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert embedded.in_checkout(tmp_path) is right


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package without its repository, beside another package's data/, and a function that runs Python on it in an
    empty folder.
    """
    folder = tmp_path_factory.mktemp("installed")
    site, here = folder / "site-packages", folder / "here"
    shutil.copytree(PACKAGE, site / "speclib", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "data" / "models" / "target").mkdir(parents=True)
    (site / "data" / "models" / "target" / "config.json").write_text("{}")
    (here / "target" / "debug").mkdir(parents=True)
    (here / "data").mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": str(site),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env |= {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    for part in ("models", "prompts"):
        shutil.copytree(embedded.DATA / part, folder / "cache" / "speclib" / part)

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], cwd=here, env=env, capture_output=True, text=True)

    return folder, run


def test_an_installed_package_finds_its_files_and_writes_nothing_beside_itself(installed):
    folder, run = installed
    site, here = folder / "site-packages", folder / "here"
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    load = ("-c", "import speclib; print(speclib.load_pair().target.name, *speclib.ladder())")
    first = run(*load)
    assert first.stdout.split() == ["target", *speclib.ladder()]
    script = (
        "import sys; from speclib import bench\nbench.pairs.measure = lambda *_: (_ for _ in "
        "()).throw(KeyboardInterrupt)\nfrom speclib.__main__ import main; sys.exit(main(['bench', 'pair']))"
    )
    done = run("-c", script)
    assert done.returncode == 130 and f"results go to {here / 'speclib-results'}" in done.stderr
    growth = (
        "import sys; from speclib import bench, growth\ngrowth.measure = lambda *_, **__: {'rules': [{'ms': "
        "1.0}]}\nfrom speclib.__main__ import main; code = main(['bench', 'growth'])\nfrom speclib import "
        "experiments; print(experiments.recorded('growth')['rules']); sys.exit(code)"
    )
    done = run("-c", growth)
    assert (
        done.returncode == 0
        and done.stdout.endswith("[{'ms': 1.0}]\n")
        and (here / "speclib-results" / "growth.json").is_file()
    )
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before
    assert run(*load).stdout == first.stdout


def test_without_network_one_line_says_what_is_missing_and_what_to_do(installed):
    folder, run = installed
    (folder / "cache" / "speclib" / "models" / "eagle" / "model.safetensors").unlink()
    done = run(
        "-c",
        "from speclib import drafters, errors\ntry: drafters.load_eagle()\nexcept errors.ModelLoadError as error: "
        "print(error)",
    )
    (told,) = [line for line in done.stdout.splitlines() if line.strip()]
    assert re.search(
        r"data/models/eagle/model.safetensors is neither here nor could it be fetched from .*; connect to the "
        r"network once, or use a checkout",
        told,
    )


def test_a_folder_called_as_a_model_does_not_take_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("target", "draft-d64x1", "target-editor"):
        Path(name, "debug").mkdir(parents=True)
    pair = speclib.load_pair(draft="draft-d64x1")
    assert pair.target.parameters > 1e7 and pair.draft.parameters > 1e5
    for own in ("./target", Path("target"), tmp_path / "target"):  # whoever means the folder can say so
        with pytest.raises(errors.ModelLoadError, match="cannot load"):
            speclib.load_model(own)


def test_a_damaged_registry_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "REGISTRY", tmp_path / "registry.txt")
    with pytest.raises(errors.ModelLoadError, match="registry.txt is missing.*reinstall"):
        embedded.registry()
    for content in ("models/a 00ff\n", "models/a 00ff many\n", "a\n"):
        embedded.REGISTRY.write_text(content)
        for ask in (embedded.registry, speclib.ladder):
            with pytest.raises(errors.ModelLoadError, match="reinstall speclib"):
                ask()


def test_the_registry_tells_the_order_of_the_ladder():
    """From the smallest file to the largest, so that it is known where the files are not."""
    sizes = [(embedded.DATA / path).stat().st_size for path in embedded.registry()]
    assert sizes == sorted(sizes)
    cards = [
        json.loads((embedded.DATA / "models" / name / "card.json").read_text("utf-8")) for name in speclib.ladder()
    ]
    assert [card["parameters"] for card in cards] == sorted(card["parameters"] for card in cards)


def test_chat_prompts_are_ours_in_five_categories_and_a_file_of_others_is_checked(tmp_path):
    ours = embedded.chat_prompts()
    counts = {category: sum(entry["category"] == category for entry in ours) for category in CATEGORIES}
    assert sum(counts.values()) == len(ours) >= 40 and min(counts.values()) >= 8
    assert len({entry["prompt"] for entry in ours}) == len(ours)
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": 1, "category": "a", "prompt": "Why?"}\n\n', "utf-8")
    assert embedded.chat_prompts(other) == [{"category": "a", "prompt": "Why?"}]
    for content in ("", "no JSON", '{"prompt": "Why?"}', '{"category": "a", "prompt": " "}', "[1]", '"text"'):
        other.write_text(content, "utf-8")
        with pytest.raises(errors.FileError, match="other.jsonl is damaged or not what it should be.*JSON lines"):
            embedded.chat_prompts(other)
    with pytest.raises(errors.FileError, match="none.jsonl"):
        embedded.chat_prompts(tmp_path / "none.jsonl")
