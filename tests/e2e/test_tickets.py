"""Tickets over real sockets: who is sold one, what it opens, when it is good again, and where it is never seen."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from ssegate.core.event import Event
from tests.e2e.calls import answered, uploading
from tests.e2e.client import PATIENCE, Pair, Reply, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, make_config, running_gate, said, story
from tests.guards import WhoAmI
from tests.tokens import AUDIENCE, ISSUER, Issuer

ISSUES = Issuer("HS256", kid=None)

AUTH = """
auth:
  session: {{forward: {{url: "{who}", send: [cookie, authorization], identity: x-user-id, cache: 30s, recheck: {recheck}}}}}
  user: {{jwt: {{issuer: "{issuer}", audience: {audience}, keys: {{secret: {secret}}}, from: [header, ticket]}}}}
  closed: {{jwt: {{issuer: "{issuer}", audience: {audience}, keys: {{secret: {secret}}}, from: [header]}}}}
  partner: {{keys: {{header: x-api-key, values: {{acme: {key}}}}}}}
"""

HOOK = "webhook: {at: /hooks, verify: none, match: {id: body.id}}"

ROUTES = f"""
- path: /session/{{id}}/events
  auth: session
  {HOOK}
- path: /user/{{id}}/events
  auth: user
  {HOOK}
- path: /closed/{{id}}/events
  auth: closed
  {HOOK}
- path: /partner/{{id}}/events
  auth: partner
  {HOOK}
- path: /mixed/{{id}}/events
  auth: [closed, user, partner]
  {HOOK}
- path: /own/{{id}}/events
  auth: session
  allow: "params.id == identity"
  {HOOK}
- path: /public/{{id}}/events
  auth: none
  {HOOK}
- path: /orders/{{id}}/events
  auth: session
  poll: {{get: "/orders/{{id}}", every: 50ms}}
- path: /patched/{{id}}/events
  auth: session
  poll: {{get: "/orders/{{id}}", every: 20ms}}
  emit: {{as: patch}}
- path: /jobs/{{id}}/progress
  auth: session
  task: {{get: "/jobs/{{id}}", every: 20ms, progress: n, done: "state == 'done'", result: n}}
- path: /live
  topics: ["/session/{{id}}/events", "/user/{{id}}/events", "/public/{{id}}/events"]
- path: /guarded/{{rest:path}}
  auth: session
  proxy: {{}}
- path: /{{rest:path}}
  proxy: {{}}
