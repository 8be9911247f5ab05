"""A user that may send, and wants all of a consumer: what it takes has a bound."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PREAMBLE, have, wait_until

from logagg.ipc.users import ALLOW_USERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user"),
]

UID = 54331
LIMIT = 120

GREEDY = """
import json, os, sys
from logagg.platform import packets
kept = []
for number in range(100):
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    made = packets.packet_socket()
    made.settimeout(10)
    hello = {
        "hello": 1, "kind": "records", "pid": os.getpid(), "worker": str(number),
        "stream": f"{os.getpid()}-{number}",
    }
    try:
        made.connect(sys.argv[1])
        if sys.argv[2] != "silent":
            packets.send(made, json.dumps(hello).encode(), [read, null, null])
            packets.receive(made, 1 << 16)
    except TimeoutError:
        break  # it waits for a descriptor, as all others do now
    except OSError:
        pass
    for each in (read, null):
        os.close(each)
    if sys.argv[2] == "pipes":
        made.close()
    kept.append((write, made))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user can reach."""
    made = Path("/tmp", f"lgg-{os.getpid()}-{time.monotonic_ns()}")
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("what", ["connections", "pipes", "silent"])
def test_a_user_that_takes_all_it_can_leaves_enough_for_the_others(
    folder: Path, interpreter: str, packages: Path, what: str
) -> None:
    """Many workers, pipes that stay open behind closed connections, no hello at all."""
    path, log = folder / "s.sock", folder / "app.log"
    env = os.environ | {ALLOW_USERS: str(UID), "PYTHONPATH": str(packages)}
    command = [
        "prlimit", f"--nofile={LIMIT}:{LIMIT}", interpreter, "-m", "logagg", "serve",
        "--socket", str(path), "--sink", f"file:{log}",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        serve = stack.enter_context(subprocess.Popen(command, cwd="/", env=env))
        stack.callback(serve.kill)
        wait_until(path.exists)
        os.chmod(path, 0o666)
        command = [
            "setpriv", f"--reuid={UID}", "--clear-groups",
            interpreter, "-c", GREEDY, str(path), what,
        ]  # fmt: skip
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        greedy = stack.enter_context(subprocess.Popen(command, cwd="/", **pipes))
        stack.callback(greedy.kill)
        assert greedy.stdout.readline() == b"ready\n"

        code = PREAMBLE + (
            "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
            "logging.info('here')\n"
            "print(logging.getLogger().handlers[0].flush(8))\n"
        )
        workers = [
            subprocess.Popen(
                [interpreter, "-c", code, log],
                cwd="/", env=env | {"LOGAGG_SOCKET": str(path)}, stdout=subprocess.PIPE,
            )
            for _ in range(3)
        ]  # fmt: skip
        said = [each.communicate(timeout=60)[0] for each in workers]
        assert said == [b"True\n"] * 3
        wait_until(have(log, 3))
