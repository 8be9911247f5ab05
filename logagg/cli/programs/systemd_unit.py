"""The systemd unit of a project: its text, its place, and systemctl."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from logagg.errors import ConfigError

__all__ = ["Unit", "has_systemd", "systemctl", "unit_text"]


class Unit(NamedTuple):
    """A unit of a project.

    Attributes:
        name: Its name, with `.service`.
        user: It belongs to the user's own systemd, not to the system's.
    """

    name: str
    user: bool

    @classmethod
    def of(cls, project: str, *, user: bool) -> Unit:
        """The unit of a project's name."""
        plain = re.sub(r"[^A-Za-z0-9_.-]", "-", project)
        return cls(f"logagg-{plain}.service", user)

    @property
    def path(self) -> Path:
        """Where its file stands."""
        if not self.user:
            return Path("/etc/systemd/system") / self.name
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return Path(base) / "systemd" / "user" / self.name


def unit_text(
    title: str,
    directory: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    stop_seconds: float,
    *,
    user: bool,
) -> str:
    """The unit's text.

    Args:
        title: Its description.
        directory: Where the command runs.
        command: The command.
        environment: Its variables.
        stop_seconds: How long the programs may take to end.
        user: See `Unit`.
    """
    lines = [
        "[Unit]", f"Description={title.replace('%', '%%')}", "After=network.target", "",
        "[Service]", "Type=exec", f"WorkingDirectory={directory.replace('%', '%%')}",
        "ExecStart=" + " ".join(map(_quoted, command)),
        "ExecReload=/bin/kill -HUP $MAINPID", "KillMode=mixed",
        f"TimeoutStopSec={stop_seconds:.0f}", "Restart=on-failure",
        "RestartPreventExitStatus=2",
        *(f"Environment={_quoted(f'{k}={v}')}" for k, v in environment.items()), "",
        "[Install]", f"WantedBy={'default' if user else 'multi-user'}.target",
    ]  # fmt: skip
    if any("\n" in line for line in lines):
        raise ConfigError("a unit cannot have a line break in a path or an argument")
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """A word of a unit: no specifier, no variable, one argument."""
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def has_systemd() -> bool:
    """Whether units can be enabled here: systemd runs, or works on files alone."""
    offline = os.environ.get("SYSTEMD_OFFLINE") == "1"
    runs = os.path.isdir("/run/systemd/system")
    return (runs or offline) and shutil.which("systemctl") is not None


def systemctl(unit: Unit, *words: str) -> None:
    """Run systemctl for the unit's systemd.

    Raises:
        ConfigError: It failed; the message is its own.
    """
    command = ["systemctl", *(["--user"] if unit.user else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        text = (done.stderr or done.stdout).strip().splitlines()
        reason = text[-1] if text else f"status {done.returncode}"
        raise ConfigError(f"{' '.join(command)}: {reason}")
