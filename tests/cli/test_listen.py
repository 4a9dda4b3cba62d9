"""`ssegate listen` goes by the rules of an `EventSource`."""

from __future__ import annotations

import asyncio
import json

import pytest

from ssegate.cli import main
from ssegate.config.load import parse_config
from ssegate.service import Service
from tests.cli.process import COMMAND, environment
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, script

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def stream(*pieces: bytes) -> Step:
    """Send these and end."""

    async def handle(call: Call) -> None:
        for piece in (HEAD, *pieces):
            await call.send(piece)
        call.close()

    return handle


async def hang(call: Call) -> None:
    """Open a stream and say nothing."""
    await call.send(HEAD)
    await call.closed()


async def listen(upstream: ScriptedUpstream, *options: str) -> int:
    return await asyncio.to_thread(main, ["listen", f"{upstream.url}/events", *options])


def outcome(*steps: Step, options: tuple[str, ...] = ()) -> tuple[int, ScriptedUpstream]:
    """The exit code, and the server with what it was asked."""

    async def scenario() -> tuple[int, ScriptedUpstream]:
        async with ScriptedUpstream(script(*steps)) as upstream:
            return await listen(upstream, *options), upstream

    return asyncio.run(scenario())


def test_events_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    code, upstream = outcome(
        stream(b"id: a-1\nda", b"ta: one\n\nevent: patch\ndata: two\ndata: lines\n\n", b"event: end\ndata: x\n\n"),
        options=("--until", "end"),
    )
    assert code == 0
    assert capsys.readouterr().out == "a-1  message  one\na-1  patch  two\n    lines\na-1  end  x\n"
    assert upstream.requests[0].get("accept") == "text/event-stream"
    assert upstream.requests[0].get("last-event-id") is None


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    data = 'id: a-1\ndata: {"n":1}\n\nevent: note\ndata: a\u2028b\x9b\n\n'.encode()
    assert outcome(stream(data), options=("--json", "--until", "note"))[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "a-1", "data": {"n": 1}},
        {"id": "a-1", "event": "note", "data": "a\u2028b\x9b"},
    ]
    assert all(line.isprintable() for line in lines)


def test_nothing_that_comes_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    outcome(stream(b"event: e\x1b[2J\ndata: \x1b]0;title\x07\n\nevent: end\ndata:\n\n"), options=("--until", "end"))
    assert "\x1b" not in capsys.readouterr().out


def test_it_reconnects_after_the_servers_time_with_the_last_id(capsys: pytest.CaptureFixture[str]) -> None:
    steps = (
        stream(b"retry: 150\n\nid: a-1\ndata: one\n\n"),
        stream(b"id: a-2\n\n"),
        stream(b"event: end\ndata: x\n\n"),
    )
    code, upstream = outcome(*steps, options=("--until", "end"))
    assert code == 0
    assert [asked.get("last-event-id") for asked in upstream.requests] == [None, "a-1", "a-2"]
    assert "has ended; again in 0.15 s" in capsys.readouterr().err


def test_an_answer_that_breaks_off_is_reconnected_too(capsys: pytest.CaptureFixture[str]) -> None:
    async def cut(call: Call) -> None:
        await call.send(HEAD + b"retry: 100\nid: a-1\ndata: one\n\n")
        await asyncio.sleep(0)
        call.reset()

    code, upstream = outcome(cut, stream(b"event: end\ndata: x\n\n"), options=("--until", "end", "--timeout", "10s"))
    assert code == 0
    assert len(upstream.requests) == 2


def test_an_unfinished_event_is_discarded(capsys: pytest.CaptureFixture[str]) -> None:
    steps = (stream(b"retry: 100\n\nid: a-1\ndata: half\n"), stream(b"event: end\ndata: x\n\n"))
    assert outcome(*steps, options=("--until", "end"))[0] == 0
    assert "half" not in capsys.readouterr().out


def test_204_is_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(answer(status=204))[0] == 0
    assert "204, it is over for good" in capsys.readouterr().err


def test_204_before_the_awaited_event_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(answer(status=204), options=("--until", "end"))[0] == 1
    assert "no event `end` came" in capsys.readouterr().err


