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


class Body(Protocol):
    """A body that is read piece by piece; whoever reads controls the pace."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it came: nothing decoded, nothing normalised."""

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
    """None when there is none. Raises `RejectedError` 408 when the client falls silent, and `ClientGoneError` when it leaves."""


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


class RelayResponse(Protocol):
    """The upstream's answer to a relayed request, its head read, its body not yet."""

    status: int
    headers: Headers
    """Without hop-by-hop fields; repeated fields kept, raw names and order kept."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The raw body, not decompressed. Raises `UpstreamError` when it is cut."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or close it when the body was not read to its end. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Relay:
    """Pass the request on. The edge opens it, renders the response, and closes it."""

    open: Callable[[], Awaitable[RelayResponse]]
    """Send the request upstream, its body streamed, and return when the head of the answer has come. Cancelling it ends
    the upstream request. Raises `UpstreamError`."""
    done: Callable[[int], None] = field(default=lambda status: None)
    """Called with the status when the head of the answer has come; a write that succeeded makes its topics poll."""


Answering = Callable[[Request], Awaitable[Answer | Stream | Relay]]
"""What an edge is given: the gate's one method. It raises nothing but `ClientGoneError`, out of the request's body."""


def problem(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = (), *, close: bool = False) -> Answer:
    """A refusal in words, as `application/problem+json` (RFC 9457)."""
    title = HTTPStatus(status).phrase if status in _KNOWN_STATUSES else "Error"
    body = json.dumps({"title": title, "status": status, "detail": detail}, ensure_ascii=False).encode()
    return Answer(status, ((b"content-type", b"application/problem+json"), *headers), body, close=close)


_KNOWN_STATUSES = frozenset(HTTPStatus)
