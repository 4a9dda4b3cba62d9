"""Which pages of other origins may read an event stream (the Fetch standard's CORS protocol)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ssegate.core.headers import Headers, Pair

ALLOWED_HEADERS = b"authorization, last-event-id, cache-control, content-type"
EXPOSED_HEADERS = b"ssegate-resumed, ssegate-stream, ssegate-cursor, ssegate-ended, retry-after"
MAX_AGE = b"600"
"""Seconds a browser keeps a preflight's answer."""


class Cors:
    """The origins that are let in, and the headers that say so."""

    def __init__(self, origins: Sequence[str], *, credentials: bool, headers: Sequence[str] = ()) -> None:
        """`origins` are exact, or have `*.` before the host for every host below it, or are `*` alone. `headers` may be sent beside
        those that every client may send."""
        self._allowed = b", ".join((ALLOWED_HEADERS, *(name.encode("latin-1") for name in dict.fromkeys(headers))))
        self._everyone = "*" in origins
        self._exact = frozenset(origin.lower() for origin in origins)
        self._below = [_below(origin.lower()) for origin in origins if "://*." in origin]
        self._credentials = credentials

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may read."""
        origin = origin.lower()
        return self._everyone or origin in self._exact or any(pattern.fullmatch(origin) for pattern in self._below)

    def headers(self, request: Headers) -> tuple[Pair, ...]:
        """For an answer to this request; a foreign origin is told nothing. `Vary` comes from the caller."""
        origin = request.get("origin")
        if origin is None or not self.allows(origin):
            return ()
        pairs: list[Pair] = [(b"access-control-allow-origin", origin.encode("latin-1"))]
        if self._credentials:
            pairs.append((b"access-control-allow-credentials", b"true"))
        pairs.append((b"access-control-expose-headers", EXPOSED_HEADERS))
        return tuple(pairs)

    def preflight(self, request: Headers, methods: bytes) -> tuple[Pair, ...]:
        """For the answer to a preflight, beside `headers`; empty for a foreign origin."""
        if not self.headers(request):
            return ()
        return (
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", self._allowed),
            (b"access-control-max-age", MAX_AGE),
        )


def _below(origin: str) -> re.Pattern[str]:
    """`https://*.example.com` is every host below example.com, however deep, and not example.com itself."""
    scheme, _, host = origin.partition("://*.")
    return re.compile(rf"{re.escape(scheme)}://(?:[a-z0-9_-]+\.)+{re.escape(host)}")
