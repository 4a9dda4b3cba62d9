"""A viewer of raw sockets: one request a connection, over HTTP/1.1 or HTTP/2, and a reader of event streams on top."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType
from typing import Any, Protocol, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11

from ssegate.core.event import Event, EventStreamDecoder

Pair = tuple[str, str]

PATIENCE = 10.0
"""Seconds after which a test that waits for bytes has failed."""


class CutError(ConnectionError):
    """The response was broken off: it did not end as a whole one does."""


class Exchange(Protocol):
    """One request and its response."""

    status: int
    headers: list[tuple[str, str]]
    """Of the response, names in lower case, in order."""

    async def read(self) -> bytes:
        """The next piece of the body; empty at its end. Raises `CutError` when it does not come to one."""
        ...

    async def send(self, data: bytes, *, last: bool) -> None:
        """A further piece of the request's body."""
        ...

    async def head(self) -> None:
        """Wait for the response's head."""
        ...

    def close(self) -> None: ...
    def reset(self) -> None:
        """End the connection with RST, as a network that is gone does."""
        ...


@dataclass(frozen=True)
class Asking:
    """A request."""

    method: str
    target: str
    headers: tuple[Pair, ...] = ()
    body: bytes = b""
    has_more: bool = False
    """Whether `Exchange.send` follows."""


