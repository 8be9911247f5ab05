"""The programs of a project as they are configured, and their order. Pure."""

from __future__ import annotations

import difflib
import graphlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from logagg.errors import ConfigError
from logagg.supervisor.run_options import Restart, RunOptions

__all__ = ["ProgramSpec", "check_name", "in_order", "select", "with_formation"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program of a project.

    Attributes:
        options: How it runs; `options.app` is its name.
        after: The programs that must be ready, or one-shot ones that must have ended
            well, before it starts.
    """

    options: RunOptions
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the project."""
        return self.options.app

    @property
    def is_one_shot(self) -> bool:
        """Whether it does its work once: those after it wait for its end."""
        return self.options.restart is Restart.NEVER


def check_name(name: str) -> str:
    """Check the name of a program.

    Raises:
        ConfigError: It cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"program {name!r}: a name is a letter, then at most 31 letters, digits, "
            "- or _"
        )
    return name


def in_order(specs: Iterable[ProgramSpec]) -> list[ProgramSpec]:
    """The programs, each after those it comes after; else in the order given.

    Raises:
        ConfigError: One comes after a program that there is not, or after itself.
    """
    by_name = {each.name: each for each in specs}
    for each in by_name.values():
        for name in each.after:
            known(name, by_name, f"program {each.name}: after: ")
    sorter = graphlib.TopologicalSorter(
        {each.name: each.after for each in by_name.values()}
    )
    try:
        return [by_name[name] for name in sorter.static_order()]
    except graphlib.CycleError as error:
        circle = " after ".join(reversed(error.args[1]))
        raise ConfigError(f"programs wait for each other: {circle}") from None


def known(name: str, names: Iterable[str], place: str = "") -> None:
    """Check that there is a program of this name.

    Raises:
        ConfigError: There is none; the message has the nearest name, or all.
    """
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ConfigError(f"{place}no program {name!r}; {hint}")


def select(specs: Sequence[ProgramSpec], names: Sequence[str]) -> list[ProgramSpec]:
    """The programs of these names and those they come after; all without a name.

    Raises:
        ConfigError: There is no such program.
    """
    if not names:
        return list(specs)
    by_name = {each.name: each for each in specs}
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        known(name, by_name)
        if name not in wanted:
            wanted.add(name)
            todo += by_name[name].after
    return [each for each in specs if each.name in wanted]


def with_formation(
    specs: Sequence[ProgramSpec], formation: Mapping[str, int]
) -> list[ProgramSpec]:
    """The programs with other numbers of workers; without those that get none.

    Raises:
        ConfigError: There is no such program, or no room for so many workers.
    """
    for name in formation:
        known(name, [each.name for each in specs], f"-m {name}={formation[name]}: ")
    found = []
    for each in specs:
        workers = formation.get(each.name, each.options.workers)
        if workers and workers != each.options.workers:
            options = msgspec.structs.replace(each.options, workers=workers)
            each = replace(each, options=options)  # noqa: PLW2901
        if workers:
            found.append(each)
    left = {each.name for each in found}
    return [
        replace(each, after=tuple(n for n in each.after if n in left)) for each in found
    ]
