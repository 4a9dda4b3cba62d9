"""Runs an ASGI application on Hypercorn: HTTP/1.1 and HTTP/2, by prior knowledge on a plain port and by ALPN with TLS.

Hypercorn's own `serve` is not used: here the gate owns its listener, ends its streams itself and knows when it is done.
Some of its protocol classes are completed, for what was found in 0.18:

- an HTTP/2 client that opens no window never blocks `send`, so memory grew without bound (`_BoundedBuffer`);
- an application that gives up in mid-stream left the HTTP/2 stream open for ever (`_H2.stream_send`);
- a reset did not end the application's work (`_H2._handle_events`);
- a request's body waited in a queue that blocks: one upload nobody read stopped all streams of its connection, and an
  answer given before the body had come left its connection open for ever (`_Inbox`);
- a connection waited for ever for a peer that takes nothing, was kept for `keep_alive` after its client had closed it, and
  closed so hard that answers were lost (`_Connection`);
- h11 folds what SAFETY wants refused into something harmless: equal lengths, folded lines, bare line feeds (`_Http1`);
- `Upgrade: h2c` was honoured, and any `Upgrade` kept a connection from seeing that its client had left (`_Http1`).

HTTP/3 is served beside it, by `http3.py`. What stays of its limits: neither WebSockets nor other upgrades are passed through, and
the TLS handshakes that go on at a time are not limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import h2.errors
import h2.events
import h2.exceptions
import h11
import hypercorn.protocol
import hypercorn.protocol.h2
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import AsyncioSingleTask, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol

from ssegate.edge.asgi import AsgiEdge, Message
from ssegate.edge.exchange import Answer, problem
from ssegate.edge.http2 import ServerConnection
from ssegate.edge.latency import Latency
from ssegate.edge.rules import MAX_HEADERS, MAX_TARGET

if TYPE_CHECKING:
    from ssegate.edge.native.tls import ServerCertificate

log = logging.getLogger(__name__)

# It writes every header field it reads or makes to its log at DEBUG, credentials too.
logging.getLogger("hpack").setLevel(logging.INFO)

HEAD_TIMEOUT = 10.0
"""Seconds from a request's first byte to the end of its head."""

CLOSE_TIMEOUT = 5.0
"""Seconds a closing connection may take to send what was written to it; then it is cut."""

LINGER = 2.0
"""Seconds a connection that we close is still read from, so that the client gets to read why."""

BACKLOG = 4096

ALT_SVC_AGE = 86400
"""Seconds a client may remember that there is HTTP/3."""

MAX_STREAMS = 250
"""Streams of one HTTP/2 connection."""

MAX_RECEIVED = 32 * 1024
"""Bytes read from a socket at once."""

MAX_UNREAD = 64 * 1024
"""Bytes of an HTTP/1.1 request's body that wait for whoever reads it; then the socket is not read."""

MAX_UNSENT = 16 * 1024
"""Bytes that wait for a connection beside the system's buffers before whoever writes has to wait."""

_HEAD_END = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
_NOT_STRICT = re.compile(rb"(?:^|[^\r])\n|\r[^\n]|\r?\n[ \t]")
"""A bare LF, a bare CR, a folded line (RFC 9112, 2.2 and 5.2)."""
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([^\r]*)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding[ \t]*:[ \t]*([^\r]*)", re.IGNORECASE)
_VERSION = re.compile(rb" HTTP/[0-9.]+$")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class _Cut(Event):
    """End the connection so that nobody can take what was sent for all there is."""


# HTTP/1.1


def _refused(status: int, reason: str) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(reason, error_status_hint=status)


class _Http1(h11.Connection):
    """h11, strict about the head before it takes it apart."""

    is_over = False
    """Set when nothing of what still comes matters."""

    def next_event(self) -> Any:
        if self.is_over:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            buffered = self.trailing_data[0]
            if buffered and (end := _HEAD_END.search(buffered)) is not None:
                _check_head(buffered[: end.end()], self._max_incomplete_event_size)
        event = super().next_event()
        if isinstance(event, h11.Request):
            # Nothing is ever switched to. While h11 thinks it might be, it reads nothing, not even that the client left.
            self._cstate.pending_switch_proposals.clear()
        return event


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
    if _VERSION.search(line) and not line.endswith((b" HTTP/1.0", b" HTTP/1.1")):
        raise _refused(505, "unknown version")
    lengths, codings = _LENGTH.findall(head), _CODING.findall(head)
    if len(lengths) + len(codings) > 1:
        raise _refused(400, "framing given twice")
    if lengths and not _DIGITS.fullmatch(lengths[0].strip(b" \t")):
        raise _refused(400, "a length that is not one number")
    if codings and (codings[0].strip(b" \t").lower() != b"chunked" or line.endswith(b"HTTP/1.0")):
        raise _refused(400, "unknown framing")


