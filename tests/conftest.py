"""Every test has directories of its own, and leaves no process and no file behind.

Each test gets a runtime and a state directory below one short temporary path (a
socket's path has 107 bytes at most), and an environment without LOGAGG_*. Whoever is
still there GRACE seconds after a test has ended, or left a file where sockets are,
fails it: the consumer must end by itself. To save time the look is taken at the ends of
later tests and of the whole run; the message names the test that is to blame.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "system")]

import support  # noqa: E402 - the tests are no package: see the line above

from logagg.filters.secret_values import SECRETS  # noqa: E402 - as above

collect_ignore = []
if importlib.util.find_spec("duckdb") is None:  # an extra
    collect_ignore = ["core/test_query.py", "system/test_query_command.py"]

GRACE = 20.0
KEPT = ("LOGAGG_PORTABLE", "LOGAGG_PURE")  # the form that is tested

for profile, same in (("here", True), ("random", False)):
    hypothesis.settings.register_profile(
        profile,  # another one: --hypothesis-profile random
        derandomize=same,
        deadline=None,  # the machine may be busy with the other tests' processes
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")),
    )
hypothesis.settings.load_profile("here")


# A shell that starts us in the background has these ignored, and so would every child.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Processes that tests start need not compile all that they import, as it is for users.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        type=float,
        default=None,
        metavar="SECONDS",
        help="how long each soak lasts (default: 120 of kills, 45 of all faults)",
    )
    parser.addoption(
        "--chaos",
        type=float,
        default=None,
        metavar="SECONDS",
        help="how long the chaos of runs lasts, all its scenes together (default: 60)",
    )
    parser.addoption(
        "--fuzz",
        type=float,
        default=None,
        metavar="SECONDS",
        help="how long each fuzz test lasts (default: 200 inputs, always the same)",
    )
    parser.addoption(
        "--seeds",
        type=int,
        default=0,
        metavar="N",
        help="how many seeds each simulation plays, in place of its usual number",
    )
    parser.addoption(
        "--first-seed",
        type=int,
        default=None,
        metavar="N",
        help="the first of the seeds that a simulation plays, in place of its usual one",
    )
    parser.addoption(
        "--mutations",
        action="store_true",
        help="put old faults back into the product and have the simulation find them",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "leaves_files: its processes are killed, so their sockets may stay"
    )
    if config.getoption("soak"):
        hypothesis.settings.load_profile("random")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        slow = item.get_closest_marker("slow")
        if slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


class Sweep:
    """The directories of tests that have ended, until nothing is left in them."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="lg", dir="/tmp"))
        self._number = 0
        self._pending: list[tuple[Path, str, bool, float]] = []

    def fresh(self) -> Path:
        """A new directory with one for sockets (`r`) and one for state (`s`)."""
        self._number += 1
        place = self.base / str(self._number)
        for name in ("r", "s"):
            (place / name).mkdir(mode=0o700, parents=True)
        return place

    def ended(self, place: Path, test: str, *, may_leave: bool) -> None:
        """The test of a directory is over; fail for those whose grace is over."""
        self._pending.append((place, test, may_leave, time.monotonic() + GRACE))
        self.look()

    def look(self) -> None:
        """Drop the directories that are clean; fail for those that should be."""
        blame = []
        for each in list(self._pending):
            place, test, may_leave, deadline = each
            left = self._left(place, may_leave=may_leave)
            if left and time.monotonic() < deadline:
                continue
            self._pending.remove(each)
            if left:
                blame.append(f"{test} left behind: {left}")
            shutil.rmtree(place, ignore_errors=True)
        if blame:
            pytest.fail("\n".join(blame), pytrace=False)

    @staticmethod
    def _left(place: Path, *, may_leave: bool) -> list[str]:
        runtime = place / "r"
        if not any(runtime.iterdir()) and not any((place / "s").iterdir()):
            return []
        present = support.processes(runtime)
        if may_leave:
            for pid in present:
                _kill(pid)
            return []
        files = [str(path) for path in runtime.rglob("*") if not path.is_dir()]
        return [f"process {pid}: {line}" for pid, line in present.items()] + files

    def finish(self) -> None:
        """Wait for all that is left."""
        try:
            while self._pending:
                self.look()
                time.sleep(0.02)
        finally:
            for place, *_ in self._pending:
                for pid in support.processes(place / "r"):
                    _kill(pid)
            shutil.rmtree(self.base, ignore_errors=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.fixture(scope="session")
def sweep() -> Iterator[Sweep]:
    made = Sweep()
    yield made
    made.finish()


def package_path() -> str:
    """Where the packages under test are, for children that start without a site."""
    found = []
    for name in ("logagg", "logagg_sinks"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        folder = str(Path(spec.origin).parent.parent)
        if folder not in found:
            found.append(folder)
    return os.pathsep.join(found)


@pytest.fixture(autouse=True)
def isolated(
    sweep: Sweep, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Directories and environment of the test's own; see the head of this file."""
    place = sweep.fresh()
    for name in list(os.environ):
        own = name.startswith("LOGAGG_") and name not in KEPT
        if own or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "r"))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "s"))
    monkeypatch.setenv("PYTHONPATH", package_path())
    monkeypatch.setattr(SECRETS, "_values", {})  # those that other tests have read
    monkeypatch.setattr(SECRETS, "_runs", {})
    yield place
    _let_go()
    marker = request.node.get_closest_marker("leaves_files")
    sweep.ended(place, request.node.nodeid, may_leave=marker is not None)


