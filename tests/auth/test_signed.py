"""A guard that reads signed tokens: which it takes, which it does not, and what it asks of whom to know that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.auth import keyring as keyring_module
from ssegate.auth import signed
from ssegate.auth.guard import Down, Granted, Refused
from ssegate.auth.keyring import FetchedKeyring, Keyring
from ssegate.auth.signed import MAX_TOKEN, SignedTokenGuard, make_signed
from ssegate.config.keyset import Key, KeySet, read_jwks
from tests.auth.reading import (
    NOW,
    answered,
    at_once,
    bearing,
    granted,
    guard_by,
    guard_of,
    question,
    refused,
    settings,
)
from tests.e2e.gate import story
from tests.guards import JwksServer
from tests.hostile_tokens import (
    DEEP,
    FOREIGN_KIDS,
    GOOD,
    HOSTILE_BY_ALGORITHM,
    HOSTILE_IN_A_CROWD,
    attackers_keys,
    crowd,
    hostile_to,
    is_sendable,
    with_header,
)
from tests.tokens import ALGORITHMS, ISSUER, MAKERS, SUBJECT, Issuer, Maker, jwks
from tests.upstream.scripted import ScriptedUpstream, answer

EVERY_ALGORITHM = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512",
)  # fmt: skip

ROOT = Path(__file__).parents[2]


def issuer(alg: str = "EdDSA", kid: str | None = "k1", maker: Maker = "joserfc", **more: Any) -> Issuer:
    """One whose clock shows the time of these tests."""
    return Issuer(alg, kid, maker, wall=NOW, **more)


# Good and bad tokens


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("alg", EVERY_ALGORITHM)
def test_good_tokens_are_taken(alg: str, maker: Maker) -> None:
    it = issuer(alg, maker=maker)
    guard = guard_of(it)
    for name, make in GOOD.items():
        token = make(it)
        principal = granted(guard, token).principal
        assert (principal.guard, principal.claims["iss"]) == ("user", ISSUER), name
        assert principal.identity == principal.claims["sub"], name
        assert granted(guard, token).principal is principal, name


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("alg", HOSTILE_BY_ALGORITHM)
def test_hostile_tokens_are_refused(alg: str, maker: Maker) -> None:
    it = issuer(alg, maker=maker)
    guard = guard_of(it)
    for name, make in hostile_to(it).items():
        token = make(it)
        said = at_once(guard.examine(token, NOW), Refused)
        assert (said.status, said.body, said.headers) == (401, None, ()), name
        assert said.reason.isprintable(), name
        assert len(said.reason) < 500, name
        assert not any(len(part) > 20 and part in said.reason for part in token.split(".")), name
        if is_sendable(token):
            assert guard.judge(bearing(token), NOW) == said, name
    assert guard.known_as(SUBJECT) == [], "nothing of them is remembered"


def test_hostile_tokens_are_refused_by_a_guard_that_takes_several_algorithms() -> None:
    """And has, of each, a key with the same id."""
    several = [issuer(alg) for alg in ALGORITHMS]
    guard = guard_of(*several)
    for it in several:
        granted(guard, it.token())
        others = {"alg is ES256, by no key of theirs", "alg is RS256, by no key of theirs"}
        for name in hostile_to(it).keys() - others:
            assert isinstance(guard.examine(hostile_to(it)[name](it), NOW), Refused), (it, name)


def test_keys_in_a_set_that_are_not_for_this_open_nothing() -> None:
    it = issuer("RS256")
    guard = guard_by(Keyring(read_jwks(crowd(it))))
    granted(guard, it.token())
    for name, make in HOSTILE_IN_A_CROWD.items():
        assert isinstance(guard.examine(make(), Issuer().wall), Refused), name


@pytest.mark.parametrize("alg", HOSTILE_BY_ALGORITHM)
def test_what_is_nested_deep_gets_a_verdict(alg: str) -> None:
    it = issuer(alg)
    for make in DEEP.values():
        assert isinstance(guard_of(it).examine(make(it), NOW), Granted | Refused)


@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Za-z0-9_-]{1,20}\.[A-Za-z0-9_-]{1,20}\.[A-Za-z0-9_-]{1,20}", fullmatch=True)
)
def test_any_text_is_refused(text: str) -> None:
    assert isinstance(guard_of(issuer()).examine(text, NOW), Refused)


@given(st.data())
def test_a_good_token_with_another_letter_is_refused(data: st.DataObject) -> None:
    token = issuer().token()
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCwxyz019-_.=+/ \n\0"))
    changed = token[:at] + letter + token[at + 1 :]
    assert isinstance(guard_of(issuer()).examine(changed, NOW), Refused) is (changed != token)


def test_a_good_token_that_is_cut_anywhere_is_refused() -> None:
    token, guard = issuer().token(), guard_of(issuer())
    for end in range(len(token)):
        assert isinstance(guard.examine(token[:end], NOW), Refused), end


def test_a_token_may_have_16_kib() -> None:
    it = issuer()
    head, _, rest = it.token(groups="x" * 11_000).partition(".")
    assert len(head) + len(rest) < MAX_TOKEN
    granted(guard_of(it), it.token(groups="x" * 11_000))
    assert refused(guard_of(it), it.token(groups="x" * 13_000)).reason == "the token is larger than 16 KiB"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda it: it.token(aud="orders-admin"),
            "signature is good, its audience is `orders-admin`, wanted `orders-ui`",
        ),
        (lambda it: it.token(exp=int(NOW) - 42), "signature is good, it expired 42 s ago"),
        (lambda it: it.token(nbf=int(NOW) + 3600), "signature is good, its `nbf` is 3600 s ahead"),
        (lambda it: it.like(key="other").token(), "its signature is not good"),
        (lambda it: it.like(alg="ES256").token(), "its algorithm is `ES256`, wanted EdDSA"),
        (lambda it: it.token({"kid": "k2"}), "no key of the issuer has its `kid` and is for EdDSA"),
        (lambda it: it.sign(it.header(), b"5"), "signature is good, its payload is no JSON object"),
        (lambda it: it.sign(it.header(), b"{"), "signature is good, its payload is no JSON"),
        (lambda it: it.sign(it.header(crit=["exp"]), it.claims()), "its header asks for what is not understood here"),
        (lambda it: "a.b.c", "the token's header is no JSON object, or its `kid` no text"),
        (lambda it: "opaque", "the token is not of three parts in base64url"),
    ],
)
def test_why_a_token_is_refused_is_said_to_the_operator(make: Any, reason: str) -> None:
    assert refused(guard_of(issuer()), make(issuer())).reason == reason


@pytest.mark.parametrize(
    ("make", "is_stranger"),
    [
        (lambda it: "opaque", True),
        (lambda it: it.token(iss="https://other/"), True),
        (lambda it: it.token(aud="other"), True),
        (lambda it: it.token({"kid": "other"}), True),
        (lambda it: it.like(key="other").token(), True),
        (lambda it: it.like(alg="HS256").token(), True),
        (lambda it: it.token(exp=int(NOW)), False),
        (lambda it: it.token(nbf=int(NOW) + 31), False),
        (lambda it: it.token(sub=None), False),
    ],
)
def test_what_may_be_of_another_issuer_is_left_to_the_next_guard(make: Any, is_stranger: bool) -> None:
    assert refused(guard_of(issuer()), make(issuer())).is_stranger is is_stranger


def test_a_key_without_an_id_opens_tokens_with_any() -> None:
    guard = guard_of(issuer(kid=None))
    for kid in (None, "k1", *FOREIGN_KIDS.values()):
        assert isinstance(guard.examine(with_header(kid=kid)(issuer(kid=None)), NOW), Granted), kid


def test_of_keys_without_ids_a_few_are_tried() -> None:
    several = [issuer(kid=None, key=str(number)) for number in range(9)]
    guard = guard_of(*several)
    for it in several[:8]:
        granted(guard, it.token())
    assert refused(guard, several[8].token()).reason == "its signature is not good"


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA", "HS256"])
def test_of_two_keys_with_one_id_each_opens_its_own(alg: str) -> None:
    """An issuer that rotates as it should not, and secrets, which have none."""
    one, other = issuer(alg, key="x"), issuer(alg, key="y")
    guard = guard_of(one, other)
    granted(guard, one.token())
    granted(guard, other.token())
    refused(guard, issuer(alg, key="z").token())


# When


def test_exp_has_no_leeway_though_the_token_is_known() -> None:
    it, guard = issuer(), guard_of(issuer())
    token = it.token(exp=int(NOW) + 10)
    assert granted(guard, token, NOW + 9.999).principal.expires == NOW + 10
    assert refused(guard, token, NOW + 10).reason == "signature is good, it expired less than a second ago"
    granted(guard, token, NOW + 9)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_the_issuers_clock_may_be_half_a_minute_ahead(name: str) -> None:
    it, guard = issuer(), guard_of(issuer())
    token = it.token(**{name: int(NOW) + 100})
    assert f"`{name}` is 30 s ahead" in refused(guard, token, NOW + 69.9).reason
    granted(guard, token, NOW + 70)


def test_where_expiry_is_ignored_the_right_has_no_end_but_an_expired_token_opens_nothing() -> None:
    guard = guard_of(issuer(), more="at_expiry: ignore")
    token = issuer().token()
    assert granted(guard, token).principal.expires is None
    assert refused(guard, token, NOW + 300).status == 401


# Who, for whom, and what for


def test_the_principal_has_what_the_token_says() -> None:
    it = issuer()
    principal = granted(guard_of(it), it.token(org={"id": 7})).principal
    assert (principal.identity, principal.expires, principal.issued) == (SUBJECT, NOW + 300, NOW)
    assert (principal.value("claims.org.id"), principal.value("identity")) == ("7", SUBJECT)
    assert it.token() not in repr(principal)
    assert granted(guard_of(it), it.token(iat=None)).principal.issued is None


def test_identity_is_what_the_expression_finds() -> None:
    guard = guard_of(issuer(), more="identity: \"join('/', [tenant, to_string(user.id)])\"")
    assert granted(guard, issuer().token(tenant="acme", user={"id": 7})).principal.identity == "acme/7"
    said = refused(guard_of(issuer(), more="identity: email"), issuer().token())
    assert (said.status, said.is_stranger) == (401, False)
    assert said.reason.startswith("signature is good, it names nobody")


def test_what_is_required_and_not_there_is_403() -> None:
    guard = guard_of(issuer(), more="require: \"contains(scope, 'orders:read')\"")
    granted(guard, issuer().token(scope="orders:read orders:write"))
    for claims in ({"scope": "orders:write"}, {"scope": None}, {"scope": 7}):
        said = refused(guard, issuer().token(**claims))
        assert (said.status, said.is_stranger) == (403, False)
    assert refused(guard, issuer().token(scope="x", exp=1)).status == 401, "who it is comes first"


def test_a_token_for_one_of_several_audiences_is_taken() -> None:
    guard = guard_of(issuer(), audience="[orders-ui, orders-app]")
    for audience in ("orders-ui", "orders-app", ["x", "orders-app"]):
        granted(guard, issuer().token(aud=audience))
    assert refused(guard, issuer().token(aud="x")).reason.endswith("is `x`, wanted `orders-ui` or `orders-app`")


# Where


@pytest.mark.parametrize(
    ("places", "fields"),
    [
        ("[header]", [("Authorization", "Bearer {}")]),
        ("[header]", [("authorization", "bearer {}")]),
        ("[header]", [("Authorization", "BEARER   {} ")]),
        ("['header:X-Token']", [("x-token", "{}")]),
        ("['header:x-token']", [("X-Token", " {}\t")]),
        ("['cookie:session_jwt']", [("Cookie", "session_jwt={}")]),
        ("['cookie:session_jwt']", [("Cookie", 'a=b; session_jwt="{}"; c=d')]),
        ("['cookie:session_jwt']", [("Cookie", "a=b;session_jwt={};c")]),
        ("['cookie:session_jwt']", [("Cookie", "xsession_jwt=no; session_jwtx=no"), ("Cookie", "session_jwt={}")]),
        ("['cookie:a.b']", [("Cookie", "axb=no; a.b={}")]),
        ("[header, 'cookie:s']", [("Cookie", "s={}")]),
        ("['cookie:s', header]", [("Authorization", "Bearer {}")]),
        ("['cookie:s', header]", [("Authorization", "Bearer no"), ("Cookie", "s={}")]),
        ("[header, 'cookie:s']", [("Authorization", "Bearer {}"), ("Cookie", "s=no")]),
        ("[header, 'cookie:s']", [("Authorization", "Basic dTpw"), ("Cookie", "s={}")]),
        ("[header, 'cookie:s']", [("Authorization", "Bearer "), ("Cookie", "s={}")]),
        ("['cookie:s', header]", [("Authorization", "Bearer {}"), ("Cookie", "s=")]),
    ],
)
def test_a_token_is_looked_for_where_the_configuration_says_the_first_place_first(
    places: str, fields: list[tuple[str, str]]
) -> None:
    guard = guard_of(issuer(), more=f"from: {places}")
    asked = question(*((name, value.replace("{}", issuer().token())) for name, value in fields))
    assert guard.recognises(asked.headers)
    assert at_once(guard.judge(asked, NOW), Granted).principal.identity == SUBJECT


@pytest.mark.parametrize(
    ("places", "field"),
    [
        ("[header]", ("Cookie", "session_jwt={}")),
        ("[header]", ("Authorization", "Token {}")),
        ("[header]", ("Authorization", "{}")),
        ("[header]", ("X-Token", "{}")),
        ("['cookie:session_jwt']", ("Authorization", "Bearer {}")),
        ("['cookie:session_jwt']", ("Cookie", "SESSION_JWT={}")),
        ("['cookie:session_jwt']", ("Cookie", "xsession_jwt={}")),
        ("['cookie:session_jwt']", ("Cookie", "x=session_jwt={}")),
        ("['cookie:session_jwt']", ("Set-Cookie", "session_jwt={}")),
        ("['header:x-token']", ("Authorization", "Bearer {}")),
        ("[ticket]", ("Authorization", "Bearer {}")),
    ],
)
def test_a_token_in_another_place_is_none(places: str, field: tuple[str, str]) -> None:
    guard = guard_of(issuer(), more=f"from: {places}")
    asked = question((field[0], field[1].replace("{}", issuer().token())))
    assert not guard.recognises(asked.headers)
    said = at_once(guard.judge(asked, NOW), Refused)
    assert (said.status, said.is_stranger) == (401, True)


def test_where_there_is_no_token_is_said() -> None:
    guard = guard_of(issuer(), more="from: [header, 'cookie:s', ticket]")
    assert at_once(guard.judge(question(), NOW), Refused).reason == "there is no token in header or cookie:s"


def test_two_authorizations_are_no_token_that_is_taken() -> None:
    """Proxies disagree about which of them counts."""
    good = ("Authorization", f"Bearer {issuer().token()}")
    assert isinstance(guard_of(issuer()).judge(question(good, good), NOW), Refused)


def test_tickets_are_sold_where_they_are_taken() -> None:
    assert guard_of(issuer()).sells_tickets
    assert not guard_of(issuer(), more="from: [header]").sells_tickets


# What is remembered


class Counted(Mapping[str, Any]):
    """A key's algorithms, and how often one of them was used to check a signature."""

    def __init__(self, algorithms: Mapping[str, Any]) -> None:
        self._algorithms = algorithms
        self.checks = 0

    def __getitem__(self, name: str) -> Any:
        self.checks += 1
        return self._algorithms[name]

    def __contains__(self, name: object) -> bool:
        return name in self._algorithms

    def __iter__(self) -> Iterator[str]:
        return iter(self._algorithms)

    def __len__(self) -> int:
        return len(self._algorithms)


