"""HTTP/3 for the ASGI edge: QUIC by aioquic, on the UDP port beside Hypercorn's listener with TLS.

Hypercorn's own HTTP/3 is not used. In 0.18 it never tells an application that its client has left, so streams of clients
that are gone stay for ever; it sends without bound to a client that takes nothing; one upload that nobody reads stops
all connections, and one malformed request ends them, because they share one task; requests that come while it closes
are never answered. Of aioquic these things are completed:

- what a client may send of a body grows with what the handler has read of it (`_Connection._grant`): aioquic doubles the
  window with each byte that comes, whoever reads it;
- whoever writes waits until the client has acknowledged most of it (`_Request.send`): aioquic buffers all of it;
- a compressed head cannot stand for more than a thousand times its size (`_Http3`).

What stays: a malformed request ends its connection, not just its stream. Requests are not counted when they are reset,
there is no GOAWAY (on a drain connections end when their streams have), no WebSocket, no 0-RTT. It is Python from the
packets up, and several times slower than the same streams over TCP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from aioquic._buffer import Buffer
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection, Setting
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamReset,
)
from aioquic.quic.packet import QuicFrameType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.stream import QuicStream

from ssegate.edge.asgi import AsgiEdge, Message
from ssegate.edge.native.tls import ServerCertificate
from ssegate.errors import ConfigError, Problem

log = logging.getLogger(__name__)

# They log every packet and header field at DEBUG, credentials too.
logging.getLogger("quic").setLevel(logging.WARNING)

HANDSHAKE_TIMEOUT = 10.0
"""Seconds from a client's first packet to the end of its handshake."""

CLOSE_TIMEOUT = 5.0
"""Seconds the work on requests may take to end when it is cancelled."""

WINDOW = 64 * 1024
"""Bytes of a request that wait for whoever reads it, its head included."""

MAX_UNSENT = 64 * 1024
"""Bytes of a stream that the client has not acknowledged before whoever writes has to wait."""

RECEIVE_BUFFER = 1024 * 1024
"""Bytes of datagrams the system holds for all connections together."""

_LIMIT_CAPACITY = 17  # a frame's type and two numbers of at most eight bytes


