"""The command line: help for everything; a mistake is exit code 2 with one clear line, never a traceback."""

import re
import subprocess
import sys

import pytest

from speclib import bench
from speclib.__main__ import main


def call(arguments, capsys):
    """(exit code, what was printed, what went to the error stream)"""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def commands(capsys):
    """The subcommands that --help lists."""
    return re.findall(r"^    ([a-z0-9]+)(?: |$)", call(["--help"], capsys)[1], re.M)


def test_help_lists_every_command_and_each_explains_itself(capsys):
    found = commands(capsys)
    assert {"demo", "bench", "train"} <= set(found)
    for command in found:
        code, out, err = call([command, "--help"], capsys)
        assert code == 0 and err == "" and f"speclib {command}" in out and len(out.splitlines()) > 4


@pytest.mark.parametrize("name", bench.MEASUREMENTS)
def test_each_measurement_of_bench_explains_itself(name, capsys):
    code, out, err = call(["bench", name, "--help"], capsys)
    assert code == 0 and err == "" and f"speclib bench {name}" in out and "--quick" in out and "--out" in out
    assert ("--backend" in out) == (name not in ("growth", "hazard", "published", "layouts", "batches"))


def test_bench_alone_says_what_to_do_and_measures_nothing(capsys):
    code, out, err = call(["bench"], capsys)
    assert code == 0 and err == "" and "python -m speclib bench headline" in out
    assert re.findall(r"^    ([a-z]+)(?: |$)", out, re.M) == [*bench.MEASUREMENTS]


def test_version(capsys):
    import speclib

    assert call(["--version"], capsys)[:2] == (0, f"speclib {speclib.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["--nonsense"], "COMMAND"),
        (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["demo", "--tokens", "many"], "invalid count value: 'many'"),
        (["demo", "--temperature", "-1"], "temperature must be 0"),
        (["demo", "--repeats", "0"], "--repeats: must be at least 1"),
        (["demo", "--draft", "/no/such/folder"], "cannot load '/no/such/folder'"),
        (["demo", "--tokens", "0"], "--tokens: must be at least 1, not 0"),
        (["demo", "--draft-length", "-3"], "draft_length must be"),
        (["demo", "--prompt", ""], "prompt 0 is empty"),
        (["bench", "fly"], "invalid choice: 'fly'"),
        (["bench", "pair", "--prompts", "0"], "--prompts: must be at least 1"),
        (["bench", "headline", "--threads", "0"], "--threads: must be at least 1"),
        (["bench", "published", "--dtype", "float31"], "invalid choice: 'float31'"),
        (["bench", "pair", "--tokens", "0"], "--tokens: must be at least 1"),
        (["bench", "batches", "--rows", "0"], "--rows: must be at least 1"),
        (["bench", "batches", "--rows", "64"], "a batch of 64 rows needs as many texts; take --prompts 64"),
        (["bench", "growth", "--tokens", "8"], "unrecognized arguments: --tokens"),
        (["bench", "pair", "--prompts", "no_such.jsonl"], "no_such.jsonl is damaged"),
        (["bench", "pair", "--dtype", "float31"], "dtype must be a torch dtype"),
        (["train", "no-such-recipe"], "no recipe is called no-such-recipe"),
        (["train", "--tokens", "0"], "--tokens: must be at least 1"),
        (["train", "--corpus", "/no/such/file.txt"], "cannot read the corpus /no/such/file.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "-",
)
def test_a_mistake_is_exit_code_2_and_one_clear_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(arguments, capsys)
    lines = [line for line in err.splitlines() if "error: " in line or line.startswith("speclib: ")]
    assert code == 2 and "Traceback" not in out + err
    assert len(lines) == 1 and words in lines[0], err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # nothing was done


def test_the_module_and_its_exit_code_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "speclib", "train", "no-such-recipe"], capture_output=True, text=True)
    # torch's own, of a build with CUDA beside nvcc
    lines = [line for line in done.stderr.splitlines() if "No CUDA runtime is found" not in line]
    assert (
        done.returncode == 2
        and done.stdout == ""
        and len(lines) == 1
        and lines[0].startswith("speclib: no recipe is called")
    )


def test_interrupting_is_no_error(capsys, monkeypatch):
    from speclib import demo

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.language_model, "load_pair", interrupted)
    code, _, err = call(["demo"], capsys)
    assert code == 130 and err.splitlines()[-1].startswith("speclib: interrupted")
