"""What is known of other processes, in the form of Linux and in the portable one."""

from __future__ import annotations

import pytest
from support import python

CODE = """\
import os, resource, signal, subprocess, sys
from logagg.platform import procfs, system
assert system.LINUX is not (os.environ["LOGAGG_PORTABLE"] == "1")
child = subprocess.Popen(["sleep", "100"])
os.kill(child.pid, signal.SIGSTOP)
os.waitid(os.P_PID, child.pid, os.WSTOPPED)
def known():
    found = procfs.children(os.getpid())
    return (
        child.pid in found, procfs.is_stopped(child.pid),
        procfs.rss_bytes(os.getpid()) > 0, procfs.has_ended(os.getpid()),
    )
try:
    print(*known())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        scarce = known()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    print(*scarce)
finally:
    child.kill()
    child.wait()
"""


@pytest.mark.parametrize("portable", ["", "1"], ids=["linux", "portable"])
def test_without_a_free_descriptor_nothing_is_known_and_nothing_raises(
    portable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor asks in the middle of its work; and no process counts as ended."""
    monkeypatch.setenv("LOGAGG_PORTABLE", portable)

    before, scarce = python(CODE).stdout.splitlines()

    assert before == "True True True False"
    assert scarce.split()[3] == "False"
