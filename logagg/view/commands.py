"""The command line of viewing: `tail`, `stats` and `top`.

Options are read here and nowhere else; what they mean is the modules' business. An
option never turns on another one.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from logagg.errors import ConfigError, LogaggError
from logagg.view import failure, match, render
from logagg.view.match import Match
from logagg.view.times import parse_duration, parse_instant, wire_time

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

# `-path=/health` is a match turned around, not the options -p -a -t -h.
_TURNED = re.compile(r"-!?[A-Za-z_@][\w.@-]+(?:!=|!~|[<>]=?|=|~|\?$)")
_LEVELS = ("debug", "info", "warning", "error", "critical")

TAIL_HELP = """\
Usage: logagg tail [MATCH | FILE]... [OPTIONS]

Show the log as it comes: all workers, in order. Ctrl-C stops the viewer only.
Reads the running consumer, or FILE (rotated and compressed ones too), or - (stdin).

MATCH  level>=warning  logger=app.db  status>=500  message~"time.?out"  worker=2
       -path=/health (not)   key? (is there)   !key?   key!=v   key!~re   a.b=nested
       = on the same key: any of them; everything else: all of them

which   -n, --lines N|all   how many past ones (10; all with -S, --after or -)
        --no-follow         print and end; -f, --follow is the default
        -S, --since T       -U, --until T    10m, 14:03, today, 2026-11-25T14:03Z
        -l, --level L       warning (and up), debug..info, error,critical
        -w, --worker W      number, process name or pid      --logger NAME
        -g, --grep RE       in message or traceback; -v, --exclude RE: none of it
        -i, --ignore-case   --fixed (plain text); small letters match both anyway
        -A, -B, -C N        lines around; --socket PATH, --file PATH, --config FILE
how     -o, --format F      pretty plain json logfmt message full; --json; --raw
        --fields a,b        --hide a,b|*    --full (never cut)    -H, --highlight RE
        --time F            clock full iso delta epoch none; --utc
        --tb F              full short line none (tracebacks)
        --collapse          repeats as one   --gaps 5s   --changed (fields only)
        --color WHEN        auto always never        -q, --quiet (no notes)
end     -m, --max N         --until-match RE         --timeout 30s
        --after CURSOR      --cursor-file PATH       (go on where it ended)
keys    Enter rule   Space pause   e errors only   c clear   q quit
exit    0 ended, 1 nothing matched, 2 usage, 3 no consumer, 130 Ctrl-C

  logagg tail -l warning -g timeout          logagg tail 'status>=500' --json | jq .
  logagg tail app.log -S 10m                 kubectl logs x | logagg tail -
"""

STATS_HELP = """\
Usage: logagg stats [MATCH | FILE]... [OPTIONS]

Count the log by level, worker, logger and message, with a histogram over time.
Reads the file that the running consumer writes, or FILE, or - (stdin).

  --by FIELD         count this field instead (repeatable; a.b for nested ones)
  --top N            so many values of each (10)
  --json             one JSON object instead of tables
  --file PATH        the same as FILE, for a name that looks like a MATCH
  --socket PATH      the consumer to ask for its file   --config FILE
  -S, --since T      -U, --until T    -l, --level L    -w, --worker W
  --logger NAME      -g, --grep RE    -v, --exclude RE -i, --ignore-case  --fixed
  --utc              times in UTC     --color WHEN     auto, always or never

MATCH as in `logagg tail --help`. Exit status: 0, or 1 when nothing matched.

  logagg stats app.log -S today
  logagg stats --by status --by path 'logger=app.web' --json
"""

TOP_HELP = """\
Usage: logagg top [OPTIONS]

Watch workers and sinks: records and bytes a second, queues, losses, restarts.

  --socket PATH      the consumer to watch              --config FILE
  --interval 1s      time between two looks
  --once             print once and end
  --color WHEN       auto, always or never

Ctrl-C or q ends it. Exit status: 0, or 3 when no consumer answers.

  logagg top
  logagg top --once
