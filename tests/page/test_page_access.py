"""Who may use the page: token, Host, Origin, headers, what it listens to."""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import page_world
import pytest
import support
from page_world import MAIN, Events, Web, line, web

pytestmark = pytest.mark.slow  # each starts a server


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(line(n, seq=n) for n in range(1, 21)))
    return path


@pytest.fixture
def server(log: Path) -> Iterator[Web]:
    with web(log) as made:
        yield made


PATHS = ("/", "/assets/page.js", "/session", "/events", "/records", "/machinery",
         "/past", "/download", "/around?n=1", "/record?n=1", "/check?q=a")  # fmt: skip


def test_nothing_is_served_without_the_token(server: Web) -> None:
    """Every path, and every wrong token."""
    for path in PATHS:
        assert server.ask(path, known=False)[0] == 401, path
        cookie = {"Cookie": f"logagg-{server.port}={server.token}x"}
        assert server.ask(path, headers=cookie)[0] == 401, path
    assert server.ask("/?token=wrong", known=False)[0] == 401
    assert server.ask(f"/records?token={server.token}", known=False)[0] == 401


def test_the_link_gives_a_cookie_and_leaves_the_address(server: Web) -> None:
    """HttpOnly, SameSite; what else stands in the link stays."""
    path = f"/?token={server.token}&q=level%3Derror"
    status, headers, _ = server.ask(path, known=False)
    assert status == 303
    assert headers["location"] == "/?q=level%3Derror"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert server.ask("/")[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "10.0.0.1:{port}",
     "", "[", "127.0.0.1:{port}.evil.example", "localhost.evil.example:{port}"],
)  # fmt: skip
def test_a_wrong_host_is_refused(server: Web, host: str) -> None:
    """A name that is resolved to this address is not one of its own."""
    sent = {"Host": host.format(port=server.port)}
    for path in ("/", "/events", f"/?token={server.token}"):
        assert server.ask(path, headers=sent)[0] in (400, 403), path


def test_the_names_of_loopback_are_its_hosts(server: Web) -> None:
    """And no other."""
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert server.ask("/", headers={"Host": f"{host}:{server.port}"})[0] == 200, (
            host
        )


def test_a_request_of_another_site_is_refused(server: Web) -> None:
    """By its Origin, or by what the browser states of its cause."""
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("/records", headers={"Origin": own})[0] == 200
    for origin in ("http://evil.example", "null", f"http://localhost:{server.port}",
                   f"http://127.0.0.1:{server.port + 1}"):  # fmt: skip
        assert server.ask("/records", headers={"Origin": origin})[0] == 403, origin
    for site in ("cross-site", "same-site"):
        assert server.ask("/events", headers={"Sec-Fetch-Site": site})[0] == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert server.ask("/", headers={**link, "Sec-Fetch-Dest": "document"})[0] == 200
    assert server.ask("/", headers={**link, "Sec-Fetch-Dest": "iframe"})[0] == 403


def test_every_answer_has_the_policy_and_no_cors(server: Web) -> None:
    """Refusals, errors and streams too."""
    for path in (*PATHS, "/nothing", "/check?q=level%3D%3Dx"):
        if path == "/events":
            continue
        for known in (True, False):
            _, headers, _ = server.ask(path, known=known)
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy
            assert "require-trusted-types-for 'script'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert not [name for name in headers if name.startswith("access-control")]


def test_the_page_loads_nothing_from_elsewhere_and_is_small(server: Web) -> None:
    """It works offline; its files have no other address, and 80 KB in all."""
    folder = Path(page_world.__file__).parents[1] / "logagg/view/page/assets"
    total = 0
    for path in folder.iterdir():
        text = path.read_text()
        total += len(text.encode())
        assert "//cdn" not in text
        assert [w for w in text.split('"') if w.startswith(("http:", "https:"))] in (
            [], ["http://www.w3.org/2000/svg"],
        ), path  # fmt: skip
        assert "innerHTML" not in text
        assert "<script>" not in text
    assert total <= 80 * 1024
    body = server.ask("/")[2].decode()
    assert " on" not in "".join(part.partition(">")[0] for part in body.split("<")[1:])


def test_it_listens_to_this_host_alone(server: Web) -> None:
    """Unless it is asked to listen elsewhere."""
    with open("/proc/net/tcp") as table:
        rows = [row.split()[1] for row in table if row.split()[3] == "0A"]
    found = [row for row in rows if row.endswith(f":{server.port:04X}")]
    assert found == [f"0100007F:{server.port:04X}"]


def test_strangers_connections_keep_nobody_out(server: Web) -> None:
    """Idle ones take no page's stream away, no descriptors, and no line of stderr."""
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    stream = Events(server, "/events")
    strangers = [
        socket.create_connection(("127.0.0.1", server.port), page_world.PATIENCE)
        for _ in range(100)
    ]
    assert strangers[0].recv(1) == b""
    assert server.ask("/")[0] == 200
    for _ in range(6):  # the first four may have come before
        stream.next()
    stream.close()
    for each in strangers:
        each.close()


def test_elsewhere_the_token_is_asked_for_too(log: Path) -> None:
    """Its addresses are hosts by number; names only those that are given."""
    with web(log, "--listen", "0.0.0.0:0", "--host", "logs.example") as server:
        port = server.port
        assert server.ask("/", known=False)[0] == 401
        for host, status in (
            (f"10.1.2.3:{port}", 200), (f"127.0.0.1:{port}", 200),
            ("logs.example", 200), (f"logs.example:{port}", 200),
            (f"evil.example:{port}", 403),
        ):  # fmt: skip
            assert server.ask("/", headers={"Host": host})[0] == status, host


