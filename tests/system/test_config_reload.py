"""A changed configuration comes into force without losing a record."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import support
from serving import serving

pytestmark = pytest.mark.slow  # many real processes, some seconds each


def configure(folder: Path, *sinks: str) -> None:
    """Write a configuration with these sinks."""
    listed = ", ".join(f'"{sink}"' for sink in sinks)
    (folder / "logagg.toml").write_text(f"sinks = [{listed}]\n")


def lines_of(path: Path, who: str) -> list[int]:
    """The numbers of a sender's records in a file."""
    return [each["n"] for each in support.records(path) if each["who"] == who]


def test_sinks_come_and_go_under_load_without_losing_a_record(tmp_path: Path) -> None:
    """The one that stays has all; old and new ones have a beginning and an end."""
    configure(tmp_path, "file:stay.log", "file:old.log")
    with serving(tmp_path) as serve:
        sender = serve.flood("a", 8_000, 0.0001)
        support.wait_until(support.have(tmp_path / "old.log", 100))
        configure(tmp_path, "file:stay.log", "file:new.log")
        serve.signal(signal.SIGHUP)
        support.wait_until(support.have(tmp_path / "new.log", 100))
        sender.communicate(timeout=90)
        status = serve.status()
        assert serve.stop() == 0

    assert lines_of(tmp_path / "stay.log", "a") == list(range(8_000))
    old = lines_of(tmp_path / "old.log", "a")
    new = lines_of(tmp_path / "new.log", "a")
    assert old + new == list(range(8_000))
    assert 0 < len(old) < 8_000
    assert [each["url"].rpartition("/")[2] for each in status["sinks"]] == [
        "stay.log",
        "new.log",
    ]


def test_a_sink_with_other_options_takes_over_its_file(tmp_path: Path) -> None:
    """The same file before and after, each record once and in order."""
    configure(tmp_path, "file:app.log")
    with serving(tmp_path) as serve:
        sender = serve.flood("a", 8_000, 0.0001)
        support.wait_until(support.have(tmp_path / "app.log", 100))
        for level in ("debug", "info", "0"):
            configure(tmp_path, f"file:app.log?level={level}")
            assert serve.run("reload", "--socket", serve.socket).returncode == 0
        sender.communicate(timeout=90)
        assert serve.stop() == 0

    assert lines_of(tmp_path / "app.log", "a") == list(range(8_000))
    support.assert_ordered(support.lines(tmp_path / "app.log"))


def test_a_bad_configuration_is_refused_in_one_line_and_the_old_one_stays(
    tmp_path: Path,
) -> None:
    """By signal and by command; what was written before is written on."""
    configure(tmp_path, "file:app.log")
    with serving(tmp_path) as serve:
        serve.logs("a", 100)
        before = serve.errors.read_text()
        configure(tmp_path, "file:other.log", "fiel:x.log")
        done = serve.run("reload")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "did you mean 'file'" in done.stderr
        assert "logagg.toml" in done.stderr
        serve.signal(signal.SIGHUP)
        support.wait_until(
            lambda: len(support.events("reload_refused", tmp_path / "app.log")) == 2
        )
        serve.logs("b", 100)
        said = serve.errors.read_text().removeprefix(before).splitlines()
        assert len(said) == 2
        assert serve.stop() == 0

    assert all(line.startswith("logagg: not reloaded: ") for line in said)
    assert lines_of(tmp_path / "app.log", "b") == list(range(100))
    assert not (tmp_path / "other.log").exists()


@pytest.mark.parametrize("text", ["", "sinks = []\n", None])
def test_a_configuration_without_sinks_is_refused(
    tmp_path: Path, text: str | None
) -> None:
    """Emptied or removed by mistake: what is in force is not replaced by stdout."""
    configure(tmp_path, "file:app.log")
    path = tmp_path / "logagg.toml"
    with serving(tmp_path) as serve:
        serve.logs("a", 10)
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        done = serve.run("reload", "--socket", serve.socket)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "names no sinks" in done.stderr
        serve.logs("b", 10)
        assert serve.stop() == 0

    assert lines_of(tmp_path / "app.log", "b") == list(range(10))
    (refused,) = support.events("reload_refused", tmp_path / "app.log")
    assert refused["level"] == "error"


def test_all_or_nothing_when_a_new_sink_cannot_be_opened(tmp_path: Path) -> None:
    """One that opened already is let go again, and the old ones go on."""
    configure(tmp_path, "file:app.log")
    (tmp_path / "folder").mkdir()
    with serving(tmp_path) as serve:
        serve.logs("a", 10)
        configure(tmp_path, "file:good.log", "file:folder/app.log", "file:app.log?x=1")
        assert serve.run("reload").returncode == 2
        configure(tmp_path, "file:good.log", "file:missing/app.log")
        assert serve.run("reload").returncode == 2
        serve.logs("b", 10)
        urls = [each["url"] for each in serve.status()["sinks"]]
        assert serve.stop() == 0

    assert urls == [f"file:{tmp_path}/app.log"]
    assert lines_of(tmp_path / "app.log", "b") == list(range(10))


