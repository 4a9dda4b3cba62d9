"""One request of the gate's own, mostly a poll: its headers, and the whole body of its answer within limits."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssegate import __version__
from ssegate.core.headers import Headers, Pair
from ssegate.errors import OversizeError, UpstreamError
from ssegate.upstream.fields import end_to_end

if TYPE_CHECKING:
    from ssegate.upstream.errand import Errand

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_OWN = frozenset({b"host", b"accept-encoding", b"content-length", b"expect"})
"""Fields that a poll makes itself: the framing, and what it can decode."""

_USER_AGENT = (b"User-Agent", f"ssegate/{__version__}".encode())


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """What came of a poll's request."""

    status: int
    headers: Headers
    body: bytes
    """Whole and inflated. Of an answer that is no success it is empty, unless it was asked for."""


def fetch_headers(
    host: str,
    configured: Iterable[Pair],
    authorization: bytes | None,
    forwarded: Sequence[Pair],
    *,
    accept: bytes = b"*/*",
    coding: bytes = b"gzip",
) -> list[Pair]:
    """The request's fields. Of one name the viewer's forwarded one wins, then the configured one, then the gate's own."""
    headers = [(b"Host", host.encode("ascii")), (b"Accept-Encoding", coding)]
    taken = set(_OWN)
    own = (_USER_AGENT, (b"Accept", accept))
    for layer in (end_to_end(forwarded), configured, own, _authorization(authorization)):
        names = set()
        for pair in layer:
            name = pair[0].lower()
            if name not in taken:
                headers.append(pair)
                names.add(name)
        taken |= names
    return headers


def _authorization(value: bytes | None) -> tuple[Pair, ...]:
    return () if value is None else ((b"Authorization", value),)


def bearer(token: str) -> bytes:
    """The value of Authorization for a bearer token."""
    return b"Bearer " + token.encode()


def basic(user: str, password: str) -> bytes:
    """The value of Authorization for a user and a password (RFC 7617, in UTF-8)."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


class Fetching:
    """The viewer of a fetch: it collects the answer, inflated, at most `max_body` bytes of it.

    The body of an answer that is no success is not wanted, unless `reads_refusals`: what does not come with its head is not
    waited for.
    """

    __slots__ = (
        "_body",
        "_errand",
        "_gunzip",
        "_max_body",
        "_outcome",
        "_reads_refusals",
        "_status",
        "_wants_body",
        "headers",
    )

    def __init__(self, max_body: int, *, is_head: bool, reads_refusals: bool = False) -> None:
        self._max_body = max_body
        self._reads_refusals = reads_refusals
        self._wants_body = not is_head
        self._outcome: asyncio.Future[FetchAnswer] = asyncio.get_running_loop().create_future()
        self._errand: Errand | None = None
        self._status = 0
        self._body = bytearray()
        self._gunzip: _Gunzip | None = None
        self.headers = Headers()

    async def run(self, errand: Errand, body: bytes | None = None) -> FetchAnswer:
        """Begin it, send the body if there is one, and wait for the whole answer. Raises `UpstreamError` and its kinds; cancelled, it ends the request."""
        self._errand = errand
        errand.begin()
        if body is not None:
            errand.send(body)
            errand.send_end()
        try:
            return await self._outcome
        except asyncio.CancelledError:
            errand.cancel()
            raise
        finally:
            # An exception holds the frames it came through, and they hold this: the body must not wait for the collector.
            self._errand = self._gunzip = None
            self._body = bytearray()

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        pass

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        self._status, self.headers = status, Headers(headers)
        assert self._errand is not None, "it was begun"
        if not (self._wants_body and (self._reads_refusals or 200 <= status < 300)):
            self._wants_body = False
            # One turn later, so that an answer that is whole already leaves its connection for the next.
            asyncio.get_running_loop().call_soon(self._do_without_body, self._errand)
            return
        coding = (self.headers.get("content-encoding") or "identity").strip().lower()
        if coding in ("gzip", "x-gzip"):
            self._gunzip = _Gunzip(self._max_body, self._errand.label)
        elif coding != "identity":
            shown = coding if coding.isalnum() and len(coding) < 20 else "that is unknown"
            message = f"{self._errand.label}: answered with content-encoding {shown}, which was not asked for"
            self._give_up(UpstreamError(message))

    def receive_data(self, data: bytes) -> None:
        if not self._wants_body:
            return
        try:
            if self._gunzip is not None:
                self._gunzip.receive(data)
            else:
                self._body += data
                self._check_size()
        except UpstreamError as error:
            self._give_up(error)

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        try:
            body = bytes(self._body) if self._gunzip is None else self._gunzip.finish()
        except UpstreamError as error:
            self.fail(error)
        else:
            self._settle(body)

    def fail(self, error: Exception) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error.with_traceback(None))

    def flush(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass

    def _do_without_body(self, errand: Errand) -> None:
        errand.cancel()
        self._settle(b"")

    def _settle(self, body: bytes) -> None:
        if not self._outcome.done():
            self._outcome.set_result(FetchAnswer(self._status, self.headers, body))

    def _check_size(self) -> None:
        if len(self._body) > self._max_body:
            assert self._errand is not None, "it was begun"
            _check_size(len(self._body), self._max_body, self._errand.label)

    def _give_up(self, error: UpstreamError) -> None:
        if self._errand is not None:
            self._errand.cancel()
        self.fail(error)


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
