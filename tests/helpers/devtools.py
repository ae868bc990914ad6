"""A headless browser that a test drives: the Chrome DevTools protocol over its WebSocket.

Keys and the mouse are events of the browser itself, as a person makes them, and not calls of the page's functions.
"""

import base64
import json
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from browser import CHROMIUM

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
MODIFIERS = {"Alt": 1, "Control": 2, "Shift": 8}
PATIENCE = 30  # seconds for what the page does on a busy machine


@contextmanager
def browser(profile: Path):
    """Starts a browser; yields a function that opens a page in a fresh profile: `open_page(url, **options)`."""
    from websockets.sync.client import connect

    profile.mkdir(parents=True, exist_ok=True)
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("DevTools listening on "):
                break
        else:
            raise RuntimeError("the browser did not start")
        with connect(line.split()[-1], max_size=None, compression=None) as socket:
            yield lambda url, **options: Page(socket, url, **options)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Page:
    """A page in a context of its own, with its own storage.

    Attributes:
        problems: errors and refusals (of the Content-Security-Policy, say) in the page's console.
        asked: addresses that it requested.
    """

    def __init__(self, socket, url, width=1280, height=860, dark=False, languages="en-GB,en", scale=1, downloads=None):
        self._socket, self._number, self._session = socket, 0, None
        self.problems, self.asked = [], []
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        agent = self.evaluate("navigator.userAgent")
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=languages)
        self.resize(width, height, scale)
        if downloads:
            self.call(
                "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), browserContextId=context
            )
        self.call(
            "Browser.grantPermissions",
            browserContextId=context,
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        )
        self.visit(url)

    def call(self, method, **params):
        """Sends a command and returns its result; the events that come meanwhile are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv(timeout=PATIENCE))
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self._note(reply)

    def _note(self, event):
        if event.get("sessionId") != self._session:
            return
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(str([a.get("description") or a.get("value") for a in params["args"]]))

    def visit(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width, height, scale=1):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def evaluate(self, expression):
        """The value of an expression in the page; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description") or expression)
        return found["result"].get("value")

    def wait(self, expression, seconds=PATIENCE):
        """Waits until an expression is true and returns its value; a node counts as true."""
        end = time.monotonic() + seconds
        asked = (
            f"(() => {{ try {{ const v = {expression}; return v instanceof Node || v }} catch {{ return null }} }})()"
        )
        while not (value := self.evaluate(asked)):
            if time.monotonic() > end:
                shown = self.evaluate("document.body.innerText")
                raise AssertionError(f"not within {seconds} s: {expression}\n{self.problems}\n{shown}")
            time.sleep(0.03)
        return value

    def text(self, selector):
        """The text of the first node, as it is shown."""
        return self.wait(f"document.querySelector({json.dumps(selector)})") and self.evaluate(
            f"document.querySelector({json.dumps(selector)}).innerText"
        )

    def count(self, selector):
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def point(self, selector, at=0):
        """Moves the mouse over a node; returns the place."""
        node = f"document.querySelectorAll({json.dumps(selector)})[{at}]"
        self.wait(f"{node} && {node}.getClientRects().length")
        x, y = self.evaluate(
            f"(() => {{ const n = {node}; n.scrollIntoView({{block: 'nearest'}}); const r = n.getClientRects()[0];"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector, at=0):
        x, y = self.point(selector, at)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text):
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key, *modifiers):
        held = sum(MODIFIERS[m] for m in modifiers)
        code = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": KEYS[key],
            "modifiers": held,
        }
        text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ") and not held else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def fill(self, selector, text):
        """Replaces the text of a field, as a person does."""
        self.click(selector)
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.type(text)

    def picture(self, file: Path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))
