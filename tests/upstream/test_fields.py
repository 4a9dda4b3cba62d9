from __future__ import annotations

import pytest

from ssegate.core.headers import Headers
from ssegate.upstream.fields import (
    CHUNKED,
    NO_BODY,
    RequestFields,
    UnsayableError,
    answer_fields,
    end_to_end,
    last_chunk,
    trailer_fields,
)
from tests.upstream.viewer import Asked

Pair = tuple[bytes, bytes]

HOP = [
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Authorization", b"secret"),
    (b"Proxy-Connection", b"close"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"AAMAAABkAAQCAAAAAAIAAAAA"),
]
NAMED = [(b"Connection", b"close, X-Private"), (b"connection", b"x-other"), (b"X-PRIVATE", b"1"), (b"x-other", b"2")]


def head(
    *fields: Pair,
    method: str = "GET",
    target: bytes = b"/",
    has_body: bool = False,
    version: str = "1.1",
    configured: list[Pair] | None = None,
    own_host: bytes | None = b"api",
) -> tuple[list[Pair], int]:
    """The fields of the request, but X-Forwarded-*, and its framing."""
    rules = RequestFields(configured or [], b"fallback", own_host)
    request = Asked(method, target, Headers(fields), version, peer="")
    made, framing = rules.head(request, target, has_body, ())
    assert rules.head(request, target, has_body, ()) == (made, framing)  # and again, for the same fields
    assert made.endswith(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in made.split(b"\r\n")[1:-2]]
    return [(name, value) for name, _, value in lines if not name.startswith(b"X-Forwarded")], framing


def names_of(fields: list[Pair]) -> list[bytes]:
    return [name.lower() for name, _ in fields]


def test_hop_by_hop_fields_and_what_connection_names_are_dropped() -> None:
    fields = [(b"Accept", b"a"), *NAMED, *HOP, (b"accept", b"b")]
    assert end_to_end(fields) == [(b"Accept", b"a"), (b"accept", b"b")]
    assert head(*fields)[0] == [(b"Host", b"api"), (b"Accept", b"a"), (b"accept", b"b")]
    assert answer_fields(200, fields, names_of(fields)) == ((b"Accept", b"a"), (b"accept", b"b"))


def test_a_request_keeps_order_case_and_repetition_and_gets_the_configured_fields() -> None:
    fields = ((b"hOsT", b"x"), (b"B", b"1"), (b"A", b"2"), (b"b", b"3"), (b"x-gate", b"forged"), (b"Proxy-Any", b"1"))
    made, _ = head(*fields, configured=[(b"X-Gate", b"1")])
    assert made == [(b"Host", b"api"), (b"B", b"1"), (b"A", b"2"), (b"b", b"3"), (b"X-Gate", b"1")]


def test_host_is_the_configured_one_else_the_viewers_else_the_upstreams() -> None:
    assert head((b"Host", b"x"), own_host=b"api")[0] == [(b"Host", b"api")]
    assert head((b"Host", b"x"), own_host=None)[0] == [(b"Host", b"x")]
    assert head(own_host=None)[0] == [(b"Host", b"fallback")]


@pytest.mark.parametrize(
    ("version", "has_body", "goes"), [("1.1", True, True), ("1.1", False, False), ("1.0", True, False)]
)
def test_who_cannot_be_told_to_continue_does_not_ask_to_be(version: str, has_body: bool, goes: bool) -> None:
    made, _ = head((b"Expect", b"100-continue"), has_body=has_body, version=version)
    assert ((b"Expect", b"100-continue") in made) is goes


LENGTH, CODING = (b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")
NOTHING = (b"Content-Length", b"0")


@pytest.mark.parametrize(
    ("method", "fields", "has_body", "version", "framing", "field"),
    [
        ("POST", [LENGTH], True, "1.1", 3, LENGTH),
        ("POST", [LENGTH], True, "2", 3, LENGTH),
        ("POST", [CODING], True, "1.1", CHUNKED, CODING),
        ("POST", [], True, "2", CHUNKED, CODING),
        ("POST", [LENGTH, LENGTH], True, "2", CHUNKED, CODING),
        ("POST", [(b"Content-Length", b"+3")], True, "2", CHUNKED, CODING),
        ("POST", [], False, "2", 0, NOTHING),
        ("POST", [NOTHING], False, "1.1", 0, NOTHING),
        ("PUT", [], False, "1.1", 0, NOTHING),
        ("GET", [], False, "1.1", NO_BODY, None),
        ("GET", [NOTHING], False, "1.1", 0, NOTHING),
    ],
)
def test_framing_is_made_anew(
    method: str, fields: list[Pair], has_body: bool, version: str, framing: int, field: Pair | None
) -> None:
    made, as_ = head(*fields, method=method, has_body=has_body, version=version)
    assert as_ == framing
    assert made[1:] == ([field] if field else [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": b"/x HTTP/1.1\r\nX: s"},
        {"target": b"/a b"},
        {"target": b"/\xff"},
        {"target": b""},
        {"method": "GE T"},
        {"method": ""},
        {"method": "GÉT"},
    ],
)
def test_a_request_line_http_cannot_say_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UnsayableError):
        head(**wrong)  # type: ignore[arg-type]  # each is right for its own argument


@pytest.mark.parametrize(
    "field",
    [
        (b"X", b"a\r\nY: b"),
        (b"X", b"a\nb"),
        (b"X", b"a\0"),
        (b"X\r\nY", b""),
        (b"X\n", b""),
        (b"X ", b""),
        (b"", b"a"),
        (b"X:", b""),
    ],
)
def test_a_field_http_cannot_say_is_refused(field: Pair) -> None:
    with pytest.raises(UnsayableError):
        head((b"Accept", b"*/*"), field)
    with pytest.raises(UnsayableError):
        last_chunk([field])


def test_the_length_of_an_answer_goes_where_it_does_not_count() -> None:
    fields = [(b"Content-Length", b"3"), (b"X", b"1")]
    assert answer_fields(200, fields, names_of(fields)) == tuple(fields)
    assert answer_fields(304, fields, names_of(fields)) == tuple(fields)
    for status, more in ((204, []), (103, []), (200, [(b"transfer-encoding", b"chunked")])):
        assert answer_fields(status, fields + more, names_of(fields + more)) == ((b"X", b"1"),)


def test_trailers_carry_no_framing_no_credentials_and_nothing_that_decides() -> None:
    wrong = [
        b"Content-Length",
        b"Transfer-Encoding",
        b"Host",
        b"Authorization",
        b"Set-Cookie",
        b"Connection",
        b"Content-Type",
    ]
    assert trailer_fields([(b"X-Sum", b"1"), *((name, b"1") for name in wrong)]) == ((b"X-Sum", b"1"),)
    assert last_chunk([(b"X-Sum", b"1"), (b"host", b"x")]) == b"0\r\nX-Sum: 1\r\n\r\n"
    assert last_chunk([]) == b"0\r\n\r\n"
