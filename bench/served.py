"""`driffusion-trt serve` as a child process: what the measurements and the faults of the service share."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any

import psutil

PACKAGES = ("numpy", "onnxruntime", "starlette", "uvicorn")  # whose versions results name
ROOT = Path(__file__).parent.parent
START_S = 300.0  # to load, warm up and measure
_AT = re.compile(r"http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)/")


class Child:
    """`driffusion-trt` as a process; the lines that it writes, as they are written.

    python: the arguments of Python that run it, others where faults are to be built in. before: is called in
    the child. log: where its lines go; then nothing of them is seen here.
    """

    def __init__(
        self,
        *words: str,
        python: Sequence[str] = ("-m", "driffusion_trt"),
        before: Callable[[], None] | None = None,
        log: IO[bytes] | None = None,
    ) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *python, *words],
            cwd=ROOT,
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, within_s: float = 120.0) -> int:
        """Its status, once it has ended by itself and all its lines are here. Raises TimeoutExpired."""
        status = self.process.wait(within_s)
        self._reader.join(10)
        return status

    def end(self, within_s: float = 120.0) -> int | None:
        """SIGTERM, then its status; None where it does not end by itself, and is killed."""
        if self.alive:
            self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        status = self.process.poll()
        self.kill()
        return status

    def kill(self) -> None:
        """At once; it may have ended."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Served(Child):
    """The service on a port of its own, once it is ready.

    how: of `Child`; with a log, `port` has to be named. Raises RuntimeError where it does not begin.
    """

    def __init__(self, *words: str, port: int = 0, **how: Any) -> None:
        super().__init__("serve", "--port", str(port), *words, **how)
        self._port = port
        try:
            self.wait(lambda: self.port and self.ready(), START_S)
        except TimeoutError as error:
            self.kill()
            raise RuntimeError("the service did not begin: " + "".join(self.lines)[-2000:]) from error
        self._process = psutil.Process(self.process.pid)

    @property
    def port(self) -> int:
        if self._port:
            return self._port
        found = (_AT.search(line) for line in list(self.lines))
        return next((int(match[1]) for match in found if match), 0)

    @property
    def rss_bytes(self) -> int:
        """What it holds of the machine's memory."""
        return int(self._process.memory_info().rss)

    def wait(self, condition: Callable[[], object], within_s: float) -> float:
        """Seconds until it is so. Raises TimeoutError where it does not come, or the process has ended."""
        start = time.monotonic()
        while not condition():
            if not self.alive or time.monotonic() - start > within_s:
                raise TimeoutError(f"{within_s:g} s went by" if self.alive else "the process has ended")
            time.sleep(0.02)
        return time.monotonic() - start

    def ready(self) -> bool:
        try:
            return self.call("GET", "/readyz", timeout_s=5.0)[0] == 200
        except (OSError, ValueError):
            return False

    def state(self) -> dict[str, Any]:
        """What /readyz says; empty where nothing is answered."""
        try:
            found = self.call("GET", "/readyz", timeout_s=5.0)[1]
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def call(self, method: str, path: str, timeout_s: float = 60.0, **fields: Any) -> tuple[int, Any]:
        """Status, and the JSON or text of the answer. Raises OSError where there is none."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            body = json.dumps(fields) if fields else None
            connection.request(method, path, body, {"Content-Type": "application/json"} if fields else {})
            response = connection.getresponse()
            text = response.read().decode()
            plain = "json" not in response.headers.get("Content-Type", "")
            return response.status, text if plain else json.loads(text)
        finally:
            connection.close()

    def generate(self, timeout_s: float = 60.0, **fields: Any) -> tuple[int, Any]:
        asked = {"prompt": "a red fox", "steps": 4, **fields}
        return self.call("POST", "/v1/images/generations", timeout_s, **asked)

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels, as they are written there."""
        text = self.call("GET", "/metrics")[1]
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in pairs}

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """The log's lines of requests, from this line of it on."""
        return [json.loads(line) for line in self.lines[since:] if line.startswith("{")]

    def others(self, since: int = 0) -> list[str]:
        """The log's lines that are of no request."""
        return [line.rstrip() for line in self.lines[since:] if not line.startswith("{")]


@contextlib.contextmanager
def served(*words: str, **how: Any) -> Iterator[Served]:
    """One that is killed at the end of the block, where it has not ended by then."""
    found = Served(*words, **how)
    try:
        yield found
    finally:
        found.kill()


def words_of(model: str, devices: int, *more: str) -> Sequence[str]:
    return ("--model", model, "--devices", str(devices), *more)
