"""One upstream that streams for all who watch: opened with the first, closed behind the last, and gone on with when it breaks."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from ssegate.gate import topics
from tests.e2e.calls import NDJSON, SSE, TEXT, LiveApi, datas, told
from tests.e2e.client import PATIENCE, Viewer
from tests.e2e.gate import Edge, before, make_config, running_gate, said, story
from tests.upstream.scripted import Pair

LOG = """
- path: /builds/{id}/log
  query: {level: "info|error"}
  stream: {get: "/api/builds/{id}/log?follow=1&level={query.level}", format: lines, linger: 100ms}
"""
TICKS = """
- path: /ticks
  stream: {get: /api/ticks, linger: 100ms}
"""
PAGE = ("Origin", "https://app.example.com")
CORS = "cors: {origins: [https://app.example.com]}"


def record(n: int) -> bytes:
    """An event with an id of the upstream's own."""
    return b"id: %d\ndata: %d\n\n" % (n, n)


async def is_quiet(viewer: Viewer, seconds: float = 0.1) -> bool:
    """Whether nothing comes for a while."""
    try:
        await viewer.event(seconds)
    except TimeoutError:
        return True
    return False


# One connection for all


@story
async def test_all_viewers_of_a_topic_share_one_connection_and_get_the_same(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, LOG)) as gate, AsyncExitStack() as stack:
        first = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
        call = await api.begun(TEXT)
        viewers = [await first]
        viewers += [await stack.enter_async_context(gate.watch("/builds/7/log")) for _ in range(4)]
        other = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log?level=error&x=1")))
        other_call = await api.begun(TEXT)
        await call.say(b"one\n", b"two\n")
        await other_call.say(b"another\n")
        events = [[await viewer.event(), await viewer.event()] for viewer in viewers]
        assert [event.data for event in events[0]] == ["one", "two"]
        assert all(each == events[0] for each in events), "with the same ids"
        assert await datas(await other, 1) == ["another"]
        assert [asked.target for asked in api.requests] == [
            "/api/builds/7/log?follow=1", "/api/builds/7/log?follow=1&level=error",
        ]  # fmt: skip
        assert api.open == 2


@story
async def test_nothing_of_a_viewer_reaches_an_upstream_that_is_shared_but_the_gates_own_credentials_do(
    edge: Edge,
) -> None:
    own = "auth: {bearer: own}, headers: {X-Team: a}"
    async with LiveApi() as api, running_gate(edge, before(api, TICKS, upstream=own)) as gate:
        fields: tuple[Pair, ...] = (("Authorization", "Bearer viewer"), ("Cookie", "s=1"), ("X-Mine", "1"))  # type: ignore[assignment]
        watching = asyncio.create_task(gate.ask("GET", "/ticks", *fields))  # type: ignore[arg-type]
        call = await api.call()
        names = ("authorization", "cookie", "x-mine", "x-team", "accept", "accept-encoding", "last-event-id")
        assert [call.asked.get(name) for name in names] == [
            "Bearer own", None, None, "a", "text/event-stream", "identity", None,
        ]  # fmt: skip
        await call.answer(status=404)
        assert (await watching).status == 404


@story
async def test_the_connection_is_opened_with_the_first_viewer_and_closed_some_time_after_the_last(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS.replace("100ms", "300ms"))) as gate:
        assert api.requests == []
        async with AsyncExitStack() as stack:
            first = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
            call = await api.begun(SSE)
            await first
            await stack.enter_async_context(gate.watch("/ticks"))
        await gate.until_clients(0)
        left = asyncio.get_running_loop().time()
        await call.say(record(1))
        async with gate.watch("/ticks") as back:
            assert await datas(back, 1) == ["1"], "it went on meanwhile"
            await call.say(record(2))
            assert await datas(back, 1) == ["2"]
            assert len(api.requests) == 1, "who comes in time finds the same connection"
        await gate.until_clients(0)
        left = asyncio.get_running_loop().time()
        await call.gone()
        assert 0.2 < asyncio.get_running_loop().time() - left < 2


