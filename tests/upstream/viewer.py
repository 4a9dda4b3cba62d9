"""A viewer that writes down what it is told, and can be waited for; it holds the caller to the order of `relay.Viewer`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from typing import Any

from ssegate.core.headers import Headers
from ssegate.upstream import Relaying, Upstream

Pair = tuple[bytes, bytes]


class RecordingViewer:
    """What came of one relayed request."""

    def __init__(self) -> None:
        self.relaying: Relaying | None = None
        self.informational: list[tuple[int, tuple[Pair, ...]]] = []
        self.status = 0
        self.headers = Headers()
        self.pieces: list[bytes] = []
        self.trailers: tuple[Pair, ...] | None = None
        self.error: Exception | None = None
        self.is_cancelled = False
        self.rooms = 0
        """How often there was room again."""
        self.on_data: Callable[[bytes], None] = lambda data: None
        self._waiting: list[tuple[Callable[[RecordingViewer], bool], asyncio.Future[None]]] = []

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def is_over(self) -> bool:
        return self.trailers is not None or self.error is not None

    async def until(self, fact: Callable[[RecordingViewer], bool]) -> None:
        """Wait until something is true of it; raises what it failed with."""
        await self._wait(fact)
        if self.error is not None:
            raise self.error

    async def _wait(self, fact: Callable[[RecordingViewer], bool]) -> None:
        if not fact(self) and self.error is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((fact, future))
            await asyncio.wait_for(future, 10)

    async def head(self) -> RecordingViewer:
        await self.until(lambda it: bool(it.status))
        return self

    async def whole(self) -> bytes:
        """The body, when the answer has ended."""
        await self.until(lambda it: it.trailers is not None)
        return self.body

    async def failed(self) -> Exception:
        await self._wait(lambda it: it.is_over)
        assert self.error is not None, f"it ended well: {self.status} {self.body!r}"
        return self.error

    def cancel(self) -> None:
        assert self.relaying is not None
        self.is_cancelled = True
        self.relaying.cancel()

    async def send_all(self, body: AsyncIterable[bytes], trailers: tuple[Pair, ...] = ()) -> None:
        """Send the pieces as fast as there is room; a failure ends it."""
        assert self.relaying is not None
        async for piece in body:
            if self.is_over:
                return
            rooms = self.rooms
            if not self.relaying.send(piece):
                await self._room_after(rooms)
        self.relaying.send_end(trailers)

    async def _room_after(self, rooms: int) -> None:
        await self.until(lambda it: it.rooms > rooms or it.is_over)

    def _tell(self) -> None:
        for fact, future in self._waiting:
            if not future.done() and (self.error is not None or fact(self)):
                future.set_result(None)

    def _check(self) -> None:
        assert self.relaying is not None, "told before `relay` had returned"
        assert not self.is_cancelled, "told after `cancel`"
        assert not self.is_over, "told after the end"

    # relay.Viewer

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        self._check()
        assert not self.status
        self.informational.append((status, headers))
        self._tell()

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        self._check()
        assert not self.status, "a second head"
        self.status, self.headers = status, Headers(headers)
        self._tell()

    def receive_data(self, data: bytes) -> None:
        self._check()
        assert self.status, "data before the head"
        assert 0 < len(data) <= 65536
        self.pieces.append(data)
        self.on_data(data)
        self._tell()

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        self._check()
        assert self.status, "an end before the head"
        self.trailers = trailers
        self._tell()

    def flush(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self._check()
        self.error = error
        self._tell()

    def resume_sending(self) -> None:
        assert self.relaying is not None, "told before `relay` had returned"
        assert not self.is_cancelled, "told after `cancel`"
        self.rooms += 1
        self._tell()


@dataclass
class Asked:
    """A viewer's request, as an edge gives it."""

    method: str
    target: bytes
    headers: Headers
    http_version: str = "1.1"
    scheme: str = "http"
    peer: str = "203.0.113.9"
    upgrade: bytes | None = None


def relay(
    upstream: Upstream,
    *fields: Pair,
    method: str = "GET",
    target: bytes = b"/orders/17",
    has_body: bool = False,
    host: bytes | None = b"shop.example",
    **others: Any,
) -> RecordingViewer:
    """Begin it. `others` are further parts of the request, and `trusted`."""
    viewer = RecordingViewer()
    headers = Headers([*([(b"Host", host)] if host is not None else []), *fields])
    trusted = others.pop("trusted", ())
    request = Asked(method, target, headers, **others)
    viewer.relaying = upstream.relay(request, trusted, viewer, has_body)
    return viewer
