"""`logagg tail` on files: what is shown, in bounded memory, through every rotation."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support import wait_until

from logagg.core.units import wire_time

BASE = 1_764_118_751_000_000_000
"""2025-11-26T00:59:11Z, a Wednesday: never today, so that a rule tells the day."""
RUN = "from logagg.cli.main import main; main()"
MILLION = 1_000_000


def line(number: int, **fields: Any) -> bytes:
    """A finished line of worker 1 … 4, a millisecond after the one before."""
    record = {
        "timestamp": wire_time(BASE + number * MILLION),
        "level": ("debug", "info", "warning", "error")[number % 4],
        "worker": str(number % 4 + 1),
        "seq": number,
        "logger": "app.db" if number % 3 else "web",
        "message": f"message {number}",
        "pid": 100,
        "n": number,
    }
    return orjson.dumps(record | fields) + b"\n"


def write(path: Path, numbers: range, **fields: Any) -> None:
    """A file with these lines."""
    path.write_bytes(b"".join(line(number, **fields) for number in numbers))


def command(*arguments: object, name: str = "tail") -> list[str]:
    """The command line that runs a viewer's command."""
    return [sys.executable, "-c", RUN, name, *map(str, arguments)]


def tail(*arguments: object, status: int = 0, stdin: bytes = b"") -> bytes:
    """What `logagg tail` prints; it must end with that status."""
    done = subprocess.run(
        command(*arguments), input=stdin, capture_output=True, timeout=250, check=False
    )
    assert done.returncode == status, done.stderr.decode()
    return done.stdout


def numbers(output: bytes) -> list[int]:
    """The numbers of the JSON lines in an output."""
    return [orjson.loads(each)["n"] for each in output.splitlines()]


class Follower:
    """A `logagg tail --json` in the background, and the numbers it has printed."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.output = b""
        self.notes = b""

    def read_until(self, done: Any, patience: float = 20.0) -> None:
        """Read what comes until `done(self)`, which must be before long."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.fileno(), self.process.stderr.fileno()
        deadline = time.monotonic() + patience
        while not done(self):
            left = deadline - time.monotonic()
            assert left > 0, (self.output[-500:], self.notes[-500:])
            ready, _, _ = select.select([out, err], [], [], left)
            for descriptor in ready:
                data = os.read(descriptor, 1 << 20)
                if descriptor == out:
                    self.output += data
                else:
                    self.notes += data

    def has(self, number: int) -> None:
        """Wait until a number was printed."""
        mark = f'"n":{number}'.encode()
        self.read_until(lambda me: re.search(mark + rb"\b", me.output))

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()


@contextlib.contextmanager
def following(*arguments: object) -> Iterator[Follower]:
    """A follower that is ended whatever happens."""
    follower = Follower(*arguments)
    try:
        yield follower
    finally:
        if follower.process.poll() is None:
            follower.stop()
        else:
            assert follower.process.stdout is not None
            assert follower.process.stderr is not None
            follower.process.stdout.close()
            follower.process.stderr.close()


@pytest.mark.slow
def test_the_last_ten_are_shown_unless_another_number_is_asked(tmp_path: Path) -> None:
    """-n counts records after filtering; `all` and 0 are numbers too."""
    log = tmp_path / "app.log"
    write(log, range(100))

    assert numbers(tail("--file", log, "--no-follow", "--json")) == [*range(90, 100)]
    assert numbers(tail("--file", log, "--no-follow", "--json", "-n", 3)) == [
        97,
        98,
        99,
    ]
    assert (
        len(numbers(tail("--file", log, "--no-follow", "--json", "-n", "all"))) == 100
    )
    tail("--file", log, "--no-follow", "-n", 0, status=1)
    errors = numbers(
        tail("--file", log, "--no-follow", "--json", "-n", 2, "-l", "error")
    )
    assert errors == [95, 99]


