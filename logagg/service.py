"""The commands around a consumer: `logagg serve`, `logagg status`, `logagg send`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import orjson

from logagg import address, launch
from logagg.clock import shared_offset
from logagg.config import reader
from logagg.encode import body
from logagg.errors import ConfigError, ConsumerGone

__all__ = ["send", "serve", "status"]

ANSWER_TIMEOUT = 5.0
RELOAD_TIMEOUT = 30.0
MAX_ANSWER_BYTES = 1 << 20


@click.command(
    epilog="""\b
Examples:
  logagg serve --socket /run/app/log.sock --sink file:/var/log/app.log
  logagg serve --sink 'file:app.log?max_bytes=50MB&backups=10' --sink stdout:"""
)
@click.option(
    "--socket",
    "path",
    envvar="LOGAGG_SOCKET",
    metavar="PATH",
    help="Where to listen. Default: serve.sock in the private runtime directory.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="URL",
    help="Where records go; may be repeated. Default: stdout:?format=console.",
)
@click.option("--metrics", metavar="ADDRESS", help="Serve metrics at [HOST]:PORT.")
@click.option("--once", is_flag=True, help="End behind the last process that logs.")
def serve(
    path: str | None, sinks: tuple[str, ...], metrics: str | None, *, once: bool
) -> None:
    """Run the consumer in the foreground (systemd, containers).

    Processes that have LOGAGG_SOCKET set to its socket send their records here. TERM
    and Ctrl-C write what has come and end; HUP and USR1 reopen the files.
    """
    from logagg.consumer import Consumer
    from logagg.handler import absolute
    from logagg.metrics import listen

    path = os.path.abspath(path or os.path.join(address.runtime_dir(), "serve.sock"))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot listen at {path}: the directory {folder} is missing")

    def chosen(wanted: Sequence[str] | None) -> list[str]:
        return [absolute(sink) for sink in wanted or ("stdout:?format=console",)]

    read = reader(click.get_current_context(), "sinks")
    urls = chosen(sinks)
    config: dict[str, Any] = {"socket": path, "sinks": urls, "stay": not once}
    listener = listen(metrics) if metrics else None
    with launch.signals_kept():  # whoever reads "listening" may send one
        with launch.election(path, 5.0):
            if launch.answers(path):
                raise ConfigError(
                    f"a consumer listens at {path} already; stop it first"
                )
            config["restarted"] = os.path.exists(path)
            config["offset"] = shared_offset(launch.stored_offset(path))
            launch.write_offset(path, config["offset"])
            config["fd"] = launch.listen(path).detach()
        if listener is not None:
            config["metrics_fd"] = listener.detach()
        click.echo(f"listening; processes need LOGAGG_SOCKET={path}", err=True)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

        async def live() -> int:
            reread = None if read is None else (lambda: chosen(read()))
            return await Consumer(config, reread).run()

        status = asyncio.run(live())
    sys.exit(status)


@click.command()
@click.option("--logger", default="stdin", show_default=True, help="The logger's name.")
@click.option(
    "--level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error", "critical"]),
)
@click.option("--file", "filename", metavar="FILE", help="The log file to write to.")
@click.option("--sink", "sinks", multiple=True, metavar="URL", help="Other sinks.")
def send(logger: str, level: str, filename: str | None, sinks: tuple[str, ...]) -> None:
    """Make a record of each line of standard input.

    Goes to FILE or the sinks, or to LOGAGG_SOCKET's consumer when that is set.
    """
    from logagg.handler import connected

    if not filename and not sinks and not os.environ.get("LOGAGG_SOCKET"):
        raise ConfigError("nowhere to send: give --file, --sink, or set LOGAGG_SOCKET")
    attached = connected(filename, sinks or None, overflow="block")
    fields: dict[str, Any] = {"logger": logger, "message": "", "pid": os.getpid()}
    for line in sys.stdin.buffer:
        text = line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
        attached.send(level, body({**fields, "message": text}))
    if not attached.close(30.0):
        sys.exit(1)


def reloadable() -> str | None:
    """The socket of the one `logagg serve` that runs; None when there is none.

    Raises:
        ConfigError: Several run.
    """
    named = os.environ.get("LOGAGG_SOCKET")
    if named:
        return named
    found = [path for path in address.listening() if ask(path).get("reloadable")]
    if len(found) > 1:
        names = ", ".join(found)
        raise ConfigError(f"several consumers run; name one with --socket: {names}")
    return found[0] if found else None


def reload_consumer(path: str) -> str:
    """Have a consumer read its configuration again; return what to say.

    Raises:
        ConfigError: It refused; the message says why, and all is as it was.
        ConsumerGone: Nobody answers there.
    """
    answer = ask(path, "reload", RELOAD_TIMEOUT)
    if "error" in answer:
        raise ConfigError(f"not reloaded: {answer['error']}")
    return "configuration read again"


def ask(
    path: str,
    kind: str = "status",
    timeout: float = ANSWER_TIMEOUT,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The answer of the consumer at a socket path; by default its counters.

    Raises:
        ConsumerGone: Nobody answers there within the timeout.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            connection.send(orjson.dumps({"hello": 1, "kind": kind, **(more or {})}))
            answer = orjson.loads(connection.recv(MAX_ANSWER_BYTES))
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConsumerGone(f"no consumer answers at {path}: {error}") from error
    if not isinstance(answer, dict):
        raise ConsumerGone(f"the consumer at {path} does not say its status")
    return answer


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a run and a consumer."
)
@click.option(
    "--socket", "path", envvar="LOGAGG_SOCKET", metavar="PATH", help="Only this one."
)
def status(path: str | None, as_json: bool) -> None:
    """Show this user's runs (slots, restarts) and consumers (workers, sinks, losses)."""
    from logagg.supervisor.commands import status_of_runs
    from logagg.supervisor.control import runs

    pids = [] if path else runs()
    paths = [path] if path else address.listening()
    if not paths and not pids:
        raise ConsumerGone("no run and no consumer is running")
    for pid in pids:
        text = status_of_runs(pid, as_json=as_json)
        if as_json:
            text = orjson.dumps({"run": orjson.loads(text)[0]}).decode()
        click.echo(text)
    for each in paths:
        found = ask(each)
        click.echo(orjson.dumps(found) if as_json else table(found))


def table(found: dict[str, Any]) -> str:
    """A consumer's status as text."""
    row = "  {:<12}{:>8}{:>12}{:>9}{:>7}{:>9}{:>9}  "
    lines = [
        f"consumer {found['pid']}  {found['socket']}",
        (
            "  up {uptime:.0f} s, {records} records, {pending} waiting, {late} late, "
            "{workers_ended} workers ended, {refused} refused"
        ).format(**found),
        "",
        row.format("WORKER", "PID", "RECORDS", "UNACKED", "LOST", "DROPPED", "DAMAGED")
        + "PROCESS",
    ]
    for each in found["workers"]:
        waiting = each["last_seq"] - each["acknowledged"]
        numbers = (each[key] for key in ("lost", "dropped", "damaged"))
        start = (each["worker"], each["pid"], each["records"], waiting)
        lines.append(row.format(*start, *numbers) + each["process"])
    lines += ["", f"  {'WRITTEN':>10}{'QUEUED':>8}{'DROPPED':>9}{'RETRIES':>9}  SINK"]
    for each in found["sinks"]:
        dropped = sum(each["dropped"].values())
        error = f"  ({each['error']})" if each["error"] else ""
        lines.append(
            f"  {each['written']:>10}{each['queued_records']:>8}{dropped:>9}"
            f"{each['retries']:>9}  {each['url']}{error}"
        )
    return "\n".join(lines)
