"""What streams must not do, upstreams and clients alike, each with its clear answer."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from ssegate.gate import own
from ssegate.sources import stream as module
from tests.e2e.calls import NDJSON, SSE, TEXT, LiveApi, LiveCall, answered, datas, told, uploading
from tests.e2e.client import PATIENCE, Viewer
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said, story

CHAT = """
- path: /chat
  methods: [POST]
  stream: {post: /api/generate, format: ndjson, data: r, linger: 100ms}
"""
REST = """
- {path: "/{rest:path}", proxy: {}}
"""
ROOMS = """
- path: /rooms/{room}/chat
  methods: [POST]
  stream: {post: "/api/{room}", format: ndjson, data: r, forward: [authorization]}
"""
MINE = """
- path: /mine
  stream: {get: /api/mine, forward: [authorization], linger: 5s}
"""
SMALL = "limits: {event_size: 1KiB, stream_body: 64KiB}"
MEGABYTE = 1 << 20
PROMPT = b'{"prompt":"hi"}'
ANN = ("Authorization", "Bearer ann")
UNREADABLE = "a record of the upstream cannot be read: it is not JSON"


def shared(format_: str) -> str:
    return f"- {{path: /x, stream: {{get: /x, format: {format_}, linger: 100ms}}}}"


@asynccontextmanager
async def watching(
    edge: Edge, format_: str, head: tuple[bytes, bytes] = TEXT, *, more: str = ""
) -> AsyncIterator[tuple[Viewer, LiveCall, LiveApi]]:
    """A viewer of a shared stream, whose upstream has answered with the head alone."""
    async with LiveApi() as api, running_gate(edge, before(api, shared(format_), more=more)) as gate:
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
            call = await api.begun(head)
            yield await opening, call, api


@asynccontextmanager
async def asking(gate: RunningGate, api: LiveApi) -> AsyncIterator[tuple[Viewer, LiveCall]]:
    """A viewer of a stream of its own, whose upstream has answered with the head alone."""
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(gate.exchange("POST", "/chat", body=PROMPT)))
        call = await api.call()
        await call.read_body()
        await call.begin(NDJSON)
        yield Viewer(await opening), call


def fault(reason: str, message: str, status: int | None = None) -> str:
    return "fault:" + json.dumps({"reason": reason, "status": status, "message": message}, separators=(",", ":"))


RECOVERED = "recovered:{}"


# Records that are cut


@story
async def test_an_upstream_that_is_cut_in_mid_record_tells_nothing_of_it(edge: Edge) -> None:
    async with watching(edge, "ndjson", NDJSON) as (viewer, call, api):
        await call.say(b'{"n":1}\n{"n":')
        call.cut()
        assert await told(viewer, 2) == [':{"n":1}', fault("upstream", "the upstream's answer is broken")]
        call = await api.begun(NDJSON)
        await call.say(b'{"n":2}\n')
        assert await told(viewer, 2) == [RECOVERED, ':{"n":2}']
        assert b'"n":\n' not in viewer.raw


@story
async def test_an_answer_that_ends_in_mid_record_is_trouble_with_that_record(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, asking(gate, api) as (viewer, call):
        await call.say(b'{"r":"a"}\n{"r":"b')
        await call.end()
        assert await told(viewer, 3) == [":a", fault("undecodable", UNREADABLE), 'end:{"reason":"done"}']
        assert await viewer.rest() == []


@story
async def test_an_answer_that_ends_without_its_last_line_end_is_whole(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, asking(gate, api) as (viewer, call):
        await call.say(b'{"r":"a"}\n{"r":"b"}')
        await call.end()
        assert await told(viewer, 3) == [":a", ":b", 'end:{"reason":"done"}']


# Records without end


@pytest.mark.parametrize(
    ("format_", "begin", "rest"),
    [
        ("lines", b"", b"\nb\n"),
        ("ndjson", b'"', b'"\n"b"\n'),
        ("json-seq", b'\x1e"', b'"\n\x1e"b"\n'),
        ("sse", b"data: ", b"\n\ndata: b\n\n"),
    ],
)
@story
async def test_a_line_without_end_is_told_at_once_and_takes_no_memory(
    edge: Edge, format_: str, begin: bytes, rest: bytes
) -> None:
    async with watching(edge, format_, SSE, more=SMALL) as (viewer, call, _):
        await call.say(begin + b"x" * 2000)
        assert await told(viewer, 1) == [fault("oversize", "a record of the upstream is too large")]
        piece = b"x" * 65536
        tracemalloc.start()
        try:
            for _ in range(4 * MEGABYTE // len(piece)):
                await call.say(piece)
            await call.say(rest)
            assert await told(viewer, 2) in ([RECOVERED, ":b"], [RECOVERED, ':"b"'])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEGABYTE


# Bytes that are no text


@pytest.mark.parametrize(
    ("format_", "pieces", "events"),
    [
        ("lines", [b"a\0b\n", b"\0\n"], [":a\0b", ":\0"]),
        ("sse", [b"data: a\0b\n\n", b"id: \0\ndata: c\n\n"], [":a\0b", ":c"]),
        ("lines", [b"a\xe2\x82", b"\xacb\n"], [":a€b"]),
        ("lines", [b"a\xe2\x82", b"b\n", b"\xff\xfe\n", b"\xf0\x9f", b"\n"], [":a\ufffdb", ":\ufffd\ufffd", ":\ufffd"]),
        ("ndjson", [b'"\xf0\x9f', b"\x98", b'\x80"\n', b'"\xc3"\n'], [':"\U0001f600"', ':"\ufffd"']),
        ("sse", [b"data: \xe2", b"\x82\xac\n", b"\ndata: \xe2\x82\n\n"], [":€", ":\ufffd"]),
        ("lines", [b"\xef\xbb", b"\xbfa\n\xef\xbb\xbfb\n"], [":a", ":\ufeffb"]),
        ("sse", [b"\xef\xbb\xbfdata: a\n\n"], [":a"]),
        ("ndjson", [b'\xef\xbb\xbf{"n":1}\n'], [':{"n":1}']),
        ("lines", [b"a\r", b"\nb\rc\r\r\n", b"d\n"], [":a", ":b", ":c", ":", ":d"]),
        ("ndjson", [b'{"n":1}\r', b'\n{"n":2}\r{"n":3}\n'], [':{"n":1}', ':{"n":2}', ':{"n":3}']),
        ("sse", [b"data: a\r", b"\n\r", b"\ndata: b\r\rdata: c\n\n"], [":a", ":b", ":c"]),
        ("lines", ["a\u2028b\x0bc\x0cd\x85e\n".encode()], [":a\u2028b\x0bc\x0cd\x85e"]),
    ],
)
@story
async def test_what_is_no_text_is_repaired_and_lines_end_at_line_ends(
    edge: Edge, format_: str, pieces: list[bytes], events: list[str]
) -> None:
    async with watching(edge, format_, SSE) as (viewer, call, _):
        for piece in pieces:
            await call.say(piece)
            await asyncio.sleep(0)
        assert await told(viewer, len(events)) == events


@story
async def test_a_nul_in_an_events_name_is_left_out(edge: Edge) -> None:
    async with watching(edge, "sse", SSE) as (viewer, call, _):
        await call.say(b"event: a\0b\ndata: 1\n\ndata: 2\n\n")
        event = await viewer.event(0.5)
        assert (event.type, event.data) == ("ab", "1")


# What is not what it should be


@story
async def test_a_line_that_is_no_json_is_trouble_and_the_stream_goes_on(edge: Edge) -> None:
    async with watching(edge, "ndjson", NDJSON) as (viewer, call, api):
        await call.say(b'{"n":1}\n', b"<html>our secret</html>\n", b"and more\n")
        assert await told(viewer, 2) == [':{"n":1}', fault("undecodable", UNREADABLE)]
        await call.say(b'{"n":2}\n')
        assert await told(viewer, 2) == [RECOVERED, ':{"n":2}']
        assert b"secret" not in viewer.raw
        assert len(api.requests) == 1


@story
async def test_a_line_that_is_no_json_is_told_even_when_the_next_comes_with_it(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate, asking(gate, api) as (viewer, call):
        await call.say(b'{"r":"a"}\nour secret\n{"r":"b"}\n')
        assert await told(viewer, 2) == [":a", fault("undecodable", UNREADABLE)]
        assert await told(viewer, 2) == [RECOVERED, ":b"]


@story
async def test_a_megabyte_of_comments_says_nothing(edge: Edge) -> None:
    async with watching(edge, "sse", SSE, more=SMALL) as (viewer, call, _):
        comment = b": " + b"x" * 500 + b"\n"
        for _ in range(16):
            await call.say(comment * 130)
        await call.say(b":" + b"y" * 65536)
        await call.say(b"\ndata: 1\n\n")
        assert await told(viewer, 1) == [":1"]
        assert b"xx" not in viewer.raw
        assert b"fault" not in viewer.raw


@story
async def test_an_upstream_that_wants_to_be_asked_again_at_once_is_not(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, shared("sse"))) as gate:
        api.answer_with(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 19\r\n\r\nretry: 0\ndata: 1\n\n\n"
        )
        async with gate.watch("/x") as viewer:
            await viewer.event()
            await asyncio.sleep(4 * module.SHORTEST_PAUSE)  # that nothing happens can only be waited for
            assert 2 <= len(api.requests) <= 5


@story
async def test_a_redirect_within_the_origin_is_followed_and_another_is_not(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, shared("sse"))) as gate, AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        await (await api.call()).answer(b"", (b"Location", b"/v2/x?a=1"), status=307)
        call = await api.call()
        assert call.asked.target == "/v2/x?a=1"
        await call.begin(SSE)
        await call.say(b"data: 1\n\n")
        viewer = await opening
        assert await told(viewer, 1) == [":1"]
        await call.end()
        await (await api.call()).answer(b"", (b"Location", b"http://elsewhere.example/x"), status=302)
        assert await told(viewer, 1) == [fault("upstream", "the upstream answered 302", 302)]
        assert b"elsewhere" not in viewer.raw


@story
async def test_a_redirect_of_a_request_with_a_stream_of_its_own(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, MINE + CHAT)) as gate, AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(gate.watch("/mine", ANN)))
        await (await api.call()).answer(b"", (b"Location", b"/v2"), status=302)
        call = await api.call()
        assert (call.asked.target, call.asked.get("authorization")) == ("/v2", "Bearer ann")
        await call.begin(SSE)
        await call.say(b"data: 1\n\n")
        assert await told(await opening, 1) == [":1"]
        other = asyncio.create_task(gate.ask("GET", "/mine", ANN))
        await (await api.call()).answer(b"", (b"Location", b"http://elsewhere.example/"), status=302)
        assert b"event: fault" in (await other).body, "credentials go nowhere else"
        posting = asyncio.create_task(gate.ask("POST", "/chat", body=PROMPT))
        await (await api.call()).answer(b"", (b"Location", b"/v2"), status=307)
        reply = await posting
        assert (reply.status, reply.get("content-type")) == (502, "application/problem+json"), "it is not sent twice"
        assert reply.get("location") is None
        assert len(api.requests) == 4


HTML = (b"Content-Type", b"text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("format_", "headers", "message"),
    [
        ("ndjson", [HTML], "the upstream answered with text/html, and not with JSON"),
        ("json-seq", [HTML], "the upstream answered with text/html, and not with JSON"),
        ("sse", [HTML], "the upstream answered with text/html, and not with text/event-stream"),
        ("sse", [NDJSON], "the upstream answered with application/x-ndjson, and not with text/event-stream"),
        ("sse", [], "the upstream answered with no media type, and not with text/event-stream"),
        ("lines", [TEXT, (b"Content-Encoding", b"gzip")], "the upstream's answer is compressed, which was not asked for"),
        ("bytes", [(b"Content-Encoding", b"br")], "the upstream's answer is compressed, which was not asked for"),
    ],
)  # fmt: skip
@story
async def test_an_answer_of_another_kind_is_told_as_what_it_is(
    edge: Edge, format_: str, headers: list[tuple[bytes, bytes]], message: str
) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, shared(format_))) as gate, AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(gate.watch("/x")))
        await (await api.call()).answer(b"<html>our secret</html>\n", *headers)
        viewer = await opening
        assert await told(viewer, 1) == [fault("undecodable", message, 200)]
        assert b"secret" not in viewer.raw


@pytest.mark.parametrize("headers", [[HTML], [NDJSON, (b"Content-Encoding", b"gzip")]])
@story
async def test_an_answer_of_another_kind_to_one_request_is_502(edge: Edge, headers: list[tuple[bytes, bytes]]) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        posting = asyncio.create_task(gate.ask("POST", "/chat", body=PROMPT))
        call = await api.call()
        await call.begin(*headers)
        await call.say(b"<html>our secret</html>")
        reply = await posting
        assert (reply.status, reply.get("content-type")) == (502, "application/problem+json")
        assert b"secret" not in reply.body
        await call.gone()
        assert len(gate.service.gate.hub) == 0


@pytest.mark.parametrize("how", ["without end", "too large", "cut"])
@story
async def test_a_refusal_that_cannot_be_passed_on_whole_keeps_its_status(
    edge: Edge, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "REFUSAL_SECONDS", 0.1)
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        posting = asyncio.create_task(gate.ask("POST", "/chat", body=PROMPT))
        call = await api.call()
        await call.read_body()
        await call.begin(TEXT, status=429)
        await call.say(*[b"x" * 65536] * (17 if how == "too large" else 1))
        if how == "cut":
            call.cut()
        reply = await posting
        assert (reply.status, reply.get("content-type")) == (429, "application/problem+json")
        assert b"xxx" not in reply.body
        if how != "cut":
            await call.gone()


# Clients


@story
async def test_a_body_that_says_it_is_a_gigabyte_is_413_before_the_upstream_hears_of_it(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=SMALL)) as gate:
        async with uploading(gate, "/chat", ("Content-Length", str(1 << 30))) as it:
            reply = await answered(it)
            assert (reply.status, reply.get("content-type")) == (413, "application/problem+json")
            assert "limits.stream_body" in said(reply.body)["detail"]
        assert api.requests == []
        async with uploading(gate, "/chat", ("Content-Length", str(65537))) as it:
            assert (await answered(it)).status == 413
        assert api.connections == 0


@story
async def test_a_body_that_turns_out_too_large_is_413_and_never_whole_at_the_upstream(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=SMALL)) as gate:
        async with uploading(gate, "/chat") as it:
            await it.send(b"x" * 60_000, last=False)
            call = await api.call()
            size = 0
            while size < 60_000:
                size += len(await call.read_piece())
            await it.send(b"x" * 10_000, last=False)
            reply = await answered(it)
            assert (reply.status, reply.get("content-type")) == (413, "application/problem+json")
            await never_whole(call)
            assert len(call.asked.body) <= 65536
        assert len(gate.service.gate.hub) == 0


async def never_whole(call: LiveCall) -> None:
    """Wait until the gate has closed the connection; the body did not come to its end before that."""
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await call.read_body()
    call.cut()


@story
async def test_a_body_as_large_as_allowed_passes(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT, more=SMALL)) as gate:
        async with uploading(gate, "/chat") as it:
            call_soon = asyncio.create_task(api.call())
            await it.send(b"x" * 65536, last=True)
            call = await call_soon
            assert len(await call.read_body()) == 65536
            await call.begin(NDJSON)
            await call.end()
            assert (await answered(it)).status == 200


@story
async def test_a_client_that_leaves_before_its_body_is_whole_leaves_no_whole_request(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with uploading(gate, "/chat") as it:
            await it.send(b"half", last=False)
            call = await api.call()
            assert await call.read_piece() == b"half"
        await never_whole(call)
        assert len(gate.service.gate.hub) == 0


@pytest.mark.parametrize("method", ["POST", "GET"])
@story
async def test_a_client_that_leaves_before_the_answer_takes_its_request_with_it(edge: Edge, method: str) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT + MINE, read="5s")) as gate:
        target = "/chat" if method == "POST" else "/mine"
        posting = asyncio.create_task(gate.ask(method, target, body=PROMPT if method == "POST" else b""))
        call = await api.call()
        if method == "POST":
            await call.read_body()
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
        await call.gone(1.0)
        assert len(gate.service.gate.hub) == 0


@story
async def test_a_client_that_leaves_in_mid_answer_is_waited_for_and_then_the_upstream_is_left(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with asking(gate, api) as (viewer, call):
            await call.say(b'{"r":"a"}\n')
            assert await datas(viewer, 1) == ["a"]
            viewer.exchange.reset()
        await call.gone()
        await gate.until_clients(0)


@story
async def test_names_that_are_guessed_are_404_and_the_upstream_hears_nothing(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT + REST)) as gate:
        async with asking(gate, api) as (viewer, call):
            await call.say(b'{"r":"secret"}\n')
            await datas(viewer, 1)
            name = viewer.get("ssegate-stream") or ""
            token = name.rpartition("/")[2]
            guesses = [
                "A" * 22,
                token[:-1] + ("A" if token[-1] != "A" else "B"),
                token.swapcase(),
                token[::-1],
                "-" * 22,
            ]
            for guess in guesses:
                for fields in ((), (("Accept", "text/event-stream"),), (("Last-Event-ID", "earliest"),)):
                    reply = await gate.ask("GET", f"/chat/s/{guess}", *fields)
                    assert (reply.status, reply.get("content-type")) == (404, "application/problem+json")
            assert len(api.requests) == 1
            async with gate.watch(name) as mine:
                assert await datas(mine, 1) == ["secret"]


@story
async def test_names_of_another_form_are_no_names(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with asking(gate, api) as (viewer, call):
            name = viewer.get("ssegate-stream") or ""
            token = name.rpartition("/")[2]
            for guess in (token[:-1], token + "A", "", "%41" + token[1:] + "%00", "..", token + "/", "*" * 22):
                assert (await gate.ask("GET", f"/chat/s/{guess}")).status == 404
            await call.end()


@story
async def test_another_viewers_credentials_and_another_path_find_no_stream(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, ROOMS + REST)) as gate, AsyncExitStack() as stack:
        exchanging = gate.exchange("POST", "/rooms/a/chat", ANN, body=PROMPT)
        opening = asyncio.create_task(stack.enter_async_context(exchanging))
        call = await api.call()
        await call.read_body()
        await call.begin(NDJSON)
        await call.say(b'{"r":"secret"}\n')
        viewer = Viewer(await opening)
        cursor = ("Last-Event-ID", (await viewer.event()).id or "")
        name = viewer.get("ssegate-stream") or ""
        for target, *fields in (
            (name, ("Authorization", "Bearer bob")),
            (name, ("Authorization", "bearer ann")),
            (name,),
            (name.replace("/a/", "/b/"), ANN),
        ):
            for more in ((), (cursor,)):
                reply = await gate.ask("GET", target, *fields, *more)
                assert reply.status == 404
                assert b"secret" not in reply.body
        assert len(api.requests) == 1
        async with gate.watch(name, ANN) as again:
            assert await datas(again, 1) == ["secret"]


@story
async def test_what_is_no_cursor_is_told_so_and_never_an_error(edge: Edge) -> None:
    async with LiveApi() as api, running_gate(edge, before(api, CHAT)) as gate:
        async with asking(gate, api) as (viewer, call):
            await call.say(b'{"r":"a"}\n')
            event = await viewer.event()
            name = viewer.get("ssegate-stream") or ""
            epoch = (event.id or "").rpartition("-")[0]
            for cursor in ("x", f"{epoch}-99", f"{epoch}-", "-1", f"{epoch}-01", "x" * 5000, "ü"):
                async with gate.watch(name, cursor=cursor) as back:
                    assert (back.status, back.get("ssegate-resumed")) == (200, "no")
                    assert await told(back, 2) == ['reset:{"reason":"unknown-cursor"}', ":a"]


@story
async def test_a_client_that_reads_nothing_holds_its_own_upstream_and_nobody_elses(edge: Edge) -> None:
    route = f"{CHAT}  history: {{events: 100}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        async with asking(gate, api) as (_, stuck_call), asking(gate, api) as (quick, quick_call):
            line = json.dumps({"r": "x" * 50_000}).encode() + b"\n"

            async def flood() -> None:
                while True:
                    await stuck_call.say(line)

            flooding = asyncio.create_task(flood())
            for _ in range(50):
                await quick_call.say(line)
                async with asyncio.timeout(PATIENCE):
                    assert (await quick.event()).type == ""
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
