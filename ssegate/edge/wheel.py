"""One timer for all streams: heartbeats, the end of a stream's age, and readers that take nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol

TICK = 0.25
"""Seconds between looks: how late a heartbeat may be."""


class Timed(Protocol):
    """What can be put on the wheel."""

    def look(self, now: float) -> float | None:
        """Do what is due, and say when to look again; None: never. Called on the event loop; does not block."""
        ...


class Wheel:
    """Slots of streams by the moment each is to be looked at next.

    A stream is touched once a heartbeat and costs no timer of its own: with asyncio's, 10,000 streams would keep 10,000
    entries in a heap and move one with every event.
    """

    def __init__(self) -> None:
        self._slots: defaultdict[int, set[Timed]] = defaultdict(set)
        self._timer: asyncio.TimerHandle | None = None
        self._done = 0  # slots up to this one have been looked at

    def add(self, stream: Timed, when: float) -> None:
        """Look at the stream at this moment of the loop's clock. A stream is added once; `look` does the rest.

        There is no way to take it off: one that is over says None when it is looked at next.
        """
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._done = int(loop.time() / TICK)
            self._timer = loop.call_later(TICK, self._turn, loop)
        self._slots[max(self._done + 1, int(when / TICK) + 1)].add(stream)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = loop.call_later(TICK, self._turn, loop)
        # At once, so that what is added while these are looked at gets into a slot that is still to come.
        before, self._done = self._done, int(now / TICK)
        for number in range(before + 1, self._done + 1):
            for stream in self._slots.pop(number, ()):
                if (when := stream.look(now)) is not None:
                    self._slots[max(self._done + 1, int(when / TICK) + 1)].add(stream)
        if not self._slots:
            self._timer.cancel()
            self._timer = None
