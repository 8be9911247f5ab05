"""What a new worker process is told, in one environment variable, and reads first.

`LOGAGG_START` is JSON and is removed from the environment by its reader, so that no
grandchild takes it for its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

__all__ = ["ENVIRONMENT", "Door", "Start"]

ENVIRONMENT = "LOGAGG_START"


@dataclass(slots=True)
class Door:
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
class Start:
    """All that a worker is told.

    Attributes:
        parent: The supervisor's pid.
        slot: The stable number, 1…N.
        id: The worker's own number, never used again.
        channel: The descriptor of the channel, or -1.
        kind: "script", "module", "command" or "tasks".
        argv: The program and its arguments.
        level: The root logger's level.
        doors: The addresses that the supervisor owns.
        share: Whether to ask the supervisor for addresses that it does not own yet.
        max_connections: Ask to be replaced after that many connections; 0: never.
        open_files: The limit of open files that the user gave; 0: the present one.
    """

    parent: int
    slot: int
    id: int
    channel: int
    kind: str
    argv: list[str]
    level: str
    doors: list[Door] = field(default_factory=list)
    share: bool = True
    max_connections: int = 0
    open_files: int = 0

    def to_json(self) -> str:
        """The environment variable's value."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def take(cls) -> Start:
        """Read the variable and remove it."""
        fields = json.loads(os.environ.pop(ENVIRONMENT))
        fields["doors"] = [Door(**door) for door in fields["doors"]]
        return cls(**fields)

    def settle(self, *, inheritable: bool) -> None:
        """Put descriptors in their places and say so in the environment; limit them.

        Sets systemd's variables (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`) and
        `LOGAGG_FD_NAME` for each address that has a descriptor. The command's
        placeholders `{fd}`, `{host}`, `{port}`, `{slot}` are filled in; with `{fd}`
        systemd's variables are left unset, since a server that takes the same
        descriptor twice (gunicorn) breaks.
        """
        from logagg.supervisor.layers import limit_open_files, place_listeners

        passed = [door for door in self.doors if door.fd >= 0]
        others = [self.channel] if self.channel >= 0 else []
        fds, others = place_listeners([door.fd for door in passed], others)
        for door, fd in zip(passed, fds, strict=True):
            door.fd = fd
            os.set_inheritable(fd, inheritable)
            os.environ[f"LOGAGG_FD_{door.name.upper()}"] = str(fd)
        if others:
            self.channel = others[0]
        if self.open_files:
            limit_open_files(self.open_files)
        takes_fd = any("{fd}" in word for word in self.argv)
        if passed and not takes_fd:
            os.environ["LISTEN_FDS"] = str(len(passed))
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDNAMES"] = ":".join(door.name for door in passed)
            os.environ.pop("LISTEN_PIDFDID", None)
        first = self.doors[0] if self.doors else Door("", 0, "", 0, "", -1)
        values = {
            "{fd}": str(first.fd),
            "{host}": first.host,
            "{port}": str(first.port),
            "{slot}": str(self.slot),
        }
        for mark, value in values.items():
            self.argv = [word.replace(mark, value) for word in self.argv]
