from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ssegate.errors import UpstreamError, UpstreamUnreachableError
from ssegate.upstream import Upstream, pool
from ssegate.upstream.pool import Budget
from tests.upstream.scripted import Call, ScriptedUpstream, answer
from tests.upstream.settings import settings
from tests.upstream.viewer import RecordingViewer, relay


@asynccontextmanager
async def upstream_of(
    size: int, *, wait: float = 5.0
) -> AsyncIterator[tuple[Upstream, ScriptedUpstream, asyncio.Event]]:
    """An upstream with so many connections, which answers when the event is set."""
    go = asyncio.Event()

    async def handle(call: Call) -> None:
        await go.wait()
        await call.send(answer(b"ok"))

    async with ScriptedUpstream(handle) as scripted:
        upstream = Upstream("api", settings(scripted.url, connections=size, connect=wait / 2, read=wait / 2))
        try:
            yield upstream, scripted, go
        finally:
            await upstream.aclose()


# Connections


def test_the_connection_used_last_is_used_again() -> None:
    async def run() -> None:
        async with upstream_of(5) as (upstream, scripted, go):
            both = [relay(upstream) for _ in range(2)]
            await scripted.until(lambda it: len(it.requests) == 2)
            go.set()
            for viewer in both:
                await viewer.whole()
            last = scripted.requests[-1].connection
            for _ in range(3):
                await relay(upstream).whole()
            assert len({asked.connection for asked in scripted.requests[2:]}) == 1
            assert last in (0, 1)
            assert scripted.connections == 2
            assert upstream.statistics() == {
                "connections_open": 2.0,
                "connections_in_use": 0.0,
                "streams_open": 0.0,
                "requests_waiting": 0.0,
                "requests_sent": 5.0,
            }

    asyncio.run(run())


def test_the_next_request_finds_the_connection_idle_when_an_answer_has_ended() -> None:
    async def run() -> None:
        async with upstream_of(1) as (upstream, scripted, go):
            go.set()
            first = relay(upstream)
            following: list[RecordingViewer] = []
            first.on_data = lambda data: following.append(relay(upstream))  # comes before the end: it waits
            await first.whole()
            assert await following[0].whole() == b"ok"
            assert scripted.connections == 1

    asyncio.run(run())


def test_a_fresh_connection_counts_too() -> None:
    async def run() -> None:
        closed = asyncio.Event()

        async def handle(call: Call) -> None:
            if call.asked.number == 2:
                await closed.wait()
                call.close()
            else:
                await asyncio.sleep(0.01)
                await call.send(answer(b"ok"))

        async with ScriptedUpstream(handle) as scripted:
            upstream = Upstream("api", settings(scripted.url, connections=2))
            await asyncio.gather(relay(upstream).whole(), relay(upstream).whole())
            third = relay(upstream)
            await scripted.until(lambda it: len(it.requests) == 3)
            closed.set()
            assert await third.whole() == b"ok"  # over a third connection: one had died, and an idle one made room
            assert scripted.connections == 3
            assert upstream.statistics()["connections_open"] <= 2
            await upstream.aclose()

    asyncio.run(run())


def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)

    async def run() -> None:
        async with upstream_of(2) as (upstream, scripted, go):
            go.set()
            await asyncio.gather(relay(upstream).whole(), relay(upstream).whole())
            await scripted.until(lambda it: it.open == 0)
            assert upstream.statistics()["connections_open"] == 0

    asyncio.run(run())


def test_the_name_is_resolved_for_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with upstream_of(2) as (_, scripted, go):
            go.set()
            loop, asked = asyncio.get_running_loop(), []
            resolve = loop.getaddrinfo

            async def getaddrinfo(host: Any, port: Any, **how: Any) -> Any:
                asked.append(host)
                return await resolve("127.0.0.1", port, **how)

            monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
            named = Upstream("api", settings(f"http://api.example:{scripted.port}"))
            await asyncio.gather(relay(named).whole(), relay(named).whole())
            await relay(named).whole()
            await named.aclose()
            assert asked == ["api.example", "api.example"]

    asyncio.run(run())


# Places


