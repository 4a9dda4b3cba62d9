"""An upstream of raw sockets: a test says which bytes answer which request and when, and reads what was asked."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

Pair = tuple[bytes, bytes]


def answer(
    body: bytes = b"", *headers: Pair, status: int = 200, version: str = "1.1", length: int | None = None
) -> bytes:
    """A whole answer as bytes; `length` lies about the body's."""
    size = len(body) if length is None else length
    head = b"HTTP/%b %d Scripted\r\n" % (version.encode(), status)
    fields = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"Content-Length", b"%d" % size)))
    return head + fields + b"\r\n" + body


def chunked(*pieces: bytes, headers: Sequence[Pair] = (), trailers: Sequence[Pair] = ()) -> bytes:
    """A whole answer in chunks."""
    fields = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"Transfer-Encoding", b"chunked")))
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    end = b"0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in trailers) + b"\r\n"
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body + end


@dataclass
class Asked:
    """One request as it came."""

    number: int
    """Counted from 0, over all connections."""
    connection: int
    """The number of its connection, counted from 0."""
    head: bytes
    """Raw, with its blank line."""
    body: bytes = b""
    """As far as it was read, without chunk framing."""
    headers: list[Pair] = field(init=False)

    def __post_init__(self) -> None:
        lines = self.head.split(b"\r\n")[1:-2]
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    def get(self, name: str) -> str | None:
        """A field's values, joined; None when it did not come."""
        values = [value for key, value in self.headers if key.lower() == name.lower().encode()]
        return b", ".join(values).decode("latin-1") if values else None


class Call:
    """What a handler gets: the request, and the socket to answer it on."""

    def __init__(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = asked
        self.is_read = False
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, seconds: float) -> None:
        """Send byte by byte, with a pause behind each."""
        for byte in data:
            await self.send(bytes((byte,)))
            await asyncio.sleep(seconds)

    async def read_body(self) -> bytes:
        """The request's whole body; it is kept in `asked.body` too."""
        while await self.read_piece():
            pass
        return self.asked.body

    async def read_piece(self) -> bytes:
        """A chunk of the request's body, or all of it where Content-Length says how much; empty at its end."""
        if self.is_read:
            return b""
        if (self.asked.get("transfer-encoding") or "").lower() == "chunked":
            size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            piece = (await self._reader.readexactly(size + 2))[:-2]
            self.is_read = not size
        else:
            piece = await self._reader.readexactly(int(self.asked.get("content-length") or 0))
            self.is_read = True
        self.asked.body += piece
        return piece

    async def read_raw(self, end: bytes) -> bytes:
        """What comes up to these bytes, as it is."""
        self.is_read = True
        return await self._reader.readuntil(end)

    async def receive(self) -> bytes:
        """Some of what comes, as it is; empty when the other side has ended."""
        self.is_read = True
        return await self._reader.read(65536)

    async def read_rest(self) -> bytes:
        """What comes until the other side ends."""
        self.is_read = True
        return await self._reader.read()

    def end(self) -> None:
        """Send no more, but still read."""
        self._writer.write_eof()

    def close(self) -> None:
        """End the connection in order: what was sent arrives."""
        self._writer.close()

    def reset(self) -> None:
        """End it with RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def closed(self) -> None:
        """Wait until the other side has closed. Drops what else it sends."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    @property
    def is_over(self) -> bool:
        return self._writer.is_closing()


Handler = Callable[[Call], Awaitable[None]]
Step = bytes | Handler


def script(*steps: Step) -> Handler:
    """A handler that takes one step a request, bytes or a handler of its own; the last one is repeated."""

    async def handle(call: Call) -> None:
        step = steps[min(call.asked.number, len(steps) - 1)]
        if isinstance(step, bytes):
            await call.read_body()
            await call.send(step)
        else:
            await step(call)

    return handle


class ScriptedUpstream:
    """`async with ScriptedUpstream(handler) as upstream:` a server at `upstream.url`.

    The handler is called with each request as soon as its head is there. When it returns, the connection waits for the
    next request, unless the handler ended it; a body it left unread is read then. What a handler raises is raised at the
    end of the `async with`, but not that the other side went away.
    """

    def __init__(self, handler: Step, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Asked] = []
        self.connections = 0
        """How many were ever accepted."""
        self.open = 0
        """How many are open now."""
        self.port = port
        self.answer_with(handler)
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._errors: list[Exception] = []
        self._waiting: list[tuple[Callable[[ScriptedUpstream], bool], asyncio.Future[None]]] = []

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await stop_accepting(self._server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # a peer that does not read would keep what was written, and the connection
        await turn_over()
        await self._server.wait_closed()
        if self._errors and error is None:
            raise self._errors[0]

    async def until(self, fact: Callable[[ScriptedUpstream], bool]) -> None:
        """Wait until something is true of this server: `upstream.until(lambda it: it.open == 0)`."""
        if not fact(self):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((fact, future))
            await future

    def answer_with(self, handler: Step) -> None:
        """From the next request on, answer with this."""
        self._handler = script(handler) if isinstance(handler, bytes) else handler

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(self.connections, reader, writer))
        self.connections += 1
        self._writers.add(writer)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # cancelled before its first step, it closes nothing itself

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._count(1)
            while not writer.is_closing():
                await self._serve_one(number, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side went away, which it may at any time
        except Exception as error:
            self._errors.append(error)
        finally:
            writer.close()
            self._count(-1)

    async def _serve_one(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = Asked(len(self.requests), number, await reader.readuntil(b"\r\n\r\n"))
        self.requests.append(asked)
        self._tell()
        call = Call(asked, reader, writer)
        await self._handler(call)
        if not call.is_over:
            await call.read_body()

    def _count(self, change: int) -> None:
        self.open += change
        self._tell()

    def _tell(self) -> None:
        for fact, future in self._waiting:
            if not future.done() and fact(self):
                future.set_result(None)


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server, and lose nothing it has accepted.

    asyncio accepts a connection and gives it a transport one turn of the loop later; when the server is closed in
    between, that fails without a word, and the connection stays open until it is collected.
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await turn_over()
    server.close()


async def turn_over() -> None:
    """Let the loop do what it has already begun."""
    for _ in range(5):
        await asyncio.sleep(0)


def heads(asked: Asked) -> list[str]:
    """The names of a request's fields in lower case and order."""
    return [name.decode().lower() for name, _ in asked.headers]


def named(asked: Asked, pattern: str) -> list[Pair]:
    """The fields whose name matches, as they came."""
    return [(name, value) for name, value in asked.headers if re.fullmatch(pattern.encode(), name, re.IGNORECASE)]