def test_an_unchanged_sink_is_opened_anew_only(tmp_path: Path) -> None:
    """HUP serves log rotation from outside as before, with its counters kept."""
    configure(tmp_path, "file:app.log")
    with serving(tmp_path) as serve:
        serve.logs("a", 100)
        support.wait_until(support.have(tmp_path / "app.log", 100))
        (tmp_path / "app.log").rename(tmp_path / "app.log.1")
        serve.signal(signal.SIGHUP)
        support.wait_until((tmp_path / "app.log").exists)
        serve.logs("b", 100)
        support.wait_until(support.have(tmp_path / "app.log", 100))
        assert serve.sink("app.log")["written"] >= 200
        assert serve.stop() == 0

    assert lines_of(tmp_path / "app.log.1", "a") == list(range(100))
    assert lines_of(tmp_path / "app.log", "b") == list(range(100))


def test_sinks_of_the_command_line_are_not_taken_away(tmp_path: Path) -> None:
    """A file beside does not change what the command line decided."""
    configure(tmp_path, "file:other.log")
    with serving(tmp_path, "--sink", "file:app.log") as serve:
        assert serve.run("reload").returncode == 0
        serve.logs("a", 10)
        assert serve.stop() == 0

    assert lines_of(tmp_path / "app.log", "a") == list(range(10))
    assert not (tmp_path / "other.log").exists()


def test_a_sink_that_a_process_asked_for_outlives_the_configuration(
    tmp_path: Path,
) -> None:
    """A handler's own file is not taken away by a reload."""
    configure(tmp_path, "file:app.log", "file:own.log")
    code = (
        support.PREAMBLE
        + """\
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="DEBUG")
for n in range(2):
    logging.info("m", extra={"who": "own", "n": n})
    print(n, flush=True)
    sys.stdin.readline()
"""
    )
    with serving(tmp_path) as serve:
        with support.running(
            code,
            tmp_path / "own.log",
            stdin=subprocess.PIPE,
            env={**os.environ, "LOGAGG_SOCKET": serve.socket},
        ) as process:
            support.wait_until(support.have(tmp_path / "own.log", 1))
            configure(tmp_path, "file:app.log")
            assert serve.run("reload").returncode == 0
            process.stdin.write("\n")
            process.stdin.flush()
            support.wait_until(support.have(tmp_path / "own.log", 2))
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait(10)
        assert serve.stop() == 0

    assert lines_of(tmp_path / "own.log", "own") == [0, 1]


class SlowTarget(ThreadingHTTPServer):
    """A network target that answers no request before it may.

    Attributes:
        seen: The key and the body of each request, as they came.
    """

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.seen: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), SlowAnswer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def numbers(self, who: str) -> list[int]:
        """What a sender's records had, each request once."""
        bodies = dict(self.seen).values()
        lines = [line for body in bodies for line in body.splitlines()]
        return [n["n"] for n in map(orjson.loads, lines) if n.get("who") == who]


class SlowAnswer(BaseHTTPRequestHandler):
    """One request."""

    server: SlowTarget

    def do_POST(self) -> None:
        """Note it, and answer later."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.headers["Idempotency-Key"], body))
        self.server.may_answer.wait(90)
        with suppress(OSError):  # the client has given it up
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        """No word."""


def test_a_network_sink_that_comes_back_repeats_nothing_but_a_request(
    tmp_path: Path,
) -> None:
    """Taken out and put back while the target is slow: that one request comes again.

    It is the same, by its key and to the byte, so the target can leave it out.
    """
    target = SlowTarget()
    address = f"http://127.0.0.1:{target.server_port}/in"
    url = f"{address}?batch_age=10ms&compress=none&grace=0.2s"
    configure(tmp_path, "file:app.log", url)
    with serving(tmp_path, "--config", str(tmp_path / "logagg.toml")) as serve:
        serve.logs("a", 100)
        support.wait_until(lambda: target.seen, what="a request")
        for sinks in (["file:app.log"], ["file:app.log", url]):
            configure(tmp_path, *sinks)
            assert serve.run("reload").returncode == 0
        support.wait_until(lambda: len(target.seen) > 1, what="the request again")
        target.may_answer.set()
        serve.logs("b", 100)
        support.wait_until(lambda: len(target.numbers("b")) >= 100, what="the rest")
        assert serve.stop() == 0
    target.shutdown()
    target.server_close()

    keys = [key for key, _ in target.seen]
    assert keys[0] == keys[1]
    assert len(set(target.seen)) == len(set(keys)) == len(keys) - 1
    assert sorted(target.numbers("a")) == list(range(100))
    assert sorted(target.numbers("b")) == list(range(100))
    assert lines_of(tmp_path / "app.log", "b") == list(range(100))
