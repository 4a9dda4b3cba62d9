"""HTTP/2 with one client: its streams by h2, event streams written beside it in frames that many connections share.

h2 keeps the state of the connection. DATA frames of live event streams are not made by it: each connection has an
allowance, what may be sent before a flow-control window has to be looked at, and h2 is told of what was sent (`settle`)
before it next reads or changes a window. Asking h2 for every stream and event costs the lead over nginx (DESIGN.md).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import h2.errors
import h2.events
import h2.exceptions
from hyperframe.frame import GoAwayFrame

from ssegate.core.headers import Headers, Pair
from ssegate.edge.exchange import (
    Answer,
    ClientGoneError,
    Relay,
    Relaying,
    Reply,
    Request,
    Stream,
    bad_gateway,
    problem,
)
from ssegate.edge.http2 import ServerConnection
from ssegate.edge.native import limits
from ssegate.edge.native.body import BodyReader
from ssegate.edge.native.connection import NOT_DIRECT, Connection
from ssegate.edge.native.fanout import Channel, Parcel, Reader
from ssegate.edge.rules import check_request, join_cookies
from ssegate.edge.wheel import OFF
from ssegate.errors import RejectedError

if TYPE_CHECKING:
    from ssegate.edge.native.edge import NativeEdge

log = logging.getLogger(__name__)

# It writes every header field it reads or makes to its log at DEBUG, credentials too.
logging.getLogger("hpack").setLevel(logging.INFO)

ACKNOWLEDGED = 32 * 1024
"""Bytes of a body that are taken before the client is told that it may send as many more: half a window."""

MAX_UNREAD = 1024 * 1024
"""Bytes of all bodies of one connection that wait to be taken; up to these, one that waits does not hold up the others."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PROTOCOL = re.compile(rb"%b(?:/%b)?" % (_TOKEN.pattern, _TOKEN.pattern))  # RFC 9110, 7.8
_NO_UPGRADE = frozenset({b"h2c", b"h2"})
_BODILESS = frozenset({204, 304})
_TUNNEL_FIELDS = frozenset({b"connection", b"upgrade", b"sec-websocket-accept"})
_CODES = h2.errors.ErrorCodes

# To extended CONNECT a 2xx would say that there is a tunnel.
_NOT_SWITCHED = problem(501, "what is asked for goes over to no other protocol")


