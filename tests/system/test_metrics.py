"""The numbers for Prometheus and the health: well-formed, and they add up."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from prometheus_client.parser import text_string_to_metric_families
from serving import LOGAGG, Serve, serving

pytestmark = pytest.mark.slow  # many real processes, some seconds each

Numbers = dict[str, dict[tuple[tuple[str, str], ...], float]]


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[str, str]:
    """The body and the type of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def numbers(port: int) -> Numbers:
    """All samples by name and labels, read by the official parser."""
    text, kind = get(port, "/metrics")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found: Numbers = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found[sample.name], (sample.name, labels)
            found[sample.name][labels] = sample.value
    return found


def of_sink(found: Numbers, part: str) -> dict[str, float]:
    """What is said of the one sink whose label has this in it, by metric's name."""
    totals: dict[str, float] = defaultdict(float)
    for name, samples in found.items():
        for labels, value in samples.items():
            if part in dict(labels).get("sink", ""):
                totals[name.removeprefix("logagg_sink_")] += value
    return totals


def balanced(s: dict[str, float]) -> None:
    """What came is what went, where it waits, and what was dropped."""
    came = s["offered_total"] + s["recovered_total"] + s["made_total"]
    shaped = sum(
        s[f"{name}_total"]
        for name in ("filtered", "sampled", "collapsed", "duplicates")
    )
    dropped = s["dropped_total"]
    assert dropped == s["dropped_levels_total"]
    waits = s["queue_records"] + s["spool_records"]
    assert came == shaped + s["written_total"] + dropped + waits, dict(s)


@contextmanager
def broken(serve: Serve) -> Iterator[None]:
    """`ill.log` cannot be written for a while: a directory has its name."""
    path = serve.folder / "ill.log"
    path.rename(path.with_suffix(".aside"))
    path.mkdir()
    serve.signal(signal.SIGUSR1)
    support.wait_until(lambda: "directory" in serve.sink("ill.log")["error"])
    try:
        yield
    finally:
        path.rmdir()


def written(folder: Path, *, service: bool = False) -> list[dict[str, Any]]:
    """The records of `ill.log`, before and after it was broken."""
    names = ("ill.aside", "ill.log")
    paths = [folder / name for name in names if (folder / name).is_file()]
    return support.records(*paths, service=service)


def of(who: str, found: list[dict[str, Any]]) -> list[int]:
    """The numbers of a sender's records."""
    return [each["n"] for each in found if each.get("who") == who]


def settled(serve: Serve, port: int, count: int) -> Numbers:
    """The numbers when so many records of a program have come to every sink."""

    def come() -> Numbers | None:
        found = numbers(port)
        return found if found["logagg_records_total"][()] >= count else None

    assert serve.process.poll() is None
    found: Numbers = support.wait_until(come)
    return found


def test_counters_follow_what_is_logged(tmp_path: Path) -> None:
    """Records and bytes a worker and a sink, as the files say."""
    port = free_port()
    sinks = ("--sink", "file:app.log", "--sink", "file:errors.log?level=error")
    with serving(tmp_path, *sinks, "--metrics", f":{port}") as serve:
        with support.running(
            support.PREAMBLE
            + """\
logging.basicConfig(handlers=[logagg.Handler()], level="DEBUG")
for n in range(100):
    logging.log(40 if n % 10 == 0 else 20, "m")
logging.getLogger().handlers[0].flush()
print("ready", flush=True)
sys.stdin.readline()
""",
            stdin=subprocess.PIPE,
            env={**os.environ, "LOGAGG_SOCKET": serve.socket},
        ) as process:
            process.stdout.readline()
            found = settled(serve, port, 100)
            status = serve.status()
            process.stdin.write("\n")
            process.stdin.close()
            process.wait(10)
        assert serve.stop() == 0

    ((labels, records),) = found["logagg_worker_records_total"].items()
    assert records == 100
    assert dict(labels)["pid"] == str(process.pid)
    everything, errors = of_sink(found, "app.log"), of_sink(found, "errors.log")
    assert (everything["written_total"], errors["written_total"]) == (100, 10)
    assert (everything["up"], everything["bytes_total"] > 100) == (1, True)
    assert errors["filtered_total"] == 90
    balanced(everything)
    balanced(errors)
    by_url = {
        Path(each["url"]).name.partition("?")[0]: each for each in status["sinks"]
    }
    assert by_url["app.log"]["written"] == 100
    assert status["workers"][0]["bytes"] > 0
    assert {"lag", "late", "pending", "refused"} <= status.keys()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["spool", "drop_old", "drop_new"])
