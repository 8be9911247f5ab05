"""Every element of the live page, in a real browser, on real consumers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_world import Web, Worker, line, wait_for, web, worker

pytestmark = pytest.mark.slow  # a consumer, a server and a browser each

ROWS = "document.querySelectorAll('#list .row').length"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


@pytest.fixture
def app(isolated: Path, log: Path) -> Iterator[Worker]:
    """A worker with a consumer."""
    with worker(log) as made:
        made.log("hello")
        yield made


@pytest.fixture
def server(app: Worker, isolated: Path) -> Iterator[Web]:
    with web() as made:
        yield made


def messages(page: Any) -> list[str]:
    """The messages of the rows in the document."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#list .row .message')].map((e) => e.textContent)"
    )
    return found


def has(page: Any, message: str) -> None:
    """Wait for a row with that message."""
    wait_for(
        page,
        "[...document.querySelectorAll('#list .row .message')]"
        f".some((e) => e.textContent === {json.dumps(message)})",
        message,
    )


def text(page: Any, selector: str) -> str:
    """The text of an element."""
    return str(page.text_content(selector))


def shown(page: Any, words: str) -> None:
    """Wait for the line of active filters."""
    wait_for(
        page, f"document.querySelector('#shown').textContent === {json.dumps(words)}"
    )


def test_a_record_appears_with_its_columns(page: Any, server: Web, app: Worker) -> None:
    """Time, level, worker, logger, message, fields, what broke; in the right colours."""
    page.goto(server.link)
    app.log(
        "it failed",
        level="error",
        logger="app.db",
        extra={"path": "/pay"},
        fail="chain",
    )
    has(page, "it failed")
    row = page.locator(".row.error", has_text="it failed")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3}", str(row.locator(".time").text_content())
    )
    assert row.locator(".level").text_content() == "ERROR"
    assert row.locator(".worker").text_content() == f"w{app.process.pid}"
    assert row.locator(".logger").text_content() == "app.db"
    assert "path=/pay" in row.text_content()
    assert row.locator(".broke").text_content() == "RuntimeError: cannot parse"
    number = (app.process.pid - 1) % 8
    assert f"c{number}" in str(row.locator(".worker").get_attribute("class"))


def test_the_connection_is_shown_in_words(page: Any, server: Web, app: Worker) -> None:
    """Live; the run and its workers; how long ago the last record came; 0 losses."""
    page.goto(server.link)
    wait_for(page, "document.querySelector('#state-words').textContent === 'live'")
    assert page.get_attribute("#dot", "class") == "green"
    wait_for(
        page,
        "/^run [0-9a-f]+, workers 1\\/1 alive$/.test(document.querySelector('#run').textContent)",
    )
    wait_for(
        page,
        "/^last record \\d+ s ago$/.test(document.querySelector('#age').textContent)",
    )
    first = int(text(page, "#age").split()[2])
    wait_for(
        page,
        f"parseInt(document.querySelector('#age').textContent.slice(12)) > {first}",
    )
    assert text(page, "#loss") == "0 lost"
    server.process.terminate()
    wait_for(
        page,
        "/^reconnecting in \\d+ s$/.test(document.querySelector('#state-words').textContent)",
    )
    assert page.get_attribute("#dot", "class") == "amber"
    assert server.process.wait(90) == 0


def test_a_server_that_is_another_one_is_gone(page: Any, log: Path) -> None:
    """Its token is another: the page says so and tries no more."""
    log.write_bytes(line(1))
    with web(log) as server:
        page.goto(server.link)
        has(page, "record 1")
        address = server.address
    with web(log, "--listen", address):
        wait_for(page, "document.querySelector('#dot').className === 'red'")
        assert text(page, "#state-words").startswith("gone: ")
        assert messages(page) == ["record 1"]


