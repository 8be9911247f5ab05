"""Makes the pictures of the manual from real output: `python tests/docs/pictures.py`.

    python tests/docs/pictures.py [FOLDER]      by default logagg/docs/img

Programs run in a pseudo-terminal of a fixed width; their bytes become SVG by rich. The
drawing of the architecture is made here as well, so that all pictures look alike.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

FOLDER = Path(__file__).parent.parent.parent / "logagg" / "docs" / "img"
COLUMNS = 108
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace"

THEME = TerminalTheme(
    (24, 26, 31),
    (205, 210, 220),
    [
        (72, 78, 90), (224, 108, 117), (152, 195, 121), (229, 192, 123),
        (97, 175, 239), (198, 120, 221), (86, 182, 194), (205, 210, 220),
    ],
    [
        (120, 128, 144), (255, 130, 138), (170, 220, 140), (245, 210, 140),
        (130, 195, 250), (215, 150, 240), (120, 205, 215), (240, 244, 250),
    ],
)  # fmt: skip

FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>
.{unique_id}-matrix {{ font-family: FONT; font-size: {char_height}px;
 line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})"
 clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
""".replace("FONT", FONT)

SHOP = """\
import logging, os, time

slot = int(os.environ["LOGAGG_SLOT"])
log = logging.getLogger("shop")


def step(name, *more):
    while not os.path.exists(name):
        time.sleep(0.01)
    time.sleep(slot / 20)


log.info("open for orders")
step("go")
log.info("order placed", extra={"order": 40 + slot, "total": 9.5 * slot})
time.sleep(0.3)
if slot == 1:
    log.warning("payment is slow", extra={"order": 41, "ms": 1840})
if slot == 2:
    print("a plain print is a record, too")
if slot == 3:
    try:
        {}["stock"]
    except KeyError:
        log.exception("order failed", extra={"order": 43})
time.sleep(0.4)
log.info("order shipped", extra={"order": 40 + slot})
while not os.path.exists("end"):
    if os.path.exists("busy"):
        log.info("stock checked", extra={"order": 40 + slot, "left": 12})
    time.sleep(0.002 * slot)
"""

RUN = ["run", "-w", "3", "--sink", "stdout:", "--sink", "file:shop.log", "shop.py"]
TAIL = ["tail", "-l", "warning", "--tb", "short"]


