"""One upstream: polls fetch from it, viewers' requests are sent on to it, all over one pool of connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ssegate.core.headers import Headers, Pair
from ssegate.errors import UpstreamTimeoutError
from ssegate.upstream.address import Address
from ssegate.upstream.connection import ClosedUnansweredError, Connection, Head, Outgoing
from ssegate.upstream.fetch import MAX_REDIRECTS, REDIRECTS, FetchAnswer, basic, bearer, fetch_headers, read_whole
from ssegate.upstream.forwarded import Networks, forwarded_headers
from ssegate.upstream.line import Endpoint
from ssegate.upstream.pool import Budget, Pool
from ssegate.upstream.relay import RelayedResponse, end_to_end, frame, request_headers

if TYPE_CHECKING:
    from ssegate.config.model import Upstream as Settings

FETCH_SILENCES = 6
"""A whole fetch takes at most `timeout.connect` and this many times `timeout.read`: a byte a second is not silence, but
must not hold a poll for ever."""

_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
"""Methods that do no more when they are done twice (RFC 9110, 9.2.2)."""


class Upstream:
    """One upstream of the configuration; lives on the event loop it is first used on, until `aclose`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.address = Address.parse(settings.url)
        self._settings = settings
        self._configured: list[Pair] = [
            (key.encode("latin-1"), value.encode("latin-1")) for key, value in settings.headers.items()
        ]
        self._authorization = _authorization(settings)
        self._connect_seconds = settings.timeout.connect
        self._read_seconds = settings.timeout.read
        self._pool = Pool(
            Endpoint(self.address.host, self.address.port, _tls_context(settings, self.address)),
            settings.connections,
            connect_timeout=self._connect_seconds,
            wait_timeout=self._connect_seconds + self._read_seconds,
        )
        rate = settings.requests_per_second
        self._budget = None if rate is None else Budget(rate)
        self._requests = 0

    async def fetch(
        self,
        path: str,
        headers: Sequence[Pair],
        *,
        method: str = "GET",
        first: bool = False,
        with_auth: bool = True,
        max_body: int,
    ) -> FetchAnswer:
        """Send a poll's request and read its whole answer. `path` is percent-encoded and begins with `/`.

        `with_auth`: whether the gate's own credentials go along where `headers` have no Authorization: the configured
        `auth`, or an Authorization among the configured headers.

        Waits for the `requests_per_second` budget without limit, `first` before others, then for a free connection.
        Redirects are followed to the same origin only; another one is returned as it is. Raises `UpstreamError` and its
        kinds; an answer with any status is no error.
        """
        assert path.startswith("/"), "a path begins with a slash"
        configured, authorization = self._configured, self._authorization
        if not with_auth:
            configured, authorization = [pair for pair in configured if pair[0].lower() != b"authorization"], None
        fields = fetch_headers(self.address.authority, configured, authorization, headers)
        target = self.address.target(path.encode("ascii"))
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._fetch_once(method, target, fields, first, max_body)
            location = answer.headers.get("location")
            if answer.status not in REDIRECTS or method not in ("GET", "HEAD") or location is None:
                break
            onward = self.address.follow(target, location)
            if onward is None:
                break
            target = onward
        return answer

    async def send(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: AsyncIterable[bytes] | None,
        *,
        http_version: str,
        scheme: str,
        peer: str,
        trusted: Networks = (),
    ) -> RelayedResponse:
        """Pass a viewer's request on; returns when the head of the answer has come. The arguments are `exchange.Request`'s.

        `body` may still be read after this returned, until the answer has ended or is closed; what it raises is raised
        here or from the answer's body. Cancelling this ends the upstream request. Raises `UpstreamError` and its kinds.
        """
        is_http2 = not http_version.startswith("1")
        told = forwarded_headers(end_to_end(headers), peer=peer, scheme=scheme, networks=trusted)
        fields = request_headers(told, host=self._host(headers), configured=self._configured, is_http2=is_http2)
        framing, framed = await frame(method, headers, body, is_http2=is_http2)
        connection, head = await self._open(
            self._outgoing(method, self.address.target(target), fields + framing, framed)
        )
        return RelayedResponse(head, connection, self._pool.release)

    async def aclose(self) -> None:
        """Close every connection; requests under way fail, later ones too."""
        self._pool.close()

    def statistics(self) -> Mapping[str, float]:
        """`connections_open`, `connections_in_use`, `requests_waiting` (for a connection or the budget), `requests_sent`."""
        pool = self._pool.statistics()
        waiting = pool["requests_waiting"] + (self._budget.waiting if self._budget is not None else 0)
        return {**pool, "requests_waiting": float(waiting), "requests_sent": float(self._requests)}

    # One request

    async def _fetch_once(
        self, method: str, target: bytes, fields: Sequence[Pair], first: bool, max_body: int
    ) -> FetchAnswer:
        if self._budget is not None:
            await self._budget.take(first=first)
        outgoing = self._outgoing(method, target, fields)
        total = self._connect_seconds + FETCH_SILENCES * self._read_seconds
        try:
            async with asyncio.timeout(total):
                return await self._fetch_whole(outgoing, max_body)
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"{outgoing.label}: no whole answer in {total:g} s") from error

    async def _fetch_whole(self, outgoing: Outgoing, max_body: int) -> FetchAnswer:
        connection, head = await self._open(outgoing)
        try:
            is_wanted = 200 <= head.status < 300 and outgoing.method != b"HEAD"
            body = await read_whole(connection, head.headers, max_body, outgoing.label) if is_wanted else b""
        finally:
            self._pool.release(connection)
        return FetchAnswer(head.status, head.headers, body)

    def _outgoing(
        self, method: str, target: bytes, fields: Sequence[Pair], body: AsyncIterable[bytes] | None = None
    ) -> Outgoing:
        return Outgoing(self.address.label(method, target), method.encode("ascii"), target, fields, body)

    async def _open(self, outgoing: Outgoing) -> tuple[Connection, Head]:
        """Send it and wait for the head. Whoever gets the connection releases it.

        A kept connection that the upstream closed just as it was used again is nobody's fault: the request is repeated
        once, over a new one, if doing it twice does no harm and nothing of its body was read.
        """
        connection = await self._pool.acquire(outgoing.label)
        try:
            return connection, await self._request(connection, outgoing)
        except ClosedUnansweredError:
            if connection.requests == 1 or connection.body_was_read or outgoing.method not in _REPEATABLE:
                raise
        connection = await self._pool.acquire(outgoing.label, is_fresh=True)
        return connection, await self._request(connection, outgoing)

    async def _request(self, connection: Connection, outgoing: Outgoing) -> Head:
        self._requests += 1
        try:
            return await connection.request(outgoing, self._read_seconds)
        except BaseException:
            self._pool.release(connection)
            raise

    def _host(self, headers: Headers) -> bytes:
        """Host for a viewer's request; one without (HTTP/1.0) gets the upstream's own."""
        viewers = headers.get("host") if self._settings.host == "preserve" else self._settings.host
        return (viewers or self.address.authority).encode("latin-1")


def _authorization(settings: Settings) -> bytes | None:
    auth = settings.auth
    if auth is None:
        return None
    if auth.bearer is not None:
        return bearer(auth.bearer.get_secret_value())
    assert auth.basic is not None, "the configuration knows two kinds of auth"
    return basic(auth.basic.user, auth.basic.password.get_secret_value())


def _tls_context(settings: Settings, address: Address) -> ssl.SSLContext | None:
    """One context for all connections: loading the system's authorities takes milliseconds."""
    if address.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=settings.tls.ca)
    if not settings.tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
