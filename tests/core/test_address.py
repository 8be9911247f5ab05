"""Where a consumer is found, and what is refused on the way there."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from logagg import address, launch
from logagg.errors import ConfigError


def test_the_runtime_directory_is_private():
    """It is made with mode 0700, whatever the umask."""
    before = os.umask(0)
    try:
        path = address.runtime_dir()
    finally:
        os.umask(before)

    assert path == os.path.join(os.environ["XDG_RUNTIME_DIR"], "logagg")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_a_runtime_directory_that_is_open_to_others_is_refused():
    """The error names the directory and the command that mends it."""
    path = address.runtime_dir()
    os.chmod(path, 0o755)

    with pytest.raises(ConfigError, match=f"chmod 700 {path}"):
        address.runtime_dir()


def test_a_link_in_place_of_the_runtime_directory_is_refused(tmp_path):
    """A directory that someone else chose by a link is not used."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", os.environ["XDG_RUNTIME_DIR"] + "/logagg")

    with pytest.raises(ConfigError, match="not a directory"):
        address.runtime_dir()


def test_a_file_in_place_of_the_runtime_directory_is_refused():
    """The error says what is in the way."""
    path = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    path.touch()

    with pytest.raises(ConfigError, match="not a directory; remove it"):
        address.runtime_dir()
    path.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_runtime_directory_of_somebody_else_is_refused():
    """The error names the owner."""
    path = address.runtime_dir()
    os.chown(path, 12345, -1)

    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        address.runtime_dir()


def test_a_runtime_directory_too_long_for_a_socket_is_not_used(tmp_path, monkeypatch):
    """The longest that is used has room for a socket; a longer one gives way."""
    base = os.environ["XDG_RUNTIME_DIR"]
    longest = os.path.join(base, "x" * (73 - len(base)))
    for path in (longest, longest + "x"):
        os.mkdir(path, 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", longest)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(address.socket_path(address.identity([f"file:{tmp_path}/app.log"])))
    assert address.runtime_dir() == f"{longest}/logagg"

    monkeypatch.setenv("XDG_RUNTIME_DIR", longest + "x")
    assert address.runtime_dir() == f"/tmp/logagg-{os.getuid()}"
    shutil.rmtree(longest)
    shutil.rmtree(longest + "x")


def test_a_file_has_one_identity_from_everywhere(tmp_path, monkeypatch):
    """Relative, absolute, by dots and by a linked directory: the same consumer."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to("logs")
    monkeypatch.chdir(tmp_path)
    same = [
        "file:logs/app.log",
        "logs/app.log",
        f"file:{tmp_path}/logs/app.log",
        "file:./logs/../logs/app.log?max_bytes=1MB",
        "file:link/app.log",
    ]

    assert len({address.identity([each]) for each in same}) == 1
    assert address.identity(["file:logs/app.log2"]) != address.identity([same[0]])


def test_what_stdout_is_decides_for_console_sinks(tmp_path):
    """Processes that write to the same terminal or file share a consumer."""
    with open(tmp_path / "a", "w") as one, open(tmp_path / "b", "w") as two:
        first = address.identity(["stdout:"], (one.fileno(), 2))
        again = address.identity(["stdout:"], (os.dup(one.fileno()), 2))
        other = address.identity(["stdout:"], (two.fileno(), 2))

    assert first == again
    assert first != other


def test_a_socket_path_that_is_too_long_is_an_error_that_says_so(tmp_path):
    """The kernel's limit is named before the kernel complains."""
    with pytest.raises(ConfigError, match="longer than 103 bytes"):
        launch.listen(str(tmp_path / ("x" * 120)))


def test_nobody_listens_in_a_fresh_directory():
    """Dead sockets and other files are not taken for consumers."""
    folder = address.runtime_dir()
    dead = launch.listen(folder + "/dead.sock")
    dead.close()
    live = launch.listen(folder + "/live.sock")
    Path(folder, "file.sock").touch()

    assert address.listening() == [folder + "/live.sock"]
    live.close()
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


def test_an_election_has_one_winner(tmp_path):
    """Who comes second waits until its time is over, and says who is in the way."""
    from logagg.errors import WouldBlock

    path = str(tmp_path / "s.sock")
    with (
        launch.election(path, 1.0),
        pytest.raises(WouldBlock, match="held by another"),
        launch.election(path, 0.05),
    ):
        pass
    with launch.election(path, 0.05):
        pass


def test_a_lock_file_that_was_removed_does_not_count(tmp_path):
    """The lock of a name that leads elsewhere by now is no lock."""
    path = str(tmp_path / "s.sock")
    with launch.election(path, 1.0):
        os.unlink(path + ".lock")
        with launch.election(path, 1.0):
            assert os.path.exists(path + ".lock")


def test_the_clock_offset_is_read_back_as_it_was_written(tmp_path):
    """All processes of a consumer learn the same offset."""
    path = str(tmp_path / "s.sock")
    assert launch.read_offset(path) is None
    with launch.election(path, 1.0):
        for offset in (1_795_568_400_123_456_789, -5, 0):
            launch.write_offset(path, offset)
            assert launch.read_offset(path) == (offset, None)
        launch.write_offset(path, 7, (123, -8))
        assert launch.read_offset(path) == (7, (123, -8))
