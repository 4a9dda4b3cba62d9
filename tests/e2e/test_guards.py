"""Who is let in, and as whom: guards one by one and in turn, what they are asked, and what those are told who stay outside."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.e2e.client import Pair, RawSocket
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, story
from tests.e2e.guarded import ADA, GRACE, HS, SESSIONS, bearer, denials, guarded, partner, session, status, user
from tests.guards import WhoAmI, knows, redirects, refuses
from tests.upstream.scripted import Asked, heads

JSON: Pair = ("Accept", "application/json")
ACME: Pair = ("X-Api-Key", "k-acme")
COOKIES = ("send: [cookie]",)
PAGE: Pair = ("Origin", "https://app.example.com")
CORS = "cors: {origins: [https://app.example.com], credentials: true}"

ALL = """
- path: /by-session
  auth: session
  poll: {get: /n, every: 1h}
- path: /by-token
  auth: user
  poll: {get: /n, every: 1h}
- path: /by-key
  auth: partner
  poll: {get: /n, every: 1h}
- path: /any
  auth: [user, session, partner]
  poll: {get: /n, every: 1h}
- path: /public
  auth: none
  poll: {get: /n, every: 1h}
- path: /unsaid
  poll: {get: /n, every: 1h}
"""


@asynccontextmanager
async def place(
    edge: Edge, routes: str, *more: str, cache: str = "30s", keys: tuple[str, ...] = (), **others: str
) -> AsyncIterator[tuple[RunningGate, LegacyApi, WhoAmI]]:
    """A gate with all three kinds of guards; its API has `/n`. `keys` are further ones of the guard `session`."""
    async with WhoAmI(SESSIONS) as who, LegacyApi() as api:
        api.put("/n", {"n": 1})
        guards = (session(who, *keys, cache=cache), user(), partner("acme: k-acme", "zeta: [k-zeta, k-new]"))
        async with guarded(edge, routes, *guards, *more, api=api, **others) as gate:
            yield gate, api, who


def token(**claims: object) -> Pair:
    return bearer(HS.token(**claims))


# One guard


@story
async def test_each_guard_lets_in_whom_it_knows_and_nobody_else(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, _who):
        good = {"/by-session": ADA, "/by-token": token(), "/by-key": ACME}
        for path in good:
            for credential in good.values():
                expected = 200 if credential is good[path] else 401
                assert await status(gate, path, credential) == expected, (path, credential)
            assert await status(gate, path) == 401
        for number, odd in enumerate(("k-new", "k-zeta")):
            assert await status(gate, "/by-key", ("X-Api-Key", odd)) == 200, number
        for odd in ("", "k-acm", "k-acmee", "K-ACME", "k-acme,k-acme", "k-ac\u00e9", "k-acme k-zeta"):
            assert await status(gate, "/by-key", ("X-Api-Key", odd)) == 401, odd


@story
async def test_a_route_that_is_public_asks_nobody(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        assert [await status(gate, path, ("Cookie", "session=zz")) for path in ("/public", "/unsaid")] == [200, 200]
        assert who.requests == []


@story
async def test_what_the_defaults_say_holds_for_routes_that_say_nothing_but_not_for_proxies(edge: Edge) -> None:
    routes = f"{ALL}\n- path: /{{rest:path}}\n  proxy: {{}}\n"
    async with place(edge, routes, more="defaults: {auth: [session, partner]}") as (gate, _api, _who):
        assert await status(gate, "/unsaid") == 401
        assert await status(gate, "/unsaid", ADA) == await status(gate, "/unsaid", ACME) == 200
        assert await status(gate, "/public") == 200
        assert await status(gate, "/by-token", ADA) == 401, "its own word counts"
        assert (await gate.ask("GET", "/n")).status == 200


@story
async def test_a_key_may_stand_behind_bearer(edge: Edge) -> None:
    routes = ALL.replace("auth: partner", "auth: machine")
    async with place(edge, routes, partner("m: k-m", name="machine", header="authorization")) as (gate, _api, _who):
        assert await status(gate, "/by-key", bearer("k-m")) == 200
        for value in ("k-m", "Basic k-m", "Bearer", "Bearer k-m k-m", "Bearer k-mm"):
            assert await status(gate, "/by-key", ("Authorization", value)) == 401, value


@story
async def test_who_is_not_let_in_costs_the_upstream_nothing_and_learns_nothing_of_what_there_is(edge: Edge) -> None:
    routes = """
    - path: /orders/{id}/events
      auth: session
      poll: {get: "/orders/{id}", every: 1h}
    - path: /sent/{id}
      auth: partner
      webhook: {at: /hook, verify: none, match: {id: body.id}}
    - path: /chat
      methods: [POST]
      auth: session
      stream: {post: /chat, format: lines}
    """
    async with place(edge, routes) as (gate, api, _who):
        api.put("/orders/17", {"n": 1})
        async with gate.watch("/orders/17/events", ADA) as viewer, gate.watch("/sent/1", ACME):
            await viewer.event()
            asked = len(api.requests)
            for there, not_there in (("/orders/17/events", "/orders/18/events"), ("/sent/1", "/sent/2")):
                for headers in ((), (("Cookie", "session=zz"), ("X-Api-Key", "zz"))):
                    first, second = [await gate.ask("GET", path, *headers) for path in (there, not_there)]
                    assert (first.status, first.body) == (second.status, second.body)
                    assert first.status == 401
                    assert [name for name, _ in first.headers] == [name for name, _ in second.headers]
            named = await gate.ask("GET", "/chat/s/AAAAAAAAAAAAAAAAAAAAAA")
            assert (named.status, (await gate.ask("POST", "/chat", body=b"x")).status) == (401, 401)
            assert len(api.requests) == asked


# In turn


@story
async def test_of_several_guards_the_first_that_knows_the_viewer_decides(edge: Edge) -> None:
    async with place(edge, ALL, keys=COOKIES) as (gate, _api, who):
        for headers in ([ADA], [token()], [ACME], [("Cookie", "session=zz"), ACME], [bearer("x.y.z"), ACME]):
            assert await status(gate, "/any", *headers) == 200, headers
        who.requests.clear()
        assert await status(gate, "/any", token(), ADA) == 200
        assert who.requests == [], "the token was enough"
        assert await status(gate, "/any", bearer(HS.like(key="other").token()), GRACE) == 200
        assert len(who.requests) == 1


@story
async def test_a_viewer_whom_no_guard_of_several_knows_is_told_how_to_say_who_it_is(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        reply = await gate.ask("GET", "/any")
        assert reply.status == 401
        assert sorted((reply.get("www-authenticate") or "").split(", ")) == ["ApiKey", "Bearer", "Cookie"]
        assert who.requests == [], "there is nothing to ask about"
        assert (await denials(gate))[0]["reason"] == "there is no credential for user or session or partner"
        assert (await gate.ask("GET", "/any", ("X-Api-Key", "zz"))).status == 401


@story
async def test_a_guard_that_says_no_or_is_down_is_not_gone_round(edge: Edge) -> None:
    routes = ALL.replace("[user, session, partner]", "[session, partner]")
    async with place(edge, routes) as (gate, _api, who):
        who.plan(refuses(403, body=b"not you"))
        reply = await gate.ask("GET", "/any", ADA, ACME)
        assert (reply.status, reply.body) == (403, b"not you")
        who.plan(refuses(500))
        async with gate.watch("/any", ADA, ACME) as viewer:
            await viewer.opening()
            assert await viewer.rest() == []
        who.plan(refuses(500))
        assert (await gate.ask("GET", "/any", ADA, ACME, JSON)).status == 503
        who.plan(refuses(401))
        assert (await gate.ask("GET", "/any", ADA, ACME, JSON)).status == 200
        expired = token(exp=int(time.time()) - 5)
        assert await status(gate, "/by-token", expired) == 401


@story
async def test_a_token_that_has_run_out_is_not_made_good_by_another_credential(edge: Edge) -> None:
    async with place(edge, ALL, keys=COOKIES) as (gate, _api, _who):
        assert await status(gate, "/any", token(exp=int(time.time()) - 5), ADA) == 401
        assert await status(gate, "/any", token(aud="somebody-else"), ADA) == 200


# What the backend is asked


@story
async def test_the_backend_is_told_what_is_asked_for_and_gets_the_credential_and_nothing_else(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        others: list[Pair] = [
            ("X-Other", "1"),
            ("Last-Event-ID", "x-1"),
            ("Accept-Language", "de"),
            ("X-User-Id", "root"),
        ]
        await status(gate, "/by-session?a=1&ticket=&b=%20", ADA, *others, ("Authorization", "Basic x"), cursor="x-1")
        asked = who.requests[0]
        assert (asked.method, asked.target) == ("GET", who.PATH)
        told = {name.decode().lower(): value.decode() for name, value in asked.headers}
        assert set(told) == {
            "host", "accept-encoding", "accept", "user-agent", "cookie", "authorization", "x-forwarded-for", "x-forwarded-proto",
            "x-forwarded-host", "x-forwarded-method", "x-forwarded-uri",
        }  # fmt: skip
        assert told["host"] == f"127.0.0.1:{who.port}"
        assert told["x-forwarded-host"] == f"127.0.0.1:{gate.port}"
        assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "https" if edge.tls else "http")
        assert (told["x-forwarded-method"], told["x-forwarded-uri"]) == ("GET", "/by-session?a=1&b=%20")
        assert (told["cookie"], told["authorization"]) == ("session=s1", "Basic x")
        assert len(heads(asked)) == len(told), "nothing twice"


SPOOFED: list[Pair] = [
    ("X-Forwarded-For", "9.9.9.9"), ("X-Forwarded-Proto", "gopher"), ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Method", "DELETE"), ("X-Forwarded-Uri", "/free"), ("X-Forwarded-User", "root"), ("Forwarded", "for=9.9.9.9"),
]  # fmt: skip


@pytest.mark.parametrize("proxies", ["", "trusted_proxies: [127.0.0.0/8]"])
@story
async def test_only_a_trusted_proxy_says_where_a_viewer_comes_from_and_nobody_what_is_asked_for(
    edge: Edge, proxies: str
) -> None:
    async with place(edge, ALL, server=proxies) as (gate, _api, who):
        await status(gate, "/by-session", ADA, *SPOOFED)
        asked = who.requests[0]
        assert (asked.get("x-forwarded-method"), asked.get("x-forwarded-uri")) == ("GET", "/by-session")
        assert asked.get("x-forwarded-user") is None
        assert asked.get("forwarded") is None
        if proxies:
            assert asked.get("x-forwarded-for") == "9.9.9.9, 127.0.0.1"
            assert (asked.get("x-forwarded-proto"), asked.get("x-forwarded-host")) == ("gopher", "evil.example")
        else:
            assert asked.get("x-forwarded-for") == "127.0.0.1"
            assert asked.get("x-forwarded-proto") == ("https" if edge.tls else "http")


@story
async def test_a_redirect_of_the_backend_is_not_followed(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who), WhoAmI(SESSIONS) as elsewhere:
        for where in (elsewhere.url, who.PATH, f"{who.PATH}/again"):
            who.plan(redirects(where))
            assert (await gate.ask("GET", "/by-session", ADA, JSON)).status == 503
        assert elsewhere.requests == []
        assert len(who.requests) == 3


@story
async def test_a_refusal_is_passed_on_with_its_words_and_without_its_cookies(edge: Edge) -> None:
    async with place(edge, ALL, more=CORS) as (gate, _api, who):
        for code in (401, 403):
            who.plan(
                refuses(
                    code,
                    (b"Set-Cookie", b"session=evil"),
                    (b"X-Internal", b"10.0.0.7"),
                    (b"Access-Control-Allow-Origin", b"*"),
                    (b"Cache-Control", b"max-age=60"),
                    (b"Content-Language", b"de"),
                    (b"WWW-Authenticate", b'Bearer realm="orders"'),
                    (b"Connection", b"close"),
                    body=b'{"error":"nein"}',
                )
            )
            reply = await gate.ask("GET", "/by-session", ADA, PAGE)
            assert (reply.status, reply.body) == (code, b'{"error":"nein"}')
            fields = dict(reply.headers)
            assert (fields["content-type"], fields["content-language"]) == ("application/json", "de")
            assert (fields["cache-control"], fields["www-authenticate"]) == ("no-store", 'Bearer realm="orders"')
            assert reply.get("access-control-allow-origin") == PAGE[1]
            assert (fields["access-control-allow-credentials"], fields["vary"].lower()) == ("true", "origin")
            assert not {"set-cookie", "x-internal"} & set(fields)


@story
async def test_a_refusal_can_be_read_by_pages_of_known_origins_only(edge: Edge) -> None:
    async with place(edge, ALL, more=CORS) as (gate, _api, _who):
        for path in ("/by-session", "/by-token", "/by-key", "/any"):
            known = await gate.ask("GET", path, PAGE)
            assert (known.status, known.get("access-control-allow-origin")) == (401, PAGE[1])
            foreign = await gate.ask("GET", path, ("Origin", "https://evil.example"))
            assert (foreign.status, foreign.get("access-control-allow-origin")) == (401, None)


@story
async def test_a_preflight_needs_no_credential_and_head_does(edge: Edge) -> None:
    async with place(edge, ALL, more=CORS) as (gate, _api, who):
        asks = ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "authorization")
        for path in ("/by-session", "/by-token", "/by-key"):
            reply = await gate.ask("OPTIONS", path, PAGE, *asks)
            assert (reply.status, reply.get("access-control-allow-origin")) == (204, PAGE[1])
            head = await gate.ask("HEAD", path)
            assert (head.status, head.body) == (401, b"")
        preflight = await gate.ask("OPTIONS", "/by-key", PAGE, asks[0], ("Access-Control-Request-Headers", "x-api-key"))
        assert "x-api-key" in (preflight.get("access-control-allow-headers") or "").lower()
        assert [
            (await gate.ask("HEAD", "/by-session", ADA)).status,
            (await gate.ask("HEAD", "/by-key", ACME)).status,
        ] == [200, 200]
        assert [asked.get("x-forwarded-method") for asked in who.requests] == ["HEAD", "HEAD"][: len(who.requests)]


@story
async def test_concurrent_questions_with_one_credential_are_one_request(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        answered = who.hold()
        async with asyncio.TaskGroup() as group:
            adas = [group.create_task(status(gate, "/by-session", ADA)) for _ in range(12)]
            graces = [group.create_task(status(gate, "/any", GRACE)) for _ in range(3)]
            strangers = [group.create_task(status(gate, "/by-session", ("Cookie", "session=zz"))) for _ in range(3)]
            await who.until_asked(3)
            await asyncio.sleep(0.05)
            answered.set()
        assert [task.result() for task in (*adas, *graces, *strangers)] == [200] * 15 + [401] * 3
        assert sorted(who.credential(asked) or "" for asked in who.requests) == ["s1", "s2", "zz"]


@story
async def test_who_leaves_while_the_backend_is_asked_takes_nobodys_answer_along(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        answered = who.hold()
        async with RawSocket(gate.port, tls=edge.tls) if edge.http == "1.1" else AsyncExitStack() as raw:
            if isinstance(raw, RawSocket):
                raw.writer.write(b"GET /by-session HTTP/1.1\r\nHost: x\r\nCookie: session=s1\r\n\r\n")
                await who.until_asked(1)
            other = asyncio.create_task(status(gate, "/by-session", ADA))
            await who.until_asked(1)
        answered.set()
        assert await other == 200


@story
async def test_a_yes_holds_for_the_cache_and_a_no_does_not(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        for _ in range(3):
            assert await status(gate, "/by-session", ADA) == await status(gate, "/any", ADA) == 200
        assert len(who.requests) == 1
        del who.sessions["s2"]
        assert [await status(gate, "/by-session", GRACE) for _ in range(2)] == [401, 401]
        who.sessions["s2"] = "grace"
        assert await status(gate, "/by-session", GRACE) == 200
        assert len(who.asked_for("s2")) == 3


@story
async def test_without_a_cache_each_stream_is_asked_about(edge: Edge) -> None:
    async with place(edge, ALL, cache="0s") as (gate, _api, who):
        assert [await status(gate, path, ADA) for path in ("/by-session", "/by-session", "/any?x=1")] == [200] * 3
        assert [asked.get("x-forwarded-uri") for asked in who.requests] == ["/by-session", "/by-session", "/any?x=1"]
        answered = who.hold()
        async with asyncio.TaskGroup() as group:
            group.create_task(status(gate, "/by-session", ADA))
            group.create_task(status(gate, "/any", ADA))
            await who.until_asked(5)
            answered.set()
        assert len(who.requests) == 5, "what is asked for decides too"


@story
async def test_the_cache_tells_credentials_apart_by_every_byte(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, who):
        shown: list[list[Pair]] = [
            [("Cookie", "session=s1")], [("Cookie", "session=s1; a=b")], [("Cookie", "session=s1"), ("Authorization", "Basic x")],
            [("Cookie", "session=s1;authorization=Basic x")], [("Authorization", "Bearer s1")], [("Authorization", "Bearer s2")],
        ]  # fmt: skip
        for headers in (*shown, *shown):
            assert await status(gate, "/by-session", *headers) == 200, headers
        assert len(who.requests) == len(shown)


# What a route says itself


ALLOWING = """
- path: /users/{id}/notifications
  auth: [session, user, partner]
  allow: "params.id == identity"
  poll: {get: /n, every: 1h}