@story
async def test_who_comes_back_later_goes_on_where_the_upstream_was_left(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate:
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
            call = await api.begun(SSE)
            await call.say(record(1), record(2))
            events = [await (await watching).event() for _ in range(2)]
        await call.gone()
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks", cursor=events[0].id)))
            call = await api.begun(SSE)
            assert call.asked.get("last-event-id") == "2"
            await call.say(record(2), record(3))
            viewer = await watching
            assert viewer.get("ssegate-resumed") == "yes"
            assert await datas(viewer, 2) == ["2", "3"], "what was missed, and what came since; none twice"


@story
async def test_an_upstream_that_cannot_be_gone_on_with_begins_anew_for_who_comes_back(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, LOG)) as gate:
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
            call = await api.begun(TEXT)
            await call.say(b"one\n")
            event = await (await watching).event()
        await call.gone()
        async with AsyncExitStack() as stack:
            again = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log", cursor=event.id)))
            call = await api.begun(TEXT)
            await call.say(b"one\n", b"two\n")
            viewer = await again
            assert (await viewer.event()).type == "reset"
            assert await datas(viewer, 2) == ["one", "two"]
            newcomer = await stack.enter_async_context(gate.watch("/builds/7/log"))
            assert await datas(newcomer, 2) == ["one", "two"], "none twice"


# What becomes of records

FORMATS = [
    ("sse", SSE, [b"data: one\n\n", b"id: 7\nevent: tick\ndata: a\ndata: b\n\n"], [":one", "tick:a\nb"]),
    ("ndjson", NDJSON, [b'{"n": 1}\n', b'"\xc3\xbc"\r\n'], [':{"n": 1}', ':"ü"']),
    ("json-seq", (b"Content-Type", b"application/json-seq"), [b'\x1e{"n":1}\n', b"\x1e[\n2]\n"], [':{"n":1}', ":[\n2]"]),
    ("lines", TEXT, [b"one\n", b"\r\n"], [":one", ":"]),
    ("bytes", (b"Content-Type", b"image/png"), [b"\0\xff", b"a"], [":AP8=", ":YQ=="]),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "header", "records", "events"), FORMATS, ids=[each[0] for each in FORMATS])
@story
async def test_each_record_is_an_event_before_the_upstream_sends_anything_further(
    edge: Edge, format_: str, header: tuple[bytes, bytes], records: list[bytes], events: list[str]
) -> None:
    route = f"- {{path: /x, stream: {{get: /x, format: {format_}}}}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        call = await api.begun(header)
        viewer = await watching
        for number, (piece, event) in enumerate(zip(records, events, strict=True), 1):
            await call.say(piece)
            got = await viewer.event()
            assert f"{got.type}:{got.data}" == event
            assert (got.id or "").endswith(f"-{number}"), "the gate's own id"


@story
async def test_a_record_is_the_same_wherever_its_chunks_end(edge: Edge) -> None:
    text = 'event: tick\r\ndata: "grün …"\r\nid: 7\r\n\r\n'.encode()
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        for cut in range(1, len(text)):
            await call.say(text[:cut], text[cut:])
        await call.say(*(bytes((byte,)) for byte in text))
        assert await told(viewer, len(text)) == ['tick:"grün …"'] * len(text)


