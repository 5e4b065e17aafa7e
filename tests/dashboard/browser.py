"""A headless Chromium, driven by its DevTools protocol over Tornado's websocket client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
)
# All text of a page, that inside Bokeh's shadow roots too.
TEXT = """(() => { const walk = n => { let out = '';
  for (const c of n.childNodes) {
    if (c.nodeType === 3) out += c.nodeValue;
    else if (c.nodeType === 1 && !['STYLE', 'SCRIPT'].includes(c.tagName)) {
      out += (c.shadowRoot ? walk(c.shadowRoot) : '') + walk(c) + ' ';
    } } return out; }; return walk(document.body); })()"""
# Elements that match a selector, in shadow roots too.
FIND = """(s => { const found = []; const walk = n => {
  found.push(...n.querySelectorAll(s));
  for (const c of n.querySelectorAll('*')) if (c.shadowRoot) walk(c.shadowRoot); };
  walk(document); return found; })"""


class Page:
    """A tab."""

    def __init__(self, socket: WebSocketClientConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._count = socket, loop, 0
        self.complaints: list[str] = []
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        await self._socket.write_message(json.dumps(message))
        while True:
            answer = json.loads(await self._socket.read_message() or "{}")
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return dict(answer["result"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(answer["params"]["exceptionDetails"]))

    def open(self, url: str, ready: str, timeout: float = 30.0) -> float:
        """Open an address; return the seconds until an expression of JavaScript is true."""
        begin = time.perf_counter()
        self.call("Page.navigate", url=url)
        self.wait(ready, timeout)
        return time.perf_counter() - begin

    def wait(self, ready: str, timeout: float = 30.0) -> None:
        """Wait until an expression of JavaScript is true."""
        deadline = time.perf_counter() + timeout
        while not self.value(f"Boolean({ready})"):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{ready} is not true; the page says {self.value(TEXT)[:500]!r}")
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def text(self) -> str:
        """Return all text that is shown."""
        return str(self.value(TEXT))

    def count(self, selector: str) -> int:
        """Return how many elements match a selector."""
        return int(self.value(f"{FIND}({json.dumps(selector)}).length"))

    def shot(self, path: Path, width: int = 1280, height: int = 0) -> None:
        """Write a picture of the page, as high as its content if no height is given."""
        sizes = {"mobile": False, "deviceScaleFactor": 1, "width": width}
        self.call("Emulation.setDeviceMetricsOverride", **sizes, height=height or 800)
        if not height:
            height = int(self.value("document.documentElement.scrollHeight"))
            self.call("Emulation.setDeviceMetricsOverride", **sizes, height=height)
        time.sleep(0.5)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start Chromium with a profile of its own in a folder; yield a tab."""
    assert CHROMIUM is not None
    profile = folder / "chromium"
    (profile / "DevToolsActivePort").unlink(missing_ok=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
        start_new_session=True,
    )
    loop = asyncio.new_event_loop()
    try:
        port = _port(profile / "DevToolsActivePort", process)
        page = loop.run_until_complete(_connect(port))
        yield Page(page, loop)
        loop.run_until_complete(_close(page))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        loop.close()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.time() + 30
    while time.time() < deadline and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise RuntimeError("Chromium does not start")


async def _close(page: WebSocketClientConnection) -> None:
    page.close()  # it takes the loop that runs


async def _connect(port: int) -> WebSocketClientConnection:
    from tornado.httpclient import AsyncHTTPClient

    client = AsyncHTTPClient()
    found = await client.fetch(f"http://127.0.0.1:{port}/json/list")
    tab = next(t for t in json.loads(found.body) if t["type"] == "page")
    return await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=1 << 28)
