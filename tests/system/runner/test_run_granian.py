"""granian binds and accepts in Rust: it works, and what it cannot do is said in a line."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

pytest.importorskip("granian")
pytestmark = pytest.mark.slow  # many real processes, some seconds each

OWN = """
    import sys
    from granian import Granian
    from granian.constants import Interfaces
    if __name__ == "__main__":
        Granian("web:app", port=int(sys.argv[1]), interface=Interfaces.ASGI).serve()
"""


@pytest.fixture
def web(run: Any, tools: Any) -> Any:
    """A run whose directory has the app."""
    run.write("web.py", tools.ASGI)
    run.write("own.py", OWN)
    run.env["PYTHONPATH"] = str(run.directory)
    return run


def _said(web: Any) -> list[str]:
    return web.messages(level="warning", logger="logagg")


def _serves_and_stops(web: Any, tools: Any, port: int) -> None:
    """Both workers are ready and answer, and all ends well."""
    web.until_ready(2)
    seen: set[str] = set()

    def both() -> bool:
        seen.add(tools.get(port).split()[0])
        return seen == {"1", "2"}

    tools.until(both)
    assert web.stop() == -signal.SIGTERM
    assert web.records(event="stop_timeout") == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("words", [["granian"], ["-m", "granian"], ["--", "granian"]])
@pytest.mark.parametrize("policy", ["kernel", "rr", "reuseport", "no bind"])
def test_granian_shares_a_port(
    web: Any, tools: Any, words: list[str], policy: str
) -> None:
    """Whatever the policy, both copies are ready and serve; another policy is announced."""
    port = tools.free_port()
    asked = [] if policy == "no bind" else ["--bind", f"127.0.0.1:{port}"]
    asked += ["--policy", policy] if policy in ("rr", "reuseport") else []
    app = ["--interface", "asgi", "web:app", "--port", port]
    web.start("-w", 2, "--ready-timeout", 15, *asked, *words, *app)

    _serves_and_stops(web, tools, port)

    announced = [text for text in _said(web) if "granian binds its port" in text]
    if policy in ("kernel", "rr"):
        assert announced == [
            f"granian binds its port itself: policy reuseport instead of {policy}"
        ]
    else:
        assert announced == []


def test_an_unknown_server_that_binds_itself_is_seen(web: Any, tools: Any) -> None:
    """rr, with granian inside of a script: one line says that nothing is handed off."""
    port = tools.free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--policy", "rr"]
    web.start("-w", 2, "--ready-timeout", 15, *bind, "own.py", port)

    _serves_and_stops(web, tools, port)

    (line,) = [text for text in _said(web) if "cannot be handed off" in text]
    assert f"listens on 127.0.0.1:{port} by itself" in line
    assert "reuseport, not rr" in line


def test_an_address_that_is_taken_by_the_run_itself_is_explained(
    web: Any, tools: Any
) -> None:
    """kernel, with granian inside of a script: it cannot start, and is told what would."""
    port = tools.free_port()
    web.start("-w", 1, "--bind", f"127.0.0.1:{port}", "own.py", port)

    assert web.wait(50) == 10

    (reason,) = web.messages(event="cannot_start")
    assert "Address already in use" in reason
    assert "needs --policy reuseport" in reason
    assert len(reason.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--sticky", "ip"], "--sticky needs a server that accepts in Python"),
        (["--max-connections", "5"], "granian accepts connections itself"),
        (["--bind", "unix:s"], "granian binds unix:"),
    ],
)
def test_what_granian_cannot_have_is_refused(
    web: Any, options: list[str], part: str
) -> None:
    """One line, status 2."""
    done = web.command("run", *options, "granian", "web:app")

    assert done.returncode == 2
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1
