"""HTTP/3 with a client of aioquic's: what it serves, and that no client can hold up or fill up the server."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

if importlib.util.find_spec("aioquic") is None and not os.environ.get("SSEGATE_REQUIRE_PEERS"):
    pytest.skip("aioquic is not installed", allow_module_level=True)

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection, encode_frame
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamReset

from ssegate.config.model import ServerTls
from ssegate.edge import http3
from ssegate.edge.asgi import PIECE, AsgiEdge
from ssegate.edge.exchange import Answer, Answering, ClientGoneError, Reply, Request, Stream
from ssegate.edge.http3 import MAX_UNSENT, WINDOW, Http3Server
from ssegate.edge.hypercorn import HypercornServer
from ssegate.edge.native.tls import ServerCertificate
from tests.config.certificates import make_pair
from tests.e2e.client import Asking, exchange, get
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, before, running_gate, story

PATIENCE = 10.0

ROUTES = """
- path: /x/events
  poll: {get: /x, every: 50ms}
- path: "/{rest:path}"
  proxy: {}
"""

SERVED = "edge: hypercorn, http3: true"


class Exchange:
    """One request and its response."""

    def __init__(self, client: Client, stream_id: int) -> None:
        self.stream_id = stream_id
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.events: asyncio.Queue[H3Event | QuicEvent] = asyncio.Queue()
        self._client = client
        self._is_ended = False

    async def next(self) -> H3Event | QuicEvent:
        async with asyncio.timeout(PATIENCE):
            return await self.events.get()

    async def head(self) -> None:
        event = await self.next()
        assert isinstance(event, HeadersReceived), event
        pairs = [(name.decode(), value.decode()) for name, value in event.headers]
        self._is_ended = event.stream_ended
        self.status = int(pairs[0][1])
        self.headers = pairs[1:]

    async def read(self) -> bytes:
        """The next piece of the body; empty at its end."""
        while not self._is_ended:
            event = await self.next()
            if not isinstance(event, DataReceived):
                raise ConnectionError(f"broken off: {event}")
            self._is_ended = event.stream_ended
            if event.data:
                return event.data
        return b""

    async def whole(self) -> bytes:
        body = b""
        while piece := await self.read():
            body += piece
        return body

    def send(self, data: bytes, *, last: bool = False) -> None:
        self._client.http.send_data(self.stream_id, data, last)
        self._client.transmit()

    @property
    def unsent(self) -> int:
        """Bytes the server's window does not let out, or that it has not acknowledged."""
        sender = self._client._quic._streams[self.stream_id].sender
        return sender._buffer_stop - sender._buffer_start

    def reset(self) -> None:
        """Want no answer any more."""
        self._client._quic.stop_stream(self.stream_id, 0x10C)
        self._client.transmit()


class Client(QuicConnectionProtocol):
    """A connection with any number of requests."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.http = H3Connection(self._quic)
        self.ended: asyncio.Future[ConnectionTerminated] = asyncio.get_running_loop().create_future()
        self._exchanges: dict[int, Exchange] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset) and event.stream_id in self._exchanges:
            self._exchanges[event.stream_id].events.put_nowait(event)
        if isinstance(event, ConnectionTerminated) and not self.ended.done():
            self.ended.set_result(event)
        for each in self.http.handle_event(event):
            assert isinstance(each, HeadersReceived | DataReceived)
            self._exchanges[each.stream_id].events.put_nowait(each)

    def start(
        self, method: str, target: str, *headers: tuple[str, str], body: bytes = b"", has_more: bool = False
    ) -> Exchange:
        """Send a request; its head and body are on their way."""
        stream_id = self._quic.get_next_available_stream_id()
        it = self._exchanges[stream_id] = Exchange(self, stream_id)
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", target)]
        fields = [(name.encode(), value.encode()) for name, value in (*pseudo, *headers)]
        self.http.send_headers(stream_id, fields, end_stream=not body and not has_more)
        if body:
            self.http.send_data(stream_id, body, not has_more)
        self.transmit()
        return it

    async def ask(self, method: str, target: str, *headers: tuple[str, str], **more: Any) -> Exchange:
        """Send a request and wait for the response's head."""
        it = self.start(method, target, *headers, **more)
        await it.head()
        return it


