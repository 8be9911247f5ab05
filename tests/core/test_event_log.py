"""The consumer's own records: each loss is announced once, with its number."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from logagg.consumer import event_log
from logagg.consumer.event_log import LATE_NS, REPORT_NS, EventLog
from logagg.consumer.worker_source import SourceState
from logagg.core.event import Event
from logagg.fanout import counters
from logagg.filters.secret_values import SecretValues

NOW = 1_795_568_400_000_000_000


class Worker:
    """A worker's counters, as a test sets them."""

    state = SourceState.READING
    name, pid, stream = "1", 17, "17-a"
    goodbye, stays, exit_status, successor = True, False, None, None
    sequence = SimpleNamespace(expected=10)

    def __init__(self, *, announced: int = 0, supervised: bool = False) -> None:
        self.hello = SimpleNamespace(
            drops_announced=announced,
            supervised=supervised,
            quiet=False,
            process="MainProcess",
            parent=1,
        )
        self.counts = dict.fromkeys(
            ("records", "lost", "dropped", "damaged", "duplicates"), 0
        )

    def losses(self) -> dict[str, int]:
        """As a worker's source has them."""
        return dict(self.counts)


class Log:
    """An event log with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOW
        self.events = EventLog(lambda: self.now, lambda: None)
        self.merger: Any = SimpleNamespace(late=0)

    def report(self, *workers: Any, pids: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """What a second brings."""
        self.now += REPORT_NS
        sources: Any = [SimpleNamespace(pid=pid) for pid in pids]
        self.events.report(self.now, sources, workers, self.merger)
        return [orjson.loads(line + b"}") for line in self.events.take()]


def kinds(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Each record's event and number."""
    return [(each["event"], each["number"]) for each in records]


def test_a_loss_is_announced_once_with_what_has_come_since() -> None:
    """Drops and damage at once, a hole when no count has explained it for a second."""
    log, worker = Log(), Worker()
    worker.counts.update(dropped=3, damaged=1, lost=2)

    assert kinds(log.report(worker)) == [(Event.DROPPED, 3), (Event.DAMAGED, 1)]
    assert kinds(log.report(worker)) == [(Event.LOST, 2)]
    worker.counts["dropped"] = 5
    assert kinds(log.report(worker)) == [(Event.DROPPED, 2)]
    assert log.report(worker) == []


def test_drops_that_an_earlier_consumer_announced_are_not_announced_again() -> None:
    """The worker brings their number in its hello."""
    log, worker = Log(), Worker(announced=4)
    worker.counts["dropped"] = 4

    assert log.report(worker) == []


def test_announced_drops_are_due_once_their_record_is_released() -> None:
    """By the sort key of that record."""
    log, worker = Log(), Worker()
    worker.counts["dropped"] = 3
    (record,) = log.report(worker)
    key = b'{"timestamp":"' + record["timestamp"].encode()

    assert log.events.take_announced(key) == []
    assert log.events.take_announced(key + b"0") == [(worker, 3)]
    assert log.events.take_announced(b"~") == []


def test_a_worker_that_has_departed_is_reported_at_its_end_only() -> None:
    """What it had lost is in the totals then, and comes no second time."""
    log, worker = Log(), Worker()
    worker.counts.update(records=9, lost=2)
    worker.state = SourceState.DEPARTED
    log.events.worker_ended(worker, "end of pipe")

    found = log.report(worker)

    assert [each["event"] for each in found] == [Event.LOST, Event.WORKER_EXIT]
    assert log.events.totals["lost"] == 2
    assert log.report(worker) == []


def test_an_end_in_good_order_is_one_short_record_for_debugging() -> None:
    """At most 200 bytes before the consumer's stamp, whatever its numbers."""
    log, worker = Log(), Worker()
    worker.name, worker.pid = "4194304", 4_194_304
    worker.counts.update(records=1_000_000)
    for _ in range(100):
        log.events.event("x", {})
    log.events.take()

    log.events.worker_ended(worker, "end of pipe")  # type: ignore[arg-type]
    worker.stays = True
    log.events.worker_ended(worker, "end of pipe")  # type: ignore[arg-type]

    ended, detached = log.events.take()
    assert len(ended) <= 200
    record = orjson.loads(ended + b"}")
    assert record["level"] == "debug"
    assert record["message"] == "worker 4194304 ended"
    assert (record["of_pid"], record["records"]) == (4_194_304, 1_000_000)
    assert orjson.loads(detached + b"}")["message"] == "worker 4194304 detached"


def test_a_process_that_does_not_log_debug_records_has_none_of_its_end() -> None:
    """Its file is one at INFO; an end that lost something is reported all the same."""
    log, worker = Log(), Worker()
    worker.hello.quiet = True
    worker.counts.update(records=3)
    log.events.worker_ended(worker, "end of pipe")
    assert log.events.take() == []

    worker.counts.update(lost=1)
    log.events.worker_ended(worker, "end of pipe")

    found = [orjson.loads(line + b"}") for line in log.events.take()]
    assert [(each["level"], each["lost"]) for each in found[1:]] == [("warning", 1)]


