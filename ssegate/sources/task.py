"""Follows a job at the upstream until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ssegate.core.event import Update
from ssegate.core.poll import PollSettings
from ssegate.core.task import TaskReader
from ssegate.interfaces import Publish
from ssegate.sources.poll import PollSource, PollTarget
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import FetchAnswer, Upstream


class TaskSource(PollSource):
    """A resource that is polled like others, but says by itself when it is over, and may say where to ask next."""

    def __init__(
        self,
        topic: str,
        target: PollTarget,
        upstream: Upstream,
        settings: PollSettings,
        reader: TaskReader,
        record: AskingRecord,
        *,
        viewers: Callable[[], int],
        max_body: int,
        give_up: float | None,
        is_own: bool = False,
    ) -> None:
        """`give_up`: seconds after its beginning at which it is given up; None never. `is_own`: a request has started it, so that
        whatever is said of it then is told in its stream."""
        super().__init__(topic, target, upstream, settings, None, record, viewers=viewers, max_body=max_body)
        self._reader = reader
        self._passes_on = not is_own
        self._patience = give_up
        self._until: float | None = None
        self._where: str | None = None  # where the upstream has sent us on to

    async def run(self, publish: Publish) -> None:
        """Poll until cancelled, or until the job is over."""
        if self._patience is not None and self._until is None:
            self._until = asyncio.get_running_loop().time() + self._patience
        await super().run(publish)

    @property
    def _due(self) -> float:
        due = super()._due
        return due if self._until is None else min(due, self._until)

    async def _ask(self) -> Sequence[Update]:
        if self._until is not None and asyncio.get_running_loop().time() >= self._until:
            self.is_over = True
            return (*self._recover(), self._reader.give_up())
        return await super()._ask()

    def _path(self) -> str:
        return self._where or self.target.path

    def _same(self, status: int) -> Sequence[Update]:
        return (*super()._same(status), *self._reader.read_nothing(status))

    def _read(self, answer: FetchAnswer) -> Sequence[Update]:
        location = answer.headers.get("location")
        if location is not None:
            # RFC 9110, 15.3.3: an accepted request points to "a status monitor"; one of another origin is none of ours.
            self._where = self._upstream.address.onward(self._path(), location) or self._where
        return self._reader.read(answer.status, answer.body)