@asynccontextmanager
async def connected(port: int, *, window: int = 1 << 20) -> AsyncIterator[Client]:
    """`window`: bytes of each stream that the client lets come before it grants more."""
    settings = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=True, verify_mode=ssl.CERT_NONE, max_stream_data=window
    )
    async with asyncio.timeout(PATIENCE * 3):
        async with connect("127.0.0.1", port, configuration=settings, create_protocol=Client) as client:
            assert isinstance(client, Client)
            yield client


@asynccontextmanager
async def serving(
    answering: Answering, *, stall: float = 30.0, keep_alive: float = 75.0, tls: ServerTls | None = None
) -> AsyncIterator[tuple[Http3Server, AsgiEdge, int]]:
    """A server, its edge and its port."""
    edge = AsgiEdge(answering, stall=stall)
    certificate = ServerCertificate(tls or ServerTls(self_signed=True))
    server = HypercornServer(edge, keep_alive=keep_alive, max_head=32 * 1024, http3=certificate)
    try:
        port = await server.start("127.0.0.1", 0, certificate.context)
        assert server._http3 is not None
        yield server._http3, edge, port
    finally:
        async with asyncio.timeout(PATIENCE):
            await server.aclose(1)
        assert server.connections == 0


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not is_so():
            await asyncio.sleep(0.01)  # figures tell nobody when they change


async def say_who(request: Request) -> Answer:
    host = request.headers.get("host")
    return Answer(200, (), f"{request.scheme} {request.http_version} {host} {request.target.decode()}".encode())


async def count(request: Request) -> Answer:
    """How long the body was."""
    assert request.body is not None
    size = 0
    async for piece in request.body:
        size += len(piece)
    return Answer(200, (), b"%d" % size)


# What it serves


@story
async def test_a_stream_and_a_request_that_passes_through_share_a_connection() -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        async with running_gate(Edge("h3", "2", SERVED, tls=True), before(api, ROUTES)) as gate:
            async with connected(gate.port) as client:
                stream = await client.ask("GET", "/x/events", ("accept", "text/event-stream"))
                assert (stream.status, get(stream.headers, "content-type")) == (200, "text/event-stream")
                assert b'data: {"n":1}' in await stream.read()
                passed = await client.ask("GET", "/x")
                assert (passed.status, await passed.whole()) == (200, b'{"n": 1}')
                api.put("/x", {"n": 2})
                assert b'data: {"n":2}' in await stream.read()
            await gate.until_clients(0)


@story
async def test_a_drain_ends_streams_in_order() -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        async with (
            running_gate(Edge("h3", "2", SERVED, tls=True), before(api, ROUTES), server="drain: {timeout: 1s}") as gate,
            connected(gate.port) as client,
        ):
            stream = await client.ask("GET", "/x/events")
            await stream.read()
            draining = asyncio.create_task(gate.service.drain())
            assert (await stream.whole()).startswith(b"retry: "), "an end, not a break"
            assert (await client.ended).error_code == 0x100, "H3_NO_ERROR"
            await draining