class _H11(H11Protocol):
    """Hypercorn's HTTP/1.1 with a strict head, a deadline for it, and no way to another protocol by `Upgrade`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.connection: _Http1 = _Http1(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
        self.task_group = cast(Any, _Handlers(self.task_group, room=MAX_UNREAD))
        self._deadline: asyncio.TimerHandle | None = None

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            # A request that waits behind the one being answered must not be waited for any more.
            self.connection.is_over = True
            await self.can_read.set()
        await super().handle(event)
        if not self._is_in_head():
            self._end_deadline()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, self._expire)

    def _is_in_head(self) -> bool:
        http = self.connection
        return not http.is_over and http.their_state is h11.IDLE and bool(http.trailing_data[0])

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self.task_group.spawn(self._answer_too_slow)

    async def _answer_too_slow(self) -> None:
        if self._is_in_head():
            await self._send_error_response(408)
            await self.send(Closed())

    @property
    def is_sent_to(self) -> bool:
        """Whether the client may still be sending something that nobody will read."""
        http = self.connection
        return http.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) or bool(http.trailing_data[0])

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            self._end_deadline()
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        if _is_websocket(request):
            # As a WebSocket it would be answered 400 as soon as anything follows it, and then once more.
            await self._answer(problem(501, "WebSockets are not passed through", close=True))
        else:
            await super()._create_stream(request)

    async def _answer(self, answer: Answer) -> None:
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=headers))
        await self._send_h11_event(h11.Data(data=answer.body))
        await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    async def _maybe_recycle(self) -> None:
        if self.connection.our_state is h11.SEND_BODY and self.connection.their_http_version == b"1.0":
            # A body without a length ends with the connection: an orderly end would make the cut body a whole one.
            await self.send(_Cut())
        await super()._maybe_recycle()


def _is_websocket(request: h11.Request) -> bool:
    return request.method == b"GET" and any(
        name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers
    )


# Handlers


class _Inbox:
    """What the handler of one request is given: the pieces of its body, and that the client has left.

    Calling it puts a message in. That waits while there is no `room`, but never with the news that the client has left.
    """

    def __init__(self, room: int | None, taken: Callable[[int], Awaitable[None]] | None) -> None:
        """`room` in bytes, None: whoever puts something in has an eye on that. `taken` is told what was read."""
        self.unread = 0
        """Bytes put in and not yet taken."""
        self.task: asyncio.Task[None] | None = None
        """Who reads it."""
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._room = room
        self._taken = taken
        self._is_closed = False
        self._has_room = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            self._is_closed = True
            self._has_room.set()
        while self._room is not None and self.unread >= self._room and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()
        self.unread += len(message.get("body", b""))
        self._messages.put_nowait(message)

    async def take(self) -> Message:
        """The next message: ASGI's `receive`."""
        message = await self._messages.get()
        if size := len(message.get("body", b"")):
            self.unread -= size
            self._has_room.set()
            if self._taken is not None:
                await self._taken(size)
        return message


