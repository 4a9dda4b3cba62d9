"""Answers to single requests that stream: passed on as they come, named, resumed in mid-sentence, and nobody else's."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from ssegate.core.event import Event
from ssegate.gate import own, topics
from tests.e2e.calls import NDJSON, SSE, TEXT, LiveApi, LiveCall, answered, datas, told, uploading
from tests.e2e.client import PATIENCE, Pair, Viewer
from tests.e2e.gate import Edge, RunningGate, before, make_config, running_gate, said, story

CHAT = """
- path: /chat
  methods: [POST]
  stream: {post: /api/generate, format: ndjson, data: response, done: "done == `true`", linger: 200ms}
"""
ROOMS = """
- path: /rooms/{room}/chat
  methods: [POST]
  stream: {post: "/api/{room}/generate", format: ndjson, data: response, forward: [authorization, x-tenant], linger: 5s}
"""
MINE = """
- path: /mine
  stream: {get: /api/mine, forward: [authorization], linger: 5s}
"""
PAGE = ("Origin", "https://app.example.com")
CORS = "cors: {origins: [https://app.example.com], credentials: true}"
ANN = ("Authorization", "Bearer ann")
BOB = ("Authorization", "Bearer bob")
PROMPT = b'{"prompt":"hi"}'


def word(text: str, *, done: bool = False) -> bytes:
    """A piece of an AI's answer."""
    return json.dumps({"response": text, "done": done}).encode() + b"\n"


class Open:
    """A stream that a request has opened, and the request at the upstream that belongs to it."""

    def __init__(self, viewer: Viewer, call: LiveCall, stack: AsyncExitStack) -> None:
        self.viewer = viewer
        self.call = call
        self.name = viewer.get("ssegate-stream") or ""
        self._stack = stack

    async def leave(self) -> None:
        """The client's connection is gone."""
        await self._stack.aclose()


@asynccontextmanager
async def opened(
    gate: RunningGate,
    api: LiveApi,
    target: str = "/chat",
    *headers: Pair,
    method: str = "POST",
    body: bytes = PROMPT,
    answer: tuple[bytes, bytes] = NDJSON,
    buffer: int | None = None,
) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:
        asking = asyncio.create_task(
            stack.enter_async_context(gate.exchange(method, target, *headers, body=body, buffer=buffer))
        )
        call = await api.call()
        if body:
            await call.read_body()
        await call.begin(answer)
        yield Open(Viewer(await asking), call, stack)


@asynccontextmanager
async def reopened(
    gate: RunningGate, target: str, *headers: Pair, cursor: str | None = None, method: str = "POST"
) -> AsyncIterator[Viewer]:
    """The original request, sent again by a client that knows no names."""
    fields = [*headers, *([("Last-Event-ID", cursor)] if cursor else [])]
    async with gate.exchange(method, target, *fields, body=PROMPT if method == "POST" else b"") as it:
        yield Viewer(it)


def texts(events: list[Event]) -> list[str]:
    return [f"{event.type}:{event.data}" for event in events]


DONE = 'end:{"reason":"done"}'


# One request, one answer