- path: /orders
  auth: session
  query: {of: "[a-z]+"}
  allow: "contains(claims.groups, query.of) || headers.\\"x-role\\" == 'auditor'"
  poll: {get: "/n?of={query.of}", every: 1h}
- path: /open
  auth: none
  allow: "headers.\\"x-inside\\" == 'yes' && identity == null && claims == `{}`"
  poll: {get: /n, every: 1h}
"""


@story
async def test_allow_sees_the_path_the_query_the_claims_the_identity_and_the_headers(edge: Edge) -> None:
    async with place(edge, ALLOWING) as (gate, _api, who):
        who.claims["ada"] = {"groups": ["tea"]}
        expected: list[tuple[str, list[Pair], int]] = [
            ("/users/ada/notifications", [ADA], 200),
            ("/users/grace/notifications", [ADA], 403),
            ("/users/grace/notifications", [GRACE], 200),
            ("/users/ada", [ADA], 404),
            ("/users/u1/notifications", [token()], 200),
            ("/users/u2/notifications", [token()], 403),
            ("/users/acme/notifications", [ACME], 200),
            ("/users/acme/notifications", [("X-Api-Key", "k-zeta")], 403),
            ("/orders?of=tea", [ADA], 200),
            ("/orders?of=coffee", [ADA], 403),
            ("/orders", [ADA], 403),
            ("/orders?of=coffee", [ADA, ("X-Role", "auditor")], 200),
            ("/orders?of=tea", [GRACE], 403),
            ("/open", [("X-Inside", "yes")], 200),
            ("/open", [("X-Inside", "no")], 403),
            ("/open", [], 403),
        ]
        for path, headers, code in expected:
            assert await status(gate, path, *headers) == code, (path, headers)
            head = await gate.ask("HEAD", path, *headers)
            assert head.status == code, (path, headers)


@story
async def test_who_is_not_allowed_is_told_nothing_and_the_operator_why(edge: Edge) -> None:
    async with place(edge, ALLOWING, more=CORS) as (gate, api, _who):
        reply = await gate.ask("GET", "/users/grace/notifications?secret=hush", ADA, PAGE)
        assert (reply.status, reply.get("content-type")) == (403, "application/problem+json")
        assert reply.get("access-control-allow-origin") == PAGE[1]
        assert b"allow" not in reply.body
        (denial,) = await denials(gate)
        assert denial.pop("at")
        assert denial == {
            "status": 403, "path": "/users/grace/notifications", "guard": "session", "reason": "`allow` is not true",
            "address": "127.0.0.1", "identity": "ada",
        }  # fmt: skip
        assert api.requests == []


# {identity} and {claims.x}


MINE = """
- path: /me/poll
  auth: [session, user]
  poll: {get: "/users/{identity}?t={claims.tenant}", every: 1h}
