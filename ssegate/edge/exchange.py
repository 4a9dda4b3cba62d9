"""What passes between the gate and an edge: a request in, and one of three values back.

An edge renders `Answer`, `Stream` and `Relay` and knows nothing else, so every edge behaves alike.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from ssegate.core.headers import Headers
from ssegate.core.hub import Subscriber
from ssegate.errors import RejectedError, UpstreamTimeoutError
from ssegate.upstream.relay import Relaying as Relaying
from ssegate.upstream.relay import Viewer as Viewer


class Body(Protocol):
    """A body that is read piece by piece; whoever reads controls the pace."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def take_whole(self) -> bytes | None:
        """All of it, if all of it is here and nothing was read yet; else None, and it is read piece by piece."""
        ...


@dataclass(slots=True)
class Request:
    """One request, as it came: nothing decoded, nothing normalised. Nobody changes it; being `frozen` would cost
    half a microsecond for each."""

    method: str
    target: bytes
    """Path and query, raw: `/orders/17/events?x=1`."""
    headers: Headers
    http_version: str
    """`1.0`, `1.1`, `2` or `3`."""
    scheme: str
    """`http` or `https`, as the client's own connection was."""
    peer: str
    """The address of the other end of the connection, without its port; empty when there is none (a UNIX socket)."""
    body: Body | None
    """None when there is none. Raises `RejectedError` 408 when the client falls silent, and `ClientGoneError` when it leaves.
    Of a relayed request the edge reads it and sends it on."""
    upgrade: bytes | None = None
    """The protocol the client asks to go over to (`websocket`), where the edge can do that; never `h2c`."""


class ClientGoneError(Exception):
    """The client left before its request or our answer was complete; there is nobody to tell."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    """For HEAD the edge leaves it out and keeps its length."""
    close: bool = False
    """Whether the connection ends with it (HTTP/1.1): what follows on it cannot be trusted."""


@dataclass(slots=True)
class Stream:
    """An event stream: `opening` and `state` at once, then what `subscriber` reads, until it has ended."""

    headers: tuple[tuple[bytes, bytes], ...]
    opening: bytes
    """The first bytes, sent with the head."""
    subscriber: Subscriber | None
    """None: the stream is over with its opening (overload, drain)."""
    heartbeat: float = 15.0
    """Seconds of silence after which a comment is sent."""
    state: bytes = b""
    """What follows the opening: a document that all newcomers share, so it is not copied. The edge gets it by `take_state`."""
    max_age: float | None = None
    """Seconds after which the edge ends the stream; None is never. Already jittered."""
    close: Callable[[], None] = field(default=lambda: None)
    """Called by the edge exactly once, when the stream is over, whichever way."""

    def take_state(self) -> bytes:
        """The state, which is let go of: a stream that lives for days must not keep the document it began with."""
        state, self.state = self.state, b""
        return state


@dataclass(frozen=True, slots=True)
class Relay:
    """Pass the request on. The edge begins it, sends the request's body, and renders the answer as it comes."""

    begin: Callable[[Viewer, bool], Relaying]
    """Send the request's head upstream, or as soon as there is a connection. The second argument: whether a body
    follows, by `send` and `send_end`."""
    done: Callable[[int], None] | None = None
    """Called by the edge with the status when the head of the answer has come; a write that succeeded makes its topics poll."""


Reply = Answer | Stream | Relay

Answering = Callable[[Request], Reply | Awaitable[Reply]]
"""What an edge is given: the gate's one method. Only what has to wait (for a first poll, for a webhook's body) is awaited.
It raises nothing but `ClientGoneError`, out of the request's body."""


async def read_whole(body: Body | None, limit: int, headers: Headers, limit_name: str = "") -> bytes:
    """Read a whole body. `limit_name`: the key of the configuration that says the limit; empty is none.

    Raises `RejectedError` 413 as soon as it is too large, by its own word or in fact, and what the body raises.
    """
    length = headers.get("content-length")
    if length is not None and length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit, limit_name)
    if body is None:
        return b""
    if (whole := body.take_whole()) is not None:
        if len(whole) > limit:
            raise _too_large(limit, limit_name)
        return whole
    parts: list[bytes] = []
    size = 0
    async for part in body:
        size += len(part)
        if size > limit:
            raise _too_large(limit, limit_name)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int, name: str) -> RejectedError:
    return RejectedError(413, f"the body is larger than {limit} bytes{f' ({name})' if name else ''}")


def problem(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = (), *, close: bool = False) -> Answer:
    """A refusal in words, as `application/problem+json` (RFC 9457)."""
    title = HTTPStatus(status).phrase if status in _KNOWN_STATUSES else "Error"
    body = json.dumps({"title": title, "status": status, "detail": detail}, ensure_ascii=False).encode()
    return Answer(status, ((b"content-type", b"application/problem+json"), *headers), body, close=close)


def bad_gateway(error: Exception) -> Answer:
    """What a viewer is told of an upstream that failed: the fact, and nothing of its address."""
    if isinstance(error, UpstreamTimeoutError):
        return problem(504, "the upstream did not answer in time")
    return problem(502, "the upstream could not be reached, or its answer was broken")


_KNOWN_STATUSES = frozenset(HTTPStatus)
