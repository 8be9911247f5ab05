"""Fixtures: an interpreter and packages that every user can read.

The checkout and the virtual environment may lie where only their owner enters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import logagg

CHECK = """
import os, sys
os.setuid(54000)
sys.exit(not os.access(sys.executable, os.X_OK))
"""


@pytest.fixture(scope="module")
def interpreter() -> str:
    """An interpreter of this version that every user can start."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for path in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = subprocess.run([path, "-c", CHECK], check=False, capture_output=True)
        except OSError:
            continue
        if done.returncode == 0:
            return path
    pytest.skip("another user can start no interpreter here")


def copy_distribution(name: str, target: Path, seen: set[str]) -> None:
    """Copy the files of an installed distribution, and what it requires."""
    seen.add(name)
    installed = distribution(name)
    for each in installed.files or ():
        if ".." not in each.parts and "__pycache__" not in each.parts:
            (target / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(each.locate()), target / each)
    for requirement in map(Requirement, installed.requires or ()):
        other = requirement.name.lower()
        needed = requirement.marker is None or requirement.marker.evaluate()
        if needed and other not in seen:
            copy_distribution(other, target, seen)


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """A copy of the service and of what it requires that every user can read.

    The checkout and the virtual environment may lie where only their owner enters.
    """
    folder = Path(tempfile.mkdtemp(prefix="lgp-", dir="/tmp"))
    with umask(0o022):
        folder.chmod(0o755)
        root = Path(logagg.__file__).parents[1]
        skip = shutil.ignore_patterns("__pycache__")
        for each in ("logagg", "sinks/logagg_sinks"):  # an editable one has no copy
            shutil.copytree(root / each, folder / Path(each).name, ignore=skip)
        copy_distribution("logagg-service", folder, set())
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def umask(mode: int) -> Iterator[None]:
    """Make files under another mask."""
    before = os.umask(mode)
    try:
        yield
    finally:
        os.umask(before)
