"""Drive one page of a headless Chromium through its DevTools pipe: clicks, expressions, screenshots."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A page of a given size. Commands and answers are JSON with a zero byte after each, on descriptors 3 and 4."""

    def __init__(self, page: Path | str, width: int, height: int, profile: Path, dark: bool = False):
        (read_there, self.to), (self.back, write_there) = os.pipe(), os.pipe()
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--lang=en-US",
            "about:blank",
        ]

        def put_in_place() -> None:  # by way of numbers that are not 3 or 4
            for there, number in [
                (fcntl.fcntl(read_there, fcntl.F_DUPFD, 10), 3),
                (fcntl.fcntl(write_there, fcntl.F_DUPFD, 10), 4),
            ]:
                os.dup2(there, number)

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=put_in_place, close_fds=False, **quiet)
        os.close(read_there), os.close(write_there)
        self.number, self.session = 0, None
        self.events, self.rest = [], b""
        try:
            self.open(page, width, height, dark)
        except BaseException:
            self.close()
            raise

    def open(self, page: Path | str, width: int, height: int, dark: bool) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait("location.protocol !== 'about:' && document.readyState === 'complete'")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.to), os.close(self.back)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                piece = os.read(self.back, 1 << 20)
                assert piece, "the browser is gone"
                self.rest += piece
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, code: str) -> object:
        """Return the value of an expression in the page; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, code: str, seconds: float = 20) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not self.run(code):
            assert time.monotonic() < end, f"still not after {seconds} s: {code}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, once it no longer moves."""
        find = (
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'});"
            " const {x, y, width, height} = node.getBoundingClientRect();"
            " return {x: x + width / 2, y: y + height / 2}; })()"
        )
        spot = self.run(find)
        for _ in range(10):  # content that grows above it moves it
            time.sleep(0.02)
            before, spot = spot, self.run(find)
            if before == spot:
                break
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **spot)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = True) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def complaints(self) -> list[str]:
        """Return messages of the console, uncaught errors and network errors."""
        methods = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        self.run("0")
        return [json.dumps(event["params"])[:400] for event in self.events if event.get("method") in methods]
