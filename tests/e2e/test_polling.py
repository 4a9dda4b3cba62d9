"""What the upstream is asked, how often, and for whom (WIRE.md, "Polling")."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from contextlib import AsyncExitStack

import pytest

from tests.e2e.client import Pair, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said, story
from tests.upstream.scripted import Asked, answer

ORDER = """
- path: /orders/{id}/events
  poll: {get: "/orders/{id}", every: 50ms}
"""

WRITES = """
- {path: "/{rest:path}", proxy: {}}
"""


async def open_many(stack: AsyncExitStack, gate: RunningGate, target: str, count: int, at_once: int) -> list[Viewer]:
    """Open this many streams, not all in the same moment: the edge has one core."""
    room = asyncio.Semaphore(at_once)

    async def open_one() -> Viewer:
        async with room:
            return await stack.enter_async_context(gate.watch(target))

    return list(await asyncio.gather(*(open_one() for _ in range(count))))


@story
async def test_a_thousand_viewers_of_one_resource_cost_one_request_an_interval(edge: Edge) -> None:
    async with LegacyApi() as api, AsyncExitStack() as stack:
        text = before(api, ORDER.replace("50ms", "1s"))
        gate = await stack.enter_async_context(running_gate(edge, text))
        api.put("/orders/17", {"n": 0})
        started = time.monotonic()
        viewers = await open_many(stack, gate, "/orders/17/events", 1000, 50)
        await asyncio.gather(*(viewer.event() for viewer in viewers))
        api.put("/orders/17", {"n": 1})
        changed = await asyncio.gather(*(viewer.event() for viewer in viewers))
        assert {said(event.data)["n"] for event in changed} == {1}
        asked = len(api.requests)
        await api.until_asked_again("/orders/17", max(1, 4 - asked))
        seconds = time.monotonic() - started
        # The first interval is shortened by up to a half, so that topics do not go on in step.
        assert len(api.requests) <= seconds + 2
        assert api.open <= 2, "and one connection, or the next one"


@story
async def test_viewers_with_different_credentials_never_share_nor_see_each_other_s_data(edge: Edge) -> None:
    """Viewers of sixteen identities come, go, resume and lie about their cursor in any order."""
    route = "- {path: /me/events, poll: {get: /me, every: 50ms, linger: 100ms, forward: [authorization, cookie]}}"
    dice = random.Random(17)
    version = {"n": 0}

    def me(asked: Asked) -> bytes:
        body = {"who": [asked.get("authorization"), asked.get("cookie")], "n": version["n"]}
        return answer(json.dumps(body).encode())

    def identity() -> tuple[Pair, ...]:
        token, cookie = (
            dice.choice([None, "Bearer a", "Bearer b", "bearer a"]),
            dice.choice([None, "s=1", "s=2", "s=1; t"]),
        )
        pairs = (("Authorization", token), ("Cookie", cookie))
        return tuple((name, value) for name, value in pairs if value is not None)

    cursors: list[str] = []

    async def view(gate: RunningGate) -> None:
        for _ in range(4):
            fields = identity()
            cursor = dice.choice(cursors) if cursors and dice.random() < 0.5 else None
            async with gate.watch("/me/events", *fields, cursor=cursor) as viewer:
                for _ in range(dice.randint(1, 3)):
                    event = await viewer.event()
                    if event.type == "reset":
                        continue
                    given = dict(fields)
                    assert said(event.data)["who"] == [given.get("Authorization"), given.get("Cookie")]
                    cursors.append(event.id or "")
                    version["n"] += 1

    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/me", me)
        await asyncio.gather(*(view(gate) for _ in range(12)))


@story
async def test_headers_that_are_not_forwarded_reach_nobody_and_split_nothing(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"id": 17})
        own = (("Authorization", "Bearer a"), ("Cookie", "s=1"), ("X-Forwarded-For", "192.0.2.1"), ("X-Mine", "1"))
        async with gate.watch("/orders/17/events", *own) as one, gate.watch("/orders/17/events") as other:
            await one.event()
            await other.event()
            assert len(gate.service.gate.hub) == 1
        for asked in api.requests:
            for name in ("authorization", "cookie", "x-forwarded-for", "x-mine", "last-event-id", "origin"):
                assert asked.get(name) is None


@story
async def test_parameters_are_escaped_where_they_meet_the_url(edge: Edge) -> None:
    route = """
    - path: /q/{name}/events
      query: {q: ".*"}
      poll: {get: "/q/{name}?q={query.q}&fixed=1", every: 50ms}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/q/a%3Fb%23%20%C3%A9", {"n": 1})
        async with gate.watch("/q/a%3fb%23%20%c3%a9/events?q=1%26fixed%3D2%23") as viewer:
            await viewer.event()
        assert {asked.target for asked in api.requests} == {"/q/a%3Fb%23%20%C3%A9?q=1%26fixed%3D2%23&fixed=1"}


