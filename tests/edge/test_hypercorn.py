"""What only shows when the server is started and closed many times."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from ssegate.edge.asgi import AsgiEdge
from ssegate.edge.exchange import Answer, Request
from ssegate.edge.hypercorn import HypercornServer


async def say_x(request: Request) -> Answer:
    return Answer(200, (), b"x")


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


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_clients_that_leave_in_the_moment_the_server_closes_do_not_hold_it_up(new_loop: object) -> None:
    async def scenario() -> None:
        for turns in [*range(7)] * 5:
            await leave_while_it_closes(turns)

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]  # both make a loop
        runner.run(scenario())
