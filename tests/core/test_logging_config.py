"""`logagg.logging_config`: a complete dictionary for each framework of the manual."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import support

import logagg
from logagg.errors import ConfigError
from logagg.integrations.logging_config import _LOGGERS

MANUAL = Path(__file__).parents[2] / "logagg" / "docs" / "integrations.md"

PROGRAM = """
import json, logging, logging.config
import logagg
from logagg.integrations.logging_config import _LOGGERS
for name, loggers in {**_LOGGERS, None: ()}.items():
    made = logagg.logging_config(name, filename="app.log", maxBytes="10MB")
    logging.config.dictConfig(json.loads(json.dumps(made)))
    (handler,) = logging.getLogger().handlers
    for each in loggers or (f"{name}.app",):
        assert logging.getLogger(each).handlers == [handler] * bool(loggers)
        logging.getLogger(each).info("of %s", name)
"""


def test_every_dictionary_is_complete(tmp_path: Path) -> None:
    """It can be written as JSON; what the framework logs arrives once."""
    support.finish([sys.executable, "-c", PROGRAM], cwd=tmp_path)
    support.settled()
    found = [(r["logger"], r["message"]) for r in support.records(tmp_path / "app.log")]
    wanted = [
        (each, f"of {name}")
        for name, loggers in {**_LOGGERS, None: ()}.items()
        for each in loggers or (f"{name}.app",)
    ]
    assert found == wanted


def test_the_manual_names_them_all() -> None:
    """In their order."""
    text = MANUAL.read_text().replace("\n", " ")
    (names,) = re.findall(r"the names are ([\w, ]+)\.", text)
    assert re.split(", | and ", names) == list(_LOGGERS)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """One line."""
    with pytest.raises(ConfigError, match=r"for 'flusk'.*'flask'"):
        logagg.logging_config("flusk")
