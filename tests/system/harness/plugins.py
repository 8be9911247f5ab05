"""Where the sinks of a third party are that the tests use."""

from __future__ import annotations

import os
from pathlib import Path


def plugin_path() -> dict[str, str]:
    """Environment in which the plug-in's entry points are found (PYTHONPATH)."""
    folder = str(Path(__file__).parent / "plugin")
    before = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{before}" if before else folder}
