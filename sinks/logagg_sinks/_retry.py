"""What an answer of a target means, and how long to wait after it. Pure.

Theory of operation
-------------------
`TABLE` holds one row a status and one column a kind of target; `decide` reads it. What
is not in the table goes by class: 2xx and 3xx hold the sink (something else than the
target answers), 4xx is permanent, 5xx passes. OTLP says of itself that only four
statuses may be retried, so its unknown 5xx is permanent.

`hint` reads Retry-After, `Backoff` counts attempts and turns a random number that it is
given into a wait. Nothing here has a clock, a socket or randomness of its own.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["TABLE", "Action", "Backoff", "Kind", "decide", "hint"]


class Action(enum.Enum):
    """What to do about an answer."""

    OK = "ok"
    """It was taken; partial refusals are in the body."""
    RETRY = "retry"
    """The same again, later."""
    SPLIT = "split"
    """Too large: in two halves."""
    BISECT = "bisect"
    """Something in it is refused: halves, till the culprit stands alone."""
    DEAD = "dead_letter"
    """It will never be taken."""
    HOLD = "hold"
    """Nothing will be taken until somebody sees to it: probe slowly, drop nothing."""
    PLAIN = "plain"
    """The same again at once, compressed less."""


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
    400: (_B, _D, _B, _B, _D, _D),
    401: (_H, _H, _H, _H, _D, _H),
    403: (_H, _H, _H, _H, _D, _H),
    404: (_H, _H, _H, _H, _D, _H),
    407: (_H, _H, _H, _H, _D, _H),
    408: (_R, _D, _R, _R, _R, _R),  # OTLP: not among those that may be retried
    409: (_D, _D, _D, _D, _O, _D),  # item: `create` found it there already
    413: (_S, _S, _S, _S, _D, _S),
    415: (_P, _P, _P, _P, _D, _P),
    422: (_B, _D, _D, _D, _D, _D),
    425: (_R, _D, _R, _R, _R, _R),
    429: (_R, _R, _R, _R, _R, _R),
    500: (_R, _D, _R, _R, _R, _R),
    501: (_D, _D, _D, _D, _D, _D),
    502: (_R, _R, _R, _R, _R, _R),
    503: (_R, _R, _R, _R, _R, _R),
    504: (_R, _R, _R, _R, _R, _R),
    505: (_D, _D, _D, _D, _D, _D),
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
    """Say what an answer means.

    Args:
        kind: The kind of target.
        status: The status of the answer.
        text: The beginning of its body: a 400 may say there that the body was too
            large.
        chosen: What the user wants for a status; goes before the table.
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
        return Action.DEAD
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


class Backoff:
    """The waits of one sink: exponential with full jitter, or what the target asks for.

    There is one for a sink, not one a request: a target that is in trouble is in
    trouble for every batch. The first success resets it.

    Attributes:
        attempts: Failures since the last success.
    """

    def __init__(self, most: float = 30.0, first: float = 1.0) -> None:
        self.most = most
        self.first = first
        self.attempts = 0

    def reset(self) -> None:
        """Note a success."""
        self.attempts = 0

    def next(self, chance: float, asked: float | None = None) -> float:
        """Note a failure; return how many seconds to wait.

        Args:
            chance: A random number from 0 to 1.
            asked: What the target asked for. Less than a second does not lift the
                back-off: a target that always says 0 would be hammered. To it comes up
                to a tenth, so that many senders do not return at the same moment.
        """
        ceiling = min(self.most, self.first * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        if asked is not None and asked >= 1:
            return asked * (1 + chance / 10)
        return ceiling * chance
