"""`logagg.start`: one consumer for a parent process and all its children.

Children find it by the environment (`LOGAGG_SOCKET`), however they are started. Those
that multiprocessing spawns also inherit the root logger's setting: what a spawned
child unpickles first is a dictionary of its parent's making, and one more entry in it
sets logging up before any code of the application runs. So no initializer is needed,
even in pools that a library makes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from time import CLOCK_MONOTONIC, clock_gettime
from types import TracebackType
from typing import Any, Self

from logagg import address, attach, launch
from logagg.channel import Control, standard_streams
from logagg.clock import shared_offset
from logagg.errors import ClosedError, ConfigError, ConsumerGone
from logagg.handler import Handler, absolute

__all__ = ["start"]

START_TIMEOUT = 20.0


class start:  # noqa: N801 - reads as the verb that it is
    """Start a consumer with these sinks, for this process and all its children.

        with logagg.start("file:app.log", "stdout:?format=console"):
            with ProcessPoolExecutor() as pool: ...

    Blocks until the sinks are open (0.1 to 0.3 s: an interpreter starts). While it is
    entered, `LOGAGG_SOCKET` is set, so that any `logagg.Handler()` in this process and
    in its children, started by fork, spawn, forkserver or exec, sends there. Leaving
    waits up to `timeout` seconds until all that was logged is written.

    Args:
        sinks: Sink URLs; with none, console lines on stdout.
        root: Also put a `logagg.Handler` on the root logger, unless there is one, here
            and in spawned children, which also get its level and the level names.
        timeout: Seconds to wait for the last record at the end, and for children that
            still run; what is not written by then is written by the consumer, which
            ends behind the last of them.

    Raises:
        ConfigError: A sink cannot be used; the message says which and why.
        ConsumerGone: No consumer could be started.
    """

    def __init__(self, *sinks: str, root: bool = True, timeout: float = 10.0) -> None:
        self.sinks = [absolute(sink) for sink in sinks or ("stdout:?format=console",)]
        self.root = root
        self.timeout = timeout
        self.path = ""
        self._control: Control | None = None
        self._environment: str | None = None
        self._handler: Handler | None = None

    def __enter__(self) -> Self:
        if self._control is not None:
            raise ClosedError("logagg.start is entered already")
        name = f"start-{os.getpid()}-{os.urandom(4).hex()}"
        self.path = address.socket_path(name)
        with launch.election(self.path, START_TIMEOUT):
            offset = shared_offset(None)
            launch.write_offset(self.path, offset)
            with launch.listen(self.path) as listener:
                config = {"socket": self.path, "offset": offset}
                launch.spawn(listener, config, self.path + ".err")
                self._control = Control(launch.connect(self.path))
        hello = {"hello": 1, "kind": "hold", "sinks": self.sinks}
        self._control.tell(hello, standard_streams())
        try:
            self._await_welcome(self._control)
        except BaseException:
            self._control.close()
            self._control = None
            raise
        self._environment = os.environ.get("LOGAGG_SOCKET")
        os.environ["LOGAGG_SOCKET"] = self.path
        if self.root:
            self._set_root()
        return self

    def _await_welcome(self, control: Control) -> None:
        deadline = clock_gettime(CLOCK_MONOTONIC) + START_TIMEOUT
        while clock_gettime(CLOCK_MONOTONIC) < deadline:
            control.wait(0.5)
            messages, present = control.hear()
            for message in messages:
                if "error" in message:
                    raise ConfigError(message["error"])
                if "welcome" in message:
                    return
            if not present:
                break
        raise ConsumerGone(f"the consumer did not start; see {self.path}.err")

    def _set_root(self) -> None:
        root = logging.getLogger()
        if not any(isinstance(each, Handler) for each in root.handlers):
            self._handler = Handler()
            root.addHandler(self._handler)
        _hand_down()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        control, self._control = self._control, None
        if control is None:
            return
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()
            self._handler = None
        if self._environment is None:
            os.environ.pop("LOGAGG_SOCKET", None)
        else:
            os.environ["LOGAGG_SOCKET"] = self._environment
        attach.close_path(self.path, self.timeout)
        control.tell({"leave": 1})
        deadline = clock_gettime(CLOCK_MONOTONIC) + self.timeout
        present = True
        while present and clock_gettime(CLOCK_MONOTONIC) < deadline:
            control.wait(0.2)
            _, present = control.hear()
        control.close()


def _hand_down() -> None:
    """Let multiprocessing's spawned children inherit the root logger's setting."""
    from multiprocessing import spawn

    original = spawn.get_preparation_data
    if getattr(original, "hands_down_logagg", False):
        return

    def prepared(name: str) -> Mapping[str, Any]:
        data: dict[str, Any] = dict(original(name))
        if os.environ.get("LOGAGG_SOCKET"):
            data["logagg"] = _Inheritance()
        return data

    prepared.hands_down_logagg = True  # type: ignore[attr-defined]
    spawn.get_preparation_data = prepared  # type: ignore[assignment]


_RECEIVE = """\
try:
    import sys
    sys.path += [entry for entry in {path!r} if entry not in sys.path]
    from logagg.start import receive
    receive({state!r})
except Exception:
    pass
"""


class _Inheritance:
    """Unpickling it runs `receive` in the child; it never fails, whatever is missing."""

    def __reduce__(self) -> tuple[Any, ...]:
        root = logging.getLogger()
        names: dict[str, int] = logging.getLevelNamesMapping()
        state = {
            "socket": os.environ.get("LOGAGG_SOCKET", ""),
            "level": root.level,
            "names": {number: name for name, number in names.items()},
        }
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        return exec, (_RECEIVE.format(path=path, state=state),)


def receive(state: dict[str, Any]) -> None:
    """In a spawned child: take over the parent's root level, level names, handler."""
    os.environ["LOGAGG_SOCKET"] = state["socket"]
    for number, name in state["names"].items():
        if logging.getLevelName(number) != name:
            logging.addLevelName(number, name)
    root = logging.getLogger()
    root.setLevel(state["level"])
    if not any(isinstance(each, Handler) for each in root.handlers):
        with contextlib.suppress(OSError, ValueError):
            root.addHandler(Handler())
    _hand_down()
