"""The commands `logagg serve` and `logagg send`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import click
import msgspec

from logagg.cli.command import command, reader, say
from logagg.core import levels
from logagg.core.encode import body
from logagg.dialects.printed import printed_fields
from logagg.errors import ConfigError, ExitStatus
from logagg.ipc import consumer_client, launcher
from logagg.ipc import paths as address
from logagg.ipc.descriptors import set_limits
from logagg.ipc.protocol import ConsumerConfig
from logagg.options import FilePath, Option, OptionText
from logagg.platform import endpoints
from logagg.platform.held_signals import hold_signals, to_the_end
from logagg.sinks import SinkText
from logagg.supervisor.process.page_process import PageProcess
from logagg.supervisor.run_options import DEFAULT_SINKS, Address

__all__ = ["send", "serve"]

Sinks = tuple[SinkText, ...]


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg serve`."""

    socket: Annotated[
        FilePath,
        Option(
            "Listen there.",
            default="serve.sock in the private runtime directory",
            asks="listen at {}",
        ),
    ] = ""
    sinks: Annotated[
        Sinks, Option("Where records go; repeatable.", "", "URL", long="--sink")
    ] = DEFAULT_SINKS
    metrics: Annotated[
        Address, Option("Serve metrics at [HOST]:PORT or unix:PATH.", "", "ADDRESS")
    ] = ""
    web: Annotated[
        Address, Option("Show the log in a browser there.", "", "ADDRESS")
    ] = ""
    once: Annotated[bool, Option("End after the last process that logs.")] = False


@command(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Run the consumer in the foreground (systemd, containers).

    Processes that have LOGAGG_SOCKET set to its socket send their records here. TERM
    and Ctrl-C write what has come and end; HUP reads the sinks again and reopens the
    files, USR1 only reopens them.

    \b
    logagg serve --socket /run/app/log.sock --sink file:/var/log/app.log
    logagg serve --sink 'file:app.log?max_bytes=50MB&backups=10' --sink stdout:
    """
    from logagg.consumer.consumer import Consumer  # asyncio, the whole consumer

    default = os.path.join(address.runtime_dir(), "serve.sock")
    path = os.path.abspath(options.socket or default)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot listen at {path}: the directory {folder} is missing")
    reread = _reread(reader(click.get_current_context(), "sinks"))
    config: dict[str, Any] = {
        "socket": path,
        "sinks": _absolute(options.sinks),
        "stay": not options.once,
    }
    listener = endpoints.listen(options.metrics, "metrics") if options.metrics else None
    page = PageProcess(options.web) if options.web else None
    hold_signals()  # a reader of "listening" may send one at once
    _listen(config)
    if listener is not None:
        config["metrics_fd"] = listener.detach()
    say(f"listening; processes need LOGAGG_SOCKET={path}", err=True)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    set_limits()

    async def live() -> int:
        settings = msgspec.convert(config, ConsumerConfig)
        return await to_the_end(Consumer(settings, reread).run())

    try:
        if page is not None:
            page.start(path)
        status = asyncio.run(live())
    finally:
        if page is not None:
            page.end()
    sys.exit(status)


def _absolute(sinks: Sequence[str]) -> list[str]:
    from logagg.client.sink_urls import absolute_url  # only needed to serve
    from logagg.sinks import build  # loads the sinks, for their checks

    urls = [absolute_url(sink) for sink in sinks]
    for url in urls:
        build(url)
    return urls


def _reread(read: Callable[[], Any] | None) -> Callable[[], list[str]] | None:
    return None if read is None else lambda: _absolute(read() or DEFAULT_SINKS)


def _listen(config: dict[str, Any]) -> None:
    """Bind the socket, as the only consumer there, and add it to the configuration.

    Raises:
        ConfigError: Another consumer listens there, or another user's files are there.
    """
    path = config["socket"]
    try:
        with launcher.election(path, 5.0):
            if launcher.answers(path):
                raise ConfigError(
                    f"a consumer listens at {path} already; stop it first"
                )
            config["restarted"] = os.path.exists(path)
            config["offset"] = launcher.choose_offset(path, config["sinks"])
            config["fd"] = launcher.listen(path).detach()
    except OSError as error:
        raise ConfigError(f"cannot listen at {path}: {error}") from error


def _one_of_levels(text: str) -> str:
    if text.lower() not in levels.STANDARD:
        raise ValueError(", ".join(levels.STANDARD))
    return text.lower()


class SendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg send`."""

    logger: Annotated[str, Option("The logger's name.", "", "NAME")] = "stdin"
    level: Annotated[
        str, OptionText(_one_of_levels, metavar="LEVEL"), Option("The records' level.")
    ] = "info"
    file: Annotated[
        FilePath, Option("The log file to write to.", "", "FILE", asks="write {}")
    ] = ""
    sinks: Annotated[
        Sinks, Option("Other sinks; repeatable.", "", "URL", long="--sink")
    ] = ()


@command(SendOptions)
def send(options: SendOptions) -> None:
    """Send each line of standard input as a record.

    It goes to FILE or the sinks, or to the consumer at LOGAGG_SOCKET when that is set.
    Exit status 5 when records could not be handed over within 30 seconds.
    """
    from logagg.client.sink_urls import open_transport  # reads standard input meanwhile

    if not (options.file or options.sinks or os.environ.get("LOGAGG_SOCKET")):
        raise ConfigError("nowhere to send: give --file, --sink, or set LOGAGG_SOCKET")
    attached = open_transport(
        options.file or None, options.sinks or None, overflow="block"
    )
    fields: dict[str, Any] = {"logger": options.logger, "message": ""}
    fields["pid"] = os.getpid()
    for line in sys.stdin.buffer:
        text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
        level, found = printed_fields(text)
        attached.send(level or options.level, body({**fields, **found}))
    if not attached.close(30.0):
        sys.exit(ExitStatus.UNWRITTEN)


def reloadable() -> str | None:
    """The socket of the only running `logagg serve`; None when there is none.

    Raises:
        ConfigError: Several run.
    """
    named = os.environ.get("LOGAGG_SOCKET")
    if named:
        return named
    found = [
        path
        for path in address.listening()
        if consumer_client.status(path).get("reloadable")
    ]
    if len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"several consumers run; name one with --socket: {names}")
    return found[0] if found else None
