"""Records that are made faster are the same records."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import Any

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from logagg import records

VARY = ("created", "msecs", "relativeCreated")
ARGUMENTS = st.one_of(
    st.just(()),
    st.none(),
    st.tuples(st.integers()),
    st.tuples(st.text(), st.floats()),
    st.tuples(st.dictionaries(st.text(), st.integers())),
)


@given(
    name=st.text(),
    level=st.sampled_from([0, 10, 15, 20, 50, 99]),
    path=st.one_of(st.text(), st.sampled_from(["/a/b.py", "b.c.py", "", "dir/"])),
    message=st.one_of(
        st.text(), st.integers(), st.none(), st.dictionaries(st.text(), st.text())
    ),
    arguments=ARGUMENTS,
)
def test_a_record_is_as_logging_makes_it(
    name: str, level: int, path: str, message: object, arguments: Any
) -> None:
    """The same attributes, in the same order, of the same types and values."""
    values = (name, level, path, 7, message, arguments, None, "function", "stack")
    theirs, ours = logging.LogRecord(*values), records.make(*values)

    assert list(vars(ours)) == list(vars(theirs))
    assert type(ours) is logging.LogRecord
    for attribute, value in vars(theirs).items():
        mine = getattr(ours, attribute)
        assert type(mine) is type(value), attribute
        if attribute not in VARY:
            assert mine == value or mine is value, attribute
    assert abs(ours.created - theirs.created) < 1


def test_a_frozen_clock_freezes_records() -> None:
    """Tests that freeze time see it in every record."""
    with freeze_time("2020-01-02 03:04:05.678"):
        record = records.make("n", 20, "p", 1, "m", (), None)
        theirs = logging.LogRecord("n", 20, "p", 1, "m", (), None)

    assert (record.created, record.msecs) == (theirs.created, theirs.msecs)


def test_switches_of_logging_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """logThreads, logProcesses and logMultiprocessing leave their attributes None."""
    for switch in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, False)

    record = records.make("n", 20, "p", 1, "m", (), None)

    assert record.thread is record.threadName is None
    assert record.process is record.processName is None


def test_threads_and_forks_are_named_as_they_are() -> None:
    """A record says the thread and the process that it was made in."""
    made: list[logging.LogRecord] = []
    thread = threading.Thread(
        target=lambda: made.append(records.make("n", 20, "p", 1, "m", (), None)),
        name="other",
    )
    thread.start()
    thread.join()

    assert (made[0].threadName, made[0].thread) == ("other", thread.ident)


def test_a_factory_of_the_application_is_left_alone() -> None:
    """Who has set a record factory keeps it, and its records arrive."""
    code = """
import logging
class Mine(logging.LogRecord):
    pass
logging.setLogRecordFactory(Mine)
import logagg
logagg.Handler("x.log")
assert logging.getLogRecordFactory() is Mine
logging.setLogRecordFactory(logging.LogRecord)
logagg.Handler("x.log")
assert logging.getLogRecordFactory().__module__ == "logagg.records"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, cwd="/tmp")
