"""What a stream looks like, to the byte (WIRE.md, "A stream")."""

from __future__ import annotations

import asyncio
import json
import re
import time

import jsonpatch
import pytest
from json_merge_patch import merge

from ssegate.gate import topics
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, before, running_gate, story
from tests.upstream.scripted import answer

ORDER = """
- path: /orders/{id}/events
  poll: {get: "/orders/{id}", every: 50ms}
"""


@story
async def test_the_head_says_what_it_is_and_nothing_that_could_break_it(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events") as viewer:
            assert viewer.status == 200
            assert viewer.get("content-type") == "text/event-stream"
            assert viewer.get("cache-control") == "no-store, no-transform"
            assert viewer.get("x-accel-buffering") == "no"
            assert viewer.get("ssegate-resumed") == "no"
            for name in ("content-length", "content-encoding", "connection", "server", "set-cookie", "etag"):
                assert viewer.get(name) is None
            names = [name for name, _ in viewer.headers]
            assert len(names) == len(set(names)), "no field comes twice"


@story
async def test_the_first_bytes_are_retry_a_comment_and_the_state_with_its_id(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"id": 17, "status": "paid"})
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.event()
            assert re.fullmatch(
                rb'retry: [0-9]{4}\n:\ndata: \{"id":17,"status":"paid"\}\nid: [A-Za-z0-9-]{1,50}-1\n\n',
                bytes(viewer.raw),
            )


@story
async def test_a_slow_upstream_does_not_keep_the_first_bytes_back_for_more_than_three_seconds(edge: Edge) -> None:
    patience = topics.FIRST_ANSWER if edge.id == "native-h1" else 0.5  # once is enough of that
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics, "FIRST_ANSWER", patience)
        await first_bytes_of_a_slow_upstream(edge, patience)


async def first_bytes_of_a_slow_upstream(edge: Edge, patience: float) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER, read="8s")) as gate:
        api.put("/orders/17", {"id": 17})
        released = api.hold("/orders/17")
        started = time.monotonic()
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.opening()
            assert patience - 0.5 < time.monotonic() - started < patience + 1
            assert re.fullmatch(rb"retry: [0-9]+\n:\n", bytes(viewer.raw)), "it opens without a word"
            released.set()
            assert json.loads((await viewer.event()).data) == {"id": 17}
            assert b"event:" not in viewer.raw, "a slow answer is no fault"


