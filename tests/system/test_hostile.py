"""Hostile neighbors: refused, counted, and nobody else notices."""

import contextlib
import json
import os
import random
import stat
import subprocess
import time
from pathlib import Path

import pytest
import support
from harness import Fleet, besieged
from support import BASIC, python, records, running, settled, wait_until

from logagg.ipc import paths
from logagg.platform.packets import packet_socket

pytestmark = [
    pytest.mark.slow,  # many real processes, some seconds each
]


@pytest.fixture
def scene(tmp_path):
    """A consumer with a well-behaved worker that logs all the time."""
    with besieged(tmp_path / "app.log") as found:
        yield found


def test_the_socket_is_private(scene):
    """Mode 0600 in a directory with mode 0700, and so is all that lies beside it."""
    assert stat.S_IMODE(os.stat(scene.socket).st_mode) & 0o077 == 0
    folder = os.path.dirname(scene.socket)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for each in Path(folder).iterdir():
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each.name
    scene.judge()


PACKETS = {
    "random bytes": random.Random(1).randbytes(5000),
    "one NUL": b"\0",
    "a large packet": b"x" * 200_000,
    "half of JSON": b'{"hello": 1, "kind": "rec',
    "a number": b"1",
    "a list": b"[1, 2]",
    "null": b"null",
    "deep JSON": b"[" * 100_000,
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "no kind": b'{"hello":1}',
    "an unknown kind": b'{"hello":1,"kind":"admin"}',
    "records without a pipe": b'{"hello":1,"kind":"records","pid":1}',
    "a stream without a pipe": b'{"hello":1,"kind":"stream"}',
    "a viewer without a pipe": b'{"hello":1,"kind":"viewer"}',
    "wrong types": b'{"hello":[],"kind":{"a":1}}',
    "NaN": b'{"hello":NaN,"kind":"records"}',
}


def test_packets_that_are_no_hello_are_refused_and_counted(scene):
    """Whatever the first packet is: hung up on, counted, no harm done."""
    before = scene.status()["refused"]
    descriptors = support.descriptors(scene.consumer)

    for packet in PACKETS.values():
        with scene.connect() as connection:
            connection.send(packet)
            answer = connection.recv(1 << 16)
            assert answer == b"" or b"error" in answer
    wait_until(lambda: scene.status()["refused"] == before + len(PACKETS))

    wait_until(lambda: support.descriptors(scene.consumer) <= descriptors)
    scene.judge()


BAD_HELLOS = [
    {"pid": "one"},
    {"pid": None},
    {"pid": 10**30},
    {"worker": 'x","level":"critical'},
    {"worker": "a\nb"},
    {"worker": "x" * 100_000},
    {"worker": None},
    {"stream": "../../../etc/passwd"},
    {"stream": None},
    {"acknowledged": "x"},
    {"acknowledged": -5},
    {"acknowledged": 10**40},
    {"dropped": [1]},
    {"torn": {"a": 1}},
    {"segments": 5},
    {"segments": [5]},
    {"segments": [{}]},
    {"segments": [{"segment": "/etc/passwd", "first": 1, "last": 2}]},
    {"segments": [{"segment": "/dev/zero", "first": 1, "last": 2}]},
    {"segments": [{"segment": "a\0b", "first": "x", "last": None}]},
    {"sinks": 5},
    {"sinks": [None, {}, "nosuch:x", "file:/nowhere/x"]},
    {"kind": "stream", "slot": None},
]


def test_hellos_with_bad_values_harm_nobody(scene):
    """Each field of a hello may be anything."""
    for changes in BAD_HELLOS:
        connection, write = scene.attach(**changes)
        with contextlib.suppress(BrokenPipeError):  # refused and closed by then
            os.write(write, b"garbage\n" * 10)
        os.close(write)
        connection.close()
    wait_until(
        lambda: len(scene.status()["workers"]) == 1, timeout=90, what="their departure"
    )

    assert os.path.exists("/etc/passwd")
    scene.judge()


