from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest

from ssegate.errors import UpstreamError, UpstreamTimeoutError, UpstreamUnreachableError
from ssegate.upstream import Upstream
from ssegate.upstream.connection import ClosedUnansweredError
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, chunked, heads, named, script
from tests.upstream.settings import settings
from tests.upstream.viewer import RecordingViewer, relay


@asynccontextmanager
async def upstream_of(step: Step, **others: Any) -> AsyncIterator[tuple[Upstream, ScriptedUpstream]]:
    async with ScriptedUpstream(step) as scripted:
        upstream = Upstream("api", settings(scripted.url, **others))
        try:
            yield upstream, scripted
        finally:
            await upstream.aclose()


async def send(
    upstream: Upstream, *fields: tuple[bytes, bytes], body: AsyncIterable[bytes] | None = None, **others: Any
) -> RecordingViewer:
    """Begin it, send its body beside, and return with the head of the answer."""
    viewer = relay(upstream, *fields, has_body=body is not None, **others)
    sending = None if body is None else asyncio.create_task(viewer.send_all(body))
    try:
        return await viewer.head()
    except UpstreamError:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        raise


async def read(viewer: RecordingViewer) -> bytes:
    return await viewer.whole()


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


CHUNKED = (b"Transfer-Encoding", b"chunked")


def length(size: int) -> tuple[bytes, bytes]:
    return (b"Content-Length", b"%d" % size)


# What goes on


def test_a_request_goes_on_as_it_came() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"ok"), auth={"bearer": "gates"}, headers={"X-Gate": "1"}) as (
            upstream,
            scripted,
        ):
            target = b"/a%2fb/%2E%2e//c|d?x=%20&x=2"
            fields = ((b"X-One", b"1"), (b"aCCept", b"*/*"), (b"x-one", b"2"), (b"Accept-Encoding", b"br"))
            assert await read(await send(upstream, *fields, target=target)) == b"ok"
            asked = scripted.requests[0]
            assert asked.head.split(b"\r\n")[0] == b"GET " + target + b" HTTP/1.1"
            assert asked.headers == [
                (b"Host", b"shop.example"),
                *fields,
                (b"X-Forwarded-For", b"203.0.113.9"),
                (b"X-Forwarded-Proto", b"http"),
                (b"X-Forwarded-Host", b"shop.example"),
                (b"X-Gate", b"1"),
            ]

    asyncio.run(run())


def test_the_gates_credentials_never_go_with_a_viewers_request() -> None:
    async def run() -> None:
        async with upstream_of(answer(), auth={"bearer": "gates"}) as (upstream, scripted):
            await read(await send(upstream))
            await read(await send(upstream, (b"Authorization", b"Bearer viewers")))
            assert [asked.get("authorization") for asked in scripted.requests] == [None, "Bearer viewers"]

    asyncio.run(run())


def test_a_viewer_cannot_name_the_gates_own_fields_in_connection() -> None:
    async def run() -> None:
        async with upstream_of(answer()) as (upstream, scripted):
            fields = ((b"Connection", b"X-Forwarded-For, Host, Content-Length"), length(3))
            await read(await send(upstream, *fields, method="POST", body=pieces_of(b"abc")))
            asked = scripted.requests[0]
            assert asked.get("x-forwarded-for") == "203.0.113.9"
            assert (asked.get("host"), asked.get("content-length")) == ("shop.example", "3")

    asyncio.run(run())


def test_an_upgrade_and_proxy_fields_are_not_forwarded() -> None:
    async def run() -> None:
        async with upstream_of(answer()) as (upstream, scripted):
            fields = (
                (b"Connection", b"Upgrade, HTTP2-Settings"),
                (b"Upgrade", b"h2c"),
                (b"HTTP2-Settings", b"AAMA"),
                (b"Proxy-Anything", b"1"),
            )
            await read(await send(upstream, *fields))
            assert set(heads(scripted.requests[0])) == {
                "host",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
            }

    asyncio.run(run())


