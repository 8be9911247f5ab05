"""A consumer that crashes leaves no file with the texts of everybody's records."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

from support import BASIC, consumer, have, running, wait_until


def test_a_consumer_leaves_no_core_dump(tmp_path: Path) -> None:
    """Its own limit is 0, and may be raised again; that of the program is its own."""
    path = tmp_path / "app.log"
    code = BASIC + (
        "import resource\n"
        "most = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n"
        "log.info('here')\n"
        "sys.stdin.readline()\n"
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        wait_until(have(path, 1))
        own, most = resource.prlimit(consumer(), resource.RLIMIT_CORE)
        programs = resource.prlimit(process.pid, resource.RLIMIT_CORE)
        process.stdin.close()
        process.wait(30)

    assert own == 0
    assert programs == (most, most)
