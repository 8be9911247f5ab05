"""Hosts that lack what is taken for granted: a shell, places to write, open files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from harness import jailed
from harness.jail import possible, read_only, small_disk
from support import PREAMBLE, finish, python

pytestmark = pytest.mark.slow
in_jail = pytest.mark.skipif(not possible(), reason="nobody may mount in a namespace")

PROGRAM = (
    PREAMBLE
    + """
import resource
for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
    if "bare" in sys.argv:
        del os.environ[name]
if "few" in sys.argv:
    resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
if "chroot" in sys.argv:
    os.chroot(sys.argv[3])
logging.info("here")
print(handler.flush(60 if len(sys.argv) < 4 else 0))
print(open(sys.argv[1]).read() if os.path.exists(sys.argv[1]) else "no file")
"""
)


@in_jail
def test_without_a_shell_a_consumer_starts_all_the_same(tmp_path: Path) -> None:
    """As in images that hold nothing but an interpreter; it is nobody's child."""
    (tmp_path / "empty").touch(0o644)
    no_shell = f"mount --bind {tmp_path}/empty {os.path.realpath('/bin/sh')}"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "app.log")]

    done = finish(jailed(command, no_shell), timeout=120)

    assert done.stdout.startswith("True\n")
    assert '"message":"here"' in done.stdout
    assert done.stderr == ""


@in_jail
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no place is left")
def test_with_no_usual_place_to_write_the_socket_goes_elsewhere(tmp_path: Path) -> None:
    """Read-only are the root, /tmp and /var/tmp, and no home: what is left is used."""
    read_only_root = "mount -o remount,bind,ro /"
    places = [read_only("/tmp"), read_only("/var/tmp")]
    mounts = [small_disk("/mnt"), read_only_root, *places]
    command = [
        "env",
        "HOME=/nowhere",
        sys.executable,
        "-c",
        PROGRAM,
        "/mnt/a.log",
        "bare",
    ]

    done = finish(jailed(command, *mounts), timeout=120)

    assert done.stdout.startswith("True\n")
    assert '"message":"here"' in done.stdout


def test_too_few_open_files_are_named_at_once(tmp_path: Path) -> None:
    """One line names the limit, and the record is on disk."""
    done = python(PROGRAM, tmp_path / "app.log", "few", "short", timeout=60)

    assert done.stdout == "False\nno file\n"
    first = done.stderr.splitlines()[0]
    assert (
        "records are spooled: a consumer needs 32 open files and may have 12" in first
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root changes the root directory")
def test_in_another_root_directory_the_missing_interpreter_is_named(
    tmp_path: Path,
) -> None:
    """One line, and no claim that records are spooled where they are not."""
    (tmp_path / "root").mkdir()

    done = python(
        PROGRAM, tmp_path / "app.log", "chroot", tmp_path / "root", timeout=60
    )

    first = done.stderr.splitlines()[0]
    assert "records are dropped" in first or "records are spooled" in first
    assert "no directory for sockets" in first or "cannot be started from here" in first
    shutil.rmtree(tmp_path / "root")
