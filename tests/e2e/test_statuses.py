"""Which status answers what, so that an EventSource does the right thing (WIRE.md, "Statuses")."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from tests.e2e.client import Pair, RawSocket, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, before, free_port, running_gate, said, story
from tests.upstream.scripted import Call, answer

ROUTE = """
- path: /orders/{id}/events
  params: {id: "[0-9]{1,12}"}
  query: {status: "open|paid"}
  poll: {get: "/orders/{id}", every: 50ms}
"""
PAGE = ("Origin", "https://app.example.com")
CORS = "cors: {origins: [https://app.example.com], credentials: true}"


async def turned_away(viewer: Viewer) -> int:
    """The stream is `retry:` and the end; returns the retry."""
    assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
    retry = await viewer.opening()
    assert await viewer.rest() == []
    assert bytes(viewer.raw) == b"retry: %d\n:\n" % retry
    assert 5000 <= retry <= 15000
    return retry


# The first poll


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_a_cold_topic_passes_on_what_concerns_the_viewer(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=CORS)) as gate:
        api.fail("/orders/17", status)
        reply = await gate.ask("GET", "/orders/17/events", PAGE)
        assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
        assert said(reply.body)["status"] == status
        assert b"secret" not in reply.body
        assert reply.get("access-control-allow-origin") == PAGE[1], "so that the page can read it"
        assert reply.get("access-control-allow-credentials") == "true"
        assert "Origin" in (reply.get("vary") or "")
        reasons = [denial.reason for denial in gate.service.gate.denials]
        assert reasons == ([f"the upstream answered {status}"] if status in (401, 403) else []), "for the operator"
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events") as viewer:
            assert said((await viewer.event()).data) == {"id": 17}, "it is asked again for the next viewer"


@pytest.mark.parametrize("status", [500, 502, 503, 429, 400, 418])
@story
async def test_a_cold_topic_whose_upstream_is_in_trouble_opens_with_a_fault(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.fail("/orders/17", status)
        async with gate.watch("/orders/17/events") as viewer:
            assert viewer.status == 200
            fault = await viewer.event()
            assert fault.type == "fault"
            told = said(fault.data)
            assert (told["reason"], told["status"]) == ("upstream", status)
            assert isinstance(told["message"], str)
            assert b"id:" not in viewer.raw
            await api.until_asked_again("/orders/17", 2)
            async with gate.watch("/orders/17/events") as newcomer:
                assert (await newcomer.event()).type == "fault", "a newcomer during the outage is told too"
            api.put("/orders/17", {"id": 17})
            assert [(await viewer.event()).type, (await viewer.event()).type] == ["recovered", ""]
            assert viewer.raw.count(b"event: fault") == 1


@story
async def test_an_upstream_that_refuses_is_a_fault_without_status_and_recovers(edge: Edge) -> None:
    port = free_port()
    async with LegacyApi(port) as api:
        text = before(api, ROUTE)
    async with running_gate(edge, text) as gate, gate.watch("/orders/17/events") as viewer:
        fault = await viewer.event()
        assert (fault.type, said(fault.data)["status"], said(fault.data)["reason"]) == ("fault", None, "upstream")
        assert str(port) not in fault.data
        async with LegacyApi(port) as api:
            api.put("/orders/17", {"id": 17})
            assert [(await viewer.event()).type, (await viewer.event()).type] == ["recovered", ""]


@story
async def test_an_upstream_that_is_silent_is_a_fault_without_status(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, read="200ms")) as gate:
        api.hold("/orders/17")
        async with gate.watch("/orders/17/events") as viewer:
            fault = await viewer.event(2)
            assert (fault.type, said(fault.data)["status"]) == ("fault", None)


@story
async def test_an_upstream_that_hangs_up_or_lies_about_its_length_is_a_fault(edge: Edge) -> None:
    async def hang_up(call: Call) -> None:
        call.reset()

    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.serve("/orders/2", answer(b'{"cut": tr', length=5000))
        api.answer_with(hang_up)
        async with gate.watch("/orders/1/events") as viewer:
            assert (await viewer.event()).type == "fault"


# The end


@pytest.mark.parametrize("status", [404, 410])
@story
async def test_a_resource_that_is_gone_ends_the_stream_for_good(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events") as viewer:
            state = await viewer.event()
            api.fail("/orders/17", status)
            end = await viewer.event()
            assert (end.type, said(end.data)) == ("end", {"reason": "gone"})
            assert (end.id or "").endswith("-2"), "an event of the topic"
            assert await viewer.rest() == []
        asked = len(api.requests)
        comeback = await gate.ask("GET", "/orders/17/events", ("Last-Event-ID", end.id or ""))
        assert (comeback.status, comeback.body) == (204, b"")
        comeback = await gate.ask("GET", f"/orders/17/events?lastEventId={end.id}")
        assert comeback.status == 204
        async with gate.watch("/orders/17/events", cursor=state.id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await viewer.rest() == [end], "who missed the end gets it"
        async with gate.watch("/orders/17/events") as viewer:
            assert await viewer.rest() == [state, end], "a newcomer gets the last state and the end"
        async with gate.watch("/orders/17/events", cursor="unknown-1") as viewer:
            assert [event.type for event in await viewer.rest()] == ["reset", "", "end"]
        assert len(api.requests) == asked, "nothing is polled any more"


@story
async def test_statuses_that_the_route_does_not_call_gone_are_trouble(edge: Edge) -> None:
    route = "- {path: /x/events, poll: {get: /x, every: 50ms, gone: [410]}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", {"n": 1})
        async with gate.watch("/x/events") as viewer:
            await viewer.event()
            api.fail("/x", 404)
            fault = await viewer.event()
            assert (fault.type, said(fault.data)["status"]) == ("fault", 404)
            api.fail("/x", 410)
            assert (await viewer.until("end"))[-1].type == "end"


@story
async def test_an_outage_is_one_fault_and_one_recovered_and_the_stream_stays(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"n": 1})
        async with gate.watch("/orders/17/events") as viewer:
            first = await viewer.event()
            for status in (503, 500, 429):
                api.fail("/orders/17", status)
                await api.until_asked_again("/orders/17", 2)
            api.put("/orders/17", {"n": 2})
            events = [await viewer.event() for _ in range(3)]
            assert [event.type for event in events] == ["fault", "recovered", ""]
            assert (events[-1].id or "").endswith("-2"), "neither takes an offset"
            api.fail("/orders/17", 503)
            assert (await viewer.event()).type == "fault"
            api.put("/orders/17", {"n": 2})
            assert (await viewer.event()).type == "recovered", "at once, though nothing has changed"
            async with gate.watch("/orders/17/events", cursor=first.id) as late:
                assert said((await late.event()).data) == {"n": 2}, "neither is replayed"


@story
async def test_forwarded_credentials_that_are_no_longer_good_end_the_stream(edge: Edge) -> None:
    route = "- {path: /me/events, poll: {get: /me, every: 50ms, forward: [authorization]}}"
    me = ("Authorization", "Bearer a")
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/me", {"n": 1})
        async with gate.watch("/me/events", me) as viewer:
            state = await viewer.event()
            api.fail("/me", 401)
            events = await viewer.rest()
            assert [(event.type, said(event.data)["reason"]) for event in events] == [("end", "revoked")]
            assert b"id:" not in viewer.raw.partition(b"event: end")[2]
        reply = await gate.ask("GET", "/me/events", me, ("Last-Event-ID", state.id or ""))
        assert reply.status == 401, "not 204, and not the state"


# Limits


@story
async def test_more_clients_than_allowed_are_told_to_come_back_later(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {clients: 2}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events") as first:
                await first.event()
                async with gate.watch("/orders/17/events") as second:
                    await second.event()
                    async with gate.watch("/orders/17/events") as third:
                        await turned_away(third)
                    async with gate.watch("/orders/17/events", cursor="x-1") as third:
                        await turned_away(third)
                await gate.until_clients(1)
                async with gate.watch("/orders/17/events") as fourth:
                    await fourth.event()


@story
async def test_more_clients_of_one_address_than_allowed_are_told_to_come_back_later(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {clients_per_ip: 1}")
        async with running_gate(edge, text, server="trusted_proxies: [127.0.0.1/32]") as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events", ("X-Forwarded-For", "192.0.2.1")) as first:
                await first.event()
                async with gate.watch("/orders/17/events", ("X-Forwarded-For", "192.0.2.1")) as second:
                    await turned_away(second)
                async with gate.watch("/orders/17/events", ("X-Forwarded-For", "192.0.2.2")) as other:
                    await other.event()


@story
async def test_an_untrusted_peer_cannot_choose_its_address(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {clients_per_ip: 1}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events", ("X-Forwarded-For", "192.0.2.1")) as first:
                await first.event()
                async with gate.watch("/orders/17/events", ("X-Forwarded-For", "192.0.2.2")) as second:
                    await turned_away(second)


@story
async def test_more_topics_than_allowed_are_told_to_come_back_later(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {topics: 2}")
        async with running_gate(edge, text) as gate:
            for id_ in (1, 2, 3):
                api.put(f"/orders/{id_}", {"id": id_})
            async with gate.watch("/orders/1/events") as one, gate.watch("/orders/2/events") as two:
                await one.event()
                await two.event()
                async with gate.watch("/orders/3/events") as three:
                    await turned_away(three)
                async with gate.watch("/orders/1/events") as again:
                    await again.event()
            assert not api.asked_for("/orders/3")


@story
async def test_retries_of_those_turned_away_differ(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {clients: 1}")
        async with running_gate(edge, text) as gate, AsyncExitStack() as stack:
            api.put("/orders/17", {"id": 17})
            first = await stack.enter_async_context(gate.watch("/orders/17/events"))
            await first.event()
            retries = set()
            for _ in range(20):
                async with gate.watch("/orders/17/events") as viewer:
                    retries.add(await turned_away(viewer))
            assert len(retries) > 10


# Methods, Accept, and what matches


@story
async def test_head_has_the_stream_s_head_and_no_body_and_polls_nothing(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"id": 17})
        reply = await gate.ask("HEAD", "/orders/17/events")
        assert (reply.status, reply.get("content-type"), reply.body) == (200, "text/event-stream", b"")
        assert reply.get("content-length") in (None, "0")
        assert not api.requests


@story
async def test_options_without_an_origin_says_what_is_allowed(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        reply = await gate.ask("OPTIONS", "/orders/17/events")
        assert (reply.status, reply.body) == (204, b"")
        assert {"GET", "HEAD", "OPTIONS"} <= set((reply.get("allow") or "").replace(" ", "").split(","))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@story
async def test_other_methods_are_405_and_told_which_are_allowed(edge: Edge, method: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=CORS)) as gate:
        reply = await gate.ask(method, "/orders/17/events", PAGE, body=b"{}")
        assert (reply.status, reply.get("content-type")) == (405, "application/problem+json")
        assert {"GET", "HEAD", "OPTIONS"} <= set((reply.get("allow") or "").replace(" ", "").split(","))
        assert reply.get("access-control-allow-origin") == PAGE[1], "errors carry it too"
        assert not api.requests


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("", 200),
        ("*/*", 200),
        ("text/*", 200),
        ("text/event-stream", 200),
        ("Text/Event-Stream, application/json;q=0.9", 200),
        ("text/html, */*;q=0.1", 200),
        ("application/xml", 406),
        ("text/html", 406),
        ("text/event-stream;q=0, text/*", 406),
    ],
)
@story
async def test_accept_decides_whether_there_is_a_stream(edge: Edge, accept: str | None, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=CORS)) as gate:
        api.put("/orders/17", {"id": 17})
        fields = [] if accept is None else [("Accept", accept)]
        async with gate.exchange("GET", "/orders/17/events", PAGE, *fields) as it:
            assert it.status == status
            viewer = Viewer(it)
            if status == 200:
                await viewer.event()
            else:
                assert viewer.get("access-control-allow-origin") == PAGE[1]
                assert not api.requests


@story
async def test_a_negotiating_route_answers_only_who_names_the_type(edge: Edge) -> None:
    routes = """
    - {path: "/orders/{id}", negotiate: true, poll: {get: "/orders/{id}", every: 50ms}}
    - {path: "/{rest:path}", proxy: {}}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, routes)) as gate:
        api.put("/orders/17", {"id": 17})
        for accept in ([("Accept", "*/*")], [("Accept", "application/json")], [("Accept", "text/*")], []):
            plain = await gate.ask("GET", "/orders/17", *accept)
            assert said(plain.body) == {"id": 17}
            assert plain.get("content-type") == "application/json"
        async with gate.watch("/orders/17") as viewer:
            assert viewer.get("content-type") == "text/event-stream"
            assert "Accept" in (viewer.get("vary") or "")
            await viewer.event()
        changed = await gate.ask("PATCH", "/orders/17", body=b'{"id": 18}')
        assert (changed.status, said(changed.body)) == (200, {"id": 18}), "other methods pass through"


