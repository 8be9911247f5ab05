"""What a hostile process does to a consumer, as bytes that a fuzzer can change.

A *script* is a sequence of steps, separated by `SEPARATOR`. The first letter of a step
names it, the rest is its argument:

    c            a new connection
    p LETTERS␠…  a packet with descriptors: r w n f d s, see `Attacker._descriptor`
    h {…}        a worker's hello: the good one with these members instead
    a {…}        the same, passed on by another consumer
    m {…}        a packet of these members on the connection
    w …          bytes into the pipe
    l FIRST N    good lines with these seqs
    g FIRST N    a spool segment with these seqs, and its announcement
    x            the connection is closed
    e            the pipe is closed
    z            the consumer gets time

A step that makes no sense is passed over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

import orjson
import support

from logagg.ipc import paths
from logagg.platform import packets

SEPARATOR = b"\n%%\n"
MOST_STEPS = 40
MOST_LINES = 2000


def is_harmless(value: Any) -> bool:
    """Whether a message has the consumer open no target: it could be any file."""
    if isinstance(value, dict):
        return not value.get("sinks") and all(map(is_harmless, value.values()))
    return not isinstance(value, list) or all(map(is_harmless, value))


class Attacker:
    """Plays scripts against the consumer of a socket.

    Args:
        path: The socket.
        wait: Gives the consumer time.
        spared: Kinds of messages that are not sent: some may end a consumer.
    """

    def __init__(
        self, path: str, wait: Callable[[], object], spared: Collection[str] = ()
    ) -> None:
        self._spared = spared
        self._path = path
        self._wait = wait
        self._connections: list[socket.socket] = []
        self._pipes: list[int] = []
        self._stream = f"{os.getpid()}-f"
        self._folder = paths.spool_dir(paths.identifier_of(path))

    def play(self, script: bytes) -> None:
        """Play a script; in the end all is closed."""
        steps = {
            b"c": self._connect, b"p": self._packet, b"h": self._hello, b"a": self._adopt,
            b"m": self._message, b"w": self._write, b"l": self._lines, b"g": self._segment,
            b"x": self._hang_up, b"e": self._end, b"z": lambda _: self._wait(),
        }  # fmt: skip
        try:
            for step in script.split(SEPARATOR)[:MOST_STEPS]:
                do = steps.get(step[:1])
                if do is not None:
                    with contextlib.suppress(OSError, ValueError, TypeError):
                        do(step[1:])
            self._wait()
        finally:
            for connection in self._connections:
                connection.close()
            for pipe in self._pipes:
                os.close(pipe)
            self._connections.clear()
            self._pipes.clear()
            self._wait()

    # ---- steps ---------------------------------------------------------------------

    def _connect(self, _: bytes = b"") -> None:
        if len(self._connections) >= 20:
            self._connections.pop(0).close()
        made = packets.packet_socket()
        self._connections.append(made)
        made.settimeout(2)
        made.connect(self._path)
        made.setblocking(False)

    def _send(self, packet: bytes, letters: bytes = b"") -> None:
        if not self._connections:
            self._connect()
        try:
            message = orjson.loads(packet)
        except ValueError:
            message = None
        if not is_harmless(message):
            return
        if isinstance(message, dict) and str(message.get("kind")) in self._spared:
            return
        descriptors = [self._descriptor(letter) for letter in letters[:12]]
        try:
            packets.send(self._connections[-1], packet, descriptors)
        finally:
            for each in descriptors:
                os.close(each)

    def _descriptor(self, letter: int) -> int:
        """The read end of a pipe, its write end, and what is neither."""
        match chr(letter):
            case "r":
                read, write = os.pipe()
                os.set_blocking(write, False)
                self._pipes.append(write)
                return read
            case "w":
                read, write = os.pipe()
                self._pipes.append(read)
                return write
            case "f":
                file = os.memfd_create("f")
                os.write(file, support.wire_line(time.time_ns(), 1, worker="f") + b"\n")
                return file
            case "d":
                return os.open("/", os.O_RDONLY)
            case "s":
                here, there = socket.socketpair()
                self._connections.insert(0, here)
                return there.detach()
            case _:
                return os.open("/dev/null", os.O_RDWR)

    def _packet(self, rest: bytes) -> None:
        letters, _, packet = rest.partition(b" ")
        self._send(packet, letters)

    def _good(self, rest: bytes) -> dict[str, Any]:
        members = orjson.loads(rest.strip() or b"{}")
        if not isinstance(members, dict):
            raise ValueError("no object")
        return {
            "hello": 1, "kind": "records", "pid": os.getpid(), "worker": "f",
            "stream": self._stream, **members,
        }  # fmt: skip

    def _hello(self, rest: bytes) -> None:
        self._connect()
        self._send(orjson.dumps(self._good(rest)), b"rnn")

    def _adopt(self, rest: bytes) -> None:
        self._connect()
        hello = {"hello": 1, "kind": "adopt", "worker": self._good(rest)}
        self._send(orjson.dumps(hello))
        self._wait()
        self._send(orjson.dumps(hello), b"srnn")

    def _message(self, rest: bytes) -> None:
        if is_harmless(orjson.loads(rest)):
            self._send(rest)

    def _write(self, data: bytes) -> None:
        if self._pipes:
            os.write(self._pipes[-1], data)

    def _numbers(self, rest: bytes) -> range:
        first, count = (int(each) for each in rest.split()[:2])
        return range(first, first + min(count, MOST_LINES))

    def _lines(self, rest: bytes) -> None:
        now = time.time_ns()
        for seq in self._numbers(rest) if self._pipes else ():
            os.write(self._pipes[-1], support.wire_line(now, seq, worker="f") + b"\n")

    def _segment(self, rest: bytes) -> None:
        seqs = self._numbers(rest)
        path = os.path.join(
            self._folder, f"{self._stream}-{max(seqs[0], 0):020d}.spool"
        )
        now = time.time_ns()
        with open(path, "wb") as file:
            file.writelines(
                support.wire_line(now, seq, worker="f") + b"\n" for seq in seqs
            )
        self._send(orjson.dumps({"segment": path, "first": seqs[0], "last": seqs[-1]}))

    def _hang_up(self, _: bytes) -> None:
        if self._connections:
            self._connections.pop().close()

    def _end(self, _: bytes) -> None:
        if self._pipes:
            os.close(self._pipes.pop())