def counting(it: Issuer) -> tuple[SignedTokenGuard, Counted]:
    (key,) = read_jwks(jwks(it)).keys
    counted = Counted(key.by_algorithm)
    return guard_by(Keyring(KeySet((Key(key.id, counted, key.proof),)))), counted


def test_a_signature_is_checked_once() -> None:
    guard, counted = counting(issuer())
    one, other = issuer().token(), issuer().token(sub="u2")
    for _ in range(100):
        granted(guard, one)
        granted(guard, other)
    assert counted.checks == 2


def test_bad_tokens_are_not_remembered() -> None:
    guard, counted = counting(issuer())
    bad = issuer(key="other").token()
    for _ in range(5):
        refused(guard, bad)
    assert counted.checks == 5
    assert len(guard._known) == 0


def test_the_credentials_of_somebody_are_known_by_their_digests() -> None:
    guard, _ = counting(issuer())
    principal = granted(guard, issuer().token()).principal
    assert guard.known_as(SUBJECT) == [principal.key]
    assert guard.known_as("u2") == []


def test_the_least_used_tokens_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signed.MOST_KNOWN == 20_000
    monkeypatch.setattr(signed, "MOST_KNOWN", 3)
    guard, counted = counting(issuer())
    tokens = [issuer().token(jti=str(number)) for number in range(4)]
    for token in (*tokens[:3], tokens[0], tokens[3]):
        granted(guard, token)
    assert counted.checks == 4
    granted(guard, tokens[0])
    assert counted.checks == 4, "it was used a moment ago"
    granted(guard, tokens[1])
    assert counted.checks == 5
    assert len(guard._known) == 3