"""


class _Command(click.Command):
    """A command whose help is written by hand, so that it fits a screen."""

    page = ""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        formatter.write(self.page)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["turned"] = [word for word in args if _TURNED.match(word)]
        rest = [word for word in args if not _TURNED.match(word)]
        return super().parse_args(ctx, rest)

    def invoke(self, ctx: click.Context) -> Any:
        if "matches" in ctx.params:
            ctx.params["matches"] += tuple(ctx.meta["turned"])
        return super().invoke(ctx)


class _Tail(_Command):
    page = TAIL_HELP


class _Stats(_Command):
    page = STATS_HELP


class _Top(_Command):
    page = TOP_HELP


def _complete_level(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    del ctx, param
    return [CompletionItem(name) for name in _LEVELS if name.startswith(incomplete)]


def _complete_worker(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The workers of the consumer that would be tailed."""
    del param
    from logagg.view import discover, live

    try:
        path = discover.finder(ctx.params.get("socket"))()
        workers = live.status(path).get("workers", []) if path else []
    except (LogaggError, OSError):
        return []
    names = [str(worker.get("worker", "")) for worker in workers]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _complete_match(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    del ctx, param
    hints = [
        *(f"level>={name}" for name in _LEVELS),
        "logger=", "worker=", "message~", "exception.type=", "exception?",
    ]  # fmt: skip
    found = [CompletionItem(hint) for hint in hints if hint.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def _filters(command: _Decorated) -> _Decorated:
    """The options that choose records."""
    path = click.Path(file_okay=True, dir_okay=False)
    for decorate in (
        click.argument("matches", nargs=-1, shell_complete=_complete_match),
        click.option("-l", "--level", shell_complete=_complete_level),
        click.option("-w", "--worker", multiple=True, shell_complete=_complete_worker),
        click.option("--logger", multiple=True),
        click.option("-g", "--grep", multiple=True),
        click.option("-v", "--exclude", multiple=True),
        click.option("-i", "--ignore-case", is_flag=True),
        click.option("--fixed", is_flag=True),
        click.option("-S", "--since"),
        click.option("-U", "--until"),
        click.option("--utc", is_flag=True),
        click.option("--file", "files", multiple=True, type=path),
        click.option("--socket", type=click.Path()),
        click.option("--color", default="auto", type=_choice("auto always never")),
    ):
        command = decorate(command)
    return command


def _choice(names: str | Sequence[str]) -> click.Choice[str]:
    return click.Choice(names.split() if isinstance(names, str) else list(names))


def _filter(options: dict[str, Any]) -> tuple[Match, dict[str, Any]]:
    """The filter of the options, compiled and as a viewer's hello carries it.

    Takes files named among the matches, and `-`, out.
    """
    zone = dt.UTC if options["utc"] else None
    now = time.time_ns()
    since, until = options["since"], options["until"]
    files, terms = list(options["files"]), []
    for word in options["matches"]:
        if _is_term(word):
            terms.append(word)
        elif word == "-" or os.path.isfile(word):
            files.append(word)
        else:
            raise ConfigError(
                f"{word!r} is neither a file nor a condition (KEY=VALUE, KEY>=NUMBER, "
                f"KEY~REGEX, KEY?, each with ! or - for not); to find text: -g {word!r}"
            )
    if "-" in files and len(files) > 1:
        raise ConfigError("- (standard input) cannot be read together with files")
    options["files"] = files
    spec: dict[str, Any] = {
        "match": terms,
        "level": options["level"],
        "worker": list(options["worker"]),
        "logger": list(options["logger"]),
        "grep": list(options["grep"]),
        "exclude": list(options["exclude"]),
        "fixed": options["fixed"],
        "ignore_case": True if options["ignore_case"] else None,
        "since_ns": parse_instant(since, now, zone=zone) if since else None,
        "until_ns": parse_instant(until, now, zone=zone, end=True) if until else None,
    }
    return match.from_message(spec), spec


def _is_term(text: str) -> bool:
    return any(sign in text for sign in "=~<>?")


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str | None, options: dict[str, Any]) -> int | None:
    if text is None:
        whole = options["since"] or options["after"] or options["files"] == ["-"]
        return None if whole else 10
    if text == "all":
        return None
    if text.isdecimal() and len(text) < 10:
        return int(text)
    raise ConfigError(f"--lines {text!r}: expected a number, or all")


def _look(options: dict[str, Any], terminal: bool) -> render.Look:
    from logagg.view import patterns

    texts = [(text, False) for text in options["highlight"]]
    texts += [(text, options["fixed"]) for text in options["grep"]]
    case = True if options["ignore_case"] else None
    hits = [patterns.build(t, ignore_case=case, fixed=f).regex for t, f in texts]
    output = options["output"]
    if options["json"]:
        if output not in (None, "json"):
            raise ConfigError(f"--json and --format {output} contradict each other")
        output = "json"
    return render.Look(
        format=output or "pretty",
        time=options["time"],
        zone=dt.UTC if options["utc"] else None,
        tb=options["tb"],
        fields=_names(options["fields"]),
        hide=frozenset(_names(options["hide"]) or ()),
        limit=200 if terminal and not options["full"] else None,
        hits=tuple(hits),
        raw=options["raw"],
    )


_NUMBER = click.IntRange(min=0)


@click.command(cls=_Tail, context_settings={"help_option_names": ["--help"]})
@_filters
@click.option("-n", "--lines")
@click.option("-f/ ", "--follow/--no-follow", default=True)
@click.option("-o", "--format", "output", type=_choice(render.FORMATS))
@click.option("--json", is_flag=True)
@click.option("--raw", is_flag=True)
@click.option("--fields")
@click.option("--hide")
@click.option("--full", is_flag=True)
@click.option("-H", "--highlight", multiple=True)
@click.option("--time", default="clock", type=_choice(render.TIMES))
@click.option("--tb", default="full", type=_choice(failure.STYLES))
@click.option("--collapse", is_flag=True)
@click.option("--changed", is_flag=True)
@click.option("--gaps")
@click.option("-q", "--quiet", is_flag=True)
@click.option("-A", "after_lines", default=0, type=_NUMBER)
@click.option("-B", "before_lines", default=0, type=_NUMBER)
@click.option("-C", "around_lines", default=0, type=_NUMBER)
@click.option("-m", "--max", "most", type=click.IntRange(min=1))
@click.option("--until-match")
@click.option("--timeout")
@click.option("--after")
@click.option("--cursor-file", type=click.Path(dir_okay=False))
def tail(**options: Any) -> None:
    """Show the log as it comes."""
    from logagg.view import discover, files, patterns
    from logagg.view import tail as tailing
    from logagg.view.cursor import Cursor
    from logagg.view.flow import Shape
    from logagg.view.live import Live
    from logagg.view.sources import FileSource, LiveSource, PipeSource, Source
    from logagg.view.terminal import Terminal

    found, spec = _filter(options)
    terminal_out = sys.stdout.isatty()
    after = Cursor.parse(options["after"]) if options["after"] else None
    if options["cursor_file"] and after is None:
        after = tailing.read_cursor(options["cursor_file"])
        options["after"] = after
    gaps, until, timeout = options["gaps"], options["until_match"], options["timeout"]
    plan = tailing.Plan(
        match=found,
        look=_look(options, terminal_out),
        shape=Shape(
            today=dt.datetime.now(dt.UTC if options["utc"] else None).date(),
            gap=parse_duration(gaps) if gaps else 60.0 if terminal_out else None,
            changed=options["changed"],
            collapse=options["collapse"],
        ),
        count=_count(options["lines"], options),
        follow=options["follow"],
        before=options["before_lines"] or options["around_lines"],
        after=options["after_lines"] or options["around_lines"],
        most=options["most"],
        until=patterns.build(until).regex if until else None,
        timeout=parse_duration(timeout) if timeout else None,
        cursor_file=options["cursor_file"],
        color=options["color"],
        quiet=options["quiet"],
    )
    terminal = Terminal(options["color"], quiet=options["quiet"], keys=plan.follow)
    select = files.selector(match.compile() if plan.context else found)
    since_ns = spec["since_ns"]
    since = wire_time(since_ns).encode() if since_ns is not None else b""
    source: Source
    if options["files"] == ["-"]:
        source = PipeSource(sys.stdin.fileno(), select)
    elif options["files"]:
        source = FileSource(
            options["files"],
            select,
            terminal.note,
            follow=plan.follow,
            since=since,
            after=after,
        )
    else:
        wanted = match.compile() if plan.context else found
        find = discover.finder(options["socket"])
        live = Live(
            find,
            {**({} if plan.context else spec), "lines": plan.count},
            terminal.note,
            after=after,
        )

        def history(behind: Cursor | None) -> Iterator[list[bytes]]:
            paths = discover.complete_files(find)
            source = FileSource(
                paths, select, terminal.note, follow=True, since=since, after=behind
            )
            try:
                yield from source.past(None)
            finally:
                source.close()

        source = LiveSource(
            live,
            wanted,
            follow=plan.follow,
            history=history,
            old=plan.count is None,
        )
    with terminal:
        try:
            status = tailing.Tail(plan, source, terminal).run()
        finally:
            source.close()
    _leave(status)


def _leave(status: int) -> None:
    """End with a status, without a complaint about a closed pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    click.get_current_context().exit(status)


@click.command(cls=_Stats, context_settings={"help_option_names": ["--help"]})
@_filters
@click.option("--by", multiple=True)
@click.option("--top", default=10, type=click.IntRange(min=1))
@click.option("--json", is_flag=True)
def stats(**options: Any) -> None:
    """Count the log by level, worker, logger and message."""
    from logagg.view import discover, stats
    from logagg.view import files as reading
    from logagg.view.terminal import ReaderGone, Terminal

    found, spec = _filter(options)
    if not options["files"]:
        options["files"] = discover.file_of_consumer(options["socket"])
    select = reading.selector(found)
    since_ns = spec["since_ns"]
    since = wire_time(since_ns).encode() if since_ns is not None else b""
    counts = stats.Counts(options["by"])
    with Terminal(options["color"], quiet=False) as terminal:
        for name in options["files"]:
            for lines in stats.batches(name, select, since):
                counts.feed(lines)
                if terminal.stopping:
                    break
        zone = dt.UTC if options["utc"] else None
        try:
            if options["json"]:
                terminal.write(stats.as_json(counts))
            else:
                terminal.show(stats.as_segments(counts, options["top"], zone))
        except ReaderGone:
            pass
    _leave(130 if terminal.stopping else 0 if counts.records else 1)


@click.command(cls=_Top, context_settings={"help_option_names": ["--help"]})
@click.option("--socket", type=click.Path())
@click.option("--interval", default="1s")
@click.option("--once", is_flag=True)
@click.option("--color", default="auto", type=_choice("auto always never"))
def top(**options: Any) -> None:
    """Watch workers and sinks."""
    from logagg.view import discover
    from logagg.view import top as watching

    find = discover.finder(options["socket"])
    interval = parse_duration(options["interval"])
    if interval < 0.1:
        raise ConfigError("--interval: at least 100ms")
    _leave(watching.run(find, interval, once=options["once"], color=options["color"]))
