"""One process's numbering and stamping of lines: threads, re-entry, fork, close."""

import contextlib
import os
import socket
import threading

import orjson
import pytest
from support import PacketSocket

from logagg.client.transport import MAX_THREADS, Transport
from logagg.core.line import KEY_END, seq_of
from logagg.platform.packets import packet_socket, receive


class Peer:
    """A listening socket, and what arrives by the connections to it."""

    def __init__(self, path):
        self._listener = packet_socket()
        self._listener.bind(path)
        self._listener.listen()
        self._open = []

    def accept(self):
        """The hello of the next connection and the read end of its pipe."""
        connection, _ = self._listener.accept()
        packet, fds, _ = receive(connection, 1 << 16, 8)
        os.set_blocking(fds[0], False)
        self._open += [connection.detach(), *fds]
        return orjson.loads(packet), fds[0]

    def control(self):
        """The socket of the connection that was accepted last."""
        return PacketSocket(socket.socket(fileno=os.dup(self._open[-4])))

    def close(self):
        self._listener.close()
        for each in self._open:
            os.close(each)


@pytest.fixture
def peer(tmp_path):
    with contextlib.closing(Peer(str(tmp_path / "socket"))) as made:
        yield made


@pytest.fixture
def transport(peer, tmp_path):
    made = Transport(str(tmp_path / "socket"), ["file:/a"], elect=False)
    yield made
    made.close(0)


BODY = b'"message":"m"'


def lines(pipe):
    return os.read(pipe, 1 << 20).split(b"\n")[:-1]


def test_lines_of_many_threads_are_numbered_in_the_order_of_their_stamps(
    transport, peer
):
    """Each seq once, and no stamp twice: the order in the pipe is that of both."""

    def log():
        for _ in range(100):  # fewer than fill a pipe of 64 KiB
            transport.send("info", BODY)

    threads = [threading.Thread(target=log) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    _, pipe = peer.accept()
    found = lines(pipe)
    assert [seq_of(each) for each in found] == list(range(1, 401))
    keys = [each[:KEY_END] for each in found]
    assert keys == sorted(set(keys))


def test_a_record_logged_in_the_middle_of_another_follows_it(
    transport, peer, monkeypatch
):
    """As a signal handler or `__del__` does: no line is torn, none is lost."""
    write = os.write
    calls = []

    def interrupted(descriptor, data):
        if not calls and descriptor == transport.delivery.fd:
            calls.append(1)
            transport.send("error", b'"message":"inner"')
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupted)
    transport.send("info", b'"message":"outer"')

    _, pipe = peer.accept()
    first, second = lines(pipe)
    assert b"outer" in first
    assert b"inner" in second
    assert (seq_of(first), seq_of(second)) == (1, 2)


def test_a_forked_child_attaches_anew_and_leaves_its_parents_records_alone(
    transport, peer
):
    """Another stream, seqs from 1, a pipe of its own; also when a thread held the lock."""
    transport.send("info", BODY)
    hello, pipe = peer.accept()
    release = threading.Event()
    held = threading.Event()

    def hold():
        with transport.lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            transport.forked()
            transport.send("info", BODY)
            os._exit(0)
        os._exit(1)
    release.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0

    child, childs_pipe = peer.accept()
    assert child["pid"] == pid != hello["pid"]
    assert child["stream"] != hello["stream"]
    assert [seq_of(each) for each in lines(childs_pipe)] == [1]
    assert [seq_of(each) for each in lines(pipe)] == [1]


def test_a_sink_is_requested_once(transport, peer):
    """In the hello, or afterwards; what is requested already is left out."""
    transport.add_sinks(["file:/a", "file:/b"])
    transport.send("info", BODY)
    hello, _ = peer.accept()
    transport.add_sinks(["file:/b", "file:/c"])

    assert hello["sinks"] == ["file:/a", "file:/b"]
    with peer.control() as control:
        assert orjson.loads(control.recv(1000)) == {"sinks": ["file:/c"]}


def test_after_close_a_record_attaches_anew(transport, peer):
    """With the goodbye of the first attachment, under the seq that is next."""
    assert transport.close(0) is True, "nothing was ever sent"
    transport.send("info", BODY)
    first, _ = peer.accept()
    with peer.control() as control:
        transport.close(0)
        packets = [orjson.loads(control.recv(1000)) for _ in range(3)]
    for timeout in (0, -1, None, float("inf")):
        assert transport.flush(timeout) is True, "nothing is under way"
    transport.send("info", BODY)
    second, pipe = peer.accept()

    assert packets[0] == {"flush": 1}
    assert packets[1].keys() == {"segment", "first", "last"}, "nothing was confirmed"
    assert packets[2] == {"bye": 1, "dropped": 0, "stays": True}
    assert first["stream"] != second["stream"]
    assert (first["acknowledged"], second["acknowledged"]) == (0, 1)
    assert [seq_of(each) for each in lines(pipe)] == [2]


def test_at_exit_the_goodbye_is_that_of_the_process(transport, peer):
    """The other one is of a process that goes on, and may attach again."""
    transport.send("info", BODY)
    peer.accept()
    with peer.control() as control:
        transport.close(0, at_exit=True)
        packets = [orjson.loads(control.recv(1000)) for _ in range(3)]

    assert packets[2] == {"bye": 1, "dropped": 0}


def test_a_record_logged_while_it_closes_follows_in_the_next_attachment(
    transport, peer, monkeypatch
):
    """As a signal handler does: the record waits for the close, and is not lost."""
    transport.send("info", BODY)
    peer.accept()
    delivery = transport.delivery
    close = type(delivery).close

    def interrupted(self, *args, **options):
        transport.send("info", BODY)
        close(self, *args, **options)

    monkeypatch.setattr(type(delivery), "close", interrupted)
    transport.close(0)
    monkeypatch.undo()

    _, pipe = peer.accept()
    assert [seq_of(each) for each in lines(pipe)] == [2]


def test_a_flush_is_done_when_the_consumer_has_answered(transport, peer):
    """And not before: with no time to wait it is not."""
    transport.send("info", BODY)
    peer.accept()
    assert transport.flush(0) is False
    with peer.control() as control:
        control.send(b'{"ack":1,"flushed":1}')

    assert transport.flush(5) is True


def test_the_memory_of_threads_is_bounded(transport):
    """Programs make threads without end; each leaves one entry only for a while."""
    transport.send("info", BODY)
    transport.recent.update(dict.fromkeys(range(MAX_THREADS + 1)))
    transport.delivery.next_check = 0
    transport.send("info", BODY)

    assert not transport.recent
