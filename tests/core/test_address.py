"""Where a consumer is found, and what is refused on the way there."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from logagg.errors import ConfigError
from logagg.ipc import clock, launcher, paths
from logagg.platform.system import MAX_SOCKET_PATH


def test_the_runtime_directory_is_private():
    """It is made with mode 0700, whatever the umask."""
    before = os.umask(0)
    try:
        path = paths.runtime_dir()
    finally:
        os.umask(before)

    assert path == os.path.join(os.environ["XDG_RUNTIME_DIR"], "logagg")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_a_runtime_directory_that_is_open_to_others_is_refused():
    """The error names the directory and the command that mends it."""
    path = paths.runtime_dir()
    os.chmod(path, 0o755)

    with pytest.raises(ConfigError, match=f"chmod 700 {path}"):
        paths.runtime_dir()


def test_a_link_in_place_of_the_runtime_directory_is_refused(tmp_path):
    """A directory that someone else chose by a link is not used."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", os.environ["XDG_RUNTIME_DIR"] + "/logagg")

    with pytest.raises(ConfigError, match="not a directory"):
        paths.runtime_dir()


def test_a_file_in_place_of_the_runtime_directory_is_refused():
    """The error says what is in the way."""
    path = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    path.touch()

    with pytest.raises(ConfigError, match="not a directory; remove it"):
        paths.runtime_dir()
    path.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_runtime_directory_of_somebody_else_is_refused():
    """The error names the owner."""
    path = paths.runtime_dir()
    os.chown(path, 12345, -1)

    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        paths.runtime_dir()


def test_a_runtime_directory_too_long_for_a_socket_is_not_used(monkeypatch):
    """The longest that is used has room for every socket; a longer one gives way."""
    base = os.environ["XDG_RUNTIME_DIR"]
    most = MAX_SOCKET_PATH - len("/logagg/start-4194304-01234567.sock.new")
    longest = os.path.join(base, "x" * (most - len(base) - 1))
    for path in (longest, longest + "x"):
        os.mkdir(path, 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", longest)
    launcher.listen(paths.socket_path("start-4194304-01234567")).close()
    assert paths.runtime_dir() == f"{longest}/logagg"

    monkeypatch.setenv("XDG_RUNTIME_DIR", longest + "x")
    assert paths.runtime_dir() == f"/tmp/logagg-{os.getuid()}"
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

    assert len({paths.identity([each]) for each in same}) == 1
    assert paths.identity(["file:logs/app.log2"]) != paths.identity([same[0]])


def test_what_stdout_is_decides_for_console_sinks(tmp_path):
    """Processes that write to the same terminal or file share a consumer."""
    with open(tmp_path / "a", "w") as one, open(tmp_path / "b", "w") as two:
        first = paths.identity(["stdout:"], (one.fileno(), 2))
        again = paths.identity(["stdout:"], (os.dup(one.fileno()), 2))
        other = paths.identity(["stdout:"], (two.fileno(), 2))

    assert first == again
    assert first != other


def test_a_socket_path_that_is_too_long_is_an_error_that_says_so(tmp_path):
    """The kernel's limit is named before the kernel complains."""
    with pytest.raises(ConfigError, match=f"longer than {MAX_SOCKET_PATH - 4} bytes"):
        launcher.listen(str(tmp_path / ("x" * 120)))


def test_a_socket_that_cannot_get_its_name_leaves_nothing():
    """Nor does that of a consumer that was killed in the middle, once it is removed."""
    path = paths.runtime_dir() + "/some.sock"
    os.mkdir(path)
    with pytest.raises(ConfigError, match="cannot listen"):
        launcher.listen(path)
    assert os.listdir(paths.runtime_dir()) == ["some.sock"]
    os.rmdir(path)

    Path(path + ".new").touch()
    launcher.remove_dead(path)
    assert os.listdir(paths.runtime_dir()) == []


def test_nobody_listens_in_a_fresh_directory():
    """Dead sockets and other files are not taken for consumers."""
    folder = paths.runtime_dir()
    dead = launcher.listen(folder + "/dead.sock")
    dead.close()
    live = launcher.listen(folder + "/live.sock")
    Path(folder, "file.sock").touch()

    assert paths.listening() == [folder + "/live.sock"]
    live.close()
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


def test_an_election_has_one_winner(tmp_path):
    """Who comes second waits until its time is over, and says who is in the way."""
    from logagg.errors import WouldBlock

    path = str(tmp_path / "s.sock")
    with (
        launcher.election(path, 1.0),
        pytest.raises(WouldBlock, match="held by another"),
        launcher.election(path, 0.05),
    ):
        pass
    with launcher.election(path, 0.05):
        pass


def test_a_lock_file_that_was_removed_does_not_count(tmp_path):
    """The lock of a name that leads elsewhere by now is no lock."""
    path = str(tmp_path / "s.sock")
    with launcher.election(path, 1.0):
        os.unlink(path + ".lock")
        with launcher.election(path, 1.0):
            assert os.path.exists(path + ".lock")


def test_the_clock_offset_is_read_back_as_it_was_written(tmp_path):
    """All processes of a consumer learn the same offset."""
    path = str(tmp_path / "s.sock")
    assert clock.read_offset(path) is None
    with launcher.election(path, 1.0):
        for offset in (1_795_568_400_123_456_789, -5, 0):
            clock.write_offset(path, offset)
            assert clock.read_offset(path) == (offset, None)
        clock.write_offset(path, 7, (123, -8))
        assert clock.read_offset(path) == (7, (123, -8))


def test_directories_for_state_are_private_from_the_first_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names in them are those of targets."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a" / "b"))
    before = os.umask(0o022)
    try:
        paths.make_folder(f"{paths.state_dir()}/sinks/x")
        paths.spool_dir("0123456789abcdef0123")
    finally:
        os.umask(before)

    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(made) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("planted", ["nothing", "link", "directory"])
def test_root_keeps_nothing_where_the_user_who_called_sudo_can_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """`sudo -E` hands that user's directories on."""
    home, loot = tmp_path / "home", tmp_path / "loot"
    for place in (home, loot):
        place.mkdir(mode=0o700)
    if planted == "link":
        (home / "logagg").symlink_to(loot)
    elif planted == "directory":
        (home / "logagg").mkdir(mode=0o700)
    for place in (home, *home.iterdir()):
        os.chown(place, 12345, 12345, follow_symlinks=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("SUDO_UID", "12345" if planted == "nothing" else "")

    for place in (paths.state_dir(), paths.spool_dir("0123456789abcdef0123")):
        assert not place.startswith(str(tmp_path))
    paths.forget_spool_dir("0123456789abcdef0123")
    assert not any(str(tmp_path) in place for place in paths.spool_dirs("x"))
    assert list(loot.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_volume_of_another_user_keeps_roots_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's root writes into a directory of the host's user."""
    os.chown(tmp_path, 12345, 12345)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)

    paths.make_folder(paths.state_dir())
    assert paths.state_dir() == str(tmp_path / "logagg")


def test_a_home_that_is_none_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one, as of a user without a home."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "nowhere")
    assert paths.state_dir() == f"/var/tmp/logagg-{os.geteuid()}"