def test_rotated_and_compressed_files_are_one_log(tmp_path: Path) -> None:
    """`.2.gz`, `.1` and the file itself are read as one, oldest first."""
    zstandard = pytest.importorskip("zstandard")
    log = tmp_path / "app.log"
    third, second = b"".join(map(line, range(50))), b"".join(map(line, range(50, 100)))
    (tmp_path / "app.log.3.zst").write_bytes(zstandard.compress(third))
    (tmp_path / "app.log.2.gz").write_bytes(gzip.compress(second))
    write(tmp_path / "app.log.1", range(100, 150))
    write(log, range(150, 160))

    everything = ("--file", log, "--no-follow", "--json")
    assert numbers(tail(*everything, "-n", "all")) == [*range(160)]
    assert numbers(tail(*everything, "-n", 75)) == [*range(85, 160)]
    since = wire_time(BASE + 99 * MILLION)
    assert numbers(tail(*everything, "-S", since)) == [*range(99, 160)]


def test_several_files_are_merged_by_time(tmp_path: Path) -> None:
    """Files named together, also by the shell, come as one stream in order."""
    order = [*range(300)]
    random.Random(1).shuffle(order)
    names = []
    for index in range(3):
        names.append(tmp_path / f"{index}.log")
        chosen = sorted(order[index::3])
        names[-1].write_bytes(b"".join(map(line, chosen)))

    output = tail(*names, "--no-follow", "--json", "-n", "all")
    assert numbers(output) == [*range(300)]
    output = tail("worker=1", *names, "--no-follow", "--json", "-n", "all")
    assert numbers(output) == [n for n in range(300) if n % 4 == 0]
    strange = names[0].rename(tmp_path / "n=1.log")
    assert numbers(tail("--file", strange, "--no-follow", "--json", "-n", "all")) == (
        sorted(order[::3])
    )
    strange.rename(names[0])
    assert numbers(tail("--file", *names, "--no-follow", "--json", "-n", 7)) == [
        *range(293, 300)
    ]


@pytest.mark.slow
def test_since_and_until_take_both_ends_wherever_they_fall(tmp_path: Path) -> None:
    """A search by offset gives what a search of every line gives."""
    log = tmp_path / "app.log"
    write(log, range(20_000), padding="x" * 100)
    generator = random.Random(2)

    for _ in range(6):
        low, high = sorted(generator.sample(range(20_000), 2))
        since, until = (wire_time(BASE + n * MILLION) for n in (low, high))
        output = tail("--file", log, "--no-follow", "--json", "-S", since, "-U", until)
        assert numbers(output) == [*range(low, high + 1)]