def test_a_dead_file_does_not_stop_the_others_and_the_numbers_add_up(
    tmp_path: Path, policy: str
) -> None:
    """in = written + dropped + waiting, while a sink is dead, and when it is back."""
    port = free_port()
    dead = f"file:ill.log?queue_records=500&policy={policy}&queue_spool_bytes=300000"
    sinks = ("--sink", dead, "--sink", "file:well.log")
    with serving(tmp_path, *sinks, "--metrics", f":{port}") as serve:
        serve.logs("a", 100)
        with broken(serve):
            serve.logs("b", 20_000)
            support.wait_until(support.have(tmp_path / "well.log", 20_100))
            found = settled(serve, port, 20_100)
            sink = of_sink(found, "ill.log")
            balanced(sink)
            balanced(of_sink(found, "well.log"))
            assert sink["up"] == 0
            assert sink["dropped_total"] > 0
            assert sink["oldest_seconds"] > 0
            health = json.loads(get(port, "/health")[0])
            assert health["status"] == "degraded"
            (ill,) = [each for each in health["sinks"] if "ill.log" in each["sink"]]
            assert ill["state"] == "retrying"
            assert "ill.log" in ill["error"]
        support.wait_until(
            lambda: of_sink(numbers(port), "ill.log")["queue_records"] == 0
        )
        found = numbers(port)
        sink = of_sink(found, "ill.log")
        balanced(sink)
        assert json.loads(get(port, "/health")[0])["status"] == "ok"
        dropped = {
            dict(labels)["level"]: value
            for labels, value in found["logagg_sink_dropped_levels_total"].items()
            if "ill.log" in dict(labels)["sink"]
        }
        assert serve.stop() == 0

    got = written(tmp_path, service=True)
    assert len(got) == sink["written_total"]
    assert of("b", got) == sorted(set(of("b", got)))
    # 2000 of the 20,000 are errors: more than the queue holds, so some may go, but
    # nothing that is less severe stays in memory for them.
    assert dropped["info"] >= 9 * dropped.get("error", 0)
    well = [e["n"] for e in support.records(tmp_path / "well.log") if e["who"] == "b"]
    assert well == list(range(20_000))


def test_a_dead_file_loses_nothing_while_there_is_room_on_disk(tmp_path: Path) -> None:
    """By default what a file cannot take is parked, and comes back in order."""
    sinks = ("--sink", "file:ill.log?queue_records=500", "--sink", "file:well.log")
    with serving(tmp_path, *sinks) as serve:
        serve.logs("a", 10)
        with broken(serve):
            began = time.monotonic()
            serve.logs("a2", 20_000)
            assert time.monotonic() - began < 4  # all is safe, so its end does not wait
            support.wait_until(support.have(tmp_path / "well.log", 20_010))
            sink = serve.sink("ill.log")
            assert sink["spool_records"] > 15_000
            assert sink["spool_bytes"] > 0
        support.wait_until(support.have(tmp_path / "ill.log", 20_000))
        assert serve.stop() == 0

    assert of("a2", written(tmp_path)) == list(range(20_000))


@pytest.mark.slow
@pytest.mark.leaves_files
def test_what_is_parked_survives_the_consumers_death(tmp_path: Path) -> None:
    """kill -9 with records parked: the next consumer of the file writes them, once."""
    sinks = ("--sink", "file:ill.log?queue_records=500")
    with serving(tmp_path, *sinks) as serve:
        serve.logs("a", 10)
        with broken(serve):
            serve.logs("b", 5_000)
            support.wait_until(lambda: serve.sink("ill.log")["spool_records"] > 4_000)
            serve.signal(signal.SIGKILL)
            serve.process.wait(10)
    with serving(tmp_path, *sinks) as serve:
        serve.logs("c", 10)
        support.wait_until(support.have(tmp_path / "ill.log", 5_010))
        assert serve.sink("ill.log")["recovered"] > 4_000
        assert serve.stop() == 0

    got = written(tmp_path)
    assert of("b", got) == list(range(5_000))
    assert of("c", got) == list(range(10))


@pytest.mark.slow
def test_full_disk_from_the_first_byte_on(tmp_path: Path) -> None:
    """A file on a full disk (/dev/full) delays nobody and is reported."""
    with serving(
        tmp_path,
        *("--sink", "file:/dev/full?queue_records=500&queue_spool_bytes=100000"),
        *("--sink", "file:well.log"),
    ) as serve:
        serve.logs("a", 20_000)
        support.wait_until(support.have(tmp_path / "well.log", 20_000))
        assert "No space left" in serve.sink("/dev/full")["error"]
        assert serve.sink("/dev/full")["dropped"]["spool_full"] > 0
        serve.stop()
    assert support.events("sink_error", tmp_path / "well.log")
    assert support.events("dropped", tmp_path / "well.log")


