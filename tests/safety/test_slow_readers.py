"""Clients that take nothing, or nearly nothing: they cost little, are dropped, and delay nobody."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import SettingsFrame

from tests.safety.harness import Client, GateProcess, Http2Client, get, run, until
from tests.upstream.scripted import Call, ScriptedUpstream, answer

STUCK = 200
BIG = 512 * 1024
PER_CLIENT = 128 * 1024
SOCKET = 4096

ids = iter(range(10_000))


def stream_request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gate.test\r\n\r\n".encode()


class Document:
    """What the upstream shows, changing whenever it is asked while `grows`."""

    def __init__(self, size: int) -> None:
        self.path = f"/orders/{next(ids)}"
        self.version = 0
        self.size = size

    async def __call__(self, call: Call) -> None:
        self.version += 1
        await call.send(answer(json.dumps({"n": self.version, "at": time.time(), "pad": "x" * self.size}).encode()))


async def stick_http1(stack: AsyncExitStack, gate: GateProcess, path: str) -> None:
    client = await stack.enter_async_context(await Client.connect(gate.port, receive_buffer=SOCKET))
    client.stop_reading()
    await client.send(stream_request(path))


async def stick_http2(stack: AsyncExitStack, gate: GateProcess, path: str, window: int) -> Http2Client:
    client = await stack.enter_async_context(await Http2Client.begin(gate.port, window=window))
    client.is_generous = False
    await client.request(path.encode())
    return client


@asynccontextmanager
async def stuck_clients(gate: GateProcess, path: str, how: str, count: int) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(count):
            if how == "never reads":
                await stick_http1(stack, gate, path)
            else:
                await stick_http2(stack, gate, path, {"zero window": 0, "window of 1": 1}[how])
        yield


async def high_tide(gate: GateProcess, document: Document) -> int:
    """The most memory that the topic takes without anybody stuck: half a megabyte is fetched, read and written ten times a second,
    and what that takes for a moment would be counted as the clients'."""
    most, end = 0, document.version + 10
    while document.version < end:
        most = max(most, gate.memory())
        await asyncio.sleep(0.01)
    return most


@pytest.mark.parametrize(
    "how",
    [
        "never reads",
        pytest.param("zero window", marks=pytest.mark.long),
        pytest.param("window of 1", marks=pytest.mark.long),
    ],
)
def test_clients_that_take_nothing_cost_little_memory_and_are_dropped(gate: GateProcess, how: str) -> None:
    async def test() -> None:
        document = Document(BIG)
        async with gate.leaves_nothing(), ScriptedUpstream(document, port=gate.upstream_port):
            async with await Client.connect(gate.port) as healthy:
                await healthy.send(stream_request(document.path + "/events"))
                await healthy.read_until(b"\n\n")
                reading = asyncio.create_task(healthy.reader.read(-1))
                stalled, memory = await gate.metric("ssegate_clients_stalled_total"), await high_tide(gate, document)
                most = memory
                async with stuck_clients(gate, document.path + "/events", how, STUCK):
                    deadline = time.monotonic() + 8
                    # Dropped while they are still there: it is the gate that ends them.
                    while await gate.metric("ssegate_streams") > 1:
                        most = max(most, gate.memory())
                        assert time.monotonic() < deadline, "they are not dropped"
                        await asyncio.sleep(0.05)
                    assert most - memory < STUCK * PER_CLIENT
                    if how != "never reads":
                        assert await gate.metric("ssegate_clients_stalled_total") == stalled + STUCK
                assert not reading.done()
                reading.cancel()

    run(test())