class Http2Connection(Connection):
    """One client that speaks HTTP/2."""

    __slots__ = (
        "_goodbye", "_idle_since", "_is_flush_planned", "_out", "_uncredited", "_unread", "allowance", "bundles", "h2", "head_since", "streams",
    )  # fmt: skip

    def __init__(self, edge: NativeEdge) -> None:
        super().__init__(edge)
        loop = edge.loop
        self.h2 = ServerConnection(
            max_streams=edge.max_streams, max_header_list=2 * edge.max_head, clock=loop.time, takes_connect=True
        )
        self.streams: dict[int, Http2Stream] = {}
        """Those that are not over."""
        self.bundles: dict[Channel, Bundle] = {}
        """The live event streams here, by topic."""
        self.allowance = 0
        """Bytes of DATA that fit every window of the live event streams, together."""
        self.head_since: float | None = None
        """When a head began that has not ended."""
        self._out: list[bytes] = []  # what leaves with the next flush, before what h2 has
        self._is_flush_planned = False
        self._idle_since = loop.time()
        self._goodbye = False
        self._unread = 0  # bytes of bodies that wait to be taken
        self._uncredited = 0  # bytes that came beyond `MAX_UNREAD`

    def begin(self) -> None:
        self.h2.initiate_connection()
        self.flush()
        self.look_by(self._idle_since + self.edge.keep_alive)

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        self.settle()
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            log.debug("an HTTP/2 connection ends: %s", type(error).__name__)
            self._break_off()
            return
        if any(isinstance(event, h2.events.ConnectionTerminated) for event in events):
            self._break_off()  # h2 sends nothing more
            return
        self._receive_all(events)
        self._watch_head()
        self.flush()

    def eof_received(self) -> bool:
        return False

    def _break_off(self) -> None:
        """h2 has made the GOAWAY that says why."""
        self.flush()
        for stream in tuple(self.streams.values()):
            stream.close()
        self.finish()

    def _watch_head(self) -> None:
        """A head that waits for CONTINUATION is bounded like one of HTTP/1.1. h2 tells of it in no other way."""
        is_open = bool(self.h2.incoming_buffer._headers_buffer)
        if not is_open:
            self.head_since = None
        elif self.head_since is None:
            self.head_since = self.edge.loop.time()
            self.look_by(self.head_since + limits.HEAD_TIMEOUT)

    def _receive_all(self, events: list[h2.events.Event]) -> None:
        """Resets go first: h2 has read all these frames already, and on a stream that one of them ended nothing can be sent."""
        reset = {_id(event) for event in events if isinstance(event, h2.events.StreamReset)}
        for number in reset:
            if (stream := self.streams.get(number)) is not None:
                stream.close()
        for event in events:
            if not (isinstance(event, h2.events.RequestReceived) and _id(event) in reset):
                self._receive(event)

    def _receive(self, event: h2.events.Event) -> None:
        stream: Http2Stream | None
        match event:
            case h2.events.RequestReceived():
                self._receive_request(event)
            case h2.events.DataReceived():
                self._receive_data(event)
            case h2.events.TrailersReceived():
                if (stream := self.streams.get(_id(event))) is not None:
                    stream.trailers = tuple(_pairs(event.headers))
            case h2.events.StreamEnded():
                if (stream := self.streams.get(_id(event))) is not None:
                    stream.receive_end()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._pump(event.stream_id if isinstance(event, h2.events.WindowUpdated) else 0)

    def _receive_request(self, event: h2.events.RequestReceived) -> None:
        number = _id(event)
        if self._goodbye:
            self.h2.reset_stream(number, _CODES.REFUSED_STREAM)
            return
        stream = self.streams[number] = Http2Stream(self, number)
        stream.receive_head(_pairs(event.headers), has_body=event.stream_ended is None)

    def _receive_data(self, event: h2.events.DataReceived) -> None:
        size = event.flow_controlled_length or 0
        stream = self.streams.get(_id(event))
        if self._unread + size <= MAX_UNREAD or stream is None:
            self._open_window(size)
        else:
            self._uncredited += size
        if stream is not None:
            self._unread += size
            stream.receive_data(event.data or b"", size)

    def take(self, size: int, number: int) -> None:
        """So much of a body has been taken: the client may send as much again, on this stream too if it is not 0."""
        self._unread -= size
        if self._uncredited and self._unread <= MAX_UNREAD:
            self._open_window(self._uncredited)
            self._uncredited = 0
        if number:
            self.settle()
            self.h2.increment_flow_control_window(size, number)
        self.plan_flush()

    def _open_window(self, size: int) -> None:
        if size:
            self.h2.increment_flow_control_window(size)

    def _pump(self, number: int) -> None:
        """A window has opened: that of one stream, or, with 0, of all."""
        for stream in tuple(self.streams.values()):
            if number in (0, stream.number):
                stream.pump()

    # Bytes out

    def settle(self) -> None:
        """Tell h2 what the live event streams were sent since it was told last."""
        self.allowance = 0
        for bundle in self.bundles.values():
            if bundle.sent:
                sent, bundle.sent = bundle.sent, 0
                self.h2.outbound_flow_control_window -= sent * len(bundle.numbers)
                for number in bundle.numbers:
                    self.h2.streams[number].outbound_flow_control_window -= sent

    def renew_allowance(self, need: int) -> bool:
        """Look what the windows allow; whether that is so much."""
        self.settle()
        connection, streams = self.h2.outbound_flow_control_window, self.h2.streams
        self.allowance = min(
            connection,
            *(
                streams[number].outbound_flow_control_window
                for bundle in self.bundles.values()
                for number in bundle.numbers
            ),
        )
        return self.allowance >= need

    def send_frames(self, frames: bytes) -> None:
        """Send frames of live event streams, after everything that was made before them.

        At once if this is all that goes to this client now. If it has streams of other topics here, what they have is sent
        with it, in one write, at the end of the loop's turn.
        """
        if self._is_flush_planned or len(self.bundles) > 1:
            self._out.append(self.h2.data_to_send())
            self._out.append(frames)
            self.plan_flush()
            return
        if self.fd == NOT_DIRECT:
            self.transport.write(frames)
            return
        try:
            sent = os.write(self.fd, frames)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(frames):
            self.transport.write(frames[sent:])

    def plan_flush(self) -> None:
        """Send what there is at the end of this turn of the loop."""
        if not self._is_flush_planned:
            self._is_flush_planned = True
            self.edge.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is."""
        self._is_flush_planned = False
        self._out.append(self.h2.data_to_send())
        data = b"".join(self._out)
        self._out.clear()
        if data:
            self.write(data)

    # Streams

    def drop(self, stream: Http2Stream) -> None:
        """It is over."""
        self.streams.pop(stream.number, None)
        if (
            not self.streams and not self.is_closed
        ):  # the wheel would keep one that is closed for as long as it keeps an idle one
            self._idle_since = self.edge.loop.time()
            self.look_by(self._idle_since + self.edge.keep_alive)
            if self._goodbye:
                self.flush()
                self.finish()

    def full(self) -> None:
        for bundle in tuple(self.bundles.values()):
            for reader in bundle.readers():
                reader.fall_behind()
        for stream in self.streams.values():
            stream.pause()

    def drained(self) -> None:
        self._pump(0)

    def end(self) -> None:
        for stream in tuple(self.streams.values()):
            stream.close()

    def close_when_idle(self) -> None:
        """GOAWAY (RFC 9113, 6.8). h2's own would end the streams that are open."""
        if self._goodbye:
            return
        self._goodbye = True
        frame = GoAwayFrame(0, last_stream_id=self.h2.highest_inbound_stream_id, error_code=_CODES.NO_ERROR)
        self._out.append(self.h2.data_to_send())
        self._out.append(frame.serialize())
        self.flush()
        if not self.streams:
            self.finish()

    def due(self, now: float) -> float | None:
        if self.head_since is not None:
            if now - self.head_since >= limits.HEAD_TIMEOUT:
                self.h2.close_connection(_CODES.ENHANCE_YOUR_CALM)
                self._break_off()
                return now + limits.LINGER
            return self.head_since + limits.HEAD_TIMEOUT
        if self.streams:
            return None
        if now - self._idle_since >= self.edge.keep_alive:
            self.close_when_idle()
            return now + limits.LINGER
        return self._idle_since + self.edge.keep_alive


