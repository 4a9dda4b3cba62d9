"""A source that asks again and again, before a scripted upstream: what it publishes, and what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ssegate.core.event import Kind, Update
from ssegate.core.headers import Pair
from ssegate.core.poll import PollSettings
from ssegate.errors import BrokerError
from ssegate.sources.poll import PollSource
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import Upstream
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer
from tests.upstream.settings import settings

PATIENCE = 5.0
EVERY = 0.02

Make = Callable[[Upstream, PollSettings, AskingRecord], PollSource]
"""Makes the source of a test."""

Story = Callable[["Stage"], Awaitable[None]]


class Stage:
    """One source before a scripted upstream, and what it publishes."""

    def __init__(self, scripted: ScriptedUpstream, make: Callable[[], PollSource], record: AskingRecord) -> None:
        self.scripted = scripted
        self.record = record
        self.said: list[Update] = []
        self.refuses = 0
        """How many times more the broker refuses; -1 is always."""
        self.source = make()
        self._make = make
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def publish(self, update: Update) -> None:
        self._changed.set()
        if self.refuses:
            self.refuses -= 1
            raise BrokerError("the broker is down")
        self.said.append(update)

    def begin(self) -> asyncio.Task[None]:
        self.task = asyncio.get_running_loop().create_task(self.source.run(self.publish))
        return self.task

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    async def restart(self) -> asyncio.Task[None]:
        """The process is another one: what was not remembered is lost."""
        await self.stop()
        self.said.clear()
        self.source = self._make()
        return self.begin()

    async def until_said(self, count: int) -> list[tuple[str, Any]]:
        """The words, once there are so many."""
        while len(self.said) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.words

    async def until_asked(self, count: int) -> None:
        await self.scripted.until(lambda it: len(it.requests) >= count)

    @property
    def words(self) -> list[tuple[str, Any]]:
        """What has been said: kinds, and data as values where it is JSON."""
        return [(update.kind.value, value_of(update.data)) for update in self.said]

    @property
    def targets(self) -> list[str]:
        """What was asked for."""
        return [asked.target for asked in self.scripted.requests]

    async def over(self) -> list[tuple[str, Any]]:
        """Wait until the source has come to its end by itself."""
        assert self.task is not None
        await self.task
        assert self.source.is_over
        return self.words


def value_of(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


@asynccontextmanager
async def stage_of(step: Step, make: Make, **rules: Any) -> AsyncIterator[Stage]:
    """`rules` are of the `PollSettings`."""
    rules = {"every_min": EVERY, "every_max": EVERY, "backoff_min": 0.01, "backoff_max": 0.02, **rules}
    async with ScriptedUpstream(step) as scripted:
        upstream = Upstream("api", settings(scripted.url))
        record = AskingRecord("api")
        stage = Stage(scripted, lambda: make(upstream, PollSettings(**rules), record), record)
        try:
            yield stage
        finally:
            if stage.task is not None:
                stage.task.cancel()
                await asyncio.gather(stage.task, return_exceptions=True)
            await upstream.aclose()


def play(step: Step, make: Make, story: Story, **rules: Any) -> None:
    """Tell a story before this upstream."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(step, make, **rules) as stage:
            await story(stage)

    asyncio.run(run())


def json_answer(value: object, *headers: Pair, status: int = 200) -> bytes:
    return answer(json.dumps(value).encode(), *headers, status=status)


def event(value: object) -> tuple[str, object]:
    return (Kind.EVENT.value, value)


def fault(status: int | None, message: str, reason: str = "upstream") -> tuple[str, object]:
    return (Kind.FAULT.value, {"reason": reason, "status": status, "message": message})


def end(reason: str, *result: object) -> tuple[str, object]:
    return (Kind.END.value, {"reason": reason, **({"result": result[0]} if result else {})})


RECOVERED = (Kind.RECOVERED.value, {})
RESET = (Kind.RESET.value, {"reason": "gap"})


def times_of(answers: Callable[[int], bytes]) -> tuple[list[float], Step]:
    """A handler that answers by the request's number, and when it was asked."""
    times: list[float] = []

    async def handle(call: Call) -> None:
        times.append(asyncio.get_running_loop().time())
        await call.send(answers(call.asked.number))

    return times, handle
