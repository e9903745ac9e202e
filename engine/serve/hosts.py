"""The address to listen at, and the names by which this machine may be asked."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatch
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.protocol import APIError


def resolve(host: str, port: int) -> tuple[int, tuple]:
    """Return the address family and the address of a host, IPv4 where it has both.

    Raises:
        ValueError: There is no such host.
    """
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}") from None
    family, *_, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; "::" takes IPv4, too.

    Raises:
        ValueError: The address is taken, or not this machine's.
    """
    family, address = resolve(host, port)
    is_dual = address[0] == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=is_dual)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror}") from None


def is_loopback(host: str) -> bool:
    """Return whether a host to listen at is reached from this machine alone."""
    return is_local(resolve(host, 0)[1][0])


def is_local(name: str) -> bool:
    """Return whether a name always means the machine that says it."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # brackets that do not hold an address
        return host


def check_origins(origins: Sequence[str]) -> None:
    """Refuse an --allow_origin that no browser sends.

    Raises:
        ValueError: It is neither "*" nor scheme://host or scheme://host:port.
    """
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
            raise ValueError(f"--allow_origin {origin}: browsers send http://HOST:PORT, without a path; * allows all")


class HostGuard:
    """Middleware that answers only requests to names of this machine.

    A page of another site can give its own name this address (DNS rebinding), and would read the answers.

    Args:
        app: The application.
        allowed: Other names that are answered; * is any characters.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]):
        self.app = app
        self.allowed = [host_name(host) for host in allowed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = host_name(Headers(scope=scope).get("host", "")) if scope["type"] == "http" else ""
        if name and not is_local(name) and not any(fnmatch(name, pattern) for pattern in self.allowed):
            message = (
                f"this server is asked by the name {name!r}, which it does not know: --allow_host {name} allows it"
            )
            error = APIError(403, message, code="unknown_host")
            await JSONResponse(error.body, error.status)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
