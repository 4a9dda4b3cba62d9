"""The command line as an HTTP client: one answer's status, and an event stream read as it comes."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from ssegate import __version__
from ssegate.errors import RejectedError, UpstreamError, UpstreamUnreachableError

MAX_REDIRECTS = 10

_MAX_REFUSAL = 2000
_AGENT = f"ssegate/{__version__}"


class UntrustedError(UpstreamError):
    """The server's certificate is not to be trusted, which waiting does not mend."""


def fetch_status(url: str, *, timeout: float) -> int:
    """Ask once; return the status. Raises `UpstreamError` when there is none, and `ValueError` when it is no URL."""
    checked_url(url)
    try:
        # No proxy and no credentials from the environment: it is this machine that is asked.
        return httpx.get(url, timeout=timeout, trust_env=False, headers={"User-Agent": _AGENT}).status_code
    except httpx.HTTPError as error:
        raise UpstreamError(_fact(error)) from error


@dataclass(frozen=True, slots=True)
class Posted:
    """What was answered to a webhook."""

    status: int
    phrase: str
    detail: str
    """What it says in words; empty when nothing."""
    events: str | None
    streams: str | None
    """How many events it became and how many open streams they reached; None when that is not said."""
    seconds: float
    """How long the answer took."""


def post(url: str, headers: Sequence[tuple[str, str]], body: bytes, *, timeout: float) -> Posted:
    """Post a webhook. Raises `UpstreamError` when there is no answer, and `ValueError` when it is no URL."""
    checked_url(url)
    raw = [
        (name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in (("User-Agent", _AGENT), *headers)
    ]
    try:
        with httpx.Client(trust_env=False, timeout=timeout) as client:
            started = time.perf_counter()
            response = client.post(url, headers=raw, content=body)
            seconds = time.perf_counter() - started
    except httpx.HTTPError as error:
        raise UpstreamError(_fact(error)) from error
    told = response.headers
    detail = _detail(response.content)
    return Posted(
        response.status_code,
        response.reason_phrase,
        detail,
        told.get("ssegate-events"),
        told.get("ssegate-streams"),
        seconds,
    )


class EventStream:
    """An answer to a request for an event stream, its body not read yet."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.is_event_stream = _essence(response) == "text/event-stream"
        self.content_type = _essence(response) or "no content-type"
        self.is_resumed = response.headers.get("ssegate-resumed", "")
        """`yes` or `no` from a gate; empty from others."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's pieces as they come. Raises `UpstreamError` when it breaks off."""
        try:
            async for piece in self._response.aiter_bytes():
                yield piece
        except httpx.HTTPError as error:
            raise UpstreamError(_fact(error)) from error

    async def refusal(self) -> str:
        """What the server says about a refusal: the detail of a problem (RFC 9457), else the beginning of its text."""
        body = b""
        async for piece in self:
            body += piece
            if len(body) > _MAX_REFUSAL:
                break
        return _detail(body)


class Client:
    """A client that keeps nothing between requests but its connections."""

    def __init__(self, headers: Sequence[tuple[str, str]], *, is_trusting: bool = False) -> None:
        """`headers` are sent with every request; a redirect does not carry them to another origin.

        `is_trusting`: whether any certificate will do.
        """
        self._headers = list(headers)
        timeout = httpx.Timeout(10.0, read=None)
        self._client = httpx.AsyncClient(trust_env=False, timeout=timeout, verify=not is_trusting)

    @asynccontextmanager
    async def open(self, url: str, last_event_id: str) -> AsyncIterator[EventStream]:
        """Ask for an event stream, as an `EventSource` does (WHATWG HTML, 9.2.3).

        Raises `UpstreamUnreachableError` when no connection came about, `UntrustedError` when that is for the server's
        certificate, `UpstreamError` when it broke.
        """
        response = await self._ask(url, last_event_id)
        try:
            yield EventStream(response)
        finally:
            await response.aclose()

    async def _ask(self, url: str, last_event_id: str) -> httpx.Response:
        headers = [("Accept", "text/event-stream"), ("Cache-Control", "no-store"), ("User-Agent", _AGENT)]
        if last_event_id:
            headers.append(("Last-Event-ID", last_event_id))
        own = [
            (name, value) for name, value in headers if name.lower() not in {key.lower() for key, _ in self._headers}
        ]
        raw = [(name.encode(), value.encode("utf-8")) for name, value in own]
        raw += [(name.encode(), value.encode("latin-1")) for name, value in self._headers]
        request = self._client.build_request("GET", url, headers=raw)
        for _ in range(MAX_REDIRECTS):
            response = await self._send(request)
            onward = response.next_request
            if onward is None:
                return response
            await response.aclose()
            if self._headers and _origin(onward.url) != _origin(request.url):
                raise RejectedError(
                    response.status_code, f"it redirects to {onward.url.host}; ask there if you trust it"
                )
            request = onward
        raise RejectedError(response.status_code, f"more than {MAX_REDIRECTS} redirects")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
                raise UntrustedError(_fact(error)) from error
            raise UpstreamUnreachableError(_fact(error)) from error
        except httpx.HTTPError as error:
            raise UpstreamError(_fact(error)) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def checked_url(url: str) -> str:
    """The URL, if it is one that can be asked. Raises `ValueError` with the mend."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"this is no URL ({error}); write http://host:port/path") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("this is no URL to ask; write http://host:port/path")
    return url


def shown_url(url: str) -> str:
    """Without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _detail(body: bytes) -> str:
    """What an answer says: the detail of a problem (RFC 9457), else the beginning of its text."""
    text = body[:_MAX_REFUSAL].decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    detail = document.get("detail") if isinstance(document, dict) else None
    return str(detail or text.strip().partition("\n")[0])[:200]


def _essence(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _fact(error: httpx.HTTPError) -> str:
    """What happened, in the system's words; the errors on the way up from it repeat them, or say less."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):  # whose numbers are OpenSSL's, not the system's
            return f"TLS failed: {(cause.reason or str(cause)).lower().replace('_', ' ')}"
        if isinstance(cause, OSError) and cause.errno:
            is_lookup = isinstance(cause, socket.gaierror)
            return (cause.strerror or "the name is not known" if is_lookup else os.strerror(cause.errno)).lower()
    if isinstance(error, httpx.TimeoutException):
        return "no connection in time" if isinstance(error, httpx.ConnectTimeout) else "no answer in time"
    return str(error).lower() or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # A name with several addresses fails with a group of errors, one an address.
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