@pytest.mark.slow
def test_late_blocks_do_not_mislead_the_search_by_offset(tmp_path: Path) -> None:
    """Long rows of records marked late stand anywhere; none that matches is missed."""
    log = tmp_path / "app.log"
    late = b"".join(line(n, late=True, padding="x" * 200) for n in range(3_000))
    ordered = [line(n, padding="x" * 200) for n in range(10_000, 16_000)]
    log.write_bytes(b"".join([*ordered[:3_000], late, *ordered[3_000:]]))

    for low in (10_500, 12_990, 13_005, 15_999):
        since = wire_time(BASE + low * MILLION)
        output = tail("--file", log, "--no-follow", "--json", "-S", since)
        assert numbers(output) == [*range(low, 16_000)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_way_of_asking_gives_the_same_records(tmp_path: Path) -> None:
    """All pairs of format, filter, number and following show the same set."""
    log = tmp_path / "app.log"
    write(log, range(60))
    formats = ["pretty", "plain", "json", "logfmt", "message", "full"]
    filters: list[tuple[list[str], Any]] = [
        ([], lambda n: n >= 0),
        (["-l", "warning"], lambda n: n % 4 >= 2),
        (["-g", "message 1"], lambda n: str(n).startswith("1")),
        (["n>=20", "-seq>=40"], lambda n: 20 <= n < 40),
        (["logger=app", "-w", "2"], lambda n: n % 3 != 0 and n % 4 == 1),
    ]
    for form, (chosen, keeps), count, follow in itertools.product(
        formats, filters, ["all", "5"], [True, False]
    ):
        wanted = [n for n in range(60) if keeps(n)]
        wanted = wanted if count == "all" else wanted[-5:]
        end = ["--timeout", "0.3s"] if follow else ["--no-follow"]
        output = tail("--file", log, "-o", form, *chosen, "-n", count, *end).decode()
        seen = re.findall(r"message (\d+)", output)
        assert [int(n) for n in seen] == wanted, (form, chosen, count, follow)


def test_standard_input_of_any_program(tmp_path: Path) -> None:
    """NDJSON with other names, and plain text, are shown under our names."""
    foreign = [
        {"ts": 1795568351.5, "severity": "WARN", "msg": "one", "n": 1},
        {"time": "2026-11-25T01:00:00Z", "lvl": "error", "message": "two", "n": 2},
        {"@timestamp": 1795568351500, "log.level": "Info", "event": "three", "n": 3},
        {"level": 50, "time": 1795568351500, "msg": "four", "hostname": "h", "n": 4},
    ]
    data = b"".join(json.dumps(each).encode() + b"\n" for each in foreign)

    shown = tail("-", "--utc", "--full", stdin=data + b"plain words\n").decode()
    assert re.findall(r"one|two|three|four|plain words", shown) == [
        "one", "two", "three", "four", "plain words",
    ]  # fmt: skip
    assert "00:59:11.500  WARN " in shown
    assert numbers(tail("-", "-l", "warning", "--json", stdin=data)) == [1, 2, 4]


def test_context_shows_neighbors_and_a_break_between_islands(tmp_path: Path) -> None:
    """-B and -A as grep's; windows that overlap merge."""
    log = tmp_path / "app.log"
    write(log, range(30))

    shown = tail(
        "--file", log, "--no-follow", "-n", "all", "-o", "message",
        "-B", 1, "-A", 2, "n=5 n=7 n=20",
    ).decode()  # fmt: skip

    expected = [f"message {n}" for n in (4, 5, 6, 7, 8, 9)]
    expected += ["--", *(f"message {n}" for n in (19, 20, 21, 22))]
    assert shown.splitlines() == expected
    last = tail(
        "--file", log, "--no-follow", "-n", 1, "-o", "message", "-C", 1, "n=5 n=20"
    )
    assert last.decode().splitlines() == ["message 19", "message 20", "message 21"]


def test_repeats_collapse_to_one_line_with_their_number(tmp_path: Path) -> None:
    """`--collapse` counts exactly and says from when to when."""
    log = tmp_path / "app.log"
    log.write_bytes(
        b"".join(
            line(n * 1000, level="info", logger="a", message="same") for n in range(37)
        )
        + line(50_000, message="other")
    )

    shown = tail("--file", log, "--no-follow", "-n", "all", "--collapse", "--utc")

    _, first, second = shown.decode().splitlines()
    assert "×37 (00:59:11–00:59:47)" in first
    assert "other" in second


def test_silence_and_a_new_day_get_a_rule(tmp_path: Path) -> None:
    """`--gaps` and the day's change are shown between records."""
    log = tmp_path / "app.log"
    log.write_bytes(line(0) + line(364_000) + line(90_000_000))

    shown = tail("--file", log, "--no-follow", "-n", "all", "--gaps", "5s", "--utc")

    lines = shown.decode().splitlines()
    assert any("01:05:15 ── 6m 4s of silence" in each for each in lines)
    assert any("Thursday 2025-11-27" in each for each in lines)


def test_changed_shows_only_fields_that_differ(tmp_path: Path) -> None:
    """A field that is as before for that worker and logger is not repeated."""
    log = tmp_path / "app.log"
    same = {"worker": "1", "logger": "a", "n": 1}
    log.write_bytes(line(0, **same, table="x") + line(4, **same, table="y"))

    shown = tail("--file", log, "--no-follow", "--changed").decode().splitlines()

    _, first, second = shown
    assert "n=1" in first
    assert "n=1" not in second
    assert "table=y" in second


def test_a_traceback_is_filtered_as_one_record(tmp_path: Path) -> None:
    """Hidden, none of its lines appear; found by its text only, all of them do."""
    log = tmp_path / "app.log"
    error = {"type": "E", "message": "m", "stack": "Traceback\n  in charge\nE: m"}
    log.write_bytes(line(0, exception=error) + line(1, message="plain"))

    hidden = tail("--file", log, "--no-follow", "-v", "charge").decode()
    found = tail("--file", log, "--no-follow", "-g", "charge").decode()

    assert "Traceback" not in hidden
    assert "E: m" not in hidden
    assert [each.lstrip(" │") for each in found.splitlines()[2:]] == [
        "Traceback",
        "in charge",
        "E: m",
    ]


def test_what_to_stop_at_ends_it_with_its_status(tmp_path: Path) -> None:
    """-m, --until-match and --timeout, each with the status that says which."""
    log = tmp_path / "app.log"
    write(log, range(20))

    assert numbers(tail("--file", log, "--json", "-n", "all", "-m", 3)) == [0, 1, 2]
    until = tail("--file", log, "--json", "-n", "all", "--until-match", "message 4")
    assert numbers(until) == [*range(5)]
    tail("--file", log, "--timeout", "0.2s", "-g", "nothing", status=1)
    tail("--file", log, "--no-follow", "-g", "nothing", status=1)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--file", "nowhere.log", "--no-follow"], "there is no such file"),
        (["level=>error"], "level>=error"),
        (["-l", "errr"], "'error'"),
        (["-S", "tomorow"], "expected a date-time"),
        (["-g", "(a+)+"], "exponential"),
        (["--json", "-o", "full"], "contradict"),
        (["-n", "some"], "expected a number, or all"),
        (["--timeout", "soon"], "such as 10s"),
        (["--colour", "never"], "--color"),
        (["nowhere.log"], "neither a file, nor a program"),
        (["timeout"], "-g 'timeout'"),
        (["app.log", "-"], "cannot be read together"),
    ],
)
def test_wrong_usage_is_one_clear_error(
    arguments: list[str], hint: str, tmp_path: Path
) -> None:
    """Status 2, and the message names what would be right."""
    (tmp_path / "app.log").touch()
    done = subprocess.run(
        command(*arguments), capture_output=True, cwd=tmp_path, timeout=90, check=False
    )

    assert done.returncode == 2
    assert hint in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_cursor_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Behind that very line, so a late line written after it is shown as well."""
    log, cursor = tmp_path / "app.log", tmp_path / "cursor"
    write(log, range(10))
    first = ("--file", log, "--no-follow", "--json", "--cursor-file", cursor)
    assert numbers(tail(*first)) == [*range(10)]

    with log.open("ab") as file:
        file.write(line(3, late=True, seq=1000) + line(11) + line(12))

    assert numbers(tail(*first)) == [3, 11, 12]
    tail(*first, status=1)
    os.replace(log, tmp_path / "app.log.1")
    write(log, range(13, 15))
    assert numbers(tail(*first)) == [13, 14]


def test_lines_are_followed_as_they_are_written(tmp_path: Path) -> None:
    """A line counts when its newline is there, not before."""
    log = tmp_path / "app.log"
    write(log, range(3))
    with following("--file", log, "--json", "-n", 1) as follower:
        follower.has(2)
        with log.open("ab", 0) as file:
            whole = line(3)
            file.write(whole[:20])
            file.write(whole[20:] + line(4))
            follower.has(4)

        assert numbers(follower.output) == [2, 3, 4]
        assert follower.stop() == 130


@pytest.mark.slow
def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A note says so after two seconds; then its lines come from the first on."""
    log = tmp_path / "app.log"
    with following("--file", log, "--json") as follower:
        follower.read_until(lambda me: b"-- waiting for" in me.notes)
        write(log, range(2))
        follower.has(1)

        assert numbers(follower.output) == [0, 1]


