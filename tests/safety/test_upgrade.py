"""Tunnels: a client that goes over to another protocol speaks with the upstream itself, and neither side is left behind."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.safety.harness import PATIENCE, Client, GateProcess, Http2Client, get, parse_head, run, trusting, until
from tests.upstream.scripted import Call, ScriptedUpstream, answer

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nX-Chosen: yes\r\n\r\n"
LARGE = 8 * 2**20


def asking(protocol: str = "websocket", target: str = "/chat", *fields: str) -> bytes:
    lines = (f"GET {target} HTTP/1.1", "Host: gate.test", "Connection: Upgrade", f"Upgrade: {protocol}", *fields)
    return "\r\n".join((*lines, "", "")).encode()


async def echo(call: Call) -> None:
    """Agree, send back what comes, and end when the other side has."""
    await call.send(SWITCHED % (call.asked.get("upgrade") or "").encode())
    while data := await call.receive():
        await call.send(data)
    call.close()


async def never(call: Call) -> None:
    """Agree, and read nothing."""
    await call.send(SWITCHED % b"websocket")
    await asyncio.sleep(3600)


@asynccontextmanager
async def tunnel(gate: GateProcess, protocol: str = "websocket", *, behind: bytes = b"") -> AsyncIterator[Client]:
    async with await Client.connect(gate.port) as client:
        await client.send(asking(protocol) + behind)
        status, _ = parse_head(await client.read_until(b"\r\n\r\n"))
        assert status == 101
        yield client


@asynccontextmanager
async def tunnel_http2(gate: GateProcess) -> AsyncIterator[tuple[Http2Client, int]]:
    async with await Http2Client.begin(gate.port) as client:
        stream = await extended_connect(client)
        await client.until(lambda event: isinstance(event, h2.events.ResponseReceived))
        assert client.status(stream) == 200
        yield client, stream


async def extended_connect(client: Http2Client, path: bytes = b"/chat", protocol: bytes = b"websocket") -> int:
    pseudo = ((b":method", b"CONNECT"), (b":protocol", protocol), (b":scheme", b"http"), (b":path", path))
    return await client.request(b"", pseudo=(*pseudo, (b":authority", b"gate.test")), end=False)


async def received(client: Http2Client, stream: int, size: int) -> bytes:
    """So much of what comes through a tunnel."""
    async with asyncio.timeout(PATIENCE):
        while len(body := client.body(stream)) < size:  # joined once for each piece, not for each event there has been
            assert not client.is_ended, "the connection ended"
            await client.receive()
    return body


def test_the_head_of_a_101_reaches_the_client_and_bytes_go_both_ways(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(echo, port=native.upstream_port) as upstream:
            async with await Client.connect(native.port) as client:
                await client.send(asking("websocket", "/chat?a=%20b", "Sec-WebSocket-Key: a2V5", "Cookie: a=b"))
                status, fields = parse_head(await client.read_until(b"\r\n\r\n"))
                told = {name.lower(): value for name, value in fields}
                assert status == 101
                assert (told[b"connection"], told[b"upgrade"], told[b"x-chosen"]) == (b"Upgrade", b"websocket", b"yes")
                assert not {b"content-length", b"transfer-encoding"} & set(told)
                for word in (b"\x81\x05hello", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000):
                    await client.send(word)
                    assert await client.reader.readexactly(len(word)) == word
            asked = upstream.requests[0]
            assert (asked.target, asked.get("connection"), asked.get("upgrade")) == (
                "/chat?a=%20b",
                "Upgrade",
                "websocket",
            )
            assert (asked.get("sec-websocket-key"), asked.get("cookie")) == ("a2V5", "a=b")
            assert len(upstream.requests) == 1

    run(test())


@pytest.mark.parametrize("size", [5, 300, 100_000])
def test_what_is_sent_right_behind_the_head_is_the_tunnels_first(native: GateProcess, size: int) -> None:
    async def test() -> None:
        data = os.urandom(size)

        async def late(call: Call) -> None:
            await asyncio.sleep(0.1)
            await echo(call)

        async with native.leaves_nothing(), ScriptedUpstream(late, port=native.upstream_port):
            async with tunnel(native, behind=data) as client:
                await client.send(b"and more")
                assert await client.reader.readexactly(size + 8) == data + b"and more"

    run(test())


def test_what_the_upstream_sends_right_behind_its_head_is_the_tunnels_first(native: GateProcess) -> None:
    async def test() -> None:
        async def eager(call: Call) -> None:
            await call.send(SWITCHED % b"websocket" + b"welcome")
            await call.closed()

        async with native.leaves_nothing(), ScriptedUpstream(eager, port=native.upstream_port):
            async with tunnel(native) as client:
                assert await client.reader.readexactly(7) == b"welcome"

    run(test())


def test_a_tunnel_carries_megabytes_both_ways_and_holds_little_of_them(native: GateProcess) -> None:
    async def test() -> None:
        data = os.urandom(LARGE)
        async with native.leaves_nothing(), ScriptedUpstream(echo, port=native.upstream_port):
            memory = native.memory()
            async with tunnel(native) as client:
                sending = asyncio.create_task(client.send(data))
                assert await client.reader.readexactly(LARGE) == data
                await sending
                assert native.memory() - memory < 4 * 2**20

    run(test())


def test_an_upstream_that_reads_nothing_holds_up_the_client(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(never, port=native.upstream_port):
            memory = native.memory()
            async with tunnel(native) as client:
                sending = asyncio.create_task(client.send(b"a" * 64 * 2**20))
                await asyncio.wait((sending,), timeout=0.5)
                assert not sending.done()
                assert native.memory() - memory < 4 * 2**20
                sending.cancel()

    run(test())


def test_a_client_that_reads_nothing_is_dropped_and_its_upstream_let_go(native: GateProcess) -> None:
    async def test() -> None:
        async def pour(call: Call) -> None:
            await call.send(SWITCHED % b"websocket")
            while True:
                await call.send(b"a" * 65536)

        async with native.leaves_nothing(), ScriptedUpstream(pour, port=native.upstream_port) as upstream:
            memory = native.memory()
            async with await Client.connect(native.port, receive_buffer=4096) as client:
                client.stop_reading()
                await client.send(asking())
                await upstream.until(lambda it: it.open == 1)
                await until(lambda: upstream.open == 0, "it is dropped", 6)
                assert native.memory() - memory < 4 * 2**20

    run(test())


def test_a_client_that_has_said_all_still_hears_the_upstream(native: GateProcess) -> None:
    async def test() -> None:
        async def count(call: Call) -> None:
            await call.send(SWITCHED % b"websocket")
            said = await call.read_rest()
            await call.send(b"%d bytes" % len(said))
            call.close()

        async with native.leaves_nothing(), ScriptedUpstream(count, port=native.upstream_port):
            async with tunnel(native) as client:
                await client.send(b"hello")
                client.writer.write_eof()
                assert await client.read_to_end() == b"5 bytes"

    run(test())


def test_an_upstream_that_has_said_all_still_hears_the_client(native: GateProcess) -> None:
    async def test() -> None:
        heard = bytearray()

        async def listen(call: Call) -> None:
            await call.send(SWITCHED % b"websocket" + b"go on")
            call.end()
            heard.extend(await call.read_rest())
            call.close()

        async with native.leaves_nothing(), ScriptedUpstream(listen, port=native.upstream_port) as upstream:
            async with tunnel(native) as client:
                assert await client.read_to_end() == b"go on"
                for _ in range(5):
                    await client.send(b"word")
                    await asyncio.sleep(0.02)
                client.writer.write_eof()
                await upstream.until(lambda it: it.open == 0)
            assert heard == b"word" * 5

    run(test())


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_takes_its_upstream_along(native: GateProcess, how: str) -> None:
    async def test() -> None:
        async def talk(call: Call) -> None:
            await call.send(SWITCHED % b"websocket")
            await call.closed()
            call.close()

        async with native.leaves_nothing(), ScriptedUpstream(talk, port=native.upstream_port) as upstream:
            async with tunnel(native) as client:
                if how == "FIN":
                    client.writer.close()
                else:
                    client.reset()
                await until(lambda: upstream.open == 0, "the upstream is closed", 2)

    run(test())


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_an_upstream_that_leaves_takes_its_client_along(native: GateProcess, how: str) -> None:
    async def test() -> None:
        async def leave(call: Call) -> None:
            await call.send(SWITCHED % b"websocket" + b"bye")
            await asyncio.sleep(0.05)
            if how == "FIN":
                call.close()
            else:
                call.reset()

        async with native.leaves_nothing(), ScriptedUpstream(leave, port=native.upstream_port):
            async with tunnel(native) as client:
                assert await client.read_to_end() == b"bye"

    run(test())


def test_an_upstream_that_refuses_is_an_ordinary_answer_and_the_connection_goes_on(native: GateProcess) -> None:
    async def test() -> None:
        async def refuse(call: Call) -> None:
            status = 403 if call.asked.get("upgrade") else 200
            await call.send(answer(b"not you", status=status))

        async with native.leaves_nothing(), ScriptedUpstream(refuse, port=native.upstream_port) as upstream:
            async with await Client.connect(native.port) as client:
                await client.send(asking())
                refused = await client.read_response()
                await client.send(get("/next"))
                assert (refused.status, refused.body) == (403, b"not you")
                assert (await client.read_response()).status == 200
            assert [asked.target for asked in upstream.requests] == ["/chat", "/next"]

    run(test())


def test_a_request_behind_an_upgrade_that_was_refused_is_answered(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(answer(b"plain"), port=native.upstream_port) as upstream:
            async with await Client.connect(native.port) as client:
                await client.send(asking() + get("/next"))
                assert [(await client.read_response()).body for _ in range(2)] == [b"plain"] * 2
            assert [asked.target for asked in upstream.requests] == ["/chat", "/next"]

    run(test())


@pytest.mark.parametrize("fields", [(), ("HTTP2-Settings: AAMAAABkAAQAAP__",)], ids=["plain", "with settings"])
def test_h2c_is_neither_honoured_nor_forwarded_and_the_next_request_served(
    native: GateProcess, fields: tuple[str, ...]
) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(answer(b"fine"), port=native.upstream_port) as upstream:
            async with await Client.connect(native.port) as client:
                await client.send(asking("h2c", "/first", *fields))
                assert (await client.read_response()).body == b"fine"
                await client.send(asking("h2c", "/second") + get("/third"))
                assert [(await client.read_response()).body for _ in range(2)] == [b"fine"] * 2
            assert [asked.target for asked in upstream.requests] == ["/first", "/second", "/third"]
            for asked in upstream.requests:
                assert (asked.get("upgrade"), asked.get("http2-settings")) == (None, None)
                assert "upgrade" not in (asked.get("connection") or "").lower()

    run(test())


def test_any_other_protocol_can_be_gone_over_to(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(echo, port=native.upstream_port) as upstream:
            async with tunnel(native, "irc/6.9") as client:
                await client.send(b"NICK me\r\n")
                assert await client.reader.readexactly(9) == b"NICK me\r\n"
            assert upstream.requests[0].get("upgrade") == "irc/6.9"

    run(test())


def test_a_101_to_another_protocol_than_was_asked_for_is_502(native: GateProcess) -> None:
    async def test() -> None:
        async def other(call: Call) -> None:
            await call.send(SWITCHED % b"irc")
            await call.closed()

        async with native.leaves_nothing(), ScriptedUpstream(other, port=native.upstream_port):
            async with await Client.connect(native.port) as client:
                await client.send(asking())
                assert (await client.read_response()).status == 502

    run(test())


def test_an_upgrade_on_a_route_of_the_gates_own_is_passed_over(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), await Client.connect(native.port) as client:
            await client.send(asking("websocket", "/tickets/1/events"))
            status, fields = parse_head(await client.read_until(b"\r\n\r\n"))
            assert status == 200
            assert b"text/event-stream" in {name.lower(): value for name, value in fields}[b"content-type"]

    run(test())


# RFC 8441


def test_http2_announces_extended_connect(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), await Http2Client.begin(native.port) as client:
            assert client.h2.remote_settings.enable_connect_protocol == 1

    run(test())


def test_extended_connect_tunnels_to_an_upstream_of_http_1(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(echo, port=native.upstream_port) as upstream:
            async with tunnel_http2(native) as (client, stream):
                heads = [event for event in client.events if isinstance(event, h2.events.ResponseReceived)]
                told = dict(heads[0].headers)
                assert told[b"x-chosen"] == b"yes"
                assert not {b"connection", b"upgrade", b"sec-websocket-accept"} & set(told)
                await client.send_data(stream, b"hello")
                assert await received(client, stream, 5) == b"hello"
                await client.send_data(stream, b", and bye", end=True)
                assert await received(client, stream, 14) == b"hello, and bye"
                assert await client.outcome(stream) == 200
            asked = upstream.requests[0]
            assert (asked.method, asked.target, asked.get("upgrade")) == ("GET", "/chat", "websocket")
            assert asked.get("sec-websocket-key") is not None

    run(test())


def test_a_tunnel_over_http2_carries_megabytes_both_ways(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(echo, port=native.upstream_port):
            async with tunnel_http2(native) as (client, stream):
                memory, sent = native.memory(), 0
                while sent < 2 * 2**20:
                    while (room := client.h2.local_flow_control_window(stream)) == 0:
                        await client.receive()  # nothing as long as a frame is not whole
                        assert not client.is_ended
                    size = min(room, 16_000)
                    await client.send_data(stream, b"a" * size)
                    sent += size
                assert len(await received(client, stream, sent)) == sent
                assert native.memory() - memory < 4 * 2**20

    run(test())


def test_a_tunnel_whose_upstream_reads_nothing_closes_its_window(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(never, port=native.upstream_port):
            async with tunnel_http2(native) as (client, stream):
                memory, sent = native.memory(), 0
                try:
                    async with asyncio.timeout(0.7):
                        while sent < 64 * 2**20:
                            while (room := client.h2.local_flow_control_window(stream)) == 0:
                                await client.receive()  # nothing as long as a frame is not whole
                                assert not client.is_ended
                            await client.send_data(stream, b"a" * min(room, 16_000))
                            sent += room
                except TimeoutError:
                    pass
                assert sent < 32 * 2**20
                assert native.memory() - memory < 4 * 2**20

    run(test())


def test_a_reset_ends_the_tunnel_and_its_neighbours_live(native: GateProcess) -> None:
    async def test() -> None:
        async def talk(call: Call) -> None:
            if call.asked.get("upgrade") is None:
                await call.send(answer(b"fine"))
                return
            await call.send(SWITCHED % b"websocket")
            await call.closed()
            call.close()

        async with native.leaves_nothing(), ScriptedUpstream(talk, port=native.upstream_port) as upstream:
            async with tunnel_http2(native) as (client, stream):
                client.h2.reset_stream(stream, ErrorCodes.CANCEL)
                await client.flush()
                await until(lambda: upstream.open == 0, "the upstream is closed", 2)
                assert await client.outcome(await client.request(b"/next")) == 200

    run(test())


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_an_upstream_that_leaves_ends_the_stream_of_its_tunnel(native: GateProcess, how: str) -> None:
    async def test() -> None:
        async def leave(call: Call) -> None:
            await call.send(SWITCHED % b"websocket" + b"bye")
            await asyncio.sleep(0.05)
            if how == "FIN":
                call.close()
            else:
                call.reset()

        async with native.leaves_nothing(), ScriptedUpstream(leave, port=native.upstream_port):
            async with tunnel_http2(native) as (client, stream):
                outcome = await client.outcome(stream)
                assert client.body(stream) == b"bye"
                assert outcome == 200 if how == "FIN" else outcome != 200

    run(test())


def test_a_refused_extended_connect_is_the_upstreams_answer(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing():
            async with ScriptedUpstream(answer(b"not you", status=403), port=native.upstream_port):
                async with await Http2Client.begin(native.port) as client:
                    stream = await extended_connect(client)
                    assert await client.outcome(stream) == 403
                    assert client.body(stream) == b"not you"
                    assert await client.outcome(await client.request(b"/next")) == 403

    run(test())


@pytest.mark.parametrize("path", [b"/chat", b"/tickets/1/events"])
def test_what_is_no_tunnel_is_never_a_2xx_to_extended_connect(native: GateProcess, path: bytes) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(answer(b"a page"), port=native.upstream_port):
            async with await Http2Client.begin(native.port) as client:
                stream = await extended_connect(client, path)
                outcome = await client.outcome(stream)
                assert outcome >= 400
                assert await client.outcome(await client.request(b"/next")) == 200

    run(test())


MALFORMED = {
    "protocol with GET": ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":protocol", b"websocket")),
    "no path": ((b":method", b"CONNECT"), (b":scheme", b"http"), (b":protocol", b"websocket")),
    "no scheme": ((b":method", b"CONNECT"), (b":path", b"/"), (b":protocol", b"websocket")),
    "protocol of two lines": (
        (b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/"), (b":protocol", b"a\r\nx: y"),
    ),
    "protocol h2c": ((b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/"), (b":protocol", b"h2c")),
    "no protocol at all": ((b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/"), (b":protocol", b"")),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_extended_connect_never_reaches_the_upstream(native: GateProcess, name: str) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(answer(b"fine"), port=native.upstream_port) as upstream:
            async with await Http2Client.begin(native.port) as client:
                broken = await client.request(b"", pseudo=(*MALFORMED[name], (b":authority", b"gate.test")), end=False)
                outcome = await client.outcome(broken)
                assert outcome == ErrorCodes.PROTOCOL_ERROR or outcome >= 400
                assert await client.outcome(await client.request(b"/next")) == 200
            assert [asked.target for asked in upstream.requests] == ["/next"]

    run(test())


def test_data_in_front_of_the_upstreams_101_waits_for_it(native: GateProcess) -> None:
    async def test() -> None:
        async def late(call: Call) -> None:
            await asyncio.sleep(0.1)
            await echo(call)

        async with native.leaves_nothing(), ScriptedUpstream(late, port=native.upstream_port):
            async with await Http2Client.begin(native.port) as client:
                stream = await extended_connect(client)
                await client.send_frames(DataFrame(stream, b"early"))
                assert await received(client, stream, 5) == b"early"

    run(test())


# A client and a server that are in use


@asynccontextmanager
async def websocket_server(gate: GateProcess) -> AsyncIterator[None]:
    async def talk(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                if message == "leave":
                    await connection.close(4001, "as you wish")
                    return
                await connection.send(message)
        except ConnectionClosed:
            pass

    async with serve(talk, "127.0.0.1", gate.upstream_port):
        yield


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_the_websockets_package_talks_through_the_gate(native: GateProcess, scheme: str) -> None:
    async def test() -> None:
        port, tls = (native.port, None) if scheme == "ws" else (native.tls, trusting("http/1.1"))
        async with native.leaves_nothing(), websocket_server(native):
            async with connect(f"{scheme}://localhost:{port}/chat", ssl=tls, proxy=None) as client:
                assert await (await client.ping()) > 0
                for message in ("hello", b"\0\xff" * 500, "x" * 500_000):
                    await client.send(message)
                    assert await client.recv() == message
                await client.send("leave")
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert (client.close_code, client.close_reason) == (4001, "as you wish")
            async with connect(f"{scheme}://localhost:{port}/chat", ssl=tls, proxy=None) as client:
                await client.send("once")
                assert await client.recv() == "once"

    run(test())


def test_the_websockets_package_is_told_of_a_refusal(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), ScriptedUpstream(answer(b"no", status=403), port=native.upstream_port):
            with pytest.raises(InvalidStatus, match="403"):
                await connect(f"ws://localhost:{native.port}/chat", proxy=None)

    run(test())
