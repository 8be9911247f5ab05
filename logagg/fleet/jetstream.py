"""Requests to a stream: publish, inspect, create; errors as `NatsError`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from logagg.fleet.nats_connection import NatsConnection, NatsError

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import StreamInfo

__all__ = [
    "OLDEST_SERVER", "add_stream", "check_stream", "failure", "publish", "stream_info",
    "weak_settings",
]  # fmt: skip

OLDEST_SERVER = (2, 12)
_WRONG_STREAM, _NOT_FOUND, _NO_JETSTREAM = 10060, 10059, (10039, 10076)
_LEAST_WINDOW = 120.0


async def publish(
    connection: NatsConnection,
    stream: JetStreamContext,
    subject: str,
    body: bytes,
    headers: dict[str, str],
    seconds: float,
) -> None:
    """Publish a message and wait for the stream's acknowledgement.

    Raises:
        NatsError: It did not come.
    """
    try:
        await stream.publish(subject, body, timeout=seconds, headers=headers)
    except Exception as error:  # noqa: BLE001 - the client raises many kinds
        raise failure(error, connection) from None


def failure(error: Exception, connection: NatsConnection) -> NatsError:
    """The error of a request, by what is to follow from it."""
    from nats import errors  # an extra, loaded by the connection
    from nats.js import errors as stream_errors  # as above

    if isinstance(error, NatsError):
        return error
    if isinstance(error, stream_errors.NoStreamResponseError):
        return NatsError(
            "no stream takes this subject: none is there (logagg nats init), "
            "JetStream is off, or a leader is being elected"
        )
    if isinstance(error, stream_errors.APIError):
        code = getattr(error, "err_code", 0) or 0
        text = f"{error.description or error} ({code or getattr(error, 'code', 0)})"
        refused = code in (_WRONG_STREAM, *_NO_JETSTREAM)
        return NatsError(text, refused=refused)
    complaint = connection.complaint
    if "permissions violation" in complaint.lower():
        return NatsError(complaint, refused=True)
    if isinstance(error, (errors.TimeoutError, TimeoutError, asyncio.TimeoutError)):
        return NatsError("no acknowledgement in time", ambiguous=True)
    reason = str(error) or type(error).__name__
    if complaint and complaint not in reason:
        reason = f"{reason} ({complaint})"
    return NatsError(reason, ambiguous=True)


async def stream_info(connection: NatsConnection, name: str) -> StreamInfo | None:
    """Settings and state of a stream; None when it is not there.

    Raises:
        NatsError: There is no answer, or no JetStream.
    """
    context = await connection.open()
    try:
        return await context.stream_info(name)
    except Exception as error:  # noqa: BLE001 - the client raises many kinds
        if getattr(error, "err_code", 0) == _NOT_FOUND:
            return None
        found = failure(error, connection)
        if "503" in str(error) or "ServiceUnavailable" in type(error).__name__:
            found = NatsError("the server has no JetStream", refused=True)
        raise found from None


def weak_settings(info: StreamInfo, version: str) -> list[str]:
    """The settings of a stream and a server that can lose records, in words."""
    config = info.config
    found = []
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST_SERVER:
        found.append(f"server {version} is older than 2.12, which loses streams")
    if _text(config.discard) != "new":
        found.append("discard=old: a full stream drops its oldest records unread")
    if _text(config.storage) != "file":
        found.append("storage=memory: the records end with the server")
    if (config.num_replicas or 1) < 3:
        found.append(
            f"{config.num_replicas or 1} replica: a lost disk is a lost stream"
        )
    if (config.max_bytes or -1) <= 0:
        found.append("max_bytes is not set: the stream fills the disk")
    if (config.duplicate_window or 0.0) < _LEAST_WINDOW:
        found.append("duplicate_window is below 2 minutes")
    return found


async def check_stream(connection: NatsConnection, name: str) -> tuple[str, str]:
    """Check a stream: "ok", "note" or "down", and what was found.

    Raises:
        NatsError: There is no answer, or no JetStream.
    """
    info = await stream_info(connection, name)
    if info is None:
        return "down", f"there is no stream {name}; logagg nats init makes one"
    state = info.state
    said = (
        f"server {connection.version}, {state.messages} messages, {state.bytes} bytes"
    )
    weak = weak_settings(info, connection.version)
    return ("note", "; ".join([said, *weak])) if weak else ("ok", said)


async def add_stream(
    connection: NatsConnection, name: str, subjects: tuple[str, ...], **options: Any
) -> tuple[str, str]:
    """Make a stream unless it is there, with discard=new in files; see `check_stream`.

    Raises:
        NatsError: There is no answer, or the server refuses.
    """
    from nats.js import api  # an extra, loaded by the connection

    if await stream_info(connection, name) is None:
        config = api.StreamConfig(
            name=name,
            subjects=list(subjects),
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.NEW,
            allow_direct=True,
            **options,
        )
        context = await connection.open()
        try:
            await context.add_stream(config)
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            raise failure(error, connection) from None
    return await check_stream(connection, name)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value) or "")
