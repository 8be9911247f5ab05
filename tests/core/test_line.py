"""The line's fixed places, as properties: what is written is what is read back."""

import datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg.core.line import (
    LEVEL_MARK,
    MARK,
    PREFIX,
    TIMESTAMP,
    dump_line,
    is_line,
    is_wire,
    key_ns,
    key_of,
    level_of,
    load_line,
    parse_line,
    received_suffix,
    seconds_text,
    seq_of,
    sort_key,
    timestamp_bytes,
    timestamp_of,
)

SECOND = 1_000_000_000
LAST = 253_402_300_799 * SECOND - 1  # within the year 9999

instants = st.integers(0, LAST)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\'), max_size=30)
names = names.filter(str.isprintable)


@given(instants)
def test_a_timestamp_is_thirty_bytes_that_read_back(now_ns):
    """Nanoseconds survive the way through the text, in all years up to 9999."""
    text = timestamp_bytes(now_ns)

    assert len(text) == 30
    assert key_ns(PREFIX + text) == now_ns


@given(st.integers(0, 253_402_300_799))
def test_seconds_read_as_the_calendar_has_them(seconds):
    """The calendar arithmetic agrees with the standard library's."""
    theirs = datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    assert seconds_text(seconds) == theirs.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


@given(st.integers(-(10**15), 10**15))
def test_any_second_has_a_text_of_the_same_length(seconds):
    """Times that no calendar has are clamped, so the fixed places stay fixed."""
    assert len(seconds_text(seconds)) == 19


@given(instants, instants)
def test_bytes_sort_as_the_instants_do(one, two):
    """Comparing keys, or whole lines, is comparing times."""
    assert (sort_key(one) < sort_key(two)) == (one < two)
    if one != two:
        assert (wire_line(one, 1, level="error") < wire_line(two, 9)) == (one < two)


@given(instants)
def test_a_line_sorts_at_or_behind_its_own_key(now_ns):
    """The sort key of an instant is the smallest line of that instant."""
    line = wire_line(now_ns)

    assert sort_key(now_ns) <= line < sort_key(now_ns + 1)
    assert key_of(line) == sort_key(now_ns)


@given(instants, names, names, st.integers(0, 10**18 - 1))
def test_level_and_seq_are_read_without_parsing(now_ns, level, worker, seq):
    """What the head says is what level_of and seq_of find, as JSON finds it."""
    line = wire_line(now_ns, seq, level=level, worker=worker)

    assert is_line(line)
    assert level_of(line).decode() == level
    assert seq_of(line) == seq
    parsed = orjson.loads(line + b"}")
    assert (parsed["level"], parsed["worker"], parsed["seq"]) == (level, worker, seq)


@given(instants, instants)
def test_a_closed_line_is_json_with_both_times(stamped, received):
    """A wire line and the closing make a whole record with a newline."""
    line = wire_line(stamped) + received_suffix(received)

    record = orjson.loads(line)
    assert line.endswith(b"}\n")
    assert record["timestamp"] == timestamp_bytes(stamped).decode()
    assert record["received"] == timestamp_bytes(received).decode()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_line_are_told_apart(junk):
    """Nothing raises on garbage, and only what has the fixed places is a line."""
    line = is_line(junk)

    assert not line or junk.startswith(PREFIX)
    seq_of(junk)
    level_of(junk)
    key_ns(junk)


@given(instants, st.data())
def test_a_torn_line_has_no_seq_that_is_not_its_own(now_ns, data):
    """However a line is cut, its seq is found whole or not at all."""
    line = wire_line(now_ns, seq=123_456)

    cut = line[: data.draw(st.integers(0, len(line)))]

    assert seq_of(cut) in (-1, 123_456)


@pytest.mark.parametrize(
    "digits", [b"-1", b"+1", b"1_0", b" 1", b"", b"1.5", b"\xd9\xa1", b"9" * 40]
)
def test_only_plain_digits_are_a_seq(digits):
    """What `int` would also accept is not taken for a seq."""
    line = wire_line(0).replace(b'"seq":1,', b'"seq":' + digits + b",")

    assert seq_of(line) == -1


@pytest.mark.parametrize("field", [b'"seq":5', b'"message":"\\"seq\\":5,"'])
def test_a_seq_far_behind_or_inside_a_message_does_not_count(field):
    """Only the seq at its own place is read."""
    line = sort_key(0) + b'","level":"' + b"x" * 500 + b'",' + field + b","

    assert seq_of(line) == -1


@given(instants)
def test_slices_and_functions_agree_on_the_places(now_ns):
    """The timestamp and the mark after it are where every line has them."""
    line = wire_line(now_ns, 1)
    assert is_wire(line)
    assert line[MARK] == LEVEL_MARK
    assert line[TIMESTAMP] == timestamp_bytes(now_ns) == timestamp_of(line).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_a_record_survives_being_written_and_read(record):
    """Exactly: also integers beyond 64 bits, which JSON readers make floats of."""
    assert load_line(dump_line(record) + b"}", exact=True) == record


@given(st.binary(max_size=300))
def test_anything_parses_to_a_record(data):
    """Never an exception: what is no JSON object is kept as text in `raw`."""
    record = parse_line(data)
    if load_line(data) is None:
        assert record["raw"] == data.decode("utf-8", "replace")
        assert (record["level"], record["logger"]) == ("error", "logagg")


def test_nesting_without_end_is_no_record():
    """A parser's own limits are not let through as errors."""
    assert load_line(b"[" * 100_000) is None
    assert load_line(b'{"a":' * 100_000, exact=True) is None
    assert load_line(b'{"n":%s}' % (b"1" * 10_000), exact=True) is None
