"""Blocks of lines in C are to everything what lists of their lines are."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checked_build, wire_line

from logagg._native import blocks
from logagg.abc import Batch
from logagg.core.line import LEVEL_START, PREFIX, level_of, prefix_tail, seq_of
from logagg.core.merge import LATE_MARK, Merger, Stamps
from logagg.core.sequence import Sequence

START = 1_795_568_400 * 1_000_000_000
BUILT = pytest.mark.skipif(blocks.native is None, reason="the C form is not built")
EXAMPLES = settings(max_examples=int(os.environ.get("BLOCKS_EXAMPLES") or 60))


class InPython:
    """The Python form, for a `with`."""

    def __enter__(self) -> None:
        self.forms = blocks.native, blocks._Lines
        blocks.native = blocks._Lines = None

    def __exit__(self, *_: object) -> None:
        blocks.native, blocks._Lines = self.forms


# ---- what may stand in a pipe --------------------------------------------------------

LEVELS = st.sampled_from(["info", "critical", "debug", "crit", "criticals", "notset"])
BODIES = st.one_of(
    st.sampled_from([
        b'"message":"m"', b'"message":"\\"seq\\":7,"', b'"a":{"b":["level","critical"]}',
        b'"x":"' + b"y" * 700 + b'"', b'"seq":5,"message":"m"', b"",
    ]),
    st.binary(max_size=30).map(lambda each: each.replace(b"\n", b"")),
)  # fmt: skip
HOSTILE = st.one_of(
    st.sampled_from([
        b"", b"{}", PREFIX, PREFIX + b"9" * 40, b"\0" * 80,
        wire_line(START)[:54], wire_line(START)[:55], wire_line(START)[:56],
        wire_line(START, 10**18), wire_line(START, 10**17), wire_line(START, worker="w" * 330),
        wire_line(START, worker="w" * 334), wire_line(START, worker="w" * 335),
        wire_line(START, worker="w" * 340), wire_line(START, worker='"seq":3,'),
        wire_line(START, level='i","level":"critical'),
        wire_line(START).replace(b'"seq":1,', b'"seq":1}'),
        wire_line(START).replace(b'"seq":1,', b'"seq":,'),
        wire_line(START).replace(b'"seq":1,', b'"seq":+1,'),
        wire_line(START).replace(b'"seq":1,', b'"seq":007,'),
        wire_line(START).replace(b'"seq":1,', b'"seq":1\xb2,'),
        wire_line(START).replace(b"Z", b"z"), wire_line(START)[1:],
    ]),
    st.binary(max_size=80).map(lambda each: each.replace(b"\n", b"")),
)  # fmt: skip


@st.composite
def stream(draw: Any, worker: int = 1, lines: int = 30) -> bytes:
    """What one worker writes: mostly plain lines, some torn, foreign, odd, repeated."""
    now, seq, found = START, 0, []
    kinds = st.sampled_from(
        ["plain"] * 12 + ["gap", "again", "back", "torn", "hostile"]
    )
    oddities = draw(st.booleans())
    for _ in range(draw(st.integers(0, lines))):
        kind = draw(kinds) if oddities else "plain"
        now += draw(st.integers(1, 40))
        seq += 1
        if kind == "hostile":
            found.append(draw(HOSTILE))
            continue
        seq += (kind == "gap") - 2 * (kind == "again" and seq > 2)
        stamp = now - 60 if kind == "back" else now
        line = wire_line(
            stamp, seq, level=draw(LEVELS), worker=str(worker), body=draw(BODIES)
        )
        found.append(
            line[: draw(st.integers(0, len(line)))] if kind == "torn" else line
        )
    return b"".join(line + b"\n" for line in found)


def cut(draw: Callable[..., Any], data: bytes) -> list[bytes]:
    """The same bytes in blocks, cut anywhere."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    ends = [*places, len(data)]
    return [data[a:b] for a, b in zip([0, *places], ends, strict=True) if a < b]


