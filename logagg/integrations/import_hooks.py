"""Functions called when the program imports a module: nothing is imported ahead of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = ["when_imported"]


class _AfterImport:
    """Calls a function once a module has been executed; otherwise changes nothing.

    A finder, without the base class: `importlib.abc` takes 30 ms to import.
    """

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._call = call

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        # It stays for the next search: a program may find a module without loading it.
        spec = self._find(fullname, path, target)
        loader: Any = spec.loader if spec is not None else None
        if hasattr(loader, "exec_module") and not isinstance(loader, type):
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._call(module)

            loader.exec_module = exec_module
        return spec

    def _find(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """Ask the finders after this one; those before it have been asked."""
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                return spec
        return None


def when_imported(name: str, call: Callable[[ModuleType], None]) -> None:
    """Call a function with a module as soon as the program has imported it.

    At once, if it is imported already; never, if it never is. A function that raises
    makes the program's import raise, so it must not.
    """
    module = sys.modules.get(name)
    if module is not None:
        call(module)
    else:
        sys.meta_path.insert(0, _AfterImport(name, call))