@story
async def test_an_answer_is_named_and_each_piece_of_it_is_an_event_as_soon_as_it_comes(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        viewer = it.viewer
        assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
        assert viewer.get("ssegate-resumed") == "no"
        assert re.fullmatch("/chat/s/[A-Za-z0-9_-]{22}", it.name)
        cursors = []
        for text in ("Hel", "lo", "\n", "grün …", ""):
            await it.call.say(word(text))
            event = await viewer.event()
            assert (event.type, event.data) == ("", text), "before the next is sent"
            cursors.append(event.id or "")
        epochs, offsets = zip(*(cursor.rsplit("-", 1) for cursor in cursors), strict=True)
        assert (len(set(epochs)), offsets) == (1, ("1", "2", "3", "4", "5"))
        await it.call.say(word("!", done=True))
        assert texts(await viewer.rest()) == [":!", DONE]
        await it.call.gone()
        (asked,) = api.requests
        assert (asked.method, asked.target, asked.body) == ("POST", "/api/generate", PROMPT)


@story
async def test_each_request_has_an_answer_of_its_own(edge: Edge) -> None:
    async with (
        LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as one, opened(gate, api) as two,
    ):  # fmt: skip
        await one.call.say(word("one"))
        await two.call.say(word("two"))
        first, second = await one.viewer.event(), await two.viewer.event()
        assert [first.data, second.data] == ["one", "two"]
        assert one.name != two.name
        assert (first.id or "")[:-2] != (second.id or "")[:-2]
        assert len(api.requests) == 2


@story
async def test_an_answer_that_ends_without_saying_so_is_done(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        await it.call.say(word("a"))
        await it.call.end()
        assert texts(await it.viewer.rest()) == [":a", DONE]


@story
async def test_an_answer_that_is_cut_has_failed_and_is_not_asked_for_again(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        await it.call.say(word("a"), word("b")[:9])
        it.call.cut()
        event, end = await it.viewer.rest()
        assert (event.data, end.type) == ("a", "end")
        failure = {"status": None, "message": "the upstream's answer is broken"}
        assert said(end.data) == {"reason": "failed", "result": failure}
        assert (await gate.ask("GET", it.name, ("Last-Event-ID", end.id or ""))).status == 204
        assert len(api.requests) == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@story
async def test_any_method_may_open_a_stream(edge: Edge, method: str) -> None:
    route = f"- {{path: /x, methods: [{method}], stream: {{{method.lower()}: /x, format: lines}}}}"
    body = b"" if method == "DELETE" else PROMPT
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with opened(gate, api, "/x", method=method, body=body, answer=TEXT) as it:
            await it.call.say(b"a\n")
            assert await datas(it.viewer, 1) == ["a"]
            assert (api.requests[0].method, api.requests[0].body) == (method, body)
        assert (await gate.ask("GET", "/x")).status == 405


@story
async def test_a_get_with_headers_of_the_viewer_is_a_request_of_its_own_too(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, MINE)) as gate:
        async with opened(gate, api, "/mine", ANN, method="GET", body=b"", answer=SSE) as it:
            await it.call.say(b"event: hi\ndata: ann\n\n")
            assert await told(it.viewer, 1) == ["hi:ann"]
            assert api.requests[0].get("authorization") == "Bearer ann"
            assert re.fullmatch("/mine/s/[A-Za-z0-9_-]{22}", it.name)
            async with opened(gate, api, "/mine", ANN, method="GET", body=b"", answer=SSE) as other:
                assert other.name != it.name
            assert len(api.requests) == 2


@story
async def test_an_event_stream_of_an_ai_is_passed_on_and_ends_with_its_last_word(edge: Edge) -> None:
    route = """
    - path: /v1/chat
      methods: [POST]
      stream: {post: /v1/chat/completions, data: "choices[0].delta.content", done: "@ == '[DONE]'"}
    """
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with opened(gate, api, "/v1/chat", answer=SSE) as it:
            assert api.requests[0].get("accept") == "text/event-stream"
            for delta in ({"role": "assistant"}, {"content": "Hi"}, {"content": " you"}, {}):
                await it.call.say(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode())
            await it.call.say(b"data: [DONE]\n\n")
            assert texts(await it.viewer.rest()) == [":Hi", ": you", DONE]


@story
async def test_pieces_that_come_close_together_are_joined_where_the_route_says_so(edge: Edge) -> None:
    route = CHAT.replace("linger", "batch: 100ms, linger")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, opened(gate, api) as it:
        await it.call.say(word("Hel"), word("lo"))
        assert await datas(it.viewer, 1) == ["Hello"]
        await it.call.say(word(" you"), word("!", done=True))
        assert texts(await it.viewer.rest()) == [": you!", DONE]


# Resuming


@story
async def test_a_lost_client_gets_the_rest_by_name_and_then_the_live_tail(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT.replace("200ms", "5s"))) as gate:
        async with opened(gate, api) as it:
            await it.call.say(word("one"), word("two"), word("three"))
            cursor = (await it.viewer.event()).id
            assert await datas(it.viewer, 2) == ["two", "three"]
            await it.leave()
            await gate.until_clients(0)
            await it.call.say(word("four"))
            async with gate.watch(it.name, cursor=cursor) as back:
                assert (back.status, back.get("ssegate-resumed")) == (200, "yes")
                assert back.get("ssegate-stream") == it.name
                assert await datas(back, 3) == ["two", "three", "four"]
                await it.call.say(word("five"))
                assert await datas(back, 1) == ["five"]
                await it.call.say(word("", done=True))
                assert texts(await back.rest()) == [":", DONE]
            assert len(api.requests) == 1


@story
async def test_a_finished_answer_can_be_had_again_and_is_204_behind_its_end(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        await it.call.say(word("a"), word("b", done=True))
        events = await it.viewer.rest()
        async with gate.watch(it.name, cursor=events[0].id) as late:
            assert late.get("ssegate-resumed") == "yes"
            assert await late.rest() == events[1:]
        async with gate.watch(it.name) as newcomer:
            assert newcomer.get("ssegate-resumed") == "no"
            assert await newcomer.rest() == events, "without a cursor all that is kept"
        for target in (it.name, "/chat"):
            method = "GET" if target == it.name else "POST"
            reply = await gate.ask(method, target, ("Last-Event-ID", events[-1].id or ""))
            assert (reply.status, reply.body) == (204, b"")
        assert len(api.requests) == 1


@story
async def test_a_second_viewer_with_the_name_watches_the_same_answer(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        await it.call.say(word("one"))
        first = await it.viewer.event()
        async with gate.watch(it.name) as second:
            assert await second.event() == first
            await it.call.say(word("two"))
            assert await it.viewer.event() == await second.event()
            await it.leave()
            await it.call.say(word("three", done=True))
            assert texts(await second.rest()) == [":three", DONE], "one that watches is enough"
        assert len(api.requests) == 1


@pytest.mark.parametrize("how", ["header", "query"])
@story
async def test_a_client_that_knows_no_names_asks_again_as_it_did_first(edge: Edge, how: str) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT.replace("200ms", "5s"))) as gate:
        async with opened(gate, api) as it:
            await it.call.say(word("one"), word("two"))
            cursor = (await it.viewer.event()).id or ""
            assert await datas(it.viewer, 1) == ["two"]
            await it.leave()
            again = (
                reopened(gate, "/chat", cursor=cursor)
                if how == "header"
                else reopened(gate, f"/chat?lastEventId={cursor}")
            )
            async with again as back:
                assert (back.status, back.get("ssegate-resumed")) == (200, "yes")
                assert back.get("ssegate-stream") == it.name
                assert await datas(back, 1) == ["two"]
                await it.call.say(word("three", done=True))
                assert texts(await back.rest()) == [":three", DONE]
            assert len(api.requests) == 1, "the upstream is not asked twice"


@story
async def test_a_get_is_resumed_by_its_cursor_as_an_event_source_does(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, MINE)) as gate:
        async with opened(gate, api, "/mine", ANN, method="GET", body=b"", answer=SSE) as it:
            await it.call.say(b"data: one\n\n", b"data: two\n\n")
            cursor = (await it.viewer.event()).id
            await it.leave()
            async with gate.watch("/mine", ANN, cursor=cursor) as back:
                assert back.get("ssegate-resumed") == "yes"
                assert await datas(back, 1) == ["two"]
            assert len(api.requests) == 1


