"""HTTP/1.1 with one client: requests in by httptools, answers, streams and relayed responses out, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools

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
from ssegate.edge.native import limits
from ssegate.edge.native.body import BodyReader
from ssegate.edge.native.connection import NOT_DIRECT, Connection
from ssegate.edge.native.fanout import Channel, DirectReader, Parcel, Reader, chunk
from ssegate.edge.rules import MAX_HEADERS, MAX_TARGET, check_request
from ssegate.errors import RejectedError

if TYPE_CHECKING:
    from ssegate.edge.native.edge import NativeEdge

log = logging.getLogger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client that knows it may speak HTTP/2 begins with (RFC 9113, 3.4)."""

_HEAD_END = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_NO_FIELDS = (b"", Headers())
_NO_UPGRADE = frozenset({b"h2c", b"h2"})


class Http1Connection(Connection):
    """One client that speaks HTTP/1.1, or 1.0. It may find out that the other side speaks HTTP/2, and gives way."""

    __slots__ = (
        "_asking", "_begun_at", "_body", "_body_left", "_expects", "_head_size", "_held", "_is_busy", "_is_dropping", "_is_feeding", "_is_first", "_is_fresh",
        "_is_head_done", "_is_held_back", "_is_last", "_is_message_done", "_is_one_zero", "_last", "_loose", "_method", "_pairs", "_parser", "_reader",
        "_relay", "_tail", "_target", "_wants_upgrade",
    )  # fmt: skip

    def __init__(self, edge: NativeEdge) -> None:
        super().__init__(edge)
        self._parser = httptools.HttpRequestParser(self)
        self._is_first = True  # nothing has come yet
        self._is_feeding = False
        self._is_fresh = False  # between two requests, with nothing in hand
        self._last: tuple[bytes, Headers] = (
            _NO_FIELDS  # the fields of the last request, as they came and as they were read
        )
        self._is_busy = False  # from a request's head to the end of its response
        self._is_held_back = False  # the socket is not read
        self._is_last = False  # the connection ends with this response
        self._wants_upgrade = False
        self._held = b""  # what came behind the request that is being answered
        self._tail = b""  # the last bytes of a head or chunked body that has not ended
        self._begun_at = self.edge.loop.time()  # of the head, of the body's silence, or of idleness
        self._method = ""
        self._is_one_zero = False
        self._clear()

    def _clear(self) -> None:
        """Get ready for a request."""
        self._target = b""
        self._pairs: list[Pair] = []
        self._head_size = 0
        self._is_head_done = self._is_message_done = False
        self._body_left = 0  # bytes of a body with Content-Length that are still to come
        self._is_dropping = False  # the response is complete, and the rest of the request's body is read for nobody
        self._loose = 0  # bytes that came between two pieces of a chunked body, or behind the last
        self._expects = False  # the client waits for 100 before it sends the body
        self._body: BodyReader | None = None
        self._relay: Http1Relay | None = None
        self._reader: Http1Reader | None = None
        self._asking: asyncio.Task[Reply] | None = None

    def begin(self) -> None:
        self.look_by(self._begun_at + self.edge.keep_alive)

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        if self._relay is not None and self._relay.is_tunnel:
            self._restart_clock()
            self._relay.send(data)
            return
        if self._is_fresh and not self.is_paused and data.find(_HEAD_END) == len(data) - len(_HEAD_END):
            self._receive_whole(data)
            return
        if self._is_first:
            self._receive_first(data)
            return
        self._is_fresh = False
        if self._held or self._is_behind:
            self._hold(data)
        else:
            self._feed(data)

    def _receive_whole(self, data: bytes) -> None:
        """The short way for what comes most: one whole head, and nothing before or behind it."""
        self._is_fresh = False
        if self._parse(data) and self._is_head_done:
            self._receive_head(data)

    def eof_received(self) -> bool:
        """A client that sends no more has left, whatever it still waits for: an EventSource closes like that."""
        if self._relay is not None and self._relay.is_tunnel:
            self.has_ended = True
            self._relay.send_end()
            if self._relay.is_answered:
                self.finish()  # both directions have ended in order
                return False
            return self.scheme == "http"
        return False

    def _receive_first(self, data: bytes) -> None:
        """Find out whether it is HTTP/1.1 what the client speaks."""
        if not self._held:
            self._restart_clock()
        data = self._held + data
        if not PREFACE.startswith(data[: len(PREFACE)]):
            self._is_first, self._held = False, b""
            self._feed(data)
        elif len(data) >= len(PREFACE):
            self._give_way(data)
        else:
            self._held = data
            self.look_by(self._begun_at + limits.HEAD_TIMEOUT)

    def _give_way(self, data: bytes) -> None:
        from ssegate.edge.native.http2 import Http2Connection  # it imports this module

        self.edge.wheel.remove(self)
        self.edge.connections.discard(self)
        other = Http2Connection(self.edge)
        other.attach(self.transport)
        self.transport.set_protocol(other)
        self.edge.connections.add(other)
        del self._parser  # it and we hold each other
        other.begin()
        other.data_received(data)

    @property
    def _is_behind(self) -> bool:
        """Whether what comes now belongs to a request behind the one that is being answered, or cannot be answered yet."""
        return (self._is_busy and self._is_message_done) or (not self._is_busy and self.is_paused)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= limits.MAX_UNREAD:
            self.hold_back(True)

    def hold_back(self, is_held_back: bool) -> None:
        """Read nothing from the client for now, or go on."""
        if self._is_held_back != is_held_back and not self.transport.is_closing():
            self._is_held_back = is_held_back
            if is_held_back:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        """Parse, and answer what can be answered; never past the end of a request whose response is not complete."""
        self._is_feeding = True
        at = answered = 0
        while at < len(data) and not self.is_lingering and not self.transport.is_closing():
            if self._is_behind or answered == limits.REQUESTS_AT_ONCE:
                self._hold(data[at:])
                if not self._is_behind:
                    self.edge.loop.call_soon(self._go_on)
                break
            end = self._cut(data, at)
            was_done = self._is_head_done
            if not self._parse(data[at:end] if at or end < len(data) else data):
                break
            at = end
            if self._is_head_done and not was_done:
                answered += 1
                self._receive_head()
            elif self._is_message_done:
                self._receive_end()
        self._is_feeding = False

    def _cut(self, data: bytes, at: int) -> int:
        """Where to stop at the latest, so that no more than one request can end before there.

        A head ends with an empty line, and so does a chunked body.
        """
        if self._body_left:
            return min(len(data), at + self._body_left)
        if self._tail and (found := (self._tail + data[at : at + 3]).find(_HEAD_END)) >= 0:
            return at + found + len(_HEAD_END) - len(self._tail)
        found = data.find(_HEAD_END, at)
        return len(data) if found < 0 else found + len(_HEAD_END)

    def _parse(self, piece: bytes) -> bool:
        """Whether it is HTTP/1.1 so far. What is not has been answered."""
        was_done = self._is_head_done
        if not was_done:
            if not self._head_size:
                self._restart_clock()
            self._head_size += len(piece)
            if not self._check_size(piece):
                return False
        elif self._body_left:
            self._body_left -= len(piece)
        self._loose += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # whether it is followed is decided with the request
        except httptools.HttpParserError as error:
            self.refuse(_not_http(error))
            return False
        if was_done and self._loose > limits.MAX_LOOSE:
            self.refuse(RejectedError(400, "there is too much between the pieces of the body"))
            return False
        if not self._is_head_done:
            self.look_by(self._begun_at + limits.HEAD_TIMEOUT)
            self._tail = (self._tail + piece)[-3:]
            return self._check_counts()
        if not was_done and not self._check_counts():
            return False
        self._tail = b"" if self._is_message_done or self._body_left else (self._tail + piece)[-3:]
        return True

    def _check_size(self, piece: bytes) -> bool:
        if self._head_size > self.edge.max_head:
            self.refuse(RejectedError(431, f"the head of the request is larger than {self.edge.max_head} bytes"))
        elif self._head_size == len(piece) and piece.startswith(b"\n"):
            self.refuse(RejectedError(400, "a line ends without CR"))  # llhttp would pass over it
        else:
            return True
        return False

    def _check_counts(self) -> bool:
        if len(self._target) > MAX_TARGET:
            self.refuse(RejectedError(414, f"the target is longer than {MAX_TARGET} bytes"))
        elif len(self._pairs) > MAX_HEADERS:
            self.refuse(RejectedError(431, f"more than {MAX_HEADERS} header fields"))
        else:
            return True
        return False

    def _restart_clock(self) -> None:
        self._begun_at = self.edge.loop.time()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_head_done = True
        # With the end of the message, which may come in the same call, the parser forgets these.
        self._is_last = not self._parser.should_keep_alive()
        self._wants_upgrade = self._parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        self._loose = 0
        if self._relay is not None:
            self._relay.send(data)
        elif self._body is not None:
            self._body.feed(data)
            if self._body.is_full:
                self.hold_back(True)
        self._restart_clock()  # the silence is counted from here

    def on_message_complete(self) -> None:
        self._is_message_done = True

    # Requests

    def _receive_head(self, data: bytes = b"") -> None:
        """`data` is the head, if it came alone."""
        self._is_busy = True
        parser, target = self._parser, self._target
        headers = self._fields_of(data)
        self._pairs, self._target = [], b""  # what comes now are trailers
        self._method = parser.get_method().decode("ascii", "replace")
        version = parser.get_http_version()
        self._is_one_zero = version == "1.0"
        self._is_last = self._is_last or self.edge.is_closing
        try:
            if version not in ("1.0", "1.1"):
                raise RejectedError(400, "the request line has no version that is served here")
            target = check_request(self._method, target, headers, version, max_head=self.edge.max_head)
        except RejectedError as error:
            self.refuse(error)
            return
        if not self._is_message_done:
            self._expect_body(headers)
        request = Request(
            self._method, target, headers, version, self.scheme, self.peer, self._body, self._upgrade(headers)
        )
        self._ask(request)
        if self._is_message_done:
            self._receive_end()

    def _fields_of(self, data: bytes) -> Headers:
        """Those of the last request if they are the same, which they mostly are. Of the 29 to 33 µs that a relayed
        request costs in Python it saves 10 to 13."""
        block = data[data.find(b"\r\n") :]
        if data and block == self._last[0]:
            return self._last[1]
        headers = Headers(self._pairs)
        if data and len(block) <= limits.MAX_REMEMBERED:
            self._last = (block, headers)
        return headers

    def _expect_body(self, headers: Headers) -> None:
        self._body = BodyReader(self._body_taken)
        self._body_left = int(headers.get("content-length") or 0)
        self._expects = (headers.get("expect") or "").lower() == "100-continue" and not self._is_one_zero
        self._restart_clock()
        self.look_by(self._begun_at + (limits.CONTINUE_AFTER if self._expects else limits.BODY_SILENCE))

    def _upgrade(self, headers: Headers) -> bytes | None:
        """What the client asks to go over to, if that can be done (RFC 9110, 7.8)."""
        if not self._is_message_done or not self._wants_upgrade:
            return None
        upgrade = (headers.get("upgrade") or "").encode("latin-1")
        return None if not upgrade or upgrade.lower() in _NO_UPGRADE else upgrade

    def _ask(self, request: Request) -> None:
        reply = self.edge.answering(request)
        if isinstance(reply, Awaitable):
            self._asking = self.edge.wait_for(reply, self._receive_reply)
        else:
            self._render(reply)

    def _receive_reply(self, task: asyncio.Task[Reply]) -> None:
        if task is not self._asking:
            # The request was refused meanwhile, or its client has left.
            if not task.cancelled() and task.exception() is None:
                _let_go(task.result())
            return
        self._asking = None
        try:
            reply = task.result()
        except ClientGoneError:
            self.abort()
        except Exception:
            log.exception("a request could not be answered, which is a defect")
            self.refuse(RejectedError(500, "the gate has a defect"))
        else:
            self._render(reply)

    def _give_up_asking(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _receive_end(self) -> None:
        """The request is whole."""
        if self._relay is not None:
            self._relay.send_end()
        elif self._body is not None:
            self._body.feed_end()
        if not self._is_busy:
            self._next()

    def _body_taken(self, size: int) -> None:
        """Somebody reads the body."""
        self.let_continue()
        if self._body is not None and not self._body.is_full:
            self.hold_back(False)

    def let_continue(self) -> None:
        """Somebody wants the body: a client that waits for that is told."""
        if self._expects:
            self._expects = False
            self.write(_CONTINUE)
        self._restart_clock()

    def resume_body(self) -> None:
        """The upstream takes more of the body."""
        self._restart_clock()
        self.hold_back(False)

    # Responses

    def refuse(self, error: RejectedError) -> None:
        """Answer what cannot be served, and close. A response that has begun is cut, a request under way upstream ended."""
        if self._is_dropping:
            self.finish()  # the request has been answered, and this is the rest of its body
            return
        if self._relay is not None:
            self._relay.cancel()
        if self._reader is not None or (self._relay is not None and self._relay.is_begun):
            self.abort()
            return
        self._give_up_asking()
        self._is_busy, self._is_last = True, True
        self._relay = self._body = None
        self.answer(problem(error.status, str(error), close=True))

    def _render(self, reply: Reply) -> None:
        if isinstance(reply, Answer):
            self.answer(reply)
        elif isinstance(reply, Relay):
            self._relay = Http1Relay(self, reply, has_body=self._body is not None)
            if self._body is not None:
                self._pass_on(self._relay, *self._body.hand_over())
        else:
            self._stream(reply)

    def _pass_on(self, relay: Http1Relay, pieces: list[bytes], is_whole: bool) -> None:
        """What has come of the body already; the rest goes to the relay by itself."""
        if pieces:
            self.hold_back(False)
        for piece in pieces:
            relay.send(piece)
        if is_whole:
            relay.send_end()

    def answer(self, answer: Answer) -> None:
        """Write a whole response."""
        self._is_last = self._is_last or answer.close or self._is_rest_unwanted
        lines = [*answer.headers]
        if answer.status >= 200 and answer.status not in _BODILESS and (answer.body or self._method != "HEAD"):
            lines.append((b"content-length", b"%d" % len(answer.body)))
        body = b"" if self._method == "HEAD" else answer.body
        self.write(self.head(answer.status, fields(lines)) + body)
        self.end_response()

    @property
    def _is_rest_unwanted(self) -> bool:
        """Whether so much of the request's body is still to come, if it comes, that it is better not to wait for it."""
        if self._is_message_done:
            return False
        return self._expects or not 0 < self._body_left <= limits.MAX_DROPPED

    def head(self, status: int, lines: bytes, *, has_date: bool = False) -> bytes:
        """The head of a response with these lines, with Date, and with Connection where something is to be said."""
        first = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        date = b"" if has_date else b"date: %b\r\n" % self.edge.date()
        if self._is_last:
            connection = b"connection: close\r\n"
        else:
            connection = b"connection: keep-alive\r\n" if self._is_one_zero else b""
        return b"%b%b%b%b\r\n" % (first, lines, date, connection)

    @property
    def is_head_request(self) -> bool:
        """Whether the response has no body whatever it says."""
        return self._method == "HEAD"

    @property
    def is_one_zero(self) -> bool:
        """Whether the client speaks HTTP/1.0: a body without a length ends with the connection."""
        return self._is_one_zero

    def close_behind(self) -> None:
        """The connection ends with the response whose head is about to be written."""
        self._is_last = True

    def open_tunnel(self) -> None:
        """The head of a 101 is about to be written: what came behind the request is the tunnel's first."""
        self._is_last = True
        data, self._held = self._held, b""
        self.hold_back(False)
        if data and self._relay is not None:
            self._relay.send(data)

    def half_close(self) -> None:
        """The upstream's side of a tunnel has ended; the client may go on as long as it speaks."""
        if self.has_ended or not self.transport.can_write_eof():
            if self._relay is not None and not self.has_ended:
                self._relay.cancel()  # over TLS there is no half
            self.end_response()
            return
        self.transport.write_eof()
        self._restart_clock()
        self.look_by(self._begun_at + limits.BODY_SILENCE)

    def end_response(self) -> None:
        """The response is complete."""
        self._is_busy = False
        self._relay = self._reader = self._body = None
        if self._is_last or self.edge.is_closing or self._is_rest_unwanted:
            self.finish()
        elif self._is_message_done:
            self._next()
        else:
            self._is_dropping = True
            self.hold_back(False)

    def _next(self) -> None:
        self._clear()
        self._tail = b""
        self._begun_at = self.edge.loop.time()
        self.look_by(self._begun_at + self.edge.keep_alive)
        self._is_fresh = not self._held and not self._is_feeding
        if self._held and not self._is_feeding:
            self.edge.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take up what came behind the last request."""
        if self._held and not self._is_behind and not self.transport.is_closing():
            data, self._held = self._held, b""
            self.hold_back(False)
            self._feed(data)

    # Streams

    def _stream(self, stream: Stream) -> None:
        self._body = None
        self._last = _NO_FIELDS  # not for as long as the stream lives
        self._is_last = self._is_last or self._is_one_zero or self._is_rest_unwanted
        reader = self._reader = Http1Reader(self, stream, self.edge.loop.time())
        channel = self.edge.channel(stream.subscriber)
        lines = fields(stream.headers) + (b"" if self._is_one_zero else b"transfer-encoding: chunked\r\n")
        opening = stream.opening
        if len(stream.state) <= limits.PIECE:
            opening += stream.take_state()
        self.edge.counts["streams"] += 1
        self.edge.counts["streams_opened"] += 1
        self.edge.counts["bytes"] += len(opening)
        self.write(self.head(200, lines) + reader.frame(opening))
        self.look_by(reader.written_at + stream.heartbeat)
        if stream.max_age is not None:
            self.look_by(reader.written_at + stream.max_age)
        reader.begin(channel)

    # asyncio and the wheel

    def full(self) -> None:
        if self._reader is not None:
            self._reader.fall_behind()
        elif self._relay is not None:
            self._relay.pause()

    def drained(self) -> None:
        if self._reader is not None:
            self._reader.pump()
        elif self._relay is not None:
            self._relay.resume()
        elif self._held:
            self._go_on()

    def end(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._relay is not None:
            self._relay.cancel()
        if self._body is not None:
            self._body.break_off()
        self._give_up_asking()
        self._reader = self._relay = None
        del self._parser  # it and we hold each other

    def close_when_idle(self) -> None:
        if not self._is_busy:
            self.finish()

    def due(self, now: float) -> float | None:
        if self._reader is not None:
            return self._reader.beat(now)
        if not self._is_busy and not self._is_head_done:
            is_idle = not self._head_size and not self._held
            limit = self._begun_at + (self.edge.keep_alive if is_idle else limits.HEAD_TIMEOUT)
            if now < limit:
                return limit
            if is_idle:
                self.finish()
            else:
                self.refuse(RejectedError(408, f"the head of the request took over {limits.HEAD_TIMEOUT:g} s"))
            return now + limits.LINGER
        if self._relay is not None and self._relay.is_answered:  # a tunnel whose other side has ended
            if now - self._begun_at >= limits.BODY_SILENCE:
                self.abort()
                return None
            return self._begun_at + limits.BODY_SILENCE
        if self._is_message_done or self._is_held_back:
            return now + limits.BODY_SILENCE
        if self._expects:
            self.let_continue()
        limit = self._begun_at + limits.BODY_SILENCE
        if now < limit:
            return limit
        self.refuse(RejectedError(408, f"the body was silent for {limits.BODY_SILENCE:g} s"))
        return now + limits.LINGER


class Http1Reader(DirectReader):
    """An event stream on an HTTP/1.1 connection."""

    __slots__ = ("_connection", "_is_chunked")

    def __init__(self, connection: Http1Connection, stream: Stream, now: float) -> None:
        super().__init__(stream, now)
        self._connection = connection
        self._is_chunked = not connection.is_one_zero
        self.fd = NOT_DIRECT

    def frame(self, data: bytes) -> bytes:
        """As it is written."""
        return chunk(data) if self._is_chunked else data

    def room(self) -> int:
        return 0 if self._connection.is_paused else limits.PIECE

    def is_clogged(self) -> bool:
        return self._connection.is_paused

    def write(self, data: bytes) -> None:
        self._connection.write(self.frame(data))

    def write_end(self) -> None:
        if self._is_chunked:
            self._connection.write(b"0\r\n\r\n")
        self._connection.end_response()

    def close(self) -> None:
        if not self.is_over:
            self._connection.edge.counts["streams"] -= 1
        super().close()

    def hand_rest(self, rest: bytes) -> None:
        if not self._connection.is_closed:
            self._connection.transport.write(rest)

    def break_off(self) -> None:
        self._connection.abort()

    def enter(self, channel: Channel) -> None:
        if self._is_chunked:
            self.fd = self._connection.fd
        if self.fd != NOT_DIRECT:
            channel.enter_direct(self)
        elif self._is_chunked:
            channel.enter_transport(self._connection.transport, self)
        else:
            channel.enter_target(self)

    def leave(self, channel: Channel) -> None:
        if self.fd != NOT_DIRECT:
            channel.leave_direct(self.fd)
        elif self._is_chunked:
            channel.leave_transport(self._connection.transport)
        else:
            channel.leave_target(self)

    # Target, for HTTP/1.0

    def deliver(self, parcel: Parcel) -> int:
        self._connection.write(parcel.data)
        return 1

    def readers(self) -> list[Reader]:
        return [self]


class Http1Relay:
    """A request passed on, and its answer to the client. See `exchange.Viewer`."""

    __slots__ = (
        "_connection",
        "_has_body",
        "_head",
        "_is_chunked",
        "_is_ended",
        "_relay",
        "_relaying",
        "is_answered",
        "is_begun",
        "is_tunnel",
    )

    def __init__(self, connection: Http1Connection, relay: Relay, *, has_body: bool) -> None:
        self.is_begun = False
        """Whether the head of the answer has been written."""
        self.is_answered = False
        """Whether the upstream's side of a tunnel has ended."""
        self.is_tunnel = False
        """Whether both sides have gone over to another protocol."""
        self._connection = connection
        self._relay = relay
        self._has_body = has_body
        self._head = b""  # it leaves with the first piece of the body if that came with it
        self._is_chunked = False
        self._is_ended = False
        self._relaying: Relaying = relay.begin(self, has_body)

    # From the client

    def send(self, data: bytes) -> None:
        """A piece of the body has come."""
        if not self._relaying.send(data):
            self._connection.hold_back(True)

    def send_end(self) -> None:
        """The body is whole, or the client's side of a tunnel is."""
        if self._has_body or self.is_tunnel:
            self._relaying.send_end()

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

    # From the upstream

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None:
        connection = self._connection
        if status == HTTPStatus.CONTINUE:
            connection.let_continue()
        elif not connection.is_one_zero:
            connection.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _phrase(status), fields(headers)))

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        connection = self._connection
        self.is_begun = True
        if self._relay.done is not None:
            self._relay.done(status)
        lines = fields(headers)
        low = b"\n" + lines.lower()
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            self.is_tunnel = True
            self._head = _STATUS_LINES[status] + lines + b"\r\n"
            connection.open_tunnel()
            return
        if not connection.is_head_request and status not in _BODILESS and b"\ncontent-length:" not in low:
            if connection.is_one_zero:
                connection.close_behind()
            else:
                self._is_chunked = True
                lines += b"transfer-encoding: chunked\r\n"
        self._head = connection.head(status, lines, has_date=b"\ndate:" in low)

    def receive_data(self, data: bytes) -> None:
        if self._is_chunked:
            data = chunk(data)
        if self._head:
            data, self._head = self._head + data, b""
        self._connection.write(data)
        if self._connection.is_paused:
            self._relaying.pause()

    def flush(self) -> None:
        if self._head:
            self._connection.write(self._head)
            self._head = b""

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        self.flush()
        if self.is_tunnel:
            # This direction alone is over: `cancel` must still reach the upstream until the client's is too.
            self.is_answered, self._is_ended = True, self._connection.has_ended
            self._connection.half_close()
            return
        self._is_ended = True
        if self._is_chunked:
            self._connection.write(b"0\r\n%b\r\n" % fields(trailers))
        self._connection.end_response()

    def fail(self, error: Exception) -> None:
        self._is_ended = True
        self.flush()
        connection = self._connection
        if not self.is_begun:
            if isinstance(error, RejectedError):
                connection.refuse(error)
            else:
                connection.answer(bad_gateway(error))
            return
        connection.edge.counts["cut"] += 1
        log.warning("relay %s: the response was cut", error)
        if connection.is_one_zero:
            connection.reset()  # its body ends with the connection, and an orderly end would make it whole
        else:
            connection.finish()

    def resume_sending(self) -> None:
        self._connection.resume_body()


def fields(pairs: tuple[Pair, ...] | list[Pair]) -> bytes:
    """Header lines."""
    return b"\r\n".join([*map(b": ".join, pairs), b""])


def _not_http(error: httptools.HttpParserError) -> RejectedError:
    if str(error) == "Invalid HTTP version":
        return RejectedError(505, "only HTTP/1.0, HTTP/1.1 and HTTP/2 are served here")
    return RejectedError(400, "the request is not HTTP/1.1, or its body is not framed as it says")


def _phrase(status: int) -> bytes:
    return _STATUS_LINES.get(status, b"HTTP/1.1 100 \r\n")[13:-2]


def _let_go(reply: Reply) -> None:
    """A reply nobody waits for any more."""
    if isinstance(reply, Stream):
        reply.close()
