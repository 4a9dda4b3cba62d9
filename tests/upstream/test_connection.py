from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from ssegate.errors import UpstreamError, UpstreamTimeoutError
from ssegate.upstream import Upstream
from tests.upstream.scripted import Call, ScriptedUpstream, answer, script
from tests.upstream.settings import settings
from tests.upstream.test_fetch import certificate
from tests.upstream.viewer import relay

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
def test_a_relay_runs_on_every_event_loop(new_loop: NewLoop) -> None:
    async def run() -> None:
        sent = 0

        async def echo(call: Call) -> None:
            await call.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            await call.send(await call.read_rest())
            call.close()

        async def flood(call: Call) -> None:
            nonlocal sent
            await call.send(answer(b"", length=16 << 20))
            for _ in range(256):
                await call.send(b"x" * 65536)
                sent += 65536

        async def mirror(call: Call) -> None:
            await call.send(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(await call.read_body()))

        async with ScriptedUpstream(script(flood, mirror, echo)) as scripted:
            upstream = Upstream("api", settings(scripted.url, read=5.0))
            viewer = relay(upstream)
            viewer.on_data = lambda data: viewer.relaying.pause() if viewer.relaying else None
            await viewer.until(lambda it: bool(it.pieces))
            await asyncio.sleep(0.1)
            assert sent < 16 << 20
            viewer.on_data = lambda data: None
            assert viewer.relaying is not None
            viewer.relaying.resume()
            assert len(await viewer.whole()) == 16 << 20

            viewer = relay(upstream, (b"Transfer-Encoding", b"chunked"), method="POST", has_body=True)
            await viewer.send_all(pieces(b"a" * 100_000, 20))
            assert len(await viewer.whole()) == 2_000_000
            assert viewer.informational == [(100, ())]

            viewer = relay(upstream, upgrade=b"x")
            await viewer.head()
            await viewer.send_all(pieces(b"b" * 100_000, 20))
            assert len(await viewer.whole()) == 2_000_000
            assert scripted.connections == 1
            await upstream.aclose()
            await scripted.until(lambda it: it.open == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


@Loops
def test_tls_runs_on_every_event_loop(new_loop: NewLoop, tmp_path: Any) -> None:
    server, authority = certificate(tmp_path)

    async def run() -> None:
        async def echo(call: Call) -> None:
            await call.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            await call.send(await call.read_raw(b"!"))
            await call.closed()

        async def mirror(call: Call) -> None:
            await call.send(answer(await call.read_body()))

        async with ScriptedUpstream(script(mirror, answer(b"2"), echo), tls=server) as scripted:
            upstream = Upstream("api", settings(scripted.url, tls={"ca": authority}, read=0.3))
            viewer = relay(upstream, (b"Transfer-Encoding", b"chunked"), method="POST", has_body=True)
            await viewer.send_all(pieces(b"a" * 100_000, 20))
            assert len(await viewer.whole()) == 2_000_000
            assert await relay(upstream).whole() == b"2"
            viewer = relay(upstream, upgrade=b"x")
            await viewer.head()
            assert viewer.relaying is not None
            viewer.relaying.send(b"hello!")
            await viewer.until(lambda it: it.body == b"hello!")
            # TLS has no half that is closed: the upstream cannot be told, and must end by itself, in time.
            viewer.relaying.send_end()
            assert isinstance(await viewer.failed(), UpstreamTimeoutError)
            assert scripted.connections == 1
            await upstream.aclose()
            await scripted.until(lambda it: it.open == 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def pieces(piece: bytes, times: int) -> AsyncIterator[bytes]:
    for _ in range(times):
        yield piece
