"""Whatever bytes come, in whatever pieces: no exception escapes, nothing is left, and the next connection is served."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import hpack
import pytest
import uvloop
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ssegate.core.event import Update
from ssegate.core.hub import Hub, TopicSettings
from ssegate.core.journal import Form, Position
from ssegate.edge.exchange import Answer, Relay, Relaying, Reply, Request, Stream, Viewer, problem
from ssegate.edge.native import limits
from ssegate.edge.native.edge import NativeEdge
from ssegate.edge.native.http1 import PREFACE, Http1Connection
from ssegate.errors import RejectedError, UpstreamError

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LARGE = b"a" * 40_000


class Echo:
    """An upstream that answers at once what it is sent, ends when that has ended, or fails in the middle."""

    def __init__(self, viewer: Viewer, has_body: bool, *, upgrade: bytes | None, is_failing: bool) -> None:
        self._viewer: Viewer | None = viewer
        self._upgrade = upgrade
        self._is_failing = is_failing
        self._soon(self._begin, has_body)

    def _soon(self, step: Callable[..., None], *arguments: object) -> None:
        asyncio.get_running_loop().call_soon(step, *arguments)

    def _begin(self, has_body: bool) -> None:
        if self._viewer is None:
            return
        if self._upgrade is not None:
            self._viewer.receive_head(101, ((b"Connection", b"Upgrade"), (b"Upgrade", self._upgrade)))
        else:
            self._viewer.receive_head(200, ((b"X-Echo", b"1"),))
        if self._viewer is not None:
            self._viewer.flush()
        if not has_body and self._upgrade is None:
            self._say(LARGE)
            self._end()

    def _say(self, data: bytes) -> None:
        if self._viewer is not None:
            self._viewer.receive_data(data)
        if self._viewer is not None:
            self._viewer.flush()

    def _end(self) -> None:
        viewer, self._viewer = self._viewer, None
        if viewer is None:
            return
        if self._is_failing:
            viewer.fail(UpstreamError("GET http://upstream.test/: it broke"))
        else:
            viewer.receive_end(())

    # relay.Relaying

    def send(self, data: bytes) -> bool:
        self._soon(self._say, data)
        return True

    def send_end(self, trailers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self._soon(self._end)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None:
        self._viewer = None


class Bed:
    """An edge with a gate behind it that has something of everything."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.topic = self.hub.open("topic", TopicSettings(Form.EVENTS, 10, 1e6), 0.0)
        self.edge = NativeEdge(self.answer, max_head=8 * 1024, max_streams=5)
        self.broken: list[str] = []
        self.offset = 0
        self._open_streams = 0

    def answer(self, request: Request) -> Reply | Awaitable[Reply]:
        match request.target.partition(b"?")[0]:
            case b"/stream":
                return self._stream()
            case b"/body":
                return self._read(request)
            case b"/relay" | b"/broken" as target:
                begin = partial(Echo, upgrade=request.upgrade, is_failing=target == b"/broken")
                return Relay(_typed(begin))
            case b"/large":
                return Answer(200, ((b"content-type", b"text/plain"),), LARGE)
            case b"/":
                return Answer(200, (), b"fine")
        return problem(404, "there is nothing here")

    def _stream(self) -> Stream:
        opening = self.hub.subscribe(self.topic, "earliest", 0.0, lambda: None)
        # With more than is read ahead waiting behind a stream, it is by its heartbeat that the client is found gone.
        fields, begun = ((b"content-type", b"text/event-stream"),), b"retry: 1\n:\n" + opening.data
        stream = Stream(fields, begun, opening.subscriber, heartbeat=0.1)
        self._open_streams += 1
        stream.close = partial(self._close, opening.subscriber)
        return stream

    def _close(self, subscriber: object) -> None:
        self._open_streams -= 1
        self.hub.unsubscribe(subscriber, 0.0)  # type: ignore[arg-type]  # a Subscriber, which partial forgets

    async def _read(self, request: Request) -> Reply:
        size = 0
        if request.body is not None:
            try:
                async for piece in request.body:
                    size += len(piece)
            except RejectedError as error:
                return problem(error.status, str(error))
        await asyncio.sleep(0)
        return Answer(200, (), b"%d" % size)

    def publish(self) -> None:
        """Something new for all streams."""
        self.offset += 1
        if self.topic.receive(Update("topic", "x" * 200), Position("e", self.offset), 0.0):
            self.topic.wake()

    async def connect(self) -> socket.socket:
        client, ours = socket.socketpair()
        client.setblocking(False)
        ours.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: Http1Connection(self.edge), ours)
        return client

    async def feed(self, pieces: list[bytes], *, is_closing_gently: bool) -> bytes:
        """Send these on a connection of their own; all that came back."""
        client, said = await self.connect(), b""
        try:
            for number, piece in enumerate(pieces):
                said += await self._send(client, piece)
                if number == 1:
                    self.publish()
            if is_closing_gently:
                client.shutdown(socket.SHUT_WR)
            for _ in range(4):
                said += await self._take(client)
        except ConnectionError:
            pass  # it may end us at any time
        finally:
            client.close()
        async with asyncio.timeout(5):
            while self.edge.connections:
                await asyncio.sleep(0)
        return said

    async def _send(self, client: socket.socket, data: bytes) -> bytes:
        said = b""
        while data:
            with suppress(BlockingIOError):
                data = data[client.send(data) :]
            said += await self._take(client)
        return said

    async def _take(self, client: socket.socket) -> bytes:
        said = b""
        for _ in range(3):
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                said += client.recv(1 << 20)
        return said

    async def check(self) -> None:
        """Whether nothing is left, and the next are served."""
        for _ in range(20):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        assert not self.broken, self.broken
        assert self._open_streams == self.edge.counts["streams"] == 0
        assert not self.edge._channels
        assert not self.edge.wheel._slots, "what is over is kept"
        assert not self.topic.waiting
        assert not self.topic.subscribers
        assert (await self.feed([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], is_closing_gently=False)).endswith(b"fine")
        said = await self.feed([PREFACE + b"".join(map(Frame.serialize, GOOD_HTTP2))], is_closing_gently=False)
        assert b"fine" in said


