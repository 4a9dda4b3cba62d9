"""Upstreams that misbehave, seen by the viewers of a polled resource: one `fault`, the stream stays, the truth comes later."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from tests.safety.harness import Client, GateProcess, ask, get, run, until
from tests.safety.test_hostile_values import open_stream, read_events
from tests.upstream.scripted import Call, Handler, ScriptedUpstream, Step, answer, chunked, script

ids = iter(range(10_000))


def state(value: object) -> bytes:
    return answer(json.dumps({"v": value}).encode())


async def reset(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    call.reset()


async def closed(call: Call) -> None:
    call.close()


async def silent(call: Call) -> None:
    await call.closed()
    call.close()


def sent_and_closed(data: bytes) -> Handler:
    async def handle(call: Call) -> None:
        await call.send(data)
        call.close()

    return handle


async def endless(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
    while True:
        await call.send(b'"' + b"a" * 100_000)


def inflating(size: int) -> bytes:
    return answer(gzip.compress(b'"' + b"a" * size + b'"'), (b"Content-Encoding", b"gzip"))


TROUBLES: dict[str, tuple[Step, str, int | None]] = {
    "500": (answer(b"no", status=500), "upstream", 500),
    "429 with Retry-After": (answer(b"no", (b"Retry-After", b"0"), status=429), "upstream", 429),
    "a reset in the body": (reset, "upstream", None),
    "closed without an answer": (closed, "upstream", None),
    "silence": (silent, "upstream", None),
    "a body of 10 GB": (endless, "oversize", None),
    "a gzip bomb": (inflating(100_000_000), "oversize", None),
    "gzip that is none": (answer(b"hello", (b"Content-Encoding", b"gzip")), "upstream", None),
    "a body shorter than its length": (sent_and_closed(answer(b'{"v":3}', length=100)), "upstream", None),
    "a chunked body that is cut": (sent_and_closed(chunked(b'{"v":3}')[:-5]), "upstream", None),
    "no HTTP": (sent_and_closed(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "upstream", None),
    "no JSON": (answer(b"<html>"), "undecodable", 200),
    "JSON nested deeply": (answer(b"[" * 100_000), "undecodable", 200),
    "NaN": (answer(b"NaN"), "undecodable", 200),
    "CRLF in a field": (
        sent_and_closed(b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\n{}"),
        "upstream",
        None,
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_upstream_is_told_once_and_the_stream_goes_on(gate: GateProcess, name: str) -> None:
    trouble, reason, status = TROUBLES[name]

    async def test() -> None:
        steps: list[Step] = [state(1), trouble, trouble, trouble, state(2)]
        async with gate.leaves_nothing(), ScriptedUpstream(script(*steps), port=gate.upstream_port) as upstream:
            memory, logged = gate.memory(), len(gate.log())
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                await client.read_until(b"\r\n\r\n")
                first, fault, recovered, second = await read_events(client, 4)
                assert [json.loads(event["data"]) for event in (first, second)] == [{"v": 1}, {"v": 2}]
                assert (fault["event"], recovered["event"]) == ("fault", "recovered")
                told = json.loads(fault["data"])
                assert told["reason"] == reason
                if status is not None:
                    assert told["status"] == status
                assert str(gate.upstream_port) not in fault["data"]
            assert len(upstream.requests) >= 5
            said = [
                line for line in gate.log()[logged:].splitlines() if line.startswith("WARNING ssegate.sources.telling")
            ]
            assert len(said) == 1, said
            assert gate.memory() - memory < 64 * 2**20

    run(test())


def test_a_byte_a_second_is_not_waited_for_for_ever(gate: GateProcess) -> None:
    async def test() -> None:
        async def drip(call: Call) -> None:
            await call.drip(answer(b'{"v":' + b" " * 1000 + b"1}"), 0.1)

        async with gate.leaves_nothing(), ScriptedUpstream(drip, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                await client.read_until(b"\r\n\r\n")
                assert (await read_events(client, 1))[0]["event"] == "fault"

    run(test())


GOOD: dict[str, Step] = {
    "HTTP/1.0": sent_and_closed(b"HTTP/1.0 200 OK\r\n\r\n" + b'{"v": 2}'),
    "103 before 200": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + state(2),
    "trailers": chunked(b'{"v"', b": 2}", trailers=[(b"X-Sum", b"1")]),
    "an answer and the end of the connection": sent_and_closed(state(2)),
    "gzip": answer(gzip.compress(b'{"v": 2}'), (b"Content-Encoding", b"gzip")),
}


@pytest.mark.parametrize("name", GOOD)
def test_other_shapes_of_answers_are_no_trouble(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(script(state(1), GOOD[name]), port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                await client.read_until(b"\r\n\r\n")
                events = await read_events(client, 2)
                assert [json.loads(event["data"]) for event in events] == [{"v": 1}, {"v": 2}]

    run(test())


def test_a_304_nobody_asked_for_changes_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        unchanged = b"HTTP/1.1 304 Not Modified\r\n\r\n"
        async with (
            gate.leaves_nothing(),
            ScriptedUpstream(script(state(1), unchanged, unchanged, state(2)), port=gate.upstream_port),
        ):
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                await client.read_until(b"\r\n\r\n")
                events = await read_events(client, 2)
                assert json.loads(events[0]["data"]) == {"v": 1}
                while "v" not in (last := json.loads(events[-1]["data"])):
                    events += await read_events(client, 1)
                assert last == {"v": 2}

    run(test())


def test_a_connection_closed_just_as_it_is_used_again_is_no_trouble(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            if call.asked.number and call.asked.number % 2:
                call.close()
            else:
                await call.send(state(call.asked.number))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                await client.read_until(b"\r\n\r\n")
                events = await read_events(client, 4)
                assert [json.loads(event["data"])["v"] for event in events] == [0, 2, 4, 6]

    run(test())


def test_a_cold_topic_whose_upstream_fails_opens_with_a_fault(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            async with await Client.connect(gate.port) as client:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
                assert b" 200 " in await client.read_until(b"\r\n")
                await client.read_until(b"\r\n\r\n")
                assert (await read_events(client, 1))[0]["event"] == "fault"
                async with ScriptedUpstream(state(1), port=gate.upstream_port):
                    assert [e.get("event") for e in await read_events(client, 2)] == ["recovered", None]

    run(test())


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_first_answer_that_refuses_is_passed_on(gate: GateProcess, status: int) -> None:
    async def test() -> None:
        async with (
            gate.leaves_nothing(),
            ScriptedUpstream(answer(b"secret detail", status=status), port=gate.upstream_port),
        ):
            response = await ask(gate.port, get(f"/orders/u{next(ids)}/events"))
            assert (response.status, response.get("content-type")) == (status, "application/problem+json")
            assert b"secret detail" not in response.body

    run(test())


def test_viewers_who_leave_while_the_first_answer_is_awaited_leave_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(silent, port=gate.upstream_port) as upstream:
            clients = [await Client.connect(gate.port) for _ in range(20)]
            for client in clients:
                await client.send(open_stream(f"/orders/u{next(ids)}/events"))
            await upstream.until(lambda it: len(it.requests) >= 20)
            await asyncio.gather(*(client.__aexit__() for client in clients))
            await until(lambda: upstream.open == 0, "the polls end")

    run(test())


def test_viewers_with_different_credentials_never_share_an_answer(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(
                answer(json.dumps({"for": call.asked.get("authorization"), "c": call.asked.get("cookie")}).encode())
            )

        viewers = [("Authorization: a",), ("Authorization: b",), ("Cookie: a",), ("Authorization: a", "Cookie: a"), ()]
        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            for fields in viewers:
                async with await Client.connect(gate.port) as client:
                    await client.send(open_stream("/private/1/events", *fields))
                    await client.read_until(b"\r\n\r\n")
                    told = json.loads((await read_events(client, 1))[0]["data"])
                    given = dict(field.lower().split(": ") for field in fields)
                    assert told == {"for": given.get("authorization"), "c": given.get("cookie")}

    run(test())