def test_a_truncated_file_starts_anew(tmp_path: Path) -> None:
    """Shorter, or with another beginning though longer: read from 0, with a note."""
    log = tmp_path / "app.log"
    write(log, range(5))
    with following("--file", log, "--json", "-n", "all") as follower:
        follower.has(4)
        write(log, range(5, 7))
        follower.has(6)
        write(log, range(7, 40))
        follower.has(39)

        assert numbers(follower.output) == [*range(40)]
        assert follower.notes.count(b"was truncated") == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rename", "compress", "delete", "replace"])
def test_a_hundred_rotations_lose_and_repeat_nothing(tmp_path: Path, how: str) -> None:
    """Every number once and in order, however the file is taken away."""
    log = tmp_path / "app.log"
    log.touch()
    count = 0
    with following("--file", log, "--json", "-n", "all") as follower:
        for rotation in range(100):
            with log.open("ab", 0) as file:
                for _ in range(7):
                    file.write(line(count))
                    count += 1
            if how in ("delete", "replace") or rotation % 5 == 0:
                follower.has(count - 1)  # what is deleted unread is lost to anybody
            _take_away(log, how)
        with log.open("ab") as file:
            file.write(line(count))
        follower.has(count)

        assert numbers(follower.output) == [*range(count + 1)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("logrotate") is None, reason="needs logrotate")
