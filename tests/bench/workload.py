"""What every peer logs: the same records, through each library's own way of logging.

Four sizes:

- `small`: a short message with two arguments, no fields, about 40 bytes of text;
- `typical`: a short message with one argument and 7 fields;
- `large`: a message of 8 KB and two fields;
- `traceback`: an error with a traceback of six frames and a cause, and two fields.

Each record tells which worker wrote it (`w`) and its number (`n`), so that what is lost,
damaged or out of order can be told from the file alone. Numbers below zero are the
warm-up and are not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[[int], None]

SIZES = ("small", "typical", "large", "traceback")
WARM_UP = 200

LARGE = ("0123456789 the quick brown fox jumps over the lazy dog " * 200)[:8192]


def _deep(levels: int) -> None:
    if levels:
        _deep(levels - 1)
    else:
        raise KeyError("customer 4711")


def fail() -> None:
    """Raise an error that has a cause and six frames."""
    try:
        _deep(4)
    except KeyError as error:
        raise RuntimeError("the order could not be placed") from error


def stdlib(log: Any, size: str, w: int) -> Call:
    """A call through the interface of `logging`: arguments and `extra`."""
    info, exception = log.info, log.exception

    def small(n: int) -> None:
        info("%d %d request handled in 3.2 ms", w, n)

    def typical(n: int) -> None:
        info(
            "order %d placed",
            n,
            extra={
                "w": w,
                "n": n,
                "user": "u-184467",
                "path": "/api/v2/orders",
                "status": 200,
                "amount": 129.95,
                "cached": False,
            },
        )

    def large(n: int) -> None:
        info(LARGE, extra={"w": w, "n": n})

    def traceback(n: int) -> None:
        try:
            fail()
        except RuntimeError:
            exception("order %d failed", n, extra={"w": w, "n": n})

    return _chosen(size, small, typical, large, traceback)


def text(log: Any, size: str, w: int) -> Call:
    """For libraries without fields: the same values, in the text of the message."""
    info, exception = log.info, log.exception

    def small(n: int) -> None:
        info("%d %d request handled in 3.2 ms", w, n)

    def typical(n: int) -> None:
        info(
            "%d %d order placed user=%s path=%s status=%d amount=%s cached=%s",
            w,
            n,
            "u-184467",
            "/api/v2/orders",
            200,
            129.95,
            False,
        )

    def large(n: int) -> None:
        info("%d %d %s", w, n, LARGE)

    def traceback(n: int) -> None:
        try:
            fail()
        except RuntimeError:
            exception("%d %d order failed", w, n)

    return _chosen(size, small, typical, large, traceback)


def structured(log: Any, size: str, w: int) -> Call:
    """A call through the interface of structlog: fields are keywords."""
    info, exception = log.info, log.exception

    def small(n: int) -> None:
        info(f"{w} {n} request handled in 3.2 ms")

    def typical(n: int) -> None:
        info(
            "order placed",
            w=w,
            n=n,
            user="u-184467",
            path="/api/v2/orders",
            status=200,
            amount=129.95,
            cached=False,
        )

    def large(n: int) -> None:
        info(LARGE, w=w, n=n)

    def traceback(n: int) -> None:
        try:
            fail()
        except RuntimeError:
            exception("order failed", w=w, n=n)

    return _chosen(size, small, typical, large, traceback)


def _chosen(size: str, *calls: Call) -> Call:
    return calls[SIZES.index(size)]
