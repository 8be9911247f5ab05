"""Orders for a new worker process, in one environment variable that it reads first.

`LOGAGG_START` is JSON and is removed from the environment by its reader, so that no
grandchild takes it for its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from logagg.supervisor.process.open_files import limit_open_files, place_listeners

__all__ = ["ENVIRONMENT", "LaunchSpec", "SharedListener"]

ENVIRONMENT = "LOGAGG_START"


@dataclass(slots=True)
class SharedListener:
    """One address that the supervisor owns, as a worker sees it.

    Attributes:
        name: The name for `LISTEN_FDNAMES` and `LOGAGG_FD_…`: web, web2, …
        family: The address family's number.
        host: Numeric host or path.
        port: Port, 0 for a Unix socket.
        policy: "kernel", "reuseport" or "rr".
        fd: The listening socket (kernel), the channel that connections come through
            (rr), or -1 (reuseport: bind your own).
    """

    name: str
    family: int
    host: str
    port: int
    policy: str
    fd: int


@dataclass(slots=True)
class LaunchSpec:
    """Orders for a worker.

    Attributes:
        parent: The supervisor's pid.
        slot: The stable number, 1…N.
        id: The worker's own number, never used again.
        channel: The descriptor of the channel, or -1.
        kind: "script", "module", "command" or "tasks".
        argv: The program and its arguments.
        level: The root logger's level.
        listeners: The addresses that the supervisor owns.
        policy: How a port that the program binds is shared with the other workers.
        share: Whether to ask the supervisor for addresses that it does not own yet.
        max_connections: Ask to be replaced after that many connections; 0: never.
        open_files: The limit of open files that the user gave; 0: the present one.
        app: The program's name in a project of several; empty for a run of its own.
        directory: The working directory; empty: the supervisor's.
    """

    parent: int
    slot: int
    id: int
    channel: int
    kind: str
    argv: list[str]
    level: str
    listeners: list[SharedListener] = field(default_factory=list)
    share: bool = True
    policy: str = "kernel"
    max_connections: int = 0
    open_files: int = 0
    app: str = ""
    directory: str = ""

    def to_json(self) -> str:
        """The environment variable's value."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def take(cls) -> LaunchSpec:
        """Read the variable and remove it."""
        fields = json.loads(os.environ.pop(ENVIRONMENT))
        fields["listeners"] = [SharedListener(**each) for each in fields["listeners"]]
        return cls(**fields)

    def place_descriptors(self, *, inheritable: bool) -> None:
        """Put descriptors in their places, note them in the environment, and limit them.

        Sets systemd's variables (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`) and
        `LOGAGG_FD_NAME` for each address that has a descriptor. The command's
        placeholders `{fd}`, `{host}`, `{port}`, `{slot}` are filled in; with `{fd}`
        systemd's variables are left unset, since a server that takes the same
        descriptor twice (gunicorn) breaks.
        """
        passed = [each for each in self.listeners if each.fd >= 0]
        others = [self.channel] if self.channel >= 0 else []
        fds, others = place_listeners([each.fd for each in passed], others)
        for listener, fd in zip(passed, fds, strict=True):
            listener.fd = fd
            os.set_inheritable(fd, inheritable)
            name = f"LOGAGG_FD_{listener.name.upper()}"
            os.environ[name] = str(fd)
            if not inheritable:
                # The program reads it in `os.environ`; its children, which do not have
                # the descriptor, inherit what the C library has.
                os.unsetenv(name)
        if others:
            self.channel = others[0]
        if self.open_files:
            limit_open_files(self.open_files)
        takes_fd = any("{fd}" in word for word in self.argv)
        if passed and not takes_fd:
            os.environ["LISTEN_FDS"] = str(len(passed))
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDNAMES"] = ":".join(each.name for each in passed)
            os.environ.pop("LISTEN_PIDFDID", None)
        first = (*self.listeners, SharedListener("", 0, "", 0, "", -1))[0]
        values = {
            "{fd}": str(first.fd),
            "{host}": first.host,
            "{port}": str(first.port),
            "{slot}": str(self.slot),
        }
        for mark, value in values.items():
            self.argv = [word.replace(mark, value) for word in self.argv]
