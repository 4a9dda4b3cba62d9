"""How a request that is passed on and its answer are told to each other: the two sides of a relay.

Both are called on the event loop and neither waits. The upstream gives the `Relaying`, an edge is the `Viewer`.
"""

from __future__ import annotations

from typing import Protocol

from ssegate.core.headers import Headers, Pair


class Passable(Protocol):
    """A request as it came to an edge; see `exchange.Request`."""

    @property
    def method(self) -> str: ...
    @property
    def target(self) -> bytes: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def http_version(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def upgrade(self) -> bytes | None: ...


class Viewer(Protocol):
    """Who is told what comes of a relayed request: the edge's side of a `Relay`.

    Called on the event loop, in this order: any number of `receive_informational`, one `receive_head`, any number of
    `receive_data`, one `receive_end`; or `fail` at any point. Nothing comes after `receive_end`, `fail`, or the edge's own
    `cancel`, and nothing at all before `begin` has returned. Header fields are end-to-end, with raw names, order and repetition.
    """

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        """An answer before the answer: 100 or 103; never 101."""
        ...

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        """The answer begins. 101: the request's `upgrade` was agreed to, and all that follows both ways is its bytes; then
        `Connection: Upgrade` and the upstream's `Upgrade` are the last two of the headers, the only hop-by-hop ones there are.

        Content-Length is among the headers exactly when the length of the body is known, and then it is right or the
        answer will `fail`; to HEAD, with 204 and 304 no data comes whatever it says.
        """
        ...

    def receive_data(self, data: bytes) -> None:
        """A piece of the body, not decompressed; never empty. May be called once or twice more after `pause`."""
        ...

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        """The answer is whole. What is still sent of the request's body goes nowhere.

        Behind a 101 it is this direction alone that is over: the edge may still send, and ends it by `send_end` or `cancel`.
        """
        ...

    def flush(self) -> None:
        """What came in one piece has been told, and the answer goes on: what was told may leave. Not called behind the end."""
        ...

    def fail(self, error: Exception) -> None:
        """There is no answer, or it is cut: an `UpstreamError`."""
        ...

    def resume_sending(self) -> None:
        """There is room again for the request's body, after `send` said that there was none."""
        ...


class Relaying(Protocol):
    """A request on its way to the upstream. The edge calls these on the event loop; none blocks or raises, and after
    the end of the answer none does anything."""

    def send(self, data: bytes) -> bool:
        """Send a piece of the request's body. False: wait for `resume_sending`; what was given is taken nevertheless."""
        ...

    def send_end(self, trailers: tuple[Pair, ...] = ()) -> None:
        """The request's body is whole; behind a 101, this side sends no more. Not called for a request without one."""
        ...

    def pause(self) -> None:
        """Bring no more of the answer for now. A second call does nothing."""
        ...

    def resume(self) -> None:
        """Go on after `pause`; without one it does nothing."""
        ...

    def cancel(self) -> None:
        """End it on both sides: the viewer has left, or its body cannot be completed."""
        ...
