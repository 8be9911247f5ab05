"""The parts of the page's server: filter, ring, feed."""

from __future__ import annotations

import contextlib
import queue
from pathlib import Path
from typing import Any

import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from page_world import line, worker

from logagg.errors import ConfigError
from logagg.ipc import consumer_client
from logagg.view import discover
from logagg.view.page.log_feed import LogFeed
from logagg.view.page.page_events import record_text
from logagg.view.page.page_filter import PageFilter, counts_of
from logagg.view.page.record_ring import RecordRing

LINES = [
    line(1, "info", "1", 1, path="/a").rstrip(),
    line(2, "error", "2", 2, message="a time out", status=500).rstrip(),
    line(3, "warning", "1", 3, message="Timeout", status=404).rstrip(),
    b'{"level":"debug","message":"foreign"}',
]


def chosen(**query: str) -> list[int]:
    """The places of the lines that a filter lets through."""
    found = PageFilter.of_query(query)
    kept = found.chosen(found.base(LINES))
    return [LINES.index(each) for each in kept]


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ({}, [0, 1, 2, 3]),
        ({"q": "status>=404"}, [1, 2]),
        ({"q": "status>=404 -status=500"}, [2]),
        ({"q": "timeout"}, [2]),
        ({"q": "'time out'"}, [1]),
        ({"q": "time out"}, [1, 2]),
        ({"q": "-time"}, [0, 3]),
        ({"q": "-g 'time.?out'"}, [1, 2]),
        ({"q": "--grep='time.?out' -v Timeout"}, [1]),
        ({"q": "-g Timeout"}, [2]),
        ({"q": "-g Timeout -i"}, [2]),
        ({"q": "-l warning"}, [1, 2]),
        ({"q": "-w 1 --logger app"}, [0, 2]),
        ({"q": "status>=404", "not": "1"}, [0, 3]),
        ({"not": "1"}, [0, 1, 2, 3]),
        ({"levels": "error,debug"}, [1, 3]),
        ({"workers": "1"}, [0, 2]),
        ({"levels": "warning", "workers": "2"}, []),
        ({"q": "time", "not": "1", "levels": "info"}, [0]),
        ({"since": "2026-11-25T10:00:02Z", "until": "2026-11-25T10:00:02Z"}, [1]),
        ({"since": "2026-11-25T10:00:02Z", "q": "time", "not": "1"}, []),
    ],
)
def test_the_filter(query: dict[str, str], places: list[int]) -> None:
    """Box, NOT, chips and range; NOT turns only the box around."""
    assert chosen(**query) == places


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("level==x", "did you mean 'level=x'"),
        ("-g", "-g: a value must follow"),
        ("-g '('", "'('"),
        ("'open", "is not closed"),
        ("--nope", "no such option here"),
        ("-l loud", "unknown level 'loud'"),
        ("x" * 5_000, "longer than"),
        ("-S later", "time 'later'"),
    ],
)
def test_what_is_wrong_in_the_box_is_named(text: str, words: str) -> None:
    """With the spelling that works, where there is one."""
    with pytest.raises(ConfigError, match="(?s)" + words.replace("(", r"\(")):
        PageFilter.of_query({"q": text})


def test_a_range_that_ends_before_it_begins() -> None:
    """Is an error, not an empty answer."""
    with pytest.raises(ConfigError, match="nothing can match"):
        PageFilter.of_query({"since": "2026-11-26", "until": "2026-11-25"})


@given(st.text(max_size=40))
def test_no_text_in_the_box_breaks_the_server(text: str) -> None:
    """It is a filter or an error of one line."""
    with contextlib.suppress(ConfigError):
        PageFilter.of_query({"q": text, "not": "1"}).base(LINES)


@given(st.lists(st.integers(1, 700), max_size=30), st.integers(1, 5_000))
def test_the_ring_has_the_last_lines_by_their_numbers(
    sizes: list[int], start: int
) -> None:
    """However they came; `since` and `before` give each once, in order."""
    ring = RecordRing(100_000)
    number = 0
    for size in sizes:
        ring.add([b"%d" % (number + n) for n in range(size)])
        number += size
        if size % 7 == 0:
            ring.add_note("note")
    got = [line for batch in ring.since(start) for line in batch.lines]
    held = [line for batch in ring.since(0) for line in batch.lines]
    assert held == [b"%d" % n for n in range(number - len(held), number)]
    numbered = {
        n: line for batch in ring.since(0) for n, line in batch.numbered(batch.lines)
    }
    assert got == [line for n, line in sorted(numbered.items()) if n >= start]
    before = [batch for batch in ring.before(start) if batch.lines]
    flat = [line for batch in reversed(before) for line in batch.lines]
    assert flat == [line for n, line in sorted(numbered.items()) if n < start]
    for n, each in numbered.items():
        assert ring.line(n) == each
    counted: dict[Any, int] = {}
    for batch in ring.since(0):
        for cell, count in batch.counts.items():
            counted[cell] = counted.get(cell, 0) + count
    assert counted == counts_of(held)
    assert ring.records == number


def test_the_ring_is_bounded_by_bytes() -> None:
    """The oldest lines go first."""
    ring = RecordRing(1_000_000)
    for part in range(100):
        ring.add([b"x" * 1_000 for _ in range(100)])
        assert ring.next == (part + 1) * 100 + 1
    held = sum(len(batch.lines) for batch in ring.since(0))
    assert 500 < held < 1_100


@given(st.binary(max_size=200))
def test_the_text_for_a_page_is_one_line(data: bytes) -> None:
    """Whatever a line is made of, short or long."""
    for line_ in (data.replace(b"\n", b""), data.replace(b"\n", b"") + b"x" * 40_000):
        text = record_text(line_)
        assert b"\n" not in text
        assert b"\r" not in text
        assert len(text) < 40_000


@pytest.mark.slow
def test_a_feed_that_rests_has_no_viewer_and_goes_on_later(
    isolated: Path, tmp_path: Path
) -> None:
    """What came in between is not read twice, and a note stands in its place."""
    path = tmp_path / "app.log"
    came: queue.Queue[tuple[str, Any]] = queue.Queue()
    with worker(path) as app:
        app.log("first")
        find = discover.finder(None)
        feed = LogFeed(
            [], find, lambda function, *values: function(*values),
            lambda lines, _: came.put(("lines", lines)),
            lambda text: came.put(("note", text)),
        )  # fmt: skip
        feed.start()
        try:
            seen: list[tuple[str, Any]] = []

            def has(word: bytes) -> bool:
                while not came.empty():
                    seen.append(came.get())
                return any(
                    word in each
                    for kind, found in seen
                    for each in (found if kind == "lines" else [found.encode()])
                )

            support.wait_until(lambda: has(b'"first"'))
            feed.rest()
            socket = find() or ""

            def is_left() -> bool:
                app.log("second")  # the consumer notices at its next write
                return consumer_client.status(socket)["viewers"] == 0

            support.wait_until(is_left)
            feed.wake()
            support.wait_until(lambda: has(b"not read for"))
            app.log("third")
            support.wait_until(lambda: has(b'"third"'))
        finally:
            feed.stop()
    lines = [each for kind, found in seen if kind == "lines" for each in found]
    assert len(lines) == len(set(lines))
    assert sum(b'"first"' in each for each in lines) == 1
    assert any(b'"second"' in each for each in lines)  # the consumer still had them