@story
async def test_a_second_viewer_of_a_topic_is_answered_at_once_while_a_poll_hangs(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events") as first:
            await first.event()
            api.hold("/orders/17")
            await api.until_asked_again("/orders/17")
            async with gate.watch("/orders/17/events") as second:
                assert json.loads((await second.event(0.5)).data) == {"id": 17}


@story
async def test_a_heartbeat_is_a_colon_and_one_newline_after_the_configured_silence(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER, more="defaults: {heartbeat: 500ms}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                size, started = len(viewer.raw), time.monotonic()
                for expected in (b":\n", b":\n:\n"):
                    await viewer.bytes_(size + len(expected))
                    assert bytes(viewer.raw[size:]) == expected
                assert 0.9 < time.monotonic() - started < 2.0, "two of them"
                api.put("/orders/17", {"id": 18})
                await viewer.event()
                assert re.fullmatch(rb'(:\n){2,}data: \{"id":18\}\nid: \S+-2\n\n', bytes(viewer.raw[size:]))


@story
async def test_a_stream_that_is_busy_sends_no_heartbeat(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER.replace("50ms", "100ms"), more="defaults: {heartbeat: 600ms}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"n": 0})
            async with gate.watch("/orders/17/events") as viewer:
                for n in range(1, 12):
                    await viewer.event()
                    api.put("/orders/17", {"n": n})
                assert viewer.raw.count(b"\n:\n") == 1, "that of the opening"


@story
async def test_every_event_has_an_id_and_offsets_grow_by_one(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"n": 0})
        async with gate.watch("/orders/17/events") as viewer:
            ids = []
            for n in range(1, 6):
                ids.append((await viewer.event()).id or "")
                api.put("/orders/17", {"n": n})
            epoch = ids[0].rpartition("-")[0]
            assert ids == [f"{epoch}-{offset}" for offset in range(1, 6)]
            assert all(re.fullmatch(r"[A-Za-z0-9-]{1,64}", id_) for id_ in ids)


@story
async def test_retry_differs_from_client_to_client_by_half_up_and_down(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER, more="defaults: {retry: 4s}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})

            async def retry() -> int:
                async with gate.watch("/orders/17/events") as viewer:
                    return await viewer.opening()

            seen = await asyncio.gather(*(retry() for _ in range(60)))
            assert all(2000 <= each <= 6000 for each in seen)
            # Sixty even draws leave one of these empty once in 10**7 runs.
            assert min(seen) < 3000 < 5000 < max(seen)
            assert len(set(seen)) > 30


@story
async def test_a_snapshot_route_sends_the_whole_state_each_time_unnamed(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"a": 1, "b": [1, 2]})
        async with gate.watch("/orders/17/events") as viewer:
            first = await viewer.event()
            api.put("/orders/17", {"a": 1, "b": [1, 2, 3]})
            second = await viewer.event()
            assert [first.type, second.type] == ["", ""]
            assert json.loads(second.data) == {"a": 1, "b": [1, 2, 3]}


@story
async def test_a_patch_route_sends_a_snapshot_and_then_json_patches(edge: Edge) -> None:
    route = """
    - path: /orders/{id}/events
      poll: {get: "/orders/{id}", every: 50ms}
      emit: {as: patch}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/orders/17", {"a": 1, "b": [1, 2], "c~/": "x"})
        async with gate.watch("/orders/17/events") as viewer:
            first = await viewer.event()
            api.put("/orders/17", {"b": [2], "c~/": True, "d": None})
            second = await viewer.event()
            assert [first.type, second.type] == ["snapshot", "patch"]
            patched = jsonpatch.apply_patch(json.loads(first.data), json.loads(second.data))
            assert patched == {"b": [2], "c~/": True, "d": None}


@story
async def test_a_merge_route_sends_merge_patches_and_a_snapshot_for_what_they_cannot_say(edge: Edge) -> None:
    route = """
    - path: /orders/{id}/events
      poll: {get: "/orders/{id}", every: 50ms}
      emit: {as: merge}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/orders/17", {"a": 1, "b": {"x": 1, "y": 2}})
        async with gate.watch("/orders/17/events") as viewer:
            first = await viewer.event()
            api.put("/orders/17", {"b": {"x": 1, "y": 3}})
            second = await viewer.event()
            api.put("/orders/17", {"b": None})
            third = await viewer.event()
            assert [first.type, second.type, third.type] == ["snapshot", "merge", "snapshot"]
            assert merge(json.loads(first.data), json.loads(second.data)) == {"b": {"x": 1, "y": 3}}
            assert json.loads(third.data) == {"b": None}


@story
async def test_an_items_route_sends_the_list_and_then_what_came_changed_and_went(edge: Edge) -> None:
    route = """
    - path: /orders/events
      poll: {get: /orders, every: 50ms, items: {at: data, key: id}}
      emit: {as: items, names: {added: order-added, removed: order-removed}}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        many = [{"id": n, "status": "open", "note": "x" * 40} for n in range(20)]
        api.put("/orders", {"data": many, "total": 20})
        async with gate.watch("/orders/events") as viewer:
            first = await viewer.event()
            assert (first.type, json.loads(first.data)) == ("snapshot", many)
            paid = {**many[1], "status": "paid"}
            new = {"id": "new"}
            api.put("/orders", {"data": [paid, *many[2:], new], "total": 20})
            events = [await viewer.event() for _ in range(3)]
            told = {(event.type, event.data) for event in events}
            assert {(type_, json.dumps(json.loads(data))) for type_, data in told} == {
                ("order-removed", json.dumps(many[0])),
                ("changed", json.dumps(paid)),
                ("order-added", json.dumps(new)),
            }


@story
async def test_named_snapshots_have_their_name(edge: Edge) -> None:
    route = """
    - path: /x/events
      poll: {get: /x, every: 50ms}
      emit: {names: {snapshot: order}}
    - path: /y/events
      poll: {get: /x, every: 50ms}
      emit: {as: patch, names: {snapshot: whole, patch: delta}}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"a": 1})
        async with gate.watch("/x/events") as whole, gate.watch("/y/events") as delta:
            assert [(await whole.event()).type, (await delta.event()).type] == ["order", "whole"]
            api.put("/x", {"a": 2})
            assert [(await whole.event()).type, (await delta.event()).type] == ["order", "delta"]


