"""What passes through the gate: raw, in pieces, for one viewer alone, and ended when either side ends it."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import gzip
import hashlib

import h2.events
import pytest
from h2.errors import ErrorCodes

from tests.safety.harness import Client, GateProcess, Http2Client, ask, get, run, until
from tests.upstream.scripted import Call, ScriptedUpstream, answer, chunked, named

LARGE = 64 * 2**20
PIECE = 64 * 1024


async def echo(call: Call) -> None:
    body = await call.read_body()
    await call.send(answer(body, (b"X-Method", call.asked.method.encode())))


async def silent(call: Call) -> None:
    await call.closed()
    call.close()


def request(method: str, *fields: str, body: bytes = b"", target: str = "/thing", version: str = "1.1") -> bytes:
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = (f"{method} {target} HTTP/{version}", "Host: gate.test", *fields, *length)
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "PURGE"]
)
def test_any_method_passes_with_its_body(gate: GateProcess, method: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(echo, port=gate.upstream_port):
            response = await ask(gate.port, request(method, body=b"hello"))
            assert (response.status, response.body, response.get("x-method")) == (200, b"hello", method)
            async with await Http2Client.begin(gate.port) as client:
                stream = await client.request(b"/thing", method=method.encode(), end=False)
                await client.send_data(stream, b"hello", end=True)
                assert await client.outcome(stream) == 200
                assert client.body(stream) == b"hello"

    run(test())


def test_head_is_answered_with_the_length_and_no_body(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                for _ in range(2):
                    await client.send(request("HEAD"))
                    assert (await client.read_response("HEAD")).get("content-length") == "12345"
            async with await Http2Client.begin(gate.port) as http2:
                stream = await http2.request(b"/", method=b"HEAD")
                assert await http2.outcome(stream) == 200

    run(test())


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_leaves_the_connection_usable(gate: GateProcess, status: int) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b'HTTP/1.1 %d X\r\nETag: "1"\r\n\r\n' % status)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            async with await Client.connect(gate.port) as client:
                for _ in range(3):
                    await client.send(request("GET"))
                    response = await client.read_response()
                    assert (response.status, response.get("etag")) == (status, '"1"')
            assert upstream.connections == 1

    run(test())


def test_bytes_are_passed_raw_and_repeated_fields_kept(gate: GateProcess) -> None:
    async def test() -> None:
        body = gzip.compress(b"hello" * 100)
        fields = [(b"Content-Encoding", b"gzip"), (b"X-A", b"1"), (b"X-A", b"2"), (b"X-Latin", b"\xe4\xf6")]
        async with gate.leaves_nothing(), ScriptedUpstream(answer(body, *fields), port=gate.upstream_port) as upstream:
            response = await ask(
                gate.port, request("GET", "Accept-Encoding: gzip", "X-B: 1", "X-B: 2", "X-Latin: \xe4")
            )
            assert response.body == body
            assert (response.all("x-a"), response.get("x-latin")) == (["1", "2"], "\xe4\xf6")
            asked = upstream.requests[0]
            assert [value for _, value in named(asked, "x-b|x-latin|accept-encoding")] == [b"gzip", b"1", b"2", b"\xe4"]

    run(test())


def test_the_target_is_passed_byte_for_byte(gate: GateProcess) -> None:
    async def test() -> None:
        target = "/a%2Fb/%7Ec/./d/..;x=1/%E4?q=%zz&%00=+&&a"
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"ok"), port=gate.upstream_port) as upstream:
            response = await ask(gate.port, get(target))
            assert response.status == 200
            assert upstream.requests[0].target == target

    run(test())


def test_hop_by_hop_fields_end_here_both_ways(gate: GateProcess) -> None:
    async def test() -> None:
        back = [
            (b"Connection", b"X-Hop"),
            (b"X-Hop", b"1"),
            (b"Keep-Alive", b"5"),
            (b"Proxy-Authenticate", b"x"),
            (b"Trailer", b"x"),
        ]
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"ok", *back), port=gate.upstream_port) as upstream:
            fields = (
                "Connection: X-Mine, keep-alive",
                "X-Mine: 1",
                "Keep-Alive: 5",
                "TE: trailers",
                "Proxy-Authorization: x",
            )
            response = await ask(gate.port, request("GET", *fields, "Proxy-Connection: x", "Trailer: x"))
            assert not any(response.get(name) for name in ("x-hop", "keep-alive", "proxy-authenticate", "trailer"))
            asked = upstream.requests[0]
            assert not named(asked, "x-mine|keep-alive|te|proxy-.*|trailer|connection|upgrade")

    run(test())


def test_a_field_that_connection_names_cannot_take_host_or_framing_away(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(echo, port=gate.upstream_port) as upstream:
            fields = ("Connection: host, content-length, x-forwarded-for, cookie",)
            assert (await ask(gate.port, request("POST", *fields, body=b"hello"))).body == b"hello"
            asked = upstream.requests[0]
            assert asked.get("host") == "gate.test"
            assert asked.get("x-forwarded-for") == "127.0.0.1"

    run(test())


def test_forwarded_fields_of_an_unknown_peer_are_replaced(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"ok"), port=gate.upstream_port) as upstream:
            claims = (
                "X-Forwarded-For: 6.6.6.6",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: evil.test",
                "Forwarded: for=6.6.6.6",
            )
            await ask(gate.port, request("GET", *claims, "X-Forwarded-Prefix: /evil"))
            asked = upstream.requests[0]
            assert dict(named(asked, "x-forwarded-.*|forwarded")) == {
                b"X-Forwarded-For": b"127.0.0.1", b"X-Forwarded-Proto": b"http", b"X-Forwarded-Host": b"gate.test",
            }  # fmt: skip

    run(test())


def test_a_trusted_proxy_continues_its_chain(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"ok"), port=gate.upstream_port) as upstream:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, local_addr=("127.0.0.2", 0))
            async with Client(reader, writer) as client:
                claims = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.test")
                await client.send(request("GET", *claims))
                await client.read_response()
            asked = upstream.requests[0]
            assert asked.get("x-forwarded-for") == "6.6.6.6, 127.0.0.2"
            assert (asked.get("x-forwarded-proto"), asked.get("x-forwarded-host")) == ("https", "shop.test")

    run(test())


def test_a_cookie_that_is_set_for_one_viewer_is_never_sent_for_another(gate: GateProcess) -> None:
    async def test() -> None:
        setting = answer(b"ok", (b"Set-Cookie", b"session=one; Path=/"), (b"Set-Cookie", b"b=2"))
        async with gate.leaves_nothing(), ScriptedUpstream(setting, port=gate.upstream_port) as upstream:
            async with await Client.connect(gate.port) as first, await Client.connect(gate.port) as second:
                for client in (first, second, first):
                    await client.send(request("GET"))
                    assert (await client.read_response()).all("set-cookie") == ["session=one; Path=/", "b=2"]
                await second.send(request("GET", "Cookie: session=two"))
                await second.read_response()
            assert [asked.get("cookie") for asked in upstream.requests] == [None, None, None, "session=two"]

    run(test())


def test_a_large_body_goes_up_and_down_without_being_held(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            digest = hashlib.sha256()
            while await call.read_piece():
                digest.update(call.asked.body)
                call.asked.body = b""
            await call.send(
                b"HTTP/1.1 200 OK\r\nX-Digest: %b\r\nContent-Length: %d\r\n\r\n" % (digest.hexdigest().encode(), LARGE)
            )
            for _ in range(LARGE // PIECE):
                await call.send(b"b" * PIECE)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                memory = gate.memory()
                digest = hashlib.sha256()
                await client.send(request("POST", "Transfer-Encoding: chunked"))
                for number in range(LARGE // PIECE):
                    piece = bytes((number % 256,)) * PIECE
                    digest.update(piece)
                    await client.send(b"%x\r\n%b\r\n" % (PIECE, piece))
                await client.send(b"0\r\n\r\n")
                head = await client.read_until(b"\r\n\r\n")
                assert digest.hexdigest().encode() in head
                grown_up = gate.memory() - memory
                await client.reader.readexactly(LARGE)
                grown_down = gate.memory() - memory
                assert max(grown_up, grown_down) < 8 * 2**20

    run(test())


def test_an_upload_that_the_upstream_does_not_read_waits_in_the_client(gate: GateProcess) -> None:
    async def test() -> None:
        go_on = asyncio.Event()

        async def handler(call: Call) -> None:
            await asyncio.sleep(0.4)
            go_on.set()
            await call.read_body()
            await call.send(answer(b"thanks"))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            memory = gate.memory()
            size = 32 * 2**20
            async with await Client.connect(gate.port) as client:
                await client.send(request("POST", f"Content-Length: {size}"))
                sending = asyncio.create_task(client.send(b"a" * size))
                await go_on.wait()
                assert not sending.done()
                assert gate.memory() - memory < 4 * 2**20
                assert (await client.read_response()).body == b"thanks"
                await sending

    run(test())


def test_both_bodies_are_under_way_at_once(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while piece := await call.read_piece():
                await call.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await call.send(b"0\r\n\r\n")

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(request("POST", "Transfer-Encoding: chunked"))
                await client.read_until(b"\r\n\r\n")
                for word in (b"one", b"two", b"six"):
                    await client.send(b"3\r\n" + word + b"\r\n")
                    assert await client.read_until(word) == b"3\r\n" + word
                    await client.read_until(b"\r\n")
                await client.send(b"0\r\n\r\n")
                assert await client.read_until(b"\r\n\r\n") == b"0\r\n\r\n"

            async with await Http2Client.begin(gate.port) as http2:
                # More than all windows together: it only goes on because both directions do.
                stream = await http2.request(b"/", method=b"POST", end=False)
                await http2.send_data(stream, b"a")
                await http2.until(lambda event: isinstance(event, h2.events.ResponseReceived))
                sent = 1
                while sent < 2**20:
                    while (room := http2.h2.local_flow_control_window(stream)) == 0:
                        assert await http2.receive(), http2.events[-3:]
                    size = min(room, 16_000)
                    await http2.send_data(stream, b"a" * size)
                    sent += size
                await http2.send_data(stream, b"", end=True)
                assert await http2.outcome(stream) == 200
                assert len(http2.body(stream)) == sent

    run(test())


def test_an_answer_that_comes_before_the_body_reaches_the_client(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(answer(b"too much", status=413))
            await silent(call)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port) as client:
                await client.send(request("POST", "Content-Length: 50000000"))
                await client.send(b"a" * 1_000_000)
                response = await client.read_response()
                assert (response.status, response.body) == (413, b"too much")

    run(test())


def test_the_gates_own_early_answer_reaches_a_client_that_is_still_sending(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(request("POST", "Content-Length: 5000000", target="/_ssegate/nothing"))
            await client.send(b"a" * 5_000_000)
            assert (await client.read_response()).status == 404
            assert await client.read_to_end() == b""

    run(test())


def test_a_client_that_waits_for_100_continue_gets_it(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(echo, port=gate.upstream_port) as upstream:
            async with await Client.connect(gate.port) as client:
                await client.send(request("POST", "Expect: 100-continue", "Content-Length: 5"))
                assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                await client.send(b"hello")
                assert (await client.read_response()).body == b"hello"
            assert len(upstream.requests) == 1

    run(test())


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("phase", ["before the head", "in the body"])
def test_a_viewer_that_leaves_ends_the_upstream_request(gate: GateProcess, version: str, phase: str) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            if phase == "in the body":
                await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:\n")
            await silent(call)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            if version == "2":
                async with await Http2Client.begin(gate.port) as http2:
                    await http2.request(b"/slow")
                    await upstream.until(lambda it: len(it.requests) == 1)
            else:
                async with await Client.connect(gate.port) as client:
                    await client.send(request("GET"))
                    await upstream.until(lambda it: len(it.requests) == 1)
            await until(lambda: upstream.open == 0, "the upstream request ends", 0.5)

    run(test())


def test_an_upstream_that_refuses_is_502_and_one_that_is_silent_504(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            refused = await ask(gate.port, get("/thing"))
            async with ScriptedUpstream(silent, port=gate.upstream_port):
                late = await ask(gate.port, get("/thing"))
            assert (refused.status, late.status) == (502, 504)
            for response in (refused, late):
                assert response.get("content-type") == "application/problem+json"
                assert str(gate.upstream_port).encode() not in response.body

    run(test())


BROKEN_HEADS = {
    "CR in a value": b"HTTP/1.1 200 OK\r\nX-A: 1\rX-B: 2\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX-A: 1\0\r\nContent-Length: 0\r\n\r\n",
    "LF in a name": b"HTTP/1.1 200 OK\r\nX\nA: 1\r\nContent-Length: 0\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    "nothing": b"",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
def test_a_broken_head_from_the_upstream_is_502(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(BROKEN_HEADS[name])
            call.close()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            assert (await ask(gate.port, get("/thing"))).status == 502
            async with await Http2Client.begin(gate.port) as http2:
                assert await http2.outcome(await http2.request(b"/thing")) == 502

    run(test())


CUT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nhello",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
}


@pytest.mark.parametrize("name", CUT)
def test_a_response_that_is_cut_is_cut_for_the_viewer(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(CUT[name])
            call.close()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            cut = await gate.metric("ssegate_responses_cut_total")
            response = await ask(gate.port, get("/thing"))
            assert (response.status, response.is_whole) == (200, False)
            assert response.body.startswith(b"hello")
            async with await Http2Client.begin(gate.port) as http2:
                assert await http2.outcome(await http2.request(b"/thing")) == ErrorCodes.INTERNAL_ERROR
            async with await Client.connect(gate.port) as old:
                await old.send(b"GET /thing HTTP/1.0\r\n\r\n")
                with pytest.raises(ConnectionResetError):
                    # Its body ends with the connection, and an orderly end would make it whole.
                    await old.reader.read(-1)
            assert await gate.metric("ssegate_responses_cut_total") == cut + 3

    run(test())


def test_a_response_that_stops_is_cut_for_the_viewer_after_the_upstreams_time(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(CUT["length"])
            await silent(call)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            response = await ask(gate.port, get("/thing"))
            assert (response.status, response.body, response.is_whole) == (200, b"hello", False)

    run(test())


def test_other_shapes_of_answers_reach_the_viewer_whole(gate: GateProcess) -> None:
    async def test() -> None:
        shapes = {
            b"HTTP/1.0 200 OK\r\n\r\nhello": True,
            b"HTTP/1.1 200 OK\r\n\r\nhello": True,
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(b"hello"): False,
            b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"hello"): False,
            chunked(b"hel", b"lo", trailers=[(b"X-Sum", b"1")]): False,
        }

        async def handler(call: Call) -> None:
            shape, is_closed = list(shapes.items())[call.asked.number]
            await call.send(shape)
            if is_closed:
                call.close()

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            for shape in shapes:
                response = await ask(gate.port, get("/thing"))
                assert (response.status, response.body, response.is_whole) == (200, b"hello", True), shape

    run(test())
