"""A simulated machine for the file sink: faults, crashes, other programs, a judge.

Everything runs in one thread from one seed. The sink's modules get `World` in place of
`os`: each call that touches the file system is a step, at which the call may fail, the
process may die, another program may act, or another job of the sink may run, as threads
and processes would interleave. The files are real ones.

A dead process does nothing more: each further call raises `Died`, and its descriptors
are closed, so that its locks go. The judge checks each call that destroys: no file of
another program may be removed, replaced or cut, and no record may go that is not safe
elsewhere, unless retention allows it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import io
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from logagg.core.line import KEY_END, record_id
from logagg.errors import ConfigError, SinkUnavailable
from logagg.platform import system
from logagg.sinks import FileSink
from logagg.testing import FakeClock, make_batch, make_line
from logagg_sinks import _compression
from logagg_sinks.file import (
    appender,
    directory,
    file_locks,
    file_sink,
    fsync,
    log_file,
    repair,
)  # fmt: skip
from logagg_sinks.file.pieces import (
    compressor,
    journal,
    own_files,
    recall,
    retention,
    rotator,
)  # fmt: skip

MODULES = (
    _compression, appender, directory, file_locks, file_sink, fsync, repair,
    compressor, journal, own_files, recall, retention, rotator, system,
)  # fmt: skip
STEPS = [
    "fchmod",
    "fsync",
    "fdatasync",
    "ftruncate",
    "link",
    "listdir",
    "lseek",
    "open",
    "pread",
    "pwrite",
    "rename",
    "stat",
    "unlink",
    "utime",
    "write",
]
FAULTS = {
    "open": (errno.EMFILE, errno.EACCES, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO),
    "pwrite": (errno.ENOSPC, errno.EIO),
    "link": (errno.ENOSPC, errno.EACCES, errno.EIO),
    "rename": (errno.ENOSPC, errno.EACCES, errno.EIO),
    "unlink": (errno.EACCES, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO,),
    "pread": (errno.EIO,),
    "listdir": (errno.EIO,),
    "stat": (errno.EIO,),
    "ftruncate": (errno.EIO,),
}
ZONES = ("UTC", "America/New_York", "Pacific/Kiritimati", "Europe/Berlin")
DAY = 86_400
STARTS = {
    "autumn": 1_793_494_800.0,  # 2026-11-01T05:00:00Z: an hour of New York comes twice
    "spring": 1_774_744_200.0,  # 2026-03-29T00:30:00Z: an hour of Berlin is left out
}
TARGETS = ("app.log", "app-{date}.log", "{worker}-{date}.log", "other.log")
USER_ACTS = ("plant", "plant", "swap", "link", "edit", "move", "append")
PIECE = r"(\.\d{4}-\d\d-\d\d(_\d\d)?)?(\.\d+)?(\.gz)?"


class Died(BaseException):
    """The process was killed."""


class Locks:
    """`fcntl`, unless the process is dead."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name in ("flock", "fcntl"):
            me = self._world.now
            if me is not None and not me.alive:
                raise Died
        return getattr(fcntl, name)


