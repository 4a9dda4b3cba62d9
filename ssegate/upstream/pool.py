"""The connections to one upstream and the budget of its polls: who may send now, and over which connection."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ssegate.errors import UpstreamUnreachableError
from ssegate.upstream.connection import Connection, Space
from ssegate.upstream.endpoint import Endpoint, UnreachableError, open_connection

if TYPE_CHECKING:
    from ssegate.upstream.errand import Errand

IDLE_SECONDS = 60.0
"""An idle connection is closed after this long."""

_CLOCK_GRAIN = 0.001
"""An event loop may call a timer this much early."""

_TOKEN = 1.0 - 1e-9
"""What counts as one token: sums of fractions rarely meet 1.0, and a timer for the rest would never end."""


class Pool:
    """At most `size` connections, idle ones included. Whoever was given one puts it back with `release`, always.

    Places are given in the order they were asked for. A connection that was cancelled, failed or not read to its end is
    closed and not used again, so nothing of one request can be met by the next.
    """

    def __init__(
        self, endpoint: Endpoint, size: int, *, connect_timeout: float, wait_timeout: float, read_timeout: float
    ) -> None:
        self.requests = 0
        """How many were sent, repeated ones twice."""
        self._endpoint = endpoint
        self._size = size
        self._connect_timeout = connect_timeout
        self._wait_timeout = wait_timeout
        self._read_timeout = read_timeout
        self._space = Space()
        self._places = size
        self._waiting: OrderedDict[Errand, float] = OrderedDict()
        """Who waits for a place, and until when, by the loop's clock."""
        self._connecting: dict[Errand, asyncio.Task[Connection]] = {}
        self._tasks: set[asyncio.Task[Connection]] = set()
        """Those of `_connecting`, and those that were cancelled and are not over."""
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._dismissing: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._on: asyncio.AbstractEventLoop | None = None

    def ask(self, errand: Errand) -> None:
        """Give it a connection nobody else has, by `errand.take`: now the one used last, or later a new one, or one that became
        free. A repeated errand gets a new one.

        `errand.fail` gets an `UpstreamUnreachableError`, never before this has returned, when none could be made or none became
        free in time.
        """
        if self._is_closed:
            self._loop.call_soon(self._turn_away, errand)
        elif self._places and not self._waiting:
            self._places -= 1
            self._serve(errand)
        else:
            self._waiting[errand] = self._loop.time() + self._wait_timeout
            self._plan_dismissal()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop it is used on; asking for it costs a system call on Python 3.11, for each request."""
        if self._on is None:
            self._on = asyncio.get_running_loop()
        return self._on

    def leave(self, errand: Errand) -> None:
        """It wants no connection any more. One that has none and waits for none is nothing to do."""
        task = self._connecting.pop(errand, None)
        if task is not None:
            task.cancel()
        else:
            self._waiting.pop(errand, None)

    def release(self, connection: Connection, *, is_clean: bool) -> None:
        """Put it back: to be used again if its request was sent and answered whole (`is_clean`), closed otherwise.

        Whoever waits for a place may be served before this returns. A second call does nothing.
        """
        if connection not in self._in_use:
            return
        self._in_use.discard(connection)
        if is_clean and not self._is_closed:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
            if self._sweeping is None:
                self._plan_sweep()
        else:
            connection.abort()
        self._give_place()

    def close(self) -> None:
        """Close every connection, and send off who has one or waits for one."""
        self._is_closed = True
        for timer in (self._sweeping, self._dismissing):
            if timer is not None:
                timer.cancel()
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        for connection in tuple(self._in_use):
            connection.close()
        for errand in (*self._connecting, *self._waiting):
            self.leave(errand)
            self._turn_away(errand)

    async def aclose(self) -> None:
        """`close`, and wait until no task is left."""
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def statistics(self) -> Mapping[str, float]:
        """Connections open and in use (also those that are being opened), and requests that wait for one."""
        idle = sum(connection.is_open() for connection in self._idle)
        in_use = len(self._in_use) + len(self._tasks)
        return {
            "connections_open": float(idle + in_use),
            "connections_in_use": float(in_use),
            "requests_waiting": float(len(self._waiting)),
        }

    # Connections

    def _serve(self, errand: Errand) -> None:
        """It has a place; now it gets a connection."""
        while self._idle and not errand.is_repeated:
            connection = self._idle.pop()
            if connection.is_open():
                self._give(errand, connection)
                return
            connection.abort()
        self._connect(errand)

    def _give(self, errand: Errand, connection: Connection) -> None:
        self._in_use.add(connection)
        self.requests += 1
        errand.take(connection)

    def _connect(self, errand: Errand) -> None:
        if self._idle:  # a fresh one is wanted beside idle ones; the oldest makes room
            self._idle.pop(0).abort()
        task = self._loop.create_task(self._open(errand))
        self._connecting[errand] = task
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._end_connecting(errand, task))

    async def _open(self, errand: Errand) -> Connection:
        connection = Connection(self._space, self._read_timeout)
        try:
            await open_connection(self._endpoint, connection, self._connect_timeout)
        except UnreachableError as fact:
            raise UpstreamUnreachableError(f"{errand.label}: {fact}") from fact.__cause__
        except BaseException:
            connection.abort()
            raise
        return connection

    def _end_connecting(self, errand: Errand, task: asyncio.Task[Connection]) -> None:
        """The task is over, and has a connection unless it failed or was cancelled; the errand may have left meanwhile."""
        self._tasks.discard(task)
        is_wanted = self._connecting.pop(errand, None) is task
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None and is_wanted:
            self._give(errand, task.result())
            return
        if error is None:
            task.result().abort()
        self._give_place()
        if is_wanted:
            errand.fail(error if isinstance(error, Exception) else self._closed(errand))

    def _plan_sweep(self) -> None:
        loop = self._loop
        self._sweeping = loop.call_at(self._idle[0].idle_since + IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close those idle for too long and those that were closed from the other side. The list is oldest first."""
        self._sweeping = None
        oldest = self._loop.time() - IDLE_SECONDS
        kept = [connection for connection in self._idle if connection.is_open() and connection.idle_since > oldest]
        for connection in set(self._idle).difference(kept):
            connection.abort()
        self._idle = kept
        if kept:
            self._plan_sweep()

    # Places

    def _give_place(self) -> None:
        if self._waiting and not self._is_closed:
            errand, _ = self._waiting.popitem(last=False)
            self._serve(errand)
        else:
            self._places += 1

    def _plan_dismissal(self) -> None:
        """All wait equally long, so one timer for the first of them is enough."""
        if self._dismissing is None and self._waiting:
            due = next(iter(self._waiting.values()))
            self._dismissing = self._loop.call_at(due, self._dismiss)

    def _dismiss(self) -> None:
        """Send off who has waited long enough."""
        self._dismissing = None
        now = self._loop.time()
        while self._waiting and next(iter(self._waiting.values())) <= now + _CLOCK_GRAIN:
            errand, _ = self._waiting.popitem(last=False)
            errand.fail(UpstreamUnreachableError(f"{errand.label}: all {self._size} connections are busy"))
        self._plan_dismissal()

    def _turn_away(self, errand: Errand) -> None:
        errand.fail(self._closed(errand))

    def _closed(self, errand: Errand) -> UpstreamUnreachableError:
        return UpstreamUnreachableError(f"{errand.label}: the gate has closed its connections")


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
