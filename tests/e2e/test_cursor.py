"""Where a client stood, and what it gets when it comes back (WIRE.md, "The cursor")."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import pytest

from ssegate.core.event import Event
from tests.e2e.client import Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, story

ROUTES = """
- path: /state/events
  poll: {get: /x, every: 50ms}
- path: /changes/events
  poll: {get: /x, every: 50ms}
  emit: {as: patch}
- path: /other/events
  poll: {get: /other, every: 50ms}
- path: /hooks/events
  webhook: {at: /hooks, verify: none}
"""


async def walk(gate: RunningGate, api: LegacyApi, target: str, count: int) -> list[Event]:
    """Make this many events on a topic of /x and see them all; the last state is `{"n": count}`."""
    api.put("/x", {"n": 1, "long": "x" * 2000})
    events = []
    async with gate.watch(target) as viewer:
        for n in range(2, count + 2):
            events.append(await viewer.event())
            if n <= count:
                api.put("/x", {"n": n, "long": "x" * 2000})
    return events


def shown(event: Event) -> int:
    """Which of `walk`'s states it is."""
    n: int = json.loads(event.data)["n"]
    return n


async def state_after_reset(viewer: Viewer, reason: str) -> Event:
    """The cursor was refused for this reason, and the state follows."""
    assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "no")
    reset, state = await viewer.event(), await viewer.event()
    assert (reset.type, json.loads(reset.data)) == ("reset", {"reason": reason})
    assert b"id:" not in viewer.raw.partition(b"event: reset\n")[0], "a reset has no id"
    assert b"id:" not in viewer.raw.partition(b"event: reset\n")[2].partition(b"\n\n")[0]
    return state


