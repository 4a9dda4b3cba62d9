"""An upstream's answer at the reader's own pace: what is asked, head, pieces, trouble, and how much waits; a WebSocket the same way."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from http import HTTPStatus
from typing import Any, ParamSpec

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from ssegate.core.headers import Headers, Pair
from ssegate.errors import OversizeError, UpstreamError, UpstreamTimeoutError, UpstreamUnreachableError
from ssegate.upstream import Upstream
from ssegate.upstream.address import Address
from ssegate.upstream.connection import READ_SIZE
from ssegate.upstream.fields import CHUNKED
from ssegate.upstream.intake import HIGH_WATER, AnswerHead, Intake
from ssegate.upstream.websocket import WebSocketIntake
from tests.ports import free_port
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, chunked, heads
from tests.upstream.settings import settings

P = ParamSpec("P")
PATIENCE = 5.0
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def story(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test be a coroutine that has a few seconds."""

    @wraps(test)
    def run(*arguments: P.args, **keywords: P.kwargs) -> None:
        async def in_time() -> None:
            async with asyncio.timeout(PATIENCE):
                await test(*arguments, **keywords)

        asyncio.run(in_time())

    return run


class Telling:
    """A `relay.Relaying` that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    def send_end(self, trailers: tuple[Pair, ...] = ()) -> None:
        self.told.append("end")

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def cancel(self) -> None:
        self.told.append("cancel")


def made() -> tuple[Intake, Telling]:
    """An intake that has been begun, by hand."""
    intake, telling = Intake(), Telling()
    intake.relaying = telling
    return intake, telling


@asynccontextmanager
async def upstream_of(step: Step, **others: Any) -> AsyncIterator[tuple[Upstream, ScriptedUpstream]]:
    async with ScriptedUpstream(step) as scripted:
        upstream = Upstream("api", settings(scripted.url, **others))
        try:
            yield upstream, scripted
        finally:
            await upstream.aclose()


def opened(upstream: Upstream, path: str | bytes = "/log", *headers: Pair, **others: Any) -> Intake:
    intake = Intake()
    intake.relaying = upstream.open(path, headers, intake, **others)
    return intake


async def whole(intake: Intake) -> bytes:
    """The rest of the body."""
    parts = []
    while piece := await intake.read():
        parts.append(piece)
    return b"".join(parts)


# The head, the pieces, the end


@story
async def test_whoever_reads_waits_for_the_head_and_has_it_from_then_on() -> None:
    intake, _ = made()
    reading = asyncio.create_task(intake.read_head())
    await asyncio.sleep(0)
    assert intake.head is None
    intake.receive_informational(103, ())
    assert intake.head is None
    intake.receive_head(200, ((b"a", b"b"),))
    assert await reading == await intake.read_head() == intake.head == AnswerHead(200, ((b"a", b"b"),))


@story
async def test_pieces_come_one_by_one_in_order_and_then_the_end_as_often_as_it_is_asked_for() -> None:
    intake, _ = made()
    intake.receive_head(200, ())
    intake.receive_data(b"one")
    intake.receive_data(b"two")
    assert [await intake.read(), await intake.read()] == [b"one", b"two"]
    reading = asyncio.create_task(intake.read())
    await asyncio.sleep(0)
    intake.receive_data(b"three")
    assert await reading == b"three"
    intake.receive_end(((b"x", b"y"),))
    assert [await intake.read(), await intake.read()] == [b"", b""]


@story
async def test_what_is_here_can_be_taken_without_waiting() -> None:
    intake, _ = made()
    assert intake.take() is None
    intake.receive_head(200, ())
    assert intake.take() is None
    intake.receive_data(b"one")
    assert intake.take() == b"one"
    assert intake.take() is None
    intake.receive_end(())
    assert intake.take() is None, "the end has to be read"


@story
async def test_what_came_before_an_answer_was_cut_is_read_before_that_is_raised() -> None:
    intake, _ = made()
    intake.receive_head(200, ())
    intake.receive_data(b"one")
    intake.fail(UpstreamError("cut"))
    assert await intake.read() == b"one"
    for _ in range(2):
        with pytest.raises(UpstreamError, match="cut"):
            await intake.read()
    with pytest.raises(UpstreamError, match="cut"):
        intake.check()


@story
async def test_an_answer_without_a_head_is_an_error_for_whoever_waits_and_whoever_comes_later() -> None:
    intake, _ = made()
    intake.check()
    reading = asyncio.create_task(intake.read_head())
    await asyncio.sleep(0)
    intake.fail(UpstreamUnreachableError("refused"))
    for waiting in (reading, intake.read_head()):
        with pytest.raises(UpstreamUnreachableError):
            await waiting


@story
async def test_a_read_that_was_given_up_loses_nothing() -> None:
    intake, _ = made()
    intake.receive_head(200, ())
    for piece in (b"one", b"two"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await intake.read()
        reading = asyncio.create_task(intake.read())
        await asyncio.sleep(0)
        reading.cancel()
        intake.receive_data(piece)
        assert await intake.read() == piece


@story
async def test_the_upstream_pauses_while_much_waits_to_be_read_and_goes_on_when_it_has_been() -> None:
    intake, telling = made()
    intake.receive_head(200, ())
    intake.receive_data(b"x" * (HIGH_WATER - 1))
    assert telling.told == []
    intake.receive_data(b"yy")
    intake.receive_data(b"z" * READ_SIZE)  # what was on its way
    assert telling.told == ["pause", "pause"]
    await intake.read()
    assert telling.told == ["pause", "pause"], "there is still too much"
    await intake.read()
    assert telling.told == ["pause", "pause"]
    assert intake.take() == b"z" * READ_SIZE
    assert telling.told == ["pause", "pause", "resume"]
    intake.receive_data(b"x")
    intake.take()
    assert telling.told == ["pause", "pause", "resume"]


@story
async def test_a_request_that_was_not_begun_can_be_cancelled() -> None:
    Intake().cancel()


# What is asked of an upstream


@story
async def test_a_stream_is_asked_for_as_it_is_and_with_the_gates_own_credentials() -> None:
    more: dict[str, Any] = {"auth": {"bearer": "own"}, "headers": {"X-Team": "a"}}
    async with upstream_of(answer(b"x"), **more) as (upstream, scripted):
        intake = opened(upstream, "/log?follow=%31", (b"Last-Event-ID", b"7"), accept=b"text/event-stream")
        assert (await intake.read_head()).status == 200
        assert await whole(intake) == b"x"
        (asked,) = scripted.requests
        assert (asked.method, asked.target) == ("GET", "/log?follow=%31")
        assert [asked.get(name) for name in ("accept", "accept-encoding", "authorization", "x-team", "last-event-id")] == [
            "text/event-stream", "identity", "Bearer own", "a", "7",
        ]  # fmt: skip
        assert asked.get("host") == f"127.0.0.1:{scripted.port}"
        assert "content-length" not in heads(asked)
        assert "transfer-encoding" not in heads(asked)


@story
async def test_the_gates_own_credentials_stay_away_where_they_should() -> None:
    more: dict[str, Any] = {"auth": {"basic": {"user": "robot", "password": "secret"}}}
    async with upstream_of(answer(b"x"), **more) as (upstream, scripted):
        for headers in ((), ((b"authorization", b"Bearer viewer"),)):
            await whole(opened(upstream, "/log", *headers, with_auth=False))
        assert [asked.get("authorization") for asked in scripted.requests] == [None, "Bearer viewer"]


@story
async def test_authorization_among_the_configured_headers_is_one_of_the_gates_own_credentials() -> None:
    async with upstream_of(answer(b"x"), headers={"Authorization": "Key own", "X-Team": "a"}) as (upstream, scripted):
        await whole(opened(upstream))
        await whole(opened(upstream, with_auth=False))
        assert [asked.get("authorization") for asked in scripted.requests] == ["Key own", None]
        assert [asked.get("x-team") for asked in scripted.requests] == ["a", "a"]


@story
async def test_a_body_leaves_piece_by_piece_before_it_is_whole() -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(call: Call) -> None:
        while piece := await call.read_piece():
            pieces.put_nowait(piece)
        await call.send(answer(b"whole"))

    async with upstream_of(read) as (upstream, scripted):
        intake = opened(upstream, "/chat", method="POST", framing=CHUNKED)
        assert intake.relaying is not None
        for piece in (b"one", b"two"):
            intake.relaying.send(piece)
            assert await pieces.get() == piece
        intake.relaying.send_end()
        assert await whole(intake) == b"whole"
        assert (scripted.requests[0].method, scripted.requests[0].body) == ("POST", b"onetwo")


@story
async def test_a_target_out_of_a_redirect_is_sent_as_it_is() -> None:
    async with upstream_of(answer(b"x")) as (upstream, scripted):
        await whole(opened(upstream, b"/other?a=%2F"))
        assert scripted.requests[0].target == "/other?a=%2F"


@story
async def test_a_header_that_cannot_be_said_is_an_error_and_nothing_is_sent() -> None:
    async with upstream_of(answer(b"x")) as (upstream, scripted):
        with pytest.raises(UpstreamError, match=r"HTTP/1\.1 cannot say") as caught:
            await opened(upstream, "/log?secret", (b"X-A", b"secret\r\nX-B: forged")).read_head()
        assert "secret" not in str(caught.value)
        assert scripted.requests == []


# What comes of it


@story
async def test_a_piece_is_here_before_the_upstream_sends_the_next() -> None:
    taken = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(HEAD)
        for _ in range(3):
            await call.send(b"3\r\nabc\r\n")
            await taken.wait()
            taken.clear()
        await call.send(b"0\r\n\r\n")

    async with upstream_of(send) as (upstream, _):
        intake = opened(upstream)
        await intake.read_head()
        for _ in range(3):
            assert await intake.read() == b"abc"
            taken.set()
        assert await intake.read() == b""


@story
async def test_once_begun_an_answer_may_be_silent_for_as_long_as_it_likes() -> None:
    async def send(call: Call) -> None:
        await call.send(HEAD)
        await asyncio.sleep(0.3)  # longer than what is borne of others
        await call.send(b"3\r\nabc\r\n0\r\n\r\n")

    async with upstream_of(send, read=0.1) as (upstream, _):
        assert await whole(opened(upstream)) == b"abc"


@story
async def test_an_answer_that_does_not_begin_is_given_up() -> None:
    async def hang(call: Call) -> None:
        await call.closed()

    async with upstream_of(hang, read=0.1) as (upstream, scripted):
        with pytest.raises(UpstreamTimeoutError):
            await opened(upstream).read_head()
        await scripted.until(lambda it: it.open == 0)


@story
async def test_an_upstream_that_is_not_there_is_an_error() -> None:
    upstream = Upstream("api", settings(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(UpstreamUnreachableError):
        await opened(upstream).read_head()
    await upstream.aclose()


@pytest.mark.parametrize(
    ("sent", "is_cut"),
    [
        (chunked(b"abc"), False),
        (answer(b"abc"), False),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", False),
        (HEAD + b"3\r\nabc\r\n", True),
        (HEAD + b"5\r\nabc", True),
        (answer(b"abc", length=5), True),
        (HEAD + b"3\r\nabc\r\nnonsense", True),
    ],
)
@story
async def test_an_end_in_good_order_is_told_apart_from_a_cut(sent: bytes, is_cut: bool) -> None:
    async def send(call: Call) -> None:
        await call.send(sent)
        call.close()

    async with upstream_of(send) as (upstream, _):
        intake = opened(upstream)
        assert await intake.read() == b"abc"
        if is_cut:
            with pytest.raises(UpstreamError):
                await intake.read()
        else:
            assert await intake.read() == b""


@story
async def test_a_reset_is_a_cut() -> None:
    read = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(HEAD + b"3\r\nabc\r\n")
        await read.wait()
        call.reset()

    async with upstream_of(send) as (upstream, _):
        intake = opened(upstream)
        assert await intake.read() == b"abc"
        read.set()
        with pytest.raises(UpstreamError):
            await intake.read()


@story
async def test_a_request_that_is_cancelled_ends_at_the_upstream_too() -> None:
    async def send(call: Call) -> None:
        await call.send(HEAD + b"3\r\nabc\r\n")
        await call.closed()

    async with upstream_of(send) as (upstream, scripted):
        intake = opened(upstream)
        assert await intake.read() == b"abc"
        assert upstream.statistics()["streams_open"] == 1
        intake.cancel()
        intake.cancel()
        await scripted.until(lambda it: it.open == 0)
        assert upstream.statistics()["streams_open"] == 0


@story
async def test_an_upstream_that_is_faster_than_its_reader_is_held_back() -> None:
    sent = 0

    async def send(call: Call) -> None:
        nonlocal sent
        await call.send(HEAD)
        for _ in range(400):
            await call.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
        await call.send(b"0\r\n\r\n")

    async with upstream_of(send) as (upstream, _):
        intake = opened(upstream)
        await intake.read_head()
        before = -1
        while sent != before:  # until the system's buffers are full
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 400 * 65536
        assert HIGH_WATER <= intake._unread < HIGH_WATER + 2 * READ_SIZE
        size = 0
        while piece := await intake.read():
            size += len(piece)
            assert intake._unread < HIGH_WATER + 2 * READ_SIZE
        assert size == 400 * 65536


@story
async def test_streams_take_no_connection_from_other_requests() -> None:
    async def handle(call: Call) -> None:
        if call.asked.target == "/log":
            await call.send(HEAD)
            await call.closed()
        else:
            await call.send(answer(b"{}"))

    async with upstream_of(handle, connections=1) as (upstream, _):
        intakes = [opened(upstream) for _ in range(5)]
        for intake in intakes:
            await intake.read_head()
        assert (await upstream.fetch("/x", (), max_body=100)).status == 200
        figures = upstream.statistics()
        assert (figures["streams_open"], figures["connections_open"], figures["requests_sent"]) == (5, 1, 6)


@story
async def test_what_still_streams_when_the_upstream_is_closed_fails() -> None:
    async def send(call: Call) -> None:
        await call.send(HEAD)
        await call.closed()

    async with upstream_of(send) as (upstream, _):
        intake = opened(upstream)
        await intake.read_head()
        await upstream.aclose()
        with pytest.raises(UpstreamError):
            await intake.read()


# WebSockets

Handle = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def socket_of(
    handle: Handle, *, max_size: int = 1000, headers: tuple[Pair, ...] = (), **more: Any
) -> AsyncIterator[WebSocketIntake]:
    """The gate's side of a WebSocket whose other side is the `websockets` package."""
    async with serve(handle, "127.0.0.1", 0, **more) as server:
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream("api", settings(f"http://127.0.0.1:{port}/base", auth={"bearer": "own"}))
        intake = WebSocketIntake.open(upstream, "/live?a=1", headers, with_auth=True, max_size=max_size)
        try:
            yield intake
        finally:
            intake.cancel()
            await upstream.aclose()


