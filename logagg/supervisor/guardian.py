"""The supervisor's side of the guard process (see `guard`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["Guardian"]


class Guardian:
    """Keeps a guard process told of the workers' process groups."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        for group in self._groups:
            self._write(f"+{group}\n")

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def add(self, group: int) -> None:
        """A worker has started."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def discard(self, group: int) -> None:
        """A worker and all of its group are gone."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process.poll() is not None or not self._write(line):
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._start()
            except OSError:
                pass  # no room for it now: the next word starts one, and tells it all

    def _write(self, line: str) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let the guard end: nothing is left to guard."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._groups:
            self._process.wait()
