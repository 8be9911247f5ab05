"""The commands `run`, `reload`, `scale`, `stop` and the run's half of `status`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from logagg.config import reader
from logagg.errors import ConfigError, LogaggError
from logagg.supervisor.options import Status

__all__ = ["reload", "run", "scale", "status_of_runs", "stop"]

_END = "\0"  # no word of a command line can be that
_SUFFIXES = {"K": 10, "M": 20, "G": 30}


def _errors_as_lines(function: Callable[..., Any]) -> Callable[..., Any]:
    """One line on stderr and the error's own exit status, instead of a traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except LogaggError as error:
            click.echo(f"logagg: {error}", err=True)
            sys.exit(error.exit_status)

    return wrapper


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value).upper().removesuffix("B").removesuffix("I")
        shift = _SUFFIXES.get(text[-1:], 0)
        digits = text[:-1] if shift else text
        try:
            number = float(digits)
        except ValueError:
            number = -1.0
        if number < 0:
            self.fail(f"{value!r} is not a size; write 500MB or 2G", param, ctx)
        return int(number * (1 << shift))


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@click.option("-w", "--workers", metavar="N|max", help="How many; all usable cores.")
@click.option("-m", "module", is_flag=True, help="PROGRAM is a module, as python -m.")
@click.option("--sink", "sinks", multiple=True, metavar="URL", help="Where records go.")
@click.option("--level", metavar="LEVEL", help="Of the root loggers. [default: INFO]")
@click.option("--metrics", metavar="ADDRESS", help="Serve metrics at [HOST]:PORT.")
@click.option("-b", "--bind", multiple=True, metavar="ADDRESS", help="Share a port.")
@click.option(
    "--policy",
    type=click.Choice(["kernel", "reuseport", "rr"]),
    default="kernel",
    show_default=True,
    help="Who decides which worker gets a connection.",
)
@click.option("--sticky", metavar="KEY", help="ip, cookie:N, header:N or query:N.")
@click.option(
    "--restart",
    type=click.Choice(["failure", "always", "never"]),
    default="failure",
    show_default=True,
    help="When an ended worker is replaced.",
)
@click.option(
    "--on-failure",
    type=click.Choice(["exit", "keep"]),
    default="exit",
    show_default=True,
    help="When the program cannot start.",
)
@click.option("--stop-timeout", type=float, metavar="S", help="TERM to KILL. [30]")
@click.option("--ready-timeout", type=float, metavar="S", help="To be ready. [60]")
@click.option("--unresponsive-timeout", type=float, metavar="S", help="0: never. [60]")
@click.option("--max-rss", "max_rss_bytes", type=_Size(), help="Replace above SIZE.")
@click.option("--max-age", type=float, metavar="S", help="Replace after S, ±10 %.")
@click.option("--max-connections", type=int, metavar="N", help="Replace after N.")
@click.option("--max-tasks", type=int, metavar="N", help="Replace after N tasks.")
@click.option(
    "--watch",
    multiple=True,
    metavar="DIR",
    help="Reload when a Python file below changes; implies --on-failure keep.",
)
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
@_errors_as_lines
def run(program: tuple[str, ...], **options: Any) -> None:
    """Run PROGRAM on all cores: supervised, with one ordered log.

    \b
    PROGRAM is a Python script, a module (-m), or any other command.
    Its arguments follow it; a command's options are its own.

    \b
    logagg run app.py --workers 4
    logagg run -w 4 app.py --verbose
    logagg run -w max --bind :8000 -m uvicorn app:app
    logagg run -w 2 --bind :8000 --policy rr uvicorn app:app --port 8000
    logagg run -w 2 --sink file:app.log --sink stdout: -- node server.js

    \b
    Signals: TERM, INT stop (a second one: now) · HUP reload ·
    USR1 reopen log files · TTIN, TTOU one worker more, fewer.

    \b
    Exit status: 0 all ended with 0 · 1 a worker failed · 2 usage ·
    3 no consumer · 4 a worker had to be killed ·
    10 the program cannot start · by the signal that stopped it.
    """
    from logagg.supervisor.cluster import Cluster, end_by_signal

    options = {
        name: value for name, value in options.items() if value not in (None, ())
    }
    configured = options.get("sinks")
    options, words = _own_options_after(program, options)
    if options.get("sinks") == configured:  # else the command line decides
        options["reread"] = reader(click.get_current_context(), "sinks")
    if options.get("workers") == "0":
        raise ConfigError("workers: 0 would run nothing; give a number or max")
    if options.get("watch"):
        from logagg.supervisor.watch import check

        check()
    cluster = Cluster(list(words), **options)
    status = cluster.serve_forever()
    if cluster.ended_by and cluster.exit_status in (Status.OK, Status.FAILED):
        end_by_signal(cluster.ended_by)
    sys.exit(cluster.exit_status if cluster.ended_by else status)


