from __future__ import annotations

import asyncio
import gzip
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ssegate import __version__
from ssegate.errors import (
    OversizeError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from ssegate.upstream import FetchAnswer, Upstream
from ssegate.upstream.connection import ClosedUnansweredError
from tests.ports import free_port
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, chunked, heads, named, script
from tests.upstream.settings import settings

GZIP = (b"Content-Encoding", b"gzip")


@asynccontextmanager
async def upstream_of(step: Step, **others: Any) -> AsyncIterator[tuple[Upstream, ScriptedUpstream]]:
    async with ScriptedUpstream(step) as scripted:
        upstream = Upstream("api", settings(scripted.url, **others))
        try:
            yield upstream, scripted
        finally:
            await upstream.aclose()


async def fetch(upstream: Upstream, path: str = "/orders/17", max_body: int = 1 << 20, **others: Any) -> FetchAnswer:
    return await upstream.fetch(path, (), max_body=max_body, **others)


def fetched(step: Step, max_body: int = 1 << 20, **others: Any) -> FetchAnswer:
    """One fetch from an upstream that answers with `step`."""

    async def run() -> FetchAnswer:
        async with upstream_of(step, **others) as (upstream, _):
            return await fetch(upstream, max_body=max_body)

    return asyncio.run(run())


def failure(step: Step, kind: type[UpstreamError] = UpstreamError, max_body: int = 1 << 20, **others: Any) -> str:
    """What one fetch fails with; the connection is closed then and the pool whole."""

    async def run() -> str:
        async with upstream_of(step, **others) as (upstream, scripted):
            with pytest.raises(kind) as caught:
                await fetch(upstream, max_body=max_body)
            assert type(caught.value) is kind
            await scripted.until(lambda it: it.open == 0)
            assert upstream.statistics()["connections_open"] == 0
            return str(caught.value).replace(scripted.url, "http://api")

    return asyncio.run(run())


# What is sent


def test_a_fetch_says_what_it_wants_and_who_it_is() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"{}")) as (upstream, scripted):
            got = await fetch(upstream, "/orders/17?x=%20")
            assert (got.status, got.body) == (200, b"{}")
            asked = scripted.requests[0]
            assert (asked.method, asked.target) == ("GET", "/orders/17?x=%20")
            assert asked.get("host") == f"127.0.0.1:{scripted.port}"
            assert asked.get("user-agent") == f"ssegate/{__version__}"
            assert asked.get("accept") == "*/*"
            assert asked.get("accept-encoding") == "gzip"
            assert len(asked.headers) == 4

    asyncio.run(run())


def test_the_path_of_the_configured_url_stands_before_every_path() -> None:
    async def run() -> None:
        async with ScriptedUpstream(answer()) as scripted:
            upstream = Upstream("api", settings(scripted.url + "/api/v1/"))
            await fetch(upstream, "/orders")
            await upstream.aclose()
            assert scripted.requests[0].target == "/api/v1/orders"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("auth", "value"),
    [
        ({"bearer": "s3cret"}, "Bearer s3cret"),
        ({"basic": {"user": "ann", "password": "pä:ss"}}, "Basic YW5uOnDDpDpzcw=="),
    ],
)
def test_the_gates_own_credentials_go_with_a_poll(auth: Any, value: str) -> None:
    async def run() -> None:
        async with upstream_of(answer(), auth=auth) as (upstream, scripted):
            await fetch(upstream)
            assert scripted.requests[0].get("authorization") == value

    asyncio.run(run())


@pytest.mark.parametrize(
    "gates", [{"auth": {"bearer": "gates"}}, {"headers": {"Authorization": "Bearer gates"}}], ids=["auth", "headers"]
)
def test_where_the_viewers_own_credentials_decide_the_gates_are_never_sent(gates: Any) -> None:
    async def run() -> None:
        async with upstream_of(answer(), **gates) as (upstream, scripted):
            await upstream.fetch("/me", (), with_auth=False, max_body=1000)
            assert scripted.requests[0].get("authorization") is None

    asyncio.run(run())


