"""Viewers: each gets what it asked for, in order, and delays nothing but itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from support import wire_line

from logagg.abc import Batch
from logagg.consumer import subscribers
from logagg.consumer.subscribers import Subscribers
from logagg.core.line import received_suffix, seq_of
from logagg.errors import ConfigError
from logagg.filters import matcher, regex
from logagg.ipc.protocol import ViewerControl, ViewerHello
from logagg.view.live import LiveSource

START = 1_795_568_400_000_000_000
SUFFIX = received_suffix(START)


def lines(*seqs: int, **options: Any) -> list[bytes]:
    """Wire lines."""
    return [wire_line(START + seq, seq, **options) for seq in seqs]


class Scene:
    """A consumer's viewers, and the pipe of one."""

    def __init__(self) -> None:
        self.all = Subscribers(lambda: ViewerControl(run="r", workers=2))
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    def add(self, **hello: Any) -> None:
        """Subscribe."""
        self.all.add(self.write_end, ViewerHello(**hello))

    def offer(self, released: list[bytes]) -> None:
        """Release a batch."""
        self.all.offer(released, Batch(released, SUFFIX))

    def got(self) -> list[dict[str, Any]]:
        """Everything in the pipe, each line parsed."""
        data = b""
        while self.all.push() or True:
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self.read_end, 1 << 20)
                if chunk:
                    data += chunk
                    continue
            return [orjson.loads(line) for line in data.splitlines()]
        return []


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A scene whose descriptors are closed at the end."""
    made = Scene()
    yield made
    for end in (made.read_end, made.write_end):
        with contextlib.suppress(OSError):
            os.close(end)


def seqs(records: list[dict[str, Any]]) -> list[Any]:
    """The seqs of records; control lines as they are."""
    return [each.get("seq", each) for each in records]


HEAD, LIVE = {"run": "r", "workers": 2}, {"live": True}


@pytest.mark.parametrize(
    ("hello", "past"),
    [
        ({}, [1, 2, 3, 4]),
        ({"lines": 2}, [3, 4]),
        ({"lines": 0}, []),
        ({"after": ("", "1", 2)}, [1, 2, 3, 4]),
        ({"level": "error"}, [4]),
    ],
)
def test_the_past_that_was_requested_comes_first(scene, hello, past) -> None:
    """Then the mark, then the stream."""
    scene.offer(lines(1, 2))
    scene.offer(lines(3) + lines(4, level="error"))
    scene.add(**hello)
    scene.offer(lines(5, level="error"))

    assert seqs(scene.got()) == [HEAD, *past, LIVE, 5]


def test_lines_after_a_cursor_are_those_after_the_very_line(scene) -> None:
    """A late line with an older stamp that came after it counts too."""
    scene.offer([*lines(5), *lines(2), *lines(6)])
    stamp = lines(5)[0][14:44].decode()
    scene.add(after=(stamp, "1", 5))

    assert seqs(scene.got()) == [HEAD, 2, 6, LIVE]


def test_a_full_buffer_drops_for_this_viewer_and_counts(scene, monkeypatch) -> None:
    """The count stands where the lines are missing."""
    monkeypatch.setattr(subscribers, "BUFFER_BYTES", 100)
    scene.add(lines=0)
    scene.offer(lines(1, 2))
    scene.offer(lines(3, 4, 5))
    found = seqs(scene.got())
    scene.offer(lines(6))

    assert [*found, *seqs(scene.got())] == [HEAD, LIVE, 1, 2, {"dropped": 3}, 6]


def test_a_loss_that_the_filter_hides_is_announced(scene) -> None:
    """A viewer of one worker learns that the log has a gap."""
    scene.add(lines=0, worker=["9"])
    body = b'"logger":"logagg","event":"lost","message":"2 records are missing"'
    scene.offer(lines(1, worker="consumer", level="warning", body=body))

    assert scene.got() == [HEAD, LIVE, {"loss": "2 records are missing"}]


def test_no_pattern_of_a_viewer_runs_here(scene, monkeypatch) -> None:
    """What level, time and bytes leave is sent: the viewer's own process decides."""
    monkeypatch.delattr(regex.Pattern, "search")
    body = b'"logger":"l","message":"%b"'
    scene.offer([*lines(1, body=body % b"zzb"), *lines(2, body=body % b"c")])
    terms = ["message~z.*b", "logger~l+"]
    scene.add(grep=["zz.*b"], match=terms, level="info", lines=1)
    scene.offer([*lines(3, body=body % b"zz"), *lines(4, body=body % b"c")])

    assert seqs(scene.got()) == [HEAD, 1, LIVE, 3]


class Connection:
    """A viewer's connection, as it looks after each poll."""

    def __init__(self, polls: list[tuple[list[bytes], int, bool]], wanted: Any) -> None:
        self.polls = polls
        self.wanted = wanted
        self.past_count = 0
        self.caught_up = self.restarted = False
        self.connected = True
        self.cursor = None
        self.notes: list[str] = []
        self.note = self.notes.append

    def poll(self) -> list[bytes]:
        """The next lines."""
        found, self.past_count, caught_up = self.polls.pop(0)
        self.caught_up |= caught_up
        return found


def test_the_viewer_filters_and_counts_the_past(scene) -> None:
    """The last so many that match, however they come; then all that match."""
    del scene
    good, bad = b'"logger":"l","message":"yes"}', b'"logger":"l","message":"no"}'
    loss = b'"logger":"logagg","event":"lost","message":"2 are missing"}'
    polls = [
        (lines(1, 2, 3, body=good), 3, False),
        ([*lines(4, body=bad), *lines(5, body=good), *lines(6, body=good)], 2, True),
        ([*lines(7, body=bad), *lines(8, body=good)], 0, False),
        (lines(9, worker="consumer", level="warning", body=loss), 0, False),
    ]
    for wanted, first in ((2, [3, 5, 6]), (0, [6]), (None, None)):
        live: Any = Connection(list(polls), wanted)
        source = LiveSource(live, matcher.compile(grep=["y.*s"]), follow=True)
        found = [[seq_of(line) for line in source.poll()] for _ in polls]
        ends = [[1, 2, 3], [5, 6]] if first is None else [[], first]
        assert found == [*ends, [8], []]
        assert live.notes == ["2 are missing"]


def test_a_wrong_filter_is_refused(scene) -> None:
    """With the reason; it is not among the viewers."""
    with pytest.raises(ConfigError, match="loud"):
        scene.add(level="loud")
    assert len(scene.all) == 0


def test_a_viewer_that_has_gone_is_forgotten(scene) -> None:
    """At the first write that fails."""
    scene.add()
    os.close(scene.read_end)
    scene.offer(lines(1))
    scene.all.push()

    assert len(scene.all) == 0


def test_recent_lines_are_bounded(scene, monkeypatch) -> None:
    """The oldest batches go; the newest stays, however large."""
    monkeypatch.setattr(subscribers, "RECENT_BYTES", 100)
    for seq in range(1, 6):
        scene.offer(lines(seq))
    scene.add()

    assert seqs(scene.got()) == [HEAD, 5, LIVE]
