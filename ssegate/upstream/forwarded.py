"""Who the viewer is when proxies stand before the gate, and what the upstream is told about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from ssegate.core.headers import Headers, Pair
from ssegate.upstream.relay import Passable

Networks = Sequence[IPv4Network | IPv6Network]

_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")


def is_trusted(peer: str, networks: Networks) -> bool:
    """Whether this address belongs to one of `server.trusted_proxies`. No address (a UNIX socket) never does."""
    if not networks:
        return False
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


@dataclass(frozen=True, slots=True)
class Told:
    """What a proxy says of the viewer, and is believed."""

    chain: bytes = b""
    """Its X-Forwarded-For."""
    has_scheme: bool = False
    has_host: bool = False


def believe(
    fields: Sequence[Pair], names: Sequence[bytes], dropped: frozenset[bytes], peer: str, networks: Networks
) -> tuple[set[bytes], Told]:
    """Of a request that says who the viewer is: the names of the fields to leave out, and what is true of the others.

    A trusted proxy is believed; of anyone else all X-Forwarded-* and Forwarded are left out. `names` are the fields' in lower
    case; fields in `dropped` do not count.
    """
    if not is_trusted(peer, networks):
        return {name for name in names if name == b"forwarded" or name.startswith(b"x-forwarded-")}, Told()
    told = {name for name in names if name not in dropped}
    chain = [value for (_, value), name in zip(fields, names, strict=True) if name == b"x-forwarded-for" and value]
    return {b"x-forwarded-for"}, Told(
        b", ".join(chain) if b"x-forwarded-for" in told else b"",
        b"x-forwarded-proto" in told,
        b"x-forwarded-host" in told,
    )


def told_of(request: Passable, networks: Networks) -> list[Pair]:
    """X-Forwarded-For, -Proto and -Host for somebody who is asked about a viewer's request and does not get it."""
    headers = request.headers
    host = (headers.get("host") or "").encode("latin-1")
    _, told = believe(headers.raw, headers.names, frozenset(), request.peer, networks)
    pairs = [_parted(line) for line in forwarded_lines(request.peer, request.scheme, host, told)]
    for name, is_told in ((b"X-Forwarded-Proto", told.has_scheme), (b"X-Forwarded-Host", told.has_host)):
        if is_told:
            pairs.append((name, headers.all(name.decode())[-1].encode("latin-1")))
    return pairs


def _parted(line: bytes) -> Pair:
    name, _, value = line.partition(b": ")
    return name, value


def _scheme_line(scheme: str) -> bytes:
    return b"X-Forwarded-Proto: " + scheme.encode("latin-1")


_SCHEMES = {scheme: _scheme_line(scheme) for scheme in ("http", "https")}


def forwarded_lines(peer: str, scheme: str, host: bytes, told: Told | None) -> list[bytes]:
    """X-Forwarded-For, -Proto and -Host for the upstream. `scheme` is how the peer's own connection came, `host` its Host."""
    if told is None and peer and host:
        return [
            f"X-Forwarded-For: {peer}".encode("latin-1"),
            _SCHEMES.get(scheme) or _scheme_line(scheme),
            b"X-Forwarded-Host: " + host,
        ]
    told = told or Told()
    chain = b", ".join(link for link in (told.chain, peer.encode("latin-1")) if link)
    lines = [b"X-Forwarded-For: " + chain] if chain else []
    if not told.has_scheme:
        lines.append(_scheme_line(scheme))
    if host and not told.has_host:
        lines.append(b"X-Forwarded-Host: " + host)
    return lines


@lru_cache(maxsize=1024)
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
