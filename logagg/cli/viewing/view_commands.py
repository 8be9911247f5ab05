"""The command line of viewing: `tail`, `stats` and `top`.

The options stand in `view_options`; what they do is the business of the view modules.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.shell_completion import CompletionItem

from logagg.cli.command import Command, command
from logagg.cli.completion import complete_running, starting
from logagg.cli.viewing.named_words import is_condition, named_programs, quotes_hint
from logagg.cli.viewing.view_options import (
    RecordOptions,
    StatsOptions,
    TailOptions,
    TopOptions,
)
from logagg.core import levels
from logagg.core.units import parse_instant, wire_time
from logagg.errors import ConfigError, ExitStatus, LogaggError
from logagg.filters import matcher, regex
from logagg.filters.matcher import Match
from logagg.render import layout
from logagg.render.renderer import TERMINAL_GAP

if TYPE_CHECKING:
    from logagg.view.sources import TailSource
    from logagg.view.tail import TailPlan
    from logagg.view.terminal import Terminal

# `-path=/health` is a negated match, not the options -p -a -t -h.
_NEGATED = re.compile(r"-!?[A-Za-z_@][\w.@-]+(?:!=|!~|[<>]=?|=|~|\?$)")


class _ViewCommand(Command):
    """A command with compact help, so that `tail --help` fits on a screen."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take negated matches for arguments, not for options."""
        negated = [word for word in args if _NEGATED.match(word)]
        words = [word for word in args if not _NEGATED.match(word)]
        rest = super().parse_args(ctx, words)
        if negated and "matches" in ctx.params:
            ctx.params["matches"] += tuple(negated)
        return rest

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the options two in a row where they are short enough."""
        cells = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                cells.append("  ".join(record).replace("[default: ", "["))
        formatter.write("\n")
        line = ""
        for cell in cells:
            if line and max(len(line), len(cell)) <= _HALF:
                formatter.write(f"  {line:<{_HALF}}  {cell}\n")
                line = ""
                continue
            if line:
                formatter.write(f"  {line}\n")
            line = cell
        formatter.write(f"  {line}\n" if line else "")


_HALF = 42  # columns of one of two options in a row


# ---- completion -----------------------------------------------------------------------


def _complete_level(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return starting(levels.STANDARD, incomplete)


def _complete_worker(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The workers of the consumer that would be tailed."""
    from logagg.ipc import consumer_client  # only when workers are completed
    from logagg.view import discover  # the same

    try:
        path = discover.finder(ctx.params.get("socket"))()
        workers = consumer_client.status(path).get("workers", []) if path else []
    except (LogaggError, OSError):
        return []
    return starting((str(each.get("worker", "")) for each in workers), incomplete)


def _complete_match(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    hints = [
        *(f"level>={name}" for name in levels.STANDARD),
        "logger=", "worker=", "message~", "exception.type=", "exception?",
    ]  # fmt: skip
    names = complete_running(ctx, param, incomplete)
    file = CompletionItem(incomplete, type="file")
    return [*names, *starting(hints, incomplete), file]


def view_command(
    kind: type[msgspec.Struct], *, matches: bool = True
) -> Callable[[Callable[..., Any]], Command]:
    argument = click.Argument(
        ["matches"],
        nargs=-1,
        metavar="[MATCH | FILE]...",
        shell_complete=_complete_match,
    )
    return command(
        kind,
        *([argument] if matches else []),
        cls=_ViewCommand,
        complete={"level": _complete_level, "worker": _complete_worker},
        context_settings={"help_option_names": ["--help"]},
    )


# ---- what the options mean ------------------------------------------------------------


def _sort_words(
    matches: Sequence[str], options: RecordOptions
) -> tuple[list[str], list[str]]:
    """Sort the arguments into conditions and files.

    Raises:
        ConfigError: A word is neither, or standard input stands beside a file.
    """
    files, terms = list(options.files), []
    for word in matches:
        if is_condition(word):
            terms.append(word)
        elif word == "-" or os.path.isfile(word):
            files.append(word)
        else:
            raise ConfigError(
                f"{word!r} is neither a file, nor a program that runs, nor a condition "
                "(KEY=VALUE, KEY>=NUMBER, KEY~REGEX, KEY?, each with ! or - for not); "
                f"{quotes_hint(word)}to find text: -g {word!r}"
            )
    if "-" in files and len(files) > 1:
        raise ConfigError("- (standard input) cannot be read together with files")
    return terms, files


def _filter(options: RecordOptions, terms: list[str]) -> tuple[Match, dict[str, Any]]:
    """The filter of the options, compiled and as a viewer's hello has it."""
    zone, now = _zone(options), time.time_ns()
    since, until = options.since, options.until
    spec: dict[str, Any] = {
        "match": terms,
        "level": options.level,
        "worker": list(options.worker),
        "logger": list(options.logger),
        "grep": list(options.grep),
        "exclude": list(options.exclude),
        "fixed": options.fixed,
        "ignore_case": True if options.ignore_case else None,
        "since_ns": parse_instant(since, now, zone=zone) if since else None,
        "until_ns": parse_instant(until, now, zone=zone, end=True) if until else None,
    }
    return matcher.from_message(spec), spec


def _zone(options: RecordOptions) -> dt.tzinfo | None:
    return dt.UTC if options.utc else None


def _since_key(spec: dict[str, Any]) -> bytes:
    since = spec["since_ns"]
    return b"" if since is None else wire_time(since).encode()


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _layout(options: TailOptions, terminal: bool) -> layout.LayoutOptions:
    texts = [(text, False) for text in options.highlight]
    texts += [(text, options.fixed) for text in options.grep]
    case = True if options.ignore_case else None
    hits = [regex.build(t, ignore_case=case, fixed=f).regex for t, f in texts]
    return layout.LayoutOptions(
        format="json" if options.json else options.format or "pretty",
        time=options.time,
        zone=_zone(options),
        tb=options.tb,
        fields=_names(options.fields),
        hide=frozenset(_names(options.hide) or ()),
        limit=200 if terminal and not options.full else None,
        hits=tuple(hits),
        raw=options.raw,
        today=dt.datetime.now(_zone(options)).date(),
        gap=TERMINAL_GAP if terminal and options.gaps is None else options.gaps,
        changed=options.changed,
        collapse=options.collapse,
    )


def _count(options: TailOptions, files: list[str]) -> int | None:
    """How many past lines are wanted; None for all."""
    if options.lines is None:
        return None if options.since or options.after or files == ["-"] else 10
    return None if options.lines == "all" else int(options.lines)


def _plan(options: TailOptions, match: Match, count: int | None) -> TailPlan:
    from logagg.view.tail import TailPlan  # only `tail` needs it

    until = options.until_match
    return TailPlan(
        match=match,
        layout=_layout(options, sys.stdout.isatty()),
        count=count,
        follow=options.follow,
        before=options.before_context or options.context,
        after=options.after_context or options.context,
        most=options.max,
        until=regex.build(until).regex if until else None,
        timeout=options.timeout,
        cursor_file=options.cursor_file,
        color=options.color,
        quiet=options.quiet,
    )


# ---- the commands ---------------------------------------------------------------------


@view_command(TailOptions)
def tail(options: TailOptions, matches: tuple[str, ...]) -> None:
    """Show the log as it comes: all workers, in order. Ctrl-C stops the viewer only.
    Reads the running consumer, or FILE (rotated and compressed ones too), or - (stdin).

    \b
    NAME   of a program under `logagg up`: its records only
    MATCH  level>=warning  logger=app.db  status>=500  message~"time.?out"  worker=2
           -path=/health (not)   key? (is there)   !key?   key!=v   key!~re   a.b=1
           = on the same key: any of them; everything else: all of them
    Keys   Enter rule   Space pause   e errors only   c clear   q quit
    Exit   0 ended, 1 nothing matched, 2 usage, 3 no consumer, 130 Ctrl-C
    """
    show_log(*named_programs(options, matches))


def show_log(options: TailOptions, matches: Sequence[str]) -> None:
    """Show records until the end, or until Ctrl-C: `logagg tail`.

    Raises:
        LogaggError: An option or a condition is wrong, or there is no log.
    """
    from logagg.view import tail as tailing  # each command loads its own view
    from logagg.view.sources import Cursor  # the same
    from logagg.view.terminal import Terminal  # the same

    terms, files = _sort_words(matches, options)
    found, spec = _filter(options, terms)
    after = Cursor.parse(options.after) if options.after else None
    if options.cursor_file and after is None:
        after = Cursor.load(options.cursor_file)
    count = _count(options, files)
    if after is not None and options.lines is None:
        count = None
    plan = _plan(options, found, count)
    terminal = Terminal(options.color, quiet=options.quiet, keys=plan.follow)
    source = _source(options, plan, spec, files, terminal, after)
    with terminal:
        try:
            status = tailing.Tail(plan, source, terminal).run()
        finally:
            source.close()
    _leave(status)


def _source(
    options: TailOptions,
    plan: TailPlan,
    spec: dict[str, Any],
    names: list[str],
    terminal: Terminal,
    after: Any,
) -> TailSource:
    """Where the lines come from: standard input, files, or a consumer."""
    from logagg.view import discover, files  # each command loads its own view
    from logagg.view.live import Live, LiveSource  # the same
    from logagg.view.sources import FileSource, PipeSource  # the same

    # With context around matches, all lines are needed, so sources do not filter.
    wanted = matcher.compile() if plan.context else plan.match
    selected, since = files.selector(wanted), _since_key(spec)

    def of_chunk(data: bytes) -> list[bytes]:
        terminal.check()
        return selected.lines(data)

    select = files.Select(of_chunk, spread=selected.spread)

    def of_files(paths: list[str], after: Any, *, follow: bool) -> FileSource:
        return FileSource(
            paths, select, terminal.note, follow=follow, since=since, after=after
        )

    if names == ["-"]:
        return PipeSource(sys.stdin.fileno(), select)
    if names:
        return of_files(names, after, follow=plan.follow)
    find = discover.finder(options.socket or None)
    hello = {**({} if plan.context else spec), "lines": plan.count}

    def history(after: Any) -> Iterator[list[bytes]]:
        source = of_files(discover.complete_files(find), after, follow=True)
        try:
            yield from source.past(None)
        finally:
            source.close()

    return LiveSource(
        Live(find, hello, terminal.note, after=after),
        wanted,
        follow=plan.follow,
        history=history,
        old=plan.count is None,
    )


def _leave(status: int) -> None:
    """End with a status, without a complaint about a closed pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    click.get_current_context().exit(status)


@view_command(StatsOptions)
def stats(options: StatsOptions, matches: tuple[str, ...]) -> None:
    """Count the log by level, worker, logger and message, with a histogram over time.
    Reads the file that the running consumer writes, or FILE, or - (stdin).

    \b
    MATCH as in `logagg tail --help`. Exit status: 0, or 1 when nothing matched.
    logagg stats --by status --by path 'logger=app.web' --json
    """
    from logagg.view import discover, stats  # each command loads its own view
    from logagg.view import files as reading  # the same
    from logagg.view.terminal import ReaderGone, Terminal  # the same

    terms, names = _sort_words(matches, options)
    found, spec = _filter(options, terms)
    names = names or discover.file_of_consumer(options.socket or None)
    select = reading.selector(found)
    counts = stats.RecordCounts(options.by)
    with Terminal(options.color, quiet=False) as terminal:
        for name in names:
            for lines in stats.batches(name, select, _since_key(spec)):
                counts.feed(lines)
                if terminal.stopping:
                    break
        try:
            if options.json:
                terminal.write(terminal.json(stats.as_json(counts)) + b"\n")
            else:
                terminal.show(stats.as_segments(counts, options.top, _zone(options)))
        except ReaderGone:
            pass
    none = ExitStatus.OK if counts.records else ExitStatus.FAILED
    _leave(ExitStatus.INTERRUPTED if terminal.stopping else none)


@view_command(TopOptions, matches=False)
def top(options: TopOptions) -> None:
    """Watch workers and sinks: records and bytes per second, queues, losses, restarts.

    Ctrl-C or q ends it. Exit status: 0, or 3 when no consumer answers.
    """
    from logagg.view import discover  # each command loads its own view
    from logagg.view import top as watching  # the same

    find = discover.finder(options.socket or None)
    _leave(watching.run(find, options.interval, once=options.once, color=options.color))
