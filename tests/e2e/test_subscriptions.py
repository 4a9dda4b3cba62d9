"""Webhooks that the gate asks a backend's own API for: made, renewed, remembered and removed (`subscribe: {rest: …}` and `msgraph`)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from standardwebhooks import Webhook

from ssegate.core.lease import Standing
from ssegate.errors import ConfigError
from ssegate.sources.subscription import Status
from tests.e2e.client import PATIENCE, Asking, Pair, Reply, exchange
from tests.e2e.gate import Edge, RunningGate, before, free_port, make_config, running_gate, said, story
from tests.upstream.scripted import Call, ScriptedUpstream, answer

EDGE = Edge("native-h1", "1.1")
"""Where what is tested has nothing to do with the edge."""

JSON = (b"Content-Type", b"application/json")


@dataclass(frozen=True)
class Called:
    """A request to the backend."""

    method: str
    target: str
    document: Any
    """What it brought; None is nothing."""
    authorization: str | None
    at: float
    """When, on the loop's clock."""


class Backend(ScriptedUpstream):
    """An API with webhooks at `/webhooks`: POST makes one, PUT renews it, DELETE removes it, and what it does not know is 404."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(self._handle, port=port)
        self.called: list[Called] = []
        self.webhooks: dict[str, Any] = {}
        """Those that there are, by id."""
        self._plans: dict[str, deque[bytes]] = {}
        self._ids = itertools.count(17)

    def plan(self, method: str, *answers: bytes) -> None:
        """Answer the next requests by this method so, one each, and do nothing; then as usual."""
        self._plans.setdefault(method, deque()).extend(answers)

    def of(self, method: str) -> list[Called]:
        """The requests by this method so far."""
        return [called for called in self.called if called.method == method]

    async def until_called(self, method: str, count: int = 1) -> Called:
        """Wait for so many requests by this method; the last."""
        await self.until_so(lambda: len(self.of(method)) >= count)
        return self.of(method)[count - 1]

    async def until_made(self, count: int = 1) -> list[str]:
        """Wait until there are so many webhooks; their ids."""
        await self.until_so(lambda: len(self.webhooks) == count)
        return [*self.webhooks]

    async def until_so(self, fact: Callable[[], bool]) -> None:
        """Wait until something is true of it."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.until(lambda _: fact())
        except TimeoutError:
            raise AssertionError(f"the backend has been asked {self.called}") from None

    async def _handle(self, call: Call) -> None:
        body = await call.read_body()
        asked = call.asked
        now = asyncio.get_running_loop().time()
        called = Called(asked.method, asked.target, said(body) if body else None, asked.get("authorization"), now)
        self.called.append(called)
        self._tell()
        plans = self._plans.get(asked.method)
        await call.send(plans.popleft() if plans else await self.answer(called))
        self._tell()

    async def answer(self, called: Called) -> bytes:
        """The usual answer."""
        if called.method == "POST":
            id_ = next(self._ids)
            self.webhooks[str(id_)] = called.document
            return answer(b'{"id": %d}' % id_, JSON, (b"X-Id", b"a/b %d" % id_), status=201)
        id_ = called.target.rpartition("/")[2].partition("?")[0]
        if id_ not in self.webhooks:
            return answer(b"no such webhook", status=404)
        if called.method == "DELETE":
            del self.webhooks[id_]
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        return answer(b"{}", JSON)


CREATE = '{post: /webhooks, body: {url: "{callback}", key: "{secret}", events: [done]}, id: body.id}'
RENEW = '{put: "/webhooks/{id}", every: 1h}'
DELETE = '{delete: "/webhooks/{id}"}'
GITHUB = "{github: {}}"


def route(
    port: int,
    *,
    name: str = "jobs",
    create: str = CREATE,
    renew: str = RENEW,
    delete: str = DELETE,
    verify: str = GITHUB,
    more: str = "",
) -> str:
    """A route with a subscription; what is empty is left out. `more` has further keys of `subscribe` in flow style, with a comma."""
    calls = {"create": create, "renew": renew, "delete": delete}
    rest = ", ".join(f"{key}: {call}" for key, call in calls.items() if call)
    return f"""
- path: /{name}/events
  webhook:
    at: /hooks/{name}
    verify: {verify}
    callback: http://127.0.0.1:{port}/hooks/{name}
    subscribe: {{rest: {{{rest}}}{more}}}
"""


def gate_of(backend: Backend, *routes: str, port: int, edge: Edge = EDGE, server: str = "", upstream: str = "") -> Any:
    """A gate with these routes before this backend."""
    return running_gate(edge, text_of(backend, *routes, upstream=upstream), port=port, server=server)


def text_of(backend: Backend, *routes: str, upstream: str = "") -> str:
    return before(backend, "".join(routes) or "[]", upstream=upstream)


async def reload(gate: RunningGate, text: str, *, server: str = "") -> None:
    """Go over to this configuration."""
    whole = gate.edge.yaml(gate.port, text, server=server)
    await gate.service.reload(lambda: make_config(whole))


def status_of(gate: RunningGate) -> Status:
    """How the only subscription stands."""
    (status,) = gate.service.gate.subscriptions.statuses()
    return status


