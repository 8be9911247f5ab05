"""A record as a document in the shapes of the Elastic Common Schema (ECS). Pure.

An index of logs has mappings for the fields of ECS: `host`, `user`, `log`, `error` … are
objects, and a document in which one of them is a text is refused. So the fields of a
record get their places in ECS, and a caller's field gets

- its place in ECS, where its name is that of an object of ECS and its value fits one of
  the object's fields (`host="a"` is `host.name`);
- its own name at the top, where that cannot collide;
- a label (`labels.NAME`, a text) everywhere else: names that an index refuses (`_id`,
  `a..b`), names of ECS with values that do not fit, and what comes beyond `MOST_FIELDS`.

The template of logs in Elasticsearch gives some names, wherever they are, a type with
which a value may be refused: see `_fits`. Such a value gets another name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

__all__ = ["document"]

MOST_FIELDS = 200
MOST_LABELS = 200
_MOST_NAME = 200
_MOST_TERM = 32_766
"""Bytes of a keyword: with more its document is refused, or the mapping ignores it."""
_FLATTENED = ("structured_data", "exports", "imports")
_KEYWORDS = frozenset(
    {
        "description", "executable", "full", "full_name", "name", "original", "path",
        "subject", "target_path", "title", "working_directory",
    }
)  # fmt: skip
"""Names whose keywords the template does not bound."""

ECS_VERSION = "8.17.0"
_PLACES = {
    "level": "log.level",
    "logger": "log.logger",
    "file": "log.origin.file.name",
    "line": "log.origin.file.line",
    "function": "log.origin.function",
    "pid": "process.pid",
    "process": "process.name",
    "thread": "process.thread.name",
    "trace_id": "trace.id",
    "span_id": "span.id",
    "received": "event.created",
    "worker": "logagg.worker",
    "seq": "logagg.seq",
    "level_number": "logagg.level_number",
    "app": "service.name",
}
_TEXTS = (
    "client.address", "destination.address", "error.message", "event.action",
    "host.name", "server.address", "service.name", "source.address", "url.original",
    "user.name",
)  # fmt: skip
"""Places of texts that a caller gave the name of an object."""
_PLACES |= {place.partition(".")[0]: place for place in _TEXTS}
_NUMBERS = frozenset({"line", "pid", "seq", "level_number"})
_OBJECTS = frozenset(
    {
        "agent", "client", "cloud", "container", "data_stream", "destination", "device",
        "dll", "dns", "ecs", "email", "error", "event", "faas", "file", "gen_ai",
        "group", "host", "http", "labels", "log", "logagg", "network", "observer",
        "orchestrator", "organization", "package", "process", "registry", "related",
        "rule", "server", "service", "source", "span", "threat", "tls", "trace",
        "transaction", "url", "user", "user_agent", "volume", "vulnerability",
    }
)  # fmt: skip
"""The objects at the top of ECS, and this service's own."""

_EXCEPTION = {
    "type": "error.type",
    "message": "error.message",
    "stack": "error.stack_trace",
}


def document(record: dict[str, Any], host: str, *, nested: bool) -> dict[str, Any]:
    """Make a document of a record.

    Args:
        record: The record; changed.
        host: The host's name, unless the record has one.
        nested: Objects stay objects, instead of becoming their JSON text.

    Raises:
        ValueError: The record has no timestamp.
    """
    timestamp = record.pop("timestamp", None)
    if timestamp is None:
        raise ValueError("it has no timestamp")
    made = _Document({"@timestamp": timestamp, "ecs": {"version": ECS_VERSION}})
    made.put("message", _text(record.pop("message", "")))
    exception = record.pop("exception", None)
    if exception is not None:
        made.exception(exception)
    rest = []
    for name, value in record.items():
        place = _PLACES.get(name)
        wanted = int if name in _NUMBERS else str
        if place is None or type(value) is not wanted or not made.put(place, value):
            rest.append((name, value))
    made.put("host.name", host)
    for name, value in rest:
        made.field(name, value, nested=nested)
    return made.content