@pytest.mark.parametrize(
    "path",
    [
        "/orders/x/events",
        "/orders/1234567890123/events",
        "/orders//events",
        "/orders/1%2f2/events",
        "/orders/..%2f1/events",
        "/orders/%2e%2e/events",
        "/orders/1%00/events",
        "/orders/1%5c/events",
        "/orders/%zz/events",
        "/orders/17/events/",
        "/Orders/17/events",
        "/orders/17/events?status=closed",
        "/orders/17/events?status=open%0a",
        "/orders/17/events?status=open&status=closed",
        "/orders/17/events?status",
        "/_ssegate/nothing",
        "/",
    ],
)
@story
async def test_what_no_route_takes_is_404_and_reaches_nobody(edge: Edge, path: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        reply = await gate.ask("GET", path)
        assert (reply.status, reply.get("content-type")) == (404, "application/problem+json")
        assert not api.requests


@story
async def test_query_parameters_that_are_not_named_are_ignored(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events?utm=1&status=paid&utm=%ff") as viewer:
            await viewer.event()
        assert {asked.target for asked in api.requests} == {"/orders/17"}


@story
async def test_http_1_0_gets_a_stream_that_ends_with_its_connection(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"id": 17})
        async with RawSocket(gate.port, tls=edge.tls) as it:
            it.writer.write(b"GET /orders/17/events HTTP/1.0\r\n\r\n")
            head = await it.until(b"\r\n\r\n")
            assert b" 200 " in head
            assert b"transfer-encoding" not in head.lower()
            assert (await it.until(b'data: {"id":17}\n')).startswith(b"retry: ")


# CORS


def allowed(fields: list[Pair]) -> dict[str, str]:
    """The CORS fields of a response."""
    return {name: value for name, value in fields if name.startswith("access-control-")}


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://app.example.com", True),
        ("https://a.preview.example.com", True),
        ("https://a.b.preview.example.com", True),
        ("https://preview.example.com", False),
        ("http://app.example.com", False),
        ("https://app.example.com:444", False),
        ("https://app.example.com.evil.test", False),
        ("https://evil.test/.preview.example.com", False),
        ("https://evilpreview.example.com", False),
        ("null", False),
        ("", False),
    ],
)
@story
async def test_an_origin_is_echoed_exactly_or_told_nothing(edge: Edge, origin: str, is_allowed: bool) -> None:
    more = 'cors: {origins: [https://app.example.com, "https://*.preview.example.com"], credentials: true}'
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=more)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events", ("Origin", origin)) as viewer:
            fields = allowed(viewer.headers)
            assert "Origin" in (viewer.get("vary") or ""), "for both: a cache must not mix them up"
            assert viewer.status == 200
        if not is_allowed:
            assert fields == {}
            return
        assert fields["access-control-allow-origin"] == origin
        assert fields["access-control-allow-credentials"] == "true"
        exposed = "ssegate-resumed, ssegate-stream, ssegate-cursor, ssegate-ended, retry-after"
        assert fields["access-control-expose-headers"] == exposed