# ---- the parts ----------------------------------------------------------------------


@BUILT
@EXAMPLES
@given(st.data())
def test_a_block_is_split_as_in_python(data: Any) -> None:
    """Line for line and seq for seq, wherever blocks end."""
    chunks = cut(data.draw, data.draw(stream()))
    here, there = Sequence(), Sequence()
    for chunk in chunks:
        found = here.split(chunk)
        with InPython():
            expected = there.split(chunk)
        assert found == expected
        assert expected == found
        assert list(found) == expected
        assert here.tail == there.tail
        assert bool(found) == bool(expected)
        assert list(map(seq_of, found)) == list(map(seq_of, expected))


@BUILT
def test_plain_lines_stay_in_their_block() -> None:
    """Else all the tests here would say nothing; and one odd line makes a list of all."""
    lines = [wire_line(START + n, n) for n in range(1, 5)]
    block = b"\n".join(lines)
    found, tail = blocks.split(block, lines[0][:30])
    assert type(found) is list, "the first one begins twice"
    found, tail = blocks.split(block[30:], lines[0][:30])
    assert (type(found), tail) == (blocks.native.Lines, lines[-1])
    for odd in (lines[0], b"", lines[2][:60], wire_line(START + 9, 9)):
        assert type(blocks.split(b"\n".join([*lines, odd, b""]), b"")[0]) is list


def sorted_lines(draw: Callable[..., Any], worker: int, most: int = 12) -> list[bytes]:
    """Plain lines, some with the same stamps as other workers have."""
    stamps = draw(st.lists(st.integers(0, 30), max_size=most, unique=True))
    return [
        wire_line(START + stamp, n, worker=str(worker), body=draw(BODIES), level=draw(LEVELS))
        for n, stamp in enumerate(sorted(stamps), 1)
    ]  # fmt: skip


def block_of(lines: list[bytes]) -> Any:
    """The C form of plain lines of one worker."""
    return blocks.split(b"".join(line + b"\n" for line in lines), b"")[0]


@BUILT
@EXAMPLES
@given(st.data())
def test_blocks_are_merged_joined_and_cut_as_lists_are(data: Any) -> None:
    """Of any number of workers, with equal stamps; also mixed with lists."""
    runs = [
        sorted_lines(data.draw, worker)
        for worker in range(data.draw(st.integers(0, 6)))
    ]
    forms = [block_of(run) if run and data.draw(st.booleans()) else run for run in runs]
    expected = sorted(line for run in runs for line in run)

    found = blocks.merged(forms)

    assert found == expected
    assert type(found) is (blocks.native.Lines if expected else list)
    for closing in (b"", b',"received":"x"}\n'):
        assert blocks.joined(found, closing) == b"".join(
            line + closing for line in expected
        )
    assert blocks.size_of(found) == sum(map(len, expected))
    for level in (b"critical", b"crit", b"", b"info"):
        assert blocks.has_level(found, level, LEVEL_START) == (
            level in map(level_of, expected)
        )
        assert blocks.has_level(expected, level, LEVEL_START) == (
            level in map(level_of, expected)
        )
    limits = st.one_of(st.none(), st.integers(-15, 15))
    part = slice(
        data.draw(limits), data.draw(limits), data.draw(st.sampled_from([None, 2]))
    )
    assert found[part] == expected[part]
    if expected:
        index = data.draw(st.integers(-len(expected), len(expected) - 1))
        assert found[index] == expected[index]
        key = data.draw(st.sampled_from(expected))[:44]
        assert bisect_left(found, key) == bisect_left(expected, key)
        place = bisect_left(found, key)
        assert blocks.joined(found[place:], b"\n") == blocks.joined(
            expected[place:], b"\n"
        )
        assert (found != expected[1:]) is True


