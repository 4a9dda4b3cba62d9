"""An upstream's answer as a coroutine reads it, at its own pace: the head, then piece after piece."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from ssegate.core.headers import Pair
from ssegate.upstream.relay import Relaying

HIGH_WATER = 64 * 1024
"""Bytes of the answer that may wait to be read; with more of them the upstream is not read."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The beginning of the upstream's answer."""

    status: int
    headers: tuple[Pair, ...]


class Intake:
    """The `relay.Viewer` of one request. `relaying` is set by whoever begins it, before anything comes.

    One coroutine reads. Informational answers and trailers end here.
    """

    def __init__(self) -> None:
        self.relaying: Relaying | None = None
        self.head: AnswerHead | None = None
        """None before it has come."""
        # On Python 3.11 `get_running_loop` asks the system for the process: not for each piece.
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._is_complete = False
        self._error: Exception | None = None

    async def read_head(self) -> AnswerHead:
        """Wait for the head. Raises `UpstreamError` when there is none."""
        while self.head is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self.head

    async def read(self) -> bytes:
        """The next piece of the body; empty when it is whole. Raises `UpstreamError` when it is cut, behind what came before."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._is_complete:
                return b""
            await self._wait()
        return self._take()

    def take(self) -> bytes | None:
        """The next piece if it is here; None when it has to be waited for, or there is none."""
        return self._take() if self._pieces else None

    def _take(self) -> bytes:
        piece = self._pieces.popleft()
        was_full = self._unread >= HIGH_WATER
        self._unread -= len(piece)
        if was_full and self._unread < HIGH_WATER and self.relaying is not None:
            self.relaying.resume()
        return piece

    def check(self) -> None:
        """Raise what went wrong so far, if something has."""
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the request. A second call does nothing."""
        if self.relaying is not None:
            self.relaying.cancel()

    async def _wait(self) -> None:
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def tell(self) -> None:
        """Wake whoever reads."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # relay.Viewer

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        """See `relay.Viewer`."""

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        """See `relay.Viewer`."""
        self.head = AnswerHead(status, headers)
        self.tell()

    def receive_data(self, data: bytes) -> None:
        """See `relay.Viewer`."""
        assert self.relaying is not None, "nothing comes before it was begun"
        self._pieces.append(data)
        self._unread += len(data)
        if self._unread >= HIGH_WATER:
            self.relaying.pause()
        self.tell()

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        """See `relay.Viewer`."""
        self._is_complete = True
        self.tell()

    def flush(self) -> None:
        """See `relay.Viewer`."""

    def fail(self, error: Exception) -> None:
        """See `relay.Viewer`."""
        self._error = error
        self.tell()

    def resume_sending(self) -> None:
        """See `relay.Viewer`."""
