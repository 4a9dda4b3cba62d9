"""Who the viewer is when proxies stand before the gate, and what the upstream is told about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from ssegate.core.headers import Headers, Pair

Networks = Sequence[IPv4Network | IPv6Network]

_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")


def is_trusted(peer: str, networks: Networks) -> bool:
    """Whether this address belongs to one of `server.trusted_proxies`. No address (a UNIX socket) never does."""
    address = _parse(peer)
    return address is not None and any(address in network for network in networks)


def client_address(peer: str, headers: Headers, networks: Networks) -> str:
    """The viewer's address: the last one in X-Forwarded-For that is no trusted proxy, and only if the peer is one.

    An entry that is no address ends the search: what stands before it was written by nobody known.
    """
    client = peer
    if not is_trusted(peer, networks):
        return client
    for entry in reversed((headers.get("x-forwarded-for") or "").split(",")):
        address = _parse(entry)
        if address is None:
            break
        client = str(address)
        if not any(address in network for network in networks):
            break
    return client


def forwarded_headers(headers: Sequence[Pair], *, peer: str, scheme: str, networks: Networks) -> list[Pair]:
    """The request's headers with X-Forwarded-For, -Proto and -Host for the upstream.

    From a trusted proxy the chain is continued and its -Proto and -Host are believed; from anyone else all X-Forwarded-*
    and Forwarded are replaced. `scheme` is how the peer's own connection came.
    """
    if is_trusted(peer, networks):
        kept, chain = _without_chain(headers)
    else:
        kept, chain = [pair for pair in headers if not _is_claim(pair[0].lower())], []
    told = Headers(kept)
    host = told.get("host")
    if peer:
        chain.append(peer.encode("latin-1"))
    if chain:
        kept.append((b"X-Forwarded-For", b", ".join(chain)))
    if "x-forwarded-proto" not in told:
        kept.append((b"X-Forwarded-Proto", scheme.encode("latin-1")))
    if host is not None and "x-forwarded-host" not in told:
        kept.append((b"X-Forwarded-Host", host.encode("latin-1")))
    return kept


def _is_claim(name: bytes) -> bool:
    return name == b"forwarded" or name.startswith(b"x-forwarded-")


def _without_chain(headers: Sequence[Pair]) -> tuple[list[Pair], list[bytes]]:
    kept = [pair for pair in headers if pair[0].lower() != b"x-forwarded-for"]
    return kept, [value for name, value in headers if name.lower() == b"x-forwarded-for" and value]


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Also with a port, and with an IPv6 zone; an IPv4 address written as IPv6 is the IPv4 address."""
    text = text.strip()
    with_port = _WITH_PORT.fullmatch(text)
    if with_port is not None:
        text = with_port[1] or with_port[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
