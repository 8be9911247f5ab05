"""A disk that fails on request: a preloaded library, switched by a file that all map."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
PAGE = struct.Struct("4i4080s")

OPEN, WRITE, SYNC = 1, 2, 4
"""What can fail."""
CONSUMER, OTHERS = 1, 2
"""Whom it can fail for."""


def possible() -> bool:
    """Whether there is a compiler for the library."""
    return shutil.which("cc") is not None


class Disk:
    """The library, and the switch of its faults.

    Args:
        folder: Where both are put; every process of the test must be able to read it.

    Attributes:
        env: The variables with which a process has such a disk.
    """

    def __init__(self, folder: Path) -> None:
        library, self._switch = folder / "faults.so", folder / "faults"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        self._switch.write_bytes(bytes(PAGE.size))
        self.env = {"LD_PRELOAD": str(library), "FAULTS": str(self._switch)}

    def fail(
        self,
        kinds: int,
        error: int,
        part: object,
        *,
        percent: int = 100,
        whom: int = CONSUMER,
    ) -> None:
        """From now on, some calls on paths that have `part` in them fail.

        Args:
            kinds: Which: `OPEN | WRITE | SYNC`.
            error: With which errno.
            part: A part of the paths.
            percent: How many of the calls.
            whom: In which processes: `CONSUMER | OTHERS`.
        """
        self.heal()  # the mask is the last that changes
        page = PAGE.pack(0, error, percent, whom, os.fsencode(str(part)))
        self._put(page[4:], 4)
        self._put(kinds.to_bytes(4, sys.byteorder), 0)

    def heal(self) -> None:
        """All calls succeed again."""
        self._put(bytes(4), 0)

    @contextmanager
    def failing(
        self, kinds: int, error: int, part: object, **options: int
    ) -> Iterator[None]:
        """A disk that fails for a while; see `fail`."""
        self.fail(kinds, error, part, **options)
        try:
            yield
        finally:
            self.heal()

    def _put(self, data: bytes, at: int) -> None:
        file = os.open(self._switch, os.O_WRONLY)
        try:
            os.pwrite(file, data, at)
        finally:
            os.close(file)
