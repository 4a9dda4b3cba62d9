"""A guard that knows some API keys."""

from __future__ import annotations

import hmac

import pytest

from ssegate.auth.guard import Granted, Refused
from ssegate.auth.keys import ApiKeyGuard
from ssegate.config import parse_config
from tests.auth.reading import question


def make(values: str = "acme: k-acme, zeta: [k-old, k-new]", header: str = "x-api-key") -> ApiKeyGuard:
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    auth: {{partner: {{keys: {{header: {header}, values: {{{values}}}}}}}}}
    routes: [{{path: /a, auth: partner, webhook: {{at: /h, verify: none}}}}]
    """
    settings = parse_config(text, source="f", environ={}).auth["partner"].keys
    assert settings is not None
    return ApiKeyGuard("partner", settings)


def who(guard: ApiKeyGuard, *fields: tuple[str, str]) -> str | None:
    verdict = guard.judge(question(*fields), 0.0)
    return verdict.principal.identity if isinstance(verdict, Granted) else None


@pytest.mark.parametrize(
    ("key", "identity"),
    [
        ("k-acme", "acme"),
        (" k-acme\t", "acme"),
        ("k-old", "zeta"),
        ("k-new", "zeta"),
        ("K-ACME", None),
        ("k-acm", None),
        ("k-acmee", None),
        ("k-acme k-acme", None),
        ("acme", None),
        ("", None),
        ("k-acm\u00e9", None),
        ("x" * 30_000, None),
    ],
)
def test_who_shows_a_key_is_whose_it_is(key: str, identity: str | None) -> None:
    assert who(make(), ("X-Api-Key", key)) == identity


def test_a_key_in_another_header_is_none() -> None:
    guard = make()
    assert who(guard, ("Authorization", "Bearer k-acme")) is None
    assert who(guard) is None
    assert not guard.recognises(question(("Authorization", "Bearer k-acme")).headers)
    assert guard.recognises(question(("X-Api-Key", "zz")).headers)
    assert not guard.recognises(question(("X-Api-Key", "  ")).headers)


@pytest.mark.parametrize("value", ["Bearer k-acme", "bearer k-acme", "BEARER  k-acme"])
def test_in_authorization_it_stands_behind_bearer(value: str) -> None:
    assert who(make(header="authorization"), ("Authorization", value)) == "acme"


def test_a_key_with_letters_of_every_kind_is_known() -> None:
    assert who(make('acme: "schlüssel"'), ("X-Api-Key", "schlüssel".encode().decode("latin-1"))) == "acme"


def test_a_key_twice_in_a_request_is_not_two_chances() -> None:
    guard = make()
    assert who(guard, ("X-Api-Key", "zz"), ("X-Api-Key", "k-acme")) in (None, "acme")
    verdict = guard.judge(question(("X-Api-Key", "zz"), ("X-Api-Key", "yy")), 0.0)
    assert isinstance(verdict, Refused)


def test_a_wrong_key_and_none_are_left_to_the_next_guard_and_not_told() -> None:
    guard = make()
    for fields, reason in (
        ((), "there is no key in `x-api-key`"),
        ((("X-Api-Key", "hush"),), "the key in `x-api-key` is none of the guard's"),
    ):
        verdict = guard.judge(question(*fields), 0.0)
        assert verdict == Refused(401, reason, is_stranger=True)


def test_keys_are_kept_as_digests_and_all_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make()
    assert "k-acme" not in repr(vars(guard)) + repr(guard.judge(question(("X-Api-Key", "k-acme")), 0.0))
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("k-acme", "k-new", "zz"):
        compared.clear()
        who(guard, ("X-Api-Key", key))
        assert len(compared) == 3
        assert {len(one) for one, _ in compared} == {len(other) for _, other in compared} == {32}  # type: ignore[arg-type]


def test_a_viewer_is_known_by_its_keys_and_as_long_as_it_has_one() -> None:
    guard = make()
    old = guard.judge(question(("X-Api-Key", "k-old")), 0.0)
    new = guard.judge(question(("X-Api-Key", "k-new")), 0.0)
    assert isinstance(old, Granted)
    assert isinstance(new, Granted)
    assert set(guard.known_as("zeta")) == {old.principal.key, new.principal.key}
    assert guard.known_as("nobody") == []
    later = make("acme: k-acme, zeta: k-new")
    assert [later.still_knows(each.principal, 0.0) for each in (old, new)] == [False, True]
    assert not make("other: k-new").still_knows(new.principal, 0.0)
    assert (old.again, guard.recheck, old.principal.expires) == (None, None, None)
