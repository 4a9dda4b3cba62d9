"""Which header fields go on to the upstream and back to the viewer, and the head of a request as bytes.

The gate's own credentials (`auth`) are for its polls alone: on a viewer's request they would give every viewer the
gate's rights. The configured `headers` go along on both.

All of it is on the way of every request: it works on sets of names and joined bytes, not field by field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ssegate.core.headers import Pair
from ssegate.upstream.answer import options
from ssegate.upstream.forwarded import Networks, believe, forwarded_lines
from ssegate.upstream.relay import Passable

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
_NOT_ASKED = frozenset({b"host", b"content-length"})
"""Made anew."""

_NOT_IN_TRAILERS = _HOP_BY_HOP | frozenset(
    b"age authorization cache-control content-encoding content-length content-range content-type cookie date expect expires "
    b"forwarded host if-match if-modified-since if-none-match if-range if-unmodified-since location max-forwards pragma range "
    b"retry-after set-cookie vary warning www-authenticate".split()
)
"""Framing, routing, credentials and what decides how an answer is handled (RFC 9110, 6.5.1): nobody looks for it there."""

_PLAIN_CONNECTION = frozenset({b"keep-alive", b"Keep-Alive", b"close", b"Upgrade"})
"""What Connection mostly says: it names no further field."""

_TOKEN = bytes(set(range(0x21, 0x7F)) - set(b'"(),/:;<=>?@[\\]{}'))
_VISIBLE = bytes(range(0x21, 0x7F))
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09})
_LENGTH = re.compile(rb"[0-9]{1,18}")
_WITH_A_BODY = frozenset({"POST", "PUT", "PATCH"})
"""Methods for which a request without a body says so: "SHOULD send a Content-Length" (RFC 9110, 8.6)."""

NO_BODY = -2
CHUNKED = -1
"""Beside lengths from 0 on: how the body of a request is framed."""


class UnsayableError(ValueError):
    """A header field or a target that HTTP/1.1 cannot say. It is not quoted: it may be a secret."""


def end_to_end(headers: Iterable[Pair]) -> list[Pair]:
    """Without hop-by-hop fields and those that Connection names (RFC 9110, 7.6.1); order, case and repetition stay."""
    pairs = list(headers)
    dropped = _HOP_BY_HOP | options(pairs)
    return [pair for pair in pairs if pair[0].lower() not in dropped]


class RequestFields:
    """What is the same in the head of every request that is passed on to one upstream."""

    __slots__ = ("_authority", "_configured", "_dropped", "_own_host", "_personal")

    def __init__(
        self, configured: Sequence[Pair], authority: bytes, own_host: bytes | None, personal: Iterable[bytes] = ()
    ) -> None:
        """`own_host` is the Host of every request; without it the viewer's is kept, and `authority` is for one without.

        `personal` are names that tell the upstream who the viewer is: never taken from the viewer."""
        self._configured = [b": ".join(pair) for pair in configured]
        self._dropped = (
            _HOP_BY_HOP | _NOT_ASKED | {name.lower() for name in (*(name for name, _ in configured), *personal)}
        )
        self._authority = authority
        self._own_host = own_host
        self._personal = frozenset(name.lower().replace(b"_", b"-") for name in personal)

    def head(
        self, request: Passable, target: bytes, has_body: bool, trusted: Networks, more: Sequence[Pair] = ()
    ) -> tuple[bytes, int]:
        """The head of a viewer's request for the upstream, and how its body is framed. `more` are fields for this one alone.

        Raises `UnsayableError`."""
        line = request_line(request.method, target)
        if has_body or trusted or more or request.upgrade is not None:
            rest, framing = self._rest(request, has_body, trusted, more)
            return line + rest, framing
        # What decides the rest; a client repeats its fields (see `Headers.derived`).
        key = (self, request.peer, request.http_version, request.scheme, request.method in _WITH_A_BODY)
        known: tuple[bytes, int] | None = request.headers.derived.get(key)
        if known is None:
            known = request.headers.derived[key] = self._rest(request, has_body, trusted)
        return line + known[0], known[1]

    def _rest(
        self, request: Passable, has_body: bool, trusted: Networks, more: Sequence[Pair] = ()
    ) -> tuple[bytes, int]:
        """All of the head behind its first line."""
        raw, names, peer, upgrade = request.headers.raw, request.headers.names, request.peer, request.upgrade
        joined = b"\n".join(names)
        if len(joined.translate(None, _TOKEN)) >= max(1, len(raw)) or b"" in names:
            raise UnsayableError
        framing = framing_of(request.method, raw, names, has_body)
        dropped = self._dropped
        if b"connection" in names:
            dropped = _with_options(dropped, raw, names)
        if self._personal and b"_" in joined:  # CGI and WSGI read both as one
            dropped = dropped.union([name for name in names if name.replace(b"_", b"-") in self._personal])
        if b"proxy-" in joined:
            dropped = dropped.union([name for name in names if name.startswith(b"proxy-")])
        if b"expect" in names and (framing == NO_BODY or request.http_version == "1.0"):
            dropped = dropped | {b"expect"}  # who cannot be told to continue does not ask to be
        viewers = raw[names.index(b"host")][1] if b"host" in names else b""
        told = None
        if b"forwarded" in joined:
            claims, told = believe(raw, names, dropped, peer, trusted)
            dropped = dropped | claims
        lines = [b": ".join(pair) for pair, name in zip(raw, names, strict=True) if name not in dropped]
        lines += forwarded_lines(peer, request.scheme, viewers, told)
        lines += self._configured
        lines += [b": ".join(pair) for pair in more]
        if upgrade is not None:
            lines += (b"Connection: Upgrade", b"Upgrade: " + upgrade)
        return request_fields(self._own_host or viewers or self._authority, lines, framing), framing


def request_line(method: str, target: bytes) -> bytes:
    """The first line of a head, with its end. Raises `UnsayableError`."""
    verb = method.encode("ascii", "replace")
    if not target or target.translate(None, _VISIBLE) or not verb or verb.translate(None, _TOKEN):
        raise UnsayableError
    return b"%b %b HTTP/1.1\r\n" % (verb, target)


def request_fields(host: bytes, lines: list[bytes], framing: int) -> bytes:
    """The rest of a head. Raises `UnsayableError`. The names in the lines are taken for tokens."""
    all_lines = [b"Host: " + host, *lines]
    if framing >= 0:
        all_lines.append(b"Content-Length: %d" % framing)
    elif framing == CHUNKED:
        all_lines.append(b"Transfer-Encoding: chunked")
    all_lines.append(b"\r\n")
    head = b"\r\n".join(all_lines)
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(all_lines):
        raise UnsayableError  # a line end, or NUL, where there is none of ours
    return head


def framing_of(method: str, fields: Sequence[Pair], names: Sequence[bytes], has_body: bool) -> int:
    """How the body is framed: as long as the viewer says, else in chunks. `names` are the fields' in lower case."""
    length = _announced_length(fields, names) if b"content-length" in names else None
    if has_body:
        return CHUNKED if length is None else length
    if length is not None:
        return length  # with no body to come and a length above 0 the request never becomes whole
    return 0 if method in _WITH_A_BODY else NO_BODY