@BUILT
@EXAMPLES
@given(st.data())
def test_blocks_are_added_as_lists_are(data: Any) -> None:
    """In every combination of forms, in order or not."""
    one, two = (sorted_lines(data.draw, worker) for worker in (1, 2))
    forms = [[run, block_of(run)] if run else [run] for run in (one, two)]
    for first in forms[0]:
        for second in forms[1]:
            assert first + second == one + two
            assert blocks.merged([first + second]) == sorted(one + two)


@BUILT
def test_what_is_released_is_freed() -> None:
    """Lines that wait hold their own blocks, not those that were merged with them."""
    runs = [
        block_of([wire_line(START + 1000 * n + k, k) for k in range(1, 100)])
        for n in range(10)
    ]
    size = runs[0].block_bytes
    all_of_them = blocks.native.merge(runs)
    assert all_of_them.block_bytes == 10 * size
    assert all_of_them[-1:].block_bytes == size
    assert blocks.native.merge([all_of_them[-1:], runs[0][:1]]).block_bytes == 2 * size
    assert all_of_them[5:5].block_bytes == 0


@BUILT
def test_lines_refuse_what_they_cannot_be() -> None:
    """Wrong arguments raise; nothing can change or make one."""
    lines = block_of([wire_line(START)])
    for call in (
        lambda: blocks.native.split(b"x"), lambda: blocks.native.split("x", b""),
        lambda: blocks.native.merge([lines, []]), lambda: blocks.native.merge((lines,)),
        lambda: blocks.native.gather((b"x",)), lambda: lines.join("x"),
        lambda: lines.has_level("critical"), lambda: lines["x"], lambda: lines + 1,
        blocks.native.Lines, lambda: hash(lines),
        lambda: lines < lines,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()
    with pytest.raises(IndexError):
        lines[1]
    assert blocks.native.gather(["x"]) is None
    assert blocks.native.gather([wire_line(START + 1), wire_line(START)]) is None


# ---- the whole ----------------------------------------------------------------------


def play(script: list[Any], streams: list[list[bytes]], clocks: list[Any]) -> list[Any]:
    """Feed streams to a merge as the cycle does; return all that can be seen of it."""
    merger = Merger()
    sequences = [Sequence() for _ in streams]
    stamps = [Stamps(clock, 0) for clock in clocks]
    waiting = [list(chunks) for chunks in streams]
    seen: list[Any] = []
    for step, (worker, read, passed) in enumerate([*script, *[(0, 99, 0)] * 2]):
        now = START + 40 * step + passed
        order = [(worker + n) % len(streams) for n in range(len(streams))]
        for each in order:
            found: list[bytes] = []
            for _ in range(read):
                if not waiting[each]:
                    break
                lines = sequences[each].split(waiting[each].pop(0))
                while lines:
                    chosen, lines = sequences[each].accept(lines)
                    if lines:
                        sequences[each].give_up_before(seq_of(lines[0]))
                    found = found + chosen if found else chosen
            if found:
                if waiting[each]:
                    merger.hold_back(stamps[each].highest(found))
                usual, placed = stamps[each].place(found)
                merger.add(usual, drained=True, size_bytes=sum(map(len, usual)))
                if placed:
                    merger.add_placed(placed)
            sequence = sequences[each]
            counts = sequence.accepted, sequence.lost, sequence.damaged
            seen.append(
                (*counts, sequence.duplicates, sequence.expected, sequence.tail)
            )
        if step % 5 == 4:
            merger.add([wire_line(now, step, worker="consumer")], drained=True)
        seen.append(sorted(merger.reject_foreign(now + 500)))
        released = merger.release(
            now, flushing=step % 2 == 0, all_ended=step > len(script)
        )
        batch = Batch(released, b',"received":"x"}\n')
        seen += [batch.has_level("critical"), batch.size_bytes, batch.data, batch.lines]
        seen += [merger.late, merger.released_before, len(merger), merger.window_ns]
    return seen


@BUILT
@EXAMPLES
@given(st.data())
def test_the_stream_is_the_same_in_both_forms(data: Any) -> None:
    """Order, counts and bytes: several workers, torn and hostile lines, clock steps."""
    count = data.draw(st.integers(1, 4))
    streams = [cut(data.draw, data.draw(stream(worker))) for worker in range(count)]
    steps = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-30, 30))
    script = data.draw(st.lists(steps, max_size=8))
    shifts = st.one_of(
        st.just(()), st.tuples(st.tuples(st.integers(0, 9), st.just(5_000_000)))
    )
    clocks = [data.draw(shifts) for _ in range(count)]

    found = play(script, streams, clocks)
    with InPython():
        expected = play(script, streams, clocks)

    assert found == expected


