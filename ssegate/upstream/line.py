"""The bytes to and from an upstream over one TCP or TLS connection, both ways at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from dataclasses import dataclass
from typing import cast

from ssegate.errors import UpstreamUnreachableError

_HIGH_WATER = 256 * 1024
"""Bytes kept of what came and was not read yet; above it the socket is not read."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an upstream is. The name is resolved anew for every connection."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Line(asyncio.Protocol):
    """One connection. What came before a reset is still read; asyncio's own streams would drop it, and with it the
    answer of an upstream that refuses a request early and closes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._paused_reading = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._paused_writing = False

    @property
    def is_silent(self) -> bool:
        """Whether it is open, all that was written has left, and nothing has come that was not read: what an idle
        connection must be to be used again."""
        is_sent = self._transport is not None and self._transport.get_write_buffer_size() == 0
        return is_sent and not self._ended and not self._received

    async def read(self) -> bytes:
        """What has come, waiting for at least a byte; empty is the end. Raises `OSError` when the connection broke."""
        if not self._received and not self._ended:
            assert self._reader is None, "one reader at a time"
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = bytes(self._received)
        self._received.clear()
        if self._paused_reading and self._transport is not None:
            self._paused_reading = False
            self._transport.resume_reading()
        if not data and self._error is not None:
            raise self._error
        return data

    def write(self, data: bytes) -> None:
        """Send, or buffer. Bytes for a connection that has ended are dropped; reading tells of it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the buffer is small again, or the connection has ended."""
        if self._paused_writing and not self._ended:
            self._writer = self._loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def abort(self) -> None:
        """Close at once, dropping what is buffered. May be called twice."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _HIGH_WATER and self._transport is not None and not self._paused_reading:
            self._paused_reading = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        # Returning nothing closes the transport: an upstream that sends no more is not written to either.
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._ended:
            self._salvage()
        self._end(exc)
        self._transport = None

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        _wake(self._writer)

    def _salvage(self) -> None:
        """Take what had come when writing met a reset: often the answer that explains it, such as an early 413.

        The transport gives up without reading it. With TLS what is left cannot be read past the transport.
        """
        assert self._transport is not None
        if self._transport.get_extra_info("sslcontext") is not None:
            return
        with contextlib.suppress(OSError):
            number = self._transport.get_extra_info("socket").fileno()
            while len(self._received) <= _HIGH_WATER and (data := os.read(number, 65536)):
                self._received += data

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
        _wake(self._reader)
        _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def open_line(endpoint: Endpoint, timeout: float, label: str) -> Line:
    """Connect, TLS included, within `timeout` seconds. Raises `UpstreamUnreachableError`, its message led by `label`."""
    loop = asyncio.get_running_loop()
    name = endpoint.host if endpoint.tls is not None else None
    try:
        async with asyncio.timeout(timeout):
            _, line = await loop.create_connection(
                Line, endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=name
            )
    except TimeoutError as error:
        raise UpstreamUnreachableError(f"{label}: no connection in {timeout:g} s") from error
    except (OSError, UnicodeError) as error:
        raise UpstreamUnreachableError(f"{label}: {_connect_fact(error)}") from error
    return line


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
