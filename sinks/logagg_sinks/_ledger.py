"""Which records of a batch are settled, and the letters for those that are dead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from logagg import wire
from logagg_sinks._deadletter import DeadLetters
from logagg_sinks._target import Verdict

__all__ = ["Ledger", "Letters", "Refused"]

Refused = tuple[int, bytes, str]
"""A record that will never be taken: its position, its line, the reason."""


class Ledger:
    """What is settled of a batch, in whatever order that happens. Pure.

    Args:
        ends: The positions behind its records.
    """

    def __init__(self, ends: Iterable[int] = ()) -> None:
        self._open = deque(sorted(ends))
        self._settled: set[int] = set()

    def settle(self, ends: Iterable[int]) -> tuple[int, int] | None:
        """Settle records.

        Returns:
            The position before which all is settled now, and how many records more
            that are than before; None when that has not moved.
        """
        self._settled.update(ends)
        position = records = 0
        while self._open and self._open[0] in self._settled:
            position = self._open.popleft()
            self._settled.discard(position)
            records += 1
        return (position, records) if records else None


class Letters:
    """Writes dead letters of one sink.

    Args:
        file: Where they go.
        sink: The sink, as it may be shown.
        clock: Seconds since the epoch.
        count: Adds to a counter.
    """

    def __init__(
        self,
        file: DeadLetters,
        sink: str,
        clock: Callable[[], float],
        count: Callable[[str, int], None],
    ) -> None:
        self._file = file
        self._sink = sink
        self._clock = clock
        self._count = count

    def write(self, lines: Sequence[Refused], verdict: Verdict | None) -> None:
        """Write one for each record, and what the target said. Raises OSError."""
        about: dict[str, Any] = {
            "time": wire.timestamp(int(self._clock() * 1e9)).decode(),
            "sink": self._sink,
        }
        answer: dict[str, Any] = {}
        if verdict is not None and verdict.status:
            answer = {"status": verdict.status, "response": verdict.text[:1024]}
        answer["attempts"] = verdict.attempts if verdict is not None else 0
        lost = self._file.lost
        self._file.add(
            (line, about | {"reason": reason} | answer) for _, line, reason in lines
        )
        if self._file.lost > lost:
            self._count("dead_letters_overwritten", self._file.lost - lost)
