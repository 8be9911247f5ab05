"""Which consumer may write a file: locks, the text beside the file, who gives way."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from logagg.errors import ConfigError, TargetOwned
from logagg.ipc import launcher, paths
from logagg.ownership import GuardedSink, TargetOwners
from logagg.platform.packets import packet_socket
from logagg.sinks import FileSink


class Owners(TargetOwners):
    """The owners of one of several consumers, which are all in this process."""

    def __init__(self, name: str, *, outranks: bool = False) -> None:
        self.problems: list[str] = []
        super().__init__(name, lambda: outranks, self.problems.append)

    def takes(self, path: Path) -> bool:
        """Whether it may own a path."""
        try:
            asyncio.run(self.take(str(path)))
        except TargetOwned:
            return False
        return True


def beside(path: Path) -> Path:
    """The owner file of a file."""
    return Path(paths.owner_file(str(path)))


def listening(path: Path) -> socket.socket:
    """A socket as a consumer listens on."""
    listener = packet_socket()
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_path_has_one_owner_until_the_last_of_its_sinks_is_closed(tmp_path) -> None:
    """Two sinks of one consumer share it; what is left behind is nothing."""
    path = tmp_path / "app.log"
    one, two = Owners("one"), Owners("two")

    assert one.takes(path)
    assert one.takes(path)
    assert not two.takes(path)
    one.release(str(path))
    assert not two.takes(path)
    one.release(str(path))
    assert two.takes(path)
    two.release(str(path))

    assert not list(tmp_path.iterdir())


def test_a_template_and_its_directories_have_one_owner(tmp_path) -> None:
    """All files of a template belong together, whatever their directories are."""
    one, two = Owners("one"), Owners("two")

    assert one.takes(tmp_path / "{worker}" / "{logger}.log")
    assert not two.takes(tmp_path / "{worker}" / "{logger}.log")
    assert two.takes(tmp_path / "{worker}.log")
    assert two.takes(tmp_path / ("x" * 240))


def test_the_successor_of_one_that_gives_way_is_named(tmp_path) -> None:
    """Whoever comes next finds the consumer that takes the records from now on."""
    path = tmp_path / "app.log"
    one = Owners("one")
    assert one.takes(path)
    one.successor = "two"
    one.release(str(path))

    with beside(path).open("rb") as file:
        owner = paths.read_owner(file.fileno())
    assert owner == (os.getpid(), "two", os.getuid())


@pytest.mark.parametrize("text", [b"", b"[1", b"[]", b'{"pid":1}', b'{"pid":{}}'])
def test_an_owner_file_that_names_nobody_is_taken(tmp_path, text) -> None:
    """A consumer that was killed has left it, whatever is in it."""
    path = tmp_path / "app.log"
    beside(path).write_bytes(text)

    assert launcher.connect_to_owner([f"file:{path}"]) is None
    assert Owners("one").takes(path)


def test_the_owner_is_reached_by_the_first_file_and_by_any_name_of_it(tmp_path) -> None:
    """Its text leads there, also through a link to the directory."""
    path = tmp_path / "a b?.log"
    (tmp_path / "link").symlink_to(tmp_path)
    address = tmp_path / "s"
    with listening(address):
        owners = Owners(str(address))
        assert owners.takes(path)
        for folder in (tmp_path, tmp_path / "link"):
            urls = ["stdout:", f"file:{folder}/a b%3F.log?backups=3", "file:/other"]
            found = launcher.connect_to_owner(urls)
            assert found is not None
            found[0].close()
            assert found[1] == str(address)
        assert launcher.connect_to_owner([f"file:{path}x"]) is None
    assert launcher.connect_to_owner(urls) is None  # nobody listens


def test_one_that_is_being_started_again_is_still_the_owner(tmp_path) -> None:
    """Its lock is free and its socket is held: it comes back."""
    path, address = tmp_path / "app.log", tmp_path / "s"
    with listening(address):
        beside(path).write_text(f'{{"pid":1,"socket":"{address}"}}')
        with pytest.raises(TargetOwned) as caught:
            asyncio.run(Owners("other").take(str(path)))
        assert caught.value.socket == str(address)
        assert Owners(str(address)).takes(path)


def test_a_configuration_waits_for_an_owner_that_is_ending(tmp_path) -> None:
    """Its socket has gone, and soon the lock."""
    path = tmp_path / "app.log"
    one, two = Owners(str(tmp_path / "gone")), Owners("two", outranks=True)
    assert one.takes(path)

    async def both() -> None:
        taking = asyncio.create_task(two.take(str(path)))
        await asyncio.sleep(0.05)
        assert not taking.done()
        one.release(str(path))
        await taking

    asyncio.run(both())
    assert not one.takes(path)


def test_a_link_in_place_of_the_owner_file_is_refused(tmp_path) -> None:
    """It would have this consumer write elsewhere."""
    path = tmp_path / "app.log"
    beside(path).symlink_to(tmp_path / "victim")

    with pytest.raises(ConfigError, match="not a plain file: remove it"):
        asyncio.run(Owners("one").take(str(path)))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_announced(tmp_path, monkeypatch, error) -> None:
    """The file is written all the same."""

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    one = Owners("one")
    assert one.takes(tmp_path / "app.log")
    one.release(str(tmp_path / "app.log"))
    (problem,) = one.problems
    assert "app.log is not locked" in problem


def test_a_sink_owns_its_paths_while_it_is_open(tmp_path) -> None:
    """One that cannot be opened owns nothing; one that follows owns them throughout."""
    path = tmp_path / "app.log"
    one, two = Owners("one"), Owners("two")

    async def follow() -> None:
        first = GuardedSink(FileSink(path), one)
        await first.open()
        following = GuardedSink(FileSink(path, backups=3), one)
        await first.close()
        other = GuardedSink(FileSink(path), two)
        with pytest.raises(OSError, match="not open"):
            await other.written_since(b"")
        with pytest.raises(TargetOwned):
            await other.open()
        with pytest.raises(TargetOwned):  # and waits for nobody
            await other.written_since(b"")
        await following.open()
        await following.close()
        last = GuardedSink(FileSink(path), two)
        await last.open()
        await last.close()

    asyncio.run(follow())
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError):
        asyncio.run(GuardedSink(FileSink(folder), two).open())
    assert one.takes(folder)


def test_what_is_set_on_a_guarded_sink_is_the_sinks(tmp_path) -> None:
    """The service gives a sink its `alarm`."""
    sink = FileSink(tmp_path / "app.log")
    guarded = GuardedSink(sink, Owners("one"))
    guarded.alarm = print
    assert sink.alarm is guarded.alarm is print
    assert guarded.url == sink.url


def test_devices_have_no_owner() -> None:
    """Any number of consumers may write to /dev/null."""
    assert FileSink("/dev/null").owned_paths() == ()
    assert FileSink("/dev/null/x").owned_paths() == ("/dev/null/x",)
