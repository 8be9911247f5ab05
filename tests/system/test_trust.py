"""A configuration that came with a repository gets no secret before its user agrees."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import support
from serving import LOGAGG

pytestmark = pytest.mark.slow  # each starts programs

SECRET = "hunter2-of-this-user"


class Target(ThreadingHTTPServer):
    """A hostile target: it keeps all that it gets."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), Keeping)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def knows(self) -> bool:
        """Whether the secret has reached it."""
        return any(SECRET in each for each in self.requests)


class Keeping(BaseHTTPRequestHandler):
    """One request, well answered."""

    server: Target

    def answer(self) -> None:
        """Keep head and body."""
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode("latin-1")
        self.server.requests.append(f"{self.requestline}\n{self.headers}\n{body}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET = do_POST = answer  # noqa: N815 - the names that it looks for

    def log_message(self, *words: object) -> None:
        """Be silent."""


@contextlib.contextmanager
def serving() -> Iterator[Target]:
    """A target in a thread."""
    with Target() as target:
        thread = threading.Thread(target=target.serve_forever, args=(0.01,))
        thread.start()
        yield target
        target.shutdown()
        thread.join(5)


@pytest.fixture
def target() -> Iterator[Target]:
    """The repository's server."""
    with serving() as made:
        yield made


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A cloned repository, which is the current directory of every command."""
    folder = tmp_path / "clone"
    (folder / ".git").mkdir(parents=True)
    (folder / "app.py").write_text("import logging\nlogging.warning('ran')\n")
    (tmp_path / "token").write_text(SECRET)
    return folder


def environment(clone: Path) -> dict[str, str]:
    """What the user has in the environment."""
    return {**os.environ, "HOME": str(clone.parent), "SECRET": SECRET}


def logagg(
    clone: Path, *words: object, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command in the clone."""
    options.setdefault("status", None)
    options.setdefault("stdin", subprocess.DEVNULL)
    if "input" in options:
        del options["stdin"]
    return support.finish(
        [*LOGAGG, *map(str, words)], cwd=clone, env=environment(clone), **options
    )


def configure(clone: Path, *urls: str, more: str = "") -> None:
    """Write the repository's configuration."""
    names = ", ".join(f'"{url}"' for url in urls)
    (clone / "logagg.toml").write_text(f"sinks = [{names}]\n{more}")


COMMANDS = {
    "check": ("check",),
    "run": ("run", "-w", "1", "app.py"),
    "serve": ("serve", "--once"),
    "send": ("send",),
    "tail": ("tail", "--no-follow", "-n", "all", "app.log"),
}

WAYS = [
    "token=env:SECRET",
    "token=file:{token}",
    "header.X-Any=env:SECRET",
    "header.X-Any=%65nv%3ASECRET",
    "query.q=file:{token}",
    "hmac=env:SECRET",
    "cert_file={token}",
]


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in ("check", "run", "tail") for way in WAYS]
    + [(name, WAYS[0]) for name in ("serve", "send")],  # the same code as `run`
)
def test_no_command_sends_a_secret_to_the_repositorys_server(
    clone: Path, target: Target, name: str, way: str
) -> None:
    """Nothing reaches it at all; one line states what to do."""
    way = way.format(token=clone.parent / "token")
    url = f"{target.url}/in?grace=0&{way}"
    more = f'[send]\nsinks = ["{url}"]\n' if name == "send" else ""
    configure(clone, url, more=more)
    (clone / "app.log").write_text("")

    words = COMMANDS[name]
    done = logagg(clone, *words, **({"input": "a line\n"} if name == "send" else {}))

    assert target.requests == []
    if name == "tail":
        assert done.returncode == 1, done  # it matched nothing, and needs no consent
        return
    assert done.returncode == 2, done
    shown = done.stdout if name == "check" else done.stderr
    assert f"logagg trust {clone / 'logagg.toml'}" in " ".join(shown.split())
    assert f"--config {clone / 'logagg.toml'}" in " ".join(shown.split())
    assert SECRET not in done.stdout + done.stderr
    if name != "check":
        assert done.stderr.count("\n") == 1, done.stderr
        assert "ran" not in done.stdout


