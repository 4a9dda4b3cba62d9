"""`ssegate try`: one poll, and everything that would follow from it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Protocol

import pytest

from ssegate.cli import main
from tests.upstream.scripted import ScriptedUpstream, Step, answer, script

JSON = (b"Content-Type", b"application/json")
ETAG = (b"ETag", b'"v1"')

ROUTES = """
  - path: /orders/{id}/events
    params: {id: "[0-9]+"}
    query: {status: "open|paid"}
    poll: {get: "/orders/{id}?status={query.status}", every: 100ms, forward: [authorization]}
    emit: {as: patch}
  - path: /selected
    poll: {get: /doc, every: 100ms, select: dada}
  - path: /plain
    poll: {get: "/doc?api_key=s3cret&x={env.TRY_SECRET}", every: 2s}
  - path: /hooked
    webhook: {at: /hooks, verify: none}
"""


class Attempt(Protocol):
    """Run `ssegate try` against an upstream that answers so."""

    def __call__(self, *steps: Step, route: list[str]) -> Tried: ...


class Tried:
    """What came of it."""

    def __init__(self, code: int, out: str, err: str, upstream: ScriptedUpstream) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.upstream = upstream


@pytest.fixture
def attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setenv("TRY_SECRET", "s3cret")

    def run(*steps: Step, route: list[str]) -> Tried:
        async def scenario() -> Tried:
            async with ScriptedUpstream(script(*steps)) as upstream:
                settings = f"{{url: {upstream.url}, auth: {{bearer: s3cret}}, headers: {{X-Key: s3cret}}}}"
                file = tmp_path / "ssegate.yaml"
                file.write_text(f"version: 1\nupstreams: {{api: {settings}}}\nroutes:{ROUTES}")
                code = await asyncio.to_thread(main, ["try", *route, "-c", str(file)])
                captured = capsys.readouterr()
                return Tried(code, captured.out, captured.err, upstream)

        return asyncio.run(scenario())

    return run


def without_figures(text: str, upstream: ScriptedUpstream) -> str:
    return re.sub(r"· [0-9]+ ms", "· N ms", text.replace(upstream.url, "http://upstream"))


def test_one_poll_shows_request_answer_state_and_event(attempt: Attempt) -> None:
    body = b'{"id":17,"status":"paid"}'
    route = [
        "/orders/{id}/events",
        "--param",
        "id=17",
        "--query",
        "status=open",
        "--header",
        "Authorization: Bearer mine",
    ]
    tried = attempt(answer(body, JSON, ETAG), route=route)
    assert tried.code == 0
    assert without_figures(tried.out, tried.upstream) == (Path(__file__).parent / "golden" / "try.txt").read_text()
    assert tried.upstream.requests[0].get("authorization") == "Bearer mine"
    assert "s3cret" not in tried.out + tried.err
    assert "Bearer" not in tried.out + tried.err


def test_a_path_that_the_route_answers_will_do(attempt: Attempt) -> None:
    tried = attempt(answer(b"{}", JSON), route=["/orders/17/events?status=paid"])
    assert tried.code == 0
    assert tried.upstream.requests[0].target == "/orders/17?status=paid"


def test_twice_shows_what_has_changed(attempt: Attempt) -> None:
    steps = (answer(b'{"n":1,"m":[1,2,3]}', JSON, ETAG), answer(b'{"n":2,"m":[1,2,3]}', JSON))
    tried = attempt(*steps, route=["/orders/17/events?status=paid", "--twice"])
    assert tried.code == 0
    assert 'viewers get\n  event: patch\n  data: [{"op":"replace","path":"/n","value":2}]\n' in tried.out
    assert tried.upstream.requests[1].get("if-none-match") == '"v1"'


def test_twice_and_not_modified_sends_nothing(attempt: Attempt) -> None:
    tried = attempt(answer(b"{}", JSON, ETAG), answer(status=304), route=["/orders/17/events?status=paid", "--twice"])
    assert tried.code == 0
    assert "304 Not Modified" in tried.out
    assert "nothing has changed; nothing is sent" in tried.out


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ((b"Cache-Control", b"max-age=60"), "next poll in 60 s: Cache-Control max-age=60"),
        ((b"Retry-After", b"120"), "next poll in 120 s: Retry-After 120"),
        ((b"Cache-Control", b"no-store"), "next poll in 2 s: every 2s"),
    ],
)
def test_what_the_answer_means_for_the_schedule_is_told(
    header: tuple[bytes, bytes], told: str, attempt: Attempt
) -> None:
    tried = attempt(answer(b"{}", JSON, header), route=["/plain"])
    assert f"  {told}\n" in tried.out


def test_secrets_in_the_url_are_not_shown(attempt: Attempt) -> None:
    tried = attempt(answer(b"{}", JSON), route=["/plain"])
    assert tried.upstream.requests[0].target == "/doc?api_key=s3cret&x=s3cret"
    assert "/doc?api_key=***&x=***\n" in tried.out
    assert "s3cret" not in tried.out + tried.err


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (answer(status=404), "404: a viewer would get 404 too; look whether"),
        (answer(status=503), "503: a viewer's stream opens with a `fault`"),
        (
            answer(b"", (b"Location", b"http://elsewhere.test/"), status=302),
            "only redirects to the same origin are followed",
        ),
        (answer(b"<html>", (b"Content-Type", b"text/html")), "it is text/html: write `body: text`"),
        (answer(status=204), "204 has no state"),
    ],
)
def test_a_poll_of_which_nothing_comes_says_what_to_change(step: bytes, told: str, attempt: Attempt) -> None:
    tried = attempt(step, route=["/plain"])
    assert tried.code == 1
    assert told in tried.err
    assert "Traceback" not in tried.err


def test_a_select_that_gives_null_names_what_is_there(attempt: Attempt) -> None:
    tried = attempt(answer(b'{"data":{},"meta":{}}', JSON), route=["/selected"])
    assert tried.code == 1
    assert "`select: dada` gave null" in tried.err
    assert "members are data, meta" in tried.err


def test_an_upstream_that_cannot_be_reached_is_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ssegate.yaml"
    file.write_text("version: 1\nupstreams: {api: http://127.0.0.1:1}\nroutes:\n  - path: /x\n    poll: {get: /x}\n")
    assert main(["try", "/x", "-c", str(file)]) == 69
    assert "GET http://127.0.0.1:1/x: connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("route", "told"),
    [
        (["/orders/{id}/event"], "did you mean `/orders/{id}/events`?"),
        (["/orders/{id}/events"], "wants --param id=…"),
        (["/orders/{id}/events", "--param", "id=x"], "would get 404"),
        (["/orders/{id}/events", "--param", "id=1", "--param", "ix=1"], "`ix` is not a parameter"),
        (["/orders/1/events", "--query", "status=sold"], "the query's `status` does not match open|paid"),
        (["/hooked"], "is a webhook route: there is nothing to ask for"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(route: list[str], told: str, attempt: Attempt) -> None:
    tried = attempt(answer(), route=route)
    assert tried.code == 2
    assert told in tried.err
    assert tried.upstream.requests == []


def test_long_states_are_cut(attempt: Attempt) -> None:
    body = b"[" + b",".join(b"%d" % n for n in range(500)) + b"]"
    tried = attempt(answer(body, JSON), route=["/plain", "--lines", "3"])
    assert "  … 499 more lines (--lines 0 shows all)" in tried.out
    assert " more characters" in tried.out
    assert "  499\n" in attempt(answer(body, JSON), route=["/plain", "--lines", "0"]).out