class Screen:
    """A program in a pseudo-terminal, and what it has written there."""

    def __init__(
        self, command: list[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        size = {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
        self._end, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "logagg", *command],
            cwd=folder,
            env={**os.environ, **env, **size},
            preexec_fn=lambda: os.login_tty(inner),  # noqa: PLW1509 - has one thread
            pass_fds=[inner],
        )
        os.close(inner)
        self.data = b""

    def read(self, until: str = "", number: int = 1, timeout: float = 60.0) -> None:
        """Collect output until a text has come so often, or the program has ended."""
        deadline = time.monotonic() + timeout
        while not until or self.data.count(until.encode()) < number:
            assert time.monotonic() < deadline, self.data
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.data += os.read(self._end, 65536)
                except OSError:  # the last program at this terminal has ended
                    break
        if not until:
            self.process.wait()

    def text(self) -> Text:
        """What was written, colors kept, every other control sequence left out."""
        shown = self.data.decode("utf-8", "replace").replace("\r", "")
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b[=>78]", "", shown)
        return Text.from_ansi(shown.strip("\n"))


def svg(parts: list[tuple[str, Text]]) -> str:
    """Prompts and what they gave, one below the other."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", highlight=False,
    )  # fmt: skip
    for number, (command, output) in enumerate(parts):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "bright_black"), (command, "bold")))
        for line in output.split("\n"):
            line.truncate(COLUMNS, overflow="ellipsis")
            console.print(line, no_wrap=True, crop=True)
    made = console.export_svg(title="", theme=THEME, code_format=FRAME, unique_id="l")
    # The text elements' clips are not needed: no line is longer than the terminal.
    made = re.sub(r' clip-path="url\(#l-line-\d+\)"', "", made)
    made = re.sub(
        r'<clipPath id="l-line-\d+">.*?</clipPath>\s*', "", made, flags=re.DOTALL
    )
    made = re.sub(r"<text [^>]*>[^<]*</text>", _trimmed, made)
    return re.sub(r"\n\s*\n+", "\n", made)


def _trimmed(found: re.Match[str]) -> str:
    """A text element without the spaces at its ends, which some programs drop."""
    element = found[0]
    text = element[element.index(">") + 1 : element.rindex("<")]
    core = re.sub(r"^(&#160;)+|(&#160;)+$", "", text.strip("\n"))
    place = re.search(r'x="([\d.]+)" y="[\d.]+" textLength="([\d.]+)"', element)
    if not core or place is None:
        return ""
    before = len(re.match(r"(&#160;)*", text)[0]) // 6  # type: ignore[index]
    width = float(place[2]) / len(unescape(text.strip("\n")))
    element = element.replace(
        f'x="{place[1]}"', f'x="{float(place[1]) + before * width:g}"'
    )
    length = f'textLength="{len(unescape(core)) * width:g}"'
    return element.replace(f'textLength="{place[2]}"', length).replace(text, core)


def run_and_tail(folder: Path, env: Mapping[str, str]) -> str:
    """`logagg run` and, at the same time, `logagg tail` with a filter."""
    run = Screen(RUN, folder, env)
    run.read("open for orders", 3)
    tail = Screen(TAIL, folder, env)
    tail.read("following")
    (folder / "go").touch()
    run.read("order shipped", 3)
    tail.read("stock", 2)
    tail.process.terminate()
    tail.read()
    (folder / "end").touch()
    run.read()
    return svg(
        [
            (shlex.join(["logagg", *RUN]), run.text()),
            (shlex.join(["logagg", *TAIL]) + "          # beside it", tail.text()),
        ]
    )


def top(folder: Path, env: Mapping[str, str]) -> str:
    """`logagg top` and `logagg status` of a run at work."""
    sinks = ["--sink", "stdout:?level=warning", "--sink", "file:shop.log"]
    run = Screen(["run", "-w", "3", *sinks, "shop.py"], folder, env)
    (folder / "go").touch()
    (folder / "busy").touch()
    run.read("KeyError")
    time.sleep(2)
    shown = []
    for command in (["top", "--once"], ["status"]):
        screen = Screen(command, folder, env)
        screen.read()
        shown.append((shlex.join(["logagg", *command]), screen.text()))
    (folder / "end").touch()
    run.read()
    return svg(shown)


# ---- the architecture -----------------------------------------------------------------

STYLE = """\
<style>
text{font-family:system-ui,Segoe UI,Helvetica,Arial,sans-serif;fill:#1f2630}
.t{font-size:16px;font-weight:600}.n{font-size:13px}.l{font-size:12px;fill:#57606a}
rect{rx:8;stroke-width:1.5}.grey{fill:#eef0f3;stroke:#8c959f}
.blue{fill:#dfeefe;stroke:#4c8fd8}.green{fill:#dcf5e3;stroke:#3f9a5a}
.sink{fill:#fdf0d8;stroke:#cf9a35}
polyline{fill:none;stroke-width:2}.data{stroke:#3f6fb0}
.back{stroke:#8c959f;stroke-dasharray:5 4}.start{stroke:#8c959f}
</style>
<defs>
<marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
 orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="#57606a"/></marker>
</defs>"""

BOXES = [
    # x, y, width, height, class, title, lines
    (20, 20, 200, 56, "grey", "supervisor", ["logagg run (optional)"]),
    (20, 120, 200, 56, "blue", "worker 1", ["your code + Handler"]),
    (20, 192, 200, 56, "blue", "worker 2", ["your code + Handler"]),
    (20, 264, 200, 56, "blue", "worker N", ["your code + Handler"]),
    (380, 120, 190, 200, "green", "consumer",
     ["one process:", "reads all pipes,", "orders by time,", "fans out,", "acknowledges"]),
    (700, 20, 200, 56, "sink", "file", ["rotated, compressed"]),
    (700, 92, 200, 56, "sink", "stdout", ["console, JSON, text"]),
    (700, 164, 200, 56, "sink", "network", ["HTTP, OTLP, Loki, …"]),
    (700, 264, 200, 56, "grey", "viewers", ["tail, stats, top"]),
]  # fmt: skip
ARROWS = [
    # points, class, label, label x, label y
    ("220,148 380,180", "data", "", 0, 0),
    ("220,220 380,220", "data", "pipes: records", 238, 212),
    ("220,292 380,260", "data", "", 0, 0),
    ("380,305 220,305", "back", "socket: acks, control", 228, 324),
    ("220,48 475,48 475,120", "start", "starts, restarts", 290, 40),
    ("120,76 120,120", "start", "starts", 130, 103),
    ("570,160 640,160 640,48 700,48", "data", "", 0, 0),
    ("570,190 660,190 660,120 700,120", "data", "", 0, 0),
    ("570,215 680,215 680,192 700,192", "data", "one queue per sink", 578, 244),
    ("570,292 700,292", "data", "", 0, 0),
]


def architecture() -> str:
    """The roles, and what flows between them."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 345" role="img">',
        STYLE,
        '<rect width="920" height="345" fill="#ffffff"/>',
    ]
    for points, kind, label, x, y in ARROWS:
        parts.append(
            f'<polyline class="{kind}" points="{points}" marker-end="url(#a)"/>'
        )
        if label:
            parts.append(f'<text class="l" x="{x}" y="{y}">{escape(label)}</text>')
    for x, y, width, height, kind, title, lines in BOXES:
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>'
        )
        parts.append(
            f'<text class="t" x="{x + 14}" y="{y + 24}">{escape(title)}</text>'
        )
        for number, line in enumerate(lines):
            parts.append(
                f'<text class="n" x="{x + 14}" y="{y + 44 + 20 * number}">'
                f"{escape(line)}</text>"
            )
    return "\n".join([*parts, "</svg>", ""])


def make(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("run-tail", run_and_tail), ("top", top)):
        with tempfile.TemporaryDirectory(prefix="lg", dir="/tmp") as place:
            work = Path(place)
            for each in ("r", "s"):
                (work / each).mkdir(mode=0o700)
            env = {"XDG_RUNTIME_DIR": f"{work}/r", "XDG_STATE_HOME": f"{work}/s"}
            (work / "shop.py").write_text(SHOP)
            made = picture(work, env).replace(place, "/srv/shop")
            (folder / f"{name}.svg").write_text(made)
    (folder / "architecture.svg").write_text(architecture())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