@story
async def test_a_preflight_is_answered_for_ten_minutes(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=CORS)) as gate:
        asking = (("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "last-event-id"))
        reply = await gate.ask("OPTIONS", "/orders/17/events", PAGE, *asking)
        fields = allowed(reply.headers)
        assert reply.status == 204
        assert fields["access-control-allow-origin"] == PAGE[1]
        assert fields["access-control-max-age"] == "600"
        assert "GET" in fields["access-control-allow-methods"]
        named = set(fields["access-control-allow-headers"].replace(" ", "").lower().split(","))
        assert {"authorization", "last-event-id", "cache-control", "content-type"} <= named
        foreign = await gate.ask("OPTIONS", "/orders/17/events", ("Origin", "https://evil.test"), *asking)
        assert allowed(foreign.headers) == {}
        assert not api.requests


@story
async def test_errors_carry_cors_too(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more=CORS)) as gate:
        for path, accept in (
            ("/orders/x/events", "*/*"),
            ("/orders/1/events?status=no", "*/*"),
            ("/orders/1/events", "image/png"),
        ):
            reply = await gate.ask("GET", path, PAGE, ("Accept", accept))
            assert reply.status in (404, 406)
            assert reply.get("access-control-allow-origin") == PAGE[1], path
            assert "Origin" in (reply.get("vary") or ""), path


@story
async def test_those_turned_away_can_read_that_they_are(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more=f"{CORS}\nlimits: {{clients: 1}}")
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})
            async with gate.watch("/orders/17/events") as first:
                await first.event()
                async with gate.watch("/orders/17/events", PAGE) as second:
                    assert second.get("access-control-allow-origin") == PAGE[1]
                    await turned_away(second)