async def until_status(gate: RunningGate, fact: Callable[[Status], bool]) -> Status:
    """Wait until its status is so."""
    async with asyncio.timeout(PATIENCE):
        while not fact(status_of(gate)):
            await asyncio.sleep(0.01)  # figures tell nobody when they change
    return status_of(gate)


def is_active(status: Status) -> bool:
    return status.standing is Standing.ACTIVE


def has_failed(status: Status) -> bool:
    return status.failures > 0


def github(secret: str, body: bytes) -> list[Pair]:
    return [("X-Hub-Signature-256", "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest())]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def remembered(folder: Path) -> list[dict[str, Any]]:
    """What the gate knows across restarts: records, each with the path of its webhook as `at`."""
    document = json.loads((folder / "subscriptions.json").read_text())
    return [{"at": at, **record} for at, records in document.items() for record in records]


async def until_remembered(folder: Path, count: int = 1) -> None:
    """Wait until so many subscriptions are remembered with their ids: the file is written a moment after they are granted."""
    file = folder / "subscriptions.json"
    async with asyncio.timeout(PATIENCE):
        while not file.exists() or sum(each["is_made"] for each in remembered(folder)) < count:
            await asyncio.sleep(0.01)  # nobody tells when a file changes


# Made


@story
async def test_a_webhook_is_asked_for_at_the_start_and_what_it_delivers_is_an_event(edge: Edge) -> None:
    port = free_port()
    async with Backend() as backend, gate_of(backend, route(port), port=port, edge=edge) as gate:
        await backend.until_made()
        (made,) = backend.called
        callback = f"http://127.0.0.1:{port}/hooks/jobs"
        assert (made.method, made.target) == ("POST", "/webhooks")
        secret = made.document.pop("key")
        assert made.document == {"url": callback, "events": ["done"]}
        assert len(secret) >= 22
        async with gate.watch("/jobs/events") as viewer:
            await viewer.opening()
            body = b'{"job":  1}'
            assert (await gate.ask("POST", "/hooks/jobs", *github("guess", body), body=body)).status == 401
            assert (await gate.ask("POST", "/hooks/jobs", *github(secret, body), body=body)).status == 200
            event = await viewer.event()
            assert (event.data, (event.id or "")[-2:]) == (body.decode(), "-1")


def plain_hmac(secret: str, body: bytes) -> list[Pair]:
    return [("X-Sign", "v1=" + base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha512).digest()).decode())]


def standard(secret: str, body: bytes) -> list[Pair]:
    assert secret.startswith("whsec_")
    now = datetime.now(UTC)
    signature = Webhook(secret).sign("msg_1", now, body.decode())
    return [
        ("webhook-id", "msg_1"),
        ("webhook-timestamp", str(int(now.timestamp()))),
        ("webhook-signature", signature),
    ]


def gitlab(secret: str, body: bytes) -> list[Pair]:
    return [("X-Gitlab-Token", secret)]


def shopify(secret: str, body: bytes) -> list[Pair]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).digest()
    return [("X-Shopify-Hmac-Sha256", base64.b64encode(digest).decode())]


@pytest.mark.parametrize(
    ("verify", "sign"),
    [
        ('{hmac: {header: X-Sign, algorithm: sha512, encoding: base64, prefix: "v1="}}', plain_hmac),
        (GITHUB, github),
        ("{standard: {}}", standard),
        ("{gitlab: {}}", gitlab),
        ("{shopify: {}}", shopify),
    ],
    ids=["hmac", "github", "standard", "gitlab", "shopify"],
)
@story
async def test_a_secret_that_nobody_has_said_is_made_in_the_form_of_the_scheme(
    verify: str, sign: Callable[[str, bytes], list[Pair]]
) -> None:
    port, body = free_port(), b'{"job": 1}'
    async with Backend() as backend, gate_of(backend, route(port, verify=verify), port=port) as gate:
        await backend.until_made()
        secret = backend.called[0].document["key"]
        async with gate.watch("/jobs/events") as viewer:
            assert (await gate.ask("POST", "/hooks/jobs", *sign(secret, body), body=body)).status == 200
            assert (await viewer.event()).data == body.decode()
        assert (await gate.ask("POST", "/hooks/jobs", body=body)).status == 401


@story
async def test_a_secret_that_is_said_is_the_one_the_backend_gets() -> None:
    port = free_port()
    async with Backend() as backend:
        async with gate_of(backend, route(port, verify="{github: {secret: [new, old]}}"), port=port):
            await backend.until_made()
        assert backend.called[0].document["key"] == "new"


@story
async def test_two_subscriptions_have_two_secrets() -> None:
    port = free_port()
    async with Backend() as backend:
        async with gate_of(backend, route(port), route(port, name="builds"), port=port):
            await backend.until_made(2)
        assert len({called.document["key"] for called in backend.called}) == 2


