"""Webhooks of every scheme over the network: proven, greeted, told once, to every route they concern (WIRE.md, "Webhooks")."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook as StandardWebhook

from ssegate.core.scheme import GitHub
from tests.e2e.client import PATIENCE, Pair, Reply
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, make_config, running_gate, said, story

STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

ROUTES = f"""
- path: /standard/events
  webhook: {{at: /hooks/standard, verify: {{standard: {{secret: {STANDARD}}}}}}}
- path: /stripe/events
  webhook: {{at: /hooks/stripe, verify: {{stripe: {{secret: [new, whsec_old]}}}}}}
- path: /slack/events
  webhook: {{at: /hooks/slack, verify: {{slack: {{secret: quiet}}}}}}
- path: /gitlab/events
  webhook: {{at: /hooks/gitlab, verify: {{gitlab: {{secret: tanuki}}}}}}
- path: /orders/{{id}}/changes
  webhook:
    at: /hooks/cloudevents
    verify: {{cloudevents: {{token: sesame}}}}
    match: {{id: 'headers."ce-subject"'}}
  emit: {{event: "{{headers.ce-type}}", data: data}}
- path: /mail/{{id}}/events
  webhook: {{at: /hooks/graph, verify: {{msgraph: {{client_state: state}}}}, match: {{id: body.resourceData.id}}}}
- path: /repos/{{repo}}/pushes
  webhook:
    at: /hooks/github
    verify: {{github: {{secret: octo}}}}
    when: "headers.\\"x-github-event\\" == 'push'"
    match: {{repo: body.repository.name}}
- path: /all/events
  webhook: {{at: /hooks/github, verify: {{github: {{secret: octo}}}}}}
  emit: {{event: "{{headers.x-github-event}}"}}
