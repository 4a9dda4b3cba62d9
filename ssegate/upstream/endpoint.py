"""Where an upstream is, and how a connection to it is opened, TLS included."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an upstream is. The name is resolved anew for every connection."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class UnreachableError(Exception):
    """No connection came about. The message is the fact."""


PROBES = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""An upstream that is gone without a word is found after a minute of silence, where silence is allowed."""


def probe(connection: socket.socket | None) -> None:
    """Let the system ask a silent peer whether it is still there (RFC 9293, 3.8.4)."""
    if connection is None:
        return
    with contextlib.suppress(OSError):  # a UNIX socket, or one that has just been reset, which reading tells
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def open_connection(endpoint: Endpoint, protocol: asyncio.BaseProtocol, timeout: float) -> None:
    """Connect the protocol within `timeout` seconds. Raises `UnreachableError`."""
    loop = asyncio.get_running_loop()
    name = endpoint.host if endpoint.tls is not None else None
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(
                lambda: protocol, endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=name
            )
    except TimeoutError as error:
        raise UnreachableError(f"no connection in {timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        raise UnreachableError(_connect_fact(error)) from error


def _connect_fact(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {(error.reason or 'no reason given').replace('_', ' ').lower()}"
        case socket.gaierror() | UnicodeError():
            return "its name does not resolve"
        case OSError() if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in str(error):
            # Of a name with several addresses asyncio joins the messages and leaves no number.
            return "connection refused"
        case OSError() if error.strerror and error.errno is not None:
            return error.strerror.lower()
    return "no connection"
