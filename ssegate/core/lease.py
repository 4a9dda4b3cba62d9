"""When a subscription is asked for, renewed, and asked for again."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

MARGIN = (0.6, 0.8)
"""The part of a lease after which it is renewed, at random: what fails then has time to be tried again."""

EVERY = (0.9, 1.0)
"""The same where an interval is given and not a lease."""

NEVER = float("inf")


class Standing(Enum):
    """How a subscription stands."""

    ASKING = "asking"
    """It has been asked for, or is about to be."""
    ACTIVE = "active"
    """It has been granted and has not run out."""
    FAILING = "failing"
    """The last attempt failed, and no earlier grant holds any more."""


class Lease:
    """The schedule of one subscription: wait until `due`, ask, and say what came of it. Times are on one clock, in seconds."""

    def __init__(self, *, random: Callable[[], float], backoff_min: float, backoff_max: float) -> None:
        """`random` gives numbers from 0 to 1, evenly."""
        self.due = 0.0
        """When to ask next."""
        self.until: float | None = None
        """When the grant ends; None while there is none, `NEVER` when it does not end."""
        self.failures = 0
        """How many attempts have failed in a row."""
        self._random = random
        self._backoff = (backoff_min, backoff_max)

    def standing(self, now: float) -> Standing:
        """How it stands now."""
        if self.until is not None and now < self.until:
            return Standing.ACTIVE
        return Standing.FAILING if self.failures else Standing.ASKING

    def hurry(self, now: float) -> None:
        """Ask at once: there is reason to believe that it has to be renewed."""
        self.due = now

    def expect(self, patience: float, now: float) -> None:
        """It was asked for, and the grant is to come by itself; if it does not, it is asked for again after `patience`."""
        self.due = now + patience

    def grant(self, seconds: float | None, now: float, *, is_interval: bool = False) -> None:
        """It has been granted for so long; None is for good. `is_interval`: `seconds` says when to renew it, not when it ends."""
        self.failures = 0
        if seconds is None:
            self.until = self.due = NEVER
            return
        least, most = EVERY if is_interval else MARGIN
        self.due = now + seconds * (least + (most - least) * self._random())
        self.until = NEVER if is_interval else now + seconds

    def fail(self, now: float, retry_after: float = 0.0) -> None:
        """The attempt failed: wait, longer each time, at least as long as was asked for."""
        least, most = self._backoff
        bound = min(most, least * 2 ** min(self.failures, 32))
        self.failures += 1
        self.due = now + max(retry_after, bound * (0.5 + 0.5 * self._random()))

    def lose(self, now: float) -> None:
        """The grant holds no more: ask at once."""
        self.until = None
        self.due = now
