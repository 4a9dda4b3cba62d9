"""When to ask an upstream again, with which headers, and what its answer means."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from ssegate.core.headers import Headers, Pair

SLOWER = 1.5
"""By how much an adaptive interval grows with each answer that brought nothing new."""

LONGEST_WAIT = 3600.0
"""Seconds. A `Retry-After` or `max-age` beyond this is an upstream's mistake that would silence a topic for good."""

GATHER = 0.05
"""Seconds. Hints of webhooks that are closer to each other than this are one burst."""

LONGEST_GATHER = 1.0
"""Seconds after which a burst that does not end is followed by a poll nevertheless."""

_MAX_AGE = re.compile(r'(?:^|[\s,])max-age\s*=\s*"?([0-9]{1,10})', re.IGNORECASE)


class Meaning(Enum):
    """What an answer says about the topic."""

    SAME = "same"
    """Nothing has changed (304, or 204: nothing to say)."""
    BODY = "body"
    """The body has the state; `Poller.settle` or `Poller.fail` is told what became of it."""
    GONE = "gone"
    """The resource has ended for good."""
    DENIED = "denied"
    """The forwarded credentials are no longer good for it."""
    TROUBLE = "trouble"
    """The upstream did not do its part; it is asked again after a while."""


@dataclass(frozen=True, slots=True)
class PollSettings:
    """A route's and its upstream's rules for asking. Times are in seconds."""

    every_min: float
    every_max: float
    conditional: bool = True
    gone: Collection[int] = (404, 410)
    backoff_min: float = 1.0
    backoff_max: float = 60.0
    is_private: bool = False
    """Whether viewers' headers are sent along, so that 401 and 403 speak of the viewers and not of the gate."""


class Poller:
    """The schedule and the memory of one poll.

    Wait until `due`, ask with `headers()`, hand over `receive(…)` or `fail(…)`; after `Meaning.BODY` call `settle(…)` once
    the body has been understood, or `fail(…)` when it could not be.
    """

    __slots__ = (
        "_again",
        "_failures",
        "_gathering",
        "_hinted",
        "_hinted_at",
        "_interval",
        "_is_first",
        "_not_before",
        "_pending",
        "_planned",
        "_random",
        "_settings",
        "_validators",
        "_wait",
        "due",
    )

    def __init__(self, settings: PollSettings, *, random: Callable[[], float]) -> None:
        """`random` gives numbers from 0 to 1, evenly."""
        self.due = 0.0
        """When to ask next, on the clock that `now` is read from."""
        self._settings = settings
        self._random = random
        self._interval = settings.every_min
        self._validators: tuple[Pair, ...] = ()
        self._pending: tuple[Pair, ...] = ()  # validators of a body that has not been understood yet
        self._wait = 0.0  # what the last answer itself asked for
        self._not_before = 0.0  # the moment that led to
        self._failures = 0
        self._is_first = True
        self._planned = 0.0  # when it would be due if nothing were hinted
        self._hinted = False
        self._hinted_at = float("-inf")
        self._gathering: float | None = None  # since when hints of a burst have been waiting for a poll
        self._again = 0.0  # when that poll is due

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def resume(self, now: float) -> None:
        """Begin, or begin again after a pause: at once, unless the last answer asked to be left alone for longer."""
        self.due = self._planned = max(now, self._not_before)
        self._failures = 0

    def headers(self) -> tuple[Pair, ...]:
        """The conditional headers of the next request, which is about to be sent; empty when the upstream gave no validator."""
        self._hinted = False
        self._gathering = None
        return self._validators

    def hint(self, now: float, *, gather: bool = False) -> None:
        """Something has probably changed: ask at once, and again if a request is under way. An outage is waited out.

        `gather`: hints may come in bursts. The first of a burst is followed at once; the others together, by one request
        behind the last of them.
        """
        is_burst = gather and now - self._hinted_at < GATHER
        self._hinted_at = now
        if not is_burst:
            self._hinted = True
        else:
            self._gathering = now if self._gathering is None else self._gathering
            self._again = min(now + GATHER, self._gathering + LONGEST_GATHER)
        if not self.is_failing:
            self._follow_hints(now)

    def _follow_hints(self, now: float) -> None:
        if self._hinted:
            self.due = min(self.due, now)
        elif self._gathering is not None:
            self.due = min(self._planned, self._again)

    def receive(self, status: int, headers: Headers, *, now: float, wall: float) -> Meaning:
        """Take the head of an answer. `wall` is the time of day in seconds since 1970, for dates in headers."""
        settings = self._settings
        self._wait = _requested_wait(headers, wall)
        self._not_before = now + self._wait
        if status in settings.gone:
            return Meaning.GONE
        if status == 304 and self._validators:
            return self._same(now)
        if status in (204, 205):
            return self._same(now)
        if 200 <= status < 300:
            self._pending = _validators(headers) if settings.conditional else ()
            return Meaning.BODY
        self._back_off(now)
        if status in (401, 403) and settings.is_private and "retry-after" not in headers:
            return Meaning.DENIED
        return Meaning.TROUBLE

    def _same(self, now: float) -> Meaning:
        self._schedule(now, changed=False)
        return Meaning.SAME

    def settle(self, *, changed: bool, now: float) -> None:
        """The body was understood. Only now are its validators good: a 304 must mean a state that we have."""
        self._validators = self._pending
        self._schedule(now, changed=changed)

    def fail(self, now: float) -> None:
        """There was no answer, or none that could be understood."""
        self._wait = 0.0
        self._back_off(now)

    def _schedule(self, now: float, *, changed: bool) -> None:
        settings = self._settings
        self._failures = 0
        self._interval = settings.every_min if changed else min(self._interval * SLOWER, settings.every_max)
        wait = self._interval
        if self._is_first:
            # Topics that began together, after a restart say, would go on asking together.
            self._is_first = False
            wait *= 0.5 + 0.5 * self._random()
        if self._wait > wait:
            self.due = now + self._wait
        else:
            # From start to start, so that a slow answer does not stretch the interval; but never without a pause.
            self.due = max(self.due + wait, now + self._interval / 10)
        self._planned = self.due
        self._follow_hints(now)

    def _back_off(self, now: float) -> None:
        """Wait as long as was asked for, else with full jitter (a random part of a bound that doubles); in no case shorter
        than the regular interval."""
        settings = self._settings
        bound = min(settings.backoff_max, settings.backoff_min * 2 ** min(self._failures, 32))
        self._failures += 1
        self.due = self._planned = now + max(settings.every_min, self._wait or bound * self._random())