@story
async def test_polling_begins_with_the_first_viewer_lingers_and_stops(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "50ms, linger: 300ms"))
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 1})
            assert not api.requests, "nobody watches"
            async with gate.watch("/orders/17/events") as viewer:
                state = await viewer.event()
            await gate.until_clients(0)
            left, asked = time.monotonic(), len(api.requests)
            await api.until_asked_again("/orders/17", 2)
            topic = gate.service.gate.hub.get(next(iter(gate.service.gate.hub)).key)
            assert topic is not None
            async with asyncio.timeout(2):
                while topic.is_watched:
                    await asyncio.sleep(0.01)  # nothing tells when polling stops
            assert 0.2 < time.monotonic() - left < 1.0
            assert asked + 2 <= len(api.requests) <= asked + 12
            async with gate.watch("/orders/17/events", cursor=state.id) as viewer:
                assert viewer.get("ssegate-resumed") == "yes", "state and history stay"


@story
async def test_a_viewer_who_comes_back_while_it_lingers_finds_it_running(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "300ms, linger: 5s"))
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 1})
            for _ in range(10):
                async with gate.watch("/orders/17/events") as viewer:
                    await viewer.event()
            assert len(api.requests) <= 3


@story
async def test_a_validator_is_sent_back_and_304_is_no_event(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"n": 1})
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.event()
            await api.until_asked_again("/orders/17", 3)
            assert api.requests[0].get("if-none-match") is None
            assert api.requests[-1].get("if-none-match") is not None
            api.put("/orders/17", {"n": 2})
            second = await viewer.event()
            assert (said(second.data)["n"], (second.id or "")[-2:]) == (2, "-2")
        polls = gate.service.gate.statistics().upstreams[0].polls
        assert polls["304"] >= 2
        assert polls["200"] == 2


@story
async def test_a_route_may_do_without_conditional_requests(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "50ms, conditional: false"))
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 1})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                await api.until_asked_again("/orders/17", 3)
            assert all(asked.get("if-none-match") is None for asked in api.requests)


@story
async def test_an_upstream_s_own_wish_to_be_left_alone_is_respected(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"n": 1}, (b"Cache-Control", b"max-age=1"))
        async with gate.watch("/orders/17/events") as viewer:
            started = time.monotonic()
            await viewer.event()
            await api.until_asked("/orders/17", 2)
            assert 0.9 < time.monotonic() - started < 2
            api.fail("/orders/17", 429, (b"Retry-After", b"1"))
            await api.until_asked("/orders/17", 3)
            asked_at = time.monotonic()
            await api.until_asked("/orders/17", 4)
            assert 0.9 < time.monotonic() - asked_at < 2


@story
async def test_the_gate_s_own_credentials_go_with_polls_and_not_with_viewers_requests(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, f"{ORDER}{WRITES}", upstream="auth: {bearer: sesame}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 1})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
            assert api.requests[0].get("authorization") == "Bearer sesame"
            await gate.ask("GET", "/orders/18")
            assert api.requests[-1].target == "/orders/18"
            assert api.requests[-1].get("authorization") is None


@pytest.mark.parametrize("gates", ["auth: {bearer: sesame}", "headers: {Authorization: Bearer sesame}"])
@story
async def test_who_forwards_no_credentials_is_never_shown_what_the_gate_may_see(edge: Edge, gates: str) -> None:
    """The upstream has the gate's credentials, the route lets the viewers' decide, and a viewer has none."""

    def me(asked: Asked) -> bytes:
        is_known = asked.get("authorization") is not None
        return answer(b'{"secret": 1}') if is_known else answer(b"", status=401)

    async with LegacyApi() as api:
        route = "- {path: /me/events, poll: {get: /me, every: 50ms, forward: [authorization]}}"
        async with running_gate(edge, before(api, route, upstream=gates)) as gate:
            api.serve("/me", me)
            assert (await gate.ask("GET", "/me/events")).status == 401
            async with gate.watch("/me/events", ("Authorization", "Bearer mine")) as viewer:
                await viewer.event()
            assert {asked.get("authorization") for asked in api.requests} == {None, "Bearer mine"}


@story
async def test_a_write_through_the_gate_makes_its_own_resource_poll_at_once(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "30s, after_write: true") + WRITES)
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17, "status": "open"})
            api.put("/orders/18", {"id": 18})
            async with gate.watch("/orders/17/events") as viewer, gate.watch("/orders/18/events") as other:
                await viewer.event()
                await other.event()
                asked = len(api.asked_for("/orders/18"))
                reply = await gate.ask("PATCH", "/orders/17", body=b'{"status": "paid"}')
                assert reply.status == 200
                assert said((await viewer.event(2)).data) == {"id": 17, "status": "paid"}
                assert len(api.asked_for("/orders/18")) == asked, "others are left alone"


