"""The rows of a query: as a table, JSON lines, CSV. Pure.

Times have the zone of the query. A value that the form has no type for is text.
"""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

__all__ = ["as_csv", "as_json", "cells"]

Rows = Iterable[list[tuple[Any, ...]]]
Columns = Sequence[tuple[str, str]]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


def as_json(columns: Columns, batches: Rows) -> Iterator[bytes]:
    """Each row as an object on a line of its own."""
    names = [name for name, _ in columns]
    parsed = [number for number, (_, kind) in enumerate(columns) if kind == "JSON"]
    for rows in batches:
        lines = []
        for row in rows:
            record = dict(zip(names, row, strict=True))
            for number in parsed:
                record[names[number]] = _parsed(row[number])
            lines.append(_dumped(record))
        yield b"".join(lines)


def as_csv(columns: Columns, batches: Rows) -> Iterator[bytes]:
    """A line of heads, and one for each row; no value is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name for name, _ in columns)
    for rows in batches:
        writer.writerows(map(cells, rows))
        yield text.getvalue().encode("utf-8", "backslashreplace")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8", "backslashreplace")


def cells(row: Sequence[Any]) -> list[str]:
    """The values of a row as text."""
    return [_text(value) for value in row]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        zone = f"{value:%z}"
        return f"{value:%Y-%m-%d %H:%M:%S.%f}{zone[:3]}{zone[3:] and ':'}{zone[3:]}"
    if isinstance(value, (dict, list)):
        return _dumped(value).decode().rstrip()
    return str(value)


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value, _plain, _OPTIONS)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return orjson.dumps(_without_huge(value), _plain, _OPTIONS)


def _without_huge(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_huge(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_huge(each) for each in value]
    is_huge = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return str(value) if is_huge else value


def _plain(value: Any) -> Any:
    """A value of the database in a type of JSON."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    return str(value)
