"""A `logagg serve` for tests, in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import support

from logagg.platform.packets import packet_socket

LOGAGG = [sys.executable, "-c", "from logagg.cli.main import main; main()"]

FLOOD = (
    support.PREAMBLE
    + """\
logging.basicConfig(handlers=[logagg.Handler()], level="DEBUG")
log = logging.getLogger("app")
who, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for n in range(count):
    log.log(logging.ERROR if n % 10 == 0 else logging.INFO, "m", extra={"who": who, "n": n})
    if pause:
        time.sleep(pause)
"""
)


class Serve:
    """One running consumer."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.socket = str(Path(os.environ["XDG_RUNTIME_DIR"]) / "serve.sock")
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*LOGAGG, "serve", "--socket", self.socket, *words],
                cwd=folder,
                stderr=errors,
                stdout=subprocess.DEVNULL,
            )
        support.wait_until(lambda: self._answers() or self.process.poll() is not None)

    def _answers(self) -> bool:
        with packet_socket() as probe:
            try:
                probe.connect(self.socket)
            except OSError:
                return False
            return True

    def flood(self, who: str, count: int, pause: float = 0.0) -> subprocess.Popen[str]:
        """Start a program that logs so many records here."""
        environment = {**os.environ, "LOGAGG_SOCKET": self.socket}
        return support.start(FLOOD, who, count, pause, env=environment)

    def logs(self, who: str, count: int) -> None:
        """Run such a program to its end."""
        process = self.flood(who, count)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command in the directory, with this consumer as its own."""
        environment = {**os.environ, "LOGAGG_SOCKET": self.socket}
        return support.finish(
            [*LOGAGG, *words], status=None, cwd=self.folder, env=environment
        )

    def status(self) -> dict[str, Any]:
        """What `logagg status --json` says."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def sink(self, part: str) -> dict[str, Any]:
        """The status of the one sink whose URL has this in it."""
        (found,) = [each for each in self.status()["sinks"] if part in each["url"]]
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)

    def stop(self, timeout: float = 90.0) -> int:
        """End it, and return its exit status."""
        self.process.terminate()
        return self.process.wait(timeout)


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Serve]:
    """A consumer that is gone at the end, whatever happens."""
    serve = Serve(folder, *words)
    try:
        yield serve
    finally:
        if serve.process.poll() is None:
            serve.process.terminate()
            try:
                serve.process.wait(20)
            except subprocess.TimeoutExpired:
                serve.process.kill()
                serve.process.wait()


def deadline(seconds: float) -> float:
    """A moment from now, on the monotonic clock."""
    return time.monotonic() + seconds
