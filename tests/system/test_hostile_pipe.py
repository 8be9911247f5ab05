"""What a hostile process may write into its pipe: dropped, counted, bounded."""

import contextlib
import fcntl
import os
import random
import select
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
import support
from harness import besieged
from support import wait_until

pytestmark = pytest.mark.slow  # many real processes, some seconds each


@pytest.fixture
def scene(tmp_path):
    """A consumer with a well-behaved worker that logs all the time."""
    with besieged(tmp_path / "app.log") as found:
        yield found


def test_garbage_in_a_pipe_is_counted_and_dropped(scene):
    """Bytes that are no records cost nothing but themselves."""
    chaos = random.Random(2)
    connection, write = scene.attach()
    with connection:
        for _ in range(50):
            os.write(write, chaos.randbytes(1000))
        os.write(write, b"\n")
        good = support.wire_line(
            time.clock_gettime_ns(time.CLOCK_REALTIME), 1, worker="666"
        )
        os.write(write, good + b"\n")
        os.close(write)
    wait_until(lambda: b'"worker":"666"' in scene.path.read_bytes())
    wait_until(lambda: len(scene.status()["workers"]) == 1)

    scene.judge()
    told = support.events("worker_exit", scene.path)
    (mine,) = [each for each in told if each.get("of_worker") == "666"]
    assert mine["records"] == 1
    assert mine["damaged"] > 10


def test_a_line_without_end_is_cut_off_and_memory_stays_bounded(scene):
    """100 MB without a newline: hung up on, never held in memory."""
    connection, write = scene.attach()
    sent = 0
    try:
        while sent < 100_000_000:
            sent += os.write(write, b"x" * 65536)
    except BrokenPipeError:
        pass
    os.close(write)
    connection.close()

    assert sent < 40_000_000
    assert support.memory_bytes(scene.consumer) < 200_000_000
    scene.judge()


@pytest.mark.parametrize("start", ["no record", "a record's head"])
def test_a_line_of_a_gigabyte_is_refused_however_often_its_sender_returns(scene, start):
    """1 GB without a newline, attached anew after each refusal: little memory, no harm."""
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    head = support.wire_line(now, 1, worker="666")
    peak = support.peak_memory_bytes(scene.consumer)
    before = scene.fleet.returned
    sender = Endless(scene)

    sender.send(head if start == "a record's head" else b"", 1_000_000_000)
    wait_until(lambda: len(scene.status()["workers"]) == 1, what="its departure")

    assert 30 < sender.attached < 80  # each time at least the longest line, 16 MiB
    assert scene.status()["ended"]["damaged"] >= sender.attached - 1
    assert scene.fleet.returned > before + 100
    assert support.peak_memory_bytes(scene.consumer) < peak + 100_000_000
    scene.judge()
    assert b'"worker":"666"' not in scene.path.read_bytes()
    told = support.events("damaged", scene.path)
    assert sum(each["number"] for each in told) >= sender.attached - 1


class Endless:
    """Sends a line without end through one pipe; when it is hung up on, it returns."""

    def __init__(self, scene):
        self._scene = scene
        self.attached = 0

    def send(self, head, size):
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(write, False)
        os.write(write, head)
        chunk = b"x" * (1 << 20)
        while size > 0:
            self.attached += 1
            with self._scene.hand_over(read) as connection:
                size = self._push(write, chunk, size, connection)
        os.close(read)
        os.close(write)

    @staticmethod
    def _push(write, chunk, size, connection):
        """Write until all is sent or the consumer hangs up; return what is left."""
        poll = select.poll()
        poll.register(connection, 0)  # POLLHUP alone
        poll.register(write, select.POLLOUT)
        while size > 0:
            ready = dict(poll.poll(10_000))
            assert ready, "neither read nor refused"
            if connection.fileno() in ready:
                break
            size -= os.write(write, chunk[:size])
        return size


def test_records_of_the_future_hold_nobody_up(scene):
    """A stamp that is far ahead cannot hold everything else back."""
    connection, write = scene.attach()
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    with connection:
        for seq, ahead in enumerate((10**10, 10**13, 10**18), 1):
            line = support.wire_line(now + ahead, seq, worker="666")
            os.write(write, line + b"\n")
        scene.fleet.progress(100)
        size = scene.path.stat().st_size
        wait_until(lambda: scene.path.stat().st_size > size, 3, "others' records")
        os.close(write)

    scene.judge()
    ahead = [
        line for line in support.lines(scene.path) if b'"worker":"666"' in line[:200]
    ]
    assert all(b'"late":true' in line for line in ahead)


def test_records_of_the_past_hold_nobody_up(scene):
    """A stamp from long ago is written at once, marked as late."""
    connection, write = scene.attach()
    with connection:
        for seq in range(1, 100):
            os.write(write, support.wire_line(seq, seq, worker="666") + b"\n")
        wait_until(lambda: scene.path.read_bytes().count(b'"worker":"666"') >= 99)
        os.close(write)

    scene.judge()