def _typed(begin: Callable[..., Relaying]) -> Callable[[Viewer, bool], Relaying]:
    return begin


class Errors(logging.Handler):
    """What is told as a defect."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(self.format(record))


@contextmanager
def listening(bed: Bed) -> Iterator[None]:
    handler = Errors(bed.broken)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: bed.broken.append(repr(context)))
    logging.getLogger().addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "MAX_UNREAD", 2048)
            patch.setattr(limits, "MAX_DROPPED", 2048)
            yield
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module", params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


def survive(runner: asyncio.Runner, pieces: list[bytes], *, is_closing_gently: bool) -> None:
    async def one() -> None:
        bed = Bed()
        with listening(bed):
            await bed.feed(pieces, is_closing_gently=is_closing_gently)
            await bed.check()

    runner.run(one())


# What was found


def test_a_body_that_breaks_while_it_is_read_is_refused_once(runner: asyncio.Runner) -> None:
    head = b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    survive(runner, [head + b"5\r\nhello\r\nzz\r\n"], is_closing_gently=False)


def test_a_request_is_taken_back_in_the_packet_it_comes_in(runner: asyncio.Runner) -> None:
    head = hpack.Encoder().encode((*FIELDS[0], (b":path", b"/stream")))
    asked = HeadersFrame(1, head, flags=["END_HEADERS", "END_STREAM"])
    for last in (RstStreamFrame(1, error_code=8), GoAwayFrame(0, last_stream_id=1)):
        data = PREFACE + b"".join(frame.serialize() for frame in (SettingsFrame(0), asked, last))
        survive(runner, [data], is_closing_gently=False)


# Mutations

TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"HTTP/1.0", b"HTTP/2.0",
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"GET", b"HEAD", b"CONNECT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"/stream", b"/relay", b"/broken", b"\xff" * 9, b"x" * 9000, b"X: " + b"y" * 500 + b"\r\n", b"a: b\r\n" * 101,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some of it left out, doubled, replaced, or put in."""
    data = whole
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 30)))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:end] + data[at:end] + data[end:]
            case 2:
                data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[end:]
            case 3:
                data = data[:at] + draw(st.sampled_from(TOKENS)) + data[at:]
            case 4:
                data = data[:at]
    return data


@st.composite
def in_pieces(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> list[bytes]:
    data = draw(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


# HTTP/1.1

TARGETS = [b"/", b"/stream", b"/body", b"/relay", b"/broken", b"/large", b"/none", b"http://a/", b"//a", b"*"]
BODIES = [
    (b"", b""),
    (b"Content-Length: 5\r\n", b"hello"),
    (b"Content-Length: 5\r\nExpect: 100-continue\r\n", b"hello"),
    (b"Content-Length: 9000\r\n", b"a" * 9000),
    (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n3;ext=1\r\nyou\r\n0\r\nTrailer: 1\r\n\r\n"),
    (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"\x81\x05hello"),
    (b"Connection: close\r\n", b""),
]


@st.composite
def http1_requests(draw: st.DrawFn) -> bytes:
    data = b""
    for _ in range(draw(st.integers(1, 4))):
        method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]))
        version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
        fields, body = draw(st.sampled_from(BODIES))
        target = draw(st.sampled_from(TARGETS))
        data += b"%b %b HTTP/%b\r\nHost: a\r\n%b\r\n%b" % (method, target, version, fields, body)
    return draw(mutated(data))


