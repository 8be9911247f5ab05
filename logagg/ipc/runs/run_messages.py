"""Messages of a run's control socket (`run-PID-TOKEN.control`), as typed structs.

One line of JSON each: a `RunRequest` (`do` names which) and its answer, a `RunReply`. A
run of one program (`logagg run`) and a project of several (`logagg up`) take the same
requests; `program` is empty for a run, and names a program of a project. The version is
that of `logagg.ipc.protocol`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from logagg.ipc.protocol import VERSION, Number, read_first

__all__ = [
    "ReloadRequest", "RestartRequest", "RunReply", "RunRequest", "ScaleRequest",
    "StatusRequest", "StopRequest", "UpRequest", "decode_run_request",
]  # fmt: skip


class StatusRequest(Struct, tag_field="do", tag="status"):
    """Requests `RunReply.status`."""

    hello: int = VERSION


class ReloadRequest(Struct, tag_field="do", tag="reload"):
    """Replaces all workers, one at a time; answered by `RunReply.replaced`."""

    hello: int = VERSION
    program: str = ""


class ScaleRequest(Struct, tag_field="do", tag="scale"):
    """Changes the number of workers; answered by `RunReply.workers`."""

    workers: Number
    hello: int = VERSION
    program: str = ""


class StopRequest(Struct, tag_field="do", tag="stop"):
    """Ends the run, or one program; answered by `RunReply.stopping`."""

    hello: int = VERSION
    program: str = ""


class RestartRequest(Struct, tag_field="do", tag="restart"):
    """Replaces one slot's worker, or ends a program and starts it.

    Answered by `RunReply.replaced`.

    Attributes:
        slot: Of a run.
        program: Of a project.
    """

    slot: Number = 0
    hello: int = VERSION
    program: str = ""


class UpRequest(Struct, tag_field="do", tag="up"):
    """Starts what is missing of a project and applies its changed configuration.

    Answered by `RunReply.notes`.

    Attributes:
        programs: The programs that are meant; empty: all.
        formation: Numbers of workers by program.
    """

    hello: int = VERSION
    programs: list[str] = []
    formation: dict[str, Number] = {}


RunRequest = (
    StatusRequest
    | ReloadRequest
    | ScaleRequest
    | StopRequest
    | RestartRequest
    | UpRequest
)


class RunReply(Struct, omit_defaults=True):
    """A run's answer.

    Attributes:
        error: Why it was refused; empty when it was not.
        trace: The traceback of a release that did not become ready.
        notes: By program, what has become of it.
    """

    error: str = ""
    trace: str = ""
    status: dict[str, Any] | UnsetType = UNSET
    replaced: int | UnsetType = UNSET
    workers: int | UnsetType = UNSET
    stopping: bool | UnsetType = UNSET
    notes: dict[str, str] | UnsetType = UNSET


_decode = msgspec.json.Decoder(RunRequest).decode


def decode_run_request(line: bytes) -> RunRequest:
    """A request to a run.

    Raises:
        WireError: It is not one, or of another version.
    """
    request: RunRequest = read_first(_decode, line)
    return request