@story
async def test_events_are_chosen_named_and_cut_down_by_expressions(edge: Edge) -> None:
    route = """
    - path: /x
      stream: {get: /x, format: ndjson, when: "type != 'ping'", data: "{n: n, who: user.name}", event: "{type}", done: "type == 'bye'"}
    """
    records = [
        {"type": "ping"}, {"type": "added", "n": 1, "user": {"name": "ü"}}, {"n": 2}, {"type": "end", "n": 3}, {"type": "bye"},
    ]  # fmt: skip
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        call = await api.begun(NDJSON)
        viewer = await watching
        await call.say(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        assert await told(viewer, 5) == [
            'added:{"n":1,"who":"ü"}', ':{"n":2,"who":null}', 'upstream-end:{"n":3,"who":null}',
            'bye:{"n":null,"who":null}', 'end:{"reason":"done"}',
        ]  # fmt: skip


@story
async def test_a_template_makes_markup_of_each_record(edge: Edge) -> None:
    route = """
    - path: /x
      stream: {get: /x, format: ndjson}
      emit: {event: row, template: "<li id=\\"r{id}\\">{name}</li>"}
    """
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        call = await api.begun(NDJSON)
        viewer = await watching
        await call.say(b'{"id":1,"name":"<b>\\n"}\n')
        assert await told(viewer, 1) == ['row:<li id="r1">&lt;b&gt;&#10;</li>']


@story
async def test_records_that_come_close_together_are_joined_where_the_route_says_so(edge: Edge) -> None:
    route = LOG.replace("lines, ", "lines, batch: 100ms, ")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
        call = await api.begun(TEXT)
        viewer = await watching
        await call.say(b"one\n", b"two\n", b"thr", b"ee\n")
        assert await datas(viewer, 1) == ["one\ntwo\nthree"], "without a further one"
        await call.say(b"four\n")
        assert await datas(viewer, 1) == ["four"]


@story
async def test_a_record_that_is_the_last_ends_the_stream_for_good(edge: Edge) -> None:
    route = "- {path: /x, stream: {get: /x, format: ndjson, data: r, done: done}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
            call = await api.begun(NDJSON)
            viewer = await watching
            await call.say(b'{"r":"a"}\n{"r":"b","done":true}\n')
            events = await viewer.rest()
            assert [f"{event.type}:{event.data}" for event in events] == [":a", ":b", 'end:{"reason":"done"}']
            await call.gone()
        assert (await gate.ask("GET", "/x", ("Last-Event-ID", events[-1].id or ""))).status == 204
        async with gate.watch("/x", cursor=events[0].id) as late:
            assert late.get("ssegate-resumed") == "yes"
            assert await late.rest() == events[1:]
        async with gate.watch("/x") as newcomer:
            assert await newcomer.rest() == events
        assert len(api.requests) == 1


# Newcomers


@pytest.mark.parametrize(
    ("first", "got"), [("nothing", []), ("last", ["2"]), ("kept", ["1", "2"]), (None, ["1", "2"])]
)  # fmt: skip
@story
async def test_a_newcomer_gets_of_what_came_before_what_the_route_says(
    edge: Edge, first: str | None, got: list[str]
) -> None:
    route = TICKS if first is None else TICKS.replace("/api/ticks", f"/api/ticks, first: {first}")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1), record(2))
        assert await datas(viewer, 2) == ["1", "2"]
        newcomer = await stack.enter_async_context(gate.watch("/ticks"))
        assert newcomer.get("ssegate-resumed") == "no"
        assert await datas(newcomer, len(got)) == got
        await call.say(record(3))
        assert await datas(newcomer, 1) == ["3"]


@pytest.mark.parametrize("first", ["nothing", "last"])
@story
async def test_who_opens_the_connection_gets_all_that_comes_over_it(edge: Edge, first: str) -> None:
    route = TICKS.replace("/api/ticks", f"/api/ticks, first: {first}")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.call()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        await call.send(head + record(1) + record(2))
        viewer = await watching
        await call.send(record(3))
        assert await datas(viewer, 1) == ["1"]


@story
async def test_who_was_passed_by_the_history_is_told_so(edge: Edge) -> None:
    route = f"{TICKS}  history: {{events: 3}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        cursors = []
        for n in range(1, 6):
            await call.say(record(n))
            cursors.append((await viewer.event()).id)
        cursor = cursors[0]
        late = await stack.enter_async_context(gate.watch("/ticks", cursor=cursor))
        assert await told(late, 4) == ['reset:{"reason":"gap"}', ":3", ":4", ":5"]


# The upstream ends, breaks, and is not there


@story
async def test_an_answer_that_ends_is_gone_on_with_and_viewers_notice_nothing(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1), b"id: 2\n\n")
        await call.end()
        call = await api.begun(SSE)
        assert call.asked.get("last-event-id") == "2", "of an event without data too"
        await call.say(record(3))
        assert await datas(viewer, 2) == ["1", "3"]
        assert b"event:" not in viewer.raw


