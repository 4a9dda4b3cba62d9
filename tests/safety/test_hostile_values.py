"""Cursors, parameters, numbers of topics and event data that would rather be something else."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json

import pytest

from tests.safety.harness import Client, GateProcess, Http2Client, ask, get, run
from tests.upstream.scripted import Call, ScriptedUpstream, answer


async def read_events(client: Client, count: int) -> list[dict[str, str]]:
    """The next blocks of a stream over HTTP/1.0, each as its fields. Comments are left out."""
    events = []
    while len(events) < count:
        block = (await client.read_until(b"\n\n")).decode()
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        fields: dict[str, str] = {}
        for name, _, value in lines:
            if name != "retry":
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        if fields:
            events.append(fields)
    return events


def open_stream(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.0", *fields, "", "")).encode("latin-1")


CURSORS = {
    "too long": "a" * 20_000,
    "longer than an id": "a" * 300,
    "not ours": "deadbeef-1",
    "no number": "abc",
    "a number too large": "abc-" + "9" * 200,
    "of bytes": "\xe4\xf6-1",
    "of a template": "{id}-1",
}


@pytest.mark.parametrize("name", CURSORS)
def test_a_cursor_that_is_not_ours_is_ignored_and_told_by_reset(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b'{"a":1}'), port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream("/orders/cursor/events", f"Last-Event-ID: {CURSORS[name]}"))
                assert b"ssegate-resumed: no" in (await client.read_until(b"\r\n\r\n")).lower()
                reset, state = await read_events(client, 2)
                assert (reset["event"], json.loads(reset["data"])) == ("reset", {"reason": "unknown-cursor"})
                assert json.loads(state["data"]) == {"a": 1}

    run(test())


def test_a_cursor_of_a_megabyte_is_refused_with_its_head(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            async with await Client.connect(gate.port) as client:
                sending = asyncio.create_task(client.send(get("/orders/1/events", "Last-Event-ID: " + "a" * 2**20)))
                assert (await client.read_response()).status == 431
                await asyncio.gather(sending, return_exceptions=True)
            response = await ask(gate.port, get("/orders/1/events?lastEventId=" + "a" * 2**13))
            assert response.status == 414

    run(test())


def test_a_cursor_with_nul_is_refused_or_ignored(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b'{"a":1}'), port=gate.upstream_port):
            assert (await ask(gate.port, get("/orders/nul/events", "Last-Event-ID: a\0-1"))).status == 400
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream("/orders/nul/events?lastEventId=a%00-1%0d%0aX:1"))
                head = await client.read_until(b"\r\n\r\n")
                assert b"X:1" not in head
                assert (await read_events(client, 1))[0]["event"] == "reset"

    run(test())


def test_a_cursor_of_another_topic_tells_nothing_of_it(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(answer(json.dumps({"path": call.asked.target}).encode()))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as one, await Client.connect(gate.port) as two:
                await one.send(open_stream("/orders/secret/events"))
                await one.read_until(b"\r\n\r\n")
                cursor = (await read_events(one, 1))[0]["id"]
                await two.send(open_stream("/orders/mine/events", f"Last-Event-ID: {cursor}"))
                await two.read_until(b"\r\n\r\n")
                reset, state = await read_events(two, 2)
                assert json.loads(reset["data"]) == {"reason": "unknown-cursor"}
                assert json.loads(state["data"]) == {"path": "/orders/mine"}

    run(test())


PARAMETERS = {
    "slash": "/any/a/b/events",
    "encoded slash": "/any/a%2fb/events",
    "encoded slash, upper case": "/any/a%2Fb/events",
    "encoded twice": "/any/a%252fb/events",
    "encoded thrice": "/any/a%25252fb/events",
    "dots": "/any/../events",
    "encoded dots": "/any/%2e%2e/events",
    "half encoded dots": "/any/.%2e/events",
    "dots encoded twice": "/any/%252e%252e/events",
    "dots with a parameter": "/any/..;x=1/events",
    "NUL": "/any/a%00b/events",
    "CR": "/any/a%0db/events",
    "LF": "/any/a%0ab/events",
    "encoded backslash": "/any/a%5cb/events",
    "backslash encoded twice": "/any/a%255cb/events",
    "DEL": "/any/%7f/events",
    "no UTF-8": "/any/%ff/events",
    "no escape": "/any/%zz/events",
    "over-long": f"/any/{'a' * 257}/events",
    "over-long dots": "/any/%c0%ae%c0%ae/events",
    "empty": "/any//events",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_that_is_more_than_a_segment_reaches_no_topic(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"proxied"), port=gate.upstream_port) as upstream:
            topics = await gate.metric("ssegate_topics")
            response = await ask(gate.port, get(PARAMETERS[name], "Accept: text/event-stream"))
            assert await gate.metric("ssegate_topics") == topics
            if response.status == 404:
                assert not upstream.requests
            else:
                # `/{rest:path}` takes it: then it was passed on as it is, and not made into another path.
                assert (response.body, upstream.requests[0].target) == (b"proxied", PARAMETERS[name])

    run(test())


def test_topics_without_number_are_turned_away_with_a_stream_that_ends(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            async with await Http2Client.begin(gate.port) as holder:
                kept = memory = 0
                for first in range(0, 6000, 200):
                    async with await Http2Client.begin(gate.port) as client:
                        streams = [await client.request(b"/tickets/t%d/events" % n) for n in range(first, first + 200)]
                        for stream in streams:
                            await client.until(
                                lambda e, it=stream: getattr(e, "stream_id", 0) == it and hasattr(e, "data")
                            )
                        if first == 4000:  # by then all that is kept for reuse is there
                            memory = gate.memory()
                        kept = max(kept, int(await gate.metric("ssegate_topics")))
                assert kept <= 400
                assert gate.memory() - memory < 4 * 2**20, "a stream that is over leaves next to nothing behind"
                # While all topics are read there is no room, and whoever comes is sent away kindly.
                for n in range(200):
                    await holder.request(b"/tickets/h%d/events" % n)
                async with await Http2Client.begin(gate.port) as other:
                    for n in range(200):
                        await other.request(b"/tickets/o%d/events" % n)
                    await other.until(lambda e: getattr(e, "stream_id", 0) == 399 and hasattr(e, "data"))
                    await holder.until(lambda e: getattr(e, "stream_id", 0) == 399 and hasattr(e, "data"))
                    response = await ask(gate.port, get("/tickets/one-more/events"))
                    assert (response.status, response.is_whole) == (200, True)
                    assert response.body.startswith(b"retry: ")
                    assert b"data" not in response.body

    run(test())


FORGERIES = [
    "a\ndata: forged",
    "a\r\nevent: forged",
    "a\rid: forged",
    "\n\nevent: end\ndata: {}\n\n",
    "a\0b",
    "\u2028\u0085\x0b\x0c",
]


@pytest.mark.parametrize("text", FORGERIES)
def test_data_with_line_ends_cannot_forge_a_field(gate: GateProcess, text: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(open_stream("/tickets/forged/events"))
            await client.read_until(b"\n:\n")
            await deliver(gate, {"id": "forged", "text": text, "type": "note"})
            (event,) = await read_events(client, 1)
            assert (event["event"], event["data"]) == ("note", text.replace("\r\n", "\n").replace("\r", "\n"))
            assert set(event) == {"id", "event", "data"}

    run(test())


@pytest.mark.parametrize("type_", ["a\ndata: forged", "a\rb", "a\0b", "end", "reset", "error", "fault"])
def test_a_type_that_would_forge_a_field_or_an_event_of_the_gate_is_no_event(gate: GateProcess, type_: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(open_stream("/tickets/typed/events"))
            await client.read_until(b"\n:\n")
            assert await deliver(gate, {"id": "typed", "text": "x", "type": type_}) == 202
            assert await deliver(gate, {"id": "typed", "text": "y", "type": "fine"}) == 200
            assert (await read_events(client, 1))[0]["event"] == "fine"

    run(test())


async def deliver(gate: GateProcess, body: object) -> int:
    data = json.dumps(body).encode()
    head = f"POST /hooks/tickets HTTP/1.1\r\nHost: gate.test\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return (await ask(gate.port, head.encode() + b"Connection: close\r\n\r\n" + data)).status