@pytest.mark.parametrize("cursor", ["nonsense", "AAAAAAAAAAA-1", "earliest"])
@story
async def test_a_cursor_of_no_answer_asks_for_a_new_one_and_is_told_so(edge: Edge, cursor: str) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with opened(gate, api, "/chat", ("Last-Event-ID", cursor)) as it:
            await it.call.say(word("new"))
            assert it.viewer.get("ssegate-resumed") == "no"
            expected = [":new"] if cursor == "earliest" else ['reset:{"reason":"unknown-cursor"}', ":new"]
            assert await told(it.viewer, len(expected)) == expected


@story
async def test_an_answer_goes_on_while_its_client_may_come_back(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT.replace("200ms", "500ms"))) as gate:
        async with opened(gate, api) as it:
            await it.call.say(word("one"))
            cursor = (await it.viewer.event()).id
            await it.leave()
            await gate.until_clients(0)
            await it.call.say(word("two"))
            async with gate.watch(it.name, cursor=cursor) as back:
                assert await datas(back, 1) == ["two"]
                await asyncio.sleep(0.6)  # longer than it would have been waited for
                await it.call.say(word("three"))
                assert await datas(back, 1) == ["three"]


@story
async def test_an_answer_nobody_comes_back_for_is_cancelled_and_its_rest_says_so(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        await it.call.say(word("one"), word("two"))
        cursor = (await it.viewer.event()).id
        await it.leave()
        await it.call.gone()
        async with gate.watch(it.name, cursor=cursor) as late:
            events = await late.rest()
            assert texts(events) == [":two", 'end:{"reason":"timeout"}']
        assert (await gate.ask("GET", it.name, ("Last-Event-ID", events[-1].id or ""))).status == 204
        assert len(api.requests) == 1


@story
async def test_an_answer_is_forgotten_some_time_after_its_end(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "SWEEP", 0.05)
    route = f"{CHAT}  history: {{age: 200ms}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, opened(gate, api) as it:
        await it.call.say(word("a", done=True))
        events = await it.viewer.rest()
        assert (await gate.ask("GET", it.name, ("Last-Event-ID", events[-1].id or ""))).status == 204
        async with asyncio.timeout(PATIENCE):
            while len(gate.service.gate.hub):
                await asyncio.sleep(0.01)  # nobody is told when a topic goes
        assert (await gate.ask("GET", it.name)).status == 404
        assert (await gate.ask("GET", it.name, ("Last-Event-ID", events[-1].id or ""))).status == 404
        async with opened(gate, api, "/chat", ("Last-Event-ID", events[-1].id or "")) as anew:
            await anew.call.say(word("b"))
            assert await told(anew.viewer, 2) == ['reset:{"reason":"unknown-cursor"}', ":b"]


@story
async def test_the_history_of_one_answer_is_bounded_and_who_was_passed_by_it_is_told(edge: Edge) -> None:
    route = f"{CHAT}  history: {{events: 4}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate, opened(gate, api) as it:
        await it.call.say(*(word(str(n)) for n in range(10)))
        events = [await it.viewer.event() for _ in range(10)]
        assert [event.data for event in events] == [str(n) for n in range(10)], "who reads misses nothing"
        async with gate.watch(it.name, cursor=events[0].id) as late:
            assert await told(late, 5) == ['reset:{"reason":"gap"}', ":6", ":7", ":8", ":9"]


@story
async def test_an_answer_that_may_be_asked_for_again_is_gone_on_with_for_its_viewer(edge: Edge) -> None:
    route = MINE.replace("linger", "reconnect: true, linger")
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with opened(gate, api, "/mine", ANN, method="GET", body=b"", answer=SSE) as it:
            await it.call.say(b"id: 7\ndata: one\n\n")
            assert await datas(it.viewer, 1) == ["one"]
            it.call.cut()
            assert (await it.viewer.event()).type == "fault"
            call = await api.begun(SSE)
            assert [call.asked.get(name) for name in ("authorization", "last-event-id")] == ["Bearer ann", "7"]
            await call.say(b"id: 7\ndata: one\n\nid: 8\ndata: two\n\n")
            assert await told(it.viewer, 2) == ["recovered:{}", ":two"]


@story
async def test_an_answer_comes_in_the_shape_its_client_asks_for(edge: Edge) -> None:
    ndjson = ("Accept", "application/x-ndjson")
    async with LiveApi() as api, running_gate(edge, before(api, CHAT.replace("200ms", "5s"))) as gate:
        async with AsyncExitStack() as stack:
            exchanging = gate.exchange("POST", "/chat", ndjson, body=PROMPT)
            asking = asyncio.create_task(stack.enter_async_context(exchanging))
            call = await api.call()
            await call.read_body()
            await call.begin(NDJSON)
            it = await asking
            name = dict(it.headers)["ssegate-stream"]
            assert dict(it.headers)["content-type"] == "application/x-ndjson"
            lines: list[dict[str, str]] = []
            await call.say(word("one"), word("two"))
            raw = b""
            while len(lines) < 2:
                raw += await it.read()
                lines = [said(line) for line in raw.split(b"\n") if line]
            assert [line["data"] for line in lines] == ["one", "two"]
        await gate.until_clients(0)
        await call.say(word("three", done=True))
        reply = await gate.ask("GET", name, ndjson, ("Last-Event-ID", lines[0]["id"]))
        rest = [said(line) for line in reply.body.split(b"\n") if line]
        assert [line["data"] for line in rest] == ["two", "three", {"reason": "done"}]
        assert len(api.requests) == 1


# Whose it is


@story
async def test_a_stream_belongs_to_the_viewer_whose_headers_opened_it(edge: Edge) -> None:
    tenant = ("X-Tenant", "t1")
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS)) as gate:
        async with opened(gate, api, "/rooms/a/chat", ANN, tenant) as it:
            await it.call.say(word("secret"))
            event = await it.viewer.event()
            for others in ((BOB, tenant), (tenant,), (ANN,), (ANN, ("X-Tenant", "t2")), ()):
                for cursor in ((), (("Last-Event-ID", event.id or ""),)):
                    reply = await gate.ask("GET", it.name, *others, *cursor)
                    assert (reply.status, reply.get("content-type")) == (404, "application/problem+json")
                    assert b"secret" not in reply.body
            async with gate.watch(it.name, ANN, tenant, ("Cookie", "s=1")) as back:
                assert await datas(back, 1) == ["secret"], "what is not forwarded does not matter"
            assert len(api.requests) == 1


