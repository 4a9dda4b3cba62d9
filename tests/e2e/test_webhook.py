"""Deliveries in, events out: webhooks in their plainest form (WIRE.md, "Webhooks")."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from tests.e2e.client import Pair, Reply
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said, story

ROUTES = """
- path: /repos/{owner}/{repo}/events
  params: {owner: "[a-z]+"}
  webhook:
    at: /hooks/plain
    verify: none
    match: {owner: body.repository.owner.login, repo: body.repository.name}
- path: /tokens/events
  webhook: {at: /hooks/token, verify: {token: [new, old]}}
- path: /signed/events
  webhook: {at: /hooks/signed, verify: {hmac: {secret: key, header: X-Hub-Signature-256, prefix: "sha256="}}}
- path: /base64/events
  webhook: {at: /hooks/base64, verify: {hmac: {secret: [new, key], header: X-Sign, algorithm: sha512, encoding: base64}}}
- path: /shaped/events
  webhook: {at: /hooks/shaped, verify: none}
  emit: {event: "{headers.x-kind}", data: "body.{who: sender}"}
"""

JSON = ("Content-Type", "application/json")


def push(owner: Any = "ann", repo: Any = "tea", **more: Any) -> bytes:
    return json.dumps({"repository": {"owner": {"login": owner}, "name": repo}, **more}).encode()


async def deliver(gate: RunningGate, path: str, body: bytes, *fields: Pair) -> Reply:
    return await gate.ask("POST", path, JSON, *fields, body=body)


@story
async def test_a_delivery_is_an_event_as_it_came_for_the_topic_of_its_parameters(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        async with gate.watch("/repos/ann/tea/events") as ann, gate.watch("/repos/bob/tea/events") as bob:
            await ann.opening()
            assert bytes(ann.raw).endswith(b"\n:\n"), "nothing old for a newcomer"
            await bob.opening()
            body = push(note=" spaces   stay ")
            assert (await deliver(gate, "/hooks/plain", body)).status == 200
            event = await ann.event()
            assert (event.data, event.type, (event.id or "")[-2:]) == (body.decode(), "", "-1")
            await deliver(gate, "/hooks/plain", push("bob"))
            assert said((await bob.event()).data)["repository"]["owner"]["login"] == "bob"
            await deliver(gate, "/hooks/plain", push(last=True))
            assert said((await ann.event()).data)["last"] is True, "none of bob's"
        assert not api.requests


@story
async def test_what_was_delivered_while_a_viewer_was_away_is_made_up_for(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        async with gate.watch("/repos/ann/tea/events") as viewer:
            await deliver(gate, "/hooks/plain", push(n=1))
            first = await viewer.event()
        for n in (2, 3, 4):
            await deliver(gate, "/hooks/plain", push(n=n))
        async with gate.watch("/repos/ann/tea/events", cursor=first.id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert [said((await viewer.event()).data)["n"] for _ in range(3)] == [2, 3, 4]
        async with gate.watch("/repos/ann/tea/events", cursor="earliest") as viewer:
            assert [said((await viewer.event()).data)["n"] for _ in range(4)] == [1, 2, 3, 4]
        async with gate.watch("/repos/ann/tea/events", cursor="unknown-7") as viewer:
            assert (await viewer.event()).type == "reset"
            assert [said((await viewer.event()).data)["n"] for _ in range(4)] == [1, 2, 3, 4], "what is kept"


@story
async def test_events_before_the_first_viewer_are_kept_too(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        await deliver(gate, "/hooks/plain", push(n=1))
        async with gate.watch("/repos/ann/tea/events", cursor="earliest") as viewer:
            assert said((await viewer.event()).data)["n"] == 1


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer new", 200), ("bearer old", 200), ("Bearer no", 401), ("Bearer", 401), ("Basic new", 401), (None, 401)],
)
@story
async def test_a_token_lets_in_and_nothing_else_does(edge: Edge, authorization: str | None, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        fields = [] if authorization is None else [("Authorization", authorization)]
        reply = await deliver(gate, "/hooks/token", b"{}", *fields)
        assert reply.status == status
        assert b"new" not in reply.body
        assert len(gate.service.gate.hub) == (status == 200)


@story
async def test_a_signature_is_checked_over_the_raw_bytes(edge: Edge) -> None:
    body = b'{ "n":  1 }\r\n'
    signature = "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        async with gate.watch("/signed/events") as viewer:
            assert (await deliver(gate, "/hooks/signed", body, ("X-Hub-Signature-256", signature))).status == 200
            assert (await viewer.event()).data == '{ "n":  1 }\n', "a line end of the data is one of the stream"
        for body_, given in (
            (body + b" ", signature),
            (body, signature[7:]),
            (body, "sha256="),
            (body, signature[:-1] + "g"),
        ):
            assert (await deliver(gate, "/hooks/signed", body_, ("X-Hub-Signature-256", given))).status == 401
        assert (await deliver(gate, "/hooks/signed", body)).status == 401
        other = base64.b64encode(hmac.new(b"key", body, hashlib.sha512).digest()).decode()
        assert (await deliver(gate, "/hooks/base64", body, ("X-Sign", other))).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b'{"repository": NaN}', 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b'"\\ud800"', 202),
    ],
)
@story
async def test_what_cannot_be_read_is_400_and_no_event(edge: Edge, body: bytes, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        assert (await deliver(gate, "/hooks/plain", body)).status == status
        assert gate.service.gate.statistics().events == 0
        assert (await deliver(gate, "/hooks/plain", push())).status == 200, "the process lives"


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (push(owner=None), "owner"),
        (push(repo=None), "repo"),
        (push(repo=""), "repo"),
        (push(repo=["tea"]), "repo"),
        (push(repo=True), "repo"),
        (b"{}", "owner"),
        (b'"text"', "owner"),
    ],
)
@story
async def test_a_delivery_without_a_parameter_is_202_and_names_it(edge: Edge, body: bytes, missing: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        reply = await deliver(gate, "/hooks/plain", body)
        assert reply.status == 202
        assert missing.encode() in reply.body
        assert gate.service.gate.statistics().events == 0


@pytest.mark.parametrize("owner", ["ANN", "a/b", "..", "a\\b", "a\u0000", "a" * 300])
@story
async def test_a_parameter_no_viewer_could_ask_for_makes_no_topic(edge: Edge, owner: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        assert (await deliver(gate, "/hooks/plain", push(owner=owner))).status == 202
        assert len(gate.service.gate.hub) == 0


@story
async def test_a_whole_number_is_a_parameter(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/repos/ann/17/events") as it,
    ):
        await it.opening()
        assert (await deliver(gate, "/hooks/plain", push(repo=17))).status == 200
        assert said((await it.event()).data)["repository"]["name"] == 17


@story
async def test_a_body_that_is_too_large_is_413_said_or_found_out(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="limits: {webhook_body: 1KiB}")
        async with running_gate(edge, text) as gate:
            assert (await deliver(gate, "/hooks/plain", push(x="x" * 2000))).status == 413
            unannounced = gate.exchange("POST", "/hooks/plain", JSON, body=b"[" * 1100, has_more=True)
            async with unannounced as it:
                assert it.status == 413, "without waiting for its end"
            assert (await deliver(gate, "/hooks/plain", push())).status == 200


@story
async def test_only_post_is_a_delivery(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        for method in ("GET", "PUT", "DELETE"):
            reply = await gate.ask(method, "/hooks/plain")
            assert (reply.status, reply.get("allow")) == (405, "POST")


@story
async def test_a_compressed_body_is_415(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        assert (await deliver(gate, "/hooks/plain", push(), ("Content-Encoding", "gzip"))).status == 415


@story
async def test_an_event_is_named_and_shaped_as_the_route_says(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/shaped/events") as viewer,
    ):
        await viewer.opening()
        await deliver(gate, "/hooks/shaped", b'{"sender": "ann", "secret": 1}', ("X-Kind", "push"))
        event = await viewer.event()
        assert (event.type, said(event.data)) == ("push", {"who": "ann"})
        for kind in ("end", "reset", "error"):
            reply = await deliver(gate, "/hooks/shaped", b'{"sender": "eve"}', ("X-Kind", kind))
            assert reply.status == 202, "nobody forges the gate's own events"
        await deliver(gate, "/hooks/shaped", b'{"sender": "bob"}', ("X-Kind", "push"))
        assert said((await viewer.event()).data) == {"who": "bob"}


@story
async def test_a_body_that_is_no_json_is_text_and_no_text_is_base64(edge: Edge) -> None:
    route = "- {path: /x/events, webhook: {at: /x, verify: none}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate, gate.watch("/x/events") as viewer:
        await viewer.opening()
        kind = ("Content-Type", "application/octet-stream")
        await gate.ask("POST", "/x", kind, body=b"a\nid: forged\n\nevent: end")
        assert (await viewer.event()).data == "a\nid: forged\n\nevent: end"
        await gate.ask("POST", "/x", kind, body=b"\x00\xff")
        assert (await viewer.event()).data == "AP8="


@story
async def test_the_answer_comes_after_the_event_is_stored(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        for n in range(20):
            assert (await deliver(gate, "/hooks/plain", push(n=n))).status == 200
            assert gate.service.gate.statistics().events == n + 1
