"""The time mark of printed lines, as workers write it and the consumer reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from logagg.core.line import PRINTED_MARK_BYTES, mark_printed, split_printed
from logagg.dialects.output_lines import OutputLines


@given(st.lists(st.binary(max_size=30)), st.integers(0, 10**20 - 1))
def test_a_mark_is_taken_off_again(lines: list[bytes], now_ns: int) -> None:
    """Whatever is printed, each whole line comes back, with the time."""
    text = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    marked = mark_printed(text, now_ns)
    assert len(marked) == len(text) + len(lines) * PRINTED_MARK_BYTES
    found = [split_printed(line) for line in marked.split(b"\n")[:-1]]
    assert [line for line, _, _ in found] == text.split(b"\n")[:-1]
    assert all(printed_ns == now_ns for _, printed_ns, _ in found)
    assert [goes_on for _, _, goes_on in found] == (
        [True] * (len(lines) - 1) + [False] * bool(lines)
    )


def test_a_line_that_is_not_ended_goes_on_after_its_breaks() -> None:
    """`print` writes the last newline by itself."""
    marked = mark_printed(b"one\ntwo", 7)

    assert split_printed(marked.split(b"\n")[0]) == (b"one", 7, True)
    assert marked.endswith(b"\ntwo")


def test_lines_that_others_may_write_between_stand_alone() -> None:
    """A pipe takes 4,096 bytes in one piece, marks included, and not more."""
    fits = (b"x" * 26 + b"\n") * 83
    assert b"\0+" in mark_printed(fits, 7)
    assert len(mark_printed(fits, 7)) <= 4096
    assert b"\0+" not in mark_printed(fits + b"x" * 30 + b"\n", 7)


@given(st.binary(max_size=60).filter(lambda line: b"\0" not in line))
def test_a_line_without_a_mark_stays_as_it_is(line: bytes) -> None:
    """Bytes that no Python code printed have no time."""
    assert split_printed(line) == (line, None, False)


def test_what_a_worker_prints_has_the_time_of_printing() -> None:
    """Lines of `print` do, those of a subprocess do not."""
    code = (
        "import os\nfrom logagg.integrations.printing import timestamped_stdio\n"
        "timestamped_stdio.install_worker()\nprint('one'), os.write(1, b'two\\n')"
    )
    begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=os.environ
    )
    ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    found = map(split_printed, done.stdout.splitlines())
    (one, printed_ns, _), (two, none, _) = found
    assert (one, two, none) == (b"one", b"two", None)
    assert printed_ns is not None
    assert begun < printed_ns < ended


def texts_of(*calls: str, printed: bool = True) -> list[str]:
    """The texts of the records that the calls make, all read at once."""
    found: list[str] = []

    def record(text: str, _: int, **__: bool) -> bytes:
        found.append(text)
        return b""

    lines = OutputLines(lambda: 0, record)
    written = [call.encode() for call in calls]
    if printed:
        written = [mark_printed(text, n + 1) for n, text in enumerate(written)]
    lines.feed(b"".join(written), 100)
    lines.end(200)
    return found


TRACE = """Traceback (most recent call last):
  File "x.py", line 1, in f
    f()
Error: no
"""
CHAIN = (
    TRACE
    + "\nDuring handling of the above exception, another exception occurred:\n\n"
    + TRACE
)


@pytest.mark.parametrize("trace", [TRACE, CHAIN])
@pytest.mark.parametrize("size", [1, 5000])  # of more than a pipe takes in one piece
def test_a_line_and_a_traceback_of_one_call_are_one_text(trace: str, size: int) -> None:
    """Before it, or on its first line; what other calls print is apart."""
    line = "failed" + "x" * size
    for text in (f"{line}\n{trace}", f"{line}: {trace}"):
        assert texts_of("a\n", text, "\n", "b\n") == ["a", text, "b"]
    assert texts_of("failed\n", trace, "b\n") == ["failed", trace[:-1], "b"]


def test_several_lines_and_a_traceback_of_one_call_are_one_text() -> None:
    """Not if some are records of their own: another program's output that is passed on."""
    assert texts_of("a\nb\n" + TRACE) == ["a\nb\n" + TRACE[:-1]]
    assert texts_of("a\n" + TRACE + "more\n") == ["a\n" + TRACE + "more"]
    for before, after in (
        ("a\nINFO: b\n", ""), ("a\n", "INFO: b\n"), ("a\n", "b\n" + TRACE)
    ):  # fmt: skip
        found = texts_of(before + TRACE + after)
        assert TRACE[:-1] in found
        assert found[0] == "a"


def test_an_indented_traceback_is_one_text_with_all_that_its_call_prints() -> None:
    """It is no header where it stands; `printed.indented_traceback` takes it apart."""
    text = "failed\n" + "".join(f"\t{line}\n" for line in TRACE.splitlines())
    assert texts_of("a\n", text, "b\n") == ["a", text[:-1], "b"]


def test_a_line_that_states_a_level_is_one_with_the_traceback_after_it() -> None:
    """As `logging` writes them in a program that knows nothing of logagg."""
    stated = "ERROR:root:bad\n"
    assert texts_of("a\n" + stated + TRACE + "b\n", printed=False) == [
        "a", stated + TRACE[:-1], "b",
    ]  # fmt: skip
    assert texts_of("a\n" + TRACE, printed=False) == ["a", TRACE[:-1]]
    assert texts_of(TRACE + TRACE, printed=False) == [TRACE[:-1], TRACE[:-1]]


def test_a_progress_bar_shows_its_newest_state_at_most_every_few_seconds() -> None:
    """And its last one; a line after it is a line."""
    found: list[tuple[str, bool]] = []

    def record(text: str, _: int, *, progress: bool = False, **__: bool) -> bytes:
        found.append((text, progress))
        return b""

    lines = OutputLines(lambda: 0, record)
    second, per_second = 1_000_000_000, 20
    for n in range(12 * per_second):
        lines.feed(b"\r%4d |##|" % n, (n + 1) * second // per_second)
    lines.feed(b"\rdone |##|\nafter\n", 13 * second)
    lines.end(14 * second)

    states = [text for text, progress in found if progress]
    assert states == [" 101 |##|", " 201 |##|"]
    assert found[-2:] == [("done |##|", False), ("after", False)]
    assert len(found) == 4


LINES = [
    *TRACE.splitlines(), "", "plain", "INFO: b", "failed: " + TRACE.splitlines()[0],
    "  + Exception Group Traceback (most recent call last):", '  |   File "x.py", line 1',
    "During handling of the above exception, another exception occurred:", "\tindented",
]  # fmt: skip
CALLS = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from(LINES), min_size=1, max_size=8)),
    max_size=12,
)


@given(CALLS, st.lists(st.integers(1, 200), max_size=20))
def test_no_line_is_lost_however_it_is_joined(
    calls: list[tuple[bool, list[str]]], sizes: list[int]
) -> None:
    """Printed by Python code or not, and read in pieces of any size."""
    found: list[str] = []

    def record(text: str, _: int, **__: bool) -> bytes:
        found.append(text)
        return b""

    data = b""
    for number, (printed, lines) in enumerate(calls):
        text = "".join(f"{line}\n" for line in lines).encode()
        data += mark_printed(text, number + 1) if printed else text
    joined = OutputLines(lambda: 0, record)
    for size in (*sizes, len(data)):
        joined.feed(data[:size], 100)
        data = data[size:]
    joined.end(200)

    assert "\n".join(found) == "\n".join(line for _, lines in calls for line in lines)
