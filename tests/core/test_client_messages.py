"""Control messages as the client writes and reads them."""

import orjson
import pytest

from logagg.ipc import client_messages
from logagg.ipc.client_messages import Hello, Segment, decode


def hello():
    """A hello with every member set."""
    found = Hello()
    found.pid, found.process, found.worker = 7, "MainProcess", "3"
    found.parent = 5
    found.quiet, found.supervised, found.again, found.stream = True, True, True, "7-a"
    found.sinks = ["file:/a.log"]
    found.acknowledged, found.torn = 11, [12]
    found.drops, found.drops_acknowledged, found.drops_announced = 3, 2, 1
    found.segments = [Segment("/a.spool", 1, 5), Segment("/b.spool", 6, None)]
    found.spool = "0123456789abcdef0123"
    found.elects = True
    found.clocks = [(12, 1_790_000_000_000_000_000), (13, -5)]
    return found


def test_a_hello_contains_every_member_once():
    """The keys are the ones that a consumer of protocol 1 reads."""
    assert orjson.loads(hello().encode()) == {
        "hello": 1,
        "kind": "records",
        "pid": 7,
        "process": "MainProcess",
        "parent": 5,
        "worker": "3",
        "quiet": True,
        "supervised": True,
        "stream": "7-a",
        "sinks": ["file:/a.log"],
        "acknowledged": 11,
        "dropped": 3,
        "settled": 2,
        "told": 1,
        "torn": [12],
        "again": True,
        "segments": [
            {"segment": "/a.spool", "first": 1, "last": 5},
            {"segment": "/b.spool", "first": 6},
        ],
        "spool": "0123456789abcdef0123",
        "elects": True,
        "clocks": [[12, 1_790_000_000_000_000_000], [13, -5]],
    }


@pytest.mark.parametrize(
    ("packet", "content"),
    [
        (client_messages.hold(["a:"]), {"hello": 1, "kind": "hold", "sinks": ["a:"]}),
        (client_messages.leave(), {"leave": 1}),
        (client_messages.add_sinks(["a:"]), {"sinks": ["a:"]}),
        (client_messages.flush(7), {"flush": 7}),
        (client_messages.dropped(7), {"dropped": 7}),
        (client_messages.torn(7), {"torn": 7}),
        (client_messages.bye(9, 2, at_exit=True), {"bye": 9, "dropped": 2}),
        (
            client_messages.bye(9, 2, at_exit=False),
            {"bye": 9, "dropped": 2, "stays": True},
        ),
        (Segment("/s", 4, 4).encode(), {"segment": "/s", "first": 4, "last": 4}),
    ],
)
def test_each_request_is_one_object(packet, content):
    """Packets are JSON, whichever way they are put together."""
    assert orjson.loads(packet) == content


def test_a_message_of_the_consumer_is_decoded_into_its_parts():
    """One packet may contain several; what is missing is None."""
    found = decode(b'{"ack":5,"flushed":5}')
    assert (found.ack, found.flushed, found.switch) == (5, 5, None)
    assert (found.error, found.welcome) == (None, False)

    assert decode(b'{"switch":[3,-4]}').switch == (3, -4)
    assert decode(b'{"told":2}').drops_announced == 2
    assert decode(b'{"error":"refused"}').error == "refused"
    assert decode(b'{"welcome":1}').welcome


@pytest.mark.parametrize(
    "packet",
    [b"", b"{", b"[1]", b"null", b'{"ack":"5"}', b'{"ack":true}', b'{"switch":[1]}',
     b'{"switch":["a",2]}', b'{"unknown":1}'],
)  # fmt: skip
def test_a_packet_that_cannot_be_decoded_is_an_empty_message(packet):
    """A log call never fails because of what a consumer sends."""
    found = decode(packet)

    assert (found.ack, found.flushed, found.switch, found.error) == (None,) * 4


def test_a_clock_that_is_kept_holds_for_what_follows():
    """The consumer's could not be read: lines after the hello have the offset of before."""
    found = hello()
    found.keep_clock()
    assert list(found.clocks) == [
        (12, 1_790_000_000_000_000_000),
        (client_messages.MAX_SEQ, -5),
    ]
    found.clocks = []
    found.keep_clock()
    assert not found.clocks
