"""A gate that trusts a real OpenID provider, whose keys change while streams are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from ssegate.auth import keyring
from tests.clients.oidc import AUDIENCE, Provider
from tests.e2e.client import Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, running_gate, said, story
from tests.e2e.guarded import bearer, denials, ended, guarding, status

pytestmark = pytest.mark.node

EDGE = Edge("native-h1", "1.1")
ALGORITHMS = ("RS256", "ES256", "EdDSA")
ROUTES = """
- path: /users/{id}/notifications
  auth: user
  allow: "params.id == identity"
  poll: {get: "/users/{identity}", every: 40ms}
"""
ADA, GRACE = "/users/ada/notifications", "/users/grace/notifications"


@pytest.fixture
def provider(node_packages: None, tmp_path: Path) -> Iterator[Provider]:
    with Provider(tmp_path) as provider:
        yield provider


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are fetched for each unknown id: half a minute would be long."""
    monkeypatch.setattr(keyring, "UNKNOWN_PAUSE", 0.0)


@asynccontextmanager
async def trusting(provider: Provider) -> AsyncIterator[tuple[RunningGate, LegacyApi]]:
    guard = (
        f"user: {{jwt: {{issuer: '{provider.issuer}', audience: {AUDIENCE}, keys: '{provider.jwks_uri}', "
        "require: \"contains(scope, 'orders:read')\"}}"
    )
    async with LegacyApi() as api:
        for name in ("ada", "grace"):
            api.put(f"/users/{name}", {"n": 1})
        async with running_gate(EDGE, guarding(api, ROUTES, [guard]), admin=True) as gate:
            yield gate, api


async def token(
    provider: Provider, who: str = "ada", *, alg: str = "RS256", ttl: int = 300, scope: str = "orders:read"
) -> str:
    return await asyncio.to_thread(lambda: provider.token(who, alg=alg, ttl=ttl, scope=scope))


async def next_number(viewer: Viewer) -> int:
    found: int = said((await viewer.event()).data)["n"]
    return found


@pytest.mark.parametrize("alg", ALGORITHMS)
@story
async def test_its_tokens_open_the_streams_of_whom_they_name(provider: Provider, alg: str) -> None:
    async with trusting(provider) as (gate, _):
        ada = bearer(await token(provider, alg=alg))
        async with gate.watch(ADA, ada) as viewer:
            assert await next_number(viewer) == 1
        assert await status(gate, GRACE, ada) == 403
        assert await status(gate, ADA, bearer(await token(provider, alg=alg, scope="orders:write"))) == 403
        assert await status(gate, ADA) == 401
        assert await asyncio.to_thread(provider.fetches) == 1


@story
async def test_while_its_keys_change_streams_stay_new_tokens_get_in_and_old_ones_as_long_as_their_keys_are_published(
    provider: Provider, no_pause: None
) -> None:
    async with trusting(provider) as (gate, api), AsyncExitStack() as stack:
        old = {alg: bearer(await token(provider, alg=alg)) for alg in ALGORITHMS}
        viewers = [await stack.enter_async_context(gate.watch(ADA, shown)) for shown in old.values()]
        assert [await next_number(viewer) for viewer in viewers] == [1, 1, 1]

        await asyncio.to_thread(provider.rotate, keep_old=True)
        between = bearer(await token(provider))
        assert await status(gate, ADA, between) == 200
        assert [await status(gate, ADA, shown) for shown in old.values()] == [200, 200, 200]

        await asyncio.to_thread(provider.rotate, keep_old=False)
        assert await status(gate, ADA, bearer(await token(provider, alg="EdDSA"))) == 200
        assert [await status(gate, ADA, shown) for shown in (*old.values(), between)] == [401] * 4
        assert {denial["reason"] for denial in await denials(gate)} == {
            f"no key of the issuer has its `kid` and is for {alg}" for alg in ALGORITHMS
        }

        api.put("/users/ada", {"n": 2})
        assert [await next_number(viewer) for viewer in viewers] == [2, 2, 2]


@story
async def test_while_it_is_gone_its_tokens_are_good(provider: Provider, no_pause: None) -> None:
    async with trusting(provider) as (gate, _):
        first, second = bearer(await token(provider)), bearer(await token(provider, "grace"))
        assert await status(gate, ADA, first) == 200
        await asyncio.to_thread(provider.kill)
        assert [await status(gate, ADA, first), await status(gate, GRACE, second)] == [200, 200]


@story
async def test_its_short_lived_token_ends_the_stream_in_time_and_a_fresh_one_goes_on(provider: Provider) -> None:
    async with trusting(provider) as (gate, api):
        short = bearer(await token(provider, ttl=2))
        async with gate.watch(ADA, short) as viewer:
            first = await viewer.until("")
            assert {event.type for event in first} <= {"expiring", ""}
            await ended(viewer, "expired", 5)
            cursor = viewer.decoder.last_event_id
        assert await status(gate, ADA, short, cursor=cursor) == 401
        api.put("/users/ada", {"n": 2})
        async with gate.watch(ADA, bearer(await token(provider)), cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await next_number(viewer) == 2
