"""Which worker a connection belongs to: its key, and the slot that is chosen for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from logagg.supervisor.sockets.head_peeker import Connection, HeadPeeker
from logagg.supervisor.sockets.sticky import Sticky, choose_slot

__all__ = ["Affinity"]

logger = logging.getLogger("logagg.supervisor")


class Affinity:
    """Finds the keys of connections and the slots that they belong to.

    Args:
        sticky: What makes connections belong together, if anything does.
        choose: Called with the open slots and a `Connection`; returns a slot or None.
        known: Called with each connection once its key is known, or that it has none.
    """

    def __init__(
        self,
        sticky: Sticky | None,
        choose: Callable[..., Any] | None,
        known: Callable[[Connection], None],
    ) -> None:
        self.any = sticky is not None or choose is not None
        self._sticky = sticky
        self._choose = choose
        self._known = known
        proxy_only = sticky is not None and sticky.kind == "proxy" and choose is None
        self._peeking = HeadPeeker(self._peeked, proxy_only=proxy_only)

    def __len__(self) -> int:
        """How many connections have not sent their key yet."""
        return len(self._peeking)

    def add(self, connection: Connection) -> None:
        """Find the key of a connection; it may be known at once, or later."""
        if self._sticky is not None and self._sticky.kind == "ip":
            connection.key = _address(connection)
            self._known(connection)
        else:
            self._peeking.add(connection)

    def _peeked(self, connection: Connection) -> None:
        if self._sticky is not None and self._sticky.kind == "proxy":
            connection.key = connection.client or _address(connection)
        elif self._sticky is not None:
            connection.key = self._sticky.key(connection.head)
        self._known(connection)

    def slot(self, connection: Connection, slots: list[int]) -> int | None:
        """The one of these slots that a connection belongs to; None: to any."""
        if slots and self._choose is not None:
            try:
                chosen: int | None = self._choose(slots, connection)
            except Exception:
                logger.exception("choose() failed; the connection takes its turn")
            else:
                return chosen
        elif slots and connection.key is not None:
            return choose_slot(connection.key, slots)
        return None

    def binds(self, connection: Connection) -> bool:
        """Whether a connection is for one worker, not for any."""
        return connection.key is not None or self._choose is not None

    def close(self) -> list[Connection]:
        """Wait for keys no more; returns the connections that had not sent theirs."""
        return self._peeking.close()


def _address(connection: Connection) -> bytes:
    """The address that the connection comes from."""
    return str(connection.peer[0] if connection.peer else "").encode()
