"""What an answer means and how long to wait, decided without clock or socket."""

from __future__ import annotations

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg_sinks.delivery.retry import TABLE, Action, Kind, RetryDelay, decide, hint

SPECIFIED = """
200 ok ok ok ok ok ok
201 ok ok ok ok ok ok
202 ok ok ok ok ok ok
204 ok ok ok ok ok ok
206 hold ok ok ok ok ok
260 hold ok hold ok ok ok
301 hold hold hold hold hold hold
307 hold hold hold hold hold hold
400 bisect bisect bisect bisect dead_letter dead_letter
401 hold hold hold hold hold hold
403 hold hold hold hold hold hold
404 hold hold hold hold hold hold
405 hold hold hold hold dead_letter hold
407 hold hold hold hold dead_letter hold
408 retry dead_letter retry retry retry retry
409 retry hold hold hold ok hold
413 split split split split dead_letter split
415 plain plain plain plain dead_letter plain
418 hold hold hold hold dead_letter hold
422 bisect bisect bisect bisect dead_letter hold
425 retry dead_letter retry retry retry retry
429 retry retry retry retry retry retry
500 retry dead_letter retry retry retry retry
501 hold hold hold hold hold hold
502 retry retry retry retry retry retry
503 retry retry retry retry retry retry
504 retry retry retry retry retry retry
505 hold hold hold hold hold hold
507 retry dead_letter retry retry retry retry
511 hold hold hold hold hold hold
599 retry dead_letter retry retry retry retry
"""
CASES = [
    (int(row.split()[0]), kind, Action(name))
    for row in SPECIFIED.strip().splitlines()
    for kind, name in zip(Kind, row.split()[1:], strict=True)
]


@pytest.mark.parametrize(("status", "kind", "action"), CASES)
def test_each_status_has_its_action(status, kind, action):
    """Every cell of the table of statuses is as specified."""
    assert decide(kind, status) is action


def test_the_table_has_a_column_for_each_kind():
    """No row of the table is shorter or longer than the kinds of target."""
    assert {len(row) for row in TABLE.values()} == {len(Kind)}


@given(st.integers(), st.sampled_from(Kind), st.text())
def test_any_answer_is_decided(status, kind, text):
    """No status and no text is without an action, and only a 2xx is a success."""
    action = decide(kind, status, text)
    assert isinstance(action, Action)
    if action is Action.OK and kind is not Kind.ITEM:
        assert 200 <= status < 300


@pytest.mark.parametrize(
    "text",
    [
        "http: request body too large",
        '{"message":"Request Entity Too Large"}',
        "the payload exceeds 1048576 bytes",
        "content length larger than allowed",
    ],
)
def test_a_400_that_says_too_large_is_split(text):
    """A 400 whose text says that the body is too large counts as a 413."""
    assert decide(Kind.OTLP, 400, text) is Action.SPLIT
    assert decide(Kind.WEBHOOK, 400, text) is Action.SPLIT


def test_a_400_about_one_entry_is_not_split():
    """Loki's complaint about one long line is no complaint about the request."""
    text = "Max entry size '262144' bytes exceeded for stream '{a=\"b\"}'"
    assert decide(Kind.LOKI, 400, text) is Action.BISECT


def test_what_the_user_chose_goes_first():
    """A status that the user gave a meaning has that meaning."""
    assert decide(Kind.OTLP, 500, "", {500: Action.RETRY}) is Action.RETRY


NOW = 1_795_568_400.0
DATE = email.utils.formatdate(NOW, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2),
        (" 7 ", 7),
        ("0", 0),
        ("99999999", 300),
        ("9" * 400, 300),
        (email.utils.formatdate(NOW + 3, usegmt=True), 3),
        (email.utils.formatdate(NOW - 60, usegmt=True), 0),
        (email.utils.formatdate(NOW + 1e6, usegmt=True), 300),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("\u0663", None),
        (None, None),
    ],
)
def test_retry_after_is_read_and_clamped(value, seconds):
    """Seconds and dates are understood and clamped; nonsense is ignored."""
    assert hint(value, now=NOW, most=300) == seconds


def test_a_date_is_measured_by_the_servers_clock():
    """A wrong clock on either side does not change how long a date means."""
    value = email.utils.formatdate(NOW + 3, usegmt=True)
    for wrong in (-86400, 86400):
        assert hint(value, date=DATE, now=NOW + wrong, most=300) == 3


@given(st.text(), st.one_of(st.none(), st.text()))
def test_no_header_is_too_strange(value, date):
    """Whatever a server sends, the wait is within its bounds."""
    seconds = hint(value, date=date, now=NOW, most=300)
    assert seconds is None or 0 <= seconds <= 300


@given(st.lists(st.floats(0, 1, exclude_max=True), max_size=50))
def test_the_pause_has_full_jitter_and_a_cap(chances):
    """The n-th pause lies between 0 and the least of the cap and 2**n."""
    backoff = RetryDelay(most=30)
    for number, chance in enumerate(chances):
        seconds = backoff.next(chance)
        assert 0 <= seconds <= min(30, 2**number)
        assert seconds == chance * min(30, 2**number)


@given(st.floats(1, 300), st.floats(0, 1))
def test_what_the_target_asks_for_is_waited(asked, chance):
    """The wait is never shorter than asked for, and at most a tenth longer."""
    assert asked <= RetryDelay().next(chance, asked) <= asked * 1.1


def test_asking_for_no_wait_does_not_lift_the_back_off():
    """A target that always says 0 is not hammered."""
    backoff = RetryDelay()
    assert [backoff.next(1, 0) for _ in range(3)] == [1, 2, 4]


def test_a_success_resets_the_back_off():
    """After a success the pauses begin small again."""
    backoff = RetryDelay()
    backoff.next(1)
    backoff.next(1)
    backoff.reset()
    assert backoff.next(1) == 1
