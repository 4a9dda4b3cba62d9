"""Many clients at once that mean harm, or come all together: what they cost is bounded, and nobody else is hurt."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json
import resource
import selectors
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path

import hpack
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import ContinuationFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from tests.safety.conftest import CONFIG
from tests.safety.harness import Client, GateProcess, Http2Client, ask, get, run, trusting, until
from tests.upstream.scripted import Call, ScriptedUpstream, answer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PER_CLIENT = 128 * 1024

PATIENT = CONFIG.replace("stall: 1s", "stall: 30s, clients: 20000")
"""A gate on which stuck clients stay for the whole test."""

BRISK = CONFIG.replace("defaults: {", "defaults: {heartbeat: 1s, ")
"""A gate with a heartbeat that can be waited for."""


@contextmanager
def gate_of(config: str, directory: Path, *, files: int | None = None) -> Iterator[GateProcess]:
    gate = GateProcess(config, directory, files=files)
    try:
        yield gate
        assert "Traceback" not in gate.log(), gate.log()
    finally:
        gate.stop()


def request_of(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gate.test\r\n\r\n".encode()


def http2_request_of(path: str, *, window: int = 65_535) -> bytes:
    """All that a client of HTTP/2 says to get one stream."""
    head = ((":method", "GET"), (":scheme", "http"), (":authority", "gate.test"), (":path", path))
    block = hpack.Encoder().encode(head, huffman=False)
    settings = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: window})
    asked = HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"])
    return PREFACE + settings.serialize() + asked.serialize()


def stuck(port: int, data: bytes) -> socket.socket:
    """A client that asks and never reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(data)
    return connection


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this process may open {hard} files, and {count} are needed: ulimit -n")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


# Clients that take nothing


