"""What a worker prints stands among its records where it was printed."""

from __future__ import annotations

from typing import Any

import pytest


def test_prints_and_records_alternate_as_they_were_made(run: Any) -> None:
    """print, log, print, log …: the file has them in just that order."""
    run.write(
        "app.py",
        "import logging, sys\n"
        "for n in range(300):\n"
        "    print('print', n)\n"
        "    logging.info('log %d', n)\n"
        "    print('error', n, file=sys.stderr)\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    reported = [r["message"] for r in run.records() if r["logger"] != "logagg"]
    expected = [f"{kind} {n}" for n in range(300) for kind in ("print", "log", "error")]
    assert reported == expected


def test_output_of_other_programs_and_of_c_level_is_kept_whole(run: Any) -> None:
    """Bytes that carry no time (os.write, a subprocess) come through unchanged."""
    run.write(
        "app.py",
        "import os, subprocess, sys\n"
        "os.write(1, b'raw\\n')\n"
        "subprocess.run(['echo', 'child'])\n"
        "print(sys.stdout.fileno(), sys.stdout.encoding, sys.stdout.isatty())\n"
        "print('no end', end='')\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    reported = [r["message"] for r in run.records(stream="stdout")]
    assert sorted(reported) == ["1 utf-8 False", "child", "no end", "raw"]
    assert reported[-1] == "no end"


@pytest.mark.slow
def test_a_redirected_descriptor_gets_plain_text(run: Any, tmp_path: Any) -> None:
    """After dup2 to a file of its own, a worker's prints are just what it printed."""
    target = tmp_path / "mine.txt"
    run.write(
        "app.py",
        "import os\n"
        f"fd = os.open({str(target)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "os.dup2(fd, 1)\n"
        "print('only mine')\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    assert target.read_text() == "only mine\n"


@pytest.mark.slow
def test_a_sink_on_a_captured_stream_does_not_feed_itself(run: Any) -> None:
    """An app that asks for stdout and stderr sinks under run logs each record once."""
    run.write(
        "app.py",
        "import logging, logagg, subprocess, sys\n"
        "logging.getLogger().addHandler(logagg.Handler(sinks=['stdout:', 'stderr:']))\n"
        "for n in range(20):\n"
        "    logging.info('log %d', n)\n"
        "code = 'import logging, logagg; logging.basicConfig('\n"
        "code += 'handlers=[logagg.Handler(sinks=[\"stdout:\"])], level=20);'\n"
        "code += 'logging.info(\"child\")'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n",
    )

    assert run.start("-w", 1, "app.py").wait(25) == 0

    reported = [r["message"] for r in run.records() if r["logger"] != "logagg"]
    assert reported == [*(f"log {n}" for n in range(20)), "child"]