def test_losses_are_counted_and_listed(page: Any, log: Path) -> None:
    """Each with its worker, number and words."""
    own = {"logger": "logagg", "of_worker": "3", "number": 37, "event": "dropped"}
    log.write_bytes(line(1) + line(2, "warning", "consumer", 2, **own) + line(3, seq=3))
    with web(log) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelector('#loss').textContent === '37 lost'")
        page.click("#loss")
        wait_for(page, "document.querySelectorAll('#ledger tr').length === 1")
        cells = page.locator("#ledger td").all_text_contents()
        assert cells[1:4] == ["dropped", "w3", "37"]
        assert text(page, "#ledger-total") == "37 records are lost."


def test_the_box_filters_as_one_types(page: Any, server: Web, app: Worker) -> None:
    """The grammar of tail; an error stands under the box; the address has the filter."""
    page.goto(server.link)
    app.log("one", extra={"status": 200})
    app.log("two", extra={"status": 500})
    app.log("a timeout", extra={"status": 504})
    has(page, "a timeout")
    page.fill("#box", "status>=500")
    shown(page, "2 of 4 shown, 2 hidden")
    assert messages(page) == ["two", "a timeout"]
    assert "q=status%3E%3D500" in page.url
    page.fill("#box", "status>=500 -timeout")
    shown(page, "1 of 4 shown, 3 hidden")
    page.fill("#box", "status==500")
    wait_for(
        page,
        "document.querySelector('#box-error').textContent.includes(\"did you mean 'status=500'\")",
    )
    assert page.get_attribute("#box", "aria-invalid") == "true"
    assert messages(page) == ["two"]  # the filter of before is still in force
    page.fill("#box", "-l warning")
    shown(page, "0 of 4 shown, 4 hidden")
    page.fill("#box", "time")
    shown(page, "1 of 4 shown, 3 hidden")
    page.check("#not")
    shown(page, "3 of 4 shown, 1 hidden")
    assert "a timeout" not in messages(page)
    page.reload()
    shown(page, "3 of 4 shown, 1 hidden")
    assert page.input_value("#box") == "time"
    app.log("after")
    has(page, "after")


def test_chips_count_what_they_would_show(
    page: Any, server: Web, app: Worker, log: Path
) -> None:
    """Of levels and workers, in any combination."""
    page.goto(server.link)
    with worker(log) as other:
        other.log("warned", level="warning", count=3)
        app.log("bad", level="error", count=2)
        shown(page, "6 of 6 shown")
        mine, its = f"w{app.process.pid}", f"w{other.process.pid}"

        def chips() -> dict[str, str]:
            found = page.locator(".chip").all_text_contents()
            return dict(each.rsplit(" ", 1) for each in found)

        assert chips() == {
            "error": "2",
            "warning": "3",
            "info": "1",
            mine: "3",
            its: "3",
        }
        page.click(f".chip >> text={mine}")
        shown(page, "3 of 6 shown, 3 hidden")
        assert chips() == {
            "error": "2",
            "warning": "0",
            "info": "1",
            mine: "3",
            its: "3",
        }
        page.click(".chip.error")
        shown(page, "2 of 6 shown, 4 hidden")
        assert chips() == {
            "error": "2",
            "warning": "0",
            "info": "1",
            mine: "2",
            its: "0",
        }
        page.click(".chip.info")
        shown(page, "3 of 6 shown, 3 hidden")
        assert messages(page) == ["hello", "bad", "bad"]
        assert page.get_attribute(".chip.info", "aria-pressed") == "true"


def test_active_filters_can_be_removed_and_switched(
    page: Any, server: Web, app: Worker
) -> None:
    """Each by itself, all at once; the place that is read stays."""
    page.goto(server.link)
    for number in range(30):
        app.log(f"bad {number}", level="error")
        app.log(f"fine {number}", count=20)
    has(page, "fine 29")
    assert page.is_hidden("#switch")
    page.click(".chip.error")
    page.fill("#box", "bad")
    wait_for(page, "document.querySelectorAll('.part').length === 2")
    shown(page, "30 of 631 shown, 601 hidden")
    page.keyboard.press("Escape")
    page.click(".row >> text='bad 7'")  # its detail: paused
    top = page.evaluate(
        "document.querySelector('#list .row.selected .line').textContent"
    )
    assert "bad 7" in top
    page.evaluate("document.querySelector('#list .row.selected').scrollIntoView()")
    page.click("#switch")
    wait_for(page, "document.querySelectorAll('#list .row').length > 100")
    wait_for(
        page,
        "document.querySelector('#list .row.selected .message')?.textContent === 'bad 7'",
    )
    box = page.locator("#list .row.selected").bounding_box()
    area = page.locator("#list").bounding_box()
    assert area["y"] <= box["y"] <= area["y"] + area["height"]
    assert text(page, "#switch") == "filters on"
    assert "off=1" in page.url
    page.click("#switch")
    shown(page, "30 of 631 shown, 601 hidden")
    page.click(".part button >> nth=0")
    wait_for(page, "document.querySelectorAll('.part').length === 1")
    assert page.input_value("#box") == ""
    page.click(".part button")
    shown(page, "631 of 631 shown")