def test_a_trusted_file_works_until_it_changes(clone: Path, target: Target) -> None:
    """It is asked for once; a comment may change, a sink may not."""
    url = f"{target.url}/in?token=env:SECRET"
    configure(clone, url)

    done = logagg(clone, "trust", "--yes", status=0)
    assert f"the variable SECRET to {target.url}/in" in done.stdout
    logagg(clone, "check", status=0)
    assert target.knows

    target.requests.clear()
    with serving() as other:
        configure(clone, url, more="# a comment\n")
        logagg(clone, "check", status=0)
        assert target.knows
        target.requests.clear()
        configure(clone, url, f"{other.url}/in?token=env:SECRET")
        done = logagg(clone, "run", "-w", "1", "app.py", status=2)
        assert "has changed since it was trusted" in done.stderr
        logagg(clone, "check", status=2)
        assert other.requests == target.requests == []

        logagg(clone, "trust", "--yes", status=0)
        logagg(clone, "run", "-w", "1", "app.py", status=0)
        assert target.knows
        assert other.knows
    target.requests.clear()
    logagg(clone, "trust", "--forget", status=0)
    logagg(clone, "check", status=2)
    assert target.requests == []


def test_a_pyproject_is_trusted_by_its_table(clone: Path, target: Target) -> None:
    """What other tools have there may change."""
    table = f'[tool.logagg]\nsinks = ["{target.url}/in?token=env:SECRET"]\n'
    (clone / "pyproject.toml").write_text(table)
    logagg(clone, "check", status=2)
    logagg(clone, "trust", "--yes", status=0)
    (clone / "pyproject.toml").write_text(f"[tool.other]\nx = 1\n{table}")

    logagg(clone, "check", status=0)

    assert target.knows


def test_what_needs_no_consent_goes_on_as_ever(clone: Path, target: Target) -> None:
    """A named file, local files, a target without a secret, other sinks by hand."""
    configure(clone, f"file:{clone}/app.log?backups=2", f"{target.url}/in")
    logagg(clone, "run", "-w", "1", "app.py", status=0)
    assert "ran" in (clone / "app.log").read_text()
    assert "ran" in target.requests[-1]

    configure(clone, f"{target.url}/in?token=env:SECRET")
    done = logagg(clone, "run", "--sink", "stdout:", "-w", "1", "app.py", status=0)
    assert "ran" in done.stdout
    assert not target.knows
    logagg(clone, "check", "--config", "logagg.toml", status=0)
    assert target.knows
    done = logagg(clone, "trust", input="", status=2)
    assert "--yes" in done.stderr


@pytest.mark.parametrize("answer", ["y", "n"])
def test_trust_asks_on_a_terminal(clone: Path, target: Target, answer: str) -> None:
    """Which secret goes where is shown first; only `y` is a yes."""
    configure(clone, f"{target.url}/in?token=env:SECRET\\u001b[2Jx")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*LOGAGG, "trust"], cwd=clone, env=environment(clone),
        stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while b"[y/N]" not in shown:
            assert select.select([master], [], [], 60)[0]
            shown += os.read(master, 4096)
        os.write(master, f"{answer}\n".encode())
        while True:
            os.read(master, 4096)
    os.close(master)

    assert process.wait(60) == (0 if answer == "y" else 1)
    assert b"the variable SECRET" in shown
    assert b"\x1b[2J" not in shown
    notes = list(Path(os.environ["XDG_STATE_HOME"], "logagg/trusted").glob("*"))
    assert len(notes) == (answer == "y")
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in notes)


