from __future__ import annotations

from ipaddress import ip_network

import pytest

from ssegate.core.headers import Headers
from ssegate.upstream.fields import RequestFields
from ssegate.upstream.forwarded import client_address, is_trusted
from tests.upstream.viewer import Asked

NETWORKS = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::1%eth0", True),
        ("192.168.0.1", False),
        ("fe80::1", False),
        ("", False),
        ("no address", False),
    ],
)
def test_only_the_named_networks_are_trusted(peer: str, expected: bool) -> None:
    assert is_trusted(peer, NETWORKS) is expected
    assert not is_trusted(peer, ())


def from_(peer: str, *fields: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The fields of a request as they go on, but Host."""
    raw = ((b"Host", b"shop.example"), *fields)
    request = Asked("GET", b"/", Headers(raw), peer=peer)
    head, _ = RequestFields([], b"api", None).head(request, b"/", False, NETWORKS)
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[2:-2]]
    return [(name, value) for name, _, value in lines]


def test_what_an_untrusted_peer_claims_is_replaced() -> None:
    told = from_(
        "203.0.113.9",
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"evil.example"),
        (b"X-Forwarded-Port", b"443"),
        (b"X-Forwarded-Prefix", b"/evil"),
        (b"Forwarded", b"for=10.0.0.1"),
        (b"X-Other", b"stays"),
    )
    assert told == [
        (b"X-Other", b"stays"),
        (b"X-Forwarded-For", b"203.0.113.9"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"shop.example"),
    ]


def test_what_a_trusted_peer_says_is_continued() -> None:
    told = from_(
        "10.0.0.2",
        (b"X-Forwarded-For", b"198.51.100.7"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"www.example"),
        (b"Forwarded", b"for=198.51.100.7"),
    )
    assert told == [
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"www.example"),
        (b"Forwarded", b"for=198.51.100.7"),
        (b"X-Forwarded-For", b"198.51.100.7, 10.0.0.1, 10.0.0.2"),
    ]


def test_a_trusted_peer_that_says_nothing_is_filled_in_for() -> None:
    assert from_("10.0.0.2") == [
        (b"X-Forwarded-For", b"10.0.0.2"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"shop.example"),
    ]


def test_without_a_peer_there_is_no_chain() -> None:
    assert b"X-Forwarded-For" not in dict(from_("", (b"X-Forwarded-For", b"1.2.3.4")))


@pytest.mark.parametrize(
    ("peer", "chain", "expected"),
    [
        ("203.0.113.9", "198.51.100.7", "203.0.113.9"),
        ("10.0.0.2", None, "10.0.0.2"),
        ("10.0.0.2", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.2", "1.1.1.1, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
        ("10.0.0.2", "10.0.0.5, 10.0.0.1", "10.0.0.5"),
        ("10.0.0.2", "198.51.100.7, nonsense, 10.0.0.1", "10.0.0.1"),
        ("10.0.0.2", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.2", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.2", " , ", "10.0.0.2"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_viewer_is_the_last_of_the_chain_that_is_no_trusted_proxy(
    peer: str, chain: str | None, expected: str
) -> None:
    headers = Headers([(b"X-Forwarded-For", chain.encode())] if chain is not None else [])
    assert client_address(peer, headers, NETWORKS) == expected
