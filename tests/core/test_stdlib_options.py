"""Handler entries written for the standard library's file handlers go on working."""

from __future__ import annotations

import datetime
import logging.config
import os
from typing import Any

import pytest

import logagg
from logagg.client.sink_urls import file_query, named_arguments
from logagg.errors import ConfigError

TAKEN: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"encoding": "utf-8"}, ""),
    ({"encoding": None, "errors": "backslashreplace", "delay": True, "mode": "a"}, ""),
    ({"mode": "a+", "encoding": "UTF8"}, ""),
    ({"use_gzip": True}, "compress=gzip"),
    ({"maxBytes": 1000, "backupCount": 3}, "max_bytes=1000&backups=3"),
    ({"maxBytes": "10485760", "backupCount": "20"}, "max_bytes=10485760&backups=20"),
    ({"maxBytes": "50MB"}, "max_bytes=50000000"),
    ({"when": "midnight", "backupCount": 14, "utc": True}, "backups=14&when=midnight&utc=true"),
    ({"when": "H", "interval": 6}, "when=h&interval=6"),
    ({"when": "W6", "atTime": datetime.time(3, 30)}, "when=w6&at=03:30:00"),
]  # fmt: skip

REFUSED = [
    {"mode": "w"},
    {"encoding": "latin-1"},
    {"maxBytes": -1},
    {"maxBytes": "much"},
    {"backupCount": 1.5},
    {"when": "yearly"},
]


@pytest.mark.parametrize(("arguments", "query"), TAKEN)
def test_arguments_become_options_of_the_file_sink(
    arguments: dict[str, Any], query: str
) -> None:
    """What is always so is taken; the rest is an option."""
    assert file_query(arguments) == query


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_value_without_meaning_is_named(arguments: dict[str, Any]) -> None:
    """The error has the argument and its value."""
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        file_query(arguments)


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        (
            ("a", 1000, 3, "utf-8"),
            {"mode": "a", "maxBytes": 1000, "backupCount": 3, "encoding": "utf-8"},
        ),
        (("midnight", 1, 14), {"when": "midnight", "interval": 1, "backupCount": 14}),
    ],
)
def test_positional_arguments_are_those_of_the_stdlibs_handlers(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """As `fileConfig` gives them."""
    assert named_arguments(positional) == named


@pytest.mark.parametrize("positional", [(5,), ("a", 1, 2, "utf-8", True, None, "x")])
def test_other_positional_arguments_are_refused(positional: tuple[Any, ...]) -> None:
    """There is no third order in which they could be meant."""
    with pytest.raises(ConfigError, match="RotatingFileHandler"):
        named_arguments(positional)


@pytest.mark.parametrize(("arguments", "_"), TAKEN)
def test_a_dict_config_of_the_stdlibs_loads(
    arguments: dict[str, Any], _: str, tmp_path: Any, monkeypatch: Any
) -> None:
    """Only the class is exchanged; no record is needed for an error to show."""
    monkeypatch.delenv("LOGAGG_SOCKET", raising=False)
    handler = {
        "()": "logagg.Handler",
        "filename": os.fspath(tmp_path / "app.log"),
        **arguments,
    }
    made = logging.config.DictConfigurator(
        {"version": 1, "handlers": {}}
    ).configure_handler(handler)

    assert isinstance(made, logagg.Handler)
    made.close()


def test_an_argument_twice_is_an_error_as_pythons_own(tmp_path: Any) -> None:
    """Once by position, once by name."""
    with pytest.raises(TypeError, match="maxBytes"):
        logagg.Handler(tmp_path / "app.log", "a", 5, maxBytes=6)