"""

JSON = ("Content-Type", "application/json")


async def deliver(gate: RunningGate, path: str, body: bytes, *fields: Pair, kind: Pair = JSON) -> Reply:
    return await gate.ask("POST", path, kind, *fields, body=body)


def figures(reply: Reply) -> tuple[int, str | None, str | None]:
    return reply.status, reply.get("ssegate-events"), reply.get("ssegate-streams")


def github(event: str, document: Any, id_: str, secret: str = "octo") -> tuple[bytes, list[Pair]]:
    body = json.dumps(document).encode()
    signed = GitHub([secret]).sample(body, event=event, id_=id_, wall=0.0)
    return body, list(signed.headers)


def standard(body: bytes, id_: str = "msg_1", age: float = 0.0) -> list[Pair]:
    moment = datetime.fromtimestamp(int(time.time() - age), UTC)
    signature = StandardWebhook(STANDARD).sign(id_, moment, body.decode())
    return [("webhook-id", id_), ("webhook-timestamp", str(int(moment.timestamp()))), ("webhook-signature", signature)]


# Proof


@story
async def test_what_others_signed_is_taken_and_its_bytes_are_the_event(edge: Edge) -> None:
    body = b'{ "id": "evt_1",  "type": "paid" }'
    now = str(int(time.time()))
    slack = SignatureVerifier("quiet").generate_signature(timestamp=now, body=body)
    senders = {
        "standard": standard(body),
        "stripe": [("Stripe-Signature", stripe.WebhookSignature.generate_signature_header(body.decode(), "whsec_old"))],
        "slack": [("X-Slack-Request-Timestamp", now), ("X-Slack-Signature", slack)],
        "gitlab": [("X-Gitlab-Token", "tanuki")],
    }
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        for name, fields in senders.items():
            async with gate.watch(f"/{name}/events") as viewer:
                await viewer.opening()
                assert figures(await deliver(gate, f"/hooks/{name}", body, *fields)) == (200, "1", "1")
                assert (await viewer.event()).data == body.decode()


@pytest.mark.parametrize("age", [-400.0, -240.0, 240.0, 400.0])
@story
async def test_a_good_signature_counts_for_five_minutes_either_way(edge: Edge, age: float) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        reply = await deliver(gate, "/hooks/standard", b"{}", *standard(b"{}", age=age))
        assert reply.status == (200 if abs(age) < 300 else 401)


@story
async def test_a_refusal_tells_its_sender_nothing_and_the_operator_what_to_do(edge: Edge) -> None:
    good = standard(b"{}")
    hostile: dict[str, tuple[bytes, list[Pair]]] = {
        "is missing": (b"{}", good[:2]),
        "signature does not match; the body was 3 bytes": (b"{} ", good),
        "signature does not match": (b"{}", [*good[:2], ("webhook-signature", good[2][1][:-6])]),
        "no `v1,": (b"{}", [*good[:2], ("webhook-signature", "garbage")]),
        "minutes old": (b"{}", standard(b"{}", age=900)),
        "in the future": (b"{}", standard(b"{}", age=-900)),
    }
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        answers = set()
        for words, (body, fields) in hostile.items():
            reply = await deliver(gate, "/hooks/standard", body, *fields)
            assert reply.status == 401
            answers.add(reply.body)
            (newest, *_) = said((await gate.admin.ask("GET", "/webhooks")).body)
            assert words in newest["outcome"]
        assert len(answers) == 1, "one answer, whatever was wrong"
        assert gate.service.gate.statistics().events == 0


# Handshakes


@story
async def test_slack_gets_its_challenge_back_once_it_has_signed_for_it(edge: Edge) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "3eZbrw1aB"}).encode()
    now = str(int(time.time()))
    signature = SignatureVerifier("quiet").generate_signature(timestamp=now, body=body)
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        unsigned = await deliver(gate, "/hooks/slack", body)
        assert (unsigned.status, b"3eZbrw1aB" in unsigned.body) == (401, False)
        fields = (("X-Slack-Request-Timestamp", now), ("X-Slack-Signature", str(signature)))
        reply = await deliver(gate, "/hooks/slack", body, *fields)
        assert (reply.status, reply.body) == (200, b"3eZbrw1aB")
        assert (reply.get("content-type") or "").startswith("text/plain")
        assert gate.service.gate.statistics().events == 0


@story
async def test_microsoft_graph_gets_its_validation_token_back_decoded(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        target = "/hooks/graph?validationToken=Validation%3A+Testing+%3Cb%3E%C3%A9"
        reply = await gate.ask("POST", target, ("Content-Type", "text/plain"))
        assert (reply.status, reply.body) == (200, "Validation: Testing <b>é".encode())
        assert (reply.get("content-type") or "").startswith("text/plain")
        assert reply.get("x-content-type-options") == "nosniff"


@story
async def test_a_sender_of_cloudevents_is_told_that_it_may(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        fields = (("WebHook-Request-Origin", "eventemitter.example.com"), ("WebHook-Request-Rate", "120"))
        reply = await gate.ask("OPTIONS", "/hooks/cloudevents", *fields)
        assert reply.status == 200
        assert reply.get("webhook-allowed-origin") == "eventemitter.example.com"
        assert reply.get("webhook-allowed-rate") == "*"
        assert (await gate.ask("OPTIONS", "/hooks/cloudevents")).status == 405
        assert (await gate.ask("OPTIONS", "/hooks/github", *fields)).status == 405


@story
async def test_githubs_ping_is_answered_and_is_no_event(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate:
        body, fields = github("ping", {"zen": "Keep it logically awesome."}, "p-1")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "0", "0")
        assert gate.service.gate.statistics().events == 0
        assert (await deliver(gate, "/hooks/github", body, fields[0])).status == 401, "it has to be signed too"


@story
async def test_nobody_is_greeted_at_a_hub_callback_that_was_not_asked_for(edge: Edge) -> None:
    route = "- {path: /feed/events, webhook: {at: /hooks/feed, verify: {websub: {secret: x}}}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        query = "hub.mode=subscribe&hub.topic=http://x/&hub.challenge=c&hub.lease_seconds=60"
        assert (await gate.ask("GET", f"/hooks/feed?{query}")).status in (404, 405)
        reply = await deliver(gate, "/hooks/feed", b"<feed/>", ("X-Hub-Signature", "sha256=00"))
        assert figures(reply) == (202, "0", "0"), "a mismatch is taken and dropped"


# Once, and to everyone


@story
async def test_one_delivery_feeds_each_route_that_it_concerns(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/repos/tea/pushes") as pushes,
        gate.watch("/all/events") as everything,
    ):
        await pushes.opening()
        await everything.opening()
        body, fields = github("push", {"repository": {"name": "tea"}, "n": 1}, "d-1")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "2", "2")
        body, fields = github("issues", {"no": "repository"}, "d-2")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "1", "1"), "`when` leaves it out"
        body, fields = github("push", {"no": "repository", "n": 3}, "d-3")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "1", "1")
        body, fields = github("push", {"repository": {"name": "tea"}, "n": 4}, "d-4")
        await deliver(gate, "/hooks/github", body, *fields)
        assert [said((await pushes.event()).data)["n"] for _ in range(2)] == [1, 4]
        assert [(await everything.event()).type for _ in range(4)] == ["push", "issues", "push", "push"]


@story
async def test_a_delivery_that_is_repeated_is_200_and_no_event(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        body, fields = github("push", {"repository": {"name": "tea"}}, "d-1")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "2", "0")
        assert figures(await deliver(gate, "/hooks/github", body, *fields)) == (200, "0", "0")
        assert gate.service.gate.statistics().events == 2
        metrics = (await gate.admin.ask("GET", "/metrics")).body.decode()
        assert 'ssegate_webhook_duplicates_total{webhook="/hooks/github"} 2.0' in metrics
        assert 'ssegate_webhooks_total{status="200",webhook="/hooks/github"} 2.0' in metrics


@story
async def test_what_lacked_a_parameter_may_come_again(edge: Edge) -> None:
    """It was no event, so its repetition is not one too many, once `match` is right."""
    route = (
        "- {path: '/x/{id}', webhook: {at: /hooks/x, verify: none, match: {id: body.%s}, dedupe: {by: body.delivery}}}"
    )
    async with LegacyApi() as api, running_gate(edge, before(api, route % "wrong")) as gate:
        body = b'{"delivery": "d-1", "id": "17"}'
        assert (await deliver(gate, "/hooks/x", body)).status == 202
        gate.service.gate.reload(make_config(edge.yaml(0, before(api, route % "id"))))
        assert figures(await deliver(gate, "/hooks/x", body)) == (200, "1", "0")
        assert figures(await deliver(gate, "/hooks/x", body)) == (200, "0", "0")


@story
async def test_what_has_been_taken_is_known_after_a_reload(edge: Edge) -> None:
    route = "- {path: /x/events, heartbeat: %s, webhook: {at: /hooks/x, verify: none, dedupe: {by: body.id}}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route % "15s")) as gate:
        assert figures(await deliver(gate, "/hooks/x", b'{"id": 1}')) == (200, "1", "0")
        gate.service.gate.reload(make_config(edge.yaml(0, before(api, route % "16s"))))
        assert figures(await deliver(gate, "/hooks/x", b'{"id": 1}')) == (200, "0", "0")


@story
async def test_cloudevents_are_one_event_each_in_whichever_mode_they_come(edge: Edge) -> None:
    token = ("Authorization", "Bearer sesame")
    one = {"specversion": "1.0", "type": "paid", "source": "/shop", "subject": "17", "data": {"n": 1}}
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/orders/17/changes") as viewer,
    ):
        await viewer.opening()
        binary = [(f"ce-{name}", value) for name, value in one.items() if isinstance(value, str)]
        reply = await deliver(gate, "/hooks/cloudevents", b'{"n":1}', token, *binary, ("ce-id", "1"))
        assert figures(reply) == (200, "1", "1")
        kind = ("Content-Type", "application/cloudevents+json; charset=utf-8")
        body = json.dumps({**one, "id": "2"}).encode()
        assert figures(await deliver(gate, "/hooks/cloudevents", body, token, kind=kind)) == (200, "1", "1")
        kind = ("Content-Type", "application/cloudevents-batch+json")
        batch = [{**one, "id": "2"}, {**one, "id": "3"}, {**one, "id": "4", "subject": "18"}]
        target = "/hooks/cloudevents?access_token=sesame"
        reply = await deliver(gate, target, json.dumps(batch).encode(), kind=kind)
        assert figures(reply) == (200, "2", "1"), "the one that came before is not told again"
        for _ in range(3):
            event = await viewer.event()
            assert (event.type, event.data) == ("paid", '{"n":1}')
        assert (await deliver(gate, "/hooks/cloudevents", b"[]", token, kind=kind)).status == 200
        assert (await deliver(gate, "/hooks/cloudevents", b"{}", token, kind=kind)).status == 400


@story
async def test_each_notification_of_microsoft_graph_is_an_event(edge: Edge) -> None:
    def notes(*states: str) -> bytes:
        return json.dumps(
            {"value": [{"clientState": s, "resourceData": {"id": "m"}, "n": n} for n, s in enumerate(states)]}
        ).encode()

    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/mail/m/events") as viewer,
    ):
        await viewer.opening()
        assert figures(await deliver(gate, "/hooks/graph", notes("state", "state"))) == (200, "2", "2")
        first, second = said((await viewer.event()).data), said((await viewer.event()).data)
        assert (first, second["n"]) == ({"resourceData": {"id": "m"}, "n": 0}, 1), "without what proves it"
        assert (await deliver(gate, "/hooks/graph", notes("state", "forged"))).status == 401
        assert (await deliver(gate, "/hooks/graph", b"{")).status == 401
        assert gate.service.gate.statistics().events == 2


@story
async def test_a_form_of_github_is_the_document_in_it(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        running_gate(edge, before(api, ROUTES)) as gate,
        gate.watch("/repos/tea/pushes") as it,
    ):
        await it.opening()
        body = b"payload=%7B%22repository%22%3A%7B%22name%22%3A%22tea%22%7D%7D"
        signed = GitHub(["octo"]).sample(body, event="push", id_="f-1", wall=0.0)
        kind = ("Content-Type", "application/x-www-form-urlencoded")
        assert (await deliver(gate, "/hooks/github", body, *signed.headers, kind=kind)).status == 200
        assert (await it.event()).data == '{"repository":{"name":"tea"}}'


# Thin webhooks


THIN = """
- path: /orders/{id}/events
  poll: {get: "/orders/{id}", every: 1h}
  webhook: {at: /hooks/orders, verify: none, match: {id: body.id}}
