"""The actions that `--control` gives a page: reload, restart a worker, scale, stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logagg.errors import ConfigError
from logagg.ipc import consumer_client
from logagg.ipc.runs import run_control
from logagg.ipc.runs.run_control import RunAddress
from logagg.ipc.runs.run_messages import (
    ReloadRequest,
    RestartRequest,
    RunRequest,
    ScaleRequest,
    StopRequest,
)

__all__ = ["perform"]

_TIMEOUT = 600.0  # seconds: as long as a worker takes to become ready
_MOST_WORKERS = 1_000


def perform(wanted: Mapping[str, Any], run: RunAddress | None, socket: str) -> str:
    """Do one thing; blocks until it is done, and returns what was done.

    Args:
        wanted: `action`, and `workers` to scale, `slot` to restart.
        run: The run; None when the consumer belongs to none.
        socket: The consumer's socket.

    Raises:
        ConfigError: It is not possible, or was refused.
        ConsumerGone: No consumer answers.
    """
    action = wanted.get("action")
    if action == "reload" and run is None:
        consumer_client.reload(socket)
        return "configuration read again"
    request = _request(action, wanted)
    if run is None:
        raise ConfigError(f"{action}: this consumer belongs to no run")
    reply = run_control.request(run, request, timeout=_TIMEOUT)
    if reply.error:
        raise ConfigError(reply.error)
    if isinstance(request, ScaleRequest):
        return f"{reply.workers} workers"
    if isinstance(request, StopRequest):
        return "the run is stopping"
    return f"{reply.replaced} workers replaced"


def _request(action: Any, wanted: Mapping[str, Any]) -> RunRequest:
    if action == "reload":
        return ReloadRequest()
    if action == "restart":
        return RestartRequest(_whole(wanted.get("slot"), "slot"))
    if action == "scale":
        return ScaleRequest(_whole(wanted.get("workers"), "workers"))
    if action == "stop":
        return StopRequest()
    raise ConfigError(f"unknown action {action!r}: reload, restart, scale or stop")


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: expected a whole number")
    if not 0 <= value <= _MOST_WORKERS:
        raise ConfigError(f"{name}: expected 0 to {_MOST_WORKERS}")
    return value