@pytest.mark.parametrize(
    ("status", "level", "text"),
    [
        (0, "debug", "worker 1 ended"),
        (3 << 8, "info", "ended with status 3"),
        (signal.SIGTERM, "info", "ended by SIGTERM"),
        (signal.SIGKILL, "warning", "killed by SIGKILL"),
        (63, "warning", "killed by signal 63"),
        (None, "info", "worker 1 ended without goodbye"),
    ],
)
def test_an_end_without_goodbye_has_the_level_that_its_status_deserves(
    status: int | None, level: str, text: str
) -> None:
    """`os._exit(0)`, as pools end their children, is in good order."""
    log, worker = Log(), Worker()
    worker.goodbye, worker.exit_status = False, status  # type: ignore[assignment]
    worker.counts.update(records=9)

    log.events.worker_ended(worker, "end of pipe")  # type: ignore[arg-type]

    (line,) = log.events.take()
    record = orjson.loads(line + b"}")
    assert record["level"] == level
    assert text in record["message"]
    assert record["records"] == 9


@pytest.mark.parametrize(
    ("process", "parent", "status", "level"),
    [
        ("ForkPoolWorker-1", 1, signal.SIGTERM, "debug"),
        ("MainProcess", 16, signal.SIGTERM, "debug"),
        ("MainProcess", 15, signal.SIGTERM, "info"),
        ("ForkPoolWorker-1", 16, signal.SIGKILL, "warning"),
        ("ForkPoolWorker-1", 16, signal.SIGSEGV, "warning"),
        ("ForkPoolWorker-1", 16, 1 << 8, "info"),
    ],
)
def test_a_child_that_gets_sigterm_ends_in_good_order(
    process: str, parent: int, status: int, level: str
) -> None:
    """Pools and servers end theirs so; a kill or a crash is something else."""
    log, worker, other = Log(), Worker(), Worker()
    other.pid = 16
    log.report(other)
    worker.goodbye, worker.exit_status = False, status  # type: ignore[assignment]
    worker.hello.process, worker.hello.parent = process, parent
    worker.counts.update(records=9)

    log.events.worker_ended(worker, "end of pipe")  # type: ignore[arg-type]
    worker.hello.quiet = True
    log.events.worker_ended(worker, "end of pipe")  # type: ignore[arg-type]

    lines = log.events.take()
    assert [orjson.loads(line + b"}")["level"] for line in lines] == (
        ["debug"] if level == "debug" else [level, level]
    )


def test_late_records_are_announced_every_ten_seconds() -> None:
    """With the number since the last time."""
    log = Log()
    log.merger.late = 5
    assert kinds(log.report()) == [(Event.LATE, 5)]
    log.merger.late = 8
    assert log.report() == []
    log.now += LATE_NS
    assert kinds(log.report()) == [(Event.LATE, 3)]


def test_the_record_of_a_death_follows_the_last_output() -> None:
    """It has the last lines and the counters, and does not wait for ever."""
    log, worker = Log(), Worker(supervised=True)
    log.events.last_lines_of(17).extend(map(str, range(9)))
    log.events.worker_ended(worker, "end of pipe")
    log.events.event_after(17, {"event": "worker_exit", "level": "error"})

    assert log.report(pids=(17,)) == []
    (record,) = log.report()

    assert record["last_lines"] == [*"45678"]
    assert record["last_seq"] == 9
    log.events.event_after(18, {"event": "worker_exit", "message": "gone"})
    found = [log.report(pids=(18,)) for _ in range(6)]
    assert [each["message"] for records in found for each in records] == ["gone"]


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("lost", [0, 3])
def test_an_end_in_order_of_a_supervised_worker(quiet: bool, lost: int) -> None:
    """One short debug record, none in a quiet run; lost records make it a warning."""
    log, worker = Log(), Worker(supervised=True)
    worker.counts["damaged"] = lost
    log.events.worker_ended(worker, "end of pipe")
    log.report()
    details = {"event": "worker_exit", "level": "debug", "message": "worker 1 ended: x"}
    details |= {"quiet": quiet, "slot": 1, "pid": 17, "reason": "x" * 200}
    log.events.event_after(17, details)

    found = log.report()

    if lost:
        (record,) = found
        assert (record["level"], record["damaged"]) == ("warning", 3)
        assert record["message"] == "worker 1 ended: x"
        assert record["reason"]
    else:
        assert [each["message"] for each in found] == ["worker 1 ended"] * (not quiet)
        assert {each["level"] for each in found} <= {"debug"}
        assert not [each for each in found if "reason" in each]


def test_records_are_in_order_though_the_clock_stands_still() -> None:
    """Each is stamped later than the one before it."""
    log = Log()
    for n in range(3):
        log.events.event(str(n), {"event": "x"})

    lines = log.events.take()

    assert lines == sorted(lines)
    assert [orjson.loads(line + b"}")["seq"] for line in lines] == [1, 2, 3]


def test_no_warning_and_no_fault_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever raised or logged it: on stderr, in records and in status it is hidden."""
    secret = "tok-5f0c77d1e2"
    secrets = SecretValues()
    secrets.add(secret)
    for module in (event_log, counters):
        monkeypatch.setattr(module, "SECRETS", secrets)
    texts: list[str] = []
    logger = logging.getLogger("test.secret")
    handler = event_log.AlarmHandler(lambda record, text: texts.append(text))
    logger.addHandler(handler)
    logger.propagate = False
    events = EventLog(lambda: NOW, lambda: None)
    try:
        raise ValueError(f"Bearer {secret} is refused")
    except ValueError as error:
        logger.exception("sink with %s", secret)
        events.part_failed("part", error)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True

    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 2
    assert shown.count("[secret] is refused") == 2
    assert len(texts) == len(events.lines) == len(events.faults) == 1
    assert secret not in f"{shown}{texts}{events.lines}{events.faults}"