def test_a_forwarded_viewer_header_wins_over_configured_ones_and_auth() -> None:
    async def run() -> None:
        configured = {"X-Tenant": "gate", "User-Agent": "mine", "X-Kept": "1"}
        async with upstream_of(answer(), auth={"bearer": "gates"}, headers=configured) as (upstream, scripted):
            forwarded = [
                (b"authorization", b"Bearer viewers"),
                (b"x-tenant", b"viewer"),
                (b"cookie", b"a=1"),
                (b"cookie", b"b=2"),
                (b"accept-encoding", b"br"),
                (b"connection", b"x-private"),
                (b"x-private", b"1"),
            ]
            await upstream.fetch("/", forwarded, max_body=10)
            asked = scripted.requests[0]
            assert asked.get("authorization") == "Bearer viewers"
            assert asked.get("x-tenant") == "viewer"
            assert named(asked, "cookie") == [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
            assert asked.get("accept-encoding") == "gzip"
            assert asked.get("user-agent") == "mine"
            assert asked.get("x-kept") == "1"
            assert not {"connection", "x-private"} & set(heads(asked))

    asyncio.run(run())


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert fetched(answer(b"direct")).body == b"direct"


def test_no_cookie_of_one_answer_goes_with_the_next_request() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"", (b"Set-Cookie", b"session=1"))) as (upstream, scripted):
            for _ in range(2):
                await fetch(upstream)
            assert scripted.requests[1].get("cookie") is None
            assert scripted.connections == 1

    asyncio.run(run())


# Bodies and limits


def test_a_gzip_body_is_inflated() -> None:
    body = b'{"id": 17}' * 1000
    assert fetched(answer(gzip.compress(body), GZIP)).body == body
    assert fetched(answer(gzip.compress(body[:5000]) + gzip.compress(body[5000:]), GZIP)).body == body


def test_a_gzip_body_that_comes_byte_by_byte_is_inflated() -> None:
    packed = answer(gzip.compress(b"one") + gzip.compress(b" two") + b"\0\0", GZIP)
    assert fetched(lambda call: call.drip(packed, 0)).body == b"one two"


def test_a_gzip_bomb_is_cut_at_the_limit() -> None:
    bomb = answer(gzip.compress(b"\0" * (50 << 20)), GZIP)
    assert failure(bomb, OversizeError, max_body=1000) == "GET http://api/orders/17: its body is larger than 1000 bytes"


def test_a_gzip_body_of_endless_empty_members_is_cut() -> None:
    assert "larger" in failure(endless(gzip.compress(b"") * 1000, GZIP), OversizeError, max_body=1000)


def endless(piece: bytes, *headers: tuple[bytes, bytes]) -> Callable[[Call], Awaitable[None]]:
    async def handle(call: Call) -> None:
        await call.send(answer(b"", *headers, length=10 << 30))
        while True:
            await call.send(piece)

    return handle


def test_a_10_gb_body_is_cut_at_the_limit() -> None:
    assert "larger than 1000 bytes" in failure(endless(b"x" * 65536), OversizeError, max_body=1000)


def test_a_body_as_large_as_the_limit_is_taken() -> None:
    assert fetched(answer(b"x" * 1000), max_body=1000).body == b"x" * 1000
    assert fetched(answer(gzip.compress(b"x" * 1000), GZIP), max_body=1000).body == b"x" * 1000


def test_a_broken_or_cut_gzip_body_is_an_error() -> None:
    assert "its body is not gzip as it says" in failure(answer(b"plain", GZIP))
    assert "its gzip body is cut" in failure_with_a_kept_connection(answer(gzip.compress(b"x" * 99)[:-4], GZIP))


def failure_with_a_kept_connection(step: Step) -> str:
    """The answer was whole as HTTP, so its connection is kept."""
    with pytest.raises(UpstreamError) as caught:
        fetched(step)
    return str(caught.value)


def test_an_encoding_that_was_not_asked_for_is_an_error() -> None:
    message = failure(answer(b"xx", (b"Content-Encoding", b"br")))
    assert message == "GET http://api/orders/17: answered with content-encoding br, which was not asked for"


