"""What a process calls itself cannot act on the terminal of who asks for a status."""

from __future__ import annotations

import subprocess
import sys

from support import PREAMBLE, finish, have, running, wait_until

HOSTILE = PREAMBLE + (
    "import multiprocessing\n"
    "name = 'x\\n9 1 1 0 0 0 0 forged\\x1b[2J\\x9b31m\\u202e'\n"
    "multiprocessing.current_process().name = name\n"
    "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
    "logging.info('here')\n"
    "sys.stdin.readline()\n"
)


def test_a_process_name_is_shown_escaped(tmp_path) -> None:
    """No control character reaches the terminal, and no row is forged."""
    path = tmp_path / "app.log"
    with running(HOSTILE, path, stdin=subprocess.PIPE) as process:
        wait_until(have(path, 1))
        done = finish([sys.executable, "-m", "logagg", "status"])
        process.stdin.close()
        process.wait(30)

    assert "forged" in done.stdout
    assert not any(
        line.lstrip().startswith("9 1 1") for line in done.stdout.split("\n")
    )
    for character in "\x1b\x9b\u202e":
        assert character not in done.stdout
