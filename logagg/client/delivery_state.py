"""The states of a delivery and the policy that drives them. Pure.

A line goes into the pipe in state PIPE and to the spool in every other state, never to
both; the consumer merges the two by seq. `TRANSITIONS` is the whole machine:
`logagg.client.line_delivery` makes no other change of state.
"""

from __future__ import annotations

from enum import Enum, StrEnum

__all__ = ["CONNECTED", "RELEASED", "TRANSITIONS", "DeliveryState", "Overflow"]


class Overflow(StrEnum):
    """Policy of a log call when the pipe is full.

    `SPOOL` waits 0.1 s at most, then appends records to a private file that the
    consumer reads in order. `BLOCK` waits until there is room. `DROP_NEW` does not
    wait; the record is dropped, and the number of drops is announced in the stream.
    """

    SPOOL = "spool"
    BLOCK = "block"
    DROP_NEW = "drop_new"


class DeliveryState(Enum):
    """Where lines go, and why."""

    DETACHED = "not connected; the next check of the connection attaches"
    PIPE = "connected"
    SPOOLING = "connected; the pipe is full, or too much is unacknowledged"
    TORN = "connected; as SPOOLING, and the pipe ends in a part of a line"
    OFFLINE = "no consumer could be reached or started"
    CRASH_LOOP = "the consumer ended three times and acknowledged nothing"
    BROKEN = "what pipe and spool hold last is unknown; the next call gives up the pipe"
    CLOSED = "released; the next record of the process makes another delivery"


_S = DeliveryState
_BREAK = {
    _S.BROKEN: "an exception left a call, or the application has closed a descriptor",
    _S.CLOSED: "closed or forked",
}
_ATTACH = {
    _S.PIPE: "attached",
    _S.SPOOLING: "attached; a spool segment is open",
    _S.TORN: "attached; the pipe ends in a part of a line",
    _S.OFFLINE: "not attached; the next attempt follows a back-off",
    **_BREAK,
}
_DISCONNECT = {
    _S.DETACHED: "the consumer is gone; the next attempt is immediate",
    _S.CRASH_LOOP: "it is gone for the third time; the next attempt follows a back-off",
    **_BREAK,
}
TRANSITIONS: dict[DeliveryState, dict[DeliveryState, str]] = {
    _S.DETACHED: _ATTACH,
    _S.OFFLINE: _ATTACH,
    _S.CRASH_LOOP: _ATTACH,
    _S.PIPE: {
        _S.SPOOLING: "no room for a line in 0.1 s, or no acknowledgement of 16 MiB",
        _S.TORN: "room for a part of a line only in 0.1 s",
        **_DISCONNECT,
    },
    _S.SPOOLING: {
        _S.PIPE: "the pipe is half empty and every segment is announced",
        **_DISCONNECT,
    },
    _S.TORN: {
        _S.SPOOLING: "the part is ended by a newline and reported",
        **_DISCONNECT,
    },
    _S.BROKEN: {
        _S.DETACHED: "the pipe is given up; another one and all lines that are not "
        "acknowledged go to the consumer, which goes on where the first one ends",
        _S.CLOSED: "closed or forked",
    },
    _S.CLOSED: {},
}
"""By state: the states that may follow, and when each does."""

RELEASED = (_S.DETACHED, _S.CLOSED)
CONNECTED = (_S.PIPE, _S.SPOOLING, _S.TORN)
