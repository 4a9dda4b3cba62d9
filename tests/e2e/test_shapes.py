"""The same route for clients that are no EventSource: lines of JSON, a JSON text sequence, one JSON text (WIRE.md, "Other shapes")."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonpatch
import pytest

from tests.e2e.calls import NDJSON as NDJSON_TYPE
from tests.e2e.calls import LiveApi
from tests.e2e.client import PATIENCE, Exchange, Pair, Reply, get
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said, story
from tests.upstream.scripted import answer

SSE, NDJSON, JSON_SEQ, JSON = "text/event-stream", "application/x-ndjson", "application/json-seq", "application/json"
LINES = pytest.mark.parametrize("media", [NDJSON, JSON_SEQ])
BEATS = {SSE: b":\n", NDJSON: b"\n", JSON_SEQ: b"\x1e"}
AS_JSON: Pair = ("Accept", JSON)

ROUTES = """
- path: /state/events
  poll: {get: /x, every: 30ms}
- path: /changes/events
  poll: {get: /x, every: 30ms}
  emit: {as: patch}
- path: /hooks/events
  webhook: {at: /hooks, verify: none}
- path: /jobs/events
  task: {get: /job, every: 30ms, progress: p, done: done, result: r}
"""


class Records:
    """Reads one stream in a shape; keeps every byte."""

    def __init__(self, it: Exchange, media: str) -> None:
        self.exchange = it
        self.status = it.status
        self.media = media
        self.raw = bytearray()
        self.is_ended = False
        self._rest = b""
        self._records: deque[Any] = deque()

    def get(self, name: str) -> str | None:
        return get(self.exchange.headers, name)

    async def receive(self) -> bytes:
        data = await self.exchange.read()
        self.raw += data
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            if self.media == NDJSON:
                assert not line or line.startswith(b"{"), line
            else:
                assert re.fullmatch(rb"\x1e+\{.*", line), line
            if text := line.lstrip(b"\x1e"):
                self._records.append(json.loads(text))
        self.is_ended = not data
        return data

    async def record(self, patience: float = PATIENCE) -> Any:
        """The next one. Raises `EOFError` when the stream has ended instead."""
        async with asyncio.timeout(patience):
            while not self._records:
                if not await self.receive():
                    raise EOFError(bytes(self.raw)[-200:])
        return self._records.popleft()

    async def rest(self) -> list[Any]:
        """Those up to the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            while not self.is_ended:
                await self.receive()
        records, self._records = [*self._records], deque()
        return records


@asynccontextmanager
async def read(
    gate: RunningGate, target: str, media: str, *headers: Pair, cursor: str | None = None, buffer: int | None = None
) -> AsyncIterator[Records]:
    fields = [("Accept", media), *headers]
    if cursor is not None:
        fields.append(("Last-Event-ID", cursor))
    async with gate.exchange("GET", target, *fields, buffer=buffer) as it:
        yield Records(it, media)


async def load(gate: RunningGate, target: str, cursor: str | None = None) -> Reply:
    """Ask for JSON."""
    fields = [("Last-Event-ID", cursor)] if cursor else []
    return await gate.ask("GET", target, AS_JSON, *fields)


async def deliver(gate: RunningGate, *values: Any) -> None:
    for value in values:
        reply = await gate.ask("POST", "/hooks", ("Content-Type", JSON), body=json.dumps(value).encode())
        assert reply.status == 200


def later(reply: Reply) -> int:
    """It is 503 and says when to come back."""
    assert (reply.status, reply.get("content-type")) == (503, "application/problem+json")
    return int(reply.get("retry-after") or "-1")


# Which one