def test_a_unix_socket_is_private_and_goes_away(log: Path, tmp_path: Path) -> None:
    """Mode 0600; a proxy's header that is named stands for the token."""
    path = tmp_path / "web.sock"
    with web(log, "--listen", f"unix:{path}", "--proxy-header", "X-User") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for headers, status in (
            ("", 401), ("X-User: \r\n", 401), ("X-User: me\r\n", 200),
            (f"Cookie: logagg-page={server.token}\r\n", 200),
        ):  # fmt: skip
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(page_world.PATIENCE)
                peer.connect(str(path))
                request = f"GET / HTTP/1.1\r\nHost: logs.example\r\n{headers}\r\n"
                peer.sendall(request.encode())
                assert f" {status} " in peer.recv(200).decode().splitlines()[0], headers
    assert not path.exists()


def test_a_proxys_header_is_taken_from_the_proxy_alone(log: Path) -> None:
    """Over TCP its address must be named."""
    options = ("--proxy-header", "X-User", "--proxy")
    with web(log, *options, "127.0.0.1") as server:
        assert server.ask("/", known=False, headers={"X-User": "me"})[0] == 200
        assert server.ask("/", known=False, headers={"X-Other": "me"})[0] == 401
    with web(log, *options, "192.0.2.7") as server:
        assert server.ask("/", known=False, headers={"X-User": "me"})[0] == 401


def test_tls(log: Path, tmp_path: Path) -> None:
    """With the files that are given; the cookie is then for TLS alone."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    with web(log, "--tls-cert", cert, "--tls-key", key) as server:
        assert server.link.startswith("https://")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        request = f"GET /?token={server.token} HTTP/1.1\r\nHost: {server.address}"
        with (
            socket.create_connection(("127.0.0.1", server.port), 30) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as peer,
        ):
            peer.sendall(f"{request}\r\n\r\n".encode())
            answer = peer.recv(4000).decode()
        assert " 303 " in answer
        assert "Secure" in answer


def test_a_token_of_a_file(log: Path, tmp_path: Path) -> None:
    """It stays the same over restarts; a short one is refused."""
    token = tmp_path / "token"
    for text in ("a-token-of-twenty-characters", "as+of/base64==&#?%41"):
        token.write_text(f"{text}\n")
        with web(log, "--token-file", token) as server:
            assert unquote(server.token) == text
            assert server.ask(f"/?token={server.token}", known=False)[0] == 303


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nothing.log"], "nothing.log: there is no such file"),
        (["--listen", "127.0.0.1:x"], "expected :PORT, HOST:PORT or unix:PATH"),
        (["--listen", "unix:/nowhere/web.sock"], "No such file or directory"),
        (["--tls-cert", "cert.pem"], "belong together"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "tls_cert"),
        (["--proxy-header", "X-User"], "--proxy IP"),
        (["--proxy-header", "X User", "--proxy", "::1"], "the name of a header"),
        (["--proxy", "host.example"], "an IP address"),
        (["--token-file", "short"], "16 ASCII characters at least"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], words: str, tmp_path: Path
) -> None:
    """With exit status 2, and nothing is served."""
    (tmp_path / "short").write_text("abc")
    done = subprocess.run(
        [*MAIN, "web", *options],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_in_use_is_an_error_at_once(server: Web, log: Path) -> None:
    """Of the second server."""
    command = [*MAIN, "web", str(log), "--listen", server.address]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 2
    assert "in use" in done.stderr


def test_opening_shows_no_token_on_a_command_line(log: Path, tmp_path: Path) -> None:
    """The browser gets a private file that leads to the link."""
    seen = tmp_path / "seen"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\necho "$1" > {seen}.new; mv {seen}.new {seen}\n')
    opener.chmod(0o755)
    os.environ["BROWSER"] = str(opener)
    try:
        with web(log, "--open") as server:
            support.wait_until(seen.exists)
            shown = seen.read_text().strip()
            assert server.token not in shown
            path = Path(shown.removeprefix("file://"))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert server.link in path.read_text()
    finally:
        del os.environ["BROWSER"]
    assert not path.exists()


def test_it_only_reads_unless_control_is_given(server: Web) -> None:
    """No action, with whatever token."""
    session = server.json("/session")
    assert session["control"] == ""
    own = f"http://{server.address}"
    for headers in ({}, {"X-Logagg-Control": "x", "Origin": own}):
        status, *_ = server.ask(
            "/control",
            "POST",
            headers=headers,
            body=b'{"action":"stop","confirmed":true}',
        )
        assert status == 403


def test_control_wants_token_origin_and_confirmation(log: Path) -> None:
    """Each of them."""
    with web(log, "--control") as server:
        token = server.json("/session")["control"]
        own = f"http://{server.address}"
        good = {"X-Logagg-Control": token, "Origin": own}
        stop: dict[str, Any] = {"action": "stop", "confirmed": True}

        def ask(headers: dict[str, str], body: Any, *, known: bool = True) -> int:
            data = json.dumps(body).encode()
            return server.ask(
                "/control", "POST", known=known, headers=headers, body=data
            )[0]

        assert ask(good, stop) == 400  # it was let through: there is no run to stop
        assert ask(good, stop, known=False) == 401
        assert ask({"Origin": own}, stop) == 403
        assert ask({**good, "X-Logagg-Control": token + "x"}, stop) == 403
        assert ask({"X-Logagg-Control": token}, stop) == 403
        assert ask({**good, "Origin": "http://evil.example"}, stop) == 403
        assert ask(good, {"action": "stop"}) == 400
        assert ask(good, {"action": "stop", "confirmed": "yes"}) == 400
        assert ask(good, {"action": "fire", "confirmed": True}) == 400
        assert server.ask("/control", headers=good)[0] == 405
