"""Packets over a Unix socket, in the form of Linux and in the portable one."""

from __future__ import annotations

import pytest
from support import python

FORMS = pytest.mark.parametrize("portable", ["", "1"], ids=["linux", "portable"])

PREAMBLE = """\
import os, socket, struct, threading
from logagg.platform import packets, system
assert system.LINUX is not (os.environ["LOGAGG_PORTABLE"] == "1")
one, two = socket.socketpair(socket.AF_UNIX, packets.KIND)
for each in (one, two):
    each.setblocking(False)
"""


@pytest.fixture
def run(portable, monkeypatch):
    """Run a program in one of the forms; what it prints."""
    monkeypatch.setenv("LOGAGG_PORTABLE", portable)
    return lambda code: python(PREAMBLE + code).stdout.split()


@FORMS
def test_packets_arrive_one_by_one_with_their_descriptors(run):
    """Of any length up to 64 KiB; a descriptor that comes is not inherited."""
    code = """\
for size in (1, 9, 40_000, 65_536):
    packets.send(one, b"x" * size, [0, 1] if size > 9 else [])
found = [packets.receive(two, 65_536, 3) for _ in range(4)]
print(*(f"{len(data)}:{len(fds)}:{lost}" for data, fds, lost in found))
print(any(os.get_inheritable(fd) for _, fds, _ in found for fd in fds))
packets.send(one, b"x", [0, 1])
print(packets.receive(two, 100)[:2])
try:
    packets.receive(two, 100)
except BlockingIOError:
    print("none")
packets.send(two, b"last")
two.close()
print(packets.receive_at(one.fileno(), 100), packets.receive(one, 100)[0])
"""

    assert run(code) == [
        "1:0:False", "9:0:False", "40000:2:False", "65536:2:False",
        "False", "(b'x',", "[])", "none", "b'last'", "b''",
    ]  # fmt: skip


@FORMS
def test_a_packet_is_sent_whole_or_not_at_all(run):
    """A full socket raises; every packet that was accepted arrives, none is a piece."""
    code = """\
sent = 0
stopped = threading.Event()
def read():
    while not stopped.is_set() or got < sent:
        try:
            data, _, _ = packets.receive(two, 65_536)
        except BlockingIOError:
            stopped.wait(0.001)
            continue
        assert data == bytes([len(data) % 251]) * len(data)
        globals()["got"] += 1
got = 0
reader = threading.Thread(target=read)
reader.start()
full = n = 0
while n < 3000 or sent <= 100:
    n += 1
    size = 1 + n * 37 % 30_000
    try:
        packets.send(one, bytes([size % 251]) * size)
    except BlockingIOError:
        full += 1
    else:
        sent += 1
stopped.set()
reader.join()
print(got == sent, full > 0)
"""

    assert run(code) == ["True", "True"]


@pytest.mark.parametrize("portable", ["1"])
def test_a_stream_that_is_no_row_of_packets_ends_its_connection_alone(run):
    """Too long, or cut off by the sender's end: an error, at once."""
    code = """\
one.send(struct.pack("<I", 1 << 31) + b"x")
try:
    packets.receive(two, 65_536)
except OSError as error:
    print(type(error).__name__)
one, two = socket.socketpair()
two.setblocking(False)
one.send(struct.pack("<I", 100) + b"x")
try:
    packets.receive(two, 65_536)
except BlockingIOError:
    print("later")
one.close()
try:
    packets.receive(two, 65_536)
except ConnectionResetError:
    print("gone")
"""

    assert run(code) == ["OSError", "later", "gone"]


@pytest.mark.parametrize("portable", ["1"])
def test_a_reader_that_stops_in_a_packet_costs_its_sender_a_second(run):
    """Then the connection is shut: what follows is no packet any more."""
    code = """\
import time
packets.SEND_TIMEOUT = 0.1
start = time.monotonic()
try:
    while True:
        packets.send(one, b"x" * 60_000)
except BrokenPipeError:
    print("shut")
except BlockingIOError:
    print("full")
try:
    one.send(b"x")
except BrokenPipeError:
    print("shut")
"""

    assert run(code) in (["shut", "shut"], ["full"])


@FORMS
def test_no_client_finds_what_is_bound_nowhere(run):
    """It listens, and nothing of it is left on the disk."""
    code = """\
quiet = socket.socket(socket.AF_UNIX)
packets.bind_nowhere(quiet, socket.socket.bind)
quiet.listen(1)
name = quiet.getsockname()
print(not os.path.exists(name))
file = system.memory_file("test")
os.write(file, b"kept")
print(os.pread(file, 9, 0).decode(), os.fstat(file).st_nlink, os.get_inheritable(file))
"""

    assert run(code) == ["True", "kept", "0", "False"]
