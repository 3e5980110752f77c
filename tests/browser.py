"""A headless Chromium for the tests of a page, driven by its DevTools protocol over a pipe."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Chromium reads commands from 3 and answers on 4; the pipe's ends are moved away first, as they may be 3 or 4 already
BEGIN = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])"""


def missing() -> str | None:
    """Why there is no browser to test with; None: there is one."""
    if os.name != "posix":
        return "its pipe needs a POSIX system"
    return None if any(map(shutil.which, NAMES)) else f"none of {', '.join(NAMES)} is on the path"


class Browser:
    """One tab. `errors`: what the page's scripts threw or logged as errors; `requests`: every address asked for."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        program = next(filter(None, map(shutil.which, NAMES)))
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command = [program, *flags, "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"]
        (commands, self.to), (self.answers, replies) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(commands), str(replies), *command],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self.number, self.unread, self.session, self.errors, self.requests = 0, b"", {}, [], []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters) -> dict:
        """One command of the protocol -> its result. Raises RuntimeError if the browser refuses."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.to, json.dumps(command).encode() + b"\0")
        while True:
            message = json.loads(self._read())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _read(self, seconds: float = 60) -> bytes:
        """The next message. Raises TimeoutError if none comes, or the browser has ended."""
        while b"\0" not in self.unread:
            ready = select.select([self.answers], [], [], seconds)[0]
            more = os.read(self.answers, 1 << 20) if ready else b""
            if not more:
                raise TimeoutError(f"no word from the browser within {seconds} s; its exit code: {self.process.poll()}")
            self.unread += more
        message, self.unread = self.unread.split(b"\0", 1)
        return message

    def _note(self, message: dict) -> None:
        method, facts = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"].get("exception", facts["exceptionDetails"])))
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])

    def evaluate(self, script: str):
        """The value of an expression in the page. Raises RuntimeError if it throws."""
        result = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 30):
        """Waits until the expression is true. Raises TimeoutError."""
        end = time.time() + seconds
        while time.time() < end:
            if value := self.evaluate(script):
                return value
            time.sleep(0.02)
        raise TimeoutError(f"not true within {seconds} s: {script}")

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Loads an address afresh in a window of that size, and waits until its scripts have run."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str, times: int = 1, code: int | None = None) -> None:
        """Presses a key by its DOM name, such as ArrowRight, Tab or Enter."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            " ": 32,
            "End": 35,
            "Home": 36,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        for _ in range(times):
            self("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self("Input.dispatchKeyEvent", type="keyUp", **facts)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.answers)
        self.profile.cleanup()
