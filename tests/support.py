"""What the tests of real processes share: start programs, wait, read what was written.

Nothing here knows how logagg works inside: programs are started as a user starts them,
and judged by the files that they leave behind.
"""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from logagg.platform import packets, system

MOST_LATE = 10
"""How many records of a test may be late. None is on a quiet machine."""

SUITE_SEED = 20_261_130
"""What is drawn by it is the same in each run of the suite."""


def fault_seed(seconds: float | None) -> int:
    """The seed of random faults: `SUITE_SEED`, or another one where a length is asked."""
    return random.randrange(2**32) if seconds else SUITE_SEED


PREAMBLE = """\
import logging, os, signal, sys, time
import logagg
"""

BASIC = (
    PREAMBLE
    + """\
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="DEBUG")
log = logging.getLogger("app")
"""
)
"""The two lines that a user writes, with the file as the program's first argument."""


linux_form = pytest.mark.skipif(
    not system.LINUX,
    reason="it is about what the portable form lacks, or does otherwise",
)
"""A test of what Linux alone has; `test_house.py` counts them."""


class PacketSocket:
    """A socket that sends and receives packets in the form that is tested."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet."""
        packets.send(self._socket, packet, descriptors)

    def recv(self, size: int) -> bytes:
        """The next packet; its descriptors are closed."""
        while True:
            try:
                return packets.receive(self._socket, size)[0]
            except BlockingIOError:
                if self._socket.gettimeout() == 0:
                    raise
                time.sleep(0.001)  # it is there in part


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """This process can open nothing, for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def log_files(directory: Path) -> list[Path]:
    """The files in a directory that are not hidden, as the file sink's journal is."""
    return sorted(p for p in directory.iterdir() if not p.name.startswith("."))


def wait_until(
    condition: Callable[[], Any], timeout: float = 90.0, what: str = "the condition"
) -> Any:
    """Wait until a condition is true and return its value; fail after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {timeout} s")
        time.sleep(0.005)


def start(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program given as text. Its stdout and stderr are captured."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, text=True, **options)


@contextmanager
def running(code: str, *args: object, **options: Any) -> Iterator[Any]:
    """Start a program; whatever happens, it is gone at the end."""
    process = start(code, *args, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


def python(
    code: str,
    *args: object,
    status: int | None = 0,
    timeout: float = 90,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program given as text to its end; check its exit status."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return finish(command, status=status, timeout=timeout, **options)


def finish(
    command: list[str], status: int | None = 0, timeout: float = 90, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run any program to its end; check its exit status (None: any will do)."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    assert status is None or done.returncode == status, (
        f"exit status {done.returncode}, wanted {status}\n"
        f"--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
    )
    return done


def rotated(path: Path) -> list[Path]:
    """A file that rotates: the old ones from the oldest on, then the file itself."""
    names = [each.name for each in path.parent.iterdir()]
    numbers = [
        int(name.removeprefix(path.name + "."))
        for name in names
        if name.removeprefix(path.name + ".").isdigit()
    ]
    old = [path.with_name(f"{path.name}.{n}") for n in sorted(numbers, reverse=True)]
    return [*old, *([path] if path.exists() else [])]


def lines(*paths: Path) -> list[bytes]:
    """All lines of some files, each of which must end where a line ends."""
    found: list[bytes] = []
    for path in paths:
        data = path.read_bytes()
        assert not data or data.endswith(b"\n"), f"{path} ends in a torn line"
        found += data.split(b"\n")[:-1]
    return found


def records(*paths: Path, service: bool = False) -> list[dict[str, Any]]:
    """All records of some files, each line parsed strictly.

    Args:
        paths: The files.
        service: Also return the records that the service itself wrote.
    """
    found = [orjson.loads(line) for line in lines(*paths)]
    assert all(type(each) is dict for each in found)
    return found if service else [each for each in found if not of_service(each)]


def of_service(record: dict[str, Any]) -> bool:
    """Whether the service wrote a record itself."""
    return record.get("logger") == "logagg" and "event" in record


def events(name: str, *paths: Path) -> list[dict[str, Any]]:
    """The service's own records of one event."""
    found = records(*paths, service=True)
    return [each for each in found if of_service(each) and each["event"] == name]


def have(path: Path, count: int) -> Callable[[], bool]:
    """A condition: so many whole lines of the application stand in a file."""

    def true() -> bool:
        if not path.exists():
            return False
        data = path.read_bytes()
        return data.count(b"\n") - data.count(b'"logger":"logagg"') >= count

    return true


def assert_complete(
    found: Iterable[dict[str, Any]], sent: dict[Any, int], key: str = "n"
) -> None:
    """Each sender's numbers 0 … count - 1 stand there once, in rising order.

    Args:
        found: Records with the fields `who` and `key`.
        sent: How many records each sender sent.
        key: The field with the number.
    """
    by_sender: dict[Any, list[int]] = collections.defaultdict(list)
    for record in found:
        by_sender[record["who"]].append(record[key])
    assert by_sender.keys() == {who for who in sent if sent[who]}
    for who, numbers in by_sender.items():
        if numbers != list(range(sent[who])):
            missing = sorted(set(range(sent[who])) - set(numbers))
            extra = [n for n, c in collections.Counter(numbers).items() if c > 1]
            raise AssertionError(
                f"sender {who}: {len(numbers)} of {sent[who]} records; "
                f"missing {missing[:10]} ({len(missing)}), twice {extra[:10]} "
                f"({len(extra)}), in order: {numbers == sorted(numbers)}"
            )