@story
async def test_a_cursor_of_anothers_answer_asks_for_ones_own(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS)) as gate:
        async with opened(gate, api, "/rooms/a/chat", ANN) as it:
            await it.call.say(word("secret"), word("more"))
            cursor = (await it.viewer.event()).id or ""
            async with opened(gate, api, "/rooms/a/chat", BOB, ("Last-Event-ID", cursor)) as other:
                await other.call.say(word("bob's"))
                assert await told(other.viewer, 2) == ['reset:{"reason":"unknown-cursor"}', ":bob's"]
                assert other.name != it.name
            assert [asked.get("authorization") for asked in api.requests] == ["Bearer ann", "Bearer bob"]


@story
async def test_a_name_is_found_below_its_own_path_alone(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS + CHAT)) as gate:
        async with opened(gate, api, "/rooms/a/chat", ANN) as it:
            token = it.name.rpartition("/")[2]
            for path in (f"/rooms/b/chat/s/{token}", f"/chat/s/{token}", f"/rooms/a%2F/chat/s/{token}"):
                assert (await gate.ask("GET", path, ANN)).status == 404
            async with gate.watch(it.name, ANN) as back:
                assert back.status == 200


@story
async def test_a_cursor_is_good_for_its_own_route_alone(edge: Edge) -> None:
    other = CHAT.replace("/chat", "/talk")
    async with LiveApi() as api, running_gate(edge, before(api, CHAT + other)) as gate, opened(gate, api) as it:
        await it.call.say(word("a"))
        cursor = (await it.viewer.event()).id or ""
        async with opened(gate, api, "/talk", ("Last-Event-ID", cursor)) as talk:
            assert talk.name.startswith("/talk/s/")
        assert len(api.requests) == 2


