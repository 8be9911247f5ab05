"""The sinks that are wanted: each target opened once, and a reload that is whole."""

from __future__ import annotations

import asyncio
import errno
import importlib.metadata
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import support

from logagg import sinks
from logagg.abc import Batch
from logagg.core.line import received_suffix
from logagg.fanout.fanout import Fanout
from logagg.fanout.registry import SinkRegistry
from logagg.sinks import build
from logagg.testing import MemorySink


class Service:
    """A registry with its fanout, in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.captured: set[int] = set()
        self.number = 0
        self.fanout = Fanout(self.add_event, lambda: None)
        self.registry = SinkRegistry(self.fanout, self.captured.__contains__)

    def add_event(self, message: str, details: dict[str, Any]) -> None:
        """Keep an event as the stream would have it."""
        self.events.append({"message": message, **details})

    def file(self, name: str, options: str = "") -> str:
        """The URL of a file in the directory."""
        return f"file:{self.folder / name}{options}"

    def put(self) -> None:
        """Put a record into the stream."""
        self.number += 1
        line = support.wire_line(10**18 + self.number, self.number)
        self.fanout.put(Batch([line], received_suffix(10**18)), frozenset())

    def seqs(self, name: str) -> list[int]:
        """The records in a file."""
        return [each["seq"] for each in support.records(self.folder / name)]

    async def want(self, *urls: str, own: bool = False) -> None:
        """Let a process want these sinks."""
        fds = [os.open(self.folder / "stdout", os.O_CREAT | os.O_WRONLY) for _ in "12"]
        await self.registry.want(self.refused.append, list(urls), fds, own=own)

    @property
    def urls(self) -> list[str]:
        """The sinks that are open."""
        return [runner.name for runner in self.fanout.runners.values()]


def run(folder: Path, main: Callable[[Service], Coroutine[Any, Any, None]]) -> Service:
    """Run a test with a service, and close that."""

    async def whole() -> Service:
        service = Service(folder)
        await main(service)
        await service.fanout.close(5)
        return service

    return asyncio.run(whole())


def test_two_spellings_of_a_file_are_one_sink(tmp_path: Path) -> None:
    """Through a link, with a dot, and with other options: the first one stays."""
    (tmp_path / "link").symlink_to(tmp_path)

    async def main(service: Service) -> None:
        await service.want(
            service.file("a.log"), service.file("./a.log", "?level=error")
        )
        await service.want(service.file("link/a.log"))
        assert service.urls == [service.file("a.log")]
        assert len(service.refused) == 1
        assert "level=error is not used" in service.refused[0]
        service.put()

    run(tmp_path, main)
    assert Service(tmp_path).seqs("a.log") == [1]


def test_a_sink_whose_module_cannot_be_read_for_a_moment_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a free descriptor it is tried again: no other target takes its place."""
    errors = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 2
    load = importlib.metadata.EntryPoint.load

    def fails(entry: Any) -> Any:
        if errors:
            raise errors.pop()
        return load(entry)

    async def main(service: Service) -> None:
        monkeypatch.setattr(importlib.metadata.EntryPoint, "load", fails)
        await service.want(service.file("a.log"))
        assert service.urls == [service.file("a.log")]
        assert not service.refused
        service.put()

    run(tmp_path, main)
    assert not errors
    assert Service(tmp_path).seqs("a.log") == [1]