def test_a_paused_reader_moves_by_no_pixel(page: Any, server: Web, app: Worker) -> None:
    """By scrolling, by selecting text, by Space; what came is counted, and follows."""
    page.goto(server.link)
    app.log("past", count=300)
    shown(page, "301 of 301 shown")
    page.mouse.move(600, 500)
    page.mouse.wheel(0, -700)
    wait_for(page, "!document.querySelector('#paused').hidden")
    page.wait_for_timeout(300)  # the browser's own scrolling comes to its end
    place = """() => {
        const list = document.querySelector('#list');
        const rows = [...list.querySelectorAll('.row')];
        return [list.scrollTop, rows.length, rows.map((r) => r.getBoundingClientRect().top)];
    }"""
    before = page.evaluate(place)
    for _ in range(5):
        app.log("new", count=200)
    wait_for(
        page,
        "document.querySelector('#paused').textContent === 'Paused – 1,000 new records ↓'",
    )
    assert page.evaluate(place) == before
    page.click("#paused")
    wait_for(page, "document.querySelector('#paused').hidden")
    assert set(messages(page)) == {"new"}
    assert page.evaluate(
        "(() => { const l = document.querySelector('#list');"
        " return l.scrollHeight - l.clientHeight - l.scrollTop < 2 })()"
    )
    page.keyboard.press("Space")
    wait_for(page, "document.querySelector('#paused').textContent === 'Paused'")
    page.keyboard.press("Space")
    wait_for(page, "document.querySelector('#paused').hidden")
    page.evaluate(
        "document.getSelection().selectAllChildren([...document.querySelectorAll('.message')].pop())"
    )
    wait_for(page, "!document.querySelector('#paused').hidden")
    app.log("last")
    wait_for(
        page,
        "document.querySelector('#paused').textContent === 'Paused – 1 new record ↓'",
    )
    assert page.evaluate("String(document.getSelection())") == "new"


def test_scrolling_to_the_end_follows_again(
    page: Any, server: Web, app: Worker
) -> None:
    """And scrolling up brings rows that were in the document no more."""
    page.goto(server.link)
    for part in range(5):
        app.log(f"part {part}", count=200)
    shown(page, "1,001 of 1,001 shown")
    wait_for(page, f"{ROWS} >= 100")
    page.keyboard.press("g")
    wait_for(
        page,
        f"document.querySelector('#list .message').textContent === 'hello' && {ROWS} <= 500",
    )
    page.keyboard.press("End")
    wait_for(page, "document.querySelector('#paused').hidden")
    page.mouse.move(600, 500)
    for _ in range(100):
        page.mouse.wheel(0, -3000)
        if (
            page.evaluate("document.querySelector('#list .message').textContent")
            == "hello"
        ):
            break
        page.wait_for_timeout(20)
    wait_for(page, "document.querySelector('#list .message').textContent === 'hello'")
    assert page.evaluate(ROWS) <= 500
    for _ in range(100):
        page.mouse.wheel(0, 5000)
        if page.is_hidden("#paused"):
            break
        page.wait_for_timeout(20)
    wait_for(page, "document.querySelector('#paused').hidden")
    app.log("newest")
    has(page, "newest")


