"""Several topics on one stream, by each edge and each version of HTTP."""

from __future__ import annotations

import random
import tracemalloc
from contextlib import AsyncExitStack

from tests.e2e.gate import Edge, story
from tests.e2e.joining import Listener, end_of, events, happened, joining, live, post, refused


@story
async def test_a_joined_stream_is_the_same_by_each_edge(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        api.put("/jobs/1", {"n": 1, "state": "busy"})
        topics = ["/orders/1/events", "/jobs/1/progress", "/rooms/1/events", "/me/notifications", "/nowhere"]
        async with gate.watch(live(*topics)) as viewer:
            told = await happened(viewer, 4)
            assert refused("/me/notifications", 401) in told
            assert refused("/nowhere", 404) in told
            assert ("/orders/1/events", {"n": 1}) in told
            await post(gate, "rooms", id="1", n=1)
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 1})]
            api.put("/jobs/1", {"n": 2, "state": "done"})
            await viewer.until("/jobs/1/progress#end")
            cursor = viewer.decoder.last_event_id
        await post(gate, "rooms", id="1", n=2)
        async with gate.watch(live(*topics[:3]), cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 2})]
        async with gate.watch(live("/jobs/1/progress"), cursor=cursor) as viewer:
            assert viewer.status == 204


@story
async def test_a_joined_stream_whose_topics_all_end_comes_to_its_own_end_in_order(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/jobs/1", {"n": 1, "state": "done"})
        async with gate.watch(live("/jobs/1/progress")) as viewer:
            assert (await viewer.rest())[-1].type == "/jobs/1/progress#end"
        await gate.until_clients(0)


@story
async def test_a_joined_stream_that_is_sent_away_is_told_when_to_come_back(edge: Edge) -> None:
    async with (
        joining(edge, server="drain: {timeout: 100ms}") as (gate, _, _),
        gate.watch(live("/rooms/1/events", "/rooms/2/events")) as viewer,
    ):
        await viewer.opening()
        await gate.service.gate.drain()
        assert (await end_of(viewer)).startswith(b"retry: ")


@story
async def test_many_events_of_many_topics_come_whole_and_once_to_those_who_lag_and_those_who_do_not(edge: Edge) -> None:
    chance = random.Random(9)
    topics = [f"/rooms/{number}/events" for number in range(10)]
    made = dict.fromkeys(topics, 0)
    async with joining(edge) as (gate, _, _):
        listener, lagging = Listener(*topics), Listener(*topics)
        async with gate.watch(live(*topics)) as viewer, gate.watch(live(*topics), buffer=4096) as slow:
            for _ in range(120):
                topic = chance.choice(topics)
                made[topic] += 1
                await post(gate, "rooms", id=topic.split("/")[2], n=made[topic], fill="x" * 6000)
                await listener.take(viewer, 1)
            await lagging.take(slow, 120)
        expected = {topic: list(range(1, count + 1)) for topic, count in made.items()}
        assert listener.seen == expected
        assert lagging.seen == expected


@story
async def test_large_documents_of_two_topics_are_not_mixed_up(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        for id_ in "12":
            api.put(f"/orders/{id_}", {"n": 0, "large": id_ * 300_000})
        async with gate.watch(live("/orders/1/events", "/orders/2/events"), buffer=4096) as viewer:
            for n in range(1, 4):
                seen = await events(viewer, 2)
                for event in seen:
                    assert set(event.data.partition('"large":"')[2].rstrip('"}')) == {event.type[8]}
                for id_ in "12":
                    api.put(f"/orders/{id_}", {"n": n, "large": id_ * 300_000})


@story
async def test_clients_that_read_nothing_of_their_topics_have_no_queues(edge: Edge) -> None:
    clients, target = 30, live("/orders/1/events", "/orders/2/events")
    async with joining(edge) as (gate, api, _), AsyncExitStack() as stack:
        for id_ in "12":
            api.put(f"/orders/{id_}", {"n": 0, "large": "x" * 200_000})
        quick = await stack.enter_async_context(gate.watch(target))
        await events(quick, 2)
        tracemalloc.start()
        try:
            for _ in range(clients):
                await stack.enter_async_context(gate.watch(target, buffer=4096))
            for n in range(1, 9):
                for id_ in "12":
                    api.put(f"/orders/{id_}", {"n": n, "large": str(n) * 200_000})
                await events(quick, 2)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # A queue for each of them would be 96 MB. What is held here is the history, what the quick one has read, and what lies in
        # the buffers of both ends, which are all in this process.
        assert held < 32_000_000, held
