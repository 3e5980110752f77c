"""A headless Chromium for the tests of a page, driven by its DevTools protocol.

JupyterLab brings the websocket client that this needs.
"""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def missing() -> str | None:
    """Why there is no browser to test with; None: there is one."""
    try:
        import websocket  # noqa: F401
    except ImportError:
        return "websocket-client is not installed (JupyterLab brings it)"
    return None if any(map(shutil.which, NAMES)) else f"none of {', '.join(NAMES)} is on the path"


class Browser:
    """One tab. `errors`: what the page's scripts threw or logged as errors; `requests`: every address asked for."""

    def __init__(self):
        import websocket

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        program = next(filter(None, map(shutil.which, NAMES)))
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
        ]
        command = [program, *flags, "--remote-allow-origins=*", f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port(Path(self.profile.name) / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            address = next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
        self.socket = websocket.create_connection(address, timeout=60)
        self.number, self.errors, self.requests = 0, [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def _port(self, file: Path) -> str:
        for _ in range(300):
            if file.exists() and file.read_text().strip():
                return file.read_text().split()[0]
            time.sleep(0.1)
        raise TimeoutError("the browser did not start within 30 seconds")

    def __call__(self, method: str, **parameters) -> dict:
        """One command of the protocol -> its result. Raises RuntimeError if the browser refuses."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

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
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.profile.cleanup()