@story
async def test_answers_over_tcp_say_that_there_is_http3() -> None:
    async with serving(say_who) as (_, _, port):
        for http in ("1.1", "2"):
            async with exchange(http, port, Asking("GET", "/"), tls=True) as it:
                assert get(it.headers, "alt-svc") == f'h3=":{port}"; ma=86400'


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_a_request_comes_as_it_is(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with serving(say_who) as (_, _, port), connected(port) as client:
            it = await client.ask("GET", "/a%2Fb?c=d")
            assert (it.status, await it.whole()) == (200, b"https 3 localhost /a%2Fb?c=d")
            assert get(it.headers, "alt-svc") is None

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@story
async def test_a_head_answer_has_no_body_and_connect_is_refused() -> None:
    async with serving(say_who) as (_, _, port), connected(port) as client:
        assert (await client.ask("CONNECT", "/")).status == 405
        it = await client.ask("HEAD", "/")
        assert (it.status, get(it.headers, "content-length")) == (200, "19")
        # For this client every answer has a body, and one of another length than was said ends the connection.
        assert (await client.ended).reason_phrase == "content-length does not match data size"


@story
async def test_a_large_body_comes_whole_in_either_direction() -> None:
    body = os.urandom(1 << 20)

    async def echo(request: Request) -> Answer:
        assert request.body is not None
        return Answer(200, (), b"".join([piece async for piece in request.body]))

    async with serving(echo) as (_, _, port), connected(port) as client:
        it = await client.ask("POST", "/", body=body)
        assert await it.whole() == body


@story
async def test_trailers_are_not_taken_for_a_request() -> None:
    async with serving(count) as (_, _, port), connected(port) as client:
        it = client.start("POST", "/", body=b"abc", has_more=True)
        client.http.send_headers(it.stream_id, [(b"x-checksum", b"1")], end_stream=True)
        client.transmit()
        await it.head()
        assert (it.status, await it.whole()) == (200, b"3")


@story
async def test_new_connections_get_a_certificate_that_was_renewed(tmp_path: Path) -> None:
    old, new = make_pair("old"), make_pair("new")
    cert, key = old.write(tmp_path)
    tls = ServerTls.model_validate({"cert": str(cert), "key": str(key)})
    async with serving(say_who, tls=tls) as (server, _, port):
        server._certificate._clock = lambda: 10.0**9  # every look is due
        for pair in (old, new):
            pair.write(tmp_path)
            server._certificate._next_look = 0.0
            async with connected(port) as client:
                shown = client._quic.tls._peer_certificate
                assert shown is not None
                assert f"CN={'old' if pair is old else 'new'}" in shown.subject.rfc4514_string()


# What a client may do


@story
async def test_a_client_that_resets_its_request_or_leaves_ends_the_work_on_it() -> None:
    ended: list[str] = []

    async def wait(request: Request) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(request.target.decode())
        raise AssertionError

    async with serving(wait) as (server, _, port):
        async with connected(port) as client:
            first = client.start("GET", "/first")
            client.start("GET", "/second")
            await until(lambda: len(server.tasks) == 2)
            first.reset()
            await until(lambda: ended == ["/first"])
        await until(lambda: sorted(ended) == ["/first", "/second"])
        await until(lambda: not server.open)


@story
async def test_a_client_that_vanished_is_noticed_while_its_stream_is_silent() -> None:
    async def wait(request: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(wait, keep_alive=0.6) as (server, _, port), connected(port) as client:
        client.start("GET", "/")
        await until(lambda: len(server.tasks) == 1)
        await asyncio.sleep(1.0)
        assert len(server.tasks) == 1, "it is asked for signs of life, and answers"
        client.datagram_received = lambda data, addr: None  # type: ignore[method-assign]  # a network that is gone
        await until(lambda: not server.tasks and not server.open)


@story
async def test_a_body_nobody_reads_is_held_back_and_its_neighbours_go_on() -> None:
    unread = asyncio.Event()

    async def answer(request: Request) -> Answer:
        if request.target == b"/late":
            await unread.wait()
            return await count(request)
        return await say_who(request)

    async with serving(answer) as (server, _, port), connected(port) as client:
        late = client.start("POST", "/late", body=b"x" * 400_000)
        for _ in range(20):
            assert (await client.ask("GET", "/")).status == 200
        (connection,) = server.open
        assert 0 < connection.requests[late.stream_id].unread <= WINDOW
        assert late.unsent >= 400_000 - WINDOW - 1000
        unread.set()
        await late.head()
        assert await late.whole() == b"400000"


@story
async def test_a_head_without_an_end_is_held_back() -> None:
    async with serving(say_who) as (server, _, port), connected(port) as client:
        it = client.start("POST", "/", has_more=True)
        stream_id = client._quic.get_next_available_stream_id()
        client._quic.send_stream_data(stream_id, encode_frame(FrameType.HEADERS, b"\0" * 500_000))
        client.transmit()
        await it.head()
        for _ in range(20):
            assert (await client.ask("GET", "/")).status == 200
        (connection,) = server.open
        assert connection.http is not None
        assert 0 < connection.http.held(stream_id) <= WINDOW


@story
async def test_a_client_that_takes_nothing_holds_little_and_is_dropped() -> None:
    async def large(request: Request) -> Reply:
        return Stream((), b"x" * 4_000_000, None) if request.target == b"/large" else await say_who(request)

    async with serving(large, stall=0.5) as (server, edge, port), connected(port, window=10_000) as client:
        client._quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]  # the window stays
        it = await client.ask("GET", "/large")
        assert (await client.ask("GET", "/")).status == 200
        (connection,) = server.open
        event = await it.next()
        while isinstance(event, DataReceived):
            assert connection.unsent(it.stream_id) <= MAX_UNSENT + PIECE + 100
            event = await it.next()
        assert isinstance(event, StreamReset)
        assert edge.statistics()["stalled"] == 1
        assert (await client.ask("GET", "/")).status == 200


@pytest.mark.long
@story
async def test_more_streams_than_allowed_wait_for_their_turn() -> None:
    go = asyncio.Event()

    async def wait(request: Request) -> Answer:
        await go.wait()
        return await say_who(request)

    async with serving(wait) as (server, _, port), connected(port) as client:
        asked = [client.start("GET", f"/{n}") for n in range(300)]
        await until(lambda: len(server.tasks) == 250)
        go.set()
        for it in asked:
            await it.head()
            assert it.status == 200


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"GET")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")],
        [(b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/"), (b"connection", b"x")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/"), (b"X", b"x")],
    ],
    ids=["no path", "no authority", "no method", "a connection's field", "upper case"],
)
@story
async def test_a_malformed_request_ends_its_connection_and_no_other(fields: list[tuple[bytes, bytes]]) -> None:
    async with serving(say_who) as (_, _, port), connected(port) as bystander, connected(port) as client:
        it = client.start("GET", "/", has_more=True)
        await it.head()
        stream_id = client._quic.get_next_available_stream_id()
        client.http.send_headers(stream_id, fields, end_stream=True)
        client.transmit()
        async with asyncio.timeout(PATIENCE):
            assert (await client.ended).error_code == 0x10E, "H3_MESSAGE_ERROR"
        assert (await bystander.ask("GET", "/")).status == 200