def saying(*messages: Any) -> Handle:
    async def handle(connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message)
        await connection.wait_closed()

    return handle


@story
async def test_a_websocket_is_asked_for_like_a_stream_and_has_status_101() -> None:
    asked: list[Request] = []

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        asked.append(connection.request)
        await connection.send("hello")
        await connection.wait_closed()

    async with socket_of(handle, headers=((b"Cookie", b"s=1"),)) as intake:
        assert (await intake.read_head()).status == 101
        assert await intake.read() == b"hello"
        (request,) = asked
        assert request.path == "/base/live?a=1"
        assert (request.headers["Authorization"], request.headers["Cookie"]) == ("Bearer own", "s=1")
        assert "Sec-WebSocket-Extensions" not in request.headers, "nothing may be compressed"


@story
async def test_a_text_is_utf8_and_a_binary_message_base64_and_an_empty_one_is_nothing() -> None:
    async with socket_of(saying("grün …", b"\0\xff", "", b"", "\0", "last")) as intake:
        got = [await intake.read() for _ in range(4)]
        assert got == ["grün …".encode(), base64.b64encode(b"\0\xff"), b"\0", b"last"]


@story
async def test_a_message_in_fragments_is_one_piece() -> None:
    async with socket_of(saying(["one ", "", "two ", "three"], [b"\0", b"\xff"], "last")) as intake:
        assert [await intake.read() for _ in range(3)] == [b"one two three", base64.b64encode(b"\0\xff"), b"last"]


