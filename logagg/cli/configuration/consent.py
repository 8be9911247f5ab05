"""Things that a configuration file does only with consent when it was found, not named.

It perhaps came with a repository, and names a secret's place and a host, a path, a
proxy. Without consent it sends no secret, writes and listens nowhere but in its own
directory, changes nothing about how the certificate of a target is checked or which way
records go to it, loads no sink of another package, and sends no control characters to
the terminal. What it may: choose options, log files in its own directory, and targets
that need no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from logagg.ipc.paths import is_file, stream_of
from logagg.options import Setting
from logagg.render.markup import inline

__all__ = ["Need", "needs"]

_KEYS = ("cert_file", "key_file")  # who has the key is let in by its certificate
_WAYS = {
    "ca_file": "trust the authorities in {} for {}",
    "proxy": "send records by the proxy {} to {}",
    "server_name": "take the certificate of {} for that of {}",
}
_LITERAL = re.compile(r"(?:[^{]|\{\{)*")
_LOOPBACK = ("", "localhost", "::1", "127.0.0.1")


class Need(NamedTuple):
    """Something that needs consent.

    Attributes:
        what: What would be done, in words.
        sink: The address of the sink that would do it, or "".
    """

    what: str
    sink: str = ""

    def __str__(self) -> str:
        return inline(self.what)


def needs(base: Path, settings: Mapping[str, Setting]) -> list[Need]:
    """List what settings of a file in the directory `base` need consent for.

    Raises:
        ConfigError: One of the sinks is no URL.
    """
    found: dict[Need, None] = {}
    for key, setting in settings.items():
        value = setting.value
        if key == "sinks":
            found |= dict.fromkeys(_of_sinks(base, value))
        elif key in ("metrics", "web", "bind"):
            texts = value if isinstance(value, list) else [value]
            found |= dict.fromkeys(_of_addresses(base, key, map(str, texts)))
        option = setting.field.option
        if option is not None and option.asks:
            path = setting.field.text.path
            if value and not (path and is_within(base, str(value))):
                found[Need(option.asks.format(value))] = None
    return list(found)


def _of_sinks(base: Path, urls: Iterable[str]) -> Iterator[Need]:
    from logagg.sinks import is_shipped, parse  # loads the sinks: only for their URLs

    for url in map(parse, urls):
        shown = url.shown
        if not is_shipped(url.scheme):
            yield Need(f"use the sink of another package, {shown}", shown)
        if is_file(url.scheme):
            if not is_within(base, url.target):
                yield Need(f"write the log file {url.target}", shown)
        elif stream_of(url.scheme) is None:
            for name, value in url.options.items():
                what = _of_option(name, value, shown)
                if what:
                    yield Need(what, shown)


def _of_option(name: str, value: str, shown: str) -> str:
    """The thing that an option of a network sink needs consent for, or ""."""
    kind, _, place = value.partition(":")
    kind = kind.strip().lower()
    if kind in ("env", "file") or (name in _KEYS and value):
        what = f"the variable {place}" if kind == "env" else f"the file {place or kind}"
        return f"send {what} to {shown}"
    if name == "spool" and value not in ("", "off"):
        return f"keep and send to {shown} what is spooled in {value}"
    return _WAYS[name].format(value, shown) if value and name in _WAYS else ""


def _of_addresses(base: Path, key: str, addresses: Iterable[str]) -> Iterator[Need]:
    """Sockets elsewhere; and counters that other hosts could read."""
    for address in addresses:
        if address.startswith("unix:"):
            outside = not is_within(base, address.removeprefix("unix:"))
        else:
            host = address.rpartition(":")[0].strip("[]").lower()
            outside = key != "bind" and host not in _LOOPBACK
        if outside:
            yield Need(f"listen at {address} ({key})")


def is_within(base: Path, path: str) -> bool:
    """Whether a path, or each that a template gives, is in a directory.

    Links are followed as they are now. Hidden names (`.git`, `.venv`) are not within:
    what is in them is no file of the repository, and other programs obey it.
    """
    fixed = _LITERAL.match(path)[0]  # type: ignore[index]  # it matches anything
    rest = path[len(fixed) :]
    if rest:  # what a template names is opened without following links
        fixed, last = os.path.split(fixed)
        rest = last + rest
    fixed = fixed.replace("{{", "{").replace("}}", "}")
    fixed = "/" + os.path.join(os.getcwd(), fixed).lstrip("/")
    try:
        root, real = os.path.realpath(base), os.path.realpath(fixed)
    except ValueError:  # no path at all
        return False
    if os.path.commonpath([root, real]) != root:
        return False
    below = [*os.path.relpath(real, root).split("/"), *rest.split("/")]
    return not any(each.startswith(".") and each != "." for each in below)
