"""Nothing crosses: whatever two viewers do at the same time, on whatever routes, each gets what is its own, and finds out nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.gate import RunningGate, running_gate
from tests.guards import (
    WhoAmI,
    closes,
    cuts,
    cuts_in_the_head,
    nameless,
    redirects,
    refuses,
    replies,
    resets,
    says_who,
    sends,
)
from tests.safety.crowd import (
    ADA,
    EDGE,
    GRACE,
    ISSUES,
    JSON,
    NDJSON,
    PEOPLE,
    ROUTES,
    SERVER,
    SSE,
    ZOE,
    Headers,
    OneByOne,
    Person,
    World,
    world,
)
from tests.safety.harness import PATIENCE, Client, run, run_for
from tests.tokens import Issuer
from tests.upstream.scripted import Call, ScriptedUpstream, answer

HYPERCORN = f"edge: hypercorn, {SERVER}"
EVENTFUL = [*ROUTES, *(f"{kind} name" for kind in ("mine", "chat", "job"))]


def test_of_two_viewers_on_all_kinds_of_routes_neither_gets_anything_of_the_other() -> None:
    async def test() -> None:
        async with world(random.randrange(2**32)) as it:
            await it.run(300)
            missing = [what for what in ("401", "404", "cursor", "vector", "ticket", "live open") if not it.seen[what]]
            assert not missing, sorted(it.seen.items())

    run(test())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_on_the_other_edge_neither_gets_anything_of_the_other_either() -> None:
    async def test() -> None:
        async with world(random.randrange(2**32), HYPERCORN) as it:
            await it.run(1500)
            missing = [kind for kind in EVENTFUL if not it.seen[f"{kind} event"]]
            assert not missing, sorted(it.seen.items())

    run_for(300, test())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_thousand_interleavings_of_two_viewers_deliver_nothing_across() -> None:
    async def test() -> None:
        async with world(random.randrange(2**32)) as it:
            await it.run(10_000)
            wanted = [
                "401",
                "403",
                "404",
                "cursor",
                "vector",
                "ticket",
                "old ticket",
                "revoked",
                "step swap",
                "live open",
                "relay 200",
            ]
            wanted += ["somebody else's", "somebody else's name", *(f"{kind} event" for kind in EVENTFUL)]
            wanted += [f"reload {what}" for what in ("route", "key", "require", "guard", "nothing")]
            wanted += [f"{media} {kind}" for media in (SSE, NDJSON) for kind in ROUTES]
            wanted += [f"{JSON} {kind}" for kind, route in ROUTES.items() if not route.is_own and kind != "shared"]
            missing = [what for what in wanted if not it.seen[what]]
            assert not missing, (missing, sorted(it.seen.items()))
            assert it.gate.service.gate.statistics().refused["reloaded"], "a reload has met somebody on the way in"
            assert it.wires[0].reused > 100
            assert it.wires[1].most_at_once > 5

    run_for(500, test())


# What there is


@dataclass(frozen=True)
class Try:
    """One request, and what of it is its own: the part that stands for something that exists, or does not."""

    target: str
    headers: Headers = ()
    method: str = "GET"
    body: bytes = b""
    own: tuple[str, ...] = ()


NOBODY = "nobody.four"
NO_NAME = "A" * 22
NO_TICKET = "sst_" + "A" * 32


class Onlooker:
    """Somebody who tries to find out what there is."""

    def __init__(self, it: World, log: pytest.LogCaptureFixture) -> None:
        self.it = it
        self._log = log
        log.set_level(logging.DEBUG, "ssegate")

    async def hears(self, each: Try, *, with_log: bool = True) -> tuple[object, ...]:
        """All that comes of a request, to the viewer and to the log, with what is its own left out."""
        self._log.clear()
        opened = await self.it.wires[0].ask(each.method, each.target, each.headers, each.body)
        if (opened.get("content-type") or "") in (SSE, NDJSON):
            # Without what happens: that may have come already, or not.
            blocks = (await opened.read()).split(b"\n\n")
            body = b"\n\n".join(block for block in blocks if b"id: " not in block)
            opened.close()
        else:
            body = await opened.whole()
        fields = sorted((name, value) for name, value in opened.headers if name != "date")
        logged = [
            (record.name, record.levelname, record.getMessage())
            for record in self._log.records
            if record.name.startswith(("ssegate.gate", "ssegate.auth", "ssegate.edge", "ssegate.admin"))
        ]
        text = repr((opened.status, fields, body, logged if with_log else ()))
        for own in each.own:
            text = text.replace(own, "…")
        return opened.status, re.sub(r"retry: \d+|sst_[\w-]{32}|'retry-after', '\d+'", "…", text)

    async def finds_no_difference(self, *tries: Try, status: int, with_log: bool = True) -> None:
        """All of them are answered alike."""
        assert len({repr(each) for each in tries}) == len(tries)
        first, *others = [await self.hears(each, with_log=with_log) for each in tries]
        assert first[0] == status, first
        for other, each in zip(others, tries[1:], strict=True):
            assert other == first, each


@asynccontextmanager
async def onlooking(log: pytest.LogCaptureFixture) -> AsyncIterator[tuple[World, Onlooker]]:
    """Ada looks on; grace has a stream of her own, one that is fed, and nobody polls."""
    async with world(1) as it:
        it.setting.editions["hooked"] += 1
        grace = it.people[1]
        await it.open(it.rng, grace, "chat", "/chat", (grace.credential("session"), ("Accept", SSE)), method="POST")
        await it.open(it.rng, grace, "addressed", f"/addressed/{GRACE}", (grace.credential("partner"),))
        await it.open(it.rng, grace, "hooked", "/hooked", (grace.credential("session"),))
        await deliver(it, GRACE)
        async with asyncio.timeout(PATIENCE):
            while not (it.seen["chat event"] and it.seen["hooked event"] and it.seen["addressed event"]):
                await asyncio.sleep(0.005)  # the readers tell nobody
        yield it, Onlooker(it, log)
        assert not it.failures, it.failures


async def deliver(it: World, name: str) -> None:
    """Something that the webhooks say to one of them."""
    for hook in ("hooked", "addressed"):
        body = json.dumps({"to": name, "for": name}).encode()
        await (await it.wires[0].ask("POST", f"/hooks/{hook}", (("Content-Type", JSON),), body)).whole()


def shown(person: Person) -> list[tuple[str, str]]:
    return [person.credential(kind) for kind in ("session", "partner")]


SHAPES: dict[str, Headers] = {
    "stream": (("Accept", SSE),),
    "lines": (("Accept", NDJSON),),
    "whole": (("Accept", JSON),),
    "any": (),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("shape", [*SHAPES])
def test_somebody_elses_stream_is_answered_like_one_that_there_is_not(
    caplog: pytest.LogCaptureFixture, shape: str, method: str
) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada, grace = it.people[:2]
            (name,) = grace.streams
            cursor = ("Last-Event-ID", grace.cursors[-1])
            for more in ((), (cursor,), (("Last-Event-ID", "AAAAAAAAAAA-1"),)):
                for credential, status in [(("X-Nothing", "x"), 401), *((each, 404) for each in shown(ada))]:
                    tries = [
                        Try(f"/chat/s/{token}", (credential, *SHAPES[shape], *more), method, own=(token,))
                        for token in (name[-22:], NO_NAME)
                    ]
                    await onlooker.finds_no_difference(*tries, status=status)

    run(test())


@pytest.mark.parametrize("shape", [*SHAPES])
@pytest.mark.parametrize("route", ["addressed", "allowed"])
def test_somebody_elses_topic_is_answered_like_one_that_there_is_not(
    caplog: pytest.LogCaptureFixture, route: str, shape: str
) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada = it.people[0]
            for credential, status in [(("X-Nothing", "x"), 401), *((each, 403) for each in shown(ada))]:
                for query in ("", "?wait=1s", f"?lastEventId={it.people[1].cursors[-1]}"):
                    tries = [
                        Try(f"/{route}/{name}{query}", (credential, *SHAPES[shape]), own=(name,))
                        for name in (GRACE, ZOE, NOBODY)
                    ]
                    await onlooker.finds_no_difference(*tries, status=status)

    run(test())


def test_somebody_elses_topic_in_a_joined_stream_says_what_one_says_that_there_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada = it.people[0]
            for credential, status in [(("X-Nothing", "x"), 401), *((each, 403) for each in shown(ada))]:
                tries = [Try(f"/live?topic=/addressed/{name}", (credential,), own=(name,)) for name in (GRACE, NOBODY)]
                await onlooker.finds_no_difference(*tries, status=status)
            for vector in ("", it.people[1].cursors[-1]):
                more = (("Last-Event-ID", vector),) if vector else ()
                tries = [
                    Try(f"/live?topic=/addressed/{name}&topic=/hooked", (*shown(ada), *more), own=(name,))
                    for name in (GRACE, NOBODY)
                ]
                await onlooker.finds_no_difference(*tries, status=200)

    run(test())


@pytest.mark.parametrize("target", ["/hooked", "/chat", f"/addressed/{ADA}", "/live?topic=/hooked"])
def test_somebody_elses_cursor_says_what_one_says_that_there_is_not(
    caplog: pytest.LogCaptureFixture, target: str
) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada, grace = it.people[:2]
            await deliver(it, ADA)
            await it.open(it.rng, grace, "live", "/live?topic=/hooked", (grace.credential("session"),), ("/hooked",))
            await deliver(it, GRACE)
            async with asyncio.timeout(PATIENCE):
                while not grace.vectors:
                    await asyncio.sleep(0.005)  # the readers tell nobody
            made_up = {"/live?topic=/hooked": ("A" * len(grace.vectors[-1]), "AAAA")}
            epoch, _, offset = grace.cursors[-1].rpartition("-")
            cursors = made_up.get(target, (f"{'A' * len(epoch)}-{offset}", "AAAAAAAAAAA-1"))
            theirs = grace.vectors if target.startswith("/live") else grace.cursors
            method = "POST" if target == "/chat" else "GET"
            body = b'{"prompt": "hi"}' if method == "POST" else b""
            tries = [
                Try(target, (*shown(ada), ("Accept", SSE), ("Last-Event-ID", cursor)), method, body)
                for cursor in (*theirs[-3:], *cursors)
            ]
            heard = [
                re.sub(r"/s/[\w-]{22}|\w{11}-\d+|id: [\w-]+", "…", str(await onlooker.hears(each))) for each in tries
            ]
            assert "unknown-cursor" in heard[0], heard[0]
            assert set(heard) == {heard[0]}

    run(test())


def test_no_key_tells_how_near_it_is_or_whether_it_was_one(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            grace = it.people[1]
            before = grace.key
            it.change_key(grace)
            keys = ("none", before, grace.key[:-1], f"{grace.key}x", grace.key.upper(), GRACE)
            for target in ("/told", f"/addressed/{GRACE}", f"/addressed/{NOBODY}", "/live?topic=/told"):
                tries = [Try(target, (("X-Api-Key", key),)) for key in keys]
                await onlooker.finds_no_difference(*tries, status=401)

    run(test())


def test_no_token_tells_whether_its_bearer_is_known(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (_, onlooker):
            stranger = Issuer("HS256", kid=None, key="another")
            wrong: tuple[tuple[Issuer, dict[str, object]], ...] = (
                (stranger, {}),
                (ISSUES, {"exp": 1}),
                (ISSUES, {"aud": "another"}),
                (ISSUES, {"iss": "another"}),
            )
            for issuer, claims in wrong:
                tokens = [issuer.token(sub=name, **claims) for name in (ADA, GRACE, NOBODY)]
                tries = [Try("/shared", (("Authorization", f"Bearer {token}"),)) for token in tokens]
                await onlooker.finds_no_difference(*tries, status=401)

    run(test())


def test_no_ticket_tells_whether_it_was_ever_sold(caplog: pytest.LogCaptureFixture) -> None:
    async def buy(it: World, path: str, person: Person) -> str:
        headers = (person.credential("session"), ("Content-Type", JSON))
        bought = await it.wires[0].ask("POST", "/_ssegate/ticket", headers, json.dumps({"path": path}).encode())
        ticket: str = json.loads(await bought.whole())["ticket"]
        return ticket

    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada, grace, zoe = it.people
            unused = await buy(it, "/hooked", grace)  # for another path than it will be shown at
            reading = await buy(it, f"/addressed/{GRACE}", grace)
            left = await buy(it, f"/addressed/{GRACE}", grace)
            revoked = await buy(it, f"/addressed/{ZOE}", zoe)
            opened = await it.wires[0].ask("GET", f"/addressed/{GRACE}?ticket={reading}", ())
            assert opened.status == 200
            gone = await it.wires[0].ask("GET", f"/addressed/{GRACE}?ticket={left}", ())
            assert gone.status == 200
            gone.close()
            await it.step_revoke(it.rng, zoe)
            async with asyncio.timeout(PATIENCE):
                while it.gate.service.gate.statistics().clients > 4:
                    await asyncio.sleep(0.005)  # figures tell nobody when they change
            for path, tickets in (
                (f"/addressed/{GRACE}", (NO_TICKET, unused, reading, left, NO_TICKET[:9], "x")),
                (f"/addressed/{ZOE}", (NO_TICKET, unused, revoked, "x")),
                ("/live?topic=/hooked", (NO_TICKET, unused, reading, revoked)),
            ):
                for cursor in ((), (("Last-Event-ID", ada.cursors[-1] if ada.cursors else "AAAAAAAAAAA-7"),)):
                    mark = "&" if "?" in path else "?"
                    tries = [Try(f"{path}{mark}ticket={ticket}", cursor, own=(ticket,)) for ticket in tickets]
                    # The log's reason tells its operator what is the matter with a ticket.
                    await onlooker.finds_no_difference(*tries, status=401, with_log=False)
            opened.close()

    run(test())


def test_the_ticket_desk_does_not_tell_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with onlooking(caplog) as (it, onlooker):
            ada, grace = it.people[:2]

            def wanting(path: str, own: str, *credentials: tuple[str, str]) -> Try:
                headers = (("Content-Type", JSON), *credentials)
                return Try("/_ssegate/ticket", headers, "POST", json.dumps({"path": path}).encode(), own=(own,))

            for credential, status in [(("X-Nothing", "x"), 401), *((each, 403) for each in shown(ada))]:
                for route in ("addressed", "allowed"):
                    tries = [wanting(f"/{route}/{name}", name, credential) for name in (GRACE, NOBODY)]
                    await onlooker.finds_no_difference(*tries, status=status)
            tokens = (grace.streams[0][-22:], NO_NAME)
            tries = [wanting(f"/chat/s/{token}", token, ada.credential("session")) for token in tokens]
            await onlooker.finds_no_difference(*tries, status=200)

    run(test())


def test_figures_name_no_viewer_topic_key_stream_or_ticket() -> None:
    async def test() -> None:
        async with world(random.randrange(2**32)) as it:
            await it.run(60)
            await it.step_revoke(it.rng, it.people[0])
            figures = (await it.gate.admin.ask("GET", "/metrics")).body.decode()
            assert "ssegate_denials" in figures
            tickets = [
                target.partition("ticket=")[2].partition("&")[0] for person in it.people for _, target in person.tickets
            ]
            credentials = [text for person in it.people for text in (person.key, person.session, person.token)]
            streams = [name[-22:] for person in it.people for name in person.streams]
            cursors = [cursor.partition("-")[0] for person in it.people for cursor in person.cursors]
            for text in (*PEOPLE, *tickets, *credentials, *streams, *cursors):
                assert f'"{text}"' not in figures, text
                assert len(text) < 6 or text not in figures, text

    run(test())


def test_a_refusal_names_no_stream() -> None:
    async def test() -> None:
        async with world(1) as it:
            ada = it.people[0]
            held = it.backend.hold = asyncio.Event()
            asking = asyncio.create_task(
                it.wires[0].ask("POST", "/chat", (ada.credential("session"), ("Accept", SSE)), b'{"prompt": "hi"}')
            )
            async with asyncio.timeout(PATIENCE):
                await it.backend.until(lambda api: any("/generate" in asked.target for asked in api.requests))
            await it.gate.admin.ask("POST", "/revoke", body=b'{"identity": "%b"}' % ADA.encode())
            held.set()
            opened = await asking
            assert opened.status == 401
            await opened.whole()
            assert opened.get("ssegate-stream") is None

    run(test())


@pytest.mark.parametrize(("wire", "size"), [(0, 2), (0, 300_000), (1, 2), (1, 10_000)])
def test_a_write_through_a_guarded_proxy_route_reaches_the_backend_whole(wire: int, size: int) -> None:
    """By HTTP/1.1 and by HTTP/2, small and so large that the gate holds it back."""

    async def test() -> None:
        async with world(1) as it, asyncio.timeout(1):
            headers = (it.people[0].credential("session"),)
            opened = await it.wires[wire].ask("POST", "/guarded/echo", headers, b"x" * size)
            assert opened.status == 200
            assert ADA.encode() in await opened.whole()
            (asked,) = (asked for asked in it.backend.requests if asked.target == "/guarded/echo")
            assert len(asked.body) == size

    run(test())


# What a viewer says of itself


SAYINGS: tuple[tuple[str, str], ...] = (
    ("X-User", GRACE),
    ("x-user", GRACE),
    ("Connection", "X-User"),
    ("Connection", "close, x-user"),
    ("Connection", "keep-alive, X-User, cookie"),
    ("X_User", GRACE),
    ("x_uSER", GRACE),
)


@pytest.mark.parametrize(("name", "value"), SAYINGS)
@pytest.mark.parametrize("target", ["/guarded/echo", "/told", "/public", "/echo"])
def test_the_backend_hears_who_a_viewer_is_from_the_gate_alone(target: str, name: str, value: str) -> None:
    async def test() -> None:
        async with world(1) as it:
            headers = (*shown(it.people[0])[:1], (name, value), ("Accept", JSON))
            for wire in it.wires if name.lower() != "connection" else it.wires[:1]:
                opened = await wire.ask("GET", target, headers)
                await opened.whole()
                assert opened.status == 200
            asked = [each for each in it.backend.requests if each.target == target]
            assert asked
            for each in asked:
                said = [value for field, value in each.headers if field.lower().replace(b"_", b"-") == b"x-user"]
                assert said == ([b"ada.one"] if target in ("/guarded/echo", "/told") else []), each.head

    run(test())


def test_what_stands_behind_a_body_does_not_say_who_a_viewer_is() -> None:
    async def test() -> None:
        async with world(1) as it, await Client.connect(it.gate.port) as client:
            lines = ("POST /echo HTTP/1.1", "Host: gate.test", "Transfer-Encoding: chunked", "Trailer: X-User", "", "")
            await client.send("\r\n".join(lines).encode() + b"1\r\nx\r\n0\r\nX-User: grace.two\r\n\r\n")
            response = await client.read_response()
            assert response.status == 200
            assert GRACE.encode() not in b"".join(asked.head + asked.body for asked in it.backend.requests)

    run(test())


# A guard that is down


NEWS = "what members are told"
MEMBERS = """
auth:
  session: {{forward: {{url: "{who}", send: [cookie], identity: x-user-id, claims: json, cache: {cache}}}}}