@story
async def test_a_ping_is_answered_even_when_nobody_reads() -> None:
    answered = asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        await (await connection.ping(b"are you there"))
        answered.set()
        await connection.wait_closed()

    async with socket_of(handle) as intake:
        await answered.wait()
        assert intake.take() is None


@pytest.mark.parametrize("code", [1000, 1001, None])
@story
async def test_a_close_in_good_order_is_the_end(code: int | None) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("last")
        if code is None:
            connection.transport.write(Frame(Opcode.CLOSE, b"").serialize(mask=False))
            await connection.wait_closed()
        else:
            await connection.close(code)

    async with socket_of(handle) as intake:
        assert await intake.read() == b"last"
        assert await intake.read() == b""


@pytest.mark.parametrize("code", [1011, 3000])
@story
async def test_another_close_is_a_failure_that_names_its_code(code: int) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close(code, "secret reason")

    async with socket_of(handle) as intake:
        assert await intake.read() == b"last"
        with pytest.raises(UpstreamError, match=f"closed with code {code}$") as caught:
            await intake.read()
        assert "secret" not in str(caught.value)
        assert "a=1" not in str(caught.value)


@story
async def test_a_close_is_answered_and_the_connection_let_go_of() -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    opened = asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        await opened.wait()
        await connection.close(1000)
        closed.set_result(connection.close_code)

    async with socket_of(handle) as intake:
        await intake.read_head()
        opened.set()
        assert await closed == 1000