def test_a_trusted_proxy_is_believed() -> None:
    async def run() -> None:
        async with upstream_of(answer()) as (upstream, scripted):
            fields = ((b"X-Forwarded-For", b"198.51.100.7"), (b"X-Forwarded-Proto", b"https"))
            await read(await send(upstream, *fields, trusted=[ip_network("203.0.113.0/24")]))
            assert scripted.requests[0].get("x-forwarded-for") == "198.51.100.7, 203.0.113.9"
            assert scripted.requests[0].get("x-forwarded-proto") == "https"

    asyncio.run(run())


@pytest.mark.parametrize(("host", "expected"), [("preserve", "shop.example"), ("api.internal", "api.internal")])
def test_host_is_the_viewers_or_the_configured_one(host: str, expected: str) -> None:
    async def run() -> None:
        async with upstream_of(answer(), host=host) as (upstream, scripted):
            await read(await send(upstream))
            assert named(scripted.requests[0], "host") == [(b"Host", expected.encode())]

    asyncio.run(run())


def test_a_viewer_without_host_gets_the_upstreams() -> None:
    async def run() -> None:
        async with upstream_of(answer()) as (upstream, scripted):
            await read(await send(upstream, host=None, http_version="1.0", peer=""))
            assert scripted.requests[0].get("host") == f"127.0.0.1:{scripted.port}"

    asyncio.run(run())


def test_a_target_http_cannot_say_is_an_error_that_does_not_quote_it() -> None:
    async def run() -> None:
        async with upstream_of(answer()) as (upstream, scripted):
            with pytest.raises(UpstreamError, match="cannot say") as caught:
                await send(upstream, target=b"/x HTTP/1.1\r\nX: s3cret")
            assert "\r" not in str(caught.value)
            assert not scripted.requests

    asyncio.run(run())


# Request bodies


def test_a_body_with_a_length_keeps_it() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"ok")) as (upstream, scripted):
            response = await send(upstream, length(6), method="POST", body=pieces_of(b"abc", b"def"))
            assert await read(response) == b"ok"
            assert scripted.requests[0].body == b"abcdef"
            assert named(scripted.requests[0], "content-length|transfer-encoding") == [length(6)]

    asyncio.run(run())


def test_a_body_without_a_length_goes_in_chunks() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"ok")) as (upstream, scripted):
            await read(await send(upstream, CHUNKED, method="POST", body=pieces_of(b"abc", b"", b"def")))
            await read(await send(upstream, method="POST", body=pieces_of(b"h2"), http_version="2"))
            assert [asked.body for asked in scripted.requests] == [b"abcdef", b"h2"]
            assert named(scripted.requests[0], "content-length|transfer-encoding") == [CHUNKED]

    asyncio.run(run())


def test_a_request_body_is_streamed_piece_by_piece() -> None:
    async def run() -> None:
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        async def handle(call: Call) -> None:
            while piece := await call.read_piece():
                arrived.put_nowait(piece)
            await call.send(answer())

        async def body() -> AsyncIterator[bytes]:
            for piece in (b"one", b"two"):
                yield piece
                assert await arrived.get() == piece  # nothing is kept back until the next one

        async with upstream_of(handle) as (upstream, _):
            response = await send(upstream, CHUNKED, method="POST", body=body())
            await read(response)

    asyncio.run(run())


def test_an_upstream_that_does_not_read_holds_the_viewer_back() -> None:
    async def run() -> None:
        taken = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 65536
                yield b"x" * 65536

        async def never_read(call: Call) -> None:
            await asyncio.sleep(60)

        async with upstream_of(never_read, read=0.3) as (upstream, _):
            with pytest.raises(UpstreamTimeoutError):
                await send(upstream, CHUNKED, method="POST", body=body())
            assert taken < 32 << 20

    asyncio.run(run())


