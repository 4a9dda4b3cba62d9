"""What all connections of a native edge share: the gate they ask, the settings, the wheel, the channels, the figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import cached_property, partial
from types import CoroutineType
from typing import TYPE_CHECKING

from ssegate.core.hub import Subscriber, Topic
from ssegate.core.shape import Shape
from ssegate.edge.exchange import Answering, Reply
from ssegate.edge.latency import Latency
from ssegate.edge.native.fanout import Channel
from ssegate.edge.wheel import Wheel

if TYPE_CHECKING:
    from ssegate.edge.native.connection import Connection


class NativeEdge:
    """Renders the gate's replies on sockets of its own. Listeners give it connections."""

    def __init__(
        self,
        answering: Answering,
        *,
        stall: float = 30.0,
        max_head: int = 32 * 1024,
        keep_alive: float = 75.0,
        max_streams: int = 250,
    ) -> None:
        """`stall`: seconds after which a client that takes nothing is dropped; `max_head` in bytes; `keep_alive`: seconds
        an idle connection is kept; `max_streams` of one HTTP/2 connection.
        """
        self.answering = answering
        self.stall = stall
        self.max_head = max_head
        self.keep_alive = keep_alive
        self.max_streams = max_streams
        self.wheel = Wheel()
        self.latency = Latency()
        self.counts = {"streams": 0, "streams_opened": 0, "bytes": 0, "deliveries": 0, "stalled": 0, "cut": 0}
        self.connections: set[Connection] = set()
        self.is_closing = False
        """Whether connections end with the response they are at."""
        self._channels: dict[tuple[Topic, Shape | None], Channel] = {}
        self._is_empty = asyncio.Event()
        self._date = (0, b"")

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that everything here runs on. To ask for it each time costs a system call on Python 3.11 (benchmarks/streams.py:
        99 µs a record instead of 35, where system calls are dear)."""
        return asyncio.get_running_loop()

    def drop(self, connection: Connection) -> None:
        """It is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    def statistics(self) -> dict[str, float]:
        """Streams open and opened, event bytes and deliveries written, clients dropped, responses cut."""
        return dict(self.counts)

    def channel(self, reader: Subscriber | None) -> Channel | None:
        """Where those are who read the same topic in the same shape; made for the first of them. None for no reader."""
        if reader is None:
            return None
        key = (reader.topic, reader.shape)
        channel = self._channels.get(key)
        if channel is None:
            drop = partial(self._channels.pop, key)
            channel = self._channels[key] = Channel(*key, self.counts, self.latency, drop)
        return channel

    def date(self) -> bytes:
        """The value of Date, now."""
        second = int(time.time())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def wait_for(self, reply: Awaitable[Reply], then: Callable[[asyncio.Task[Reply]], None]) -> asyncio.Task[Reply]:
        """Await the gate; `then` is called with the finished task, cancelled or not."""
        # A coroutine becomes the task itself: wrapped in another, it would never be awaited when that is cancelled at once.
        coroutine = reply if isinstance(reply, CoroutineType) else _await(reply)
        task = self.loop.create_task(coroutine)
        task.add_done_callback(then)
        return task

    async def aclose(self, grace: float) -> None:
        """Close every connection: idle ones at once, busy ones when their response is complete or after `grace` seconds."""
        self.is_closing = True
        for connection in tuple(self.connections):
            connection.close_when_idle()
        self._is_empty.clear()
        if self.connections:
            await asyncio.wait((asyncio.ensure_future(self._is_empty.wait()),), timeout=grace)
        for connection in tuple(self.connections):
            connection.abort()
        if self.connections:
            await self._is_empty.wait()


async def _await(reply: Awaitable[Reply]) -> Reply:
    return await reply
