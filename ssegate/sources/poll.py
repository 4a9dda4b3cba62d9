"""Asks one upstream resource again and again, and says what changed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssegate.core.event import Kind, Update
from ssegate.core.headers import Pair
from ssegate.core.poll import Meaning, Poller, PollSettings
from ssegate.errors import OversizeError, UndecodableError, UpstreamError
from ssegate.interfaces import Detector, Publish
from ssegate.sources.awaited import Awaited
from ssegate.sources.telling import PASSED_ON, AskingRecord, Telling, for_viewers
from ssegate.upstream import FetchAnswer, Upstream

CLOCK_STEP = 0.001
"""Seconds. uvloop's clock counts whole milliseconds and its timers fire up to one early: waiting for the rest of it would
spin, twenty times a poll (benchmarks/polling.py: 2,600 polls per CPU-second instead of 6,300)."""


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


class PollSource(Awaited):
    """Polls for one topic. May be run again after it was cancelled: it remembers the state it has told."""

    def __init__(
        self,
        topic: str,
        target: PollTarget,
        upstream: Upstream,
        settings: PollSettings,
        detector: Detector | None,
        record: AskingRecord,
        *,
        viewers: Callable[[], int],
        max_body: int,
    ) -> None:
        """`max_body` in bytes, of what is read of an answer before it is given up; `viewers` counts the topic's readers; without
        a detector another kind of asking reads what comes."""
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
        self._telling = Telling(upstream.address.label("GET", target.path.encode()))
        self._hint = asyncio.Event()

    async def run(self, publish: Publish) -> None:
        """Poll until cancelled, or until the resource is gone."""
        now = asyncio.get_running_loop().time()
        self._poller.resume(now)
        try:
            await self._telling.say(publish)
            self._told()
            if self._poller.due > now:
                self.answer_first(None)  # the upstream asked to be left alone: what is known is all there is
            while not self.is_over:
                await self._wait_until_due()
                self._telling.add(await self._ask())
                await self._telling.say(publish)
                self._told()
                self.answer_first(None)
        finally:
            self._record.drop(self.topic)

    def hint(self, *, gather: bool = False) -> None:
        """Something has probably changed: poll at once; `gather`: see `Poller.hint`."""
        self._poller.hint(asyncio.get_running_loop().time(), gather=gather)
        self._hint.set()

    async def _wait_until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._due - loop.time()) > CLOCK_STEP:
            self._hint.clear()
            timer = loop.call_later(wait, self._hint.set)
            try:
                await self._hint.wait()
            finally:
                timer.cancel()

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
                self._path(),
                headers,
                first=self.is_awaited,
                with_auth=self.target.with_auth,
                held=self._held,
                max_body=self._max_body,
            )
        except UpstreamError as error:
            self._record.count("failed", self._viewers())
            return self._fail(error)
        self._record.count(str(answer.status), self._viewers())
        meaning = self._poller.receive(answer.status, answer.headers, now=loop.time(), wall=time.time())
        match meaning:
            case Meaning.SAME:
                updates = self._same(answer.status)
                self.is_over = any(update.kind is Kind.END for update in updates)
                return updates
            case Meaning.BODY:
                return self._examine(answer)
            case _:
                return self._refused(meaning, answer.status)

    # What another kind of asking has of its own

    _held = 0.0
    """Seconds for which the upstream may hold a request."""
    _passes_on = True
    """Whether those who wait for the first answer are told a refusal instead of a stream."""

    def _path(self) -> str:
        """What is asked for next."""
        return self.target.path

    def _read(self, answer: FetchAnswer) -> Sequence[Update]:
        """What a body says. Raises `OversizeError` and `UndecodableError`."""
        assert self._detector is not None, "what has none reads by itself"
        return self._detector.changes(answer.body)

    def _same(self, status: int) -> Sequence[Update]:
        """Nothing has changed."""
        return self._recover()

    @property
    def _due(self) -> float:
        """When to ask next."""
        return self._poller.due

    def _told(self) -> None:
        """All there was to say has been published."""

    # Answers

    def _examine(self, answer: FetchAnswer) -> Sequence[Update]:
        try:
            updates = self._read(answer)
        except (OversizeError, UndecodableError) as error:
            return self._fail(error, answer.status)
        self._poller.settle(changed=bool(updates), now=asyncio.get_running_loop().time())
        self._has_spoken = self._has_spoken or bool(updates)
        self.is_over = any(update.kind is Kind.END for update in updates)
        return (*self._recover(), *updates)

    def _refused(self, meaning: Meaning, status: int) -> Sequence[Update]:
        """An answer without a state. Whoever waits for the first poll of something never seen is told the status itself."""
        is_for_good = status in PASSED_ON or meaning is Meaning.GONE
        if self._passes_on and self.is_awaited and is_for_good and (not self._has_spoken or meaning is Meaning.DENIED):
            self.is_over = True
            self.answer_first(status)
            return ()
        if meaning is Meaning.GONE:
            self.is_over = True
            return (*self._recover(), self._update(Kind.END, {"reason": "gone"}))
        if meaning is Meaning.DENIED:
            self.is_over = True
            return (self._update(Kind.REVOKED, {"reason": "revoked"}),)
        return self._trouble("upstream", status, f"the upstream answered {status}", f"poll {self._name}: {status}")

    def _fail(self, error: UpstreamError, status: int | None = None) -> Sequence[Update]:
        self._poller.fail(asyncio.get_running_loop().time())
        reason, message = for_viewers(error)
        report = str(error) if status is None else f"{self._name}: {error}"
        return self._trouble(reason, status, message, f"poll {report}")

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