- path: /tenant/poll
  auth: [session, user]
  poll: {get: "/tenants/{claims.tenant}", every: 1h}
- path: /me/notifications
  auth: [session, user]
  webhook: {at: /hook, verify: none, match: {identity: body.to}}
- path: /tenant/{room}/notifications
  auth: [session, user]
  webhook: {at: /tenant-hook, verify: none, match: {claims.tenant: body.tenant, room: body.room}}
"""


async def deliver(gate: RunningGate, path: str, body: bytes) -> int:
    return (await gate.ask("POST", path, ("Content-Type", "application/json"), body=body)).status


@story
async def test_what_is_asked_in_a_viewers_name_is_shared_with_nobody_and_what_is_the_same_with_all(edge: Edge) -> None:
    async with place(edge, MINE) as (gate, api, who):
        who.claims = {"ada": {"tenant": "t1"}, "grace": {"tenant": "t1"}}
        who.sessions["s3"] = "ada"
        for path in ("/users/ada", "/users/grace", "/tenants/t1", "/tenants/t2"):
            api.put(path, path)
        twin: Pair = ("Cookie", "session=s3")
        other = token(sub="ada", tenant="t1")
        async with AsyncExitStack() as stack:
            for path in ("/me/poll", "/tenant/poll"):
                said = []
                for credential in (ADA, GRACE, twin, other, token(sub="u9", tenant="t2")):
                    viewer = await stack.enter_async_context(gate.watch(path, credential))
                    said.append((await viewer.event()).data if viewer.status == 200 else viewer.status)
                if path == "/me/poll":
                    assert said == ['"/users/ada"', '"/users/grace"', '"/users/ada"', '"/users/ada"', 404]
                else:
                    assert said == ['"/tenants/t1"'] * 4 + ['"/tenants/t2"']
            asked = [asked.target for asked in api.requests]
            assert sorted(asked) == [
                "/tenants/t1", "/tenants/t2", "/users/ada?t=t1", "/users/grace?t=t1", "/users/u9?t=t2",
            ]  # fmt: skip
        assert all(asked.get("cookie") is None and asked.get("authorization") is None for asked in api.requests)


@pytest.mark.parametrize("tenant", [None, "", [], {"a": 1}, True and [1]])
@story
async def test_who_lacks_what_a_route_wants_to_know_is_not_let_in(edge: Edge, tenant: object) -> None:
    async with place(edge, MINE) as (gate, api, who):
        who.claims["ada"] = {"tenant": tenant}
        for path in ("/me/poll", "/tenant/poll", "/tenant/r/notifications"):
            assert await status(gate, path, ADA) == 403, path
        assert api.requests == []
        assert (await denials(gate))[0]["reason"] == "the credential has no `claims.tenant`, which the route wants"


@pytest.mark.parametrize(
    "name", ["../admin", "..", "a/b", "a%2fb", "a?b=c", "a#b", "a b", "\u00e4", "a&t=t2", "%2e%2e", "."]
)
@story
async def test_an_identity_cannot_leave_its_place_in_a_url(edge: Edge, name: str) -> None:
    async with place(edge, MINE) as (gate, api, _):
        got = await status(gate, "/me/poll", token(sub=name, tenant=name))
        for asked in api.requests:
            path, _, query = asked.target.partition("?")
            assert path.startswith("/users/")
            assert path.count("/") == 2, asked.target
            assert query.startswith("t=")
            assert (query.count("&"), query.count("=")) == (0, 1), asked.target
        assert got == 404, "there is no such user"


@story
async def test_a_delivery_reaches_the_viewer_it_names_and_nobody_else(edge: Edge) -> None:
    async with place(edge, MINE) as (gate, _, who):
        who.claims = {"ada": {"tenant": "t1"}, "grace": {"tenant": "t2"}}
        async with AsyncExitStack() as stack:
            ada, grace = [
                await stack.enter_async_context(gate.watch("/me/notifications", each)) for each in (ADA, GRACE)
            ]
            one, two = [
                await stack.enter_async_context(gate.watch("/tenant/r/notifications", each)) for each in (ADA, GRACE)
            ]
            other = await stack.enter_async_context(gate.watch("/tenant/q/notifications", ADA))
            await deliver(gate, "/hook", b'{"to":"ada","n":1}')
            await deliver(gate, "/hook", b'{"to":"nobody","n":2}')
            await deliver(gate, "/hook", b'{"n":3}')
            await deliver(gate, "/hook", b'{"to":["ada"],"n":4}')
            await deliver(gate, "/hook", b'{"to":"grace","n":5}')
            await deliver(gate, "/hook", b'{"to":"ada","n":6}')
            assert [(await ada.event()).data[-3:] for _ in range(2)] == [":1}", ":6}"]
            assert (await grace.event()).data[-3:] == ":5}"
            for tenant, room, n in (("t1", "r", 1), ("t2", "r", 2), ("t1", "q", 3), ("t3", "r", 4)):
                body = b'{"tenant":"%b","room":"%b","n":%d}' % (tenant.encode(), room.encode(), n)
                await deliver(gate, "/tenant-hook", body)
            assert [(await each.event()).data[-3:] for each in (one, two, other)] == [":1}", ":2}", ":3}"]
            assert not any(each.drop() for each in (ada, grace, one, two, other))


# What the upstream is told of the viewer


TOLD = """
- path: /told/poll
  auth: [session, user]
  poll: {get: /n, every: 1h, forward: [x-user, x-lang]}
