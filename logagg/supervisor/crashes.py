"""The same crash of many workers is shown once and counted. Pure: no clock here."""

from __future__ import annotations

import hashlib

__all__ = ["Crashes"]

FORGET = 60.0


class Crashes:
    """Tracebacks seen lately, by what they say."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[int, float]] = {}

    def note(self, trace: str, now: float) -> int:
        """Count a traceback; return how often it was seen lately, now included."""
        digest = hashlib.blake2b(trace.encode("utf-8", "replace")).digest()
        count, last = self._seen.get(digest, (0, now))
        if now - last > FORGET:
            count = 0
        self._seen[digest] = (count + 1, now)
        if len(self._seen) > 1000:
            self._seen = {k: v for k, v in self._seen.items() if now - v[1] <= FORGET}
        return count + 1
