from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ssegate.core.headers import Headers
from ssegate.upstream.relay import end_to_end, frame, request_headers


def test_hop_by_hop_fields_and_what_connection_names_are_dropped() -> None:
    fields = [
        (b"Accept", b"a"),
        (b"Connection", b"close, X-Private"),
        (b"connection", b"x-other"),
        (b"X-PRIVATE", b"1"),
        (b"x-other", b"2"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authorization", b"secret"),
        (b"Proxy-Connection", b"close"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABkAAQCAAAAAAIAAAAA"),
        (b"accept", b"b"),
    ]
    assert end_to_end(fields) == [(b"Accept", b"a"), (b"accept", b"b")]


def test_a_request_keeps_order_case_and_repetition_and_gets_the_configured_fields() -> None:
    fields = [
        (b"hOsT", b"x"),
        (b"B", b"1"),
        (b"A", b"2"),
        (b"b", b"3"),
        (b"x-gate", b"forged"),
        (b"Expect", b"100-continue"),
    ]
    made = request_headers(fields, host=b"api", configured=[(b"X-Gate", b"1")], is_http2=False)
    assert made == [(b"Host", b"api"), (b"B", b"1"), (b"A", b"2"), (b"b", b"3"), (b"X-Gate", b"1")]


def test_the_cookies_of_http2_become_one_field() -> None:
    crumbs = [(b"cookie", b"a=1"), (b"accept", b"x"), (b"cookie", b"b=2")]
    assert request_headers(crumbs, host=b"api", configured=[], is_http2=True) == [
        (b"Host", b"api"),
        (b"accept", b"x"),
        (b"Cookie", b"a=1; b=2"),
    ]
    assert request_headers(crumbs, host=b"api", configured=[], is_http2=False)[1:] == crumbs


@pytest.mark.parametrize(
    ("method", "fields", "pieces", "is_http2", "framing"),
    [
        ("POST", [(b"Content-Length", b"3")], [b"abc"], False, (b"Content-Length", b"3")),
        ("POST", [(b"Content-Length", b"3")], [b"abc"], True, (b"Content-Length", b"3")),
        ("POST", [(b"Transfer-Encoding", b"chunked")], [b"abc"], False, (b"Transfer-Encoding", b"chunked")),
        ("POST", [], [b"", b"ab", b"c"], True, (b"Transfer-Encoding", b"chunked")),
        ("POST", [], [], True, (b"Content-Length", b"0")),
        ("POST", [(b"Content-Length", b"0")], [], False, (b"Content-Length", b"0")),
        ("PUT", [], [], False, (b"Content-Length", b"0")),
        ("GET", [], [], False, None),
        ("GET", [], [b""], True, None),
        ("GET", [(b"Content-Length", b"0")], [], False, (b"Content-Length", b"0")),
    ],
)
def test_framing_is_made_anew(
    method: str,
    fields: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    is_http2: bool,
    framing: tuple[bytes, bytes] | None,
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def run() -> None:
        made, framed = await frame(method, Headers(fields), body(), is_http2=is_http2)
        assert made == ([framing] if framing else [])
        assert (framed is not None) == any(pieces)
        if framed is not None:
            assert b"".join([piece async for piece in framed]) == b"".join(pieces)

    asyncio.run(run())
