"""Asks one upstream resource again and again, and says what changed."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssegate.core.event import Kind, Update
from ssegate.core.headers import Pair
from ssegate.core.poll import Meaning, Poller, PollSettings
from ssegate.errors import (
    BrokerError,
    OversizeError,
    UndecodableError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from ssegate.interfaces import Detector, Publish
from ssegate.upstream import FetchAnswer, Upstream

log = logging.getLogger(__name__)

PASSED_ON = frozenset({401, 403, 404, 410})
"""Statuses of a first poll that the viewer is told as they are."""

BROKER_PAUSE = 1.0
"""Seconds between attempts to publish what the broker did not take."""

CLOCK_STEP = 0.001
"""Seconds. uvloop's clock counts whole milliseconds and its timers fire up to one early: waiting for the rest of it would
spin, twenty times a poll (benchmarks/polling.py: 2,600 polls per CPU-second instead of 6,300)."""

SHOWN_FAILURES = 5
"""How many polls of one upstream say that they fail; the rest of an outage is a figure."""


@dataclass(frozen=True, slots=True)
class PollTarget:
    """What is asked: everything that decides what the upstream answers."""

    path: str
    """Path and query behind the upstream's URL, percent-encoded."""
    headers: tuple[Pair, ...]
    """The viewers' headers that are sent along."""
    with_auth: bool = True
    """Whether the gate's own credentials for the upstream are sent. Never where the viewer's Authorization is to decide:
    one who has none would be shown what the gate may see."""


class PollRecord:
    """What is known of all polls of one upstream: how they ended, and which fail.

    Failures are told in the log when they begin and end, and not ten thousand times at three in the morning.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.outcomes: dict[str, int] = {}
        """Answers by status, and `failed` for none."""
        self.avoided = 0
        """Requests that viewers would have made, had each polled for itself."""
        self._failing: set[str] = set()
        self._told = 0

    @property
    def failing(self) -> int:
        """How many topics cannot be polled at the moment."""
        return len(self._failing)

    def count(self, outcome: str, viewers: int) -> None:
        """A poll has ended, made for this many viewers."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.avoided += max(0, viewers - 1)

    def begin_failure(self, topic: str, message: str) -> None:
        """A poll has failed. What is known to fail is not told again."""
        if topic in self._failing:
            return
        self._failing.add(topic)
        self._told += 1
        if self._told <= SHOWN_FAILURES:
            log.warning("poll %s; its streams stay open and it is asked again", message)
        elif self._told == SHOWN_FAILURES + 1:
            log.warning("upstream %s: more polls fail; ssegate_polls_failing tells how many", self.upstream)

    def end_failure(self, topic: str) -> None:
        """A poll that failed has been answered. Others are fine."""
        if topic in self._failing:
            self.drop(topic)
            if not self._failing:
                log.info("upstream %s: all polls are answered again", self.upstream)

    def drop(self, topic: str) -> None:
        """A poll has been stopped: nobody knows any more whether it would fail."""
        self._failing.discard(topic)
        if not self._failing:
            self._told = 0


