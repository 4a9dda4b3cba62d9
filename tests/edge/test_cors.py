from __future__ import annotations

import pytest

from ssegate.core.headers import Headers
from ssegate.edge.cors import Cors

CORS = Cors(
    ["https://app.example.com", "https://*.preview.example.com", "http://localhost:5173", "https://[::1]:8443"],
    credentials=True,
)


def asking(origin: str) -> Headers:
    return Headers([(b"Origin", origin.encode("latin-1"))])


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com", "https://a.preview.example.com", "https://a.b.preview.example.com",
        "http://localhost:5173", "HTTPS://APP.EXAMPLE.COM", "https://[::1]:8443", "https://pr-17_x.preview.example.com",
    ],
)  # fmt: skip
def test_a_page_of_a_named_origin_may_read_and_is_told_its_own_origin(origin: str) -> None:
    assert CORS.headers(asking(origin)) == (
        (b"access-control-allow-origin", origin.encode()),
        (b"access-control-allow-credentials", b"true"),
        (
            b"access-control-expose-headers",
            b"ssegate-resumed, ssegate-stream, ssegate-cursor, ssegate-ended, retry-after",
        ),
    )


@pytest.mark.parametrize(
    "origin",
    [
        "", "null", "*", "https://example.com", "http://app.example.com", "https://app.example.com:8443",
        "https://app.example.com.evil.test", "https://evil.test/https://app.example.com", "https://appXexample.com",
        "https://preview.example.com", "https://a.previewXexample.com", "https://.preview.example.com", "https://evilpreview.example.com",
        "https://evil.test#.preview.example.com", "https://evil.test/.preview.example.com", "https://a..preview.example.com",
        "https://evil.test:80.preview.example.com", "https://u@a.preview.example.com", "https://a.preview.example.com\n",
        "https://a.preview.example.com.", "https://app.example.com, https://evil.test", "https://\xe9.preview.example.com",
    ],
)  # fmt: skip
def test_a_foreign_origin_is_told_nothing(origin: str) -> None:
    assert CORS.headers(asking(origin)) == ()
    assert CORS.preflight(asking(origin), b"GET") == ()


def test_two_origins_in_one_request_are_none() -> None:
    pair = (b"Origin", b"https://app.example.com")
    assert CORS.headers(Headers([pair, pair])) == ()


def test_a_request_without_origin_is_told_nothing() -> None:
    assert CORS.headers(Headers()) == ()


def test_everyone_may_be_let_in_and_is_still_told_its_own_origin() -> None:
    everyone = Cors(["*"], credentials=False)
    assert everyone.headers(asking("https://a.test"))[0] == (b"access-control-allow-origin", b"https://a.test")
    assert everyone.headers(asking("null"))[0] == (b"access-control-allow-origin", b"null")


def test_credentials_are_allowed_only_when_configured() -> None:
    names = [name for name, _ in Cors(["https://a.test"], credentials=False).headers(asking("https://a.test"))]
    assert names == [b"access-control-allow-origin", b"access-control-expose-headers"]


def test_a_preflight_says_what_may_be_sent_and_is_kept_ten_minutes() -> None:
    assert CORS.preflight(asking("https://app.example.com"), b"GET, HEAD") == (
        (b"access-control-allow-methods", b"GET, HEAD"),
        (b"access-control-allow-headers", b"authorization, last-event-id, cache-control, content-type"),
        (b"access-control-max-age", b"600"),
    )


def test_a_long_origin_is_looked_at_in_no_time() -> None:
    assert not CORS.allows("https://" + "a." * 50_000 + "evil.test")
