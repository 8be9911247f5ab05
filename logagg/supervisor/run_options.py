"""The options of `logagg run` and the keywords of `logagg.Cluster`, in one table."""

from __future__ import annotations

import enum
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import force_setattr

from logagg.core import levels
from logagg.errors import ConfigError
from logagg.options import (
    Count,
    Duration,
    FilePath,
    Option,
    OptionText,
    Setting,
    Size,
    fields,
    unknown,
)
from logagg.options import level as level_number
from logagg.platform import endpoints
from logagg.platform.procfs import available_memory, usable_cores
from logagg.sinks import SinkText
from logagg.supervisor.sockets.bind_address import BindAddress, PortPolicy
from logagg.supervisor.sockets.sticky import Sticky

__all__ = ["OnFailure", "Program", "Restart", "RunOptions", "check_room", "run_options"]

DEFAULT_SINKS = ("stdout:?format=console",)


class Restart(enum.Enum):
    """When an ended worker is replaced.

    Attributes:
        FAILURE: Unless it ended with status 0 and had never listened on a port; a
            server that ends by itself is restarting itself.
        ALWAYS: Unless it was stopped.
        NEVER: Not at all.
    """

    FAILURE = "failure"
    ALWAYS = "always"
    NEVER = "never"


class OnFailure(enum.Enum):
    """The reaction to a program that cannot start (5 failures before ready in 60 s).

    Attributes:
        EXIT: Stop all workers and exit with status 10.
        KEEP: Keep trying, with the longest back-off.
    """

    EXIT = "exit"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Program:
    """The program that workers run.

    Attributes:
        kind: "script", "module", "command" or "tasks" (no program, only tasks).
        argv: The script, module or command, and its arguments.
    """

    kind: str
    argv: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, words: tuple[str, ...], *, module: bool = False, directory: str = ""
    ) -> Program:
        """Classify a command line: a Python script, a module, or another command.

        A command whose file is a script of *this* Python (uvicorn, gunicorn, celery …)
        runs as a Python script, so that the sockets of a worker are shared with it.

        Args:
            words: The command line.
            module: Its first word is a module.
            directory: Where it will run.

        Raises:
            ConfigError: There is no such script or command.
        """
        if module:
            import importlib.util  # only -m needs it

            top = words[0].partition(".")[0]
            sys.path.insert(0, directory or os.getcwd())
            try:
                found = importlib.util.find_spec(top)
            except (ImportError, ValueError):
                found = None
            finally:
                del sys.path[0]
            if found is None:
                raise ConfigError(f"no module named {words[0]!r}")
            return cls("module", words)
        path = Path(directory, words[0])
        if path.is_dir() and (path / "__main__.py").exists():
            return cls("script", words)
        if words[0].endswith((".py", ".pyc", ".pyz")):
            if not path.exists():
                raise ConfigError(f"no such script: {words[0]!r}")
            if not os.access(path, os.R_OK) or path.is_dir():
                raise ConfigError(f"cannot read the script {words[0]!r}")
            return cls("script", words)
        local = directory and "/" in words[0]
        command = shutil.which(path if local else words[0])
        if command is None and not local:  # this environment may not be activated
            command = shutil.which(words[0], path=os.path.dirname(sys.executable))
            words = (command or words[0], *words[1:])
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

    @property
    def is_server(self) -> bool:
        """Whether it is known by its name to listen."""
        return self.name in _SERVERS

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


def _worker_count(text: str) -> int:
    if text == "max":
        return usable_cores()
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise ValueError("a number or max")
    return int(text)


def _root_level(text: str) -> str:
    number = level_number(text)
    names = {known: name for name, known in levels.STANDARD.items()}
    return names.get(number, str(number)).upper()


def _metrics_address(text: str) -> str:
    endpoints.parse(text, "metrics")
    return text


def _level_from_environment() -> str:
    return os.environ.get("LOGAGG_LEVEL", "INFO")