class Done:
    """An awaitable that is over."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        return self._value
        yield


class Inline:
    """An executor without a thread; the background's jobs wait in `jobs`."""

    def __init__(self, name: str, niceness: int = 0) -> None:
        self.jobs: list[Callable[[], Any]] = []
        self._later = bool(niceness)

    def submit(self, fn: Callable[..., Any], *args: Any) -> None:
        if self._later:
            self.jobs.append(lambda: fn(*args))
        else:
            fn(*args)

    def call(self, fn: Callable[..., Any], *args: Any) -> Done:
        return Done(fn(*args))

    def shutdown(self, *, wait: bool) -> None:
        del wait


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Service:
    """One service: a target, and the processes that wrote it one after the other."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        self.target = target
        self.options = options
        self.process: Process | None = None
        name = re.escape(target).replace(r"\{worker\}", "[12]")
        name = name.replace(r"\{date\}", r"\d{4}-\d\d-\d\d")
        self.pattern = re.compile(name + PIECE)

    @property
    def limited(self) -> bool:
        """Whether it removes rotated files."""
        return not {"backups", "max_age", "max_total_bytes"}.isdisjoint(self.options)


class Process:
    """One run of a service: a sink, and what it has open."""

    def __init__(self, service: Service, sink: FileSink, zone: str) -> None:
        self.service = service
        self.sink = sink
        self.zone = zone
        self.alive = True
        self._executors: Any = None
        self.fds: set[int] = set()
        self.raws: set[io.FileIO] = set()
        self.writing = Counter[tuple[int, int]]()

    @property
    def jobs(self) -> list[Callable[[], Any]]:
        """What its background thread has to do; after `close` as well."""
        self._executors = self.sink._executors or self._executors
        return self._executors.background.jobs if self._executors else []

    @property
    def locked(self) -> bool:
        return bool(self.sink._journal._depth)


class World:
    """The machine; it stands in for `os` in the sink's modules.

    Args:
        folder: Where the log is.
        seed: What happens.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.drawn = Counter[str]()
        start = STARTS[self.draw("start", tuple(STARTS))]
        self.clock = FakeClock(start + self.chance.choice((-2, 0, 1)) * 1800)
        self.now: Process | None = None
        self.quiet = True  # no step counts
        self.depth = 0
        self.amid: list[str] = []  # the calls in the middle of which things happen
        self.acknowledged: set[int] = set()
        self.retired: set[int] = set()
        self.doomed: set[int] = set()  # files that were to be removed
        self.writer: dict[int, Service] = {}
        self.foreign: dict[int, tuple[str, bytes]] = {}
        self.synced: set[int] = set()
        self.seq = 0
        self.saved = 0
        self.notes = 0
        self.edited = False
        self.disturbed = False  # a user took pieces away during this operation
        self.processes: list[Process] = []
        self.crash_at = self.chance.randrange(5, 900)
        targets = self.chance.sample(TARGETS, self.draw("services", (1, 2)))
        self.drawn.update(f"target {each}" for each in targets)
        self.services = [Service(each, self._options(each)) for each in targets]

    def __getattr__(self, name: str) -> Any:
        if name in STEPS:
            return lambda *args, **keys: self._step(name, args, keys)
        return getattr(os, name)

    def draw(self, what: str, choices: tuple[Any, ...]) -> Any:
        """One of the choices, which is counted in `drawn`."""
        found = self.chance.choice(choices)
        self.drawn[f"{what} {found}"] += 1
        return found

    def _options(self, path: str) -> dict[str, Any]:
        sizes = (0, 900) if "date" in path else (1, 700, 1500)
        options: dict[str, Any] = {
            "max_bytes": self.draw("max_bytes", sizes),
            "compress": self.draw("compress", (None, "gzip", "gzip")),
            "backups": self.draw("backups", (0, 0, 0, 2)),
            "max_age": self.draw("max_age", (0, 0, 0, DAY)),
            "max_total_bytes": self.draw("max_total_bytes", (0, 0, 0, 4000)),
            "fsync": self.draw("fsync", ("never", "always")),
            "utc": self.draw("utc", (False, False, True)),
        }
        if "date" not in path and self.chance.random() < 0.4:
            options["when"] = self.draw("when", ("h", "d", "midnight"))
        return {key: value for key, value in options.items() if value}

    # ---- calls ----------------------------------------------------------------------

    def _step(self, name: str, args: tuple[Any, ...], keys: dict[str, Any]) -> Any:
        me = self.now
        if me is None:
            return getattr(os, name)(*args, **keys)
        if not me.alive:
            raise Died
        if not self.quiet:
            self.amid.append(name)
            try:
                self._disturb(me, name)
            finally:
                self.amid.pop()
        self._judge(name, args)
        result = getattr(os, name)(*args, **keys)
        if name == "open":
            me.fds.add(result)
            if args[1] & os.O_CREAT:
                self.stamp(result)
        elif name in ("write", "pwrite", "ftruncate"):
            self.stamp(args[0])
        elif name == "fsync":
            self.synced.add(os.fstat(args[0]).st_ino)
        return result

    def stamp(self, fd: int) -> None:
        """Have a file modified now, as the simulated clock shows it."""
        os.utime(fd, (self.clock(), self.clock()))

    def _disturb(self, me: Process, name: str) -> None:
        """Let happen in this call what the seed says."""
        self.crash_at -= 1
        if self.crash_at == 0:
            self.drawn[f"killed in {name}"] += 1
            self.kill(me)
            raise Died
        draw = self.chance.random()
        if draw < 0.015 and name in FAULTS:
            self.drawn[f"refused {name}"] += 1
            code = self.chance.choice(FAULTS[name])
            raise OSError(code, os.strerror(code))
        if draw > 0.985:
            self.act()
        elif draw > 0.96:
            self._interleave(me)
            if not me.alive:
                raise Died

    def close(self, fd: int) -> None:
        """As `os.close`; the descriptors of the dead are closed already."""
        for process in (self.now,):
            if process is not None:
                if not process.alive:
                    raise Died
                process.fds.discard(fd)
        os.close(fd)

    def dup(self, fd: int) -> int:
        """As `os.dup`."""
        new = os.dup(fd)
        if self.now is not None:
            self.now.fds.add(new)
        return new

    def fdopen(self, fd: int, mode: str) -> Any:
        """As `os.fdopen`, which closes the descriptor itself."""
        if self.now is not None:
            self.now.fds.discard(fd)
        return os.fdopen(fd, mode)

    def kill(self, process: Process) -> None:
        """End a process: nothing of it remains open."""
        process.alive = False
        for fd in process.fds:
            os.close(fd)
        process.fds.clear()
        for raw in process.raws:
            io.FileIO.close(raw)

    def _interleave(self, me: Process) -> None:
        """Run another job in the middle of this call, as another thread would."""
        if self.depth > 1:
            return
        choices = [p for p in self.processes if p.alive and p.jobs and not p.locked]
        if choices:
            self.depth += 1
            process = self.chance.choice(choices)
            self.drawn[f"amid {'its own' if process is me else 'another'} process"] += 1
            self.run(process, process.jobs.pop(0))
            self.depth -= 1
            self.now = me

    def run(self, process: Process, work: Callable[[], Any]) -> Any:
        """Do something as a process; its death ends it."""
        before = self.now
        self._switch(process)
        try:
            return work()
        except Died:
            return None
        finally:
            self._switch(before)

    def _switch(self, process: Process | None) -> None:
        """Give the word to a process, or to none."""
        self.now = process
        if process is not None:
            file_locks._writing = process.writing
            os.environ["TZ"] = process.zone
            time.tzset()

    # ---- other programs -------------------------------------------------------------

    def act(self) -> None:
        """A user makes, takes away, swaps, links or edits a file."""
        names = [p for p in self.folder.iterdir() if not p.name.startswith(".")]
        rotated = [
            p
            for p in names
            if p.stat().st_ino not in self.foreign and p.name[-4:] != ".log"
        ]
        kind = self.draw("user", USER_ACTS)
        if kind in ("move", "append"):
            current = [p for p in names if p not in rotated and p.suffix == ".log"]
            # No system has a call that truncates a file only if nobody appended to it.
            if current and not {"ftruncate", "pwrite"}.intersection(self.amid):
                path = self.chance.choice(current)
                # In the middle of a rotation it makes the file one of others: it stays.
                # So does an original whose copy a killed process had made.
                copied = path.with_name(f"{path.name}.gz").exists()
                changing = bool(self.amid) or copied
                self.edited = self.edited or (changing and kind == "append")
                self._touch_current(kind, path)
            return
        if kind == "plant" or not rotated:
            day = time.strftime("%Y-%m-%d", time.gmtime(self.clock()))
            days = (f"app.log.{day}", f"app-{day}.log.gz", f"1-{day}.log.1")
            numbers = [f"app.log.{n}" for n in (1, 2, 3, 2024, 20251231)]
            packed = [f"{n}.gz" for n in numbers[:3]]
            self.plant(self.chance.choice([*days, *numbers, *packed]))
            return
        piece = self.chance.choice(rotated)
        self.saved += 1
        aside = self.folder / f"saved-{self.saved}{piece.suffix}"
        if kind == "swap":
            self.disturbed = True
            piece.rename(aside)
            self.plant(piece.name)
        elif kind == "link":
            os.link(piece, aside)
        elif piece.suffix != ".gz":
            self.edited = True
            self._note(piece)

    def _touch_current(self, kind: str, path: Path) -> None:
        """Move a file away that is written, as logrotate does, or append to it."""
        if kind == "append":
            self._note(path)
        else:
            self.saved += 1
            self.disturbed = True
            path.rename(self.folder / f"saved-{self.saved}.log")

    def _note(self, path: Path) -> None:
        """Append a line, which counts as a record with a negative number."""
        self.notes += 1
        self.disturbed = self.disturbed or bool(self.amid)
        self.acknowledged.add(-self.notes)
        with path.open("ab") as file:
            file.write(b"a note %d\n" % self.notes)
            file.flush()
            self.stamp(file.fileno())

    def plant(self, name: str) -> None:
        """Make a file of another program, unless there is one of this name."""
        try:
            fd = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        data = f"foreign {name}\n".encode()
        os.write(fd, data)
        self.foreign[os.fstat(fd).st_ino] = name, data
        self.drawn["foreign file"] += 1
        os.close(fd)

    # ---- the judge ------------------------------------------------------------------

    def _judge(self, name: str, args: tuple[Any, ...]) -> None:
        assert self.now is not None
        if name in ("unlink", "rename"):
            strange = self.foreign_to(self.now.service, self.folder / args[0])
            assert not strange, f"{name} of {args[0]}: it has records of another log"
        if name == "unlink":
            status = self._status(args[0])
            if status is not None and status.st_nlink == 1:
                assert status.st_ino not in self.foreign, f"{args[0]} is foreign"
                lost = self._lost_with(args[0])
                if lost & self.acknowledged and status.st_ino not in self.doomed:
                    beyond = self._beyond_limits(self.now.service, args[0], status)
                    assert beyond, f"the records {sorted(lost)} go with {args[0]}"
                self.drawn["removed by a limit"] += bool(lost)
                self.retired |= lost
        elif name == "rename" and args[0] != args[1]:  # onto itself, it moves nothing
            old, new = args[:2]
            there, status = self._status(new), self._status(old)
            alone = status is not None and status.st_nlink == 1
            if alone and new.endswith(".gone"):
                # What is chosen now may go later, whatever users do in between.
                assert status is not None
                beyond = self._beyond_limits(self.now.service, old, status)
                self.doomed |= {status.st_ino} if beyond else set()
            journal_itself = new.endswith(".journal")
            assert there is None or journal_itself, f"{old} replaces {new}"

    def foreign_to(self, service: Service, path: Path) -> list[int]:
        """The records of other services in a file."""
        found = [seq for seq in records(path) if seq > 0]
        return [seq for seq in found if self.writer[seq] is not service]

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.lstat(self.folder / name)
        except OSError:
            return None

    def _lost_with(self, name: str) -> set[int]:
        """The records that are nowhere else than in this file."""
        path = self.folder / name
        wanted = set(records(path))
        if not wanted or path.name.endswith(".part"):
            return set()
        for other in self.folder.iterdir():
            if other != path and not other.name.endswith(".part"):
                found = set(records(other))
                if wanted & found and other.suffix == ".gz":
                    assert other.stat().st_ino in self.synced, f"{other} is not synced"
                wanted -= found
        return wanted

    def _beyond_limits(
        self, service: Service, name: str, status: os.stat_result
    ) -> bool:
        """Whether a rotated file may be removed."""
        moved = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}-[0-9a-fx]+\.gone", name)
        series = self.series(moved[1] if moved else name)
        others = [p for p in self.visible(service) if self.series(p.name) == series]
        mine = self.order(moved[1] if moved else name)
        newer = {self.order(p.name) for p in others if self.order(p.name) > mine}
        if "{date}" in service.target:
            newer.discard((max(day for day, _ in [*newer, mine]), 0))
        newer.discard(("9", 0))  # what is written is no rotated file
        keep = service.options.get("backups", 0)
        room = service.options.get("max_total_bytes", 0)
        age = service.options.get("max_age", 0)
        size = sum(p.stat().st_size for p in others)
        size += status.st_size if moved else 0
        size += service.options.get("max_bytes", 0)
        return bool(
            (keep and (len(newer) >= keep or self.disturbed))
            or (room and (size > room or self.disturbed))
            or (age and (self.clock() - status.st_mtime > age or self.disturbed))
        )

    @staticmethod
    def series(name: str) -> str:
        """The log that a file belongs to, by its name."""
        return re.split(r"[.-]", name, maxsplit=1)[0]

    @staticmethod
    def order(name: str) -> tuple[str, int]:
        """Sorts the files of a log, the oldest first, by their names."""
        match = re.fullmatch(
            r"(?:\w+-(?P<day>[\d-]+))?.*?\.log(?:\.(?P<period>\d{4}-[\d_-]+))?"
            r"(?:\.(?P<number>\d+))?(?:\.gz)?",
            name,
        )
        assert match, name
        number = int(match["number"] or 0)
        if match["period"]:
            return match["period"], number
        if match["number"] or match["day"]:
            return match["day"] or "", -number
        return "9", 0

    def visible(self, service: Service) -> list[Path]:
        """The files of a log under names that are its own."""
        return [
            path
            for path in self.folder.iterdir()
            if service.pattern.fullmatch(path.name)
            and path.stat().st_ino not in self.foreign
        ]


