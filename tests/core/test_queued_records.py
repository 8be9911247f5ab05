"""What a `QueueHandler` has formatted is taken apart again, and sent once."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import queue
from typing import Any

import pytest

from logagg.dialects.queued_records import QueuedText, before_queue
from logagg.dialects.structlog_texts import RenderedText, keeping, rendered_event


def record(**options: Any) -> logging.LogRecord:
    """A record with an argument."""
    return logging.getLogger("shop").makeRecord(
        "shop",
        40,
        __file__,
        1,
        "err %d",
        (1,),
        options.pop("exc_info", None),
        **options,
    )


def error() -> Any:
    """An exception with a cause that is a group."""
    try:
        try:
            raise ExceptionGroup("several", [KeyError("k")])
        except ExceptionGroup as group:
            raise ValueError("bad") from group
    except ValueError as found:
        return (ValueError, found, found.__traceback__)


@pytest.mark.parametrize("form", [None, logging.BASIC_FORMAT])
@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("stack", [None, "Stack (most recent call last):\n  here"])
def test_a_queued_record_is_taken_apart(
    form: str | None, failed: bool, stack: str | None
) -> None:
    """Message, exception and stack, as they were before; the record stays."""
    handler = logging.handlers.QueueHandler(queue.Queue())
    handler.setFormatter(logging.Formatter(form))
    made = handler.prepare(record(exc_info=error() if failed else None, sinfo=stack))
    before = dict(vars(made))

    found = before_queue(made, "/here")

    assert found is not None
    assert found.getMessage() == "err 1"
    assert bool(found.exc_text) is failed
    if found.exc_text:
        assert found.exc_text.startswith("  + Exception Group Traceback")
        assert found.exc_text.endswith("ValueError: bad")
    assert found.stack_info == stack
    assert vars(made) == before


def test_a_text_that_only_looks_alike_is_left() -> None:
    """A traceback begins a line; the prefix is that of the record itself."""
    made = logging.handlers.QueueHandler(queue.Queue()).prepare(record())
    for text in ("see Traceback (most recent call last):\n", "ERROR:other:x", "", "x"):
        made.msg = made.message = text
        assert before_queue(made, "/here") is made


def test_a_marked_text_knows_its_record_also_pickled() -> None:
    """The exception goes along as text; what was sent is not sent again."""
    text = QueuedText("ERROR:shop:err 1")
    text.record, text.sent = record(exc_info=error(), extra={"order": 7}), ""
    carrier = logging.makeLogRecord({"msg": text, "args": None, "order": 7})

    here = before_queue(carrier, "/here")
    there = before_queue(pickle.loads(pickle.dumps(carrier)), "/here")
    text.sent = "/here"

    assert here is not None
    assert there is not None
    assert here.exc_info == text.record.exc_info
    assert (here.getMessage(), there.getMessage()) == ("err 1", "err 1")
    assert vars(here)["order"] == vars(there)["order"] == 7
    assert str(there.exc_text).endswith("ValueError: bad")
    assert before_queue(carrier, "/here") is None
    assert before_queue(pickle.loads(pickle.dumps(carrier)), "/here") is None
    assert before_queue(carrier, "/there") is not None


def test_an_event_of_structlog_goes_along_with_its_text() -> None:
    """Also pickled, with values of any kind, and with the exception of its time."""
    last = keeping(lambda _, __, event: str(event))
    try:
        raise ValueError("bad")
    except ValueError:
        made = last(None, "info", {"event": "paid", "exc_info": True, "of": object})
    text = QueuedText(str(made))
    text.record, text.sent = logging.makeLogRecord({"msg": made}), ""
    carrier = logging.makeLogRecord({"msg": text, "args": None})

    for each in (carrier, pickle.loads(pickle.dumps(carrier))):
        found = before_queue(each, "/here")
        assert found is not None
        assert type(found.msg) is RenderedText
        event, error = rendered_event(found) or ({}, found)
        assert event["event"] == "paid"
        assert set(event) == {"event", "of"}
        assert "ValueError" in str(error.exc_info or error.exc_text)
