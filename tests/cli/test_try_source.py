"""`ssegate try` of a stream, a task or a feed: it is opened as for a viewer, and the first events are shown."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from ssegate.cli import main, try_source
from tests.upstream.scripted import Call, Pair, ScriptedUpstream, Step, answer, chunked, script

JSON = (b"Content-Type", b"application/json")
NDJSON = (b"Content-Type", b"application/x-ndjson")
SSE = (b"Content-Type", b"text/event-stream")
HTML = (b"Content-Type", b"text/html")

ROUTES = """
  - path: /builds/{id}/log
    params: {id: "[0-9]+"}
    query: {level: "info|debug"}
    stream: {get: "/builds/{id}/log?api_key=s3cret&x={env.TRY_SECRET}&level={query.level}", format: lines}
    emit: {event: log}
  - path: /news
    stream: {get: /events}
  - path: /chat
    stream: {post: /generate, format: ndjson, data: response, done: done}
  - path: /mine
    stream: {get: /mine, format: lines, forward: [authorization]}
  - path: /socket
    stream: {get: /socket, format: websocket}
  - path: /socket/mine
    stream: {get: /socket, format: websocket, forward: [cookie]}
  - path: /jobs/{id}
    task: {get: "/jobs/{id}", every: 10ms, progress: percent, done: "state == 'done'", failed: "state == 'bad'", result: url}
  - path: /jobs
    methods: [PUT]
    task: {start: {post: /jobs}, get: "{start.headers.location}", every: 10ms, done: "state == 'done'", result: url}
  - path: /audit
    feed: {get: "/audit?after={cursor}", items: items, next: next, start: beginning, every: 10ms, event: "{type}"}
  - path: /cards
    feed: {get: "/cards?after={cursor}", items: items, next: next, start: beginning, every: 10ms}
    emit: {template: "<li>{name}</li>", data: card}
  - path: /hooked
    webhook: {at: /hooks, verify: none}
  - path: /passed/{rest:path}
    proxy: {}
"""


class Tried:
    """What came of it."""

    def __init__(self, code: int, out: str, err: str, upstream: ScriptedUpstream) -> None:
        self.code = code
        self.out = re.sub(r"(?m)^(  id: )[0-9a-f]+-", r"\1E-", out.replace(upstream.url, "http://upstream"))
        """With `E` for the epoch, which is another each time."""
        self.err = err
        self.upstream = upstream

    @property
    def events(self) -> list[list[str]]:
        """What a newcomer gets, each event as its lines."""
        _, _, shown = self.out.partition("a newcomer gets\n")
        return [[line.strip() for line in block.split("\n")] for block in shown.split("\n\n") if block.strip()]

    @property
    def asked(self) -> list[str]:
        """The requests, each as its method and target."""
        return [f"{asked.method} {asked.target}" for asked in self.upstream.requests]


class Attempt(Protocol):
    """Run `ssegate try` against an upstream that answers so, in this order; the last answer is repeated."""

    def __call__(self, *arguments: str, answers: list[Step], at: str = "") -> Tried: ...


@pytest.fixture
def attempt(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Attempt:
    monkeypatch.setenv("TRY_SECRET", "s3cret")
    caplog.set_level(logging.WARNING, "ssegate.sources")  # the command sets it for its whole process; this sets it back

    def run(*arguments: str, answers: list[Step], at: str = "") -> Tried:
        async def scenario() -> Tried:
            async with ScriptedUpstream(script(*answers)) as upstream:
                file = tmp_path / "ssegate.yaml"
                file.write_text(config(at or upstream.url, tmp_path))
                code = await asyncio.to_thread(main, ["try", *arguments, "-c", str(file)])
                await upstream.until(lambda it: it.open == 0)
                captured = capsys.readouterr()
                return Tried(code, captured.out, captured.err, upstream)

        return asyncio.run(scenario())

    return run


def config(url: str, folder: Path) -> str:
    backoff = "backoff: {min: 10ms, max: 20ms}"
    settings = f"{{url: {url}, auth: {{bearer: s3cret}}, headers: {{X-Key: s3cret}}, {backoff}}}"
    server = f"{{state_dir: {folder / 'state'}}}"
    return f"version: 1\nserver: {server}\nupstreams: {{api: {settings}}}\nroutes:{ROUTES}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is silent is not waited for long."""
    monkeypatch.setattr(try_source, "PATIENCE", 0.2)