@pytest.mark.parametrize("media", [SSE, NDJSON, JSON_SEQ])
@story
async def test_the_head_of_each_says_what_it_is_and_its_first_bytes_leave_at_once(edge: Edge, media: str) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        read(gate, "/hooks/events", media) as it,
    ):
        assert (it.status, it.get("content-type")) == (200, media)
        assert it.get("cache-control") == "no-store, no-transform"
        assert it.get("x-accel-buffering") == "no"
        assert it.get("ssegate-resumed") == "no"
        for name in ("content-length", "content-encoding", "ssegate-cursor"):
            assert it.get(name) is None
        first = await it.exchange.read()
        assert first == BEATS[media] or re.fullmatch(rb"retry: [0-9]+\n:\n", first)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, SSE),
        ("*/*", SSE),
        ("application/json, text/event-stream", JSON),
        ("text/event-stream, application/json", SSE),
        ("application/json;q=0.4, application/x-ndjson;q=0.6", NDJSON),
        ("text/html, application/json-seq", JSON_SEQ),
        ("application/json; charset=utf-8", JSON),
    ],
)
@story
async def test_the_client_chooses_and_of_equals_the_first_named_is_taken(
    edge: Edge, accept: str | None, media: str
) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        fields = [("Accept", accept)] if accept is not None else []
        async with gate.exchange("GET", "/state/events", *fields) as it:
            assert (it.status, get(it.headers, "content-type")) == (200, media)