def test_the_detail_of_a_record(page: Any, server: Web, app: Worker) -> None:
    """Its fields; only this, not this, copy; raw JSON; a second click closes it."""
    page.goto(server.link)
    app.log(
        "quoted",
        extra={"user": 'a "b" c', "big": 12345678901234567890, "deep": {"x": 1}},
    )
    app.log("other", extra={"user": "x"})
    has(page, "other")
    page.click(".row .line:has-text('quoted')")
    detail = page.locator(".detail")
    values = dict(
        zip(
            detail.locator("th").all_text_contents(),
            detail.locator("td.value").all_text_contents(),
            strict=True,
        )
    )
    assert values["user"] == 'a "b" c'
    assert values["big"] == "12345678901234567890"
    assert values["deep.x"] == "1"
    assert values["message"] == "quoted"
    raw = json.loads(
        str(detail.locator("details:has-text('raw JSON') pre").text_content())
    )
    assert raw["user"] == 'a "b" c'
    row = detail.locator("tr:has(th:text-is('user'))")
    row.locator("text=copy").click()
    wait_for(page, "document.querySelector('#announce').textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()") == 'a "b" c'
    row.locator("text=only this").click()
    shown(page, "1 of 3 shown, 2 hidden")
    assert page.input_value("#box") == 'user="a \\"b\\" c"'
    assert messages(page) == ["quoted"]
    page.fill("#box", "")
    shown(page, "3 of 3 shown")
    page.click(".row .line:has-text('quoted')")
    page.locator(".detail tr:has(th:text-is('user')) >> text=not this").click()
    shown(page, "2 of 3 shown, 1 hidden")
    page.click(".row .line:has-text('hello')")
    assert page.locator(".detail").count() == 1
    page.click(".row .line:has-text('hello')")
    assert page.locator(".detail").count() == 0


def test_a_traceback_is_readable(page: Any, server: Web, app: Worker) -> None:
    """Own frames, library frames folded, causes and groups as a tree."""
    page.goto(server.link)
    app.log("chained", level="error", fail="chain")
    app.log("grouped", level="error", fail="group")
    has(page, "grouped")
    page.click(".row .line:has-text('chained')")
    outer = page.locator(".traceback > .exception")
    assert outer.locator("> .error").text_content() == "RuntimeError: cannot parse"
    cause = outer.locator("> .exception")
    assert str(cause.locator("> .error").text_content()).startswith(
        "caused by json.decoder.JSONDecodeError: "
    )
    first = cause.locator("> details.library")
    assert first.locator("summary").text_content() == "3 library frames"
    assert first.get_attribute("open") is None
    assert not first.locator(".frame").first.is_visible()
    own = cause.locator("> .frame.own .place").all_text_contents()
    assert [re.sub(r".*/", "", each) for each in own] == [
        "app.worker.py:5",
        "app.worker.py:15",
    ]
    page.click(".detail >> text=close")
    page.click(".row .line:has-text('grouped')")
    members = page.locator(
        ".traceback > .exception > .exception > .error"
    ).all_text_contents()
    assert members == ["1 of 2 ValueError: one", "2 of 2 TypeError: two"]


def test_see_in_context(page: Any, server: Web, app: Worker) -> None:
    """The neighbours without the filter, the record marked; and back."""
    page.goto(server.link)
    for number in range(5):
        app.log(f"before {number}")
    app.log("bad", level="error")
    app.log("next")
    page.click(".chip.error")
    shown(page, "1 of 8 shown, 7 hidden")
    page.click(".row .line:has-text('bad')")
    page.click("text=see in context")
    wait_for(
        page, "document.querySelectorAll('#context-list .row:not(.rule)').length === 8"
    )
    assert page.locator("#context-list .row.hit .message").text_content() == "bad"
    assert page.locator("#context-list .row.selected .message").text_content() == "bad"
    app.log("later", level="error")
    page.click("#context-close")
    assert page.is_hidden("#context-list")
    wait_for(
        page,
        "document.querySelector('#paused').textContent === 'Paused – 1 new record ↓'",
    )