def lasting(body: bytes, *headers: Pair) -> Callable[[Call], Awaitable[None]]:
    """An answer that has no end."""

    async def handle(call: Call) -> None:
        await call.read_body()
        head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        await call.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        await call.closed()

    return handle


def status(text: str) -> bytes:
    return answer(text.encode(), JSON)


# Streams that viewers share


def test_a_stream_shows_its_request_and_what_a_newcomer_gets(attempt: Attempt) -> None:
    tried = attempt("/builds/{id}/log", "--param", "id=7", "--events", "2", answers=[lasting(b"one\ntwo\nthree\n")])
    assert tried.code == 0
    assert tried.out == (
        "GET http://upstream/builds/7/log?api_key=***&x=***\n"
        "a newcomer gets\n"
        "  event: log\n  data: one\n  id: E-1\n\n"
        "  event: log\n  data: two\n  id: E-2\n\n"
    )
    assert tried.err == "and so on; --events 4 shows more\n"
    assert tried.asked == ["GET /builds/7/log?api_key=s3cret&x=s3cret"]


def test_a_path_that_the_route_answers_will_do(attempt: Attempt) -> None:
    tried = attempt("/builds/7/log?level=debug", "--events", "1", answers=[lasting(b"one\ntwo\n")])
    assert tried.code == 0
    assert tried.asked == ["GET /builds/7/log?api_key=s3cret&x=s3cret&level=debug"]


def test_events_of_the_upstream_keep_their_names(attempt: Attempt) -> None:
    body = b"retry: 5\nevent: added\nid: 17\ndata: a\ndata: b\n\n: comment\n\nevent: end\ndata: c\n\ndata: d\n\n"
    tried = attempt("/news", "--events", "2", answers=[lasting(body, SSE)])
    assert tried.events == [
        ["event: added", "data: a", "data: b", "id: E-1"],
        ["event: upstream-end", "data: c", "id: E-2"],
    ]
    assert tried.upstream.requests[0].get("accept") == "text/event-stream"


@pytest.mark.usefixtures("impatient")
def test_silence_is_waited_for_and_then_told(attempt: Attempt) -> None:
    tried = attempt("/news", answers=[lasting(b"data: a\n\n", SSE)])
    assert tried.code == 0
    assert tried.events == [["data: a", "id: E-1"]]
    assert tried.err == "nothing more in 200ms; what comes later would be sent\n"


@pytest.mark.usefixtures("impatient")
def test_as_many_events_as_were_asked_for_are_enough(attempt: Attempt) -> None:
    tried = attempt("/news", "--events", "2", answers=[lasting(b"data: a\n\ndata: b\n\n", SSE)])
    assert len(tried.events) == 2
    assert tried.err == "and so on; --events 4 shows more\n"


def test_five_events_are_shown_where_nothing_is_said(attempt: Attempt) -> None:
    tried = attempt("/builds/7/log", answers=[lasting(b"a\nb\nc\nd\ne\nf\n")])
    assert [event[1] for event in tried.events] == [f"data: {letter}" for letter in "abcde"]
    assert tried.err == "and so on; --events 10 shows more\n"


def test_a_stream_that_is_over_is_shown_to_its_end(attempt: Attempt) -> None:
    tried = attempt("/news", answers=[answer(status=204)])
    assert tried.code == 0
    assert tried.events == [["event: end", 'data: {"reason":"done"}', "id: E-1"]]
    assert tried.err == ""


def test_a_stream_of_events_is_asked_for_again_when_it_has_ended(attempt: Attempt) -> None:
    answers: list[Step] = [chunked(b"data: one\n\n", headers=[SSE]), lasting(b"data: two\n\ndata: three\n\n", SSE)]
    tried = attempt("/news", "--events", "2", answers=answers)
    assert tried.events == [["data: one", "id: E-1"], ["data: two", "id: E-2"]]
    assert tried.asked == ["GET /events"] * 2


def test_a_log_that_has_ended_is_over(attempt: Attempt) -> None:
    tried = attempt("/builds/7/log", answers=[chunked(b"one\n")])
    assert tried.code == 0
    assert tried.events == [
        ["event: log", "data: one", "id: E-1"],
        ["event: end", 'data: {"reason":"done"}', "id: E-2"],
    ]
    assert tried.asked == ["GET /builds/7/log?api_key=s3cret&x=s3cret"]


