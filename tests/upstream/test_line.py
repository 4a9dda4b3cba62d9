from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from ssegate.errors import UpstreamError, UpstreamTimeoutError
from ssegate.upstream import Upstream
from ssegate.upstream.line import Endpoint, open_line
from tests.upstream.scripted import Call, ScriptedUpstream, answer, script
from tests.upstream.settings import settings

Loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@Loops
def test_every_event_loop_will_do(new_loop: NewLoop) -> None:
    async def run() -> None:
        async def half_then_reset(call: Call) -> None:
            await call.send(answer(b"half", length=8))
            await asyncio.sleep(0.02)
            call.reset()

        steps = script(answer(b"1"), answer(b"2"), half_then_reset, Call.closed, answer(b"5"))
        async with ScriptedUpstream(steps) as scripted:
            upstream = Upstream("api", settings(scripted.url))
            assert [(await upstream.fetch("/", (), max_body=9)).body for _ in range(2)] == [b"1", b"2"]
            with pytest.raises(UpstreamError, match="broke in its answer"):
                await upstream.fetch("/", (), max_body=9)
            with pytest.raises(UpstreamTimeoutError):
                await upstream.fetch("/", (), max_body=9)
            assert (await upstream.fetch("/", (), max_body=9)).body == b"5"
            assert [asked.connection for asked in scripted.requests] == [0, 0, 0, 1, 2]
            await upstream.aclose()
            await scripted.until(lambda it: it.open == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


@Loops
def test_a_reader_that_is_slow_holds_the_upstream_back(new_loop: NewLoop) -> None:
    async def run() -> None:
        sent = 0

        async def flood(call: Call) -> None:
            nonlocal sent
            while True:
                await call.send(b"x" * 65536)
                sent += 65536

        async with ScriptedUpstream(flood) as scripted:
            line = await open_line(Endpoint("127.0.0.1", scripted.port), 1.0, "GET /")
            line.write(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0.2)
            held = sent
            await asyncio.sleep(0.1)
            assert sent == held < 32 << 20  # the kernel's buffers, and no more
            got = 0
            while got <= held:
                got += len(await line.read())
            line.abort()
            line.abort()
            await scripted.until(lambda it: it.open == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())