@pytest.mark.parametrize("kind", ["records", "segments", "torn", "hold", "reload"])
def test_a_refused_hello_has_changed_nothing(scene, kind):
    """Its worker is not waited for, it holds nobody, its descriptors are gone."""
    descriptors = support.descriptors(scene.consumer)
    refused = scene.status()["refused"]
    folder = paths.spool_dir(paths.identifier_of(scene.socket))
    parked = Path(folder, f"{os.getpid()}-e-1.spool")
    parked.touch()
    segment = {"segment": str(parked), "first": 1}
    bad = {
        "records": {"sinks": 5},
        "segments": {"segments": [segment, 5]},
        "torn": {"segments": [segment], "torn": ["x"]},
    }
    keep = []
    for _ in range(5):
        if kind in bad:
            connection, write = scene.attach(**bad[kind])
            os.close(write)
        else:
            connection = scene.connect()
            connection.send(json.dumps({"hello": 1, "kind": kind, "sinks": 5}).encode())
        with connection:
            assert b"refused" in connection.recv(1 << 16)
        # Other descriptors come between, so that none has the number of an earlier one.
        keep.append(scene.connect())
    wait_until(lambda: scene.status()["refused"] == refused + 5)

    assert len(scene.status()["workers"]) == 1
    for each in keep:
        each.close()
    wait_until(lambda: support.descriptors(scene.consumer) <= descriptors)
    parked.unlink()
    scene.judge()


def test_packets_behind_a_good_hello_may_be_anything(scene):
    """A worker that goes mad on its control connection harms itself only."""
    wild = [
        *PACKETS.values(),
        b'{"flush":"x"}',
        b'{"flush":1e99}',
        b'{"flush":99999999999999999999}',
        b'{"dropped":-1}',
        b'{"dropped":null}',
        b'{"torn":"x"}',
        b'{"sinks":7}',
        b'{"sinks":["file:/"]}',
        b'{"segment":7,"first":1,"last":2}',
        b'{"segment":"/etc/shadow","first":1,"last":2}',
        b'{"segment":"x"}',
        b'{"bye":[]}',
    ]
    for packet in wild:
        connection, write = scene.attach()
        with connection:
            try:
                connection.send(packet)
                connection.send(b'{"flush":3}')
            except OSError:
                pass  # hung up on at the first one already
            with contextlib.suppress(BrokenPipeError):
                os.write(write, b"x\n")
            os.close(write)
    wait_until(
        lambda: len(scene.status()["workers"]) == 1, timeout=90, what="their departure"
    )

    scene.judge()


def test_too_many_descriptors_are_not_kept(scene):
    """Descriptors that come with a bad packet are closed."""
    before = support.descriptors(scene.consumer)
    pipes = [os.pipe() for _ in range(6)]
    for count in (1, 2, 5, 8, 12):
        for packet in (b"junk", b'{"hello":1,"kind":"hold"}', b'{"hello":1}'):
            with scene.connect() as connection:
                fds = [end for pair in pipes for end in pair][:count]
                connection.send(packet, fds)
                connection.recv(1 << 16)
    for pair in pipes:
        for end in pair:
            os.close(end)

    wait_until(lambda: support.descriptors(scene.consumer) <= before)
    scene.judge()


def test_a_thousand_connections_that_say_nothing_harm_nobody(scene):
    """Silent connections cost a descriptor each, and go when they go."""
    before = support.descriptors(scene.consumer)
    silent = [scene.connect() for _ in range(1000)]
    scene.fleet.progress(200)
    assert scene.status()["workers"]

    for each in silent:
        each.close()

    wait_until(lambda: support.descriptors(scene.consumer) <= before + 5)
    assert support.memory_bytes(scene.consumer) < 150_000_000
    scene.judge()


def test_more_connections_than_descriptors_do_not_end_the_consumer(scene):
    """At the limit of open files new ones wait; the good worker goes on."""
    import resource

    resource.prlimit(scene.consumer, resource.RLIMIT_NOFILE, (60, 60))
    silent = [scene.connect() for _ in range(100)]
    scene.fleet.progress(200)
    before = support.cpu_seconds(scene.consumer)
    time.sleep(0.5)  # what is measured is how much it does meanwhile
    assert support.cpu_seconds(scene.consumer) - before < 0.4
    for each in silent:
        each.close()

    assert wait_until(scene.status)["workers"]
    scene.judge()


