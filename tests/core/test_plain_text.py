"""The level of a line of text is taken from it where it is certain, and only there."""

from __future__ import annotations

import pytest

from logagg.dialects.plain_text import level_of_text

CERTAIN = {
    "INFO:     Started server process [77]": "info",
    "WARNING:root:text": "warning",
    "ERROR:shop.pay:card refused": "error",
    "ERROR shop.pay: card refused": "error",
    "CRITICAL": "critical",
    "[INFO] text": "info",
    "[ERROR]: text": "error",
    "INFO  [alembic.runtime.migration] Context impl": "info",
    "warning: redirecting to /x": "warning",
    "fatal: not a git repository": "critical",
    "error: no such file": "error",
    "[2026-11-20 09:15:02 +0000] [77] [INFO] Booting worker": "info",
    "[2026-11-20 09:15:02 +0000] [77] [CRITICAL] WORKER TIMEOUT": "critical",
    "[2026-11-20 09:15:02,100: WARNING/MainProcess] text": "warning",
    "2026-11-20 09:15:02,100 ERROR shop.pay: text": "error",
    "2026-11-20 09:15:02,100 - shop.pay - DEBUG - text": "debug",
    "2026-11-20 09:15:02,100 [main] ERROR com.acme.Shop - text": "error",
    "09:15:02.100 [main] WARN  com.acme.Shop - text": "warning",
    "2026-11-20 09:15:02.100 | ERROR    | shop.pay:charge:41 - bad": "error",
    "2026-11-20T09:15:02.1Z\tERROR\tcard refused\t{}": "error",
    "2026-11-20T09:15:02.100+0100\tinfo\tzap": "info",
    "2026-11-20 09:15:02.100 UTC [77] ERROR:  relation is missing": "error",
    "2026/11/20 09:15:02 [error] 77#77: *1 open() failed": "error",
    "2026-11-20T09:15:02Z [warning  ] card refused": "warning",
    "E1120 09:15:02.100000      77 pay.go:41] text": "error",
    "I1120 09:15:02.100000 77 pay.go:41] text": "info",
    'time="2026-11-20T09:15:02Z" level=warning msg="text"': "warning",
    "level=error ts=2026-11-20T09:15:02Z msg=text": "error",
    "<3>text": "error",
    "<6>text": "info",
    "SEVERE: text": "error",
}

UNCERTAIN = [
    "",
    "ordinary text",
    "no ERROR was found",
    "Error opening the file",
    "Information about the weather",
    "INFORMATIONAL text",
    "warnings: 3",
    "errors: 0",
    "the level=error option",
    "debugging is fun",
    "2026-11-20 09:15:02 text without a level",
    "2026-11-20 09:15:02 the info you wanted",
    "[1, 2, 3]",
    "09:15:02 [ info ] text",
    "Epoch 3: error 0.02",
    "<html>",
    "<9>text",
    "Fatal attraction",
]


@pytest.mark.parametrize("text", CERTAIN)
def test_a_formatted_line_states_its_level(text: str) -> None:
    """The forms of widespread loggers, of Python and of other languages."""
    assert level_of_text(text) == CERTAIN[text]


@pytest.mark.parametrize("text", UNCERTAIN)
def test_other_lines_state_none(text: str) -> None:
    """A level word elsewhere in a sentence is only a word."""
    assert level_of_text(text) is None