def _announced_length(fields: Sequence[Pair], names: Sequence[bytes]) -> int | None:
    value = fields[names.index(b"content-length")][1]
    if names.count(b"content-length") > 1 or b"transfer-encoding" in names or not _LENGTH.fullmatch(value):
        return None
    return int(value)


def _with_options(dropped: frozenset[bytes], fields: Sequence[Pair], names: Sequence[bytes]) -> frozenset[bytes]:
    if names.count(b"connection") == 1 and fields[names.index(b"connection")][1] in _PLAIN_CONNECTION:
        return dropped
    return dropped | options(fields)


_IN_ANSWERS = _HOP_BY_HOP - {b"http2-settings"}


def answer_fields(status: int, fields: list[Pair], names: list[bytes]) -> tuple[Pair, ...]:
    """The fields of an answer for the viewer. `names` are theirs in lower case.

    Content-Length goes where Transfer-Encoding overrides it (RFC 9112, 6.3), and where "a server MUST NOT send" it
    (RFC 9110, 8.6).
    """
    if status >= 200 and status != 204 and _IN_ANSWERS.isdisjoint(names):
        return tuple(fields)
    dropped = _HOP_BY_HOP
    if b"connection" in names:
        dropped = _with_options(dropped, fields, names)
    if status < 200 or status == 204 or b"transfer-encoding" in names:
        dropped = dropped | {b"content-length"}
    return tuple([pair for pair, name in zip(fields, names, strict=True) if name not in dropped])


def trailer_fields(trailers: Iterable[Pair]) -> tuple[Pair, ...]:
    """Those of the trailers that may be passed on."""
    return tuple(pair for pair in trailers if pair[0].lower() not in _NOT_IN_TRAILERS)


def last_chunk(trailers: Iterable[Pair]) -> bytes:
    """The end of a body in chunks. Raises `UnsayableError`."""
    lines = [b"0"]
    for name, value in trailer_fields(trailers):
        if not name or name.translate(None, _TOKEN) or value.translate(None, _CONTROLS) != value:
            raise UnsayableError
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"
