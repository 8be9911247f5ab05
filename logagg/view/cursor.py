"""A place in the stream: the line that a reader has seen last. Pure.

A line is known by its time, its worker and the worker's own count, which no other line
shares. Written as text, `TIME,WORKER,SEQ`, it is what `--after` and a cursor file hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from logagg.errors import ConfigError
from logagg.view.times import iso_ns

_LINE = re.compile(
    rb'\{"timestamp":"(.{29}Z)","level":"[^"]*","worker":"((?:[^"\\]|\\.)*)","seq":(\d+)'
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The line that was seen last."""

    timestamp: str
    worker: str
    seq: int

    @classmethod
    def of_line(cls, line: bytes) -> Cursor | None:
        """The place of a line; None for lines that are not logagg's own."""
        found = _LINE.match(line)
        if found is None:
            return None
        time, worker, seq = found.groups()
        return cls(time.decode("ascii", "replace"), worker.decode("utf-8"), int(seq))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor back.

        Raises:
            ConfigError: It is not one.
        """
        time, _, rest = text.strip().partition(",")
        worker, _, seq = rest.rpartition(",")
        if len(time) != 30 or iso_ns(time) is None or not worker or not seq.isdecimal():
            raise ConfigError(
                f"cursor {text.strip()!r}: expected TIME,WORKER,SEQ as in a cursor file"
            )
        return cls(time, worker, int(seq))

    def __str__(self) -> str:
        return f"{self.timestamp},{self.worker},{self.seq}"

    def fields(self) -> list[str | int]:
        """As JSON, for the consumer."""
        return [self.timestamp, self.worker, self.seq]

    @property
    def instant_ns(self) -> int:
        """When the line was made."""
        instant = iso_ns(self.timestamp)
        assert instant is not None
        return instant
