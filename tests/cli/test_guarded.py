"""What the commands tell of guards, and of routes that join topics."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Protocol

import pytest

from ssegate.cli import main
from ssegate.cli.advice import advise
from ssegate.cli.banner import Addresses, banner_json, try_command
from ssegate.cli.loading import load
from ssegate.config import Address, parse_config
from ssegate.errors import Problem
from tests.upstream.scripted import Pair, ScriptedUpstream, Step, answer, script

GOLDEN = Path(__file__).parent / "golden"

JSON = (b"Content-Type", b"application/json")
NDJSON = (b"Content-Type", b"application/x-ndjson")
PUBLIC = Address("127.0.0.1", 8080)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSEGATE_CONFIG", raising=False)
    shutil.copy(GOLDEN / "guarded.yaml", tmp_path / "ssegate.yaml")
    return tmp_path


def golden(name: str, printed: str) -> None:
    assert printed == (GOLDEN / name).read_text()


# What there is


def test_the_file_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("ssegate.yaml: 8 routes, all well\n", "")


def test_routes_shows_who_may_read_and_what_is_joined(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes"]) == 0
    golden("guarded-routes.txt", capsys.readouterr().out)


def test_routes_as_json_tells_public_from_nothing_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--json"]) == 0
    facts = {route["path"]: route for route in json.loads(capsys.readouterr().out)}
    assert {path: route["auth"] for path, route in facts.items()} == {
        "/orders/{id}/events": ["user", "partner"],
        "/users/{id}/notifications": ["user"],
        "/me/orders": ["session", "user"],
        "/me/log": ["session"],
        "/news": [],
        "/live": [],
        "/internal/{rest:path}": ["partner"],
        "/{rest:path}": None,
    }
    assert facts["/orders/{id}/events"]["allow"] == "params.id == identity"
    assert facts["/news"]["allow"] is None
    live = facts["/live"]
    assert (live["kind"], live["topics"]) == ("topics", ["/orders/{id}/events", "/users/{id}/notifications", "/news"])
    assert live.keys() >= {"heartbeat", "retry", "max_age"}
    assert "history" not in live


def test_the_banner_counts_routes_that_join_and_tries_one_that_wants_no_credential() -> None:
    config = load(None)
    counted = json.loads(banner_json(config, Addresses(PUBLIC)))["routes"]
    assert list(counted.items()) == [("poll", 2), ("stream", 2), ("webhook", 1), ("topics", 1), ("proxy", 2)]
    assert try_command(config, PUBLIC) == "curl -N http://localhost:8080/news"


def test_where_every_route_has_a_guard_the_banner_tries_none(directory: Path) -> None:
    file = directory / "ssegate.yaml"
    file.write_text(file.read_text().replace("auth: none", "auth: user"))
    assert try_command(load(None), PUBLIC) == ""


# Who answers


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        (
            "/orders/17/events",
            [
                "id = 17",
                "guards user, partner: the first that recognises the viewer decides",
                "allowed if params.id == identity, else 403",
                "upstream: GET http://127.0.0.1:8000/orders/17",
            ],
        ),
        (
            "/me/orders",
            [
                "guards session, user: the first that recognises the viewer decides",
                "upstream: GET http://127.0.0.1:8000/users/{identity}/orders?tenant={claims.org.tenant}&api_key=***",
            ],
        ),
        ("/me/log", ["guard session decides", "upstream: GET http://127.0.0.1:8000/log/{identity}"]),
        ("/users/4/notifications", ["id = 4", "guard user decides", "events come by POST /hooks/notes"]),
        ("/news", ["public: no guard is asked", "upstream: GET http://127.0.0.1:8000/news"]),
        ("/internal/x", ["rest = x", "guard partner decides", "upstream: GET http://127.0.0.1:8000/internal/x"]),
        ("/other", ["rest = other", "upstream: GET http://127.0.0.1:8000/other"]),
        (
            "/live",
            [
                "public: no guard is asked",
                "its query names no topic; write ?topic=…, with paths of /orders/{id}/events, /users/{id}/notifications, /news",
            ],
        ),
    ],
)
def test_match_tells_which_guard_is_asked(path: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "GET", path]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.split("✓")[1].splitlines()]
    assert printed[1 : 2 + len(lines)] == ["It answers.", *lines]


def test_match_tells_where_each_topic_leads(capsys: pytest.CaptureFixture[str]) -> None:
    topics = [
        "/orders/17/events", "/orders/17/events?view=long", "/orders/17/events?view=none&token=s3cret", "/users/4/notifications",
        "/news", "/me/log", "/other", "/live",
    ]  # fmt: skip
    query = "&".join("topic=" + topic.replace("?", "%3F").replace("&", "%26").replace("=", "%3D") for topic in topics)
    assert main(["match", "GET", f"/live?x=1&{query}"]) == 0
    printed = capsys.readouterr().out
    golden("guarded-match-topics.txt", printed.partition("\n")[2])
    assert "token=s3cret" not in printed


def test_tickets_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", "GET", "/orders/17/events?ticket=s3cret"]) == 0
    printed = capsys.readouterr().out
    assert "GET /orders/17/events?ticket=***\n" in printed
    assert "s3cret" not in printed


# What is advised


def advice(text: str) -> list[Problem]:
    return advise(parse_config(f"version: 1\nupstreams: {{api: http://h}}\n{text}", source="f.yaml", environ={}))


OPEN = [
    "webhook: {at: /h, verify: {token: x}}",
    "webhook: {at: /h, verify: {token: x}}, poll: {get: /a}",
    "stream: {get: /a}",
    "stream: {post: /a}",
]


@pytest.mark.parametrize("source", OPEN)
def test_a_route_whose_events_anybody_may_read_is_advised_against_until_it_says_so(source: str) -> None:
    guards = "auth: {user: {keys: {values: {a: x}}}}\n"
    (found,) = advice(f"routes:\n  - {{path: /a, {source}}}")
    assert (found.code, found.line, found.where) == ("open-route", 4, f"routes[0].{source.partition(':')[0]}")
    assert advice(f"routes:\n  - {{path: /a, auth: none, {source}}}") == []
    assert advice(f"{guards}routes:\n  - {{path: /a, auth: user, {source}}}") == []
    assert advice(f"{guards}defaults: {{auth: user}}\nroutes:\n  - {{path: /a, {source}}}") == []


@pytest.mark.parametrize(
    "source",
    [
        "poll: {get: /a}",
        "stream: {get: /a, forward: [cookie]}",
        "webhook: {at: /h, verify: {token: x}}, poll: {get: /a, forward: [cookie]}",
        "task: {get: /a}",
        "proxy: {}",
    ],
)
def test_where_the_backend_decides_nothing_is_advised(source: str) -> None:
    assert advice(f"routes:\n  - {{path: /a, {source}}}") == []


def test_check_tells_the_mend_of_an_open_route(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "ssegate.yaml").write_text(
        "version: 1\nroutes:\n  - {path: /a, webhook: {at: /h, verify: {token: x}}}\n"
    )
    assert main(["check"]) == 0
    assert capsys.readouterr().err == (
        "ssegate.yaml:3: warning[open-route] routes[0].webhook: whoever reaches the gate can read what comes here, as nothing says "
        "who may; name a guard by `auth`, or write `auth: none` if everybody may\n"
    )


def test_a_guard_that_no_route_asks_is_advised_against() -> None:
    guards = "auth: {a: {keys: {values: {x: y}}}, b: {keys: {values: {x: y}}}, c: {keys: {values: {x: y}}}}\n"
    found = advice(f"{guards}defaults: {{auth: a}}\nroutes:\n  - {{path: /p, auth: b, proxy: {{}}}}")
    assert [(each.code, each.where) for each in found] == [("unused-guard", "auth.c")]


@pytest.mark.parametrize(
    ("algorithms", "lengths", "is_short"),
    [
        ("", [31], True),
        ("", [32], False),
        ("", [64, 31], True),
        (", algorithms: [HS256, HS384]", [47], True),
        (", algorithms: [HS384]", [48], False),
        (", algorithms: [HS512, HS256]", [63], True),
        (", algorithms: [HS512]", [64], False),
    ],
)
def test_a_secret_that_is_shorter_than_its_hash_is_advised_against(
    algorithms: str, lengths: list[int], is_short: bool
) -> None:
    secrets = ", ".join("x" * length for length in lengths)
    guard = f"jwt: {{issuer: x, audience: y, keys: {{secret: [{secrets}]}}{algorithms}}}"
    found = advice(f"auth: {{u: {{{guard}}}}}\ndefaults: {{auth: u}}\nroutes: []")
    assert [(each.code, each.where) for each in found] == (
        [("short-secret", "auth.u.jwt.keys.secret")] if is_short else []
    )
    assert "xxx" not in str(found)


# What is tried


class Tried:
    """What came of it."""

    def __init__(self, code: int, out: str, err: str, upstream: ScriptedUpstream) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.upstream = upstream


class Attempt(Protocol):
    """Run `ssegate try` against an upstream that answers so."""

    def __call__(self, *arguments: str, body: bytes = b"{}", kind: Pair = JSON) -> Tried: ...


@pytest.fixture
def attempt(directory: Path, capsys: pytest.CaptureFixture[str]) -> Attempt:
    def run(*arguments: str, body: bytes = b"{}", kind: Pair = JSON) -> Tried:
        async def scenario() -> Tried:
            steps: list[Step] = [answer(body, kind)]
            async with ScriptedUpstream(script(*steps)) as upstream:
                file = directory / "ssegate.yaml"
                file.write_text(file.read_text().replace("http://127.0.0.1:8000", upstream.url))
                code = await asyncio.to_thread(main, ["try", *arguments])
                captured = capsys.readouterr()
                return Tried(code, captured.out, captured.err, upstream)

        return asyncio.run(scenario())

    return run


def test_a_route_that_asks_in_the_name_of_a_viewer_is_tried_for_one(attempt: Attempt) -> None:
    tried = attempt("/me/orders", "--identity", "a/b", "--claim", "org.tenant=7", "--claim", "claims.x=y")
    assert (tried.code, tried.err) == (0, "")
    assert f"GET {tried.upstream.url}/users/a%2Fb/orders?tenant=7&api_key=***\n" in tried.out
    (asked,) = tried.upstream.requests
    assert asked.target == "/users/a%2Fb/orders?tenant=7&api_key=hidden"
    assert asked.get("x-user") == "a/b"
    assert "s3cret" not in tried.out


def test_a_stream_is_tried_in_the_name_of_a_viewer_too(attempt: Attempt) -> None:
    tried = attempt("/me/log", "--identity", "u1", "--events", "1", body=b'{"n":1}\n', kind=NDJSON)
    assert tried.code == 0
    assert tried.upstream.requests[0].target == "/log/u1"
    assert tried.upstream.requests[0].get("x-user") == "u1"
    assert f"GET {tried.upstream.url}/log/u1\n" in tried.out


def test_claims_are_json_where_they_can_be(attempt: Attempt) -> None:
    tried = attempt("/me/orders", "--identity", "u", "--claim", 'org={"tenant": "t 1"}')
    assert tried.upstream.requests[0].target == "/users/u/orders?tenant=t%201&api_key=hidden"


def test_nobody_is_told_of_where_nothing_is_said_of_the_viewer(attempt: Attempt) -> None:
    tried = attempt("/orders/17/events")
    assert tried.code == 0
    assert tried.upstream.requests[0].get("x-user") is None
    assert tried.upstream.requests[0].get("x-key") == "s3cret"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/me/orders"], "/me/orders asks in the name of a viewer; it wants --identity … --claim org.tenant=…"),
        (["/me/orders", "--identity", "u"], "it wants --claim org.tenant=…"),
        (["/me/orders", "--identity", "u", "--claim", "org=[1]"], "it wants --claim org.tenant=…"),
        (["/me/orders", "--claim", "org=1", "--claim", "org.tenant=1"], "`org` in --claim org.tenant=… is a claim of its own already"),
        (["/me/log", "--identity", ""], "/me/log asks in the name of a viewer; it wants --identity …"),
        (["/live"], "`/live` joins topics; try one of its routes: /orders/{id}/events, /users/{id}/notifications, /news"),
    ],
)  # fmt: skip
def test_what_cannot_be_tried_is_a_usage_error(arguments: list[str], told: str, attempt: Attempt) -> None:
    tried = attempt(*arguments)
    assert tried.code == 2
    assert told in tried.err
    assert tried.upstream.requests == []