@pytest.mark.parametrize("accept", ["text/html", "application/xml, image/*", "text/event-stream;q=0"])
@story
async def test_a_client_that_takes_none_of_them_is_told_which_there_are(edge: Edge, accept: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        reply = await gate.ask("GET", "/state/events", ("Accept", accept))
        assert (reply.status, reply.get("content-type")) == (406, "application/problem+json")
        assert all(media in said(reply.body)["detail"] for media in (SSE, NDJSON, JSON_SEQ, JSON))
        assert not api.requests


@pytest.mark.parametrize("media", [SSE, NDJSON, JSON_SEQ, JSON])
@story
async def test_head_answers_with_the_head_alone_and_asks_nobody(edge: Edge, media: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        reply = await gate.ask("HEAD", "/state/events", ("Accept", media))
        assert (reply.status, reply.get("content-type"), reply.body) == (200, media, b"")
        assert (await gate.ask("HEAD", "/state/events", ("Accept", "text/html"))).status == 406
        assert (len(api.requests), gate.service.gate.statistics().clients) == (0, 0)


@story
async def test_a_negotiated_path_is_the_event_stream_s_where_that_is_named_and_else_the_backend_s(edge: Edge) -> None:
    routes = """
    - {path: /x, negotiate: true, poll: {get: /x, every: 30ms}}
    - {path: "/{rest:path}", proxy: {}}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, routes)) as gate:
        api.put("/x", {"n": 1})
        for accept in (JSON, NDJSON, "*/*", "text/html, */*;q=0.1"):
            reply = await gate.ask("GET", "/x", ("Accept", accept))
            assert (reply.get("content-type"), reply.body, reply.get("ssegate-cursor")) == (JSON, b'{"n": 1}', None)
        for accept in (SSE, f"{JSON}, {SSE};q=0.1"):
            async with gate.exchange("GET", "/x", ("Accept", accept)) as it:
                assert get(it.headers, "content-type") == SSE


# Lines and sequences


@LINES
@story
async def test_events_are_objects_with_id_type_and_data(edge: Edge, media: str) -> None:
    route = """
    - path: /hooks/events
      webhook: {at: /hooks, verify: none}
      emit: {event: "{body.type}", data: body.data}
    """
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, route)) as gate,
        read(gate, "/hooks/events", media) as it,
    ):
        values = [{"a": [1, None]}, "text", "a\nb\u2028c", "1", 1, "", '{"looks": "like JSON"}', "\x1e{}"]
        await deliver(gate, *({"data": value} for value in values), {"type": "log", "data": 0})
        records = [await it.record() for _ in range(9)]
        epoch = records[0]["id"].rpartition("-")[0]
        assert [record["id"] for record in records] == [f"{epoch}-{number}" for number in range(1, 10)]
        told = [{"a": [1, None]}, "text", "a\nb\u2028c", 1, 1, "", {"looks": "like JSON"}, "\x1e{}"]
        assert [record["data"] for record in records[:-1]] == told
        assert all(set(record) == {"id", "data"} for record in records[:-1])
        assert records[-1] == {"id": f"{epoch}-9", "event": "log", "data": 0}


@LINES
@story
async def test_the_state_comes_first_and_then_its_changes(edge: Edge, media: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        async with read(gate, "/changes/events", media) as it:
            first = await it.record()
            assert (first["event"], first["data"]) == ("snapshot", {"n": 1})
            api.put("/x", {"n": 2})
            second = await it.record()
            assert (second["event"], second["data"]) == ("patch", [{"op": "replace", "path": "/n", "value": 2}])


@LINES
@story
async def test_a_client_that_comes_back_goes_on_behind_its_cursor_or_is_told(edge: Edge, media: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        await deliver(gate, *range(5))
        async with read(gate, "/hooks/events", media, cursor="earliest") as it:
            records = [await it.record() for _ in range(5)]
        async with read(gate, "/hooks/events", media, cursor=records[2]["id"]) as it:
            assert it.get("ssegate-resumed") == "yes"
            assert [await it.record() for _ in range(2)] == records[3:]
        async with read(gate, f"/hooks/events?lastEventId={records[3]['id']}", media) as it:
            assert await it.record() == records[4]
        async with read(gate, "/hooks/events", media, cursor="foreign-7") as it:
            assert it.get("ssegate-resumed") == "no"
            assert await it.record() == {"event": "reset", "data": {"reason": "unknown-cursor"}}
            assert [await it.record() for _ in range(5)] == records
        async with gate.watch("/hooks/events", cursor=records[2]["id"]) as viewer:
            assert (await viewer.event()).id == records[3]["id"], "a cursor is good in any shape"


@LINES
@story
async def test_trouble_and_the_end_are_records_too_and_then_it_is_204(edge: Edge, media: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/job", {"p": 1})
        async with read(gate, "/jobs/events", media) as it:
            assert (await it.record())["data"] == 1
            api.fail("/job", 503)
            fault = await it.record()
            assert (fault["event"], fault["data"]["status"], "id" in fault) == ("fault", 503, False)
            api.put("/job", {"done": True, "r": "/files/1"})
            assert await it.record() == {"event": "recovered", "data": {}}
            (end,) = await it.rest()
            assert (end["event"], end["data"]) == ("end", {"reason": "done", "result": "/files/1"})
        back = await gate.ask("GET", "/jobs/events", ("Accept", media), ("Last-Event-ID", end["id"]))
        assert (back.status, back.body) == (204, b"")
        async with read(gate, "/jobs/events", media) as newcomer:
            assert [record["data"] for record in await newcomer.rest()] == [1, end["data"]]


@pytest.mark.parametrize("media", [SSE, NDJSON, JSON_SEQ])
@story
async def test_silence_is_filled_with_what_is_no_event_in_its_shape(edge: Edge, media: str) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="defaults: {heartbeat: 200ms}")
        async with running_gate(edge, text) as gate, read(gate, "/hooks/events", media) as it:
            raw = b""
            async with asyncio.timeout(PATIENCE):
                while raw.count(BEATS[media]) < 3:  # the opening has one
                    raw += await it.exchange.read()
                await deliver(gate, "x")
                while b'"x"' not in raw:
                    raw += await it.exchange.read()
            opening = rb"retry: [0-9]+\n:\n" if media == SSE else BEATS[media]
            beats = b"(?:" + re.escape(BEATS[media]) + b"){2,}"
            blocks = {
                SSE: rb'data: "x"\nid: \S+-1\n\n',
                NDJSON: rb'\{"id":"\S+-1","data":"x"\}\n',
                JSON_SEQ: rb'\x1e\{"id":"\S+-1","data":"x"\}\n',
            }
            assert re.fullmatch(opening + beats + blocks[media], raw), raw


@LINES
@story
async def test_a_stream_ends_at_its_age_in_order_and_is_gone_on_with(edge: Edge, media: str) -> None:
    route = "- {path: /hooks/events, max_age: 500ms, webhook: {at: /hooks, verify: none}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        async with read(gate, "/hooks/events", media) as it:
            await deliver(gate, 1)
            (record,) = await it.rest()
            assert b"retry" not in it.raw
        await deliver(gate, 2)
        async with read(gate, "/hooks/events", media, cursor=record["id"]) as it:
            assert (await it.record())["data"] == 2


@story
async def test_readers_of_one_topic_in_every_shape_get_the_same_at_the_same_time(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/hooks/events") as sse,
        read(gate, "/hooks/events", NDJSON) as lines,
        read(gate, "/hooks/events", JSON_SEQ) as sequence,
        read(gate, "/hooks/events", NDJSON) as more_lines,
    ):
        for number in range(40):
            await deliver(gate, number)
            if number % 8 == 7:
                expected = [*range(number - 7, number + 1)]
                assert [said((await sse.event()).data) for _ in expected] == expected
                assert [(await sequence.record())["data"] for _ in expected] == expected
        seen = [(await lines.record()) for _ in range(40)]
        assert [record["data"] for record in seen] == [*range(40)]
        assert [(await more_lines.record()) for _ in range(40)] == seen
        async with gate.watch("/hooks/events", cursor="earliest") as again:
            events = [await again.event() for _ in range(40)]
            assert [(event.id, said(event.data)) for event in events] == [(each["id"], each["data"]) for each in seen]


@LINES
@story
async def test_a_slow_reader_keeps_nobody_waiting_and_is_caught_up_with(edge: Edge, media: str) -> None:
    large = "x" * 500_000
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 0, "large": large})
        async with (
            read(gate, "/state/events", media, buffer=4096) as slow,
            read(gate, "/state/events", media) as quick,
            gate.watch("/state/events") as viewer,
        ):
            assert (await quick.record())["data"]["n"] == 0
            await viewer.event()
            for n in range(1, 13):
                api.put("/x", {"n": n, "large": large})
                assert (await quick.record(2))["data"]["n"] == n
                assert said((await viewer.event(2)).data)["n"] == n
            api.put("/x", {"n": "last"})
            assert (await quick.record())["data"]["n"] == "last"
            seen: list[Any] = []
            while seen[-1:] != ["last"]:
                seen.append((await slow.record())["data"]["n"])
            assert len(seen) < 12, "it is not walked through every step"
            assert seen[:-1] == [n for n in range(13) if n in seen], "in order, none twice"


@LINES
@story
async def test_a_slow_reader_of_events_gets_each_once_and_in_order(edge: Edge, media: str) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        read(gate, "/hooks/events", media, buffer=4096) as slow,
        gate.watch("/hooks/events") as quick,
    ):
        for number in range(30):
            await deliver(gate, {"n": number, "large": "x" * 100_000})
            assert said((await quick.event(2)).data)["n"] == number
        assert [(await slow.record())["data"]["n"] for _ in range(30)] == [*range(30)]
        await deliver(gate, {"n": "live"})
        assert (await slow.record())["data"] == {"n": "live"}


@LINES
@story
async def test_an_answer_to_one_request_is_read_in_any_shape_and_resumed_in_any_other(edge: Edge, media: str) -> None:
    route = """
    - path: /chat
      methods: [POST]
      stream: {post: /generate, format: ndjson, data: response, done: "done == `true`", linger: 5s}
    """
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        opening = gate.exchange("POST", "/chat", ("Accept", media), body=b"{}")
        asking = asyncio.ensure_future(opening.__aenter__())
        call = await api.call()
        await call.begin(NDJSON_TYPE)
        it = Records(await asking, media)
        name = it.get("ssegate-stream") or ""
        assert it.get("content-type") == media
        await call.say(b'{"response":"Hel"}\n{"response":"lo"}\n')
        records = [await it.record(), await it.record()]
        assert [record["data"] for record in records] == ["Hel", "lo"]
        await opening.__aexit__(None, None, None)
        await call.say(b'{"response":" world"}\n')
        async with gate.watch(name, cursor=records[0]["id"]) as viewer:
            assert [(await viewer.event()).data for _ in range(2)] == ["lo", " world"]
        whole = await load(gate, name)
        assert [item["data"] for item in said(whole.body)] == ["Hel", "lo", " world"]
        await call.say(b'{"done":true,"response":""}\n')
        await call.end()
        async with read(gate, name, NDJSON) as again:
            data = [record["data"] for record in await again.rest()]
            assert data == ["Hel", "lo", " world", "", {"reason": "done"}]


# One JSON text: states


@pytest.mark.parametrize("target", ["/state/events", "/changes/events"])
@story
async def test_a_state_comes_whole_with_its_cursor(edge: Edge, target: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1, "text": "é \u2028"})
        reply = await load(gate, target)
        assert (reply.status, reply.get("content-type"), reply.get("cache-control")) == (200, JSON, "no-store")
        assert said(reply.body) == {"n": 1, "text": "é \u2028"}
        assert reply.get("content-length") == str(len(reply.body))
        assert (reply.get("ssegate-cursor") or "").endswith("-1")
        assert reply.get("ssegate-ended") is None
        assert (await load(gate, target, reply.get("ssegate-cursor"))).body == reply.body, "whatever one has"
        assert gate.service.gate.statistics().clients == 0


@story
async def test_a_page_that_loads_the_state_and_opens_the_stream_there_misses_nothing(edge: Edge) -> None:
    """Whatever happens between; the property itself is in tests/gate/test_whole.py."""
    dice = random.Random(7)
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        document: dict[str, Any] = {"n": 0, "list": [], "pad": "x" * 2000}
        api.put("/x", document)
        async with gate.watch("/changes/events") as other:
            await other.event()
            for turn in range(12):
                page = await load(gate, "/changes/events")
                state = said(page.body)
                for _ in range(dice.randrange(3)):
                    document = {**document, "n": document["n"] + 1, "list": [*document["list"], turn]}
                    api.put("/x", document)
                    await other.event()
                async with gate.watch("/changes/events", cursor=page.get("ssegate-cursor")) as viewer:
                    assert viewer.get("ssegate-resumed") == "yes"
                    document = {**document, "turn": turn}
                    api.put("/x", document)
                    await other.event()
                    while state != document:
                        event = await viewer.event(2)
                        assert event.type in ("patch", "snapshot")
                        change = said(event.data)
                        state = jsonpatch.apply_patch(state, change) if event.type == "patch" else change


@story
async def test_the_state_of_a_job_that_is_over_says_so(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/job", {"p": 50})
        first = await load(gate, "/jobs/events")
        assert (said(first.body), first.get("ssegate-ended")) == (50, None)
        async with gate.watch("/jobs/events", cursor=first.get("ssegate-cursor")) as viewer:
            api.put("/job", {"p": 100, "done": True})
            assert [event.type for event in await viewer.rest()] == ["", "end"]
        last = await load(gate, "/jobs/events")
        assert (last.status, said(last.body), last.get("ssegate-ended")) == (200, 100, "yes")
        async with gate.watch("/jobs/events", cursor=last.get("ssegate-cursor")) as viewer:
            assert [event.type for event in await viewer.rest()] == ["end"], "the result is in there"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_what_may_not_be_seen_is_refused_in_any_shape(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.fail("/x", status)
        for media in (JSON, NDJSON):
            reply = await gate.ask("GET", "/state/events", ("Accept", media))
            assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")


@story
async def test_where_there_is_no_state_yet_a_client_is_told_when_to_come_back(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.fail("/x", 500)
        assert later(await load(gate, "/state/events")) >= 1
        api.put("/x", {"n": 1})
        reply = await load(gate, "/state/events?wait=5s")
        assert (reply.status, said(reply.body)) == (200, {"n": 1})


@story
async def test_an_outage_leaves_the_state_that_was(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        await load(gate, "/state/events")
        api.fail("/x", 500)
        await api.until_asked_again("/x", 2)
        assert said((await load(gate, "/state/events")).body) == {"n": 1}


@pytest.mark.parametrize(
    ("body", "kind", "value"),
    [
        (b"plain\ntext", "text", "plain\ntext"),
        (b"\x00\xff\n", "bytes", "AP8K"),
        (b'{\n  "a": 1\n}', "text", {"a": 1}),
    ],
)
@story
async def test_a_state_that_is_no_json_is_a_string(edge: Edge, body: bytes, kind: str, value: Any) -> None:
    route = f"- {{path: /x/events, poll: {{get: /x, every: 30ms, body: {kind}}}}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/x", answer(body))
        assert said((await load(gate, "/x/events")).body) == value


@story
async def test_html_of_a_template_is_a_string(edge: Edge) -> None:
    route = "- {path: /x/events, poll: {get: /x, every: 30ms}, emit: {template: '<p>{n}</p>'}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"n": "<"})
        assert said((await load(gate, "/x/events")).body) == "<p>&lt;</p>"
        async with read(gate, "/x/events", NDJSON) as it:
            assert (await it.record())["data"] == "<p>&lt;</p>"


@story
async def test_a_json_api_is_html_for_pages_that_are_made_of_it(edge: Edge) -> None:
    """Byte for byte; the libraries themselves are asked in tests/clients/test_hypermedia.py."""
    routes = """
    - path: /turbo/events
      poll: {get: /x, every: 30ms}
      emit:
        template: |-
          <turbo-stream action="replace" target="order">
            <template><b id="order">{status}</b></template>
          </turbo-stream>
    - path: /datastar/events
      poll: {get: /x, every: 30ms}
      emit: {event: datastar-patch-elements, template: 'elements <b id="order">{status}</b>'}
    - path: /htmx/events
      webhook: {at: /hooks, verify: none}
      emit: {event: "order-{body.kind}", template: "<li>{body.status}</li>"}
    """
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, routes)) as gate,
        gate.watch("/htmx/events") as htmx,
    ):
        api.put("/x", {"status": "<paid>\nmode remove", "at": 1})
        async with gate.watch("/turbo/events") as turbo, gate.watch("/datastar/events") as datastar:
            escaped = b"&lt;paid&gt;&#10;mode remove"
            for viewer, block in (
                (
                    turbo,
                    b'data: <turbo-stream action="replace" target="order">\n'
                    b'data:   <template><b id="order">' + escaped + b"</b></template>\n"
                    b"data: </turbo-stream>\n",
                ),
                (datastar, b'event: datastar-patch-elements\ndata: elements <b id="order">' + escaped + b"</b>\n"),
            ):
                event = await viewer.event()
                assert bytes(viewer.raw).partition(b"\n:\n")[2] == block + f"id: {event.id}\n\n".encode()
            api.put("/x", {"status": "<paid>\nmode remove", "at": 2})
            await api.until_asked_again("/x", 4)
            api.put("/x", {"status": "sent", "at": 3})
            assert ((await datastar.event()).id or "").endswith("-2"), "what looks the same is no event"
            assert '<b id="order">sent</b>' in (await turbo.event()).data
        await deliver(gate, {"kind": "new", "status": "'a' & \"b\""})
        event = await htmx.event()
        assert (event.type, event.data) == ("order-new", "<li>&#39;a&#39; &amp; &quot;b&quot;</li>")


@story
async def test_a_page_of_another_origin_may_read_the_cursor(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="cors: {origins: [https://app.example.com]}")
        async with running_gate(edge, text) as gate:
            api.put("/x", 1)
            reply = await gate.ask("GET", "/state/events", AS_JSON, ("Origin", "https://app.example.com"))
            assert reply.get("access-control-allow-origin") == "https://app.example.com"
            exposed = (reply.get("access-control-expose-headers") or "").split(", ")
            assert {"ssegate-cursor", "ssegate-ended", "retry-after"} <= set(exposed)


@story
async def test_who_starts_a_job_and_wants_json_gets_its_first_status(edge: Edge) -> None:
    route = """
    - path: /exports
      methods: [POST]
      task: {start: {post: /api/exports}, get: "{start.headers.location}", every: 30ms, progress: p, done: done}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/api/exports", answer(b"", (b"Location", b"/api/exports/1"), status=202))
        api.put("/api/exports/1", {"p": 5})
        reply = await gate.ask("POST", "/exports", AS_JSON, body=b"{}")
        assert (reply.get("ssegate-stream") or "").startswith("/exports/s/")
        assert (reply.status, said(reply.body)) == (200, 5)


# One JSON text: events


@story
async def test_events_are_a_list_of_what_is_kept_behind_the_cursor(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="defaults: {history: {events: 3}}")
        async with running_gate(edge, text) as gate:
            empty = await load(gate, "/hooks/events")
            assert (empty.status, empty.body, empty.get("ssegate-cursor")) == (200, b"[]", None)
            await deliver(gate, 1, "text", {"a": 1})
            reply = await load(gate, "/hooks/events")
            items = said(reply.body)
            assert [item["data"] for item in items] == [1, "text", {"a": 1}]
            assert reply.get("ssegate-cursor") == items[-1]["id"]
            assert said((await load(gate, "/hooks/events", items[0]["id"])).body) == items[1:]
            last = await load(gate, "/hooks/events", items[-1]["id"])
            assert (last.body, last.get("ssegate-cursor")) == (b"[]", items[-1]["id"])
            unknown = said((await load(gate, "/hooks/events", "foreign-1")).body)
            assert unknown == [{"event": "reset", "data": {"reason": "unknown-cursor"}}, *items]
            await deliver(gate, 4, 5)
            gap = said((await load(gate, "/hooks/events", items[0]["id"])).body)
            assert gap[0] == {"event": "reset", "data": {"reason": "gap"}}
            assert [item["data"] for item in gap[1:]] == [{"a": 1}, 4, 5]


@story
async def test_what_an_upstream_streams_is_a_list_too(edge: Edge) -> None:
    route = "- {path: /log/events, stream: {get: /log, format: ndjson}}"
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        asking = asyncio.create_task(load(gate, "/log/events?wait=5s"))
        call = await api.call()
        await call.begin(NDJSON_TYPE)
        await call.say(b'{"n":1}\n')
        reply = await asking
        assert [item["data"] for item in said(reply.body)] == [{"n": 1}]
        asking = asyncio.create_task(load(gate, "/log/events?wait=5s", reply.get("ssegate-cursor")))
        await gate.until_clients(1)
        await call.say(b'{"n":2}\n')
        assert [item["data"] for item in said((await asking).body)] == [{"n": 2}]
        assert api.connections == 1, "it is watched on between the requests"


# Waiting for news


@story
async def test_who_is_behind_is_answered_at_once(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        started = time.monotonic()
        first = await load(gate, "/state/events?wait=30s")
        assert said(first.body) == {"n": 1}, "a newcomer has nothing"
        async with gate.watch("/state/events") as viewer:
            await viewer.event()
            api.put("/x", {"n": 2})
            await viewer.event()
        for cursor in (first.get("ssegate-cursor"), "foreign-1"):
            assert said((await load(gate, "/state/events?wait=30s", cursor)).body) == {"n": 2}
        await deliver(gate, 1)
        assert len(said((await load(gate, "/hooks/events?wait=30s")).body)) == 1
        assert time.monotonic() - started < 5


@story
async def test_who_has_all_is_answered_by_the_next_change(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        cursor = (await load(gate, "/state/events")).get("ssegate-cursor")
        for n in (2, 3):
            asking = asyncio.create_task(load(gate, "/state/events?wait=30s", cursor))
            await gate.until_clients(1)
            await api.until_asked_again("/x", 2)
            assert not asking.done()
            api.put("/x", {"n": n})
            reply = await asking
            assert (reply.status, said(reply.body)) == (200, {"n": n})
            assert cursor != reply.get("ssegate-cursor")
            cursor = reply.get("ssegate-cursor")
            await gate.until_clients(0)


@story
async def test_where_nothing_comes_it_is_204_with_the_cursor(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        api.put("/x", {"n": 1})
        cursor = (await load(gate, "/state/events")).get("ssegate-cursor")
        started = time.monotonic()
        reply = await load(gate, "/state/events?wait=300ms", cursor)
        assert 0.25 < time.monotonic() - started < 2
        assert (reply.status, reply.body, reply.get("ssegate-cursor")) == (204, b"", cursor)
        reply = await load(gate, "/hooks/events?wait=50ms")
        assert (reply.status, reply.get("ssegate-cursor")) == (204, None)


@pytest.mark.parametrize("wait", ["", "30", "soon", "-1s", "1%20s", "%00", "1s%0d%0a", "9" * 400 + "s"])
@story
async def test_a_wait_that_is_no_duration_is_400_and_says_how_it_is_written(edge: Edge, wait: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        reply = await load(gate, f"/state/events?wait={wait}")
        assert (reply.status, reply.get("content-type")) == (400, "application/problem+json")
        assert "500ms" in said(reply.body)["detail"]
        assert not api.requests


@story
async def test_a_wait_is_no_matter_of_streams_nor_of_routes_that_have_such_a_parameter(edge: Edge) -> None:
    routes = ROUTES + '- {path: /mine/events, query: {wait: "[a-z]+"}, poll: {get: "/x?w={query.wait}", every: 30ms}}\n'
    async with LegacyApi() as api, running_gate(edge, before(api, routes)) as gate:
        api.put("/x", 1)
        async with gate.watch("/state/events?wait=soon") as viewer:
            assert (await viewer.event()).data == "1"
        reply = await load(gate, "/mine/events?wait=soon")
        assert (reply.status, reply.body) == (200, b"1")
        assert api.requests[-1].target == "/x?w=soon"


@story
async def test_an_end_that_comes_answers_who_waits_for_events(edge: Edge) -> None:
    route = '- {path: /log/events, stream: {get: /log, format: ndjson, done: "done == `true`"}}'
    async with LiveApi() as api, running_gate(edge, before(api, route)) as gate:
        asking = asyncio.create_task(load(gate, "/log/events?wait=5s"))
        call = await api.call()
        await call.begin(NDJSON_TYPE)
        await call.say(b'{"done":true}\n')
        await call.end()
        reply = await asking
        assert said(reply.body)[-1]["event"] == "end"
        assert (reply.get("ssegate-ended"), reply.get("ssegate-cursor")) == ("yes", said(reply.body)[-1]["id"])


@story
async def test_a_client_that_leaves_while_it_waits_gives_its_place_back(edge: Edge) -> None:
    """ASGI tells an application nothing of a client's leaving before it sends something."""
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        wait = "500ms" if edge.server else "30s"
        asking = asyncio.create_task(load(gate, f"/hooks/events?wait={wait}"))
        await gate.until_clients(1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await gate.until_clients(0)
        assert all(not topic.subscribers for topic in gate.service.gate.hub)


@story
async def test_who_waits_counts_as_a_client_and_others_are_told_to_come_back(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="limits: {clients: 1}")
        async with running_gate(edge, text) as gate:
            asking = asyncio.create_task(load(gate, "/hooks/events?wait=30s"))
            await gate.until_clients(1)
            for media in (JSON, NDJSON, JSON_SEQ):
                reply = await gate.ask("GET", "/hooks/events", ("Accept", media))
                assert 5 <= later(reply) <= 15
            async with gate.watch("/hooks/events") as viewer:
                assert (viewer.status, await viewer.rest()) == (200, [])
            await deliver(gate, 1)
            assert (await asking).status == 200
            await gate.until_clients(0)
            assert (await load(gate, "/hooks/events")).status == 200


@story
async def test_a_long_poll_of_many_is_one_upstream_request(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES.replace("30ms", "1h"))) as gate:
        api.put("/x", {"n": 1})
        replies = await asyncio.gather(*(load(gate, "/state/events") for _ in range(8)))
        assert len({reply.get("ssegate-cursor") for reply in replies}) == 1
        assert len(api.requests) == 1


# Room, and the end of the gate


@story
async def test_where_there_is_no_room_for_a_topic_other_shapes_are_told_so(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="limits: {topics: 1}")
        async with running_gate(edge, text) as gate, gate.watch("/hooks/events") as viewer:
            await viewer.opening()
            api.put("/x", 1)
            for media in (JSON, NDJSON, JSON_SEQ):
                assert 5 <= later(await gate.ask("GET", "/state/events", ("Accept", media))) <= 15
            assert not api.requests


@LINES
@story
async def test_a_drain_ends_streams_in_order_and_turns_others_away(edge: Edge, media: str) -> None:
    async with LegacyApi() as api:
        server = "drain: {delay: 400ms, timeout: 400ms}"
        async with running_gate(edge, before(api, ROUTES), server=server) as gate:
            async with read(gate, "/hooks/events", media) as it:
                await deliver(gate, 1)
                await it.record()
                draining = asyncio.create_task(gate.service.drain())
                await asyncio.sleep(0)
                assert not gate.service.gate.is_ready
                for each in (media, JSON):
                    reply = await gate.ask("GET", "/hooks/events", ("Accept", each))
                    assert 5 <= later(reply) <= 15
                assert await it.rest() == []
                assert b"retry" not in it.raw, "that is for an EventSource"
            await draining


@story
async def test_who_waits_is_answered_when_the_gate_goes_down(edge: Edge) -> None:
    async with LegacyApi() as api:
        server = "drain: {timeout: 600ms}"
        async with running_gate(edge, before(api, ROUTES), server=server) as gate:
            asking = asyncio.create_task(load(gate, "/hooks/events?wait=30s"))
            await gate.until_clients(1)
            draining = asyncio.create_task(gate.service.drain())
            (reply,) = await asyncio.gather(asking, return_exceptions=True)
            await draining
            assert isinstance(reply, Reply), f"it was cut: {reply!r}"
            assert reply.status in (204, 503)