def test_the_endpoint_is_off_unless_asked_and_local_unless_named(
    tmp_path: Path,
) -> None:
    """Nothing listens on TCP by default; `:PORT` is loopback."""

    def listening(pid: int) -> list[str]:
        inodes = set()
        for each in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(each))
            except OSError:
                continue
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        rows += Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:]
        return [r.split()[1] for r in rows if f"socket:[{r.split()[9]}]" in inodes]

    with serving(tmp_path, "--sink", "file:app.log") as serve:
        assert listening(serve.process.pid) == []
        assert serve.stop() == 0
    port = free_port()
    with serving(tmp_path, "--sink", "file:app.log", "--metrics", f":{port}") as serve:
        assert listening(serve.process.pid) == [f"0100007F:{port:04X}"]
        assert serve.stop() == 0


def test_a_unix_socket_is_private_and_goes_with_the_consumer(tmp_path: Path) -> None:
    """Mode 0600; a stale one is replaced, and none stays behind."""
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving(
        tmp_path, "--sink", "file:app.log", "--metrics", f"unix:{path}"
    ) as serve:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        assert b'"status":"ok"' in answer
        assert serve.stop() == 0
    assert not path.exists()


def test_an_address_in_use_is_one_clear_error(tmp_path: Path) -> None:
    """Before anything is started, naming the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for words in (["serve"], ["run", "app.py"]):
            (tmp_path / "app.py").write_text("")
            done = support.finish(
                [*LOGAGG, words[0], "--metrics", f":{port}", *words[1:]],
                status=2,
                cwd=tmp_path,
            )
            assert done.stderr.splitlines() == [
                f"logagg: metrics ':{port}': Address already in use"
            ] or done.stderr.startswith(f"logagg: metrics ':{port}': Address already")


def test_a_run_has_the_endpoint_too_and_keeps_it_over_the_consumers_death(
    tmp_path: Path,
) -> None:
    """`run --metrics`: the port is the supervisor's, so a new consumer goes on there."""
    port = free_port()
    (tmp_path / "app.py").write_text(
        "import logging, time\n"
        "while True:\n    logging.warning('m')\n    time.sleep(0.05)\n"
    )
    command = [*LOGAGG, "run", "-w", "2", "--sink", "file:app.log"]
    with subprocess.Popen(
        [*command, "--metrics", f":{port}", "app.py"], cwd=tmp_path
    ) as process:
        try:

            def workers() -> bool:
                try:
                    found = numbers(port)["logagg_worker_records_total"]
                except OSError:
                    return False
                return {dict(labels)["worker"] for labels in found} == {"1", "2"}

            support.wait_until(workers)
            os.kill(support.consumer(), signal.SIGKILL)
            support.wait_until(workers)
        finally:
            process.terminate()
            process.wait(30)


def status_with(*urls: str) -> dict[str, Any]:
    """A consumer's status with sinks of these URLs, as it comes from a real lane."""
    import asyncio

    from logagg.fanout.fanout import Fanout
    from logagg.sinks import wrap
    from logagg.testing import MemorySink

    class Named(MemorySink):
        name = ""

        @property
        def url(self) -> str:
            return self.name

    async def made() -> list[dict[str, Any]]:
        fanout = Fanout(lambda *_: None, lambda: None)
        for number, url in enumerate(urls):
            sink = Named()
            sink.name = url
            await fanout.add(str(number), wrap(sink))
        found = fanout.statistics()
        await fanout.close(1)
        return found

    return {"workers": [], "ended": {}, "sinks": asyncio.run(made())}


def test_labels_are_unique_escaped_and_hold_no_secret() -> None:
    """Two sinks at one address are told apart; of a URL only the address is said."""
    from logagg.consumer.metrics import health, render

    urls = ["http://u:pw@h/p?token=pw", "http://h/p?x=1", 'file:a"b\\c\nd']
    status = status_with(*urls)
    found = [
        sample.labels["sink"]
        for family in text_string_to_metric_families(render(status).decode())
        if family.name == "logagg_sink_up"
        for sample in family.samples
    ]

    assert found == ["http://h/p", "http://h/p#2", 'file:a"b\\c\nd']
    assert "pw" not in render(status).decode() + json.dumps(health(status))
