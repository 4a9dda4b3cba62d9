"""A right follows its stream: told of its end, asked about again, taken away; and what is good afterwards, and what is not."""

# ruff: noqa: SIM117 - the gate and its guard are the place, the client in it is another matter

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from ssegate.gate import rights
from tests.e2e.client import PATIENCE, Pair, RawSocket, Reply, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, said, story
from tests.e2e.guarded import (
    ADA,
    GRACE,
    HS,
    SESSIONS,
    bearer,
    denials,
    ended,
    guarded,
    guarding,
    partner,
    reload,
    revoke,
    session,
    status,
    user,
)
from tests.guards import Plan, WhoAmI, cuts, nameless, redirects, refuses

N: Pair = ("Accept", "application/x-ndjson")
J: Pair = ("Accept", "application/json")

ORDERS = """
- path: /orders/{id}/events
  auth: session
  poll: {get: "/orders/{id}", every: 40ms}
"""
ME = """
- path: /me
  auth: session
  poll: {get: "/users/{identity}?tenant={claims.tenant}", every: 40ms, linger: 50ms}
"""
HOOKED = """
- path: /me/notifications
  auth: [session, user, partner]
  webhook: {at: /hook, verify: none, match: {identity: body.to}}
"""
ALL = """
- path: /by-session
  auth: session
  poll: {get: /n, every: 40ms}
- path: /by-token
  auth: user
  poll: {get: /n, every: 40ms}
- path: /by-key
  auth: partner
  poll: {get: /n, every: 40ms}
"""
ACME: Pair = ("X-Api-Key", "k-acme")

H1 = Edge("native-h1", "1.1")
"""For what an edge has to do with only in so far as its clients may not read."""


@asynccontextmanager
async def place(
    edge: Edge, routes: str, *more: str, recheck: str = "100ms", cache: str = "30s", **others: str
) -> AsyncIterator[tuple[RunningGate, LegacyApi, WhoAmI]]:
    """A gate with all three kinds of guards, its API with `/orders/17` and `/n`, and who is asked."""
    async with WhoAmI(SESSIONS) as who, LegacyApi() as api:
        api.put("/orders/17", {"n": 1})
        api.put("/n", {"n": 1})
        guards = (session(who, cache=cache, recheck=recheck), user(), partner("acme: k-acme", "zeta: [k-zeta, k-new]"))
        async with guarded(edge, routes, *guards, *more, api=api, **others) as gate:
            yield gate, api, who


