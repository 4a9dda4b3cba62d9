"""What claims are worth, whose signature is good."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config.values import read_expression
from ssegate.core.claims import LEEWAY, Bearer, ClaimRules, Fault, identity_of, judge_claims, said

NOW = 1_800_000_000.0
GOOD = {"iss": "https://i/", "aud": "orders-ui", "sub": "u1", "iat": 1_800_000_000, "exp": 1_800_000_300}


def rules(identity: str = "sub", require: str | None = None, audience: tuple[str, ...] = ("orders-ui",)) -> ClaimRules:
    return ClaimRules(
        "https://i/", audience, read_expression(identity), None if require is None else read_expression(require)
    )


def judged(wall: float = NOW, by: ClaimRules | None = None, **claims: object) -> Bearer | Fault:
    """What is found of good claims with these in the place of their own; what is None is left out."""
    changed = {name: value for name, value in {**GOOD, **claims}.items() if value is not None}
    return judge_claims(changed, by or rules(), wall)


def fault(wall: float = NOW, by: ClaimRules | None = None, **claims: object) -> Fault:
    found = judged(wall, by, **claims)
    assert isinstance(found, Fault), found
    return found


def test_good_claims_say_who_it_is_and_until_when() -> None:
    assert judged() == Bearer("u1", 1_800_000_300.0, NOW)
    assert judged(iat=None) == Bearer("u1", 1_800_000_300.0, None)


@pytest.mark.parametrize("claims", [None, [], "text", 5, True, [["iss", "https://i/"]]])
def test_claims_are_an_object(claims: object) -> None:
    assert judge_claims(claims, rules(), NOW) == Fault(401, "its payload is no JSON object")


# By whom, for whom


@pytest.mark.parametrize(
    ("claims", "fact"),
    [
        ({"iss": None}, "it has no `iss`"),
        ({"iss": "https://i"}, "its issuer is `https://i`, wanted `https://i/`"),
        ({"iss": ["https://i/"]}, "its issuer is a list, wanted `https://i/`"),
        ({"aud": None}, "it has no `aud`"),
        ({"aud": "orders-admin"}, "its audience is `orders-admin`, wanted `orders-ui`"),
        ({"aud": ["a", "b"]}, "its audience is `a`, `b`, wanted `orders-ui`"),
        ({"aud": []}, "its audience is nobody, wanted `orders-ui`"),
        ({"aud": list("abcdefgh")}, "its audience is `a`, `b`, `c`, `d`, `e`, wanted `orders-ui`"),
    ],
)
def test_a_token_of_somebody_else_or_for_somebody_else_may_be_known_to_another_guard(
    claims: dict[str, Any], fact: str
) -> None:
    assert fault(**claims) == Fault(401, fact, is_foreign=True)


@pytest.mark.parametrize("audience", [5, {"orders-ui": 1}, ["orders-ui", 5], [["orders-ui"]], True])
def test_an_audience_that_is_no_text_is_broken_and_not_foreign(audience: object) -> None:
    assert fault(aud=audience) == Fault(401, "its `aud` is no text and no list of texts")


def test_of_several_audiences_one_is_enough() -> None:
    several = rules(audience=("a", "b"))
    for audience in ("a", "b", ["x", "b"], ["a", "b"]):
        assert isinstance(judged(by=several, aud=audience), Bearer)
    assert fault(by=several, aud=["x"]).fact == "its audience is `x`, wanted `a` or `b`"


def test_what_a_token_says_is_cut_and_stays_on_one_line_in_messages() -> None:
    assert said("a\n\x1b[2J\ud800\u202eb") == "`a\ufffd\ufffd[2J\ufffd\ufffdb`"
    assert said("x" * 1000) == f"`{'x' * 100}`"
    assert said(None) == "a NoneType"
    assert len(fault(aud=["x" * 1000] * 1000).fact) < 1000


# When


def test_exp_has_no_leeway() -> None:
    assert isinstance(judged(1_800_000_300 - 0.001), Bearer)
    assert fault(1_800_000_300).fact == "it expired less than a second ago"
    assert fault(1_800_000_342).fact == "it expired 42 s ago"
    assert fault(exp=None).fact == "it has no `exp`"


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_nbf_and_iat_may_be_half_a_minute_ahead(name: str) -> None:
    def at(time: float) -> dict[str, Any]:
        return {name: time}

    assert LEEWAY == 30
    assert isinstance(judged(**at(NOW + 30)), Bearer)
    assert fault(**at(NOW + 30.001)) == Fault(401, f"its `{name}` is 30 s ahead")
    assert isinstance(judged(**at(NOW - 1e8)), Bearer)


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_what_is_no_time_is_no_time(name: str) -> None:
    values: list[Any] = ["1", True, [], {}, math.nan, math.inf, -math.inf, 10**400, 1e13, -1e13]
    for value in values:
        assert fault(**{name: value}) == Fault(401, f"its `{name}` is no time")


TIMES = st.one_of(st.integers(-100, 100), st.floats(-100, 100))


@given(exp=TIMES, nbf=st.none() | TIMES, iat=st.none() | TIMES)
def test_claims_are_good_between_their_times(exp: float, nbf: float | None, iat: float | None) -> None:
    is_good = exp > 0 and all(begins is None or begins <= 30 for begins in (nbf, iat))
    found = judged(0.0, exp=exp, nbf=nbf, iat=iat)
    assert isinstance(found, Bearer) is is_good
    if isinstance(found, Bearer):
        assert (found.expires, found.issued) == (exp, iat)


# Who


@pytest.mark.parametrize(
    ("expression", "claims", "identity"),
    [
        ("sub", {}, "u1"),
        ("email", {"email": "ada@example.com"}, "ada@example.com"),
        ("org.user.id", {"org": {"user": {"id": 17}}}, "17"),
        ("join('/', [tenant, sub])", {"tenant": "acme"}, "acme/u1"),
        ("email || sub", {}, "u1"),
        ('"https://example.com/id"', {"https://example.com/id": "u2"}, "u2"),
        ("identities[0].id", {"identities": [{"id": "u3"}]}, "u3"),
    ],
)
def test_an_expression_names_the_viewer(expression: str, claims: dict[str, Any], identity: str) -> None:
    found = judged(by=rules(expression), **claims)
    assert isinstance(found, Bearer)
    assert found.identity == identity


@pytest.mark.parametrize("expression", ["email", "groups", "org", "`true`", "''", "groups[0].id"])
def test_who_names_nobody_is_not_let_in(expression: str) -> None:
    found = fault(by=rules(expression), groups=["a"], org={"id": 1})
    assert (found.status, found.is_foreign) == (401, False)
    assert found.fact.startswith("it names nobody")


@pytest.mark.parametrize("value", ["u1", "żółw 🐢", "a b", "x" * 256, "https://id.example.com/?x=é"])
def test_one_line_of_text_names_a_viewer(value: str) -> None:
    assert identity_of(value) == value


def test_a_whole_number_names_a_viewer() -> None:
    assert [identity_of(number) for number in (17, 0, -1, 10**255)] == ["17", "0", "-1", "1" + "0" * 255]


def test_nothing_else_does() -> None:
    values: list[Any] = [
        None, "", " u1", "u1 ", "\tu1", "u\n1", "u1\r", "u1\0", "u1\x7f", "u\u20281", "u1\ud800", "u\u202e1", "x" * 257,
        True, 1.5, 10**256, 10**5000, [], ["u1"], {}, b"u1",
    ]  # fmt: skip
    for value in values:
        assert identity_of(value) is None


@given(st.text(max_size=300))
def test_an_identity_can_stand_in_a_header_line_and_is_as_it_was(text: str) -> None:
    if identity_of(text) is not None:
        assert identity_of(text) == text
        assert len(text.encode().splitlines()) == 1
        assert text.isprintable()


# Whether they may


def test_a_claim_that_is_not_as_required_is_forbidden() -> None:
    reads = rules(require="contains(scope, 'orders:read')")
    assert isinstance(judged(by=reads, scope="openid orders:read"), Bearer)
    assert isinstance(judged(by=reads, scope=["orders:read"]), Bearer)
    assert fault(by=reads, scope="openid") == Fault(403, "`require` is not true of its claims")


@pytest.mark.parametrize("require", ["admin", "groups", "length(groups) > `0`", "!sub", "sub == 'u2'"])
def test_what_is_empty_is_not_true(require: str) -> None:
    assert fault(by=rules(require=require), groups=[], admin=False).status == 403


@pytest.mark.parametrize("claims", [{}, {"scope": 5}, {"scope": {"orders:read": True}}])
def test_a_rule_that_cannot_be_worked_out_is_not_met(claims: dict[str, Any]) -> None:
    rule = "contains(scope, 'orders:read')"
    found = fault(by=rules(require=rule), **claims)
    assert found.status == 403
    assert found.fact.startswith(f"expression `{rule}`: ")


def test_a_token_that_is_no_good_is_not_asked_what_its_bearer_may() -> None:
    never = rules(require="`false`")
    assert [fault(by=never, **claims).status for claims in ({"exp": 1}, {"iss": "x"}, {"aud": "x"}, {"sub": ""})] == [
        401
    ] * 4


# Whatever there is in them

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "scope"]), JSON, max_size=7))
def test_any_claims_get_a_verdict(claims: dict[str, object]) -> None:
    strict = rules("join('-', [sub, scope])", "starts_with(scope, 'o')")
    for by in (rules(), strict):
        found = judge_claims({**GOOD, **claims}, by, NOW)
        assert isinstance(found, Bearer) or found.status in (401, 403)
