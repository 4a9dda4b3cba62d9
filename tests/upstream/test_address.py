from __future__ import annotations

import pytest

from ssegate.upstream.address import Address


@pytest.mark.parametrize(
    ("url", "authority", "port"),
    [
        ("http://api:8000", "api:8000", 8000),
        ("http://api", "api", 80),
        ("https://api:443/", "api", 443),
        ("https://[::1]:8443", "[::1]:8443", 8443),
        ("http://ann:s3cret@API/v1", "api", 80),
    ],
)
def test_a_url_is_taken_apart(url: str, authority: str, port: int) -> None:
    address = Address.parse(url)
    assert (address.authority, address.port) == (authority, port)


@pytest.mark.parametrize("url", ["api:8000", "ftp://api", "http://", "/x", "http://api:99999"])
def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.parse(url)


def test_a_label_shows_no_query_no_userinfo_and_cannot_forge_a_line() -> None:
    address = Address.parse("http://ann:s3cret@api:8000/v1")
    assert address.label("GET", address.target(b"/a\r\nb\x1b?token=s3cret")) == "GET http://api:8000/v1/a??b?"
    assert len(address.label("GET", b"/" + b"x" * 5000)) < 250
