"""The step between the supervisor and a command that is not Python.

Run by its path, `python exec_command.py`, in the worker's own process: what must hold for
that very process (its parent's death, `LISTEN_PID`) cannot be arranged from outside.
It ends by becoming the command.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this file's directory: it would shadow top-level modules

import os

from logagg.platform.processes import die_with_parent
from logagg.platform.terminal_text import complain
from logagg.supervisor.child.launch_spec import LaunchSpec


def main() -> None:
    """Arrange the process and become the command; 127 or 126 when it cannot be run."""
    spec = LaunchSpec.take()
    die_with_parent(spec.parent)
    spec.place_descriptors(inheritable=True)
    try:
        os.execvp(spec.argv[0], spec.argv)  # noqa: S606  no shell is wanted
    except OSError as error:
        complain(f"logagg: cannot run {spec.argv[0]}: {error.strerror}")
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None


if __name__ == "__main__":
    main()