def test_a_note_that_others_can_write_counts_for_nothing(
    clone: Path, target: Target
) -> None:
    """Its owner and mode are those of the file that was opened."""
    configure(clone, f"{target.url}/in?token=env:SECRET")
    logagg(clone, "trust", "--yes", status=0)
    (note,) = Path(os.environ["XDG_STATE_HOME"], "logagg/trusted").glob("*")
    note.chmod(0o660)

    logagg(clone, "check", status=2)

    assert target.requests == []


def test_a_reload_sends_nothing_to_a_host_that_is_new(
    clone: Path, target: Target
) -> None:
    """`serve` reads a file that was changed meanwhile: those in force stay."""
    configure(clone, f"{target.url}/in?token=env:SECRET")
    logagg(clone, "trust", "--yes", status=0)
    with serving() as other:
        command = [*LOGAGG, "serve"]
        process = subprocess.Popen(
            command, cwd=clone, env=environment(clone),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            assert "listening" in process.stderr.readline()
            configure(clone, f"{other.url}/in?token=env:SECRET")
            done = logagg(clone, "reload")
            assert done.returncode == 2, done
            assert "has changed since it was trusted" in done.stderr
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
        assert other.requests == []


OUTSIDE = {
    "sink": ("serve", 'sinks = ["file:{home}/victim"]'),
    "link": ("serve", 'sinks = ["file:link/victim"]'),
    "spool": ("serve", 'sinks = ["http://127.0.0.1:9/?spool={home}/victim"]'),
    "proxy": ("serve", 'sinks = ["http://127.0.0.1:9/?proxy={url}"]'),
    "socket": ("serve", 'socket = "{home}/victim"\nsinks = ["stdout:"]'),
    "metrics": ("serve", 'metrics = "unix:{home}/victim"\nsinks = ["stdout:"]'),
    "hosts": ("serve", 'metrics = "0.0.0.0:0"\nsinks = ["stdout:"]'),
    "run": ("run", 'sinks = ["file:../victim"]'),
    "bind": ("run", '[run]\nbind = ["unix:{home}/victim"]'),
    "file": ("send", '[send]\nfile = "../victim"'),
    "hidden": ("serve", 'sinks = ["file:.git/config"]'),
    "cursor": ("tail", '[tail]\ncursor_file = "../victim"'),
    "raw": ("tail", "[tail]\nraw = true"),
    "check": (
        "check",
        'sinks = ["http://127.0.0.1:9/?spool={home}/victim&proxy={url}"]',
    ),
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_a_found_file_reaches_nothing_outside_of_its_directory(
    clone: Path, target: Target, what: str
) -> None:
    """It writes, listens and sends nowhere else, and escapes what a terminal obeys."""
    name, text = OUTSIDE[what]
    home = clone.parent
    (clone / "link").symlink_to(home)
    (clone / "logagg.toml").write_text(text.format(home=home, url=target.url))
    line = b'{"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info","worker":"1",'
    (clone / "app.log").write_bytes(
        line + b'"seq":1,"logger":"a","message":"\\u009bx"}\n'
    )
    before = sorted(home.iterdir())

    done = logagg(
        clone, *COMMANDS[name], **({"input": "x\n"} if name == "send" else {})
    )

    assert done.returncode == 2, done
    shown = done.stdout if name == "check" else done.stderr
    assert f"logagg trust {clone / 'logagg.toml'}" in " ".join(shown.split())
    assert "\x9b" not in done.stdout
    assert sorted(home.iterdir()) == before
    assert not (clone / ".git" / "config").exists()
    assert target.requests == []


def test_with_consent_it_does_what_it_would(clone: Path) -> None:
    """All of it is shown first."""
    (clone / "logagg.toml").write_text('sinks = ["file:../there.log"]\n')

    done = logagg(clone, "trust", "--yes", status=0)
    assert f"write the log file {clone}/../there.log" in done.stdout
    logagg(clone, "run", "-w", "1", "app.py", status=0)

    assert "ran" in (clone.parent / "there.log").read_text()
