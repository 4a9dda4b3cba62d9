"""Topics in the service of the gate: watched while somebody wants them, kept a while, and let go of."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from ssegate.brokers.memory import MemoryBroker
from ssegate.config import parse_config
from ssegate.core.event import Update
from ssegate.core.headers import Headers
from ssegate.core.hub import Hub, Subscriber, Topic
from ssegate.gate import topics as module
from ssegate.gate.routes import Table, WebhookRoute
from ssegate.gate.topics import Topics, Watch
from ssegate.gate.watched import PollRoute, Target
from ssegate.sources.poll import PollTarget
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer

PATIENCE = 5.0

CONFIG = """
version: 1
upstreams: {{api: {{url: {url}, timeout: {{connect: 1s, read: 2s}}, backoff: {{min: 10ms, max: 20ms}}}}}}
defaults: {{history: {{events: 10, age: {age}}}}}
routes:
  - path: /orders/{{id}}/events
    poll: {{get: "/orders/{{id}}", every: {every}, linger: {linger}, forward: {forward}}}
  - path: /hooks/{{id}}/events
    webhook: {{at: /hook, verify: none, match: {{id: body.id}}}}
"""

Story = Callable[["Stage"], Awaitable[None]]


def watched(topics: Topics, route: PollRoute, target: Target, params: dict[str, str]) -> Watch | None:
    """As the gate does it for what all viewers share."""
    return topics.watch(route, route.key(target), partial(route.make_source, target=target), params)


class Stage:
    def __init__(self, scripted: ScriptedUpstream, table: Table, max_topics: int) -> None:
        self.scripted = scripted
        self.table = table
        poll, webhook = table.routes
        assert isinstance(poll, PollRoute)
        assert isinstance(webhook, WebhookRoute)
        self.poll, self.webhook = poll, webhook
        self.epochs = 0
        self.broker = MemoryBroker(self.new_epoch)
        self.topics = Topics(Hub(), self.broker, max_topics=max_topics)

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"e{self.epochs}"

    def target(self, id_: int = 17, token: str | None = None) -> PollTarget:
        headers = () if token is None else ((b"authorization", token.encode()),)
        return PollTarget(f"/orders/{id_}", headers)

    def key(self, id_: int = 17) -> str:
        return self.poll.key(self.target(id_))

    async def watch(self, id_: int = 17, token: str | None = None) -> Topic | int | None:
        """As the gate does it: the topic, or the status the viewer is told, or None when there is no room."""
        target = self.target(id_, token)
        watch = watched(self.topics, self.poll, target, {"id": str(id_)})
        if watch is None:
            return None
        if watch.is_cold and (status := await self.topics.first_answer(watch)) is not None:
            return status
        return self.topics.hub.get(watch.topic.key)

    async def view(self, id_: int = 17) -> Viewer:
        topic = await self.watch(id_)
        assert isinstance(topic, Topic)
        return Viewer(self, topic)

    async def until_asked(self, count: int) -> None:
        await self.scripted.until(lambda it: len(it.requests) >= count)

    async def until_idle(self) -> None:
        """Wait until nothing polls any more."""
        while any(topic.is_watched for topic in self.topics):
            await asyncio.sleep(0.002)  # a topic that rests tells nobody


class Viewer:
    """A subscriber, and what it has been sent."""

    def __init__(self, stage: Stage, topic: Topic, cursor: str | None = None) -> None:
        self._stage = stage
        opening = stage.topics.subscribe(topic, cursor)
        self.subscriber: Subscriber = opening.subscriber
        self.got = opening.data
        self._woken = asyncio.Event()
        self.wakes = 0
        self.subscriber.wake = self._wake

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.set()

    async def until(self, data: bytes) -> bytes:
        """Read until this has come; return all that came."""
        while True:
            while piece := self.subscriber.read():
                self.got += piece
            if data in self.got:
                return self.got
            self._woken.clear()
            await self._woken.wait()

    def leave(self) -> None:
        self._stage.topics.unsubscribe(self.subscriber)


@asynccontextmanager
async def stage_of(
    step: Step,
    *,
    every: str = "20ms",
    linger: str = "30s",
    age: str = "10m",
    forward: str = "[]",
    max_topics: int = 100,
) -> AsyncIterator[Stage]:
    async with ScriptedUpstream(step) as scripted:
        text = CONFIG.format(url=scripted.url, every=every, linger=linger, age=age, forward=forward)
        stage = Stage(scripted, Table(parse_config(text, source="test", environ={})), max_topics)
        await stage.topics.start()
        try:
            yield stage
        finally:
            await stage.topics.aclose()
            await stage.table.slots["api"].upstream.aclose()


def play(step: Step, story: Story, **rules: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(step, **rules) as stage:  # type: ignore[arg-type]  # by name
            await story(stage)

    asyncio.run(run())


def state(value: object) -> bytes:
    return answer(json.dumps(value).encode())


def counting() -> Callable[[Call], Awaitable[None]]:
    """An upstream whose state is how often it was asked."""

    async def count(call: Call) -> None:
        await call.send(state(call.asked.number + 1))

    return count


async def silent(call: Call) -> None:
    await call.closed()


# Watching


def test_the_first_viewer_has_the_state_when_the_stream_opens() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        assert b'data: {"n":1}\n' in viewer.got
        assert viewer.subscriber.topic.is_watched

    play(state({"n": 1}), story)


def test_viewers_of_one_resource_share_one_poll_and_all_wait_for_the_first_answer() -> None:
    async def story(stage: Stage) -> None:
        topics = await asyncio.gather(*(stage.watch() for _ in range(100)))
        assert len({id(topic) for topic in topics}) == 1
        assert len(stage.scripted.requests) == 1
        assert len(stage.topics) == len(list(stage.topics)) == 1

    play(state(1), story, every="10s")


def test_viewers_with_different_credentials_never_share() -> None:
    async def story(stage: Stage) -> None:
        one, two = [await stage.watch(17, token) for token in ("one", "two")]
        assert isinstance(one, Topic)
        assert isinstance(two, Topic)
        assert one is not two
        assert [asked.get("authorization") for asked in stage.scripted.requests] == ["one", "two"]
        assert "one" not in one.key

    play(state(1), story, every="10s", forward="[authorization]")


def test_all_that_comes_in_one_turn_wakes_a_viewer_once() -> None:
    async def story(stage: Stage) -> None:
        topic = stage.topics.open(stage.webhook.key({"id": "1"}), stage.webhook)
        assert topic is not None
        viewer = Viewer(stage, topic)
        for number in range(5):
            assert await stage.topics.publish(Update(topic.key, str(number)), stage.webhook)
        await asyncio.sleep(0)
        assert viewer.wakes == 1
        assert viewer.subscriber.read().count(b"data: ") == 5

    play(b"", story)


def test_a_stream_opens_without_a_word_when_the_upstream_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER", 0.05)

    async def story(stage: Stage) -> None:
        release = asyncio.Event()

        async def slow(call: Call) -> None:
            await release.wait()
            await call.send(state(1))

        stage.scripted.answer_with(slow)
        viewer = await stage.view()
        assert viewer.got == b""
        second = await stage.view()  # one wait was enough
        release.set()
        assert await viewer.until(b"data: 1\n") == await second.until(b"data: 1\n")

    play(b"", story, every="10s")


# Refusals


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_told_to_everyone_who_waits_and_is_then_forgotten(status: int) -> None:
    async def story(stage: Stage) -> None:
        assert await asyncio.gather(*(stage.watch() for _ in range(20))) == [status] * 20
        assert len(stage.scripted.requests) == 1
        assert len(stage.topics) == 0
        stage.scripted.answer_with(state(1))
        assert isinstance(await stage.watch(), Topic)  # it is asked anew

    play(answer(status=status), story)


def test_who_comes_while_a_refusal_is_being_told_is_told_it_too() -> None:
    """A storm of reconnects to something that is gone: some come between the answer and its last listener."""

    async def story(stage: Stage) -> None:
        late: list[asyncio.Task[Topic | int | None]] = []

        async def first() -> Topic | int | None:
            result = await stage.watch()
            late.append(asyncio.ensure_future(stage.watch()))
            return result

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(first()) for _ in range(3)]
        await stage.until_asked(1)
        for _ in range(50):
            late.append(loop.create_task(stage.watch()))
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [404] * 3
        assert set(await asyncio.gather(*late)) == {404}
        assert len(stage.topics) == 0

    play(answer(status=404), story)


def test_a_refusal_that_nobody_waited_for_any_more_is_not_told_to_the_next() -> None:
    async def story(stage: Stage) -> None:
        release = asyncio.Event()

        async def slow(call: Call) -> None:
            await release.wait()
            await call.send(answer(status=404))

        stage.scripted.answer_with(slow)
        watching = asyncio.ensure_future(stage.watch())
        await stage.until_asked(1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        release.set()
        await stage.until_idle()
        stage.scripted.answer_with(state(1))
        assert isinstance(await stage.watch(), Topic)

    play(b"", story)


def test_a_right_that_ends_is_told_to_all_readers_and_the_topic_is_forgotten() -> None:
    async def story(stage: Stage) -> None:
        viewers = [await stage.view() for _ in range(3)]
        stage.scripted.answer_with(answer(status=401))
        for viewer in viewers:
            assert b'event: end\ndata: {"reason":"revoked"}\n\n' in await viewer.until(b"revoked")
            assert viewer.subscriber.is_over
        await stage.until_idle()
        assert stage.topics.hub.get(stage.key()) is None
        for viewer in viewers:
            viewer.leave()
        assert await stage.watch() == 401

    play(state(1), story, forward="[authorization]")


def test_what_is_gone_stays_as_a_finished_topic_that_is_not_polled() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        stage.scripted.answer_with(answer(status=404))
        await viewer.until(b"gone")
        assert viewer.subscriber.is_over
        asked = len(stage.scripted.requests)
        second = await stage.view()
        assert (await second.until(b"gone")).startswith(b"data: 1\n")
        assert len(stage.scripted.requests) == asked
        assert stage.topics.subscribe(second.subscriber.topic, "e1-2").is_finished

    play(state(1), story)


# Lingering


def test_polling_goes_on_for_a_while_after_the_last_viewer_and_then_stops() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        viewer.leave()
        asked = len(stage.scripted.requests)
        await stage.until_asked(asked + 2)
        await stage.until_idle()
        asked = len(stage.scripted.requests)
        await asyncio.sleep(0.06)  # nothing to await: a further request would be wrong
        assert len(stage.scripted.requests) == asked

    play(counting(), story, linger="100ms")


def test_a_viewer_who_comes_back_in_time_finds_the_poll_going_on() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        viewer.leave()
        second = await stage.view()
        task = second.subscriber.topic
        asked = len(stage.scripted.requests)
        await asyncio.sleep(0.1)  # longer than the linger
        assert task.is_watched
        await stage.until_asked(asked + 1)

    play(counting(), story, linger="50ms")


def test_one_of_two_viewers_may_leave_without_effect() -> None:
    async def story(stage: Stage) -> None:
        one, two = await stage.view(), await stage.view()
        one.leave()
        one.leave()
        await asyncio.sleep(0.03)  # longer than the linger
        assert two.subscriber.topic.is_watched

    play(counting(), story, linger="0s")


def test_a_viewer_who_comes_back_later_resumes_and_what_changed_meanwhile_comes() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        viewer.leave()
        await stage.until_idle()
        stage.scripted.answer_with(state(2))
        topic = await stage.watch()
        assert isinstance(topic, Topic)
        back = Viewer(stage, topic, "e1-1")
        assert await back.until(b"e1-2") == b"data: 2\nid: e1-2\n\n"

    play(state(1), story, linger="0s")


def test_a_viewer_who_is_refused_after_all_leaves_nothing_polling() -> None:
    async def story(stage: Stage) -> None:
        assert isinstance(await stage.watch(), Topic)  # and does not subscribe
        await stage.until_idle()

    play(state(1), story, linger="10ms")


def test_a_viewer_who_leaves_while_waiting_leaves_nothing_polling() -> None:
    async def story(stage: Stage) -> None:
        watching = asyncio.ensure_future(stage.watch())
        await stage.until_asked(1)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await stage.until_idle()
        await stage.scripted.until(lambda it: it.open == 0)

    play(silent, story, linger="10ms")


# One source, one run


class Lingering:
    """A source that takes its time to unwind, and counts how often it runs at a time."""

    def __init__(self) -> None:
        self.is_over = False
        self.awaited: asyncio.Future[int | None] | None = None
        self.running = self.most = self.runs = 0
        self.release = asyncio.Event()

    def await_answer(self) -> None:
        self.awaited = asyncio.get_running_loop().create_future()
        self.awaited.set_result(None)

    async def run(self, publish: object) -> None:
        self.running += 1
        self.runs += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.Event().wait()
        finally:
            await self.release.wait()
            self.running -= 1


def test_a_source_that_is_restarted_while_it_unwinds_never_runs_twice_at_a_time() -> None:
    async def story(stage: Stage) -> None:
        source = Lingering()
        await stage.view()
        topics = stage.topics
        watch = topics._watches[stage.key()]
        topics._stop(watch)
        watch.source = source  # type: ignore[assignment]  # what Topics asks of a source
        for _ in range(3):  # stopped and begun again and again while the first has not unwound
            topics._begin(watch)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            topics._stop(watch)
        topics._begin(watch)
        await asyncio.sleep(0.01)  # nothing to await: a second run would be wrong
        assert (source.running, source.runs) == (1, 1)
        source.release.set()
        while source.runs < 2:
            await asyncio.sleep(0)
        assert source.most == 1

    play(state(1), story)


def test_a_source_with_a_defect_is_started_again_while_somebody_reads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RESTART", 0.02)

    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        watch = stage.topics._watches[stage.key()]
        detector, watch.source._detector = watch.source._detector, Broken()
        while not caplog.records:
            await asyncio.sleep(0.002)
        watch.source._detector = detector
        stage.scripted.answer_with(state("again"))
        await viewer.until(b"again")

    with caplog.at_level(logging.ERROR, logger="ssegate"):
        play(counting(), story)
    assert "stopped on a defect; it is started again" in caplog.records[0].getMessage()
    assert "orders" in caplog.records[0].getMessage()


class Broken:
    def changes(self, body: bytes) -> list[Update]:
        raise RuntimeError("defect")


def test_a_refusal_after_a_restart_is_told_in_the_streams_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART", 0.02)

    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        watch = stage.topics._watches[stage.key()]
        detector, watch.source._detector = watch.source._detector, Broken()
        await stage.until_idle()
        watch.source._detector = detector
        stage.scripted.answer_with(answer(status=403))
        await viewer.until(b"revoked")

    play(counting(), story, forward="[authorization]")


def test_a_source_with_a_defect_whose_topic_was_dropped_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART", 0.02)

    async def story(stage: Stage) -> None:
        await stage.view()  # goes on reading, as in a drain
        watch = stage.topics._watches[stage.key()]
        watch.source._detector = Broken()
        await stage.until_idle()
        stage.topics.forget(stage.key())
        asked = len(stage.scripted.requests)
        await asyncio.sleep(0.06)  # nothing to await: a further request would be wrong
        assert (watch.task, len(stage.scripted.requests)) == (None, asked)

    play(counting(), story)


def test_a_topic_that_matches_a_hint_polls_at_once() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view(1)
        await stage.view(2)

        def matches(watch: Watch) -> bool:
            return watch.params == {"id": "1"}

        assert stage.topics.hint(matches) == 1
        assert stage.topics.hint(lambda watch: False) == 0
        await viewer.until(b"data: 3\n")
        assert [asked.target for asked in stage.scripted.requests] == ["/orders/1", "/orders/2", "/orders/1"]

    play(counting(), story, every="10s")


# What a webhook says has changed

WITH_A_WEBHOOK = """
version: 1
upstreams: {{api: {{url: {url}, timeout: {{connect: 1s, read: 2s}}}}}}
routes:
  - path: /shops/{{shop}}/orders/{{id}}/{{view}}
    poll: {{get: "/{{shop}}/orders/{{id}}?for={{query.for}}", every: 10s, linger: 0s, forward: [authorization]}}
    query: {{for: ".*"}}
    webhook: {{at: /hook, verify: none, match: {{shop: body.shop, id: body.id}}, then: poll}}
  - path: /other/{{shop}}/orders/{{id}}
    poll: {{get: "/{{shop}}/orders/{{id}}", every: 10s}}
    webhook: {{at: /hook, verify: none, match: {{shop: body.shop}}, then: poll}}
