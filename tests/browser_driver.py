"""A Chromium driven over its debugging pipe: just what the tests of the web app need. Standard library only."""

import base64
import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from targets.devices import browser

PHONE = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
TIMEOUT_S = 60.0
NOISE = ("INFO: ", "WARNING: [npu_registry", "No available adapters", "Failed to create default WebGPU device")
"""LiteRT's information comes out as errors; a machine without a graphics processor is none"""
LEFT = "navigated or closed"
"""what the browser says of an expression whose page was left before it had a value"""


class BrowserError(RuntimeError):
    """The browser, or the page in it, reports an error."""


class Page:
    """A tab with a network log, a console log and a storage of its own."""

    def __init__(self, chromium: "Chromium", context: str, target: str, session: str) -> None:
        self._chromium, self._context, self._target, self._session = chromium, context, target, session
        self.requests: list[str] = []
        """URLs of the page's own; its workers' too"""
        self.console: list[str] = []
        """errors and warnings, without LiteRT's information"""
        self.loaded = 0

    def note(self, text: str) -> None:
        """What stands in the console."""
        if not any(noise in text for noise in NOISE):
            self.console.append(text)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol. Raises BrowserError."""
        return self._chromium.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Go there and wait for the load event."""
        before = self.loaded
        self.call("Page.navigate", url=url)
        self._chromium.pump(lambda: self.loaded > before)

    def reload(self) -> None:
        """Load again and wait for that."""
        before = self.loaded
        self.call("Page.reload")
        self._chromium.pump(lambda: self.loaded > before)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for. Raises BrowserError if it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, script: str, timeout: float = TIMEOUT_S) -> Any:
        """The value of an expression once it is true; if the page is left meanwhile, on the next one."""
        end = time.monotonic() + timeout
        while True:
            try:
                if found := self.run(script):
                    return found
            except BrowserError as error:
                if LEFT not in str(error):
                    raise
            if time.monotonic() > end:
                raise BrowserError(f"not within {timeout:g} s: {script}\n{self.run('document.body.innerText')}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click an element as a script does."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose(self, file: Path, selector: str = "#file") -> None:
        """Put a file into an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def emulate(self, *, dark: bool = False, still: bool = False, **metrics: Any) -> None:
        """A screen: see PHONE; colours; reduced motion."""
        self.call("Emulation.setDeviceMetricsOverride", **{**PHONE, **metrics})
        self.call("Emulation.setTouchEmulationEnabled", enabled=bool({**PHONE, **metrics}["mobile"]))
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of what is in view, or of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def close(self) -> None:
        """The tab, and what it has stored."""
        self._chromium.call("Target.disposeBrowserContext", browserContextId=self._context)
        self._chromium.pages.pop(self._session, None)


class Chromium:
    """A browser with a profile of its own; use `running`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._calls = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.pages: dict[str, Page] = {}
        self._children: dict[str, str] = {}
        """session of a worker -> that of its page"""

    def page(self, *, permissions: tuple[str, ...] = (), **screen: Any) -> Page:
        """A tab that shares nothing with others. permissions: for example videoCapture; screen: as Page.emulate"""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        if permissions:
            self.call("Browser.grantPermissions", browserContextId=context, permissions=list(permissions))
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, context, target, session)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.call(f"{domain}.enable")
        page.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        page.emulate(**screen)
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command, and its result. Raises BrowserError."""
        self._calls += 1
        number = self._calls
        self._send(number, method, session, parameters)
        self.pump(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def pump(self, done: Callable[[], bool], timeout: float = 2 * TIMEOUT_S) -> None:
        """Take what the browser says until `done`."""
        end = time.monotonic() + timeout
        while not done():
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            content = os.read(self._from, 1 << 20) if ready else b""
            if not content:
                raise BrowserError("the browser has ended" if ready else "the browser does not answer")
            *messages, self._buffer = (self._buffer + content).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _send(self, number: int, method: str, session: str | None, parameters: dict[str, Any]) -> None:
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, found, session = message["method"], message["params"], message.get("sessionId", "")
        if method == "Target.attachedToTarget" and session:  # a worker: its requests and messages are the page's
            child = found["sessionId"]
            self._children[child] = self._children.get(session, session)
            for domain in ("Runtime", "Network", "Log"):
                self._calls += 1
                self._send(self._calls, f"{domain}.enable", child, {})
        page = self.pages.get(self._children.get(session, session))
        if page is None:
            return
        if method == "Page.loadEventFired":
            page.loaded += 1
        elif method == "Network.requestWillBeSent":
            page.requests.append(found["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            text = " ".join(str(argument.get("value", argument.get("description", ""))) for argument in found["args"])
            page.note(text)
        elif method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            page.console.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            page.note(f"{found['entry']['text']} {found['entry'].get('url', '')}".strip())


@contextlib.contextmanager
def running(program: str, *flags: str) -> Iterator[Chromium]:
    """A headless Chromium for as long as the block takes."""
    with tempfile.TemporaryDirectory(prefix="dap-driven-", ignore_cleanup_errors=True) as profile:
        to_browser, from_browser = os.pipe(), os.pipe()
        shell = f'exec "$0" "$@" 3</dev/fd/{to_browser[0]} 4>/dev/fd/{from_browser[1]}'
        command = ["sh", "-c", shell, program, *browser._flags(), *flags, f"--user-data-dir={profile}", "about:blank"]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(to_browser[0], from_browser[1]),
                start_new_session=True,
            )
        finally:
            os.close(to_browser[0])
            os.close(from_browser[1])
        try:
            yield Chromium(to_browser[1], from_browser[0])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])
