"""Directories that another user can write: what is planted there, and swapped, is safe.

A kernel with `fs.protected_hardlinks` off lets any user make a hard link to any file; here
root makes it in place of that user.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PREAMBLE, records, wait_until

from logagg.ipc import launcher
from logagg.ipc.paths import owner_file
from logagg.ipc.users import ALLOW_USERS
from logagg.platform import endpoints
from logagg.platform.system import LINUX, bind_with_mode, change_mode

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not LINUX, reason="only root becomes another user"
)
UID = 54990
STRANGER = 54991


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory in which all users can do everything to each other's names."""
    folder = Path("/tmp", f"lgp-{os.getpid()}-{tmp_path.name[-8:]}")
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    for base in ("/tmp", "/var/tmp", "/dev/shm"):
        shutil.rmtree(f"{base}/logagg-{UID}", ignore_errors=True)
    shutil.rmtree(folder)


@pytest.fixture
def precious(shared: Path) -> Path:
    """A private file of the user."""
    home = shared / "home"
    home.mkdir()
    file = home / "precious"
    file.write_text("mine\n")
    for path in (file, home):
        os.chown(path, UID, UID)
        path.chmod(0o700 if path is home else 0o600)
    return file


def swap(path: str | bytes, target: Path) -> None:
    """Another user puts a symlink in place of a name."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.unlink(path)
            os.symlink(target, path)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def swapping(monkeypatch: pytest.MonkeyPatch, precious: Path) -> None:
    """Another user replaces each bound name at once, before anything else is done."""
    bind = socket.socket.bind

    class Swapped(socket.socket):
        def bind(self, address: Any) -> None:
            bind(self, address)
            swap(address, precious)

    def packet_socket() -> socket.socket:
        return Swapped(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    monkeypatch.setattr(launcher, "packet_socket", packet_socket)
    monkeypatch.setattr(endpoints.socket, "socket", Swapped)


@pytest.mark.usefixtures("swapping")
def test_the_mode_of_a_file_that_takes_a_sockets_name_stays(
    shared: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the binding and the change of its mode another user can be quick."""
    monkeypatch.setenv(ALLOW_USERS, str(STRANGER))
    os.chown(precious, 0, 0)  # this test's user is root
    precious.chmod(0o640)
    for listen in (
        lambda: launcher.listen(str(shared / "c.sock")),
        lambda: endpoints._listen_unix(str(shared / "m.sock"), "metrics"),
    ):
        with pytest.raises(Exception, match="another user"):
            listen()
        assert stat.S_IMODE(precious.stat().st_mode) == 0o640


def test_a_socket_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    """Less and more than the umask leaves."""
    for number, (umask, mode) in enumerate(
        [(0o022, 0o666), (0, 0o600), (0o077, 0o666)]
    ):
        path = str(tmp_path / str(number))
        before = os.umask(umask)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                bind_with_mode(listener, path, mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_the_mode_of_a_directory_is_changed_where_it_is_this_users(
    shared: Path,
) -> None:
    """Neither through a symlink nor where another user's stands by now."""
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", STRANGER, STRANGER)
    (shared / "link").symlink_to(shared / "home")
    for name, why in [("theirs", "another user"), ("link", "directory|symbolic")]:
        with pytest.raises(OSError, match=why):
            change_mode(str(shared / name), 0o711)
    assert stat.S_IMODE((shared / "theirs").stat().st_mode) == 0o755


LOGS = (
    PREAMBLE
    + """
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
for n in range(20):
    logging.info("here")
    time.sleep(0.02)
"""
)


def as_user(command: list[str], packages: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the user, to its end."""
    env = os.environ | {"PYTHONPATH": str(packages), "HOME": "/nonexistent"}
    return subprocess.run(
        command, env=env, check=False, capture_output=True, text=True, timeout=60,
        user=UID, group=UID, extra_groups=[],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["hard link", "symlink", "fifo"])
def test_a_lock_file_that_is_another_file_stays_as_it_is(
    shared: Path, precious: Path, packages: Path, interpreter: str, kind: str
) -> None:
    """A consumer that is to listen beside it states it and ends."""
    planted = shared / "s.sock.lock"
    if kind == "symlink":
        planted.symlink_to(precious)
    elif kind == "hard link":
        planted.hardlink_to(precious)
    else:
        os.mkfifo(planted)
        os.chown(planted, UID, UID)
    arguments = ["--socket", str(shared / "s.sock"), "--sink", "stdout:"]

    done = as_user([interpreter, "-m", "logagg", "serve", *arguments], packages)

    assert done.returncode not in (0, None)
    assert "s.sock.lock" in done.stderr
    assert "Traceback" not in done.stderr
    assert precious.read_text() == "mine\n"
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


@pytest.mark.leaves_files
def test_a_hard_link_in_place_of_an_owner_file_changes_no_file(
    shared: Path, precious: Path, packages: Path, interpreter: str
) -> None:
    """The name is taken back, and the log is written."""
    shared.chmod(0o1777)
    log = shared / "app.log"
    Path(owner_file(str(log))).hardlink_to(precious)

    done = as_user([interpreter, "-c", LOGS, str(log)], packages)

    assert done.returncode == 0, done.stderr
    assert precious.read_text() == "mine\n"
    wait_until(lambda: log.exists() and len(records(log)) == 20)
