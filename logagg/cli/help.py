"""`logagg help`: the manual, which is part of the package."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import click
import msgspec

from logagg.cli.command import command, say
from logagg.errors import ConfigError, ExitStatus
from logagg.options import FilePath, Option

__all__ = ["help_", "topics"]

_START = "index"  # the topic without a name, when there is one
_NOT_FOUND = 127  # the exit status of a shell without the command
_WIDTH = 100  # columns: longer lines are hard to read


class HelpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg help`."""

    list: Annotated[bool, Option("The topics, with their titles.")] = False
    search: Annotated[str, Option("The lines with this word.", "", "WORD")] = ""
    samples: Annotated[FilePath, Option("Copy the samples there.", "", "DIR")] = ""


@command(HelpOptions, click.Argument(["topic"], required=False))
def help_(options: HelpOptions, topic: str | None) -> None:
    """Show the manual, or one TOPIC of it.

    \b
    logagg help                    the list of topics
    logagg help sinks
    logagg help --search fsync
    logagg help --samples ./samples
    """
    pages = topics()
    if options.samples:
        copied = copy_samples(Path(options.samples))
        say(f"{copied} samples copied to {options.samples}")
    elif options.search:
        found = list(search(pages, options.search))
        if not found:
            say(f"logagg: nothing about {options.search!r}", err=True)
            sys.exit(ExitStatus.FAILED)
        say("\n".join(found))
    elif options.list or (topic is None and _START not in pages):
        say("\n".join(listing(pages)))
    else:
        page(pages[_named(pages, topic or _START)])


def topics() -> dict[str, str]:
    """The text of every topic, by name."""
    folder = files("logagg") / "docs"
    entries = folder.iterdir() if folder.is_dir() else iter(())
    found = [each for each in entries if each.name.endswith(".md")]
    return {
        each.name.removesuffix(".md"): each.read_text("utf-8")
        for each in sorted(found, key=lambda each: each.name)
    }


def _named(pages: dict[str, str], topic: str) -> str:
    """The topic with this name, or the only one that begins so.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    name = topic.lower().removesuffix(".md")
    starts = [each for each in pages if each.startswith(name)]
    if name in pages or len(starts) == 1:
        return name if name in pages else starts[0]
    near = difflib.get_close_matches(name, pages, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no topic {topic!r}{hint} (topics: {', '.join(pages)})")


def listing(pages: dict[str, str]) -> Iterator[str]:
    """A line for each topic: its name and its title."""
    width = max(map(len, pages), default=0)
    for name, text in pages.items():
        title = next((x for x in text.splitlines() if x.startswith("# ")), "")
        yield f"{name:<{width}}  {title.removeprefix('# ')}".rstrip()


def search(pages: dict[str, str], word: str) -> Iterator[str]:
    """The lines with a word in any case, each after its topic and line number."""
    pattern = re.compile(re.escape(word), re.IGNORECASE)
    for name, text in pages.items():
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                yield f"{name}:{number}: {line.strip()}"


def page(text: str) -> None:
    """Show a topic: in a pager on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        say(text.rstrip("\n"))
        return
    from rich.console import Console  # 60 ms, and Markdown 100: only on a terminal
    from rich.markdown import Markdown  # the same

    console = Console()
    console.width = min(console.width, _WIDTH)
    with console.capture() as captured:
        console.print(Markdown(text))
    _paged(captured.get())


def _paged(text: str) -> None:
    """Show a text in the user's pager; click's depends on its version and on $PAGER.

    Ctrl-C is the pager's; where there is none the text is printed.
    """
    command = os.environ.get("PAGER") or ("less" if shutil.which("less") else "more")
    environment = {"LESS": "-R", **os.environ}
    words = ["/bin/sh", "-c", command]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment) as pager:
        assert pager.stdin is not None
        with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
            pager.stdin.write(text.encode(errors="backslashreplace"))
        with contextlib.suppress(BrokenPipeError):
            pager.stdin.close()
        while pager.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                pager.wait()
    if pager.returncode == _NOT_FOUND:
        sys.stdout.write(text)


def copy_samples(target: Path) -> int:
    """Copy the samples to a directory, which is made; return how many files.

    Raises:
        ConfigError: It cannot be written, or a file of that name is there already.
    """
    with as_file(_samples()) as source:
        found = [each for each in source.rglob("*") if _is_sample(each)]
        try:
            for each in found:
                place = target / each.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    raise ConfigError(f"{place} is there already; nothing replaced it")
                shutil.copyfile(each, place)
        except OSError as error:
            raise ConfigError(f"cannot copy to {target}: {error.strerror}") from None
    return len(found)


def _is_sample(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _samples() -> Traversable:
    """The samples: in the installed package, or beside it in a checkout."""
    package = files("logagg")
    for place in (package / "docs" / "samples", Path(str(package)).parent / "samples"):
        if place.is_dir():
            return place
    raise ConfigError("this installation has no samples")
