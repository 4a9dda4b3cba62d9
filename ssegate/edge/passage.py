"""A relayed request as a coroutine sees it: begun, its head awaited, its body iterated; for edges that are made of coroutines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ssegate.core.headers import Pair
from ssegate.edge.exchange import Relay, Relaying

_HIGH_WATER = 64 * 1024
"""Bytes of the answer that may wait to be read; with more of them the upstream is not read."""


@dataclass(frozen=True, slots=True)
class RelayedHead:
    """The beginning of the upstream's answer."""

    status: int
    headers: tuple[Pair, ...]


class Passage:
    """`async with Passage(relay, body) as passage:` then `read_head`, then iterate; leaving ends the request on both sides.

    It is the `exchange.Viewer` of its relay. Informational answers and trailers end here.
    """

    def __init__(self, relay: Relay, body: AsyncIterable[bytes] | None, *, is_announced: bool) -> None:
        """`is_announced`: whether the request's head says that there is a body. If not, the first piece of it does."""
        self._relay = relay
        self._body = None if body is None else aiter(body)
        self._is_announced = is_announced
        self._relaying: Relaying | None = None
        self._sending: asyncio.Task[None] | None = None
        self._has_room = asyncio.Event()
        self._news = asyncio.Event()
        self._head: RelayedHead | None = None
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._is_complete = False
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relaying is not None:
            self._relaying.cancel()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait((self._sending,))

    async def read_head(self) -> RelayedHead:
        """Send the request and return when the head of its answer has come, which may be before its body was sent.

        Raises `UpstreamError`, and what the request's body raises.
        """
        first = b""
        if self._body is not None and not self._is_announced:
            first = await anext(self._body, b"")
            if not first:
                self._body = None
        self._relaying = self._relay.begin(self, self._body is not None)
        if self._body is not None:
            self._sending = asyncio.get_running_loop().create_task(self._send(self._relaying, self._body, first))
        while self._head is None:
            await self._wait()
        return self._head

    async def _send(self, relaying: Relaying, body: AsyncIterator[bytes], piece: bytes) -> None:
        try:
            while piece or (piece := await anext(body, b"")):
                self._has_room.clear()
                if not relaying.send(piece):
                    await self._has_room.wait()
                piece = b""
            relaying.send_end()
        except Exception as error:  # whatever the body raises, is raised to whoever waits for the answer
            relaying.cancel()
            self.fail(error)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body of the answer. Raises `UpstreamError` when it is cut, and what the request's body raises."""
        assert self._relaying is not None, "the head is read first"
        while self._pieces or not self._is_complete:
            if not self._pieces:
                await self._wait()
                continue
            piece = self._pieces.popleft()
            self._unread -= len(piece)
            if self._unread < _HIGH_WATER:
                self._relaying.resume()
            yield piece

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._news.clear()
        await self._news.wait()
        if self._error is not None and not self._pieces:
            raise self._error

    # exchange.Viewer

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        pass

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        self._head = RelayedHead(status, headers)
        self._news.set()

    def receive_data(self, data: bytes) -> None:
        assert self._relaying is not None, "nothing comes before `begin` has returned"
        self._pieces.append(data)
        self._unread += len(data)
        if self._unread >= _HIGH_WATER:
            self._relaying.pause()
        self._news.set()

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        self._is_complete = True
        self._news.set()

    def flush(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self._error = error
        self._news.set()

    def resume_sending(self) -> None:
        self._has_room.set()