def test_places_are_given_in_the_order_they_were_asked_for() -> None:
    async def run() -> None:
        async with upstream_of(1) as (upstream, scripted, go):
            held = relay(upstream)
            viewers = [relay(upstream, target=b"/%d" % number) for number in range(5)]
            await scripted.until(lambda it: len(it.requests) == 1)
            assert upstream.statistics()["requests_waiting"] == 5
            viewers[1].cancel()
            go.set()
            await held.whole()
            late = relay(upstream, target=b"/5")
            for viewer in (*viewers[:1], *viewers[2:], late):
                await viewer.whole()
            assert [asked.target for asked in scripted.requests[1:]] == ["/0", "/2", "/3", "/4", "/5"]
            assert scripted.connections == 1

    asyncio.run(run())


def test_when_all_connections_are_busy_the_wait_ends_with_an_error() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def handle(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            await release.wait()
            call.close()

        async with ScriptedUpstream(handle) as scripted:
            upstream = Upstream("api", settings(scripted.url, connections=2, connect=0.05, read=0.05))
            held = [relay(upstream) for _ in range(2)]
            for viewer in held:
                await viewer.head()
            error = await relay(upstream, target=b"/x?token=s3cret").failed()
            assert isinstance(error, UpstreamUnreachableError)
            assert str(error) == f"GET {scripted.url}/x: all 2 connections are busy"
            assert upstream.statistics()["requests_waiting"] == 0
            held[0].cancel()
            await relay(upstream).head()
            release.set()
            await upstream.aclose()

    asyncio.run(run())


def test_a_body_that_comes_before_there_is_a_connection_is_sent_with_it() -> None:
    async def run() -> None:
        async with upstream_of(1) as (upstream, scripted, go):
            relay(upstream)
            viewer = relay(upstream, (b"Transfer-Encoding", b"chunked"), method="POST", has_body=True)
            assert viewer.relaying is not None
            assert viewer.relaying.send(b"small")
            assert not viewer.relaying.send(b"x" * 65536)
            go.set()
            await viewer.until(lambda it: it.rooms == 1)
            viewer.relaying.send_end()
            await viewer.whole()
            assert scripted.requests[1].body == b"small" + b"x" * 65536

    asyncio.run(run())


def test_a_failed_connect_gives_its_place_back() -> None:
    async def run() -> None:
        upstream = Upstream("api", settings("http://127.0.0.1:1", connections=1))
        for _ in range(3):
            error = await relay(upstream).failed()
            assert isinstance(error, UpstreamUnreachableError)
            assert "connection refused" in str(error)
        assert upstream.statistics()["connections_in_use"] == 0

    asyncio.run(run())


def test_closing_sends_off_who_waits() -> None:
    async def run() -> None:
        async with upstream_of(1) as (upstream, scripted, go):
            held, waiting = relay(upstream), relay(upstream)
            await scripted.until(lambda it: len(it.requests) == 1)
            await upstream.aclose()
            for viewer in (held, waiting):
                assert isinstance(viewer.error, UpstreamUnreachableError)
                assert "closed" in str(viewer.error)
            assert "closed" in str(await relay(upstream).failed())
            go.set()
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_closing_ends_who_is_still_connecting() -> None:
    async def run() -> None:
        async with upstream_of(1) as (upstream, _, _go):
            viewer = relay(upstream)
            await upstream.aclose()
            assert "closed" in str(await viewer.failed())
            assert upstream.statistics()["connections_in_use"] == 0

    asyncio.run(run())


def test_after_a_thousand_random_cancellations_every_connection_is_still_there() -> None:
    async def run() -> None:
        chance = random.Random(7)

        async def handle(call: Call) -> None:
            await asyncio.sleep(chance.random() * 0.004)
            await call.send(answer(b"x" * 2000)[: chance.choice([10, 500, 5000])])
            if chance.random() < 0.1:
                chance.choice([call.close, call.reset])()

        async def one(upstream: Upstream) -> None:
            with contextlib.suppress(UpstreamError):
                if chance.random() < 0.5:
                    await upstream.fetch("/x", (), max_body=4000)
                else:
                    fields = ((b"Content-Length", b"3"),) if chance.random() < 0.5 else ()
                    await pass_on(upstream, fields)

        async with ScriptedUpstream(handle) as scripted:
            upstream = Upstream("api", settings(scripted.url, connections=5, read=0.05))
            for _ in range(20):
                tasks = [asyncio.create_task(one(upstream)) for _ in range(50)]
                for task in tasks:
                    asyncio.get_running_loop().call_later(chance.random() * 0.03, task.cancel)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    assert result is None or isinstance(result, asyncio.CancelledError), result
            assert upstream.statistics()["connections_in_use"] == 0
            assert upstream.statistics()["requests_waiting"] == 0
            await scripted.until(lambda it: it.open <= 5)
            await all_at_once(upstream, scripted, 5)
            await upstream.aclose()
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


async def pass_on(upstream: Upstream, fields: tuple[tuple[bytes, bytes], ...]) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.001)
        yield b"bc"

    viewer = relay(upstream, *fields, method="PUT", has_body=True)
    try:
        await viewer.send_all(body())
        await viewer.whole()
    finally:
        if not viewer.is_over:
            viewer.cancel()