def _own_options_after(
    program: tuple[str, ...], options: dict[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take our own options that stand directly behind a Python script or module.

    So `logagg run app.py --workers 4 -- --verbose` reads as it is meant. The first word
    that is not ours, and all behind it, is the program's; a `--` ends ours in any case.
    """
    words = list(program)
    if words and words[0] == "--":
        return options, tuple(words[1:])
    script = words[0].endswith((".py", ".pyc", ".pyz")) or options.get("module")
    if not script:
        return options, program
    outer = click.get_current_context()
    end = words.index("--") if "--" in words else len(words)
    context = run.make_context(
        "run", [*words[1:end], _END], ignore_unknown_options=True
    )
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name == "program" or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        given = (
            outer.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        )
        earlier = options.get(name, ()) if isinstance(value, tuple) and given else ()
        options[name] = (*earlier, *value) if earlier else value
    left = [word for word in context.params["program"] if word != _END]
    return options, (words[0], *left, *words[end + 1 :])


def _pid_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--pid", type=int, help="The supervisor, when several run.")(
        function
    )


@click.command()
@_pid_option
@click.option("--socket", "path", metavar="PATH", help="The consumer, of `serve`.")
@_errors_as_lines
def reload(pid: int | None, path: str | None) -> None:
    """Replace all workers, one at a time, each fresh one ready first.

    A release that does not become ready is refused: the old workers serve on, the
    traceback is shown, and the exit status is 1.

    For `logagg serve`: read its configuration again. New sinks are opened, removed ones
    end behind what they have; with a mistake in it everything stays as it was.
    """
    from logagg.service import reload_consumer, reloadable
    from logagg.supervisor.control import ask, find, runs

    path = path or (reloadable() if pid is None and not runs() else None)
    if path:
        click.echo(reload_consumer(path))
        return
    answer = ask(find(pid), {"do": "reload"}, timeout=24 * 3600)
    if "error" in answer:
        if answer.get("trace"):
            click.echo(answer["trace"].rstrip(), err=True)
        click.echo(f"logagg: {answer['error']}", err=True)
        sys.exit(1)
    click.echo(f"{answer['replaced']} workers replaced")


@click.command()
@click.argument("workers", type=click.IntRange(min=0))
@_pid_option
@_errors_as_lines
def scale(workers: int, pid: int | None) -> None:
    """Have WORKERS workers from now on; returns when surplus ones have ended."""
    from logagg.supervisor.control import ask, find

    answer = ask(find(pid), {"do": "scale", "workers": workers}, timeout=24 * 3600)
    _fail_on_error(answer)
    click.echo(f"{answer['workers']} workers")


@click.command()
@_pid_option
@click.option("--wait/--no-wait", default=True, help="Wait until it has ended.")
@_errors_as_lines
def stop(pid: int | None, *, wait: bool) -> None:
    """Stop a run gracefully: its workers end, all records are written."""
    import os
    import select

    from logagg.supervisor.control import ask, find

    found = find(pid)
    process = os.pidfd_open(found)
    _fail_on_error(ask(found, {"do": "stop"}))
    if wait:
        select.select([process], [], [])


def _fail_on_error(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise ConfigError(str(answer["error"]))


def status_of_runs(pid: int | None, *, as_json: bool) -> str:
    """The text of `logagg status` for one run, or for all of this user.

    Raises:
        ConfigError: There is no such run.
    """
    from logagg.supervisor.control import ask, find, runs

    pids = [find(pid)] if pid is not None else runs()
    answers = [ask(each, {"do": "status"}) for each in pids]
    if as_json:
        return json.dumps(answers, indent=2)
    from logagg.supervisor.table import table

    return "\n\n".join(table(answer) for answer in answers) or "no run is running"