class Http3Server:
    """Listens on one UDP port and serves an ASGI application there."""

    def __init__(self, edge: AsgiEdge, certificate: ServerCertificate, *, keep_alive: float, max_streams: int) -> None:
        """`keep_alive`: seconds without a sign of life after which a connection ends; `max_streams` of one connection.

        Raises `ConfigError` when the certificate is of a kind that only OpenSSL can use.
        """
        self.edge = edge
        self.keep_alive = keep_alive
        self.max_streams = max_streams
        self.open: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """Requests that are being answered."""
        self._certificate = certificate
        self._shown = certificate.fingerprint
        self._configuration = QuicConfiguration(
            is_client=False, alpn_protocols=H3_ALPN, idle_timeout=keep_alive, max_stream_data=WINDOW
        )
        self._listener: _Listener | None = None
        self._load()

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises `OSError`."""
        bound = _bind(host, port)
        try:
            _, listener = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Listener(self, self._configuration), sock=bound
            )
        except BaseException:
            bound.close()
            raise
        self._listener = listener

    def follow_certificate(self) -> None:
        """Show the certificate that is in use elsewhere by now; connections that are open keep theirs."""
        self._certificate.context()
        if self._certificate.fingerprint != self._shown:
            self._shown = self._certificate.fingerprint
            try:
                self._load()
            except ConfigError as error:
                log.error("tls: HTTP/3 stays with the certificate it had: %s", error.problems[0].message)

    def _load(self) -> None:
        try:
            with self._certificate.files() as (cert, key):
                self._configuration.load_cert_chain(cert, key)
        except (ValueError, TypeError, OSError) as error:
            message = f"cannot be used for HTTP/3: {error}; have one with an RSA or EC key, as plain PEM"
            raise ConfigError([Problem(str(cert), 0, 0, "certificate", "server.tls.cert", message)]) from None

    def stop_listening(self) -> None:
        """Take no new connections. Those that are open go on."""
        if self._listener is not None:
            self._listener.is_closing = True

    async def aclose(self, grace: float) -> None:
        """Close: when all requests are answered, or after `grace` seconds."""
        self.stop_listening()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace)
        for connection in list(self.open):
            connection.leave()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=CLOSE_TIMEOUT)
        if self._listener is not None:
            self._listener.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


class _Listener(QuicServer):
    """Finds the connection that a datagram belongs to. A new client first shows that its address is its own (`retry`)."""

    is_closing = False

    def __init__(self, server: Http3Server, configuration: QuicConfiguration) -> None:
        super().__init__(configuration=configuration, create_protocol=partial(_Connection, server=server), retry=True)
        self._server = server

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if self.is_closing and not self._is_of_a_connection(cast(bytes, data)):
            return
        self._server.follow_certificate()
        try:
            super().datagram_received(data, addr)
        except Exception:
            log.exception("a datagram could not be taken in, which is a defect")

    def _is_of_a_connection(self, data: bytes) -> bool:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=self._configuration.connection_id_length)
        except ValueError:
            return False
        return header.destination_cid in self._protocols


class _Http3(H3Connection):
    """HTTP/3 without a table for compression, in which each byte of a head could name an entry of four thousand."""

    def _get_local_settings(self) -> dict[int, int]:
        self._decoder = type(self._decoder)(0, 0)
        settings = {
            **super()._get_local_settings(),
            Setting.QPACK_MAX_TABLE_CAPACITY: 0,
            Setting.QPACK_BLOCKED_STREAMS: 0,
        }
        del settings[Setting.ENABLE_CONNECT_PROTOCOL]
        return settings

    def held(self, stream_id: int) -> int:
        """Bytes of a stream that came and are not a whole frame yet."""
        stream = self._stream.get(stream_id)
        return 0 if stream is None else len(stream.buffer)


class _Connection(QuicConnectionProtocol):
    """One client's connection."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None, *, server: Http3Server) -> None:
        super().__init__(quic)
        self.server = server
        self.peer: tuple[str, int] | None = None
        self.http: _Http3 | None = None
        self.requests: dict[int, _Request] = {}
        self.blocked: set[_Request] = set()
        """Those that wait until the client has acknowledged something."""
        limit = quic._local_max_streams_bidi
        limit.value = limit.sent = server.max_streams
        # aioquic's server makes connections of this one class.
        vars(quic)["_write_stream_limits"] = partial(self._grant, quic._write_stream_limits)
        server.open.add(self)
        self._watch = self._loop.call_later(HANDSHAKE_TIMEOUT, self.close)  # unless it is over by then

    def _show_life(self) -> None:
        """Ping the client while it has requests: it need not send anything, and a stream may be silent for long."""
        self._watch.cancel()
        self._watch = self._loop.call_later(self.server.keep_alive / 3, self._show_life)
        if self.requests:
            self._quic.send_ping(0)
            self.transmit()

    def leave(self) -> None:
        """Close, whatever is under way."""
        self.close(error_code=ErrorCode.H3_NO_ERROR)
        if self._timer is not None:
            self._timer.cancel()
        self._end()

    def _end(self) -> None:
        self._watch.cancel()
        self.server.open.discard(self)
        for request in list(self.requests.values()):
            request.abandon()

    # What comes in

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if self.peer is None:
            self.peer = addr[:2]
        super().datagram_received(data, addr)
        for request in list(self.blocked):
            request.look_for_room()

    def quic_event_received(self, event: QuicEvent) -> None:
        match event:
            case ProtocolNegotiated():
                self.http = _Http3(self._quic)
            case HandshakeCompleted():
                self._show_life()
            case StreamReset() | StopSendingReceived():
                self._receive_reset(event.stream_id)
            case ConnectionTerminated():
                self._end()
        if self.http is not None:
            for each in self.http.handle_event(event):
                self._receive(each)

    def _receive_reset(self, stream_id: int) -> None:
        request = self.requests.get(stream_id)
        if request is not None:
            self._quic.reset_stream(stream_id, ErrorCode.H3_REQUEST_CANCELLED)
            request.abandon()

    def _receive(self, event: H3Event) -> None:
        match event:
            case HeadersReceived():
                fields = dict(event.headers)
                if b":method" in fields:  # else these are trailers
                    self.requests[event.stream_id] = _Request(self, event.stream_id, self._scope(event, fields))
                self._receive_body(event.stream_id, b"", event.stream_ended)
            case DataReceived():
                self._receive_body(event.stream_id, event.data, event.stream_ended)

    def _receive_body(self, stream_id: int, data: bytes, is_last: bool) -> None:
        request = self.requests.get(stream_id)
        if request is not None and (data or is_last):
            request.put(data, is_last=is_last)

    def _scope(self, event: HeadersReceived, fields: dict[bytes, bytes]) -> Message:
        authority = fields.get(b":authority", b"")
        others = [pair for pair in event.headers if pair[0][:1] != b":" and pair != (b"host", authority)]
        path, _, query = fields.get(b":path", b"").partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "3",
            "method": fields[b":method"].decode("latin-1"),
            "scheme": "https",
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "headers": [(b"host", authority), *others] if authority else others,
            "client": self.peer,
        }

    def _grant(
        self, grant: Callable[..., None], *, builder: QuicPacketBuilder, space: object, stream: QuicStream
    ) -> None:
        """Let the client send as much of a request as there is room for; of other streams aioquic knows better."""
        stream_id = stream.stream_id
        if stream_id is None or stream_id % 4 or self.http is None:
            grant(builder=builder, space=space, stream=stream)
            return
        request = self.requests.get(stream_id)
        waiting = self.http.held(stream_id) + (0 if request is None else request.unread)
        room = stream.receiver.starting_offset() - waiting + WINDOW
        if room - stream.max_stream_data_local >= WINDOW // 2:
            stream.max_stream_data_local = room
        if stream.max_stream_data_local_sent != stream.max_stream_data_local and not stream.receiver.is_finished:
            lost = self._quic._on_max_stream_data_delivery
            frame = builder.start_frame(QuicFrameType.MAX_STREAM_DATA, _LIMIT_CAPACITY, lost, (stream,))
            frame.push_uint_var(stream_id)
            frame.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    # What goes out

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that the client has not acknowledged; its end counts as one more."""
        stream = self._quic._streams.get(stream_id)
        if stream is None or stream.sender.is_finished:
            return 0
        return stream.sender._buffer_stop - stream.sender._buffer_start + 1

    def finish(self, request: _Request) -> None:
        """The work on a request has ended: what is not whole is broken off, in either direction."""
        stream_id = request.stream_id
        self.requests.pop(stream_id, None)
        if not request.is_answered:
            self._quic.reset_stream(stream_id, ErrorCode.H3_INTERNAL_ERROR)
        if not request.is_whole and stream_id in self._quic._streams:
            self._quic.stop_stream(stream_id, ErrorCode.H3_NO_ERROR)
        self.transmit()

    def room_soon(self) -> None:
        """Something of a body has been read: tell the client that it may send more."""
        self._transmit_soon()


class _Request:
    """One request and the work on it: ASGI's `receive` and `send`."""

    def __init__(self, connection: _Connection, stream_id: int, scope: Message) -> None:
        self.stream_id = stream_id
        self.unread = 0
        """Bytes of its body that came and were not taken yet."""
        self.is_whole = False
        """Whether all of it has come."""
        self.is_answered = False
        """Whether all of the answer has been handed over."""
        self._connection = connection
        self._is_gone = False
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._allowed = 0
        self._room = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(scope))
        connection.server.tasks.add(self._task)
        self._task.add_done_callback(connection.server.tasks.discard)
        # One that is cancelled before its first step has no `finally`.
        self._task.add_done_callback(lambda _: connection.requests.pop(stream_id, None))

    async def _run(self, scope: Message) -> None:
        edge = self._connection.server.edge
        try:
            await edge(scope, self.receive, self.send)
            if self.is_answered:
                async with asyncio.timeout(edge.stall):
                    await self._until_unsent(0)
        except TimeoutError:
            edge.count_stalled()
            self.is_answered = False
        except Exception:
            log.exception("a request could not be answered, which is a defect")
        finally:
            if not self._is_gone:
                self._connection.finish(self)

    def put(self, data: bytes, *, is_last: bool) -> None:
        """A piece of the body came."""
        self.unread += len(data)
        self.is_whole = is_last
        self._messages.put_nowait({"type": "http.request", "body": data, "more_body": not is_last})

    def abandon(self) -> None:
        """The client, or the whole connection, is gone."""
        self._is_gone = True
        self._connection.requests.pop(self.stream_id, None)
        self._task.cancel()

    async def receive(self) -> Message:
        """ASGI's."""
        message = await self._messages.get()
        if message["body"]:
            self.unread -= len(message["body"])
            self._connection.room_soon()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's; waits for the client."""
        http = self._connection.http
        assert http is not None
        if message["type"] == "http.response.start":
            status = (b":status", b"%d" % message["status"])
            http.send_headers(self.stream_id, [status, *message["headers"]])
        else:
            self.is_answered = not message.get("more_body", False)
            http.send_data(self.stream_id, message["body"], end_stream=self.is_answered)
        self._connection.transmit()
        await self._until_unsent(MAX_UNSENT)

    async def _until_unsent(self, allowed: int) -> None:
        """Wait until the client has acknowledged all but so many bytes."""
        if self._connection.unsent(self.stream_id) <= allowed:
            return
        self._allowed = allowed
        self._room.clear()
        self._connection.blocked.add(self)
        try:
            await self._room.wait()
        finally:
            self._connection.blocked.discard(self)

    def look_for_room(self) -> None:
        """Something has been acknowledged, perhaps of this."""
        if self._connection.unsent(self.stream_id) <= self._allowed:
            self._room.set()