def test_long_events_are_cut(attempt: Attempt) -> None:
    body = b"".join(b"data: %d\n" % number for number in range(30)) + b"\ndata: " + b"x" * 500 + b"\n\ndata: last\n\n"
    tried = attempt("/news", "--events", "2", "--lines", "3", answers=[lasting(body, SSE)])
    assert "  data: 0\n  data: 1\n  data: 2\n  … 29 more lines (--lines 0 shows all)\n" in tried.out
    assert f"  data: {'x' * 394} … 106 more characters\n" in tried.out
    tried = attempt("/news", "--events", "2", "--lines", "0", answers=[lasting(body, SSE)])
    assert "  data: 29\n" in tried.out
    assert f"  data: {'x' * 500}\n" in tried.out


def test_nothing_that_a_terminal_would_obey_is_shown(attempt: Attempt) -> None:
    tried = attempt("/news", "--events", "1", answers=[lasting(b"data: \033[31mred\n\ndata: b\n\n", SSE)])
    assert tried.events == [["data: \\x1b[31mred", "id: E-1"]]


# Streams of single requests


def test_the_body_goes_to_the_upstream_and_its_answer_is_shown_to_the_end(attempt: Attempt) -> None:
    body = b'{"response":"Hel"}\n{"response":"lo"}\n{"done":true}\n'
    tried = attempt("/chat", "--data", '{"prompt":"Hi"}', answers=[answer(body, NDJSON)])
    assert tried.code == 0
    assert tried.out.startswith("POST http://upstream/generate\n")
    assert tried.events == [
        ["data: Hel", "id: E-1"],
        ["data: lo", "id: E-2"],
        ["event: end", 'data: {"reason":"done"}', "id: E-3"],
    ]
    assert tried.err == ""
    (asked,) = tried.upstream.requests
    assert (asked.method, asked.target, asked.body) == ("POST", "/generate", b'{"prompt":"Hi"}')
    assert asked.get("content-length") == "15"


def test_without_a_body_none_is_sent(attempt: Attempt) -> None:
    tried = attempt("/chat", answers=[answer(b'{"done":true}\n', NDJSON)])
    assert tried.code == 0
    assert tried.upstream.requests[0].body == b""
    assert tried.upstream.requests[0].get("content-length") == "0"


def test_the_type_of_the_body_is_sent(attempt: Attempt) -> None:
    kind = "Content-Type: application/json"
    tried = attempt("/chat", "--data", "{}", "-H", kind, answers=[answer(b'{"done":true}\n', NDJSON)])
    assert tried.upstream.requests[0].get("content-type") == "application/json"


def test_the_type_of_the_body_is_not_said_to_be_left_out(attempt: Attempt) -> None:
    kind = "Content-Type: application/json"
    tried = attempt("/chat", "--data", "{}", "-H", kind, answers=[answer(b'{"done":true}\n', NDJSON)])
    assert tried.err == ""


def test_the_viewers_headers_that_are_forwarded_are_sent_and_not_shown(attempt: Attempt) -> None:
    headers = ("-H", "Authorization: Bearer mine", "-H", "X-Other: x")
    tried = attempt("/mine", *headers, answers=[chunked(b"one\n")])
    assert tried.code == 0
    assert tried.events == [["data: one", "id: E-1"], ["event: end", 'data: {"reason":"done"}', "id: E-2"]]
    (asked,) = tried.upstream.requests
    assert asked.get("authorization") == "Bearer mine"
    assert asked.get("x-other") is None
    assert tried.err == "note: the route does not name `X-Other` in `forward`, so it is not sent\n"
    assert "Bearer" not in tried.out + tried.err