def test_sinks_that_were_found_stay_known_without_a_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search comes back with nothing for a directory that it cannot list."""
    found = sinks.known()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert sinks.known() == found


def test_options_that_an_open_file_does_not_get_are_reported_once(
    tmp_path: Path,
) -> None:
    """In one line, to the process that gave them and in a record."""

    async def main(service: Service) -> None:
        by_size = service.file("a.log", "?max_bytes=5kB&backups=3")
        by_time = service.file("a.log", "?when=midnight")
        await service.want(by_size)
        await service.want(service.file("a.log", "?backups=3&max_bytes=5000"))
        await service.want(service.file("a.log"))
        assert service.events == []
        await service.want(by_time)
        await service.want(by_time)
        (event,) = service.events
        assert (event["event"], event["sink"]) == ("sink_options", by_size)
        assert service.refused == [event["message"]]
        (line,) = service.refused
        assert line == (
            f"sink {service.file('a.log')} is open already: when=midnight is not used, "
            "its options are max_bytes=5kB&backups=3"
        )

    run(tmp_path, main)


def test_a_sink_that_cannot_be_opened_is_reported_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    """Without any other sink, records go to the stderr of the process."""

    async def main(service: Service) -> None:
        await service.want("fiel:x.log", service.file("no/such/folder/a.log"))
        errors = service.refused
        assert len(errors) == 2
        assert all(error.startswith("sink refused: ") for error in errors)
        assert "did you mean 'file'" in errors[0]
        assert [url.partition(":")[0] for url in service.urls] == ["stderr"]
        service.put()

    (tmp_path / "no").touch()
    run(tmp_path, main)
    assert b'"seq":1' in (tmp_path / "stdout").read_bytes()


def test_a_stream_that_is_read_here_is_not_written(tmp_path: Path) -> None:
    """It would come back as records, for ever."""

    async def main(service: Service) -> None:
        out = os.open(tmp_path / "stdout", os.O_CREAT | os.O_WRONLY)
        service.captured.add(out)
        assert await service.registry.add("stdout:", [out, out]) == ""
        assert service.urls == []
        os.close(out)

    run(tmp_path, main)


def test_a_reload_builds_what_has_changed_and_nothing_else(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """What stays is only opened anew; its counters go on."""
    built: list[str] = []

    def counting(url: Any) -> Any:
        built.append(url.text)
        return build(url)

    monkeypatch.setattr("logagg.fanout.registry.build", counting)

    async def main(service: Service) -> None:
        stays, goes = service.file("stays.log"), service.file("goes.log")
        changes = service.file("changes.log")
        assert await service.registry.reconfigure([stays, goes, changes]) == ""
        service.put()
        before = dict(service.fanout.runners)
        built.clear()
        comes = service.file("comes.log")
        other = service.file("changes.log", "?level=error")
        assert await service.registry.reconfigure([stays, other, comes]) == ""
        assert sorted(built) == sorted([other, comes])
        assert service.urls == [stays, comes, service.file("changes.log")]
        first = next(iter(before))
        assert service.fanout.runners[first] is before[first]
        service.put()

    service = run(tmp_path, main)
    assert service.seqs("stays.log") == [1, 2]
    assert service.seqs("goes.log") == [1]
    assert service.seqs("comes.log") == [2]
    assert service.seqs("changes.log") == [1]


def test_a_reload_that_cannot_be_whole_changes_nothing(tmp_path: Path) -> None:
    """Whatever is wrong: an unknown sink, an option, a target that cannot be opened."""

    async def main(service: Service) -> None:
        kept = service.file("kept.log")
        assert await service.registry.reconfigure([kept]) == ""
        (tmp_path / "folder").mkdir()
        for bad in ("fiel:x", service.file("b.log", "?x=1"), service.file("folder")):
            error = await service.registry.reconfigure([service.file("new.log"), bad])
            assert error.startswith("sink refused: ")
            assert service.urls == [kept]
        service.put()

    assert run(tmp_path, main).seqs("kept.log") == [1]


class Faulty(MemorySink):
    """A sink of somebody else's with a fault of its own."""

    scheme = "faulty"
    hangs = False
    tried = 0

    async def open(self) -> None:
        type(self).tried += 1
        if self.hangs:
            await asyncio.Event().wait()
        raise KeyError("a bug")


def register(monkeypatch: Any) -> None:
    """Have `faulty:` name that sink."""
    entry = SimpleNamespace(value="", load=lambda: Faulty)
    found = {**sinks.known(), "faulty": entry}
    monkeypatch.setattr(sinks, "known", lambda: found)


def test_any_error_of_a_sink_refuses_that_sink_and_no_more(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """A path with a NUL, a plug-in's bug: a worker is served, a reload is whole."""
    register(monkeypatch)

    async def main(service: Service) -> None:
        await service.want(service.file("a.log"), "file:x\0y", "faulty:")
        assert len(service.refused) == 2
        assert "KeyError: 'a bug'" in service.refused[1]
        assert service.urls == [service.file("a.log")]

        await service.want(service.file("b.log"), own=True)
        for bad in ("faulty:", "file:x\0y"):
            error = await service.registry.reconfigure([service.file("c.log"), bad])
            assert error.startswith("sink refused")
        assert service.urls == [service.file("a.log"), service.file("b.log")]

    run(tmp_path, main)


def test_a_sink_that_hangs_is_waited_for_by_those_who_want_it_only(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Others' sinks open meanwhile, and it is tried once for all who want it."""
    register(monkeypatch)
    monkeypatch.setattr(Faulty, "hangs", True)
    monkeypatch.setattr(Faulty, "tried", 0)

    async def main(service: Service) -> None:
        waiting = [asyncio.create_task(service.want("faulty:")) for _ in range(3)]
        await asyncio.wait_for(service.want(service.file("a.log")), 60)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert (service.urls, Faulty.tried) == ([service.file("a.log")], 1)
        for task in waiting:
            task.cancel()

    run(tmp_path, main)


def test_a_sink_that_a_process_wants_stays(tmp_path: Path) -> None:
    """A reload takes away what the configuration had, and nothing else."""

    async def main(service: Service) -> None:
        await service.registry.reconfigure([service.file("own.log")])
        await service.want(service.file("asked.log"))
        await service.registry.reconfigure([service.file("other.log")])
        assert service.urls == [service.file("asked.log"), service.file("other.log")]

    run(tmp_path, main)


def test_two_sinks_of_a_host_do_not_replace_one_another(tmp_path: Path) -> None:
    """Of two with other options to the same address one goes, and one stays."""

    async def main(service: Service) -> None:
        spool = f"spool={tmp_path}"
        one = f"http://127.0.0.1:9/in?{spool}/1&query.a=1"
        two = f"http://127.0.0.1:9/in?{spool}/2&query.a=2"
        assert await service.registry.reconfigure([one, two]) == ""
        before = dict(service.fanout.runners)
        assert await service.registry.reconfigure([one]) == ""
        assert list(service.fanout.runners) == [one]
        assert service.fanout.runners[one] is before[one]

    run(tmp_path, main)