def test_a_viewer_who_is_slow_is_not_the_upstreams_silence() -> None:
    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(0.3)
            yield b"b"

        async with upstream_of(answer(b"ok"), read=0.1) as (upstream, _):
            assert await read(await send(upstream, length(2), method="POST", body=body())) == b"ok"

    asyncio.run(run())


def test_an_answer_before_the_request_was_read_is_handed_on() -> None:
    async def run() -> None:
        async def refuse(call: Call) -> None:
            await call.send(answer(b"too large", (b"Connection", b"close"), status=413))
            await asyncio.sleep(60)

        cancelled = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                cancelled.set()

        async with upstream_of(refuse) as (upstream, scripted):
            response = await send(upstream, length(10 << 30), method="POST", body=body())
            assert (response.status, await read(response)) == (413, b"too large")
            await scripted.until(lambda it: len(it.requests) == 1)
            assert upstream.statistics()["connections_open"] == 0

    asyncio.run(run())


def test_an_early_answer_followed_by_a_reset_is_handed_on() -> None:
    async def run() -> None:
        async def refuse(call: Call) -> None:
            await call.send(answer(b"no", status=403))
            await asyncio.sleep(0.05)
            call.reset()

        async def body() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.sleep(60)

        async with upstream_of(refuse) as (upstream, _):
            response = await send(upstream, length(10), method="POST", body=body())
            await asyncio.sleep(0.1)
            assert (response.status, await read(response)) == (403, b"no")

    asyncio.run(run())


async def until_body(viewer: RecordingViewer, body: bytes) -> None:
    await viewer.until(lambda it: it.body == body)


def test_an_answer_may_be_streamed_while_the_request_still_is() -> None:
    async def run() -> None:
        async def echo(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while piece := await call.read_piece():
                await call.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await call.send(b"0\r\n\r\n")

        pieces: asyncio.Queue[bytes] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while piece := await pieces.get():
                yield piece

        async with upstream_of(echo) as (upstream, _):
            response = await send(upstream, CHUNKED, method="POST", body=body())
            for piece, so_far in ((b"one", b"one"), (b"two", b"onetwo")):
                pieces.put_nowait(piece)
                await until_body(response, so_far)
            pieces.put_nowait(b"")
            assert await read(response) == b"onetwo"
            assert upstream.statistics()["connections_in_use"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("pieces", [(b"abc",), (b"abc", b"def", b"ghi")])
def test_a_body_unlike_its_length_never_ends_as_if_whole(pieces: tuple[bytes, ...]) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.read_body()
            await asyncio.sleep(0.05)

        async with upstream_of(handle) as (upstream, scripted):
            with pytest.raises(UpstreamError, match="not as long as its content-length"):
                await send(upstream, length(5), method="POST", body=pieces_of(*pieces))
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_a_viewer_who_leaves_in_its_body_never_leaves_a_whole_request() -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.read_body()
            raise AssertionError("the body was never whole")

        async with upstream_of(handle) as (upstream, scripted):
            viewer = relay(upstream, CHUNKED, method="POST", has_body=True)
            assert viewer.relaying is not None
            viewer.relaying.send(b"half")
            await scripted.until(lambda it: len(it.requests) == 1)
            viewer.cancel()
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


# Answers


def test_an_answer_comes_back_as_it_was() -> None:
    async def run() -> None:
        packed = gzip.compress(b"hello")
        fields = (
            (b"SET-cookie", b"a=1"),
            (b"X-Thing", b"\xe4"),
            (b"Set-Cookie", b"b=2"),
            (b"Content-Encoding", b"gzip"),
        )
        hop = ((b"Connection", b"x-private"), (b"X-Private", b"1"), (b"Keep-Alive", b"timeout=5"))
        async with upstream_of(answer(packed, *hop, *fields, status=418)) as (upstream, _):
            response = await send(upstream)
            assert response.status == 418
            assert response.headers.raw == (*fields, length(len(packed)))
            assert await read(response) == packed

    asyncio.run(run())


def test_a_redirect_is_the_viewers_to_follow() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"", (b"Location", b"/new"), status=302)) as (upstream, scripted):
            response = await send(upstream)
            assert (response.status, response.headers.get("location")) == (302, "/new")
            await read(response)
            assert len(scripted.requests) == 1

    asyncio.run(run())