"""

ADA = ("Cookie", "session=s1")
BEARER = ("Authorization", f"Bearer {ISSUES.token(exp=int(time.time()) + 3600)}")
KEY = ("X-Api-Key", "key-of-acme")
JSON = ("Content-Type", "application/json")
TICKETS = "/_ssegate/ticket"


def configuration(
    api: LegacyApi, who: WhoAmI, *, recheck: str = "60s", key: str = "key-of-acme", more: str = "", routes: str = ROUTES
) -> str:
    """All kinds of guards, each before a route that is fed at /hooks."""
    auth = AUTH.format(who=who.url, recheck=recheck, issuer=ISSUER, audience=AUDIENCE, secret=ISSUES.secret, key=key)
    return before(api, routes, more=auth + more)


@asynccontextmanager
async def selling(
    edge: Edge, *, recheck: str = "60s", more: str = "", server: str = ""
) -> AsyncIterator[tuple[RunningGate, LegacyApi, WhoAmI]]:
    """A gate that knows ada, by the session s1."""
    async with LegacyApi() as api, WhoAmI({"s1": "ada", "s2": "bob"}) as who:
        text = configuration(api, who, recheck=recheck, more=more)
        async with running_gate(edge, text, admin=True, server=server) as gate:
            yield gate, api, who


async def ask_for(gate: RunningGate, path: Any, *headers: Pair) -> Reply:
    return await gate.ask("POST", TICKETS, JSON, *headers, body=json.dumps({"path": path}).encode())


async def buy(gate: RunningGate, path: str, *headers: Pair) -> str:
    """A ticket, as it was sold."""
    reply = await ask_for(gate, path, *(headers or (ADA,)))
    assert reply.status == 200, reply.body
    ticket: str = said(reply.body)["ticket"]
    return ticket


async def post(gate: RunningGate, n: int, id_: str = "1") -> None:
    """Make an event of the topics with this id."""
    reply = await gate.ask("POST", "/hooks", JSON, body=json.dumps({"id": id_, "n": n}).encode())
    assert reply.status == 200


async def next_n(viewer: Viewer) -> tuple[int, str]:
    """The number of the next event, and its id."""
    event: Event = await viewer.event()
    assert (event.type, event.id is not None) == ("", True), event
    return said(event.data)["n"], event.id or ""


async def first_id(viewer: Viewer) -> str:
    """The id that a stream begins with by which nothing is dispatched."""
    while b"\n\n" not in viewer.raw:
        await viewer.bytes_(len(viewer.raw) + 1)
    block = bytes(viewer.raw).partition(b"\n\n")[0].splitlines()[-1]
    assert block.startswith(b"id: "), bytes(viewer.raw)
    return block[4:].decode()


async def status_of(gate: RunningGate, target: str, cursor: str | None = None) -> int:
    """How an opening is answered; what opens is closed again, and that has been noticed."""
    async with gate.watch(target, cursor=cursor) as viewer:
        status = viewer.status
    await gate.until_clients(0)
    return status


async def denials(gate: RunningGate) -> list[dict[str, Any]]:
    """The newest first."""
    listed: list[dict[str, Any]] = said((await gate.admin.ask("GET", "/denials")).body)
    return listed


async def last_reason(gate: RunningGate) -> str:
    reason: str = (await denials(gate))[0]["reason"]
    return reason


def shift_clock(monkeypatch: pytest.MonkeyPatch, *, clock: float = 0.0, wall: float = 0.0) -> None:
    """For whoever sells and takes tickets it is this much later; for the loop it is not."""
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + clock, time=lambda: time.time() + wall)
    monkeypatch.setattr("ssegate.gate.door.time", later)


# Buying


@pytest.mark.parametrize(("kind", "credential"), [("session", ADA), ("user", BEARER), ("partner", KEY)])
@story
async def test_each_kind_of_guard_sells_tickets_for_its_credential(edge: Edge, kind: str, credential: Pair) -> None:
    async with selling(edge) as (gate, _, _):
        path = f"/{kind}/1/events"
        reply = await ask_for(gate, path, credential)
        told = said(reply.body)
        assert (reply.status, reply.get("cache-control")) == (200, "no-store")
        assert (set(told), told["expires_in"], told["ticket"][:4]) == ({"ticket", "expires_in"}, 30, "sst_")
        assert len(told["ticket"]) >= 4 + 32, "192 bits"
        assert await status_of(gate, path) == 401, "without it there is nothing"
        async with gate.watch(f"{path}?ticket={told['ticket']}") as viewer:
            assert viewer.status == 200
            await post(gate, 7)
            assert (await next_n(viewer))[0] == 7


@story
async def test_a_jwt_guard_without_ticket_in_its_from_sells_none(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        reply = await ask_for(gate, "/closed/1/events", BEARER)
        assert (reply.status, reply.get("content-type")) == (403, "application/problem+json")
        assert await last_reason(gate) == "the guard sells no tickets: `ticket` is not in its `from`"
        async with gate.watch("/closed/1/events", BEARER) as viewer:
            assert viewer.status == 200


@story
async def test_of_several_guards_the_one_that_knows_the_viewer_sells(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        ticket = await buy(gate, "/mixed/1/events", KEY)
        assert await status_of(gate, f"/mixed/1/events?ticket={ticket}") == 200
        # `closed` comes first, knows the token, and sells none.
        assert (await ask_for(gate, "/mixed/1/events", BEARER)).status == 403


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/session/1/events", (), 401),
        ("/session/1/events", (("Cookie", "session=unknown"),), 401),
        ("/session/1/events", (KEY,), 401),
        ("/own/bob/events", (ADA,), 403),
        ("/own/bob/events", (), 401),
        ("/public/1/events", (ADA,), 400),
        ("/guarded/x", (ADA,), 404),
        ("/anything", (ADA,), 404),
        ("/hooks", (ADA,), 404),
        (TICKETS, (ADA,), 404),
        ("/session/a%2fb/events", (ADA,), 404),
    ],
)
@story
async def test_there_is_no_ticket_for_what_its_buyer_could_not_open(
    edge: Edge, path: str, headers: tuple[Pair, ...], status: int
) -> None:
    async with selling(edge) as (gate, api, _):
        reply = await ask_for(gate, path, *headers)
        assert reply.status == status, reply.body
        assert b"sst_" not in reply.body
        assert not api.requests, "the backend is not asked"
        if status in (401, 403):
            assert [(each["status"], each["path"]) for each in await denials(gate)] == [(status, path)]


@story
async def test_a_guard_that_is_down_sells_no_tickets(edge: Edge) -> None:
    async with selling(edge) as (gate, _, who):
        await who.go_down()
        try:
            reply = await ask_for(gate, "/session/1/events", ADA)
            assert (reply.status, (reply.get("retry-after") or "").isdigit()) == (503, True)
        finally:
            await who.come_back()


@story
async def test_a_guard_that_is_down_stops_nobody_who_has_a_ticket_already(edge: Edge) -> None:
    async with selling(edge) as (gate, _, who):
        ticket = await buy(gate, "/session/1/events")
        await who.go_down()
        try:
            assert await status_of(gate, f"/session/1/events?ticket={ticket}") == 200
        finally:
            await who.come_back()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"ticket please", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"/session/1/events"', 400),
        (b"{}", 400),
        (b'{"path": null}', 400),
        (b'{"path": 17}', 400),
        (b'{"path": ["/session/1/events"]}', 400),
        (b'{"path": ""}', 400),
        (b'{"path": "session/1/events"}', 400),
        (b'{"path": "http://127.0.0.1/session/1/events"}', 400),
        (b'{"path": "/session/1/events\\r\\nx: y"}', 400),
        (b'{"path": "/session/1/events\\u0000"}', 400),
        (b'{"path": "/session/1 /events"}', 400),
        ('{"path": "/session/ü/events"}'.encode(), 400),
        (b'{"path": "/session/\\ud800/events"}', 400),
        (b'{"path": "/session/1/events", "n": NaN}', 400),
        (b'{"path": "\xff"}', 400),
        (b'{"path": "//session/1/events"}', 404),
        (b'{"path": "/session/../events"}', 404),
        (b'{"path": "/x", "deep": ' + b"[" * 8000 + b"]" * 8000 + b"}", 400),
        (b'{"n": ' + b"9" * 6000 + b"}", 400),
        (b'{"path": "/' + b"a" * 16_384 + b'"}', 413),
        (b'{"path": "/session/' + b"a" * 16_000 + b'/events"}', 404),
    ],
)
@story
async def test_what_is_no_request_for_a_ticket_is_told_so(edge: Edge, body: bytes, status: int) -> None:
    async with selling(edge) as (gate, _, who):
        reply = await gate.ask("POST", TICKETS, JSON, ADA, body=body)
        assert (reply.status, reply.get("content-type")) == (status, "application/problem+json"), reply.body
        assert status != 400 or b"/orders/17/events" in reply.body, "it shows how"
        assert not who.requests
        assert await buy(gate, "/session/1/events")


@story
async def test_a_body_that_comes_slowly_or_grows_too_large_on_the_way_is_read_no_further_than_it_may(
    edge: Edge,
) -> None:
    async with selling(edge) as (gate, _, _):
        async with uploading(gate, TICKETS, JSON, ADA) as it:
            for piece in (b'{"pa', b'th": "/session', b'/1/events"}'):
                await it.send(piece, last=False)
            await it.send(b"", last=True)
            reply = await answered(it)
            assert (reply.status, said(reply.body)["expires_in"]) == (200, 30)
        async with uploading(gate, TICKETS, JSON, ADA) as it:
            await it.send(b'{"path": "/', last=False)
            await it.send(b"a" * 20_000, last=False)
            assert (await answered(it)).status == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@story
async def test_tickets_are_sold_by_post_alone(edge: Edge, method: str) -> None:
    async with selling(edge) as (gate, api, _):
        reply = await gate.ask(method, TICKETS, ADA)
        assert (reply.status, reply.get("allow")) == (405, "POST, OPTIONS")
        assert not api.requests, "it is the gate's own path"


CORS = "cors: {origins: [https://app.example.com], credentials: true}\n"
ORIGIN = ("Origin", "https://app.example.com")


@story
async def test_a_page_of_an_allowed_origin_may_buy_and_one_of_another_may_not(edge: Edge) -> None:
    async with selling(edge, more=CORS) as (gate, _, _):
        wish = (("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type,x-api-key"))
        reply = await gate.ask("OPTIONS", TICKETS, ORIGIN, *wish)
        assert (reply.status, reply.get("access-control-allow-methods")) == (204, "POST")
        allowed = (reply.get("access-control-allow-headers") or "").split(", ")
        assert {"x-api-key", "authorization", "content-type", "last-event-id"} <= {*allowed}
        assert (reply.get("access-control-allow-origin"), reply.get("access-control-allow-credentials")) == (
            ORIGIN[1],
            "true",
        )
        foreign = await gate.ask("OPTIONS", TICKETS, ("Origin", "https://evil.example"), *wish)
        assert not [name for name, _ in foreign.headers if name.startswith("access-control-")]
        for credential, status in ((ADA, 200), (KEY, 401)):
            reply = await ask_for(gate, "/session/1/events", ORIGIN, credential)
            assert (reply.status, reply.get("access-control-allow-origin")) == (status, ORIGIN[1])
            assert "Origin" in (reply.get("vary") or "")
        reply = await ask_for(gate, "/session/1/events", ("Origin", "https://evil.example"), ADA)
        assert reply.get("access-control-allow-origin") is None


@story
async def test_refusals_of_tickets_can_be_read_by_scripts_of_an_allowed_origin(edge: Edge) -> None:
    async with selling(edge, more=CORS) as (gate, _, _):
        for body in (b"{", b'{"path": "/nowhere"}', b'{"path": "/public/1/events"}', b"x" * 20_000):
            reply = await gate.ask("POST", TICKETS, JSON, ORIGIN, ADA, body=body)
            assert (reply.status >= 400, reply.get("access-control-allow-origin")) == (True, ORIGIN[1])
        async with gate.watch("/session/1/events?ticket=sst_unknown", ORIGIN) as viewer:
            assert (viewer.status, viewer.get("access-control-allow-origin")) == (401, ORIGIN[1])


@story
async def test_who_asks_for_tickets_too_often_is_told_to_come_later(edge: Edge) -> None:
    async with selling(edge, more="limits: {requests_per_second: 2}\n") as (gate, _, _):
        replies = [await ask_for(gate, "/session/1/events", ADA) for _ in range(4)]
        assert [reply.status for reply in replies[:2]] == [200, 200]
        turned_away = [reply for reply in replies if reply.status == 503]
        assert turned_away
        assert all((reply.get("retry-after") or "").isdigit() for reply in turned_away)


@story
async def test_a_gate_that_drains_sells_no_tickets_and_takes_none(edge: Edge) -> None:
    async with selling(edge, server="drain: {delay: 10s, timeout: 1s}") as (gate, _, _):
        ticket = await buy(gate, "/session/1/events")
        draining = asyncio.create_task(gate.service.gate.drain())
        await asyncio.sleep(0)
        try:
            assert (await ask_for(gate, "/session/1/events", ADA)).status == 503
            async with gate.watch(f"/session/1/events?ticket={ticket}") as viewer:
                assert (viewer.status, await viewer.rest(), viewer.decoder.retry_ms is not None) == (200, [], True)
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        gate.service.gate.streams.is_draining = False
        assert await status_of(gate, f"/session/1/events?ticket={ticket}") == 200, "it was not used up"


# What it opens


@story
async def test_a_ticket_opens_its_path_and_no_other(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        ticket = await buy(gate, "/session/1/events")
        for path in (
            "/session/2/events",
            "/own/ada/events",
            "/user/1/events",
            "/orders/1/events",
            "/session/%31/events",
        ):
            assert await status_of(gate, f"{path}?ticket={ticket}") == 401, path
        assert await status_of(gate, f"/live?topic=/session/1/events&ticket={ticket}") == 401
        assert await status_of(gate, f"/session/1/events?ticket={ticket}") == 200, "none of that used it up"


@story
async def test_a_ticket_is_as_good_as_it_is_whole(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        ticket = await buy(gate, "/session/1/events")
        wrong = [
            ticket[:-1],
            ticket + "A",
            ticket.upper(),
            ticket.removeprefix("sst_"),
            "sst_",
            "x" * 4000,
            "%00",
            "%ff",
        ]
        for text in wrong:
            assert await status_of(gate, f"/session/1/events?ticket={text}") == 401, text
        assert {each["reason"] for each in await denials(gate)} == {"the ticket is not known, or has run out"}
        assert await status_of(gate, f"/session/1/events?ticket={ticket}") == 200


@story
async def test_a_ticket_is_its_buyers_identity_and_that_of_nobody_else(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        ticket = await buy(gate, "/own/ada/events")
        assert (await ask_for(gate, "/own/ada/events", ("Cookie", "session=s2"))).status == 403
        # Bob's own cookie makes no difference: the ticket is who it is.
        async with gate.watch(f"/own/ada/events?ticket={ticket}", ("Cookie", "session=s2")) as viewer:
            assert viewer.status == 200
            assert gate.service.gate.streams.rights.shown_by("ada")
            assert not gate.service.gate.streams.rights.shown_by("bob")


@story
async def test_a_ticket_that_nobody_uses_within_30_seconds_is_good_no_more(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with selling(edge) as (gate, _, _):
        early, late = await buy(gate, "/session/1/events"), await buy(gate, "/session/1/events")
        shift_clock(monkeypatch, clock=28)
        assert await status_of(gate, f"/session/1/events?ticket={early}") == 200
        shift_clock(monkeypatch, clock=30)
        assert await status_of(gate, f"/session/1/events?ticket={late}") == 401
        assert (await last_reason(gate)) == "the ticket has run out"


# Once


@story
async def test_a_ticket_opens_one_stream_once(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        async with gate.watch(target) as viewer:
            assert viewer.status == 200
            begin = await first_id(viewer)
            for cursor in (None, begin, "earliest"):
                async with gate.watch(target, cursor=cursor) as other:
                    assert other.status == 401
                assert await last_reason(gate) == "the ticket's stream is open"
            await post(gate, 1)
            assert (await next_n(viewer))[0] == 1, "the first one goes on"
        await gate.until_clients(0)
        assert await status_of(gate, target) == 401
        assert "has not been sent this Last-Event-ID" in await last_reason(gate)


@story
async def test_of_two_who_come_at_once_with_one_ticket_one_gets_in(edge: Edge) -> None:
    async with selling(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        asked = api.hold("/orders/1")
        target = f"/orders/1/events?ticket={await buy(gate, '/orders/1/events')}"
        answers: asyncio.Queue[int] = asyncio.Queue()
        done = asyncio.Event()

        async def open_() -> None:
            async with gate.watch(target) as viewer:
                answers.put_nowait(viewer.status)
                await done.wait()

        tasks = [asyncio.create_task(open_()) for _ in range(4)]
        async with asyncio.timeout(PATIENCE):
            # While the first waits for the upstream, the others are told already.
            assert [await answers.get() for _ in range(3)] == [401, 401, 401]
            asked.set()
            assert await answers.get() == 200
        done.set()
        await asyncio.gather(*tasks)


@story
async def test_a_ticket_is_not_used_up_by_what_opened_no_stream(edge: Edge) -> None:
    async with selling(edge, more="limits: {clients: 1}\n") as (gate, api, _):
        orders = f"/orders/1/events?ticket={await buy(gate, '/orders/1/events')}"
        for _ in range(2):
            assert await status_of(gate, orders) == 404, "the upstream knows no such order"
        api.put("/orders/1", {"n": 1})
        reply = await gate.ask("HEAD", orders)
        assert (reply.status, reply.get("content-type")) == (200, "text/event-stream")
        assert (await gate.ask("OPTIONS", orders)).status == 204
        assert (await gate.ask("GET", orders, ("Accept", "text/html"))).status == 406
        async with gate.watch("/public/1/events") as other, gate.watch(orders) as viewer:
            assert other.status == 200
            assert (viewer.status, await viewer.rest()) == (200, []), "there is room for one"
        await gate.until_clients(0)
        async with gate.watch(orders) as viewer:
            assert said((await viewer.event()).data) == {"n": 1}
        await gate.until_clients(0)
        assert await status_of(gate, orders) == 401


@story
async def test_who_leaves_before_the_stream_is_there_has_not_used_the_ticket_up(edge: Edge) -> None:
    async with selling(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        asked = api.hold("/orders/1")
        orders = f"/orders/1/events?ticket={await buy(gate, '/orders/1/events')}"
        left = asyncio.create_task(status_of(gate, orders))
        await api.until_asked("/orders/1", 1)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            while await status_of(gate, orders) == 401:
                asked.set()  # that the other one has gone may be noticed only when there is something to tell it
        assert await status_of(gate, orders) == 401, "now it is used"


@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
@story
async def test_what_has_no_cursor_to_come_back_with_is_given_once(edge: Edge, media: str) -> None:
    async with selling(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1})
        orders = f"/orders/1/events?ticket={await buy(gate, '/orders/1/events')}"
        async with gate.exchange("GET", orders, ("Accept", media)) as it:
            assert (it.status, b'"n":1' in await it.read()) == (200, True)
        await gate.until_clients(0)
        assert (await gate.ask("GET", orders, ("Accept", "application/json"))).status == 401


# Good again


async def walked(gate: RunningGate, target: str) -> tuple[str, str, str, str]:
    """Read two events by a ticket of /session/1/events, and make more when that stream has gone.

    The cursors before the stream, where it began, and of its two events.
    """
    await post(gate, 1)
    await post(gate, 2)
    async with gate.watch(target) as viewer:
        begin = await first_id(viewer)
        await post(gate, 3)
        await post(gate, 4)
        (third, three), (fourth, four) = await next_n(viewer), await next_n(viewer)
        assert (third, fourth) == (3, 4)
    await gate.until_clients(0)
    await post(gate, 5)
    epoch, _, offset = begin.rpartition("-")
    return f"{epoch}-{int(offset) - 1}", begin, three, four


@pytest.mark.parametrize(("which", "expected"), [(1, [3, 4, 5]), (2, [4, 5]), (3, [5])])
@story
async def test_a_used_ticket_is_good_again_with_a_cursor_its_stream_was_sent(
    edge: Edge, which: int, expected: list[int]
) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        cursors = await walked(gate, target)
        async with gate.watch(target, cursor=cursors[which]) as viewer:
            assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "yes")
            assert [(await next_n(viewer))[0] for _ in expected] == expected
            await post(gate, 6)
            number, last = await next_n(viewer)
            assert number == 6
        await gate.until_clients(0)
        # And so on: what was sent last is what counts.
        async with gate.watch(target, cursor=last) as viewer:
            assert viewer.status == 200


@story
async def test_a_cursor_may_come_in_the_query_too(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        *_, four = await walked(gate, target)
        assert await status_of(gate, f"{target}&lastEventId={four}") == 200


@story
async def test_a_used_ticket_is_not_good_with_a_cursor_its_stream_was_not_sent(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        earlier, begin, _, four = await walked(gate, target)
        async with gate.watch("/session/1/events", ADA, cursor=four) as other:
            _, five = await next_n(other)  # sent to this one, and not to the other
        async with gate.watch("/session/2/events", ADA) as elsewhere:
            await post(gate, 1, id_="2")
            _, foreign = await next_n(elsewhere)
        await gate.until_clients(0)
        epoch = begin.rpartition("-")[0]
        wrong = [
            None,
            earlier,
            five,
            foreign,
            "earliest",
            "0-0",
            f"{epoch}-",
            f"{epoch}-0",
            f"{epoch}-99",
            "x",
            four + "0",
        ]
        for cursor in wrong:
            assert await status_of(gate, target, cursor) == 401, cursor
        assert await status_of(gate, target, four) == 200, "none of these attempts has cost anything"


@story
async def test_each_reconnect_counts_from_where_it_began_itself(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        _, _, three, four = await walked(gate, target)
        assert await status_of(gate, target, four) == 200
        assert await status_of(gate, target, three) == 401, "the last stream of the ticket began behind it"


@story
async def test_a_ticket_whose_stream_has_been_gone_for_five_minutes_is_good_no_more(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        *_, four = await walked(gate, target)
        shift_clock(monkeypatch, clock=290)
        assert await status_of(gate, target, four) == 200, "and that begins the five minutes anew"
        shift_clock(monkeypatch, clock=301)
        assert await status_of(gate, target, four) == 401
        assert await last_reason(gate) == "the ticket has run out"


@story
async def test_a_ticketed_client_whose_stream_grows_too_old_comes_back_to_the_same_url_and_misses_nothing(
    edge: Edge,
) -> None:
    routes = f"- path: /session/{{id}}/events\n  auth: session\n  max_age: 100ms\n  {HOOK}\n"
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        running_gate(edge, configuration(api, who, routes=routes), admin=True) as gate,
    ):
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        cursor: str | None = None
        seen: list[int] = []
        for turn in range(4):
            async with gate.watch(target, cursor=cursor) as viewer:
                assert viewer.status == 200
                await post(gate, 2 * turn)
                events = await viewer.rest()
                seen += [said(event.data)["n"] for event in events]
                cursor = viewer.decoder.last_event_id
            await gate.until_clients(0)
            await post(gate, 2 * turn + 1)
        async with gate.watch(target, cursor=cursor) as viewer:
            seen.append((await next_n(viewer))[0])
        assert seen == list(range(8))


@story
async def test_a_ticketed_client_may_come_back_in_the_moment_its_stream_has_ended(edge: Edge) -> None:
    routes = f"- path: /session/{{id}}/events\n  auth: session\n  max_age: 20ms\n  {HOOK}\n"
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        running_gate(edge, configuration(api, who, routes=routes), admin=True) as gate,
    ):
        await post(gate, 1)
        target = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        cursor: str | None = None
        for _ in range(3):
            async with gate.watch(target, cursor=cursor) as viewer:
                assert viewer.status == 200
                await viewer.rest()
                cursor = viewer.decoder.last_event_id
                # The old connection is still there when the client asks anew.
                async with gate.watch(target, cursor=cursor) as again:
                    assert again.status == 200
                    await again.rest()


@story
async def test_a_ticketed_stream_of_a_topic_without_any_event_begins_with_an_id_and_its_reconnect_misses_nothing(
    edge: Edge,
) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/new/events?ticket={await buy(gate, '/session/new/events')}"
        async with gate.watch(target) as viewer:
            assert await first_id(viewer) == "0-0"
            assert not viewer.drop(), "it dispatches nothing"
        await gate.until_clients(0)
        assert await status_of(gate, target, "0-1") == 401
        await post(gate, 1, id_="new")
        await post(gate, 2, id_="new")
        async with gate.watch(target, cursor="0-0") as viewer:
            assert viewer.status == 200
            assert [(await next_n(viewer))[0] for _ in range(2)] == [1, 2]
            await post(gate, 3, id_="new")
            number, last = await next_n(viewer)
            assert number == 3
        await gate.until_clients(0)
        assert await status_of(gate, target, last) == 200


@pytest.mark.parametrize("path", ["/session/new/events", "/live?topic=/session/new/events"], ids=["single", "joined"])
@story
async def test_a_reconnect_that_is_cut_before_anything_came_may_be_made_again(edge: Edge, path: str) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"{path}{'&' if '?' in path else '?'}ticket={await buy(gate, path, ADA)}"
        async with gate.watch(target) as viewer:
            cursor = await first_id(viewer)
        await gate.until_clients(0)
        await post(gate, 1, id_="new")
        for _ in range(2):
            # The client has seen nothing of the second stream, and so stands where it stood.
            async with gate.watch(target, cursor=cursor) as viewer:
                assert viewer.status == 200
                assert said((await viewer.event()).data)["n"] == 1
            await gate.until_clients(0)


@story
async def test_a_ticketed_stream_of_a_topic_without_any_event_may_be_cut_several_times(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/session/new/events?ticket={await buy(gate, '/session/new/events')}"
        for cursor in (None, "0-0", "0-0"):
            async with gate.watch(target, cursor=cursor) as viewer:
                assert (viewer.status, await first_id(viewer)) == (200, "0-0")
            await gate.until_clients(0)
        async with gate.watch(target, cursor="0-0") as viewer:
            await first_id(viewer)
            await post(gate, 1, id_="new")
            number, one = await next_n(viewer)
            assert number == 1
        await gate.until_clients(0)
        await post(gate, 2, id_="new")
        async with gate.watch(target, cursor=one) as viewer:
            assert await next_n(viewer) == (2, one[:-1] + "2")


@story
async def test_the_id_of_a_topic_without_events_is_nothing_without_a_ticket(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        await post(gate, 1)
        async with gate.watch("/session/1/events", ADA, cursor="0-0") as viewer:
            assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "no")
            assert said((await viewer.event()).data) == {"reason": "unknown-cursor"}


@story
async def test_a_ticketed_client_is_told_as_others_are_that_there_is_no_more_to_come(edge: Edge) -> None:
    async with selling(edge) as (gate, api, _):
        api.put("/jobs/1", {"n": 1, "state": "busy"})
        target = f"/jobs/1/progress?ticket={await buy(gate, '/jobs/1/progress')}"
        async with gate.watch(target) as viewer:
            await viewer.event()
            api.put("/jobs/1", {"n": 2, "state": "done"})
            assert (await viewer.rest())[-1].type == "end"
            cursor = viewer.decoder.last_event_id
        await gate.until_clients(0)
        assert await status_of(gate, target, cursor) == 204


@story
async def test_a_used_ticket_is_good_again_with_any_id_of_what_was_sent_as_the_earliest(edge: Edge) -> None:
    async with selling(edge) as (gate, api, _):
        api.put("/orders/1", {"n": 1, "long": "x" * 1000})
        async with gate.watch("/patched/1/events", ADA) as viewer:
            for n in range(2, 6):
                await viewer.event()
                api.put("/orders/1", {"n": n, "long": "x" * 1000})
            await viewer.event()
        target = f"/patched/1/events?ticket={await buy(gate, '/patched/1/events')}"
        async with gate.watch(target, cursor="earliest") as viewer:
            ids = [(await viewer.event()).id for _ in range(5)]
        await gate.until_clients(0)
        # It may have been cut behind any of them.
        for cursor in reversed(ids):
            fresh = f"/patched/1/events?ticket={await buy(gate, '/patched/1/events')}"
            assert await status_of(gate, fresh, "earliest") == 200
            assert await status_of(gate, fresh, cursor) == 200, cursor


@story
async def test_an_own_credential_goes_on_where_a_ticket_has_stopped(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        *_, four = await walked(gate, f"/session/1/events?ticket={await buy(gate, '/session/1/events')}")
        async with gate.watch("/session/1/events", ADA, cursor=four) as viewer:
            assert (await next_n(viewer))[0] == 5


@story
async def test_a_new_ticket_goes_on_where_the_old_one_has_stopped(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        *_, four = await walked(gate, f"/session/1/events?ticket={await buy(gate, '/session/1/events')}")
        fresh = await buy(gate, "/session/1/events")
        async with gate.watch(f"/session/1/events?ticket={fresh}", cursor=four) as viewer:
            assert (viewer.status, viewer.get("ssegate-resumed")) == (200, "yes")
            assert (await next_n(viewer))[0] == 5


# Until the right ends


async def cursor_at_the_end(viewer: Viewer, reason: str) -> str:
    """Read to the `end` that is this viewer's own; where it stood."""
    event = (await viewer.until("end"))[-1]
    assert said(event.data) == {"reason": reason}
    await viewer.rest()
    return viewer.decoder.last_event_id


