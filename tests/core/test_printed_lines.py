"""The time mark of printed lines, as workers write it and the consumer reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import hypothesis.strategies as st
from hypothesis import given

from logagg.core.line import PRINTED_MARK_BYTES, mark_printed, split_printed


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