@asynccontextmanager
async def healthy_clients(gate: GateProcess, path: str, count: int) -> AsyncIterator[list[float]]:
    """The delays of what these are sent, as they come."""
    delays: list[float] = []

    async def watch(client: Client) -> None:
        while True:
            block = await client.reader.readuntil(b"\n\n")
            if data := block.partition(b"data: ")[2].partition(b"\n")[0]:
                delays.append(time.time() - json.loads(data)["at"])

    async with AsyncExitStack() as stack:
        watching = []
        for _ in range(count):
            client = await stack.enter_async_context(await Client.connect(gate.port))
            await client.send(request_of(path))
            await client.read_until(b"\n\n")
            watching.append(asyncio.create_task(watch(client)))
        yield delays
        for task in watching:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def p99_of(delays: list[float], seconds: float) -> float:
    delays.clear()
    await asyncio.sleep(seconds)
    assert len(delays) > 300
    return sorted(delays)[len(delays) * 99 // 100]


@pytest.mark.long
def test_a_thousand_stuck_clients_cost_little_and_delay_nobody(tmp_path: Path) -> None:
    allow_files(3000)

    async def test(gate: GateProcess) -> None:
        async def handler(call: Call) -> None:
            size = 256 * 1024 if call.asked.target == "/orders/large" else 100
            await call.send(answer(json.dumps({"at": time.time(), "pad": "x" * size}).encode()))

        async with ScriptedUpstream(handler, port=gate.upstream_port):
            async with healthy_clients(gate, "/orders/small/events", 100) as delays:
                with ExitStack() as stack:
                    # One of each kind to begin with: what the topic itself costs is not theirs.
                    for data in (
                        request_of("/orders/large/events"),
                        http2_request_of("/orders/large/events", window=0),
                    ):
                        stack.enter_context(stuck(gate.port, data))
                    await asyncio.sleep(1.0)
                    alone, memory = await p99_of(delays, 1.5), gate.memory()
                    for number in range(1000):
                        path = "/orders/large/events"
                        data = request_of(path) if number % 2 else http2_request_of(path, window=0)
                        stack.enter_context(stuck(gate.port, data))
                        await asyncio.sleep(0)
                    await asyncio.sleep(1.0)
                    beside = await p99_of(delays, 1.5)
                    assert await gate.metric("ssegate_streams") == 1102
                    each = (gate.memory() - memory) / 1000
                    print(f"p99 {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside; {each / 1024:.0f} KiB each")
                    assert each < PER_CLIENT
                    assert beside < max(1.5 * alone, alone + 0.02)

    with gate_of(PATIENT, tmp_path) as gate:
        run(test(gate))


# Rapid reset


def resets(count: int) -> bytes:
    """A connection's whole life: so many requests, each taken back at once."""
    encoder = hpack.Encoder()
    head = ((":method", "GET"), (":scheme", "http"), (":authority", "gate.test"), (":path", "/slow"))
    data = [PREFACE, SettingsFrame(0).serialize()]
    for number in range(count):
        stream = 2 * number + 1
        asked = HeadersFrame(stream, encoder.encode(head), flags=["END_HEADERS", "END_STREAM"])
        data += [asked.serialize(), RstStreamFrame(stream, error_code=ErrorCodes.CANCEL).serialize()]
    return b"".join(data)


async def reset_rapidly(port: int, seconds: float, rate: int) -> int:
    """So many resets a second, over as many connections as that takes, because each is ended; how many were sent."""
    data, per_connection, sent = resets(500), 500, 0

    async def attack() -> None:
        async with await Client.connect(port) as client:
            await client.send(data)
            assert await client.read_to_end(), "the gate says why it ends it"

    began = time.monotonic()
    attacks: set[asyncio.Task[None]] = set()
    while (passed := time.monotonic() - began) < seconds:
        if sent <= rate * passed:
            attacks.add(asyncio.create_task(attack()))
            sent += per_connection
        await asyncio.sleep(0.002)
    for attacking in attacks:
        await attacking
    return sent


@pytest.mark.parametrize("seconds", [2.5, pytest.param(10.0, marks=pytest.mark.long)])
def test_rapid_reset_leaves_nothing_and_a_bystander_keeps_its_heartbeat(tmp_path: Path, seconds: float) -> None:
    async def bystand(client: Http2Client, beats: list[float]) -> None:
        seen = 0
        while await client.receive():
            now = sum(bytes(event.data).count(b":\n") for event in client.events if hasattr(event, "data"))
            if now > seen:
                seen = now
                beats.append(time.monotonic())

    async def test(gate: GateProcess) -> None:
        async def never(call: Call) -> None:
            await call.closed()
            call.close()

        async with ScriptedUpstream(never, port=gate.upstream_port) as upstream:
            await reset_rapidly(gate.port, 0.3, 10_000)  # warm
            async with await Http2Client.begin(gate.port) as client:
                await client.request(b"/tickets/1/events")
                beats: list[float] = []
                standing = asyncio.create_task(bystand(client, beats))
                await until(lambda: bool(beats), "a heartbeat")
                before, memory = gate.counts(), gate.memory()
                sent = await reset_rapidly(gate.port, seconds, 10_000)
                await until(lambda: upstream.open == 0, "no upstream request is left", 3)
                await until(lambda: gate.descriptors() <= before.descriptors, "no connection is left", 3)
                await until(lambda: gate.tasks() <= before.tasks, "no task is left", 3)
                grown = gate.memory() - memory
                gaps = [after - at for at, after in pairwise(beats)]
                print(f"{sent / seconds:.0f} resets/s, grown {grown / 2**20:.1f} MiB, longest gap {max(gaps):.2f} s")
                assert sent >= 9_000 * seconds
                assert grown < 8 * 2**20
                assert max(gaps) < 2.0
                assert not standing.done()
                standing.cancel()
                await asyncio.gather(standing, return_exceptions=True)

    with gate_of(BRISK, tmp_path) as gate:
        run(test(gate))


# Descriptors


def cpu_seconds(gate: GateProcess) -> float:
    fields = Path(f"/proc/{gate.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("port", ["plain", "tls"])
def test_without_descriptors_the_listener_waits_says_so_once_and_recovers(tmp_path: Path, port: str) -> None:
    tls = trusting() if port == "tls" else None

    async def test(gate: GateProcess) -> None:
        where = gate.tls if tls else gate.port
        async with await Client.connect(gate.port) as viewer:
            await viewer.send(request_of("/tickets/1/events"))
            await viewer.read_until(b"\n")
            async with AsyncExitStack() as crowd:
                for _ in range(80):
                    idle = await crowd.enter_async_context(await Client.connect(where))
                    await idle.send(b"\x16" if tls else b"G")
                await until(lambda: "no connection can be accepted" in gate.log(), "it says so")
                waiting = asyncio.create_task(greet(where, tls))
                before = cpu_seconds(gate)
                await asyncio.sleep(0.5)
                assert cpu_seconds(gate) - before < 0.15, "it does not spin"
                assert not waiting.done()
            assert await waiting == 404
            assert await greet(where, tls) == 404
            await ask(gate.port, post_ticket("1", "still here"))
            assert b"still here" in await viewer.read_until(b"\n\n")
        said = gate.log()
        assert said.count("no connection can be accepted") == said.count("connections are accepted again") == 1
        assert "defect" not in said

    config = CONFIG.replace("keep_alive: 20s", 'keep_alive: 20s, tls: {listen: "127.0.0.1:0", self_signed: true}')
    with gate_of(config, tmp_path, files=64) as gate:
        run(test(gate))


async def greet(port: int, tls: ssl.SSLContext | None) -> int:
    async with await Client.connect(port, tls=tls) as client:
        await client.send(get("/_ssegate/nothing"))
        return (await client.read_response()).status


def post_ticket(id_: str, text: str) -> bytes:
    body = json.dumps({"id": id_, "type": "note", "text": text}).encode()
    fields = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return b"POST /hooks/tickets HTTP/1.1\r\nHost: gate.test\r\n" + fields + body


# All at once


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_storm_of_connections_is_served(tmp_path: Path, count: int) -> None:
    allow_files(count + 500)
    asked = request_of("/tickets/1/events")
    with gate_of(PATIENT, tmp_path) as gate, ExitStack() as stack, selectors.DefaultSelector() as selector:
        run(_ticket(gate))
        began = time.monotonic()
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", gate.port)))
            connection.sendall(asked)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        heads: dict[int, bytes] = {}
        served = 0
        while served < count:
            events = selector.select(5.0)
            assert events, f"{served} of {count} were served"
            for key, _ in events:
                head = heads[key.fd] = heads.get(key.fd, b"") + key.fileobj.recv(4096)  # type: ignore[union-attr]  # a socket
                if b"retry:" in head:
                    assert head.startswith(b"HTTP/1.1 200 "), head
                    selector.unregister(key.fileobj)
                    served += 1
        seconds = time.monotonic() - began
        print(f"{count} connections in {seconds:.2f} s")
        assert seconds < 5.0
        run(_count_streams(gate, count))


async def _ticket(gate: GateProcess) -> None:
    await ask(gate.port, post_ticket("1", "begin"))


async def _count_streams(gate: GateProcess, count: int) -> None:
    assert await gate.metric("ssegate_streams") == count


# Clients that begin, and do not go on


def test_a_head_that_waits_for_its_continuation_is_ended(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing():
            for is_dripping in (False, True):
                async with await Http2Client.begin(native.port) as client:
                    head = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"g"), (b":path", b"/"))
                    await client.send_frames(HeadersFrame(1, client.h2.encoder.encode(head)))
                    began = time.monotonic()
                    dripping = asyncio.create_task(_drip(client)) if is_dripping else None
                    assert await client.farewell() == ErrorCodes.ENHANCE_YOUR_CALM
                    assert 0.4 < time.monotonic() - began < 3.0
                    if dripping is not None:
                        dripping.cancel()
                        await asyncio.gather(dripping, return_exceptions=True)

    run(test())


async def _drip(client: Http2Client) -> None:
    while True:
        await asyncio.sleep(0.1)
        await client.send_frames(ContinuationFrame(1, client.h2.encoder.encode([(b"x-a", b"b")])))


@pytest.mark.parametrize("word", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "a part of a hello"])
def test_handshakes_that_do_not_go_on_are_ended_and_keep_nobody_out(native: GateProcess, word: bytes) -> None:
    async def test() -> None:
        async with native.leaves_nothing(), AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(await Client.connect(native.tls)) for _ in range(200)]
            began = time.monotonic()
            for client in crowd:
                await client.send(word)
            good = await stack.enter_async_context(await Client.connect(native.tls, tls=trusting("http/1.1")))
            await good.send(get("/_ssegate/nothing"))
            assert (await good.read_response()).status == 404
            # Two hundred have six or seven turns of a quarter of a second before it.
            assert time.monotonic() - began < (2.5 if word else 0.5)
            for client in crowd:
                await client.read_to_end()
            assert time.monotonic() - began < 5.0

    run(test())