@pytest.mark.parametrize("option", ["create", "create\ncompress", "copytruncate"])
def test_logrotate_does_not_confuse_a_follower(tmp_path: Path, option: str) -> None:
    """Ten turns of the real one between records: every number once and in order."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o755)
    log, config = folder / "app.log", tmp_path / "conf"
    log.touch()
    config.write_text(f"{log} {{\nrotate 100\n{option}\n}}\n")
    rotate = ["logrotate", "-f", "-s", str(tmp_path / "state"), str(config)]
    with following("--file", log, "--json", "-n", "all") as follower:
        for turn in range(10):
            write(log, range(turn * 20, turn * 20 + 20))
            if option == "copytruncate" or turn % 2:
                follower.has(turn * 20 + 19)  # what is truncated unread is lost to all
            subprocess.run(rotate, check=True)
        write(log, range(200, 201))
        follower.has(200)

        assert numbers(follower.output) == [*range(201)]


def _take_away(log: Path, how: str) -> None:
    if how == "delete":
        log.unlink()
    elif how == "replace":
        other = log.with_name("other")
        other.touch()
        other.replace(log)
        return
    else:
        for number in range(12, 0, -1):
            for suffix in ("", ".gz"):
                old = log.with_name(f"app.log.{number}{suffix}")
                if old.exists():
                    old.rename(log.with_name(f"app.log.{number + 1}{suffix}"))
        rotated = log.with_name("app.log.1")
        log.rename(rotated)
        if how == "compress":
            packed = log.with_name("app.log.1.gz.new")
            packed.write_bytes(gzip.compress(rotated.read_bytes()))
            packed.rename(log.with_name("app.log.1.gz"))
            rotated.unlink()
    log.touch()


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    """`| head -1` leaves no complaint and no process, even when nothing more comes."""
    log = tmp_path / "app.log"
    write(log, range(20_000))
    shell = " ".join(f"'{part}'" for part in command("--file", log, "-n", "all"))
    started = time.monotonic()

    done = subprocess.run(
        ["bash", "-c", f"{shell} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=90,
        check=False,
    )

    assert done.stdout.splitlines()[-1] == b"0"
    assert done.stderr == b""
    assert time.monotonic() - started < 15


def test_a_reader_that_leaves_a_quiet_log_is_noticed(tmp_path: Path) -> None:
    """Nothing is written to the pipe any more, and still the viewer ends."""
    log = tmp_path / "app.log"
    write(log, range(2))
    process = subprocess.Popen(command("--file", log), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["-n", "all"], ["-n", "all", "-C", "2", "-m", "9"]]
)
def test_a_million_lines_need_bounded_memory(tmp_path: Path, extra: list[str]) -> None:
    """The most memory used is far below the file's size."""
    log = tmp_path / "app.log"
    with log.open("wb") as file:
        block = b"".join(line(n, level="info") for n in range(10_000))
        for _ in range(100):
            file.write(block)
    program = (
        "import sys\nfrom logagg.cli.main import main\nmain(standalone_mode=False)\n"
        "peak = [x for x in open('/proc/self/status') if x.startswith('VmHWM')]\n"
        "print(peak[0].split()[1], file=sys.stderr)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "tail",
            "--file",
            log,
            "--no-follow",
            "-q",
            *extra,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=250,
        check=False,
    )

    assert int(done.stderr.split()[-1]) < 90_000  # KiB; the file has 170 MB


