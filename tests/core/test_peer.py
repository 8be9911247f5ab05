"""The peer protocol: messages, questions and answers between supervisor and worker."""

from __future__ import annotations

import concurrent.futures
import datetime
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from support import no_free_descriptor

from logagg.errors import ClosedError, WireError, WouldBlock
from logagg.supervisor.messaging.frames import (
    MAX_MESSAGE_BYTES,
    Decoder,
    Frame,
    encode,
    encode_value,
    receive,
)
from logagg.supervisor.messaging.outbox import WAITING_BYTES, WINDOW_MESSAGES
from logagg.supervisor.messaging.peer import Peer

GONE = ClosedError("gone")


class Host:
    """A peer's host without a process: a wire of bytes, a loop of callables.

    Args:
        room: How many bytes the wire takes before it is full; None: any number.
        call: What a handler of messages and requests does.
    """

    def __init__(
        self, room: int | None = None, call: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.now = 0.0
        self.room = room
        self.call = call
        self.wire = bytearray()
        self.errors: list[tuple[str, str]] = []
        self.alarms: list[float] = []
        self.frames: list[Frame] = []
        self.during: deque[Callable[[], object]] = deque()
        self.peer = Peer(self, "the other", lambda: self.now)

    def transmit(self, data: memoryview, fd: int) -> int:
        """Take what there is room for, as a socket does; first what interrupts it."""
        if self.during:
            self.during.popleft()()
        count = len(data) if self.room is None else min(len(data), self.room)
        if self.room is not None:
            self.room -= count
        self.wire += data[:count]
        return count

    def handle(self, frame: Frame, fd: int) -> None:
        """Run `call` for a message or request; note all others."""
        if frame["k"] == "message":
            self.peer.handle_message(frame, [lambda: self.call(frame.get("b"))])
        elif frame["k"] == "request":
            self.peer.handle_request(frame, [lambda: self.call(frame.get("b"))])
        else:
            self.frames.append(frame)

    def start(self, awaitable: Any) -> Any:
        """Run a coroutine to its end."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            awaitable.send(None)
        except StopIteration as end:
            future.set_result(end.value)
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def report(self, what: str, error: BaseException) -> None:
        """Note an error."""
        self.errors.append((what, str(error)))

    def alarm(self, seconds: float) -> None:
        """Note when to expire."""
        self.alarms.append(seconds)

    def sent(self) -> list[Frame]:
        """The whole frames on the wire."""
        return [frame for frame, _ in Decoder().feed(bytes(self.wire), [])]


def test_a_descriptor_that_cannot_be_passed_now_costs_its_message_alone() -> None:
    """The system has too many on their way; the receipt comes, and all others."""
    sender, receiver = Host(), Host()
    transmit = sender.transmit

    def refuse(data: memoryview, fd: int) -> int:
        if fd >= 0:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return transmit(data, fd)

    sender.transmit = refuse  # type: ignore[method-assign]
    sender.peer = Peer(sender, "the other", lambda: sender.now)
    descriptors = len(os.listdir("/proc/self/fd"))
    passed = sender.peer.post("message", encode_value(1), 0)
    others = [post(sender, n) for n in range(3)]
    exchange(sender, receiver)
    assert isinstance(passed.exception(0), WouldBlock)
    assert all(other.exception(0) is None for other in others)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def post(host: Host, value: Any) -> Any:
    """Post a message."""
    return host.peer.post("message", encode_value(value))


def exchange(*hosts: Host) -> None:
    """Carry frames between two hosts until both are silent."""
    pairs = [(hosts[0], hosts[1], Decoder()), (hosts[1], hosts[0], Decoder())]
    while any(host.wire for host in hosts):
        for source, target, decoder in pairs:
            data, source.wire = bytes(source.wire), bytearray()
            for frame, fd in decoder.feed(data, []):
                target.peer.receive(frame, fd)


# ---- messages ---------------------------------------------------------------------------


def test_messages_keep_order_window_and_bound() -> None:
    """Beyond the window messages wait; receipts come by number; a full queue raises."""
    host = Host()
    receipts = [post(host, n) for n in range(2000)]
    assert [f["b"] for f in host.sent()] == list(range(WINDOW_MESSAGES))
    first, second = (frame["id"] for frame in host.sent()[:2])
    for number in (second, first):
        host.peer.receive({"k": "ack", "id": number}, -1)
    assert [f["b"] for f in host.sent()[-2:]] == [1024, 1025]
    assert [r.done() for r in receipts[:3]] == [True, True, False]
    assert host.peer.unacknowledged == 1998
    for _ in range(WAITING_BYTES // 4_000_000):
        post(host, "x" * 4_000_000)
    with pytest.raises(WouldBlock, match="await the receipts"):
        post(host, "x" * 4_000_000)
    host.peer.close(GONE)
    assert receipts[5].exception(0) is GONE
    assert post(host, 1).exception(0) is GONE


def test_a_receipt_comes_when_all_handlers_have_ended() -> None:
    """Also for one that raises: its error is reported at the receiver."""
    left, right = Host(), Host()
    waiting: concurrent.futures.Future[None] = concurrent.futures.Future()
    right.start = lambda awaitable: (awaitable.close(), waiting)[1]  # type: ignore[method-assign]

    async def slow() -> None: ...

    def bad() -> None:
        raise KeyError("bad")

    right.handle = lambda frame, _fd: right.peer.handle_message(frame, [bad, slow])  # type: ignore[method-assign]
    receipt = post(left, 1)
    exchange(left, right)
    assert not receipt.done()
    waiting.set_result(None)
    exchange(left, right)
    assert receipt.result(0) is None
    assert right.errors == [("message", "'bad'")]


@pytest.mark.parametrize("ended", ["cancelled", "closed loop", "sys.exit"])
def test_a_receipt_and_an_answer_come_however_a_handler_ends(ended: str) -> None:
    """A cancelled coroutine, a loop that is closed, an exit in a handler."""
    left, right = Host(), Host()

    async def work() -> None: ...

    def call(_value: Any) -> Any:
        if ended == "sys.exit":
            raise SystemExit(3)
        return work()

    def start(awaitable: Any) -> Any:
        awaitable.close()
        if ended == "closed loop":
            raise RuntimeError("Event loop is closed")
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        future.cancel()
        return future

    right.call, right.start = call, start  # type: ignore[method-assign]
    for kind in ("message", "request"):
        future = post(left, 1) if kind == "message" else left.peer.request(1, 5)
        try:
            exchange(left, right)
        except SystemExit:
            exchange(left, right)
        assert future.done()
        assert right.errors[-1][0] == kind
        assert (future.exception(0) is None) == (kind == "message")


def test_a_message_that_is_refused_fails_its_receipt() -> None:
    """The receiver's reason is in the error."""
    host = Host()
    receipt = post(host, 1)
    number = host.sent()[0]["id"]
    host.peer.receive({"k": "ack", "id": number, "error": "no room"}, -1)
    with pytest.raises(WouldBlock, match="no room"):
        receipt.result(0)


def test_a_sender_that_may_wait_is_slowed_down() -> None:
    """`wait` blocks while the window is full, until an acknowledgement comes."""
    host = Host()
    for n in range(WINDOW_MESSAGES):
        post(host, n)
    number = host.sent()[0]["id"]
    thread = threading.Thread(
        target=lambda: host.peer.post("message", encode_value(-1), wait=True)
    )
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    host.peer.receive({"k": "ack", "id": number}, -1)
    thread.join(5)
    assert host.sent()[-1]["b"] == -1


def test_a_signal_handler_may_send_in_the_middle_of_a_send() -> None:
    """Nothing is lost, cut in two or blocked: neither its frames nor the outer ones."""
    host = Host()
    nested: list[Any] = []
    host.during += [
        lambda: nested.append(post(host, "message")),
        lambda: nested.append(host.peer.request("request", 5)),
        lambda: nested.append(host.peer.post("message", encode_value(2), wait=True)),
    ]
    post(host, 1)
    host.peer.send({"k": "idle"})
    assert [frame.get("b") for frame in host.sent()] == [
        1,
        "message",
        "request",
        2,
        None,
    ]
    assert not any(future.done() for future in nested)


def test_threads_send_whole_frames() -> None:
    """Frames of several threads do not mix, and all arrive."""
    host = Host()

    def send(start: int) -> None:
        for n in range(start, start + 200):
            post(host, n)

    threads = [threading.Thread(target=send, args=(n * 200,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(frame["b"] for frame in host.sent()) == list(range(800))


# ---- questions ----------------------------------------------------------------------------


def test_a_request_gets_what_the_handler_returns_or_raises() -> None:
    """Values, coroutines, errors, values that are not JSON, and no handler at all."""
    left, right = Host(), Host()

    async def later() -> str:
        return "later"

    def call(value: Any) -> Any:
        if value == "raise":
            raise KeyError("no")
        if value == "later":
            return later()
        return float("nan") if value == "nan" else value

    right.call = call
    results = {v: left.peer.request(v, 5) for v in ("x", "later", "raise", "nan")}
    exchange(left, right)
    assert results["x"].result(0) == "x"
    assert results["later"].result(0) == "later"
    with pytest.raises(RuntimeError, match="KeyError: 'no'"):
        results["raise"].result(0)
    with pytest.raises(RuntimeError, match="NaN"):
        results["nan"].result(0)
    right.handle = lambda frame, _fd: right.peer.handle_request(frame, [])  # type: ignore[method-assign]
    unhandled = left.peer.request(1, 5)
    exchange(left, right)
    with pytest.raises(RuntimeError, match="no request handler"):
        unhandled.result(0)


def test_questions_expire_by_their_own_deadlines() -> None:
    """The alarm is set for the earliest; a late answer is dropped with its descriptor."""
    host = Host()
    long, short = host.peer.request(1, 9), host.peer.request(2, 0.2)
    endless = host.peer.ask({"k": "task", "b": {}})
    assert host.alarms == [9, 0.2]
    host.now = 1.0
    assert host.peer.expire() == pytest.approx(8.0)
    with pytest.raises(TimeoutError, match=r"the other did not answer within 0\.2 s"):
        short.result(0)
    fd = os.dup(0)
    number = host.sent()[1]["q"]
    host.peer.receive({"k": "answer", "q": number, "fd": True}, fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    host.now = 10.0
    assert host.peer.expire() is None
    assert long.done()
    assert not endless.done()


def test_a_forked_or_closed_end_fails_at_once() -> None:
    """Nothing that is sent after `close` waits for an answer."""
    host = Host()
    host.peer.close(GONE)
    host.peer.close(ClosedError("again"))
    assert host.peer.request(1, 5).exception(0) is GONE
    host.peer.send({"k": "idle"})
    assert host.wire == b""
    assert host.alarms == []


# ---- any order of events ------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(["post", "request", "deliver", "reply", "time", "room", "lose"]),
    max_size=60,
)


@settings(max_examples=300)
@given(STEPS, st.integers(1, 300), st.data())
def test_each_receipt_and_answer_is_resolved_once(
    steps: list[str], room: int, data: st.DataObject
) -> None:
    """Whatever happens in whatever order, with writes and reads cut anywhere.

    Messages arrive in order; each future is done exactly once, at the latest when the
    connection is lost, and until then only when the other end has handled it.
    """
    left, right = Host(room), Host(room)
    arrived: list[Any] = []
    right.call = arrived.append
    decoders = {"deliver": (left, right, Decoder()), "reply": (right, left, Decoder())}
    counts: dict[Any, int] = {}
    futures: list[Any] = []
    lost = False
    for number, step in enumerate(steps):
        if step in ("post", "request"):
            future = post(left, number) if step == "post" else left.peer.request(-1, 1)
            future.add_done_callback(lambda f: counts.update({f: counts.get(f, 0) + 1}))
            futures.append(future)
        elif step in decoders and not lost:
            source, target, decoder = decoders[step]
            cut = data.draw(st.integers(0, len(source.wire)))
            piece = bytes(source.wire[:cut])
            del source.wire[:cut]
            for frame, fd in decoder.feed(piece, []):
                target.peer.receive(frame, fd)
        elif step == "time":
            left.now += 0.4
            left.peer.expire()
        elif step == "room":
            for host in (left, right):
                host.room = data.draw(st.integers(1, 300))
                host.peer.writable()
        elif step == "lose":
            lost = True
            left.peer.close(GONE)
    sent = [value for value in arrived if value != -1]
    assert sent == sorted(sent)
    left.peer.close(GONE)
    assert all(future.done() for future in futures)
    assert all(counts[future] == 1 for future in futures)
    handled = [future for future in futures if future.exception(0) is None]
    assert len(handled) <= len(arrived)
    assert left.peer.unacknowledged == 0
    assert left.errors == right.errors == []


# ---- frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        {"a": [1, (float("inf"),)]},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 1),
        {1: 2},
        b"bytes",
        "\ud800",
        object(),
    ],
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    """Nothing arrives as something else than what was sent."""
    with pytest.raises(WireError, match="plain JSON values"):
        encode_value(value)


def test_null_and_the_word_null_are_plain_values() -> None:
    """The check for NaN does not mistake them."""
    assert (
        encode({"b": encode_value([None, "null", 1.5])})[4:]
        == b'{"b":[null,"null",1.5]}'
    )


def test_a_message_that_is_too_long_names_the_limit() -> None:
    """The error has its length, the limit, and what to send instead; at the limit it goes."""
    encode_value("x" * (MAX_MESSAGE_BYTES - 2))
    with pytest.raises(WireError, match=f"{MAX_MESSAGE_BYTES}; send a path"):
        encode_value("x" * (MAX_MESSAGE_BYTES - 1))


def test_a_frame_with_bad_fields_harms_no_other() -> None:
    """It is reported; unknown kinds are ignored; descriptors are closed."""
    host = Host()
    fds = [os.dup(0) for _ in range(3)]
    for frame, fd in (
        ({"k": "ack", "id": "x"}, fds[0]),
        ({"k": "unknown"}, fds[1]),
        ({"k": "ping", "n": 1}, fds[2]),
        ({"k": "message", "id": None}, -1),
    ):
        host.peer.receive(frame, fd)
    assert [what for what, _ in host.errors] == ["frame", "frame"]
    assert host.frames == [{"k": "ping", "n": 1}]
    for fd in fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_a_handler_of_frames_that_raises_is_reported() -> None:
    """So is a full receiver of a broadcast; the frames after it are handled."""
    host = Host()

    def handle(_frame: Frame, _fd: int) -> None:
        raise WouldBlock("full")

    host.handle = handle  # type: ignore[method-assign]
    host.peer.receive({"k": "idle"}, -1)
    assert host.errors == [("frame", "full")]


def test_a_lost_descriptor_refuses_its_frame_only() -> None:
    """A receiver without a free descriptor goes on; later descriptors stay matched."""
    ours, theirs = socket.socketpair()
    host, decoder = Host(), Decoder()
    payloads = [
        encode({"k": "message", "id": 1, "fd": True}),
        encode({"k": "message", "id": 2, "fd": True}),
    ]
    found: list[tuple[Frame, int]] = []
    with ours, theirs:
        for index, data in enumerate(payloads):
            socket.send_fds(ours, [data], [0])
            if index == 0:
                with no_free_descriptor():
                    found += decoder.feed(*receive(theirs))
            else:
                found += decoder.feed(*receive(theirs))
    for frame, fd in found:
        host.peer.receive(frame, fd)
    acks = host.sent()
    assert [ack["id"] for ack in acks] == [1, 2]
    assert "descriptor" in acks[0]["error"]
    assert "error" not in acks[1]
    answer = host.peer.ask({"k": "bind"})
    number = host.sent()[-1]["q"]
    host.peer.receive({"k": "answer", "q": number, "fd": True}, -2)
    error = answer.exception(0)
    assert isinstance(error, OSError)
    assert error.errno == errno.EMFILE
