"""The file sink against whoever would misuse it: links, FIFOs, names, rights."""

import asyncio
import errno
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from support import log_files

from logagg.errors import ConfigError
from logagg.sinks import FileSink, build
from logagg.testing import make_batch, make_line
from logagg_sinks.file import path_template
from logagg_sinks.file.directory import LogDirectory, Ownership

ROOT = os.geteuid() == 0


def write(sink, batch=None):
    async def scenario():
        try:
            await sink.open()
            await sink.write(batch or make_batch(2))
        finally:
            await sink.close()

    asyncio.run(scenario())


def refused(path):
    """Why the path is refused; nothing may be left open."""
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        write(FileSink(path))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert str(path) in str(caught.value) or str(path.parent) in str(caught.value)
    return str(caught.value)


def test_a_symbolic_link_is_not_followed(tmp_path):
    """A link to somebody's file is refused, whether the file is there or not."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    link, dangling = tmp_path / "app.log", tmp_path / "dangling.log"
    link.symlink_to(victim)
    dangling.symlink_to(tmp_path / "nowhere")

    assert "symbolic link" in refused(link)
    assert "symbolic link" in refused(dangling)
    assert victim.read_bytes() == b"precious\n"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trap", ["symbolic", "hard"])
def test_a_link_put_there_at_any_moment_is_not_followed(tmp_path, trap):
    """Somebody swaps file and link all the time: the victim is never written to."""
    victim, path = tmp_path / "victim", tmp_path / "app.log"
    victim.write_bytes(b"precious\n")
    ending = threading.Event()

    def swap():
        while not ending.is_set():
            new = tmp_path / "new"
            new.unlink(missing_ok=True)
            if trap == "symbolic":
                new.symlink_to(victim)
            else:
                os.link(victim, new)
            new.replace(path)
            path.unlink(missing_ok=True)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    try:
        for _ in range(300):
            try:
                write(FileSink(path, fsync="never"))
                outcomes.add("written")
            except OSError:
                outcomes.add("unavailable")
            except ConfigError:
                outcomes.add("refused")
    finally:
        ending.set()
        thread.join()

    assert victim.read_bytes() == b"precious\n"
    assert "refused" in outcomes


SWAP = """
import os, sys
victim, new, path = sys.argv[1:]
while True:
    os.link(victim, new)
    os.replace(new, path)
    os.unlink(path)
"""


@pytest.mark.slow
def test_a_hard_link_that_comes_and_goes_is_never_opened(tmp_path):
    """Another process links and unlinks as fast as it can: the count of links lies."""
    victim, new, path = (tmp_path / name for name in ("victim", "new", "app.log"))
    victim.write_bytes(b"precious\n")
    wanted = victim.stat()
    directory = LogDirectory(tmp_path)
    swapper = subprocess.Popen([sys.executable, "-c", SWAP, victim, new, path])
    outcomes = Counter()
    deadline = time.monotonic() + 15
    try:
        while time.monotonic() < deadline and outcomes.total() < 200_000:
            try:
                opened = directory.open("app.log", Ownership())
            except ConfigError:
                outcomes["refused"] += 1
                continue
            except OSError:
                outcomes["unavailable"] += 1
                continue
            same = os.path.samestat(os.fstat(opened.fd), wanted)
            outcomes["victim" if same else "own"] += 1
            os.close(opened.fd)
        assert swapper.poll() is None, "the other process has ended"
    finally:
        swapper.kill()
        swapper.wait()
        directory.close()
    assert outcomes["refused"]
    assert outcomes["own"]
    assert not outcomes["victim"], outcomes


def test_a_hard_link_is_refused(tmp_path):
    """A second name of somebody's file is refused."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    os.link(victim, tmp_path / "app.log")

    assert "hard links" in refused(tmp_path / "app.log")
    assert victim.read_bytes() == b"precious\n"


def test_a_fifo_is_refused_without_hanging(tmp_path):
    """Opening does not wait for a reader of a FIFO."""
    os.mkfifo(tmp_path / "app.log")

    assert "a FIFO" in refused(tmp_path / "app.log")


def test_a_directory_is_refused(tmp_path):
    """A directory in the file's place is told as such."""
    (tmp_path / "app.log").mkdir()

    assert "a directory" in refused(tmp_path / "app.log")


def test_a_socket_is_refused(tmp_path, monkeypatch):
    """A socket in the file's place is told as such."""
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("app.log")

        assert "a socket" in refused(tmp_path / "app.log")


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path):
    """Unless it is sticky, as /tmp is."""
    tmp_path.chmod(0o777)
    assert "writable by everybody" in refused(tmp_path / "app.log")

    tmp_path.chmod(0o1777)
    write(FileSink(tmp_path / "app.log"))
    assert (tmp_path / "app.log").exists()


@pytest.mark.skipif(not ROOT, reason="only root can make a file that is another's")
def test_the_file_of_a_stranger_is_refused(tmp_path):
    """A file that somebody else prepared in a shared directory is not written to."""
    tmp_path.chmod(0o1777)
    path = tmp_path / "app.log"
    path.write_bytes(b"")
    os.chown(path, 12345, 12345)

    assert "belongs to user 12345" in refused(path)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_owner_and_group_are_set_at_creation_and_kept_over_rotations(tmp_path):
    """owner= and group= apply to new files; a rotated file's successor follows it."""
    path = tmp_path / "app.log"
    sink = FileSink(path, owner="12345", group="12346", mode=0o660, max_bytes=300)

    write(sink, make_batch(4))

    for file in log_files(tmp_path):
        status = file.stat()
        assert (status.st_uid, status.st_gid) == (12345, 12346)
        assert stat.S_IMODE(status.st_mode) == 0o660
    assert len(log_files(tmp_path)) == 4


def test_the_mode_an_admin_gave_is_kept_over_rotations(tmp_path):
    """chmod on the log file outlasts its rotation."""
    path = tmp_path / "app.log"
    path.write_bytes(b"")
    path.chmod(0o604)

    write(FileSink(path, max_bytes=300), make_batch(4))

    assert {stat.S_IMODE(p.stat().st_mode) for p in log_files(tmp_path)} == {0o604}


@pytest.mark.skipif(not ROOT, reason="needs another user to become")
def test_a_lack_of_descriptors_is_no_fault_of_the_configuration(tmp_path):
    """It passes, so the sink is tried again; it would be given up otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            LogDirectory(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert caught.value.errno == errno.EMFILE
    LogDirectory(tmp_path).close()


def test_an_unwritable_directory_is_told_in_one_line(tmp_path):
    """The error names the file and the system's reason."""
    code = (
        "import asyncio, os, sys\n"
        "from logagg.errors import ConfigError\n"
        "from logagg.sinks import FileSink\n"
        "os.setuid(12345)\n"
        "async def main():\n"
        "    sink = FileSink(sys.argv[1] + '/app.log')\n"
        "    try:\n"
        "        await sink.open()\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
        "    await sink.close()\n"
        "asyncio.run(main())\n"
    )
    where = tmp_path / "closed"
    where.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-c", code, where], capture_output=True, text=True, check=True
    )

    assert "Permission denied" in done.stdout
    assert str(where) in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        ".hidden",
        "a\0b",
        "a\nb",
        "-rf",
        "x" * 5000,
        "ü~1",
        "app.log.1",
    ],
)
def test_names_from_records_stay_in_the_directory(tmp_path, name):
    """Whatever a worker or logger is called, its file lies where the template says."""
    base = tmp_path / "logs"
    sink = FileSink(base / "{worker}" / "{logger}.log", max_bytes=100_000)

    write(sink, make_batch([make_line(worker=name, logger=name)]))

    files = [path for path in tmp_path.rglob("*.log") if path.is_file()]
    assert len(files) == 1
    directory, file = files[0].relative_to(base).parts
    assert directory not in ("", ".", "..")
    assert file.endswith(".log")
    assert not file.startswith(("-", "."))
    assert file.isascii()


def test_different_names_never_share_a_file(tmp_path):
    """Names that are the same once made safe are told apart by a hash."""
    names = ["a/b", "a_b", "a:b", "a b", "A_b", "a" * 200, "a" * 201]
    lines = [make_line(i, logger=name) for i, name in enumerate(names)]

    write(FileSink(tmp_path / "{logger}.log"), make_batch(lines))

    assert len(log_files(tmp_path)) == len(names)


def test_a_linked_directory_below_the_base_is_not_followed(tmp_path):
    """A directory that the template makes must be a directory."""
    base, victim = tmp_path / "logs", tmp_path / "victim"
    base.mkdir()
    victim.mkdir()
    (base / "1").symlink_to(victim)
    sink = FileSink(base / "{worker}" / "app.log")

    with pytest.raises(OSError, match=r"Not a directory|symbolic link"):
        write(sink)

    assert list(victim.iterdir()) == []


def test_splitting_keeps_every_record_and_its_order(tmp_path):
    """Records of one worker and logger stand in one file, in order."""
    lines = [make_line(i, worker=str(i % 3), logger=f"app.{i % 2}") for i in range(600)]

    write(FileSink(tmp_path / "{worker}-{logger}.log"), make_batch(lines))

    for worker in range(3):
        for logger in range(2):
            text = (tmp_path / f"{worker}-app.{logger}.log").read_bytes()
            found = [line for line in text.splitlines() if line]
            expected = [
                line
                for i, line in enumerate(lines)
                if i % 3 == worker and i % 2 == logger
            ]
            assert [
                line[: len(e)] for line, e in zip(found, expected, strict=True)
            ] == (expected)


def test_a_flood_of_names_is_bounded(tmp_path):
    """At most a thousand different names; the records of further ones share a file."""
    lines = [make_line(i, logger=f"l{i}") for i in range(1100)]
    before = len(os.listdir("/proc/self/fd"))
    sink = FileSink(tmp_path / "{logger}.log", fsync="never")
    most = 0

    async def scenario():
        nonlocal most
        await sink.open()
        for at in range(0, 1100, 50):
            await sink.write(make_batch(lines[at : at + 50]))
            most = max(most, len(os.listdir("/proc/self/fd")))
        await sink.close()

    asyncio.run(scenario())

    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 1001
    assert len((tmp_path / "_other.log").read_bytes().splitlines()) == 100
    assert most < before + 300


@pytest.mark.parametrize(
    "template",
    ["{logger}.log", "{worker}-{logger}-{date}.log", "{worker}/x-{logger}.log"],
)
def test_names_are_bounded_over_all_sinks_that_ever_wrote_there(
    tmp_path, monkeypatch, template
):
    """What an earlier consumer made counts for the next one, and stays its own."""
    monkeypatch.setattr(path_template, "MOST", 30)

    for first in (0, 20, 40):
        lines = [
            make_line(seq, logger=f"l{seq}.x-y") for seq in range(first, first + 20)
        ]
        lines.append(make_line(first + 20, logger="l0.x-y"))
        write(FileSink(tmp_path / template), make_batch(lines))

    files = [path for path in tmp_path.rglob("[!.]*.log") if path.is_file()]
    counts = Counter(len(path.read_bytes().splitlines()) for path in files)
    loggers = 30 - template.count("{worker}")  # one worker is a name as well
    assert counts == {1: loggers - 1, 4: 1, 60 - loggers: 1}


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_files_of_another_user_use_up_no_names(tmp_path, monkeypatch):
    """In a directory like /tmp anybody can make files whose names fit."""
    monkeypatch.setattr(path_template, "MOST", 3)
    for number in range(5):
        planted = tmp_path / f"planted{number}.log"
        planted.touch()
        os.chown(planted, 54321, 54321)

    write(
        FileSink(tmp_path / "{logger}.log"), make_batch([make_line(1, logger="mine")])
    )

    assert (tmp_path / "mine.log").exists()
    assert not (tmp_path / "_other.log").exists()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("app-{pid}.log", "{date}, {worker}, {logger}"),
        ("app-{logger!r}.log", "no other fields"),
        ("{date}/app.log", "not a directory's"),
        ("{logger}", "fixed part such as .log"),
        ("{logger}.1", "fixed part such as .log"),
        ("{logger}.gz", "fixed part such as .log"),
        ("app-{date}.log?when=d", "leave out either"),
        ("app-{.log", "expected a path with each { closed"),
        ("app-}.log", "expected a path with each { closed"),
        ("logs/", "ends in a file's name"),
    ],
)
def test_a_bad_template_is_refused_with_what_is_wrong(path, told):
    """The error says what a path may have in it."""
    with pytest.raises(ConfigError) as caught:
        build(f"file:{path}")

    assert told in str(caught.value)


def test_text_is_one_line_a_record_and_cannot_be_forged(tmp_path):
    """In the text format a message with a newline stays one line."""
    path = tmp_path / "app.log"
    forged = "x\n2026-11-25T00:00:00.000000000Z info 1 app: forged\r\n\x1b[2J\u2028"
    error = {"type": "E", "message": "m", "stack": f"Traceback\n  {forged}\nE: m"}
    lines = [make_line(message=forged, logger=forged), make_line(1, exception=error)]

    write(FileSink(path, format="text"), make_batch(lines))

    text = path.read_text()
    found = text.split("\n")
    assert found[-1] == ""
    records = [line for line in found[:-1] if not line.startswith("    | ")]
    assert len(records) == 2
    assert "\x1b" not in text
    assert "\u2028" not in text
    assert text.count("Traceback") == 1