def test_a_ten_megabyte_line_is_one_record(tmp_path: Path) -> None:
    """Longer than any chunk, it is read, filtered and followed whole."""
    log = tmp_path / "app.log"
    log.write_bytes(line(0) + line(1, message="x" * 10_000_000) + line(2))

    output = tail("--file", log, "--no-follow", "--json", "-n", 2)

    assert numbers(output) == [1, 2]
    assert len(output) > 10_000_000
    with following("--file", log, "--json", "-n", 1) as follower:
        follower.has(2)
        with log.open("ab") as file:
            file.write(line(3, message="y" * 10_000_000) + line(4))
        follower.has(4)

        assert numbers(follower.output) == [2, 3, 4]


@pytest.mark.slow
def test_what_others_put_beside_a_file_neither_stops_nor_exhausts_it(
    tmp_path: Path,
) -> None:
    """A FIFO, a directory and an archive of 100 MB of zeros, in 600 MB of memory."""
    log = tmp_path / "app.log"
    write(log, range(3))
    os.mkfifo(tmp_path / "app.log.1")
    (tmp_path / "app.log.2").mkdir()
    (tmp_path / "app.log.3.gz").write_bytes(gzip.compress(bytes(100 << 20), 1))
    limit = (600 << 20, 600 << 20)

    done = subprocess.run(
        command("--file", log, "--no-follow", "-n", 100, "--json"),
        capture_output=True,
        timeout=250,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        check=False,
    )

    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.splitlines()
    assert [orjson.loads(each)["n"] for each in lines[-3:]] == [0, 1, 2]
    assert len(done.stdout) < 8 << 20
    message = tail("--file", tmp_path / "app.log.1", status=2)
    assert not message


def test_a_signal_ends_the_reading_of_a_long_archive(tmp_path: Path) -> None:
    """TERM ends it in the middle of a file that has no match."""
    log = tmp_path / "app.log"
    log.touch()
    member = gzip.compress(b"{}\n" * (1 << 20), 1)
    (tmp_path / "app.log.1.gz").write_bytes(member * 2000)
    process = subprocess.Popen(
        command("--file", log, "--no-follow", "-g", "nothing", "-n", 10)
    )
    opened = Path(f"/proc/{process.pid}/fd")

    def reading() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(
                str(each.readlink()).endswith(".gz") for each in opened.iterdir()
            )
        return False

    try:
        wait_until(reading)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_stats_counts_everything_once(tmp_path: Path) -> None:
    """Totals by level, worker, logger and message shape, over rotated files too."""
    log = tmp_path / "app.log"
    write(tmp_path / "app.log.1", range(100))
    write(log, range(100, 200))

    done = subprocess.run(
        command("--file", log, "--json", name="stats"), capture_output=True, check=True
    )

    counts = orjson.loads(done.stdout)
    assert counts["records"] == 200
    assert counts["by"]["level"]["error"] == 50
    assert counts["by"]["worker"] == {str(n): 50 for n in range(1, 5)}
    assert counts["by"]["message"] == {"message #": 200}
    over_time = [sum(each["counts"].values()) for each in counts["over_time"]]
    assert sum(over_time) == 200
    shown = subprocess.run(
        command("--file", log, "--by", "logger", "logger=web", name="stats"),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert re.search(r"web\s+67\s+100\.0%", shown)


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""
"""Runs a command, and prints its peak memory. A child of a large process has its peak."""


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_an_archive_with_long_lines_costs_little_memory(
    tmp_path: Path, form: str
) -> None:
    """Of lines of 8 MB the newest are shown, as many as fit, and a note states that."""
    head = line(1).rstrip(b"}\n") + b',"value":"'
    member = gzip.compress(head + b"a" * 8_000_000 + b'"}\n', 1)
    log = tmp_path / "app.log.gz"
    log.write_bytes(member * 50)

    viewed = command("--file", log, "--no-follow", "-n", 50, "-o", form)
    viewer = subprocess.run(
        [sys.executable, "-c", MEASURED, *viewed],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True,
    )  # fmt: skip
    *notes, kilobytes = viewer.stderr.splitlines()

    assert b"older lines are too long; the last 4" in b"\n".join(notes)
    assert int(kilobytes) < 250_000  # all of them took 600,000 and more
