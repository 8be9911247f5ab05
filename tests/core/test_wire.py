"""The line's fixed places, as properties: what is written is what is read back."""

import datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg import wire

SECOND = 1_000_000_000
LAST = 253_402_300_799 * SECOND - 1  # within the year 9999

instants = st.integers(0, LAST)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\'), max_size=30)
names = names.filter(str.isprintable)


@given(instants)
def test_a_timestamp_is_thirty_bytes_that_read_back(now_ns):
    """Nanoseconds survive the way through the text, in all years up to 9999."""
    text = wire.timestamp(now_ns)

    assert len(text) == 30
    assert wire.key_ns(wire.PREFIX + text) == now_ns


@given(st.integers(0, 253_402_300_799))
def test_seconds_read_as_the_calendar_has_them(seconds):
    """The calendar arithmetic agrees with the standard library's."""
    theirs = datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    assert wire.seconds_text(seconds) == theirs.strftime("%Y-%m-%dT%H:%M:%S").rjust(
        19, "0"
    )


@given(st.integers(-(10**15), 10**15))
def test_any_second_has_a_text_of_the_same_length(seconds):
    """Times that no calendar has are clamped, so the fixed places stay fixed."""
    assert len(wire.seconds_text(seconds)) == 19


@given(instants, instants)
def test_bytes_sort_as_the_instants_do(one, two):
    """Comparing keys, or whole lines, is comparing times."""
    assert (wire.sort_key(one) < wire.sort_key(two)) == (one < two)
    if one != two:
        assert (wire_line(one, 1, level="error") < wire_line(two, 9)) == (one < two)


@given(instants)
def test_a_line_sorts_at_or_behind_its_own_key(now_ns):
    """The sort key of an instant is the smallest line of that instant."""
    line = wire_line(now_ns)

    assert wire.sort_key(now_ns) <= line < wire.sort_key(now_ns + 1)
    assert wire.key(line) == wire.sort_key(now_ns)


@given(instants, names, names, st.integers(0, 10**18))
def test_level_and_seq_are_read_without_parsing(now_ns, level, worker, seq):
    """What the head says is what level_of and seq_of find, as JSON finds it."""
    line = wire_line(now_ns, seq, level=level, worker=worker)

    assert wire.is_line(line)
    assert wire.level_of(line).decode() == level
    assert wire.seq_of(line) == seq
    parsed = orjson.loads(line + b"}")
    assert (parsed["level"], parsed["worker"], parsed["seq"]) == (level, worker, seq)


@given(instants, instants)
def test_a_closed_line_is_json_with_both_times(stamped, received):
    """A wire line and the closing make a whole record with a newline."""
    line = wire_line(stamped) + wire.closing(received)

    record = orjson.loads(line)
    assert line.endswith(b"}\n")
    assert record["timestamp"] == wire.timestamp(stamped).decode()
    assert record["received"] == wire.timestamp(received).decode()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_line_are_told_apart(junk):
    """Nothing raises on garbage, and only what has the fixed places is a line."""
    line = wire.is_line(junk)

    assert not line or junk.startswith(wire.PREFIX)
    wire.seq_of(junk)
    wire.level_of(junk)
    wire.key_ns(junk)


@given(instants, st.data())
def test_a_torn_line_has_no_seq_that_is_not_its_own(now_ns, data):
    """However a line is cut, its seq is found whole or not at all."""
    line = wire_line(now_ns, seq=123_456)

    cut = line[: data.draw(st.integers(0, len(line)))]

    assert wire.seq_of(cut) in (-1, 123_456)


@pytest.mark.parametrize(
    "digits", [b"-1", b"+1", b"1_0", b" 1", b"", b"1.5", b"\xd9\xa1", b"9" * 40]
)
def test_only_plain_digits_are_a_seq(digits):
    """What `int` would also accept is not taken for a seq."""
    line = wire_line(0).replace(b'"seq":1,', b'"seq":' + digits + b",")

    assert wire.seq_of(line) == -1


@pytest.mark.parametrize("field", [b'"seq":5', b'"message":"\\"seq\\":5,"'])
def test_a_seq_far_behind_or_inside_a_message_does_not_count(field):
    """Only the seq at its own place is read."""
    line = wire.sort_key(0) + b'","level":"' + b"x" * 500 + b'",' + field + b","

    assert wire.seq_of(line) == -1