def _let_go() -> None:
    """Close what this very process has attached, as its exit would."""
    root = logging.getLogger()
    if "logagg.client.transport" not in sys.modules:
        return
    from logagg.client import closing
    from logagg.client.handler import Handler
    from logagg.core.backoff import WaitBudget

    loggers: list[Any] = [root, *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in list(getattr(logger, "handlers", ())):
            if isinstance(handler, Handler):
                logger.removeHandler(handler)
                handler.close()
    for each in list(closing.in_use.values()):
        each.close(closing.CLOSE_TIMEOUT)
    closing.in_use.clear()
    closing.known.clear()
    closing.ended.clear()
    closing.leaving.clear()
    closing._in_all = WaitBudget(0.9 * closing.CLOSE_TIMEOUT)
    closing._under_logging_lock = WaitBudget(0.2)


class Shared:
    """One consumer for many tests, and what has come to its file since a test began.

    Attributes:
        path: The file.
        socket: The consumer's socket.
    """

    def __init__(self, path: Path, socket: str) -> None:
        self.path = path
        self.socket = socket
        self.mark()

    def mark(self) -> None:
        """Forget what is in the file now."""
        self._start = self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[bytes]:
        """Flush this process's records and return what is new in the file."""
        from logagg.client import closing

        found = closing.in_use.get(self.socket)
        assert found is None or found.flush(10.0), "flush did not succeed"
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._start)
            return file.read().split(b"\n")[:-1]

    def records(self) -> list[dict[str, Any]]:
        """What is new in the file, parsed strictly, without the service's records."""
        found = [support.strict(line) for line in self.lines()]
        return [record for record in found if not support.of_service(record)]

    def record(self) -> dict[str, Any]:
        """The only record that is new in the file."""
        found = self.records()
        assert len(found) == 1, found
        return found[0]


@pytest.fixture(scope="session")
def _shared(sweep: Sweep) -> Iterator[Shared]:
    import logagg

    place = sweep.fresh()
    before = {
        name: os.environ.get(name)
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "LOGAGG_SOCKET", "PYTHONPATH")
    }
    os.environ["XDG_RUNTIME_DIR"] = str(place / "r")
    os.environ["XDG_STATE_HOME"] = str(place / "s")
    path = place / "shared.log"
    with logagg.start(f"file:{path}", root=False):
        socket = os.environ["LOGAGG_SOCKET"]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        yield Shared(path, socket)
        os.environ["XDG_RUNTIME_DIR"] = str(place / "r")
    if before["XDG_RUNTIME_DIR"] is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before["XDG_RUNTIME_DIR"]


@pytest.fixture
def shared(_shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """The shared consumer, by LOGAGG_SOCKET; loggers and levels are put back."""
    monkeypatch.setenv("LOGAGG_SOCKET", _shared.socket)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    _shared.mark()
    yield _shared
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def log(
    shared: Shared, request: pytest.FixtureRequest
) -> Iterator[tuple[logging.Logger, Any]]:
    """A logger with a `logagg.Handler`, and that handler.

    The logger has a hierarchy of its own: pytest puts handlers on the common one.
    """
    import logagg

    handler = logagg.Handler()
    root = logging.RootLogger(logging.WARNING)
    logger = logging.Manager(root).getLogger(f"test.{request.node.name}")
    logger.setLevel(1)
    logger.addHandler(handler)
    yield logger, handler
    logger.removeHandler(handler)
    handler.close()
