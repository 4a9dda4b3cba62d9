from __future__ import annotations

import pytest

from ssegate.core.headers import Headers, Pair
from ssegate.edge.rules import MAX_HEADERS, MAX_TARGET, check_request, join_cookies
from ssegate.errors import RejectedError

HOST = (b"Host", b"gate.test")
MAX_HEAD = 32 * 1024


def checked(
    *headers: Pair, target: bytes = b"/x", method: str = "GET", version: str = "1.1", host: Pair | None = HOST
) -> bytes:
    fields = Headers(headers if host is None else (host, *headers))
    return check_request(method, target, fields, version, max_head=MAX_HEAD)


def refusal(
    *headers: Pair, target: bytes = b"/x", method: str = "GET", version: str = "1.1", host: Pair | None = HOST
) -> int:
    with pytest.raises(RejectedError) as caught:
        checked(*headers, target=target, method=method, version=version, host=host)
    assert b"secret" not in str(caught.value).encode()
    return caught.value.status


# Sizes


def test_a_target_of_8_kib_passes_and_a_longer_one_is_414() -> None:
    target = b"/" + b"x" * (MAX_TARGET - 1)
    assert checked(target=target) == target
    assert refusal(target=target + b"x") == 414


def test_a_hundred_header_fields_pass_and_more_are_431() -> None:
    assert checked(*[(b"x", b"")] * (MAX_HEADERS - 1)) == b"/x"
    assert refusal(*[(b"x", b"")] * MAX_HEADERS) == 431


def test_a_head_over_its_limit_is_431() -> None:
    rest = MAX_HEAD - len(b"/x") - len(b"Host") - len(b"gate.test") - 4
    assert checked((b"a", b"x" * (rest - 5))) == b"/x"
    assert refusal((b"a", b"x" * (rest - 4))) == 431


# Methods


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_methods_that_turn_a_server_into_a_tunnel_or_a_mirror_are_405(method: str) -> None:
    assert refusal(method=method) == 405


@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND", "trace"])
def test_other_methods_pass(method: str) -> None:
    assert checked(method=method) == b"/x"


# Framing


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"5"), (b"content-length", b"6")],
        [(b"Content-Length", b"5"), (b"Content-Length", b"5")],
        [(b"Content-Length", b"5, 5")],
        [(b"Content-Length", b"+5")],
        [(b"Content-Length", b"-5")],
        [(b"Content-Length", b"0x5")],
        [(b"Content-Length", b"5_0")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"\xb2")],
        [(b"Content-Length", b"5\n")],
        [(b"Content-Length", b"9" * 5000)],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Transfer-Encoding", b"chunked, chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"")],
        [(b"Transfer-Encoding", b"\x0bchunked\x00")],
        [(b"Transfer-Encoding", b"xchunked")],
    ],
)
def test_two_readers_could_not_agree_where_this_body_ends(headers: list[Pair]) -> None:
    assert refusal(*headers, method="POST") == 400


@pytest.mark.parametrize(
    "headers", [[(b"Content-Length", b"0")], [(b"Content-Length", b"007")], [(b"Transfer-Encoding", b"Chunked ")], []]
)
def test_a_body_with_one_end_passes(headers: list[Pair]) -> None:
    assert checked(*headers, method="POST") == b"/x"


def test_chunks_are_not_known_in_http_1_0() -> None:
    assert refusal((b"Transfer-Encoding", b"chunked"), version="1.0") == 400
    assert checked((b"Content-Length", b"5"), version="1.0") == b"/x"


@pytest.mark.parametrize("name", [b"connection", b"Keep-Alive", b"proxy-connection", b"transfer-encoding", b"upgrade"])
def test_fields_of_a_connection_are_refused_in_http_2_and_3(name: bytes) -> None:
    assert refusal((name, b"x"), version="2") == 400
    assert refusal((name, b"x"), version="3") == 400


def test_http_2_knows_one_length_too() -> None:
    assert refusal((b"content-length", b"5"), (b"content-length", b"5"), version="2") == 400
    assert checked((b"content-length", b"5"), (b"te", b"trailers"), version="2") == b"/x"


def test_an_upgrade_is_let_pass_to_be_ignored() -> None:
    assert checked((b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"x"), (b"Connection", b"Upgrade")) == b"/x"


# Host


@pytest.mark.parametrize(
    "host", [b"a.test", b"a.test:8080", b"[::1]:80", b"[2001:db8::1]", b"127.0.0.1", b"under_score.test"]
)
def test_a_host_passes(host: bytes) -> None:
    assert checked(host=(b"Host", host)) == b"/x"


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a b",
        b"a.test/",
        b"a.test/x",
        b"u@a.test",
        b"a.test:",
        b"a.test:x",
        b"a.test:999999",
        b"a,b",
        b"a\x00",
        b"a\n",
        b"\xe9.test",
        b"[::1",
        b"http://a.test",
    ],
)
def test_what_is_no_host_is_400(host: bytes) -> None:
    assert refusal(host=(b"Host", host)) == 400


def test_no_host_or_two_are_400() -> None:
    assert refusal(host=None) == 400
    assert refusal(HOST) == 400
    assert refusal(host=None, version="2") == 400


def test_http_1_0_may_go_without_a_host() -> None:
    assert checked(host=None, version="1.0") == b"/x"
    assert refusal(HOST, version="1.0") == 400


# Targets


@pytest.mark.parametrize(
    "target", [b"/", b"/a/b?c=d&e", b"/a//b", b"/%2e%2e/", b"/a;b=c,d:e@f!$'()*+~", b"/?x=http://evil.test", b"/a?b?c"]
)
def test_a_path_and_query_stay_as_they_came(target: bytes) -> None:
    assert checked(target=target) == target


@pytest.mark.parametrize(
    "target",
    [
        b"", b"*", b"x", b"//evil.test/x", b"/a\\b", b"/a#b", b"/a b", b"/a\tb", b"/a\x00", b"/a\x7f", b"/a\x80", b"/\xc3\xa9",
        b"/a\r\nX: y", b"http://evil.test/x", b"https://gate.test:1/x", b"http://secret@gate.test/x", b"ftp://gate.test/x",
        b"gate.test:80", b"http:///x", b"http://gate.test//evil.test/x", b"http://gate.test#x", b"http:/gate.test/x", b"?x",
    ],
)  # fmt: skip
def test_a_target_that_two_readers_could_take_differently_is_400(target: bytes) -> None:
    assert refusal(target=target) == 400


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://gate.test/x?y", b"/x?y"), (b"HTTPS://GATE.TEST/x", b"/x"), (b"http://gate.test", b"/"),
        (b"http://gate.test?y", b"/?y"),
    ],
)  # fmt: skip
def test_the_absolute_form_of_the_host_that_was_asked_is_its_path(target: bytes, path: bytes) -> None:
    assert checked(target=target) == path


def test_the_absolute_form_without_a_host_names_another_one() -> None:
    assert refusal(target=b"http://gate.test/x", host=None, version="1.0") == 400


def test_the_cookies_of_http2_become_one_field() -> None:
    crumbs = [(b"cookie", b"a=1"), (b"accept", b"x"), (b"cookie", b"b=2")]
    assert join_cookies(crumbs) == [(b"accept", b"x"), (b"cookie", b"a=1; b=2")]
    assert join_cookies(crumbs[:2]) == crumbs[:2]
