"""The past in the page: files, rotated and compressed, a range of time, as it is found."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import support
from page_world import MAIN, PATIENCE, Events, line, wait_for, web, worker

pytestmark = pytest.mark.slow  # a server and a browser each


def rotated(path: Path) -> None:
    """Three files: 600 records, one a second, every hundredth an error."""
    found = [
        line(n, "error" if n % 100 == 0 else "info", str(n % 2 + 1), n, even=n % 2 == 0)
        for n in range(1, 601)
    ]
    path.with_name("app.log.2.gz").write_bytes(gzip.compress(b"".join(found[:200])))
    path.with_name("app.log.1").write_bytes(b"".join(found[200:400]))
    path.write_bytes(b"".join(found[400:]))


def rows(page: Any) -> list[str]:
    """The messages of the rows."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#list .row .message')].map((e) => e.textContent)"
    )
    return found


def test_a_range_over_rotated_and_compressed_files(page: Any, tmp_path: Path) -> None:
    """With no consumer: its records, their number, the way back to live."""
    path = tmp_path / "app.log"
    rotated(path)
    with web(path) as server:
        page.goto(server.page(since="2026-11-25T10:03:10", until="2026-11-25T10:03:29"))
        wait_for(
            page, "document.querySelector('#past-words').textContent === '20 records'"
        )
        assert rows(page) == [f"record {n}" for n in range(190, 210)]
        assert page.text_content("#state-words") == "the past"
        assert page.is_hidden("#cancel")
        page.fill("#until", "")
        page.fill("#box", "level=error")
        wait_for(
            page, "document.querySelector('#past-words').textContent === '5 records'"
        )
        assert rows(page) == [f"record {n}" for n in range(200, 700, 100)]
        page.click(".row .line:has-text('record 200')")
        page.click("text=see in context")
        wait_for(page, "document.querySelector('#context-list .row.hit')")
        near = page.locator("#context-list .row .message").all_text_contents()
        assert near == [f"record {n}" for n in range(140, 261)]
        page.click("#context-close")
        page.click("#live")
        wait_for(page, "document.querySelector('#state-words').textContent === 'live'")
        assert page.input_value("#box") == "level=error"
        wait_for(page, "document.querySelectorAll('#list .row').length === 6")


def test_a_file_that_grows_and_rotates_is_followed(page: Any, tmp_path: Path) -> None:
    """Every record once, in order."""
    path = tmp_path / "app.log"
    path.write_bytes(line(0, seq=0))
    with web(path) as server:
        page.goto(server.link)
        for part in range(10):
            with path.open("ab") as file:
                file.writelines(
                    line(n, seq=n) for n in range(part * 20 + 1, part * 20 + 21)
                )
            path.rename(path.with_name("app.log.1"))
            path.write_bytes(b"")
            wait_for(
                page,
                "[...document.querySelectorAll('#list .message')].pop()?.textContent"
                f" === 'record {part * 20 + 20}'",
            )
        assert rows(page) == [f"record {n}" for n in range(201)]


def test_foreign_lines_are_shown_as_tail_shows_them(page: Any, tmp_path: Path) -> None:
    """JSON of other programs, logfmt, plain text."""
    path = tmp_path / "other.log"
    path.write_text(
        '{"ts":"2026-11-25T10:00:00Z","msg":"of zap","lvl":"warn","user":7}\n'
        'time=2026-11-25T10:00:01Z level=error msg="of slog" code=3\n'
        "just text\n"
    )
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length === 3")
        assert rows(page) == ["of zap", "of slog", "just text"]
        assert page.locator("#list .level").all_text_contents() == [
            "WARN",
            "ERROR",
            "INFO",
        ]
        page.fill("#box", "user=7")
        wait_for(
            page,
            "document.querySelector('#shown').textContent === '1 of 3 shown, 2 hidden'",
        )