def test_an_answer_that_is_cut_is_shown_with_its_failure(attempt: Attempt) -> None:
    async def cut(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
        call.close()

    tried = attempt("/mine", answers=[cut])
    assert [event[0] for event in tried.events] == ["data: one", "event: end"]
    assert '{"reason":"failed","result":{"status":null,"message":' in tried.out


async def socket(call: Call) -> None:
    """A WebSocket (RFC 6455) with two messages."""
    key = (call.asked.get("sec-websocket-key") or "").encode()
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
    await call.send(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\r\n")
    await call.send(b"\x81\x03one\x81\x03two")
    await call.closed()


@pytest.mark.parametrize("path", ["/socket", "/socket/mine"])
def test_messages_of_a_websocket_are_shown(path: str, attempt: Attempt) -> None:
    tried = attempt(path, "--events", "1", answers=[socket])
    assert tried.code == 0
    assert tried.events == [["data: one", "id: E-1"]]


# Tasks


def test_a_task_is_followed_to_its_end(attempt: Attempt) -> None:
    answers = [
        status('{"state":"run","percent":10}'),
        status('{"state":"run","percent":60}'),
        status('{"state":"done","percent":100,"url":"/x"}'),
    ]
    tried = attempt("/jobs/{id}", "--param", "id=5", "--events", "9", answers=[*answers])
    assert tried.code == 0
    assert tried.out.startswith("GET http://upstream/jobs/5\n")
    assert tried.events[-1][:2] == ["event: end", 'data: {"reason":"done","result":"/x"}']
    assert tried.asked == ["GET /jobs/5"] * 3
    assert tried.err == ""


def test_a_task_that_has_failed_is_a_result_too(attempt: Attempt) -> None:
    tried = attempt("/jobs/5", answers=[status('{"state":"bad","url":null}')])
    assert tried.code == 0
    assert tried.events[-1][:2] == ["event: end", 'data: {"reason":"failed","result":null}']


def test_a_task_is_started_with_the_body_and_followed_to_its_end(attempt: Attempt) -> None:
    started = answer(b"{}", (b"Location", b"/jobs/9"), JSON, status=202)
    tried = attempt("/jobs", "--data", '{"n":1}', answers=[started, status('{"state":"done","url":"/x"}')])
    assert tried.code == 0
    assert tried.out.startswith("POST http://upstream/jobs\n")
    assert tried.events[-1][:2] == ["event: end", 'data: {"reason":"done","result":"/x"}']
    assert tried.asked == ["POST /jobs", "GET /jobs/9"]
    assert tried.upstream.requests[0].body == b'{"n":1}'


# Feeds


def page(items: str, next_: str) -> bytes:
    return answer(f'{{"items":{items},"next":"{next_}"}}'.encode(), JSON)


def test_a_feed_shows_its_items_page_after_page(attempt: Attempt) -> None:
    answers: list[Step] = [
        page('[{"type":"a","n":1},{"type":"b","n":2}]', "2"),
        page('[{"type":"c","n":3},{"type":"d","n":4}]', "4"),
        page("[]", "4"),
    ]
    tried = attempt("/audit", "--events", "3", answers=answers)
    assert tried.code == 0
    assert tried.out.startswith("GET http://upstream/audit\n")
    assert tried.events == [
        ["event: a", 'data: {"type":"a","n":1}', "id: E-1"],
        ["event: b", 'data: {"type":"b","n":2}', "id: E-2"],
        ["event: c", 'data: {"type":"c","n":3}', "id: E-3"],
    ]
    assert tried.asked[:2] == ["GET /audit", "GET /audit?after=2"]


def test_a_feed_that_is_tried_leaves_no_cursor_behind(attempt: Attempt, tmp_path: Path) -> None:
    attempt("/audit", "--events", "1", answers=[page('[{"type":"a"},{"type":"b"}]', "2"), page("[]", "2")])
    assert not (tmp_path / "state").exists()


def test_html_is_shown_as_it_would_be_sent(attempt: Attempt) -> None:
    items = '[{"card":{"name":"<Ada>"}},{"card":{"name":"Bob"}}]'
    tried = attempt("/cards", "--events", "1", answers=[page(items, "2"), page("[]", "2")])
    assert tried.events == [["data: <li>&lt;Ada&gt;</li>", "id: E-1"]]


# Refusals


@pytest.mark.parametrize("code", [401, 403, 404, 410])
@pytest.mark.parametrize("path", ["/news", "/socket", "/jobs/5", "/audit"])
def test_what_the_upstream_refuses_a_viewer_gets(path: str, code: int, attempt: Attempt) -> None:
    tried = attempt(path, answers=[answer(status=code)])
    assert tried.code == 1
    assert f"the upstream answered {code}, and so a viewer gets {code}" in tried.err
    assert "a newcomer gets" not in tried.out
    assert len(tried.asked) == 1


@pytest.mark.parametrize("code", [400, 401, 404, 422, 500, 503])
@pytest.mark.parametrize("path", ["/chat", "/jobs", "/mine"])
def test_what_the_upstream_says_to_a_single_request_is_shown(path: str, code: int, attempt: Attempt) -> None:
    tried = attempt(path, "--data", "x", answers=[answer(b'{"detail":"no \033[31m"}', JSON, status=code)])
    assert tried.code == 1
    assert tried.err == f'ssegate: a viewer gets {code}: {{"detail":"no \\x1b[31m"}}\n'
    assert len(tried.asked) == 1


@pytest.mark.parametrize(
    ("path", "step", "told"),
    [
        ("/chat", answer(b"<html>", HTML), "the upstream answered with text/html, and not with JSON"),
        ("/mine", answer(b"", (b"Location", b"http://elsewhere.test/"), status=302), "a redirect that is not followed"),
        ("/mine", answer(status=204), "a viewer gets 204"),
        ("/socket/mine", answer(b"hello"), "the upstream did not open a WebSocket"),
        ("/jobs", answer(b"{}", JSON, status=202), "the job was started, but not where its status is"),
    ],
)
def test_an_answer_that_is_no_stream_is_told(path: str, step: bytes, told: str, attempt: Attempt) -> None:
    tried = attempt(path, answers=[step])
    assert tried.code == 1
    assert told in tried.err
    assert "Traceback" not in tried.err


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/news", answer(status=503)),
        ("/news", answer(b"<html>", HTML)),
        ("/jobs/5", answer(status=503)),
        ("/audit", answer(b"<html>", HTML)),
    ],
)
def test_an_upstream_that_only_fails_is_1(path: str, step: bytes, attempt: Attempt) -> None:
    assert attempt(path, "--events", "1", answers=[step]).code == 1