def test_another_status_is_an_error_with_the_servers_words(capsys: pytest.CaptureFixture[str]) -> None:
    body = b'{"title":"Not Found","status":404,"detail":"the upstream answered 404\\u001b[2J"}'
    code, upstream = outcome(answer(body, (b"Content-Type", b"application/problem+json"), status=404))
    assert (code, len(upstream.requests)) == (1, 1)
    err = capsys.readouterr().err
    assert ": 404, the upstream answered 404" in err
    assert "\x1b" not in err


def test_another_type_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, upstream = outcome(answer(b"<html>", (b"Content-Type", b"text/html")))
    assert (code, len(upstream.requests)) == (1, 1)
    assert "is text/html, not text/event-stream" in capsys.readouterr().err


def test_the_timeout_without_until_is_fine() -> None:
    assert outcome(hang, options=("--timeout", "300ms"))[0] == 0


def test_the_timeout_before_the_awaited_event_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(hang, options=("--timeout", "300ms", "--until", "end"))[0] == 1
    assert "no event `end` in 0.3 s" in capsys.readouterr().err


def test_headers_and_a_cursor_are_sent() -> None:
    options = ("--last-event-id", "a-7", "--header", "Authorization: Bearer s3cret", "--until", "end")
    _, upstream = outcome(stream(b"event: end\ndata: x\n\n"), options=options)
    assert upstream.requests[0].get("last-event-id") == "a-7"
    assert upstream.requests[0].get("authorization") == "Bearer s3cret"


def test_a_redirect_on_the_same_origin_is_followed() -> None:
    code, upstream = outcome(
        answer(b"", (b"Location", b"/elsewhere"), status=307),
        stream(b"event: end\ndata: x\n\n"),
        options=("--until", "end", "-H", "X-Token: s3cret"),
    )
    assert code == 0
    assert [asked.target for asked in upstream.requests] == ["/events", "/elsewhere"]


def test_headers_are_not_carried_to_another_origin(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(status=204)) as other:
            redirect = answer(b"", (b"Location", f"{other.url}/events".encode()), status=307)
            async with ScriptedUpstream(redirect) as upstream:
                assert await listen(upstream, "-H", "X-Token: s3cret") == 1
                assert other.requests == []

    asyncio.run(scenario())
    assert "it redirects to 127.0.0.1" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said_once_and_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssegate.cli.listen.RETRY", 0.02)
    assert main(["listen", "http://user:s3cret@127.0.0.1:1/events?token=s3cret", "--timeout", "500ms"]) == 0
    err = capsys.readouterr().err
    assert err == "http://127.0.0.1:1/events cannot be reached (connection refused); again in 0.02 s\n"


def test_an_interrupt_leaves_with_130() -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(hang) as upstream:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "listen", upstream.url, env=environment(), stderr=asyncio.subprocess.PIPE
            )
            assert process.stderr is not None
            await process.stderr.readline()
            process.send_signal(2)
            assert await process.wait() == 130
            assert b"Traceback" not in await process.stderr.read()

    asyncio.run(scenario())


TLS = """
version: 1
server: {listen: "127.0.0.1:0", tls: {listen: "127.0.0.1:0", self_signed: true}}
routes: [{path: /x/events, webhook: {at: /hook, verify: none}, max_age: 100ms}]
"""


async def over_tls(*arguments: str) -> int:
    """The exit code of a command whose last argument is a gate's stream, behind a certificate of its own."""
    service = Service(parse_config(TLS, source="test.yaml", environ={}))
    await service.start()
    try:
        return await asyncio.to_thread(main, [*arguments, f"https://localhost:{service.tls_port}/x/events"])
    finally:
        await service.aclose()


@pytest.mark.parametrize("command", ["listen", "health"])
def test_a_certificate_nobody_vouches_for_is_named_and_not_waited_for(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asyncio.run(over_tls(command)) == 1
    said = capsys.readouterr()
    assert "its certificate is not trusted: self-signed certificate" in said.out + said.err
    assert ("--insecure takes any" in said.err) == (command == "listen")


def test_any_certificate_is_taken_when_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(over_tls("listen", "--insecure", "--timeout", "500ms")) == 0
    assert "connected" in capsys.readouterr().err


def test_a_server_without_tls_is_said_to_be_that(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> int:
        service = Service(parse_config(TLS, source="test.yaml", environ={}))
        await service.start()
        try:
            return await asyncio.to_thread(main, ["health", f"https://localhost:{service.port}/x/events"])
        finally:
            await service.aclose()

    assert asyncio.run(scenario()) == 1
    assert "TLS failed: wrong version number" in capsys.readouterr().out
