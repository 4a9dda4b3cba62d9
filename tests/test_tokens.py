"""The tokens of these tests are what their names say: the good ones good, the hostile ones with no second fault."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from tests.hostile_tokens import (
    CASES,
    CLAIMS,
    GOOD,
    HOSTILE,
    HOSTILE_IN_A_CROWD,
    HUGE,
    crowd,
    decoded,
    hostile_to,
    is_sendable,
    unused_bits,
)
from tests.tokens import ALGORITHMS, AUDIENCE, ISSUER, MAKERS, SUBJECT, Issuer, Maker, base64url, jwks

ALL = (*ALGORITHMS, "HS256")


def key(issuer: Issuer) -> Any:
    return jwt.PyJWK(issuer.jwk)


def read(issuer: Issuer, token: str, leeway: int = 30) -> dict[str, Any]:
    return jwt.decode(token, key(issuer), [issuer.alg], audience=AUDIENCE, issuer=ISSUER, leeway=leeway)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("alg", [*ALL, "PS256", "ES384", "ES512", "HS512"])
def test_another_library_reads_the_tokens_of_an_issuer(alg: str, maker: Maker) -> None:
    issuer = Issuer(alg, "k1", maker)
    claims = read(issuer, issuer.token(scope="orders:read"), leeway=0)
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == (SUBJECT, "orders:read", 300)
    assert "sub" not in read(issuer, issuer.token(sub=None))


def test_a_published_set_has_public_keys_only() -> None:
    issuers = [Issuer(alg, alg) for alg in ALGORITHMS]
    for member in json.loads(jwks(*issuers))["keys"]:
        assert not {"d", "p", "q", "k"} & member.keys()
    assert [found.key_id for found in jwt.PyJWKSet.from_json(jwks(*issuers).decode()).keys] == list(ALGORITHMS)


@pytest.mark.parametrize("alg", ALL)
def test_an_issuer_has_another_key_than_one_of_another_name(alg: str) -> None:
    assert Issuer(alg, "a").jwk == Issuer(alg, "a").jwk
    with pytest.raises(jwt.InvalidSignatureError):
        read(Issuer(alg, "a"), Issuer(alg, "b").token())
    with pytest.raises(jwt.InvalidSignatureError):
        read(Issuer(alg, "a"), Issuer(alg, "a", key="of an attacker").token())


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("alg", ALL)
def test_good_tokens_are_good(alg: str, maker: Maker) -> None:
    issuer = Issuer(alg, "k1", maker)
    for name, make in GOOD.items():
        assert read(issuer, make(issuer))["iss"] == ISSUER, name
        assert is_sendable(make(issuer)), name


@pytest.mark.parametrize("alg", ALL)
def test_where_the_claims_are_at_fault_the_signature_is_good(alg: str) -> None:
    issuer = Issuer(alg)
    for name, make in CLAIMS.items():
        payload = jwt.PyJWS().decode(make(issuer), key(issuer), [alg])
        assert payload.startswith(b"{"), name
        assert payload.endswith(b"}"), name


@pytest.mark.parametrize("alg", ALL)
def test_each_hostile_token_can_be_made_and_is_small_unless_it_says_so(alg: str) -> None:
    issuer = Issuer(alg)
    assert {name for of, name in CASES if of == alg} == hostile_to(issuer).keys()
    for name, make in hostile_to(issuer).items():
        assert (len(make(issuer)) > HUGE) is ("100 kB" in name), name
        assert len(make(issuer)) < 20_000 or "100 kB" in name, name


@pytest.mark.parametrize("alg", ["EdDSA", "HS256"])
def test_no_two_hostile_tokens_are_one_and_none_is_good(alg: str) -> None:
    """Of these algorithms, in which there is no chance."""
    issuer = Issuer(alg, wall=1_800_000_000.0)
    made: dict[str, str] = {make(issuer): name for name, make in GOOD.items()}
    for name, make in hostile_to(issuer).items():
        assert made.setdefault(make(issuer), name) == name


@pytest.mark.parametrize("size", [32, 64, 256])
def test_bits_that_are_left_over_change_the_text_and_not_the_bytes(size: int) -> None:
    text = base64url(bytes(range(256))[-size:]).decode()
    assert unused_bits(text) != text
    assert decoded(unused_bits(text)) == decoded(text)


@pytest.mark.parametrize("name", ["the signature has a line end in it", "the signature has an exclamation mark in it"])
def test_what_lax_decoders_skip_is_in_signatures_that_are_good_without(name: str) -> None:
    issuer = Issuer("RS256")
    token = HOSTILE[name](issuer)
    read(issuer, token.replace("\n", "").replace("!", ""))


def test_what_cannot_stand_in_a_header_as_it_is_is_not_sendable() -> None:
    assert is_sendable("a.b.c")
    assert is_sendable("a.b\t.c")
    for text in ("", " a", "a ", "a\n", "a\nb", "a\0", "é", "\ud800", "a\r\nb"):
        assert not is_sendable(text)


def test_each_token_of_the_crowd_is_by_a_key_that_is_in_it() -> None:
    kids = {member["kid"] for member in json.loads(crowd(Issuer()))["keys"]}
    for name, make in HOSTILE_IN_A_CROWD.items():
        assert jwt.get_unverified_header(make())["kid"] in kids, name
