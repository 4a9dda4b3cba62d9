"""A request on its way to the upstream as a coroutine sees it: begun, its body sent, its head awaited, its answer read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import Self

from ssegate.edge.exchange import Relay, Relaying
from ssegate.upstream.intake import AnswerHead, Intake


class Passage(Intake):
    """`async with Passage(relay, body) as passage:` then `read_head`, then iterate; leaving ends the request on both sides."""

    def __init__(self, relay: Relay, body: AsyncIterable[bytes] | None, *, is_announced: bool) -> None:
        """`is_announced`: whether the request's head says that there is a body. If not, the first piece of it does."""
        super().__init__()
        self.sending: asyncio.Task[None] | None = None
        """What sends the body, if there is one, and ends when it has been sent or cannot be; see `check`."""
        self._relay: Relay | None = relay
        self._request_body = None if body is None else aiter(body)
        self._is_announced = is_announced
        self._has_room = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the request on both sides."""
        self.cancel()
        if self.sending is not None:
            self.sending.cancel()
            await asyncio.wait((self.sending,))

    async def begin(self) -> None:
        """Send the request's head, and from now on its body. Raises what the body raises. A second call does nothing."""
        if self.relaying is not None:
            return
        first = b""
        if self._request_body is not None and not self._is_announced:
            first = await anext(self._request_body, b"")
            if not first:
                self._request_body = None
        relay, body = self._relay, self._request_body
        assert relay is not None, "it has not begun"
        self._relay = self._request_body = None  # an answer may last for hours, and its request with it
        self.relaying = relay.begin(self, body is not None)
        if body is not None:
            self.sending = asyncio.get_running_loop().create_task(self._send(self.relaying, body, first))

    async def read_head(self) -> AnswerHead:
        """Begin, and return when the head of the answer has come, which may be before the body was sent.

        Raises `UpstreamError`, and what the request's body raises.
        """
        await self.begin()
        return await super().read_head()

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
        while piece := await self.read():
            yield piece

    # exchange.Viewer

    def receive_end(self, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        """See `relay.Viewer`. What is left of the body goes nowhere; it is read all the same, since its end is waited for."""
        self._has_room.set()
        super().receive_end(trailers)

    def fail(self, error: Exception) -> None:
        """See `relay.Viewer`."""
        self._has_room.set()
        super().fail(error)

    def resume_sending(self) -> None:
        """See `relay.Viewer`."""
        self._has_room.set()
