"""Numbers of the records of each spool: which have come, which are missing. Pure."""

from __future__ import annotations

from logagg.fleet.message import StreamMessage

__all__ = ["RecordNumbers"]

MOST_SPOOLS = 10_000


class RecordNumbers:
    """By spool, the number of the record that is next.

    Args:
        known: Those of an earlier collector.

    Attributes:
        known: The numbers, the spool that came last at the end.
    """

    def __init__(self, known: dict[str, int] | None = None) -> None:
        self.known = dict(known or {})

    def accept(self, message: StreamMessage) -> tuple[list[bytes], int]:
        """Note a message.

        Returns:
            Its lines that have not come before, and how many records before them are
            missing: not in the stream any more, or dead letters on their host.
        """
        expected = self.known.get(message.spool, 0)
        lines = message.lines
        if message.following <= expected:
            return [], 0
        missing = max(0, message.first - expected)
        dead = message.following - message.first - len(lines)
        if message.first < expected and not dead:
            lines = lines[expected - message.first :]
        self.note(message.spool, message.following)
        return lines, missing + dead

    def note(self, spool: str, following: int) -> None:
        """Note that the records before a number have come."""
        self.known.pop(spool, None)
        self.known[spool] = following
        if len(self.known) > MOST_SPOOLS:
            del self.known[next(iter(self.known))]