def test_who_claims_to_be_another_worker_cannot_touch_its_records(scene):
    """Same worker name, same pid, same stream: two pipes are two workers."""
    victim = scene.fleet.processes[0].pid
    (real,) = scene.status()["workers"]
    connection, write = scene.attach(
        pid=victim, worker=real["worker"], stream=f"{victim}-0", acknowledged=10**9
    )
    with connection:
        with contextlib.suppress(BrokenPipeError):  # it may be hung up on already
            connection.send(b'{"dropped":1000}')
            connection.send(b'{"bye":1}')
        scene.fleet.progress(100)
        peers = [each["peer"] for each in scene.status()["workers"]]
        assert peers.count(victim) == 1
        os.close(write)
    wait_until(lambda: len(scene.status()["workers"]) == 1)

    assert support.consumers() == [scene.consumer]
    scene.fleet.stop()
    scene.fleet.join()
    verdict = scene.fleet.judge()
    assert not verdict.missing
    assert not verdict.duplicates
    assert not verdict.misordered


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_by_what_the_kernel_says(scene):
    """Even when the files' modes would let it in."""
    before = scene.status()["refused"]
    folder = os.path.dirname(scene.socket)
    opened = [folder]
    while os.path.dirname(opened[-1]) != "/tmp":
        opened.append(os.path.dirname(opened[-1]))
    for each in opened:
        os.chmod(each, 0o755)
    os.chmod(scene.socket, 0o666)
    code = (
        "import os, sys\n"
        "from logagg.platform import packets\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = packets.packet_socket()\n"
        "s.connect(sys.argv[1])\n"
        "try:\n"
        '    packets.send(s, b\'{"hello":1,"kind":"status"}\')\n'
        "    answer = packets.receive(s, 100000)[0]\n"
        "except OSError:\n"
        "    answer = b''\n"
        "print(len(answer))\n"
    )
    done = python(code, scene.socket)
    for each in opened:
        os.chmod(each, 0o700)

    assert done.stdout == "0\n", done.stderr
    assert scene.status()["refused"] == before + 1
    scene.judge()


def test_no_pickle_is_ever_loaded_by_the_service():
    """Nothing that reads bytes of others knows pickle, marshal or shelve."""
    code = (
        "import sys, logagg.consumer.consumer, logagg.consumer.listener, logagg.consumer.worker_source\n"
        "import asyncio\n"
        "print([m for m in ('_pickle', 'pickle', 'marshal', 'shelve') "
        "if m in vars(logagg.consumer.consumer) or m in vars(logagg.consumer.listener) "
        "or m in vars(logagg.consumer.worker_source)])"
    )
    assert python(code).stdout == "[]\n"


def test_a_directory_that_others_may_enter_keeps_nobody_from_logging(tmp_path):
    """A runtime directory with wrong rights is not used, and nothing is lost by it."""
    folder = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    folder.mkdir()
    folder.chmod(0o777)

    python(BASIC + "log.info('x')", tmp_path / "app.log")

    wait_until(support.have(tmp_path / "app.log", 1))
    assert not list(folder.iterdir())


def test_a_planted_socket_that_answers_nothing_delays_no_call(tmp_path):
    """Something that listens and is no consumer: calls are bounded, nothing is lost."""
    path = tmp_path / "app.log"
    planted = tmp_path / "s.sock"
    with packet_socket() as listener:
        listener.bind(str(planted))
        listener.listen(1)
        env = {"LOGAGG_SOCKET": str(planted)}
        with Fleet(path, workers=2, count=3000, env=env, close=False) as fleet:
            wait_until(lambda: fleet.ended, what="the producers' ends")
    assert max(each.longest for each in fleet.sent()) < 1.5


@pytest.mark.slow
def test_a_planted_lock_that_is_never_released_delays_no_call(tmp_path):
    """Someone holds the start-up lock for ever: records are spooled, calls bounded."""
    path = tmp_path / "app.log"
    code = """\
import fcntl, os, sys
from logagg.ipc import paths
from logagg.platform.packets import packet_socket
path = paths.socket_path(paths.identity([sys.argv[1]]))
lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
print(path, flush=True)
sys.stdin.read()
"""
    with running(code, path, stdin=subprocess.PIPE) as holder:
        name = holder.stdout.readline().strip()
        with Fleet(path, workers=2, count=1000, rate=1000) as fleet:
            fleet.join(30)
        fleet.judge(settle=None).require(spooled=2000, longest=1.5)
    os.unlink(name + ".lock")
    assert json.dumps(support.consumers()) == "[]"

    python(BASIC + "log.info('x')", path)
    settled()
    fleet.judge().require(ordered=False)
    assert len([each for each in records(path) if each["message"] == "x"]) == 1
