"""The rights that open streams are open under: kept as long as they hold, asked about again, and ended in time.

A right is what one credential was found to be worth, and all streams that were opened with it share it: it is asked about once for
all of them. Tokens expire by the time of day, which may jump; rechecks are due by the monotonic clock.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count

from ssegate.auth.guard import Down, Granted, Guard, Refused
from ssegate.core.document import encode
from ssegate.core.event import Event, encode_event
from ssegate.core.hub import Subscriber
from ssegate.core.principal import Principal

log = logging.getLogger(__name__)

WARNING = 60.0
"""Seconds before a known end at which a stream is told."""

LOOK = 1.0
"""Seconds between two looks at the time of day while there is an end to come: it may have been set."""

PATIENCE = 3
"""Rechecks in a row that a guard may be down for before its streams are told to come back."""

EARLIER = (0.8, 0.95)
"""The part of `recheck` after which it is made: those who came together are not asked about together, and none is late."""

AT_ONCE = 256
"""Streams that are ended in one turn of the loop."""

Still = Callable[[Principal], bool]
"""Whether a stream would be opened for this viewer as well, in the same place."""


class Seat:
    """One stream, or one topic of a joined one, that is open under a right."""

    __slots__ = ("_still", "is_over", "reader", "right", "stream")

    def __init__(self, right: Right, reader: Subscriber, stream: Subscriber, still: Still) -> None:
        self.right = right
        self.reader = reader
        """Who is told that the right has ended."""
        self.stream = stream
        """The whole stream that it is part of; mostly the same."""
        self.is_over = False
        """Whether its right has ended."""
        self._still = still

    def fits(self, principal: Principal) -> bool:
        """Whether it stays open, though something else is known of its viewer now."""
        return self._still(principal)

    def end(self, reason: str) -> None:
        """Its right has ended: say so, and nothing more."""
        self.is_over = True
        self.reader.close(encode_event(Event(encode({"reason": reason}), "end")))


class Right:
    """What one credential is worth, and what is open on account of it."""

    __slots__ = ("failures", "granted", "is_asked", "is_warned", "seats")

    def __init__(self, granted: Granted) -> None:
        self.granted = granted
        self.seats: dict[Seat, None] = {}
        self.failures = 0
        """Rechecks in a row that nobody answered."""
        self.is_asked = False
        self.is_warned = False

    @property
    def principal(self) -> Principal:
        """Who it is."""
        return self.granted.principal


class Rights:
    """All rights that something is open under."""

    def __init__(
        self,
        guard_of: Callable[[str], Guard | None],
        comeback: Callable[[], bytes],
        end: Callable[[bytes], None] = lambda key: None,
    ) -> None:
        """`guard_of`: the guard of a name, as the configuration is now. `comeback` makes what a stream is told that ends for now.
        `end` is told of each right that has ended, by its key."""
        self._guard_of = guard_of
        self._comeback = comeback
        self._tell_end = end
        self._rights: dict[bytes, Right] = {}
        self._agenda = _Agenda(self._attend)
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended: Counter[str] = Counter()
        """Streams that were ended before their time, by reason."""

    def __len__(self) -> int:
        return len(self._rights)

    def __iter__(self) -> Iterator[Right]:
        return iter(self._rights.values())

    # Streams

    def take(self, granted: Granted, reader: Subscriber, stream: Subscriber, still: Still) -> Seat:
        """A stream opens under this right; it has to `leave`."""
        key = granted.principal.key
        right = self._rights.get(key)
        if right is None:
            right = self._rights[key] = Right(granted)
            self._plan(right)
        elif right.granted.number < granted.number:
            right.failures = 0
            self._renew(right, granted)
        seat = Seat(right, reader, stream, still)
        right.seats[seat] = None
        if right.granted is not granted and not seat.fits(right.principal):
            self._part_with(right, [seat])  # by a ticket: more is known of its buyer since
        if right.is_warned and right.principal.expires is not None:
            reader.say(_expiring(right.principal.expires))
        return seat

    def leave(self, seat: Seat) -> None:
        """Its stream is over; with the last one the right is forgotten."""
        right = seat.right
        right.seats.pop(seat, None)
        if not right.seats and self._rights.get(right.principal.key) is right:
            del self._rights[right.principal.key]

    # Time

    def _plan(self, right: Right) -> None:
        expires = right.principal.expires
        if expires is not None:
            right.is_warned = time.time() >= expires - WARNING
            self._agenda.at_wall(expires if right.is_warned else expires - WARNING, right)
        self._plan_recheck(right)
        if len(self._agenda) > 4 * len(self._rights) + 1000:
            self._agenda.prune(lambda each: self._rights.get(each.principal.key) is each)

    def _plan_recheck(self, right: Right) -> None:
        guard = self._guard_of(right.principal.guard)
        if right.granted.again is not None and guard is not None and guard.recheck is not None:
            self._agenda.at_clock(time.monotonic() + guard.recheck * random.uniform(*EARLIER), right)

    def _attend(self, right: Right, *, is_wall: bool) -> None:
        if self._rights.get(right.principal.key) is not right:
            return  # nothing is open under it any more
        if not is_wall:
            self._spawn_recheck(right)
            return
        expires = right.principal.expires
        if expires is None:
            return
        if time.time() >= expires:
            self._end(right, "expired")
        elif not right.is_warned:
            right.is_warned = True
            for seat in tuple(right.seats):
                seat.reader.say(_expiring(expires))
            self._agenda.at_wall(expires, right)

    # Questions

    def _spawn_recheck(self, right: Right) -> None:
        if right.is_asked:
            return
        right.is_asked = True
        task = asyncio.get_running_loop().create_task(self._recheck(right))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recheck(self, right: Right) -> None:
        assert right.granted.again is not None, "it can be asked"
        try:
            verdict = await right.granted.again()
        except Exception as error:  # it must not be the last time that somebody is asked
            log.error("guard %s: a recheck stopped on a defect", right.principal.guard, exc_info=error)
            verdict = Down("a defect")
        finally:
            right.is_asked = False
        if self._rights.get(right.principal.key) is not right:
            return
        if isinstance(verdict, Refused):
            log.info(
                "guard %s: %s on a recheck; open streams ended: %d",
                right.principal.guard,
                verdict.reason,
                len(right.seats),
            )
            self._end(right, "revoked")
            return
        if isinstance(verdict, Down):
            right.failures += 1
            if right.failures >= PATIENCE:
                self._send_away(right)
                return
        else:
            right.failures = 0
            self._renew(right, verdict)
        self._plan_recheck(right)

    def _renew(self, right: Right, granted: Granted) -> None:
        """The same credential; who comes with it may be known better."""
        before, right.granted = right.granted.principal, granted
        after = granted.principal
        if (before.identity, before.claims) == (after.identity, after.claims):
            return
        self._part_with(right, [seat for seat in right.seats if not seat.fits(after)])

    def _part_with(self, right: Right, gone: Sequence[Seat]) -> None:
        """The right stands, but not for these streams."""
        if gone:
            self._tell_end(right.principal.key)
            self.ended["revoked"] += len(gone)
            _each(gone, lambda seat: seat.end("revoked"))

    # Ends

    def _forget(self, right: Right) -> None:
        """It is over: who comes while its streams are leaving comes under a right of its own."""
        if self._rights.get(right.principal.key) is right:
            del self._rights[right.principal.key]

    def _end(self, right: Right, reason: str) -> None:
        self._forget(right)
        self.ended[reason] += len(right.seats)
        self._tell_end(right.principal.key)
        _each(right.seats, lambda seat: seat.end(reason))

    def _send_away(self, right: Right) -> None:
        """Nobody knows whether they may stay: they come back, and are asked as newcomers."""
        self._forget(right)
        self.ended["guard"] += len(right.seats)
        _each(right.seats, lambda seat: seat.stream.close(self._comeback()))

    def revoke(self, identity: str) -> int:
        """End all streams of this viewer; return how many there were."""
        ended = 0
        for right in [right for right in self if right.principal.identity == identity]:
            ended += len({id(seat.stream) for seat in right.seats})
            self._end(right, "revoked")
        return ended

    def go_over(self, before: Mapping[str, Guard], after: Mapping[str, Guard]) -> None:
        """Another configuration: what its guards would not grant ends."""
        wall = time.time()
        for right in list(self):
            guard = after.get(right.principal.guard)
            if guard is not None and guard is before.get(right.principal.guard):
                continue
            still = False if guard is None else guard.still_knows(right.principal, wall)
            if still is None:
                self._send_away(right)
            elif not still:
                self._end(right, "revoked")

    def shown_by(self, identity: str) -> list[bytes]:
        """Digests of the credentials of this viewer that something is open under."""
        return [right.principal.shown for right in self if right.principal.identity == identity]

    async def aclose(self) -> None:
        """Ask no more."""
        self._agenda.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Agenda:
    """When to attend to which right: one timer for all."""

    def __init__(self, attend: Callable[..., None]) -> None:
        self._attend = attend
        self._numbers = count()
        self._by_wall: list[tuple[float, int, Right]] = []
        self._by_clock: list[tuple[float, int, Right]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def __len__(self) -> int:
        return len(self._by_wall) + len(self._by_clock)

    def prune(self, is_kept: Callable[[Right], bool]) -> None:
        """Let go of what is planned for others: whoever comes and goes all day with one token would fill it."""
        for heap in (self._by_wall, self._by_clock):
            heap[:] = [entry for entry in heap if is_kept(entry[2])]
            heapq.heapify(heap)

    def at_wall(self, due: float, right: Right) -> None:
        """At this time of day."""
        self._put(self._by_wall, due, right)

    def at_clock(self, due: float, right: Right) -> None:
        """At this time of the monotonic clock."""
        self._put(self._by_clock, due, right)

    def _put(self, heap: list[tuple[float, int, Right]], due: float, right: Right) -> None:
        entry = (due, next(self._numbers), right)
        heapq.heappush(heap, entry)
        if heap[0] is entry or self._timer is None:  # else something else is due first
            self._wind()

    def _wind(self) -> None:
        waits = []
        if self._by_clock:
            waits.append(self._by_clock[0][0] - time.monotonic())
        if self._by_wall:
            waits.append(min(self._by_wall[0][0] - time.time(), LOOK))
        if not waits:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, min(waits))
        if self._timer is not None and self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = loop.call_at(at, self._ring), at

    def _ring(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        for heap, now, is_wall in ((self._by_wall, time.time(), True), (self._by_clock, time.monotonic(), False)):
            while heap and heap[0][0] <= now:
                self._attend(heapq.heappop(heap)[2], is_wall=is_wall)
        self._wind()

    def close(self) -> None:
        """Ring no more."""
        self._by_wall.clear()
        self._by_clock.clear()
        if self._timer is not None:
            self._timer.cancel()


def _each(seats: Iterable[Seat], do: Callable[[Seat], None]) -> None:
    """Do it to all, some in each turn of the loop; whoever has left meanwhile minds nothing."""
    rest = list(seats)
    for seat in rest[:AT_ONCE]:
        do(seat)
    if len(rest) > AT_ONCE:
        asyncio.get_running_loop().call_soon(_each, rest[AT_ONCE:], do)


def _expiring(expires: float) -> bytes:
    at = datetime.fromtimestamp(expires, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return encode_event(Event(encode({"at": at, "in": max(0, round(expires - time.time()))}), "expiring"))
