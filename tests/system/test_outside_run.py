"""Records of what no handler was asked for, outside `logagg run`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import support

LOGAGG = [sys.executable, "-c", "from logagg.cli.main import main; main()"]


def test_lines_that_are_sent_become_records(tmp_path: Path) -> None:
    """JSON and formatted lines have the level that they state, as captured ones."""
    lines = [
        '{"level": "error", "message": "card refused", "order": 7, "token": "t"}',
        "\x1b[31mERROR\x1b[0m shop: bad",
        "plain",
    ]

    support.finish(
        [*LOGAGG, "send", "--file", "app.log", "--level", "debug"],
        cwd=tmp_path,
        input="\n".join(lines) + "\n",
    )

    support.settled()
    first, second, third = support.records(tmp_path / "app.log")
    assert (first["level"], first["message"]) == ("error", "card refused")
    assert (first["order"], first["token"]) == (7, "[redacted]")
    assert (second["level"], second["message"]) == ("error", "ERROR shop: bad")
    assert (third["level"], third["message"]) == ("debug", "plain")


UNCAUGHT = """
    import gc, logging, sys, threading
    import logagg

    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    logagg.install(excepthooks=True)
    logagg.uninstall()
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == before

    logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")
    logagg.install(excepthooks=True)

    class Odd:
        def __del__(self):
            raise OSError("in a destructor")

    def work():
        raise LookupError("in a thread")

    Odd()
    gc.collect()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    raise ValueError("in the main thread")
"""


def test_uncaught_exceptions_are_records_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    """Each is one, with its parts, in place of what Python prints."""
    done = support.python(textwrap.dedent(UNCAUGHT), cwd=tmp_path, status=1)

    support.settled()
    found = support.records(tmp_path / "app.log")
    assert [(each["level"], each["exception"]["type"]) for each in found] == [
        ("error", "OSError"),
        ("error", "LookupError"),
        ("critical", "ValueError"),
    ]
    assert "Odd.__del__" in found[0]["message"]
    assert done.stderr == ""
