"""The guard against orphans: a process that outlives the supervisor.

Run by its path with `python -I -S`, so it loads next to nothing. It reads from stdin
which process groups exist (`+PGID`, `-PGID`, one per line). End of file means that the
supervisor is dead: what is still there gets KILL after `GRACE` seconds, in which the
two other layers (the workers' own watch of the channel, and the kernel's parent-death
signal) have sent TERM. This catches what they cannot: stopped processes,
those that ignore TERM, and children of dead workers.
"""

import os
import signal
import sys
import time

GRACE = 1.5
STEP = 0.05


def main() -> None:
    """Follow the list until end of file, then kill what is left of it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a run that begins blocks some
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    deadline = time.monotonic() + GRACE
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if alive(group)}
        time.sleep(STEP)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            pass


def alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
