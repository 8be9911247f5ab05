"""The one grammar of sizes and the one of durations: read, refused, written back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.core import units
from logagg.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("50MB", 50_000_000),
        ("64KiB", 65536),
        ("1.5 kb", 1500),
        ("2gib", 2 << 30),
    ],
)
def test_sizes(text, value):
    """The `i` makes the difference between powers of 1000 and of 1024."""
    assert units.parse_size(text) == value


@pytest.mark.parametrize("text", ["", "50M", "MB", "-1", "1 000", "1e3", "50MBB", "1K"])
def test_what_is_no_size_is_refused(text):
    """50M is refused since it means one thing here and another there."""
    with pytest.raises(ConfigError, match="a size such as 50MB"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0.5", 0.5),
        ("10s", 10),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2D", 172_800),
        ("5us", 5e-6),
        ("1w1ns", 604_800),
    ],
)
def test_durations(text, value):
    """Plain numbers are seconds."""
    assert units.parse_duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "s", "-1", "1h30", "1x", "h1", "1e3", "1h 30m"])
def test_what_is_no_duration_is_refused(text):
    """Half-right durations are not guessed at."""
    with pytest.raises(ConfigError, match="a duration such as"):
        units.parse_duration(text)


@given(st.integers(0, 10**15))
def test_a_size_that_was_written_reads_the_same(value):
    """Writing loses nothing."""
    assert units.parse_size(units.size_text(value)) == value


@given(st.integers(0, 10**9) | st.floats(0, 1e9))
def test_a_duration_that_was_written_reads_the_same(value):
    """Writing loses nothing, whole seconds or not."""
    assert units.parse_duration(units.duration_text(value)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(364, "6m 4s"), (0.2, "0s"), (90_061, "1d 1h"), (7_200, "2h")],
)
def test_a_span_has_two_units_at_most(seconds, text):
    """For display only: the rest is left out."""
    assert units.span_text(seconds) == text
