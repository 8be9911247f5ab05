"""Records that are made faster are the same records."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from logagg.client.fast import record_factory

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
    theirs, ours = logging.LogRecord(*values), record_factory.make_record(*values)

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
        record = record_factory.make_record("n", 20, "p", 1, "m", (), None)
        theirs = logging.LogRecord("n", 20, "p", 1, "m", (), None)

    assert (record.created, record.msecs) == (theirs.created, theirs.msecs)


def test_switches_of_logging_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """logThreads, logProcesses and logMultiprocessing leave their attributes None."""
    for switch in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, False)

    record = record_factory.make_record("n", 20, "p", 1, "m", (), None)

    assert record.thread is record.threadName is None
    assert record.process is record.processName is None


def test_threads_and_forks_are_named_as_they_are() -> None:
    """A record says the thread and the process that it was made in."""
    made: list[logging.LogRecord] = []
    thread = threading.Thread(
        target=lambda: made.append(
            record_factory.make_record("n", 20, "p", 1, "m", (), None)
        ),
        name="other",
    )
    thread.start()
    thread.join()

    assert (made[0].threadName, made[0].thread) == ("other", thread.ident)


def python(code: str, *arguments: str) -> None:
    """Run a program in an interpreter of its own."""
    subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, timeout=90, cwd="/tmp"
    )


def test_a_handler_changes_nothing_global_in_logging() -> None:
    """Neither making nor closing one touches the record factory or any other name."""
    code = """
import logging
before = {name: value for name, value in vars(logging).items() if name != "_handlers"}
root = dict(vars(logging.getLogger()))
import logagg
handler = logagg.Handler("x.log", sinks=["stdout:"])
assert logging.getLogRecordFactory() is logging.LogRecord
handler.close()
assert logging.getLogRecordFactory() is logging.LogRecord
assert logging.getLoggerClass() is logging.Logger
after = {name: value for name, value in vars(logging).items() if name != "_handlers"}
assert before == after, before.keys() ^ after.keys()
assert vars(logging.getLogger()) == root
"""
    python(code)


def test_install_and_uninstall_leave_logging_as_it_was() -> None:
    """Both may be called twice, and `uninstall` without `install`."""
    code = """
import logging, logagg
logagg.uninstall()
assert logging.getLogRecordFactory() is logging.LogRecord
assert logagg.install() is True
assert logagg.install() is True
assert logging.getLogRecordFactory().__module__.startswith("logagg.")
logagg.uninstall()
logagg.uninstall()
assert logging.getLogRecordFactory() is logging.LogRecord
"""
    python(code)


def test_a_factory_of_the_application_is_left_alone() -> None:
    """Set before `install` or after it, it stays through `install` and `uninstall`."""
    code = """
import logging, logagg
class Mine(logging.LogRecord):
    pass
logging.setLogRecordFactory(Mine)
assert logagg.install() is False
assert logging.getLogRecordFactory() is Mine
logagg.uninstall()
assert logging.getLogRecordFactory() is Mine
logging.setLogRecordFactory(logging.LogRecord)
assert logagg.install() is True
fast = logging.getLogRecordFactory()
def wrapped(*arguments, **options):
    return fast(*arguments, **options)
logging.setLogRecordFactory(wrapped)
assert logagg.install() is False
assert logging.getLogRecordFactory() is wrapped
logagg.uninstall()
assert logging.getLogRecordFactory() is wrapped
"""
    python(code)


def test_start_installs_and_leaving_it_uninstalls(tmp_path: Path) -> None:
    """Unless the application has installed it: then it stays."""
    code = """
import logging, sys, logagg
with logagg.start("file:" + sys.argv[1], root=False):
    assert logging.getLogRecordFactory() is not logging.LogRecord
assert logging.getLogRecordFactory() is logging.LogRecord
assert logagg.install() is True
with logagg.start("file:" + sys.argv[1], root=False):
    pass
assert logging.getLogRecordFactory() is not logging.LogRecord
"""
    python(code, str(tmp_path / "app.log"))


@pytest.mark.parametrize("install", ["", "logagg.install()"])
def test_fields_of_a_factory_set_before_logagg_are_sent(
    tmp_path: Path, install: str
) -> None:
    """OpenTelemetry's instrumentation, for one, sets a factory early."""
    code = f"""
import logging, sys
made = logging.getLogRecordFactory()
def factory(*arguments, **options):
    record = made(*arguments, **options)
    record.request_id = "r1"
    return record
logging.setLogRecordFactory(factory)
import logagg
{install}
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
logging.info("hi", extra={{"k": 1}})
logging.shutdown()
"""
    path = tmp_path / "app.log"

    python(code, str(path))

    found = json.loads(path.read_bytes().splitlines()[0])
    assert (found["request_id"], found["k"]) == ("r1", 1)
