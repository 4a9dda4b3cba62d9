"""Requests over HTTP/1.1 that two readers could understand differently, or that never end."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio

import pytest

from tests.safety.harness import Client, GateProcess, ask, ask_closed, get, run
from tests.upstream.scripted import Call, ScriptedUpstream, answer


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def post(*fields: str, version: str = "1.1") -> bytes:
    return head(f"POST /orders HTTP/{version}", "Host: gate.test", *fields)


def large(size: int, name: str = "X-Large") -> str:
    return f"{name}: {'a' * size}"


REFUSED = {
    "length with coding": (400, post("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "coding with length": (400, post("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n"),
    "two lengths": (400, post("Content-Length: 5", "Content-Length: 6") + b"hello!"),
    "two lengths alike": (400, post("Content-Length: 5", "Content-Length: 5") + b"hello"),
    "two lengths in one field": (400, post("Content-Length: 5, 5") + b"hello"),
    "a length with a sign": (400, post("Content-Length: +5") + b"hello"),
    "a length in hexadecimal": (400, post("Content-Length: 0x5") + b"hello"),
    "a length of many digits": (400, post("Content-Length: 1" + "0" * 30) + b"hello"),
    "a length below zero": (400, post("Content-Length: -1")),
    "an empty length": (400, post("Content-Length:")),
    "coding on 1.0": (400, post("Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n"),
    "coding other than chunked": (400, post("Transfer-Encoding: gzip") + b"0\r\n\r\n"),
    "coding besides chunked": (400, post("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "chunked twice": (400, post("Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n"),
    "two codings": (400, post("Transfer-Encoding: chunked", "Transfer-Encoding: identity") + b"0\r\n\r\n"),
    "coding with a tab": (400, post("Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n"),
    "space before the colon": (400, post("Transfer-Encoding : chunked") + b"0\r\n\r\n"),
    "folded line": (400, head("GET / HTTP/1.1", "Host: gate.test", "X-A: 1", " 2")),
    "folded line with a tab": (400, head("GET / HTTP/1.1", "Host: gate.test", "X-A: 1", "\t2")),
    "folded first field": (400, head("GET / HTTP/1.1", " Host: gate.test")),
    "bare CR in a value": (400, head("GET / HTTP/1.1", "Host: gate.test", "X-A: 1\rX-B: 2")),
    "bare CR behind a line": (400, head("GET / HTTP/1.1", "Host: gate.test\r", "X-A: 1")),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: gate.test\n\n"),
    "bare LF between fields": (400, b"GET / HTTP/1.1\r\nHost: gate.test\nX-A: 1\r\n\r\n"),
    "bare LF at the end": (400, b"GET / HTTP/1.1\r\nHost: gate.test\r\n\n"),
    "LF first": (400, b"\nGET / HTTP/1.1\r\nHost: gate.test\r\n\r\n"),
    "NUL in a value": (400, head("GET / HTTP/1.1", "Host: gate.test", "X-A: 1\0002")),
    "no field name": (400, head("GET / HTTP/1.1", "Host: gate.test", ": 1")),
    "space in a field name": (400, head("GET / HTTP/1.1", "Host: gate.test", "X A: 1")),
    "head too large": (431, head("GET / HTTP/1.1", "Host: gate.test", *[large(4000)] * 9)),
    "head too large and unfinished": (431, b"GET / HTTP/1.1\r\nHost: gate.test\r\n" + b"a" * 40_000),
    "one field too large": (431, head("GET / HTTP/1.1", "Host: gate.test", large(33 * 1024))),
    "too many fields": (431, head("GET / HTTP/1.1", "Host: gate.test", *["X-A: 1"] * 100)),
    "target too long": (414, head(f"GET /{'a' * 8192} HTTP/1.1", "Host: gate.test")),
    "query too long": (414, head(f"GET /?{'a' * 8192} HTTP/1.1", "Host: gate.test")),
    "absolute form of another host": (400, head("GET http://other.test/ HTTP/1.1", "Host: gate.test")),
    "absolute form with userinfo": (400, head("GET http://user@gate.test/ HTTP/1.1", "Host: gate.test")),
    "absolute form of another scheme": (400, head("GET ftp://gate.test/ HTTP/1.1", "Host: gate.test")),
    "two slashes": (400, head("GET //other.test/ HTTP/1.1", "Host: gate.test")),
    "no path": (400, head("GET other.test HTTP/1.1", "Host: gate.test")),
    "asterisk": (400, head("GET * HTTP/1.1", "Host: gate.test")),
    "backslash": (400, head("GET /a\\b HTTP/1.1", "Host: gate.test")),
    "fragment": (400, head("GET /a#b HTTP/1.1", "Host: gate.test")),
    "control byte": (400, head("GET /a\x01b HTTP/1.1", "Host: gate.test")),
    "NUL in the target": (400, head("GET /a\0b HTTP/1.1", "Host: gate.test")),
    "DEL": (400, head("GET /a\x7fb HTTP/1.1", "Host: gate.test")),
    "tab in the target": (400, head("GET /a\tb HTTP/1.1", "Host: gate.test")),
    "non-ASCII": (400, head("GET /\xe4 HTTP/1.1", "Host: gate.test")),
    "no Host": (400, head("GET / HTTP/1.1")),
    "two Hosts": (400, head("GET / HTTP/1.1", "Host: gate.test", "Host: other.test")),
    "two Hosts alike": (400, head("GET / HTTP/1.1", "Host: gate.test", "Host: gate.test")),
    "empty Host": (400, head("GET / HTTP/1.1", "Host:")),
    "Host with a path": (400, head("GET / HTTP/1.1", "Host: gate.test/a")),
    "Host with userinfo": (400, head("GET / HTTP/1.1", "Host: a@gate.test")),
    "Host with a list": (400, head("GET / HTTP/1.1", "Host: gate.test, other.test")),
    "TRACE": (405, head("TRACE / HTTP/1.1", "Host: gate.test")),
    "CONNECT": (405, head("CONNECT gate.test:443 HTTP/1.1", "Host: gate.test:443")),
    "CONNECT to a path": (405, head("CONNECT / HTTP/1.1", "Host: gate.test")),
    "no version": (400, b"GET /\r\n\r\n"),
    "unknown version": (505, head("GET / HTTP/3.7", "Host: gate.test")),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200),
    "no method": (400, b" / HTTP/1.1\r\nHost: gate.test\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_can_be_misunderstood_is_refused_and_its_connection_closed(gate: GateProcess, name: str) -> None:
    status, data = REFUSED[name]

    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"?"), port=gate.upstream_port) as upstream:
            # What follows may have been meant as a body, and must not be answered.
            response = await ask_closed(gate.port, data + get("/smuggled"))
            assert response.status == status
            assert not upstream.requests

    run(test())


BROKEN_BODIES = {
    "no chunk size": b"zz\r\nhello\r\n0\r\n\r\n",
    "chunk size below zero": b"-5\r\nhello\r\n0\r\n\r\n",
    "chunk size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size of many digits": b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n",
    "chunk longer than it says": b"3\r\nhello\r\n0\r\n\r\n",
    "chunk ended by LF": b"5\nhello\n0\n\n",
    "size line without an end": b"5;" + b"a" * 70_000,
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_of_a_body_that_breaks_later_the_upstream_never_gets_a_whole_request(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        whole: list[bytes] = []

        async def handler(call: Call) -> None:
            whole.append(await call.read_body())
            await call.send(answer(b"thanks"))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            begun = post("Transfer-Encoding: chunked") + b"5\r\nfirst\r\n"
            response = await ask_closed(gate.port, begun + BROKEN_BODIES[name] + get("/smuggled"))
            is_told_its_size = gate.edge == "hypercorn" and "size line" in name
            assert response.status == (431 if is_told_its_size else 400)
            assert not whole

    run(test())


def test_a_body_that_ends_too_early_never_reaches_the_upstream_whole(gate: GateProcess) -> None:
    async def test() -> None:
        whole: list[bytes] = []

        async def handler(call: Call) -> None:
            whole.append(await call.read_body())

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            async with await Client.connect(gate.port) as client:
                await client.send(post("Content-Length: 10") + b"hello")
                await upstream.until(lambda it: len(it.requests) == 1)
                client.writer.write_eof()
                await client.read_to_end()
            await upstream.until(lambda it: it.open == 0)
            assert not whole

    run(test())


def test_a_head_that_is_not_finished_in_time_is_answered_408_and_closed(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            assert (await ask_closed(gate.port, b"GET / HTTP/1.1\r\nHost: ga")).status == 408

    run(test())


def test_a_head_that_drips_is_not_given_more_time_for_each_byte(gate: GateProcess) -> None:
    async def test() -> None:
        async def drip(client: Client) -> None:
            for byte in b"GET / HTTP/1.1\r\nHost: " + b"a" * 1000:
                await client.send(bytes((byte,)))
                await asyncio.sleep(0.05)

        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            dripping = asyncio.create_task(drip(client))
            assert (await client.read_response()).status == 408
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    run(test())


def test_the_head_of_a_second_request_has_its_own_time(gate: GateProcess) -> None:
    async def test() -> None:
        async with ScriptedUpstream(answer(b"one"), port=gate.upstream_port), await Client.connect(gate.port) as client:
            await client.send(head("GET /one HTTP/1.1", "Host: gate.test") + b"GET /two HT")
            assert (await client.read_response()).body == b"one"
            assert (await client.read_response()).status == 408

    run(test())


def test_a_body_that_falls_silent_is_answered_408_and_the_upstream_request_ended(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.read_body()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            response = await ask_closed(gate.port, post("Content-Length: 10") + b"hello")
            assert response.status == 408
            await upstream.until(lambda it: it.open == 0)

    run(test())


def test_a_body_that_falls_silent_behind_an_answer_that_has_begun_cuts_that_answer(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
            await call.read_body()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            response = await ask_closed(gate.port, post("Content-Length: 10") + b"hello")
            assert (response.status, response.body, response.is_whole) == (200, b"begun", False)

    run(test())


def test_an_upgrade_to_http2_is_neither_honoured_nor_forwarded(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"plain"), port=gate.upstream_port) as upstream:
            fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
            response = await ask(gate.port, head("GET / HTTP/1.1", "Host: gate.test", *fields))
            assert (response.status, response.body) == (200, b"plain")
            asked = upstream.requests[0]
            assert asked.get("upgrade") is None
            assert asked.get("http2-settings") is None

    run(test())


def test_a_viewer_that_offered_an_upgrade_is_still_seen_to_leave(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            await call.closed()
            call.close()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            async with await Client.connect(gate.port) as client:
                await client.send(head("GET / HTTP/1.1", "Host: gate.test", "Connection: Upgrade", "Upgrade: h2c"))
                await client.read_until(b"\r\n\r\n")
            await upstream.until(lambda it: it.open == 0)

    run(test())


@pytest.mark.parametrize("gate", ["hypercorn"], indirect=True)  # the native edge passes it on: see test_upgrade.py
@pytest.mark.parametrize("extra", [b"", b"\x81\x85aaaahello" * 100])
def test_a_websocket_is_answered_501(gate: GateProcess, extra: bytes) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"?"), port=gate.upstream_port) as upstream:
            fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
            data = head("GET /chat HTTP/1.1", "Host: gate.test", *fields, "Sec-WebSocket-Version: 13")
            response = await ask_closed(gate.port, data + extra)
            assert response.status == 501
            assert response.get("content-type") == "application/problem+json"
            assert not upstream.requests

    run(test())


def test_pipelined_requests_are_answered_in_their_order(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.read_body()
            await call.send(answer(call.asked.target.encode()))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                first = post("Content-Length: 5") + b"hello"
                await client.send(first + b"".join(head(f"GET /{n} HTTP/1.1", "Host: gate.test") for n in range(50)))
                assert (await client.read_response()).body == b"/orders"
                for n in range(50):
                    assert (await client.read_response()).body == b"/%d" % n

    run(test())


def test_behind_a_refused_request_nothing_that_was_pipelined_is_answered(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"?"), port=gate.upstream_port) as upstream:
            assert (
                await ask_closed(gate.port, post("Content-Length: 5", "Host: b") + b"hello" + get("/x"))
            ).status == 400
            assert not upstream.requests

    run(test())


def test_an_absolute_target_of_the_same_host_is_served_as_its_path(gate: GateProcess) -> None:
    async def test() -> None:
        async with ScriptedUpstream(answer(b"ok"), port=gate.upstream_port) as upstream:
            response = await ask(gate.port, head("GET http://gate.test/a?b=c HTTP/1.1", "Host: gate.test"))
            assert response.status == 200
            assert upstream.requests[0].target == "/a?b=c"

    run(test())


def test_http_1_0_without_host_is_answered_and_its_connection_closed(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"ok"), port=gate.upstream_port):
            response = await ask_closed(gate.port, b"GET /old HTTP/1.0\r\n\r\n")
            assert (response.status, response.body) == (200, b"ok")

    run(test())


@pytest.mark.parametrize("gate", ["native"], indirect=True)
def test_a_client_that_stops_in_the_preface_of_http2_is_not_waited_for(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(b"PRI * HTTP/2.0\r\n")
            assert (await client.read_to_end()).startswith(b"HTTP/1.1 408 ")

    run(test())