@BUILT
def test_a_merge_survives_anything_that_is_written_into_a_pipe() -> None:
    """Lines with bytes changed, cut, doubled and mixed, by fixed seeds."""
    for seed in range(5 * EXAMPLES.max_examples):
        draw = random.Random(seed)
        streams = []
        for worker in range(draw.randint(1, 5)):
            text = bytearray()
            for n in range(draw.randint(0, 40)):
                stamp = START + 10 * n + draw.randint(0, 9)
                text += wire_line(stamp, n + 1, worker=str(worker)) + b"\n"
            for _ in range(draw.choice([0, 0, 1, 3])):
                if text:
                    at = draw.randrange(len(text))
                    change = draw.choice(["set", "cut", "double"])
                    if change == "set":
                        text[at] = draw.choice(b'\n"{},:09Zz\0\xff')
                    elif change == "cut":
                        del text[at : at + draw.randint(1, 90)]
                    else:
                        text[at:at] = text[at : at + draw.randint(1, 200)]
            size = draw.choice([7, 100, 1000, 10**6])
            streams.append(
                [bytes(text[n : n + size]) for n in range(0, len(text), size)]
            )
        script = [(draw.randint(0, 4), draw.randint(0, 30), 0) for _ in range(6)]
        clocks: list[Any] = [()] * len(streams)

        found = play(script, streams, clocks)
        with InPython():
            expected = play(script, streams, clocks)

        assert found == expected, f"seed {seed}"


def test_a_late_line_of_a_block_is_marked() -> None:
    """It leaves the block for that."""
    merger = Merger()
    first = block_of([wire_line(START + 10, 1)])
    merger.add(first, drained=True)
    assert merger.release(START + 20, flushing=True) == [wire_line(START + 10, 1)]
    lines = [wire_line(START + n, 1, worker="2") for n in (5, 15)]
    merger.add(block_of([lines[0]]) + block_of([lines[1]]), drained=True)
    found = merger.release(START + 30, flushing=True)
    assert found == [lines[0] + LATE_MARK, lines[1]]
    assert prefix_tail("info", "2") in found[1]


@BUILT
@pytest.mark.slow
def test_the_c_code_passes_the_sanitizers(tmp_path: Path) -> None:
    """The tests above, with every address and every operation checked."""
    found, made = checked_build("merge", tmp_path)
    start = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('logagg._native.merge', {made!r})\n"
        "module = u.module_from_spec(spec)\n"
        "sys.modules['logagg._native.merge'] = module\n"
        "import logagg._native\n"
        "spec.loader.exec_module(module)\n"
        "logagg._native.merge = module\n"
        "import pytest\n"
        "status = pytest.main(sys.argv[1:])\n"
        "from logagg._native import blocks\n"
        "assert blocks.native is module\n"
        "sys.exit(status)\n"
    )
    command = ["-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    process = subprocess.run(
        [sys.executable, "-c", start, *command],
        env=os.environ | {
            "LOGAGG_PURE": "0", "LD_PRELOAD": found, "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "BLOCKS_EXAMPLES": "25",
        },
        capture_output=True, text=True, timeout=230, check=False,
    )  # fmt: skip

    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    assert "runtime error" not in process.stderr