- path: /told/stream
  auth: [session, user]
  stream: {get: /lines, format: lines, forward: [x-user]}
- path: /told/own
  methods: [POST]
  auth: [session, user]
  stream: {post: /lines, format: lines, forward: [x-user]}
- path: /told/nobody
  auth: none
  poll: {get: /nobody, every: 1h, forward: [x-user]}
- path: /api/{rest:path}
  auth: [session, user]
  proxy: {}
- path: /{rest:path}
  proxy: {}
"""
HEADERS = 'headers: {X-User: "{identity}", X-Tenant: "t-{claims.tenant}", X-Plain: plain}'


def fields_of(asked: Asked, name: str) -> list[bytes]:
    """The values of a request's field, with `_` taken for `-` as CGI and WSGI do."""
    return [value for key, value in asked.headers if key.lower().replace(b"_", b"-") == name.encode()]


LIES: list[Pair] = [
    ("X-User", "root"),
    ("x-uSeR", "root"),
    ("X-USER", "root, admin"),
    ("X-Tenant", "t-evil"),
    ("x-plain", "evil"),
]


@story
async def test_the_upstream_is_told_who_the_viewer_is_and_never_by_the_viewer(edge: Edge) -> None:
    async with place(edge, TOLD, upstream=HEADERS) as (gate, api, who):
        who.claims["ada"] = {"tenant": "t1"}
        api.serve("/lines", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\na\n")
        for path in ("/told/poll", "/told/stream"):
            assert await status(gate, path, ADA, *LIES) == 200
        async with gate.exchange("POST", "/told/own", ADA, *LIES, body=b"x") as it:
            assert it.status == 200
        await gate.ask("GET", "/api/n", ADA, *LIES)
        await gate.ask("POST", "/api/n", ADA, *LIES, body=b"x")
        await api.until_asked("/api/n", 2)
        await api.until_asked("/lines", 2)
        assert len(api.requests) >= 5
        for asked in api.requests:
            assert fields_of(asked, "x-user") == [b"ada"], asked
            assert fields_of(asked, "x-tenant") == [b"t-t1"], asked
            assert fields_of(asked, "x-plain") == [b"plain"], asked


@story
async def test_where_nobody_knows_the_viewer_the_upstream_is_told_nothing_and_no_lies(edge: Edge) -> None:
    async with place(edge, TOLD, upstream=HEADERS) as (gate, api, _):
        api.put("/nobody", {"n": 1})
        assert await status(gate, "/told/nobody", ADA, *LIES) == 200
        await gate.ask("GET", "/n", ADA, *LIES)
        await gate.ask("GET", "/api/n", ADA, *LIES)
        first, second, third = api.requests
        for asked in (first, second):
            assert (fields_of(asked, "x-user"), fields_of(asked, "x-tenant")) == ([], []), asked
        assert (fields_of(third, "x-user"), fields_of(third, "x-tenant")) == ([b"ada"], [])


@story
async def test_a_lie_with_an_underscore_does_not_pass_either(edge: Edge) -> None:
    async with place(edge, TOLD, upstream=HEADERS) as (gate, api, _who):
        await gate.ask("GET", "/n", ("X_User", "root"))
        assert fields_of(api.requests[0], "x-user") == []


@story
async def test_viewers_of_whom_the_upstream_is_told_do_not_share_a_poll(edge: Edge) -> None:
    async with place(edge, TOLD, upstream=HEADERS) as (gate, api, who):
        who.sessions["s3"] = "ada"
        async with AsyncExitStack() as stack:
            for credential in (ADA, GRACE, ("Cookie", "session=s3"), token(sub="ada")):
                viewer = await stack.enter_async_context(gate.watch("/told/poll", credential))
                await viewer.event()
        assert [fields_of(asked, "x-user") for asked in api.requests] == [[b"ada"], [b"grace"]]


# Streams of single requests


OWN = """
- path: /chat
  methods: [POST]
  auth: [session, user]
  stream: {post: /lines, format: lines, linger: 5s}
"""


@story
async def test_a_stream_of_ones_own_belongs_to_the_identity_and_comes_back_with_a_fresh_credential(edge: Edge) -> None:
    async with place(edge, OWN) as (gate, api, who):
        held = api.hold("/never")
        api.serve("/lines", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\na\nb\n")
        async with gate.exchange("POST", "/chat", ADA, body=b"hi") as it:
            assert it.status == 200
            name = dict(it.headers)["ssegate-stream"]
            data = b""
            while b"id: " not in data:
                data += await it.read()
            cursor = data.split(b"id: ")[1].split(b"\n")[0].decode()
        who.sessions["s3"] = "ada"
        for credential, code in (
            (ADA, 200),
            (("Cookie", "session=s3"), 200),
            (token(sub="ada"), 200),
            (GRACE, 404),
            (token(), 404),
        ):
            assert await status(gate, name, credential) == code, credential
            assert await status(gate, name, credential, cursor=cursor) == code, credential
        assert await status(gate, name) == 401
        assert (await gate.ask("HEAD", name, GRACE)).status == 404
        held.set()


# Requests that are passed on


PASSED = """
- path: /api/{rest:path}
  auth: [session, partner]
  allow: "params.rest != 'admin' || identity == 'grace'"
  proxy: {}
- path: /{rest:path}
  proxy: {}
"""


@story
async def test_a_request_that_is_passed_on_is_guarded_where_its_route_says_so(edge: Edge) -> None:
    async with place(edge, PASSED) as (gate, api, who):
        api.put("/api/x", {"x": 1})
        api.put("/api/admin", {"x": 2})
        assert (await gate.ask("GET", "/n")).status == 200
        asked = len(api.requests)
        for method, body in (("GET", b""), ("POST", b"x"), ("PUT", b'{"x":9}'), ("DELETE", b""), ("HEAD", b"")):
            assert (await gate.ask(method, "/api/x", body=body)).status == 401, method
        refused = await gate.ask("GET", "/api/admin", ADA)
        assert (refused.status, len(api.requests)) == (403, asked)
        assert (await gate.ask("GET", "/api/x", ADA)).body == b'{"x": 1}'
        assert (await gate.ask("GET", "/api/admin", GRACE)).body == b'{"x": 2}'
        assert (await gate.ask("GET", "/api/x", ACME)).status == 200
        assert (await gate.ask("PUT", "/api/x", ADA, body=b'{"x":3}')).status == 200
        assert (await gate.ask("GET", "/api/x", ADA)).body == b'{"x": 3}'
        who.usually(refuses(500))
        down = await gate.ask("GET", "/api/x", ("Cookie", "session=s9"))
        assert (down.status, down.get("retry-after") is not None) == (503, True)
        who.usually(refuses(401, (b"Set-Cookie", b"a=b"), body=b"log in"))
        unknown = await gate.ask("GET", "/api/x", ("Cookie", "session=s9"))
        assert (unknown.status, unknown.body, unknown.get("set-cookie")) == (401, b"log in", None)
        assert {(denial["path"], denial["status"]) for denial in await denials(gate)} == {
            ("/api/x", 401),
            ("/api/admin", 403),
        }


@story
async def test_a_request_to_go_over_to_another_protocol_is_guarded_too(edge: Edge) -> None:
    async with place(edge, PASSED) as (gate, api, _), RawSocket(gate.port, tls=edge.tls) as raw:
        if edge.http != "1.1":
            return
        raw.writer.write(
            b"GET /api/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert (await raw.until(b"\r\n\r\n")).startswith((b"HTTP/1.1 401", b"HTTP/1.1 501"))
        assert api.requests == []


SPELLINGS = (
    "/%61pi/admin", "/api//admin", "//api/admin", "/./api/admin", "/x/../api/admin", "/x/..%2fapi/admin", "/api%2fadmin", "/API/admin",
    "/x/%2e%2e/api/admin", "/x;/../api/admin", "/api;a=b/admin", "/\\api/admin", "/%2561pi/admin", "/.;/api/admin", "/api/admin/..;/admin",
)  # fmt: skip


@pytest.mark.parametrize("path", SPELLINGS)
@story
async def test_another_spelling_of_a_path_does_not_go_round_its_guard(edge: Edge, path: str) -> None:
    async with place(edge, PASSED) as (gate, api, _):
        reply = await gate.ask("GET", path)
        if reply.status == 404 and api.requests:  # to the backend it is another path too
            assert path in ("/API/admin", "/%2561pi/admin"), path
        else:
            assert (reply.status in (400, 401, 404), api.requests) == (True, []), reply


@pytest.mark.parametrize(
    "rest", ["public/../admin", "public/%2e%2e/admin", "public/..%2fadmin", "public/x/../../admin"]
)
@story
async def test_what_allow_sees_of_the_rest_of_a_path_is_what_the_backend_makes_of_it(edge: Edge, rest: str) -> None:
    routes = """
    - path: /api/{rest:path}
      auth: session
      allow: "starts_with(params.rest, 'public/')"
      proxy: {}
    """
    async with place(edge, routes) as (gate, api, _):
        reply = await gate.ask("GET", f"/api/{rest}", ADA)
        assert (reply.status in (400, 403, 404), api.requests) == (True, [])


@story
async def test_a_preflight_for_a_guarded_proxy_reaches_the_backend(edge: Edge) -> None:
    async with place(edge, PASSED) as (gate, api, _who):
        api.serve("/api/x", b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: https://app.example.com\r\n\r\n")
        asks = ("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "x-api-key")
        reply = await gate.ask("OPTIONS", "/api/x", PAGE, *asks)
        assert (reply.status, reply.get("access-control-allow-origin")) == (204, PAGE[1])


# Limits


@story
async def test_a_viewer_has_so_many_streams_and_another_one_its_own(edge: Edge) -> None:
    async with place(edge, ALL, more="limits: {clients_per_user: 2}") as (gate, _api, who):
        who.sessions["s3"] = "ada"
        again: Pair = ("Cookie", "session=s3")
        async with gate.watch("/by-session", ADA) as one, gate.watch("/any", again) as two:
            await one.event()
            await two.event()
            async with gate.watch("/by-session", ADA) as third:
                assert 5000 <= await third.opening() <= 15000
                assert await third.rest() == []
            assert (await gate.ask("GET", "/by-session", ADA, ("Accept", "application/x-ndjson"))).status == 503
            assert (await gate.ask("HEAD", "/by-session", ADA)).status == 200
            async with gate.watch("/by-session", GRACE) as other, gate.watch("/public", ADA) as public:
                await other.event()
                await public.event()
            metrics = (await gate.admin.ask("GET", "/metrics")).body
            assert b'ssegate_streams_refused_total{reason="clients_per_user"} 2' in metrics
        await gate.until_clients(0)
        async with gate.watch("/by-session", ADA) as viewer:
            await viewer.event()


@story
async def test_a_viewer_cannot_open_more_streams_by_opening_them_at_once(edge: Edge) -> None:
    async with place(edge, ALL, more="limits: {clients_per_user: 2}") as (gate, api, _who):
        held = api.hold("/n")
        async with AsyncExitStack() as stack:
            tasks = [asyncio.create_task(stack.enter_async_context(gate.watch("/by-session", ADA))) for _ in range(6)]
            await api.until_asked("/n", 1)
            await asyncio.sleep(0.05)
            held.set()
            viewers = await asyncio.gather(*tasks)
            assert gate.service.gate.statistics().clients == 2
            assert len(viewers) == 6


@story
async def test_so_many_streams_a_second_are_opened_from_one_address(edge: Edge) -> None:
    more = "limits: {requests_per_second: 3}"
    async with place(edge, ALL, more=more, server="trusted_proxies: [127.0.0.0/8]") as (gate, _api, who):
        here: Pair = ("X-Forwarded-For", "192.0.2.1")
        began = time.monotonic()
        codes = [(await gate.ask("GET", "/by-session", JSON, ADA, here)).status for _ in range(5)]
        if time.monotonic() - began < 0.3:
            assert codes == [200, 200, 200, 503, 503]
        asked = len(who.requests)
        assert (await gate.ask("GET", "/by-session", JSON, ("Cookie", "session=s9"), here)).status in (401, 503)
        assert len(who.requests) <= asked + 1
        assert (await gate.ask("GET", "/by-session", JSON, ADA, ("X-Forwarded-For", "192.0.2.2"))).status == 200
        assert (await gate.ask("OPTIONS", "/by-session", here)).status == 204
        metrics = (await gate.admin.ask("GET", "/metrics")).body
        assert b'ssegate_streams_refused_total{reason="requests_per_second"}' in metrics


# What operators see


SECRETS = ("hush-cookie", "hush-key", "hush-token", "hush-ticket", "hush-basic", "hush-query", "hush-header")


@story
async def test_no_credential_is_told_to_the_log_or_the_operator(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with place(edge, ALL + PASSED, keys=("send: [cookie, authorization, x-hush]",)) as (gate, _api, who):
        good = token(jti="hush")
        wrong = HS.like(key="other").token()
        shown: list[Pair] = [
            ("Cookie", "session=hush-cookie"), ("X-Api-Key", "hush-key"), ("Authorization", "Bearer hush-token.a.b"),
            ("Authorization", "Basic hush-basic"), ("X-Hush", "hush-header"), bearer(wrong), good, bearer("a.b.c" * 5000),
        ]  # fmt: skip
        paths = ("/by-session", "/by-token", "/by-key", "/any", "/api/x")
        for path in paths:
            for header in shown:
                await status(gate, f"{path}?ticket=sst_hush-ticket&access_token=hush-query&ticket=hush-ticket", header)
                await status(gate, path, header)
        for plan in (refuses(500), knows("ada\thush-name"), refuses(403), redirects("/login?token=hush-query")):
            who.plan(plan)
            await status(gate, "/by-session", ("Cookie", "session=hush-cookie"))
        await who.go_down()
        await status(gate, "/by-session", ("Cookie", "session=hush-cookie"))
        await who.come_back()
        seen = caplog.text + str(await denials(gate)) + (await gate.admin.ask("GET", "/metrics")).body.decode()
        for secret in (*SECRETS, wrong, wrong.split(".")[2], good[1].split(" ")[1], "a.b.ca.b.c"):
            assert secret not in seen, secret
        assert (await denials(gate))[0]["status"] in (401, 403)
        assert "guard" in caplog.text


@story
async def test_the_last_two_hundred_denials_are_kept_the_newest_first(edge: Edge) -> None:
    async with place(edge, ALL.replace("/by-key", "/by-key/{n}")) as (gate, _api, _who):
        for n in range(205):
            await gate.ask("GET", f"/by-key/{n}", ("X-Api-Key", "zz"))
        found = await denials(gate)
        assert len(found) == 200
        assert [found[0]["path"], found[-1]["path"]] == ["/by-key/204", "/by-key/5"]
        assert found[0]["reason"] == "the key in `x-api-key` is none of the guard's"
        metrics = (await gate.admin.ask("GET", "/metrics")).body
        assert b'ssegate_denials_total{guard="partner",status="401"} 205' in metrics
        for method in ("POST", "DELETE"):
            assert (await gate.admin.ask(method, "/denials")).status == 405
        assert (await gate.ask("GET", "/denials")).status == 404, "not for the public"


@story
async def test_a_token_for_somebody_else_is_told_to_the_operator_as_such(edge: Edge) -> None:
    async with place(edge, ALL) as (gate, _api, _who):
        for claims, reason in (
            ({"aud": "orders-admin"}, "signature is good, its audience is `orders-admin`, wanted `orders-ui`"),
            (
                {"iss": "x\nFORGED"},
                "signature is good, its issuer is `x\ufffdFORGED`, wanted `https://login.example.com/`",
            ),
            ({"aud": None}, "signature is good, it has no `aud`"),
            ({"exp": None}, "signature is good, it has no `exp`"),
        ):
            reply = await gate.ask("GET", "/by-token", token(**claims))
            assert (reply.status, b"audience" in reply.body) == (401, False)
            assert (await denials(gate))[0]["reason"] == reason


@pytest.mark.parametrize(
    "path", ["/by-key%0a401", "/by-key%0d%0aforged", "/by-key%1b[31m", "/by-key%e2%80%a8x", "/by-key%00"]
)
@story
async def test_a_log_line_cannot_be_forged_by_a_path(edge: Edge, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    routes = "- path: /{rest:path}\n  auth: partner\n  proxy: {}"
    async with place(edge, routes) as (gate, api, _who):
        await gate.ask("GET", path)
        for record in caplog.records:
            assert record.getMessage().isprintable(), record.getMessage()
        assert api.requests == []
