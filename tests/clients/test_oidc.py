"""The OpenID provider that guards are tried against does what those tests rely on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from tests.clients.oidc import AUDIENCE, Provider

pytestmark = pytest.mark.node

ALGORITHMS = ("RS256", "ES256", "EdDSA")


@pytest.fixture(scope="module")
def provider(node_packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with Provider(tmp_path_factory.mktemp("oidc")) as provider:
        yield provider


def accept(provider: Provider, token: str) -> dict[str, Any]:
    """The claims that PyJWT reads, by the keys that are published now."""
    keys = jwt.PyJWKSet.from_json(httpx.get(provider.jwks_uri, trust_env=False).text)
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, list(ALGORITHMS), audience=AUDIENCE, issuer=provider.issuer)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_pyjwt_accepts_its_tokens(provider: Provider, alg: str) -> None:
    token = provider.token("grace", alg=alg, ttl=7, scope="orders:write")
    assert jwt.get_unverified_header(token)["alg"] == alg
    claims = accept(provider, token)
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == ("grace", "orders:write", 7)


def test_a_token_from_before_the_keys_were_changed_is_good_as_long_as_they_are_published(provider: Provider) -> None:
    before = provider.token()
    new = provider.rotate(keep_old=True)
    assert set(new) < set(provider.keys())
    assert jwt.get_unverified_header(provider.token())["kid"] in new
    accept(provider, before)
    accept(provider, provider.token())
    assert provider.rotate(keep_old=False) == provider.keys()
    with pytest.raises(KeyError):
        accept(provider, before)
    accept(provider, provider.token())


def test_it_counts_how_often_its_keys_are_asked_for(provider: Provider) -> None:
    before = provider.fetches()
    provider.keys()
    assert provider.fetches() == before + 1
