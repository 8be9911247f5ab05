"""`logagg check`: is the configuration right, and can its targets be reached?

Nothing is opened that could change anything: no file is made, no record is written or
sent. A file's directory is looked at. A network target is asked how it is by its sink,
as that would speak to it (certificates, secrets, proxy, deadlines); one whose sink has
no way to ask is connected to. Each look is bounded by PATIENCE seconds a question, all
run side by side. What could be a secret is not shown: of a sink's URL only the address.

A sink that can ask has `async def probe(patience: float) -> tuple[str, str]`: the state
("ok", "note", "down") and what was found. It asks within `patience` seconds a question,
changes nothing, and may raise ConfigError (it is set up wrongly) and OSError (the target
is not to be had).
"""

from __future__ import annotations

import asyncio
import difflib
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from logagg import config
from logagg.errors import ConfigError, LogaggError
from logagg.sinks import Built, SinkURL, build, parse

__all__ = ["Finding", "check"]

PATIENCE = 5.0
LONGEST = 4 * PATIENCE  # for a sink that does not keep to it
_PORTS = {"http": 80, "https": 443}
_INTERNAL = ("CONFIG", "SOCKET", "FAILPOINT", "SLOT", "SLOT_PID", "START", "WORKER_ID")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Attributes:
        state: "ok", "bad" (the configuration is wrong), "down" (a target does not
            answer) or "note" (worth a look, no failure).
        what: The file, table or sink.
        detail: What was found.
    """

    state: str
    what: str
    detail: str


@click.command()
@click.option(
    "--config",
    "named",
    envvar="LOGAGG_CONFIG",
    metavar="FILE",
    help="The file. Default: logagg.toml here or above.",
)
def check(named: str | None) -> None:
    """Check the configuration, and that its targets can be reached.

    Changes nothing and writes no record. Exit status: 0 all is well, 1 a target cannot
    be reached, 2 the configuration is wrong.
    """
    try:
        loaded = config.load(named)
    except ConfigError as error:
        _show([Finding("bad", named or "configuration", str(error))])
        sys.exit(2)
    findings = settings(loaded, os.environ)
    urls = sinks(loaded, os.environ)
    findings += asyncio.run(_look_at(urls))
    _show(findings)
    states = {each.state for each in findings}
    sys.exit(2 if "bad" in states else 1 if "down" in states else 0)


def _show(findings: list[Finding]) -> None:
    width = max((len(each.what) for each in findings), default=0)
    for each in findings:
        click.echo(f"{each.state:<6}{each.what:<{min(width, 60)}}  {each.detail}")


# ---- settings -------------------------------------------------------------------------


def settings(loaded: config.Config, environ: Mapping[str, str]) -> list[Finding]:
    """Check every table and every variable, and go on behind a mistake."""
    where = str(loaded.path) if loaded.path else "no configuration file"
    findings: list[Finding] = []
    known: set[str] = set()
    for name in config.TABLES:
        command = _command(name)
        known |= {config.variable(name, key) for key in config.keys(command)}
        try:
            number = len(loaded.values(name, command, environ))
        except LogaggError as error:
            finding = Finding("bad", f"[{name}]", str(error))
        else:
            what = f"{number} option{'s' * (number != 1)}"
            finding = Finding("ok", f"[{name}]", what)
        if finding.detail not in {each.detail for each in findings} or (
            finding.state == "ok"
        ):
            findings.append(finding)
    findings = [each for each in findings if each.detail != "0 options"]
    known |= {f"LOGAGG_{name}" for name in _INTERNAL}
    for name in environ:
        if name.startswith("LOGAGG_") and name not in known and "_FD_" not in name:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            findings.append(Finding("note", name, f"no option is named so{hint}"))
    return [Finding("ok", where, "read"), *findings]


def _command(name: str) -> click.Command:
    from logagg.cli import main

    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def sinks(loaded: config.Config, environ: Mapping[str, str]) -> list[str]:
    """The sinks of `run` and `serve`, each once; none where they are wrong."""
    found: dict[str, None] = {}
    for name in config.COMMON["sinks"]:
        try:
            values = loaded.values(name, _command(name), environ)
        except LogaggError:
            continue
        found |= dict.fromkeys(values.get("sinks", ()))
    return list(found)


# ---- targets --------------------------------------------------------------------------


async def _look_at(urls: list[str]) -> list[Finding]:
    return await asyncio.gather(*(_target(url) for url in urls))


async def _target(url: str) -> Finding:
    parsed = parse(url)
    what = f"sink {parsed.shown}"
    try:
        async with asyncio.timeout(LONGEST):
            state, detail = await _look(parsed, build(parsed))
    except ConfigError as error:
        return Finding("bad", what, str(error))
    except TimeoutError:
        return Finding("down", what, f"no answer within {LONGEST:g} s")
    except OSError as error:
        return Finding("down", what, error.strerror or str(error))
    return Finding(state, what, detail)


async def _look(url: SinkURL, built: Built) -> tuple[str, str]:
    if url.scheme == "file":
        return "ok", look_at_file(Path(getattr(built.sink, "path", url.target)))
    probe = getattr(built.sink, "probe", None)
    if probe is not None:
        state, detail = await probe(PATIENCE)
        return str(state), str(detail)
    transport = url.scheme.rpartition("+")[2]
    if transport in _PORTS and url.target.startswith("//"):
        return "ok", await _connect(url, transport)
    return "ok", "its options are right"


async def _connect(url: SinkURL, transport: str) -> str:
    place = urlsplit(f"{transport}:{url.target}")
    if not place.hostname:
        raise ConfigError(f"sink {url.shown}: no host in it")
    port = place.port or _PORTS[transport]
    async with asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection(place.hostname, port)
    writer.close()
    return f"{place.hostname}:{port} takes connections; more cannot be asked"


def look_at_file(path: Path) -> str:
    """Whether a log file could be written, by looking only.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    parts = str(path).partition("{")
    fixed = Path(parts[0] + ("x" if parts[1] else "")).absolute()
    folder = fixed.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a directory")
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"directory {folder} is writable by everybody, so anybody could replace "
            f"the log: chmod o-w {folder}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"no permission to write to directory {folder}")
    if not parts[1] and os.path.lexists(path):
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISCHR(kind):
            raise ConfigError(f"{path} is not a regular file")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"no permission to write to {path}")
        return "can be written"
    return f"can be made in {folder}"
