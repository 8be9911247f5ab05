"""The machinery: workers and sinks over time, losses, bookkeeping, control."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from page_world import MAIN, wait_for, web

pytestmark = pytest.mark.slow  # a run, a server and a browser each

APP = """
import logging, os, sys, time
log = logging.getLogger("app")
while True:
    log.info("tick")
    if os.path.exists(sys.argv[1] + os.environ["LOGAGG_SLOT"]):
        os.unlink(sys.argv[1] + os.environ["LOGAGG_SLOT"])
        print("last words", flush=True)
        sys.exit("it broke")
    time.sleep(0.05)
"""


@pytest.fixture
def run(isolated: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of two workers that die when a file asks one to."""
    (tmp_path / "app.py").write_text(APP)
    command = [*MAIN, "run", "-w", "2", "--sink", "file:app.log", "app.py", "--", "die"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    support.wait_until(support.have(tmp_path / "app.log", 4))
    yield process
    if process.poll() is None:
        process.terminate()
    process.wait(90)


def test_workers_and_sinks_with_their_last_hour(
    page: Any, run: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """State, CPU, memory, restarts, rates, last death with its words; the equation."""
    with web(cwd=tmp_path) as server:
        page.goto(server.link)
        page.click("#tab-machinery")
        wait_for(page, "document.querySelectorAll('#worker-rows tr').length === 2")
        assert page.locator("#worker-rows th").all_text_contents() == ["w1", "w2"]
        wait_for(
            page,
            "[...document.querySelectorAll('#worker-rows canvas')].every((e) => Number(e.dataset.points) >= 2)",
        )
        for name in ("records/s", "CPU", "memory", "errors/min"):
            label = page.get_attribute(
                f"#worker-rows tr:first-child canvas[aria-label^='1 {name}']",
                "aria-label",
            )
            assert re.search(r"the last hour: now .+, at most ", label), label
        state = page.text_content("#worker-rows tr:first-child td")
        assert re.fullmatch(r"(ready|starting), pid \d+", state), state
        painted = page.evaluate("""() => {
            const c = document.querySelector('#worker-rows canvas');
            return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((n) => n > 0);
        }""")
        assert painted
        (tmp_path / "die2").touch()
        wait_for(page, "document.querySelector('#worker-rows tr:nth-child(2) details')")
        death = page.text_content("#worker-rows tr:nth-child(2) details")
        assert "it broke" in death or "last words" in death, death
        wait_for(
            page,
            "document.querySelector('#worker-rows tr:nth-child(2) td:nth-child(7)').textContent === '1'",
        )
        wait_for(page, "document.querySelectorAll('#sink-rows tr').length === 1")
        assert page.text_content("#sink-rows th").endswith("app.log")
        wait_for(page, "document.querySelector('#equations .holds')")
        text = page.text_content("#equations")
        numbers = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) [a-z]", text)]
        assert len(numbers) == 11
        assert sum(numbers[:3]) == sum(numbers[3:])
        assert numbers[0] > 10
        assert page.text_content("#ledger-total") == "No record is lost."
        assert page.is_hidden("#control")
        assert page.text_content("#service").startswith(
            "app.py -- die"
        ) or "app.py" in page.text_content("#service")


def test_control_restarts_scales_reloads_and_stops(
    page: Any, run: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Each after a confirmation, and not without it."""
    with web("--control", cwd=tmp_path) as server:
        page.goto(server.link)
        page.click("#tab-machinery")
        wait_for(page, "document.querySelectorAll('#worker-rows tr').length === 2")
        wait_for(page, "!document.querySelector('#stop').hidden")

        def pid(number: int) -> str:
            cell = page.text_content(f"#worker-rows tr:nth-child({number}) td")
            return str(cell.rpartition(" ")[2])

        first, second = pid(1), pid(2)
        page.click("#worker-rows tr:nth-child(1) >> text=restart")
        assert page.text_content("#confirm-words") == "Restart worker 1?"
        page.click("#confirm >> text=cancel")
        page.click("#worker-rows tr:nth-child(1) >> text=restart")
        page.click("#confirm-yes")
        wait_for(
            page,
            f"!document.querySelector('#worker-rows td').textContent.endsWith(' {first}')",
        )
        assert pid(2) == second
        page.fill("#scale", "3")
        page.click("#scale-form >> text=scale")
        page.click("#confirm-yes")
        wait_for(page, "document.querySelectorAll('#worker-rows tr').length === 3")
        page.click("#do-reload")
        page.click("#confirm-yes")
        wait_for(
            page,
            f"!document.querySelector('#worker-rows tr:nth-child(2) td').textContent.endsWith(' {second}')",
        )
        page.click("#stop")
        page.click("#confirm-yes")
        assert run.wait(90) == 0


@pytest.mark.parametrize("how", ["run", "serve"])
def test_run_and_serve_show_themselves(
    page: Any, isolated: Path, tmp_path: Path, how: str
) -> None:
    """`--web`: the page is a process of theirs, and ends with them."""
    (tmp_path / "app.py").write_text(APP)
    if how == "run":
        command = [
            "run",
            "-w",
            "1",
            "--sink",
            "file:app.log",
            "--web",
            "127.0.0.1:0",
            "app.py",
            "--",
            "die",
        ]
    else:
        command = ["serve", "--sink", "file:app.log", "--web", "127.0.0.1:0"]
    process = subprocess.Popen([*MAIN, *command], cwd=tmp_path, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        link = ""
        while "token=" not in link:
            link = process.stderr.readline().decode()
            assert link
        page.goto(re.search(r"http\S+", link)[0])  # type: ignore[index]
        if how == "run":
            wait_for(
                page,
                "[...document.querySelectorAll('#list .message')].some((e) => e.textContent === 'tick')",
            )
        else:
            wait_for(
                page, "document.querySelector('#state-words').textContent === 'live'"
            )
    finally:
        process.terminate()
        process.communicate(timeout=90)
    assert process.returncode in (0, -15)


def test_an_address_of_the_page_in_use_is_an_error_at_once(
    isolated: Path, tmp_path: Path
) -> None:
    """Before anything is started."""
    import socket

    (tmp_path / "app.py").write_text("raise SystemExit(3)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (["serve"], ["run", "app.py"]):
            done = subprocess.run(
                [*MAIN, command[0], "--web", f"127.0.0.1:{port}", *command[1:]],
                check=False, cwd=tmp_path, capture_output=True, text=True, timeout=90,
            )  # fmt: skip
            assert done.returncode == 2
            assert "in use" in done.stderr
            assert done.stderr.count("\n") == 1
    assert os.path.exists(sys.executable)