def records(path: Path) -> list[int]:
    """The numbers of the records and notes in a file, compressed or not."""
    if not path.is_file() or path.name.endswith(".journal"):
        return []
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError):
            return []
    found = []
    for line in data.split(b"\n"):
        try:
            found.append(int(orjson.loads(line)["seq"]))
        except (ValueError, TypeError, KeyError):
            if note := re.search(rb"a note (\d+)$", line):
                found.append(-int(note[1]))
    return [seq for seq in found if seq]


class Raw(io.FileIO):
    """The file that is appended to; a part of a write may be all that a crash leaves."""

    world: World

    def __init__(self, fd: int, mode: str, *, closefd: bool) -> None:
        super().__init__(fd, mode, closefd=closefd)
        me = self.world.now
        if me is not None:
            me.fds.discard(fd)
            me.raws.add(self)

    def write(self, data: Any) -> int:
        world, me = self.world, self.world.now
        if me is None or world.quiet:
            return super().write(data)
        if not me.alive:
            raise Died
        draw = world.chance.random()
        part = memoryview(data)[: world.chance.randrange(len(data) + 1)]
        if draw < 0.02:
            super().write(part)
            code = world.chance.choice((errno.ENOSPC, errno.EIO))
            raise OSError(code, os.strerror(code))
        if draw > 0.995:
            super().write(part)
            world.drawn["killed amid a write"] += 1
            world.kill(me)
            raise Died
        size = super().write(data)
        world.stamp(self.fileno())
        return size

    def close(self) -> None:
        me = self.world.now
        if me is not None and not me.alive and not self.closed:
            raise Died
        if me is not None:
            me.raws.discard(self)
        super().close()


