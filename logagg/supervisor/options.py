"""Everything that a run is told, checked once. Durations in seconds, sizes in bytes."""

from __future__ import annotations

import enum
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logagg.errors import ConfigError
from logagg.supervisor.address import Address, Policy
from logagg.supervisor.sticky import Sticky

__all__ = ["OnFailure", "Program", "Restart", "RunOptions", "Status"]


DEFAULT_SINKS = ("stdout:?format=console",)


class Status(enum.IntEnum):
    """What `logagg run` exits with, besides 128 + N after being stopped by signal N.

    Attributes:
        OK: All workers ended by themselves with status 0, or `logagg stop`.
        FAILED: A worker ended for good with a failure (`--restart never`).
        USAGE: A bad option, a missing script, an address in use.
        CONSUMER: No consumer could be started.
        KILLED: The stop was asked for, but a worker did not end in time and got KILL.
        CANNOT_START: The program failed again and again before it was ready.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    CONSUMER = 3
    KILLED = 4
    CANNOT_START = 10


class Restart(enum.Enum):
    """When an ended worker is replaced.

    Attributes:
        FAILURE: Unless it ended with status 0 by itself without ever having listened;
            a server that ends was not done, it was restarting itself.
        ALWAYS: Whenever it was not asked to end.
        NEVER: Not at all.
    """

    FAILURE = "failure"
    ALWAYS = "always"
    NEVER = "never"


class OnFailure(enum.Enum):
    """What happens when the program cannot start (5 failures before ready in 60 s).

    Attributes:
        EXIT: Stop all workers and exit with status 10.
        KEEP: Go on trying, with the longest back-off.
    """

    EXIT = "exit"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Program:
    """What workers run.

    Attributes:
        kind: "script", "module", "command" or "tasks" (no program, only tasks).
        argv: The script, module or command, and its arguments.
    """

    kind: str
    argv: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: tuple[str, ...], *, module: bool = False) -> Program:
        """Find out what the user named: a Python script, module, or another command.

        A name of a command whose file is a script of *this* Python (uvicorn, gunicorn,
        celery …) is run as a Python script, so that all doors are open to it.

        Raises:
            ConfigError: There is no such script or command.
        """
        if module:
            import importlib.util

            top = words[0].partition(".")[0]
            sys.path.insert(0, os.getcwd())
            try:
                found = importlib.util.find_spec(top)
            except (ImportError, ValueError):
                found = None
            finally:
                del sys.path[0]
            if found is None:
                raise ConfigError(f"no module named {words[0]!r}")
            return cls("module", words)
        path = Path(words[0])
        if path.is_dir() and (path / "__main__.py").exists():
            return cls("script", words)
        if words[0].endswith((".py", ".pyc", ".pyz")):
            if not path.exists():
                raise ConfigError(f"no such script: {words[0]!r}")
            if not os.access(path, os.R_OK) or path.is_dir():
                raise ConfigError(f"cannot read the script {words[0]!r}")
            return cls("script", words)
        command = shutil.which(words[0])
        if command is None:
            if path.is_file():
                return cls("script", words)
            raise ConfigError(f"no such script or command: {words[0]!r}")
        if _of_this_python(command):
            return cls("script", (command, *words[1:]))
        return cls("command", words)

    @property
    def name(self) -> str:
        """The program's name, without directories."""
        return Path(self.argv[0]).name if self.argv else ""

    def __str__(self) -> str:
        return " ".join(("-m", *self.argv) if self.kind == "module" else self.argv)


def _of_this_python(command: str) -> bool:
    try:
        with open(command, "rb") as file:
            first = file.readline(500)
    except OSError:
        return False
    if not first.startswith(b"#!"):
        return False
    words = first[2:].split()
    if not words:
        return False
    interpreter = os.fsdecode(words[-1] if words[0].endswith(b"env") else words[0])
    if "/" not in interpreter:
        interpreter = shutil.which(interpreter) or ""
    here = Path(sys.executable)
    try:
        return Path(interpreter).parent.samefile(here.parent) and "python" in (
            Path(interpreter).name
        )
    except OSError:
        return False


