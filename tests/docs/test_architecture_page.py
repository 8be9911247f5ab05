"""The tables of states on the page of the architecture are those of the code."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import FOLDER, table_rows

from logagg.client import delivery_state
from logagg.fanout import runner_state

TEXT = (FOLDER / "architecture.md").read_text("utf-8")


def table_of(module: str) -> list[list[str]]:
    """The rows of the table after the paragraph that names a module."""
    text = TEXT[TEXT.index(f"(`{module}`)") :]
    end = text.index("\n\n", text.index("\n|"))
    return table_rows(text[:end], "State")


@pytest.mark.parametrize(
    ("module", "states"),
    [
        ("client/delivery_state.py", "DeliveryState"),
        ("consumer/worker_source.py", "SourceState"),
        ("fanout/runner_state.py", "RunnerState"),
    ],
)
def test_every_state_has_its_row(module: str, states: str) -> None:
    """In the order of the enum."""
    name = f"logagg.{module.removesuffix('.py').replace('/', '.')}"
    found = getattr(importlib.import_module(name), states)
    rows = table_of(module)
    assert [row[0].strip("`") for row in rows] == [each.name for each in found]


def test_the_transitions_are_those_of_the_code() -> None:
    """Of a delivery and of a sink's runner."""
    tables = {
        "client/delivery_state.py": delivery_state.TRANSITIONS,
        "fanout/runner_state.py": runner_state._TRANSITIONS,
    }
    for module, transitions in tables.items():
        rows = {row[0].strip("`"): row[2] for row in table_of(module)}
        for state, following in transitions.items():
            cell = rows[state.name]
            if same := re.fullmatch(r"as (\w+)", cell):
                cell = rows[same[1]]
            found = set(re.findall(r"[A-Z_]{4,}", cell))
            assert found == {each.name for each in following}, (module, state)


def test_every_module_that_the_page_names_exists() -> None:
    """Paths in code spans, relative to the package or to the repository."""
    package = FOLDER.parent
    for name in re.findall(r"`([a-z_]+/[a-z_/]+(?:\.py)?)`", TEXT):
        places = (package / name, package.parent / name)
        assert any(each.exists() for each in places), name