def test_a_link_opens_at_its_record(page: Any, server: Web, app: Worker) -> None:
    """Paused, with its detail; and states it when the record is not held any more."""
    page.goto(server.link)
    app.log("linked")
    app.log("after")
    has(page, "after")
    page.click(".row .line:has-text('linked')")
    page.click("text=copy link")
    wait_for(page, "document.querySelector('#announce').textContent === 'link copied'")
    link = page.evaluate("navigator.clipboard.readText()")
    assert "token" not in link
    page.goto("about:blank")
    page.goto(link)
    wait_for(page, "document.querySelector('#context-list .row.hit .detail')")
    assert page.locator("#context-list .row.hit .message").text_content() == "linked"
    assert page.is_visible("#paused") or page.is_visible("#context")
    page.goto("about:blank")
    page.goto(re.sub(r"#r=.*", "#r=2020-01-01T00%3A00%3A00.000000000Z%2C1%2C1", link))
    wait_for(
        page,
        "document.querySelector('#context-words').textContent.includes('not held any more')",
    )


def test_marks_clear_and_next_error(page: Any, server: Web, app: Worker) -> None:
    """A mark has the time; clear is of this view alone; errors one after the other."""
    page.goto(server.link)
    app.log("first bad", level="error")
    app.log("fine", count=600)
    app.log("second bad", level="critical")
    app.log("fine", count=5)
    shown(page, "608 of 608 shown")
    page.keyboard.press("e")
    wait_for(
        page,
        "document.querySelector('.row.selected .message')?.textContent === 'first bad'",
    )
    page.keyboard.press("e")
    wait_for(
        page,
        "document.querySelector('.row.selected .message')?.textContent === 'second bad'",
    )
    page.keyboard.press("e")
    wait_for(
        page,
        "document.querySelector('.row.selected .message')?.textContent === 'first bad'",
    )
    page.click("#next-error")
    wait_for(
        page,
        "document.querySelector('.row.selected .message')?.textContent === 'second bad'",
    )
    wait_for(page, "document.querySelector('#gutter').dataset.errors === '2'")
    page.click("#clear")
    assert page.evaluate(ROWS) == 0
    page.click("#mark")
    assert re.fullmatch(r"mark \d\d:\d\d:\d\d\.\d{3}", text(page, ".row.mark"))
    app.log("from now on")
    has(page, "from now on")
    assert messages(page) == ["from now on"]
    page.keyboard.press("e")
    wait_for(
        page,
        "document.querySelector('#announce').textContent.startsWith('no error among')",
    )


def test_the_histogram(page: Any, server: Web, app: Worker) -> None:
    """Bars by level; red ones carry a number; a click goes there, a drag is a range."""
    page.goto(server.link)
    app.log("fine", count=50)
    app.log("bad", level="error", count=3)
    shown(page, "54 of 54 shown")
    wait_for(
        page,
        "[...document.querySelectorAll('#strip i')].reduce((n, e) => n + Number(e.dataset.count), 0) === 54",
    )
    wait_for(
        page,
        "[...document.querySelectorAll('#strip i[data-bad]')].reduce((n, e) => n + Number(e.dataset.bad), 0) === 3",
    )
    bar = page.locator("#strip i[data-bad]").first
    assert "linear-gradient" in bar.evaluate("(e) => e.style.backgroundImage")
    assert "54 records" in str(page.get_attribute("#strip", "aria-label"))
    box = page.locator("#strip").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.8, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, y, steps=5)
    assert page.locator("#strip i.marked").count() > 10
    page.mouse.up()
    wait_for(page, "document.querySelector('#past-words').textContent === '54 records'")
    assert re.fullmatch(r"2\d{3}-.*Z", page.input_value("#since"))
    assert "since=" in page.url
    page.click("#live")
    wait_for(page, "document.querySelector('#state-words').textContent === 'live'")
    page.focus("#strip")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    wait_for(
        page, "document.querySelector('#past-words').textContent.endsWith(' records')"
    )


