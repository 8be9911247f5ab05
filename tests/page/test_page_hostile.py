"""What others log is text, whatever it is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_world import line, wait_for, web

pytestmark = pytest.mark.slow  # a server and a browser each

HTML = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


def test_html_is_shown_as_text(page: Any, tmp_path: Path) -> None:
    """In every part of a record, in the row and in its detail, in chips and filters."""
    path = tmp_path / "app.log"
    stack = f'Traceback (most recent call last):\n  File "{HTML.replace(chr(34), "")}", line 1, in {HTML}\n    {HTML}\nValueError: {HTML}'
    path.write_bytes(
        line(
            1, "error", "w<b>", 1, message=HTML, logger=HTML, **{HTML: HTML},
            exception={"type": HTML, "message": HTML, "stack": stack, "notes": [HTML]},
        )
        + line(2, "<i>odd</i>", "1", 2)
        + line(3, "warning", "consumer", 3, logger="logagg", event="dropped", number=1, of_worker=HTML, message=HTML)
    )  # fmt: skip
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length === 3")
        page.click(".row.error .line")
        page.locator(".row.error details").evaluate_all(
            "(all) => all.forEach((e) => { e.open = true; })"
        )
        assert HTML in page.text_content("#list .row.error .message")
        assert HTML in page.text_content(".traceback")
        page.fill("#box", HTML)
        page.click("#loss")
        wait_for(page, "document.querySelectorAll('#ledger tr').length === 1")
        page.click("#run")
        assert (
            page.evaluate(
                "document.querySelectorAll('main img, main script, main b b, main i > i').length"
            )
            == 0
        )
        assert page.evaluate("window.broken") is None


def test_the_policy_stops_what_is_put_in_anyway(browser: Any, tmp_path: Path) -> None:
    """No text becomes markup or code in this document, even by a fault of its own."""
    path = tmp_path / "app.log"
    path.write_bytes(line(1))
    with web(path) as server, browser.new_page() as page:
        page.goto(server.link)
        for script in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.write('x')",
        ):
            found = page.evaluate(
                f"(() => {{ try {{ {script}; return 'done'; }} catch (e) {{ return e.name; }} }})()"
            )
            assert found == "TypeError", script
        page.evaluate(
            "(() => { const s = document.createElement('img'); s.src = 'http://127.0.0.1:9/x.png';"
            " s.onerror = () => { window.refused = true; }; document.body.append(s); })()"
        )
        wait_for(page, "window.refused === true")


def test_escapes_and_bidi_are_visible(page: Any, tmp_path: Path) -> None:
    """Nothing reorders or hides the text beside it."""
    path = tmp_path / "app.log"
    message = "a\x1b[31mred\u202eevil\u0000\u2066x\rback\nnext\u009bend\ufeff"
    path.write_bytes(line(1, message=message, note="\u202egnp.exe"))
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length === 1")
        shown = page.text_content("#list .message")
        assert (
            shown
            == "a\\x1b[31mred\\u202eevil\\x00\\u2066x\\rback\\nnext\\x9bend\\ufeff"
        )
        assert "\\u202egnp.exe" in page.text_content("#list .line")
        page.click("#list .line")
        inside = page.text_content(".detail")
        assert not set(inside) & set("\x1b\u202e\u2066\r\x00\ufeff")


def test_lines_that_are_no_records_hurt_nothing(page: Any, tmp_path: Path) -> None:
    """Broken JSON with the shape of a line, half a surrogate, bytes that are no text."""
    path = tmp_path / "app.log"
    good = line(9, seq=9)
    path.write_bytes(
        line(1)[:-20] + b"\n"
        + line(2).replace(b"record 1", b"half \\ud800 one")
        + line(3).replace(b"record 1", b"bytes \xff\xfe here")
        + line(4).replace(b"record 1", b"carriage \r return")
        + b'["not", "an object"]\n' + b"\x00\x01\x02\n" + good
    )  # fmt: skip
    with web(path) as server:
        page.goto(server.link)
        wait_for(
            page,
            "[...document.querySelectorAll('#list .message')].pop()?.textContent === 'record 9'",
        )
        rows = page.locator("#list .row").count()
        assert rows == 7


def test_a_line_of_10_mb_is_cut_and_can_be_had_whole(page: Any, tmp_path: Path) -> None:
    """The page gets a few kilobytes of it."""
    path = tmp_path / "app.log"
    big = "x" * 10_000_000
    wide = {f"key{n}": "v" * 50 for n in range(10_000)}
    deep: Any = "end"
    for _ in range(200):
        deep = {"in": deep}
    path.write_bytes(
        line(1, message=big)
        + line(2, seq=2, **wide)
        + line(3, seq=3, deep=deep, pad="y" * 40_000)
    )
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length === 3")
        assert "(10,000,000 characters)" in page.text_content("#list .message")
        page.click("#list .row:nth-child(1) .line")
        assert "long: 9.5 MiB" in page.text_content(".detail")
        with page.expect_download() as found:
            page.click(".detail a[download]")
        assert json.loads(Path(found.value.path()).read_text())["message"] == big
        size = page.evaluate(
            "performance.getEntriesByType('resource').reduce((n, e) => n + e.transferSize, 0)"
        )
        assert size < 1_000_000
        page.click("#list .row:nth-child(2) .line")
        assert page.locator(".detail >> nth=1").locator("tr").count() < 300