class _Document:
    """A document that is being made; every place in it is taken once."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self._fields = 0

    def put(self, place: str, value: Any) -> bool:
        """Put a value at a path; return whether that was possible."""
        *above, last = place.split(".")
        if not _fits(last, value):
            return False
        node = self.content
        for part in above:
            below = node.get(part)
            if below is None:
                below = node[part] = {}
            if type(below) is not dict:
                return False
            node = below
        if last in node:
            return False
        node[last] = value
        return True

    def exception(self, value: Any) -> None:
        """The parts of an exception that ECS knows; the others are a text."""
        if not isinstance(value, dict):
            value = {"message": value}
        rest = {}
        for name, part in value.items():
            place = _EXCEPTION.get(name)
            if place is None or not self.put(place, _text(part)):
                rest[name] = part
        if rest:
            self.put("logagg.exception", _text(rest))

    def field(self, name: str, value: Any, *, nested: bool) -> None:
        """A field of the caller."""
        if name == "labels" and type(value) is dict:
            for key, part in value.items():
                self.label(key, part)
            return
        if not self._put_field(name, value, nested=nested):
            self.label(name, value)

    def _put_field(self, name: str, value: Any, *, nested: bool) -> bool:
        parts = name.split(".")
        if (
            self._fields >= MOST_FIELDS
            or len(name) > _MOST_NAME
            or name[:1] in ("_", "@")
            or not all(part.strip() for part in parts)
        ):
            return False
        objects = type(value) is dict
        if parts[0] in _OBJECTS:
            if objects and nested and len(parts) == 1:
                return self._merge(name, value)
            if objects or len(parts) == 1 or parts[0] in ("labels", "data_stream"):
                return False
        elif parts[0] == "tags" and not _is_tags(name, value):
            return False
        elif not nested:
            name = "_".join(parts)
        if not self.put(name, _checked(value) if nested else _plain(value)):
            return False
        self._fields += 1
        return True

    def _merge(self, name: str, value: dict[str, Any]) -> bool:
        """Put the parts of an object of ECS beside those that are there already."""
        for path, part in list(_leaves(name, value)):
            if not self.put(path, part):
                self.label(path, part)
        return True

    def label(self, name: str, value: Any) -> None:
        """A text under `labels`, whose names have no dots."""
        labels = self.content.setdefault("labels", {})
        if len(labels) >= MOST_LABELS:
            more = self.content.setdefault("logagg", {})
            more["more"] = more.get("more", "") + f"{name}={_text(value)}\n"
            return
        key = name.replace(".", "_").strip()[:_MOST_NAME] or "_"
        text = _text(value)
        while key in labels or not _fits(key, text):
            key += "_"
        labels[key] = text


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if type(value) is not dict:
        yield path, value
        return
    for name, part in value.items():
        yield from _leaves(f"{path}.{name.replace('.', '_').strip() or '_'}", part)


def _checked(value: Any) -> Any:
    """An object with names that an index takes."""
    if type(value) is dict:
        found: dict[str, Any] = {}
        for name, part in value.items():
            key = name.replace(".", "_").strip() or "_"
            while key in found or not _fits(key, part):
                key += "_"
            found[key] = _checked(part)
        return found
    return [_checked(part) for part in value] if type(value) is list else value


def _fits(name: str, value: Any) -> bool:
    """Whether an index takes a value under a name, or a path that ends with it.

    Names with the ends of `_FLATTENED` are mapped to objects, and a keyword has a bound.
    """
    if name.endswith(_FLATTENED) and type(value) is not dict:
        return False
    if name not in _KEYWORDS:
        return True
    texts = value if type(value) is list else (value,)
    return not any(
        isinstance(text, str)
        and len(text) > _MOST_TERM // 4
        and len(text.encode()) > _MOST_TERM
        for text in texts
    )


def _is_tags(name: str, value: Any) -> bool:
    plain = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(part, str) for part in value)
    )
    return name == "tags" and plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return orjson.dumps(value).decode()
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
