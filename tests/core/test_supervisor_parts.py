"""The supervisor's pure parts: back-off, hashing, frames, cores, crashes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from logagg.errors import ConfigError, WireError, WouldBlock
from logagg.supervisor.address import Address
from logagg.supervisor.backoff import Backoff
from logagg.supervisor.channel import MAX_MESSAGE_BYTES, Decoder, encode
from logagg.supervisor.cores import usable_cores
from logagg.supervisor.crashes import Crashes
from logagg.supervisor.messages import WAITING_BYTES, Outbox
from logagg.supervisor.sticky import Sticky, choose_slot


def test_delays_double_up_to_the_cap_and_start_anew() -> None:
    """0.5 s, doubled, at most 30 s, ±10 %; a good run of 30 s resets."""
    backoff = Backoff(random.Random(1))
    delays = [backoff.failed(n * 100.0, uptime=1, ready=True) for n in range(9)]
    for delay, wanted in zip(delays, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert wanted * 0.9 <= delay <= wanted * 1.1
    assert backoff.failed(1000.0, uptime=31, ready=True) < 0.6


def test_only_failures_before_ready_exhaust() -> None:
    """Five within 60 s do; five in longer time, or after ready, never."""
    early, slow, late = Backoff(), Backoff(), Backoff()
    for n in range(5):
        assert not early.exhausted
        early.failed(n * 10.0, uptime=1, ready=False)
        slow.failed(n * 16.0, uptime=1, ready=False)
        late.failed(n * 1.0, uptime=1, ready=True)
    assert early.exhausted
    assert not slow.exhausted
    assert not late.exhausted


@given(st.binary(max_size=30), st.sets(st.integers(1, 50), min_size=2))
def test_a_lost_slot_moves_only_its_own_keys(key: bytes, slots: set[int]) -> None:
    """Rendezvous hashing: without another slot the key stays where it is."""
    home = choose_slot(key, sorted(slots))
    for other in slots - {home}:
        assert choose_slot(key, sorted(slots - {other})) == home


def test_keys_spread_over_slots() -> None:
    """10,000 keys over 4 slots: each has its quarter, give or take."""
    homes = [choose_slot(b"%d" % n, [1, 2, 3, 4]) for n in range(10_000)]
    assert all(2300 < homes.count(slot) < 2700 for slot in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("sticky", "key"),
    [
        ("cookie:sid", b"a b"),
        ("header:X-Id", b"7"),
        ("query:room", b"r/1"),
        ("cookie:none", None),
        ("query:none", None),
    ],
)
def test_keys_in_a_head(sticky: str, key: bytes | None) -> None:
    """Cookies among others, headers in any case, escaped queries."""
    head = (
        b"GET /x?a=1&room=r%2F1 HTTP/1.1\r\nHost: h\r\nCookie: xsid=1; sid=a b; y=2\r\n"
        b"x-iD:  7 \r\n\r\nsid=body"
    )
    assert Sticky.parse(sticky).key(head) == key


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.data())
def test_frames_survive_any_cutting(
    bodies: list[dict[str, object]], data: st.DataObject
) -> None:
    """However the stream is cut, the same frames come out, in order."""
    try:
        stream = b"".join(encode({"k": "x", "b": body}) for body in bodies)
    except WireError:
        return  # an integer beyond 64 bits, or a lone surrogate
    decoder, found = Decoder(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:size], [])
        stream = stream[size:]
    assert [frame["b"] for frame, _ in found] == bodies


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2[]", b'\0\0\0\x13{"k":"x","fds":20}'],
)
def test_nonsense_is_refused(data: bytes) -> None:
    """Lengths that cannot be, what is no JSON object, descriptors that did not come."""
    if data[3] == 0x13:
        data = len(data[4:]).to_bytes(4, "big") + data[4:]
    with pytest.raises(WireError):
        Decoder().feed(data, [])


def test_a_message_that_is_too_long_names_the_limit() -> None:
    """The error says how long it is, the limit, and what to send instead."""
    with pytest.raises(WireError, match=f"{MAX_MESSAGE_BYTES}; send a path"):
        encode({"k": "m", "b": "x" * MAX_MESSAGE_BYTES})


def test_the_outbox_keeps_order_window_and_bound() -> None:
    """Beyond the window messages wait; receipts come by number; a full box raises."""
    sent: list[int] = []
    box = Outbox(lambda data, _fds: sent.append(orjson.loads(data[4:])["id"]))
    receipts = [box.post({"k": "m", "b": n}, []) for n in range(2000)]
    assert sent == list(range(1, 1025))
    box.acknowledged([2, 1])
    assert sent[-2:] == [1025, 1026]
    assert [r.done() for r in receipts[:3]] == [True, True, False]
    for _ in range(WAITING_BYTES // 4_000_000):
        box.post({"k": "m", "b": "x" * 4_000_000}, [])
    with pytest.raises(WouldBlock, match="await the receipts"):
        box.post({"k": "m", "b": "x" * 4_000_000}, [])
    box.fail(ValueError("gone"))
    assert isinstance(receipts[5].exception(0), ValueError)
    assert isinstance(box.post({"k": "m"}, []).exception(0), ValueError)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)],
)
def test_cores_obey_the_cgroup_quota(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    """A quota of 1.5 cores means 2, of half a core 1; none means the affinity."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup/a"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(quota)
    usable = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == min(usable, cores or usable)


def test_equal_crashes_are_counted_and_forgotten() -> None:
    """The same trace is counted; after a minute of silence it is new again."""
    crashes = Crashes()
    assert [crashes.note("a", n) for n in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert crashes.note("b", 2.0) == 1
    assert crashes.note("a", 70.0) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":8000", "0.0.0.0:8000"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("unix:/tmp/x", "unix:/tmp/x"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    """The forms of --bind."""
    assert str(Address.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "x", "a:b", ":70000", "unix:", "no.such.host.invalid:1"]
)
def test_bad_addresses_are_named(text: str) -> None:
    """The error repeats what was written."""
    with pytest.raises(ConfigError, match="--bind"):
        Address.parse(text)
