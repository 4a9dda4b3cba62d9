from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest

from ssegate.core.headers import Headers
from ssegate.errors import UpstreamError, UpstreamUnreachableError
from ssegate.upstream import Upstream, pool
from ssegate.upstream.connection import Connection, Outgoing
from ssegate.upstream.line import Endpoint
from ssegate.upstream.pool import Budget, Pool
from tests.upstream.scripted import Call, ScriptedUpstream, answer
from tests.upstream.settings import settings


@asynccontextmanager
async def pool_of(size: int, wait: float = 5.0) -> AsyncIterator[tuple[Pool, ScriptedUpstream]]:
    async with ScriptedUpstream(answer(b"ok")) as scripted:
        connections = Pool(Endpoint("127.0.0.1", scripted.port), size, connect_timeout=1.0, wait_timeout=wait)
        try:
            yield connections, scripted
        finally:
            connections.close()


async def use(connection: Connection) -> None:
    """One request, its answer read to the end."""
    await connection.request(Outgoing("GET /", b"GET", b"/", [(b"Host", b"api")]), 1.0)
    while await connection.read_body():
        pass


# Connections


def test_the_connection_used_last_is_used_again() -> None:
    async def run() -> None:
        async with pool_of(5) as (connections, scripted):
            first, second = await connections.acquire("GET /"), await connections.acquire("GET /")
            await use(first)
            await use(second)
            connections.release(second)
            connections.release(first)
            assert await connections.acquire("GET /") is first
            assert connections.statistics() == {
                "connections_open": 2.0,
                "connections_in_use": 1.0,
                "requests_waiting": 0.0,
            }
            assert scripted.connections == 2

    asyncio.run(run())


def test_a_connection_whose_answer_was_not_read_is_closed() -> None:
    async def run() -> None:
        async with pool_of(1) as (connections, scripted):
            connection = await connections.acquire("GET /")
            await connection.request(Outgoing("GET /", b"GET", b"/", [(b"Host", b"api")]), 1.0)
            connections.release(connection)
            connections.release(connection)
            await scripted.until(lambda it: it.open == 0)
            assert await connections.acquire("GET /") is not connection

    asyncio.run(run())


def test_a_fresh_connection_counts_too() -> None:
    async def run() -> None:
        async with pool_of(1) as (connections, scripted):
            old = await connections.acquire("GET /")
            await use(old)
            connections.release(old)
            assert await connections.acquire("GET /", is_fresh=True) is not old
            await scripted.until(lambda it: it.connections == 2 and it.open == 1)

    asyncio.run(run())


def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)

    async def run() -> None:
        async with pool_of(2) as (connections, scripted):
            both = [await connections.acquire("GET /") for _ in range(2)]
            for connection in both:
                await use(connection)
                connections.release(connection)
            await scripted.until(lambda it: it.open == 0)
            assert connections.statistics()["connections_open"] == 0

    asyncio.run(run())


# Places


def test_places_are_given_in_the_order_they_were_asked_for() -> None:
    async def run() -> None:
        async with pool_of(1) as (connections, _):
            order: list[int] = []

            async def one(number: int) -> None:
                connection = await connections.acquire("GET /")
                order.append(number)
                await use(connection)
                connections.release(connection)

            held = await connections.acquire("GET /")
            tasks = [asyncio.create_task(one(number)) for number in range(5)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            connections.release(held)
            late = asyncio.create_task(one(5))
            await asyncio.gather(*tasks, late, return_exceptions=True)
            assert order == [0, 2, 3, 4, 5]

    asyncio.run(run())


def test_when_all_connections_are_busy_the_wait_ends_with_an_error() -> None:
    async def run() -> None:
        async with pool_of(2, wait=0.05) as (connections, _):
            held = [await connections.acquire("GET /") for _ in range(2)]
            with pytest.raises(UpstreamUnreachableError, match=r"^GET /: all 2 connections are busy$"):
                await connections.acquire("GET /")
            connections.release(held[0])
            await connections.acquire("GET /")
            assert connections.statistics()["requests_waiting"] == 0

    asyncio.run(run())


def test_a_place_given_to_someone_who_is_cancelled_in_that_moment_is_not_lost() -> None:
    async def run() -> None:
        async with pool_of(1) as (connections, _):
            held = await connections.acquire("GET /")
            waiting = asyncio.create_task(connections.acquire("GET /"))
            await asyncio.sleep(0)
            connections.release(held)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await asyncio.wait_for(connections.acquire("GET /"), 1)

    asyncio.run(run())


def test_a_failed_connect_gives_its_place_back() -> None:
    async def run() -> None:
        connections = Pool(Endpoint("127.0.0.1", 1), 1, connect_timeout=1.0, wait_timeout=0.1)
        for _ in range(3):
            with pytest.raises(UpstreamUnreachableError, match="connection refused"):
                await connections.acquire("GET /")

    asyncio.run(run())


def test_closing_sends_off_who_waits() -> None:
    async def run() -> None:
        async with pool_of(1) as (connections, scripted):
            await connections.acquire("GET /")
            waiting = asyncio.create_task(connections.acquire("GET /"))
            await asyncio.sleep(0)
            connections.close()
            with pytest.raises(UpstreamUnreachableError, match="closed"):
                await waiting
            await scripted.until(lambda it: it.open == 0)

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
                    await relay(upstream, fields)

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


async def relay(upstream: Upstream, fields: tuple[tuple[bytes, bytes], ...]) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.001)
        yield b"bc"

    response = await upstream.send("PUT", b"/x", Headers(fields), body(), http_version="1.1", scheme="http", peer="")
    try:
        async for _ in response:
            pass
    finally:
        await response.aclose()


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
            await relay(upstream, ())
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert upstream.statistics()["requests_waiting"] == 0
            await upstream.aclose()

    asyncio.run(run())
