"""How long changes take from the moment the gate knows them until they are handed to a client's connection."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets, in seconds; one more bucket takes the rest."""


class Latency:
    """A histogram that costs a search in thirteen numbers per observation."""

    __slots__ = ("counts", "total")
    bounds = BOUNDS

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """Observations by bucket, not cumulated."""
        self.total = 0.0
        """The sum of all observations, in seconds."""

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count so many that took this long."""
        self.counts[bisect_left(BOUNDS, seconds)] += count
        self.total += seconds * count