@pytest.mark.parametrize(
    ("target", "headers"),
    [("//elsewhere/", []), ("/a\\b", []), ("/", [("host", "elsewhere")]), ("/é", [])],
)
@story
async def test_what_two_readers_could_understand_differently_is_400(
    target: str, headers: list[tuple[str, str]]
) -> None:
    async with serving(say_who) as (_, _, port), connected(port) as client:
        assert (await client.ask("GET", target, *headers)).status == 400


@story
async def test_an_answer_that_is_cut_is_reset_and_not_ended() -> None:
    async def fail(request: Request) -> Answer:
        raise ClientGoneError

    async with serving(fail) as (_, _, port), connected(port) as client:
        assert isinstance(await client.start("GET", "/").next(), StreamReset)


@story
async def test_datagrams_of_nobody_change_nothing() -> None:
    async with serving(say_who) as (server, _, port):
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port))
        for size in (0, 1, 20, 1200):
            for first in (0x00, 0x40, 0xC0, 0xFF):
                transport.sendto((bytes([first]) + os.urandom(size))[: size or 1])
        async with connected(port) as client:
            assert (await client.ask("GET", "/")).status == 200
            assert len(server.open) == 1
        transport.close()


@story
async def test_a_handshake_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http3, "HANDSHAKE_TIMEOUT", 0.3)

    class Mute(Client):
        """Shows that its address is its own, and no more."""

        heard = 0

        def datagram_received(self, data: bytes | str, addr: Any) -> None:
            self.heard += 1
            if self.heard == 1:
                super().datagram_received(data, addr)

    async with serving(say_who) as (server, _, port):
        settings = QuicConfiguration(alpn_protocols=H3_ALPN, is_client=True, verify_mode=ssl.CERT_NONE)
        client = Mute(QuicConnection(configuration=settings))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: client, local_addr=("127.0.0.1", 0))
        client.connect(("127.0.0.1", port))
        await until(lambda: len(server.open) == 1)
        await until(lambda: not server.open)
        transport.close()
