"""A headless Chromium for tests, driven through a pipe by its DevTools protocol; nothing else has to be installed."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120  # seconds without an answer until it is given up
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Tab": 9, "Enter": 13, " ": 32}


class Chromium:
    """A browser with one page; what it downloads comes to `folder`. To be used in a `with` statement.

    Attributes:
        events: what it has reported, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.events, self._session = folder, [], ""
        self._count, self._read, self._waited, self._heard = 0, b"", 0, 0
        self._emulated: dict[str, dict[str, Any]] = {}  # what every window is told

    def __enter__(self) -> "Chromium":
        import fcntl  # of Unix alone

        # it reads from descriptor 3 and writes to 4: both must be free of other meanings when bash puts them there
        ends = (*os.pipe(), *os.pipe())
        theirs_in, self._out, self._in, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options.append(f"--user-data-dir={self.folder / 'profile'}")
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", PROGRAM, *options],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.new_window()
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.folder), eventsEnabled=True)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def new_window(self) -> None:
        """Close the page and open another one, which remembers nothing of it."""
        old = self.__dict__.pop("_target", None)
        self._target = self.send("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self.send("Target.closeTarget", targetId=old)
        self._session = self.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        for method, parameters in self._emulated.items():
            self.send(method, **parameters)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = self._write(method, parameters)
        while (reply := self._next()).get("id") != number:
            pass
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def wait(self, method: str, **expected: Any) -> dict[str, Any]:
        """The next event of this kind with these parameters, after the one that was waited for last."""
        while True:
            while self._waited == len(self.events):
                self._next()
            event = self.events[self._waited]
            self._waited += 1
            if event["method"] == method and expected.items() <= event["params"].items():
                return event["params"]

    def _write(self, method: str, parameters: dict[str, Any]) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._count

    def _next(self) -> dict[str, Any]:
        """The next message: a reply, or an event, which is kept. Questions of the page are answered with yes."""
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser says nothing"
            content = os.read(self._in, 2**20)
            assert content, "the browser has ended"
            self._read += content
        text, self._read = self._read.split(b"\0", 1)
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
            if message["method"] == "Page.javascriptDialogOpening":
                self._write("Page.handleJavaScriptDialog", {"accept": True})
        return message

    def downloaded(self) -> Path:
        """The file that the page has the browser download, when it is there."""
        begun = self.wait("Browser.downloadWillBegin")
        self.wait("Browser.downloadProgress", guid=begun["guid"], state="completed")
        return self.folder / begun["suggestedFilename"]

    def open(self, address: str) -> None:
        self._waited = len(self.events)
        self.send("Page.navigate", url=address)
        self.wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def press(self, key: str, *, control: bool = False) -> None:
        """Press and let go of a key: a character, or one of KEYS; `control`: with Ctrl."""
        code = KEYS.get(key, ord(key[0].upper()))
        stroke: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        if len(key) == 1 and not control:
            stroke["text"] = key
        if key == "Enter":
            stroke["text"] = "\r"
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **stroke)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, which must be the topmost there."""
        where = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element, which must be the topmost there."""
        where = self._middle(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])

    def _middle(self, selector: str) -> list[float]:
        where = self.evaluate(
            f"""(() => {{
                const chosen = document.querySelector({json.dumps(selector)});
                chosen.scrollIntoView({{ block: "center" }});
                const {{ left, top, width, height }} = chosen.getBoundingClientRect();
                const [x, y] = [left + width / 2, top + height / 2];
                return chosen.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
            }})()"""
        )
        assert where, f"nothing at {selector} can be clicked"
        return where

    def type(self, text: str) -> None:
        """Put text into the field that has the focus, as a keyboard does."""
        self.send("Input.insertText", text=text)

    def until(self, expression: str, seconds: float = 30) -> Any:
        """The value of an expression once it is true."""
        value = self.evaluate(
            f"""(async () => {{
                const end = performance.now() + {1000 * seconds};
                for (;;) {{
                    const value = (() => {{ try {{ return {expression}; }} catch {{ return null; }} }})();
                    if (value || performance.now() > end) return value instanceof Node || value;
                    await new Promise((go) => setTimeout(go, 10));
                }}
            }})()"""
        )
        assert value, f"never true: {expression}"
        return value

    def viewport(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window; `phone`: with touch instead of a mouse, and two pixels of the screen to one."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._emulate("Emulation.setDeviceMetricsOverride", **screen)

    def prefer(self, **features: str) -> None:
        """What the reader's system prefers: prefer(color_scheme="dark")."""
        names = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self._emulate("Emulation.setEmulatedMedia", features=names)

    def _emulate(self, method: str, **parameters: Any) -> None:
        self._emulated[method] = parameters
        self.send(method, **parameters)

    def screenshot(self, selector: str | None = None, *, whole: bool = False) -> bytes:
        """A PNG of the window, of an element that is in it, or of the whole page."""
        clip = {}
        if selector:
            x, y, width, height = self.evaluate(
                f"""(() => {{
                    const chosen = document.querySelector({json.dumps(selector)});
                    chosen.scrollIntoView({{ block: "center" }});
                    const {{ left, top, width, height }} = chosen.getBoundingClientRect();
                    return [left + scrollX, top + scrollY, width, height];
                }})()"""
            )
            clip = {"clip": {"x": x, "y": y, "width": width, "height": height, "scale": 1}}
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole, **clip)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the page, and requests that failed, since the last call."""
        self.evaluate("0")  # all that was reported before has arrived with the answer
        found = []
        for event in self.events[self._heard :]:
            method, told = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(str([part.get("value", part.get("description")) for part in told["args"]]))
            elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
                found.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            elif method == "Network.loadingFailed" and not told.get("canceled"):
                found.append(f"request failed: {told['errorText']}")
            elif method == "Network.responseReceived" and told["response"]["status"] >= 400:
                found.append(f"{told['response']['status']}: {told['response']['url']}")
        self._heard = len(self.events)
        return found