def _requested_wait(headers: Headers, wall: float) -> float:
    """How long the answer itself wants to be left alone: `Retry-After`, or what remains of `max-age`; 0 is not said."""
    wait = max(retry_after(headers, wall), _freshness(headers))
    return min(wait, LONGEST_WAIT)


def retry_after(headers: Headers, wall: float) -> float:
    """RFC 9110, 10.2.3: seconds, or a date, which is compared with the upstream's own clock where it tells it."""
    value = (headers.get("retry-after") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:10])
    until = _date(value)
    if until is None:
        return 0.0
    return max(0.0, until - (_date(headers.get("date")) or wall))


def _freshness(headers: Headers) -> float:
    """RFC 9111, 4.2: `max-age` less `Age`; `no-cache` and `no-store` leave nothing of it."""
    control = headers.get("cache-control")
    if control is None or (found := _MAX_AGE.search(control)) is None:
        return 0.0
    if "no-cache" in control.lower() or "no-store" in control.lower():
        return 0.0
    age = (headers.get("age") or "").strip()
    return max(0.0, float(found[1]) - (float(age[:10]) if age.isascii() and age.isdigit() else 0.0))


def _validators(headers: Headers) -> tuple[Pair, ...]:
    """The conditional headers an answer makes possible (RFC 9110, 13.1)."""
    pairs: list[Pair] = []
    if (etag := headers.get("etag")) is not None and etag.strip():
        pairs.append((b"If-None-Match", etag.encode("latin-1")))
    modified = headers.get("last-modified")
    if modified is not None and _is_strong(modified, headers.get("date")):
        pairs.append((b"If-Modified-Since", modified.encode("latin-1")))
    return tuple(pairs)


def _is_strong(modified: str, date: str | None) -> bool:
    """Whether no second change can hide behind this date.

    RFC 9110, 8.8.2.2: dates count whole seconds, so one that is not at least a second older than the answer may come to
    stand for two states, and the second would be answered 304.
    """
    changed, answered = _date(modified), _date(date)
    return changed is not None and answered is not None and answered - changed >= 1


def _date(value: str | None) -> float | None:
    """An HTTP date in seconds since 1970; None when there is none or it cannot be read."""
    if not value:
        return None
    try:
        parsed: datetime = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