class Http2Stream:
    """One request and its response."""

    __slots__ = (
        "_asking", "_at", "_body", "_connection", "_data", "_end", "_is_half_closed", "_is_last", "_is_request_done", "_method", "_moved_at", "_reader",
        "_relay", "_tunnel", "_untaken", "is_over", "number", "slot", "trailers",
    )  # fmt: skip

    def __init__(self, connection: Http2Connection, number: int) -> None:
        self.number = number
        self.is_over = False
        self.slot = OFF
        self.trailers: tuple[Pair, ...] = ()
        """The request's."""
        self._connection = connection
        self._method = ""
        self._tunnel = False  # an extended CONNECT
        self._is_half_closed = False  # the upstream's side of it has ended
        self._is_request_done = False
        self._body: BodyReader | None = None
        self._untaken = 0  # bytes of the body the client has not been told are taken
        self._asking: asyncio.Task[Reply] | None = None
        self._relay: Http2Relay | None = None
        self._reader: Http2Reader | None = None
        self._data = b""  # what of the response is still to be sent
        self._at = 0
        self._is_last = False  # the response ends behind that
        self._end: tuple[Pair, ...] = ()  # with these trailers
        # When the client last sent of the body, or took of the response.
        self._moved_at = self._connection.edge.loop.time()

    # The request

    def receive_head(self, pairs: list[Pair], *, has_body: bool) -> None:
        """Ask the gate."""
        edge = self._connection.edge
        self._is_request_done = not has_body
        try:
            request = self._read_head(pairs, has_body=has_body)
        except RejectedError as error:
            self._answer(problem(error.status, str(error)))
            return
        if request is None:
            self.reset(_CODES.PROTOCOL_ERROR)
            return
        if has_body and not self._tunnel:
            self._look_by(self._moved_at + limits.BODY_SILENCE)
        reply = edge.answering(request)
        if isinstance(reply, Awaitable):
            self._asking = edge.wait_for(reply, self._receive_reply)
        else:
            self._render(reply)

    def _read_head(self, pairs: list[Pair], *, has_body: bool) -> Request | None:
        """The request; None for one that is malformed (RFC 9113, 8.1.1). Raises `RejectedError`."""
        pseudo = {name: value for name, value in pairs if name.startswith(b":")}
        fields = [pair for pair in pairs if not pair[0].startswith(b":")]
        if b":authority" in pseudo:
            fields = [(b"host", pseudo[b":authority"]), *(pair for pair in fields if pair[0] != b"host")]
        if not _TOKEN.fullmatch(pseudo[b":method"]):
            return None
        self._method = pseudo[b":method"].decode("ascii")
        upgrade = pseudo.get(b":protocol")
        if upgrade is not None:
            if self._method != "CONNECT" or not _PROTOCOL.fullmatch(upgrade):
                return None
            if upgrade.lower() in _NO_UPGRADE:
                raise RejectedError(501, "this protocol is not gone over to here")
            # RFC 8441: what was an Upgrade in HTTP/1.1, which is what the upstream is asked in.
            self._tunnel, self._method, has_body = True, "GET", False
            fields.append((b"sec-websocket-key", base64.b64encode(secrets.token_bytes(16))))
        headers = Headers(join_cookies(fields))
        target = check_request(
            self._method, pseudo.get(b":path", b""), headers, "2", max_head=self._connection.edge.max_head
        )
        if not has_body and not self._tunnel and int(headers.get("content-length") or 0):
            return None
        self._body = BodyReader(self._body_taken) if has_body else None
        scheme, peer = self._connection.scheme, self._connection.peer
        return Request(self._method, target, headers, "2", scheme, peer, self._body, upgrade)

    def _receive_reply(self, task: asyncio.Task[Reply]) -> None:
        self._asking = None
        if self.is_over:
            if not task.cancelled() and task.exception() is None and isinstance(reply := task.result(), Stream):
                reply.close()
            return
        try:
            reply = task.result()
        except ClientGoneError:
            self.reset(_CODES.CANCEL)
        except Exception:
            log.exception("a request could not be answered, which is a defect")
            self.reset(_CODES.INTERNAL_ERROR)
        else:
            self._render(reply)
        self._connection.plan_flush()

    def receive_data(self, data: bytes, size: int) -> None:
        """A piece of the body has come; `size` counts against the window."""
        self._moved_at = self._connection.edge.loop.time()
        self._untaken += size
        if self._relay is not None:
            if not data or self._relay.send(data):
                self.take()
        elif self._body is not None and data:
            self._body.feed(data)
            self._acknowledge(size - len(data))  # padding
        else:
            self.take()

    def take(self) -> None:
        """All that has come of the body is taken."""
        if self._untaken >= ACKNOWLEDGED or (self._untaken and self._tunnel):
            self._acknowledge(self._untaken)

    def _acknowledge(self, size: int) -> None:
        if size and not self.is_over:
            self._untaken -= size
            self._connection.take(size, 0 if self._is_request_done else self.number)

    def _body_taken(self, size: int) -> None:
        self._moved_at = self._connection.edge.loop.time()
        self._acknowledge(min(size, self._untaken))

    def receive_end(self) -> None:
        """The request is whole."""
        self._is_request_done = True
        if self._relay is not None:
            self._relay.send_end(self.trailers)
            if self._is_half_closed:
                self._relay.leave()
                self.close()
        elif self._body is not None:
            self._body.feed_end()

    # The response

    def _render(self, reply: Reply) -> None:
        if self._tunnel and not isinstance(reply, Relay):
            if isinstance(reply, Stream):
                reply.close()
            self._answer(reply if isinstance(reply, Answer) and reply.status >= 300 else _NOT_SWITCHED)
        elif isinstance(reply, Answer):
            self._answer(reply)
        elif isinstance(reply, Relay):
            self._relay = Http2Relay(self, reply, has_body=self._body is not None)
            if self._body is not None and not self._tunnel:
                self._pass_on(self._relay, *self._body.hand_over())
        else:
            self._stream(reply)

    def _pass_on(self, relay: Http2Relay, pieces: list[bytes], is_whole: bool) -> None:
        """What has come of the body already; the rest goes to the relay by itself."""
        for piece in pieces:
            relay.send(piece)
        if pieces and relay.is_taking:
            self.take()
        if is_whole:
            relay.send_end(self.trailers)

    def refuse(self, error: RejectedError) -> None:
        """Answer what cannot be served; a response that has begun is cut."""
        if self._relay is not None:
            self._relay.cancel()
            if self._relay.is_begun:
                self.reset(_CODES.CANCEL)
                return
        self._relay = self._body = None
        self._answer(problem(error.status, str(error)))

    def _answer(self, answer: Answer) -> None:
        pairs = list(answer.headers)
        if answer.status >= 200 and answer.status not in _BODILESS and (answer.body or self._method != "HEAD"):
            pairs.append((b"content-length", b"%d" % len(answer.body)))
        body = b"" if self._method == "HEAD" else answer.body
        self.send_head(answer.status, pairs, is_last=not body)
        if body:
            self.send(body)
            self.send_end()

    def answer(self, answer: Answer) -> None:
        """Write a whole response."""
        self._relay = None
        self._answer(answer)

    def _stream(self, stream: Stream) -> None:
        connection = self._connection
        now = connection.edge.loop.time()
        self._reader = Http2Reader(self, stream, now)
        channel = connection.edge.channel(stream.subscriber)
        counts = connection.edge.counts
        counts["streams"] += 1
        counts["streams_opened"] += 1
        self.send_head(200, list(stream.headers), is_last=False)
        self._look_by(now + stream.heartbeat)
        if stream.max_age is not None:
            self._look_by(now + stream.max_age)
        opening = stream.opening
        if len(stream.state) <= limits.PIECE:
            opening += stream.take_state()
        self._reader.begin(channel, opening)

    @property
    def is_tunnel(self) -> bool:
        """Whether this is an extended CONNECT (RFC 8441)."""
        return self._tunnel

    def send_head(self, status: int, pairs: Iterable[Pair], *, is_last: bool) -> None:
        """Send the head of the response, with Date; `is_last`: nothing follows."""
        lines = [(b":status", b"%d" % status), *((name.lower(), value) for name, value in pairs)]
        if status >= 200 and not any(name == b"date" for name, _ in lines):
            lines.append((b"date", self._connection.edge.date()))
        self._connection.h2.send_headers(self.number, lines, end_stream=is_last)
        self._connection.plan_flush()
        if is_last:
            self._complete()

    def is_clogged(self) -> bool:
        """Whether the client does not take what was written to its connection."""
        return self._connection.is_paused

    def window(self) -> int:
        """How much may be sent on this stream now."""
        connection = self._connection
        if connection.is_paused:
            return 0
        connection.settle()
        http2 = connection.h2
        stream = http2.streams[self.number].outbound_flow_control_window
        return max(0, min(http2.outbound_flow_control_window, stream, limits.PIECE))

    def write(self, data: bytes) -> None:
        """Send this now; it fits the window."""
        self._connection.settle()
        self._connection.h2.send_data(self.number, data)
        self._connection.plan_flush()

    def send(self, data: bytes) -> bool:
        """Send this as the windows open; whether it has all left."""
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
        else:
            self._data = data
            self._moved_at = self._connection.edge.loop.time()
        self._at = 0
        self.pump()
        return self._at >= len(self._data)

    def send_end(self, trailers: tuple[Pair, ...] = ()) -> None:
        """End the response behind what was given to `send`."""
        self._is_last, self._end = True, trailers
        self.pump()

    def pump(self) -> None:
        """Send what there is, as far as there is room."""
        if self.is_over:
            return
        if self._reader is not None:
            self._reader.pump()
            return
        while self._at < len(self._data) and (room := self.window()):
            piece = self._data[self._at : self._at + room]
            self._at += len(piece)
            self._moved_at = self._connection.edge.loop.time()
            self.write(piece)
        if self._at < len(self._data):
            self.look_while_waiting()
            return
        self._data, self._at = b"", 0
        if self._is_last:
            self.write_end(self._end)
        elif self._relay is not None:
            self._relay.resume()

    def write_end(self, trailers: tuple[Pair, ...] = ()) -> None:
        """Nothing more comes."""
        http2 = self._connection.h2
        if trailers:
            http2.send_headers(self.number, [(name.lower(), value) for name, value in trailers], end_stream=True)
        else:
            http2.end_stream(self.number)
        if self._tunnel and not self._is_request_done and self._relay is not None and self._relay.is_switched:
            self._half_close()
        else:
            self._complete()

    def _half_close(self) -> None:
        """The upstream's side of a tunnel has ended; the client may still speak, as long as it does."""
        self._is_half_closed, self._is_last = True, False
        self._moved_at = self._connection.edge.loop.time()
        self._look_by(self._moved_at + limits.BODY_SILENCE)
        self._connection.plan_flush()

    def _complete(self) -> None:
        """The response is. RFC 9113, 8.1: of a request that is not, the client is asked to send no more of it."""
        if not self._is_request_done:
            self._connection.h2.refuse_rest(self.number)
        self._connection.plan_flush()
        self.close()

    def pause(self) -> None:
        """The client does not take what is written."""
        if self._relay is not None:
            self._relay.pause()

    def resume_body(self) -> None:
        """The upstream takes more of the body."""
        self._moved_at = self._connection.edge.loop.time()
        self._acknowledge(self._untaken)

    # The end

    def reset(self, code: h2.errors.ErrorCodes) -> None:
        """End it, in the middle of what it is at."""
        try:
            self._connection.h2.reset_stream(self.number, code)
        except h2.exceptions.ProtocolError:
            log.debug("a stream was over before it was reset")
        self._connection.plan_flush()
        self.close()

    def close(self) -> None:
        """Let go of everything. A second call does nothing."""
        if self.is_over:
            return
        self.is_over = True
        connection = self._connection
        connection.edge.wheel.remove(self)
        if self._reader is not None:
            self._reader.close()
        if self._relay is not None:
            self._relay.cancel()
        if self._body is not None:
            self._body.break_off()
        if self._asking is not None:
            self._asking.cancel()
        if self._untaken:
            connection.take(self._untaken, 0)
        connection.drop(self)

    # Time

    def _look_by(self, when: float) -> None:
        self._connection.edge.wheel.add(self, when)

    def look_while_waiting(self) -> None:
        """The client gives no room: look whether that changes."""
        self._look_by(self._connection.edge.loop.time() + self._connection.edge.stall)

    def look(self, now: float) -> float | None:
        """See `wheel.Timed`."""
        due = self._due(now)
        self._connection.plan_flush()
        return due

    def _due(self, now: float) -> float | None:
        stall = self._connection.edge.stall
        reader = self._reader
        is_waiting = reader.is_waiting_for_room if reader is not None else self._at < len(self._data)
        moved_at = reader.written_at if reader is not None else self._moved_at
        if (
            is_waiting and not self._connection.is_paused
        ):  # what the whole connection does not take is not this stream's fault
            if now - moved_at >= stall:
                self._connection.edge.counts["stalled"] += 1
                self.reset(_CODES.INTERNAL_ERROR)
                return None
            return moved_at + stall
        if reader is not None:
            return reader.beat(now)
        if self._is_request_done or (self._tunnel and not self._is_half_closed):
            return None
        if self._relay is not None and not self._relay.is_taking:
            return now + limits.BODY_SILENCE
        if now - self._moved_at >= limits.BODY_SILENCE:
            if self._is_half_closed:
                self.reset(_CODES.CANCEL)
                return None
            self.refuse(RejectedError(408, f"the body was silent for {limits.BODY_SILENCE:g} s"))
            return None
        return self._moved_at + limits.BODY_SILENCE