class Handle:
    """What aiofiles makes of a file."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw

    async def write(self, data: Any) -> int:
        return self._raw.write(data)


@contextlib.contextmanager
def replaced(world: World) -> Iterator[None]:
    """Have the sink's modules use the world in place of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            if hasattr(module, "os"):
                patch.setattr(module, "os", world)
            if hasattr(module, "fcntl"):
                patch.setattr(module, "fcntl", Locks(world))
        raw = type("Raw", (Raw,), {"world": world})
        patch.setattr(appender, "io", SimpleNamespace(FileIO=raw))
        wrap = SimpleNamespace(wrap=lambda raw, executor: Handle(raw))
        patch.setattr(appender, "aiofiles", SimpleNamespace(threadpool=wrap))
        patch.setattr(appender, "CHECK_INTERVAL", 0.0)
        patch.setattr(file_locks, "_writing", file_locks._writing)
        patch.setattr(log_file, "RETRY_INTERVAL", 0.0)
        patch.setattr(journal, "LOCK_TIMEOUT", 0.0)
        patch.setattr(file_sink, "SerialExecutor", Inline)
        patch.setattr(file_sink, "asyncio", SimpleNamespace(wait=_no_wait))
        patch.setenv("TZ", "UTC")
        yield
    time.tzset()