@settings(deadline=None)
@given(pieces=in_pieces(http1_requests()), is_closing_gently=st.booleans())
def test_any_stream_of_http1_requests_is_survived(
    runner: asyncio.Runner, pieces: list[bytes], is_closing_gently: bool
) -> None:
    survive(runner, pieces, is_closing_gently=is_closing_gently)


# HTTP/2

FIELDS = [
    ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a")),
    ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b"content-length", b"5")),
    ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a")),
    ((b":method", b"HEAD"), (b":scheme", b"http"), (b":authority", b"a")),
    ((b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":authority", b"a")),
    ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b"connection", b"close")),
    ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b"Upper", b"1")),
    ((b":status", b"200"),),
    ((b"trailer", b"1"),),
]
GOOD_HTTP2 = [
    SettingsFrame(0),
    HeadersFrame(1, hpack.Encoder().encode((*FIELDS[0], (b":path", b"/"))), flags=["END_HEADERS", "END_STREAM"]),
]
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 9, 11, 13, 2, 2**31 - 1])


@st.composite
def headers(draw: st.DrawFn) -> Frame:
    target = draw(st.sampled_from(TARGETS))
    # Nothing is indexed, so every block can be read by itself, whatever came before.
    fields = [hpack.NeverIndexedHeaderTuple(*pair) for pair in (*draw(st.sampled_from(FIELDS)), (b":path", target))]
    flags = draw(st.sampled_from([["END_HEADERS"], ["END_HEADERS", "END_STREAM"], ["END_STREAM"], []]))
    return HeadersFrame(1, hpack.Encoder().encode(fields), flags=flags)


def frame_of(draw: st.DrawFn) -> Frame:
    size = draw(st.sampled_from([0, 5, 5, 20, 1000]))
    amount = draw(st.sampled_from([0, 1, 100, 65_535, 2**31 - 1]))
    match draw(st.integers(0, 11)):
        case 0 | 1 | 2:
            return draw(headers())
        case 3 | 4:
            return DataFrame(1, b"a" * size, flags=draw(st.sampled_from([[], ["END_STREAM"]])))
        case 5:
            return RstStreamFrame(1, error_code=8)
        case 6:
            return WindowUpdateFrame(0, window_increment=amount)
        case 7:
            key = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 99]))
            return SettingsFrame(0, {key: amount})
        case 8:
            return PingFrame(0, b"12345678")
        case 9:
            return ContinuationFrame(1, hpack.Encoder().encode([(b"x-more", b"1")]), flags=["END_HEADERS"])
        case 10:
            return PriorityFrame(1, depends_on=1, stream_weight=1, exclusive=False)
    return GoAwayFrame(0, last_stream_id=1)


@st.composite
def http2_frames(draw: st.DrawFn) -> bytes:
    data = SettingsFrame(0).serialize()
    for _ in range(draw(st.integers(1, 12))):
        frame = frame_of(draw)
        raw = bytearray(frame.serialize())
        if frame.stream_id or not draw(st.integers(0, 3)):
            raw[5:9] = draw(STREAMS).to_bytes(4, "big")
        if not draw(st.integers(0, 9)):
            raw[draw(st.integers(0, min(8, len(raw) - 1)))] = draw(st.integers(0, 255))
        data += bytes(raw)
    return PREFACE + draw(mutated(data))


@settings(deadline=None)
@given(pieces=in_pieces(http2_frames()), is_closing_gently=st.booleans())
def test_any_stream_of_http2_frames_is_survived(
    runner: asyncio.Runner, pieces: list[bytes], is_closing_gently: bool
) -> None:
    survive(runner, pieces, is_closing_gently=is_closing_gently)


@settings(deadline=None)
@given(pieces=in_pieces(st.binary(max_size=200)), is_closing_gently=st.booleans())
def test_any_bytes_are_survived(runner: asyncio.Runner, pieces: list[bytes], is_closing_gently: bool) -> None:
    survive(runner, pieces, is_closing_gently=is_closing_gently)