class Http2Reader(Reader):
    """An event stream on an HTTP/2 connection."""

    __slots__ = ("_http2",)

    def __init__(self, stream: Http2Stream, what: Stream, now: float) -> None:
        super().__init__(what, now)
        self._http2 = stream

    def pump(self) -> None:
        super().pump()
        if self.is_waiting_for_room:
            self._http2.look_while_waiting()

    @property
    def number(self) -> int:
        """Of its stream."""
        return self._http2.number

    def room(self) -> int:
        return self._http2.window()

    def is_clogged(self) -> bool:
        return self._http2.is_clogged()

    def write(self, data: bytes) -> None:
        self._http2.write(data)

    def write_end(self) -> None:
        self._http2.write_end()

    def close(self) -> None:
        if not self.is_over:
            self._http2._connection.edge.counts["streams"] -= 1
        super().close()

    def enter(self, channel: Channel) -> None:
        connection = self._http2._connection
        connection.settle()
        bundle = connection.bundles.get(channel)
        if bundle is None:
            bundle = connection.bundles[channel] = Bundle(connection)
            channel.enter_target(bundle)
        bundle.add(self)

    def leave(self, channel: Channel) -> None:
        connection = self._http2._connection
        connection.settle()
        bundle = connection.bundles[channel]
        bundle.discard(self)
        if not bundle.numbers:
            del connection.bundles[channel]
            channel.leave_target(bundle)