@story
async def test_a_ticket_is_good_no_more_when_its_token_has_expired(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    async with selling(edge) as (gate, _, _):
        bearer = ("Authorization", f"Bearer {ISSUES.token()}")
        used, unused = [await buy(gate, "/user/1/events", bearer) for _ in range(2)]
        async with gate.watch(f"/user/1/events?ticket={used}") as viewer:
            cursor = await first_id(viewer)
        await gate.until_clients(0)
        assert await status_of(gate, f"/user/1/events?ticket={used}", cursor) == 200
        shift_clock(monkeypatch, wall=301)
        assert await status_of(gate, f"/user/1/events?ticket={used}", cursor) == 401
        assert await status_of(gate, f"/user/1/events?ticket={unused}") == 401
        assert await last_reason(gate) == "the credential has expired"


@story
async def test_a_ticketed_stream_ends_when_its_token_expires(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        token = ISSUES.token(exp=int(time.time()) + 2)
        target = f"/user/1/events?ticket={await buy(gate, '/user/1/events', ('Authorization', f'Bearer {token}'))}"
        async with gate.watch(target) as viewer:
            assert (await viewer.event()).type == "expiring"
            cursor = await cursor_at_the_end(viewer, "expired")
        await gate.until_clients(0)
        assert await status_of(gate, target, cursor) == 401


@story
async def test_a_ticket_is_good_no_more_when_its_viewer_was_put_out(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        used, unused = [f"/session/1/events?ticket={await buy(gate, '/session/1/events')}" for _ in range(2)]
        async with gate.watch(used) as viewer:
            await first_id(viewer)
            await gate.admin.ask("POST", "/revoke", JSON, body=b'{"identity": "ada"}')
            cursor = await cursor_at_the_end(viewer, "revoked")
        await gate.until_clients(0)
        assert await status_of(gate, used, cursor) == 401
        assert await status_of(gate, unused) == 401
        assert await last_reason(gate) == "the right that the ticket was bought for has ended"


@story
async def test_a_ticket_is_good_no_more_when_a_recheck_has_failed(edge: Edge) -> None:
    async with selling(edge, recheck="200ms") as (gate, _, who):
        used, unused = [f"/session/1/events?ticket={await buy(gate, '/session/1/events')}" for _ in range(2)]
        async with gate.watch(used) as viewer:
            await first_id(viewer)
            del who.sessions["s1"]
            cursor = await cursor_at_the_end(viewer, "revoked")
        await gate.until_clients(0)
        assert await status_of(gate, "/session/1/events", cursor) == 401
        assert await status_of(gate, used, cursor) == 401
        assert await status_of(gate, unused) == 401


@story
async def test_a_ticket_is_good_no_more_when_its_api_key_was_taken_out(edge: Edge) -> None:
    async with LegacyApi() as api, WhoAmI() as who, running_gate(edge, configuration(api, who), admin=True) as gate:
        used, unused = [f"/partner/1/events?ticket={await buy(gate, '/partner/1/events', KEY)}" for _ in range(2)]
        async with gate.watch(used) as viewer:
            await first_id(viewer)
            gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, who, key="another"), admin=0)))
            cursor = await cursor_at_the_end(viewer, "revoked")
        await gate.until_clients(0)
        assert await status_of(gate, used, cursor) == 401
        assert await status_of(gate, unused) == 401


