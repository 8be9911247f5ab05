"""A function is called once, when the program has imported a module, and not before."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from logagg.integrations.import_hooks import when_imported


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported and has not been."""
    (tmp_path / "hooked_module.py").write_text("ready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "hooked_module", raising=False)
    return "hooked_module"


def test_it_is_called_after_the_import_and_leaves_nothing(name: str) -> None:
    """Two functions for one module are both called, each with the module executed."""
    before, calls = len(sys.meta_path), list[ModuleType]()
    when_imported(name, calls.append)
    when_imported(name, calls.append)

    module = importlib.import_module(name)

    assert calls == [module, module]
    assert module.ready
    assert len(sys.meta_path) == before


def test_a_search_without_an_import_does_not_use_it_up(name: str) -> None:
    """Many programs ask whether a module is there long before they import it."""
    calls: list[ModuleType] = []
    when_imported(name, calls.append)

    assert importlib.util.find_spec(name) is not None
    assert calls == []
    importlib.import_module(name)

    assert len(calls) == 1


def test_a_module_that_is_there_is_passed_at_once(name: str) -> None:
    """Without any search."""
    module = importlib.import_module(name)
    calls: list[ModuleType] = []

    when_imported(name, calls.append)

    assert calls == [module]
