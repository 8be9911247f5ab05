"""Where a process's lines go, state by state, with real pipes, sockets and files.

Each scenario is the path of states that it must take, and no other; together they make
every transition of the table.
"""

import contextlib
import itertools
import os
import signal
from pathlib import Path
from signal import SIGINT

import orjson
import pytest
from support import PacketSocket, spool_files

from logagg.client.delivery_state import TRANSITIONS, Overflow
from logagg.client.delivery_state import DeliveryState as State
from logagg.client.line_delivery import LineDelivery
from logagg.client.transport import Transport
from logagg.core.line import seq_of
from logagg.ipc import failpoints
from logagg.platform.packets import packet_socket, receive


class Consumer:
    """The consumer's end of one connection: what the hello brought, nothing more."""

    def __init__(self, connection):
        self._connection = PacketSocket(connection)
        packet, fds, _ = receive(connection, 1 << 16, 8)
        self.hello = orjson.loads(packet)
        self.pipe, *self._others = fds
        self.resent = []
        if len(fds) == 4:
            with open(fds[3], "rb", closefd=False) as file:
                self.resent = seqs(file.read())
        os.set_blocking(self.pipe, False)

    def send(self, message):
        self._connection.send(orjson.dumps(message))

    def received(self):
        self._connection.setblocking(False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while packet := self._connection.recv(1 << 16):
                found.append(orjson.loads(packet))
        return found

    def drain(self):
        """All that is in the pipe."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.pipe, 1 << 20):
                data += chunk
        return data

    def die(self):
        self._connection.close()
        for descriptor in [self.pipe, *self._others]:
            os.close(descriptor)


class Stage:
    """A process's transport, and consumers that come and go as a test wants it."""

    def __init__(self, folder):
        self._path = os.path.join(folder, "socket")
        self._listener = None
        self.transport = Transport(self._path, [], elect=False)
        self.states = [State.DETACHED]
        self._consumers = []

    @property
    def delivery(self):
        return self.transport.delivery

    def listen(self):
        self._listener = packet_socket()
        self._listener.bind(self._path)
        self._listener.listen()

    def refuse(self):
        """No consumer can be had from now on."""
        self._listener.close()
        os.unlink(self._path)

    def consumer(self):
        connection, _ = self._listener.accept()
        self._consumers.append(Consumer(connection))
        return self._consumers[-1]

    def log(self, size=10):
        self.transport.send("info", b'"message":"%b"' % (b"m" * size))

    def log_at_once(self, size=10):
        """Log, and do not wait until the next check or attempt is due."""
        self.delivery.next_check = 0
        self.delivery.retry_now()
        self.log(size)

    def fill(self, size=3000):
        """Log until the pipe is left."""
        while self.delivery.state is State.PIPE:
            self.log(size)

    def close_descriptors(self):
        """As a library does that makes a daemon of the application."""
        for each in self.delivery.descriptors():
            os.close(each)

    def interrupt(self):
        """An exception leaves a log call that has just begun."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Transport, "_ready", lambda _: signal.raise_signal(SIGINT))
            with pytest.raises(KeyboardInterrupt):
                self.log_at_once()
        self.states.append(self.delivery.state)

    def fork(self):
        """What the child does after a fork."""
        self.transport._pid = -1
        self.transport.forked()

    def close(self):
        self.transport.close(0)
        if self._listener is not None:
            self._listener.close()
        for each in self._consumers:
            with contextlib.suppress(OSError):
                each.die()


def seqs(data):
    """The seqs of whole lines."""
    return [seq_of(line) for line in data.split(b"\n")[:-1]]


def spooled_bytes():
    """The content of all segments, by their seqs."""
    return b"".join(Path(path).read_bytes() for path in spool_files())


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage whose changes of state are recorded and held against the table."""
    monkeypatch.setattr(failpoints, "ACTIVE", True)  # asserts each transition
    made = Stage(str(tmp_path))
    enter = LineDelivery._enter

    def recorded(self, state):
        enter(self, state)
        made.states.append(state)

    monkeypatch.setattr(LineDelivery, "_enter", recorded)
    with contextlib.closing(made):
        yield made


# ---- the table -------------------------------------------------------------------------

SCENARIOS = {}


def scenario(*path):
    """Note a function that leads a stage along a path of states."""

    def note(function):
        SCENARIOS[function.__name__] = (path, function)
        return function

    return note


def torn(stage):
    """Attach and leave a part of a line in the pipe."""
    stage.listen()
    stage.log()
    first = stage.consumer()
    stage.fill(20_001)
    return first


def crash_loop(stage, first):
    """The consumer dies three times and acknowledges nothing."""
    first.die()
    stage.log_at_once()
    stage.consumer().die()
    stage.log_at_once()
    stage.consumer().die()
    stage.log_at_once()


@scenario(State.PIPE, State.CLOSED)
def attached_and_closed(stage):
    stage.listen()
    stage.log()
    stage.transport.close(0)


@scenario(State.CLOSED)
def forked_before_the_first_record(stage):
    stage.fork()


@scenario(State.OFFLINE, State.OFFLINE, State.SPOOLING, State.PIPE)
def no_consumer_until_a_later_attempt(stage):
    stage.log()
    stage.log_at_once()
    stage.listen()
    stage.log_at_once()


@scenario(State.OFFLINE, State.PIPE)
def no_consumer_and_nothing_spooled(stage):
    stage.transport.destination.overflow = Overflow.DROP_NEW
    stage.log()
    stage.listen()
    stage.log_at_once()


@scenario(State.OFFLINE, State.OFFLINE, State.CLOSED)
def closed_without_a_consumer(stage):
    stage.log()
    stage.transport.close(0)


@scenario(State.PIPE, State.SPOOLING, State.PIPE)
def a_full_pipe_and_room_again(stage):
    stage.listen()
    stage.log()
    stage.fill()
    stage.consumer().drain()
    stage.log_at_once()


@scenario(State.PIPE, State.SPOOLING, State.CLOSED)
def closed_while_spooling(stage):
    stage.listen()
    stage.log()
    stage.fill()
    stage.transport.close(0)


@scenario(State.PIPE, State.TORN, State.SPOOLING, State.PIPE)
def a_part_of_a_line_and_room_again(stage):
    torn(stage).drain()
    stage.log_at_once()


@scenario(State.PIPE, State.TORN, State.CLOSED)
def closed_while_torn(stage):
    torn(stage)
    stage.transport.close(0)


@scenario(State.PIPE, State.DETACHED, State.PIPE)
def the_consumer_dies_and_another_listens(stage):
    stage.listen()
    stage.log()
    stage.consumer().die()
    stage.log_at_once()


@scenario(State.PIPE, State.SPOOLING, State.DETACHED, State.SPOOLING)
def the_consumer_dies_while_lines_are_spooled(stage):
    stage.listen()
    stage.log()
    stage.fill()
    stage.consumer().die()
    stage.log_at_once()


@scenario(State.PIPE, State.TORN, State.DETACHED, State.TORN)
def the_consumer_dies_before_the_part_is_ended(stage):
    torn(stage).die()
    stage.log_at_once()


@scenario(State.PIPE, State.TORN, State.DETACHED, State.OFFLINE, State.TORN)
def a_part_of_a_line_outlives_the_last_consumer(stage):
    first = torn(stage)
    stage.refuse()
    first.die()
    stage.log_at_once()
    stage.listen()
    stage.log_at_once()


DIES = (State.DETACHED, State.PIPE)


@scenario(State.PIPE, *DIES, *DIES, State.CRASH_LOOP, State.PIPE)
def the_consumer_dies_thrice_and_then_works(stage):
    stage.listen()
    stage.log()
    crash_loop(stage, stage.consumer())
    stage.delivery._spool.end()  # as when nothing was logged since
    stage.log_at_once()


@scenario(State.PIPE, *DIES, *DIES, State.CRASH_LOOP, State.OFFLINE)
def the_consumer_dies_thrice_and_none_starts(stage):
    stage.listen()
    stage.log()
    crash_loop(stage, stage.consumer())
    stage.refuse()
    stage.log_at_once()


@scenario(State.PIPE, *DIES, *DIES, State.CRASH_LOOP, State.CLOSED)
def forked_after_the_third_death(stage):
    stage.listen()
    stage.log()
    crash_loop(stage, stage.consumer())
    stage.fork()


@scenario(
    State.PIPE, State.SPOOLING, *(State.DETACHED, State.SPOOLING) * 2,
    State.CRASH_LOOP, State.SPOOLING,
)  # fmt: skip
def the_consumer_dies_thrice_while_lines_are_spooled(stage):
    stage.listen()
    stage.log()
    stage.fill()
    crash_loop(stage, stage.consumer())
    stage.log_at_once()


@scenario(
    State.PIPE, State.TORN, *(State.DETACHED, State.TORN) * 2,
    State.CRASH_LOOP, State.TORN,
)  # fmt: skip
def the_consumer_dies_thrice_and_the_part_is_not_ended(stage):
    crash_loop(stage, torn(stage))
    stage.log_at_once()


AGAIN = (State.BROKEN, State.DETACHED, State.PIPE)


@scenario(State.BROKEN, State.DETACHED, State.PIPE)
def an_exception_before_anything_is_attached(stage):
    stage.listen()
    stage.interrupt()
    stage.log_at_once()


@scenario(State.PIPE, *AGAIN)
def the_descriptors_are_closed(stage):
    stage.listen()
    stage.log()
    stage.close_descriptors()
    stage.log_at_once()


@scenario(State.PIPE, State.SPOOLING, *AGAIN)
def the_descriptors_are_closed_while_lines_are_spooled(stage):
    stage.listen()
    stage.log()
    stage.fill()
    stage.close_descriptors()
    stage.log_at_once()


@scenario(State.PIPE, State.TORN, *AGAIN)
def the_descriptors_are_closed_after_a_part_of_a_line(stage):
    torn(stage)
    stage.close_descriptors()
    stage.log_at_once()


@scenario(State.PIPE, State.DETACHED, State.OFFLINE, *AGAIN)
def the_descriptors_are_closed_with_no_consumer(stage):
    stage.listen()
    stage.log()
    first = stage.consumer()
    stage.refuse()
    first.die()
    stage.log_at_once()
    stage.close_descriptors()
    stage.listen()
    stage.log_at_once()


@scenario(State.PIPE, *DIES, *DIES, State.CRASH_LOOP, *AGAIN)
def the_descriptors_are_closed_after_many_deaths(stage):
    stage.listen()
    stage.log()
    crash_loop(stage, stage.consumer())
    stage.close_descriptors()
    stage.log_at_once()


@scenario(State.BROKEN, State.CLOSED)
def an_exception_before_a_fork(stage):
    stage.interrupt()
    stage.fork()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_takes_its_path_of_states(stage, name):
    """Nothing else happens on the way."""
    path, function = SCENARIOS[name]

    function(stage)

    assert stage.states == [State.DETACHED, *path]


def test_the_scenarios_make_every_transition_and_no_other():
    """The table has no line that is not needed, and none is missing."""
    made = set()
    for path, _ in SCENARIOS.values():
        made.update(itertools.pairwise((State.DETACHED, *path)))

    assert made == {
        (state, after) for state, possible in TRANSITIONS.items() for after in possible
    }


# ---- what the states promise -----------------------------------------------------------


def test_lines_go_into_the_pipe_in_state_pipe_only(stage):
    """The descriptor that a log call writes to is there in that state alone."""
    stage.listen()
    stage.log()
    assert stage.delivery.fd >= 0
    stage.fill()

    assert stage.delivery.fd == -1
    assert spool_files()


def test_nothing_is_missing_after_the_pipe_was_full(stage):
    """Pipe and segments together have each seq once, and the segment is announced."""
    stage.listen()
    stage.log()
    first = stage.consumer()
    stage.fill()
    piped = first.drain()
    stage.log_at_once()

    announced = [each for each in first.received() if "segment" in each]
    spooled = spooled_bytes()
    found = [*seqs(piped), *seqs(spooled), *seqs(first.drain())]
    assert found == list(range(1, stage.transport.seq + 1))
    assert announced[-1]["last"] == seqs(spooled)[-1]


def test_a_torn_line_is_reported_ended_and_spooled_whole(stage):
    """The part in the pipe gets its newline; the line itself is in a segment."""
    first = torn(stage)
    seq = stage.delivery._torn
    data = first.drain()
    stage.log_at_once()

    assert {"torn": seq} in first.received()
    assert not data.endswith(b"\n")
    assert first.drain().startswith(b"\n")
    spooled = spooled_bytes()
    assert seqs(spooled) == [seq]


def test_the_next_consumer_gets_all_that_is_not_acknowledged(stage):
    """By the hello's file; the acknowledged lines of whole generations are left out."""
    stage.listen()
    stage.log()
    first = stage.consumer()
    stage.delivery.resend.seal()
    first.send({"ack": 1})
    stage.log()
    stage.log()
    first.die()
    stage.log_at_once()

    second = stage.consumer()
    assert first.hello["again"] is False
    assert second.hello["again"] is True
    assert second.hello["acknowledged"] == 1
    assert second.resent == [2, 3]
    assert seqs(second.drain()) == [1, 2, 3, 4]


def test_without_a_consumer_all_that_is_unacknowledged_is_on_disk(stage):
    """What stands in the pipe, too: only this process holds that now."""
    stage.listen()
    stage.log()
    stage.log()
    first = stage.consumer()
    stage.refuse()
    first.die()
    stage.log_at_once()

    assert stage.delivery.state is State.OFFLINE
    assert not stage.delivery.resend
    spooled = spooled_bytes()
    assert seqs(spooled) == [1, 2, 3]


def test_a_consumer_that_came_during_a_wait_for_room_is_looked_at_before_a_stamp(stage):
    """Its clock may be another one; the next call must not go on with the old stamps."""
    stage.listen()
    stage.log()
    stage.consumer().die()
    for _ in range(3):  # the pipe stays full all the time
        assert stage.delivery._check_while_full()
        assert stage.delivery.next_check == 0
    stage.log()
    assert stage.delivery.next_check > 0


def test_an_acknowledgement_ends_the_count_of_failures(stage):
    """A consumer that works and dies now and then is no crash loop."""
    stage.listen()
    stage.log()
    for _ in range(5):
        consumer = stage.consumer()
        consumer.send({"ack": stage.transport.seq})
        stage.log_at_once()
        consumer.die()
        stage.log_at_once()

    assert State.CRASH_LOOP not in stage.states


def test_a_flush_without_hope_does_not_wait(stage):
    """No consumer, and everything is on disk: there is nothing to wait for."""
    stage.log()

    assert stage.transport.flush(30) is False
    assert stage.delivery.state is State.OFFLINE


def test_a_flush_of_a_delivery_that_another_thread_closed_ends(stage):
    """It does not attach again, under numbers that are no longer valid."""
    stage.listen()
    stage.log()
    delivery = stage.delivery
    stage.transport.close(0)

    assert delivery.flush(1) is False
    assert delivery.state is State.CLOSED


def test_a_line_of_a_delivery_that_a_fork_closed_goes_nowhere(stage):
    """A signal handler forks in the middle of a write: the parent sends that line."""
    stage.listen()
    stage.log()
    delivery = stage.delivery
    stage.fork()

    assert delivery.resume() is False
    delivery.spool(b"x\n", 2)

    assert spool_files() == []
    assert delivery.drops.count == 0


def test_a_refusal_of_the_consumer_is_written_to_stderr_once(stage, capfd):
    """It may come again with every attachment."""
    stage.listen()
    stage.log()
    first = stage.consumer()
    for _ in range(3):
        first.send({"error": "sink refused: x"})
        stage.log_at_once()

    assert capfd.readouterr().err == "logagg: sink refused: x\n"


def test_a_packet_that_is_no_message_does_not_disturb_a_log_call(stage):
    """The consumer is trusted to be one, not to be without faults."""
    stage.listen()
    stage.log()
    first = stage.consumer()
    first._connection.send(b"{garbage")
    stage.log_at_once()

    assert seqs(first.drain()) == [1, 2]


def test_an_acknowledgement_counts_for_lines_since_the_last_check(stage):
    """There may be no later one; a record that waits for it would wait for ever."""
    stage.listen()
    stage.log()
    stage.log()
    stage.consumer().send({"ack": 2})

    assert not stage.transport.flush(0)

    assert not stage.delivery.resend