Address = Annotated[str, OptionText(_metrics_address)]
_Bind = Annotated[BindAddress, OptionText(BindAddress.parse)]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A run: its program and how it is supervised.

    The fields with an `Option` are the options of `logagg run`, the keys of `[run]` and
    the keywords of `logagg.Cluster`; durations are in seconds, sizes in bytes.

    Attributes:
        program: What workers run.
        choose: Chooses a slot: `(slots, connection) -> slot or None`.
        reread: Returns the sinks as they are configured now, for a reload.
        env: Environment variables for the workers.
        app: Its name, for records, when it is one program of several.
        directory: The workers' working directory; empty: this process's.
        note: Set here when something is done in another way than requested.

    Raises:
        ConfigError: Options that contradict each other or the program.
    """

    program: Program = Program("tasks")
    workers: Annotated[
        int,
        OptionText(_worker_count),
        Option("Number of workers.", "-w", "N|max", default="max: all usable cores"),
    ] = msgspec.field(default_factory=usable_cores)
    module: Annotated[
        bool, Option("PROGRAM is a module, as in python -m.", "-m", long="")
    ] = False
    sinks: Annotated[
        tuple[SinkText, ...],
        Option("Where records go; repeatable.", metavar="URL", long="--sink"),
    ] = DEFAULT_SINKS
    level: Annotated[
        str,
        OptionText(_root_level),
        Option("Level of the root loggers.", "", "LEVEL", default="info"),
    ] = msgspec.field(default_factory=_level_from_environment)
    metrics: Annotated[
        Address, Option("Serve metrics at [HOST]:PORT or unix:PATH.", "", "ADDRESS")
    ] = ""
    web: Annotated[
        Address, Option("Show the log in a browser there.", "", "ADDRESS")
    ] = ""
    bind: Annotated[
        tuple[_Bind, ...],
        Option("Listen there and share it; repeatable.", "-b", "ADDRESS"),
    ] = ()
    policy: Annotated[PortPolicy, Option("Which worker gets a connection.")] = (
        PortPolicy.KERNEL
    )
    sticky: Annotated[
        Annotated[Sticky, OptionText(Sticky.parse)] | None,
        Option("ip, proxy, cookie:N, header:N or query:N; implies rr.", "", "KEY"),
    ] = None
    choose: Callable[..., Any] | None = None
    restart: Annotated[Restart, Option("When a worker that ended is replaced.")] = (
        Restart.FAILURE
    )
    on_failure: Annotated[OnFailure, Option("When the program cannot start.")] = (
        OnFailure.EXIT
    )
    stop_timeout: Annotated[Duration, Option("From TERM to KILL.")] = 30.0
    ready_timeout: Annotated[Duration, Option("From start to ready; 0: none.")] = 60.0
    unresponsive_timeout: Annotated[
        Duration, Option("Replace a blocked worker after this; 0: never.")
    ] = 60.0
    max_rss: Annotated[Size, Option("Replace a worker that uses more memory.")] = 0
    max_age: Annotated[Duration, Option("Replace a worker after this, ±10 %.")] = 0.0
    max_connections: Annotated[Count, Option("Replace after N connections.")] = 0
    max_tasks: Annotated[Count, Option("Replace after N tasks.")] = 0
    max_pending: Annotated[
        Count, Option("Tasks that may wait; 0: no limit.", keyword_only=True)
    ] = 0
    watch: Annotated[
        tuple[FilePath, ...],
        Option("Reload when a Python file below changes; repeatable.", "", "DIR"),
    ] = ()
    reread: Callable[[], Sequence[str] | None] | None = None
    env: Mapping[str, str] = {}
    app: str = ""
    directory: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        handed = self.sticky is not None or self.choose is not None
        if handed and self.policy is not PortPolicy.RR:
            force_setattr(self, "policy", PortPolicy.RR)
        self._adapt_to_self_binder(handed=handed)
        if self.watch:
            # The program is being edited: keep trying until it starts again.
            force_setattr(self, "on_failure", OnFailure.KEEP)
        if self.policy is PortPolicy.RR and self.program.kind == "command":
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
        words = list(self.program.argv)
        if "gunicorn" in self.program.name:
            _refuse_nested(words, ("-w", "--workers"))
        if "uvicorn" in self.program.name or self.program.name == "granian":
            _refuse_nested(words, ("--workers",))

        check_room(self.workers)

    def _adapt_to_self_binder(self, *, handed: bool) -> None:
        """Choose reuseport for a server that binds its port in native code.

        Raises:
            ConfigError: It cannot take sticky connections, nor share a Unix socket.
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
        for address in self.bind:
            if address.family == socket.AF_UNIX:
                raise ConfigError(
                    f"{name} binds {address} itself and cannot share it: bind a port"
                )
        if self.policy is PortPolicy.RR or (
            self.bind and self.policy is PortPolicy.KERNEL
        ):
            note = f"{name} binds its port itself: policy reuseport instead of "
            force_setattr(self, "note", note + self.policy.value)
            force_setattr(self, "policy", PortPolicy.REUSEPORT)


_SELF_BINDERS = ("granian",)
_SERVERS = frozenset(
    ("daphne", "granian", "gunicorn", "hypercorn", "uvicorn", "waitress-serve")
)
_LEAST_MEMORY = 16 << 20
"""Of an idle worker that is Python and has imported nothing but this package."""
_ALWAYS_FIT = 64


def check_room(workers: int) -> None:
    """Refuse a number of workers for which there is certainly no memory.

    Raises:
        ConfigError: It names how many would fit.
    """
    if workers <= _ALWAYS_FIT:
        return
    fit = max(available_memory() // _LEAST_MEMORY, _ALWAYS_FIT)
    if workers > fit:
        raise ConfigError(
            f"workers: {workers} do not fit into the memory that is free; at "
            f"{_LEAST_MEMORY >> 20} MiB each, the least that one takes, {fit} would"
        )


def _refuse_nested(words: list[str], names: tuple[str, ...]) -> None:
    """Refuse a server that would start workers of its own inside a worker."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            count = value if equals else "".join(words[index + 1 : index + 2])
            if count not in ("0", "1"):
                raise ConfigError(
                    f"{Path(words[0]).name} {name} {count} inside logagg run: workers "
                    "of workers; give the number to logagg run and leave it off there"
                )


def run_options(
    target: str | Path | Sequence[str] | None = None, **keywords: Any
) -> RunOptions:
    """Read the keywords of `logagg.Cluster`.

    Args:
        target: A script, or a command as a list of words; None: tasks only.
        keywords: Fields of `RunOptions`, as values or as texts (`max_rss="500MB"`).

    Raises:
        ConfigError: Something is wrong; the message names it.
    """
    known = fields(RunOptions)
    values = {}
    for key, value in keywords.items():
        if key not in known:
            raise ConfigError(unknown(key, known, what="Cluster"))
        if known[key].option is None:
            values[key] = value
        elif value is not None:
            place = partial("Cluster: {}=".format, key)
            values[key] = Setting(known[key], value, place).read()
    words = (str(target),) if isinstance(target, (str, Path)) else tuple(target or ())
    if words:
        values["program"] = Program.of(words, module=values.get("module", False))
    return RunOptions(**values)