def test_what_is_remembered_of_one_guard_is_nothing_to_another() -> None:
    keys = Keyring(read_jwks(jwks(issuer())))
    one, other = guard_by(keys, name="one"), guard_by(keys, name="other")
    token = issuer().token()
    assert granted(one, token).principal.key != granted(other, token).principal.key


def test_a_key_that_is_gone_takes_along_what_was_remembered_by_it() -> None:
    old, new = issuer(kid="old"), issuer(kid="new")
    keys = Keyring(read_jwks(jwks(old, new)))
    guard = guard_by(keys)
    token = old.token()
    granted(guard, token)
    keys.keys, keys.generation = read_jwks(jwks(new)), 1
    assert refused(guard, token).reason == "no key of the issuer has its `kid` and is for EdDSA"
    granted(guard, new.token())


# Keys that are fetched


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are fetched for each unknown id: half a minute would be long."""
    monkeypatch.setattr(keyring_module, "UNKNOWN_PAUSE", 0.0)


@story
async def test_the_first_token_waits_for_the_keys() -> None:
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        assert isinstance(await answered(guard, issuer().token()), Granted)
        granted(guard, issuer().token(sub="u2"))
        assert (server.fetches, guard.outcomes) == (1, {"200": 1})


@story
async def test_a_token_that_expires_while_keys_are_fetched_is_refused() -> None:
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        release = server.hold()
        wall = time.time()
        waiting = asyncio.ensure_future(answered(guard, Issuer("EdDSA").token(exp=wall + 0.05, iat=None), wall))
        await server.until_fetched()
        while time.time() < wall + 0.05:
            await asyncio.sleep(0.01)  # the time of day tells nobody
        release.set()
        assert isinstance(await waiting, Refused)


@story
async def test_without_keys_a_good_token_is_not_refused_but_the_guard_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "RETRY", (60.0, 60.0))
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        server.fail(503)
        said = await answered(guard, issuer().token())
        assert said == Down(f"GET {server.url}: answered 503, wanted its keys")
        for _ in range(5):
            assert guard.judge(bearing(issuer().token()), NOW) == said, "nobody asks again at once"
        assert server.fetches == 1
        assert isinstance(guard.judge(bearing("opaque"), NOW), Refused), "no keys make that good"


@story
async def test_a_known_token_and_one_by_a_known_key_wait_for_nothing(no_pause: None) -> None:
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        token = issuer().token()
        await answered(guard, token)
        release = server.hold()
        waiting = asyncio.ensure_future(answered(guard, issuer(kid="new").token()))
        await server.until_fetched(2)
        granted(guard, token)
        granted(guard, issuer().token(sub="u2"))
        assert not waiting.done()
        server.publish(issuer(), issuer(kid="new"))
        release.set()
        assert isinstance(await waiting, Granted)


@story
async def test_made_up_key_ids_do_not_flood_the_issuer() -> None:
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        await answered(guard, issuer().token())
        for number in range(300):
            refused(guard, issuer().token({"kid": str(number)}))
        assert server.fetches == 1, "they have just come"


@story
async def test_many_unknown_key_ids_at_once_are_one_fetch(no_pause: None) -> None:
    async with JwksServer(issuer()) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        await answered(guard, issuer().token())
        release = server.hold()
        tokens = [issuer().token({"kid": str(number)}) for number in range(100)]
        waiting = [asyncio.ensure_future(answered(guard, token)) for token in tokens]
        await server.until_fetched(2)
        release.set()
        assert all(isinstance(said, Refused) for said in await asyncio.gather(*waiting))
        assert server.fetches == 2


@story
async def test_with_the_key_the_issuer_takes_back_its_tokens(no_pause: None) -> None:
    old, new = issuer(kid="old"), issuer(kid="new")
    async with JwksServer(old) as server, aclosing(guard_by(FetchedKeyring("user", server.url))) as guard:
        token = old.token()
        await answered(guard, token)
        server.publish(old, new)
        assert isinstance(await answered(guard, new.token()), Granted)
        granted(guard, token)
        server.publish(new)
        assert isinstance(await answered(guard, old.token({"kid": "made up"})), Refused)
        assert isinstance(await answered(guard, token), Refused), "though it had been found good"


@pytest.mark.parametrize("alg", ALGORITHMS)
@story
async def test_nothing_that_a_token_names_is_fetched_or_opened(alg: str, no_pause: None) -> None:
    async with (
        ScriptedUpstream(answer(jwks(issuer(alg, key="of an attacker")))) as attacker,
        JwksServer(issuer(alg)) as server,
        aclosing(guard_by(FetchedKeyring("user", server.url))) as guard,
    ):
        await answered(guard, issuer(alg).token())
        named = attackers_keys(f"{attacker.url}/")
        kids = (f"{attacker.url}/jwks.json", f"../..{attacker.url}", "/etc/passwd", f"file://{__file__}")
        tokens = [make(issuer(alg)) for make in named.values()]
        tokens += [issuer(alg, key="of an attacker").token({"kid": kid}) for kid in kids]
        tokens += [
            issuer(alg, key="of an attacker").token({"jku": attacker.url, "x5u": attacker.url, "kid": kid})
            for kid in kids
        ]
        for token in tokens:
            assert isinstance(await answered(guard, token), Refused)
        assert attacker.requests == []
        assert {asked.target for asked in server.requests} == {JwksServer.PATH}


@story
async def test_what_names_other_keys_too_is_good_by_its_own() -> None:
    """Some issuers write where their keys are; it is not looked at."""
    token = issuer().token({"jku": "http://127.0.0.1:9/", "x5u": "http://127.0.0.1:9/", "jwk": issuer(key="other").jwk})
    granted(guard_of(issuer()), token)


# Another configuration


def test_a_guard_whose_settings_are_the_same_stays() -> None:
    for text in (f"keys: {{secret: {'x' * 32}}}", "keys: http://127.0.0.1:9/jwks"):
        guard = make_signed("user", settings(text))
        assert make_signed("user", settings(text), guard, is_same=True) is guard
        assert make_signed("user", settings(text), None) is not guard


@story
async def test_keys_that_were_fetched_stay_when_something_else_of_the_guard_changes() -> None:
    async with JwksServer(issuer()) as server:
        before = make_signed("user", settings(f"keys: {server.url}"))
        async with aclosing(before):
            await answered(before, issuer().token())
            after = make_signed("user", settings(f"keys: {server.url}, require: scope"), before)
            assert refused(after, issuer().token()).status == 403
            granted(after, issuer().token(scope="x"))
            assert server.fetches == 1


@story
async def test_keys_are_still_fetched_when_something_else_of_the_guard_has_changed(no_pause: None) -> None:
    async with JwksServer(issuer()) as server:
        before = make_signed("user", settings(f"keys: {server.url}"))
        await answered(before, issuer().token())
        async with aclosing(make_signed("user", settings(f"keys: {server.url}, identity: sub"), before)) as after:
            before.give_way(after)
            await before.aclose()
            server.publish(issuer(kid="new"))
            assert isinstance(await answered(after, issuer(kid="new").token()), Granted)


def test_a_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(issuer(kid="old")))
    text = f"keys: 'file:{file}'"
    before = make_signed("user", settings(text))
    file.write_bytes(jwks(issuer(kid="new")))
    granted(before, issuer(kid="old").token())
    after = make_signed("user", settings(text), before, is_same=True)
    assert after is not before
    refused(after, issuer(kid="old").token())
    granted(after, issuer(kid="new").token())


def test_with_a_file_that_has_not_changed_the_guard_stays(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(issuer()))
    text = f"keys: 'file:{file}'"
    before = make_signed("user", settings(text))
    assert make_signed("user", settings(text), before, is_same=True) is before


OLD, NEW = issuer(kid="old"), issuer(kid="new")


@pytest.mark.parametrize(
    ("after", "is_known"),
    [
        (guard_of(OLD), True),
        (guard_of(NEW, OLD), True),
        (guard_of(issuer(kid="renamed", key="old")), True),
        (guard_of(NEW), False),
        (guard_of(issuer("ES256", "old")), False),
        (guard_of(OLD, audience="[x, orders-ui]"), True),
        (guard_of(OLD, audience="x"), False),
        (guard_of(OLD, more="require: scope"), True),
        (guard_of(OLD, more="require: admin"), False),
        (guard_of(OLD, more="identity: email"), False),
        (guard_of(OLD, more="from: ['cookie:s']"), True),
        (guard_of(OLD, more="at_expiry: ignore"), None),
        (guard_by(Keyring(None)), False),
    ],
)
@pytest.mark.parametrize("wall", [NOW, NOW + 1000], ids=["soon", "after it expired"])
def test_who_is_in_stays_if_the_new_guard_would_let_it_in(
    after: SignedTokenGuard, is_known: bool | None, wall: float
) -> None:
    """And has to ask anew where its right would end at another time."""
    before = guard_of(OLD)
    principal = granted(before, OLD.token(scope="x", email="u@h")).principal
    assert before.still_knows(principal, NOW)
    assert after.still_knows(principal, wall) is is_known


def test_with_a_secret_that_is_no_more_goes_who_came_by_it() -> None:
    old, new = issuer("HS256", "old"), issuer("HS256", "new")
    both = guard_of(new, old)
    by_old, by_new = granted(both, old.token()).principal, granted(both, new.token()).principal
    assert both.still_knows(by_old, NOW)
    assert both.still_knows(by_new, NOW)
    assert not guard_of(new).still_knows(by_old, NOW)
    assert guard_of(new).still_knows(by_new, NOW)
    assert not guard_of(issuer("HS512", "old")).still_knows(by_old, NOW), "an algorithm that is not taken any more"


# The library


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class WithoutPyJwt(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "jwt" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutPyJwt
from ssegate.cli import main
sys.exit(main(sys.argv[1:]))
"""

