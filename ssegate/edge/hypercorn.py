"""Runs an ASGI application on Hypercorn: HTTP/1.1, and HTTP/2 with prior knowledge, on one plain port.

Hypercorn's own `serve` is not used: here the gate owns its listener, ends its streams itself and knows when it is done.
Some of its protocol classes are completed, for what was found in 0.18:

- an HTTP/2 client that opens no window never blocks `send`, so memory grew without bound (`_BoundedBuffer`);
- an application that gives up in mid-stream left the HTTP/2 stream open for ever (`_H2.stream_send`);
- a closed connection waited until a dead peer had taken what was written to it (`_Connection`);
- h11 folds what SAFETY wants refused into something harmless: equal lengths, folded lines, bare line feeds (`_Http1`);
- `Upgrade: h2c` was honoured (`_H11._check_protocol`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from dataclasses import replace
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import h11
import hypercorn.asyncio.tcp_server
import hypercorn.protocol
import hypercorn.protocol.h2
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response, StreamClosed
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol

from ssegate.edge.asgi import AsgiEdge
from ssegate.edge.rules import MAX_HEADERS, MAX_TARGET

log = logging.getLogger(__name__)


HEAD_TIMEOUT = 10.0
"""Seconds from a request's first byte to the end of its head."""

CLOSE_TIMEOUT = 5.0
"""Seconds a closing connection may take to send what was written to it; then it is cut."""

BACKLOG = 4096

_HEAD_END = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
_NOT_STRICT = re.compile(rb"[^\r]\n|\r[^\n]|\r?\n[ \t]")
"""A bare LF, a bare CR, a folded line (RFC 9112, 2.2 and 5.2)."""
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding[ \t]*:[ \t]*([^\r]*)", re.IGNORECASE)


def _refused(status: int, reason: str) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(reason, error_status_hint=status)


class _Http1(h11.Connection):
    """h11, strict about the head before it takes it apart."""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            buffered = self.trailing_data[0]
            if buffered and (end := _HEAD_END.search(buffered)) is not None:
                _check_head(buffered[: end.end()], self._max_incomplete_event_size)
        return super().next_event()


def _check_head(head: bytes, max_head: int) -> None:
    if head.startswith(b"PRI * HTTP/2.0\r\n\r\n"):
        return
    line = head.partition(b"\r\n")[0]
    if len(line) > MAX_TARGET + 32:
        raise _refused(414, "target too long")
    if len(head) > max_head or head.count(b"\n") > MAX_HEADERS + 2:
        raise _refused(431, "head too large")
    if _NOT_STRICT.search(head):
        raise _refused(400, "line ends")
    lengths, codings = _LENGTH.findall(head), _CODING.findall(head)
    if len(lengths) + len(codings) > 1:
        raise _refused(400, "framing given twice")
    if codings and (codings[0].strip(b" \t").lower() != b"chunked" or line.endswith(b"HTTP/1.0")):
        raise _refused(400, "unknown framing")


class _H11(H11Protocol):
    """Hypercorn's HTTP/1.1 with a strict head, a deadline for it, and no way to HTTP/2 by `Upgrade`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.connection = _Http1(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self._deadline: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed) or not self._is_in_head():
            self._end_deadline()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, self._expire)

    def _is_in_head(self) -> bool:
        connection = self.connection
        return (
            isinstance(connection, h11.Connection)
            and connection.their_state is h11.IDLE
            and bool(connection.trailing_data[0])
        )

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._expiry = asyncio.get_running_loop().create_task(self._answer_too_slow())

    async def _answer_too_slow(self) -> None:
        await self._send_error_response(408)
        await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            self._end_deadline()
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])


class _BoundedBuffer(StreamBuffer):
    """A buffer whose `push` waits until most of it has really gone."""

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise hypercorn.protocol.h2.BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _H2(H2Protocol):
    """Hypercorn's HTTP/2 that resets what is given up and what is malformed, and leaves the other streams alone."""

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response):
            # RFC 9113, 8.2.2: a response must not have fields of HTTP/1.1 connections.
            event = replace(event, headers=[pair for pair in event.headers if pair[0] != b"connection"])
        await super().stream_send(event)
        if isinstance(event, StreamClosed):
            await self._reset_unfinished(event.stream_id)

    async def _reset_unfinished(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete or buffer._complete:
            return
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await buffer.close()
        await self._flush()
        self.priority.unblock(stream_id)
        await self.has_data.set()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if _is_malformed(request.headers):
            self.connection.reset_stream(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            await self._flush()
            return
        await super()._create_stream(request)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        known = [event for event in events if not self._is_orphan(event)]
        await super()._handle_events(known)

    def _is_orphan(self, event: h2.events.Event) -> bool:
        """Data of a stream that was reset or answered already: its bytes are given back to the window, that is all."""
        if not isinstance(event, h2.events.DataReceived) or event.stream_id in self.streams:
            return False
        if event.flow_controlled_length:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return True


def _is_malformed(headers: list[tuple[bytes, bytes]]) -> bool:
    fields = dict(headers)
    path = fields.get(b":path", b"")
    return b":method" not in fields or not path or not path.isascii()


class _Connection(TCPServer):
    """One client's connection; closing it does not wait for a dead peer."""

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await super()._close()
        except TimeoutError:
            self.writer.transport.abort()


# Hypercorn makes these by their names in its modules and has no other way to be given better ones.
vars(hypercorn.protocol).update(H11Protocol=_H11, H2Protocol=_H2)
vars(hypercorn.protocol.h2).update(StreamBuffer=_BoundedBuffer)


class HypercornServer:
    """Listens on one address and serves an ASGI application there."""

    def __init__(self, application: AsgiEdge, *, keep_alive: float, max_head: int) -> None:
        """`keep_alive`: seconds an idle connection is kept; `max_head`: bytes of a request's head."""
        config = Config()
        config.keep_alive_timeout = keep_alive
        config.keep_alive_max_requests = 2**62  # beyond it HTTP/2 streams that are alive go silent
        config.h11_max_incomplete_size = max_head
        config.h11_pass_raw_headers = False
        config.h2_max_concurrent_streams = 250
        config.include_server_header = False
        config.include_date_header = False  # a relayed response has its own
        config.errorlog = logging.getLogger("ssegate.edge.hypercorn")
        self._config = config
        self._application = ASGIWrapper(cast(Any, application))
        self._context = WorkerContext(None)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which is chosen by the system when 0 was asked for. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = await asyncio.start_server(self._serve, host or None, port, backlog=BACKLOG, family=family)
        return cast(int, self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            loop = asyncio.get_running_loop()
            await _Connection(self._application, loop, self._config, self._context, {}, reader, writer)
        except* OSError:
            log.debug("a connection broke off")
        finally:
            self._tasks.discard(task)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._tasks)

    def stop_listening(self) -> None:
        """Take no new connections. Those that are open go on."""
        if self._server is not None:
            self._server.close()

    async def aclose(self, grace: float = 3.0) -> None:
        """Close: idle connections at once, busy ones when their response is complete or after `grace` seconds."""
        self.stop_listening()
        await self._context.terminated.set()  # idle connections see this and close
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT + 1)
