"""What threads print in turns: each one's text comes back whole, however it is read."""

from __future__ import annotations

import itertools
import os
from collections import deque
from typing import Any

import hypothesis.strategies as st
import orjson
from hypothesis import given

from logagg.consumer.output_source import MOST_THREADS, OutputSource
from logagg.core.line import frame_thread
from logagg.dialects.output_lines import split_threads
from logagg.ipc.protocol import StreamHello

KEYS = (b"", b"1", b"a0", b"f" * 40)
TEXTS = st.binary(max_size=12) | st.sampled_from([b"\0", b"\0[", b"\0[1;0009]", b"["])


def framed(key: bytes, text: bytes) -> bytes:
    """What is written; the empty key stands for what is in no frame."""
    return b"".join(frame_thread(text, key)) if key else text


@given(st.lists(st.tuples(st.sampled_from(KEYS), TEXTS)), st.lists(st.integers(0, 400)))
def test_each_text_comes_back(
    written: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """Wherever reading cuts; only text outside of frames may not look like a frame."""
    written = [
        (key, text if key else text.replace(b"\0", b"")) for key, text in written
    ]
    data = b"".join(framed(key, text) for key, text in written)
    found: dict[bytes, bytes] = {}
    rest = b""
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(marks):
        pieces, rest = split_threads(rest + data[start:end])
        for key, text in pieces:
            found[key] = found.get(key, b"") + text
    assert rest == b""
    wanted: dict[bytes, bytes] = {}
    for key, text in written:
        wanted[key] = wanted.get(key, b"") + text
    assert found == {key: text for key, text in wanted.items() if text or key in found}


@given(st.lists(TEXTS))
def test_bytes_that_look_like_frames_are_kept(texts: list[bytes]) -> None:
    """Any bytes come out, but for the heads of what is a frame."""
    data = b"".join(texts)
    pieces, rest = split_threads(data)
    whole = b"".join(framed(key, text) for key, text in pieces) + rest
    assert whole == data


def test_a_frame_is_at_most_what_a_pipe_takes_in_one_piece() -> None:
    """A longer text is several."""
    frames = frame_thread(b"x" * 10_000, KEYS[-1])
    assert len(frames) == 3
    assert max(map(len, frames)) <= 4096


class Clock:
    """A clock that stands still."""

    offset_ns = 0

    def now_ns(self) -> int:
        """The time."""
        return 1_795_568_400 * 1_000_000_000


def test_threads_that_end_within_a_line_take_a_bounded_memory() -> None:
    """The line of the oldest is given out, marked, when there are too many."""
    read, write = os.pipe()
    source = OutputSource(
        read, StreamHello(slot=1, pid=1, stream="stdout"), Clock(), deque(maxlen=5)
    )
    found: list[bytes] = []
    count = MOST_THREADS + 50
    for n in range(count):
        os.write(write, framed(b"%x" % (n + 1), b"line %d" % n))
        found += source.read(1 << 20)[0]
    records: list[dict[str, Any]] = [orjson.loads(line + b"}") for line in found]
    assert [each["message"] for each in records] == [f"line {n}" for n in range(50)]
    assert {each["partial"] for each in records} == {True}
    os.close(write)
    rest, _ = source.read(1 << 20)
    assert len(found) + len(rest) == count
    source.close()