def _level_from_environment() -> str:
    return os.environ.get("LOGAGG_LEVEL", "INFO")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """A run, as asked for. See `logagg run --help` for what each means to a user.

    `note` is set here, when something is done in another way than asked for.
    """

    program: Program
    workers: int
    sinks: tuple[str, ...] = DEFAULT_SINKS
    level: str = field(default_factory=_level_from_environment)
    binds: tuple[Address, ...] = ()
    policy: Policy = Policy.KERNEL
    sticky: Sticky | None = None
    choose: Callable[..., Any] | None = None
    restart: Restart = Restart.FAILURE
    on_failure: OnFailure = OnFailure.EXIT
    stop_timeout: float = 30.0
    ready_timeout: float = 60.0
    unresponsive_timeout: float = 60.0
    max_rss_bytes: int = 0
    max_age: float = 0.0
    max_connections: int = 0
    max_tasks: int = 0
    max_pending: int = 0
    watch: tuple[str, ...] = ()
    metrics: str = ""
    reread: Callable[[], Sequence[str] | None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    note: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers: {self.workers} is less than 0")
        if self.level.upper() not in _LEVELS and not self.level.isdigit():
            raise ConfigError(
                f"level {self.level!r}: expected one of {', '.join(_LEVELS)}"
            )
        handed = self.sticky is not None or self.choose is not None
        if handed and self.policy is not Policy.RR:
            object.__setattr__(self, "policy", Policy.RR)
        self._settle_self_binder(handed=handed)
        if self.watch:
            # Whoever watches is about to mend the program: wait for that.
            object.__setattr__(self, "on_failure", OnFailure.KEEP)
        if self.policy is Policy.RR and self.program.kind == "command":
            raise ConfigError(
                f"policy rr hands connections to Python workers; {self.program.argv[0]} "
                "is not Python: use policy kernel or reuseport"
            )
        uncounted = self.program.kind == "command" or self.program.name in _SELF_BINDERS
        if self.max_connections and uncounted:
            raise ConfigError(
                f"max_connections: {self.program.name} accepts connections itself, so "
                "they are not counted: use max_age or max_rss"
            )
        for name in (
            "stop_timeout",
            "ready_timeout",
            "unresponsive_timeout",
            "max_age",
            "max_connections",
            "max_tasks",
            "max_pending",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")
        words = list(self.program.argv)
        if "gunicorn" in self.program.name:
            _refuse_nested(words, ("-w", "--workers"))
        if "uvicorn" in self.program.name or self.program.name == "granian":
            _refuse_nested(words, ("--workers",))

    def _settle_self_binder(self, *, handed: bool) -> None:
        """A server that binds in Rust can only share by reuseport: choose that.

        Raises:
            ConfigError: Nor can it be given sticky connections, or a Unix socket.
        """
        name = self.program.name
        if name not in _SELF_BINDERS:
            return
        if handed:
            raise ConfigError(
                f"{name} accepts connections itself, so none can be handed to it: "
                "--sticky needs a server that accepts in Python (uvicorn, hypercorn, "
                "gunicorn)"
            )
        for address in self.binds:
            if address.family == socket.AF_UNIX:
                raise ConfigError(
                    f"{name} binds {address} itself and cannot share it: bind a port"
                )
        if self.policy is Policy.RR or (self.binds and self.policy is Policy.KERNEL):
            note = f"{name} binds its port itself: policy reuseport instead of "
            object.__setattr__(self, "note", note + self.policy.value)
            object.__setattr__(self, "policy", Policy.REUSEPORT)


_SELF_BINDERS = ("granian",)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _refuse_nested(words: list[str], names: tuple[str, ...]) -> None:
    """A server that starts workers of its own below ours is a mistake: say so."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            count = value if equals else "".join(words[index + 1 : index + 2])
            if count not in ("0", "1"):
                raise ConfigError(
                    f"{Path(words[0]).name} {name} {count} inside logagg run: workers "
                    "of workers; give the number to logagg run and leave it off there"
                )