@story
async def test_a_ticket_is_good_no_more_when_its_guard_asks_somebody_else_since_a_reload(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        WhoAmI() as other,
        running_gate(edge, configuration(api, who), admin=True) as gate,
    ):
        used = f"/session/1/events?ticket={await buy(gate, '/session/1/events')}"
        async with gate.watch(used) as viewer:
            cursor = await first_id(viewer)
            gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, other), admin=0)))
            assert not await viewer.rest(), "it is to come back"
        await gate.until_clients(0)
        assert await status_of(gate, "/session/1/events") == 401
        assert await status_of(gate, used, cursor) == 401


@story
async def test_a_ticket_of_a_joined_stream_is_good_no_more_when_a_recheck_has_failed(edge: Edge) -> None:
    async with selling(edge, recheck="200ms") as (gate, _, who):
        target = f"/live?topic=/session/1/events&topic=/public/1/events&ticket={await buy(gate, '/live')}"
        async with gate.watch(target) as viewer:
            await post(gate, 1)
            await viewer.event(), await viewer.event()
            del who.sessions["s1"]
            assert (await viewer.event()).type == "/session/1/events#end"
            cursor = viewer.decoder.last_event_id
        await gate.until_clients(0)
        assert await status_of(gate, target, cursor) == 401


@story
async def test_a_ticket_outlives_a_reload_that_changes_nothing_of_its_guard(edge: Edge) -> None:
    async with (
        LegacyApi() as api,
        WhoAmI({"s1": "ada"}) as who,
        running_gate(edge, configuration(api, who), admin=True) as gate,
    ):
        ticket = await buy(gate, "/session/1/events")
        gate.service.gate.reload(make_config(edge.yaml(0, configuration(api, who, key="another"), admin=0)))
        assert await status_of(gate, f"/session/1/events?ticket={ticket}") == 200


