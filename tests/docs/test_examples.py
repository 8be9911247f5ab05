"""Every example of README and of the manual runs as it is printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import (
    FOLDER,
    LANGUAGES,
    README,
    ROOT,
    RUNS,
    Block,
    blocks,
    pages,
    table_rows,
)

from logagg import sinks
from logagg.filters import matcher

PAGES = pages()


def program(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-W", "error", "-c", block.text]
    if block.language == "toml":
        return [sys.executable, "-m", "logagg", "check", "--config", "logagg.toml"]
    return ["bash", "-eu", "-o", "pipefail", "-c", block.text]


def run(block: Block, folder: Path) -> None:
    """Run one block; fail with its page, line and output."""
    target = block.options.get("file") or (
        "logagg.toml" if block.language == "toml" else None
    )
    if target:
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if block.language == "python":
            compile(block.text, block.name, "exec")
        if block.language != "toml":
            return
    if block.language == "json":
        try:
            json.loads(block.text)
        except ValueError:
            for line in block.text.splitlines():
                json.loads(line)
        return
    result = subprocess.run(
        program(block),
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = int(block.options.get("status", "0"))
    assert result.returncode == expected, (
        f"{block.name}: exit status {result.returncode}, expected {expected}\n"
        f"{block.text}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """All blocks of a page, in order, in a folder that holds nothing but the samples."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    for block in blocks(page):
        tested = block.language in RUNS or "file" in block.options
        if tested and block.fragment is None:
            run(block, tmp_path)


@pytest.mark.slow
def test_the_setup_command_ends_in_a_run_of_the_sample(tmp_path: Path) -> None:
    """README's one line sets up and runs the main job: its last command runs here."""
    setup = next(each for each in blocks(README) if "python3 -m venv" in each.text)
    assert setup.text.startswith("python3 -m venv .venv && ")
    command = setup.text[setup.text.index("logagg run") :]
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    run(Block("README.md", setup.line, "sh", {}, command), tmp_path)
    assert (tmp_path / "hello.log").stat().st_size > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language_and_a_reason_not_to_run(page: Path) -> None:
    """A block that is not tested is marked as a fragment and gives a reason."""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.name}: {block.language!r}"
        known = {"file", "status", "fragment"}
        assert set(block.options) <= known, f"{block.name}: {block.options}"
        if block.language not in (*RUNS, "text") and "file" not in block.options:
            assert block.fragment is not None, f"{block.name}: mark it as a fragment"
        if block.fragment is not None:
            assert len(block.fragment) > 8, f"{block.name}: the reason is missing"


def test_every_page_begins_with_its_title_one_sentence_and_an_example() -> None:
    """The first line is a title, the next paragraph one sentence, then comes a block."""
    for page in sorted(FOLDER.glob("*.md")):
        lines = page.read_text("utf-8").split("\n")
        assert re.fullmatch(r"# \S.*", lines[0]), page.name
        assert lines[1] == "", page.name
        sentence = "\n".join(lines[2:]).split("\n\n")[0]
        assert sentence.endswith((".", ":")), f"{page.name}: {sentence!r}"
        assert 20 < len(sentence) < 250, f"{page.name}: {sentence!r}"
        assert blocks(page), page.name
        assert blocks(page)[0].line < 24, f"{page.name}: the first example comes late"


def test_every_sink_url_of_the_docs_can_be_built() -> None:
    """URLs with options, wherever they stand, name existing sinks and options."""
    pattern = re.compile(
        r"(?<![\w./])(?:file|stdout|stderr|(?:otlp|loki|elasticsearch|opensearch|splunk)"
        r"\+https?|https?):[^\s`'\"|)…]*\?[^\s`'\"|)…]+"
    )
    number = 0
    for page in PAGES:
        for url in pattern.findall(page.read_text("utf-8")):
            if "github.com" in url or "TARGET" in url:
                continue
            sinks.build(url)
            number += 1
    assert number > 20


def test_every_term_of_the_filter_page_compiles() -> None:
    """The first column of the table of terms is in the grammar."""
    rows = table_rows((FOLDER / "filters.md").read_text("utf-8"), "Term")
    assert len(rows) >= 8
    for row in rows:
        for term in re.findall(r"`([^`]+)`", row[0]):
            matcher.compile([term])


def test_every_link_of_the_docs_leads_somewhere() -> None:
    """Relative links name files that exist, and headings that exist in them."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if re.match(r"https?://", target):
                continue
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(
                    r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE
                )
                anchors = {
                    re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-")
                    for each in headings
                }
                assert anchor in anchors, f"{page.name}: {target}"


def test_every_page_is_reachable_from_readme() -> None:
    """README links every page of the manual."""
    text = README.read_text("utf-8")
    for page in FOLDER.glob("*.md"):
        assert f"logagg/docs/{page.name}" in text, page.name
    assert len(text.splitlines()) <= 200


def test_pictures_are_small_and_used() -> None:
    """Every picture stands on a page, and has fewer than 60 kB."""
    text = "".join(page.read_text("utf-8") for page in PAGES)
    found = list((FOLDER / "img").glob("*.svg"))
    assert len(found) >= 3
    for picture in found:
        assert picture.stat().st_size < 60_000, picture.name
        assert f"img/{picture.name}" in text, picture.name


@pytest.mark.slow
def test_the_pictures_are_made_from_real_output(tmp_path: Path) -> None:
    """The script runs, and its pictures hold what the programs have logged."""
    subprocess.run(
        [sys.executable, str(Path(__file__).parent / "pictures.py"), str(tmp_path)],
        check=True,
        timeout=250,
    )
    for picture in (FOLDER / "img").glob("*.svg"):
        made = (tmp_path / picture.name).read_text()
        assert len(made) < 60_000
        words = {"run-tail.svg": "KeyError", "top.svg": "file:shop.log"}
        assert words.get(picture.name, "consumer") in made