def test_the_body_of_another_status_is_not_read_and_its_encoding_does_not_matter() -> None:
    got = fetched(answer(b"<html>", (b"Content-Encoding", b"br"), (b"Retry-After", b"3"), status=503))
    assert (got.status, got.body, got.headers.get("retry-after")) == (503, b"", "3")


def test_a_chunked_body_with_trailers_is_read() -> None:
    assert fetched(chunked(b"one ", b"two", trailers=[(b"X-Sum", b"1")])).body == b"one two"


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_a_cut_chunked_body_is_an_error(cut: int) -> None:
    async def handle(call: Call) -> None:
        await call.send(chunked(b"one ", b"two")[:-cut])
        call.close()

    assert failure(handle) == "GET http://api/orders/17: its answer's body was cut or is malformed"


def test_a_malformed_chunk_is_an_error() -> None:
    assert "malformed" in failure(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")


def test_a_body_shorter_than_its_length_is_an_error() -> None:
    async def handle(call: Call) -> None:
        await call.send(answer(b"short", length=10))
        call.close()

    assert "cut" in failure(handle)


def test_a_reset_in_mid_body_is_an_error() -> None:
    async def handle(call: Call) -> None:
        await call.send(answer(b"short", length=10))
        await asyncio.sleep(0.02)
        call.reset()

    assert failure(handle) == "GET http://api/orders/17: the connection broke in its answer"


def test_a_reset_in_a_body_without_length_is_an_error_and_not_its_end() -> None:
    async def handle(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.02)
        call.reset()

    assert "broke" in failure(handle)


def test_bytes_beyond_the_length_are_never_the_next_answer() -> None:
    async def run() -> None:
        forged = answer(b"ok") + answer(b"FORGED")
        async with upstream_of(script(forged, answer(b"second"))) as (upstream, scripted):
            assert (await fetch(upstream)).body == b"ok"
            assert (await fetch(upstream)).body == b"second"
            assert scripted.connections == 2

    asyncio.run(run())


def test_bytes_that_come_on_an_idle_connection_are_never_the_next_answer() -> None:
    async def run() -> None:
        sent = asyncio.Event()

        async def handle(call: Call) -> None:
            await call.send(answer(b"ok"))
            await asyncio.sleep(0.02)
            await call.send(answer(b"FORGED"))
            sent.set()

        async with upstream_of(script(handle, answer(b"second"))) as (upstream, scripted):
            assert (await fetch(upstream)).body == b"ok"
            await sent.wait()
            await asyncio.sleep(0.02)
            assert (await fetch(upstream)).body == b"second"
            assert scripted.connections == 2

    asyncio.run(run())


# Statuses and versions


def test_a_304_never_asked_for_is_an_answer_without_a_body() -> None:
    async def run() -> None:
        async with upstream_of(script(answer(status=304, length=99), answer(b"next"))) as (upstream, scripted):
            got = await fetch(upstream)
            assert (got.status, got.body) == (304, b"")
            assert (await fetch(upstream)).body == b"next"
            assert scripted.connections == 1

    asyncio.run(run())


def test_200_then_500_then_429_with_retry_after_are_three_answers() -> None:
    async def run() -> None:
        steps = script(answer(b"1"), answer(status=500), answer(b"", (b"Retry-After", b"7"), status=429))
        async with upstream_of(steps) as (upstream, _):
            got = [await fetch(upstream) for _ in range(3)]
            assert [one.status for one in got] == [200, 500, 429]
            assert got[2].headers.get("retry-after") == "7"

    asyncio.run(run())


@pytest.mark.parametrize("early", [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_informational_answers_before_200_are_passed_over(early: bytes) -> None:
    assert fetched(early + early + answer(b"real")).body == b"real"


def test_http_1_0_answers_are_read_to_the_end_of_the_connection() -> None:
    async def handle(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\n\r\nold")
        call.close()

    assert fetched(handle).body == b"old"
    assert fetched(answer(b"old", version="1.0")).body == b"old"


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"\x15\x03\x01\x00\x02", b"HTTP/1.1 200\r\na b: c\r\n\r\n"]
)
def test_what_is_not_http_is_an_error(garbage: bytes) -> None:
    async def handle(call: Call) -> None:
        await call.send(garbage)
        call.close()

    assert failure(handle) == "GET http://api/orders/17: the head of its answer is cut or is not HTTP/1.1"


def test_what_an_unreadable_head_holds_is_told_to_nobody() -> None:
    async def run() -> None:
        async with upstream_of(b"HTTP/1.1 200 OK\r\nSet-Cookie : s3cret\r\n\r\n") as (upstream, _):
            with pytest.raises(UpstreamError) as caught:
                await fetch(upstream)
            error: BaseException | None = caught.value
            while error is not None:
                assert "s3cret" not in str(error)
                error = error.__cause__ or error.__context__

    asyncio.run(run())


def test_an_endless_head_is_cut() -> None:
    async def handle(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await call.send(b"X-Long: " + b"x" * 8192 + b"\r\n")

    assert failure(handle) == "GET http://api/orders/17: the head of its answer is over 100 KiB"


def test_a_switch_of_protocols_nobody_asked_for_is_an_error() -> None:
    assert "head" in failure(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("form", ["/new?x=1", "new?x=1", "{url}/new?x=1#part"])
def test_a_redirect_to_the_same_origin_is_followed(status: int, form: str) -> None:
    async def run() -> None:
        async def redirect(call: Call) -> None:
            location = form.format(url=scripted.url).encode()
            await call.send(answer(b"moved", (b"Location", location), status=status))

        async with ScriptedUpstream(script(redirect, answer(b"here"))) as scripted:
            upstream = Upstream("api", settings(scripted.url, auth={"bearer": "t"}))
            assert (await fetch(upstream, "/old")).body == b"here"
            assert scripted.requests[1].target == "/new?x=1"
            assert scripted.requests[1].get("authorization") == "Bearer t"
            await upstream.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "location",
    [
        b"http://127.0.0.1:1/x",
        b"//elsewhere.example/x",
        b"https://127.0.0.1/x",
        b"http://[bad",
        b"http://h:99999999/",
        b"/\xff",
    ],
)
def test_a_redirect_to_anywhere_else_is_returned_as_it_is(location: bytes) -> None:
    async def run() -> None:
        async with upstream_of(answer(b"", (b"Location", location), status=302)) as (upstream, scripted):
            assert (await fetch(upstream)).status == 302
            assert len(scripted.requests) == 1

    asyncio.run(run())


def test_a_loop_of_redirects_ends_after_five() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"", (b"Location", b"/again"), status=302)) as (upstream, scripted):
            assert (await fetch(upstream)).status == 302
            assert len(scripted.requests) == 6

    asyncio.run(run())


# Silence and loss


def test_a_refused_connection_is_unreachable() -> None:
    async def run() -> None:
        upstream = Upstream("api", settings(f"http://localhost:{(port := free_port())}"))
        with pytest.raises(UpstreamUnreachableError) as caught:
            await fetch(upstream, "/orders/17?token=s3cret")
        assert str(caught.value) == f"GET http://localhost:{port}/orders/17: connection refused"
        assert upstream.statistics()["connections_in_use"] == 0

    asyncio.run(run())


def test_an_unknown_name_is_unreachable() -> None:
    async def run() -> None:
        upstream = Upstream("api", settings("http://nowhere.invalid:8000", connect=5.0))
        with pytest.raises(UpstreamUnreachableError, match=r"its name does not resolve|no connection in"):
            await fetch(upstream)

    asyncio.run(run())


async def fall_silent(call: Call) -> None:
    await call.closed()


def test_an_upstream_that_says_nothing_times_out() -> None:
    message = failure(fall_silent, UpstreamTimeoutError, read=0.1)
    assert message == "GET http://api/orders/17: no answer in 0.1 s"


def test_an_upstream_that_falls_silent_in_its_body_times_out() -> None:
    async def handle(call: Call) -> None:
        await call.send(answer(b"half", length=8))
        await call.closed()

    message = failure(handle, UpstreamTimeoutError, read=0.1)
    assert message == "GET http://api/orders/17: its answer stopped for 0.1 s"


def test_a_byte_now_and_then_does_not_hold_a_fetch_for_ever() -> None:
    began = time.monotonic()
    message = failure(lambda call: call.drip(answer(b"x" * 1000), 0.02), UpstreamTimeoutError, read=0.2, connect=0.1)
    assert message == "GET http://api/orders/17: no whole answer in 1.3 s"
    assert time.monotonic() - began < 2


def test_a_slow_answer_within_the_limits_is_read() -> None:
    assert fetched(lambda call: call.drip(answer(b"slow"), 0.001)).body == b"slow"


def test_a_half_open_connection_times_out_and_is_not_used_again() -> None:
    async def run() -> None:
        steps = script(answer(b"1"), fall_silent, answer(b"3"))
        async with upstream_of(steps, read=0.1) as (upstream, scripted):
            await fetch(upstream)
            with pytest.raises(UpstreamTimeoutError):
                await fetch(upstream)
            assert (await fetch(upstream)).body == b"3"
            assert [asked.connection for asked in scripted.requests] == [0, 0, 1]

    asyncio.run(run())


def test_an_upstream_that_closes_without_an_answer_is_an_error() -> None:
    async def close(call: Call) -> None:
        call.close()

    message = failure(close, ClosedUnansweredError)
    assert message == "GET http://api/orders/17: closed the connection without an answer"


@pytest.mark.parametrize("how", [Call.close, Call.reset])
def test_keep_alive_closed_just_as_it_is_reused_is_retried_in_silence(how: Callable[[Call], None]) -> None:
    async def run() -> None:
        async def drop(call: Call) -> None:
            how(call)

        async with upstream_of(script(answer(b"1"), drop, answer(b"3"))) as (upstream, scripted):
            await fetch(upstream)
            assert (await fetch(upstream)).body == b"3"
            assert [asked.connection for asked in scripted.requests] == [0, 0, 1]
            assert upstream.statistics()["requests_sent"] == 3

    asyncio.run(run())


def test_a_connection_that_was_closed_while_it_was_idle_is_not_used() -> None:
    async def run() -> None:
        async def answer_and_close(call: Call) -> None:
            await call.send(answer(b"1"))
            call.close()

        async with upstream_of(script(answer_and_close, answer(b"2"))) as (upstream, scripted):
            await fetch(upstream)
            await scripted.until(lambda it: it.open == 0)
            await asyncio.sleep(0.02)
            assert upstream.statistics()["connections_open"] == 0
            assert (await fetch(upstream)).body == b"2"
            assert upstream.statistics()["requests_sent"] == 2

    asyncio.run(run())


def test_an_answer_with_connection_close_is_not_kept() -> None:
    async def run() -> None:
        async with upstream_of(answer(b"1", (b"Connection", b"close"))) as (upstream, scripted):
            await fetch(upstream)
            await scripted.until(lambda it: it.open == 0)

    asyncio.run(run())


# TLS


def test_a_certificate_of_nobody_known_is_refused_and_can_be_named(tmp_path: Any) -> None:
    server, authority = certificate(tmp_path)

    async def run() -> None:
        async with ScriptedUpstream(answer(b"safe"), tls=server) as scripted:
            strict = Upstream("api", settings(scripted.url))
            with pytest.raises(
                UpstreamUnreachableError, match=r"its certificate is not trusted: self.signed certificate"
            ):
                await fetch(strict)
            for tls in ({"ca": authority}, {"verify": False}):
                upstream = Upstream("api", settings(scripted.url, tls=tls))
                assert (await fetch(upstream)).body == b"safe"
                assert (await fetch(upstream)).body == b"safe"
                await upstream.aclose()

    asyncio.run(run())


def test_plain_http_where_tls_was_configured_is_unreachable() -> None:
    async def run() -> None:
        def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(b"plain", status=400))
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream("api", settings(f"https://127.0.0.1:{port}"))
        with pytest.raises(UpstreamUnreachableError, match="TLS failed: "):
            await fetch(upstream)
        server.close()
        await server.wait_closed()

    asyncio.run(run())


def certificate(folder: Any) -> tuple[ssl.SSLContext, str]:
    """A self-signed certificate for 127.0.0.1, made by the openssl program."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=api",
    ]
    subprocess.run(
        [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert
