"""One writer per file on a host, whatever starts the processes that log to it."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from harness.jail import jailed, possible
from serving import LOGAGG, serving
from support import (
    assert_complete,
    assert_ordered,
    consumers,
    events,
    finish,
    have,
    records,
    running,
    settled,
    wait_until,
)

PROGRAM = (
    support.PREAMBLE
    + """\
path, who, count, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if path:
    logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")
log = logging.getLogger("app")
go = sys.argv[5] if len(sys.argv) > 5 else ""
for n in range(count):
    log.warning("m", extra={"who": who, "n": n})
    if pause:
        time.sleep(pause)
    if go and n == count // 2:
        print("half", flush=True)
        while not os.path.exists(go):
            time.sleep(0.01)
"""
)


def owner(path: Path) -> dict:
    """What the owner file of a log names."""
    return json.loads(path.with_name(f".{path.name}.owner").read_text())


def sent(*paths: Path) -> list[dict]:
    """The records of the programs, without what they printed."""
    return [each for each in records(*paths) if "who" in each]


def written(path: Path, who: str, number: int):
    """A condition: a record stands in the file."""
    text = b'"who":"%b","n":%d,' % (who.encode(), number)
    return lambda: path.exists() and text in path.read_bytes()


@contextmanager
def run(*words, **options):
    """Start `logagg run`; whatever happens, it has ended afterwards."""
    with subprocess.Popen(
        [*LOGAGG, "run", "-w", "1", *map(str, words)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture
def program(tmp_path):
    """The program as a script, for `logagg run`."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def hold(path: Path) -> int:
    """Own a file as a consumer would that nobody can reach."""
    place = path.with_name(f".{path.name}.owner")
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o640)
    os.write(descriptor, b'{"pid":1,"socket":"/nonexistent/logagg.sock"}')
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_records_wait_for_an_owner_that_takes_none_and_then_arrive(tmp_path):
    """The consumer of a handler spools them, and writes once the owner has gone."""
    path = tmp_path / "app.log"
    lock = hold(path)
    with running(PROGRAM, path, "a", 200, 0) as process:
        assert process.wait(60) == 0
        assert not path.exists()
        os.close(lock)
        wait_until(have(path, 200), what="the records")
    settled()
    assert_complete(sent(path), {"a": 200})
    waiting, *_ = events("sink_error", path)
    assert "is written by the consumer with pid 1 at" in waiting["message"]
    assert not path.with_name(".app.log.owner").exists()


@pytest.mark.slow
def test_a_second_writer_with_a_configuration_is_refused_with_one_line(
    tmp_path, program
):
    """It names the owner; the first one's log is whole."""
    path, go = tmp_path / "app.log", tmp_path / "go"
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    sink = f"file:{path}?max_bytes=20KB&backups=500"
    with run("--sink", sink, program, "--", "", "a", 3000, 0, go) as first:
        wait_until(written(path, "a", 1500), what="half of the records")
        for command in (
            ["run", "--sink", "file:app.log", program, "--", "", "b", 9, 0],
            ["run", "--sink", "file:link/app.log", program, "--", "", "b", 9, 0],
            ["run", "--sink", "file:sub/../app.log", program, "--", "", "b", 9, 0],
            ["serve", "--sink", f"file:{path}"],
        ):
            second = finish([*LOGAGG, *map(str, command)], status=2, cwd=tmp_path)
            *_, last = second.stderr.splitlines()
            assert f"by the consumer with pid {owner(path)['pid']}" in last
        within = f"import logagg\nwith logagg.start('file:{path}'): pass"
        assert "by the consumer with pid" in support.python(within, status=1).stderr
        go.touch()
        assert first.wait(60) == 0, first.stderr.read()
    settled()
    pieces = support.rotated(path)
    assert len(pieces) > 10
    assert max(each.stat().st_size for each in pieces) <= 20_000
    assert_complete(sent(*pieces), {"a": 3000})
    assert_ordered(support.lines(*pieces))


@pytest.mark.slow
def test_a_reload_takes_no_file_that_another_consumer_writes(tmp_path, program):
    """It is refused with the owner's name; the owner's rotated files stay as they are."""
    path, go, folder = tmp_path / "app.log", tmp_path / "go", tmp_path / "other"
    folder.mkdir()
    config = folder / "service.toml"
    config.write_text('sinks = ["file:mine.log"]\n')
    sink = f"file:{path}?max_bytes=20KB&backups=500"
    with run("--sink", sink, program, "--", "", "a", 3000, 0, go) as first:
        wait_until(written(path, "a", 1500), what="half of the records")
        with serving(folder, "--config", str(config)) as serve:
            serve.logs("b", 100)
            other = f"file:{path}?max_bytes=1KB&backups=1"
            config.write_text(f'sinks = ["file:mine.log", "{other}"]\n')
            done = serve.run("reload")
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert f"by the consumer with pid {owner(path)['pid']}" in line
            serve.logs("c", 100)
            assert serve.stop() == 0
        go.touch()
        assert first.wait(60) == 0, first.stderr.read()
    settled()
    assert_complete(sent(*support.rotated(path)), {"a": 3000})
    assert_complete(sent(folder / "mine.log"), {"b": 100, "c": 100})


TWO_NAMES = (
    support.PREAMBLE
    + """\
logs = []
for name, path in (("a", sys.argv[1]), ("b", sys.argv[2])):
    logs.append(logging.getLogger(name))
    logs[-1].addHandler(logagg.Handler(path))
for n in range(2000):
    for log in logs:
        log.warning("m", extra={"who": log.name, "n": n})
"""
)


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="nobody may mount in a namespace")
def test_a_file_that_is_mounted_under_two_names_has_one_writer(tmp_path):
    """As containers share a file of their host: the second consumer spools meanwhile."""
    names = [tmp_path / each / "app.log" for each in ("one", "two")]
    for each in names:
        each.parent.mkdir()
        each.touch(0o640)
    command = [sys.executable, "-c", TWO_NAMES, *map(str, names)]
    finish(jailed(command, f"mount --bind {names[0]} {names[1]}"))
    wait_until(have(names[0], 4000), what="the records")
    settled()
    assert_complete(sent(names[0]), {"a": 2000, "b": 2000})
    assert "another process writes" in events("sink_error", names[0])[0]["message"]
    assert names[1].read_bytes() == b""


@pytest.mark.slow
def test_a_handler_is_the_guest_of_the_run_that_owns_its_file(tmp_path, program):
    """One consumer, one order. The run ends before its guest, who goes on."""
    path, go, more = tmp_path / "app.log", tmp_path / "go", tmp_path / "more"
    (tmp_path / "link").symlink_to(tmp_path)
    with run("--sink", f"file:{path}", program, "--", "", "a", 2000, 0, go) as first:
        wait_until(written(path, "a", 1000), what="half of the records")
        with running(
            PROGRAM, "link/app.log", "b", 2000, 0, more, cwd=tmp_path
        ) as guest:
            assert guest.stdout.readline() == "half\n"
            wait_until(have(path, 2000), what="the guest's records")
            (before,) = consumers()
            assert before == owner(path)["pid"]
            go.touch()
            assert first.wait(60) == 0, first.stderr.read()
            more.touch()
            assert guest.wait(60) == 0
            assert guest.stderr.read() == ""
    settled()
    assert_complete(sent(path), {"a": 2000, "b": 2000})
    assert_ordered(support.lines(path))
    assert not path.with_name(".app.log.owner").exists()


@pytest.mark.slow
def test_a_run_takes_the_file_over_from_the_consumer_of_handlers(tmp_path, program):
    """Their consumer gives way, and they are guests of the run."""
    path, go, more = tmp_path / "app.log", tmp_path / "go", tmp_path / "more"
    with running(PROGRAM, path, "b", 20_000, 0.0001, more) as handler:
        wait_until(have(path, 1), what="records")
        with run(
            "--sink", f"file:{path}", program, "--", "", "a", 2000, 0, go
        ) as taker:
            wait_until(written(path, "a", 1000), what="half of the records")
            assert handler.stdout.readline() == "half\n"
            go.touch()
            more.touch()
            assert taker.wait(60) == 0, taker.stderr.read()
        assert handler.wait(60) == 0
        assert handler.stderr.read() == ""
    settled()
    assert_complete(sent(path), {"a": 2000, "b": 20_000})


@pytest.mark.slow
@pytest.mark.parametrize("starts", [1, 5])
def test_handlers_with_different_runtime_directories_share_a_consumer(tmp_path, starts):
    """As cron, a service and a shell do; started at one instant, too.

    Then some of them come late to the owner: their own consumers have passed them on.
    """
    path = tmp_path / "app.log"
    processes = []
    for number in range(2 * starts):
        runtime = Path(os.environ["XDG_RUNTIME_DIR"]) / str(number)
        runtime.mkdir(mode=0o700)
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        arguments = (PROGRAM, path, number, 2000, 0.0005)
        processes.append(support.start(*arguments, env=environment))
        if starts == 1:
            wait_until(have(path, 1), what="records")
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    wait_until(lambda: not path.with_name(".app.log.owner").exists(), what="the end")
    found = records(path)
    assert_complete(found, {str(n): 2000 for n in range(2 * starts)})
    if starts == 1:
        assert_ordered(support.lines(path))


@pytest.mark.slow
def test_a_killed_consumer_of_a_run_gets_its_file_and_its_guests_back(
    tmp_path, program
):
    """The next one waits at the same address; nothing is lost or written twice."""
    path = tmp_path / "app.log"
    with run("--sink", f"file:{path}", program, "--", "", "a", 20_000, 0.0002) as first:
        wait_until(have(path, 1), what="records")
        with running(PROGRAM, path, "b", 15_000, 0.0002) as guest:
            for _ in range(3):
                pid = owner(path)["pid"]
                size = path.stat().st_size
                wait_until(lambda s=size: path.stat().st_size > s, what="records")
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda p=pid: owner(path)["pid"] != p, what="a new owner")
                assert f"/run-{first.pid}-" in owner(path)["socket"]
            assert guest.wait(60) == 0
            assert guest.stderr.read() == ""
        assert first.wait(60) == 0
    settled()
    assert_complete(sent(path), {"a": 20_000, "b": 15_000})