def test_copy_and_download(page: Any, server: Web, app: Worker) -> None:
    """What is filtered, whole records, as JSON lines or text."""
    page.goto(server.link)
    app.log("kept", extra={"path": "/pay"}, level="error", fail="chain")
    app.log("left out")
    has(page, "left out")
    page.fill("#box", "path?")
    shown(page, "1 of 3 shown, 2 hidden")
    page.click("#copy-json")
    wait_for(
        page, "document.querySelector('#announce').textContent === '1 records copied'"
    )
    (copied,) = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert json.loads(copied)["message"] == "kept"
    page.click("#copy-text")
    wait_for(
        page, "navigator.clipboard.readText().then((t) => t.includes('Traceback'))"
    )
    for form, mark in (
        ("json", '"message":"kept"'),
        ("text", "RuntimeError: cannot parse"),
    ):
        with page.expect_download() as found:
            page.click(f"#download-{form}")
        data = Path(found.value.path()).read_text()
        assert mark in data
        assert "left out" not in data
        assert (
            found.value.suggested_filename
            == f"logagg.{'txt' if form == 'text' else 'jsonl'}"
        )


def test_settings_stay_in_the_browser(page: Any, server: Web, app: Worker) -> None:
    """Wrap, compact, time, theme; events of the service are a filter one can see."""
    page.goto(server.link)
    has(page, "hello")
    page.click("#settings-open")
    page.check("#set-wrap")
    page.check("#set-compact")
    page.select_option("#set-time", "utc")
    page.select_option("#set-theme", "dark")
    page.uncheck("#set-events")
    page.keyboard.press("Escape")
    wait_for(page, "document.querySelector('#list .time')?.textContent?.endsWith('Z')")
    assert page.input_value("#box") == "-logger=logagg"
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == "rgb(13, 17, 23)"
    )
    page.reload()
    wait_for(page, "document.querySelector('#list .time')?.textContent?.endsWith('Z')")
    assert page.evaluate("[...document.body.classList]") == ["wrap", "compact"]
    page.click("#settings-open")
    page.check("#set-events")
    page.keyboard.press("Escape")
    shown(page, "1 of 1 shown")


def test_silence_days_and_late_records(page: Any, log: Path) -> None:
    """Rules between records; `~` in front of one that came late."""
    log.write_bytes(
        line(0, seq=1)
        + line(364, seq=2)
        + line(200, seq=3, late=True)
        + line(60_000, seq=4)
    )
    with web(log) as server:
        page.goto(server.link)
        has(page, "record 4")
        rules = page.locator(".between").all_text_contents()
        assert rules[0] == "10:06:04, 6m 4s of silence"
        assert rules[1] == "2026-11-26"
        assert rules[2].endswith("of silence")
        late = page.locator(".row:has-text('record 3') .late")
        assert late.text_content() == "~"
        assert page.locator(".row:has-text('record 2') .late").text_content() == ""


def test_an_empty_page_shows_what_to_do(page: Any, isolated: Path) -> None:
    """Without a consumer how to start one; with a filter how to remove it."""
    with web() as server:
        page.goto(server.link)
        wait_for(
            page, "document.querySelector('#empty').textContent.includes('logagg run')"
        )
        assert text(page, "#state-words") == "no logagg is running here; waiting"
        assert page.get_attribute("#dot", "class") == "amber"
        assert text(page, "#run") == "no run"


def test_filters_that_hide_all_can_be_removed(
    page: Any, server: Web, app: Worker
) -> None:
    """From the empty list."""
    page.goto(server.page(q="nothing-like-this"))
    wait_for(
        page,
        "document.querySelector('#empty').textContent.includes('No record matches')",
    )
    page.click("#empty button")
    has(page, "hello")
    assert page.input_value("#box") == ""


def test_an_older_page_is_noticed(page: Any, server: Web, app: Worker) -> None:
    """A page whose files are not those of the server offers to load again."""
    page.route("**/?*", lambda route: route.fallback())

    def older(route: Any) -> None:
        answer = route.fetch()
        body = re.sub(r'(data-version=")[^"]*', r"\g<1>0.0.1 old", answer.text())
        route.fulfill(response=answer, body=body)

    page.goto(server.link)
    has(page, "hello")
    assert page.is_hidden("#stale")
    page.route(re.compile(rf"{server.address}/$"), older)
    page.reload()
    wait_for(page, "!document.querySelector('#stale').hidden")
