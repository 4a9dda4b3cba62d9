"""The backends of guards' tests answer as those tests rely on."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.client import Asking, Reply, exchange
from tests.guards import (
    PATIENCE,
    Guard,
    JwksServer,
    Plan,
    WhoAmI,
    closes,
    cuts,
    cuts_in_the_head,
    hangs,
    held,
    huge,
    knows,
    nameless,
    redirects,
    refuses,
    resets,
)
from tests.tokens import Issuer, jwks


async def ask(server: Guard, path: str, *headers: tuple[str, str]) -> Reply:
    async with asyncio.timeout(PATIENCE), exchange("1.1", server.port, Asking("GET", path, headers)) as it:
        pieces = []
        while piece := await it.read():
            pieces.append(piece)
        return Reply(it.status, it.headers, b"".join(pieces))


def who_is(who: WhoAmI, session: str) -> asyncio.Task[Reply]:
    return asyncio.create_task(ask(who, who.PATH, ("Cookie", f"a=b; session={session}; c")))


def run(test: object) -> None:
    asyncio.run(test)  # type: ignore[arg-type]


def test_it_says_who_somebody_is_by_cookie_and_by_token_until_they_log_out() -> None:
    async def story() -> None:
        async with WhoAmI({"s1": "ada"}) as who:
            who.claims["ada"] = {"groups": ["staff"]}
            for header in (("Cookie", "x=y; session=s1"), ("Authorization", "Bearer s1")):
                reply = await ask(who, who.PATH, header)
                assert (reply.status, reply.body) == (200, b'{"groups": ["staff"]}')
                assert dict(reply.headers)["x-user-id"] == "ada"
            del who.sessions["s1"]
            assert (await who_is(who, "s1")).status == 401
            assert (await ask(who, who.PATH)).status == 401
            assert len(who.asked_for("s1")) == 3
            assert (await who.until_asked(4)).get("cookie") is None

    run(story())


def test_plans_hold_for_one_request_each() -> None:
    async def story() -> None:
        async with WhoAmI({"s1": "ada"}) as who:
            who.plan(refuses(503), nameless(), nameless(status=204), redirects("/login"), knows("grace"))
            told = [await who_is(who, "s1") for _ in range(6)]
            assert [reply.status for reply in told] == [503, 200, 204, 302, 200, 200]
            assert [dict(reply.headers).get("x-user-id") for reply in told] == [None] * 4 + ["grace", "ada"]

    run(story())


@pytest.mark.parametrize("plan", [closes, resets, cuts, cuts_in_the_head])
def test_what_is_cut_is_no_whole_answer(plan: Plan) -> None:
    async def story() -> None:
        async with WhoAmI({"s1": "ada"}) as who:
            who.plan(plan)
            with pytest.raises(OSError):  # noqa: PT011
                await who_is(who, "s1")
            assert (await who_is(who, "s1")).status == 200

    run(story())


def test_what_is_held_waits_and_is_counted() -> None:
    async def story() -> None:
        async with WhoAmI({"s1": "ada", "s2": "grace"}) as who:
            event = asyncio.Event()
            who.plan(held(event), hangs)
            first, second = who_is(who, "s1"), who_is(who, "s1")
            await who.until_asked(2, "s1")
            assert (await who_is(who, "s2")).status == 200
            event.set()
            done, waiting = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().status for task in done] == [200]
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert who.most_at_once == 3
            answered = who.hold()
            last = who_is(who, "s2")
            await who.until_asked_again()
            assert not last.done()
            answered.set()
            assert (await last).status == 200

    run(story())


@pytest.mark.parametrize("server", [WhoAmI, JwksServer])
def test_a_server_that_went_down_refuses_until_it_comes_back(server: type[WhoAmI] | type[JwksServer]) -> None:
    async def story() -> None:
        async with server() as it:
            before = it.url
            await it.go_down()
            with pytest.raises(ConnectionRefusedError):
                await ask(it, it.PATH)
            await it.come_back()
            assert it.url == before
            assert (await ask(it, it.PATH)).status in (200, 401)
            await it.go_down()

    run(story())


def test_keys_are_published_with_headers_changed_and_broken() -> None:
    async def story() -> None:
        old, new = Issuer("ES256", "old"), Issuer("EdDSA", "new")
        async with JwksServer(old) as server:
            assert (await ask(server, server.PATH)).body == jwks(old)
            server.publish(old, new, headers=[(b"Cache-Control", b"max-age=60"), (b"ETag", b'"2"')])
            reply = await ask(server, server.PATH)
            assert (reply.body, dict(reply.headers)["cache-control"]) == (jwks(old, new), "max-age=60")
            assert (await ask(server, server.PATH, ("If-None-Match", '"2"'))).status == 304
            server.fail()
            assert (await ask(server, server.PATH)).status == 503
            server.serve(huge())
            assert len((await ask(server, server.PATH)).body) == 10_000_000
            server.serve_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{")
            with pytest.raises(OSError):  # noqa: PT011
                await ask(server, server.PATH)
            server.publish(new)
            event = server.hold()
            reading = asyncio.create_task(ask(server, server.PATH))
            await server.until_fetched(7)
            event.set()
            assert (await reading).body == jwks(new)
            assert (await ask(server, "/elsewhere")).status == 404
            assert server.fetches == 7

    run(story())