def assert_ordered(found: list[bytes]) -> None:
    """The timestamp never goes back from line to line, but where a line says it is late.

    A few may be: a busy machine suspends a process between its stamp and its write.
    """
    alone = (
        len({line.split(b'"worker":"', 1)[1][:64].split(b'"')[0] for line in found})
        <= 1
    )
    timely = [line for line in found if b',"late":true' not in line]
    late = len(found) - len(timely)
    assert late <= (0 if alone else MOST_LATE), (
        f"{late} late lines: is the machine that busy?"
    )
    keys = [line[:44] for line in timely]
    back = [i for i in range(1, len(keys)) if keys[i] < keys[i - 1]]
    assert not back, f"time goes back at line {back[0]}: {timely[back[0]][:200]!r}"


def strict(text: str | bytes) -> Any:
    """Parse JSON as the standard has it: no NaN, no key twice."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


# ---- processes ---------------------------------------------------------------------


def processes(runtime: str | os.PathLike[str]) -> dict[int, str]:
    """The processes that were started with a runtime directory: pid → command line."""
    mark = f"XDG_RUNTIME_DIR={os.fspath(runtime)}\0".encode()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes() + b"\0"
            if mark in environment:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                found[int(name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
    return found


def consumers() -> list[int]:
    """The pids of the consumers of this test's runtime directory."""
    here = processes(os.environ["XDG_RUNTIME_DIR"])
    return [
        pid
        for pid, line in here.items()
        if "logagg.consumer.consumer" in line
        and not line.startswith("/bin/sh")  # starts one
    ]


def consumer(timeout: float = 90.0) -> int:
    """Wait for this test's one consumer and return its pid.

    One that was asked to end and one that takes over may be seen at once for a moment.
    """
    found: list[int] = []

    def one() -> bool:
        found[:] = consumers()
        return len(found) == 1

    wait_until(one, timeout, "one consumer")
    return found[0]


def runtime_files() -> list[str]:
    """Sockets, locks and the like that stand in this test's runtime directory."""
    folder = Path(os.environ["XDG_RUNTIME_DIR"])
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()
    )


def spool_files() -> list[Path]:
    """Spool segments of this test that are left on disk."""
    state = Path(os.environ["XDG_STATE_HOME"])
    return sorted(each for each in state.rglob("*.spool") if each.is_file())


def settled(timeout: float = 90.0, *, natural: bool = False) -> None:
    """Wait until all processes of this test have ended and left nothing behind.

    Args:
        timeout: Seconds to wait.
        natural: Let the consumer end by itself. Otherwise, once it is alone, it is asked
            to (SIGTERM), which spares the half second for which it waits for others.
    """
    asked: set[int] = set()

    def quiet() -> bool:
        here = processes(os.environ["XDG_RUNTIME_DIR"])
        present = {
            pid for pid, line in here.items() if "logagg.consumer.consumer" in line
        }
        if not natural and present == here.keys():
            for pid in present - asked:
                if _catches(pid, signal.SIGTERM):
                    asked.add(pid)
                    os.kill(pid, signal.SIGTERM)
        return not present and not runtime_files()

    wait_until(quiet, timeout, "the consumer's end")


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process suspended (SIGSTOP) for a while, with all its threads."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # The signal is taken by each thread at its next way out of the kernel.
        wait_until(lambda: set(_thread_states(pid)) <= {"T", "Z", "X"})
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _thread_states(pid: int) -> Iterator[str]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes(pid: int) -> int:
    """The largest resident memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def descriptors(pid: int | str = "self") -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """How much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wire_line(
    now_ns: int,
    seq: int = 1,
    *,
    level: str = "info",
    worker: str = "1",
    body: bytes = b'"message":"m"',
) -> bytes:
    """A wire line, put together as a worker does it."""
    from logagg.core.line import line_start, prefix_tail

    seconds, rest = divmod(now_ns, 1_000_000_000)
    nanoseconds = b"%09d" % rest
    head = prefix_tail(level, worker)
    return line_start(seconds) + nanoseconds + head + b"%d,%b" % (seq, body)


def checked_build(module: str, folder: Path) -> tuple[str, str]:
    """Build a C module of the product that checks every address and operation.

    Args:
        module: `emit` or `merge`.
        folder: Where it goes.

    Returns:
        The library that has to be loaded before, and the module's file. Skips the test
        where the compiler has no such library.
    """
    found = subprocess.run(
        [os.environ.get("CC", "cc"), "-print-file-name=libasan.so"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if not Path(found).is_absolute():
        pytest.skip("the compiler has no sanitizer")
    build = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import build;"
        "build.MODULES = (sys.argv[3],);"
        "print(*build.compile_all(pathlib.Path(sys.argv[2])))"
    )
    source = Path(__file__).parent.parent / "logagg" / "_native"
    flags = "-g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    made = subprocess.run(
        [sys.executable, "-c", build, str(source), str(folder), module],
        env=os.environ | {"CFLAGS": flags},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    return found, made
