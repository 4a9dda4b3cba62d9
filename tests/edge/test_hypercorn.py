"""What Hypercorn's server adds to the end-to-end suite: TLS, and being started and closed many times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from ssegate.config.model import ServerTls
from ssegate.edge.asgi import AsgiEdge
from ssegate.edge.exchange import Answer, Answering, Request
from ssegate.edge.hypercorn import HEAD_TIMEOUT, LINGER, HypercornServer
from ssegate.edge.native.tls import ServerCertificate
from tests.e2e.client import Asking, RawSocket, exchange, get

NEW_LOOPS = pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def say_x(request: Request) -> Answer:
    return Answer(200, (), b"x")


async def say_who(request: Request) -> Answer:
    return Answer(200, (), f"{request.scheme} {request.http_version} {request.headers.get('host')}".encode())


async def refuse(request: Request) -> Answer:
    """Without reading its body."""
    return Answer(403, (), b"no" * 50_000, close=True)


async def leave_while_it_closes(turns: int) -> None:
    """Five clients are answered and leave; so many turns of the loop later the server closes."""
    server = HypercornServer(AsgiEdge(say_x), keep_alive=75, max_head=32 * 1024)
    port = await server.start("127.0.0.1", 0)
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    for reader, writer in clients:
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"x")
    for _, writer in clients:
        writer.close()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await server.aclose(10)


@NEW_LOOPS
def test_clients_that_leave_in_the_moment_the_server_closes_do_not_hold_it_up(new_loop: NewLoop) -> None:
    async def scenario() -> None:
        for turns in [*range(7)] * 5:
            await leave_while_it_closes(turns)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


# TLS


@asynccontextmanager
async def serving(answering: Answering) -> AsyncIterator[tuple[HypercornServer, int]]:
    """A server with TLS, and its port."""
    server = HypercornServer(AsgiEdge(answering), keep_alive=75, max_head=32 * 1024)
    try:
        yield server, await server.start("127.0.0.1", 0, ServerCertificate(ServerTls(self_signed=True)).context)
    finally:
        async with asyncio.timeout(10):
            await server.aclose(1)


@NEW_LOOPS
@pytest.mark.parametrize("http", ["1.1", "2"])
def test_a_client_speaks_what_it_agreed_on_by_alpn_and_the_scheme_is_https(http: str, new_loop: NewLoop) -> None:
    async def scenario() -> None:
        async with serving(say_who) as (_, port), exchange(http, port, Asking("GET", "/"), tls=True) as it:
            assert (it.status, await it.read()) == (200, f"https {http} 127.0.0.1:{port}".encode())
            assert get(it.headers, "alt-svc") is None, "HTTP/3 is not served here"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@NEW_LOOPS
@pytest.mark.parametrize("http", ["1.1", "2"])
def test_a_refusal_arrives_whole_while_the_client_still_uploads(http: str, new_loop: NewLoop) -> None:
    async def scenario() -> None:
        asking = Asking("POST", "/", (), b"x" * 50_000, has_more=True)
        async with serving(refuse) as (_, port), exchange(http, port, asking, tls=True) as it:
            assert it.status == 403
            body = b""
            while piece := await it.read():
                body += piece
            assert body == b"no" * 50_000

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@NEW_LOOPS
def test_a_client_that_has_sent_all_is_not_kept_waiting_for_the_end_of_its_connection(new_loop: NewLoop) -> None:
    async def scenario() -> None:
        async with serving(say_x) as (_, port), RawSocket(port, tls=True) as it:
            it.writer.write(b"GET / HTTP/1.0\r\n\r\n")
            async with asyncio.timeout(LINGER / 2):
                assert (await it.reader.read()).endswith(b"\r\n\r\nx")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@NEW_LOOPS
def test_a_server_that_closes_ends_idle_connections_in_order(new_loop: NewLoop) -> None:
    async def scenario() -> None:
        async with serving(say_x) as (server, port), RawSocket(port, tls=True) as it:
            it.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await it.until(b"x")
            closing = asyncio.create_task(server.aclose(10))
            async with asyncio.timeout(1):
                assert await it.reader.read() == b"", "closed by TLS, not cut"
                it.writer.close()
                await closing
            assert server.connections == 0

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@NEW_LOOPS
def test_what_is_not_tls_is_turned_away_and_nobody_else_notices(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(say_who) as (_, port):
            async with RawSocket(port) as it:
                it.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                async with asyncio.timeout(HEAD_TIMEOUT / 2):
                    assert b"HTTP/1.1 200" not in await it.reader.read()
            async with exchange("1.1", port, Asking("GET", "/"), tls=True) as it_:
                assert it_.status == 200

    with caplog.at_level(logging.WARNING), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
    assert caplog.records == []
