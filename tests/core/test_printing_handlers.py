"""What a handler prints of a record stands for the record; all else stays text."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest

from logagg.integrations.handlers.printing_handlers import PrintedRecord

TRACE = "Traceback (most recent call last):\n  here\nValueError: odd\n"

CASES: dict[str, tuple[list[str], str, bool]] = {
    "a line": (["INFO: paid 7\n"], "", True),
    "pieces, as print makes them": (["INFO", " ", "paid 7", "\n"], "", True),
    "no newline": (["INFO: paid 7"], "", True),
    "colours": (["\x1b[32m", "paid\x1b[1m 7", "\x1b[0m\n"], "", True),
    "JSON": (['{"msg": "paid 7"}\n'], "", True),
    "with its exception": ([f"paid 7\n{TRACE}"], "", True),
    "its exception later": (["paid 7\n", TRACE], "", True),
    "a further line": (["paid 7\n", "alert sent\n"], "alert sent\n", True),
    "other lines around it": (["a\nb paid 7 c\nd\n"], "a\nd\n", True),
    "before it": (["begin\n", "paid 7\n"], "begin\n", True),
    "something else": (["alert sent\n"], "alert sent\n", False),
    "something else without newline": (["alert"], "alert", False),
    "bytes that are no text": (["\udcff paid 7\n"], "\udcff paid 7\n", False),
    "a longer number": (["paid 70\n"], "paid 70\n", False),
    "a decoration": (["paid 7\n", "\n"], "", True),
}
"""By name: what is printed, what of it is left, whether the record is sent."""


@pytest.mark.parametrize("case", CASES)
def test_the_text_of_a_record_is_replaced(case: str) -> None:
    """Once, whatever the pieces; nothing else is taken away."""
    pieces, left, sent = CASES[case]
    record = logging.makeLogRecord({"msg": "paid %d", "args": (7,)})
    record.exc_text = TRACE.rstrip()
    found: list[Any] = []
    stream = io.BytesIO()
    printed = PrintedRecord(record, found.append)

    for piece in pieces:
        printed.write(stream, piece.encode(errors="surrogateescape"))  # type: ignore[arg-type]
    printed.close()

    assert stream.getvalue().decode(errors="surrogateescape") == left
    assert found == [record] * sent


def test_a_record_is_sent_as_soon_as_it_was_printed() -> None:
    """What the handler does next may end the process."""
    record = logging.makeLogRecord({"msg": "the end"})
    found: list[Any] = []
    printed = PrintedRecord(record, found.append)

    printed.write(io.BytesIO(), b"the end\n")  # type: ignore[arg-type]

    assert found == [record]