def test_a_chunked_answer_loses_its_framing_and_keeps_its_trailers() -> None:
    async def run() -> None:
        step = chunked(
            b"one",
            b"two",
            headers=[(b"X-A", b"1")],
            trailers=[(b"X-Sum", b"1"), (b"Set-Cookie", b"a=1"), (b"Content-Length", b"9")],
        )
        async with upstream_of(step) as (upstream, _):
            response = await send(upstream)
            assert response.headers.raw == ((b"X-A", b"1"),)
            assert await read(response) == b"onetwo"
            assert response.trailers == ((b"X-Sum", b"1"),)

    asyncio.run(run())


def test_an_answer_with_length_and_chunks_is_read_by_its_chunks_and_not_trusted_further() -> None:
    async def run() -> None:
        both = chunked(b"chunks", headers=[length(3)])
        async with upstream_of(script(both, answer(b"2"))) as (upstream, scripted):
            response = await send(upstream)
            assert "content-length" not in response.headers
            assert await read(response) == b"chunks"
            assert await read(await send(upstream)) == b"2"
            assert scripted.connections == 2

    asyncio.run(run())


def test_the_answer_to_head_keeps_its_length_and_has_no_body() -> None:
    async def run() -> None:
        head = answer(b"", length=1000)
        async with upstream_of(script(head, answer(b"2"))) as (upstream, scripted):
            response = await send(upstream, method="HEAD")
            assert response.headers.get("content-length") == "1000"
            assert await read(response) == b""
            assert await read(await send(upstream)) == b"2"
            assert scripted.connections == 1

    asyncio.run(run())


def test_1xx_is_passed_on_before_the_answer() -> None:
    async def run() -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: x-a\r\nX-A: 1\r\n\r\n"
        early = b"HTTP/1.1 100 Continue\r\n\r\n" + hints + b"HTTP/1.1 104 New\r\nContent-Length: 5\r\n\r\n"
        async with upstream_of(script(early + answer(b"ok"), answer(b"2"))) as (upstream, scripted):
            response = await send(upstream)
            assert (response.status, await read(response)) == (200, b"ok")
            assert response.informational == [(100, ()), (103, ((b"Link", b"</x>"),)), (104, ())]
            assert await read(await send(upstream)) == b"2"
            assert scripted.connections == 1

    asyncio.run(run())


def test_1xx_without_end_is_an_error() -> None:
    async def run() -> None:
        async with upstream_of(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000) as (upstream, scripted):
            with pytest.raises(UpstreamError, match="does not come to its head"):
                await send(upstream)
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_expect_goes_on_and_its_100_comes_back() -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await call.send(answer(await call.read_body()))

        async with upstream_of(handle, read=0.2) as (upstream, scripted):
            viewer = relay(upstream, length(3), (b"Expect", b"100-continue"), method="POST", has_body=True)
            await viewer.until(lambda it: it.informational == [(100, ())])
            await asyncio.sleep(0.3)  # the viewer takes its time, and the upstream is not the silent one
            assert viewer.relaying is not None
            viewer.relaying.send(b"abc")
            viewer.relaying.send_end()
            assert await viewer.whole() == b"abc"
            assert scripted.requests[0].get("expect") == "100-continue"
            await read(await send(upstream, (b"Expect", b"100-continue")))
            assert scripted.requests[1].get("expect") is None

    asyncio.run(run())


