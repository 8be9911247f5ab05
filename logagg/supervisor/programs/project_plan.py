"""A project as it is configured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from logagg.supervisor.programs.program_spec import ProgramSpec

__all__ = ["ProjectPlan"]


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """A project as it is configured.

    Attributes:
        name: The name of its directory.
        file: The file that names the programs: two projects differ by it.
        programs: Those that are to run, each after those it comes after.
        sinks: Where records go.
        metrics: Address of the metrics, or "".
        read: Reads the file again, for names (none: all) and numbers of workers.
    """

    name: str
    file: str
    programs: Sequence[ProgramSpec]
    sinks: tuple[str, ...]
    metrics: str
    read: Callable[[Sequence[str], Mapping[str, int]], Sequence[ProgramSpec]]
