"""The page under load: bounded, responsive, honest about what it skipped."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from page_world import PATIENCE, line, wait_for, web

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("PAGE_RATE_SECONDS", "8"))

# Writes records to a file at a rate: "rate seconds path". A process of its own, so that
# the test's own work does not delay it.
WRITER = """
import sys, time
rate, seconds, path = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
lines = eval(sys.argv[4])
with open(path, "ab", buffering=0) as file:
    begun, sent = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        due = int(passed * rate) - sent
        if due > 0:
            now = time.time()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)).encode()
            text = b"".join(lines % (stamp, sent + n, b"error" if (sent + n) % 50 == 0 else b"info", sent + n) for n in range(due))
            file.write(text)
            sent += due
        time.sleep(0.02)
print(sent)
"""
TEMPLATE = (
    b'{"timestamp":"%b.%09dZ","level":"%b","worker":"1","seq":%d,"logger":"app","message":'
    b'"a request","pid":1,"process":"MainProcess","thread":"MainThread","path":"/pay","ms":12}\n'
)

WATCH = """() => {
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const each of list.getEntries()) window.longest = Math.max(window.longest, each.duration);
    }).observe({entryTypes: ['longtask']});
    window.most = 0;
    new MutationObserver(() => {
        window.most = Math.max(window.most, document.querySelectorAll('#list .row').length);
    }).observe(document.querySelector('#list'), {childList: true});
}"""


def write(rate: int, path: Path, seconds: float = SECONDS) -> subprocess.Popen[str]:
    """Start to write."""
    command = [
        sys.executable,
        "-c",
        WRITER,
        str(rate),
        str(seconds),
        str(path),
        repr(TEMPLATE),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def total(page: Any) -> int:
    """The number of all records, from the line of active filters."""
    return int(page.text_content("#shown").split()[2].replace(",", ""))


def heap(page: Any) -> int:
    """Bytes that live in the page, after a collection."""
    page.evaluate("window.gc && (gc(), gc())")
    return int(page.evaluate("performance.memory.usedJSHeapSize"))


def _load_a_hole(page: Any) -> None:
    """Scroll to a hole and load it: no number is then missing around it."""
    page.mouse.move(600, 500)
    for _ in range(100):
        page.mouse.wheel(0, -2000)
        page.wait_for_timeout(30)
        if page.locator("#list .row.skip").count():
            break
    hole = page.locator("#list .row.skip >> nth=-1")
    words = str(hole.text_content())
    assert words.startswith("skipped ")
    assert words.endswith(" records – load")
    first, last = hole.evaluate("(row) => [row.entry.from, row.entry.to]")
    assert last - first + 1 == int(words.split()[1].replace(",", ""))
    hole.locator("button").click()
    numbers = (
        "[...document.querySelectorAll('#list .row')].map((row) => row.entry.n || 0)"
    )
    wait_for(page, f"{numbers}.some((n) => n >= {first} && n <= {last})")
    found = page.evaluate(numbers)
    steps = {b - a for a, b in itertools.pairwise(found) if a and b}
    assert steps == {1}


@pytest.mark.parametrize("rate", [5_000, 50_000])
def test_a_page_stays_responsive(page: Any, tmp_path: Path, rate: int) -> None:
    """At most 500 rows, a flat heap, no record unaccounted for."""
    path = tmp_path / "app.log"
    path.write_bytes(b"")
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelector('#state-words').textContent === 'live'")
        page.evaluate(WATCH)
        with write(rate, path) as writer:
            wait_for(page, "document.querySelectorAll('#list .row').length >= 100")
            deadline = time.monotonic() + PATIENCE
            while total(page) < rate * SECONDS / 2:
                assert time.monotonic() < deadline
                page.wait_for_timeout(100)
            longest = page.evaluate(
                "window.longest"
            )  # the collection is a long task too
            middle = heap(page)
            sent = int(writer.communicate(timeout=PATIENCE * 2)[0])
        wait_for(
            page,
            f"document.querySelector('#shown').textContent.startsWith('{sent:,} of')",
        )
        assert page.evaluate("window.most") <= 500
        assert heap(page) < middle + 12_000_000
        if rate == 50_000:
            _load_a_hole(page)
        print(f"{rate}/s: longest task {longest:.0f} ms")


def test_a_paused_reader_does_not_move_at_any_rate(page: Any, tmp_path: Path) -> None:
    """By 0 px, with a filter too."""
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(line(n, seq=n) for n in range(500)))
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length >= 100")
        page.mouse.move(600, 500)
        page.mouse.wheel(0, -3000)
        wait_for(page, "!document.querySelector('#paused').hidden")
        page.wait_for_timeout(300)
        place = """() => [document.querySelector('#list').scrollTop,
            ...[...document.querySelectorAll('#list .row')].map((e) => e.getBoundingClientRect().top)]"""
        before = page.evaluate(place)
        with write(20_000, path, 3) as writer:
            sent = int(writer.communicate(timeout=PATIENCE)[0])
        wait_for(
            page,
            f"document.querySelector('#shown').textContent.includes(' of {sent + 500:,} shown')",
        )
        assert page.evaluate(place) == before


def test_the_first_paint_and_the_first_hits_come_soon(
    page: Any, tmp_path: Path
) -> None:
    """The figures are printed; a busy machine decides them."""
    path = tmp_path / "app.log"
    block = b"".join(
        line(n / 10, "error" if n == 5 else "info", seq=n) for n in range(5_000)
    )
    with path.open("wb") as file:
        for _ in range(100):
            file.write(block)
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length > 100")
        paint = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        page.evaluate("""() => {
            window.hits = 0;
            const begun = performance.now();
            const source = new EventSource('/past?q=level%3Derror');
            source.addEventListener('batch', (event) => {
                if (!window.hits && event.data.includes('\\n')) window.hits = performance.now() - begun;
            });
            source.addEventListener('end', () => { window.ended = performance.now() - begun; source.close(); });
        }""")
        wait_for(page, "window.ended > 0")
        hits, ended = page.evaluate("[window.hits, window.ended]")
        assert 0 < hits < ended
        print(json.dumps({"first paint": paint, "first hits": hits, "all": ended}))
