"""Consoles, pipes and Ctrl-C: any text anywhere, and a quiet end with the exit code that shells expect."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speclib import console, demo
from speclib.__main__ import main

TEXT = "naïve → 日本語 🎉 \N{REPLACEMENT CHARACTER} \udce9"  # last: a broken byte


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("charset", ["cp1252", "ascii", "latin-1", "cp437", "gbk", "utf-8"])
def test_any_text_goes_to_any_console(charset, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=charset)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(demo, "run", lambda args: print(args.prompt) or 0)
    assert main(["demo", "--prompt", TEXT]) == 0
    shown = out.buffer.getvalue().decode(charset)
    assert len(shown.strip()) == len(TEXT) and shown.startswith("na") and shown.strip().endswith("?")
    assert charset != "utf-8" or shown.strip() == TEXT[:-1] + "?"


def test_a_narrow_character_set_in_a_process_of_its_own():
    script = (
        f"from speclib import demo; demo.run = lambda args: print({TEXT!r}) or 0\nfrom speclib.__main__ import "
        f"main; raise SystemExit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(PYTHONIOENCODING="cp1252"), capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.decode("cp1252").startswith("naïve ? ??? ?")


def test_a_closed_pipe_ends_quietly():
    """`| head` that has gone already: for the help, and for what a command prints."""
    printing = (
        "from speclib import demo; demo.run = lambda args: [print(k) for k in range(99999)] and 0\nfrom "
        "speclib.__main__ import main; raise SystemExit(main(['demo']))"
    )
    for command, unbuffered in ((["-m", "speclib", "--help"], ""), (["-c", printing], ""), (["-c", printing], "1")):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, *command],
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line():
    script = (
        "from speclib import demo; demo.run = lambda args: print('x') or 0\nfrom speclib.__main__ import main; "
        "raise SystemExit(main(['demo']))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("speclib: [Errno 28]")


def test_the_figure_of_the_demo_is_there_before_a_word_is_printed_about_it(tmp_path, monkeypatch):
    class Closing(io.StringIO):
        def write(self, text):
            if "target forwards" in text:
                raise BrokenPipeError
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Closing())
    monkeypatch.setattr(console, "close_quietly", lambda: None)
    figure = tmp_path / "race.png"
    assert main(["demo", "--tokens", "4", "--repeats", "1", "--backend", "eager", "--out", str(figure)]) == 141
    assert figure.read_bytes().startswith(b"\x89PNG")


SWALLOWING = """
import time
print("loading", flush=True)
try:
    time.sleep(60)
except BaseException as error:  # as libraries do around their compiled parts
    raise ImportError("a compiled part failed to load") from error
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("slow", ["torch", "transformers"])
def test_ctrl_c_during_the_imports_ends_quietly(slow, tmp_path):
    """Whichever import is slow, and though it turns a KeyboardInterrupt into an error of its own."""
    (tmp_path / slow).mkdir()
    (tmp_path / slow / "__init__.py").write_text(SWALLOWING)
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, "-m", "speclib", "--version"],
        env=environment(PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "") and err == console.MESSAGE


def test_ctrl_c_in_other_programs_stays_as_it_was(monkeypatch):
    for words in (["python", "-m", "pytest"], ["python", "speclib.py", "-m"], ["python", "-m", "speclib.other"]):
        monkeypatch.setattr(sys, "orig_argv", words)
        with pytest.raises(KeyboardInterrupt), console.loading():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "speclib"])
    with pytest.raises(ZeroDivisionError), console.loading():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