def test_results_come_with_progress_and_can_be_cancelled(
    page: Any, tmp_path: Path
) -> None:
    """The first ones before the end; the process of the search ends with it."""
    path = tmp_path / "app.log"
    block = b"".join(
        line(n, "error" if n == 0 else "info", seq=n) for n in range(2_000)
    )
    with path.open("wb") as file:
        for _ in range(400):
            file.write(block)  # 130 MB
    with web(path) as server:
        page.goto(server.link)
        wait_for(page, "document.querySelectorAll('#list .row').length > 0")
        searches = "past_search"
        page.evaluate("""() => {
            window.seen = [];
            new MutationObserver(() => {
                const rows = document.querySelectorAll('#list .row').length;
                window.seen.push([rows, document.querySelector('#past-words').textContent]);
            }).observe(document.querySelector('#past-words'), {childList: true, subtree: true});
        }""")
        page.fill("#box", "level=error message~'record [0-9]'")
        page.fill("#since", "2026-11-25")
        wait_for(
            page, "document.querySelector('#past-words').textContent === '400 records'"
        )
        seen = page.evaluate("window.seen")
        assert any(count and words.startswith("searching") for count, words in seen), (
            seen
        )
        steps = {words for _, words in seen if words.endswith("%")}
        assert len(steps) > 2, seen
        page.fill("#box", "message~'(a|b)*c$'")
        wait_for(
            page,
            "document.querySelector('#past-words').textContent.startsWith('searching')",
        )
        page.click("#cancel")
        wait_for(
            page,
            "document.querySelector('#past-words').textContent.startsWith('cancelled')",
        )
        support.wait_until(
            lambda: sum(searches in each for each in _children(server.process.pid)) == 1
        )


