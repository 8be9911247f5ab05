"""`logagg tail` on a real terminal: keys, resize, Ctrl-C, and text that means harm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from logagg.core.units import wire_time

BASE = 1_795_568_351_000_000_000
MAIN = [sys.executable, "-c", "from logagg.cli.main import main; main()"]


def line(number: int, **fields: Any) -> bytes:
    """A finished line."""
    record = {
        "timestamp": wire_time(BASE + number * 1_000_000),
        "level": "error" if number % 2 else "info",
        "worker": "1",
        "seq": number,
        "logger": "app",
        "message": f"message {number}.",
    }
    return orjson.dumps(record | fields) + b"\n"


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: object, columns: int = 100) -> None:
        self.output = b""
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            environment = {
                k: v for k, v in os.environ.items() if not k.endswith("COLOR")
            }
            environment["TERM"] = "xterm-256color"
            with contextlib.suppress(BaseException):
                os.execve(
                    sys.executable, [*MAIN, "tail", *map(str, arguments)], environment
                )
            os._exit(127)
        self.resize(columns)
        self.status: int | None = None

    def resize(self, columns: int) -> None:
        """Give the terminal another width; the program gets its signal."""
        size = struct.pack("HHHH", 30, columns, 0, 0)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.terminal, keys.encode())

    def read_until(self, done: Callable[[str], Any], patience: float = 10.0) -> str:
        """Read until `done(all output)`, which must be before long."""
        deadline = time.monotonic() + patience
        while not done(self.text):
            left = deadline - time.monotonic()
            assert left > 0, self.text[-2000:]
            if select.select([self.terminal], [], [], left)[0]:
                try:
                    self.output += os.read(self.terminal, 1 << 16)
                except OSError:  # the program has ended
                    assert done(self.text), self.text[-2000:]
        return self.text

    @property
    def text(self) -> str:
        """All that it has printed."""
        return self.output.decode("utf-8", "replace")

    def mode(self) -> int:
        """The terminal's local flags."""
        flags: int = termios.tcgetattr(self.terminal)[3]
        return flags

    def wait(self) -> int:
        """Its exit status."""
        if self.status is None:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError):
                    while select.select([self.terminal], [], [], 0)[0]:
                        self.output += os.read(self.terminal, 1 << 16)
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
                    break
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return self.status

    def close(self) -> None:
        """End it whatever happens."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


@contextlib.contextmanager
def screen(*arguments: object, columns: int = 100) -> Iterator[Screen]:
    """A viewer on a terminal, ended whatever happens."""
    made = Screen(*arguments, columns=columns)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log file with a few lines."""
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(map(line, range(4))))
    return path


def add(log: Path, *numbers: int) -> None:
    """Append lines."""
    with log.open("ab") as file:
        file.write(b"".join(map(line, numbers)))


def test_a_terminal_gets_color_and_one_control_c_ends_it(log: Path) -> None:
    """Status 130, and the terminal is as it was before."""
    with screen("--file", log) as viewer:
        viewer.read_until(lambda text: "message 3." in text)
        assert "\x1b[31mERROR\x1b[0m" in viewer.text
        viewer.press("\x03")

        assert viewer.wait() == 130
        assert viewer.mode() & termios.ECHO
        assert viewer.mode() & termios.ICANON
        assert "Traceback" not in viewer.text


def test_keys_mark_pause_filter_clear_and_quit(log: Path) -> None:
    """Each key does what the help says."""
    with screen("--file", log, "--gaps", "1h") as viewer:
        viewer.read_until(lambda text: "message 3." in text)
        viewer.press("\r")
        viewer.read_until(lambda text: re.search(r"── \d\d:\d\d:\d\d ──", text))
        viewer.press(" ")
        viewer.read_until(lambda text: "-- paused" in text)
        add(log, 10, 11)
        time.sleep(0.5)  # nothing is to happen: there is no condition to wait for
        assert "message 10." not in viewer.text
        viewer.press(" ")
        viewer.read_until(lambda text: "message 11." in text)
        assert "-- 2 records came meanwhile" in viewer.text
        viewer.press("e")
        viewer.read_until(lambda text: "-- errors only" in text)
        add(log, 20, 21)
        viewer.read_until(lambda text: "message 21." in text)
        assert "message 20." not in viewer.text
        viewer.press("c")
        viewer.read_until(lambda text: "\x1b[H\x1b[2J" in text)
        viewer.press("q")

        assert viewer.wait() == 0
        assert viewer.mode() & termios.ECHO


def test_a_terminal_that_is_not_the_controlling_one_is_left_alone(log: Path) -> None:
    """Standard input and output are a terminal, of no job control of this process."""
    ours, theirs = pty.openpty()
    mode = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [*MAIN, "tail", "--file", log],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output = b""
        while b"message 3." not in output:
            assert select.select([ours], [], [], 10)[0], process.poll()
            output += os.read(ours, 1 << 16)
        assert termios.tcgetattr(theirs) == mode
        process.terminate()
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in errors


