"""A fleet of producers: start them, do something terrible, see what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import support

from harness import producer
from harness.judge import Sent, Verdict, judge
from harness.producer import LEDGER

PROGRAM = str(Path(producer.__file__))


class Fleet:
    """Several producers that log to one file. Use it as a context manager.

    Args:
        path: The log file.
        workers: How many producers.
        target: The file that their handlers name, by default the log file; empty when
            only LOGAGG_SOCKET decides.
        wrap: Called with a producer's command line; returns the one to start instead.
        env: Changes of their environment.
        config: Further options of `producer.OPTIONS`, for all of them.
    """

    def __init__(
        self,
        path: Path,
        *,
        workers: int = 4,
        target: str | None = None,
        wrap: Any = None,
        env: dict[str, str] | None = None,
        run: str = "r",
        **config: Any,
    ) -> None:
        self.path = path
        self.run = run
        self.processes: list[subprocess.Popen[str]] = []
        self._names = [f"{run}{n}" for n in range(workers)]
        target = str(path) if target is None else target
        self._config = {"path": target, "run": run, **config}
        self._wrap = wrap or (lambda command: command)
        self._env = {**os.environ, **(env or {})}
        self._folder = Path(tempfile.mkdtemp(prefix="fleet-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        for name in self._names:
            ledger = self._folder / name
            ledger.write_bytes(bytes(LEDGER.size))
            config = {**self._config, "worker": name, "ledger": str(ledger)}
            command = [sys.executable, PROGRAM, json.dumps(config)]
            self.processes.append(
                subprocess.Popen(
                    self._wrap(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=self._env,
                )
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self.processes:
            if each.poll() is None:
                each.send_signal(signal.SIGCONT)
                each.kill()
            each.wait()
            for stream in (each.stdin, each.stdout, each.stderr):
                if stream is not None:
                    stream.close()

    # ---- while they run -----------------------------------------------------------

    def ready(self) -> None:
        """Wait until each producer with the option `wait` is attached."""
        for each in self.processes:
            assert each.stdout is not None
            line = each.stdout.readline()
            assert line == "ready\n", each.stderr and each.stderr.read()

    def go(self) -> None:
        """Let the producers with the option `wait` begin."""
        for each in self.processes:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()

    def sent(self) -> list[Sent]:
        """The ledgers as they are now."""
        found = []
        first = self._config.get("first", 0)
        for name, process in zip(self._names, self.processes, strict=True):
            numbers = LEDGER.unpack((self._folder / name).read_bytes())
            attempted, returned, longest, slow, finished, pid = numbers
            if not pid:
                attempted = returned = first
            found.append(
                Sent(
                    name, pid or process.pid, attempted, returned, longest / 1e9,
                    slow, bool(finished), first,
                )
            )  # fmt: skip
        return found

    @property
    def returned(self) -> int:
        """How many calls have returned, over all producers."""
        return sum(each.returned - each.first for each in self.sent())

    def progress(self, count: int, timeout: float = 90.0) -> None:
        """Wait until that many more calls have returned."""
        start = self.returned
        support.wait_until(
            lambda: self.returned >= start + count or self.ended,
            timeout,
            f"{count} more calls (there were {self.returned - start})",
        )

    @property
    def ended(self) -> bool:
        """Whether all producers have ended."""
        return all(each.poll() is not None for each in self.processes)

    def stop(self) -> None:
        """Ask all producers to end in good order."""
        for each in self.processes:
            each.terminate()

    def kill(self, number: int) -> None:
        """Kill one producer with SIGKILL."""
        self.processes[number].kill()
        self.processes[number].wait()

    def join(self, timeout: float = 90.0, status: int | None = 0) -> list[str]:
        """Wait for the ends of all producers; check how they ended.

        Returns:
            What each wrote to its stderr.
        """
        deadline = time.monotonic() + timeout
        errors = []
        for each in self.processes:
            try:
                _, err = each.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"a producer did not end within {timeout} s: {self.sent()}"
                ) from None
            killed = each.returncode == -signal.SIGKILL and status == 0
            assert status is None or killed or each.returncode == status, err
            errors.append(err)
        return errors

    # ---- behind it ----------------------------------------------------------------

    def judge(
        self, files: Iterable[Path] | None = None, *, settle: float | None = 90.0
    ) -> Verdict:
        """Wait until all is quiet, then compare files and spool with the ledgers.

        Args:
            files: The files; default: the log file and what it was rotated to.
            settle: Seconds to wait for the consumer's end; None: do not wait.
        """
        if settle is not None:
            support.settled(settle, natural=True)
        if files is None:
            files = support.rotated(self.path)
        return judge(files, self.sent(), runs=[self.run], spool=support.spool_files())


def fresh_record(path: Path, timeout: float = 30.0, **env: str) -> float:
    """Have a new process log one record; return the seconds until it is in the file."""
    mark = f"fresh-{os.urandom(6).hex()}"
    code = support.BASIC + "log.info(sys.argv[2])\n"
    start = time.monotonic()
    support.python(code, path, mark, env={**os.environ, **env}, timeout=90)

    def arrived() -> bool:
        return path.exists() and mark.encode() in path.read_bytes()

    support.wait_until(arrived, timeout, "a fresh record")
    return time.monotonic() - start