def test_plain_text_on_the_tls_port_is_ended_without_a_word_in_the_log(native: GateProcess) -> None:
    async def test() -> None:
        logged = len(native.log())
        async with native.leaves_nothing():
            for data in (get("/"), PREFACE, b"\0" * 100, b"\x16\x03\x01\x00\x05hello"):
                async with await Client.connect(native.tls) as client:
                    await client.send(data)
                    assert b"HTTP/" not in await client.read_to_end()
            async with await Client.connect(native.tls, tls=trusting("http/1.1")) as client:
                await client.send(get("/_ssegate/nothing"))
                assert (await client.read_response()).status == 404
        said = native.log()[logged:]
        assert not [line for line in said.splitlines() if line.startswith(("WARNING", "ERROR"))], said

    run(test())


def test_tls_on_the_plain_port_is_ended(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing():
            with pytest.raises((ConnectionError, OSError)):
                await Client.connect(native.port, tls=trusting("h2", "http/1.1"))
            assert (await ask(native.port, get("/_ssegate/nothing"))).status == 404

    run(test())


def test_a_client_that_offers_no_protocol_that_is_known_gets_http_1(native: GateProcess) -> None:
    async def test() -> None:
        async with native.leaves_nothing():
            for offered in ((), ("http/1.1",), ("spdy/3", "http/1.1")):
                async with await Client.connect(native.tls, tls=trusting(*offered)) as client:
                    await client.send(get("/_ssegate/nothing"))
                    assert (await client.read_response()).status == 404
            async with await Http2Client.begin(native.tls, tls=trusting("h2")) as http2:
                assert await http2.outcome(await http2.request(b"/_ssegate/nothing")) == 404

    run(test())