@story
async def test_everyone_may_read_without_credentials(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE, more='cors: {origins: ["*"]}')) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events", ("Origin", "https://any.test")) as viewer:
            fields = allowed(viewer.headers)
            assert fields["access-control-allow-origin"] in ("*", "https://any.test")
            assert "access-control-allow-credentials" not in fields


@story
async def test_without_cors_no_origin_is_told_anything(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE)) as gate:
        api.put("/orders/17", {"id": 17})
        async with gate.watch("/orders/17/events", PAGE) as viewer:
            assert allowed(viewer.headers) == {}


@story
async def test_proxied_responses_keep_the_backend_s_cors_and_get_none(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, '- {path: "/{rest:path}", proxy: {}}', more=CORS)
        async with running_gate(edge, text) as gate:
            api.serve("/a", answer(b"x", (b"Access-Control-Allow-Origin", b"https://b.test")))
            api.serve("/b", answer(b"x"))
            assert allowed((await gate.ask("GET", "/a", PAGE)).headers) == {
                "access-control-allow-origin": "https://b.test"
            }
            assert allowed((await gate.ask("GET", "/b", PAGE)).headers) == {}


@story
async def test_many_that_open_a_cold_topic_together_cost_one_request(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE.replace("50ms", "10s"))
        async with running_gate(edge, text) as gate:
            api.put("/orders/17", {"id": 17})

            async def state() -> object:
                async with gate.watch("/orders/17/events") as viewer:
                    return json.loads((await viewer.event()).data)

            assert await asyncio.gather(*(state() for _ in range(50))) == [{"id": 17}] * 50
            assert len(api.requests) == 1
