"""Runs and programs of this user by name.

A name is that of a program of a project, of a project, or of the program of a run
(`app.py`). Of several with one name, that of the current directory is meant, or of the
nearest one above it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from logagg.errors import ConfigError, ConsumerGone, LogaggError
from logagg.ipc.runs import run_control
from logagg.ipc.runs.run_control import RunAddress

__all__ = ["RunState", "Target", "find", "project", "running"]


class RunState(NamedTuple):
    """A run or project that answers, and its status."""

    run: RunAddress
    state: dict[str, Any]

    @property
    def name(self) -> str:
        """The project's name, or that of the run's program without its directory."""
        if "project" in self.state:
            return str(self.state["project"])
        words = str(self.state["program"]).split()
        named = [os.path.basename(word) for word in words if word != "-m"]
        return named[0] if named else "tasks"

    @property
    def programs(self) -> list[dict[str, Any]]:
        """The programs of a project; the run itself as the only one of a run."""
        if "programs" in self.state:
            return list(self.state["programs"])
        ready = all(slot["state"] == "ready" for slot in self.state["slots"])
        state = "running" if ready else "starting"
        return [{**self.state, "name": self.name, "state": state}]

    @property
    def is_here(self) -> bool:
        """Whether the current directory is its directory, or below that."""
        home, here = self.state["directory"], os.getcwd()
        return bool(os.path.isabs(home) and os.path.commonpath([home, here]) == home)

    @property
    def socket(self) -> str:
        """The socket of its consumer."""
        return str(self.state["consumer"]["socket"])


class Target(NamedTuple):
    """The run that a name means, and the program of it, "" for all."""

    found: RunState
    program: str


def running() -> list[RunState]:
    """All runs and projects that answer, by pid."""
    found = []
    for run in run_control.runs():
        try:
            found.append(RunState(run, run_control.status(run)))
        except LogaggError:  # it is ending, or stopped
            continue
    return found


def project(file: str) -> RunState | None:
    """The project of a file, if it runs."""
    return next((each for each in running() if each.state.get("file") == file), None)


def find(name: str = "", pid: int | None = None) -> Target:
    """The run, or program, that is meant.

    Args:
        name: Its name; "": the only run, or the only one of the current directory.
        pid: That of its process.

    Raises:
        ConsumerGone: Nothing runs.
        ConfigError: There is no such one, or there are several.
    """
    if not name:
        return Target(_find_run(pid), "")
    present = [each for each in running() if pid in (None, each.run.pid)]
    if not present:
        run_control.find(pid)  # raises, in most cases
        raise ConsumerGone("no run answers")
    matches = [
        Target(each, name if "project" in each.state else "")
        for each in present
        if name in [one["name"] for one in each.programs]
    ]
    matches += [Target(each, "") for each in present if each.name == name]
    unique = list({(m.found.run, m.program): m for m in matches}.values())
    if not unique:
        raise ConfigError(_no_such(name, present))
    if len(unique) > 1:
        nearest = _nearest([match.found for match in unique])
        unique = [match for match in unique if nearest in (None, match.found)]
    if len(unique) > 1:
        listed = ", ".join(_listed(match.found) for match in unique)
        raise ConfigError(f"several run as {name!r}: {listed}; choose with --pid")
    return unique[0]


def _find_run(pid: int | None) -> RunState:
    if pid is None and len(run_control.runs()) > 1:
        nearest = _nearest(running())
        if nearest is not None:
            return nearest
    run = run_control.find(pid)
    return RunState(run, run_control.status(run))


def _nearest(found: Sequence[RunState]) -> RunState | None:
    """The run of the current directory, or of the nearest one above; if it is one."""
    homes = [each.state["directory"] for each in found if each.is_here]
    nearest = max(homes, key=len, default=None)
    here = [each for each in found if each.state["directory"] == nearest]
    return here[0] if len(here) == 1 else None


def _listed(found: RunState) -> str:
    return f"{found.run.pid} in {found.state['directory']}"


def _no_such(name: str, present: Sequence[RunState]) -> str:
    names = [one["name"] for each in present for one in each.programs]
    names += [each.name for each in present if each.name not in names]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"running: {', '.join(names)}"
    return f"no program {name!r} runs; {hint}"