def _children(pid: int) -> list[str]:
    """The command lines of a process's children."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                found.append(Path(f"/proc/{child}/cmdline").read_bytes().decode())
            except OSError:
                continue
    return found


def test_more_than_a_page_holds_comes_in_parts(page: Any, tmp_path: Path) -> None:
    """5,000 at a time, with the number of all."""
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(line(n / 10, seq=n) for n in range(12_000)))
    with web(path) as server:
        page.goto(server.page(since="2026-11-25"))
        words = "document.querySelector('#past-words').textContent"
        wait_for(page, f"{words} === '1 to 5,000 of 12,000 records'")
        assert rows(page)[0] == "record 0"
        assert page.evaluate("document.querySelectorAll('#list .row').length") <= 500
        page.click("#more")
        wait_for(page, f"{words} === '5,001 to 10,000 of 12,000 records'")
        assert rows(page)[0] == "record 5000"
        page.click("#more")
        wait_for(page, f"{words} === '10,001 to 12,000 of 12,000 records'")
        assert page.is_hidden("#more")
        page.keyboard.press("End")
        wait_for(
            page,
            "[...document.querySelectorAll('#list .message')].pop().textContent === 'record 11999'",
        )


def test_the_past_of_a_consumer_without_a_file(
    page: Any, isolated: Path, tmp_path: Path
) -> None:
    """Is what the server holds, and the page states it."""
    socket = tmp_path / "s.sock"
    command = [
        *MAIN,
        "serve",
        "--socket",
        str(socket),
        "--sink",
        "stderr:?level=critical",
    ]
    consumer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        support.wait_until(socket.exists)
        env = {"LOGAGG_SOCKET": str(socket)}
        with (
            web("--socket", socket) as server,
            worker(tmp_path / "x", env=env, named=False) as app,
        ):
            app.log("held")
            page.goto(server.link)
            wait_for(page, "document.querySelectorAll('#list .message').length === 1")
            page.fill("#since", "1h")
            words = "1 records in the server's memory; the consumer writes no file"
            wait_for(
                page,
                f"document.querySelector('#past-words').textContent === {json.dumps(words)}",
            )
            assert rows(page) == ["held"]
    finally:
        consumer.terminate()
        consumer.wait(90)


@pytest.mark.leaves_files
def test_a_consumer_that_restarts_loses_and_repeats_nothing(
    page: Any, tmp_path: Path, isolated: Path
) -> None:
    """Nor does a page while its server is stopped for a while."""
    path = tmp_path / "app.log"
    with worker(path) as app, web() as server:
        page.goto(server.link)
        app.log("a", count=50)
        wait_for(page, "document.querySelectorAll('#list .message').length === 50")
        old = support.consumer()
        os.kill(old, 9)
        app.log("b", count=50)
        wait_for(page, "document.querySelectorAll('#list .message').length >= 100")
        assert "reconnected to new run" in page.text_content("#list")
        with support.stopped(server.process.pid):
            app.log("c", count=50)
        wait_for(page, "document.querySelectorAll('#list .message').length >= 150")
        app.log("end")
        wait_for(
            page,
            "[...document.querySelectorAll('#list .message')].pop()?.textContent === 'end'",
        )
        found = [each for each in rows(page) if each in "abc"]
        assert found == ["a"] * 50 + ["b"] * 50 + ["c"] * 50
        numbers = page.locator("#list .row .field").all_text_contents()
        assert [n for n in numbers if n.startswith("n=")][:150] == [
            f"n={n}" for n in range(50)
        ] * 3


def test_events_go_on_after_the_last_one_that_was_seen(tmp_path: Path) -> None:
    """With `Last-Event-ID`, as a browser sends it: no record twice or missing."""
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(line(n, seq=n) for n in range(1, 31)))
    with web(path) as server:
        first = Events(server, "/events")
        seen = first.until(lambda found: len(found) == 30)
        first.close()
        with path.open("ab") as file:
            file.writelines(line(n, seq=n) for n in range(31, 61))
        second = Events(server, "/events", first.last)
        seen += second.until(lambda found: len(found) == 30)
        second.close()
        assert [json.loads(each)["seq"] for each in seen] == list(range(1, 61))
        other = Events(server, "/events", "someone-else:12")
        assert len(other.until(lambda found: len(found) >= 60)) == 60
        other.close()


def test_a_slow_page_loses_for_itself_alone(tmp_path: Path) -> None:
    """It is given the number of what it has missed, and can load that; another gets all."""
    path = tmp_path / "app.log"
    path.write_bytes(line(0, seq=0))
    with web(path) as server:
        slow, quick = Events(server, "/events"), Events(server, "/events")
        slow.until(len)
        quick.until(len)
        for part in range(40):  # more than fits into the connection
            with path.open("ab") as file:
                numbers = range(part * 500 + 1, part * 500 + 501)
                file.writelines(line(n / 1000, seq=n, pad="x" * 800) for n in numbers)
            last = part * 500 + 500
            quick.until(
                lambda found, last=last: any(f'"seq":{last},' in e for e in found[-1:])
            )
        deadline = time.monotonic() + PATIENCE
        count = skipped = 1
        holes = []
        while count + skipped - 1 < 20_001 and time.monotonic() < deadline:
            name, data = slow.next()
            if name == "batch":
                head = json.loads(data[0])
                count += len(data) - 1
                if head["skipped"]:
                    skipped += head["skipped"]["count"]
                    holes.append(head["skipped"])
        assert count + skipped - 1 == 20_001
        assert holes
        hole = holes[0]
        answer = server.ask(f"/records?from={hole['from']}&to={hole['to'] + 1}")[2]
        head, *lines = answer.split(b"\n")
        assert lines
        assert int(lines[-1].partition(b" ")[0]) == hole["to"]
        slow.close()
        quick.close()


def test_a_download_of_the_past_is_whole(page: Any, tmp_path: Path) -> None:
    """All that matches in all files."""
    path = tmp_path / "app.log"
    rotated(path)
    with web(path) as server:
        body = server.ask("/download?past=1&q=even%3Dtrue")[2]
        found = [json.loads(each)["seq"] for each in body.splitlines()]
        assert found == list(range(2, 601, 2))
        text = server.ask("/download?past=1&form=text&levels=error")[2].decode()
        assert [each.split()[-2] for each in text.splitlines()] == [
            str(n) for n in range(100, 700, 100)
        ]
