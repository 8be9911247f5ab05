"""Compile the C modules when a wheel, or an editable install, is built.

Used by hatchling (`[tool.hatch.build.targets.wheel.hooks.custom]` in pyproject.toml).
Where there is no compiler, no `Python.h`, or an interpreter without a GIL, the wheel is
a pure one: everything works, log calls and the consumer cost more. `LOGAGG_BUILD=pure`
asks for that; with `LOGAGG_BUILD=native` a build fails that cannot compile. `CC` and
`CFLAGS` are honoured. By hand, into the source tree: `python logagg/_native/build.py`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
MODULES = ("emit", "merge")
FLAGS = (
    "-O2", "-fPIC", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-Wno-unused-parameter", "-Wno-missing-field-initializers",
)  # fmt: skip


class BuildHook(BuildHookInterface[Any]):
    """Adds the compiled modules to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, in place for an editable install, else into a folder of its own."""
        wanted = os.environ.get("LOGAGG_BUILD", "")
        if wanted not in ("", "native", "pure"):
            raise SystemExit(f"LOGAGG_BUILD={wanted}: choose native or pure")
        if wanted == "pure" or sysconfig.get_config_var("Py_GIL_DISABLED"):
            return
        folder = HERE if version == "editable" else Path(tempfile.mkdtemp())
        try:
            made = compile_all(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            if wanted == "native":
                raise
            self.app.display_warning(f"what has a C form stays in Python: {error}")
            return
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in made:
            build_data["force_include"][str(path)] = f"logagg/_native/{path.name}"


def compile_all(folder: Path) -> list[Path]:
    """Compile every module into a folder; returns the files.

    Raises:
        OSError: There is no compiler.
        CalledProcessError: It failed; its output is on stderr.
    """
    settings = sysconfig.get_config_vars()
    link = shlex.split(settings["LDSHARED"])
    compiler = shlex.split(os.environ.get("CC", "")) or link[:1]
    flags = [*FLAGS, *shlex.split(os.environ.get("CFLAGS", ""))]
    include = f"-I{sysconfig.get_paths()['include']}"
    made = []
    for name in MODULES:
        target = folder / f"{name}{settings['EXT_SUFFIX']}"
        source = str(HERE / f"{name}.c")
        partial = target.with_suffix(f".{os.getpid()}")  # another build may be at work
        command = [*compiler, *link[1:], *flags, include, source, "-o", str(partial)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        partial.replace(target)
        made.append(target)
    return made


if __name__ == "__main__":
    print(*compile_all(HERE), sep="\n")