def test_a_window_that_is_closed_later_gets_its_client_dropped(gate: GateProcess) -> None:
    async def test() -> None:
        document = Document(20_000)
        async with gate.leaves_nothing(), ScriptedUpstream(document, port=gate.upstream_port):
            async with AsyncExitStack() as stack:
                client = await stick_http2(stack, gate, document.path + "/events", 65_535)
                await client.until(lambda event: isinstance(event, h2.events.DataReceived))
                await client.send_frames(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
                reset = await client.until(lambda event: isinstance(event, h2.events.StreamReset))
                assert isinstance(reset, h2.events.StreamReset)
                assert reset.error_code == ErrorCodes.INTERNAL_ERROR

    run(test())


def test_a_stream_whose_window_is_closed_does_not_hold_up_its_neighbours(gate: GateProcess) -> None:
    async def test() -> None:
        document = Document(100_000)
        async with gate.leaves_nothing(), ScriptedUpstream(document, port=gate.upstream_port):
            async with AsyncExitStack() as stack:
                client = await stick_http2(stack, gate, document.path + "/events", 0)
                other = await client.request(b"/_ssegate/nothing")
                client.h2.increment_flow_control_window(10_000, other)
                await client.flush()
                assert await client.outcome(other) == 404

    run(test())


def test_a_client_that_never_reads_a_relayed_response_is_dropped_and_its_upstream_let_go(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            for _ in range(1000):
                await call.send(b"a" * 100_000)

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port) as upstream:
            memory = gate.memory()
            async with AsyncExitStack() as stack:
                for _ in range(10):
                    await stick_http1(stack, gate, "/large")
                    await stick_http2(stack, gate, "/large", 0)
                await upstream.until(lambda it: len(it.requests) == 20)
                await until(lambda: upstream.open == 0, "all are dropped", 6)
                assert gate.memory() - memory < 20 * 1024 * 1024

    run(test())


def test_a_client_that_asks_and_never_reads_the_answers_is_dropped(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"a" * 200_000), port=gate.upstream_port):
            before = gate.counts()
            async with await Client.connect(gate.port, receive_buffer=SOCKET) as client:
                client.stop_reading()
                asking = asyncio.create_task(client.send(stream_request("/thing") * 10_000))
                await until(lambda: gate.descriptors() > before.descriptors, "it is served")
                await until(lambda: gate.counts() == before, "it is dropped")
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    run(test())


def test_a_client_that_reads_slowly_but_reads_is_not_dropped(gate: GateProcess) -> None:
    async def test() -> None:
        size = 400_000

        async def handler(call: Call) -> None:
            await call.send(answer(b"a" * size))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Client.connect(gate.port, receive_buffer=SOCKET) as client:
                await client.send(get("/thing"))
                got, began = 0, time.monotonic()
                while piece := await client.reader.read(20_000):
                    got += len(piece)
                    await asyncio.sleep(0.05)
                assert got > size
                assert time.monotonic() - began > 1.0  # longer than limits.stall

    run(test())


def test_stuck_clients_do_not_delay_the_others(gate: GateProcess) -> None:
    async def test() -> None:
        document = Document(50_000)

        async def watch(client: Client, delays: list[float]) -> None:
            while True:
                block = await client.reader.readuntil(b"\n\n")
                data = block.partition(b"data: ")[2].partition(b"\n")[0]
                if data:
                    delays.append(time.time() - json.loads(data)["at"])

        async def measure(seconds: float) -> list[float]:
            delays: list[float] = []
            async with AsyncExitStack() as stack:
                watching = []
                for _ in range(20):
                    client = await stack.enter_async_context(await Client.connect(gate.port))
                    await client.send(f"GET {document.path}/events HTTP/1.0\r\n\r\n".encode())  # without chunks
                    await client.read_until(b"\n\n")
                    watching.append(asyncio.create_task(watch(client, delays)))
                await asyncio.wait(watching, timeout=seconds)
                for task in watching:
                    assert not task.done(), task.exception()
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)
            return sorted(delays)

        async with gate.leaves_nothing(), ScriptedUpstream(document, port=gate.upstream_port):
            alone = await measure(1.0)
            async with stuck_clients(gate, document.path + "/events", "never reads", 25):
                async with stuck_clients(gate, document.path + "/events", "zero window", 25):
                    beside = await measure(1.0)
            assert len(beside) > 100
            assert beside[len(beside) * 99 // 100] < max(0.15, 3 * alone[len(alone) * 99 // 100])

    run(test())
