"""The connections to one upstream and the budget of its polls: who may send now, and over which connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from ssegate.errors import UpstreamUnreachableError
from ssegate.upstream.connection import Connection
from ssegate.upstream.line import Endpoint

IDLE_SECONDS = 60.0
"""An idle connection is closed after this long."""

_TOKEN = 1.0 - 1e-9
"""What counts as one token: sums of fractions rarely meet 1.0, and a timer for the rest would never end."""


class Pool:
    """At most `size` connections, idle ones included. Whoever has one puts it back with `release`, always.

    Places are given in the order they were asked for. A connection that was cancelled, failed or not read to its end is
    closed and not used again, so nothing of one request can be met by the next.
    """

    def __init__(self, endpoint: Endpoint, size: int, *, connect_timeout: float, wait_timeout: float) -> None:
        self._endpoint = endpoint
        self._size = size
        self._connect_timeout = connect_timeout
        self._wait_timeout = wait_timeout
        self._places = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def acquire(self, label: str, *, is_fresh: bool = False) -> Connection:
        """A connection nobody else has: the one used last, or a new one; `is_fresh` asks for a new one.

        Raises `UpstreamUnreachableError` when none became free in time, or none could be made.
        """
        await self._take_place(label)
        try:
            self._check_open(label)
            connection = (None if is_fresh else self._reuse()) or await self._connect(label)
        except BaseException:
            self._give_place()
            raise
        self._in_use.add(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Put it back: to be used again if its request was sent and answered whole, closed otherwise.

        Never waits, so a cancelled task cannot be interrupted here. A second call does nothing.
        """
        if connection not in self._in_use:
            return
        self._in_use.discard(connection)
        if not self._is_closed and connection.make_reusable():
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._plan_sweep()
        else:
            connection.abort()
        self._give_place()

    def close(self) -> None:
        """Close every connection, those in use too, and send off who waits for one."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in (*self._idle, *self._in_use):
            connection.abort()
        self._idle.clear()
        while self._waiting:
            _grant(self._waiting.popleft())

    def statistics(self) -> Mapping[str, float]:
        """Connections open and in use, and requests that wait for one."""
        idle = sum(connection.is_open for connection in self._idle)
        return {
            "connections_open": float(idle + len(self._in_use)),
            "connections_in_use": float(len(self._in_use)),
            "requests_waiting": float(len(self._waiting)),
        }

    # Connections

    def _reuse(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.abort()
        return None

    async def _connect(self, label: str) -> Connection:
        if self._idle:  # a fresh one was asked for beside idle ones; the oldest makes room
            self._idle.pop(0).abort()
        connection = await Connection.open(self._endpoint, self._connect_timeout, label)
        try:
            self._check_open(label)
        except UpstreamUnreachableError:
            connection.abort()
            raise
        return connection

    def _plan_sweep(self) -> None:
        if self._sweeping is None:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_at(self._idle[0].idle_since + IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close those idle for too long and those that were closed from the other side. The list is oldest first."""
        self._sweeping = None
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        kept = [connection for connection in self._idle if connection.is_open and connection.idle_since > oldest]
        for connection in set(self._idle).difference(kept):
            connection.abort()
        self._idle = kept
        if kept:
            self._plan_sweep()

    # Places

    async def _take_place(self, label: str) -> None:
        if self._places and not self._waiting:
            self._places -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._wait_timeout):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._give_place()  # it was given in the moment we were sent away
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                message = f"{label}: all {self._size} connections are busy"
                raise UpstreamUnreachableError(message) from error
            raise

    def _give_place(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if _grant(place):
                return
        self._places += 1

    def _check_open(self, label: str) -> None:
        if self._is_closed:
            raise UpstreamUnreachableError(f"{label}: the gate has closed its connections")


class Budget:
    """So many requests a second, spread evenly, with a burst of one second's worth (at least one).

    In the order they were asked for, but those marked `first` go before all others.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._tokens = self._most
        self._counted_at: float | None = None
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._first) + len(self._others)

    async def take(self, *, first: bool = False) -> None:
        """Wait for a turn. Cancelled, it takes none."""
        self._refill()
        if not self.waiting and self._tokens >= _TOKEN:
            self._tokens -= 1.0
            return
        turn = asyncio.get_running_loop().create_future()
        queue = self._first if first else self._others
        queue.append(turn)
        self._plan()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._tokens += 1.0
                self._serve()
            elif turn in queue:
                queue.remove(turn)
            raise

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._counted_at is not None:
            self._tokens = min(self._most, self._tokens + (now - self._counted_at) * self._per_second)
        self._counted_at = now

    def _serve(self) -> None:
        while self._tokens >= _TOKEN and self.waiting:
            if _grant((self._first or self._others).popleft()):
                self._tokens -= 1.0
        self._plan()

    def _plan(self) -> None:
        if self._timer is None and self.waiting:
            seconds = max(0.0, (1.0 - self._tokens) / self._per_second)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._refill()
        self._serve()


def _grant(waiter: asyncio.Future[None]) -> bool:
    """Let it go on; false when it was cancelled meanwhile."""
    if waiter.done():
        return False
    waiter.set_result(None)
    return True
