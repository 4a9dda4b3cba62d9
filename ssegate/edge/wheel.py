"""One timer for all connections: heartbeats, the end of a stream's age, readers that take nothing, heads that do not come."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol

TICK = 0.25
"""Seconds between looks: how late a heartbeat may be."""

OFF = -1
"""The slot of what is not on the wheel."""


class Timed(Protocol):
    """What can be put on the wheel."""

    slot: int
    """Where it is on the wheel, `OFF` to begin with. It belongs to the wheel."""

    def look(self, now: float) -> float | None:
        """Do what is due, and say when to look again; None: never. Called on the event loop; does not block."""
        ...


class Wheel:
    """Slots of streams and connections by the moment each is to be looked at next.

    One that has nothing due costs no timer of its own: with asyncio's, 10,000 streams would keep 10,000 entries in a heap
    and move one with every event.
    """

    def __init__(self) -> None:
        self._slots: defaultdict[int, set[Timed]] = defaultdict(set)
        self._timer: asyncio.TimerHandle | None = None
        self._done = 0  # slots up to this one have been looked at

    def add(self, timed: Timed, when: float) -> None:
        """Look at it at this moment of the loop's clock, or where it is already if that is earlier."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._done = int(loop.time() / TICK)
            self._timer = loop.call_later(TICK, self._turn, loop)
        slot = max(self._done + 1, int(when / TICK) + 1)
        if timed.slot == OFF or slot < timed.slot:
            self.remove(timed)
            timed.slot = slot
            self._slots[slot].add(timed)

    def remove(self, timed: Timed) -> None:
        """Look at it no more: what is over would be kept until its moment comes. A second call does nothing."""
        if timed.slot != OFF:
            slot = self._slots[timed.slot]
            slot.discard(timed)
            if not slot:
                del self._slots[timed.slot]
            timed.slot = OFF

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = loop.call_later(TICK, self._turn, loop)
        # At once, so that what is added while these are looked at gets into a slot that is still to come.
        before, self._done = self._done, int(now / TICK)
        for number in range(before + 1, self._done + 1):
            for timed in self._slots.pop(number, ()):
                if timed.slot != number:
                    continue  # removed, or added elsewhere, by one that was looked at before
                timed.slot = OFF
                if (when := timed.look(now)) is not None:
                    self.add(timed, when)
        if not self._slots:
            self._timer.cancel()
            self._timer = None