@story
async def test_an_answer_that_breaks_is_told_gone_on_with_and_told_again_when_it_is_back(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1), b"id: 2\ndata: half")
        call.cut()
        first, fault = await viewer.event(), await viewer.event()
        assert (first.data, fault.type) == ("1", "fault")
        assert said(fault.data) == {"reason": "upstream", "status": None, "message": "the upstream's answer is broken"}
        for _ in range(2):
            await (await api.call()).answer(status=503)
        newcomer = await stack.enter_async_context(gate.watch("/ticks"))
        assert [event.type for event in (await newcomer.event(), await newcomer.event())] == ["", "fault"]
        call = await api.begun(SSE)
        assert call.asked.get("last-event-id") == "1"
        await call.say(record(2))
        for each in (viewer, newcomer):
            assert await told(each, 2) == ["recovered:{}", ":2"]
        assert viewer.raw.count(b"event: fault") == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_a_refusal_before_anybody_watches_is_passed_on_and_asked_for_anew(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS, more=CORS)) as gate:
        asking = asyncio.create_task(gate.ask("GET", "/ticks", PAGE))
        await (await api.call()).answer(b"our secret", status=status)
        reply = await asking
        assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
        assert reply.get("access-control-allow-origin") == PAGE[1]
        assert b"secret" not in reply.body
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
            call = await api.begun(SSE)
            await call.say(record(1))
            assert await datas(await watching, 1) == ["1"]


@pytest.mark.parametrize("status", [404, 410])
@story
async def test_what_is_gone_when_it_is_gone_on_with_ends_the_stream(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1))
        await call.end()
        await (await api.call()).answer(status=status)
        assert [event.data for event in await viewer.rest()] == ["1", '{"reason":"gone"}']


@story
async def test_an_upstream_that_says_204_has_no_more(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1))
        await call.end()
        await (await api.call()).send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert [event.data for event in await viewer.rest()] == ["1", '{"reason":"done"}']


@story
async def test_a_route_that_does_not_reconnect_ends_with_the_answer(edge: Edge) -> None:
    route = TICKS.replace("/api/ticks", "/api/ticks, reconnect: false")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1))
        await call.end()
        assert [event.data for event in await viewer.rest()] == ["1", '{"reason":"done"}']


@pytest.mark.parametrize("format_", ["ndjson", "json-seq", "lines", "bytes"])
@story
async def test_an_answer_of_a_format_that_has_an_end_ends_the_stream_in_good_order_and_not_when_it_is_cut(
    edge: Edge, format_: str
) -> None:
    route = f"- {{path: /x, stream: {{get: /x, format: {format_}}}}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        call = await api.begun(TEXT)
        viewer = await watching
        call.cut()
        assert (await viewer.event()).type == "fault"
        call = await api.begun(TEXT)
        await call.say(b"1\n")
        await call.end()
        recovered, event, end = await viewer.rest()
        assert (recovered.type, event.type, end.data) == ("recovered", "", '{"reason":"done"}')
        assert len(api.requests) == 2


@story
async def test_the_cursor_may_be_a_part_of_the_url(edge: Edge) -> None:
    route = "- {path: /x, stream: {get: '/x?since={cursor}&a=1', format: ndjson, id: n, data: n, reconnect: true}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        call = await api.begun(NDJSON)
        await call.say(b'{"n":"a/1"}\n')
        await call.end()
        again = await api.begun(NDJSON)
        assert [each.asked.target for each in (call, again)] == ["/x?a=1", "/x?since=a%2F1&a=1"]
        await again.say(b'{"n":"a/1"}\n{"n":"a/2"}\n')
        assert await datas(await watching, 2) == ["a/1", "a/2"]


@story
async def test_an_answer_whose_head_is_late_keeps_nobody_waiting(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "FIRST_ANSWER", 0.1)
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, gate.watch("/ticks") as viewer:
        call = await api.call()
        await viewer.opening()
        assert await is_quiet(viewer, 0.05)
        await call.begin(SSE)
        await call.say(record(1))
        assert await datas(viewer, 1) == ["1"]
        assert b"event:" not in viewer.raw, "a slow answer is no fault"