def test_trailers_of_the_request_go_on() -> None:
    async def run() -> None:
        got = b""

        async def handle(call: Call) -> None:
            nonlocal got
            got = await call.read_raw(b"0\r\nX-Sum: 1\r\n\r\n")
            await call.send(answer())

        async with upstream_of(handle) as (upstream, _):
            viewer = relay(upstream, CHUNKED, method="POST", has_body=True)
            await viewer.send_all(pieces_of(b"abc"), ((b"X-Sum", b"1"), (b"Host", b"evil"), (b"Authorization", b"x")))
            await viewer.whole()
            assert got == b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"

            viewer = relay(upstream, CHUNKED, method="POST", has_body=True)
            await viewer.send_all(pieces_of(b"abc"), ((b"X-Sum", b"1\r\nX: y"),))
            assert "trailer" in str(await viewer.failed())

    asyncio.run(run())


@pytest.mark.parametrize("value", [b"a\rb", b"a\0b"])
def test_response_headers_with_cr_lf_or_nul_are_an_error(value: bytes) -> None:
    async def run() -> None:
        async with upstream_of(answer(b"", (b"X-Bad", value))) as (upstream, _):
            with pytest.raises(UpstreamError, match=r"is not HTTP/1\.1"):
                await send(upstream)

    asyncio.run(run())


def cut_with_length() -> bytes:
    return answer(b"half", length=8)


def cut_in_chunks() -> bytes:
    return chunked(b"half", b"more")[:-9]


@pytest.mark.parametrize("half", [cut_with_length(), cut_in_chunks()])
@pytest.mark.parametrize("how", [Call.close, Call.reset])
def test_a_cut_answer_is_never_ended_as_if_whole(half: bytes, how: Callable[[Call], None]) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(half)
            await asyncio.sleep(0.02)
            how(call)

        async with upstream_of(handle) as (upstream, _):
            response = await send(upstream)
            assert isinstance(await response.failed(), UpstreamError)
            assert response.body.startswith(b"half")
            assert upstream.statistics()["connections_open"] == 0

    asyncio.run(run())


def test_an_upstream_that_is_silent_times_out() -> None:
    async def run() -> None:
        async with upstream_of(Call.closed, read=0.1) as (upstream, scripted):
            with pytest.raises(UpstreamTimeoutError, match=r"no answer in 0\.1 s"):
                await send(upstream)
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_a_body_that_falls_silent_times_out() -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(answer(b"half", length=8))
            await call.closed()

        async with upstream_of(handle, read=0.1) as (upstream, _):
            response = await send(upstream)
            with pytest.raises(UpstreamTimeoutError, match=r"its answer stopped for 0\.1 s"):
                await read(response)

    asyncio.run(run())


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"Application/X-NDJSON; charset=utf-8"])
def test_an_event_stream_may_be_silent_for_long(media_type: bytes) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: " + media_type + b"\r\nContent-Length: 2\r\n\r\na")
            await asyncio.sleep(0.3)
            await call.send(b"b")

        async with upstream_of(handle, read=0.1) as (upstream, _):
            assert await read(await send(upstream)) == b"ab"

    asyncio.run(run())


# Endings


def test_cancelling_closes_the_upstream_connection_at_once() -> None:
    async def run() -> None:
        async with upstream_of(Call.closed, read=60.0) as (upstream, scripted):
            viewer = relay(upstream)
            await scripted.until(lambda it: len(it.requests) == 1)
            viewer.cancel()
            viewer.cancel()
            assert upstream.statistics()["connections_in_use"] == 0
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_cancelling_in_the_middle_of_the_answer_closes_the_upstream_connection() -> None:
    async def run() -> None:
        async def endless(call: Call) -> None:
            await call.send(answer(b"x" * 1000, length=10 << 30))
            await call.closed()

        async with upstream_of(endless, read=60.0) as (upstream, scripted):
            viewer = relay(upstream)
            viewer.on_data = lambda data: viewer.cancel()
            await viewer.until(lambda it: it.is_cancelled)
            assert upstream.statistics()["connections_in_use"] == 0
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


