"""Processes that must not outlive their worker or the run: guard, groups, orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from logagg.supervisor.process import orphans
from logagg.supervisor.process.orphans import (
    Guardian,
    ProcessGroups,
    reap_orphans,
)

SLEEP = [
    sys.executable,
    "-S",
    "-c",
    "import time; print(1, flush=True); time.sleep(60)",
]
STUBBORN = [
    sys.executable, "-S", "-c",
    "import signal, time; signal.signal(15, 1); print(1, flush=True); time.sleep(60)",
]  # fmt: skip


def group(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that leads a group, and wait until it runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    return process


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_guard_ends_what_outlives_the_supervisor() -> None:
    """Whatever ignores TERM too; a group that was discarded is left alone."""
    guarded, discarded = group(STUBBORN), group(SLEEP)

    async def scene() -> subprocess.Popen[bytes]:
        guard = Guardian()
        guard.add(guarded.pid)
        guard.add(discarded.pid)
        guard.discard(discarded.pid)
        guard.close()  # as if the supervisor had died
        return guard._process

    asyncio.run(scene()).wait(10)
    assert guarded.wait(10) == -signal.SIGKILL
    assert discarded.poll() is None
    discarded.kill()
    discarded.wait()


def test_a_guard_that_dies_is_replaced_and_knows_all_groups() -> None:
    """Its death leaves no zombie that hides other children."""
    guarded = group(STUBBORN)

    async def scene() -> subprocess.Popen[bytes]:
        guard = Guardian()
        guard.add(guarded.pid)
        first = guard.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            while guard.pid == first:
                await asyncio.sleep(0.01)
        assert not os.path.exists(f"/proc/{first}")
        guard.close()
        return guard._process

    asyncio.run(scene()).wait(10)
    assert guarded.wait(10) == -signal.SIGKILL


LEADER = """
import os, sys, time
for command in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        exec(command)
print(1, flush=True)
"""


def test_the_group_of_a_dead_worker_ends() -> None:
    """TERM at once, KILL later for what ignores it; `ended` waits for both."""
    read, write = os.pipe()
    commands = [f"os.write({write}, b'1');{each[-1]}" for each in (SLEEP, STUBBORN)]
    leader = subprocess.Popen(
        [sys.executable, "-S", "-c", LEADER, *commands],
        stdout=subprocess.DEVNULL,
        pass_fds=(write,),
        start_new_session=True,
    )
    os.close(write)
    assert os.read(read, 1) + os.read(read, 1) == b"11"
    assert leader.wait(10) == 0

    async def scene() -> None:
        guard = Guardian()
        groups = ProcessGroups(guard)
        guard.add(leader.pid)
        groups.end(leader.pid)
        await groups.ended()
        guard.close()

    asyncio.run(scene())
    assert os.read(read, 1) == b""  # both have ended, and so their copies of the pipe
    os.close(read)


def test_orphans_are_reaped_and_owned_children_are_not() -> None:
    """The exit status of a child that somebody waits for stays."""
    owned = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])
    orphan = os.spawnl(os.P_NOWAIT, sys.executable, "python", "-S", "-c", "")
    os.waitid(os.P_PID, owned.pid, os.WEXITED | os.WNOWAIT)

    def gone() -> bool:
        reap_orphans({owned.pid})
        return not os.path.exists(f"/proc/{orphan}")

    until(gone)
    assert owned.wait() == 3


def test_children_are_listed_only_when_one_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list may take a process, whose end would call for another list, for ever."""
    listed = []

    def children(pid: int) -> list[int]:
        listed.append(pid)
        return [ended.pid]

    monkeypatch.setattr(orphans, "children", children)
    reap_orphans(())
    assert not listed
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    reap_orphans(())
    assert listed
    with pytest.raises(ChildProcessError):
        os.waitpid(ended.pid, 0)
    ended.returncode = 0