class Bundle:
    """The live streams of one topic on one connection: one write for all of them."""

    __slots__ = ("_connection", "_count", "_readers", "numbers", "sent")

    def __init__(self, connection: Http2Connection) -> None:
        self.numbers: tuple[int, ...] = ()
        """Of the streams."""
        self.sent = 0
        """Bytes sent on each of them that h2 has not been told of."""
        self._connection = connection
        self._readers: list[Http2Reader] = []
        self._count = 0

    def add(self, reader: Http2Reader) -> None:
        """One more."""
        self._readers.append(reader)
        self.numbers = (*self.numbers, reader.number)
        self._count += 1

    def discard(self, reader: Http2Reader) -> None:
        """One less."""
        self._readers.remove(reader)
        self.numbers = tuple(each.number for each in self._readers)
        self._count -= 1

    def deliver(self, parcel: Parcel) -> int:
        """See `fanout.Target`."""
        connection, numbers, count = self._connection, self.numbers, self._count
        need = parcel.size * count
        if connection.allowance < need and not connection.renew_allowance(need):
            for reader in self.readers():
                reader.fall_behind(parcel.data)
                reader.pump()
            return count
        connection.allowance -= need
        self.sent += parcel.size
        connection.send_frames(parcel.frames(numbers))
        return count

    def readers(self) -> list[Reader]:
        """See `fanout.Target`."""
        return list(self._readers)


