"""A request's body for whoever awaits it, kept small: the socket is not read while too much of it waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from ssegate.edge.exchange import ClientGoneError
from ssegate.edge.native import limits
from ssegate.errors import RejectedError


class BodyReader:
    """See `exchange.Body`. The connection feeds it; one coroutine reads it."""

    __slots__ = ("_error", "_is_whole", "_news", "_pieces", "_taken", "is_begun", "unread")

    def __init__(self, taken: Callable[[int], None]) -> None:
        """`taken` is told how many bytes were read, and that it was begun, with 0."""
        self.unread = 0
        """Bytes that wait to be read."""
        self.is_begun = False
        """Whether somebody reads it, or has."""
        self._taken = taken
        self._pieces: deque[bytes] = deque()
        self._is_whole = False
        self._error: Exception | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether no more should come for now."""
        return self.unread >= limits.MAX_UNREAD

    def feed(self, data: bytes) -> None:
        """A piece has come."""
        self._pieces.append(data)
        self.unread += len(data)
        self._wake()

    def feed_end(self) -> None:
        """It is whole."""
        self._is_whole = True
        self._wake()

    def take_whole(self) -> bytes | None:
        """See `exchange.Body`. A webhook's body mostly comes with its head, and asks for no waiting."""
        if not self._is_whole or self.is_begun:
            return None
        self.is_begun = True
        whole = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.unread = 0
        self._taken(len(whole))
        return whole

    def hand_over(self) -> tuple[list[bytes], bool]:
        """What has come while the gate was thinking, and whether that is all: for whoever passes on what follows."""
        pieces = list(self._pieces)
        self._pieces.clear()
        self.unread, self.is_begun = 0, True
        return pieces, self._is_whole

    def break_off(self) -> None:
        """The client is gone."""
        self._error = ClientGoneError()
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.is_begun = True
        self._taken(0)
        while True:
            if self._pieces:
                piece = self._pieces.popleft()
                self.unread -= len(piece)
                self._taken(len(piece))
                yield piece
            elif self._is_whole:
                return
            elif self._error is not None:
                raise self._error
            else:
                await self._wait()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        timer = loop.call_later(limits.BODY_SILENCE, self._wake)
        try:
            await self._news
        finally:
            timer.cancel()
            self._news = None
        if not self._pieces and not self._is_whole and self._error is None:
            raise RejectedError(408, f"the body was silent for {limits.BODY_SILENCE:g} s")
