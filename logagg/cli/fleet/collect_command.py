"""The commands `logagg collect` and `logagg nats init`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import click
import msgspec

from logagg.cli.command import command, say
from logagg.collect.collect_options import CollectOptions, read_source
from logagg.errors import ConfigError
from logagg.ipc.paths import state_dir
from logagg.options import Count, Duration, Option, Size

__all__ = ["collect", "nats"]

_POISON_BYTES = 100 * 1000 * 1000


@command(CollectOptions, click.Argument(["source"], metavar="SOURCE"))
def collect(options: CollectOptions, source: str) -> None:
    """Collect the records of all hosts from a stream: ordered, each once.

    SOURCE is nats://HOST[:PORT][,HOST…]/STREAM or tls://…, with options after a `?`.
    TERM and Ctrl-C write what was read and end; another collector of the same name then
    takes over at once.

    \b
    logagg collect 'nats://n1,n2,n3/LOGS' --sink file:/var/log/fleet.log
    logagg collect 'nats://n1/LOGS?name=shop&filter=logagg.shop.>' --sink file:shop.log
    """
    from logagg.client.sink_urls import absolute_url  # only needed to collect
    from logagg.collect.collector import FleetCollector  # asyncio, all of the fanout
    from logagg.collect.poison_file import PoisonFile  # as above
    from logagg.sinks import build  # loads the sinks, for their checks

    address, settings = read_source(source)
    sinks = tuple(absolute_url(sink) for sink in options.sinks)
    for url in sinks:
        build(url)
    folder = Path(state_dir(), "collect", settings.name)

    async def live() -> int:
        collector = FleetCollector(
            address,
            settings,
            msgspec.structs.replace(options, sinks=sinks),
            PoisonFile(folder, _POISON_BYTES),
            lambda text: say(text, err=True),
        )
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, collector.stop)
        return await collector.run()

    sys.exit(asyncio.run(live()))


class InitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg nats init`."""

    max_bytes: Annotated[Size, Option("The room that the stream has.")] = 0
    replicas: Annotated[Count, Option("How many servers keep each message.")] = 3
    max_age: Annotated[Duration, Option("How long messages are kept.")] = 86400.0
    window: Annotated[
        Duration, Option("Within it the stream leaves out repetitions.")
    ] = 600.0


@click.group()
def nats() -> None:
    """Streams of NATS JetStream."""


@command(InitOptions, click.Argument(["source"], metavar="SOURCE"))
def init(options: InitOptions, source: str) -> None:
    """Make a stream for `logagg`, with settings that lose nothing, and check it.

    SOURCE is as for `logagg collect`; its `filter` are the subjects (all of logagg's).
    A stream that is there stays as it is.

    \b
    logagg nats init nats://n1,n2,n3/LOGS --max-bytes 100GB
    """
    from logagg.fleet.jetstream import add_stream  # loads asyncio
    from logagg.fleet.nats_connection import NatsConnection, NatsError  # as above

    address, settings = read_source(source)
    if not options.max_bytes:
        raise ConfigError("--max-bytes is missing: the room that the stream has")

    async def make() -> tuple[str, str]:
        connection = NatsConnection(address, settings, "logagg nats init")
        try:
            return await add_stream(
                connection,
                address.stream,
                settings.filter or ("logagg.>",),
                max_bytes=options.max_bytes,
                num_replicas=options.replicas,
                max_age=options.max_age,
                duplicate_window=options.window,
            )
        except NatsError as error:
            raise ConfigError(f"{address.text}: {error}") from None
        finally:
            await connection.close()

    state, text = asyncio.run(make())
    say(f"{address.stream}: {text}")
    for note in [] if state == "ok" else text.split("; ")[1:]:
        say(f"logagg: {note}", err=True)


nats.add_command(init)
