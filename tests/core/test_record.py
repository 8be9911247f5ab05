"""The schema: the order of fields, the names that extras cannot have, own records."""

import logging

import orjson

from logagg.client.context_fields import TAKEN
from logagg.core.event import LOSSES, Event
from logagg.core.line import dump_line, is_line, parse_line, received_suffix
from logagg.core.record import (
    ADDED,
    FIXED,
    HEAD,
    REQUIRED,
    RESERVED,
    SHIELDED,
    own_record,
)


def test_the_sets_are_parts_of_each_other():
    """Every fixed field is reserved and shielded; every required one is fixed."""
    assert set(HEAD) <= REQUIRED <= set(FIXED) <= RESERVED & SHIELDED
    assert len(FIXED) == len(set(FIXED))


def test_a_handlers_reserved_names_are_the_schemas_and_loggings():
    """No list of its own: the schema's, and the attributes of a `LogRecord`."""
    attributes = set(vars(logging.makeLogRecord({})))
    assert RESERVED | attributes | ADDED == TAKEN


def test_an_own_record_is_a_line():
    """It has the fixed places of a line, its head first, and the event's bare name."""
    record = own_record(
        "2026-11-25T00:59:11.860666570Z", Event.DROPPED, "three", dropped=3
    )
    line = dump_line(record)
    assert is_line(line)
    found = parse_line(line + received_suffix(0))
    assert tuple(found)[: len(HEAD)] == HEAD
    assert (found["event"], found["dropped"]) == ("dropped", 3)
    assert type(record["event"]) is str


def test_an_event_is_its_name_wherever_it_goes():
    """As text, as JSON and as a key it is the plain string that users filter by."""
    assert f"{Event.LATE}" == "late"
    assert orjson.dumps({"event": Event.LATE}) == b'{"event":"late"}'
    assert {Event.LOST: 1}["lost"] == 1
    assert {"lost", "dropped", "damaged"} == LOSSES