@pytest.mark.parametrize("status", [401, 404, 500])
@story
async def test_a_late_refusal_is_told_in_the_stream(
    edge: Edge, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(topics, "FIRST_ANSWER", 0.05)
    async with LiveApi() as api, running_gate(edge, before(api, TICKS)) as gate, gate.watch("/ticks") as viewer:
        await (await api.call()).answer(status=status)
        fault = await viewer.event()
        assert (fault.type, said(fault.data)["status"]) == ("fault", status)
        call = await api.begun(SSE)
        await call.say(record(1))
        assert await told(viewer, 2) == ["recovered:{}", ":1"]


# Much at once


@story
async def test_a_burst_of_more_records_than_are_kept_reaches_those_who_read(edge: Edge) -> None:
    count = 20_000
    async with LiveApi() as api, running_gate(edge, before(api, LOG)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
        call = await api.begun(TEXT)
        viewer = await watching
        sending = asyncio.create_task(call.say(b"".join(b"%d\n" % n for n in range(count))))
        assert await datas(viewer, count) == [str(n) for n in range(count)]
        await sending


@story
async def test_a_viewer_that_does_not_read_keeps_nobody_waiting_and_is_told_of_its_gap(edge: Edge) -> None:
    route = f"{LOG}  history: {{events: 20}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, AsyncExitStack() as stack:
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
        call = await api.begun(TEXT)
        quick = await watching
        slow = await stack.enter_async_context(gate.watch("/builds/7/log", buffer=4096))
        line = b"x" * 50_000 + b"\n"
        for _ in range(180):
            await call.say(line)
            await quick.event()
        await call.say(b"last\n")
        assert await datas(quick, 1) == ["last"]
        events = await slow.until("reset")
        assert said(events[-1].data) == {"reason": "gap"}
        while (await slow.event()).data != "last":
            pass


# Reload, and the end of the gate


@story
async def test_a_reload_keeps_the_streams_of_unchanged_routes_and_their_connections(edge: Edge) -> None:
    async with LiveApi() as api, AsyncExitStack() as stack:
        server = "drain: {timeout: 200ms}"
        gate = await stack.enter_async_context(running_gate(edge, before(api, LOG + TICKS), server=server))
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/builds/7/log")))
        log_call = await api.begun(TEXT)
        log = await watching
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        tick_call = await api.begun(SSE)
        ticks = await watching
        changed = before(api, LOG + TICKS.replace("100ms", "200ms"))
        gate.service.gate.reload(make_config(edge.yaml(0, changed, server=server)))
        await tick_call.gone()
        assert await ticks.rest() == []
        assert 5000 <= (ticks.decoder.retry_ms or 0) <= 15000, "it comes back later"
        await log_call.say(b"goes on\n")
        assert await datas(log, 1) == ["goes on"]


@story
async def test_a_drain_ends_the_streams_and_then_the_upstreams_connection(edge: Edge) -> None:
    async with LiveApi() as api, AsyncExitStack() as stack:
        server = "drain: {timeout: 100ms}"
        gate = await stack.enter_async_context(running_gate(edge, before(api, TICKS), server=server))
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1))
        await datas(viewer, 1)
        draining = asyncio.create_task(gate.service.drain())
        assert await viewer.rest() == []
        assert 5000 <= (viewer.decoder.retry_ms or 0) <= 15000
        viewer.exchange.close()
        await call.gone()
        await draining


@story
async def test_what_nobody_has_watched_for_long_is_forgotten(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "SWEEP", 0.05)
    route = f"{TICKS.replace('100ms', '0s')}  history: {{age: 100ms}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with AsyncExitStack() as stack:
            watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
            call = await api.begun(SSE)
            await call.say(record(1))
            event = await (await watching).event()
        await call.gone()
        async with asyncio.timeout(PATIENCE):
            while len(gate.service.gate.hub):
                await asyncio.sleep(0.01)  # nobody is told when a topic goes
        async with AsyncExitStack() as stack:
            again = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks", cursor=event.id)))
            call = await api.begun(SSE)
            assert call.asked.get("last-event-id") is None, "with all that was known of it"
            await call.say(record(2))
            assert await told(await again, 2) == ['reset:{"reason":"unknown-cursor"}', ":2"]