SINKS = (
    "match=message~x extra.y~x",
    "drop=extra&fields=message",
    "redact=extra,/[0-9]{16}/",
    "level=warning&collapse=1&sample=2",
    "format=text",
)


def hostile_lines():
    """Lines that are JSON, or nearly, and hard on whatever parses or prints them."""
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    deep = b'{"y":' * 200 + b"1" + b"}" * 200
    deeper = b"[" * 900 + b"]" * 900
    bodies = [
        b'"message":' + deep,
        b'"message":"x","extra":' + deep,
        b'"message":"x","extra":' + deeper,
        b'"message":' + deeper + b',"long":12345678901234567890123',
        b'"message":' + b"[" * 100_000,
        b'"message":' + b"9" * 5000,
        b'"message":"x","level_number":1e999,"extra":' + b"9" * 400,
        b'"message":"\\ud800","extra":{"y":"\\ud800x"}',
        b'"message":"x"x',
        b'"exception":' + deep + b',"message":null',
        b'"message":"x","logger":' + deeper + b',"event":["lost"]',
    ]
    for level in ("info", "warning", "weird"):
        for worker in ("666", "consumer"):
            for seq, body in enumerate(bodies, 1):
                yield (
                    support.wire_line(
                        now + seq, seq, level=level, worker=worker, body=body
                    ),
                    worker,
                )


def test_no_line_of_one_process_ends_the_consumer(tmp_path):
    """Nested, huge, torn, under the consumer's name: with every option of a sink."""
    with besieged(tmp_path / "app.log") as scene:
        urls = [f"file:{tmp_path}/{n}.log?{each}" for n, each in enumerate(SINKS)]
        with (
            attached(scene, "666", urls) as first,
            attached(scene, "consumer") as other,
        ):
            for line, worker in hostile_lines():
                os.write(first if worker == "666" else other, line + b"\n")
            for seq in ("9" * 20, "9" * 18, "-1", "1e9", "0" * 18):
                line = support.wire_line(10**18, 77, worker="666")
                line = line.replace(b'"seq":77', b'"seq":' + seq.encode())
                os.write(first, line + b"\n")
        wait_until(lambda: len(scene.status()["workers"]) == 1, 60, "their departure")
        assert scene.status()["faults"] == {}
        assert support.consumers() == [scene.consumer]
        written = scene.path.stat().st_size
        scene.fleet.progress(50)
        wait_until(lambda: scene.path.stat().st_size > written, 60, "others' records")


@contextlib.contextmanager
def attached(scene, worker, sinks=()):
    """The write end of the pipe of a worker of this name."""
    stream = f"{os.getpid()}-{worker}"
    connection, write = scene.attach(worker=worker, sinks=list(sinks), stream=stream)
    with connection, os.fdopen(write, "wb", buffering=0):
        yield write


def test_no_text_and_no_pattern_stops_the_consumer(tmp_path):
    """Texts made for the patterns of sinks and viewers: each costs little, or is cut."""
    slow = "a.*b.*c.*d", "(?=a)a.*b.*c.*d", "(?:a.{0,9}){9}b"
    options = [f"match=message~'{each}'" for each in slow]
    options += [f"redact=/{each}/" for each in slow]
    urls = [
        f"file:{tmp_path}/{n}.log?{quote(each, safe='=')}"
        for n, each in enumerate(options)
    ]
    with besieged(tmp_path / "app.log") as scene:
        viewer = [sys.executable, "-m", "logagg", "tail", "-g", slow[0], "--json"]
        viewer += ["--socket", scene.socket, "-n", "all"]
        with (
            subprocess.Popen(viewer, stdout=subprocess.PIPE) as tail,
            attached(scene, "666", urls) as write,
        ):
            for seq in range(1, 41):
                text = (b"a", b"abc", b"ab ac ")[seq % 3] * 4_000 + b"%d" % seq
                now = time.clock_gettime_ns(time.CLOCK_REALTIME)
                body = b'"logger":"l","message":"%b"' % text
                line = support.wire_line(now, seq, worker="666", body=body)
                write_all(write, line + b"\n")
            wait_until(
                lambda: b'"seq":40,' in (tmp_path / "5.log").read_bytes(), 60, "the end"
            )
            tail.kill()
        assert scene.status()["faults"] == {}
        scene.judge()


def write_all(descriptor, data):
    """Write everything."""
    while data:
        data = data[os.write(descriptor, data) :]


def test_seqs_that_jump_are_counted_as_lost_of_their_worker(scene):
    """Claimed numbers cannot cost memory or another worker's records."""
    connection, write = scene.attach()
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    with connection:
        for n, seq in enumerate((1, 10, 10**15, 5, 10**15 + 1)):
            os.write(write, support.wire_line(now + n, seq, worker="666") + b"\n")
        os.close(write)
    wait_until(lambda: len(scene.status()["workers"]) == 1)

    assert support.memory_bytes(scene.consumer) < 150_000_000
    scene.judge()