class Clock:
    """The time of day, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)
        monkeypatch.setattr(rights, "LOOK", 0.02)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def sent_away(viewer: Viewer) -> bool:
    """Whether its stream has ended for now: with a time to come back after, and without an `end`."""
    return re.search(rb"\nretry: [0-9]+\n:?\n$", viewer.raw) is not None and b"event: end" not in viewer.raw


# Logout


@pytest.mark.parametrize("accept", [None, N])
@story
async def test_a_logout_ends_the_stream_within_the_recheck_and_the_way_back_is_401(
    edge: Edge, accept: Pair | None
) -> None:
    async with place(edge, ORDERS, recheck="400ms") as (gate, _api, who):
        headers = [ADA] if accept is None else [ADA, accept]
        async with gate.exchange("GET", "/orders/17/events", *headers) as it:
            await it.read()
            began = time.monotonic()
            del who.sessions["s1"]
            data = b""
            async with asyncio.timeout(PATIENCE):
                while piece := await it.read():
                    data += piece
            took = time.monotonic() - began
        assert 0.3 <= took < 1.0, took
        if accept is None:
            assert data.endswith(b'event: end\ndata: {"reason":"revoked"}\n\n')
        else:
            assert said(data.splitlines()[-1]) == {"event": "end", "data": {"reason": "revoked"}}
        again = await gate.ask("GET", "/orders/17/events", ADA)
        assert (again.status, again.body) == (401, b'{"error":"who are you"}'), "the cache has let go of it"


@story
async def test_the_end_of_a_right_is_this_viewers_alone(edge: Edge) -> None:
    async with place(edge, ORDERS) as (gate, api, who):
        async with gate.watch("/orders/17/events", ADA) as ada, gate.watch("/orders/17/events", GRACE) as grace:
            await grace.event()
            del who.sessions["s1"]
            await ended(ada, "revoked")
            api.put("/orders/17", {"n": 2})
            assert (await grace.event()).data == '{"n":2}'
            assert (await gate.admin.ask("GET", "/metrics")).body.count(
                b'ssegate_rights_ended_total{reason="revoked"} 1'
            )


@story
async def test_all_streams_of_a_credential_are_asked_about_once(edge: Edge) -> None:
    async with place(edge, ORDERS + ME.replace("?tenant={claims.tenant}", ""), recheck="300ms") as (gate, api, who):
        api.put("/users/ada", {"n": 1})
        async with AsyncExitStack() as stack:
            viewers = [await stack.enter_async_context(gate.watch("/orders/17/events", ADA)) for _ in range(5)]
            viewers.append(await stack.enter_async_context(gate.watch("/me", ADA)))
            for viewer in viewers:
                await viewer.event()
            assert len(who.requests) == 1
            await who.until_asked(3, "s1")
            assert len(gate.service.gate.streams.rights) == 1
            del who.sessions["s1"]
            for viewer in viewers:
                await ended(viewer, "revoked")
            assert len(who.requests) <= 5
        await gate.until_clients(0)
        assert len(gate.service.gate.streams.rights) == 0


@story
async def test_a_recheck_goes_past_the_cache_and_a_no_drops_what_was_known(edge: Edge) -> None:
    async with place(edge, ORDERS, cache="1h", recheck="200ms") as (gate, _api, who):
        async with gate.watch("/orders/17/events", ADA) as viewer:
            await viewer.event()
            await who.until_asked(2, "s1")
            del who.sessions["s1"]
            await ended(viewer, "revoked")
        assert (await gate.ask("GET", "/orders/17/events", ADA)).status == 401
        who.sessions["s1"] = "ada"
        async with gate.watch("/orders/17/events", ADA) as viewer:
            assert viewer.status == 200, "it may come back as soon as the backend says so"


@story
async def test_a_stream_that_was_ended_and_does_not_read_does_not_keep_others_from_being_asked_about() -> None:
    async with place(H1, ORDERS) as (gate, api, who):
        big = {"n": "x" * 700_000}
        api.put("/orders/17", big)
        async with gate.exchange("GET", "/orders/17/events", ADA, buffer=4096):  # it reads nothing
            who.plan(refuses(401))
            await gate_has_ended(gate, "revoked", 1)
            async with gate.watch("/orders/17/events", ADA) as viewer:
                await viewer.event()
                del who.sessions["s1"]
                await ended(viewer, "revoked", 2)


async def gate_has_ended(gate: RunningGate, reason: str, count: int) -> None:
    """Wait until this many streams were ended by the gate."""
    async with asyncio.timeout(PATIENCE):
        while gate.service.gate.streams.rights.ended[reason] < count:
            await asyncio.sleep(0.01)  # figures tell nobody when they change


# A guard that is down


DOWN: dict[str, Plan] = {
    "500": refuses(500),
    "302": redirects("/login"),
    "cut": cuts,
    "a yes without a name": nameless({"a": 1}),
}
"""More of them are in `tests/auth/test_forward.py`."""


@pytest.mark.parametrize("plan", DOWN.values(), ids=DOWN)
@story
async def test_a_guard_that_is_down_lets_nobody_in_and_puts_nobody_out_at_once(edge: Edge, plan: Plan) -> None:
    async with place(edge, ORDERS, recheck="200ms") as (gate, api, who):
        async with gate.watch("/orders/17/events", ADA) as viewer:
            await viewer.event()
            who.usually(plan)
            async with gate.watch("/orders/17/events", GRACE) as newcomer:
                assert newcomer.status == 200
                assert 5000 <= await newcomer.opening() <= 15000
                assert await newcomer.rest() == []
            refused = await gate.ask("GET", "/orders/17/events", GRACE, N)
            assert refused.status == 503
            assert 5 <= int(refused.get("retry-after") or 0) <= 15
            asked = len(who.asked_for("s1"))
            await who.until_asked(asked + 2, "s1")
            api.put("/orders/17", {"n": 2})
            assert (await viewer.event()).data == '{"n":2}'
            await viewer.rest()
            assert len(who.asked_for("s1")) == 4, "the first yes, and three times nothing"
            assert sent_away(viewer)


@story
async def test_a_guard_that_is_back_in_time_has_ended_nobody(edge: Edge) -> None:
    async with place(edge, ORDERS) as (gate, api, who):
        async with gate.watch("/orders/17/events", ADA) as viewer:
            await viewer.event()
            who.plan(refuses(500), refuses(500))
            await who.until_asked(4, "s1")
            who.plan(refuses(500), refuses(500))
            await who.until_asked(8, "s1")
            api.put("/orders/17", {"n": 2})
            assert (await viewer.event()).data == '{"n":2}'


@story
async def test_who_was_sent_away_while_the_guard_was_down_comes_back_and_is_asked_about_again() -> None:
    async with place(H1, ORDERS) as (gate, api, who):
        api.put("/orders/17", {"n": "x" * 700_000})
        async with gate.exchange("GET", "/orders/17/events", ADA, buffer=4096):  # it reads nothing
            who.plan(refuses(500), refuses(500), refuses(500))
            await gate_has_ended(gate, "guard", 1)
            async with gate.watch("/orders/17/events", ADA) as viewer:
                await viewer.event()
                del who.sessions["s1"]
                await ended(viewer, "revoked", 2)


@story
async def test_a_guard_that_refuses_connections_is_down(edge: Edge) -> None:
    async with place(edge, ORDERS) as (gate, _api, who):
        async with gate.watch("/orders/17/events", ADA) as viewer:
            await viewer.event()
            await who.go_down()
            async with gate.watch("/orders/17/events", GRACE) as newcomer:
                assert await newcomer.rest() == []
            await viewer.rest()
            assert sent_away(viewer)
            await who.come_back()
        async with gate.watch("/orders/17/events", ADA, cursor="x-1") as viewer:
            await viewer.until("")


# What is known of a viewer changes


@story
async def test_a_viewer_for_whom_allow_is_true_no_more_is_put_out(edge: Edge) -> None:
    routes = ORDERS.replace("auth: session", "auth: session\n  allow: \"contains(claims.groups, 'staff')\"")
    async with place(edge, routes) as (gate, api, who):
        who.claims = {"ada": {"groups": ["staff"]}, "grace": {"groups": ["staff"]}}
        async with gate.watch("/orders/17/events", ADA) as ada, gate.watch("/orders/17/events", GRACE) as grace:
            await grace.event()
            who.claims["ada"] = {"groups": []}
            await ended(ada, "revoked")
            who.claims["grace"] = {"groups": ["staff", "more"]}
            await who.until_asked(len(who.asked_for("s2")) + 2, "s2")
            api.put("/orders/17", {"n": 2})
            assert (await grace.event()).data == '{"n":2}'
        assert (await gate.ask("GET", "/orders/17/events", ADA)).status == 403


@pytest.mark.parametrize("claims", [{"tenant": "t2"}, {}, {"tenant": None}, {"tenant": [1]}, {"tenant": ""}])
@story
async def test_a_viewer_to_whom_another_url_belongs_now_is_put_out(edge: Edge, claims: dict[str, object]) -> None:
    async with place(edge, ME) as (gate, api, who):
        api.put("/users/ada", {"n": 1})
        who.claims["ada"] = {"tenant": "t1"}
        async with gate.watch("/me", ADA) as viewer:
            await viewer.event()
            assert api.requests[-1].target == "/users/ada?tenant=t1"
            who.claims["ada"] = claims
            await ended(viewer, "revoked")


@pytest.mark.parametrize("identity", ["..", ".", "%2e%2e", "a\u00e9", "x" * 256, "a/../../b", "a%2f..%2fb"])
@story
async def test_an_identity_that_makes_no_url_any_more_ends_the_stream(edge: Edge, identity: str) -> None:
    async with place(edge, ME.replace("?tenant={claims.tenant}", "")) as (gate, api, who):
        api.put("/users/ada", {"n": 1})
        async with gate.watch("/me", ADA) as viewer:
            await viewer.event()
            who.sessions["s1"] = identity
            await ended(viewer, "revoked")
            who.sessions["s1"] = "ada"


@story
async def test_a_session_that_becomes_somebody_elses_leaves_the_first_ones_notifications(edge: Edge) -> None:
    async with place(edge, HOOKED) as (gate, _api, who):
        async with gate.watch("/me/notifications", ADA) as viewer:
            await viewer.opening()
            who.sessions["s1"] = "grace"
            await ended(viewer, "revoked")


# Expiry


def by_token(**claims: object) -> Pair:
    return bearer(HS.token(**claims))


@pytest.mark.parametrize("accept", [None, N])
@story
async def test_a_token_that_expires_is_announced_and_then_ends_the_stream(
    edge: Edge, clock: Clock, accept: Pair | None
) -> None:
    async with place(edge, ALL) as (gate, api, _):
        expires = int(time.time()) + 200
        headers = [by_token(exp=expires), *([accept] if accept else [])]
        async with gate.exchange("GET", "/by-token", *headers) as it:
            await it.read()
            clock.ahead = 145
            data = b""
            async with asyncio.timeout(PATIENCE):
                while b"expiring" not in data:
                    data += await it.read()
                api.put("/n", {"n": 2})
                while b'"n":2' not in data:
                    data += await it.read()
                clock.ahead = 201
                while piece := await it.read():
                    data += piece
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        if accept is None:
            assert b'event: expiring\ndata: {"at":"%b","in":5' % at.encode() in data
            assert data.endswith(b'event: end\ndata: {"reason":"expired"}\n\n')
        else:
            events = [json.loads(line) for line in data.splitlines() if line]
            assert [event.get("event") for event in events][-1] == "end"
            assert any(event.get("event") == "expiring" and event["data"]["at"] == at for event in events)
            assert "id" not in events[-1]
        reply = await gate.ask("GET", "/by-token", headers[0])
        assert reply.status == 401
        assert reply.get("www-authenticate") == "Bearer"
        async with gate.watch("/by-token", by_token()) as fresh:
            assert (await fresh.event()).data == '{"n":2}'


@story
async def test_who_comes_within_the_last_minute_is_warned_at_once(edge: Edge, clock: Clock) -> None:
    async with place(edge, ALL) as (gate, _api, _):
        token = by_token(exp=int(time.time()) + 30)
        async with gate.watch("/by-token", token) as viewer, gate.watch("/by-token", token) as other:
            for each in (viewer, other):
                (event,) = (await each.until("expiring"))[-1:]
                assert 25 <= said(event.data)["in"] <= 30
                assert event.id is None or not event.id.endswith("-2")
            clock.ahead = 31
            for each in (viewer, other):
                await ended(each, "expired")


@story
async def test_a_clock_that_jumps_past_the_end_ends_the_stream_and_one_set_back_does_not_keep_it(
    edge: Edge, clock: Clock
) -> None:
    async with place(edge, ALL) as (gate, api, _):
        async with gate.watch("/by-token", by_token(exp=int(time.time()) + 3600)) as viewer:
            await viewer.event()
            clock.ahead = -100_000
            api.put("/n", {"n": 2})
            assert (await viewer.event()).data == '{"n":2}'
            clock.ahead = 3601
            events = await ended(viewer, "expired")
            assert [event.type for event in events] in ([], ["expiring"])


@story
async def test_a_fresh_token_goes_on_where_the_old_one_stopped(edge: Edge, clock: Clock) -> None:
    async with place(edge, HOOKED) as (gate, _api, _):

        async def post(n: int) -> None:
            body = b'{"to":"u1","n":%d}' % n
            assert (await gate.ask("POST", "/hook", ("Content-Type", "application/json"), body=body)).status == 200

        async with gate.watch("/me/notifications", by_token(exp=int(time.time()) + 100)) as viewer:
            await viewer.opening()
            await post(1)
            first = await viewer.event()
            clock.ahead = 101
            await ended(viewer, "expired")
        await post(2)
        async with gate.watch("/me/notifications", by_token(jti="fresh"), cursor=first.id) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert said((await viewer.event()).data)["n"] == 2
            await post(3)
            assert said((await viewer.event()).data)["n"] == 3


@story
async def test_an_expiry_that_is_ignored_ends_nothing_but_opens_nothing_either(edge: Edge, clock: Clock) -> None:
    routes = ALL.replace("auth: user", "auth: patient")
    async with place(edge, routes, user("at_expiry: ignore", name="patient")) as (gate, api, _):
        token = by_token(exp=int(time.time()) + 30)
        async with gate.watch("/by-token", token) as viewer:
            await viewer.event()
            clock.ahead = 40
            api.put("/n", {"n": 2})
            assert (await viewer.event()).data == '{"n":2}'
            assert (await gate.ask("GET", "/by-token", token)).status == 401


@story
async def test_a_stream_that_lags_ends_behind_what_is_on_its_way(edge: Edge, clock: Clock) -> None:
    async with place(edge, ALL) as (gate, api, _):
        async with gate.watch("/by-token", by_token(exp=int(time.time()) + 100), buffer=4096) as viewer:
            await viewer.event()
            for n in range(4):
                api.put("/n", {"n": n, "x": "x" * 300_000})
                await api.until_asked_again("/n", 2)
            clock.ahead = 101
            await gate_has_ended(gate, "expired", 1)
            api.put("/n", {"n": "secret"})
            await api.until_asked_again("/n", 2)
            events = await viewer.rest()
            assert (events[-1].type, events[-1].data) == ("end", '{"reason":"expired"}')
            assert not any("secret" in event.data for event in events)


# Revocation


CREDENTIALS: dict[str, tuple[str, str, Callable[[], Pair]]] = {
    "a session": ("/by-session", "ada", lambda: ADA),
    "a token": ("/by-token", "u1", by_token),
    "a token without iat": ("/by-token", "u1", lambda: by_token(iat=None)),
    "a key": ("/by-key", "acme", lambda: ACME),
}


@pytest.mark.parametrize(("path", "identity", "credential"), CREDENTIALS.values(), ids=CREDENTIALS)
@story
async def test_a_viewer_who_is_revoked_is_put_out_and_stays_out(
    edge: Edge, path: str, identity: str, credential: Callable[[], Pair]
) -> None:
    async with place(edge, ALL) as (gate, _api, _who):
        shown = credential()
        async with gate.watch(path, shown) as one, gate.watch(path, shown) as two:
            await one.event()
            await two.event()
            assert await revoke(gate, identity) == 2
            await ended(one, "revoked")
            await ended(two, "revoked")
        assert (await gate.ask("GET", path, shown)).status == 401
        assert (await denials(gate))[0]["reason"] == "the credential has been revoked"
        assert await revoke(gate, identity) == 0


@pytest.mark.parametrize("cache", ["0s", "30s"])
@story
async def test_a_revoked_session_is_good_for_no_path_of_the_guard(edge: Edge, cache: str) -> None:
    routes = ALL + ORDERS
    async with place(edge, routes, cache=cache) as (gate, _api, _who):
        async with gate.watch("/by-session", ADA) as viewer:
            await viewer.event()
            assert await revoke(gate, "ada") == 1
            await ended(viewer, "revoked")
        for path in ("/by-session", "/by-session?lastEventId=x-1", "/orders/17/events"):
            assert await status(gate, path, ADA) == 401, path


@story
async def test_a_revoked_session_is_not_good_under_another_name_of_the_gate(edge: Edge) -> None:
    if edge.tls:
        pytest.skip("the raw socket speaks no TLS")
    async with place(edge, ALL) as (gate, _api, _who):
        async with gate.watch("/by-session", ADA) as viewer:
            await viewer.event()
            await revoke(gate, "ada")
            await ended(viewer, "revoked")
        async with RawSocket(gate.port) as raw:
            raw.writer.write(b"GET /by-session HTTP/1.1\r\nHost: other.example.com\r\nCookie: session=s1\r\n\r\n")
            head = await raw.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401"), head


@story
async def test_what_a_viewer_is_given_after_the_revocation_is_good(edge: Edge, clock: Clock) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        old = by_token()
        async with gate.watch("/by-token", old) as viewer, gate.watch("/by-session", ADA) as other:
            await viewer.event()
            await other.event()
            assert (await revoke(gate, "u1"), await revoke(gate, "ada")) == (1, 1)
        unseen = by_token(jti="unseen", iat=int(time.time()) - 5)
        clock.ahead = 2
        assert (await gate.ask("GET", "/by-token", old)).status == 401
        assert (await gate.ask("GET", "/by-token", unseen)).status == 401
        who.sessions["s3"] = "ada"
        async with gate.watch("/by-token", by_token(jti="new")) as viewer:
            assert viewer.status == 200
        async with gate.watch("/by-session", ("Cookie", "session=s3")) as viewer:
            assert viewer.status == 200


@story
async def test_a_revocation_counts_for_who_is_being_asked_about_at_that_moment(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        answered = who.hold()
        opening = asyncio.create_task(gate.ask("GET", "/by-session", ADA, J))
        await who.until_asked(1)
        await revoke(gate, "ada")
        answered.set()
        assert (await opening).status == 401


@story
async def test_a_revocation_counts_for_who_waits_for_the_first_answer_of_the_upstream(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, _who):
        held = api.hold("/n")
        opening = asyncio.create_task(gate.ask("GET", "/by-session", ADA, N))
        await api.until_asked("/n", 1)
        await revoke(gate, "ada")
        held.set()
        assert (await opening).status == 401


@story
async def test_a_revocation_that_names_nobody_is_told_so(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, _who):
        for body in (b"", b"[]", b"{}", b'{"identity": 1}', b'{"identity": ""}', b"nonsense", b"\xff", b"x" * 20_000):
            reply = await gate.admin.ask("POST", "/revoke", body=body)
            assert reply.status in (400, 413), (body, reply)
        assert (await gate.admin.ask("GET", "/revoke")).status == 405
        assert (await gate.ask("POST", "/revoke", body=b'{"identity":"ada"}')).status == 404, "not for the public"


# Long polls


WAITS = "/by-session?wait=20s"


@asynccontextmanager
async def waiting(gate: RunningGate, api: LegacyApi, path: str, credential: Pair) -> AsyncIterator[asyncio.Task[Reply]]:
    """A long poll that waits for what comes after the state of now."""
    state = await gate.ask("GET", path, credential, J)
    assert state.status == 200, state
    cursor = state.get("ssegate-cursor") or ""
    task = asyncio.create_task(gate.ask("GET", f"{path}?wait=20s", credential, J, ("Last-Event-ID", cursor)))
    await gate.until_clients(1)
    yield task
    task.cancel()


@story
async def test_a_long_poll_of_a_viewer_who_is_revoked_gets_nothing(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, _who):
        async with waiting(gate, api, "/by-session", ADA) as task:
            await revoke(gate, "ada")
            api.put("/n", {"n": "secret"})
            reply = await task
            assert reply.status == 401
            assert b"secret" not in reply.body


@story
async def test_a_long_poll_gets_nothing_after_a_logout(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        async with waiting(gate, api, "/by-session", ADA) as task:
            del who.sessions["s1"]
            reply = await task
            assert reply.status == 401
            api.put("/n", {"n": "secret"})
            assert b"secret" not in reply.body


@story
async def test_a_long_poll_of_a_token_that_expires_gets_nothing(edge: Edge, clock: Clock) -> None:
    async with place(edge, ALL) as (gate, api, _who):
        async with waiting(gate, api, "/by-token", by_token(exp=int(time.time()) + 60)) as task:
            clock.ahead = 61
            api.put("/n", {"n": "secret"})
            reply = await task
            assert (reply.status, b"secret" in reply.body) == (401, False)


@story
async def test_a_long_poll_whose_key_is_taken_away_gets_nothing(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        text = guarding(api, ALL, (session(who), user(), partner("zeta: k-zeta")))
        async with waiting(gate, api, "/by-key", ACME) as task:
            reload(gate, edge, text)
            api.put("/n", {"n": "secret"})
            reply = await task
            assert (reply.status, b"secret" in reply.body) == (401, False)


# Tickets


async def ticket(gate: RunningGate, path: str, credential: Pair) -> str:
    reply = await gate.ask("POST", "/_ssegate/ticket", credential, body=json.dumps({"path": path}).encode())
    assert reply.status == 200, reply
    text: str = said(reply.body)["ticket"]
    return text


@story
async def test_a_ticket_is_no_good_after_a_logout_that_has_ended_its_stream(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        text = await ticket(gate, "/by-session", ADA)
        async with gate.watch(f"/by-session?ticket={text}") as viewer:
            event = await viewer.event()
            del who.sessions["s1"]
            await ended(viewer, "revoked")
        await gate.until_clients(0)
        assert await status(gate, f"/by-session?ticket={text}", cursor=event.id) == 401


@pytest.mark.parametrize(("path", "identity", "credential"), CREDENTIALS.values(), ids=CREDENTIALS)
@story
async def test_a_ticket_of_somebody_who_is_revoked_opens_nothing(
    edge: Edge, path: str, identity: str, credential: Callable[[], Pair]
) -> None:
    async with place(edge, ALL) as (gate, _api, _who):
        shown = credential()
        used, unused = await ticket(gate, path, shown), await ticket(gate, path, shown)
        async with gate.watch(f"{path}?ticket={used}") as viewer:
            event = await viewer.event()
            assert await revoke(gate, identity) == 1
            await ended(viewer, "revoked")
        await gate.until_clients(0)
        assert await status(gate, f"{path}?ticket={used}", cursor=event.id) == 401
        assert await status(gate, f"{path}?ticket={unused}") == 401


@story
async def test_a_ticket_that_is_all_that_is_left_of_somebody_is_revoked_too(edge: Edge) -> None:
    async with place(edge, ALL, cache="0s") as (gate, _api, _who):
        text = await ticket(gate, "/by-session", ADA)
        await revoke(gate, "ada")
        assert await status(gate, f"/by-session?ticket={text}") == 401


@story
async def test_a_ticket_that_was_bought_with_a_key_goes_with_the_key(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        used, unused = await ticket(gate, "/by-key", ACME), await ticket(gate, "/by-key", ACME)
        text = guarding(api, ALL, (session(who, recheck="100ms"), user(), partner("zeta: [k-zeta, k-new]")))
        async with gate.watch(f"/by-key?ticket={used}") as viewer:
            event = await viewer.event()
            reload(gate, edge, text)
            await ended(viewer, "revoked")
        await gate.until_clients(0)
        assert await status(gate, f"/by-key?ticket={unused}") == 401
        assert await status(gate, f"/by-key?ticket={used}", cursor=event.id) == 401


# Another configuration


@story
async def test_a_key_that_is_taken_out_of_the_configuration_ends_its_streams_and_no_others(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        zeta: Pair = ("X-Api-Key", "k-zeta")
        text = guarding(
            api, ALL, (session(who, recheck="100ms"), user(), partner("zeta: [k-zeta, k-newer]", "new: k-acme2"))
        )
        async with (
            gate.watch("/by-key", ACME) as gone,
            gate.watch("/by-key", zeta) as kept,
            gate.watch("/by-session", ADA) as ada,
        ):
            for viewer in (gone, kept, ada):
                await viewer.event()
            reload(gate, edge, text)
            await ended(gone, "revoked")
            api.put("/n", {"n": 2})
            assert [(await kept.event()).data, (await ada.event()).data] == ['{"n":2}'] * 2
        assert (await gate.ask("GET", "/by-key", ACME)).status == 401
        assert (await gate.ask("GET", "/by-key", ("X-Api-Key", "k-new"))).status == 401


@story
async def test_a_key_that_is_another_viewers_now_ends_the_stream(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        text = guarding(api, ALL, (session(who), user(), partner("other: k-acme")))
        async with gate.watch("/by-key", ACME) as viewer:
            await viewer.event()
            reload(gate, edge, text)
            await ended(viewer, "revoked")


CHANGES: dict[str, tuple[str, bool]] = {
    "the same": (user(), True),
    "require that is met": (user("require: \"scope == 'a'\""), True),
    "require that is not met": (user("require: \"scope == 'b'\""), False),
    "another audience": (user().replace("audience: orders-ui", "audience: other"), False),
    "one more audience": (user().replace("audience: orders-ui", "audience: [orders-ui, other]"), True),
    "another issuer": (user().replace("login.example.com", "login.example.org"), False),
    "another secret": (user().replace(HS.secret, "0123456789abcdef" * 4), False),
    "one more secret": (user().replace(HS.secret, f"[{'0123456789abcdef' * 4}, {HS.secret}]"), True),
    "another identity": (user("identity: scope"), False),
    "other algorithms": (user("algorithms: [HS512]"), False),
}


@pytest.mark.parametrize(("guard", "stays"), CHANGES.values(), ids=CHANGES)
@story
async def test_a_token_is_judged_anew_when_its_guard_has_changed(edge: Edge, guard: str, stays: bool) -> None:
    async with place(edge, ALL) as (gate, api, who):
        async with gate.watch("/by-token", by_token(scope="a")) as viewer:
            await viewer.event()
            reload(gate, edge, guarding(api, ALL, (session(who), guard, partner("acme: k-acme"))))
            if stays:
                api.put("/n", {"n": 2})
                assert (await viewer.event()).data == '{"n":2}'
            else:
                await ended(viewer, "revoked")


@story
async def test_an_expiry_that_is_ignored_no_more_ends_the_stream(edge: Edge, clock: Clock) -> None:
    routes = ALL.replace("auth: user", "auth: patient")
    async with place(edge, routes, user("at_expiry: ignore", name="patient")) as (gate, api, who):
        async with gate.watch("/by-token", by_token(exp=int(time.time()) + 30)) as viewer:
            await viewer.event()
            guards = (session(who), user(), partner("acme: k-acme"), user(name="patient"))
            reload(gate, edge, guarding(api, routes, guards))
            clock.ahead = 31
            await viewer.rest(1)  # with an `end`, or to come back and be refused


@story
async def test_a_guard_that_asks_elsewhere_now_lets_its_streams_come_back(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, _who):
        async with WhoAmI({"s1": "ada"}) as other:
            text = guarding(api, ALL, (session(other, recheck="100ms"), user(), partner("acme: k-acme")))
            async with gate.watch("/by-session", ADA) as viewer, gate.watch("/by-key", ACME) as kept:
                event = await viewer.event()
                await kept.event()
                reload(gate, edge, text)
                assert await viewer.rest() == []
                assert sent_away(viewer)
                api.put("/n", {"n": 2})
                assert (await kept.event()).data == '{"n":2}'
            async with gate.watch("/by-session", ADA, cursor=event.id) as viewer:
                assert viewer.get("ssegate-resumed") == "yes"
                await other.until_asked(2, "s1")
            assert (await gate.ask("GET", "/by-session", GRACE)).status == 401


@story
async def test_a_reload_that_changes_no_guard_asks_nobody_anew_and_forgets_nothing(edge: Edge) -> None:
    async with place(edge, ALL, recheck="60s") as (gate, api, who):
        async with gate.watch("/by-session", ADA) as viewer:
            await viewer.event()
            guards = (session(who), user(), partner("acme: k-acme", "zeta: [k-zeta, k-new]"))
            reload(gate, edge, guarding(api, ALL, guards))
            api.put("/n", {"n": 2})
            assert (await viewer.event()).data == '{"n":2}'
            async with gate.watch("/by-session", ADA) as other:
                await other.event()
            assert len(who.requests) == 1


@story
async def test_a_revocation_outlives_a_reload(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        await revoke(gate, "acme")
        guards = (session(who), user(), partner("acme: [k-acme, k-fresh]"))
        reload(gate, edge, guarding(api, ALL, guards))
        assert (await gate.ask("GET", "/by-key", ACME)).status == 401
        async with gate.watch("/by-key", ("X-Api-Key", "k-fresh")) as viewer:
            assert viewer.status == 200


@story
async def test_a_guard_that_is_taken_from_a_route_ends_the_streams_of_the_route(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        routes = ALL.replace("auth: partner", "auth: none")
        async with gate.watch("/by-key", ACME) as viewer, gate.watch("/by-token", by_token()) as token:
            await viewer.event()
            await token.event()
            text = guarding(api, routes, (session(who), user()), more="")
            reload(gate, edge, text)
            await ended(viewer, "revoked")
            api.put("/n", {"n": 2})
            assert (await token.event()).data == '{"n":2}'


@story
async def test_who_is_being_asked_about_while_the_guard_goes_comes_back(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, api, who):
        answered = who.hold()
        opening = asyncio.create_task(gate.ask("GET", "/by-session", ADA))
        buying = asyncio.create_task(gate.ask("POST", "/_ssegate/ticket", GRACE, body=b'{"path":"/by-session"}'))
        await who.until_asked(2)
        guards = (user(), partner("acme: k-acme"))
        reload(gate, edge, guarding(api, ALL.replace("auth: session", "auth: none"), guards))
        answered.set()
        opened, bought = await opening, await buying
        assert (opened.status, opened.body.startswith(b"retry: "), b"data" in opened.body) == (200, True, False)
        assert bought.status == 503


# HTTP/2


@story
async def test_over_http_2_streams_are_told_and_ended_alike(clock: Clock) -> None:
    async with place(Edge("native-h2", "2"), ALL) as (gate, _api, who):
        async with (
            gate.watch("/by-token", by_token(exp=int(time.time()) + 100)) as token,
            gate.watch("/by-session", ADA) as ada,
        ):
            await token.event()
            await ada.event()
            clock.ahead = 45
            await token.until("expiring")
            del who.sessions["s1"]
            await ended(ada, "revoked")
            clock.ahead = 101
            await ended(token, "expired")
        assert (await gate.ask("GET", "/by-session", ADA)).status == 401


# Coming and going


@story
async def test_a_token_that_comes_and_goes_all_day_leaves_no_trace(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _, _who):
        token = by_token(exp=int(time.time()) + 36_000)
        for _ in range(50):  # a day of it is in `tests/gate/test_rights.py`
            async with gate.watch("/by-token", token):
                pass
        await gate.until_clients(0)
        held = gate.service.gate.streams
        assert (len(held.rights), held._by_user, held._by_ip) == (0, {}, {})