@story
async def test_metrics_count_what_is_open_and_how_openings_ended(edge: Edge) -> None:
    async with LiveApi() as api, AsyncExitStack() as stack:
        gate = await stack.enter_async_context(running_gate(edge, before(api, TICKS), admin=True))
        watching = asyncio.create_task(stack.enter_async_context(gate.watch("/ticks")))
        call = await api.begun(SSE)
        viewer = await watching
        await call.say(record(1))
        await datas(viewer, 1)
        figures = gate.service.gate.statistics()
        (upstream,) = figures.upstreams
        assert (figures.clients, figures.topics_watched, figures.events) == (1, 1, 1)
        assert upstream.connections["streams_open"] == 1
        assert upstream.connections["connections_open"] == 0
        assert upstream.connections["requests_sent"] == 1


# WebSockets


def live(url: str, **keys: str) -> str:
    """A configuration before an upstream of WebSockets."""
    more = "".join(f", {name}: {value}" for name, value in keys.items())
    stream = f"{{get: /live, format: websocket{more}}}"
    upstream = f"{{url: '{url}', backoff: {{min: 50ms, max: 100ms}}}}"
    return f"upstreams: {{api: {upstream}}}\nroutes: [{{path: /live, stream: {stream}}}]"


@story
async def test_messages_of_a_websocket_are_events(edge: Edge) -> None:
    heard = asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        for message in ("grün …", b"\0\xff", ["in ", "", "pieces"], '{"a": 1}'):
            await connection.send(message)
            await heard.wait()
            heard.clear()
        await (await connection.ping())
        await connection.send("pong")
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate, gate.watch("/live") as viewer:
            for expected in ("grün …", base64.b64encode(b"\0\xff").decode(), "in pieces", '{"a": 1}'):
                assert await datas(viewer, 1) == [expected], "before the next is sent"
                heard.set()
            assert await datas(viewer, 1) == ["pong"]


@story
async def test_a_websocket_is_shared_opened_again_and_closed_behind_the_last_viewer(edge: Edge) -> None:
    connections: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def handle(connection: ServerConnection) -> None:
        connections.put_nowait(connection)
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", linger="50ms", data="n")
        async with running_gate(edge, text) as gate:
            async with gate.watch("/live") as one, gate.watch("/live") as two:
                connection = await connections.get()
                await connection.send('{"n": "a"}')
                assert await datas(one, 1) == await datas(two, 1) == ["a"]
                connection.transport.abort()
                assert [(await each.event()).type for each in (one, two)] == ["fault", "fault"]
                connection = await connections.get()
                await connection.send('{"n": "b"}')
                for each in (one, two):
                    assert await told(each, 2) == ["recovered:{}", ":b"]
            async with asyncio.timeout(PATIENCE):
                await connection.wait_closed()
            assert connections.empty()


@story
async def test_a_websocket_that_is_closed_in_good_order_is_opened_again_without_a_word(edge: Edge) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.close(1001)

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate, gate.watch("/live") as viewer:
            assert await datas(viewer, 3) == ["hello"] * 3


@story
async def test_a_websocket_that_is_refused_is_passed_on_to_who_asks_first(edge: Edge) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(403, "our secret")  # type: ignore[arg-type]  # a status is a number too

    async def handle(connection: ServerConnection) -> None: ...

    async with serve(handle, "127.0.0.1", 0, process_request=refuse) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate:
            reply = await gate.ask("GET", "/live")
            assert (reply.status, reply.get("content-type")) == (403, "application/problem+json")


@story
async def test_an_oversized_message_is_told_and_the_websocket_opened_again(edge: Edge) -> None:
    turns = iter(["x" * 2000, "small"])

    async def handle(connection: ServerConnection) -> None:
        await connection.send(next(turns))
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") + "\nlimits: {event_size: 1KiB}"
        async with running_gate(edge, text) as gate, gate.watch("/live") as viewer:
            fault = await viewer.event()
            assert (fault.type, said(fault.data)["reason"]) == ("fault", "oversize")
            assert await told(viewer, 2) == ["recovered:{}", ":small"]
