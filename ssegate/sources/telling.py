"""How what a source has to say gets to the broker, and what viewers are told of an upstream's trouble."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from ssegate.core.event import Kind, Update
from ssegate.errors import (
    BrokerError,
    OversizeError,
    UndecodableError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from ssegate.interfaces import Publish

log = logging.getLogger(__name__)

PASSED_ON = frozenset({401, 403, 404, 410})
"""Statuses of an upstream's first answer that the viewer is told as they are."""

BROKER_PAUSE = 1.0
"""Seconds between attempts to publish what the broker did not take."""

SHOWN_FAILURES = 5
"""How many topics of one upstream say that it fails them; the rest of an outage is a figure."""


class Telling:
    """What one source has to say, in order. What the broker does not take is kept and said again: it would be lost otherwise."""

    def __init__(self, name: str) -> None:
        """`name` is what the log calls it, without a query, which may hold a secret."""
        self._name = name
        self._unsaid: deque[Update] = deque()

    def add(self, updates: Iterable[Update]) -> None:
        """There is more to say."""
        self._unsaid.extend(updates)

    async def say(self, publish: Publish) -> None:
        """Publish all there is to say, however long the broker is down; cancelled, the rest is said by the next call."""
        is_refused = False
        while self._unsaid:
            try:
                await publish(self._unsaid[0])
                if self._unsaid.popleft().kind is Kind.FAULT and self._unsaid:  # what is over at once would not be seen
                    await let_them_read()
            except BrokerError as error:
                if not is_refused:
                    log.warning("publish %s: %s; it is tried again until it is taken", self._name, error)
                is_refused = True
                await asyncio.sleep(BROKER_PAUSE)
        if is_refused:
            log.info("publish %s: taken", self._name)


async def let_them_read() -> None:
    """Return when those who keep up have read: one turn of the loop wakes them, and in another those read that are tasks."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class AskingRecord:
    """What is known of all that one upstream is asked for its topics: how it answers, and which topics it fails.

    Failures are told in the log when they begin and end, and not ten thousand times at three in the morning.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.outcomes: dict[str, int] = {}
        """Answers to polls by status, and `failed` for none."""
        self.openings: dict[str, int] = {}
        """The same of streams."""
        self.avoided = 0
        """Requests that viewers would have made, had each asked for itself."""
        self._failing: set[str] = set()
        self._told = 0

    @property
    def failing(self) -> int:
        """How many topics get nothing at the moment."""
        return len(self._failing)

    def count(self, outcome: str, viewers: int) -> None:
        """A poll has ended, made for this many viewers."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.avoided += max(0, viewers - 1)

    def count_opening(self, outcome: str) -> None:
        """A stream was opened, or was not."""
        self.openings[outcome] = self.openings.get(outcome, 0) + 1

    def begin_failure(self, topic: str, message: str) -> None:
        """A topic gets nothing; the message begins with what was tried. What is known to fail is not told again."""
        if topic in self._failing:
            return
        self._failing.add(topic)
        self._told += 1
        if self._told <= SHOWN_FAILURES:
            log.warning("%s; its streams stay open and it is asked again", message)
        elif self._told == SHOWN_FAILURES + 1:
            log.warning("upstream %s: more of it fails; ssegate_polls_failing tells how many", self.upstream)

    def end_failure(self, topic: str) -> None:
        """A topic that got nothing does again. Others are fine."""
        if topic in self._failing:
            self.drop(topic)
            if not self._failing:
                log.info("upstream %s: all it is asked for is answered again", self.upstream)

    def drop(self, topic: str) -> None:
        """It is asked no more: nobody knows whether it would fail."""
        self._failing.discard(topic)
        if not self._failing:
            self._told = 0


def for_viewers(error: UpstreamError) -> tuple[str, str]:
    """What a viewer may know of an error: reason and fact, and neither address nor path of the upstream."""
    match error:
        case UndecodableError():
            return "undecodable", "the upstream's answer cannot be read"
        case OversizeError():
            return "oversize", "the upstream's answer is too large"
        case UpstreamUnreachableError():
            return "upstream", "the upstream cannot be reached"
        case UpstreamTimeoutError():
            return "upstream", "the upstream does not answer"
    return "upstream", "the upstream's answer is broken"