@story
async def test_a_write_that_failed_makes_nobody_poll(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "30s, after_write: true") + WRITES)
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                api.fail("/orders/17", 422)
                assert (await gate.ask("POST", "/orders/17")).status == 422
                api.put("/orders/17", {"id": 18})
                assert (await gate.ask("GET", "/orders/17")).status == 200
                polls = [asked for asked in api.asked_for("/orders/17") if asked.get("x-forwarded-for") is None]
                assert len(polls) == 1


@pytest.mark.parametrize("written", ["/orders/17", "/orders/17/pay", "/import"])
@story
async def test_writes_to_listed_paths_make_the_topics_of_the_same_parameters_poll(edge: Edge, written: str) -> None:
    after = '30s, after_write: ["/orders/{id}", "/orders/{id}/pay", /import]'
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", after) + WRITES)
        async with running_gate(edge, text) as gate:
            for id_ in (17, 18):
                api.put(f"/orders/{id_}", {"n": 1})
            async with gate.watch("/orders/17/events") as viewer, gate.watch("/orders/18/events") as other:
                await viewer.event()
                await other.event()
                api.serve(written, answer(b"{}"))
                for id_ in (17, 18):
                    api.put(f"/orders/{id_}", {"n": 2})
                asked = len(api.asked_for("/orders/18"))
                assert (await gate.ask("POST", written)).status == 200
                assert said((await viewer.event(2)).data) == {"n": 2}
                if written == "/import":
                    assert said((await other.event(2)).data) == {"n": 2}
                else:
                    assert len(api.asked_for("/orders/18")) == asked


@story
async def test_an_adaptive_interval_slows_down_and_speeds_up_again(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "{min: 40ms, max: 240ms}"))
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 1})
            times: list[float] = []

            def at(asked: Asked) -> bytes:
                times.append(time.monotonic())
                return answer(b'{"n": 2}' if len(times) > 9 else b'{"n": 1}')

            api.serve("/orders/17", at)
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                await viewer.event()
                await api.until_asked("/orders/17", 11)
            gaps = [after - before_ for before_, after in itertools.pairwise(times)]
            assert gaps[7] > 0.2 > 0.1 > gaps[0]
            assert gaps[9] < 0.1, "a change makes it quick again"


@story
async def test_two_routes_to_one_resource_have_topics_of_their_own(edge: Edge) -> None:
    routes = """
    - {path: /a/events, poll: {get: /x, every: 50ms}}
    - {path: /b/events, poll: {get: /x, every: 50ms, select: n}}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, routes)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/a/events") as a, gate.watch("/b/events") as b:
            assert (said((await a.event()).data), said((await b.event()).data)) == ({"n": 1}, 1)


@story
async def test_a_budget_is_kept_and_shared_fairly(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER, upstream="requests_per_second: 40")
        async with running_gate(edge, text) as gate, AsyncExitStack() as stack:
            started = time.monotonic()
            ids = [str(n) for n in range(5)]
            for id_ in ids:
                api.put(f"/orders/{id_}", {"n": 1})
                viewer = await stack.enter_async_context(gate.watch(f"/orders/{id_}/events"))
                await viewer.event()
            # They would ask a hundred times a second. One second's worth may have been saved up.
            await api.until(lambda it: len(it.requests) >= 60)
            begun = len(api.requests)
            await api.until(lambda it: len(it.requests) >= begun + 40)
            assert len(api.requests) <= 40 * (time.monotonic() - started) + 41
            shares = [sum(asked.target == f"/orders/{id_}" for asked in api.requests[begun:]) for id_ in ids]
            assert max(shares) - min(shares) <= 2
