"""`ssegate send`: a delivery as its sender would make it, to a gate that runs."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ssegate.cli import main
from ssegate.config import parse_config
from ssegate.service import Service
from tests.ports import free_port
from tests.upstream.scripted import ScriptedUpstream, answer

WAYS = {
    "none": "none",
    "token": "{token: [s3cret, older]}",
    "hmac": "{hmac: {secret: s3cret, header: X-Sign, prefix: 'v1='}}",
    "github": "{github: {secret: s3cret}}",
    "gitlab": "{gitlab: {secret: s3cret}}",
    "stripe": "{stripe: {secret: s3cret}}",
    "slack": "{slack: {secret: s3cret}}",
    "shopify": "{shopify: {secret: s3cret}}",
    "standard": "{standard: {secret: whsec_czNjcmV0}}",
    "cloudevents": "{cloudevents: {token: s3cret}}",
    "msgraph": "{msgraph: {client_state: s3cret}}",
    "websub": "{websub: {secret: s3cret}}",
}
EVENTS = {"github", "gitlab", "stripe", "slack", "shopify", "standard", "cloudevents", "msgraph"}
"""Those whose senders say what kind of event it is."""

ROUTES = """
  - path: /repos/{owner}/{repo}/events
    webhook:
      at: /hooks/github
      verify: {github: {secret: s3cret}}
      match: {owner: body.repository.owner.login, repo: 'headers."x-repo"'}
    emit: {event: "{headers.x-github-event}"}
  - path: /sums/{id}
    webhook: {at: /hooks/sums, verify: none, match: {id: "to_string(body.a)"}}
  - path: /polled/events
    poll: {get: /x, every: 1h}
    webhook: {at: /hooks/polled, verify: none}
  - path: /{rest:path}
    proxy: {}
""" + "".join(
    f"  - {{path: '/{name}/{{id}}', webhook: {{at: /hooks/{name}-id, verify: {verify}, match: {{id: body.id}}}}}}\n"
    for name, verify in WAYS.items()
)


class Stage:
    """A gate, its file, and what a command said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "ssegate.yaml"
        self._capsys = capsys
        self.code = 0
        self.out = self.err = ""
        self.outcomes: list[Any] = []
        self.events: list[str] = []

    def run(self, *arguments: str, routes: str = ROUTES, is_up: bool = True) -> Stage:
        asyncio.run(self._run(arguments, routes, is_up))
        return self

    async def _run(self, arguments: tuple[str, ...], routes: str, is_up: bool) -> None:
        async with ScriptedUpstream(answer(b"1", (b"Content-Type", b"application/json"))) as upstream:
            port = free_port()
            text = f'version: 1\nserver: {{listen: "127.0.0.1:{port}"}}\nupstreams: {{api: {upstream.url}}}\nroutes:{routes}'
            self.file.write_text(text)
            service = Service(parse_config(text, source="f", environ={}))
            if is_up:
                await service.start()
            self.code = await asyncio.to_thread(main, ["send", *arguments, "-c", str(self.file)])
            captured = self._capsys.readouterr()
            self.out, self.err = (re.sub(r"\d+ ms", "N ms", each.replace(str(port), "PORT")) for each in captured)
            self.outcomes = [entry.outcome for entry in service.gate.diary]
            self.events = [topic.journal.kept().decode() for topic in service.gate.hub]
            if is_up:
                await service.aclose()


@pytest.fixture
def stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Stage:
    return Stage(tmp_path, capsys)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_sent_is_authentic_whatever_the_way_to_verify(stage: Stage, name: str) -> None:
    kind = ["--event", "order.paid"] if name in EVENTS else []
    stage.run(f"/{name}/17", "--data", '{"id": "17"}', *kind)
    assert stage.code == 0, stage.err
    (outcome,) = stage.outcomes
    assert (outcome.status, outcome.events) == (200, 1), outcome.words
    assert outcome.kind == ("order.paid" if kind else "")
    assert "s3cret" not in stage.out + stage.err


def test_it_shows_what_it_sends_and_what_came_of_it(stage: Stage) -> None:
    stage.run("/repos/ann/tea/events", "--event", "push", "--id", "d-1")
    assert stage.out == (
        "POST http://127.0.0.1:PORT/hooks/github\n"
        "  sends  x-repo, Content-Type, x-github-event, x-github-delivery, X-Hub-Signature-256 · 43 bytes\n"
        "200 OK · 1 event, 0 open streams · N ms\n"
    )
    (event,) = stage.events
    assert event.startswith('event: push\ndata: {"repository": {"owner": {"login": "ann"}}}\n')
    assert stage.outcomes[0].id == "d-1"