@story
async def test_a_websocket_that_breaks_off_is_cut() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("last")
        connection.transport.abort()

    async with socket_of(handle) as intake:
        assert await intake.read() == b"last"
        with pytest.raises(UpstreamError):
            await intake.read()


@story
async def test_a_websocket_whose_connection_ends_without_a_close_is_cut() -> None:
    async def handle(call: Call) -> None:
        await call.send(switching(call.asked.get("sec-websocket-key") or "") + text(b"last"))
        call.close()

    async with upstream_of(handle) as (upstream, _):
        intake = WebSocketIntake.open(upstream, "/live", (), with_auth=True, max_size=100)
        assert await intake.read() == b"last"
        with pytest.raises(UpstreamError, match="broke off"):
            await intake.read()


@story
async def test_a_refusal_is_an_answer_like_any_other() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(HTTPStatus.FORBIDDEN, "not you")

    async with socket_of(saying(), process_request=refuse) as intake:
        head = await intake.read_head()
        assert head.status == 403
        assert Headers(head.headers).get("content-length") == "7"
        assert await whole(intake) == b"not you"


@pytest.mark.parametrize("message", ["x" * 101, ["x" * 60, "x" * 60], b"x" * 101])
@story
async def test_a_message_that_is_too_large_is_refused_before_it_has_come(message: Any) -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handle(connection: ServerConnection) -> None:
        await connection.send("x" * 100)
        await connection.send(message)
        await connection.wait_closed()
        closed.set_result(connection.close_code)

    async with socket_of(handle, max_size=100) as intake:
        assert await intake.read() == b"x" * 100
        with pytest.raises(OversizeError, match="a message is too large"):
            await intake.read()
        assert await closed in (1006, 1009)