@story
async def test_templates_are_filled_in_paths_and_in_texts_of_the_body_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENANT", "a b/c")
    port = free_port()
    create = (
        '{put: "/t/{env.TENANT}/hook?to={callback}", body: {list: ["{callback}", {deep: "<{secret}>"}], n: 1.5, yes: true, '
        'no: null, plain: "{{id}} {env.TENANT}", "{callback}": x}}'
    )
    async with Backend() as backend:
        backend.plan("PUT", answer(b"", status=204))
        text = route(port, create=create, renew="", delete='{post: "/t/{env.TENANT}/off"}')
        async with gate_of(backend, text, port=port, upstream="auth: {bearer: token}") as gate:
            made = await backend.until_called("PUT")
            await until_status(gate, is_active)
            await gate.service.drain()
        callback = f"http://127.0.0.1:{port}/hooks/jobs"
        assert made.target == f"/t/a%20b%2Fc/hook?to={quote(callback, safe='')}"
        secret = made.document["list"][1]["deep"].strip("<>")
        assert made.document == {
            "list": [callback, {"deep": f"<{secret}>"}],
            "n": 1.5,
            "yes": True,
            "no": None,
            "plain": "{id} a b/c",
            "{callback}": "x",
        }
        assert [called.target for called in backend.of("POST")] == ["/t/a%20b%2Fc/off"]
        assert {each.authorization for each in backend.called} == {"Bearer token"}


@pytest.mark.parametrize(
    ("where", "target"),
    [("body.id", "/webhooks/17"), ('headers."x-id"', "/webhooks/a%2Fb%2017")],
    ids=["body", "header"],
)
@story
async def test_an_id_is_found_in_the_body_or_in_a_header_and_is_a_segment_of_paths(where: str, target: str) -> None:
    port = free_port()
    async with Backend() as backend:
        create = CREATE.replace("body.id", where)
        renew = '{put: "/webhooks/{id}", body: {id: "{id}"}, every: 300ms}'
        async with gate_of(backend, route(port, create=create, renew=renew), port=port) as gate:
            backend.plan("PUT", answer(b"{}"))
            renewed = await backend.until_called("PUT")
            await gate.service.drain()
        assert renewed.target == target
        assert renewed.document == {"id": "17" if where == "body.id" else "a/b 17"}
        assert [called.target for called in backend.of("DELETE")] == [target]


@pytest.mark.parametrize(
    "bad",
    [
        answer(b'{"id": NaN}', JSON),
        answer(b"<id>17</id>", (b"Content-Type", b"text/html")),
        answer(b"", status=204),
    ],
    ids=["no JSON", "HTML", "no body"],
)
@story
async def test_an_answer_without_the_id_is_told_and_it_is_tried_again(bad: bytes) -> None:
    port = free_port()
    async with Backend() as backend:
        backend.plan("POST", bad)
        async with gate_of(backend, route(port), port=port) as gate:
            assert "POST /webhooks" in (await until_status(gate, has_failed)).trouble
            await backend.until_made()
            assert (await until_status(gate, is_active)).trouble == ""


@pytest.mark.parametrize("document", [b'{"other": 1}', b'{"id": ""}', b'{"id": [1]}', b'{"id": true}', b"[]"])
@story
async def test_where_the_id_is_looked_for_in_the_wrong_place_not_one_webhook_after_the_other_is_made(
    document: bytes,
) -> None:
    port = free_port()
    async with Backend() as backend:
        backend.plan("POST", answer(document, JSON, status=201))
        async with gate_of(backend, route(port), port=port) as gate:
            assert "`id: body.id` finds no id in the answer" in (await until_status(gate, has_failed)).trouble
            (keeper,) = gate.service.gate.subscriptions.keepers.values()
            assert keeper._lease.due - asyncio.get_running_loop().time() > 500


# Kept alive


@story
async def test_it_is_renewed_as_often_as_is_said() -> None:
    port = free_port()
    async with Backend() as backend:
        renew = '{put: "/webhooks/{id}", every: 300ms}'
        async with gate_of(backend, route(port, renew=renew), port=port) as gate:
            await backend.until_called("PUT", 3)
            assert is_active(status_of(gate))
            assert status_of(gate).seconds is None
        times = [called.at for called in backend.called]
        assert all(later - earlier >= 0.9 * 0.29 for earlier, later in itertools.pairwise(times))
        assert [called.method for called in backend.called] == ["POST", "PUT", "PUT", "PUT"]
        assert {called.target for called in backend.of("PUT")} == {"/webhooks/17"}


@story
async def test_what_is_not_to_be_renewed_is_made_once() -> None:
    port = free_port()
    async with Backend() as backend, gate_of(backend, route(port, renew=""), port=port) as gate:
        await backend.until_made()
        status = await until_status(gate, is_active)
        assert (status.kind, status.seconds, status.failures) == ("rest", None, 0)
        await reload(gate, text_of(backend, "\n# moved" + route(port, renew="")))
        await gate.service.drain()
        assert [called.method for called in backend.called] == ["POST", "DELETE"]


