from __future__ import annotations

from ssegate.core.headers import Headers

FIELDS = ((b"Accept", b"a"), (b"X-Token", b"caf\xe9"), (b"accept", b"b"))


def test_names_are_found_in_any_case_and_values_keep_every_byte() -> None:
    headers = Headers(FIELDS)
    assert headers.get("X-TOKEN") == "café"
    assert "x-token" in headers
    assert headers.get("cookie") is None
    assert "cookie" not in headers


def test_repeated_fields_are_a_list_and_each_can_be_had() -> None:
    headers = Headers(FIELDS)
    assert headers.get("ACCEPT") == "a, b"
    assert headers.all("accept") == ["a", "b"]
    assert headers.all("cookie") == []


def test_an_empty_value_is_present() -> None:
    headers = Headers([(b"x", b"")])
    assert headers.get("x") == ""
    assert "x" in headers


def test_order_and_case_stay_as_they_came() -> None:
    headers = Headers(iter(FIELDS))
    assert tuple(headers) == headers.raw == FIELDS
    assert len(headers) == 3
    assert headers == Headers(FIELDS)
    assert hash(headers) == hash(Headers(FIELDS))
    assert headers != Headers()
    assert headers != FIELDS


def test_values_are_not_shown_for_they_may_be_secrets() -> None:
    assert repr(Headers(FIELDS)) == "Headers(Accept, X-Token, accept)"
