"""Deliveries when the broker cannot store them, or takes its time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import Any

from ssegate.brokers.memory import MemoryBroker
from ssegate.config import parse_config
from ssegate.core.event import Update
from ssegate.core.headers import Headers
from ssegate.core.journal import Position
from ssegate.edge.exchange import Answer, Request
from ssegate.errors import BrokerError
from ssegate.gate import Gate

CONFIG = """
version: 1
routes:
  - path: /x/events
    webhook: {at: /hooks/x, verify: {cloudevents: {token: t}}, when: "headers.\\"ce-type\\" != 'other'"}
  - path: /y/{id}/events
    webhook: {at: /hooks/x, verify: {cloudevents: {token: t}}, match: {id: 'headers."ce-subject"'}}
limits: {topics: 3}
"""


class Broker(MemoryBroker):
    """It fails as often as it is told to, and waits while it is held."""

    def __init__(self) -> None:
        super().__init__(lambda: "e")
        self.failures: Iterator[bool] = iter(())
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.stored: list[str] = []

    async def publish(self, update: Update) -> Position:
        await self.is_open.wait()
        if next(self.failures, False):
            raise BrokerError(f"publish to {update.topic}: the engine is gone")
        self.stored.append(f"{update.topic} {json.loads(update.data)['id']}")
        return await super().publish(update)


class Stage:
    def __init__(self) -> None:
        self.broker = Broker()
        self.gate = Gate(parse_config(CONFIG, source="f", environ={}), broker=self.broker)

    async def deliver(self, *events: dict[str, str]) -> Answer:
        kind = b"application/cloudevents-batch+json"
        headers = Headers([(b"Authorization", b"Bearer t"), (b"Content-Type", kind)])
        body = Body(
            json.dumps([{"specversion": "1.0", "source": "/s", "type": "t", **each} for each in events]).encode()
        )
        reply = self.gate.answer(Request("POST", b"/hooks/x", headers, "1.1", "http", "", body))
        assert isinstance(reply, Coroutine)
        answer: Answer = await reply
        return answer


class Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def take_whole(self) -> bytes | None:
        return self._data

    async def __aiter__(self) -> Any:
        yield self._data


def staged(test: Callable[[Stage], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def story() -> None:
            stage = Stage()
            await stage.gate.start()
            try:
                await test(stage)
            finally:
                await stage.gate.aclose()

        asyncio.run(story())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look for its argument
    return run


@staged
async def test_what_cannot_be_stored_is_503_and_the_repetition_stores_just_the_rest(stage: Stage) -> None:
    stage.broker.failures = iter((False, True))
    batch = [{"id": "1"}, {"id": "2"}, {"id": "3"}]
    answer = await stage.deliver(*batch)
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, b"5")
    assert stage.broker.stored == ["/x/events 1"]
    answer = await stage.deliver(*batch)
    assert answer.status == 200
    assert stage.broker.stored == ["/x/events 1", "/x/events 2", "/x/events 3"]
    assert [entry.outcome.status for entry in stage.gate.diary] == [200, 503]


@staged
async def test_the_same_delivery_twice_at_once_is_stored_once_and_answered_when_it_is(stage: Stage) -> None:
    stage.broker.is_open.clear()
    both = [asyncio.create_task(stage.deliver({"id": "1"})) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in both)
    stage.broker.is_open.set()
    assert [answer.status for answer in await asyncio.gather(*both)] == [200, 200]
    assert stage.broker.stored == ["/x/events 1"]


@staged
async def test_of_two_at_once_the_second_stores_it_when_the_first_could_not(stage: Stage) -> None:
    stage.broker.is_open.clear()
    both = [asyncio.create_task(stage.deliver({"id": "1"})) for _ in range(2)]
    await asyncio.sleep(0)
    stage.broker.failures = iter((True,))
    stage.broker.is_open.set()
    assert [answer.status for answer in await asyncio.gather(*both)] == [503, 200]
    assert stage.broker.stored == ["/x/events 1"]


@staged
async def test_a_sender_that_leaves_while_it_is_stored_holds_up_nobody(stage: Stage) -> None:
    stage.broker.is_open.clear()
    first = asyncio.create_task(stage.deliver({"id": "1"}))
    await asyncio.sleep(0)
    second = asyncio.create_task(stage.deliver({"id": "1"}))
    await asyncio.sleep(0)
    first.cancel()
    stage.broker.is_open.set()
    assert (await second).status == 200
    assert stage.broker.stored == ["/x/events 1"]


@staged
async def test_without_room_for_a_topic_the_sender_is_asked_to_come_again(stage: Stage) -> None:
    for n in range(3):
        assert (await stage.deliver({"id": str(n), "subject": str(n), "type": "other"})).status == 200
    for topic in stage.gate.topics:
        topic.is_watched = True  # in use: it does not give way
    answer = await stage.deliver({"id": "9", "subject": "9", "type": "other"})
    assert answer.status == 503
    assert "limits.topics" in next(iter(stage.gate.diary)).outcome.words
