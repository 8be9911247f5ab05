"""`logagg.start`: one consumer for a parent process and all its children.

Children find it by the environment (`LOGAGG_SOCKET`), however they are started. Those
that multiprocessing and its relatives spawn, and Python interpreters that are started
(`subprocess`), also inherit the root logger's setting (`logagg.integrations.inherit`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime
from types import TracebackType
from typing import Self

from logagg.client import closing, transport
from logagg.client.fast import log_calls
from logagg.client.sink_urls import absolute_url
from logagg.errors import ClosedError, ConfigError, ConsumerGone
from logagg.integrations import celery, inherit, running_task
from logagg.integrations.handlers.queue_handlers import QueueHandlers
from logagg.integrations.handlers.root_handler import (
    RootHandler,
    RootPlace,
    root_senders,
)
from logagg.ipc import client_messages, launcher, paths
from logagg.ipc.connection import PacketConnection, standard_streams
from logagg.ipc.descriptors import no_fork

__all__ = ["start"]

START_TIMEOUT = 20.0


class start:  # noqa: N801 - reads as the verb that it is
    """Start a consumer with these sinks, for this process and all its children.

        with logagg.start("file:app.log", "stdout:?format=console"):
            with ProcessPoolExecutor() as pool: ...

    Blocks until the sinks are open (0.1 to 0.3 s: an interpreter starts). While it is
    entered, `LOGAGG_SOCKET` is set, so that any `logagg.Handler()` in this process and
    in its children, started by fork, spawn, forkserver or exec, sends there, and
    `logagg.install()` is in effect. Leaving waits up to `timeout` seconds until all
    that was logged is written. A handler of this process that is used afterwards logs
    to the same sinks, by a consumer that it starts.

    Args:
        sinks: Sink URLs; with none, console lines on stdout.
        root: Also keep a `logagg.Handler` on the root logger, unless it has one, however
            the program sets up logging meanwhile (`dictConfig`, `basicConfig`), here and
            in spawned children, which also get its level and the level names, and in
            Python interpreters whose stderr is that of this process, which get the level
            that it has now.
        timeout: Seconds to wait for the last record at the end, and for children that
            still run; the consumer writes the rest and ends after the last child.

    Raises:
        ConfigError: A sink cannot be used; the message names it and the reason.
        ConsumerGone: No consumer could be started.
    """

    def __init__(self, *sinks: str, root: bool = True, timeout: float = 10.0) -> None:
        self.sinks = [
            absolute_url(sink) for sink in sinks or ("stdout:?format=console",)
        ]
        self.root = root
        self.timeout = timeout
        self.path = ""
        self._control: PacketConnection | None = None
        self._environment: dict[str, str | None] = {}
        self._handler: RootHandler | None = None
        self._place: RootPlace | None = None
        self._installed = False
        self._take_back: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        if self._control is not None:
            raise ClosedError("logagg.start has been entered already")
        name = f"start-{os.getpid()}-{os.urandom(4).hex()}"
        self.path = paths.socket_path(name)
        spool = paths.identity(self.sinks)
        with launcher.election(self.path, START_TIMEOUT):
            offset = launcher.choose_offset(self.path, self.sinks)
            with no_fork:
                config = {"offset": offset, "spool": spool}
                connection = launcher.launch(self.path, config)
                self._control = PacketConnection(connection)
        with standard_streams() as streams:
            self._control.send(client_messages.hold(self.sinks), streams)
        try:
            self._await_welcome(self._control)
        except BaseException:
            self._control.close()
            self._control = None
            raise
        address = {"LOGAGG_SOCKET": self.path, paths.SPOOL_NAME: spool}
        self._environment = {name: os.environ.get(name) for name in address}
        os.environ.update(address)
        self._installed = not log_calls.is_installed() and log_calls.install()
        if self.root:
            self._configure_root()
        return self

    def _await_welcome(self, control: PacketConnection) -> None:
        deadline = clock_gettime(CLOCK_MONOTONIC) + START_TIMEOUT
        while clock_gettime(CLOCK_MONOTONIC) < deadline:
            control.wait(0.5)
            packets, present = control.receive()
            for message in map(client_messages.decode, packets):
                if message.error is not None:
                    raise ConfigError(message.error)
                if message.welcome:
                    return
            if not present:
                break
        raise ConsumerGone(f"the consumer did not start; see {self.path}.err")

    def _configure_root(self) -> None:
        sender = next(iter(root_senders()), None)
        if sender is None:
            sender = self._handler = RootHandler()
            self._place = RootPlace(
                self._handler, inherit.reaches_log, logging.getLogger()
            )
            self._place.place()
            self._place.watch()
        self._take_back.append(QueueHandlers(sender, inherit.reaches_log).take_back)
        celery.install()
        running_task.install()
        inherit.hand_down()
        self._take_back.append(inherit.hand_down_beside())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        control, self._control = self._control, None
        if control is None:
            return
        deadline = clock_gettime(CLOCK_MONOTONIC) + self.timeout
        if self._handler is not None and self._place is not None:
            self._place.give_up()
            self._handler.end()
            self._handler = self._place = None
        if self._installed:
            log_calls.uninstall()
        while self._take_back:
            self._take_back.pop()()
        for name, before in self._environment.items():
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before
        left = max(deadline - clock_gettime(CLOCK_MONOTONIC), 0.0)
        closing.close_path(self.path, left)
        control.send(client_messages.leave())
        present = True
        while present and clock_gettime(CLOCK_MONOTONIC) < deadline:
            control.wait(0.2)
            _, present = control.receive()
        control.close()
        path = paths.socket_path(paths.identity(self.sinks))
        transport.redirect(self.path, path, self.sinks)