"""


class Shops:
    """Topics of two routes that a webhook may name by `shop` and `id`."""

    def __init__(self, scripted: ScriptedUpstream, topics: Topics, table: Table) -> None:
        self.scripted = scripted
        self.topics = topics
        self.orders, self.others = table.routes

    async def view(self, shop: str, id_: str, view: str = "full", token: str = "", question: str = "") -> Watch:
        assert isinstance(self.orders, PollRoute)
        headers = Headers([(b"Authorization", token.encode())] if token else [])
        return await self._view(self.orders, {"shop": shop, "id": id_, "view": view}, {"for": question}, headers)

    async def view_other(self, shop: str, id_: str) -> Watch:
        assert isinstance(self.others, PollRoute)
        return await self._view(self.others, {"shop": shop, "id": id_}, {}, Headers())

    async def _view(self, route: PollRoute, params: dict[str, str], query: dict[str, str], headers: Headers) -> Watch:
        watch = watched(self.topics, route, route.target(params, query, headers), params)
        assert watch is not None
        if watch.is_cold:
            await self.topics.first_answer(watch)
        self.topics.subscribe(watch.topic, None)
        return watch

    def hint(self, **params: str) -> list[Watch]:
        assert isinstance(self.orders, PollRoute)
        return self.topics.hint_route(self.orders, params)

    async def asked(self, count: int) -> list[str]:
        """What was asked for, from the first of the next `count` requests on."""
        before = len(self.scripted.requests)
        await self.scripted.until(lambda it: len(it.requests) >= before + count)
        return [asked.target for asked in self.scripted.requests[before:]]


def play_shops(story: Callable[[Shops], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), ScriptedUpstream(counting()) as scripted:
            table = Table(parse_config(WITH_A_WEBHOOK.format(url=scripted.url), source="test", environ={}))
            topics = Topics(Hub(), MemoryBroker(lambda: "e"), max_topics=100)
            await topics.start()
            try:
                await story(Shops(scripted, topics, table))
            finally:
                await topics.aclose()
                await table.slots["api"].upstream.aclose()

    asyncio.run(run())


def test_only_what_a_webhook_names_is_polled() -> None:
    async def story(shops: Shops) -> None:
        one = await shops.view("a", "1")
        for shop, id_ in (("a", "2"), ("b", "1"), ("1", "a")):
            await shops.view(shop, id_)
        await shops.view_other("a", "1")
        assert shops.hint(shop="a", id="1") == [one]
        assert await shops.asked(1) == ["/a/orders/1?for="]
        assert shops.hint(shop="a", id="3") == []

    play_shops(story)


def test_all_viewers_of_what_a_webhook_names_are_told_whoever_they_are_and_whatever_they_ask() -> None:
    async def story(shops: Shops) -> None:
        watches = [
            await shops.view("a", "1"),
            await shops.view("a", "1", token="one"),
            await shops.view("a", "1", token="two"),
            await shops.view("a", "1", question="me"),
        ]
        await shops.view("a", "2", token="one")
        assert shops.hint(shop="a", id="1") == watches
        assert sorted(await shops.asked(4)) == ["/a/orders/1?for="] * 3 + ["/a/orders/1?for=me"]

    play_shops(story)


def test_a_parameter_that_decides_nothing_of_what_is_asked_does_not_matter() -> None:
    async def story(shops: Shops) -> None:
        one = await shops.view("a", "1", "full")
        assert await shops.view("a", "1", "short") is one  # the same resource, and one poll
        for params in ({}, {"view": "full"}, {"view": "short"}, {"view": "none"}, {"more": "x"}):
            assert shops.hint(shop="a", id="1", **params) == [one]

    play_shops(story)


def test_a_parameter_that_a_webhook_does_not_name_may_have_any_value() -> None:
    async def story(shops: Shops) -> None:
        a1, a2, b1 = [await shops.view(shop, id_) for shop, id_ in (("a", "1"), ("a", "2"), ("b", "1"))]
        await shops.view_other("a", "1")
        assert shops.hint(shop="a") == [a1, a2]
        assert shops.hint(id="1") == [a1, b1]
        assert shops.hint() == shops.hint(view="full") == [a1, a2, b1]
        assert shops.hint(shop="c") == []

    play_shops(story)


def test_a_burst_of_a_webhook_is_a_poll_at_once_and_one_behind_it() -> None:
    async def story(shops: Shops) -> None:
        await shops.view("a", "1")
        for _ in range(20):
            shops.hint(shop="a", id="1")
        assert len(await shops.asked(1)) == 1
        for _ in range(20):
            shops.hint(shop="a", id="1")
        assert len(await shops.asked(1)) == 1
        await asyncio.sleep(0.2)  # nothing to await: a further request would be wrong
        assert len(shops.scripted.requests) == 3

    play_shops(story)


def test_what_nobody_reads_any_more_is_not_polled_for_a_webhook() -> None:
    async def story(shops: Shops) -> None:
        watch = await shops.view("a", "1")
        for subscriber in tuple(watch.topic.subscribers):
            shops.topics.unsubscribe(subscriber)
        while watch.topic.is_watched:
            await asyncio.sleep(0.002)  # a topic that rests tells nobody
        assert shops.hint(shop="a", id="1") == shops.hint(shop="a") == []
        assert await shops.view("a", "1") is watch
        assert shops.hint(shop="a", id="1") == shops.hint(shop="a") == [watch]

    play_shops(story)


def test_what_is_forgotten_leaves_nothing_for_a_webhook_to_name() -> None:
    async def story(shops: Shops) -> None:
        watches = [await shops.view("a", "1", token=token) for token in ("", "one", "two")]
        watches += [await shops.view("b", "1"), await shops.view_other("a", "1")]
        for watch in watches[:2]:
            shops.topics.forget(watch.topic.key)
        assert shops.hint(shop="a", id="1") == [watches[2]]
        for watch in watches:
            shops.topics.forget(watch.topic.key)
            shops.topics.forget(watch.topic.key)  # once more is no matter
        assert shops.hint(shop="a", id="1") == shops.hint() == []
        assert shops.topics._alike == {}
        assert shops.topics._watches == {}

    play_shops(story)


def test_what_the_upstream_refused_leaves_nothing_for_a_webhook_to_name() -> None:
    async def story(shops: Shops) -> None:
        assert isinstance(shops.orders, PollRoute)
        shops.scripted.answer_with(answer(status=403))
        params = {"shop": "a", "id": "1", "view": "full"}
        watch = watched(shops.topics, shops.orders, shops.orders.target(params, {}, Headers()), params)
        assert watch is not None
        assert await shops.topics.first_answer(watch) == 403
        assert shops.topics._alike == {}

    play_shops(story)


# Room


def test_there_are_no_more_topics_than_allowed() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(state(1), max_topics=2) as stage:
            viewers = [await stage.view(id_) for id_ in (1, 2)]
            assert await stage.watch(3) is None
            update = Update(stage.webhook.key({"id": "1"}), "x")
            assert not await stage.topics.publish(update, stage.webhook)
            assert len(stage.topics) == 2
            assert isinstance(await stage.watch(1), Topic)  # what is known needs no room
            assert len(viewers) == 2

    asyncio.run(run())


def test_room_is_made_by_the_history_that_was_quiet_longest() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(state(1), linger="0s", max_topics=2) as stage:
            for id_ in (1, 2):
                viewer = await stage.view(id_)
                viewer.leave()
                await stage.until_idle()
            await stage.view(3)
            assert [stage.topics.hub.get(stage.key(id_)) is not None for id_ in (1, 2, 3)] == [False, True, True]
            # Whoever comes back to what was let go of begins anew, with another epoch.
            assert b"id: e4-1" in (await stage.view(1)).got

    asyncio.run(run())


def test_a_topic_that_is_polled_or_waited_for_makes_no_room() -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(silent, max_topics=1) as stage:
            watching = asyncio.ensure_future(stage.watch(1))
            await stage.until_asked(1)
            assert await stage.watch(2) is None
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(run())


def test_a_topic_that_was_dropped_while_it_was_waited_for_turns_its_viewer_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER", 0.05)

    async def story(stage: Stage) -> None:
        watching = asyncio.ensure_future(stage.watch())
        await stage.until_asked(1)
        stage.topics.forget(stage.key())
        assert await watching is None
        assert len(stage.topics) == 0
        await stage.scripted.until(lambda it: it.open == 0)

    play(silent, story)


def test_history_that_nobody_wants_any_more_is_swept_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP", 0.01)

    async def story(stage: Stage) -> None:
        reader = await stage.view(1)
        (await stage.view(2)).leave()
        assert await stage.topics.publish(Update(stage.webhook.key({"id": "1"}), "x"), stage.webhook)
        assert len(stage.topics) == 3
        while len(stage.topics) > 1:
            await asyncio.sleep(0.005)  # the sweeper tells nobody
        assert list(stage.topics) == [reader.subscriber.topic]
        assert stage.topics._watches.keys() == stage.topics._owners.keys() == {stage.key(1)}
        assert stage.broker._heads.keys() == {stage.key(1)}

    play(state(1), story, linger="0s", age="50ms")


def test_topics_are_known_by_their_routes() -> None:
    async def story(stage: Stage) -> None:
        viewer = await stage.view()
        hooked = stage.topics.open(stage.webhook.key({"id": "1"}), stage.webhook)
        assert stage.topics.owned_by([stage.poll]) == [viewer.subscriber.topic]
        assert stage.topics.owned_by([stage.webhook]) == [hooked]
        assert stage.topics.owned_by([]) == []

    play(state(1), story)


# Streams of single requests


def own(stage: Stage) -> Watch:
    """A topic that belongs to one request, and has a name."""
    route, target = stage.poll, stage.target()
    make = partial(route.make_source, target=target)
    watch = stage.topics.watch(route, "own", make, {"id": "17"}, name="/orders/17/events/s/token", owner=b"me")
    assert watch is not None
    return watch


def test_the_topic_of_a_request_is_found_by_its_key_and_by_the_epoch_of_its_cursors() -> None:
    async def story(stage: Stage) -> None:
        watch = own(stage)
        assert await stage.topics.first_answer(watch) is None
        assert stage.topics.get("own") is watch
        assert stage.topics.of_epoch("e1") is watch
        assert stage.topics.of_epoch("e2") is None
        assert (watch.name, watch.owner) == ("/orders/17/events/s/token", b"me")
        stage.topics.forget("own")
        assert stage.topics.get("own") is stage.topics.of_epoch("e1") is None

    play(state(1), story)


def test_a_topic_that_is_shared_is_not_found_by_an_epoch() -> None:
    async def story(stage: Stage) -> None:
        await stage.view()
        assert stage.topics.of_epoch("e1") is None

    play(state(1), story)


def test_a_topic_that_is_forgotten_leaves_no_epoch_behind() -> None:
    async def story(stage: Stage) -> None:
        watch = own(stage)
        await stage.topics.first_answer(watch)
        assert watch.topic.fault is not None
        stage.topics.forget("own")
        assert stage.topics._epochs == {}

    play(answer(status=503), story)


# The end of it


def test_closing_ends_every_task_and_says_nothing_about_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(silent, linger="0s") as stage:
            watching = [asyncio.ensure_future(stage.watch(id_)) for id_ in (1, 2)]
            await stage.until_asked(2)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            stage.scripted.answer_with(state(1))
            await stage.view(3)
            stage.topics.forget(stage.key(3))
            await stage.topics.aclose()
            assert not stage.topics._tasks
            await asyncio.sleep(0)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == []
