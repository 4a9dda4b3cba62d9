"""What is passed on of a viewer's request and of its answer: the header rules, and the answer's body as it comes.

The gate's own credentials (`auth`) are for its polls alone: on a viewer's request they would give every viewer the
gate's rights. The configured `headers` go along on both.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence

from ssegate.core.headers import Headers, Pair
from ssegate.upstream.connection import Connection, Head

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
_NOT_ASKED = frozenset({b"host", b"content-length", b"expect"})
"""Made anew, or already answered: the edge says 100 itself."""

_OPEN_ENDED = frozenset(
    {
        "text/event-stream",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/json-seq",
        "application/stream+json",
        "multipart/x-mixed-replace",
    }
)
"""Media types of bodies that may be silent for as long as they like."""

_LENGTH = re.compile(r"[0-9]{1,18}")
_WITH_A_BODY = frozenset({"POST", "PUT", "PATCH"})
"""Methods for which a request without a body says so: "SHOULD send a Content-Length" (RFC 9110, 8.6)."""


def end_to_end(headers: Iterable[Pair]) -> list[Pair]:
    """Without hop-by-hop fields and those that Connection names (RFC 9110, 7.6.1); order, case and repetition stay."""
    pairs = list(headers)
    dropped = set(_HOP_BY_HOP)
    for name, value in pairs:
        if name.lower() == b"connection":
            dropped.update(option.strip().lower() for option in value.split(b","))
    return [pair for pair in pairs if pair[0].lower() not in dropped]


def request_headers(headers: Sequence[Pair], *, host: bytes, configured: Sequence[Pair], is_http2: bool) -> list[Pair]:
    """The fields for the upstream, without framing. `headers` are end-to-end and carry X-Forwarded-* already."""
    replaced = {name.lower() for name, _ in configured} | _NOT_ASKED
    kept = [pair for pair in headers if pair[0].lower() not in replaced and not pair[0].lower().startswith(b"proxy-")]
    return [(b"Host", host), *(_one_cookie(kept) if is_http2 else kept), *configured]


def _one_cookie(headers: list[Pair]) -> list[Pair]:
    """HTTP/2 may send cookies one by one; elsewhere "these MUST be concatenated into a single octet string" (RFC 9113, 8.2.3)."""
    crumbs = [value for name, value in headers if name.lower() == b"cookie"]
    if len(crumbs) < 2:
        return headers
    return [*(pair for pair in headers if pair[0].lower() != b"cookie"), (b"Cookie", b"; ".join(crumbs))]


async def frame(
    method: str, headers: Headers, body: AsyncIterable[bytes] | None, *, is_http2: bool
) -> tuple[list[Pair], AsyncIterable[bytes] | None]:
    """The framing field of the request and its body; None when it has none.

    Only HTTP/2 has bodies that no header announces: then this waits for the first piece.
    """
    length = _announced_length(headers)
    if length is None and body is not None:
        if "transfer-encoding" in headers:
            return [(b"Transfer-Encoding", b"chunked")], body
        if is_http2 and (begun := await _begin(body)) is not None:
            return [(b"Transfer-Encoding", b"chunked")], begun
    if body is not None and length:
        return [(b"Content-Length", b"%d" % length)], body
    if length == 0 or method in _WITH_A_BODY:
        return [(b"Content-Length", b"0")], None
    return [], None


def _announced_length(headers: Headers) -> int | None:
    lengths = headers.all("content-length")
    if len(lengths) != 1 or "transfer-encoding" in headers or not _LENGTH.fullmatch(lengths[0]):
        return None
    return int(lengths[0])


async def _begin(body: AsyncIterable[bytes]) -> AsyncIterable[bytes] | None:
    """The body, read up to its first byte; None when it is empty."""
    rest = aiter(body)
    async for piece in rest:
        if piece:
            return _resume(piece, rest)
    return None


async def _resume(piece: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield piece
    async for following in rest:
        yield following


class RelayedResponse:
    """The upstream's answer: its head is here, its body comes as it is iterated, raw. Whoever has it closes it."""

    def __init__(self, head: Head, connection: Connection, release: Callable[[Connection], None]) -> None:
        self.status = head.status
        self.headers = _response_headers(head.headers)
        """Without hop-by-hop fields; repeated ones, order and case kept."""
        self._connection: Connection | None = connection
        self._release = release
        if _is_open_ended(head.headers):
            connection.patience = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The raw body, not decompressed.

        Raises `UpstreamError` when it is cut, and `UpstreamTimeoutError` when it is silent for `timeout.read`, unless its
        type is one that may be (an event stream).
        """
        try:
            while self._connection is not None and (piece := await self._connection.read_body()):
                yield piece
        finally:
            self._let_go()

    async def aclose(self) -> None:
        """Give the connection back, or close it when the body was not read to its end. May be called twice."""
        self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._release(connection)


def _response_headers(headers: Headers) -> Headers:
    kept = end_to_end(headers)
    if "transfer-encoding" in headers:
        # It overrides a Content-Length (RFC 9112, 6.3), which must not reach the viewer then.
        kept = [pair for pair in kept if pair[0].lower() != b"content-length"]
    return Headers(kept)


def _is_open_ended(headers: Headers) -> bool:
    media_type = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    return media_type in _OPEN_ENDED
