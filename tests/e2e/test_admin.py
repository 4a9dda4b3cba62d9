"""What operators are told, on a listener of its own."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.client import Reply
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, before, running_gate, story

ROUTES = """
- path: /orders/{id}/events
  poll: {get: "/orders/{id}?token=sesame", every: 50ms, forward: [authorization]}
"""


def figures(reply: Reply) -> dict[str, float]:
    """The samples by name and labels, these in the order of their names: `ssegate_polls_total{304,api}`."""
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            labels = ",".join(value for _, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.parametrize(("path", "body"), [("/livez", b"alive\n"), ("/readyz", b"ready\n")])
@story
async def test_a_gate_that_runs_is_alive_and_ready(edge: Edge, path: str, body: bytes) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        reply = await gate.admin.ask("GET", path)
        assert (reply.status, reply.body) == (200, body)
        head = await gate.admin.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")


@story
async def test_the_public_listener_tells_nothing_of_it(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await gate.ask("GET", path)).status == 404
            assert (await gate.admin.ask("POST", path)).status == 405
        assert (await gate.admin.ask("GET", "/orders/1/events")).status == 404


@story
async def test_metrics_tell_what_has_happened(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        api.put("/orders/17", {"n": 1})
        me = ("Authorization", "Bearer hush")
        async with gate.watch("/orders/17/events", me) as viewer, gate.watch("/orders/17/events", me) as other:
            await viewer.event()
            await other.event()
            api.put("/orders/17", {"n": 2})
            await viewer.event()
            await other.event()
            await api.until_asked_again("/orders/17", 2)
            async with gate.watch("/orders/17/events", me, cursor="x-1") as lost:
                await lost.until("")
            api.fail("/orders/17", 503)
            await viewer.until("fault")
            reply = await gate.admin.ask("GET", "/metrics")
            assert reply.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
            told = figures(reply)
            assert told["ssegate_streams"] in (2, 3), "the third may have left just now"
            assert told["ssegate_streams_opened_total"] == 3
            assert told["ssegate_topics"] == told["ssegate_topics_watched"] == 1
            assert told["ssegate_events_total"] == 2
            assert told["ssegate_resets_total"] == 1
            assert told["ssegate_faults_total"] == 1
            assert told["ssegate_polls_total{200,api}"] == 2
            assert told["ssegate_polls_total{304,api}"] >= 1
            assert told["ssegate_polls_total{503,api}"] >= 1
            assert 0 < told["ssegate_polls_304_share{api}"] < 1
            assert told["ssegate_polls_failing{api}"] == 1
            assert told["ssegate_upstream_requests_avoided_total{api}"] >= 2
            assert told["ssegate_upstream_requests_total{api}"] == len(api.requests)
            assert told["ssegate_stream_bytes_total"] >= len(viewer.raw) + len(other.raw)
            assert told["ssegate_change_to_client_seconds_count"] >= 2
            assert told["ssegate_change_to_client_seconds_bucket{0.25}"] >= 2, "two deliveries on an idle machine"
            assert b"sesame" not in reply.body
            assert b"hush" not in reply.body
        await gate.until_clients(0)
        assert figures(await gate.admin.ask("GET", "/metrics"))["ssegate_streams"] == 0


@story
async def test_metrics_tell_who_was_turned_away_and_why(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTES, more="limits: {clients: 1}")
        async with running_gate(edge, text, admin=True) as gate:
            api.put("/orders/17", {"n": 1})
            async with gate.watch("/orders/17/events") as viewer:
                await viewer.event()
                async with gate.watch("/orders/17/events") as second:
                    await second.rest()
            told = figures(await gate.admin.ask("GET", "/metrics"))
            assert told["ssegate_streams_refused_total{clients}"] == 1


@story
async def test_a_connection_that_breaks_off_is_counted_out(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTES), admin=True) as gate:
        api.put("/orders/17", {"n": 1})
        async with gate.watch("/orders/17/events") as viewer:
            await viewer.event()
            viewer.exchange.reset()
        await gate.until_clients(0)
        assert len(gate.service.gate.hub) == 1, "the topic stays for its history"
