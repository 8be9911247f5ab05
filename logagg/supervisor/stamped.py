"""A worker's own stdout and stderr, whose lines say when they were written.

What a worker prints goes through a pipe to the consumer, which reads it a moment later.
To stand in its true place among the worker's records, each line that Python code prints
carries its time: behind the text and before the newline stand a NUL, an `@` and the
twenty digits of the monotonic clock in nanoseconds. The consumer takes it off
(`logagg.intake`). Bytes that come by other ways (C code, `os.write`, subprocesses)
carry none and get the time at which they are read.

The stream is what python makes with `-u`: every write goes to the descriptor at once, so
nothing printed is lost with the process. When the program puts something else on the
descriptor (`os.dup2`), nothing is added any more.
"""

from __future__ import annotations

import io
import os
import sys
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

__all__ = ["install"]


class _Stamped(io.FileIO):
    """A descriptor's raw stream that stamps the ends of lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        status = os.fstat(descriptor)
        self._ours = (status.st_dev, status.st_ino)

    def write(self, data: Any) -> int:
        """Write all of it; blocks as the descriptor does."""
        text = bytes(data)
        if b"\n" in text:
            status = os.fstat(self.fileno())
            if (status.st_dev, status.st_ino) == self._ours:
                stamp = b"\0@%020d\n" % clock_gettime_ns(CLOCK_MONOTONIC)
                rest = memoryview(text.replace(b"\n", stamp))
                while rest:
                    rest = rest[super().write(rest) or 0 :]
                return len(text)
        return super().write(text) or 0


def install() -> None:
    """Put stamped streams in the place of `sys.stdout` and `sys.stderr`."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if not isinstance(old, io.TextIOWrapper):
            continue
        fresh = io.TextIOWrapper(
            _Stamped(descriptor),
            encoding=old.encoding,
            errors=old.errors,
            newline="\n",
            write_through=True,
        )
        fresh.mode = "w"  # type: ignore[misc]
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)
