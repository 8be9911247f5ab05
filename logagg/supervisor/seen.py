"""What /proc shows of the sockets of a worker and of the processes that it started.

For servers that Python's `socket` does not see: those in C, Rust or another language,
and those that serve in a child of their own (granian). Reading is all that happens; a
process that is gone meanwhile has no sockets.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["family", "listens", "polls"]


def family(pid: int) -> list[int]:
    """The process and its descendants; without the kernel's help just the process."""
    found = [pid]
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def listens(pids: list[int], ports: set[int]) -> bool:
    """Whether one of the processes has a listening TCP socket of its own on a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pids[0]}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) in ports:
                inodes.add(f"socket:[{words[9]}]")
    return bool(inodes) and any(inodes & set(_links(pid).values()) for pid in pids)


def polls(pids: list[int], inodes: set[int]) -> bool:
    """Whether an epoll of the processes watches a socket with one of these inodes."""
    return any(_polls(pid, inodes) for pid in pids)


def _links(pid: int) -> dict[str, str]:
    """What each descriptor of a process is."""
    links = {}
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            links[fd.name] = str(fd.readlink())
    except OSError:
        pass
    return links


def _polls(pid: int, inodes: set[int]) -> bool:
    for fd, link in _links(pid).items():
        if link != "anon_inode:[eventpoll]":
            continue
        try:
            lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.replace(":", " ").split()
            if "ino" in words and int(words[words.index("ino") + 1], 16) in inodes:
                return True
    return False