def test_cancelling_after_the_end_leaves_the_connection_to_others() -> None:
    async def run() -> None:
        async with upstream_of(script(answer(b"1"), answer(b"2"))) as (upstream, scripted):
            first = await send(upstream)
            await read(first)
            second = relay(upstream)
            first.cancel()
            assert await read(second) == b"2"
            assert scripted.connections == 1

    asyncio.run(run())


@pytest.mark.parametrize("turns", range(12))
def test_cancelling_at_any_moment_leaves_nothing(turns: int) -> None:
    async def run() -> None:
        async with upstream_of(answer(b"x" * 100), connections=1) as (upstream, scripted):
            holder, viewer, waiting = relay(upstream), relay(upstream), relay(upstream)
            for _ in range(turns):
                await asyncio.sleep(0)
            for each in (waiting, holder, viewer):
                if not each.is_over:
                    each.cancel()
            assert await read(await send(upstream)) == b"x" * 100
            assert upstream.statistics()["connections_in_use"] == 0
            await upstream.aclose()
            await scripted.until(lambda it: it.open == 0)
            assert len(asyncio.all_tasks()) <= 2  # this one, and the server's for a connection it has not seen closed

    asyncio.run(run())


def test_a_viewer_who_pauses_holds_the_upstream_back_and_its_silence_does_not_count() -> None:
    async def run() -> None:
        sent = 0

        async def flood(call: Call) -> None:
            nonlocal sent
            await call.send(answer(b"", length=64 << 20))
            for _ in range(1024):
                await call.send(b"x" * 65536)
                sent += 65536

        async with upstream_of(flood, read=0.1) as (upstream, _):
            viewer = relay(upstream)
            assert viewer.relaying is not None
            viewer.relaying.pause()
            viewer.relaying.resume()
            viewer.on_data = lambda data: viewer.relaying.pause() if viewer.relaying else None
            await viewer.head()
            viewer.relaying.pause()
            await asyncio.sleep(0.3)
            held, got = sent, len(viewer.body)
            await asyncio.sleep(0.1)
            assert sent == held < 32 << 20  # the kernel's buffers, and no more
            assert len(viewer.body) == got <= 3 * 65536
            viewer.on_data = lambda data: None
            viewer.relaying.resume()
            viewer.relaying.resume()
            assert len(await viewer.whole()) == 64 << 20

    asyncio.run(run())


def test_send_says_when_there_is_no_room_and_tells_when_there_is_again() -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def slow(call: Call) -> None:
            await go.wait()
            await call.read_body()
            await call.send(answer(b"%d" % len(call.asked.body)))

        async with upstream_of(slow, read=5.0) as (upstream, _):
            viewer = relay(upstream, CHUNKED, method="POST", has_body=True)
            assert viewer.relaying is not None
            sent, rooms = 0, 0
            for _ in range(1000):
                sent += 65536
                if not viewer.relaying.send(b"x" * 65536):
                    await asyncio.sleep(0.01)
                    if viewer.rooms == rooms:
                        break
                    rooms = viewer.rooms
            assert 65536 < sent < 32 << 20
            go.set()
            await viewer.until(lambda it: it.rooms > rooms)
            viewer.relaying.send_end()
            assert await viewer.whole() == b"%d" % sent

    asyncio.run(run())


