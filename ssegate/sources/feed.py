"""Asks a feed again and again what is new since a cursor, page after page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ssegate.core.event import Update
from ssegate.core.feed import FeedReader
from ssegate.core.poll import Meaning, PollSettings
from ssegate.sources.cursors import Cursors
from ssegate.sources.poll import PollSource, PollTarget
from ssegate.sources.stream import checked
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import FetchAnswer, Upstream

log = logging.getLogger(__name__)

FORGETFUL = 60.0
"""Seconds within which a cursor that is forgotten a second time is trouble with the upstream."""

TOO_QUICK = 0.2
"""The part of `long` within which an answer without anything new is none that was held: it is not asked again at once."""


class FeedSource(PollSource):
    """A resource that is polled like others, each time behind the cursor that the last page gave."""

    def __init__(
        self,
        topic: str,
        target: PollTarget,
        upstream: Upstream,
        settings: PollSettings,
        reader: FeedReader,
        record: AskingRecord,
        *,
        path_at: Callable[[str], str],
        cursors: Cursors,
        forgotten: frozenset[int],
        long: float,
        viewers: Callable[[], int],
        max_body: int,
    ) -> None:
        """`path_at` gives the path for a cursor, which may be empty; `forgotten` are statuses that mean the upstream knows it no
        more; `long`: seconds for which the upstream may hold a request.
        """
        super().__init__(topic, target, upstream, settings, None, record, viewers=viewers, max_body=max_body)
        self._reader = reader
        self._path_at = path_at
        self._cursors = cursors
        self._forgotten = forgotten
        self._held = long
        self._asked_at = 0.0
        self._forgotten_at = float("-inf")
        self._has_page = False

    def _path(self) -> str:
        self._asked_at = asyncio.get_running_loop().time()
        return checked(self._path_at, self._reader.cursor)

    def _read(self, answer: FetchAnswer) -> Sequence[Update]:
        updates = self._reader.read(answer.body)
        self._has_page = True
        return updates

    def _told(self) -> None:
        """The page is with the broker: from now on the next one is asked for, also by the next process."""
        if not self._has_page:
            return
        self._has_page = False
        if (place := self._reader.turn()) is not None:
            self._cursors.put(self.topic, place)
        held = asyncio.get_running_loop().time() - self._asked_at
        if self._reader.has_more or (self._held and held >= self._held * TOO_QUICK):
            self.hint()

    def _same(self, status: int) -> Sequence[Update]:
        """An upstream that holds requests and has nothing to say in the end (204)."""
        if self._held and asyncio.get_running_loop().time() - self._asked_at >= self._held * TOO_QUICK:
            self.hint()
        return super()._same(status)

    def _refused(self, meaning: Meaning, status: int) -> Sequence[Update]:
        if status in self._forgotten and self._reader.is_under_way:
            log.warning(
                "feed %s: %d: its cursor is forgotten; viewers are told, and it begins anew", self._name, status
            )
            self._cursors.drop(self.topic)
            self._begin_anew()
            return (*self._recover(), *self._reader.forget())
        return super()._refused(meaning, status)

    def _begin_anew(self) -> None:
        """Ask at once, but not again and again: an upstream that forgets what it has just given is backed off from."""
        now = asyncio.get_running_loop().time()
        if now - self._forgotten_at > FORGETFUL:
            self._poller.resume(now)
        self._forgotten_at = now

    def forget(self) -> None:
        """See `WatchedSource`."""
        self._cursors.drop(self.topic)