@story
async def test_a_name_answers_who_may_read_it_and_nothing_else(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=CORS)) as gate, opened(gate, api) as it:
        allowed = await gate.ask("OPTIONS", it.name, PAGE, ("Access-Control-Request-Method", "GET"))
        assert (allowed.status, allowed.get("allow")) == (204, "GET, HEAD, OPTIONS")
        assert allowed.get("access-control-allow-origin") == PAGE[1]
        assert (await gate.ask("POST", it.name, body=PROMPT)).status == 405
        async with gate.watch(it.name, PAGE) as viewer:
            assert viewer.get("access-control-allow-origin") == PAGE[1]
        missing = await gate.ask("GET", f"{it.name[:-22]}{'x' * 22}", PAGE)
        assert (missing.status, missing.get("access-control-allow-origin")) == (404, PAGE[1])


@story
async def test_a_page_may_read_the_name_of_its_stream(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=CORS)) as gate:
        async with opened(gate, api, "/chat", PAGE) as it:
            exposed = (it.viewer.get("access-control-expose-headers") or "").lower()
            assert "ssegate-stream" in exposed
            assert it.viewer.get("access-control-allow-origin") == PAGE[1]


# The request


TYPE = ("Content-Type", "text/x-prompt; v=1")


@story
async def test_a_body_reaches_the_upstream_piece_by_piece(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, uploading(gate, "/chat", TYPE) as it:
        await it.send(b"one", last=False)
        call = await api.call()
        for piece in (b"two", b"three"):
            assert await call.read_piece() in (b"one", b"two"), "before the client has sent the next"
            await it.send(piece, last=False)
        assert await call.read_piece() == b"three"
        await it.send(b"", last=True)
        assert await call.read_piece() == b""
        assert (call.asked.get("transfer-encoding"), call.asked.get("content-length")) == ("chunked", None)
        assert call.asked.get("content-type") == "text/x-prompt; v=1"
        await call.begin(NDJSON)
        await call.say(word("a", done=True))
        reply = await answered(it)
        assert b"data: a\n" in reply.body
        assert call.asked.body == b"onetwothree"


@story
async def test_a_body_whose_length_is_known_is_passed_on_with_its_length(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with uploading(gate, "/chat", TYPE, ("Content-Length", "6")) as it:
            await it.send(b"one", last=False)
            call = await api.call()
            assert (call.asked.get("transfer-encoding"), call.asked.get("content-length")) == (None, "6")
            await it.send(b"two", last=True)
            assert await call.read_body() == b"onetwo"
            await call.begin(NDJSON)
            await call.say(word("a", done=True))
            assert (await answered(it)).status == 200


@story
async def test_an_answer_that_begins_before_the_body_is_whole_is_kept_for_its_end(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, uploading(gate, "/chat") as it:
        await it.send(b"one", last=False)
        call = await api.call()
        await call.begin(NDJSON)
        await call.say(word("early"))
        assert await call.read_piece() == b"one"
        await it.send(b"two", last=True)
        assert await call.read_body() == b"onetwo"
        await call.say(word("late", done=True))
        reply = await answered(it)
        assert (reply.status, re.findall(rb"data: (early|late)\n", reply.body)) == (200, [b"early", b"late"])


@story
async def test_a_request_without_a_body_has_none_at_the_upstream(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with opened(gate, api, "/chat", TYPE, body=b"") as it:
            (asked,) = api.requests
            assert (asked.get("content-length"), asked.get("transfer-encoding"), asked.get("content-type")) == (
                "0", None, None,
            )  # fmt: skip
            await it.call.say(word("a", done=True))
            assert texts(await it.viewer.rest()) == [":a", DONE]


@pytest.mark.parametrize("is_authorized", [True, False])
@story
async def test_forwarded_headers_take_the_place_of_the_gates_own_credentials(edge: Edge, is_authorized: bool) -> None:
    own_auth = "auth: {bearer: own}, headers: {X-Team: a}"
    mine = [("X-Tenant", "t1"), ("Cookie", "s=1"), ("X-Mine", "1"), ("Origin", "https://x.example")]
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS, upstream=own_auth)) as gate:
        async with opened(gate, api, "/rooms/a/chat", *mine, *([ANN] if is_authorized else [])) as it:
            names = ("authorization", "x-tenant", "cookie", "x-mine", "origin", "x-team", "accept-encoding")
            assert [it.call.asked.get(name) for name in names] == [
                "Bearer ann" if is_authorized else None, "t1", None, None, None, "a", "identity",
            ]  # fmt: skip
            assert it.call.asked.target == "/api/a/generate"


@story
async def test_the_gates_own_credentials_go_along_where_the_viewers_are_not_forwarded(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, upstream="auth: {bearer: own}")) as gate:
        async with opened(gate, api, "/chat", ANN, ("Cookie", "s=1")) as it:
            assert [it.call.asked.get(name) for name in ("authorization", "cookie")] == ["Bearer own", None]


@story
async def test_several_values_of_a_forwarded_header_all_count(edge: Edge) -> None:
    two = (("X-Tenant", "t1"), ("X-Tenant", "t2"))
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS)) as gate:
        async with opened(gate, api, "/rooms/a/chat", *two) as it:
            assert it.call.asked.get("x-tenant") == "t1, t2"
            assert (await gate.ask("GET", it.name, two[0])).status == 404
            async with gate.watch(it.name, *two) as back:
                assert back.status == 200