def test_a_body_that_leads_to_the_path_is_made_up(stage: Stage) -> None:
    stage.run("/repos/{owner}/{repo}/events", "--param", "owner=ann", "--param", "repo=tea", "--event", "push")
    assert (stage.code, len(stage.events)) == (0, 1)


def test_a_body_comes_from_a_file(stage: Stage, tmp_path: Path) -> None:
    body = tmp_path / "push.json"
    body.write_text(json.dumps({"repository": {"owner": {"login": "ann"}}, "n": 1}))
    stage.run("/repos/{owner}/{repo}/events", "--data", f"@{body}", "-H", "X-Repo: tea", "--event", "push")
    assert (stage.code, '"n": 1' in stage.events[0]) == (0, True)


def test_a_route_is_found_by_the_path_of_its_webhook_too(stage: Stage) -> None:
    stage.run("/hooks/none-id", "--data", '{"id": "17"}')
    assert (stage.code, len(stage.events)) == (0, 1)


def test_a_thin_webhook_is_sent_too(stage: Stage) -> None:
    stage.run("/polled/events")
    assert (stage.code, "0 events, 0 open streams" in stage.out) == (0, True)


def test_a_refusal_is_told_and_is_1(stage: Stage) -> None:
    stage.run("/none/17", "--data", "{", "-H", "Content-Type: application/json")
    assert stage.code == 1
    assert "400 Bad Request" in stage.out
    assert "the body is not JSON" in stage.out


def test_what_no_viewer_could_ask_for_is_told(stage: Stage) -> None:
    stage.run("/none/{id}", "--data", "{}")
    assert stage.code == 0
    assert "202 Accepted · 0 events" in stage.out
    assert "no event: the delivery has no `id`" in stage.out


def test_a_gate_that_does_not_run_is_69(stage: Stage) -> None:
    stage.run("/none/17", is_up=False)
    assert stage.code == 69
    assert "connection refused; is the gate running? --to names another place" in stage.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nothing"], "no webhook route is `/nothing`; there are `/repos/{owner}/{repo}/events`"),
        (["/repos/{owner}/{repo}/event"], "did you mean `/repos/{owner}/{repo}/events`?"),
        (["/repos/{owner}/{repo}/events"], "wants --param owner=…, or a body by --data"),
        (["/sums/17"], "`match.id` is no plain member of the body, so none can be made up; give one by --data"),
        (["/none/17", "--event", "x"], "`none` has no place for the kind of an event"),
        (["/none/17", "--data", "@nothing.json"], "--data @nothing.json: No such file or directory"),
        (["/none/17", "--to", "ftp://x"], "--to: this is no URL to ask"),
    ],
)
def test_what_cannot_be_sent_is_told_and_is_2(stage: Stage, arguments: list[str], said: str) -> None:
    stage.run(*arguments)
    assert stage.code == 2
    assert said in stage.err
    assert not stage.outcomes


def test_the_secret_of_a_subscription_is_found_where_the_gate_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        created = answer(b'{"id": 1}', (b"Content-Type", b"application/json"), status=201)
        async with ScriptedUpstream(created) as upstream:
            port, file = free_port(), tmp_path / "ssegate.yaml"
            text = f"""
version: 1
server: {{listen: "127.0.0.1:{port}", state_dir: "{tmp_path}/state"}}
upstreams: {{api: {upstream.url}}}
routes:
  - path: /jobs/events
    webhook:
      at: /hooks/jobs
      verify: {{github: {{}}}}
      callback: http://127.0.0.1:{port}/hooks/jobs
      subscribe: {{rest: {{create: {{post: /webhooks, body: {{secret: "{{secret}}"}}, id: body.id}}}}}}
"""
            file.write_text(text)
            service = Service(parse_config(text, source=str(file), environ={}))
            await service.start()
            await upstream.until(lambda it: len(it.requests) == 1)
            while not any(each.standing.value == "active" for each in service.gate.subscriptions.statuses()):
                await asyncio.sleep(0.01)  # nobody is told
            code = await asyncio.to_thread(main, ["send", "/jobs/events", "--event", "done", "-c", str(file)])
            assert (code, "1 event" in capsys.readouterr().out) == (0, True)
            file.write_text(text.replace(f', state_dir: "{tmp_path}/state"', ""))
            code = await asyncio.to_thread(main, ["send", "/jobs/events", "--event", "done", "-c", str(file)])
            assert (code, "known to the running gate alone" in capsys.readouterr().err) == (2, True)
            await service.aclose()

    asyncio.run(test())