def test_closing_the_upstream_ends_what_is_under_way() -> None:
    async def run() -> None:
        async with upstream_of(Call.closed, read=60.0) as (upstream, scripted):
            viewer = relay(upstream)
            await scripted.until(lambda it: len(it.requests) == 1)
            await upstream.aclose()
            assert isinstance(viewer.error, UpstreamUnreachableError)
            with pytest.raises(UpstreamUnreachableError):
                await send(upstream)
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_keep_alive_closed_just_as_it_is_reused_is_retried(method: str) -> None:
    async def run() -> None:
        async def close(call: Call) -> None:
            call.close()

        async with upstream_of(script(answer(), close, answer(b"", (b"X-Third", b"1")))) as (upstream, _):
            await read(await send(upstream))
            response = await send(upstream, method=method)
            assert "x-third" in response.headers
            await read(response)

    asyncio.run(run())


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_a_request_that_may_do_harm_twice_or_whose_body_was_begun_is_not_repeated(method: str) -> None:
    async def run() -> None:
        async def close(call: Call) -> None:
            await call.read_body()
            call.close()

        async with upstream_of(script(answer(), close)) as (upstream, scripted):
            await read(await send(upstream))
            with pytest.raises(UpstreamError, match="closed the connection without an answer"):
                await send(upstream, length(1), method=method, body=pieces_of(b"x"))
            assert len(scripted.requests) == 2

    asyncio.run(run())


# Upgrades

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nX-A: 1\r\n\r\n"
ASKED = ((b"Connection", b"Upgrade, X-Hop"), (b"Upgrade", b"websocket"), (b"X-Hop", b"1"), (b"Sec-WebSocket-Key", b"k"))


def test_an_upgrade_that_is_agreed_to_becomes_a_tunnel() -> None:
    async def run() -> None:
        async def echo(call: Call) -> None:
            await call.send(SWITCH + b"early")
            await call.send(await call.read_raw(b"!"))
            assert await call.read_rest() == b"bye"
            await call.send(b"end")
            call.close()

        async with upstream_of(echo, read=0.05) as (upstream, scripted):
            viewer = relay(upstream, *ASKED, upgrade=b"websocket")
            await viewer.until(lambda it: it.body == b"early")
            assert viewer.status == 101
            assert viewer.headers.raw == ((b"X-A", b"1"), (b"Connection", b"Upgrade"), (b"Upgrade", b"WebSocket"))
            asked = scripted.requests[0]
            assert named(asked, "connection|upgrade|x-hop|content-length|transfer-encoding") == [
                (b"Connection", b"Upgrade"),
                (b"Upgrade", b"websocket"),
            ]
            assert asked.get("sec-websocket-key") == "k"
            assert viewer.relaying is not None
            await asyncio.sleep(0.15)  # in a tunnel silence is nobody's fault
            viewer.relaying.send(b"hello!")
            await viewer.until(lambda it: it.body == b"earlyhello!")
            viewer.relaying.send(b"bye")
            viewer.relaying.send_end()
            assert await viewer.whole() == b"earlyhello!end"
            await scripted.until(lambda it: it.open == 0)
            await until_free(upstream)

    asyncio.run(run())


async def until_free(upstream: Upstream) -> None:
    async with asyncio.timeout(5):
        while upstream.statistics()["connections_open"]:
            await asyncio.sleep(0.01)


def test_an_upstream_that_ends_its_side_of_a_tunnel_still_reads() -> None:
    async def run() -> None:
        got = b""

        async def handle(call: Call) -> None:
            nonlocal got
            await call.send(SWITCH + b"all")
            call.end()
            got = await call.read_rest()

        async with upstream_of(handle) as (upstream, _):
            viewer = relay(upstream, *ASKED, upgrade=b"websocket")
            assert await viewer.whole() == b"all"
            assert viewer.relaying is not None
            viewer.relaying.send(b"still")
            viewer.relaying.send(b" here")
            viewer.relaying.send_end()
            await until_free(upstream)
            assert got == b"still here"

    asyncio.run(run())


@pytest.mark.parametrize("how", [Call.close, Call.reset])
def test_a_tunnel_that_breaks_is_told_and_its_place_is_free_again(how: Callable[[Call], None]) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(SWITCH)
            await call.read_raw(b"!")
            how(call)

        async with upstream_of(handle) as (upstream, _):
            viewer = relay(upstream, *ASKED, upgrade=b"websocket")
            await viewer.head()
            assert viewer.relaying is not None
            viewer.relaying.send(b"!")
            await viewer.until(lambda it: it.trailers is not None) if how is Call.close else await viewer.failed()
            viewer.relaying.cancel()
            await until_free(upstream)

    asyncio.run(run())