class Http2Relay:
    """A request passed on, and its answer to the client. See `exchange.Viewer`."""

    __slots__ = ("_has_body", "_is_ended", "_relay", "_relaying", "_stream", "is_begun", "is_switched", "is_taking")

    def __init__(self, stream: Http2Stream, relay: Relay, *, has_body: bool) -> None:
        self.is_begun = False
        """Whether the head of the answer has been sent."""
        self.is_switched = False
        """Whether there is a tunnel."""
        self.is_taking = True
        """Whether the upstream takes what comes of the body."""
        self._stream = stream
        self._relay = relay
        self._has_body = has_body
        self._is_ended = False
        self._relaying: Relaying = relay.begin(self, has_body)

    # From the client

    def send(self, data: bytes) -> bool:
        """A piece of the body has come; whether more may."""
        self.is_taking = self._relaying.send(data)
        return self.is_taking

    def send_end(self, trailers: tuple[Pair, ...]) -> None:
        """The body is whole, or the client's side of a tunnel is."""
        if self._has_body or self._stream.is_tunnel:
            self._relaying.send_end(trailers)

    def pause(self) -> None:
        """The client does not take what is written."""
        self._relaying.pause()

    def resume(self) -> None:
        """It does again."""
        self._relaying.resume()

    def cancel(self) -> None:
        """The client has left, or its request is broken. A second call does nothing."""
        if not self._is_ended:
            self._is_ended = True
            self._relaying.cancel()

    def leave(self) -> None:
        """Both directions of a tunnel have ended in order: what was sent still goes upstream."""
        self._is_ended = True

    # From the upstream

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        self._stream.send_head(status, headers, is_last=False)

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        stream = self._stream
        self.is_begun = True
        if self._relay.done is not None:
            self._relay.done(status)
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            self.is_switched, status = True, 200
            headers = tuple(pair for pair in headers if pair[0].lower() not in _TUNNEL_FIELDS)
        elif stream.is_tunnel and 200 <= status < 300:
            # It did not switch, and to the client a 2xx would say that it has.
            self.cancel()
            stream.answer(problem(502, "the upstream did not go over to the protocol that was asked for"))
            return
        stream.send_head(status, headers, is_last=False)

    def receive_data(self, data: bytes) -> None:
        if not self._stream.send(data):
            self._relaying.pause()

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        self._is_ended = not self.is_switched  # of a tunnel it is this direction alone
        self._stream.send_end(trailers)

    def flush(self) -> None:
        pass  # all streams of a connection leave together, at the end of the loop's turn

    def fail(self, error: Exception) -> None:
        self._is_ended = True
        if not self.is_begun:
            self._stream.answer(bad_gateway(error))
            return
        self._stream._connection.edge.counts["cut"] += 1
        log.warning("relay %s: the response was cut", error)
        self._stream.reset(_CODES.INTERNAL_ERROR)

    def resume_sending(self) -> None:
        self.is_taking = True
        self._stream.resume_body()


def _id(event: h2.events.Event) -> int:
    number = getattr(event, "stream_id", 0)
    assert isinstance(number, int), "these events have a stream"
    return number


def _pairs(headers: object) -> list[Pair]:
    """Plain tuples of bytes: hpack's own are kinds of tuple that remember how they were sent."""
    return [(bytes(name), bytes(value)) for name, value in headers]  # type: ignore[attr-defined]  # h2 is not typed here