CONFIG = """version: 1
server: {{listen: "127.0.0.1:0"}}
upstreams: {{api: http://127.0.0.1:9}}
auth: {{user: {guard}}}
routes:
  - {{path: /me, auth: user, poll: {{get: /me}}}}
  - {{path: /you, auth: {last}, poll: {{get: /you}}}}
"""
JWT = f"{{jwt: {{issuer: x, audience: y, keys: {{secret: {'x' * 32}}}}}}}"
OTHERS = "{keys: {values: {acme: k3y}}}, session: {forward: {url: http://127.0.0.1:9/who}}"


def ran(folder: Path, guard: str, command: str, *python: str, lines: int = 0) -> subprocess.CompletedProcess[str]:
    """Run this command on a configuration with this guard; with `lines` until so many are on its standard output, else to its end."""
    (folder / "ssegate.yaml").write_text(CONFIG.format(guard=guard, last="session" if "session" in guard else "user"))
    process = subprocess.Popen(
        [sys.executable, *python, command], cwd=folder, env={"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        first = "".join(process.stdout.readline() for _ in range(lines))
        if lines:
            process.terminate()
        out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, first + out, err)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_configuration_that_needs_pyjwt_and_lacks_it_says_how_to_get_it(tmp_path: Path, command: str) -> None:
    done = ran(tmp_path, JWT, command, "-c", WITHOUT)
    told = "auth.user.jwt: tokens need PyJWT, which is not installed; run: pip install 'ssegate[jwt]'\n"
    assert done.returncode == 78
    assert told in (done.stdout if command == "check" else done.stderr)
    assert "Traceback" not in done.stderr


def test_the_other_guards_do_without_pyjwt(tmp_path: Path) -> None:
    done = ran(tmp_path, OTHERS, "check", "-c", WITHOUT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("guard", "is_imported"), [(OTHERS, False), (JWT, True)], ids=["others", "jwt"])
def test_pyjwt_is_imported_where_a_guard_reads_tokens_and_nowhere_else(
    tmp_path: Path, guard: str, is_imported: bool
) -> None:
    """It takes a tenth of a second."""
    done = ran(tmp_path, guard, "serve", "-X", "importtime", "-m", "ssegate", lines=1)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "ssegate.service" in imported
    assert ("jwt" in imported) is is_imported