@pytest.mark.parametrize("status", [404, 410])
@story
async def test_what_the_backend_has_forgotten_is_made_again(status: int) -> None:
    port = free_port()
    async with Backend() as backend:
        renew = '{put: "/webhooks/{id}", every: 300ms}'
        backend.plan("PUT", answer(b"", status=status))
        async with gate_of(backend, route(port, renew=renew), port=port) as gate:
            await backend.until_called("POST", 2)
            first, second = backend.of("POST")
            assert first.document == second.document, "with the same secret"
            renewed = await backend.until_called("PUT", 2)
            assert renewed.target == "/webhooks/18"
            assert status_of(gate).failures == 0
            await gate.service.drain()
        assert [called.target for called in backend.of("DELETE")] == ["/webhooks/18"]


@story
async def test_a_renewal_that_fails_is_tried_again_and_nothing_is_made_anew() -> None:
    port = free_port()
    async with Backend() as backend:
        renew = '{put: "/webhooks/{id}", every: 300ms}'
        backend.plan("PUT", answer(b"busy", status=500), answer(b"busy", status=500))
        async with gate_of(backend, route(port, renew=renew), port=port) as gate:
            status = await until_status(gate, has_failed)
            assert status.trouble == "PUT /webhooks/{id}: 500: busy"
            await backend.until_called("PUT", 3)
            await until_status(gate, lambda it: not it.trouble)
            assert len(backend.of("POST")) == 1


# Backends in trouble