upstreams:
  api: {{url: "{api}", connections: 200}}
limits: {{clients: 1000}}
defaults: {{auth: session}}
routes:
  - {{path: /news, webhook: {{at: /hooks/news, verify: none}}}}
  - {{path: /state, poll: {{get: /state, every: 1s}}}}
  - {{path: /chat, methods: [POST], stream: {{post: /generate, format: ndjson}}}}
  - {{path: /live, topics: [/news, /state]}}
  - {{path: "/guarded/{{rest:path}}", auth: session, proxy: {{}}}}
"""
KEPT = ("Last-Event-ID", "earliest")
WAYS: tuple[Try, ...] = (
    Try("/news", (("Accept", SSE), KEPT)),
    Try("/news", (("Accept", NDJSON), KEPT)),
    Try("/news", (("Accept", JSON),)),
    Try("/news?wait=1s", (("Accept", JSON),)),
    Try("/state"),
    Try("/state", (("Accept", JSON),)),
    Try("/live?topic=/news&topic=/state", (KEPT,)),
    Try("/chat", (), "POST", b"{}"),
    Try("/guarded/x"),
    Try("/guarded/x", (), "POST"),
    Try("/guarded/x", (), "POST", b"{}"),
    Try("/_ssegate/ticket", (), "POST", b'{"path": "/news"}'),
)
YES = (b"X-User-Id", b"somebody")


def broken(released: asyncio.Event) -> list[Callable[[WhoAmI, Call], Awaitable[None]]]:
    """What is no yes, though some of it looks like one. What hangs does so until that event."""

    async def answers_at_last(who: WhoAmI, call: Call) -> None:
        await released.wait()
        call.close()

    return [
        refuses(500),
        refuses(503, (b"Retry-After", b"1")),
        refuses(404, YES),
        refuses(429, YES),
        refuses(401),
        refuses(403),
        refuses(500, YES),
        answers_at_last,
        resets,
        redirects("/internal/yes"),
        redirects("/login", 307),
        nameless({"sub": "somebody"}),
        replies(b"", status=204),
        replies(b"{}", (b"X-User-Id", b""), status=200),
        replies(b"{}", YES, (b"X-User-Id", b"somebody-else")),
        replies(b"[1]", YES),
        replies(b"<p>Welcome", YES),
        replies(b"", YES, status=304),
        sends(b"HTTP/1.1 200 OK\r\nX-User-Id: somebody\r\nContent-Length: 10\r\nContent-Length: 2\r\n\r\n{}"),
        sends(b"HTTP/1.1 100 Continue\r\nX-User-Id: somebody\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
        cuts,
        cuts_in_the_head,
        closes,
    ]


@asynccontextmanager
async def calling(gate: RunningGate) -> AsyncIterator[OneByOne]:
    wire = OneByOne(gate.port)
    try:
        yield wire
    finally:
        await wire.aclose()


async def get_in(wire: OneByOne, way: Try, session: str) -> bool:
    """Whether anything came of it that only members get; that must be so of what says yes, and of nothing else."""
    opened = await wire.ask(way.method, way.target, (*way.headers, ("Cookie", f"session={session}")), way.body)
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while NEWS.encode() not in seen and (piece := await opened.read()):
            seen += piece
    opened.close()
    if NEWS.encode() in seen or b"sst_" in seen:
        assert opened.status == 200
        return True
    is_told = opened.status in (401, 403, 503) or re.fullmatch(rb"retry: \d+\n:?\n*", seen)
    assert is_told, (way, opened.status, seen)
    return False


@pytest.mark.parametrize("cache", ["0s", "30s"])
def test_a_guard_that_flaps_lets_nobody_in_without_a_yes(cache: str) -> None:
    async def test() -> None:
        rng = random.Random(seed := random.randrange(2**32))
        print(f"seed {seed}")
        released, said_yes = asyncio.Event(), set[str]()
        plans = broken(released)

        async def flaps(who: WhoAmI, call: Call) -> None:
            session = who.credential(call.asked) or ""
            if rng.random() < 0.2:
                if session in who.sessions:
                    said_yes.add(session)
                await says_who(who, call)
            else:
                await rng.choice(plans)(who, call)

        async def tells(call: Call) -> None:
            await call.read_body()
            await call.send(answer(json.dumps({"news": NEWS}).encode() + b"\n", (b"Content-Type", NDJSON.encode())))

        known = {f"s{number}": f"u{number}" for number in range(60)}
        async with ScriptedUpstream(tells) as api, WhoAmI(known) as who:
            text = MEMBERS.format(api=api.url, who=who.url, cache=cache)
            async with running_gate(EDGE, text) as gate, calling(gate) as wire:
                await (await wire.ask("POST", "/hooks/news", (), json.dumps({"news": NEWS}).encode())).whole()
                who.usually(flaps)
                # Some sessions come several times at once, some are nobody's.
                tries = [(rng.choice(WAYS), f"s{rng.randrange(90)}") for _ in range(200)]
                tasks = [asyncio.create_task(get_in(wire, *each)) for each in tries]
                await who.until_asked(40)
                asyncio.get_running_loop().call_later(0.2, released.set)
                got_in = await asyncio.gather(*tasks)
                let_in = {session for (_, session), is_in in zip(tries, got_in, strict=True) if is_in}
                assert let_in, "some were let in"
                assert not all(got_in), "some were not"
                assert let_in <= said_yes

    run(test())


@pytest.mark.parametrize("number", range(len(broken(asyncio.Event()))))
def test_no_answer_that_is_no_yes_lets_anybody_in_by_any_way(number: int) -> None:
    async def test() -> None:
        async def tells(call: Call) -> None:
            raise AssertionError(f"the backend was asked: {call.asked.head!r}")

        released = asyncio.Event()
        released.set()
        async with (
            ScriptedUpstream(tells) as api,
            WhoAmI({"s1": "u1"}) as who,
            running_gate(EDGE, MEMBERS.format(api=api.url, who=who.url, cache="30s")) as gate,
            calling(gate) as wire,
        ):
            await (await wire.ask("POST", "/hooks/news", (), json.dumps({"news": NEWS}).encode())).whole()
            who.usually(broken(released)[number])
            got_in = await asyncio.gather(*(get_in(wire, way, "s1") for way in WAYS for _ in range(2)))
            assert not any(got_in)
            assert not gate.service.gate.statistics().clients

    run(test())
