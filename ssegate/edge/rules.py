"""What a request must be like before anything looks at what it wants: framing, target, host, sizes.

A server in front of the ASGI edge has parsed it already; these are the things that such servers let through and that two
readers of the same request could understand differently.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ssegate.core.headers import Headers, Pair
from ssegate.errors import RejectedError

MAX_HEADERS = 100
MAX_TARGET = 8 * 1024

REFUSED_METHODS = frozenset({"TRACE", "CONNECT"})

_NOT_IN_TARGET = re.compile(rb"[^\x21-\x7e]|[\\#]")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^#]*|\?[^#]*)?", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}")  # what has more digits is no length, and some readers of it would stumble
_CONNECTION_FIELDS = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")


def join_cookies(fields: list[Pair]) -> list[Pair]:
    """HTTP/2 and HTTP/3 may send cookies one by one; for all others "these MUST be concatenated into a single octet string"
    (RFC 9113, 8.2.3). Names are in lower case."""
    crumbs = [value for name, value in fields if name == b"cookie"]
    if len(crumbs) < 2:
        return fields
    return [*(pair for pair in fields if pair[0] != b"cookie"), (b"cookie", b"; ".join(crumbs))]


def check_request(method: str, target: bytes, headers: Headers, http_version: str, *, max_head: int) -> bytes:
    """Raise `RejectedError` for what must not be passed on; return the target as path and query.

    `max_head` in bytes, of target and header fields together. After a rejection the connection cannot be trusted: what
    follows on it may have been meant as this request's body.
    """
    if len(target) > MAX_TARGET:
        raise RejectedError(414, f"the target is longer than {MAX_TARGET} bytes")
    if len(headers) > MAX_HEADERS:
        raise RejectedError(431, f"more than {MAX_HEADERS} header fields")
    checked: _Checked | None = headers.derived.get((_Checked, http_version))
    size = _size(headers) if checked is None else checked.size
    if len(target) + size > max_head:
        raise RejectedError(431, f"the head of the request is larger than {max_head} bytes")
    if method in REFUSED_METHODS:
        raise RejectedError(405, f"{method} is not served here")
    if checked is None:
        _check_framing(headers, http_version)
        checked = headers.derived[_Checked, http_version] = _Checked(size, _check_host(headers, http_version))
    return _check_target(target, checked.host)


class _Checked(NamedTuple):
    """What is known of header fields that have been found good."""

    size: int
    host: str


def _size(headers: Headers) -> int:
    size = 4 * len(headers)
    for name, value in headers.raw:
        size += len(name) + len(value)
    return size


def _check_framing(headers: Headers, http_version: str) -> None:
    """RFC 9112, 6.1 and 6.3: no two ways to find the end of the body. RFC 9113, 8.2.2: no connection fields in HTTP/2."""
    lengths = headers.all("content-length")
    codings = headers.all("transfer-encoding")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise RejectedError(400, "Content-Length is not one number")
    if http_version not in ("1.0", "1.1"):
        if any(name in headers for name in _CONNECTION_FIELDS):
            raise RejectedError(400, "a header field of HTTP/1.1 connections in HTTP/2")
        return
    if not codings:
        return
    if lengths:
        raise RejectedError(400, "both Content-Length and Transfer-Encoding")
    if http_version == "1.0" or [coding.strip().lower() for coding in codings] != ["chunked"]:
        raise RejectedError(400, "Transfer-Encoding is not just `chunked`")


def _check_host(headers: Headers, http_version: str) -> str:
    """RFC 9112, 3.2: exactly one, and valid. HTTP/1.0 may go without."""
    hosts = headers.all("host")
    if not hosts and http_version == "1.0":
        return ""
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise RejectedError(400, "Host is missing, repeated or not a host")
    return hosts[0]


def _check_target(target: bytes, host: str) -> bytes:
    if _NOT_IN_TARGET.search(target):
        raise RejectedError(400, "the target has a character that must be percent-encoded")
    if not target.startswith(b"/") and (found := _ABSOLUTE.fullmatch(target)) is not None:
        # RFC 9112, 3.2.2: servers accept the absolute form. It must not name another host than the one asked.
        if found[1].decode().lower() != host.lower():
            raise RejectedError(400, "the target names another host")
        rest = found[2] or b"/"
        target = rest if rest.startswith(b"/") else b"/" + rest
    if not target.startswith(b"/") or target.startswith(b"//"):
        raise RejectedError(400, "the target is not a path")
    return target
