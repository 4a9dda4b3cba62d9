"""A minute of comings and goings on every kind of connection: memory, tasks and descriptors end where they began."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from h2.errors import ErrorCodes

from tests.safety.conftest import CONFIG
from tests.safety.harness import Client, Counts, GateProcess, Http2Client, get, run_for, trusting, until
from tests.safety.test_storms import gate_of, post_ticket, request_of
from tests.safety.test_upgrade import asking
from tests.upstream.scripted import Call, ScriptedUpstream, answer

TLS = 'keep_alive: 20s, tls: {listen: "127.0.0.1:0", self_signed: true}'
AT_ONCE = 30
GROWTH = 8 * 2**20
"""Bytes by which an allocator may come to rest elsewhere; what was once kept by mistake was three times as much."""

random_ = random.Random(3)


class Upstream:
    """Documents that change, large bodies, uploads, WebSockets, and now and then trouble."""

    def __init__(self) -> None:
        self._version = 0

    async def __call__(self, call: Call) -> None:
        if call.asked.get("upgrade") is not None:
            await call.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := await call.receive():
                await call.send(data)
            call.close()
            return
        await call.read_body()
        self._version += 1
        if call.asked.target == "/cut":
            await call.send(answer(b"cut", length=1000))
            call.close()
            return
        size = 200_000 if call.asked.target == "/large" else 300
        await call.send(answer(json.dumps({"version": self._version, "pad": "x" * size}).encode()))


async def watch(gate: GateProcess) -> None:
    """An event stream that ends as most do: the client is gone."""
    path = random_.choice(["/orders/1/events", "/orders/2/events", "/tickets/1/events"])
    tls = random_.random() < 0.3
    async with await Client.connect(
        gate.tls if tls else gate.port, tls=trusting("http/1.1") if tls else None
    ) as client:
        await client.send(request_of(path))
        await client.read_until(b"\n")
        await asyncio.sleep(random_.random())
        if random_.random() < 0.5 and not tls:
            client.reset()


async def watch_many(gate: GateProcess) -> None:
    tls = random_.random() < 0.3
    port, context = (gate.tls, trusting("h2")) if tls else (gate.port, None)
    async with await Http2Client.begin(port, tls=context) as client:
        streams = [await client.request(f"/orders/{number}/events".encode()) for number in range(5)]
        await client.until(lambda _: len(client.body(streams[0])) > 0)
        for stream in streams[::2]:
            client.h2.reset_stream(stream, ErrorCodes.CANCEL)
        await client.flush()
        await asyncio.sleep(random_.random())


async def relay(gate: GateProcess) -> None:
    async with await Client.connect(gate.port) as client:
        body = b"a" * random_.choice([10, 100_000])
        await client.send(b"POST /things HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await client.read_response()
        await client.send(get(random_.choice(["/large", "/things", "/cut"])))
        if random_.random() < 0.7:
            await client.read_to_end()


async def tunnel(gate: GateProcess) -> None:
    async with await Client.connect(gate.port) as client:
        await client.send(asking() + b"hello")
        await client.read_until(b"\r\n\r\n")
        assert await client.reader.readexactly(5) == b"hello"


async def get_stuck(gate: GateProcess) -> None:
    async with await Client.connect(gate.port, receive_buffer=4096) as client:
        client.stop_reading()
        await client.send(request_of("/large"))
        await asyncio.sleep(2 * random_.random())


async def deliver(gate: GateProcess) -> None:
    async with await Client.connect(gate.port) as client:
        await client.send(post_ticket("1", "x" * random_.choice([10, 20_000])))
        assert (await client.read_response()).status < 300


async def misbehave(gate: GateProcess) -> None:
    async with await Client.connect(random_.choice([gate.port, gate.tls])) as client:
        await client.send(
            random_.choice([b"", b"GET", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\n", b"\0" * 50])
        )
        await asyncio.sleep(random_.random())


KINDS: list[Callable[[GateProcess], Awaitable[None]]] = [
    watch, watch, watch, watch_many, watch_many, relay, relay, tunnel, get_stuck, deliver, misbehave,
]  # fmt: skip


async def churn(gate: GateProcess, seconds: float) -> int:
    """So many clients at once, each something else, one after the other; how many there were."""
    until_ = time.monotonic() + seconds

    async def one_after_the_other() -> int:
        count = 0
        while time.monotonic() < until_:
            await random_.choice(KINDS)(gate)
            count += 1
        return count

    return sum(await asyncio.gather(*[one_after_the_other() for _ in range(AT_ONCE)]))


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_a_time_of_comings_and_goings_leaves_nothing_behind(tmp_path: Path, seconds: float) -> None:
    async def test(gate: GateProcess) -> None:
        async with ScriptedUpstream(Upstream(), port=gate.upstream_port) as upstream:
            await churn(gate, min(seconds / 2, 15))  # what is made once and kept has been made
            await rest(gate)
            before, memory = own(gate, upstream), gate.memory()
            count = await churn(gate, seconds)
            await rest(gate)
            await until(lambda: own(gate, upstream).descriptors <= before.descriptors, f"back to {before}")
            await until(lambda: own(gate, upstream).tasks <= before.tasks, f"back to {before}")
            grown = gate.memory() - memory
            print(f"{count} clients in {seconds:g} s, grown {grown / 1024:.0f} KiB, {upstream.connections} connections")
            assert grown < GROWTH

    with gate_of(CONFIG.replace("keep_alive: 20s", TLS), tmp_path) as gate:
        run_for(3 * seconds + 30, test(gate))


def own(gate: GateProcess, upstream: ScriptedUpstream) -> Counts:
    """What there is in the gate, but for connections to the upstream, of which it keeps some for a minute."""
    return Counts(gate.tasks(), gate.descriptors() - upstream.open)


async def rest(gate: GateProcess) -> None:
    """Until nobody is there any more."""
    await asyncio.sleep(1.5)  # the wheel's and the upstream's timers
    assert await gate.metric("ssegate_streams") == 0
