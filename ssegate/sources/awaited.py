"""The first answer of a source, for viewers who wait for what it says before, or instead of, a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ssegate.core.event import Update
from ssegate.interfaces import Publish


class WatchedSource(Protocol):
    """A source that is run while somebody watches its topic, and stopped some time after the last one has left."""

    is_over: bool
    """Whether it has nothing to ask any more: it is not run again."""

    async def run(self, publish: Publish) -> None:
        """See `interfaces.Source`. May be run again after it was cancelled."""
        ...

    @property
    def awaited(self) -> asyncio.Future[int | None] | None:
        """See `Awaited`."""
        ...

    def await_answer(self) -> None:
        """See `Awaited`."""
        ...

    def farewell(self) -> Sequence[Update]:
        """What is published when it was stopped and cannot be run again; nothing when it can."""
        ...

    def forget(self) -> None:
        """The topic is forgotten: whatever is remembered of it beyond this process goes too."""
        ...


class Awaited:
    """What sources have in common whose first answer is waited for."""

    _first: asyncio.Future[int | None] | None = None

    @property
    def awaited(self) -> asyncio.Future[int | None] | None:
        """Completed with the next answer: with None, or with the status that those who wait are to be told instead.

        Whoever has waited enough completes it with None: what comes later is told in the stream. None before
        `await_answer`.
        """
        return self._first

    def await_answer(self) -> None:
        """Let the next answer be waited for. Called before `run`."""
        self._first = asyncio.get_running_loop().create_future()

    @property
    def is_awaited(self) -> bool:
        """Whether anybody may still be told a status instead of a stream."""
        return self._first is not None and not self._first.done()

    def answer_first(self, status: int | None) -> None:
        """This is what those who wait are told. Said again it means nothing."""
        if self._first is not None and not self._first.done():
            self._first.set_result(status)

    def farewell(self) -> Sequence[Update]:
        """See `WatchedSource`."""
        return ()

    def forget(self) -> None:
        """See `WatchedSource`."""
