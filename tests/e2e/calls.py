"""An upstream that streams: each of its requests is taken by the test itself, answered piece by piece, and ended as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11

from tests.e2e import client
from tests.e2e.client import PATIENCE, Asking, Exchange, Http1, Http2, Viewer, connect, trusting
from tests.e2e.gate import Door
from tests.upstream.scripted import Asked, Call, Pair, ScriptedUpstream, answer

SSE: Pair = (b"Content-Type", b"text/event-stream")
NDJSON: Pair = (b"Content-Type", b"application/x-ndjson")
TEXT: Pair = (b"Content-Type", b"text/plain; charset=utf-8")


class LiveCall:
    """One request at the upstream."""

    def __init__(self, call: Call) -> None:
        self.asked: Asked = call.asked
        self.is_done = asyncio.Event()
        self._call = call

    async def begin(self, *headers: Pair, status: int = 200) -> None:
        """Send the head of an answer that comes in chunks."""
        fields = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"Transfer-Encoding", b"chunked")))
        await self._call.send(b"HTTP/1.1 %d Scripted\r\n%b\r\n" % (status, fields))

    async def say(self, *pieces: bytes) -> None:
        """Send pieces of the body, a chunk each."""
        for piece in pieces:
            await self._call.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def send(self, data: bytes) -> None:
        """Send what is no chunk."""
        await self._call.send(data)

    async def end(self) -> None:
        """The answer is whole; the connection may be used for another request."""
        await self._call.send(b"0\r\n\r\n")
        self.is_done.set()

    async def answer(self, body: bytes = b"", *headers: Pair, status: int = 200) -> None:
        """Send a whole answer."""
        await self._call.send(answer(body, *headers, status=status))
        self.is_done.set()

    def cut(self) -> None:
        """End the connection in mid-answer."""
        self._call.close()
        self.is_done.set()

    async def gone(self, patience: float = PATIENCE) -> None:
        """Wait until the gate has closed the connection. What else it sends is dropped."""
        async with asyncio.timeout(patience):
            await self._call.closed()
        self.is_done.set()

    async def read_piece(self) -> bytes:
        """See `Call`."""
        async with asyncio.timeout(PATIENCE):
            return await self._call.read_piece()

    async def read_body(self) -> bytes:
        """See `Call`."""
        async with asyncio.timeout(PATIENCE):
            return await self._call.read_body()


class LiveApi(ScriptedUpstream):
    """`async with LiveApi() as api: call = await api.call()`."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(self._take, port=port)
        self._calls: asyncio.Queue[LiveCall] = asyncio.Queue()

    async def call(self) -> LiveCall:
        """The next request that nobody has taken yet."""
        async with asyncio.timeout(PATIENCE):
            return await self._calls.get()

    async def begun(self, *headers: Pair) -> LiveCall:
        """The same, with the head of its answer sent."""
        call = await self.call()
        await call.begin(*headers)
        return call

    async def _take(self, call: Call) -> None:
        live = LiveCall(call)
        self._calls.put_nowait(live)
        await live.is_done.wait()


async def told(viewer: Viewer, count: int) -> list[str]:
    """The next events in short: `type:data`."""
    events = [await viewer.event() for _ in range(count)]
    return [f"{event.type}:{event.data}" for event in events]


async def datas(viewer: Viewer, count: int) -> list[str]:
    """The data of the next events, none of which has a name."""
    found = []
    for _ in range(count):
        event = await viewer.event()
        assert event.type == "", event
        found.append(event.data)
    return found


@asynccontextmanager
async def uploading(gate: Door, target: str, *headers: client.Pair, method: str = "POST") -> AsyncIterator[Exchange]:
    """A request whose body the test sends, piece by piece, and whose answer it waits for when it likes; in chunks over HTTP/1.1
    unless the headers say how long it is."""
    edge = gate.edge
    reader, writer = await connect("127.0.0.1", gate.port, tls=trusting(edge.http) if edge.tls else None)
    it: Http1 | Http2
    if edge.http == "2":
        it = Http2(reader, writer, None)
        await it.ask(Asking(method, target, headers, has_more=True), f"127.0.0.1:{gate.port}")
    else:
        it = Http1(reader, writer)
        framing = () if any(name == "Content-Length" for name, _ in headers) else (("Transfer-Encoding", "chunked"),)
        fields = [("Host", f"127.0.0.1:{gate.port}"), *headers, *framing]
        writer.write(it._state.send(h11.Request(method=method, target=target, headers=fields)) or b"")
    try:
        yield it
    finally:
        it.close()
        await client._gone(writer)


async def answered(it: Exchange) -> client.Reply:
    """The whole response."""
    async with asyncio.timeout(PATIENCE):
        await it.head()
        parts = []
        while piece := await it.read():
            parts.append(piece)
    return client.Reply(it.status, it.headers, b"".join(parts))