@story
async def test_a_body_that_the_upstream_does_not_take_is_not_taken_from_the_client(edge: Edge) -> None:
    size = 16 * 1024 * 1024
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, read="5s")) as gate:
        async with uploading(gate, "/chat", ("Content-Length", str(size))) as it:
            piece = b"x" * 65536
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(size // len(piece)):
                    await it.send(piece, last=False)
                    sent += len(piece)

            tracemalloc.start()
            try:
                sending = asyncio.create_task(send())
                await api.call()
                held = -1
                while held != sent:  # until all that lies between is full
                    held = sent
                    await asyncio.sleep(0.1)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            it.reset()
            assert sent < size
            assert peak < 2 * 1024 * 1024


# What the upstream says before it streams


@story
async def test_an_error_of_the_upstream_is_passed_on_as_it_is(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=CORS)) as gate:
        asking = asyncio.create_task(gate.ask("POST", "/chat", PAGE, body=PROMPT))
        await (await api.call()).answer(
            b'{"error":{"message":"slow down"}}',
            (b"Content-Type", b"application/json"),
            (b"Retry-After", b"7"),
            (b"X-RateLimit-Remaining", b"0"),
            (b"Access-Control-Allow-Origin", b"*"),
            (b"Vary", b"X-Own"),
            status=429,
        )
        reply = await asking
        assert (reply.status, said(reply.body)) == (429, {"error": {"message": "slow down"}})
        names = ("content-type", "retry-after", "x-ratelimit-remaining", "content-length")
        assert [reply.get(name) for name in names] == ["application/json", "7", "0", "33"]
        assert reply.get("access-control-allow-origin") == PAGE[1]
        assert reply.get("access-control-allow-credentials") == "true"
        assert "Origin" in (reply.get("vary") or "")
        assert reply.get("ssegate-stream") is None
        assert len(gate.service.gate.hub) == 0, "there is no stream"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500, 503])
@story
async def test_each_status_that_is_an_error_reaches_the_viewer(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        asking = asyncio.create_task(gate.ask("POST", "/chat", body=PROMPT))
        call = await api.call()
        await call.begin((b"Content-Type", b"text/plain"), status=status)
        await call.say(b"no")
        await call.end()
        reply = await asking
        assert (reply.status, reply.body, reply.get("content-type")) == (status, b"no", "text/plain")


@pytest.mark.parametrize("status", [500, 502, 503])
@story
async def test_an_event_source_is_told_of_trouble_and_to_come_back(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, MINE, more=CORS)) as gate:
        asking = asyncio.create_task(gate.ask("GET", "/mine", ANN, PAGE, ("Accept", "text/event-stream")))
        await (await api.call()).answer(b"our secret", status=status)
        reply = await asking
        assert (reply.status, reply.get("content-type")) == (200, "text/event-stream"), "5xx would end it for ever"
        assert reply.get("access-control-allow-origin") == PAGE[1]
        found = re.fullmatch(rb"retry: ([0-9]+)\n:\nevent: fault\ndata: (.*)\n\n", reply.body)
        assert found is not None
        assert 5000 <= int(found[1]) <= 15000
        assert (said(found[2])["reason"], said(found[2])["status"]) == ("upstream", status)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_an_event_source_is_refused_as_the_upstream_refuses(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, MINE)) as gate:
        asking = asyncio.create_task(gate.ask("GET", "/mine", ANN, ("Accept", "text/event-stream")))
        await (await api.call()).answer(b"who are you", (b"WWW-Authenticate", b"Bearer"), status=status)
        reply = await asking
        assert (reply.status, reply.body, reply.get("www-authenticate")) == (status, b"who are you", "Bearer")


