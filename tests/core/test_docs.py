"""What stands in the manual exists, what exists stands in the manual, and is used.

Names are compared in both directions: commands, options, sink options, events, exit
statuses and environment variables. Texts and order are the manual's own.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import msgspec
import pytest

import logagg
from logagg.cli.check import _variables
from logagg.cli.command import Command
from logagg.cli.configuration import config
from logagg.cli.main import main
from logagg.core.event import Event
from logagg.errors import ExitStatus
from logagg.options import fields
from logagg.sinks import CommonOptions
from logagg.supervisor.run_options import RunOptions

PRODUCT = Path(logagg.__file__).parent
SINKS = PRODUCT.parent / "sinks"
PAGES = {path.stem: path.read_text() for path in (PRODUCT / "docs").glob("*.md")}

PAGE_OF = {
    "ps": "programs", "boot": "programs", "restart": "programs", "logs": "tail",
    "run": "run", "reload": "run", "scale": "run", "stop": "run", "status": "run",
    "up": "programs",
    "serve": "config", "send": "config", "check": "config", "trust": "config",
    "help": "troubleshooting",
    "tail": "tail", "stats": "tail", "top": "tail", "web": "web",
    "query": "query",
    "spool ls": "http-sinks", "spool replay": "http-sinks", "spool drop": "http-sinks",
    "dlq replay": "http-sinks", "collect": "fleet", "nats init": "fleet",
}  # fmt: skip
"""Where the options of each command stand."""

INTERNAL = {"LOGAGG_START", "LOGAGG_FAILPOINT", "LOGAGG_CONTROL"}
"""Variables between processes of one run, and for tests: of no use to a user."""


def commands() -> dict[str, click.Command]:
    """All commands, those of groups by both words."""
    found = {}
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items()}
        else:
            found[name] = command
    return found


def words_of(command: click.Command) -> set[str]:
    """Every form of every option, as typed."""
    forms = (
        form for each in command.params for form in (*each.opts, *each.secondary_opts)
    )
    return {form.strip() for form in forms if form.strip().startswith("-")}


def rows(page: str) -> Iterator[tuple[list[str], list[str]]]:
    """The heads and the cells of each row of each table of a page."""
    heads: list[str] = []
    lines = PAGES[page].splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if following.startswith("|-"):
            heads = cells
        elif not line.startswith("|-"):
            yield heads, cells


def code(text: str) -> Iterator[str]:
    """Code spans, and lines of fenced blocks."""
    for block in re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=16 | 8)
    )


def calls() -> Iterator[tuple[str, list[str]]]:
    """Every `logagg COMMAND …` of the manual, up to what belongs to a program."""
    for text in PAGES.values():
        for line in code(text):
            for call in re.findall(
                r"(?:^|[|;&] ?)logagg ((?:[a-z]+ ?)+[^|;&#]*)", line
            ):
                words = (
                    re.sub(r"\\\|", "|", call)
                    .replace("[", " ")
                    .replace("]", " ")
                    .split()
                )
                name = (
                    " ".join(words[:2])
                    if words[0] in ("spool", "dlq", "nats")
                    else words[0]
                )
                yield name, words[len(name.split()) :]


# ---- commands and options -------------------------------------------------------------


def test_every_command_has_its_page() -> None:
    """And the page names it."""
    assert set(commands()) == set(PAGE_OF)
    for name, page in PAGE_OF.items():
        assert f"logagg {name}" in PAGES[page], (name, page)


@pytest.mark.parametrize("name", PAGE_OF)
def test_every_option_stands_on_the_page_of_its_command(name: str) -> None:
    """In code, in each of its forms."""
    page = " ".join(code(PAGES[PAGE_OF[name]]))
    for word in words_of(commands()[name]) - {"--help"}:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page), (name, word)


def test_every_option_in_a_table_exists() -> None:
    """First cells of tables that begin with an option."""
    known = {word for each in commands().values() for word in words_of(each)}
    for page in set(PAGE_OF.values()):
        for _, cells in rows(page):
            first = re.findall(r"`([^`]+)`", cells[0])
            for word in (each for span in first for each in span.split()):
                assert (
                    not re.match(r"--?[a-z]", word, re.IGNORECASE) or word in known
                ), (page, word)


def test_every_call_in_the_manual_can_be_made() -> None:
    """Its command and its options exist."""
    known = commands()
    for name, words in calls():
        if name in ("spool", "dlq", "nats") or name not in known:
            assert name in known or name in ("spool", "dlq", "nats"), name
            continue
        options, value = words_of(known[name]), False
        flags = {
            word
            for p in known[name].params
            if getattr(p, "is_flag", False)
            for word in p.opts
        }
        for word in words:
            if name == "run" and not value and not word.startswith("-"):
                break  # the program, which has options of its own
            if re.match(r"--[a-z]", word):
                assert word.partition("=")[0] in options, (name, word)
            value = word.startswith("-") and "=" not in word and word not in flags


def test_defaults_in_the_manual_are_those_of_the_code() -> None:
    """The table of `run`, where the cell is a value."""
    known = {
        word: f for f in fields(RunOptions).values() if f.option for word in (f.long,)
    }
    for _, cells in rows("run"):
        names = re.findall(r"--[a-z-]+", cells[0])
        value = cells[1].strip("`") if len(cells) == 3 else ""
        if not names or names[-1] not in known or not re.fullmatch(r"\d.*", value):
            continue
        field = known[names[-1]]
        assert field.read(value) == field.default, (names, value)


# ---- sinks ----------------------------------------------------------------------------


@cache
def sink_options() -> dict[str, type[msgspec.Struct]]:
    """The structs of options of the shipped sinks, by name."""
    from logagg_sinks._sink_options import Options

    for entry in importlib.metadata.entry_points(group="logagg.sinks"):
        entry.load()
    found: dict[str, type[msgspec.Struct]] = {"CommonOptions": CommonOptions}
    left = [Options]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("logagg_sinks.") and kind is not Options:
            found[kind.__name__] = kind
    return found


SINK_PAGES = ("sinks", "file-sink", "http-sinks", "fleet")


def documented_sink_options() -> set[str]:
    """The names in tables whose heads have a column Option."""
    return {
        name
        for page in SINK_PAGES
        for heads, cells in rows(page)
        if "Option" in heads
        for name in re.findall(r"`([a-z_0-9]+)`", cells[heads.index("Option")])
    }


def test_every_option_of_a_sink_stands_in_the_manual_and_exists() -> None:
    """On the pages of sinks, in a column Option."""
    known = {name for kind in sink_options().values() for name in fields(kind)}
    assert documented_sink_options() == known


# ---- events, exit statuses, variables -------------------------------------------------


def test_every_event_stands_in_the_manual_and_exists() -> None:
    """The first column of the tables of events."""
    found = {
        name
        for heads, cells in rows("events")
        if heads[0] == "Event"
        for name in re.findall(r"`([a-z_]+)`", cells[0])
    }
    assert found == {each.value for each in Event}


def test_every_exit_status_stands_in_the_manual_and_exists() -> None:
    """The first column of the tables with the head Status."""
    found = {
        int(cells[0])
        for heads, cells in rows("exit-status")
        if heads[0] == "Status" and cells[0].isdigit()
    }
    assert found == {int(each) for each in ExitStatus}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the product."""
    for folder in (PRODUCT, SINKS):
        for path in sorted(folder.rglob("*.py")):
            if "docs" not in path.relative_to(folder).parts:
                yield path, ast.parse(path.read_text())