# Never elsewhere


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("?ticket=sst_abc", ""),
        ("?ticket=sst_abc&a=1", "?a=1"),
        ("?a=1&ticket=sst_abc", "?a=1"),
        ("?a=1&ticket=sst_abc&b=2&ticket=sst_def", "?a=1&b=2"),
        ("?ticket=ABC-123", "?ticket=ABC-123"),
        ("?ticket=ABC-123&ticket=sst_abc", "?ticket=ABC-123"),
        ("?myticket=sst_abc", "?myticket=sst_abc"),
        ("?ticket=&a=1", "?ticket=&a=1"),
    ],
)
@story
async def test_a_ticket_that_strays_reaches_no_backend_and_a_backends_own_does(
    edge: Edge, query: str, seen: str
) -> None:
    async with selling(edge) as (gate, api, who):
        api.put("/api", 1)
        api.put("/guarded/api", 1)
        assert (await gate.ask("GET", f"/api{query}")).status == 200
        assert (await gate.ask("GET", f"/guarded/api{query}", ADA)).status == 200
        assert [asked.target for asked in api.requests] == [f"/api{seen}", f"/guarded/api{seen}"]
        uris = [asked.get("x-forwarded-uri") or "" for asked in who.requests]
        assert uris
        assert not [uri for uri in uris if "sst_" in uri and "myticket" not in uri]