@story
async def test_an_error_that_comes_before_the_body_is_whole_is_not_kept_back(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, uploading(gate, "/chat") as it:
        await it.send(b"one", last=False)
        await (await api.call()).answer(b"who are you", status=401)
        reply = await answered(it)
        assert (reply.status, reply.body) == (401, b"who are you")


@story
async def test_an_upstream_with_nothing_to_say_is_204(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        asking = asyncio.create_task(gate.ask("POST", "/chat", body=PROMPT))
        await (await api.call()).send(b"HTTP/1.1 204 No Content\r\n\r\n")
        reply = await asking
        assert (reply.status, reply.body) == (204, b"")


@story
async def test_an_upstream_that_is_not_there_is_502_and_one_that_is_silent_504(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, read="200ms", more=CORS)) as gate:
        asking = asyncio.create_task(gate.ask("POST", "/chat", PAGE, body=PROMPT))
        call = await api.call()
        silent = await asking
        assert (silent.status, silent.get("access-control-allow-origin")) == (504, PAGE[1])
        await call.gone()
    async with running_gate(edge, before(api, CHAT, more=CORS)) as gate:
        missing = await gate.ask("POST", "/chat", PAGE, body=PROMPT)
        assert (missing.status, missing.get("access-control-allow-origin")) == (502, PAGE[1])
        assert str(api.port).encode() not in missing.body


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream opens when the head of its answer takes longer than a tenth of a second."""
    monkeypatch.setattr(own._head, "__defaults__", (0.1,))
    monkeypatch.setattr(own, "FIRST_ANSWER", 0.1)


@asynccontextmanager
async def waiting(gate: RunningGate, api: LiveApi) -> AsyncIterator[tuple[Viewer, LiveCall]]:
    """A stream whose answer has not begun."""
    async with gate.exchange("POST", "/chat", body=PROMPT) as it:
        yield Viewer(it), await api.call()


@pytest.mark.usefixtures("impatient")
@story
async def test_a_late_answer_keeps_the_head_of_the_stream_back_for_a_while_alone(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, waiting(gate, api) as (viewer, call):
        assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
        await viewer.opening()
        await call.read_body()
        await call.begin(NDJSON)
        await call.say(word("late"), word("!", done=True))
        assert texts(await viewer.rest()) == [":late", ":!", DONE]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.usefixtures("impatient")
@story
async def test_a_late_error_is_the_end_of_the_stream(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, waiting(gate, api) as (viewer, call):
        await call.read_body()
        await call.answer(b"our secret", status=status)
        (end,) = await viewer.rest()
        failure = {"status": status, "message": f"the upstream answered {status}"}
        assert said(end.data) == {"reason": "failed", "result": failure}


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.usefixtures("impatient")
@story
async def test_a_late_refusal_is_the_end_of_the_stream(edge: Edge, status: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, waiting(gate, api) as (viewer, call):
        await call.read_body()
        await call.answer(b"our secret", status=status)
        (end,) = await viewer.rest(0.5)
        assert said(end.data)["result"]["status"] == status


# Slow clients


@story
async def test_a_slow_client_gets_every_byte_of_a_large_answer_and_the_upstream_waits_for_it(edge: Edge) -> None:
    size, count = 20_000, 700
    route = f"{CHAT}  history: {{events: 100}}"
    sent = 0
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with opened(gate, api, buffer=32768) as it:

            async def send() -> None:
                nonlocal sent
                for n in range(count):
                    await it.call.say(word(f"{n} " + "x" * size))
                    sent += 1
                await it.call.say(word("", done=True))

            sending = asyncio.create_task(send())
            held = -1
            while held != sent:  # until all that lies between is full
                held = sent
                await asyncio.sleep(0.1)
            assert sent < count
            events = await it.viewer.rest(30)
            await sending
            assert [event.data.partition(" ")[0] for event in events[:-2]] == [str(n) for n in range(count)]
            assert all(len(event.data) > size for event in events[:-2])
            assert texts(events[-2:]) == [":", DONE]


@pytest.mark.parametrize(
    ("history", "count"),
    [("", 2000), ("  history: {events: 3}", 300), ("  history: {size: 4KiB}", 2000)],
)
@story
async def test_a_burst_of_small_pieces_reaches_the_client_whole(edge: Edge, history: str, count: int) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT + history)) as gate, opened(gate, api) as it:
        await it.call.say(b"".join(word(str(n)) for n in range(count)) + word("", done=True))
        events = await it.viewer.rest()
        assert texts(events) == [*(f":{n}" for n in range(count)), ":", DONE]


@story
async def test_a_client_that_comes_back_to_a_large_answer_finds_what_it_had_not_read(edge: Edge) -> None:
    count = 3_000
    # What had been written to a connection that is gone is kept as long as the history is.
    route = f"{CHAT.replace('200ms', '5s')}  history: {{events: 10000}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with opened(gate, api) as it:
            sending = asyncio.create_task(it.call.say(*(word(str(n)) for n in range(count)), word("", done=True)))
            await it.viewer.event()
            await it.leave()
            await gate.until_clients(0)
            cursor = it.viewer.decoder.last_event_id
            read = int(cursor.rpartition("-")[2])
            async with gate.watch(it.name, cursor=cursor) as back:
                assert back.get("ssegate-resumed") == "yes"
                assert texts(await back.rest()) == [*(f":{n}" for n in range(read, count)), ":", DONE]
            await sending


@pytest.mark.long
@story
async def test_an_answer_of_100_megabytes_takes_no_more_memory_than_its_history(edge: Edge) -> None:
    piece, count = 1 << 16, 1600
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, opened(gate, api) as it:
        line = word("x" * piece)

        async def send() -> None:
            for _ in range(count):
                await it.call.say(line)
            await it.call.say(word("", done=True))

        sending = asyncio.create_task(send())
        tracemalloc.start()
        try:
            size = 0
            while (event := await it.viewer.event()).type != "end":
                assert event.type == ""
                size += len(event.data)
                it.viewer.raw.clear()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await sending
        assert size == piece * count
        assert peak < 2 * 16 * 1024 * 1024


# Limits, reload, drain


@story
async def test_where_there_is_no_room_for_a_stream_a_request_is_told_to_come_back(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=f"limits: {{topics: 1}}\n{CORS}")) as gate:
        async with opened(gate, api) as it:
            await it.call.say(word("a"))
            assert await datas(it.viewer, 1) == ["a"]
            reply = await gate.ask("POST", "/chat", PAGE, body=PROMPT)
            assert (reply.status, reply.get("access-control-allow-origin")) == (503, PAGE[1])
            assert 5 <= int(reply.get("retry-after") or "0") <= 15
            assert len(api.requests) == 1


@story
async def test_a_reload_keeps_answers_of_unchanged_routes_and_their_names(edge: Edge) -> None:
    server = "drain: {timeout: 200ms}"
    talk = CHAT.replace("/chat", "/talk")
    async with (
        LiveApi() as api, running_gate(edge, before(api, CHAT + talk), server=server) as gate,
        opened(gate, api) as chat, opened(gate, api, "/talk") as other,
    ):  # fmt: skip
        changed = before(api, CHAT + talk.replace("200ms", "300ms"))
        gate.service.gate.reload(make_config(edge.yaml(0, changed, server=server)))
        await other.call.gone()
        assert await other.viewer.rest() == []
        assert (await gate.ask("GET", other.name)).status == 404
        await chat.call.say(word("one"))
        event = await chat.viewer.event()
        async with gate.watch(chat.name) as second, reopened(gate, "/chat", cursor=event.id) as third:
            assert await second.event() == event
            await chat.call.say(word("two"))
            assert await datas(second, 1) == await datas(third, 1) == ["two"]
        assert len(api.requests) == 2


@story
async def test_a_drain_ends_answers_in_order_and_turns_requests_away(edge: Edge) -> None:
    async with LiveApi() as api, AsyncExitStack() as stack:
        server = "drain: {delay: 200ms, timeout: 200ms}"
        gate = await stack.enter_async_context(running_gate(edge, before(api, CHAT), server=server))
        it = await stack.enter_async_context(opened(gate, api))
        await it.call.say(word("one"))
        assert await datas(it.viewer, 1) == ["one"]
        draining = asyncio.create_task(gate.service.drain())
        await asyncio.sleep(0)
        reply = await gate.ask("POST", "/chat", body=PROMPT)
        assert (reply.status, reply.get("content-type")) == (503, "application/problem+json")
        assert 5 <= int(reply.get("retry-after") or "0") <= 15
        assert await it.viewer.rest() == []
        assert 5000 <= (it.viewer.decoder.retry_ms or 0) <= 15000
        await it.leave()
        await it.call.gone()
        await draining


# WebSockets


def live(url: str) -> str:
    """A configuration before an upstream of WebSockets, one for each request."""
    stream = "{get: /live, format: websocket, forward: [cookie], linger: 100ms}"
    return f"upstreams: {{api: '{url}'}}\nroutes: [{{path: /live, stream: {stream}}}]"


@story
async def test_a_websocket_is_opened_for_each_request_with_its_headers(edge: Edge) -> None:
    connections: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def handle(connection: ServerConnection) -> None:
        connections.put_nowait(connection)
        assert connection.request is not None
        await connection.send(connection.request.headers["Cookie"])
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate:
            async with gate.watch("/live", ("Cookie", "s=1")) as one, gate.watch("/live", ("Cookie", "s=2")) as two:
                assert await datas(one, 1) + await datas(two, 1) == ["s=1", "s=2"]
                name = one.get("ssegate-stream") or ""
                assert (await gate.ask("GET", name, ("Cookie", "s=2"))).status == 404
                async with gate.watch(name, ("Cookie", "s=1")) as again:
                    assert await datas(again, 1) == ["s=1"]
                (await connections.get()).transport.abort()
                (end,) = await one.rest()
                assert said(end.data)["reason"] == "failed"
            async with asyncio.timeout(PATIENCE):
                await (await connections.get()).wait_closed()


@story
async def test_a_websocket_that_is_closed_in_good_order_is_done(edge: Edge) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close()

    async with serve(handle, "127.0.0.1", 0) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate, gate.watch("/live") as viewer:
            assert texts(await viewer.rest()) == [":last", DONE]


@story
async def test_a_websocket_that_is_refused_is_passed_on_as_it_is(edge: Edge) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(403, "not you")  # type: ignore[arg-type]  # a status is a number too

    async def handle(connection: ServerConnection) -> None: ...

    async with serve(handle, "127.0.0.1", 0, process_request=refuse) as server:
        text = live(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running_gate(edge, text) as gate:
            reply = await gate.ask("GET", "/live")
            assert (reply.status, reply.body) == (403, b"not you")


@story
async def test_what_answers_200_to_a_websocket_is_trouble(edge: Edge) -> None:
    route = "- {path: /live, stream: {get: /live, format: websocket, forward: [cookie]}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        asking = asyncio.create_task(gate.ask("GET", "/live"))
        await (await api.call()).answer(b"<html>", (b"Content-Type", b"text/html"))
        reply = await asking
        assert b"event: fault" in reply.body
        assert b"502" in reply.body
