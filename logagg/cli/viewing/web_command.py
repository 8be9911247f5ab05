"""The command `logagg web`."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import secrets
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import click
import msgspec

from logagg import __version__
from logagg.cli.command import command, say
from logagg.errors import ConfigError
from logagg.ipc.paths import runtime_dir
from logagg.options import FilePath, Option, OptionText
from logagg.platform import endpoints
from logagg.platform.processes import die_with_parent

__all__ = ["PageOptions", "web"]

_SHORTEST_TOKEN = 16


_PASSED = re.compile(r"fd:(\d{1,6})")


def _address(text: str) -> str:
    if not _PASSED.fullmatch(text):
        endpoints.parse(text, "listen")
    return text


def _header(text: str) -> str:
    if not text or not all(c.isascii() and (c.isalnum() or c in "-_") for c in text):
        raise ValueError("the name of a header")
    return text


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("an IP address") from None


class PageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg web`."""

    listen: Annotated[
        str,
        OptionText(_address, metavar="ADDRESS"),
        Option(
            "[HOST]:PORT, unix:PATH, or fd:N, a socket that is passed on.",
            default="127.0.0.1, any free port",
        ),
    ] = "127.0.0.1:0"
    open: Annotated[bool, Option("Open it in the browser.")] = False
    control: Annotated[
        bool, Option("Let the page reload, restart, scale and stop.")
    ] = False
    socket: Annotated[FilePath, Option("The consumer, if several run.")] = ""
    token_file: Annotated[
        FilePath, Option("The token of the link; else a random one.", "", "PATH")
    ] = ""
    names: Annotated[
        tuple[str, ...],
        Option("Another name of this host, or the proxy's.", "", "NAME", long="--host"),
    ] = ()
    proxy_header: Annotated[
        str,
        OptionText(_header, metavar="NAME"),
        Option("Set by a reverse proxy for users it knows: no token."),
    ] = ""
    proxies: Annotated[
        tuple[Annotated[str, OptionText(_ip, metavar="IP")], ...],
        Option("A proxy that may set it; over unix: any.", long="--proxy"),
    ] = ()
    tls_cert: Annotated[FilePath, Option("Serve TLS.", "", "PATH")] = ""
    tls_key: Annotated[FilePath, Option("Its key.", "", "PATH")] = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that need one another."""
        if bool(self.tls_cert) != bool(self.tls_key):
            key = "tls_cert" if self.tls_cert else "tls_key"
            yield key, "--tls-cert and --tls-key belong together"
        unix = self.listen.startswith("unix:")
        if self.proxy_header and not unix and not self.proxies:
            text = (
                "every client could set it: name the proxy's address (--proxy IP) "
                "or listen at unix:PATH"
            )
            yield "proxy_header", text


@command(PageOptions, click.Argument(["files"], nargs=-1, metavar="[FILE]..."))
def web(options: PageOptions, files: tuple[str, ...]) -> None:
    """Show the log in a browser: live, the past, workers and sinks.

    Reads the running consumer as `logagg tail` does, or FILE, rotated and compressed
    ones too. Prints a link with a token: all that have it can read the log. It only
    reads, and never delays the service. Ctrl-C ends it.

    \b
    logagg web --open                     the running consumer
    logagg web app.log                    a file, with or without a consumer
    ssh -L 8080:127.0.0.1:8080 host logagg web --listen 127.0.0.1:8080
    """
    from logagg.view.page.page_access import PageAccess  # aiohttp
    from logagg.view.page.page_server import PagePlan, serve  # the same

    for path in files:
        if not os.path.exists(path):
            raise ConfigError(f"{path}: there is no such file")
    tls = _tls(options)
    token = _token(options.token_file)
    listener = _listener(options.listen)
    name = listener.getsockname()
    unix = isinstance(name, str)
    access = PageAccess(
        token,
        port=None if unix else name[1],
        loopback=unix or ipaddress.ip_address(name[0]).is_loopback,
        names=options.names,
        secure=tls is not None,
        proxy_header=options.proxy_header,
        proxies=options.proxies,
    )
    plan = PagePlan(
        [os.path.abspath(path) for path in files],
        options.socket,
        options.control,
        __version__,
    )
    link = _link(name, token, secure=tls is not None)
    opened: list[Path] = []

    def ready() -> None:
        say(link)
        if options.open and not unix:
            opened.append(_open(link))

    try:
        asyncio.run(serve(plan, access, listener, tls, ready))
    finally:
        for each in [*opened, *([Path(name)] if unix else [])]:
            with contextlib.suppress(OSError):
                each.unlink()


def _listener(address: str) -> socket.socket:
    """The listening socket, made here or passed on by the parent.

    Raises:
        ConfigError: It cannot be had.
    """
    passed = _PASSED.fullmatch(address)
    if passed is None:
        return endpoints.listen(address, "listen")
    # The parent may have blocked signals for itself; the page ends with it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    die_with_parent(os.getppid())
    try:
        return socket.socket(fileno=int(passed[1]))
    except OSError as error:
        raise ConfigError(f"listen {address!r}: {error.strerror}") from error


def _token(path: str) -> str:
    """A random token, or that of a file.

    Raises:
        ConfigError: The file cannot be read, or its token is too short.
    """
    if not path:
        return secrets.token_urlsafe(24)
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {path}: {error}") from None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"token_file {path}: expected {_SHORTEST_TOKEN} ASCII characters at least"
        )
    return token


def _tls(options: PageOptions) -> ssl.SSLContext | None:
    if not options.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as error:
        raise ConfigError(f"tls_cert {options.tls_cert}: {error}") from None
    return context


def _link(name: Any, token: str, *, secure: bool) -> str:
    scheme = "https" if secure else "http"
    token = quote(token, safe="")
    if isinstance(name, str):
        return f"unix:{name} ({scheme}://HOST/?token={token})"
    host, port = name[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = os.uname().nodename
    elif ":" in host:
        host = f"[{host}]"
    return f"{scheme}://{host}:{port}/?token={token}"


def _open(link: str) -> Path:
    """Open a link in the browser, by a private file that leads to it.

    Other users can read a browser's command line, so the token must not stand there.
    """
    import webbrowser  # slow, and only for --open

    descriptor, path = tempfile.mkstemp(".html", "web-", runtime_dir())
    with open(descriptor, "w") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={link}">')
    if not webbrowser.open(f"file://{path}"):
        say("logagg: no browser can be opened here; use the link", err=True)
    return Path(path)