@pytest.mark.parametrize(
    ("body", "sent", "data"),
    [
        ("json", b'"a\\nb"', '"a\\nb"'),
        ("json", b'{"u": "\\u2028 \xc3\xa9"}', '{"u":"\u2028 é"}'),
        ("text", b"one\r\ntwo\rthree\nfour", "one\ntwo\nthree\nfour"),
        ("text", "U+2028 \u2028 stays, as VT \v and FF \f do".encode(), "U+2028 \u2028 stays, as VT \v and FF \f do"),
        ("text", b"id: forged\ndata: x\n\nevent: y", "id: forged\ndata: x\n\nevent: y"),
        ("text", b"not \xff UTF-8", "not \ufffd UTF-8"),
        ("text", b"", ""),
        ("bytes", b"\x00\xff\n", "AP8K"),
    ],
)
@story
async def test_a_body_is_sent_as_the_route_says(edge: Edge, body: str, sent: bytes, data: str) -> None:
    route = f"- path: /x/events\n  poll: {{get: /x, every: 50ms, body: {body}}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/x", answer(sent))
        async with gate.watch("/x/events") as viewer:
            event = await viewer.event()
            assert event.data == data
            assert (event.type, (event.id or "").rpartition("-")[2]) == ("", "1")


@story
async def test_what_is_selected_is_the_state_and_what_is_ignored_makes_no_event(edge: Edge) -> None:
    route = """
    - path: /x/events
      poll: {get: /x, every: 50ms, select: data, ignore: [/fetched_at]}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"data": {"a": 1, "fetched_at": 1}, "server": 1})
        async with gate.watch("/x/events") as viewer:
            assert json.loads((await viewer.event()).data) == {"a": 1, "fetched_at": 1}
            api.put("/x", {"data": {"a": 1, "fetched_at": 1}, "server": 2})
            await api.until_asked_again("/x", 2)
            api.put("/x", {"data": {"a": 1, "fetched_at": 2}, "server": 2})
            await api.until_asked_again("/x", 2)
            api.put("/x", {"data": {"a": 2, "fetched_at": 3}})
            second = await viewer.event()
            assert json.loads(second.data) == {"a": 2, "fetched_at": 3}
            assert (second.id or "").endswith("-2")


@story
async def test_what_selects_to_nothing_is_no_event(edge: Edge) -> None:
    route = "- path: /x/events\n  poll: {get: /x, every: 50ms, select: data}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"data": None})
        async with gate.watch("/x/events") as viewer:
            await viewer.opening()
            await api.until_asked_again("/x", 2)
            api.put("/x", {"data": 0})
            assert (await viewer.event()).data == "0"


@story
async def test_members_in_another_order_are_no_change(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.put("/orders/17", {"a": 1, "b": 2})
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.event()
            api.put("/orders/17", {"b": 2, "a": 1})
            await api.until_asked_again("/orders/17", 2)
            api.put("/orders/17", {"b": 2, "a": 1.0})
            assert '"a":1.0' in (await viewer.event()).data, "1 and 1.0 are two values"


@story
async def test_an_event_that_is_too_large_is_a_fault_once_and_then_over(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ORDER, more="limits: {event_size: 1KiB}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"a": "small"})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                api.put("/orders/17", {"a": "x" * 2000})
                fault = await viewer.event()
                assert fault.type == "fault"
                assert json.loads(fault.data)["reason"] == "oversize"
                await api.until_asked_again("/orders/17", 3)
                api.put("/orders/17", {"a": "small again"})
                assert [(await viewer.event()).type, (await viewer.event()).type] == ["recovered", ""]
                assert b"xxxx" not in viewer.raw


@story
async def test_a_body_that_is_not_what_the_route_says_is_a_fault_of_its_own_kind(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ORDER)) as gate:
        api.serve("/orders/17", answer(b"<html>our secrets</html>"))
        async with gate.watch("/orders/17/events") as viewer:
            fault = await viewer.event()
            assert (fault.type, fault.id) == ("fault", None)
            said = json.loads(fault.data)
            assert (said["reason"], said["status"]) == ("undecodable", 200)
            assert "secret" not in fault.data
