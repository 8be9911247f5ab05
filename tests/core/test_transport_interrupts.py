"""What a signal handler does at every point of a call: it raises, logs, or forks.

Python runs signal handlers after a call into C returns and where a function begins. A
profile function gets control at just these points, so each of them is tried in turn: no
record is lost, none is sent twice under two seqs, and no line is damaged that is not
sent again as a whole.
"""

import contextlib
import fcntl
import os
import stat
import sys
from collections import Counter

import orjson
import pytest
from support import spool_files

from logagg.client import line_delivery
from logagg.client.transport import Transport
from logagg.core.line import is_line, seq_of
from logagg.ipc import connection
from logagg.platform.packets import packet_socket, receive

pytestmark = [
    pytest.mark.slow,  # some hundred transports, each with a socket and a pipe
    # A socket that an exception leaves is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


STRIDE = 29
"""How many points apart second exceptions come; other ones after each first one."""


class Peer:
    """A listening socket; what came by it is read afterwards."""

    def __init__(self, path):
        self._listener = packet_socket()
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        self._open = []

    def drain(self):
        """Read the pipes of all that has attached, as far as they go."""
        profile = sys.getprofile()
        sys.setprofile(None)  # it is no part of the call that is interrupted
        try:
            self._accept()
        finally:
            sys.setprofile(profile)
        found = []
        for connected in self._open:
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(connected["pipe"], 1 << 20):
                    connected["data"] += chunk
            found.append(connected)
        return found

    def _accept(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                try:
                    packet, fds, _ = receive(client, 1 << 16, 8)
                except BlockingIOError:  # its hello will not come
                    packet = b""
                if not packet:
                    client.close()
                    continue
                os.set_blocking(fds[0], False)
                kept = os.pread(fds[3], 1 << 20, 0) if len(fds) == 4 else b""
                self._open.append(
                    {"hello": orjson.loads(packet), "pipe": fds[0], "data": b"",
                     "kept": kept, "close": [client.detach(), *fds]}
                )  # fmt: skip

    def close(self):
        self._listener.close()
        for connected in self._open:
            for descriptor in connected["close"]:
                os.close(descriptor)


class Scene:
    """A transport with a small pipe, and the numbers of the records that it took."""

    def __init__(self, folder):
        path = os.path.join(folder, "socket")
        self.peer = Peer(path)
        self.transport = Transport(path, [], elect=False)
        self.taken = []
        self._next = 0

    def log(self, size=10):
        self._next = number = self._next + 1
        text = b"x" * size
        self.transport.send("info", b'"message":"%b","n":%d' % (text, number))
        self.taken.append(number)

    def check_soon(self):
        self.transport.delivery.next_check = 0

    def found(self):
        """The lines that have arrived, by seq; each must be whole somewhere."""
        streams = {}
        damaged = []
        for connected in self.peer.drain():
            lines = streams.setdefault(connected["hello"]["stream"], {})
            *whole, tail = connected["data"].split(b"\n")
            for line in [*whole, *connected["kept"].split(b"\n")[:-1]]:
                if is_line(line) and line.rpartition(b":")[2].isdigit():
                    assert lines.setdefault(seq_of(line), line) == line
                elif line:
                    damaged.append(line)
            damaged += [tail] if tail else []
        for path in spool_files():
            stream = os.path.basename(path).rpartition("-")[0]
            with open(path, "rb") as file:
                for line in file.read().splitlines():
                    known = streams.setdefault(stream, {}).setdefault(
                        seq_of(line), line
                    )
                    assert known == line
        all_lines = [line for lines in streams.values() for line in lines.values()]
        for part in damaged:
            assert any(line.startswith(part) for line in all_lines), part
        return streams

    def close(self):
        self.transport.close(0)
        self.peer.close()
        for path in spool_files():
            os.unlink(path)


def first_record(scene):
    scene.log()


def next_record(scene):
    scene.log()


def record_with_check(scene):
    scene.check_soon()
    scene.log()


def record_without_room(scene):
    scene.log(3000)


def record_of_which_a_part_has_room(scene):
    scene.log(9000)


def record_for_the_disk(scene):
    scene.log(10)


def return_to_the_pipe(scene):
    scene.peer.drain()
    scene.transport.delivery.retry_now()
    scene.log()


def flush(scene):
    scene.transport.flush(0)


def close(scene):
    scene.transport.close(0)


def fill(scene):
    scene.log(3000)


def leave(scene):
    """Leave the pipe for the disk, with a part of a line in it."""
    scene.log(9000)


CASES = {
    first_record: [],
    next_record: [first_record],
    record_with_check: [first_record],
    record_without_room: [first_record, fill],
    record_of_which_a_part_has_room: [first_record],
    record_for_the_disk: [first_record, leave],
    return_to_the_pipe: [first_record, leave],
    flush: [first_record],
    close: [first_record, leave],
}


def attempt(scene, call, point, action):
    """Make a call, and at its point number `point` something else; False: none there."""
    passed = 0

    def profile(frame, event, _):
        nonlocal passed
        if (
            event not in ("call", "c_return")
            or "/logagg/" not in frame.f_code.co_filename
        ):
            return
        passed += 1
        if passed == point:
            sys.setprofile(None)
            action()

    sys.setprofile(profile)
    try:
        call(scene)
    finally:
        sys.setprofile(None)
    return passed >= point


@pytest.fixture(autouse=True)
def small_pipe(monkeypatch):
    def shrink(pipe, *_):  # also in the portable form, which leaves pipes as they are
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)

    monkeypatch.setattr(connection, "set_pipe_bytes", shrink)
    monkeypatch.setattr(line_delivery, "OVERFLOW_TIMEOUT", 0.002)


@pytest.fixture
def scenes(tmp_path):
    """Makes a scene, in a folder of its own."""
    number = 0

    @contextlib.contextmanager
    def made():
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        with contextlib.closing(Scene(str(folder))) as scene:
            yield scene

    return made


def judge(scene, extra=(), twice=0):
    """All that was taken has arrived, each under one seq; seqs have no gap.

    Args:
        scene: The scene after its end.
        extra: Records of another process.
        twice: A record that two processes may have sent: both return from its call.
    """
    numbers = []
    for lines in scene.found().values():
        numbers += [int(line.rpartition(b":")[2]) for line in lines.values()]
        first = min(lines)
        assert sorted(lines) == list(range(first, first + len(lines)))
    again = Counter(numbers) - Counter(set(numbers))
    assert set(again) <= {twice}, "a record was sent under two seqs"
    missing = {*scene.taken, *extra} - set(numbers)
    assert not missing
    return set(numbers) - {*scene.taken, *extra}


@pytest.mark.parametrize("call", CASES, ids=lambda call: call.__name__)
def test_an_exception_at_any_point_loses_no_other_record(scenes, call):
    """The interrupted record itself is sent, or it is not; its caller knows."""

    def interrupt():
        raise KeyboardInterrupt

    point = 0
    more = True
    while more:
        point += 1
        with scenes() as scene:
            for each in CASES[call]:
                each(scene)
            try:
                more = attempt(scene, call, point, interrupt)
            except KeyboardInterrupt:
                pass
            scene.log()
            scene.log()
            scene.transport.close(0)

            assert len(judge(scene)) <= 1
    assert point > 5


@pytest.mark.parametrize("call", CASES, ids=lambda call: call.__name__)
def test_records_logged_at_any_point_are_sent_once(scenes, call):
    """They are written at once, or queued and written by the call that is under way."""
    point = 0
    more = True
    while more:
        point += 1
        with scenes() as scene:
            for each in CASES[call]:
                each(scene)
            more = attempt(scene, call, point, lambda: [scene.log(20) for _ in "123"])
            assert not scene.transport._queued, point  # no later call may come

            scene.transport.close(0)
            assert not judge(scene)


def test_a_second_exception_loses_nothing_that_a_handler_has_logged(scenes):
    """It comes where a function begins that is called after the first one.

    A profile function that raises is removed, so that a trace function raises then.
    """
    point = 0
    more = True
    while more:
        point += 1
        second, follows = point % STRIDE - STRIDE + 1, True
        while follows and more:
            second += STRIDE
            begun = 0

            def trace(frame, event, _, second=second):
                nonlocal begun
                if "/logagg/" in frame.f_code.co_filename:
                    begun += 1
                    if begun == second:
                        sys.settrace(None)
                        raise KeyboardInterrupt

            with scenes() as scene:

                def log_and_interrupt(log=scene.log, trace=trace):
                    log()
                    log()
                    sys.settrace(trace)
                    raise KeyboardInterrupt

                for each in CASES[record_for_the_disk]:
                    each(scene)
                try:
                    more = attempt(scene, record_for_the_disk, point, log_and_interrupt)
                except KeyboardInterrupt:
                    pass
                finally:
                    sys.settrace(None)
                follows = begun >= second
                scene.log()
                scene.transport.close(0)

                assert len(judge(scene)) <= 1, (point, second)
    assert point > 5


@pytest.mark.parametrize("call", CASES, ids=lambda call: call.__name__)
def test_a_fork_at_any_point_leaves_each_process_its_own_records(scenes, call):
    """The child's records are its own stream; the parent's are sent by the parent."""
    point = 0
    more = True
    while more:
        point += 1
        with scenes() as scene:
            for each in CASES[call]:
                each(scene)
            child = 0

            def fork():
                nonlocal child
                child = os.fork()
                if child == 0:
                    scene.transport.forked()  # as the hook does for those it knows
                    scene.taken.clear()
                    scene._next = 1000
                    scene.log()

            try:
                more = attempt(scene, call, point, fork)
                if child == 0 and more:
                    scene.log()
                    scene.transport.close(0)
                    os._exit(0)
            except BaseException as error:
                if child:
                    raise
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
            if child:
                assert os.waitpid(child, 0)[1] == 0
                scene.transport.close(0)
                judge(scene, extra=(1001, 1002), twice=scene._next)


def test_a_queued_record_outlasts_an_exception_while_others_follow(scenes, monkeypatch):
    """It was not sent, and so it is still queued, though the next ones could be sent."""
    check = Transport._check
    calls = []

    def interrupted(transport, now):
        calls.append(now)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return check(transport, now)

    with scenes() as scene:
        scene.log()
        for number in (2, 3):
            body = b'"message":"m","n":%d' % number
            scene.transport._queued.append(("info", body))
            scene.taken.append(number)
        scene._next = 3
        scene.check_soon()
        monkeypatch.setattr(Transport, "_check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scene.transport._send_queued()
        scene.log()

        scene.transport.close(0)
        assert not judge(scene)


def test_a_queued_record_that_is_on_disk_already_is_sent_once(scenes, monkeypatch):
    """The exception came right behind the write, before anything had noted it."""
    write = os.write
    raised = []

    def interrupted(descriptor, data):
        done = write(descriptor, data)
        if not raised and stat.S_ISREG(os.fstat(descriptor).st_mode):
            raised.append(True)
            raise KeyboardInterrupt
        return done

    with scenes() as scene:
        scene.log()
        leave(scene)
        scene._next = 3
        scene.transport._queued.append(("info", b'"message":"m","n":3'))
        scene.taken.append(3)
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scene.transport._send_queued()
        scene.log()

        scene.transport.close(0)
        assert not judge(scene)
