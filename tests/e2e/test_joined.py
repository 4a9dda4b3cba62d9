"""Several topics on one stream: what their events are called, how it is resumed, and that each topic is guarded for itself."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

import pytest

from ssegate.core.event import Event
from ssegate.core.journal import Position
from ssegate.core.vector import encode_vector
from tests.e2e.client import PATIENCE, Pair, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, make_config, running_gate, said, story
from tests.e2e.joining import (
    ADA,
    BOB,
    ISSUES,
    JSON,
    ROUTES,
    Listener,
    configuration,
    end_of,
    events,
    happened,
    joining,
    live,
    post,
    refused,
)
from tests.guards import WhoAmI, refuses, says_who

VECTOR = re.compile(r"[A-Za-z0-9_-]{1,4096}")


# Names


@story
async def test_unnamed_events_are_called_by_their_topic_and_named_ones_by_topic_and_name(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1, "long": "x" * 200})
        async with gate.watch(
            live("/orders/1/events", "/patched/1/events", "/kinds/k/events", "/rooms/r/events")
        ) as viewer:
            assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
            first = await events(viewer, 2)
            assert {event.type for event in first} == {"/orders/1/events", "/patched/1/events#snapshot"}
            api.put("/orders/1", {"n": 2, "long": "x" * 200})
            assert {event.type for event in await events(viewer, 2)} == {"/orders/1/events", "/patched/1/events#patch"}
            await post(gate, "kinds", (("X-Kind", "opened"),), id="k")
            await post(gate, "kinds", id="k")
            await post(gate, "rooms", id="r")
            last = await events(viewer, 3)
            assert [event.type for event in last] == ["/kinds/k/events#opened", "/kinds/k/events", "/rooms/r/events"]
            for event in first + last:
                assert VECTOR.fullmatch(event.id or ""), event


@story
async def test_each_topic_is_the_same_as_alone_and_is_watched_once_for_all(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        topics = live("/orders/1/events")
        async with gate.watch(topics) as one, gate.watch(topics) as two, gate.watch("/orders/1/events") as alone:
            data = {(await viewer.event()).data for viewer in (one, two, alone)}
            assert len(data) == 1
            assert len([topic for topic in gate.service.gate.hub if topic.is_watched]) == 1


@story
async def test_a_topic_may_have_a_query_and_is_called_as_it_was_asked_for(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders", [{"id": 1}])
        names = ["/orders/events?status=open", "/orders/events?status=paid&page=2", "/orders/events?x=1&status=open"]
        async with gate.watch(live(*names)) as viewer:
            assert {name for name, _ in await happened(viewer, 3)} == set(names)
        targets = {asked.target for asked in api.requests}
        assert targets == {"/orders?status=open", "/orders?status=paid"}
        async with gate.watch(live(*names[:1], "/orders/events?status=stolen")) as viewer:
            assert refused("/orders/events?status=stolen", 404) in await happened(viewer, 2)


@story
async def test_a_topic_whose_path_has_escapes_is_called_as_it_was_asked_for(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/a%20b", {"n": 1})
        api.put("/orders/%C3%BC", {"n": 2})
        names = ["/orders/a%20b/events", "/orders/%C3%BC/events"]
        async with gate.watch(live(*names)) as viewer:
            assert dict(await happened(viewer, 2)) == {names[0]: {"n": 1}, names[1]: {"n": 2}}
        bad = [
            "/orders/a%2Fb/events",
            "/orders/%2e%2e/events",
            "/orders/a%00b/events",
            "/orders/../events",
            "//orders/1/events",
        ]
        async with gate.watch(live(names[0], *bad)) as viewer:
            told = await happened(viewer, 1 + len(bad))
            assert sorted(name for name, _ in told) == sorted([names[0], *(f"{name}#end" for name in bad)])


FORGED = [" ", "/orders/1 /events", "/rooms/ü/events", "/rooms/1/events#end", "rooms/1/events", "/rooms/1/events\t"]
BROKEN = ["", "/rooms/1/events\nevent: /me/notifications\ndata: {}\n\n", "\r", "/rooms/1/events\r\nid: x", "\0"]


@pytest.mark.parametrize("name", FORGED)
@story
async def test_a_topic_of_no_proper_name_is_not_there(edge: Edge, name: str) -> None:
    async with joining(edge) as (gate, _, _):
        assert (await gate.ask("GET", live(name))).status == 404
        async with gate.watch(live("/rooms/1/events", name)) as viewer:
            assert viewer.status == 200
            assert await happened(viewer, 1) == [refused(name, 404)]
            await post(gate, "rooms", id="1")
            assert (await viewer.event()).type == "/rooms/1/events"


@pytest.mark.parametrize("name", BROKEN, ids=range(len(BROKEN)))
@story
async def test_a_name_that_could_forge_a_field_forges_none(edge: Edge, name: str) -> None:
    async with joining(edge) as (gate, _, _):
        assert (await gate.ask("GET", live(name))).status in (400, 404)
        async with gate.watch(live("/rooms/1/events", name)) as viewer:
            assert viewer.status in (200, 400, 404)
            if viewer.status == 200:
                await post(gate, "rooms", id="1")
                seen = await viewer.until("/rooms/1/events")
                assert not [event for event in seen[:-1] if not event.type.endswith("#end")]


# Which topics


@pytest.mark.parametrize("target", ["/live", "/live?topics=/rooms/1/events", "/live?Topic=/rooms/1/events"])
@story
async def test_a_stream_of_no_topics_is_400(edge: Edge, target: str) -> None:
    async with joining(edge) as (gate, _, _):
        reply = await gate.ask("GET", target)
        assert (reply.status, b"?topic=/path" in reply.body) == (400, True)


@story
async def test_a_hundred_topics_may_be_joined_and_not_one_more(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        topics = [f"/rooms/{number}/events" for number in range(100)]
        async with gate.watch(live(*topics)) as viewer:
            assert viewer.status == 200
            for number in range(100):
                await post(gate, "rooms", id=str(number))
            seen = await events(viewer, 100)
            assert sorted(event.type for event in seen) == sorted(topics)
            assert max(len(event.id or "") for event in seen) <= 4096
        await gate.until_clients(0)
        await post(gate, "rooms", id="7", n="missed")
        async with gate.watch(live(*topics), cursor=seen[-1].id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await happened(viewer, 1) == [("/rooms/7/events", {"id": "7", "n": "missed"})]
        assert (await gate.ask("GET", live(*topics, "/rooms/100/events"))).status == 400
        assert (await gate.ask("GET", live(*(f"/rooms/{number}/events" for number in range(200))))).status == 400


@story
async def test_a_topic_that_is_named_twice_is_read_once(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _), gate.watch(live(*["/rooms/1/events"] * 110, "/rooms/2/events")) as viewer:
        assert viewer.status == 200, "two topics"
        await post(gate, "rooms", id="1")
        await post(gate, "rooms", id="2")
        assert [event.type for event in await events(viewer, 2)] == ["/rooms/1/events", "/rooms/2/events"]


@story
async def test_routes_that_the_joined_one_does_not_name_are_not_there(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        for topic in (
            "/alone/1/events",
            "/live",
            "/anything",
            "/hooks/rooms",
            "/_ssegate/ticket",
            "/live?topic=/rooms/1/events",
        ):
            assert (await gate.ask("GET", live(topic))).status == 404, topic
            async with gate.watch(live("/rooms/1/events", topic)) as viewer:
                assert await happened(viewer, 1) == [refused(topic, 404)]
        assert not api.requests


@story
async def test_each_topic_is_guarded_found_and_refused_for_itself(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        api.fail("/orders/3", 503)
        api.fail("/orders/4", 403)
        topics = [
            "/orders/1/events", "/orders/2/events", "/orders/3/events", "/orders/4/events", "/users/ada/notifications",
            "/users/bob/notifications", "/signed/1/events", "/nowhere", "/rooms/1/events",
        ]  # fmt: skip
        async with gate.watch(live(*topics), ADA) as viewer:
            assert viewer.status == 200
            told = await happened(viewer, 7)
            assert sorted(name for name, _ in told) == sorted(
                ["/orders/1/events", "/orders/3/events#fault", *(f"{topics[n]}#end" for n in (1, 3, 5, 6, 7))]
            )
            for topic, status in (
                (topics[1], 404),
                (topics[3], 403),
                (topics[5], 403),
                (topics[6], 401),
                (topics[7], 404),
            ):
                assert refused(topic, status) in told
            fault = dict(told)["/orders/3/events#fault"]
            assert isinstance(fault, dict)
            assert (fault["reason"], fault["status"]) == ("upstream", 503)
            await post(gate, "users", to="ada")
            await post(gate, "users", to="bob")
            await post(gate, "rooms", id="1")
            assert [name for name, _ in await happened(viewer, 2)] == [topics[4], topics[8]], "and none of bob's"
            api.put("/orders/3", {"n": 3})
            assert [name for name, _ in await happened(viewer, 2)] == ["/orders/3/events#recovered", "/orders/3/events"]


@pytest.mark.parametrize(
    ("topics", "headers", "status"),
    [
        (("/users/bob/notifications",), (ADA,), 403),
        (("/users/bob/notifications", "/signed/1/events", "/nowhere"), (ADA,), 403),
        (("/users/ada/notifications", "/me/notifications"), (), 401),
        (("/signed/1/events", "/nowhere"), (ADA,), 401),
        (("/nowhere", "/orders/2/events"), (ADA,), 404),
    ],
)
@story
async def test_where_nothing_is_for_the_viewer_the_request_is_refused(
    edge: Edge, topics: tuple[str, ...], headers: tuple[Pair, ...], status: int
) -> None:
    async with joining(edge) as (gate, _, _):
        async with gate.watch(live(*topics), *headers) as viewer:
            assert (viewer.status, viewer.get("content-type")) != (200, "text/event-stream")
            assert viewer.status == status
        listed = said((await gate.admin.ask("GET", "/denials")).body)
        assert bool(listed) is (status != 404)
        assert {denial["path"] for denial in listed} <= {*topics}


@story
async def test_a_refused_topic_opens_when_the_viewer_comes_back_with_a_credential_and_the_others_go_on(
    edge: Edge,
) -> None:
    async with joining(edge) as (gate, _, _):
        target = live("/rooms/1/events", "/me/notifications")
        async with gate.watch(target) as viewer:
            await post(gate, "rooms", id="1", n=1)
            assert [name for name, _ in await happened(viewer, 2)] == ["/me/notifications#end", "/rooms/1/events"]
            cursor = viewer.decoder.last_event_id
        await post(gate, "rooms", id="1", n=2)
        async with gate.watch(target, ADA, cursor=cursor) as viewer:
            await post(gate, "me", to="ada")
            assert await happened(viewer, 2) == [
                ("/rooms/1/events", {"id": "1", "n": 2}),
                ("/me/notifications", {"to": "ada"}),
            ]


@story
async def test_other_methods_and_shapes(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        target = live("/rooms/1/events")
        head = await gate.ask("HEAD", target)
        assert (head.status, head.get("content-type"), head.body) == (200, "text/event-stream", b"")
        assert (await gate.ask("OPTIONS", target)).status == 204
        assert (await gate.ask("GET", target, ("Accept", "application/json"))).status == 406
        async with gate.exchange("GET", target, ("Accept", "application/x-ndjson")) as it:
            assert it.status == 200
            await post(gate, "rooms", id="1", n=1)
            lines = b""
            while b"}\n" not in lines:
                lines += await it.read()
            line = said(lines.strip())
            assert (line["event"], line["data"], bool(VECTOR.fullmatch(line["id"]))) == (
                "/rooms/1/events",
                {"id": "1", "n": 1},
                True,
            )
        await post(gate, "rooms", id="1", n=2)
        async with gate.exchange(
            "GET", target, ("Accept", "application/x-ndjson"), ("Last-Event-ID", line["id"])
        ) as it:
            lines = b""
            while b"}\n" not in lines:
                lines += await it.read()
            assert said(lines.strip())["data"]["n"] == 2


# Resuming


@pytest.mark.parametrize("seed", range(3))
@story
async def test_a_client_that_is_cut_at_any_place_gets_each_event_of_each_topic_once(edge: Edge, seed: int) -> None:
    chance = random.Random(seed)
    topics = [f"/rooms/{number}/events" for number in range(4)]
    made = dict.fromkeys(topics, 0)
    async with joining(edge) as (gate, _, _):

        async def make(count: int) -> None:
            for _ in range(count):
                topic = chance.choice(topics)
                made[topic] += 1
                await post(gate, "rooms", id=topic.split("/")[2], n=made[topic])

        listener = Listener(*topics)
        async with gate.watch(live(*topics)) as viewer:
            for topic in topics:
                made[topic] += 1
                await post(gate, "rooms", id=topic.split("/")[2], n=1)
            await listener.take(viewer, 4)
        for _ in range(12):
            await make(chance.randrange(6))
            async with gate.watch(live(*chance.sample(topics, 4)), cursor=listener.cursor) as viewer:
                assert viewer.get("ssegate-resumed") == "yes"
                await make(chance.randrange(4))
                await listener.take(viewer, chance.randint(0, sum(made.values()) - listener.total))
        async with gate.watch(live(*topics), cursor=listener.cursor) as viewer:
            await listener.take(viewer, sum(made.values()) - listener.total)
        assert listener.seen == {topic: list(range(1, made[topic] + 1)) for topic in topics}


@story
async def test_topics_may_be_added_and_left_out_between_two_connections(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        for n in (1, 2):
            for room in "abc":
                await post(gate, "rooms", id=room, n=n)
        a, b, c = (f"/rooms/{room}/events" for room in "abc")
        async with gate.watch(live(a, b)) as viewer:
            for room in "ab":
                await post(gate, "rooms", id=room, n=3)
            await events(viewer, 2)
            cursor = viewer.decoder.last_event_id
        for room in "abc":
            await post(gate, "rooms", id=room, n=4)
        async with gate.watch(live(b, c), cursor=cursor) as viewer:
            assert await happened(viewer, 1) == [(b, {"id": "b", "n": 4})], "c is new: nothing old of it"
            await post(gate, "rooms", id="c", n=5)
            assert await happened(viewer, 1) == [(c, {"id": "c", "n": 5})]
            later = viewer.decoder.last_event_id
        # What was left out is not in the vector any more, for the client has said that it wants none of it.
        async with gate.watch(live(a, b, c), cursor=later) as viewer:
            await post(gate, "rooms", id="a", n=6)
            assert await happened(viewer, 1) == [(a, {"id": "a", "n": 6})]
        async with gate.watch(live(a, b, c), cursor=cursor) as viewer:
            told = await happened(viewer, 4 - 1)
            assert sorted(told, key=str) == [
                (a, {"id": "a", "n": 4}),
                (a, {"id": "a", "n": 6}),
                (b, {"id": "b", "n": 4}),
            ]


@story
async def test_a_state_that_is_new_to_a_resumed_stream_comes_as_for_a_newcomer(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        api.put("/orders/2", {"n": 2})
        async with gate.watch(live("/orders/1/events")) as viewer:
            cursor = (await viewer.event()).id
        async with gate.watch(live("/orders/1/events", "/orders/2/events"), cursor=cursor) as viewer:
            assert await happened(viewer, 1) == [("/orders/2/events", {"n": 2})], "the other one has not changed"


@story
async def test_earliest_is_all_that_is_kept_of_each_topic(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        for n in (1, 2, 3):
            for room in "ab":
                await post(gate, "rooms", id=room, n=n)
        listener = Listener("/rooms/a/events", "/rooms/b/events")
        async with gate.watch(live(*listener.topics), cursor="earliest") as viewer:
            assert viewer.get("ssegate-resumed") == "no"
            await listener.take(viewer, 2)
        async with gate.watch(live(*listener.topics), cursor=listener.cursor) as viewer:
            await listener.take(viewer, 4)
        assert listener.seen == {topic: [1, 2, 3] for topic in listener.topics}


@story
async def test_a_topic_whose_history_has_passed_its_client_is_reset_and_the_others_go_on(edge: Edge) -> None:
    async with joining(edge, more="defaults: {history: {events: 3}}\n") as (gate, _, _):
        target = live("/rooms/a/events", "/rooms/b/events")
        async with gate.watch(target) as viewer:
            await post(gate, "rooms", id="a", n=0)
            await post(gate, "rooms", id="b", n=0)
            cursor = (await events(viewer, 2))[-1].id
        for n in range(1, 7):
            await post(gate, "rooms", id="a", n=n)
        await post(gate, "rooms", id="b", n=1)
        async with gate.watch(target, cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "no"
            told = await happened(viewer, 5)
            assert [data for name, data in told if name == "/rooms/a/events#reset"] == [{"reason": "gap"}]
            ns = [data["n"] for name, data in told if name == "/rooms/a/events" and isinstance(data, dict)]
            assert ns == [4, 5, 6]
            assert ("/rooms/b/events", {"id": "b", "n": 1}) in told
            assert told.index(("/rooms/a/events#reset", {"reason": "gap"})) < told.index(
                ("/rooms/a/events", {"id": "a", "n": 4})
            )
            again = viewer.decoder.last_event_id
        async with gate.watch(target, cursor=again) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"


HOSTILE = [
    "x", "0-0", "_1", "_1AAAA", "_2AAAAAAAAAAAAAAAA", "_1" + "A" * 32, "_1" + "-_" * 400, "_1" + "A" * 4000, "A" * 4097,
    "B" * 20_000, "ü", "_1 x", "7f3a-1", "?", encode_vector([("/rooms/1/events", Position("foreign", 7))]),
    encode_vector([("/rooms/1/events", Position("foreign", 10**17))]),
]  # fmt: skip


@pytest.mark.parametrize("cursor", HOSTILE, ids=range(len(HOSTILE)))
@story
async def test_a_cursor_that_is_none_of_ours_is_told_of_each_topic_and_what_is_kept_follows(
    edge: Edge, cursor: str
) -> None:
    async with joining(edge) as (gate, _, _):
        await post(gate, "rooms", id="1", n=1)
        async with gate.watch(live("/rooms/1/events"), cursor=cursor) as viewer:
            assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "no")
            assert await happened(viewer, 2) == [
                ("/rooms/1/events#reset", {"reason": "unknown-cursor"}),
                ("/rooms/1/events", {"id": "1", "n": 1}),
            ]


@story
async def test_a_vector_of_other_topics_is_that_of_a_newcomer(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        await post(gate, "rooms", id="1", n=1)
        async with gate.watch(live("/rooms/1/events"), cursor=encode_vector([("/x", Position("e", 7))])) as viewer:
            assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "no")
            await post(gate, "rooms", id="1", n=2)
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 2})]


@story
async def test_a_topic_without_any_event_yet_is_resumed_too(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        target = live("/rooms/1/events", "/rooms/2/events")
        async with gate.watch(target) as viewer:
            await post(gate, "rooms", id="1", n=1)
            cursor = (await viewer.event()).id
        await post(gate, "rooms", id="2", n=2)
        await post(gate, "rooms", id="1", n=3)
        async with gate.watch(target, cursor=cursor) as viewer:
            assert {(await viewer.event()).type for _ in range(2)} == {"/rooms/1/events", "/rooms/2/events"}


@story
async def test_a_vector_from_the_future_is_not_ours(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        await post(gate, "rooms", id="1", n=1)
        epoch = next(topic.journal.epoch for topic in gate.service.gate.hub)
        cursor = encode_vector([("/rooms/1/events", Position(epoch, 99))])
        async with gate.watch(live("/rooms/1/events"), cursor=cursor) as viewer:
            assert (await happened(viewer, 1))[0] == ("/rooms/1/events#reset", {"reason": "unknown-cursor"})


@story
async def test_the_cursor_of_a_single_topic_is_not_that_of_a_joined_stream_nor_the_other_way_round(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        async with gate.watch("/rooms/1/events") as single, gate.watch(live("/rooms/1/events")) as joined:
            await post(gate, "rooms", id="1", n=1)
            id_, vector = (await single.event()).id, (await joined.event()).id
        async with gate.watch(live("/rooms/1/events"), cursor=id_) as viewer:
            assert (await viewer.event()).type == "/rooms/1/events#reset"
        async with gate.watch("/rooms/1/events", cursor=vector) as viewer:
            assert (await viewer.event()).type == "reset"


# Ends


@story
async def test_a_topic_that_is_done_says_so_and_the_others_go_on(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/jobs/1", {"n": 1, "state": "busy"})
        target = live("/jobs/1/progress", "/rooms/1/events")
        async with gate.watch(target) as viewer:
            assert await happened(viewer, 1) == [("/jobs/1/progress", 1)]
            api.put("/jobs/1", {"n": 2, "state": "done"})
            end = (await viewer.until("/jobs/1/progress#end"))[-1]
            assert said(end.data) == {"reason": "done", "result": 2}
            assert VECTOR.fullmatch(end.id or ""), "it is an event of the topic"
            await post(gate, "rooms", id="1", n=1)
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 1})]
            cursor = viewer.decoder.last_event_id
        await post(gate, "rooms", id="1", n=2)
        async with gate.watch(target, cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 2})], "no second end"
        async with gate.watch(target) as viewer:
            newcomer = await viewer.until("/jobs/1/progress#end")
            assert said(newcomer[-1].data) == {"reason": "done", "result": 2}


@story
async def test_when_all_topics_are_over_so_is_the_stream_and_its_reconnect_is_204(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        for id_ in "12":
            api.put(f"/jobs/{id_}", {"n": 1, "state": "busy"})
        target = live("/jobs/1/progress", "/jobs/2/progress")
        async with gate.watch(target) as viewer:
            await events(viewer, 2)
            api.put("/jobs/1", {"n": 2, "state": "done"})
            await viewer.until("/jobs/1/progress#end")
            between = viewer.decoder.last_event_id
            assert not viewer.is_ended
            api.put("/jobs/2", {"n": 2, "state": "done"})
            rest = await viewer.rest()
            assert rest[-1].type == "/jobs/2/progress#end"
            cursor = viewer.decoder.last_event_id
        async with gate.watch(target, cursor=cursor) as viewer:
            assert viewer.status == 204
        async with gate.watch(target, cursor=between) as viewer:
            assert [event.type for event in await viewer.rest()][-1] == "/jobs/2/progress#end"
        await gate.until_clients(0)


@story
async def test_a_topic_whose_resource_is_gone_ends_alone(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        for id_ in "12":
            api.put(f"/orders/{id_}", {"n": 1})
        async with gate.watch(live("/orders/1/events", "/orders/2/events")) as viewer:
            await events(viewer, 2)
            api.fail("/orders/1", 404)
            (name, data) = (await happened(viewer, 1))[0]
            assert (name, isinstance(data, dict) and data["reason"]) == ("/orders/1/events#end", "gone")
            api.put("/orders/2", {"n": 2})
            assert await happened(viewer, 1) == [("/orders/2/events", {"n": 2})]


@story
async def test_where_one_topic_is_refused_and_the_others_are_over_the_reconnect_is_final(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/jobs/1", {"n": 1, "state": "done"})
        target = live("/jobs/1/progress", "/signed/1/events")
        async with gate.watch(target) as viewer:
            assert {event.type for event in await viewer.rest()} >= {"/jobs/1/progress#end", "/signed/1/events#end"}
            cursor = viewer.decoder.last_event_id
        async with gate.watch(target, cursor=cursor) as viewer:
            assert viewer.status in (204, 401, 403)


@story
async def test_trouble_upstream_is_told_of_its_topic_alone(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        for id_ in "12":
            api.put(f"/orders/{id_}", {"n": 1})
        async with gate.watch(live("/orders/1/events", "/orders/2/events")) as viewer:
            await events(viewer, 2)
            api.fail("/orders/1", 503)
            event = await viewer.event()
            assert (event.type, said(event.data)["status"]) == ("/orders/1/events#fault", 503)
            assert event.id == viewer.decoder.last_event_id
            api.put("/orders/2", {"n": 2})
            assert await happened(viewer, 1) == [("/orders/2/events", {"n": 2})]
            api.put("/orders/1", {"n": 3})
            assert [name for name, _ in await happened(viewer, 2)] == ["/orders/1/events#recovered", "/orders/1/events"]


@story
async def test_a_cold_topic_that_takes_long_keeps_the_others_no_longer_than_three_seconds(edge: Edge) -> None:
    async with joining(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        api.put("/orders/2", {"n": 2})
        held = api.hold("/orders/2")
        began = time.monotonic()
        async with gate.watch(live("/orders/1/events", "/orders/2/events")) as viewer:
            assert await happened(viewer, 1) == [("/orders/1/events", {"n": 1})]
            assert time.monotonic() - began < 4
            held.set()
            seen = await viewer.until("/orders/2/events")
            assert said(seen[-1].data) == {"n": 2}


# Rights


@story
async def test_a_topic_whose_right_expires_says_so_and_ends_alone(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        token = ISSUES.token(exp=int(time.time()) + 2)
        target = live("/signed/1/events", "/rooms/1/events", "/me/notifications")
        await post(gate, "signed", id="1", n=0)
        async with gate.watch(target, ("Authorization", f"Bearer {token}"), ADA) as viewer:
            expiring, end = await events(viewer, 2)
            assert (expiring.type, set(said(expiring.data))) == ("/signed/1/events#expiring", {"at", "in"})
            assert (end.type, said(end.data)) == ("/signed/1/events#end", {"reason": "expired"})
            await post(gate, "signed", id="1", n=1)
            await post(gate, "rooms", id="1", n=1)
            await post(gate, "me", to="ada")
            assert [name for name, _ in await happened(viewer, 2)] == ["/rooms/1/events", "/me/notifications"]
            cursor = viewer.decoder.last_event_id
        await post(gate, "rooms", id="1", n=2)
        # The old credential is refused now, a fresh one goes on where it stopped, and in the others nothing is lost.
        async with gate.watch(target, ("Authorization", f"Bearer {token}"), ADA, cursor=cursor) as viewer:
            told = await happened(viewer, 2)
            assert refused("/signed/1/events", 401) in told
            assert ("/rooms/1/events", {"id": "1", "n": 2}) in told
            later = viewer.decoder.last_event_id
        async with gate.watch(target, ("Authorization", f"Bearer {ISSUES.token()}"), ADA, cursor=later) as viewer:
            assert await happened(viewer, 1) == [("/signed/1/events", {"id": "1", "n": 1})]


@story
async def test_a_logout_ends_the_topics_of_the_session_and_no_others(edge: Edge) -> None:
    async with (
        joining(edge, recheck="200ms") as (gate, _, who),
        gate.watch(live("/me/notifications", "/users/ada/notifications", "/rooms/1/events"), ADA) as viewer,
    ):
        await post(gate, "me", to="ada")
        await viewer.event()
        del who.sessions["s1"]
        told = await happened(viewer, 2)
        assert sorted(told, key=str) == [
            ("/me/notifications#end", {"reason": "revoked"}),
            ("/users/ada/notifications#end", {"reason": "revoked"}),
        ]
        await post(gate, "me", to="ada")
        await post(gate, "rooms", id="1")
        assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1"})]


@story
async def test_when_the_rights_to_all_topics_have_ended_the_stream_ends(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        async with gate.watch(live("/me/notifications", "/users/ada/notifications"), ADA) as viewer:
            await viewer.opening()
            reply = await gate.admin.ask("POST", "/revoke", JSON, body=b'{"identity": "ada"}')
            assert said(reply.body) == {"identity": "ada", "streams": 1}
            told = [(event.type, said(event.data)) for event in await viewer.rest()]
            assert sorted(told, key=str) == [
                ("/me/notifications#end", {"reason": "revoked"}),
                ("/users/ada/notifications#end", {"reason": "revoked"}),
            ]
        async with gate.watch(live("/me/notifications", "/users/ada/notifications"), ADA) as viewer:
            assert viewer.status == 401


@story
async def test_an_end_that_is_the_viewers_own_is_not_in_the_topic(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        async with gate.watch(live("/rooms/1/events", "/me/notifications"), ADA) as viewer:
            await post(gate, "me", to="ada", n=1)
            cursor = (await viewer.event()).id
            await gate.admin.ask("POST", "/revoke", JSON, body=b'{"identity": "ada"}')
            end = await viewer.event()
            assert (end.type, end.id) == ("/me/notifications#end", cursor), "no id of its own"
        await post(gate, "me", to="ada", n=2)
        async with gate.watch(live("/me/notifications"), ("Cookie", "session=s3"), cursor=cursor) as viewer:
            assert viewer.status == 401
        async with gate.watch(live("/me/notifications"), BOB, cursor=cursor) as viewer:
            # Bob's topic of this name is another one; nothing of ada's comes of her cursor.
            await post(gate, "me", to="bob", n=3)
            seen = await viewer.until("/me/notifications")
            assert said(seen[-1].data) == {"to": "bob", "n": 3}
            assert len(seen) <= 2


@story
async def test_a_guard_that_is_down_for_three_rechecks_sends_the_whole_stream_to_come_back(edge: Edge) -> None:
    async with joining(edge, recheck="100ms") as (gate, _, who):
        target = live("/rooms/1/events", "/me/notifications")
        async with gate.watch(target, ADA) as viewer:
            await post(gate, "rooms", id="1", n=1)
            cursor = (await viewer.event()).id
            who.usually(refuses(503))
            last = await end_of(viewer)
            assert last.startswith(b"retry: "), last
            assert b"event:" not in last
        who.usually(says_who)
        await post(gate, "rooms", id="1", n=2)
        async with gate.watch(target, ADA, cursor=cursor) as viewer:
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 2})]


@story
async def test_a_guard_that_is_down_sends_who_wants_its_topic_to_come_back(edge: Edge) -> None:
    async with joining(edge) as (gate, _, who):
        who.usually(refuses(503))
        async with gate.watch(live("/rooms/1/events", "/me/notifications"), ADA) as viewer:
            assert (viewer.status, await viewer.rest(), viewer.decoder.retry_ms is not None) == (200, [], True)
        async with gate.watch(live("/rooms/1/events"), ADA) as viewer:
            assert viewer.status == 200
            await post(gate, "rooms", id="1", n=1)
            await viewer.event()


@story
async def test_a_guard_is_asked_once_for_all_topics_it_stands_before(edge: Edge) -> None:
    async with joining(edge) as (gate, _, who):
        async with gate.watch(
            live("/me/notifications", "/users/ada/notifications", "/users/bob/notifications"), ADA
        ) as viewer:
            assert await happened(viewer, 1) == [refused("/users/bob/notifications", 403)]
        assert len(who.requests) == 1
        assert who.requests[0].get("x-forwarded-uri") == live(
            "/me/notifications", "/users/ada/notifications", "/users/bob/notifications"
        )


@pytest.mark.parametrize(
    "target", ["/slow/1/events", live("/slow/1/events", "/rooms/1/events")], ids=["single", "joined"]
)
@story
async def test_who_is_put_out_while_the_upstream_is_waited_for_does_not_get_in(edge: Edge, target: str) -> None:
    slow = '- {path: "/slow/{id}/events", auth: user, poll: {get: "/orders/{id}", every: 20ms}}\n'
    routes = slow + ROUTES.replace("topics: [", 'topics: ["/slow/{id}/events",')
    bearer = ("Authorization", f"Bearer {ISSUES.token(iat=int(time.time()) - 5)}")
    async with joining(edge, routes=routes) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        answering = api.hold("/orders/1")

        async def open_() -> list[str]:
            async with gate.watch(target, bearer) as viewer:
                if viewer.status != 200:
                    return [str(viewer.status)]
                await post(gate, "rooms", id="1", n="last")
                return [(await viewer.event()).type for _ in range(2 if "live" in target else 1)]

        opening = asyncio.create_task(open_())
        await api.until_asked("/orders/1", 1)
        await gate.admin.ask("POST", "/revoke", JSON, body=b'{"identity": "u1"}')
        answering.set()
        seen = await opening
        assert not {"", "/slow/1/events"} & {*seen}, "nothing that is for the viewer alone"


@story
async def test_the_streams_of_a_viewer_are_counted_when_they_are_joined_too(edge: Edge) -> None:
    async with joining(edge, more="limits: {clients_per_user: 1}\n") as (gate, _, _):
        target = live("/me/notifications", "/rooms/1/events")
        async with gate.watch(target, ADA) as one, gate.watch(target, BOB) as other:
            assert (one.status, other.status) == (200, 200)
            await one.opening()
            async with gate.watch(target, ADA) as two:
                assert await two.rest() == []
                assert two.decoder.retry_ms is not None
            async with gate.watch("/me/notifications", ADA) as single:
                assert await single.rest() == []


@story
async def test_a_reload_that_takes_a_key_away_ends_its_topics_and_no_others(edge: Edge) -> None:
    bearer = ("Authorization", f"Bearer {ISSUES.token()}")
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        running_gate(edge, configuration(api, who)) as gate,
        gate.watch(live("/signed/1/events", "/me/notifications", "/rooms/1/events"), bearer, ADA) as viewer,
    ):
        await viewer.opening()
        changed = configuration(api, who).replace(ISSUES.secret, "another secret of thirty-two bytes")
        gate.service.gate.reload(make_config(edge.yaml(0, changed)))
        assert await happened(viewer, 1) == [("/signed/1/events#end", {"reason": "revoked"})]
        await post(gate, "signed", id="1")
        await post(gate, "rooms", id="1")
        await post(gate, "me", to="ada")
        assert [name for name, _ in await happened(viewer, 2)] == ["/rooms/1/events", "/me/notifications"]


@story
async def test_a_reload_by_which_another_backend_is_asked_sends_the_whole_stream_to_come_back(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        WhoAmI() as other,
        running_gate(edge, configuration(api, who)) as gate,
    ):
        target = live("/me/notifications", "/rooms/1/events")
        async with gate.watch(target, ADA) as viewer:
            await viewer.opening()
            gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, other))))
            last = await end_of(viewer)
            assert last.startswith(b"retry: ")
            assert b"#end" not in last
        async with gate.watch(target, ADA) as viewer:
            assert await happened(viewer, 1) == [refused("/me/notifications", 401)]


@story
async def test_two_viewers_of_one_url_never_get_each_others_events(edge: Edge) -> None:
    chance = random.Random(6)
    target = live("/me/notifications", "/rooms/1/events")
    async with joining(edge) as (gate, _, _), AsyncExitStack() as stack:
        cookies = {"ada": ADA, "bob": BOB}
        viewers: dict[str, list[Viewer]] = {"ada": [], "bob": []}
        for _ in range(3):
            for name, cookie in cookies.items():
                viewers[name].append(await stack.enter_async_context(gate.watch(target, cookie)))
        made = {"ada": 0, "bob": 0}
        for _ in range(60):
            name = chance.choice(["ada", "bob"])
            made[name] += 1
            await post(gate, "me", to=name, n=made[name])
        await post(gate, "me", to="eve", n=1)
        await post(gate, "rooms", id="1", n="last")
        for name, theirs in viewers.items():
            for viewer in theirs:
                seen = [said(event.data) for event in await viewer.until("/rooms/1/events")][:-1]
                assert seen == [{"to": name, "n": n} for n in range(1, made[name] + 1)]


@story
async def test_somebody_elses_vector_leads_to_nothing_of_theirs(edge: Edge) -> None:
    async with joining(edge) as (gate, _, _):
        async with gate.watch(live("/me/notifications"), ADA) as viewer:
            await post(gate, "me", to="ada", n=1)
            cursor = (await viewer.event()).id
        await post(gate, "me", to="ada", n=2)
        await post(gate, "me", to="bob", n=1)
        async with gate.watch(live("/me/notifications"), BOB, cursor=cursor) as viewer:
            assert await happened(viewer, 2) == [
                ("/me/notifications#reset", {"reason": "unknown-cursor"}),
                ("/me/notifications", {"to": "bob", "n": 1}),
            ]


# The stream's life


@story
async def test_a_joined_stream_is_one_client(edge: Edge) -> None:
    async with joining(edge, more="limits: {clients: 2}\n") as (gate, _, _):
        rooms = [f"/rooms/{number}/events" for number in range(20)]
        async with gate.watch(live(*rooms)) as one, gate.watch(live(*rooms)) as two, gate.watch(live(*rooms)) as three:
            assert gate.service.gate.statistics().clients == 2
            assert await three.rest() == []
            assert three.decoder.retry_ms is not None
            await post(gate, "rooms", id="19")
            assert {(await viewer.event()).type for viewer in (one, two)} == {"/rooms/19/events"}
        await gate.until_clients(0)
        assert not gate.service.gate.streams.joined
        assert not [topic for topic in gate.service.gate.hub if topic.subscribers], "each topic was let go of"


@story
async def test_topics_that_have_no_room_send_the_stream_to_come_back(edge: Edge) -> None:
    async with joining(edge, more="limits: {topics: 2}\n") as (gate, _, _):
        kinds = [f"/kinds/{number}/events" for number in range(3)]
        async with gate.watch(live(*kinds[:2])) as viewer:
            assert viewer.status == 200
            async with gate.watch(live(*kinds)) as other:
                assert await other.rest() == []
                assert other.decoder.retry_ms is not None
            await post(gate, "kinds", id="1")
            assert (await viewer.event()).type == kinds[1]


@story
async def test_a_joined_stream_has_its_own_heartbeat_and_age(edge: Edge) -> None:
    routes = ROUTES.replace("- path: /live\n", "- path: /live\n  heartbeat: 200ms\n  max_age: 800ms\n")
    async with joining(edge, routes=routes) as (gate, _, _):
        target = live("/rooms/1/events", "/rooms/2/events")
        await post(gate, "rooms", id="1", n=0)
        async with gate.watch(target) as viewer:
            await viewer.opening()
            await post(gate, "rooms", id="2", n=1)
            cursor = (await viewer.event()).id
            last = await end_of(viewer)
            assert last.count(b":\n") >= 1, last
        await post(gate, "rooms", id="1", n=2)
        async with gate.watch(target, cursor=cursor) as viewer:
            assert (await happened(viewer, 1)) == [("/rooms/1/events", {"id": "1", "n": 2})]


@story
async def test_a_draining_gate_sends_joined_streams_to_come_back(edge: Edge) -> None:
    async with (
        joining(edge, server="drain: {timeout: 200ms}") as (gate, _, _),
        gate.watch(live("/rooms/1/events", "/rooms/2/events")) as viewer,
    ):
        await viewer.opening()
        draining = asyncio.create_task(gate.service.gate.drain())
        last = await end_of(viewer)
        assert re.fullmatch(rb"(?s).*retry: ([0-9]+)\n:\n", last), last
        assert b"#end" not in last
        await draining


@story
async def test_a_reload_that_changes_one_topics_route_sends_its_streams_to_come_back_and_no_others(edge: Edge) -> None:
    async with LegacyApi() as api, WhoAmI() as who, running_gate(edge, configuration(api, who)) as gate:
        one, two = live("/rooms/1/events", "/kinds/1/events"), live("/rooms/1/events", "/me/notifications")
        async with gate.watch(one) as changed, gate.watch(two) as kept, gate.watch("/rooms/1/events") as alone:
            await post(gate, "rooms", id="1", n=1)
            cursor = (await changed.event()).id
            await kept.until("/rooms/1/events")
            await alone.event()
            routes = ROUTES.replace('emit: {event: "{headers.x-kind}"}', 'emit: {event: "new-{headers.x-kind}"}')
            gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, who, routes=routes))))
            last = await end_of(changed)
            assert last.startswith(b"retry: "), last
            assert b"#end" not in last
            await post(gate, "rooms", id="1", n=2)
            assert (await alone.event()).data == (await kept.event()).data
        async with gate.watch(one, cursor=cursor) as viewer:
            await post(gate, "kinds", (("X-Kind", "x"),), id="1")
            assert {name for name, _ in await happened(viewer, 2)} == {"/rooms/1/events", "/kinds/1/events#new-x"}


@story
async def test_a_reload_that_changes_the_joined_route_sends_its_streams_to_come_back(edge: Edge) -> None:
    async with LegacyApi() as api, WhoAmI() as who, running_gate(edge, configuration(api, who)) as gate:
        async with gate.watch(live("/rooms/1/events", "/kinds/1/events")) as viewer:
            await post(gate, "rooms", id="1", n=1)
            cursor = (await viewer.event()).id
            gate.service.gate.reload(
                make_config(
                    edge.yaml(0, configuration(api, who, routes=ROUTES.replace(', "/kinds/{id}/events",', ",")))
                )
            )
            assert (await end_of(viewer)).startswith(b"retry: ")
        async with gate.watch(live("/rooms/1/events", "/kinds/1/events"), cursor=cursor) as viewer:
            assert await happened(viewer, 1) == [refused("/kinds/1/events", 404)]
            await post(gate, "rooms", id="1", n=2)
            assert await happened(viewer, 1) == [("/rooms/1/events", {"id": "1", "n": 2})]


@story
async def test_a_reload_that_changes_nothing_leaves_joined_streams_open(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        running_gate(edge, configuration(api, who)) as gate,
        gate.watch(live("/rooms/1/events", "/me/notifications"), ADA) as viewer,
    ):
        await viewer.opening()
        gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, who))))
        await post(gate, "rooms", id="1", n=1)
        await post(gate, "me", to="ada")
        assert [name for name, _ in await happened(viewer, 2)] == ["/rooms/1/events", "/me/notifications"]


def largest_n(seen: Iterable[Event], topic: str) -> int:
    return max((said(event.data)["n"] for event in seen if event.type == topic), default=-1)


@story
async def test_a_client_that_does_not_read_costs_little_and_is_caught_up_with(edge: Edge) -> None:
    large = "x" * 500_000
    async with joining(edge) as (gate, api, _):
        for id_ in "12":
            api.put(f"/orders/{id_}", {"n": 0, "large": large})
        target = live("/orders/1/events", "/orders/2/events")
        async with gate.watch(target, buffer=4096) as slow, gate.watch(target) as quick:
            await events(quick, 2)
            for n in range(1, 9):
                for id_ in "12":
                    api.put(f"/orders/{id_}", {"n": n, "large": large})
                    event = await quick.event()
                    assert (event.type, said(event.data)["n"]) == (f"/orders/{id_}/events", n)
            for id_ in "12":
                api.put(f"/orders/{id_}", {"n": 99})
            await events(quick, 2)
            seen: list[Event] = []
            async with asyncio.timeout(PATIENCE):
                while min(largest_n(seen, f"/orders/{id_}/events") for id_ in "12") < 99:
                    seen.append(await slow.event())
            assert len(seen) < 14, "it is not walked through every step"
            for id_ in "12":
                ns = [said(event.data)["n"] for event in seen if event.type == f"/orders/{id_}/events"]
                assert ns == sorted({*ns}), "in order, none twice"