def variables_in_code() -> set[str]:
    """The variables that stand in the product as text."""
    literal = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if re.fullmatch(r"LOGAGG_[A-Z]+(_[A-Z]+)*", str(text)):
                literal.add(text)
    return literal


def test_every_variable_stands_in_the_manual_and_exists() -> None:
    """Those named in code as text, and those that options have."""
    literal = variables_in_code()
    derived = set()
    for name in config.TABLES:
        command = commands()[name]
        assert isinstance(command, Command)
        derived |= {config.variable(name, key) for key in config.keys(command.kind)}
    manual = {
        word
        for text in PAGES.values()
        for word in re.findall(r"\bLOGAGG_[A-Z]+(?:_[A-Z0-9]+)*\b", text)
    }

    assert literal - derived - INTERNAL <= manual
    unknown = manual - literal - derived
    assert {word for word in unknown if not word.startswith("LOGAGG_FD_")} == set()


def test_check_knows_every_variable() -> None:
    """`logagg check` notes misspelt ones, and none that is right."""
    environ = dict.fromkeys(variables_in_code(), "1")
    noted = {each.what for each in _variables(environ)}
    assert noted <= INTERNAL


# ---- every option does something ------------------------------------------------------

HOLDERS = {"options", "_options", "common", "_common"}
"""Names that structs of options go by; `self` counts inside of the struct itself."""


@cache
def reads() -> dict[str, set[str]]:
    """The attributes that are read of options, by the module's name and by struct."""
    found: dict[str, set[str]] = {"": set()}
    for _, tree in trees():
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef):
                found.setdefault(owner.name, set()).update(
                    node.attr
                    for node in ast.walk(owner)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                )
            if not isinstance(owner, ast.Attribute) or not isinstance(
                owner.ctx, ast.Load
            ):
                continue
            base = owner.value
            name = base.attr if isinstance(base, ast.Attribute) else ""
            name = base.id if isinstance(base, ast.Name) else name
            if name in HOLDERS:
                found[""].add(owner.attr)
    return found


def structs() -> dict[str, type[msgspec.Struct]]:
    """All structs of options: those of commands and those of sinks."""
    own = {
        each.kind.__name__: each.kind
        for each in commands().values()
        if isinstance(each, Command)
    }
    return own | sink_options()


@pytest.mark.parametrize("name", sorted(structs()))
def test_every_option_is_read_somewhere(name: str) -> None:
    """An option that no code reads promises what nothing keeps."""
    kind = structs()[name]
    own = set().union(*(reads().get(each.__name__, set()) for each in kind.__mro__))
    ignored = {key for key in fields(kind) if key not in reads()[""] | own}
    assert ignored == set()