async def _no_wait(jobs: Any, *, timeout: float) -> tuple[Any, list[Any]]:
    del timeout
    return jobs, []


class Simulation:
    """One course of events."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.world = World(folder, seed)
        self.chance = self.world.chance
        self.ids: dict[int, bytes] = {}
        self.blind = False  # a service went on without the journal: see `FileSink.open`

    def run(self, operations: int = 40) -> None:
        """Let things happen, then let a last run of each service finish all; judge."""
        world = self.world
        with replaced(world):
            try:
                for _ in range(operations):
                    world.quiet = world.disturbed = False
                    self._operation(self.chance.choice(world.services))
                world.quiet = True
                for service in world.services:
                    self._finish(service)
                self._judge()
            finally:
                world.quiet = True
                for process in world.processes:
                    if process.alive:
                        world.kill(process)

    def _process(self, service: Service) -> Process:
        """The process that writes; a new one where there is none."""
        while service.process is None or not service.process.alive:
            self._start(service)
        return service.process

    def _start(self, service: Service) -> None:
        world = self.world
        path = world.folder / service.target
        sink = FileSink(path, clock=world.clock, **service.options)
        process = Process(service, sink, world.draw("zone", ZONES))
        world.processes.append(process)
        service.process = process
        for tries in range(9):
            world.quiet = world.quiet or tries > 5
            try:
                world.run(process, lambda: drive(sink.open()))
                break
            except (SinkUnavailable, ConfigError, OSError):
                self.blind = self.blind or tries >= 2
                continue
        if process.alive:
            self._check_recall(process)

    def _operation(self, service: Service) -> None:
        world, draw = self.world, self.chance.random()
        if draw < 0.65:
            self._write(service)
        elif draw < 0.78:
            for process in world.processes:
                if process.alive and process.jobs:
                    world.run(process, process.jobs.pop(0))
        elif draw < 0.88:
            world.clock.advance(
                world.draw("step", (60, 1800, 3600, DAY, -60, -3600, -DAY))
            )
        elif draw < 0.93:
            world.act()
        elif draw < 0.97:
            process = self._process(service)
            world.run(process, lambda: drive(process.sink.close()))
            service.process = None
        else:
            world.drawn["killed outside a call"] += 1
            world.kill(self._process(service))

    def _write(self, service: Service) -> None:
        world, process = self.world, self._process(service)
        lines = []
        for _ in range(self.chance.randrange(1, 5)):
            world.seq += 1
            line = make_line(
                world.seq,
                worker=self.chance.choice("12"),
                message="x" * self.chance.randrange(300),
            )
            self.ids[world.seq] = record_id(line)
            world.writer[world.seq] = service
            lines.append(line)
        batch = make_batch(lines)
        seqs = range(world.seq - len(lines) + 1, world.seq + 1)
        for tries in range(9):
            world.quiet = world.quiet or tries > 5
            try:
                world.run(process, lambda: drive(process.sink.write(batch)))
            except (SinkUnavailable, ConfigError) as error:
                if "hard links" in str(error):
                    self._remove_links()
                continue
            break
        else:
            raise AssertionError("it does not write without a fault")
        if process.alive:
            world.acknowledged.update(seqs)

    def _remove_links(self) -> None:
        """Do as the error demands: a user had taken a name in the middle of a rename."""
        for path in self.world.folder.iterdir():
            status = path.stat()
            taken = status.st_ino in self.world.foreign and path.suffix == ".log"
            if status.st_nlink > 1 and (taken or path.name.startswith("saved-")):
                path.unlink()

    def _finish(self, service: Service) -> None:
        world = self.world
        for process in world.processes:
            if process.service is service:
                while process.alive and process.jobs:
                    world.run(process, process.jobs.pop(0))
                if process.alive:
                    world.run(process, lambda p=process: drive(p.sink.close()))
        service.process = None
        process = self._process(service)
        for _ in range(2):
            self._write(service)
            while process.jobs:
                world.run(process, process.jobs.pop(0))
        world.run(process, lambda: drive(process.sink.close()))

    # ---- the judge ------------------------------------------------------------------

    def _check_recall(self, process: Process) -> None:
        """What is written is known to a new service."""
        world = self.world
        before, world.quiet = world.quiet, True
        since = make_line(1)[:KEY_END]
        known = world.run(process, lambda: drive(process.sink.written_since(since)))
        world.quiet = before
        there = {seq for p in world.visible(process.service) for seq in records(p)}
        missing = {seq for seq in there if seq > 0 and self.ids[seq] not in known}
        assert not missing, f"recall misses {sorted(missing)}"

    def _judge(self) -> None:
        world = self.world
        self._judge_foreign()
        everywhere = {
            seq
            for path in world.folder.iterdir()
            if path.stat().st_ino not in world.foreign
            for seq in records(path)
        }
        lost = world.acknowledged - everywhere - world.retired
        assert not lost, f"lost: {sorted(lost)}"
        if not world.edited:
            for service in world.services:
                files = {path.stat().st_ino: path for path in world.visible(service)}
                seqs = [seq for path in files.values() for seq in records(path)]
                twice = [seq for seq, count in Counter(seqs).items() if count > 1]
                assert not twice, f"twice: {twice}"
                self._judge_order(list(files.values()))

    def _judge_foreign(self) -> None:
        world = self.world
        for inode, (name, data) in world.foreign.items():
            places = [p for p in world.folder.iterdir() if p.stat().st_ino == inode]
            assert places, f"foreign {name} is gone"
            assert places[0].read_bytes() == data, f"foreign {name} was changed"
            there = (world.folder / name).stat().st_ino
            assert there == inode or there in world.foreign, f"{name} lost its name"
        hidden = [
            path.name
            for path in world.folder.iterdir()
            if path.name.startswith(".")
            and not path.name.endswith(".journal")
            and path.stat().st_ino not in world.foreign
        ]
        if all(s.limited or "compress" in s.options for s in world.services):
            assert not hidden, f"left over: {hidden}"  # it was tidied at the end

    def _judge_order(self, paths: list[Path]) -> None:
        """The names of a log's pieces are in the order of its records."""
        series: dict[str, list[tuple[Any, Path]]] = {}
        for path in paths:
            log = series.setdefault(self.world.series(path.name), [])
            order = *self.world.order(path.name), path.suffix != ".gz"
            log.append((order, path))
        for log in series.values() if not self.blind else ():
            seqs = [s for _, path in sorted(log) for s in records(path) if s > 0]
            names = [path.name for _, path in sorted(log)]
            assert seqs == sorted(seqs), f"out of order: {names}"