def test_a_tunnel_holds_back_who_is_too_fast_both_ways() -> None:
    async def run() -> None:
        sent = 0

        async def handle(call: Call) -> None:
            nonlocal sent
            await call.send(SWITCH)
            while True:
                await call.send(b"x" * 65536)
                sent += 65536

        async with upstream_of(handle) as (upstream, _):
            viewer = relay(upstream, *ASKED, upgrade=b"websocket")
            await viewer.head()
            assert viewer.relaying is not None
            viewer.relaying.pause()
            while viewer.relaying.send(b"y" * 65536) or viewer.rooms < 0:
                await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            held = sent
            await asyncio.sleep(0.05)
            assert sent == held < 32 << 20
            viewer.cancel()
            assert upstream.statistics()["connections_open"] == 0

    asyncio.run(run())


def test_an_upgrade_that_is_not_agreed_to_is_answered_as_any_request() -> None:
    async def run() -> None:
        refusal = answer(b"no", (b"Upgrade", b"h2c"), (b"Connection", b"Upgrade"), status=426)
        async with upstream_of(script(refusal, answer(b"2"))) as (upstream, scripted):
            response = await send(upstream, *ASKED, upgrade=b"websocket")
            assert (response.status, await read(response)) == (426, b"no")
            assert await read(await send(upstream)) == b"2"
            assert scripted.connections == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("switch", "upgrade"),
    [
        (SWITCH, None),
        (SWITCH.replace(b"WebSocket", b"h2c"), b"websocket"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"websocket"),
    ],
)
def test_a_switch_that_nobody_asked_for_is_an_error(switch: bytes, upgrade: bytes | None) -> None:
    async def run() -> None:
        async with upstream_of(switch) as (upstream, scripted):
            with pytest.raises(UpstreamError, match="head of its answer"):
                await send(upstream, upgrade=upgrade)
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


# Cuts


@pytest.mark.parametrize(
    "whole",
    [
        answer(b"body", (b"X-A", b"1")),
        chunked(b"one", b"two", trailers=[(b"X-Sum", b"1")]),
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + answer(b"body"),
        answer(status=304),
    ],
    ids=["length", "chunks", "103", "304"],
)
def test_an_answer_may_come_in_parts_cut_anywhere(whole: bytes) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            cut = call.asked.number + 1
            await call.send(whole[:cut])
            await asyncio.sleep(0.001)
            await call.send(whole[cut:])

        async with upstream_of(handle, read=2.0) as (upstream, scripted):
            viewers = []
            for _ in range(len(whole) - 1):
                viewers.append(await send(upstream))
                await viewers[-1].whole()
            first = viewers[0]
            for viewer in viewers:
                assert (viewer.status, viewer.headers, viewer.body) == (first.status, first.headers, first.body)
                assert (viewer.trailers, viewer.informational) == (first.trailers, first.informational)
            assert scripted.connections == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "whole",
    [answer(b"body"), chunked(b"one", b"two", trailers=[(b"X-Sum", b"1")]), b"HTTP/1.1 103 H\r\n\r\n" + answer(b"b")],
)
def test_an_answer_that_is_cut_anywhere_fails(whole: bytes) -> None:
    async def run() -> None:
        async def handle(call: Call) -> None:
            await call.send(whole[: call.asked.number])
            call.close()

        async with upstream_of(handle, read=2.0) as (upstream, _):
            for _ in range(len(whole)):
                error = await relay(upstream).failed()
                assert type(error) in (UpstreamError, ClosedUnansweredError)

    asyncio.run(run())
