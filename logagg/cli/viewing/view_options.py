"""The options of `tail`, `stats` and `top`. No option turns on another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from logagg.core import levels
from logagg.core.units import parse_instant
from logagg.errors import ConfigError
from logagg.filters import regex
from logagg.options import Count, Duration, FilePath, Option, OptionText
from logagg.render import layout, traceback

__all__ = ["RecordOptions", "StatsOptions", "TailOptions", "TopOptions"]


def _one_of(*names: str) -> OptionText:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"{', '.join(names[:-1])} or {names[-1]}")
        return text

    return OptionText(read, metavar="|".join(names))


def _level(text: str) -> str:
    levels.selection(text)
    return text


def _instant(text: str) -> str:
    parse_instant(text, 0)
    return text


def _line_count(text: str) -> str:
    if text != "all" and not (text.isdecimal() and len(text) < 10):
        raise ValueError("a number, or all")
    return text


def _regex(text: str) -> str:
    regex.build(text)
    return text


def _one_or_more(text: str) -> int:
    if not (text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise ValueError("a whole number, 1 or more")
    return int(text)


Level = Annotated[str, OptionText(_level, metavar="L")]
Instant = Annotated[str, OptionText(_instant, metavar="T")]
Regex = Annotated[str, OptionText(_regex, metavar="RE")]
Positive = Annotated[int, OptionText(_one_or_more, metavar="N")]
Socket = Annotated[FilePath, Option("socket of the consumer")]
Color = Annotated[str, _one_of("auto", "always", "never"), Option("", "", "WHEN")]


class RecordOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `tail` and `stats` that choose records."""

    level: Annotated[
        Level | None, Option("warning (and up), debug..info, error,critical", "-l")
    ] = None
    worker: Annotated[
        tuple[str, ...], Option("number, process name or pid", "-w", "W")
    ] = ()
    logger: Annotated[tuple[str, ...], Option("and those below it", "", "NAME")] = ()
    grep: Annotated[tuple[str, ...], Option("in message, traceback", "-g", "RE")] = ()
    exclude: Annotated[tuple[str, ...], Option("none of it", "-v", "RE")] = ()
    ignore_case: Annotated[bool, Option("capitals as well", "-i")] = False
    fixed: Annotated[bool, Option("plain text, no patterns")] = False
    since: Annotated[Instant | None, Option("10m, 14:03, today, 2026-11-25", "-S")] = (
        None
    )
    until: Annotated[Instant | None, Option("as --since", "-U")] = None
    utc: Annotated[bool, Option("times in UTC")] = False
    files: Annotated[
        tuple[FilePath, ...], Option("FILE that looks like MATCH", long="--file")
    ] = ()
    socket: Socket = ""
    color: Color = "auto"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Patterns that cannot be compiled, and options that contradict each other."""
        case = True if self.ignore_case else None
        for key, texts in (("grep", self.grep), ("exclude", self.exclude)):
            for text in texts:
                try:
                    regex.build(text, ignore_case=case, fixed=self.fixed)
                except ConfigError as error:
                    yield key, str(error)


class TailOptions(RecordOptions, frozen=True, kw_only=True):
    """The options of `logagg tail`."""

    lines: Annotated[
        str | None,
        OptionText(_line_count),
        Option("past ones", "-n", "N|all", default="10; all with -S, --after, -"),
    ] = None
    follow: Annotated[bool, Option("go on with new records", "-f")] = True
    format: Annotated[
        str | None, _one_of(*layout.FORMATS), Option("", "-o", default="pretty")
    ] = None
    json: Annotated[bool, Option("as -o json")] = False
    raw: Annotated[
        bool,
        Option(
            "control characters as they are",
            asks="send control characters to the terminal",
        ),
    ] = False
    fields: Annotated[str | None, Option("only these", "", "a,b")] = None
    hide: Annotated[str | None, Option("not these", "", "a,b|*")] = None
    full: Annotated[bool, Option("never cut values")] = False
    highlight: Annotated[tuple[Regex, ...], Option("mark it", "-H")] = ()
    time: Annotated[str, _one_of(*layout.TIMES), Option("")] = "clock"
    tb: Annotated[str, _one_of(*traceback.STYLES), Option("tracebacks")] = "full"
    collapse: Annotated[bool, Option("repeats as one")] = False
    changed: Annotated[bool, Option("only fields that change")] = False
    gaps: Annotated[Duration | None, Option("mark pauses", default="1m")] = None
    quiet: Annotated[bool, Option("no notes", "-q")] = False
    after_context: Annotated[Count, Option("lines after", "-A")] = 0
    before_context: Annotated[Count, Option("lines before", "-B")] = 0
    context: Annotated[Count, Option("both", "-C")] = 0
    max: Annotated[Positive | None, Option("end after N matches", "-m")] = None
    until_match: Annotated[Regex | None, Option("end after this")] = None
    timeout: Annotated[Duration | None, Option("end after TIME")] = None
    after: Annotated[str | None, Option("begin there", "", "CURSOR")] = None
    cursor_file: Annotated[
        FilePath | None, Option("go on where it ended", "", "PATH", asks="write {}")
    ] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Patterns that cannot be compiled, and options that contradict each other."""
        yield from super().problems()
        if self.json and self.format not in (None, "json"):
            yield "json", f"--json and --format {self.format} contradict each other"


class StatsOptions(RecordOptions, frozen=True, kw_only=True):
    """The options of `logagg stats`."""

    by: Annotated[
        tuple[str, ...], Option("count this field instead; repeatable", "", "FIELD")
    ] = ()
    top: Annotated[Positive, Option("values of each")] = 10
    json: Annotated[bool, Option("one JSON object instead of tables")] = False


class TopOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `logagg top`."""

    socket: Socket = ""
    interval: Annotated[Duration, Option("time between two updates")] = 1.0
    once: Annotated[bool, Option("print once and end")] = False
    color: Color = "auto"

    def problems(self) -> Iterator[tuple[str, str]]:
        """An interval that is too short."""
        if self.interval < 0.1:
            yield "interval", "expected at least 100ms"
