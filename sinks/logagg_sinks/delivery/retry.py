"""Meaning of a target's answers, waits between attempts, and a sink's condition.

Theory of operation
-------------------
`TABLE` holds one row a status and one column a kind of target; `decide` reads it. What
is not in the table goes by class: 2xx, 3xx and 4xx hold the sink (something else than the
target answers, or the request is not as it should be: no record is to blame), 5xx passes.
OTLP defines that only four statuses may be retried, so its unknown 5xx is permanent.
A document in Elasticsearch's answer is to blame for a 4xx of its own.

`hint` reads Retry-After, `RetryDelay` counts attempts and turns a random number that
it is given into a wait. Nothing here has a clock, a socket or randomness of its own;
a change of a sink's condition is logged.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from logagg.abc import Backoff

__all__ = [
    "TABLE",
    "Action",
    "Kind",
    "RetryDelay",
    "decide",
    "hint",
]


class Action(enum.Enum):
    """Consequences of an answer."""

    OK = "ok"
    """It was taken; partial refusals are in the body."""
    RETRY = "retry"
    """The same again, later."""
    SPLIT = "split"
    """Too large: in two halves."""
    BISECT = "bisect"
    """A record in it is refused: send halves until that record is alone."""
    DEAD = "dead_letter"
    """It will never be taken."""
    HOLD = "hold"
    """Nothing is taken until a person repairs it: probe slowly, drop nothing."""
    PLAIN = "plain"
    """The same again at once, with weaker compression."""


class Kind(enum.IntEnum):
    """The kinds of target; the number is the column in `TABLE`."""

    WEBHOOK = 0
    OTLP = 1
    LOKI = 2
    ELASTICSEARCH = 3
    ITEM = 4  # one document in Elasticsearch's answer
    SPLUNK = 5


_O, _R, _S, _B = Action.OK, Action.RETRY, Action.SPLIT, Action.BISECT
_D, _H, _P = Action.DEAD, Action.HOLD, Action.PLAIN

TABLE: dict[int, tuple[Action, ...]] = {
    # webhook, OTLP, Loki, ES request, ES item, Splunk
    200: (_O, _O, _O, _O, _O, _O),
    201: (_O, _O, _O, _O, _O, _O),
    202: (_O, _O, _O, _O, _O, _O),
    203: (_H, _O, _O, _O, _O, _O),  # a proxy changed the answer
    204: (_O, _O, _O, _O, _O, _O),
    260: (_H, _O, _H, _O, _O, _O),  # Loki: ingestion is blocked, the data was dropped
    # A receiver that refuses a whole batch for one record must not cost the others.
    400: (_B, _B, _B, _B, _D, _D),
    401: (_H, _H, _H, _H, _H, _H),
    403: (_H, _H, _H, _H, _H, _H),
    404: (_H, _H, _H, _H, _H, _H),
    408: (_R, _D, _R, _R, _R, _R),  # OTLP: not among those that may be retried
    409: (_R, _H, _H, _H, _O, _H),  # item: `create` found it; webhook: at work on it
    413: (_S, _S, _S, _S, _D, _S),
    415: (_P, _P, _P, _P, _D, _P),
    422: (_B, _B, _B, _B, _D, _H),
    425: (_R, _D, _R, _R, _R, _R),
    429: (_R, _R, _R, _R, _R, _R),
    500: (_R, _D, _R, _R, _R, _R),
    501: (_H, _H, _H, _H, _H, _H),  # it does not know the method
    502: (_R, _R, _R, _R, _R, _R),
    503: (_R, _R, _R, _R, _R, _R),
    504: (_R, _R, _R, _R, _R, _R),
    505: (_H, _H, _H, _H, _H, _H),
    511: (_H, _H, _H, _H, _H, _H),  # a captive portal answers
}

_TOO_LARGE = re.compile(
    r"\b(request|body|payload|entity|content)\b[^\n]{0,60}"
    r"\b(too (large|big|long)|exceed(s|ed)?|larger than)\b",
    re.IGNORECASE,
)
_OTHER_SUCCESS = (_H, _O, _O, _O, _O, _O)


def decide(
    kind: Kind, status: int, text: str = "", chosen: Mapping[int, Action] | None = None
) -> Action:
    """Decide what follows from an answer.

    Args:
        kind: The kind of target.
        status: The status of the answer.
        text: The beginning of its body, in which a 400 may name the cause: too large.
        chosen: The user's choice for a status; it precedes the table.
    """
    if chosen and status in chosen:
        return chosen[status]
    if status == 400 and kind is not Kind.ITEM and _TOO_LARGE.search(text):
        return Action.SPLIT
    if status in TABLE:
        return TABLE[status][kind]
    if 200 <= status < 300:
        return _OTHER_SUCCESS[kind]
    if 400 <= status < 500:
        return Action.DEAD if kind is Kind.ITEM else Action.HOLD
    if 500 <= status < 600:
        return Action.DEAD if kind is Kind.OTLP else Action.RETRY
    return Action.HOLD


def hint(
    value: str | None, *, date: str | None = None, now: float, most: float
) -> float | None:
    """Read a Retry-After header.

    Args:
        value: The header: whole seconds or an HTTP date.
        date: The answer's Date header; a date is measured against it, so that a wrong
            clock on either side does not matter.
        now: The time here, seconds since the epoch, for an answer without a Date.
        most: Longer waits are cut to this many seconds.

    Returns:
        Seconds to wait, 0 to `most`; None when there is no header or it makes no sense.
    """
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"\d+", value, re.ASCII):
        seconds = int(value[:18])
        return float(min(seconds, most))
    until = _instant(value)
    if until is None:
        return None
    since = _instant(date) if date else None
    return min(max(until - (now if since is None else since), 0.0), most)


def _instant(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    try:
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


class RetryDelay:
    """The waits of one sink: exponential with full jitter, or as the target asks.

    One for the whole sink, not one per request: a target in trouble is in trouble for
    every batch.

    Args:
        most: The longest wait, in seconds, unless the target asks for more.
    """

    def __init__(self, most: float = 30.0) -> None:
        self._backoff = Backoff(1.0, most, jitter=(0.0, 1.0))

    def reset(self) -> None:
        """Note a success."""
        self._backoff.reset()

    def next(self, chance: float, asked: float | None = None) -> float:
        """Note a failure; return the seconds to wait.

        Args:
            chance: A random number from 0 to 1.
            asked: Seconds that the target asked for. Less than one does not lift the
                back-off: a target that always answers 0 would be hammered. Up to a
                tenth is added, so that many senders do not return at the same moment.
        """
        wait = self._backoff.failed(0.0, chance)
        if asked is not None and asked >= 1:
            return asked * (1 + chance / 10)
        return wait
