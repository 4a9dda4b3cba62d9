"""Signed tokens through a whole gate: where they are shown, what is told of those that are no good, and keys that come and go."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ssegate.auth import keyring
from tests.e2e.client import Pair
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, make_config, said, story
from tests.e2e.guarded import bearer, denials, ended, guarded, guarding, reload, status, user
from tests.guards import GARBAGE, JwksServer
from tests.hostile_tokens import GOOD, HOSTILE_IN_A_CROWD, crowd, hostile_to, is_sendable
from tests.ports import free_port
from tests.tokens import ALGORITHMS, AUDIENCE, ISSUER, MAKERS, Issuer, Maker, jwks

ORDERS = """
- path: /orders/{id}/events
  auth: user
  poll: {get: "/orders/{id}", every: 40ms}
- path: /public
  auth: none
  poll: {get: /orders/17, every: 40ms}
- path: /{rest:path}
  proxy: {}
"""
STREAM = "/orders/17/events"
OLD, NEW = Issuer("EdDSA", "old"), Issuer("EdDSA", "new")


def by_url(server: JwksServer, *more: str) -> str:
    return reader(f"keys: {server.url}", *more)


def reader(keys: str, *more: str, name: str = "user", issuer: str = ISSUER) -> str:
    """A guard that reads tokens, with these keys."""
    return f"{name}: {{jwt: {{issuer: '{issuer}', audience: {AUDIENCE}, {', '.join((keys, *more))}}}}}"


def orders() -> LegacyApi:
    api = LegacyApi()
    api.put("/orders/17", {"id": 17})
    return api


async def opens(gate: RunningGate, *headers: Pair, target: str = STREAM) -> bool:
    """Whether a stream is opened, and its state comes."""
    async with gate.watch(target, *headers) as viewer:
        if viewer.status != 200:
            assert viewer.status == 401
            return False
        assert said((await viewer.event()).data)["id"] == 17
        return True


async def is_turned_away(gate: RunningGate, *headers: Pair) -> bool:
    """Whether an `EventSource` is told to come back, and others that there is trouble."""
    async with gate.watch(STREAM, *headers) as viewer:
        await viewer.opening()
        assert (viewer.status, await viewer.rest()) == (200, [])
    reply = await gate.ask("GET", STREAM, ("Accept", "application/json"), *headers)
    return reply.status == 503 and reply.get("retry-after") is not None


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are fetched for each unknown id: half a minute would be long."""
    monkeypatch.setattr(keyring, "UNKNOWN_PAUSE", 0.0)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that is down is asked again at once."""
    monkeypatch.setattr(keyring, "RETRY", (0.01, 0.01))


# Good and bad tokens


GOOD_HERE = {
    "alg is ES256, by no key of theirs", "alg is RS256, by no key of theirs", "nbf is in 31 s", "iat is in 31 s",
}  # fmt: skip
"""Good by another of the keys, or a moment later."""


@pytest.mark.parametrize("maker", MAKERS)
@story
async def test_good_tokens_open_streams_and_hostile_ones_are_all_answered_alike(edge: Edge, maker: Maker) -> None:
    issuers = [Issuer(alg, alg, maker) for alg in ALGORITHMS]
    async with orders() as api, JwksServer() as server:
        server.serve(crowd(*issuers))
        async with guarded(edge, ORDERS, by_url(server, "from: [header, 'cookie:session_jwt']"), api=api) as gate:
            tokens = []
            for number, it in enumerate(issuers):
                for make in [*GOOD.values()][number::3]:
                    if make is not GOOD["kid is missing"]:
                        assert await opens(gate, bearer(make(it)))
                named = {name: make for name, make in hostile_to(it).items() if name not in GOOD_HERE}
                tokens += [make(it) for make in [*named.values()][number::7]]
            tokens += [make() for make in HOSTILE_IN_A_CROWD.values()]
            plain = await gate.ask("GET", STREAM)
            assert plain.get("www-authenticate") == "Bearer"
            sent = [
                token for token in tokens if is_sendable(token) and len(token) < 30_000
            ]  # more is 431 for everybody
            assert len(sent) > 80
            for number, token in enumerate(sent):
                is_for_cookie = number % 2 and not set(token) & set('; "')
                shown = ("Cookie", f"session_jwt={token}") if is_for_cookie else bearer(token)
                reply = await gate.ask("GET", STREAM, shown)
                assert (reply.status, reply.body) == (401, plain.body), token
                assert _undated(reply.headers) == _undated(plain.headers)
            assert server.fetches == 1


def _undated(headers: list[Pair]) -> list[Pair]:
    return [pair for pair in headers if pair[0] != "date"]


@story
async def test_what_is_wrong_with_a_token_is_told_to_the_operator_and_to_nobody_else(edge: Edge) -> None:
    async with orders() as api, guarded(edge, ORDERS, user(), api=api) as gate:
        it = Issuer("HS256")
        token = it.token(aud="orders-admin")
        reply = await gate.ask("GET", STREAM, bearer(token))
        assert (reply.status, reply.get("content-type")) == (401, "application/problem+json")
        assert b"audience" not in reply.body
        (denial,) = await denials(gate)
        assert denial["reason"] == "signature is good, its audience is `orders-admin`, wanted `orders-ui`"
        assert not any(part in str(denial) for part in token.split("."))


@story
async def test_what_is_required_of_a_token_and_not_there_is_403(edge: Edge) -> None:
    rule = "require: \"contains(scope, 'orders:read')\""
    async with orders() as api, guarded(edge, ORDERS, user(rule), api=api) as gate:
        it = Issuer("HS256")
        assert await opens(gate, bearer(it.token(scope="orders:read")))
        for token in (it.token(scope="orders:write"), it.token()):
            reply = await gate.ask("GET", STREAM, bearer(token))
            assert (reply.status, reply.get("www-authenticate")) == (403, None)
            assert b"orders:read" not in reply.body


@story
async def test_a_token_is_taken_from_the_first_of_its_places_that_has_one(edge: Edge) -> None:
    places = "from: ['header:X-Token', header, 'cookie:session_jwt']"
    async with orders() as api, guarded(edge, ORDERS, user(places), api=api) as gate:
        good, bad = Issuer("HS256").token(), Issuer("HS256", key="other").token()

        def shown(own: str, authorization: str, cookie: str) -> list[Pair]:
            fields = [
                ("X-Token", own),
                ("Authorization", f"Bearer {authorization}"),
                ("Cookie", f"session_jwt={cookie}"),
            ]
            return [(name, value) for name, value in fields if not value.endswith(("Bearer ", "=")) and value]

        for fields in (shown(good, bad, bad), shown("", good, bad), shown("", "", good)):
            assert await opens(gate, *fields)
        for fields in (shown(bad, good, good), shown("", bad, good), shown("", "", bad), shown("", "", "")):
            assert not await opens(gate, *fields)
        assert not await opens(gate, target=f"{STREAM}?access_token={good}&token={good}&session_jwt={good}")


@story
async def test_the_upstream_is_asked_in_the_name_that_the_token_says(edge: Edge) -> None:
    routes = """
    - path: /me
      auth: user
      poll: {get: "/users/{identity}?tenant={claims.org.id}", every: 40ms}
    """
    async with LegacyApi() as api, guarded(edge, routes, user("identity: user.name"), api=api) as gate:
        api.put("/users/ada%20l%2F1", {"id": 17})
        claims = {"user": {"name": "ada l/1"}, "org": {"id": 7}}
        assert await opens(gate, bearer(Issuer("HS256").token(**claims)), target="/me")
        (asked, *_) = api.requests
        assert asked.target == "/users/ada%20l%2F1?tenant=7"
        assert asked.get("authorization") is None


# Two issuers


@story
async def test_of_two_issuers_each_ones_tokens_are_read_by_its_own_guard(edge: Edge) -> None:
    """Though both call their keys the same, and the audience is the same."""
    one, other = Issuer("ES256", "k1", key="x"), Issuer("ES256", "k1", key="y", issuer="https://other.example/")
    routes = ORDERS.replace("auth: user", "auth: [staff, user]")
    async with orders() as api, JwksServer(one) as first, JwksServer(other) as second:
        guards = (by_url(first), reader(f"keys: {second.url}", name="staff", issuer=other.issuer))
        async with guarded(edge, routes, *guards, api=api) as gate:
            assert await opens(gate, bearer(one.token()))
            assert await opens(gate, bearer(other.token()))
            forged = (one.token(iss=other.issuer), other.token(iss=one.issuer), other.token(exp=1), one.token(exp=1))
            for token in forged:
                assert not await opens(gate, bearer(token))
            reply = await gate.ask("GET", STREAM)
            assert reply.get("www-authenticate") == "Bearer", "said once"


# Keys that the issuer publishes


@story
async def test_while_keys_are_fetched_others_are_answered(edge: Edge) -> None:
    async with orders() as api, JwksServer(OLD) as server:
        release = server.hold()
        async with guarded(edge, ORDERS, by_url(server), api=api) as gate:
            await server.until_fetched()
            waiting = asyncio.create_task(opens(gate, bearer(OLD.token())))
            assert await opens(gate, target="/public")
            assert (await gate.ask("GET", "/orders/17")).status == 200
            assert not await opens(gate, bearer("opaque"))
            assert not waiting.done()
            release.set()
            assert await waiting
            assert server.fetches == 1


@story
async def test_an_issuer_that_was_never_there_turns_viewers_away_and_refuses_nobody(
    edge: Edge, no_patience: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = JwksServer(OLD, port=free_port())
    async with orders() as api, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        assert await is_turned_away(gate, bearer(OLD.token()))
        assert await is_turned_away(gate, bearer(NEW.token()))
        assert not await opens(gate), "who shows nothing is told to show something"
        assert [denial["reason"] for denial in await denials(gate)] == ["there is no token in header"]
        async with server, asyncio.timeout(10):
            while await status(gate, STREAM, bearer(OLD.token())) != 200 or not server.fetches:
                await asyncio.sleep(0.01)  # the gate tells nobody when it asks again
            assert await opens(gate, bearer(OLD.token()))
    complaints = [each for each in caplog.records if each.name == keyring.__name__ and each.levelname == "WARNING"]
    assert len(complaints) == 1, "it is said once"
    assert OLD.token() not in caplog.text


@story
async def test_while_the_issuer_is_down_its_tokens_are_good(edge: Edge, no_pause: None) -> None:
    async with (
        orders() as api,
        JwksServer(OLD) as server,
        guarded(edge, ORDERS, by_url(server), api=api) as gate,
        gate.watch(STREAM, bearer(OLD.token())) as viewer,
    ):
        await viewer.event()
        for body in (GARBAGE["HTML"], GARBAGE["without keys"]):
            server.serve(body)
            assert not await opens(gate, bearer(NEW.token())), "this makes it fetch the keys"
            assert await opens(gate, bearer(OLD.token(sub="u2")))
        await server.go_down()
        assert not await opens(gate, bearer(NEW.token()))
        assert await opens(gate, bearer(OLD.token(sub="u3")))
        api.put("/orders/17", {"id": 17, "n": 2})
        assert said((await viewer.event()).data)["n"] == 2
        await server.come_back()
        server.publish(OLD, NEW)
        assert await opens(gate, bearer(NEW.token()))


@pytest.mark.parametrize("overlaps", [True, False])
@story
async def test_when_the_issuer_changes_its_keys_open_streams_stay(edge: Edge, overlaps: bool, no_pause: None) -> None:
    async with orders() as api, JwksServer(OLD) as server, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        token = OLD.token()
        async with gate.watch(STREAM, bearer(token)) as viewer:
            await viewer.event()
            server.publish(NEW, OLD) if overlaps else server.publish(NEW)
            assert await opens(gate, bearer(NEW.token()))
            assert await opens(gate, bearer(token)) is overlaps
            server.publish(NEW)
            assert not await opens(gate, bearer(Issuer("EdDSA", "made up").token())), "this makes it fetch the keys"
            assert not await opens(gate, bearer(token)), "though it was found good"
            api.put("/orders/17", {"id": 17, "n": 2})
            assert said((await viewer.event()).data)["n"] == 2


@story
async def test_a_storm_of_made_up_key_ids_is_one_fetch(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    async with orders() as api, JwksServer(OLD) as server, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        assert await opens(gate, bearer(OLD.token()))
        monkeypatch.setattr(keyring, "UNKNOWN_PAUSE", 0.0)
        release = server.hold()
        tokens = [Issuer("EdDSA", str(number)).token() for number in range(20)]
        waiting = [asyncio.create_task(status(gate, STREAM, bearer(token))) for token in tokens]
        await server.until_fetched(2)
        assert await opens(gate, bearer(OLD.token(sub="u2")))
        monkeypatch.undo()
        release.set()
        assert set(await asyncio.gather(*waiting)) == {401}
        assert server.fetches == 2


@story
async def test_metrics_tell_how_keys_were_fetched(edge: Edge, no_pause: None) -> None:
    async with orders() as api, JwksServer(OLD) as server, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        await opens(gate, bearer(OLD.token()))
        server.fail(503)
        await opens(gate, bearer(NEW.token()))
        text = (await gate.admin.ask("GET", "/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.startswith("ssegate_guard_questions")]
        assert len(lines) == 2
        assert any('"200"' in line and line.endswith(" 1.0") for line in lines)
        assert any('"503"' in line and line.endswith(" 1.0") for line in lines)


# Another configuration


@story
async def test_keys_in_a_file_are_read_anew_on_reload(edge: Edge, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(jwks(OLD, NEW))
    guards = [reader(f"keys: 'file:{file}'")]
    async with orders() as api, guarded(edge, ORDERS, *guards, api=api) as gate, AsyncExitStack() as stack:
        by_old = await stack.enter_async_context(gate.watch(STREAM, bearer(OLD.token())))
        by_new = await stack.enter_async_context(gate.watch(STREAM, bearer(NEW.token(sub="u2"))))
        await by_old.event()
        await by_new.event()
        file.write_bytes(NEW.pem)
        assert await opens(gate, bearer(OLD.token())), "nobody has said that there is a new one"
        reload(gate, edge, guarding(api, ORDERS, guards))
        await ended(by_old, "revoked")
        assert not await opens(gate, bearer(OLD.token()))
        api.put("/orders/17", {"id": 17, "n": 2})
        assert said((await by_new.event()).data)["n"] == 2
        assert await opens(gate, bearer(NEW.token()))


@story
async def test_a_secret_is_replaced_in_three_steps_without_anybody_noticing(edge: Edge) -> None:
    old, new = Issuer("HS256", "old"), Issuer("HS256", "new")

    def secrets(*issuers: Issuer) -> list[str]:
        return [reader(f"keys: {{secret: [{', '.join(it.secret for it in issuers)}]}}")]

    async with (
        orders() as api,
        guarded(edge, ORDERS, *secrets(old), api=api) as gate,
        gate.watch(STREAM, bearer(old.token())) as first,
    ):
        await first.event()
        assert not await opens(gate, bearer(new.token()))
        reload(gate, edge, guarding(api, ORDERS, secrets(new, old)))
        async with gate.watch(STREAM, bearer(new.token())) as second:
            await second.event()
            api.put("/orders/17", {"id": 17, "n": 2})
            assert said((await first.event()).data)["n"] == said((await second.event()).data)["n"] == 2
            reload(gate, edge, guarding(api, ORDERS, secrets(new)))
            await ended(first, "revoked")
            assert not await opens(gate, bearer(old.token()))
            api.put("/orders/17", {"id": 17, "n": 3})
            assert said((await second.event()).data)["n"] == 3


@story
async def test_a_guard_that_has_changed_still_learns_its_issuers_new_keys(edge: Edge, no_pause: None) -> None:
    async with orders() as api, JwksServer(OLD) as server, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        assert await opens(gate, bearer(OLD.token()))
        for number in range(1, 4):
            reload(gate, edge, guarding(api, ORDERS, [by_url(server, f"require: \"sub != 'x{number}'\"")]))
            assert await opens(gate, bearer(OLD.token()))
            server.publish(OLD, Issuer("EdDSA", f"new{number}"))
            assert await opens(gate, bearer(Issuer("EdDSA", f"new{number}").token()))


@pytest.mark.parametrize("wrong", ["routes: 5", "auth: {user: {jwt: {issuer: x}}}\nroutes: []"])
@story
async def test_after_a_reload_that_went_wrong_the_guard_is_as_it_was(edge: Edge, wrong: str, no_pause: None) -> None:
    async with orders() as api, JwksServer(OLD) as server, guarded(edge, ORDERS, by_url(server), api=api) as gate:
        await gate.service.reload(lambda: make_config(f"version: 1\n{wrong}\n"))
        server.publish(NEW)
        assert await opens(gate, bearer(NEW.token()))
        assert not await opens(gate, bearer(OLD.token()))