@story
async def test_a_ticket_is_seen_by_no_upstream_no_guard_no_log_no_denial_and_no_figure(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with selling(edge) as (gate, api, who):
        api.put("/orders/1", {"n": 1})
        for path in ("/orders/1/events", "/user/1/events"):
            credential = BEARER if "user" in path else ADA
            ticket = await buy(gate, path, credential)
            assert await status_of(gate, f"{path}?ticket={ticket}") == 200
            assert await status_of(gate, f"{path}?ticket={ticket}") == 401
            assert await status_of(gate, f"/session/1/events?ticket={ticket}", "x-1") == 401
        # A joined stream by a ticket of one guard asks the other, which is told of the request.
        names = "topic=/session/1/events&topic=/user/1/events&topic=/public/1/events"
        ticket = await buy(gate, "/live", BEARER)
        asked = len(who.requests)
        assert await status_of(gate, f"/live?{names}&ticket={ticket}") == 200
        assert len(who.requests) > asked
        await gate.ask("GET", f"/api?ticket={ticket}")
        assert await denials(gate)
        pages = [(await gate.admin.ask("GET", path)).body for path in ("/denials", "/metrics", "/webhooks")]
        heads = [asked.head for asked in (*api.requests, *who.requests)]
        assert not [text for text in (*pages, *heads, caplog.text.encode()) if b"sst_" in text]


@story
async def test_a_guard_is_not_told_of_a_ticket_however_its_name_is_written(edge: Edge) -> None:
    async with selling(edge) as (gate, _, who):
        ticket = await buy(gate, "/live", BEARER)
        names = "topic=/session/1/events&topic=/user/1/events"
        assert await status_of(gate, f"/live?{names}&%74icket={ticket}") == 200
        assert who.requests
        assert not [asked for asked in who.requests if b"sst_" in asked.head]


# Several topics


@story
async def test_a_ticket_opens_a_joined_stream_and_each_topic_is_guarded_for_itself(edge: Edge) -> None:
    async with selling(edge) as (gate, _, _):
        await post(gate, 0)
        ticket = await buy(gate, "/live", ADA)
        names = "topic=/session/1/events&topic=/user/1/events&topic=/public/1/events"
        target = f"/live?{names}&ticket={ticket}"
        async with gate.watch(target) as viewer:
            assert viewer.status == 200
            event = await viewer.event()
            assert (event.type, said(event.data)) == ("/user/1/events#end", {"reason": "refused", "status": 401})
            await post(gate, 1)
            seen = {(await viewer.event()).type for _ in range(2)}
            assert seen == {"/session/1/events", "/public/1/events"}
            cursor = viewer.decoder.last_event_id
            async with gate.watch(target, cursor=cursor) as other:
                assert other.status == 401
        await gate.until_clients(0)
        await post(gate, 2)
        for wrong in (None, "_1AAAA", "earliest", "0-0", cursor[:-4] + "AAAA"):
            assert await status_of(gate, target, wrong) == 401, wrong
        async with gate.watch(target, cursor=cursor) as viewer:
            events = [await viewer.event() for _ in range(3)]
            assert {event.type for event in events if event.data == json.dumps({"id": "1", "n": 2})} == seen


@story
async def test_a_joined_stream_by_ticket_of_topics_without_any_event_misses_nothing_when_it_comes_back(
    edge: Edge,
) -> None:
    async with selling(edge) as (gate, _, _):
        target = f"/live?topic=/session/a/events&topic=/session/b/events&ticket={await buy(gate, '/live')}"
        async with gate.watch(target) as viewer:
            cursor = await first_id(viewer)
        await gate.until_clients(0)
        await post(gate, 1, id_="a")
        await post(gate, 2, id_="b")
        async with gate.watch(target, cursor=cursor) as viewer:
            assert {said((await viewer.event()).data)["n"] for _ in range(2)} == {1, 2}
            cursor = viewer.decoder.last_event_id
        await gate.until_clients(0)
        await post(gate, 3, id_="a")
        async with gate.watch(target, cursor=cursor) as viewer:
            assert said((await viewer.event()).data)["n"] == 3