@story
async def test_a_newcomer_gets_the_state_with_the_id_it_came_at(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/state/events", 3)
        async with gate.watch("/state/events") as viewer:
            assert viewer.get("ssegate-resumed") == "no"
            assert await viewer.event() == events[-1]


@story
async def test_a_newcomer_to_changes_gets_a_snapshot_with_the_head_s_id(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/changes/events", 3)
        assert [event.type for event in events] == ["snapshot", "patch", "patch"]
        async with gate.watch("/changes/events") as viewer:
            state = await viewer.event()
            assert (state.type, shown(state), state.id) == ("snapshot", 3, events[-1].id)


@story
async def test_a_client_that_missed_nothing_gets_nothing_old(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/state/events", 2)
        async with gate.watch("/state/events", cursor=events[-1].id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            await viewer.opening()
            await api.until_asked_again("/x", 2)
            api.put("/x", {"n": 3})
            assert shown(await viewer.event()) == 3


@story
async def test_a_client_that_missed_states_gets_the_newest_alone(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/state/events", 4)
        async with gate.watch("/state/events", cursor=events[0].id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await viewer.event() == events[-1]


@story
async def test_a_client_that_missed_changes_gets_them_in_order(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/changes/events", 5)
        async with gate.watch("/changes/events", cursor=events[1].id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert [await viewer.event() for _ in events[2:]] == events[2:]


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id", "Last-Event-ID"])
@story
async def test_the_cursor_may_come_in_the_query(edge: Edge, name: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/changes/events", 3)
        async with gate.watch(f"/changes/events?{name}={quote(events[0].id or '')}") as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await viewer.event() == events[1]


@story
async def test_the_header_wins_over_the_query_and_of_the_query_the_last_value(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/changes/events", 4)
        both = f"/changes/events?lastEventId={events[0].id}"
        async with gate.watch(both, cursor=events[2].id) as viewer:
            assert await viewer.event() == events[3]
        async with gate.watch(f"{both}&lastEventId={events[1].id}") as viewer:
            assert await viewer.event() == events[2]


@pytest.mark.parametrize("target", ["/state/events", "/state/events?lastEventId=", "/state/events?lastEventId"])
@story
async def test_an_empty_cursor_is_none(edge: Edge, target: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch(target, cursor="") as viewer:
            assert viewer.get("ssegate-resumed") == "no"
            assert (await viewer.event()).type == "", "no reset"


@story
async def test_an_empty_header_leaves_the_query_s_cursor(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, "/changes/events", 2)
        async with gate.watch(f"/changes/events?lastEventId={events[0].id}", cursor="") as viewer:
            assert await viewer.event() == events[1]


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "-",
        "-1",
        "7f3a-",
        "7f3a-01",
        "7f3a--1",
        "7f3a-1.0",
        "7f3a-99999999999999999999999",
        "0000000000-1",
        "null",
        "x" * 300,
        "x" * 20_000,
        "\u00e9-1",
        "a b-1",
        '{"id":1}',
    ],
)
@story
async def test_a_cursor_that_is_not_ours_is_told_so_and_the_state_follows(edge: Edge, cursor: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/state/events", cursor=cursor) as viewer:
            assert shown(await state_after_reset(viewer, "unknown-cursor")) == 1


@story
async def test_a_cursor_in_the_query_with_nul_is_not_ours(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/state/events?lastEventId=a%00-1") as viewer:
            assert shown(await state_after_reset(viewer, "unknown-cursor")) == 1


@story
async def test_a_cursor_of_a_megabyte_opens_nothing_and_costs_nothing(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        try:
            status = (await gate.ask("GET", "/state/events", ("Last-Event-ID", "x" * 1_000_000))).status
        except ConnectionError:
            status = 0  # cut off while it was still sending
        assert status in (0, 431)
        async with gate.watch("/state/events") as viewer:
            assert shown(await viewer.event()) == 1


@story
async def test_a_cursor_of_another_topic_or_from_the_future_is_not_ours(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/other", {"n": 9})
        events = await walk(gate, api, "/state/events", 2)
        async with gate.watch("/other/events", cursor=events[0].id) as viewer:
            assert shown(await state_after_reset(viewer, "unknown-cursor")) == 9
        epoch = (events[0].id or "").rpartition("-")[0]
        async with gate.watch("/state/events", cursor=f"{epoch}-3") as viewer:
            assert shown(await state_after_reset(viewer, "unknown-cursor")) == 2


@story
async def test_a_cursor_the_history_has_passed_is_told_of_the_gap(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="defaults: {history: {events: 2}}")
        async with running_gate(edge, text) as gate:
            events = await walk(gate, api, "/changes/events", 5)
            async with gate.watch("/changes/events", cursor=events[0].id) as viewer:
                state = await state_after_reset(viewer, "gap")
                assert (state.type, shown(state), state.id) == ("snapshot", 5, events[-1].id)
            async with gate.watch("/changes/events", cursor=events[2].id) as viewer:
                assert [await viewer.event(), await viewer.event()] == events[3:], "just within it"


@story
async def test_a_cursor_the_history_is_too_young_for_is_told_of_the_gap(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="defaults: {history: {age: 200ms}}")
        async with running_gate(edge, text) as gate:
            events = await walk(gate, api, "/state/events", 2)
            async with gate.watch("/state/events") as keeper:
                await keeper.event()
                await asyncio.sleep(0.3)  # the age of the history itself
                async with gate.watch("/state/events", cursor=events[0].id) as viewer:
                    assert shown(await state_after_reset(viewer, "gap")) == 2


@pytest.mark.parametrize("target", ["/state/events", "/changes/events"])
@story
async def test_earliest_is_all_that_is_kept(edge: Edge, target: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        events = await walk(gate, api, target, 4)
        async with gate.watch(target, cursor="earliest") as viewer:
            assert viewer.get("ssegate-resumed") == "no"
            assert [await viewer.event(2) for _ in events] == events


@story
async def test_earliest_on_changes_without_their_beginning_is_a_snapshot_as_for_a_newcomer(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="defaults: {history: {events: 2}}")
        async with running_gate(edge, text) as gate:
            events = await walk(gate, api, "/changes/events", 4)
            async with gate.watch("/changes/events?last_event_id=earliest") as viewer:
                state = await viewer.event()
                assert (state.type, shown(state), state.id) == ("snapshot", 4, events[-1].id)


@story
async def test_the_cursor_makes_neither_another_topic_nor_another_request(edge: Edge) -> None:
    route = '- {path: /x/events, query: {status: "open|paid"}, poll: {get: "/x?status={query.status}", every: 50ms}}'
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/x/events?status=open") as viewer:
            first = await viewer.event()
        for name in ("lastEventId", "last_event_id", "Last-Event-ID"):
            async with gate.watch(f"/x/events?{name}={first.id}&status=open&other=1") as viewer:
                assert viewer.get("ssegate-resumed") == "yes"
        assert len(gate.service.gate.hub) == 1
        assert {asked.target for asked in api.requests} == {"/x?status=open"}
        assert all(asked.get("last-event-id") is None for asked in api.requests)


@story
async def test_nobody_learns_another_topic_s_state_by_its_cursor(edge: Edge) -> None:
    route = "- {path: /me/events, poll: {get: /me, every: 50ms, forward: [authorization]}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/me", {"n": 1}, etag=False)
        async with gate.watch("/me/events", ("Authorization", "Bearer a")) as viewer:
            mine = await viewer.event()
        async with gate.watch("/me/events", ("Authorization", "Bearer b"), cursor=mine.id) as viewer:
            state = await state_after_reset(viewer, "unknown-cursor")
            assert (state.id or "").rpartition("-")[0] != (mine.id or "").rpartition("-")[0]


@story
async def test_a_viewer_who_comes_back_after_polling_stopped_resumes_within_the_history_s_age(edge: Edge) -> None:
    route = "- {path: /x/events, poll: {get: /x, every: 50ms, linger: 0s}, emit: {as: patch}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        events = await walk(gate, api, "/x/events", 2)
        await gate.until_clients(0)
        api.put("/x", {"n": 3, "long": "x" * 2000})
        async with gate.watch("/x/events", cursor=events[-1].id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            change = await viewer.event()
            assert (change.type, json.loads(change.data)) == ("patch", [{"op": "replace", "path": "/n", "value": 3}])