class _Socket:
    """What both versions have in common: a connection that is read and written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: list[tuple[str, str]] = []

    async def _read_some(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except ConnectionError as error:
            raise CutError("the connection was reset") from error

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        if sock is not None:  # else it has been closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _see(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = [(name.decode().lower(), value.decode("latin-1")) for name, value in headers]


class Http1(_Socket):
    """HTTP/1.1 by h11."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)

    async def ask(self, asking: Asking, authority: str) -> None:
        fields = [("Host", authority), *asking.headers]
        if asking.body or asking.has_more:
            framing = ("Transfer-Encoding", "chunked") if asking.has_more else ("Content-Length", str(len(asking.body)))
            fields.append(framing)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
        event = h11.Request(method=asking.method, target=asking.target, headers=headers)
        data = self._state.send(event) or b""
        if asking.body:
            data += self._state.send(h11.Data(data=asking.body)) or b""
        if not asking.has_more:
            data += self._state.send(h11.EndOfMessage()) or b""
        self._writer.write(data)

    async def send(self, data: bytes, *, last: bool) -> None:
        if data:
            self._writer.write(self._state.send(h11.Data(data=data)) or b"")
        if last:
            self._writer.write(self._state.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()

    async def head(self) -> None:
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                self._see(event.status_code, event.headers)
                return

    async def read(self) -> bytes:
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next(self) -> Any:
        try:
            while (event := self._state.next_event()) is h11.NEED_DATA:
                self._state.receive_data(await self._read_some())
        except h11.RemoteProtocolError as error:
            raise CutError(str(error)) from error
        if isinstance(event, h11.ConnectionClosed):
            raise CutError("the connection was closed")
        return event


class Http2(_Socket):
    """HTTP/2 with prior knowledge by h2. Windows open as the body is read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int | None) -> None:
        super().__init__(reader, writer)
        settings = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._state = h2.connection.H2Connection(settings)
        # hpack's Huffman coding takes the square of a field's length in time.
        self._state.encoder.encode = partial(self._state.encoder.encode, huffman=False)  # type: ignore[method-assign]  # no other way to say it
        self._window = window
        self._events: deque[h2.events.Event] = deque()
        self._is_over = False

    async def ask(self, asking: Asking, authority: str) -> None:
        self._state.initiate_connection()
        if self._window is not None:
            self._state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._window})
        pseudo = [(":method", asking.method), (":scheme", "http"), (":authority", authority), (":path", asking.target)]
        fields = [*pseudo, *((name.lower(), value) for name, value in asking.headers)]
        if asking.body and not asking.has_more:
            fields.append(("content-length", str(len(asking.body))))
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in fields]
        self._state.send_headers(1, encoded, end_stream=not asking.body and not asking.has_more)
        self._writer.write(self._state.data_to_send())
        if asking.body:
            await self.send(asking.body, last=not asking.has_more)

    async def send(self, data: bytes, *, last: bool) -> None:
        while data and not self._is_over:
            room = min(self._state.local_flow_control_window(1), self._state.max_outbound_frame_size, len(data))
            if not room:
                await self._receive()
                continue
            piece, data = data[:room], data[room:]
            self._state.send_data(1, piece, end_stream=last and not data)
            self._writer.write(self._state.data_to_send())
            await self._writer.drain()
        if last and not data and self._state.streams[1].state_machine.state.name in ("OPEN", "HALF_CLOSED_REMOTE"):
            self._state.end_stream(1)
            self._writer.write(self._state.data_to_send())

    async def head(self) -> None:
        while True:
            event = await self._next()
            if isinstance(event, h2.events.ResponseReceived):
                fields = dict(event.headers)
                status = int(fields[b":status"])
                self._see(status, [pair for pair in event.headers if not pair[0].startswith(b":")])
                return

    async def read(self) -> bytes:
        while not isinstance(event := await self._next(), h2.events.StreamEnded):
            if not isinstance(event, h2.events.DataReceived):
                continue
            if event.flow_controlled_length:
                self._state.acknowledge_received_data(event.flow_controlled_length, 1)
                self._writer.write(self._state.data_to_send())
            if event.data:
                return bytes(event.data)
        return b""

    async def _next(self) -> h2.events.Event:
        while not self._events:
            await self._receive()
        event = self._events.popleft()
        if isinstance(event, h2.events.StreamReset):
            raise CutError(f"the stream was reset: {event.error_code!r}")
        return event

    async def _receive(self) -> None:
        data = await self._read_some()
        if not data:
            raise CutError("the connection was closed")
        try:
            events = self._state.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise CutError(str(error)) from error
        self._is_over = self._is_over or any(isinstance(event, h2.events.StreamReset) for event in events)
        if any(isinstance(event, h2.events.ConnectionTerminated) for event in events):
            # Streams that are open go on after GOAWAY (RFC 9113, 6.8), of which h2 thinks otherwise.
            self._state.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
        self._events += events
        self._writer.write(self._state.data_to_send())


async def connect(
    host: str, port: int, buffer: int | None = None, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; `buffer` is how many bytes its receiving side holds, about."""
    sock = socket.socket()
    sock.setblocking(False)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    name = "localhost" if tls is not None else None
    return await asyncio.open_connection(sock=sock, limit=buffer or 65536, ssl=tls, server_hostname=name)


@cache
def trusting(http: str) -> ssl.SSLContext:
    """TLS that takes any certificate and agrees on this version of HTTP."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2" if http == "2" else "http/1.1"])
    return context


@asynccontextmanager
async def exchange(
    http: str, port: int, asking: Asking, buffer: int | None = None, *, tls: bool = False
) -> AsyncIterator[Exchange]:
    """Send a request; the response's head is there when the block begins. `http` is `1.1` or `2`."""
    reader, writer = await connect("127.0.0.1", port, buffer, trusting(http) if tls else None)
    it = Http2(reader, writer, buffer) if http == "2" else Http1(reader, writer)
    try:
        async with asyncio.timeout(PATIENCE):
            await it.ask(asking, f"127.0.0.1:{port}")
            await it.head()
        yield it
    finally:
        it.close()
        await _gone(writer)


async def _gone(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(
        ConnectionError, ssl.SSLError
    ):  # reset by either side, or data behind the end: gone is gone
        await writer.wait_closed()


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """A field's values, joined; None when it did not come."""
        return get(self.headers, name)


def get(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """A field's values, joined; None when it did not come."""
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else None


_OPENING = re.compile(rb"retry: ([0-9]+)\n:\n")


class Viewer:
    """Reads one event stream; keeps every byte."""

    def __init__(self, it: Exchange) -> None:
        self.exchange = it
        self.status = it.status
        self.headers = it.headers
        self.raw = bytearray()
        """All of the body so far."""
        self.decoder = EventStreamDecoder()
        self.is_ended = False
        """Whether the body has come to its end."""
        self._events: deque[Event] = deque()

    def get(self, name: str) -> str | None:
        """See `Reply.get`."""
        return get(self.headers, name)

    async def receive(self) -> bytes:
        """Wait for more bytes and decode them; empty at the end of the stream."""
        data = await self.exchange.read()
        self.raw += data
        self._events += self.decoder.receive(data)
        self.is_ended = not data
        return data

    async def event(self, patience: float = PATIENCE) -> Event:
        """The next event. Raises `EOFError` when the stream has ended instead."""
        async with asyncio.timeout(patience):
            while not self._events:
                if not await self.receive():
                    raise EOFError(f"the stream has ended: {bytes(self.raw)[-200:]!r}")
        return self._events.popleft()

    async def until(self, type_: str, patience: float = PATIENCE) -> list[Event]:
        """All events up to the first one of this type, which is the last of them."""
        events = [await self.event(patience)]
        while events[-1].type != type_:
            events.append(await self.event(patience))
        return events

    async def bytes_(self, count: int, patience: float = PATIENCE) -> bytes:
        """The first bytes of the body, at least this many."""
        async with asyncio.timeout(patience):
            while len(self.raw) < count and await self.receive():
                pass
        return bytes(self.raw)

    async def opening(self) -> int:
        """The first bytes as they must be; returns their `retry`, in milliseconds."""
        found = None
        while found is None:
            before = len(self.raw)
            found = _OPENING.match(await self.bytes_(before + 1))
            assert len(self.raw) > before, bytes(self.raw)
        return int(found[1])

    async def rest(self, patience: float = PATIENCE) -> list[Event]:
        """Read to the end of the stream; the events that had not been taken."""
        async with asyncio.timeout(patience):
            while not self.is_ended:
                await self.receive()
        events, self._events = [*self._events], deque()
        return events

    def drop(self) -> list[Event]:
        """Take what has been decoded already."""
        events, self._events = [*self._events], deque()
        return events


class RawSocket:
    """`async with RawSocket(port) as it:` bytes out, bytes in, for what no client library would send."""

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self._port = port
        self._tls = tls

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await connect("127.0.0.1", self._port, tls=trusting("1.1") if self._tls else None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        await _gone(self.writer)

    async def until(self, end: bytes) -> bytes:
        """Read up to and with these bytes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(end)