@story
async def test_a_gate_whose_backend_is_down_starts_serves_and_subscribes_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    port, backend = free_port(), Backend(free_port())
    async with gate_of(backend, route(port), port=port) as gate, gate.watch("/jobs/events") as viewer:
        await viewer.opening()
        status = await until_status(gate, lambda it: it.failures >= 3)
        assert status.standing is Standing.FAILING
        assert "refused" in status.trouble
        async with backend:
            await backend.until_made()
            await until_status(gate, is_active)
            body = b"{}"
            signed = github(backend.called[0].document["key"], body)
            await gate.ask("POST", "/hooks/jobs", *signed, body=body)
            assert (await viewer.event()).data == "{}"
    told = [each for each in caplog.records if "subscription of /hooks/jobs" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING", "INFO"], "once when it fails, once when it works"


@story
async def test_refusals_are_told_once_and_tried_again_at_the_pace_of_the_upstream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    async with Backend() as backend:
        refusals = (answer(b"not\nnow", status=status) for status in (400, 401, 403, 404, 429, 500, 302))
        backend.plan("POST", *refusals)
        async with gate_of(backend, route(port), port=port) as gate:
            assert (await until_status(gate, has_failed)).trouble.endswith("not now")
            await backend.until_made()
            status = await until_status(gate, is_active)
            assert (status.failures, status.trouble) == (7, "")
        times = [called.at for called in backend.of("POST")]
        assert all(0.02 <= later - earlier < 1 for earlier, later in itertools.pairwise(times)), times
        assert len({json.dumps(called.document) for called in backend.called}) == 1, "the same each time"
    assert warnings(caplog) == [
        "subscription of /hooks/jobs: POST /webhooks: 400: not now; it is tried again until it works"
    ]


@pytest.mark.parametrize("is_date", [False, True], ids=["seconds", "a date"])
@story
async def test_retry_after_is_kept_to(is_date: bool) -> None:
    # DEFECT: `checked` reads seconds only; `core.poll` knows dates too (RFC 9110, 10.2.3).
    port = free_port()
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if is_date else "1"
    async with Backend() as backend:
        backend.plan("POST", answer(b"", (b"Retry-After", value.encode()), status=503))
        async with gate_of(backend, route(port), port=port):
            await backend.until_made()
        first, second = backend.of("POST")
        assert second.at - first.at >= 0.9


@story
async def test_a_backend_that_repeats_the_secret_in_its_refusal_does_not_bring_it_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    class Repeating(Backend):
        async def answer(self, called: Called) -> bytes:
            if len(self.called) > 1:
                return await super().answer(called)
            return answer(json.dumps({"detail": [{"msg": "no", "input": called.document}]}).encode(), JSON, status=422)

    port = free_port()
    async with Repeating() as backend, gate_of(backend, route(port), port=port) as gate:
        trouble = (await until_status(gate, has_failed)).trouble
        await backend.until_made()
        secret = backend.called[0].document["key"]
    assert "422" in trouble
    assert secret not in trouble
    assert secret not in caplog.text


# Removed


@story
async def test_a_gate_that_goes_down_removes_what_it_has_made() -> None:
    port = free_port()
    async with Backend() as backend, gate_of(backend, route(port), route(port, name="builds"), port=port) as gate:
        made = await backend.until_made(2)
        await gate.service.drain()
        assert not backend.webhooks
        assert sorted(called.target for called in backend.of("DELETE")) == [f"/webhooks/{id_}" for id_ in sorted(made)]


@story
async def test_a_gate_that_goes_down_while_it_asks_leaves_nothing_behind() -> None:
    port = free_port()
    release = asyncio.Event()

    class Slow(Backend):
        async def answer(self, called: Called) -> bytes:
            made = await super().answer(called)
            if called.method == "POST":
                self._tell()
                await release.wait()
            return made

    async with Slow() as backend, gate_of(backend, route(port), port=port) as gate:
        await backend.until_made()
        draining = asyncio.create_task(gate.service.drain())
        while not gate.service.gate.is_draining:
            await asyncio.sleep(0)
        release.set()
        await draining
        assert not backend.webhooks


@pytest.mark.parametrize("more", [{"more": ", keep: true"}, {"delete": ""}], ids=["keep", "no delete"])
@story
async def test_what_is_to_be_kept_or_cannot_be_removed_is_left_in_place(
    more: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with Backend() as backend, gate_of(backend, route(port, **more), port=port) as gate:
        await backend.until_made()
        await until_status(gate, is_active)
        await gate.service.drain()
        assert len(backend.webhooks) == 1
        assert len(backend.called) == 1
    assert not warnings(caplog)


@story
async def test_what_removes_it_may_have_a_body_too() -> None:
    port = free_port()
    delete = '{post: "/webhooks/{id}/off", body: {url: "{callback}", id: "{id}"}}'
    async with Backend() as backend, gate_of(backend, route(port, delete=delete), port=port) as gate:
        await backend.until_made()
        await until_status(gate, is_active)
        backend.plan("POST", answer(b""))
        await gate.service.drain()
        gone = await backend.until_called("POST", 2)
        assert gone.target == "/webhooks/17/off"
        assert gone.document == {"url": f"http://127.0.0.1:{port}/hooks/jobs", "id": "17"}


@pytest.mark.parametrize("status", [404, 410, 403, 500])
@story
async def test_a_backend_that_refuses_to_remove_it_holds_nobody_up(
    status: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    port = free_port()
    async with Backend() as backend:
        backend.plan("DELETE", answer(b"no", status=status))
        async with gate_of(backend, route(port), port=port, server=f'state_dir: "{tmp_path}"') as gate:
            await backend.until_made()
            await until_status(gate, is_active)
            async with asyncio.timeout(3):
                await gate.service.drain()
    is_fine = status in (404, 410)
    assert len(warnings(caplog)) == (0 if is_fine else 1), "one that does not know it is fine"
    assert [each["at"] for each in remembered(tmp_path)] == ([] if is_fine else ["/hooks/jobs"]), (
        "what is not removed is not forgotten"
    )


@story
async def test_a_reload_removes_what_it_has_no_place_for_and_makes_what_is_new() -> None:
    port = free_port()
    stays, goes, comes = (route(port, name=name) for name in ("stays", "goes", "comes"))
    async with Backend() as backend, gate_of(backend, stays, goes, port=port) as gate:
        await backend.until_made(2)
        await reload(gate, text_of(backend, stays, comes))
        await backend.until_called("DELETE")
        await backend.until_made(2)
        assert len(backend.of("POST")) == 3
        assert sorted(each["url"].rpartition("/")[2] for each in backend.webhooks.values()) == ["comes", "stays"]


@story
async def test_a_reload_with_another_definition_makes_a_new_one_and_removes_the_old_one() -> None:
    port = free_port()
    async with Backend() as backend, gate_of(backend, route(port), port=port) as gate:
        (old,) = await backend.until_made()
        secret = backend.called[0].document["key"]
        await reload(gate, text_of(backend, route(port, create=CREATE.replace("[done]", "[done, failed]"))))
        await backend.until_called("DELETE")
        await backend.until_so(lambda: len(backend.of("POST")) == 2 and len(backend.webhooks) == 1)
        ((id_, new),) = backend.webhooks.items()
        assert id_ != old
        assert new["events"] == ["done", "failed"]
        assert new["key"] != secret
        async with gate.watch("/jobs/events") as viewer:
            assert (await gate.ask("POST", "/hooks/jobs", *github(secret, b"{}"), body=b"{}")).status == 401
            assert (await gate.ask("POST", "/hooks/jobs", *github(new["key"], b"{}"), body=b"{}")).status == 200
            assert (await viewer.event()).data == "{}"
        await gate.service.drain()
        assert not backend.webhooks


@story
async def test_a_route_that_comes_back_while_it_is_being_removed_is_there_in_the_end() -> None:
    release = asyncio.Event()

    class Slow(Backend):
        async def answer(self, called: Called) -> bytes:
            if called.method == "DELETE":
                await release.wait()
            return await super().answer(called)

    port = free_port()
    text = route(port, renew="")
    async with Slow() as backend, gate_of(backend, text, port=port) as gate:
        await backend.until_made()
        await until_status(gate, is_active)
        await reload(gate, text_of(backend))
        await backend.until_called("DELETE")
        await reload(gate, text_of(backend, text))
        release.set()
        await backend.until_so(lambda: [*backend.webhooks] == ["18"])
        await until_status(gate, is_active)
        await gate.service.drain()
        assert not backend.webhooks


# Remembered


@pytest.mark.parametrize("renew", [RENEW, ""], ids=["renewed", "never renewed"])
@story
async def test_after_a_restart_without_a_farewell_nothing_is_made_twice(renew: str, tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path / "a" / "b"}"'
    async with Backend() as backend:
        text = route(port, renew=renew)
        async with gate_of(backend, text, port=port, server=server):
            await backend.until_made()
            await until_remembered(tmp_path / "a" / "b")
        secret = backend.called[0].document["key"]
        async with gate_of(backend, text, port=port, server=server) as gate:
            await until_status(gate, is_active)
            async with gate.watch("/jobs/events") as viewer:
                await gate.ask("POST", "/hooks/jobs", *github(secret, b"{}"), body=b"{}")
                assert (await viewer.event()).data == "{}"
            await gate.service.drain()
        assert [called.method for called in backend.called] == ["POST", *(["PUT"] if renew else []), "DELETE"]
        assert not backend.webhooks
    assert remembered(tmp_path / "a" / "b") == []


@story
async def test_what_the_backend_has_forgotten_meanwhile_is_made_again_after_a_restart(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Backend() as backend:
        async with gate_of(backend, route(port), port=port, server=server):
            await backend.until_made()
            await until_remembered(tmp_path)
        backend.webhooks.clear()
        async with gate_of(backend, route(port), port=port, server=server) as gate:
            assert await backend.until_made() == ["18"]
            await until_status(gate, is_active)
            await gate.service.drain()
        assert [called.method for called in backend.called] == ["POST", "PUT", "POST", "DELETE"]
        assert backend.called[-1].target == "/webhooks/18"


@pytest.mark.parametrize("has_another", [True, False])
@story
async def test_a_route_that_went_while_the_gate_was_down_is_removed_at_the_backend(
    tmp_path: Path, has_another: bool
) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    others = [route(port, name="stays")] if has_another else []
    async with Backend() as backend:
        async with gate_of(backend, route(port), *others, port=port, server=server):
            await backend.until_made(1 + has_another)
            await until_remembered(tmp_path, 1 + has_another)
        (gone,) = (id_ for id_, each in backend.webhooks.items() if each["url"].endswith("jobs"))
        async with gate_of(backend, *others, port=port, server=server):
            assert (await backend.until_called("DELETE")).target == f"/webhooks/{gone}"
            await backend.until_made(has_another)


@story
async def test_a_definition_that_changed_while_the_gate_was_down_is_made_anew_and_the_old_one_removed(
    tmp_path: Path,
) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Backend() as backend:
        async with gate_of(backend, route(port), port=port, server=server):
            (old,) = await backend.until_made()
            await until_remembered(tmp_path)
        text = route(port, create=CREATE.replace("[done]", "[failed]"), delete='{delete: "/elsewhere/{id}"}')
        async with gate_of(backend, text, port=port, server=server) as gate:
            gone = await backend.until_called("DELETE")
            assert gone.target == f"/webhooks/{old}", "as the configuration had it that made it"
            await backend.until_so(lambda: [each["events"] for each in backend.webhooks.values()] == [["failed"]])
            await until_status(gate, is_active)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"/hooks/jobs": {}}', '{"/hooks/jobs": [1]}', '{"/hooks/jobs": [{"secret": "x"}]}', ""]
)
@story
async def test_a_damaged_file_is_a_fault_of_the_configuration_and_not_a_crash(content: str, tmp_path: Path) -> None:
    (tmp_path / "subscriptions.json").write_text(content)
    port = free_port()
    async with Backend() as backend:
        with pytest.raises(ConfigError, match=r"subscriptions\.json is damaged"):
            async with gate_of(backend, route(port), port=port, server=f'state_dir: "{tmp_path}"'):
                pass


@story
async def test_a_folder_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    port = free_port()
    async with Backend() as backend:
        for folder in ("file", "file/below"):
            with pytest.raises(ConfigError, match=r"state_dir|file"):
                async with gate_of(backend, route(port), port=port, server=f'state_dir: "{tmp_path / folder}"'):
                    pass
        assert not backend.called


# Microsoft Graph


class Graph(Backend):
    """Subscriptions as in Microsoft Graph v1.0: a callback is asked whether it is there before anything is made."""

    def __init__(self) -> None:
        super().__init__()
        self.lasts: float | None = None
        """Seconds that are granted; None is what was asked for."""
        self.validations: list[Reply] = []

    async def answer(self, called: Called) -> bytes:
        path = urlsplit(called.target).path
        if called.method == "POST":
            assert path == "/v1.0/subscriptions"
            return await self._make(called.document)
        id_ = path.removeprefix("/v1.0/subscriptions/")
        if id_ not in self.webhooks:
            return answer(b'{"error": {"code": "ResourceNotFound"}}', JSON, status=404)
        if called.method == "DELETE":
            del self.webhooks[id_]
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        assert called.method == "PATCH"
        assert called.document.keys() == {"expirationDateTime"}
        return self._granted(id_, called.document["expirationDateTime"], 200)

    async def _make(self, wanted: Any) -> bytes:
        assert {"changeType", "notificationUrl", "resource", "expirationDateTime"} <= wanted.keys()
        assert 1 <= len(wanted["clientState"]) <= 128, '"The maximum length is 128 characters"'
        for key in ("notificationUrl", "lifecycleNotificationUrl"):
            token = "Validation: Testing client application reachability for subscription Request-Id: é+/&=%"
            reply = await post(
                f"{wanted[key]}?validationToken={quote(token, safe='')}", b"", ("Content-Type", "text/plain")
            )
            self.validations.append(reply)
            if (reply.status, reply.body.decode()) != (200, token) or not (reply.get("content-type") or "").startswith(
                "text/plain"
            ):
                return answer(b'{"error": {"message": "Subscription validation request failed."}}', JSON, status=400)
        id_ = f"7f105c7d-2dc5-4530-97cd-{next(self._ids):012d}"
        self.webhooks[id_] = wanted
        return self._granted(id_, wanted["expirationDateTime"], 201)

    def _granted(self, id_: str, asked: str, status: int) -> bytes:
        until = datetime.fromisoformat(asked)
        assert until.utcoffset() == timedelta(0)
        if self.lasts is not None:
            until = datetime.now(UTC) + timedelta(seconds=self.lasts)
        assert until > datetime.now(UTC)
        shown = f"{until:%Y-%m-%dT%H:%M:%S.%f}7Z"  # seven digits, as Graph has them
        return answer(json.dumps({"id": id_, "expirationDateTime": shown}).encode(), JSON, status=status)

    @property
    def made(self) -> Any:
        """What the newest subscription was made with."""
        return [*self.webhooks.values()][-1]

    async def notify(self, *items: dict[str, Any], state: str | None = None) -> Reply:
        """Tell the newest subscription of these."""
        told = [
            {"subscriptionId": [*self.webhooks][-1], "clientState": state or self.made["clientState"], **item}
            for item in items
        ]
        return await post(
            self.made["notificationUrl"], json.dumps({"value": told}).encode(), ("Content-Type", "application/json")
        )


async def post(url: str, body: bytes, *headers: Pair) -> Reply:
    """As a backend that has learned no more than this URL."""
    parts = urlsplit(url)
    asking = Asking("POST", parts.path + (f"?{parts.query}" if parts.query else ""), headers, body)
    assert parts.port is not None
    async with exchange("1.1", parts.port, asking, tls=parts.scheme == "https") as it, asyncio.timeout(PATIENCE):
        pieces = []
        while piece := await it.read():
            pieces.append(piece)
        return Reply(it.status, it.headers, b"".join(pieces))


def graph_text(graph: Graph, port: int, *, scheme: str = "http", more: str = "expires: 1h", keep: str = "") -> str:
    return f"""
upstreams: {{graph: {{url: "{graph.url}/v1.0", auth: {{bearer: token}}, backoff: {{min: 50ms, max: 100ms}}}}}}
routes:
- path: /mail/events
  webhook:
    at: /hooks/mail
    callback: {scheme}://127.0.0.1:{port}/hooks/mail
    subscribe: {{msgraph: {{resource: "/users/ann/messages", {more}}}{keep}}}
"""


def graph_gate(graph: Graph, port: int, *, edge: Edge = EDGE, server: str = "", more: str = "expires: 1h") -> Any:
    scheme = "https" if edge.tls else "http"
    return running_gate(edge, graph_text(graph, port, scheme=scheme, more=more), port=port, server=server)


@story
async def test_graph_is_answered_while_it_is_asked_and_each_item_it_notifies_of_is_an_event(edge: Edge) -> None:
    port = free_port()
    async with (
        Graph() as graph,
        graph_gate(graph, port, edge=edge, more="expires: 2h, change: [created, updated]") as gate,
    ):
        await graph.until_made()
        assert [reply.status for reply in graph.validations] == [200, 200]
        made = graph.made
        assert (made["resource"], made["changeType"]) == ("/users/ann/messages", "created,updated")
        assert made["notificationUrl"] == made["lifecycleNotificationUrl"]
        assert urlsplit(made["notificationUrl"]).path == "/hooks/mail"
        assert len(made["clientState"]) >= 22
        assert re.fullmatch(r"[0-9T:.-]+Z", made["expirationDateTime"])
        until = datetime.fromisoformat(made["expirationDateTime"]).timestamp()
        assert 7000 < until - time.time() <= 7200
        assert graph.called[0].authorization == "Bearer token"
        async with gate.watch("/mail/events") as viewer:
            await viewer.opening()
            reply = await graph.notify({"changeType": "created", "n": 1}, {"changeType": "updated", "n": 2})
            assert 200 <= reply.status < 300
            events = [await viewer.event(), await viewer.event()]
            assert [said(event.data)["n"] for event in events] == [1, 2]


@story
async def test_a_notification_with_another_client_state_is_no_event() -> None:
    port = free_port()
    async with Graph() as graph, graph_gate(graph, port) as gate, gate.watch("/mail/events") as viewer:
        await graph.until_made()
        assert (await graph.notify({"n": 1}, state="guess")).status == 401
        assert (await graph.notify({"n": 2}, {"n": 3, "clientState": "guess"})).status == 401
        await graph.notify({"n": 4})
        assert said((await viewer.event()).data)["n"] == 4


@story
async def test_a_graph_subscription_is_renewed_before_what_graph_has_granted_ends() -> None:
    port = free_port()
    async with Graph() as graph:
        graph.lasts = 3
        async with graph_gate(graph, port) as gate:
            (id_,) = await graph.until_made()
            made = graph.called[0].at
            await until_status(gate, is_active)
            assert 2 < (status_of(gate).seconds or 0) <= 3
            renewed = await graph.until_called("PATCH")
            assert renewed.target == f"/v1.0/subscriptions/{id_}"
            assert 1.5 < renewed.at - made < 3
            until = datetime.fromisoformat(renewed.document["expirationDateTime"]).timestamp()
            assert 3500 < until - time.time() <= 3600, "as long as is configured"
            await until_status(gate, lambda it: (it.seconds or 0) > 2)
            assert len(graph.called) == 2


@story
async def test_a_graph_subscription_that_graph_has_forgotten_is_made_anew() -> None:
    port = free_port()
    async with Graph() as graph:
        graph.lasts = 1
        async with graph_gate(graph, port) as gate:
            (old,) = await graph.until_made()
            await until_status(gate, is_active)
            graph.webhooks.clear()
            (new,) = await graph.until_made()
            assert new != old
            assert [called.method for called in graph.called] == ["POST", "PATCH", "POST"]
            assert status_of(gate).failures == 0
            graph.lasts = None
            async with gate.watch("/mail/events") as viewer:
                await graph.notify({"n": 1})
                assert said((await viewer.event()).data)["n"] == 1


@story
async def test_a_gate_that_goes_down_deletes_its_graph_subscription() -> None:
    port = free_port()
    async with Graph() as graph, graph_gate(graph, port) as gate:
        (id_,) = await graph.until_made()
        await gate.service.drain()
        assert [called.target for called in graph.of("DELETE")] == [f"/v1.0/subscriptions/{id_}"]
        assert not graph.webhooks


@story
async def test_what_graph_says_of_the_subscription_itself_is_acted_on_and_is_no_event() -> None:
    port = free_port()
    async with Graph() as graph, graph_gate(graph, port) as gate:
        async with gate.watch("/mail/events") as viewer:
            (first,) = await graph.until_made()
            await until_status(gate, is_active)
            assert (await graph.notify({"lifecycleEvent": "subscriptionRemoved"}, state="guess")).status == 401
            assert 200 <= (await graph.notify({"lifecycleEvent": "reauthorizationRequired"})).status < 300
            assert (await graph.until_called("PATCH")).target == f"/v1.0/subscriptions/{first}"
            assert 200 <= (await graph.notify({"lifecycleEvent": "missed"})).status < 300
            assert 200 <= (await graph.notify({"lifecycleEvent": "subscriptionRemoved"}, {"n": 1})).status < 300
            await graph.until_made(2)
            graph.webhooks.pop(first)
            (second,) = graph.webhooks
            await graph.notify({"n": 2})
            assert [said((await viewer.event()).data)["n"] for _ in range(2)] == [1, 2]
        assert [called.method for called in graph.called] == ["POST", "PATCH", "POST"]
        await until_status(gate, is_active)
        await gate.service.drain()
        assert [called.target for called in graph.of("DELETE")] == [f"/v1.0/subscriptions/{second}"]


@story
async def test_graph_is_told_nothing_twice_after_a_restart(tmp_path: Path) -> None:
    port, server = free_port(), f'state_dir: "{tmp_path}"'
    async with Graph() as graph:
        async with graph_gate(graph, port, server=server):
            (id_,) = await graph.until_made()
            await until_remembered(tmp_path)
        async with graph_gate(graph, port, server=server) as gate, gate.watch("/mail/events") as viewer:
            assert (await graph.until_called("PATCH")).target == f"/v1.0/subscriptions/{id_}"
            await graph.notify({"n": 1})
            assert said((await viewer.event()).data)["n"] == 1
        assert [called.method for called in graph.called] == ["POST", "PATCH"]


@story
async def test_a_callback_that_graph_cannot_reach_is_told_in_graphs_words_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, elsewhere = free_port(), free_port()
    # Something else answers where the backend was told to call.
    async with Graph() as graph, ScriptedUpstream(answer(b"hello"), port=elsewhere):
        text = graph_text(graph, port).replace(f"{port}/hooks", f"{elsewhere}/hooks")
        async with running_gate(EDGE, text, port=port) as gate:
            status = await until_status(gate, lambda it: it.failures >= 2)
            assert status.standing is Standing.FAILING
            assert "Subscription validation request failed" in status.trouble
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"id": 7}', b'{"id": ""}', b"<html>", b'{"id": NaN}'])
@story
async def test_an_answer_of_graph_without_an_id_is_told_and_it_is_tried_again(body: bytes) -> None:
    port = free_port()
    async with Graph() as graph:
        graph.plan("POST", answer(body, JSON, status=201))
        async with graph_gate(graph, port) as gate:
            assert "/subscriptions" in (await until_status(gate, has_failed)).trouble
            await graph.until_made()
            assert (await until_status(gate, is_active)).trouble == ""


@story
async def test_a_client_state_that_graph_would_not_take_is_a_fault_of_the_configuration() -> None:
    # "The maximum length is 128 characters" (Microsoft Graph, subscription resource type).
    async with Graph() as graph:
        text = graph_text(graph, 80) + "    verify: {msgraph: {client_state: STATE}}\n"
        make_config(EDGE.yaml(0, text.replace("STATE", "x" * 128)))
        with pytest.raises(ConfigError, match="128 characters"):
            make_config(EDGE.yaml(0, text.replace("STATE", "x" * 129)))
