"""Everybody can use the page: by keyboard alone, with help for the eyes, on a phone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from page_world import MAIN, Web, line, wait_for, web

pytestmark = pytest.mark.slow  # a server and a browser each

STACK = (
    'Traceback (most recent call last):\n  File "/app/x.py", line 1, in f\n    g()\n'
    '  File "/usr/lib/python3.11/json/decoder.py", line 2, in g\nValueError: bad'
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    found = [line(n, "info", str(n % 3 + 1), n) for n in range(1, 60)]
    error = {"type": "ValueError", "message": "bad", "stack": STACK}
    found += [
        line(60, "error", "1", 60, exception=error),
        line(61, "warning", "2", 61),
        line(62, "critical", "3", 62),
        line(63, "debug", "1", 63),
        line(
            64,
            "warning",
            "consumer",
            64,
            logger="logagg",
            event="dropped",
            number=2,
            of_worker="1",
        ),
        line(700, "info", "2", 700, late=True),
    ]
    path.write_bytes(b"".join(found))
    return path


@pytest.fixture
def server(log: Path) -> Iterator[Web]:
    with web(log) as made:
        yield made


def faults(page: Any) -> list[Any]:
    """The serious and critical faults that axe finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # By the debugger's connection: a script element would break the page's policy.
    page.evaluate(_axe_source(axe))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        (each["id"], [node["html"][:150] for node in each["nodes"]][:3])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def _axe_source(package: Any) -> str:
    (path,) = Path(package.__file__).parent.rglob("axe.min.js")
    return path.read_text()


def test_axe_finds_a_fault_that_is_there(page: Any, server: Web) -> None:
    """The check itself works in this page."""
    page.goto(server.link)
    wait_for(page, "document.querySelectorAll('#list .row').length > 50")
    page.evaluate("document.querySelector('#box').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#box').placeholder = ''")
    assert "label" in [name for name, _ in faults(page)]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(
    page: Any, server: Web, theme: str, width: int
) -> None:
    """In the log with a detail, filters and an error; in the dialogs; in the past."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=theme)
    page.goto(server.link)
    wait_for(page, "document.querySelectorAll('#list .row').length > 50")
    assert faults(page) == []
    page.keyboard.press("e")
    page.keyboard.press("Enter")
    wait_for(page, "document.querySelector('.detail')")
    page.fill("#box", "level==x")
    wait_for(page, "document.querySelector('#box-error').textContent")
    assert faults(page) == []
    page.fill("#box", "record")
    wait_for(page, "document.querySelectorAll('.part').length === 1")
    for button in ("#help-open", "#settings-open"):
        page.click(button)
        assert faults(page) == []
        page.keyboard.press("Escape")
    page.click("#tab-machinery")
    assert faults(page) == []
    page.click("#tab-log")
    page.fill("#since", "2026-11-25")
    wait_for(
        page, "document.querySelector('#past-words').textContent.endsWith(' records')"
    )
    assert faults(page) == []


def test_axe_finds_no_serious_fault_in_the_machinery(
    page: Any, isolated: Path, tmp_path: Path
) -> None:
    """With workers, sinks and controls."""
    (tmp_path / "app.py").write_text(
        "import logging, time\nwhile True:\n    logging.info('x'); time.sleep(0.1)\n"
    )
    command = [*MAIN, "run", "-w", "2", "--sink", "file:app.log", "app.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        support.wait_until(support.have(tmp_path / "app.log", 4))
        with web("--control", cwd=tmp_path) as server:
            page.goto(server.link)
            page.click("#tab-machinery")
            wait_for(page, "document.querySelectorAll('#worker-rows tr').length === 2")
            wait_for(page, "!document.querySelector('#control').hidden")
            assert faults(page) == []
            page.click("#do-reload")
            assert faults(page) == []
            page.click("#confirm >> text=cancel")
    finally:
        process.terminate()
        process.wait(90)


def test_the_keyboard_alone_suffices(page: Any, server: Web) -> None:
    """Filter, move, open, filter by a field, context, chips, tabs, dialogs; no mouse."""
    page.goto(server.link)
    wait_for(page, "document.querySelectorAll('#list .row').length > 50")
    keys = page.keyboard

    def focus() -> str:
        return str(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className"
                " || document.activeElement.textContent"
            )
        )

    keys.press("/")
    assert focus() == "box"
    keys.type("record")
    wait_for(page, "document.querySelectorAll('.part').length === 1")
    keys.press("Escape")
    assert focus() != "box"
    assert page.input_value("#box") == "record"
    keys.press("e")
    wait_for(page, "document.activeElement.matches('.row.error')")
    keys.press("k")
    wait_for(page, "document.activeElement.matches('.row.info')")
    keys.press("ArrowDown")
    wait_for(page, "document.activeElement.matches('.row.error')")
    keys.press("Enter")
    wait_for(page, "document.querySelector('.row.error .detail')")
    keys.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "see in context"
    keys.press("Enter")
    wait_for(page, "!document.querySelector('#context-list').hidden")
    wait_for(page, "document.activeElement.matches('#context-list .row.hit')")
    keys.press("j")
    wait_for(page, "document.activeElement.matches('#context-list .row.warning')")
    keys.press("Escape")
    wait_for(page, "document.querySelector('#context-list').hidden")
    for _ in range(60):  # from anywhere the next stops lead to a chip
        if "chip" in focus():
            break
        keys.press("Tab")
    name = page.evaluate("document.activeElement.dataset.name")
    keys.press("Enter")
    pressed = f"document.activeElement.dataset.name === {json.dumps(name)} && document.activeElement.ariaPressed"
    wait_for(page, f"{pressed} === 'true'")
    keys.press("Space")
    wait_for(page, f"{pressed} === 'false'")
    keys.press("t")
    assert focus() == "tab-machinery"
    assert page.is_visible("#machinery")
    keys.press("ArrowLeft")
    assert focus() == "tab-log"
    keys.press("?")
    assert page.evaluate("document.querySelector('#help').open")
    keys.press("Escape")
    assert not page.evaluate("document.querySelector('#help').open")
    for _ in range(40):
        if focus() == "settings-open":
            break
        keys.press("Tab")
    keys.press("Enter")
    assert page.evaluate("document.querySelector('#settings').open")


def test_a_phone_shows_all_of_it(page: Any, server: Web) -> None:
    """Nothing is wider than the screen but the rows, which have a scroll of their own."""
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(server.link)
    wait_for(page, "document.querySelectorAll('#list .row').length > 50")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in ("#box", "#strip", "#list", "#levels", "#loss", "#tab-machinery"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 391, selector
    assert page.locator("header").bounding_box()["height"] < 130
    assert page.locator("#list").bounding_box()["height"] > 250


def test_new_rows_are_not_animated_where_that_is_not_wanted(
    page: Any, log: Path
) -> None:
    """They are tinted for a second otherwise."""
    with web(log) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length > 50")
        for reduced, names in (("no-preference", {"fresh"}), ("reduce", {"none"})):
            page.emulate_media(reduced_motion=reduced)
            with log.open("ab") as file:
                file.write(line(800, seq=800))
            row = "[...document.querySelectorAll('#list .row.new')].pop()"
            wait_for(page, row)
            assert page.evaluate(f"getComputedStyle({row}).animationName") in names
            page.evaluate(
                "document.querySelectorAll('.new').forEach((e) => e.classList.remove('new'))"
            )
