"""The gate as an ASGI application, for any ASGI server: requests in, the three values rendered.

ASGI tells an application neither how much of what it sent has left nor that a reader has stopped: `send` that does not
return is the only sign. So a stream is written in pieces, and one that hangs in `send` is given up after `stall`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import Subscriber
from ssegate.core.shape import heartbeat_of
from ssegate.edge.exchange import (
    Answer,
    Answering,
    ClientGoneError,
    Relay,
    Reply,
    Request,
    Stream,
    bad_gateway,
    problem,
)
from ssegate.edge.latency import Latency
from ssegate.edge.passage import Passage
from ssegate.edge.rules import check_request, join_cookies
from ssegate.edge.wheel import OFF, Wheel
from ssegate.errors import RejectedError, UpstreamError

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PIECE = 16 * 1024
"""Bytes handed to the server at once: what a client that does not read can hold of one event, beside the socket's."""

BODY_SILENCE = 30.0
"""Seconds a client may be silent in the middle of its request's body."""


class AsgiEdge:
    """Renders the gate's answers to HTTP requests of one ASGI server."""

    def __init__(
        self, answering: Answering, *, stall: float = 30.0, max_head: int = 32 * 1024, dates: bool = False
    ) -> None:
        """`stall`: seconds after which a client that takes nothing is dropped; `max_head` in bytes.

        `dates`: whether the edge sends Date, an upstream's own where there is one. Most ASGI servers add theirs to every
        response, and then it leaves the field to them.
        """
        self.stall = stall
        self._dates = dates
        self._answering = answering
        self._max_head = max_head
        self._wheel = Wheel()
        self.latency = Latency()
        self._counts = {"streams": 0, "streams_opened": 0, "bytes": 0, "deliveries": 0, "stalled": 0, "cut": 0}

    def count_stalled(self) -> None:
        """A server that notices by itself that a client takes nothing, and drops it, says so here."""
        self._counts["stalled"] += 1

    def statistics(self) -> dict[str, float]:
        """Streams open and opened, event bytes and deliveries handed to the server, clients dropped, responses cut."""
        return dict(self._counts)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope; `lifespan` belongs to whoever owns the gate."""
        if scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
            return
        body = _Body(receive)
        try:
            reply = await self._reply(scope, body)
            match reply:
                case Answer():
                    await self._render_answer(scope, reply, self._in_time(send))
                case Stream():
                    await self._render_stream(scope, reply, body, send)
                case Relay():
                    await self._render_relay(scope, reply, body, send)
        except ClientGoneError:
            return

    async def _reply(self, scope: MutableMapping[str, Any], body: _Body) -> Reply:
        version = scope["http_version"]
        fields = list(scope["headers"])
        headers = Headers(fields if version in ("1.0", "1.1") else join_cookies(fields))
        target = scope.get("raw_path") or scope["path"].encode()
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        try:
            target = check_request(scope["method"], target, headers, version, max_head=self._max_head)
        except RejectedError as error:
            return problem(error.status, str(error), close=True)
        peer = (scope.get("client") or ("",))[0]
        sent = body if _has_body(headers, version) else None
        if sent is None:
            body.release()
        reply = self._answering(
            Request(scope["method"], target, headers, version, scope.get("scheme", "http"), peer, sent)
        )
        if isinstance(reply, Answer | Stream | Relay):
            return reply
        async with _while_connected(body):
            return await reply

    async def _render_stream(self, scope: MutableMapping[str, Any], stream: Stream, body: _Body, send: Send) -> None:
        """Write the stream to its end, or until the client is gone or takes nothing."""
        pump = _Pump(stream, send, self.stall, self._counts, self.latency)
        self._counts["streams"] += 1
        self._counts["streams_opened"] += 1
        try:
            body.release()
            async with _while_connected(body) as deadline:
                pump.give_up = lambda: deadline.reschedule(0)
                self._wheel.add(pump, pump.next_look)
                await self._send_head(200, stream.headers, send)
                await pump.run()
        finally:
            self._wheel.remove(pump)
            self._counts["streams"] -= 1
            stream.close()

    async def _render_relay(self, scope: MutableMapping[str, Any], relay: Relay, body: _Body, send: Send) -> None:
        """Pass the upstream's response on. One that is cut is cut here too: the last message is not sent."""
        send = self._in_time(send)
        passage = Passage(relay, body, is_announced=_announces_body(Headers(scope["headers"])))
        async with _while_connected(body), passage:
            try:
                head = await passage.read_head()
            except UpstreamError as error:
                await self._render_answer(scope, bad_gateway(error), send)
                return
            except RejectedError as error:
                await self._render_answer(scope, problem(error.status, str(error), close=True), send)
                return
            if relay.done is not None:
                relay.done(head.status)
            try:
                await self._send_head(head.status, head.headers, send)
                async for chunk in passage:
                    for piece in _pieces(chunk):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except UpstreamError as error:
                self._counts["cut"] += 1
                log.warning("relay %s: the response was cut", error)
            except RejectedError as error:
                # The body of the request failed when its answer had begun already: it cannot be told any more.
                self._counts["cut"] += 1
                log.info("relay: a response was cut: %s", error)

    async def _send_head(self, status: int, headers: tuple[Pair, ...], send: Send) -> None:
        pairs = [(name.lower(), value) for name, value in headers]
        if not self._dates:
            pairs = [pair for pair in pairs if pair[0] != b"date"]
        elif not any(name == b"date" for name, _ in pairs):
            pairs.append((b"date", formatdate(time.time(), usegmt=True).encode()))
        await send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _render_answer(self, scope: MutableMapping[str, Any], answer: Answer, send: Send) -> None:
        headers = answer.headers
        has_body = answer.status >= 200 and answer.status not in (204, 304)
        if has_body and (answer.body or scope["method"] != "HEAD"):
            headers = (*headers, (b"content-length", b"%d" % len(answer.body)))
        if answer.close and scope["http_version"] in ("1.0", "1.1"):
            headers = (*headers, (b"connection", b"close"))
        await self._send_head(answer.status, headers, send)
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _in_time(self, send: Send) -> Send:
        """`send`, given up when the client takes nothing for `stall` seconds."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.stall):
                    await send(message)
            except TimeoutError as error:
                self._counts["stalled"] += 1
                raise ClientGoneError from error

        return send_in_time


class _Body:
    """The request's body out of ASGI's messages, and who else waits for them."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_read = asyncio.Event()

    def take_whole(self) -> bytes | None:
        """What has come is not known before it is awaited."""
        return None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._is_read.is_set():
            try:
                async with asyncio.timeout(BODY_SILENCE):
                    message = await self._receive()
            except TimeoutError as error:
                raise RejectedError(408, f"the body was silent for {BODY_SILENCE:g} s") from error
            if message["type"] == "http.disconnect":
                self._is_read.set()
                raise ClientGoneError
            if not message.get("more_body", False):
                self._is_read.set()
            if message.get("body"):
                yield message["body"]

    def release(self) -> None:
        """Nobody reads the body, or what is left of it, any more."""
        self._is_read.set()

    async def wait_gone(self) -> None:
        """Return when the client has left. While somebody reads the body it is they who learn of it."""
        await self._is_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Pump:
    """Writes one stream: opening, events, heartbeats."""

    __slots__ = (
        "_counts", "_deadline", "_event", "_is_beat_due", "_is_sending", "_last", "_latency", "_send", "_stall", "_stream", "give_up",
        "slot",
    )  # fmt: skip

    def __init__(self, stream: Stream, send: Send, stall: float, counts: dict[str, int], latency: Latency) -> None:
        now = asyncio.get_running_loop().time()
        self.give_up: Callable[[], None] = lambda: None
        """Called when the client takes nothing."""
        self.slot = OFF
        self._stream = stream
        self._send = send
        self._stall = stall
        self._counts = counts
        self._latency = latency
        self._event = asyncio.Event()
        self._is_beat_due = False
        self._is_sending = False
        self._last = now  # when the last write began
        self._deadline = None if stream.max_age is None else now + stream.max_age

    async def run(self) -> None:
        stream, subscriber = self._stream, self._stream.subscriber
        await self._open(stream.take_state())
        if subscriber is not None:
            subscriber.wake = self._event.set
            await self._follow(subscriber)
        await self._hand_over(b"", is_last=True)

    async def _open(self, state: bytes) -> None:
        if len(state) <= PIECE:
            await self._write(self._stream.opening + state)
        else:
            await self._write(self._stream.opening)
            await self._write(state)

    async def _follow(self, subscriber: Subscriber) -> None:
        is_live = False  # whether what is read now has just come
        while True:
            while data := subscriber.read():
                self._counts["deliveries"] += 1
                await self._write(data)
                if is_live:
                    self._latency.observe(time.monotonic() - subscriber.topic.moved_at)
            if subscriber.is_over or self._is_aged:
                break
            if self._is_beat_due:
                self._is_beat_due = False
                await self._write(heartbeat_of(subscriber.shape))
                continue
            self._event.clear()
            await self._event.wait()
            is_live = True

    @property
    def _is_aged(self) -> bool:
        return self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline

    async def _write(self, data: bytes) -> None:
        self._counts["bytes"] += len(data)
        for piece in _pieces(data):
            await self._hand_over(piece)

    async def _hand_over(self, piece: bytes, *, is_last: bool = False) -> None:
        self._last = asyncio.get_running_loop().time()
        self._is_sending = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        self._is_sending = False

    def look(self, now: float) -> float | None:
        """See `wheel.Timed`."""
        heartbeat = self._stream.heartbeat
        if self._is_sending:
            if now - self._last >= self._stall:
                self._counts["stalled"] += 1
                self.give_up()
                return None
            return self._last + self._stall
        if self._is_aged:
            self._event.set()
            return None
        if now - self._last >= heartbeat:
            self._is_beat_due = True
            self._event.set()
            self._last = now
        return self.next_look

    @property
    def next_look(self) -> float:
        """When the next heartbeat would be due, or the stream's end, or what is sent now would have taken too long."""
        due = min(self._last + self._stream.heartbeat, asyncio.get_running_loop().time() + self._stall)
        return due if self._deadline is None else min(due, self._deadline)


