"""Control messages: structs, and the client's own reading and writing of them."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from logagg.errors import WireError
from logagg.ipc import client_messages, protocol
from logagg.ipc.protocol import (
    ConsumerPacket,
    HolderPacket,
    HoldHello,
    RecordsHello,
    SegmentNotice,
    StatusHello,
    WorkerPacket,
    decode,
    decode_hello,
    encode,
)
from logagg.ipc.runs.run_messages import StatusRequest, decode_run_request

numbers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paths = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
names = st.from_regex(r"[a-zA-Z0-9._ -]{1,64}", fullmatch=True)
segments = st.lists(
    st.tuples(paths, numbers, st.none() | numbers), max_size=3
)  # path, first, last
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)


def test_the_client_speaks_the_same_version() -> None:
    """Else it would be refused by its own release."""
    assert client_messages.PROTOCOL == protocol.VERSION


# ---- what the client writes ---------------------------------------------------------


@pytest.mark.slow
@given(
    counts=st.tuples(*[numbers] * 5),
    name=names,
    strings=st.tuples(texts, texts),
    flags=st.tuples(st.booleans(), st.booleans()),
    sinks=st.lists(texts, max_size=3),
    torn=st.lists(numbers, max_size=3),
    notices=segments,
)
def test_a_hello_of_the_client_arrives_whole(
    counts, name, strings, flags, sinks, torn, notices
) -> None:
    """Every field of `client_messages.Hello` is the struct's."""
    hello = client_messages.Hello()
    hello.pid, hello.acknowledged, hello.drops = counts[:3]
    hello.drops_acknowledged, hello.drops_announced = counts[3:]
    hello.worker, (hello.process, hello.stream) = name, strings
    hello.supervised, hello.again = flags
    hello.parent = counts[1]
    hello.quiet = flags[0] != flags[1]
    hello.sinks, hello.torn = sinks, torn
    hello.segments = [client_messages.Segment(*each) for each in notices]
    hello.spool, hello.elects = "run-7", flags[0]
    hello.clocks = [(count, -count // 2) for count in counts[:2]]

    assert decode_hello(hello.encode()) == RecordsHello(
        pid=counts[0],
        worker=name,
        stream=strings[1],
        process=strings[0],
        parent=counts[1],
        quiet=flags[0] != flags[1],
        supervised=flags[0],
        sinks=sinks,
        acknowledged=counts[1],
        dropped=counts[2],
        drops_acknowledged=counts[3],
        drops_announced=counts[4],
        torn=torn,
        resumes=flags[1],
        segments=[
            SegmentNotice(path, first, UNSET if last is None else last)
            for path, first, last in notices
        ],
        spool="run-7",
        elects=flags[0],
        clocks=[(count, -count // 2) for count in counts[:2]],
    )


@given(numbers, numbers, st.lists(texts, max_size=3), paths)
def test_each_message_of_the_client_arrives_whole(number, other, sinks, path) -> None:
    """Everything that a worker or a holder sends after its hello."""
    sent = {
        client_messages.add_sinks(sinks): WorkerPacket(sinks=sinks),
        client_messages.flush(number): WorkerPacket(flush=number),
        client_messages.dropped(number): WorkerPacket(dropped=number),
        client_messages.torn(number): WorkerPacket(torn=number),
        client_messages.bye(number, other, at_exit=True): WorkerPacket(
            bye=number, dropped=other
        ),
        client_messages.bye(number, other, at_exit=False): WorkerPacket(
            bye=number, dropped=other, stays=True
        ),
        client_messages.Segment(path, number, None).encode(): WorkerPacket(
            segment=path, first=number
        ),
        client_messages.Segment(path, number, other).encode(): WorkerPacket(
            segment=path, first=number, last=other
        ),
    }
    for packet, message in sent.items():
        assert decode(WorkerPacket, packet) == message
    assert decode_hello(client_messages.hold(sinks)) == HoldHello(sinks=sinks)
    assert decode(HolderPacket, client_messages.leave()) == HolderPacket(leave=1)


# ---- what the client reads ----------------------------------------------------------

optional = st.just(UNSET) | numbers


@given(
    ack=optional,
    flushed=optional,
    announced=optional,
    switch=st.just(UNSET) | st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2),
    error=st.just(UNSET) | texts,
    welcome=st.sampled_from([UNSET, 1]),
)
def test_each_message_of_the_consumer_is_read_whole(
    ack, flushed, announced, switch, error, welcome
) -> None:
    """Every field of `ConsumerPacket` that concerns a client is the client's."""
    packet = encode(
        ConsumerPacket(
            ack=ack,
            flushed=flushed,
            drops_announced=announced,
            switch=switch,
            error=error,
            welcome=welcome,
        )
    )

    found = client_messages.decode(packet)

    def given_or_none(value):
        return None if value is UNSET else value

    assert found.ack == given_or_none(ack)
    assert found.flushed == given_or_none(flushed)
    assert found.drops_announced == given_or_none(announced)
    assert found.switch == given_or_none(switch)
    assert found.error == given_or_none(error)
    assert found.welcome == (welcome is not UNSET)


# ---- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    [
        b'{"hello":2,"kind":"records"}',
        b'{"hello":2,"kind":"a later one","x":1}',
        encode(StatusHello(hello=0)),
    ],
)
def test_another_version_is_named(packet) -> None:
    """Whatever else has changed in it."""
    with pytest.raises(WireError, match=r"protocol version \d, but this process has"):
        decode_hello(packet)
    with pytest.raises(WireError, match="protocol version"):
        decode_run_request(packet.replace(b"kind", b"do"))


def test_a_hello_without_a_version_is_of_this_one() -> None:
    """A key that is absent has its default."""
    assert decode_hello(b'{"kind":"status"}') == StatusHello()
    assert decode_run_request(b'{"do":"status"}') == StatusRequest()


@pytest.mark.parametrize("worker", ["", "a\nb", 'x","level":"critical', "x" * 65, "\\"])
def test_a_workers_name_is_plain_text(worker) -> None:
    """It stands in lines without being quoted."""
    hello = {"kind": "records", "pid": 1, "worker": worker, "stream": "1-a"}
    with pytest.raises(WireError):
        decode_hello(orjson.dumps(hello))


@pytest.mark.parametrize(
    "packet", [b'{"segment":"a"}', b'{"segment":"a\\u0000","first":1}', b'{"torn":-1}']
)
def test_a_message_is_whole_or_refused(packet) -> None:
    """No handler sees half of one."""
    with pytest.raises(WireError):
        decode(WorkerPacket, packet)


@given(st.binary(max_size=100) | json_values.map(orjson.dumps))
@example(b"[" * 100_000)
@example(b'{"kind":"status","x":' + b"[" * 100_000)
@example(b'{"record":' + b'{"a":' * 100_000)
def test_no_bytes_raise_anything_else(data) -> None:
    """A peer may send anything: it is a message or a WireError."""
    for read in (
        decode_hello,
        decode_run_request,
        lambda data: decode(WorkerPacket, data),
        lambda data: decode(HolderPacket, data),
        lambda data: decode(ConsumerPacket, data),
    ):
        try:
            read(data)
        except WireError:
            pass
    client_messages.decode(data)