@pytest.mark.parametrize("path", ["/news", "/chat", "/mine", "/socket", "/jobs/5", "/jobs", "/audit"])
def test_an_upstream_that_cannot_be_reached_is_69(path: str, attempt: Attempt) -> None:
    tried = attempt(path, answers=[b""], at="http://127.0.0.1:1")
    assert tried.code == 69
    assert "http://127.0.0.1:1" in tried.err


@pytest.mark.parametrize("path", ["/chat", "/mine", "/jobs", "/news", "/socket", "/jobs/5", "/audit"])
def test_an_upstream_whose_answer_is_broken_has_been_reached(path: str, attempt: Attempt) -> None:
    async def hang_up(call: Call) -> None:
        await call.send(b"SSH-2.0-nonsense\r\n")
        call.close()

    tried = attempt(path, answers=[hang_up])
    assert tried.code == 1
    assert tried.upstream.url in tried.err


def test_an_upstream_that_cannot_be_reached_is_told_by_its_url(attempt: Attempt) -> None:
    assert "https://127.0.0.1:1" in attempt("/news", answers=[b""], at="https://127.0.0.1:1").err


# What cannot be asked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/chats"], "did you mean `/chat`?"),
        (["/jobs/{id}"], "wants --param id=…"),
        (["/builds/{id}/log", "--param", "id=x"], "would get 404"),
        (["/builds/7/log", "--param", "ix=1"], "`ix` is not a parameter"),
        (["/builds/7/log?level=warn"], "the query's `level` does not match info|debug"),
        (["/hooked"], "is a webhook route: there is nothing to ask for"),
        (["/passed/{rest:path}"], "is a proxy route: there is nothing to ask for"),
        (["/chat/s/3q2-7wAAAAAAAAAAAAAAAA"], "no route is `/chat/s/3q2-7wAAAAAAAAAAAAAAAA`"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(arguments: list[str], told: str, attempt: Attempt) -> None:
    tried = attempt(*arguments, answers=[answer()])
    assert tried.code == 2
    assert told in tried.err
    assert tried.asked == []


def test_what_the_route_does_not_know_of_the_query_is_told(attempt: Attempt) -> None:
    tried = attempt("/chat?x=1", answers=[answer(b'{"done":true}\n', NDJSON)])
    assert tried.code == 0
    assert tried.err == "note: the route does not name `x` in `query`, so it is ignored\n"


# Secrets


@pytest.mark.parametrize("path", ["/builds/7/log", "/news", "/chat", "/mine", "/jobs/5", "/jobs", "/audit"])
def test_no_secret_of_the_configuration_is_shown(path: str, attempt: Attempt) -> None:
    tried = attempt(path, "--data", "x", answers=[answer(status=404)])
    assert tried.upstream.requests[0].get("x-key") == "s3cret"
    assert "s3cret" not in tried.out + tried.err