class _Handlers:
    """Stands in for Hypercorn's task group where a protocol begins the work on a request."""

    def __init__(
        self, tasks: Any, *, room: int | None = None, taken: Callable[[int, int], Awaitable[None]] | None = None
    ) -> None:
        """`taken` is told the stream and how many bytes of its body were read."""
        self._tasks: TaskGroup = tasks
        self._room = room
        self._taken = taken

    def spawn(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._tasks.spawn(work, *arguments)

    async def spawn_app(self, app: ASGIWrapper, config: Config, scope: Any, send: Any) -> _Inbox:
        """See Hypercorn's: returns how to tell the application something."""
        taken = None if self._taken is None else partial(self._taken, send.__self__.stream_id)
        inbox = _Inbox(self._room, taken)
        inbox.task = self._tasks._task_group.create_task(_handle(app, scope, inbox, send))
        return inbox


async def _handle(app: ASGIWrapper, scope: Any, inbox: _Inbox, send: Any) -> None:
    try:
        await app.app(scope, cast(Any, inbox.take), send)
    except Exception:
        log.exception("a request could not be answered, which is a defect")
    finally:
        await send(None)


# HTTP/2


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
    """Hypercorn's HTTP/2 that resets what is given up and what is malformed, and leaves the other streams alone.

    What the client may send of a body grows with what the handler has read of it, and nothing waits for a handler here:
    so a connection whose uploads stand still is still read, and its windows open.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.connection: ServerConnection = ServerConnection(
            max_streams=self.config.h2_max_concurrent_streams,
            max_header_list=self.config.h2_max_header_list_size,
            clock=asyncio.get_running_loop().time,
        )
        self.task_group = cast(Any, _Handlers(self.task_group, taken=self._give_back))

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        await super().initiate(headers, settings)
        # Its preface was taken for a request of HTTP/1.1, which stopped the idle timer: without any request it never ended.
        await self.send(Updated(idle=True))

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            try:
                events = self.connection.receive_data(event.data)
            except h2.exceptions.ProtocolError:
                await self._flush()
                await self.send(Closed())
            else:
                await self._handle_events(events)
        else:
            inboxes = [self._inbox(stream_id) for stream_id in self.streams]
            await super().handle(event)
            _cancel(inboxes)

    # What goes out

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

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        if stream_id not in self.stream_buffers:
            self.connection.refuse_rest(stream_id)
            await self._flush()

    # What comes in

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            match event:
                case h2.events.RequestReceived():
                    await self._receive_request(event)
                case h2.events.DataReceived():
                    await self._receive_data(event)
                case h2.events.StreamReset():
                    await self._receive_reset(event)
                case h2.events.PriorityUpdated():
                    pass  # RFC 9113, 5.3 has no use for it any more, and each would cost a place in a tree
                case _:
                    await super()._handle_events([event])
        await self._flush()

    async def _receive_request(self, event: h2.events.RequestReceived) -> None:
        if _is_malformed(event):
            self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
        elif dict(event.headers)[b":method"] == b"CONNECT":
            head = [(b":status", b"405"), (b"content-length", b"0")]
            self.connection.send_headers(event.stream_id, head, end_stream=True)
            self.connection.refuse_rest(event.stream_id)
        else:
            await super()._handle_events([event])

    async def _receive_data(self, event: h2.events.DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        size = len(event.data or b"") if stream is not None else 0
        self._acknowledge(event.stream_id, (event.flow_controlled_length or 0) - size)  # padding, or nobody's
        if stream is not None and event.data:
            await stream.handle(Body(stream_id=event.stream_id, data=event.data))

    async def _receive_reset(self, event: h2.events.StreamReset) -> None:
        inbox = self._inbox(event.stream_id)
        await super()._handle_events([event])
        _cancel([inbox])
        if self.idle:
            await self.send(Updated(idle=True))

    async def _give_back(self, stream_id: int, size: int) -> None:
        """Part of a body has been read, or never will be: the client may send as much again."""
        self._acknowledge(stream_id, size)
        await self._flush()

    def _acknowledge(self, stream_id: int, size: int) -> None:
        if size:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.connection.acknowledge_received_data(size, stream_id)

    async def _close_stream(self, stream_id: int) -> None:
        inbox = self._inbox(stream_id)
        await super()._close_stream(stream_id)
        if inbox is not None:
            await self._give_back(stream_id, inbox.unread)

    def _inbox(self, stream_id: int) -> _Inbox | None:
        return getattr(self.streams.get(stream_id), "app_put", None)


def _cancel(inboxes: list[_Inbox | None]) -> None:
    """End the work on these requests. Whoever is at it when its own write fails learns of that by itself."""
    for inbox in inboxes:
        if inbox is not None and inbox.task is not None and inbox.task is not asyncio.current_task():
            inbox.task.cancel()


def _is_malformed(event: h2.events.RequestReceived) -> bool:
    """What h2 lets through and a stream is reset for (RFC 9113, 8.1.1 and 8.3.1)."""
    fields = dict(event.headers)
    method = fields.get(b":method", b"")
    if not _TOKEN.fullmatch(method) or b":protocol" in fields:
        return True
    if method == b"CONNECT":
        return False
    hosts = {value for name, value in event.headers if name in (b":authority", b"host")}
    lengths = [value for name, value in event.headers if name == b"content-length"]
    is_of_length = all(map(_DIGITS.fullmatch, lengths)) and not (event.stream_ended and any(map(int, lengths)))
    path = fields.get(b":path", b"")
    return not path or not path.isascii() or len(hosts) > 1 or not is_of_length


# Connections


class _IdleTask(AsyncioSingleTask):
    """Hypercorn's idle timer. It is not begun on a connection that is being ended, and nobody waits for its end.

    Hypercorn's waited, with a lock that the timer's own closing wants: in Python 3.11 `wait_for` swallows a cancellation
    that comes in the moment its event is set, the timer went on to close, and the two waited for each other.
    """

    async def restart(self, task_group: Any, action: Callable[[], Any]) -> None:
        await self.stop()
        work = action()
        try:
            self._handle = task_group._task_group.create_task(work)
        except RuntimeError:
            work.close()

    async def stop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel()


class _Connection(TCPServer):
    """One client's connection. Neither writing to it nor closing it waits for a peer that takes nothing."""

    def __init__(self, *arguments: Any, stall: float, stalled: Callable[[], None]) -> None:
        """`stalled` is called when a peer is cut off that has taken nothing for `stall` seconds."""
        super().__init__(*arguments)
        self.writer.transport.set_write_buffer_limits(high=MAX_UNSENT)
        self.idle_task = _IdleTask()
        self._stall = stall
        self._stalled = stalled
        self._is_closing = False
        self._is_read = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, _Cut):
            self._reset()
        elif isinstance(event, Closed):
            await self.protocol.handle(Closed())  # what is being answered is given up now, not after the lingering
            await self._close()
        elif not self._is_read.is_set():
            await super().protocol_send(event)

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                self.writer.write(data)
                await self._drain()
                return
            except (ConnectionError, RuntimeError):
                pass
        await self.protocol.handle(Closed())

    async def _drain(self) -> None:
        """Wait for room. A peer that has taken nothing for `stall` seconds is cut off."""
        transport = self.writer.transport
        while unsent := transport.get_write_buffer_size():
            try:
                async with asyncio.timeout(self._stall):
                    await self.writer.drain()
                return
            except TimeoutError:
                if transport.get_write_buffer_size() >= unsent:
                    self._stalled()
                    transport.abort()
        await self.writer.drain()  # raises when the connection is lost

    async def _read_data(self) -> None:
        self._reading = asyncio.current_task()
        with contextlib.suppress(OSError):
            while not self.reader.at_eof():
                data = await self.reader.read(MAX_RECEIVED)
                if not self._is_closing:
                    await self.protocol.handle(RawData(data))
        self._is_read.set()
        await self.protocol.handle(Closed())
        # Without it a connection that its client closed would be kept until it had been idle for long enough.
        await self.idle_task.stop()

    async def _initiate_server_close(self) -> None:
        """The connection has been idle for long enough, or the server is closing: there is nothing to linger for."""
        await self.protocol.handle(Closed())
        await self._close(lingers=False)

    async def _close(self, *, lingers: bool = True) -> None:
        """Close in order if the peer lets us, and for certain. Only the first call does it."""
        if self._is_closing:
            await self.idle_task.stop()
            return
        self._is_closing = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if lingers:
                    await self._linger()
                self.writer.close()
                await self.writer.wait_closed()
        except (TimeoutError, OSError, RuntimeError):
            log.debug("a connection was cut in closing")
        finally:
            self.writer.transport.abort()
            await self.idle_task.stop()

    async def _linger(self) -> None:
        """Send no more, but read on for a while.

        RFC 9112, 9.6: when the client still sends and we close, "the server's TCP stack will send a reset packet to the
        client, which could erase the client's unacknowledged input buffers before they can be read".
        """
        if self.writer.transport.is_closing() or self.reader.at_eof():
            return
        if self.writer.can_write_eof():
            self.writer.write_eof()
        elif not self._is_sent_to:
            return  # TLS has no way to end one direction, and this client may wait for the end
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                if asyncio.current_task() is not self._reading:
                    await self._is_read.wait()
                    return
                while await self.reader.read(MAX_RECEIVED):
                    pass

    @property
    def _is_sent_to(self) -> bool:
        protocol = self.protocol.protocol
        return not isinstance(protocol, _H11) or protocol.is_sent_to

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


