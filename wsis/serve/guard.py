"""Who may ask the page's server for what: this machine or who has the token, and no other site.

A browser that has the page open also has other sites open. They can send requests to this server,
and with a name that resolves to this machine (DNS rebinding) even read the answers. So the name in
`Host` must be ours, and what a browser says of the request's origin must be this page.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import Flask, Request, Response, jsonify, request

from wsis.errors import InputError

__all__ = ["Access", "access_for", "protect"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE = frozenset({"GET", "HEAD"})


class Access(NamedTuple):
    """Who may ask."""

    hosts: frozenset[str]
    """Names by which browsers may call this server."""
    token: str = ""
    """What they must know; empty on loopback, where only this machine can ask."""
    cookie: str = "wsis"
    """Name of the cookie that holds the token."""
    read_only: bool = False
    """Whether nothing may be changed."""


def access_for(host: str, port: int, token: bool = False, read_only: bool = False) -> Access:
    """Return who may ask a server at an address.

    Args:
        host: address or name that it is bound to.
        port: of the server; cookies of several servers of a machine have it in their names.
        token: whether a token is needed on loopback, too.
        read_only: whether nothing may be changed.

    Raises:
        InputError: the address is that of all networks at once, by which no browser calls it.
    """
    try:
        address = ipaddress.ip_address(host)
        is_loopback, is_any = address.is_loopback, address.is_unspecified
    except ValueError:
        is_loopback, is_any = host == "localhost", host == ""
    if is_any:
        raise InputError(
            f"--host '{host}' is every network at once; give the address by which browsers reach "
            "this machine, such as --host 192.168.1.5"
        )
    hosts = LOOPBACK | {host.lower()} if is_loopback else frozenset({host.lower()})
    secret = "" if is_loopback and not token else secrets.token_urlsafe(32)
    return Access(hosts, secret, f"wsis-{port}", read_only)


def protect(app: Flask, access: Access) -> None:
    """Refuse requests that `access` does not allow, and put headers on all answers."""

    @app.before_request
    def check() -> Response | None:
        refusal = _refusal(request, access)
        if refusal is None:
            return None
        answer = jsonify(error=refusal[1])
        answer.status_code = refusal[0]
        return answer

    @app.after_request
    def finish(answer: Response) -> Response:
        answer.headers.update(HEADERS)
        given = request.args.get("token", "")
        if access.token and request.path == "/" and _is_token(given, access):
            answer.set_cookie(access.cookie, given, httponly=True, samesite="Strict")
        return answer


def _refusal(asked: Request, access: Access) -> tuple[int, str] | None:
    """Return status and reason if a request is refused."""
    if _name(asked.host) not in access.hosts:
        return 403, "this server is not called by that name"
    if not _is_own(asked):
        return 403, "another site may not ask for this"
    if access.read_only and asked.method not in SAFE:
        return 403, "this page is only to look at"
    if asked.method not in SAFE and asked.mimetype != "application/json":
        return 415, "send json"
    if access.token:
        on_page = asked.args.get("token", "") if asked.path == "/" else ""
        if not _is_token(on_page or asked.cookies.get(access.cookie, ""), access):
            return 401, "open the address that was printed when the server was started"
    return None


def _is_own(asked: Request) -> bool:
    """Return whether a request comes from the page itself, or opens it."""
    opens = asked.method in SAFE and asked.path == "/"
    site = asked.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in ("same-origin", "none") and not opens:
        return False
    origin = asked.headers.get("Origin")
    if origin is None:  # browsers send it with every request that changes something
        return asked.method in SAFE
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == asked.host.lower()


def _name(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_token(given: str, access: Access) -> bool:
    return hmac.compare_digest(given.encode(), access.token.encode())
