"""Who may use the page: the checks that each request passes, and the answers' headers.

1. `Host` is an address of this host, or a name that was given: a page of another site
   that has its name resolved to this address is refused (DNS rebinding).
2. `Origin`, where there is one, is the page itself, and no other site's page has caused
   the request, unless it is a link to the page.
3. The token: in the link that is printed, then in a cookie; or, where a reverse proxy
   authenticates, the header that it sets.
4. A request that changes something also has the token of `/session`, which only the page
   itself can read.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

__all__ = ["CONTROL_HEADER", "PageAccess", "secure_headers"]

CONTROL_HEADER = "X-Logagg-Control"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def secure_headers(response: web.StreamResponse) -> None:
    """Put the headers of every answer on one."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


class PageAccess:
    """The checks of one server.

    Attributes:
        token: The secret of the printed link.
        control: The secret of requests that change something.
    """

    def __init__(
        self,
        token: str,
        *,
        port: int | None,
        loopback: bool,
        names: Iterable[str] = (),
        secure: bool = False,
        proxy_header: str = "",
        proxies: Iterable[str] = (),
    ) -> None:
        """Prepare.

        Args:
            token: The secret of the link.
            port: The port; None for a Unix socket.
            loopback: It listens to this host alone.
            names: More names by which it is reached.
            secure: It is served by TLS.
            proxy_header: A header that a proxy sets for whom it has authenticated.
            proxies: The addresses of proxies that may set it; over a Unix socket any.
        """
        self.token = token
        self.control = secrets.token_urlsafe(24)
        self._port = port
        self._loopback = loopback
        self._names = {name.lower() for name in names}
        self._secure = secure
        self._proxy_header = proxy_header
        self._proxies = frozenset(proxies)
        self._cookie = f"logagg-{port or 'page'}"

    def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that is refused, or that brings the token."""
        if not self._is_host(request.headers.get("Host", "")):
            return _refused(403, "wrong Host: use the address that logagg web printed")
        if not self._is_origin(request):
            return _refused(403, "refused: another site has caused this request")
        given = request.query.get("token", "")
        if given and request.path == "/" and request.method == "GET":
            return self._enter(request, given)
        if not self._is_known(request):
            return _refused(401, "no token: use the link that logagg web printed")
        if request.method == "GET":
            return None
        if not _same(request.headers.get(CONTROL_HEADER, ""), self.control):
            return _refused(403, "refused: the request lacks the page's control token")
        if "Origin" not in request.headers:
            return _refused(403, "refused: the request has no Origin")
        return None

    def _is_host(self, text: str) -> bool:
        try:
            parts = urlsplit(f"//{text}")
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if host in self._names or self._port is None:
            return bool(host)
        if port != self._port and not (port is None and self._port in (80, 443)):
            return False
        if host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback

    def _is_origin(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.headers["Host"]:
            return False
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site in ("same-origin", "none"):
            return True
        # A link to the page, in a text that was sent to a colleague.
        return (
            request.method == "GET"
            and request.path == "/"
            and request.headers.get("Sec-Fetch-Mode") == "navigate"
            and request.headers.get("Sec-Fetch-Dest") == "document"
        )

    def _is_known(self, request: web.Request) -> bool:
        if _same(request.cookies.get(self._cookie, ""), self.token):
            return True
        if not self._proxy_header or not request.headers.get(self._proxy_header):
            return False
        return self._port is None or request.remote in self._proxies

    def _enter(self, request: web.Request, given: str) -> web.Response:
        """Exchange the token of the link for a cookie, and take it from the address."""
        if not _same(given, self.token):
            return _refused(401, "wrong token: use the link that logagg web printed")
        kept = [each for each in request.query.items() if each[0] != "token"]
        rest = request.rel_url.with_query(kept)
        response = web.Response(status=303, headers={"Location": str(rest)})
        response.set_cookie(
            self._cookie, self.token, httponly=True, samesite="Lax",
            secure=self._secure, path="/",
        )  # fmt: skip
        return response


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _refused(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")
