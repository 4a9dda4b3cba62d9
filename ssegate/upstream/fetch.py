"""One request of the gate's own, a poll: its headers, and the whole body of its answer within limits."""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from ssegate import __version__
from ssegate.core.headers import Headers, Pair
from ssegate.errors import OversizeError, UpstreamError
from ssegate.upstream.connection import Connection
from ssegate.upstream.relay import end_to_end

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_OWN = frozenset({b"host", b"accept-encoding", b"content-length", b"expect"})
"""Fields that a poll makes itself: the framing, and what it can decode."""


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """What came of a poll's request."""

    status: int
    headers: Headers
    body: bytes
    """Whole and inflated. Only a 2xx answer's body is read; of others it is empty."""


def fetch_headers(
    host: str, configured: Iterable[Pair], authorization: bytes | None, forwarded: Sequence[Pair]
) -> list[Pair]:
    """The request's fields. Of one name the viewer's forwarded one wins, then the configured one, then the gate's own."""
    own: list[Pair] = [(b"User-Agent", f"ssegate/{__version__}".encode()), (b"Accept", b"*/*")]
    if authorization is not None:
        own.append((b"Authorization", authorization))
    headers: list[Pair] = []
    for layer in (end_to_end(forwarded), list(configured), own):
        taken = {name.lower() for name, _ in headers} | _OWN
        headers += [pair for pair in layer if pair[0].lower() not in taken]
    return [(b"Host", host.encode("ascii")), (b"Accept-Encoding", b"gzip"), *headers]


def bearer(token: str) -> bytes:
    """The value of Authorization for a bearer token."""
    return b"Bearer " + token.encode()


def basic(user: str, password: str) -> bytes:
    """The value of Authorization for a user and a password (RFC 7617, in UTF-8)."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


async def read_whole(connection: Connection, headers: Headers, max_body: int, label: str) -> bytes:
    """The body, inflated, at most `max_body` bytes.

    Raises `OversizeError`, and `UpstreamError` when it is cut or encoded in a way nobody asked for.
    """
    coding = (headers.get("content-encoding") or "identity").strip().lower()
    pieces = _pieces(connection)
    if coding in ("gzip", "x-gzip"):
        return await _inflate(pieces, max_body, label)
    if coding != "identity":
        shown = coding if coding.isalnum() and len(coding) < 20 else "that is unknown"
        raise UpstreamError(f"{label}: answered with content-encoding {shown}, which was not asked for")
    return await _collect(pieces, max_body, label)


async def _pieces(connection: Connection) -> AsyncIterator[bytes]:
    while piece := await connection.read_body():
        yield piece


async def _collect(pieces: AsyncIterator[bytes], max_body: int, label: str) -> bytes:
    body = bytearray()
    async for piece in pieces:
        body += piece
        _check_size(len(body), max_body, label)
    return bytes(body)


async def _inflate(pieces: AsyncIterator[bytes], max_body: int, label: str) -> bytes:
    gunzip = _Gunzip(max_body, label)
    async for piece in pieces:
        gunzip.receive(piece)
    return gunzip.finish()


class _Gunzip:
    """Inflates a gzip body piece by piece and stops as soon as it is too large, packed or inflated."""

    def __init__(self, max_body: int, label: str) -> None:
        self._max_body = max_body
        self._max_packed = max_body + max_body // 100 + 1024  # what cannot be compressed grows a little
        self._label = label
        self._packed = 0
        self._body = bytearray()
        self._member: zlib._Decompress | None = None

    def receive(self, data: bytes) -> None:
        self._packed += len(data)
        _check_size(self._packed - (self._max_packed - self._max_body), self._max_body, self._label)
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")  # padding between or behind members
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            data = self._inflate(self._member, data)

    def _inflate(self, member: zlib._Decompress, data: bytes) -> bytes:
        """Returns what is left for the next member."""
        try:
            self._body += member.decompress(data, self._max_body - len(self._body) + 1)
        except zlib.error as error:
            raise UpstreamError(f"{self._label}: its body is not gzip as it says") from error
        _check_size(len(self._body), self._max_body, self._label)
        if not member.eof:
            return member.unconsumed_tail
        self._member = None
        return member.unused_data

    def finish(self) -> bytes:
        if self._member is not None:
            raise UpstreamError(f"{self._label}: its gzip body is cut")
        return bytes(self._body)


def _check_size(size: int, max_body: int, label: str) -> None:
    if size > max_body:
        raise OversizeError(f"{label}: its body is larger than {max_body} bytes")
