"""A browser for the tests of the page."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import page_world
import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[tuple[Any, Any]]:
    """Debian's chromium, one for all tests of a process, and the event loop it needs.

    Between playwright's calls its loop counts as running: other tests of the process
    could run none of their own.
    """
    api = pytest.importorskip("playwright.sync_api")
    if not os.access(page_world.CHROMIUM, os.X_OK):
        pytest.skip(f"{page_world.CHROMIUM} is not there: apt-get install chromium")
    try:
        with api.sync_playwright() as started:
            loop = asyncio._get_running_loop()
            made = started.chromium.launch(
                executable_path=page_world.CHROMIUM, args=page_world.FLAGS
            )
            asyncio._set_running_loop(None)
            yield made, loop
            asyncio._set_running_loop(loop)
            made.close()
    finally:
        asyncio._set_running_loop(None)


@pytest.fixture
def browser(chromium: tuple[Any, Any]) -> Iterator[Any]:
    """Chromium, for one test."""
    made, loop = chromium
    asyncio._set_running_loop(loop)
    yield made
    asyncio._set_running_loop(None)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page; an error in it, or a breach of its policy, fails the test."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 800},
        permissions=["clipboard-read", "clipboard-write"],
        accept_downloads=True,
        timezone_id="UTC",
    )
    context.set_default_timeout(page_world.PATIENCE * 1000)
    errors: list[str] = []
    made = context.new_page()
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on(
        "console",
        lambda message: (
            errors.append(message.text)
            if message.type == "error"
            and "Failed to load resource" not in message.text
            and "ERR_" not in message.text
            and "EventSource's response" not in message.text
            else None
        ),
    )
    yield made
    context.close()
    assert errors == []