- path: /lists/{shop}/{kind}
  poll: {get: "/lists/{shop}?kind={kind}", every: 1h}
  webhook: {at: /hooks/lists, verify: none, then: poll, match: {shop: body.shop}}
"""


@story
async def test_a_thin_webhook_makes_its_topic_poll_at_once(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, THIN)) as gate:
        for n in (17, 18):
            api.put(f"/orders/{n}", {"n": 1})
        async with gate.watch("/orders/17/events") as viewer, gate.watch("/orders/18/events") as other:
            assert said((await viewer.event()).data) == {"n": 1}
            await other.event()
            api.put("/orders/17", {"n": 2})
            assert figures(await deliver(gate, "/hooks/orders", b'{"id": 17}')) == (200, "0", "1")
            assert said((await viewer.event()).data) == {"n": 2}
            assert len(api.asked_for("/orders/18")) == 1
        assert figures(await deliver(gate, "/hooks/orders", b'{"id": 19}')) == (200, "0", "0"), "nobody watches"
        assert (await deliver(gate, "/hooks/orders", b"{}")).status == 202


@story
async def test_a_burst_of_hints_is_one_poll_and_one_behind_the_last(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, THIN)) as gate:
        api.put("/orders/17", {"n": 0})
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.event()

            async def hint() -> None:
                assert (await deliver(gate, "/hooks/orders", b'{"id": 17}')).status == 200

            await asyncio.gather(*(hint() for _ in range(30)))
            api.put("/orders/17", {"n": 1})
            await hint()
            assert said((await viewer.event()).data) == {"n": 1}
            # the first, one for each second that the burst may have lasted, and one behind the last
            assert len(api.asked_for("/orders/17")) <= 5


@story
async def test_what_a_thin_webhook_does_not_name_may_be_anything(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, THIN)) as gate:
        for shop in ("a", "b"):
            api.put(f"/lists/{shop}", [1])
        async with (
            gate.watch("/lists/a/new") as new,
            gate.watch("/lists/a/old") as old,
            gate.watch("/lists/b/new") as other,
        ):
            for viewer in (new, old, other):
                await viewer.event()
            for shop in ("a", "b"):
                api.put(f"/lists/{shop}", [1, 2])
            assert figures(await deliver(gate, "/hooks/lists", b'{"shop": "a"}')) == (200, "0", "2")
            assert said((await new.event()).data) == said((await old.event()).data) == [1, 2]
            assert len(api.asked_for("/lists/b")) == 1


@story
async def test_a_webhook_that_is_lost_costs_time_and_no_truth(edge: Edge) -> None:
    route = "- {path: /x/events, poll: {get: /x, every: 100ms}, webhook: {at: /hooks/x, verify: none}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/x/events") as viewer:
            await viewer.event()
            api.put("/x", {"n": 2})
            assert said((await viewer.event()).data) == {"n": 2}


# The diary


@story
async def test_the_diary_tells_what_became_of_each_delivery_and_no_secret(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        body, fields = github("push", {"repository": {"name": "tea"}, "password": "hush"}, "d-1")
        await deliver(gate, "/hooks/github", body, *fields)
        await deliver(gate, "/hooks/github", body, *fields)
        await deliver(gate, "/hooks/github", body, ("X-Hub-Signature-256", "sha256=" + "0" * 64))
        await deliver(gate, "/hooks/gitlab", b"{}", ("X-Gitlab-Token", "guess"))
        await deliver(gate, "/hooks/cloudevents?access_token=guess", b"{}")
        reply = await gate.admin.ask("GET", "/webhooks")
        assert (reply.status, reply.get("content-type")) == (200, "application/json")
        entries = said(reply.body)
        told = [(each["webhook"], each["status"], each["outcome"]) for each in reversed(entries)]
        mismatch = f"signature does not match; the body was {len(body)} bytes; is the secret the one shown on the provider's page?"
        assert told == [
            ("/hooks/github", 200, "2 events to 0 open streams"),
            ("/hooks/github", 200, "taken before: 2 events left out"),
            ("/hooks/github", 401, mismatch),
            ("/hooks/gitlab", 401, "X-Gitlab-Token is another than the secret"),
            ("/hooks/cloudevents", 401, "`access_token` is another than the token in `verify`"),
        ]
        assert (entries[-1]["event"], entries[-1]["delivery"], entries[-1]["bytes"]) == ("push", "d-1", len(body))
        for secret in (b"octo", b"tanuki", b"sesame", b"guess", b"hush", fields[-1][1].encode()):
            assert secret not in reply.body
        one = await gate.admin.ask("GET", f"/webhooks/{entries[0]['id']}")
        assert said(one.body) == entries[0]
        assert (await gate.ask("GET", "/webhooks")).status == 404, "not on the public side"


@story
async def test_a_delivery_is_made_again_as_if_it_came_for_the_first_time(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        body, fields = github("push", {"repository": {"name": "tea"}}, "d-1")
        await deliver(gate, "/hooks/github", body, *fields)
        (entry,) = said((await gate.admin.ask("GET", "/webhooks")).body)
        async with gate.watch("/repos/tea/pushes") as viewer:
            await viewer.opening()
            again = await gate.admin.ask("POST", f"/webhooks/{entry['id']}/redeliver")
            assert again.status == 200
            assert (await viewer.event()).data == body.decode(), "though it is known"
        facts = said(again.body)
        assert (facts["redelivery_of"], facts["events"], facts["streams"]) == (entry["id"], 2, 1)
        assert facts["id"] != entry["id"]
        assert (await gate.admin.ask("POST", "/webhooks/none/redeliver")).status == 404
        assert (await gate.admin.ask("GET", f"/webhooks/{entry['id']}/redeliver")).status == 405


@story
async def test_what_was_refused_for_a_wrong_secret_can_be_made_good(edge: Edge) -> None:
    route = "- {path: /x/events, webhook: {at: /hooks/x, verify: {standard: {secret: '%s'}}}}"
    wrong = "whsec_" + "A" * 32
    async with LegacyApi() as api, running_gate(edge, before(api, route % wrong), admin=True) as gate:
        assert (await deliver(gate, "/hooks/x", b"{}", *standard(b"{}"))).status == 401
        (entry,) = said((await gate.admin.ask("GET", "/webhooks")).body)
        still = await gate.admin.ask("POST", f"/webhooks/{entry['id']}/redeliver")
        assert still.status == 401, "an operator cannot make it authentic"
        gate.service.gate.reload(make_config(edge.yaml(0, before(api, route % STANDARD))))
        assert (await gate.admin.ask("POST", f"/webhooks/{entry['id']}/redeliver")).status == 200
        assert gate.service.gate.statistics().events == 1


@story
async def test_the_diary_keeps_two_hundred_deliveries_and_not_all_of_their_bodies(edge: Edge) -> None:
    route = "- {path: /x/events, history: {events: 1}, webhook: {at: /hooks/x, verify: none}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route), admin=True) as gate:
        body = b'"' + b"x" * 300_000 + b'"'
        for _ in range(40):
            assert (await deliver(gate, "/hooks/x", body)).status == 200
        for _ in range(190):
            await deliver(gate, "/hooks/x", b"1")
        entries = said((await gate.admin.ask("GET", "/webhooks")).body)
        assert len(entries) == 200
        assert sum(each["bytes"] for each in entries if each["can_be_redelivered"]) <= 8 * 2**20
        kept = [each for each in gate.service.gate.diary if each.delivery is not None]
        assert sum(each.size for each in kept) <= 8 * 2**20


@story
async def test_a_lost_body_says_that_it_is_lost(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        body, fields = github("ping", {}, "p-1")
        await deliver(gate, "/hooks/github", b"x" * 2_000_000, *fields)
        (entry,) = said((await gate.admin.ask("GET", "/webhooks")).body)
        assert (entry["status"], entry["can_be_redelivered"]) == (413, False)
        assert (await gate.admin.ask("POST", f"/webhooks/{entry['id']}/redeliver")).status == 410
        assert body


@story
async def test_a_refusal_is_told_once_in_the_log(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ssegate.gate.deliveries")
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES)) as gate, asyncio.timeout(PATIENCE):
        for _ in range(3):
            await deliver(gate, "/hooks/gitlab", b"{}", ("X-Gitlab-Token", "guess"))
        await deliver(gate, "/hooks/gitlab", b"{}", ("X-Gitlab-Token", "tanuki"))
        refused, taken = [record.getMessage() for record in caplog.records]
        assert refused.startswith("webhook /hooks/gitlab: 401: X-Gitlab-Token is another than the secret")
        assert taken == "webhook /hooks/gitlab: deliveries are taken again"