# WebSockets by hand: what no server of good manners sends


def switching(key: str, *, upgrade: bytes = b"websocket", accept: str | None = None) -> bytes:
    accepted = (accept_key(key) if accept is None else accept).encode()
    return b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Accept: %b\r\n\r\n" % (
        upgrade, accepted,
    )  # fmt: skip


def text(data: bytes, *, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=False)


class ByHand:
    """An upstream that opens what it is asked for and says nothing by itself."""

    def __init__(self) -> None:
        self.address = Address.parse("http://api/base")
        self.telling = Telling()
        self.headers: Headers = Headers()

    def open(self, path: str, headers: tuple[Pair, ...], viewer: Intake, **more: Any) -> Telling:
        assert more == {"with_auth": False, "upgrade": b"websocket"}
        self.headers = Headers(headers)
        return self.telling


def by_hand(max_size: int = 1000) -> tuple[WebSocketIntake, Telling]:
    """A WebSocket that has just been opened."""
    upstream = ByHand()
    intake = WebSocketIntake.open(upstream, "/live?secret", (), with_auth=False, max_size=max_size)  # type: ignore[arg-type]  # as much of one as is needed
    key = upstream.headers.get("sec-websocket-key") or ""
    accept = (b"Sec-WebSocket-Accept", accept_key(key).encode())
    intake.receive_head(101, (accept, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")))
    assert intake.head is not None
    return intake, upstream.telling


def taken(intake: Intake) -> list[bytes]:
    return list(iter(intake.take, None))


@story
async def test_messages_are_the_same_wherever_their_frames_are_cut() -> None:
    stream = (
        text(b"one")
        + text("grün ".encode()[:3], fin=False)
        + text(b"beat", opcode=Opcode.PING)
        + text("grün ".encode()[3:], opcode=Opcode.CONT)
        + text(b"\xff" * 200, opcode=Opcode.BINARY)
        + text(b"", opcode=Opcode.PONG)
        + text(b"a\0\xff")
    )
    told = [b"one", "grün ".encode(), base64.b64encode(b"\xff" * 200), b"a\0\xff"]
    for cut in range(len(stream) + 1):
        intake, telling = by_hand()
        intake.receive_data(stream[:cut])
        intake.receive_data(stream[cut:])
        assert taken(intake) == told
        assert len(telling.sent) == 1, "one pong"
    intake, _ = by_hand()
    for byte in stream:
        intake.receive_data(bytes((byte,)))
    assert taken(intake) == told


@pytest.mark.parametrize(
    "data",
    [
        b"<html>not a frame</html>",
        b"\x81\x81\x00\x00\x00\x00a",  # masked, as a client's are
        text(b"a", opcode=Opcode.CONT),
        text(b"a", fin=False) + text(b"b"),
        b"\x83\x00",  # an opcode that is none
        b"\xc1\x00",  # a bit of an extension nobody has agreed to
    ],
)
@story
async def test_what_is_no_websocket_is_a_failure(data: bytes) -> None:
    intake, telling = by_hand()
    intake.receive_data(text(b"one") + data)
    assert await intake.read() == b"one"
    with pytest.raises(UpstreamError) as caught:
        await intake.read()
    assert "secret" not in str(caught.value)
    assert telling.told == ["cancel"]
    assert telling.sent, "the other side is told why"


@pytest.mark.parametrize("headers", [{"accept": "x"}, {"upgrade": b"h2c"}])
@story
async def test_a_handshake_that_is_wrong_is_a_failure(headers: dict[str, Any]) -> None:
    async def handle(call: Call) -> None:
        await call.send(switching(call.asked.get("sec-websocket-key") or "", **headers) + text(b"one"))
        await call.closed()

    async with upstream_of(handle) as (upstream, scripted):
        intake = WebSocketIntake.open(upstream, "/live", (), with_auth=True, max_size=100)
        with pytest.raises(UpstreamError):
            await intake.read_head()
        await scripted.until(lambda it: it.open == 0)


@story
async def test_what_comes_in_one_piece_with_the_head_is_not_lost() -> None:
    async def handle(call: Call) -> None:
        await call.send(switching(call.asked.get("sec-websocket-key") or "") + text(b"one") + text(b"two"))
        await call.closed()

    async with upstream_of(handle) as (upstream, _):
        intake = WebSocketIntake.open(upstream, "/live", (), with_auth=True, max_size=100)
        assert [await intake.read(), await intake.read()] == [b"one", b"two"]
        intake.cancel()


@story
async def test_messages_that_nobody_reads_hold_the_upstream_back() -> None:
    intake, telling = by_hand(max_size=HIGH_WATER)
    intake.receive_data(text(b"x" * (HIGH_WATER // 2)) * 2)
    assert telling.told == ["pause"]
    await intake.read()
    assert telling.told == ["pause", "resume"]
