"""How a peer ended: before its parent has reaped it, and afterwards."""

import contextlib
import os
import signal
import socket

import pytest
import support

from logagg.platform.exit_status import exit_status

pytestmark = support.linux_form  # it speaks packets of that kind itself


@contextlib.contextmanager
def child(directory, end):
    """A forked child that connects and then ends; its pid and the connection to it."""
    path = str(directory / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                listener.close()
                peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                peer.connect(path)
                peer.recv(1)
                end()
            os._exit(9)
        connection, _ = listener.accept()
    with connection:
        yield pid, connection


ENDS = {
    0: lambda: os._exit(0),
    3: lambda: os._exit(3),
    -9: lambda: os.kill(os.getpid(), signal.SIGKILL),
}


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("code", ENDS)
def test_the_status_of_a_peer_is_known_when_it_has_ended(tmp_path, code, reaped):
    """Exit and signal alike; None as long as it runs."""
    with child(tmp_path, ENDS[code]) as (pid, connection):
        assert exit_status(connection, pid) is None
        connection.send(b"x")
        assert connection.recv(1) == b""
        if reaped:
            os.waitpid(pid, 0)
            version = tuple(map(int, os.uname().release.split(".")[:2]))
            if version < (6, 16):
                pytest.skip("this kernel does not keep the status")
        status = exit_status(connection, pid)
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == code
        if not reaped:
            os.waitpid(pid, 0)


def test_a_status_that_cannot_be_known_is_none(tmp_path):
    """The process is gone, and the connection is none of a process's."""
    with child(tmp_path, lambda: None) as (pid, _):
        one, two = socket.socketpair()
        one.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with two:
            assert exit_status(two, pid) is None