class PollSource:
    """Polls for one topic. May be run again after it was cancelled: it remembers the state it has told."""

    def __init__(
        self,
        topic: str,
        target: PollTarget,
        upstream: Upstream,
        settings: PollSettings,
        detector: Detector,
        record: PollRecord,
        *,
        viewers: Callable[[], int],
        max_body: int,
    ) -> None:
        """`max_body` in bytes, of what is read of an answer before it is given up; `viewers` counts the topic's readers."""
        self.topic = topic
        self.target = target
        self._upstream = upstream
        self._settings = settings
        self._detector = detector
        self._record = record
        self._viewers = viewers
        self._max_body = max_body
        self._poller = Poller(settings, random=random.random)
        self._has_spoken = False  # a state has been told
        self._is_troubled = False  # a fault has been told
        self.is_over = False
        """Whether it has nothing to ask any more: the resource is gone, or was refused."""
        self._unsaid: deque[Update] = deque()  # what the broker has not taken yet
        self._hint = asyncio.Event()
        self._first: asyncio.Future[int | None] | None = None

    async def run(self, publish: Publish) -> None:
        """Poll until cancelled, or until the resource is gone."""
        now = asyncio.get_running_loop().time()
        self._poller.resume(now)
        try:
            await self._say(publish)
            if self._poller.due > now:
                self._answer_first(None)  # the upstream asked to be left alone: what is known is all there is
            while not self.is_over:
                await self._wait_until_due()
                self._unsaid.extend(await self._ask())
                await self._say(publish)
                self._answer_first(None)
        finally:
            self._record.drop(self.topic)

    @property
    def awaited(self) -> asyncio.Future[int | None] | None:
        """Completed after the next poll, with None or with the status that those who wait are to be told instead.

        Whoever has waited enough completes it with None: what comes later is told in the stream. None before
        `await_answer`.
        """
        return self._first

    def await_answer(self) -> None:
        """Let the next poll be waited for. Called before `run`."""
        self._first = asyncio.get_running_loop().create_future()

    def hint(self, *, gather: bool = False) -> None:
        """Something has probably changed: poll at once; `gather`: see `Poller.hint`."""
        self._poller.hint(asyncio.get_running_loop().time(), gather=gather)
        self._hint.set()

    @property
    def _is_awaited(self) -> bool:
        return self._first is not None and not self._first.done()

    def _answer_first(self, status: int | None) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(status)

    async def _wait_until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._poller.due - loop.time()) > CLOCK_STEP:
            self._hint.clear()
            timer = loop.call_later(wait, self._hint.set)
            try:
                await self._hint.wait()
            finally:
                timer.cancel()

    async def _say(self, publish: Publish) -> None:
        """Publish what there is to say; cancelled, the rest is said by the next `run`. A broker that is down is waited
        for: the change would be lost otherwise."""
        is_refused = False
        while self._unsaid:
            try:
                await publish(self._unsaid[0])
                self._unsaid.popleft()
            except BrokerError as error:
                if not is_refused:
                    log.warning("publish %s: %s; it is tried again until it is taken", self._name, error)
                is_refused = True
                await asyncio.sleep(BROKER_PAUSE)
        if is_refused:
            log.info("publish %s: taken", self._name)

    @property
    def _name(self) -> str:
        """What is asked, without its query, which may hold a secret."""
        return self._upstream.address.label("GET", self.target.path.encode())

    async def _ask(self) -> Sequence[Update]:
        """Poll once; return what there is to say."""
        loop = asyncio.get_running_loop()
        headers = (*self.target.headers, *self._poller.headers())
        try:
            answer = await self._upstream.fetch(
                self.target.path,
                headers,
                first=self._is_awaited,
                with_auth=self.target.with_auth,
                max_body=self._max_body,
            )
        except UpstreamError as error:
            self._record.count("failed", self._viewers())
            return self._fail(error)
        self._record.count(str(answer.status), self._viewers())
        meaning = self._poller.receive(answer.status, answer.headers, now=loop.time(), wall=time.time())
        match meaning:
            case Meaning.SAME:
                return self._recover()
            case Meaning.BODY:
                return self._examine(answer)
            case _:
                return self._refused(meaning, answer.status)

    def _examine(self, answer: FetchAnswer) -> Sequence[Update]:
        try:
            updates = self._detector.changes(answer.body)
        except (OversizeError, UndecodableError) as error:
            return self._fail(error, answer.status)
        self._poller.settle(changed=bool(updates), now=asyncio.get_running_loop().time())
        self._has_spoken = self._has_spoken or bool(updates)
        return (*self._recover(), *updates)

    def _refused(self, meaning: Meaning, status: int) -> Sequence[Update]:
        """An answer without a state. Whoever waits for the first poll of something never seen is told the status itself."""
        is_for_good = status in PASSED_ON or meaning is Meaning.GONE
        if self._is_awaited and is_for_good and (not self._has_spoken or meaning is Meaning.DENIED):
            self.is_over = True
            self._answer_first(status)
            return ()
        if meaning is Meaning.GONE:
            self.is_over = True
            return (*self._recover(), self._update(Kind.END, {"reason": "gone"}))
        if meaning is Meaning.DENIED:
            self.is_over = True
            return (self._update(Kind.REVOKED, {"reason": "revoked"}),)
        return self._trouble("upstream", status, f"the upstream answered {status}", f"{self._name}: {status}")

    def _fail(self, error: UpstreamError, status: int | None = None) -> Sequence[Update]:
        self._poller.fail(asyncio.get_running_loop().time())
        reason, message = _for_viewers(error)
        report = str(error) if status is None else f"{self._name}: {error}"
        return self._trouble(reason, status, message, report)

    def _trouble(self, reason: str, status: int | None, message: str, report: str) -> Sequence[Update]:
        """Say `fault`, and write it to the log, once an outage."""
        self._record.begin_failure(self.topic, report)
        if self._is_troubled:
            return ()
        self._is_troubled = True
        return (self._update(Kind.FAULT, {"reason": reason, "status": status, "message": message}),)

    def _recover(self) -> Sequence[Update]:
        if not self._is_troubled:
            return ()
        self._is_troubled = False
        self._record.end_failure(self.topic)
        return (self._update(Kind.RECOVERED, {}),)

    def _update(self, kind: Kind, data: dict[str, object]) -> Update:
        return Update(
            self.topic, json.dumps(data, separators=(",", ":")), type="end" if kind is Kind.END else "", kind=kind
        )


def _for_viewers(error: UpstreamError) -> tuple[str, str]:
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
