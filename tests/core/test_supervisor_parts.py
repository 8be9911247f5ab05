"""The supervisor's pure parts: back-off, hashing, frames, cores, crashes."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from support import linux_form

from logagg.errors import ConfigError, WireError
from logagg.platform.procfs import usable_cores
from logagg.supervisor.messaging.frames import Decoder, encode, encode_value, receive
from logagg.supervisor.run_context import RunContext
from logagg.supervisor.run_options import Program
from logagg.supervisor.sockets.bind_address import BindAddress, numeric_host
from logagg.supervisor.sockets.sticky import Sticky, choose_slot
from logagg.supervisor.supervisor_events import CrashCounter


@given(st.binary(max_size=30), st.sets(st.integers(1, 50), min_size=2))
def test_a_lost_slot_moves_only_its_own_keys(key: bytes, slots: set[int]) -> None:
    """Rendezvous hashing: without another slot the key stays where it is."""
    home = choose_slot(key, sorted(slots))
    for other in slots - {home}:
        assert choose_slot(key, sorted(slots - {other})) == home


def test_keys_spread_over_slots() -> None:
    """10,000 keys over 4 slots: each has its quarter, give or take."""
    homes = [choose_slot(b"%d" % n, [1, 2, 3, 4]) for n in range(10_000)]
    assert all(2300 < homes.count(slot) < 2700 for slot in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("sticky", "key"),
    [
        ("cookie:sid", b"a b"),
        ("header:X-Id", b"7"),
        ("query:room", b"r/1"),
        ("cookie:none", None),
        ("query:none", None),
    ],
)
def test_keys_in_a_head(sticky: str, key: bytes | None) -> None:
    """Cookies among others, headers in any case, escaped queries."""
    head = (
        b"GET /x?a=1&room=r%2F1 HTTP/1.1\r\nHost: h\r\nCookie: xsid=1; sid=a b; y=2\r\n"
        b"x-iD:  7 \r\n\r\nsid=body"
    )
    assert Sticky.parse(sticky).key(head) == key


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.data())
def test_frames_survive_any_cutting(
    bodies: list[dict[str, object]], data: st.DataObject
) -> None:
    """However the stream is cut, the same frames come out, in order."""
    try:
        stream = b"".join(
            encode({"k": "x", "b": encode_value(body)}) for body in bodies
        )
    except WireError:
        return  # an integer beyond 64 bits, or a lone surrogate
    decoder, found = Decoder(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:size], [])
        stream = stream[size:]
    assert [frame["b"] for frame, _ in found] == bodies


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\1x",
        b"\0\0\0\2[]",
        b'\0\0\0\x13{"k":"x","fd":true}',
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    """Lengths that cannot be, what is no JSON object, descriptors that did not come."""
    if data[3] == 0x13:
        data = len(data[4:]).to_bytes(4, "big") + data[4:]
    with pytest.raises(WireError):
        Decoder().feed(data, [])


def test_a_worker_cannot_fill_the_supervisor_with_descriptors() -> None:
    """Those that no frame names end its channel, before they are many."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    data, decoder = encode({"k": "pong", "n": 1, "connections": 0}), Decoder()

    def send() -> None:
        socket.send_fds(there, [data], [there.fileno()])
        decoder.feed(*receive(here))

    with here, there:
        send()  # it might come before its frame
        with pytest.raises(WireError, match="no frame names"):
            send()
    decoder.close()


@linux_form  # other systems have no cgroups
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)],
)
def test_cores_obey_the_cgroup_quota(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    """A quota of 1.5 cores means 2, of half a core 1; none means the affinity."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(quota)
    usable = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == min(usable, cores or usable)


def test_equal_crashes_are_counted_and_forgotten() -> None:
    """The same trace is counted; after a minute of silence it is new again."""
    crashes = CrashCounter()
    assert [crashes.count("a", n) for n in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert crashes.count("b", 2.0) == 1
    assert crashes.count("a", 70.0) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[fe80::1%lo]:80", "[fe80::1%lo]:80"),
        (":8000", "0.0.0.0:8000"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/tmp/x", "unix:/tmp/x"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    """The forms of --bind."""
    assert str(BindAddress.parse(text)) == shown


def test_an_address_of_a_link_has_its_interface() -> None:
    """`bind` gets its number, and a program that states it either way means the same."""
    address = BindAddress.parse("[fe80::1%lo]:80")
    number = socket.if_nametoindex("lo")
    assert address.sockaddr == ("fe80::1", 80, 0, number)
    assert address.covers(socket.AF_INET6, ("fe80::1", 80, 0, number))
    assert address.covers(socket.AF_INET6, ("fe80::1%lo", 80))
    assert not address.covers(socket.AF_INET6, ("fe80::1", 80))
    for name in ("fe80::1%lo", 80), ("fe80::1", 80, 0, number):
        assert numeric_host(socket.AF_INET6, name) == "fe80::1%lo"


def test_what_is_cancelled_before_it_begins_warns_of_nothing(recwarn: Any) -> None:
    """A reload that is asked for as a run ends: no word of a coroutine on stderr."""

    async def main() -> None:
        nothing: Any = None
        context = RunContext(nothing, nothing, nothing, nothing)
        context.start(asyncio.sleep(60))
        context.cancel_all()
        await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert not recwarn.list


@pytest.mark.parametrize(
    "text", ["", "x", "a:b", ":70000", "unix:", "no.such.host.invalid:1"]
)
def test_bad_addresses_are_named(text: str) -> None:
    """The error repeats what was written."""
    with pytest.raises(ConfigError, match="--bind"):
        BindAddress.parse(text)


def test_a_command_beside_the_interpreter_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An environment that is not activated has its commands off the PATH."""
    monkeypatch.setenv("PATH", "/nowhere")
    path = os.path.join(os.path.dirname(sys.executable), "pytest")

    found = Program.of(("pytest", "app:app"))

    assert (found.kind, found.argv) == ("script", (path, "app:app"))
    with pytest.raises(ConfigError, match="no such script or command: 'absent'"):
        Program.of(("absent",))
