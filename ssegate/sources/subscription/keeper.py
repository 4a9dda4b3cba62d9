"""Keeps one subscription alive: asks for it, renews it, notices that it was forgotten, and takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ssegate.core.lease import NEVER, Lease, Standing
from ssegate.errors import UpstreamError
from ssegate.sources.subscription.ledger import Ledger, Record
from ssegate.sources.subscription.provider import Provider, RefusedError
from ssegate.sources.subscription.undo import Undo

log = logging.getLogger(__name__)

CONFIRMATION = 60.0
"""Seconds in which a hub that was asked calls back; then it is asked again."""

PARTING = 5.0
"""Seconds in which a hub that was asked to end it calls back."""

LONGEST_SLEEP = 3600.0
"""A timer of a day and more would be late after a machine has slept."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a subscription stands, for health and metrics."""

    path: str
    kind: str
    standing: Standing
    seconds: float | None
    """How long it lasts yet; None where it does not end, or there is none."""
    failures: int
    """Attempts that have failed since the start."""
    trouble: str
    """Why the last attempt failed; empty when it did not."""


class Keeper:
    """Owns one subscription while its task runs."""

    def __init__(
        self,
        path: str,
        record: Record,
        provider: Provider | None,
        undo: Undo,
        ledger: Ledger,
        *,
        backoff: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        """`path` is the webhook's; `backoff` the shortest and the longest wait. Without a `provider` it can only `leave`."""
        self.path = path
        self.record = record
        self._provider = provider
        self._undo = undo
        self._ledger = ledger
        self._lease = Lease(random=random.random, backoff_min=backoff[0], backoff_max=backoff[1])
        self._is_called_for = False  # the hub may call back for the subscription
        self._answered = ""  # the last challenge
        self._former_topic = ""
        self._is_stopped = False
        self._is_leaving = False
        self._has_left = asyncio.Event()
        self._news = asyncio.Event()
        self._failures = 0
        self._trouble = ""

    async def run(self) -> None:
        """Keep it alive until stopped, or cancelled: then a request under way is broken off, and the backend may have done it."""
        self._lease.hurry(_now())
        while await self._comes_due():
            try:
                await self._ask()
            except UpstreamError as error:
                self._fail(str(error), error.retry_after if isinstance(error, RefusedError) else 0.0)

    def begin_anew(self) -> None:
        """It was taken back a moment ago, if that worked: then the backend knows nothing of it."""
        if self._ledger.get(self.path, self.record.definition) is None:
            self.record = replace(self.record, is_made=False, id="", undo=())

    def stop(self) -> None:
        """Let `run` come to its end, behind what is under way."""
        self._is_stopped = True
        self._news.set()

    async def _comes_due(self) -> bool:
        """Wait; false when it is stopped before that."""
        while not self._is_stopped and (wait := self._lease.due - _now()) > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, LONGEST_SLEEP)):
                    await self._news.wait()
        return not self._is_stopped

    async def _ask(self) -> None:
        assert self._provider is not None
        # Remembered before it is asked for: whatever happens in between, the backend may have it.
        before, prepared = self.record, await self._provider.prepare(self.record)
        await self._remember(prepared)
        self._is_called_for = True
        grant = await self._provider.ask(self.record)
        if before.until and (before.hub, before.topic) != (prepared.hub, prepared.topic):
            await self._part_from(before)
        if grant.is_confirmed:
            await self._granted(grant.record, grant.seconds, is_interval=grant.is_interval)
        elif self._is_called_for:  # it has not called back before it answered
            self._lease.expect(CONFIRMATION, _now())

    async def _part_from(self, former: Record) -> None:
        """The topic has moved, to another hub or to another URL: what was asked for there is wanted no more."""
        self._former_topic = former.topic
        try:
            await self._undo(former)
        except UpstreamError as error:
            log.warning("subscription of %s: the former one could not be removed: %s", self.path, error)

    async def _granted(self, record: Record, seconds: float | None, *, is_interval: bool = False) -> None:
        self._is_called_for = False
        was_failing, self._trouble = bool(self._trouble), ""
        is_new = self._lease.until is None
        self._lease.grant(seconds, _now(), is_interval=is_interval)
        if was_failing or is_new:
            lasts = "" if seconds is None or is_interval else f" for {seconds:,.0f} s"
            log.info("subscription of %s: granted%s", self.path, lasts)
        until = 0.0 if seconds is None or is_interval else round(time.time() + seconds)
        await self._remember(replace(record, until=until))
        self._news.set()

    def _fail(self, fact: str, retry_after: float = 0.0) -> None:
        self._failures += 1
        if not self._trouble:
            log.warning("subscription of %s: %s; it is tried again until it works", self.path, fact)
        self._trouble = fact
        self._lease.fail(_now(), retry_after)

    async def _remember(self, record: Record) -> None:
        if record == self._ledger.get(self.path, record.definition):
            self.record = record
            return
        self.record = record
        try:
            await self._ledger.put(self.path, record)
        except OSError as error:
            log.error("subscription of %s: it cannot be remembered across a restart: %s", self.path, error)

    # The backend calls

    async def confirm(self, query: Mapping[str, str]) -> str | None:
        """A hub asks whether something is meant (W3C WebSub, 5.3): the challenge to answer with, or None: it is not.

        Also where it says that it does not want to (5.2); the answer is empty then.
        """
        mode, challenge = query.get("hub.mode"), query.get("hub.challenge")
        topic = query.get("hub.topic")
        if mode == "unsubscribe" and challenge and topic and topic == self._former_topic:
            return challenge
        if not self.record.topic or topic != self.record.topic:
            return None
        if mode == "denied":
            self._is_called_for = False
            reason = query.get("hub.reason", "")[:200]
            self._fail(f"the hub denies it{': ' + repr(reason) if reason else ''}")
            self._lease.until = None
            self._news.set()
            return ""
        if mode == "subscribe" and challenge and challenge == self._answered:
            return challenge  # our answer did not reach it
        if mode == "subscribe" and challenge and self._is_called_for and not self._is_stopped:
            self._answered = challenge
            lease = query.get("hub.lease_seconds", "")
            seconds = float(lease[:9]) if lease.isascii() and lease.isdigit() and int(lease) else None
            await self._granted(self.record, seconds)
            return challenge
        if mode == "unsubscribe" and challenge and self._is_leaving:
            self._has_left.set()
            return challenge
        return None

    def receive_lifecycle(self, event: str) -> None:
        """Microsoft Graph tells something of the subscription itself."""
        log.info("subscription of %s: the backend says %r", self.path, event[:60])
        if event == "subscriptionRemoved":
            self.record = replace(self.record, is_made=False, id="")
            self._lease.lose(_now())
        elif event == "reauthorizationRequired":
            self._lease.hurry(_now())
        self._news.set()

    # The end

    async def leave(self) -> None:
        """Take the subscription back, and forget it once the backend has. Not while `run` runs."""
        record = self.record
        if not record.is_made:
            await self._forget(record)
            return
        self._is_leaving = True
        try:
            if not await self._undo(record):
                async with asyncio.timeout(PARTING):
                    await self._has_left.wait()
            await self._forget(record)
            log.info("subscription of %s: removed", self.path)
        except TimeoutError:
            log.warning("subscription of %s: the hub did not call back to end it; it ends with its lease", self.path)
        except UpstreamError as error:
            log.warning("subscription of %s: it could not be removed: %s", self.path, error)

    async def _forget(self, record: Record) -> None:
        try:
            await self._ledger.drop(self.path, record)
        except OSError as error:
            log.error("subscription of %s: that it is removed cannot be written: %s", self.path, error)

    def status(self) -> Status:
        """How it stands."""
        now, until = _now(), self._lease.until
        seconds = None if until is None or until == NEVER else max(0.0, until - now)
        return Status(self.path, self.record.kind, self._lease.standing(now), seconds, self._failures, self._trouble)


def _now() -> float:
    return asyncio.get_running_loop().time()