def _pieces(data: bytes) -> Iterator[bytes]:
    if len(data) <= PIECE:
        yield data
    else:
        yield from (data[start : start + PIECE] for start in range(0, len(data), PIECE))


@asynccontextmanager
async def _while_connected(body: _Body) -> AsyncIterator[asyncio.Timeout]:
    """Run the block until it ends or the client is gone: then it is cancelled, and `ClientGoneError` comes out.

    The timeout it gives has no deadline until somebody sets one, with the same effect.
    """

    async def watch(deadline: asyncio.Timeout) -> None:
        await body.wait_gone()
        deadline.reschedule(0)

    try:
        async with asyncio.timeout(None) as deadline:
            watcher = asyncio.get_running_loop().create_task(watch(deadline))
            try:
                yield deadline
            finally:
                watcher.cancel()
    except TimeoutError as error:
        raise ClientGoneError from error


def _has_body(headers: Headers, http_version: str) -> bool:
    """In HTTP/2 nothing says so for sure before the first piece has come, or the end."""
    return http_version not in ("1.0", "1.1") or _announces_body(headers)


def _announces_body(headers: Headers) -> bool:
    """RFC 9112, 6.3: a length or a coding says so."""
    return "transfer-encoding" in headers or int(headers.get("content-length") or 0) > 0


async def _refuse_websocket(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """WebSockets are not passed through: 501 where the server can say so, else its refusal."""
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    answer = problem(501, "WebSockets are not passed through")
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "websocket.http.response.start", "status": 501, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body, "more_body": False})