async def all_at_once(upstream: Upstream, scripted: ScriptedUpstream, size: int) -> None:
    """As many requests as there are connections are under way at one moment, and all are answered."""
    go = asyncio.Event()

    async def wait_and_answer(call: Call) -> None:
        await go.wait()
        await call.send(answer(b"ok"))

    scripted.answer_with(wait_and_answer)
    before = len(scripted.requests)
    tasks = [asyncio.create_task(upstream.fetch("/x", (), max_body=9)) for _ in range(size)]
    await scripted.until(lambda it: len(it.requests) >= before + size)
    go.set()
    assert [(await task).body for task in tasks] == [b"ok"] * size


# The budget


class Hasty(selectors.DefaultSelector):
    """Waits for no timer, but says how long it would have."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.skipped += max(timeout or 0.0, 0.0)
        return super().select(timeout if timeout is None else 0)


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._hasty = Hasty()
        super().__init__(self._hasty)

    def time(self) -> float:
        return self._hasty.skipped


def with_a_fast_clock(story: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(story)


def test_a_budget_has_a_burst_of_one_second_and_then_its_rate() -> None:
    async def run() -> None:
        budget, loop, at = Budget(10), asyncio.get_running_loop(), []
        for _ in range(30):
            await budget.take()
            at.append(loop.time())
        assert at[9] == 0
        assert at[10] == pytest.approx(0.1, abs=0.01)
        assert at[29] == pytest.approx(2.0, abs=0.01)

    with_a_fast_clock(run())


def test_a_budget_below_one_a_second_still_lets_one_through() -> None:
    async def run() -> None:
        budget, loop, at = Budget(0.5), asyncio.get_running_loop(), []
        for _ in range(3):
            await budget.take()
            at.append(loop.time())
        assert at == pytest.approx([0, 2, 4], abs=0.01)

    with_a_fast_clock(run())


def test_a_budget_serves_in_order_and_first_polls_before_others() -> None:
    async def run() -> None:
        budget, order = Budget(1), []

        async def one(name: str, first: bool) -> None:
            await budget.take(first=first)
            order.append(name)

        await budget.take()
        async with asyncio.TaskGroup() as tasks:
            for name, first in (("a", False), ("b", False), ("first", True), ("second", True)):
                tasks.create_task(one(name, first))
        assert order == ["first", "second", "a", "b"]

    with_a_fast_clock(run())


def test_a_budget_is_not_spent_by_who_was_cancelled() -> None:
    async def run() -> None:
        budget, loop = Budget(1), asyncio.get_running_loop()
        await budget.take()
        waiting = [asyncio.create_task(budget.take()) for _ in range(100)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert budget.waiting == 0
        await budget.take()
        assert loop.time() == pytest.approx(1.0, abs=0.01)

    with_a_fast_clock(run())


def test_a_turn_given_to_someone_who_is_cancelled_in_that_moment_is_not_lost() -> None:
    async def run() -> None:
        budget, loop = Budget(1), asyncio.get_running_loop()
        await budget.take()
        waiting = asyncio.create_task(budget.take())
        await asyncio.sleep(0)  # its turn comes in one second
        loop.call_later(1.0, waiting.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await budget.take()
        assert loop.time() == pytest.approx(1.0, abs=0.01)

    with_a_fast_clock(run())


def test_a_fetch_waits_for_the_budget_and_a_viewers_request_does_not() -> None:
    async def run() -> None:
        async with ScriptedUpstream(answer(b"ok")) as scripted:
            upstream = Upstream("api", settings(scripted.url, requests_per_second=0.001))
            await upstream.fetch("/", (), max_body=9)
            waiting = asyncio.create_task(upstream.fetch("/", (), max_body=9))
            await asyncio.sleep(0)
            assert upstream.statistics()["requests_waiting"] == 1
            await relay(upstream).whole()
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert upstream.statistics()["requests_waiting"] == 0
            await upstream.aclose()

    asyncio.run(run())
