"""`logagg check`: is the configuration right, and can its targets be reached?

Nothing is opened that could change anything: no file is made, no record is written or
sent. A file's directory is checked. A network target is probed by its sink, the way the
sink would talk to it (certificates, secrets, proxy, deadlines); where the sink has no
probe (`Sink.probe`), a connection is tried. Each probe has TIMEOUT seconds per question,
all run side by side. Of a sink's URL only the address is shown.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import click
import msgspec

from logagg.cli.command import CONFIG, Command, command
from logagg.cli.configuration import config
from logagg.cli.status import show
from logagg.errors import ConfigError, ExitStatus
from logagg.sinks import ConfiguredSink, SinkURL, build, parse

__all__ = ["Finding", "check", "kind_of"]

TIMEOUT = 5.0
LONGEST = 4 * TIMEOUT  # for a sink that does not keep to it
_PORTS = {"http": 80, "https": 443}
_OTHER_VARIABLES = (
    "ALLOW_USERS", "APP", "BESIDE", "BUILD", "CAPTURED", "CHILDREN", "CONFIG",
    "FAILPOINT", "HOST", "LINGER", "PORTABLE", "PURE", "REDACT", "SLOT", "SLOT_PID",
    "SOCKET", "SPOOL", "START", "TRUST_USERS", "WORKER", "WORKER_ID",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Attributes:
        state: "ok", "bad" (the configuration is wrong), "down" (a target does not
            answer) or "note" (worth checking, no failure).
        what: The file, table or sink.
        detail: What was found.
    """

    state: str
    what: str
    detail: str


class CheckOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg check`: none but `--config`."""


@command(CheckOptions, CONFIG)
def check(_options: CheckOptions, config: str | None) -> None:
    """Check the configuration, and that its targets can be reached.

    Changes nothing and writes no record. Exit status: 0 all is well, 1 a target cannot
    be reached, 2 the configuration is wrong.
    """
    findings = examine(config, os.environ)
    show([[], *([each.state, each.what, each.detail] for each in findings)])
    states = {each.state for each in findings}
    if "bad" in states:
        sys.exit(ExitStatus.USAGE)
    sys.exit(ExitStatus.FAILED if "down" in states else ExitStatus.OK)


def examine(named: str | None, environ: Mapping[str, str]) -> list[Finding]:
    """Check a configuration and probe its sinks."""
    try:
        loaded = config.load(named)
    except ConfigError as error:
        return [Finding("bad", named or "configuration", str(error))]
    where = str(loaded.path) if loaded.path else "no configuration file"
    findings = [Finding("ok", where, "read")]
    findings += [Finding("note", "a file", text) for text in loaded.passed_over]
    try:
        loaded.queries()
    except ConfigError as error:
        findings.append(Finding("bad", "[queries]", str(error)))
    sinks: dict[str, None] = {}
    shown: set[str] = set()
    for name in config.TABLES:
        errors: list[ConfigError] = []
        kind = kind_of(name)
        settings = loaded.settings(name, kind, environ, errors)
        options = config.attempt(kind, settings, errors)
        texts = [text for text in map(str, errors) if text not in shown]
        shown.update(texts)
        findings += [Finding("bad", f"[{name}]", text) for text in texts]
        if settings and not errors:
            what = f"{len(settings)} option{'s' * (len(settings) != 1)}"
            findings.append(Finding("ok", f"[{name}]", what))
            needs = loaded.unconfirmed(name, settings, environ)
            if needs:
                text = str(loaded.refuse(needs))
                findings.append(Finding("bad", f"[{name}]", text))
            if "sinks" in settings and name in config.COMMON["sinks"]:
                held = {need.sink for need in needs}
                urls = [url for url in options.sinks if parse(url).shown not in held]
                sinks |= dict.fromkeys(urls)
    findings += _programs(loaded)
    return [*findings, *_variables(environ), *asyncio.run(_probe_all(list(sinks)))]


def _programs(loaded: config.Config) -> list[Finding]:
    """The first mistake in the programs of `logagg up`, or how many there are."""
    from logagg.cli.programs.program_tables import find_project, read_project  # heavy

    if config.PROGRAMS not in loaded.data:
        return []
    what = f"[{config.PROGRAMS}]"
    try:
        specs = read_project(find_project("", loaded), loaded, None)
    except ConfigError as error:
        return [Finding("bad", what, str(error))]
    return [Finding("ok", what, f"{len(specs)} program{'s' * (len(specs) != 1)}")]


def kind_of(name: str) -> type[msgspec.Struct]:
    """The struct of a command's options."""
    from logagg.cli.main import main  # main loads the commands, this one too

    found = main.get_command(click.Context(main), name)
    assert isinstance(found, Command)
    return found.kind


def _variables(environ: Mapping[str, str]) -> list[Finding]:
    """A note for each variable `LOGAGG_…` that no option has."""
    known = {f"LOGAGG_{name}" for name in _OTHER_VARIABLES}
    for name in config.TABLES:
        known |= {config.variable(name, key) for key in config.keys(kind_of(name))}
    findings = []
    for name in environ:
        if name.startswith("LOGAGG_") and name not in known and "_FD_" not in name:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            findings.append(Finding("note", name, f"no option has this name{hint}"))
    return findings


# ---- targets --------------------------------------------------------------------------


async def _probe_all(urls: list[str]) -> list[Finding]:
    return await asyncio.gather(*(_target(url) for url in urls))


async def _target(url: str) -> Finding:
    parsed = parse(url)
    what = f"sink {parsed.shown}"
    try:
        async with asyncio.timeout(LONGEST):
            state, detail = await _probe(parsed, build(parsed))
    except ConfigError as error:
        return Finding("bad", what, str(error))
    except TimeoutError:
        return Finding("down", what, f"no answer within {LONGEST:g} s")
    except OSError as error:
        return Finding("down", what, error.strerror or str(error))
    return Finding(state, what, detail)


async def _probe(url: SinkURL, built: ConfiguredSink) -> tuple[str, str]:
    found = await built.sink.probe(TIMEOUT)
    if found is not None:
        return found
    transport = url.scheme.rpartition("+")[2]
    if transport in _PORTS and url.target.startswith("//"):
        return "ok", await _connect(url, transport)
    return "ok", "its options are right"


async def _connect(url: SinkURL, transport: str) -> str:
    place = urlsplit(f"{transport}:{url.target}")
    if not place.hostname:
        raise ConfigError(f"sink {url.shown}: no host in it")
    port = place.port or _PORTS[transport]
    async with asyncio.timeout(TIMEOUT):
        _, writer = await asyncio.open_connection(place.hostname, port)
    writer.close()
    return f"{place.hostname}:{port} accepts connections; nothing more can be checked"