# Hypercorn makes these by their names in its modules and has no other way to be given better ones.
vars(hypercorn.protocol).update(H11Protocol=_H11, H2Protocol=_H2)
vars(hypercorn.protocol.h2).update(StreamBuffer=_BoundedBuffer)


class HypercornServer:
    """Serves an ASGI application on any number of addresses. `start` each, then `aclose`."""

    def __init__(
        self,
        application: AsgiEdge,
        *,
        keep_alive: float,
        max_head: int,
        max_streams: int = MAX_STREAMS,
        http3: ServerCertificate | None = None,
    ) -> None:
        """`keep_alive`: seconds an idle connection is kept; `max_head`: bytes of a request's head; `max_streams` of one
        HTTP/2 or HTTP/3 connection. With `http3` the listener with TLS has one for HTTP/3 beside it, by aioquic; raises
        `ConfigError` when that cannot use this certificate.
        """
        config = Config()
        config.keep_alive_timeout = keep_alive
        config.keep_alive_max_requests = 2**62  # beyond it HTTP/2 streams that are alive go silent
        config.h11_max_incomplete_size = max_head
        config.h11_pass_raw_headers = False
        config.h2_max_concurrent_streams = max_streams
        config.include_server_header = False
        config.include_date_header = False  # a relayed response has its own
        config.errorlog = logging.getLogger("ssegate.edge.hypercorn")
        self._config = config
        self._edge = application
        self._application = ASGIWrapper(cast(Any, application))
        self._context = WorkerContext(None)
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._http3 = None
        if http3 is not None:
            from ssegate.edge.http3 import Http3Server  # an extra brings what it wants

            self._http3 = Http3Server(application, http3, keep_alive=keep_alive, max_streams=max_streams)

    async def start(self, host: str, port: int, tls: Callable[[], ssl.SSLContext] | None = None) -> int:
        """Listen; return the port, which is chosen by the system when 0 was asked for. Raises `OSError`.

        `tls` gives the context once: it is its own business to follow a certificate that changes.
        """
        config = copy(self._config)
        server = await asyncio.start_server(
            partial(self._accept, config),
            host or None,
            port,
            backlog=BACKLOG,
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            **({} if tls is None else _tls_options(tls())),
        )
        self._servers.append(server)
        chosen = cast(int, server.sockets[0].getsockname()[1])
        if tls is not None and self._http3 is not None:
            await self._http3.start(host, chosen)
            config.alt_svc_headers = [f'h3=":{chosen}"; ma={ALT_SVC_AGE}']
        return chosen

    def _accept(self, config: Config, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's would call its cancellation in `aclose` an error, in Python 3.11.
        task = asyncio.get_running_loop().create_task(self._serve(config, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # One that is cancelled before its first step has no `finally` that closes.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, config: Config, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            loop = asyncio.get_running_loop()
            await _Connection(
                self._application,
                loop,
                config,
                self._context,
                {},
                reader,
                writer,
                stall=self._edge.stall,
                stalled=self._edge.count_stalled,
            )
        except* OSError:
            log.debug("a connection broke off")

    @property
    def latency(self) -> Latency:
        """See `admin.metrics.EdgeFigures`."""
        return self._edge.latency

    def statistics(self) -> dict[str, float]:
        """See `admin.metrics.EdgeFigures`."""
        return self._edge.statistics()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._tasks) + (len(self._http3.open) if self._http3 is not None else 0)

    def stop_listening(self) -> None:
        """Take no new connections. Those that are open go on."""
        for server in self._servers:
            server.close()
        if self._http3 is not None:
            self._http3.stop_listening()

    async def aclose(self, grace: float = 3.0) -> None:
        """Close: idle connections at once, busy ones when their response is complete or after `grace` seconds."""
        self.stop_listening()
        await asyncio.gather(self._close_connections(grace), *([self._http3.aclose(grace)] if self._http3 else []))

    async def _close_connections(self, grace: float) -> None:
        await self._context.terminated.set()  # idle connections see this and close
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT + 1)


def _tls_options(context: ssl.SSLContext) -> dict[str, Any]:
    return {"ssl": context, "ssl_handshake_timeout": HEAD_TIMEOUT, "ssl_shutdown_timeout": LINGER}
