"""One upstream: polls fetch from it, viewers' requests are sent on to it, all over one pool of connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import environ
from typing import TYPE_CHECKING

from ssegate.core.event import encode_text
from ssegate.core.headers import Pair
from ssegate.core.principal import Principal, is_of_viewer
from ssegate.core.template import Template
from ssegate.errors import UpstreamError
from ssegate.upstream.address import Address
from ssegate.upstream.endpoint import Endpoint
from ssegate.upstream.errand import Errand
from ssegate.upstream.fetch import MAX_REDIRECTS, REDIRECTS, FetchAnswer, Fetching, basic, bearer, fetch_headers
from ssegate.upstream.fields import NO_BODY, RequestFields, UnsayableError, request_fields, request_line
from ssegate.upstream.forwarded import Networks
from ssegate.upstream.pool import Budget, Pool

if TYPE_CHECKING:
    from ssegate.config.model import Upstream as Settings
    from ssegate.upstream.relay import Passable, Relaying, Viewer

FETCH_SILENCES = 6
"""A whole fetch takes at most `timeout.connect` and this many times `timeout.read`: a byte a second is not silence, but
must not hold a poll for ever."""

MOST_STREAMS = 100_000
"""Connections of streams. They are watched by somebody each, and what there may be of that is limited elsewhere."""

_UNSAYABLE = "the request has a header or a target HTTP/1.1 cannot say"


class Upstream:
    """One upstream of the configuration; lives on the event loop it is first used on, until `aclose`."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.address = Address.parse(settings.url)
        self._configured: list[Pair] = [
            (key.encode("latin-1"), value.encode("latin-1")) for key, value in settings.plain_headers.items()
        ]
        self._personal = {key.encode("latin-1"): Template(text) for key, text in settings.personal_headers.items()}
        self._authorization = _authorization(settings)
        self._authority = self.address.authority.encode("ascii")
        own_host = None if settings.host == "preserve" else settings.host.encode("latin-1")
        self._fields = RequestFields(self._configured, self._authority, own_host, self._personal)
        connect, read = settings.timeout.connect, settings.timeout.read
        self._read_timeout = read
        self._fetch_seconds = connect + FETCH_SILENCES * read
        self._late_fact = f"no whole answer in {self._fetch_seconds:g} s"
        endpoint = Endpoint(self.address.host, self.address.port, _tls_context(settings, self.address))
        self._pool = Pool(
            endpoint, settings.connections, connect_timeout=connect, wait_timeout=connect + read, read_timeout=read
        )
        # Streams last as long as somebody watches: among the others, a few of them would leave no connection to a request.
        self._streams = Pool(
            endpoint, MOST_STREAMS, connect_timeout=connect, wait_timeout=connect + read, read_timeout=read
        )
        rate = settings.requests_per_second
        self._budget = None if rate is None else Budget(rate)

    def personal(self, principal: Principal) -> list[Pair]:
        """What the upstream is told of a viewer; a field is left out where nothing is known of what it would tell."""

        def value(name: str) -> str | None:
            return principal.value(name) if is_of_viewer(name) else environ.get(name.removeprefix("env."))

        pairs = []
        for name, template in self._personal.items():
            with suppress(LookupError):
                pairs.append((name, encode_text(template.expand(value))))
        return pairs

    @property
    def personal_names(self) -> frozenset[bytes]:
        """The names, in lower case and with dashes, of what it may be told of a viewer."""
        return frozenset(name.lower().replace(b"_", b"-") for name in self._personal)

    async def fetch(
        self,
        path: str,
        headers: Sequence[Pair],
        *,
        method: str = "GET",
        body: bytes | None = None,
        first: bool = False,
        with_auth: bool = True,
        reads_refusals: bool = False,
        follows: bool = True,
        held: float = 0.0,
        max_body: int,
    ) -> FetchAnswer:
        """Send a request of the gate's own and read its whole answer. `path` is percent-encoded and begins with `/`.

        `body`: what is sent, its type among the `headers`; None is no body. `reads_refusals`: whether the body of an answer that
        is no success is wanted too. `with_auth`: whether the gate's own credentials go along where `headers` have no Authorization: the configured
        `auth`, or an Authorization among the configured headers. `held`: seconds for which the upstream may hold the request before it
        answers, beyond those it always may.

        Waits for the `requests_per_second` budget without limit, `first` before others, then for a free connection.
        Redirects are followed to the same origin only, and not at all unless `follows`; another one is returned as it is. Raises `UpstreamError` and its
        kinds; an answer with any status is no error.
        """
        assert path.startswith("/"), "a path begins with a slash"
        lines = self._lines(headers, with_auth=with_auth)
        target = self.address.target(path.encode("ascii"))
        for _ in range(MAX_REDIRECTS + 1):
            fetching = Fetching(max_body, is_head=method == "HEAD", reads_refusals=reads_refusals)
            answer = await self._fetch_once(method, target, lines, body, first, held, fetching)
            location = answer.headers.get("location")
            if answer.status not in REDIRECTS or method not in ("GET", "HEAD") or location is None or not follows:
                break
            onward = self.address.follow(target, location)
            if onward is None:
                break
            target = onward
        return answer

    def open(
        self,
        path: str | bytes,
        headers: Sequence[Pair],
        viewer: Viewer,
        *,
        method: str = "GET",
        framing: int = NO_BODY,
        accept: bytes = b"*/*",
        with_auth: bool = True,
        upgrade: bytes | None = None,
    ) -> Relaying:
        """Send a request of the gate's own whose answer is told to the viewer as it comes, and may never end.

        See `fetch` for the arguments they share; a path of bytes is a whole target, out of a redirect; `framing` is what is known of the body, which is sent by the `Relaying`.
        Redirects are told like any answer. Otherwise as `relay`; neither the budget nor `connections` counts it.
        """
        target, fact = path if isinstance(path, bytes) else self.address.target(path.encode("ascii")), ""
        lines = self._lines(headers, accept=accept, coding=b"identity", with_auth=with_auth)
        if upgrade is not None:
            lines += (b"Connection: Upgrade", b"Upgrade: " + upgrade)
        try:
            head = request_line(method, target) + request_fields(self._authority, lines, framing)
        except UnsayableError:
            head, framing, fact = b"", NO_BODY, _UNSAYABLE
        errand = Errand(self._streams, viewer, self.address, method, target, head, framing, framing == NO_BODY)
        errand.is_endless = True
        if upgrade is not None:
            errand.upgrade = upgrade
        if fact:
            errand.fail_soon(fact)
        else:
            errand.begin()
        return errand

    def _lines(
        self, headers: Sequence[Pair], *, accept: bytes = b"*/*", coding: bytes = b"gzip", with_auth: bool
    ) -> list[bytes]:
        """The fields of a request of the gate's own, but for Host and the framing."""
        configured, authorization = self._configured, self._authorization
        if not with_auth:
            configured, authorization = [pair for pair in configured if pair[0].lower() != b"authorization"], None
        authority = self.address.authority
        fields = fetch_headers(authority, configured, authorization, headers, accept=accept, coding=coding)
        return [b": ".join(pair) for pair in fields[1:]]  # Host is the first, and is written apart

    def relay(
        self,
        request: Passable,
        trusted: Networks,
        viewer: Viewer,
        has_body: bool,
        *,
        more: Sequence[Pair] = (),
    ) -> Relaying:
        """Pass a viewer's request on. The viewer is told what comes.

        It is sent at once when a connection is idle, else as soon as there is one. Never blocks and never raises; what goes wrong
        comes by `viewer.fail`, an `UpstreamError` or one of its kinds, and not before this has returned.

        `more` are fields for this request alone: see `personal`. With `upgrade` the request asks for that protocol; only then may the answer be a 101.
        """
        full, fact = self.address.target(request.target), ""
        try:
            head, framing = self._fields.head(request, full, has_body, trusted, more)
        except UnsayableError:
            head, framing, fact = b"", NO_BODY, _UNSAYABLE
        errand = Errand(self._pool, viewer, self.address, request.method, full, head, framing, not has_body)
        if request.upgrade is not None:
            errand.upgrade = request.upgrade
        if fact:
            errand.fail_soon(fact)
        else:
            errand.begin()
        return errand

    async def aclose(self) -> None:
        """Close every connection; requests under way fail, later ones too."""
        await self._pool.aclose()
        await self._streams.aclose()

    def statistics(self) -> Mapping[str, float]:
        """`connections_open`, `connections_in_use`, `requests_waiting` (for a connection or the budget), `requests_sent`, and
        `streams_open`, whose connections are not among those."""
        pool, streams = self._pool.statistics(), self._streams.statistics()
        waiting = pool["requests_waiting"] + (self._budget.waiting if self._budget is not None else 0)
        sent = float(self._pool.requests + self._streams.requests)
        return {
            **pool,
            "requests_waiting": float(waiting),
            "requests_sent": sent,
            "streams_open": streams["connections_in_use"],
        }

    # One request

    async def _fetch_once(
        self,
        method: str,
        target: bytes,
        lines: list[bytes],
        body: bytes | None,
        first: bool,
        held: float,
        fetching: Fetching,
    ) -> FetchAnswer:
        if self._budget is not None:
            await self._budget.take(first=first)
        framing = NO_BODY if body is None else len(body)
        try:
            head = request_line(method, target) + request_fields(self._authority, lines, framing)
        except UnsayableError:
            raise UpstreamError(f"{self.address.label(method, target)}: {_UNSAYABLE}") from None
        pool = self._streams if held else self._pool  # what is held is as long as a stream
        errand = Errand(pool, fetching, self.address, method, target, head, framing, body is None)
        errand.deadline = asyncio.get_running_loop().time() + self._fetch_seconds + held
        errand.late_fact = self._late_fact
        if held:
            errand.patience = self._read_timeout + held
            errand.late_fact = f"no whole answer in {self._fetch_seconds + held:g} s"
        return await fetching.run(errand, body)


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