def test_a_resize_in_mid_follow_changes_nothing(log: Path) -> None:
    """Lines are never wrapped by us, so every width shows the same text."""
    with screen("--file", log, columns=100) as viewer:
        viewer.read_until(lambda text: "message 3." in text)
        for number, columns in enumerate((20, 300, 1, 80), 30):
            viewer.resize(columns)
            add(log, number)
            viewer.read_until(lambda text, n=number: f"message {n}." in text)  # type: ignore[misc]


HOSTILE = (
    "\x1b[2J\x1b[H\x1b]0;owned\x07 \x1b]52;c;ZXZpbA==\x07 \x9b31m "
    "a\rb \u202etxt \x00\x08\x7f \u2028 end"
)


@pytest.mark.parametrize(
    "form", ["pretty", "plain", "json", "logfmt", "full", "message"]
)
def test_hostile_content_cannot_reach_the_terminal(log: Path, form: str) -> None:
    """Whatever a record holds, only our own colors are escape codes."""
    hostile = {
        "message": HOSTILE,
        "logger": HOSTILE,
        "worker": HOSTILE,
        HOSTILE: HOSTILE,
        "exception": {"type": HOSTILE, "message": HOSTILE, "stack": HOSTILE},
    }
    log.write_bytes(line(1, **hostile) + line(2))
    with screen("--file", log, "--no-follow", "-o", form) as viewer:
        assert viewer.wait() == 0
        shown = re.sub("\x1b\\[[0-9;]*m", "", viewer.text).replace("\r\n", "\n")

        assert "message 2." in shown
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown)


def test_raw_lets_it_through_on_request(log: Path) -> None:
    """`--raw` shows a message as it was logged."""
    log.write_bytes(line(1, message="\x1b[32mgreen\x1b[0m"))
    with screen("--file", log, "--no-follow", "--raw", "--color", "never") as viewer:
        assert viewer.wait() == 0
        assert "\x1b[32mgreen" in viewer.text


def test_a_long_value_is_cut_on_a_terminal_only(log: Path) -> None:
    """Both ends and the true length; `--full` shows it all; a pipe is never cut."""
    log.write_bytes(line(1, value="a" * 5000 + "z" * 5000))
    arguments = ("--file", log, "--no-follow")
    with screen(*arguments) as viewer:
        assert viewer.wait() == 0
        assert "(10,000 characters)" in viewer.text
        assert len(viewer.text) < 1000
    with screen(*arguments, "--full") as viewer:
        assert viewer.wait() == 0
        assert "a" * 5000 + "z" * 5000 in viewer.text
    piped = subprocess.run(
        [*MAIN, "tail", *arguments], capture_output=True, check=True
    ).stdout
    assert b"a" * 5000 + b"z" * 5000 in piped


def test_no_color_wins_on_a_terminal(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `TERM=dumb` or `--color never` there is no escape code at all."""
    with screen("--file", log, "--no-follow", "--color", "never") as viewer:
        assert viewer.wait() == 0
        assert "\x1b" not in viewer.text


@pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
def test_in_tmux_the_screen_shows_the_columns(log: Path, tmp_path: Path) -> None:
    """A real screen of 120 columns holds the header line as designed."""
    socket = tmp_path / "tmux"
    arguments = " ".join(
        f"'{part}'" for part in [*MAIN, "tail", "--file", str(log), "--utc"]
    )
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    start = [*tmux, "new-session", "-d", "-x", "120", "-y", "30", arguments]
    subprocess.run(start, check=True, timeout=90)
    try:
        deadline = time.monotonic() + 10
        shown = ""
        while "message 3." not in shown:
            assert time.monotonic() < deadline
            shown = subprocess.run(
                [*tmux, "capture-pane", "-p"], capture_output=True, check=True
            ).stdout.decode()
        assert " 00:59:11.003  ERROR w1  app           message 3." in shown
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, timeout=90)


def test_help_fits_a_screen_and_names_every_option() -> None:
    """The pages written by hand and the options in code agree."""
    from logagg.cli.viewing import view_commands

    for command in (view_commands.tail, view_commands.stats, view_commands.top):
        page = subprocess.run(
            [*MAIN, str(command.name), "--help"], capture_output=True, check=True
        ).stdout.decode()

        assert len(page.splitlines()) <= 40
        assert max(map(len, page.splitlines())) <= 88
        for parameter in command.params:
            names = [n for n in parameter.opts if n.startswith("-")]
            assert not names or any(
                re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", page) for n in names
            ), (command.name, parameter.opts)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("logagg tail --level w", ["plain,warning"]),
        ("logagg tail mess", ["plain,message~", "file,mess"]),
        ("logagg stats app.l", ["file,app.l"]),
    ],
)
def test_completion_knows_levels_matches_and_files(
    typed: str, offered: list[str]
) -> None:
    """The shell's completion offers what can be typed."""
    environment = os.environ | {
        "_LOGAGG_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    program = "from logagg.cli.main import main; main(prog_name='logagg')"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        check=True,
    )

    assert done.stdout.decode().splitlines() == offered
