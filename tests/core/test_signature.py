"""Tokens and signatures of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.delivery import Delivery
from ssegate.core.headers import Headers
from ssegate.core.scheme import Hmac, Scheme, Token

RFC_4231 = json.loads((Path(__file__).parent.parent / "vectors" / "rfc4231.json").read_text())

GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def is_authentic(scheme: Scheme, body: bytes = b"", **headers: str | None) -> bool:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value is not None]
    return not scheme.fault(Delivery(Headers(pairs), body), wall=0.0)


def verify_hmac(secrets, body, signature, *, algorithm, encoding, prefix) -> bool:
    scheme = Hmac(secrets, "sign", algorithm=algorithm, encoding=encoding, prefix=prefix)
    return is_authentic(scheme, body, sign=signature)


def verify_token(secrets, authorization) -> bool:
    return is_authentic(Token(secrets), authorization=authorization)


def verify_github(
    signature: str | None, secrets: tuple[str, ...] = (GITHUB_SECRET,), body: bytes = GITHUB_BODY
) -> bool:
    return verify_hmac(secrets, body, signature, algorithm="sha256", encoding="hex", prefix="sha256=")


def test_the_vector_that_github_publishes_is_authentic():
    assert verify_github(GITHUB_SIGNATURE)


@pytest.mark.parametrize("case", RFC_4231["cases"], ids=lambda case: f"case {case['case']}")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_vectors_of_rfc_4231_are_authentic_in_hex_and_base64(case, algorithm):
    # Some of these keys are no UTF-8; a secret has such bytes as lone surrogates.
    secret = bytes.fromhex(case["key"]).decode("utf-8", "surrogateescape")
    data = bytes.fromhex(case["data"])
    as_base64 = base64.b64encode(bytes.fromhex(case[algorithm])).decode()
    assert verify_hmac([secret], data, case[algorithm], algorithm=algorithm, encoding="hex", prefix="")
    assert verify_hmac([secret], data, as_base64, algorithm=algorithm, encoding="base64", prefix="")
    assert not verify_hmac([secret], data + b"!", case[algorithm], algorithm=algorithm, encoding="hex", prefix="")
    assert not verify_hmac([secret], data + b"!", as_base64, algorithm=algorithm, encoding="base64", prefix="")


def test_sha1_is_verified_where_a_sender_has_nothing_better():
    # RFC 2202, 3, test case 2
    signature = "sha1=effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
    body = b"what do ya want for nothing?"
    assert verify_hmac(["Jefe"], body, signature, algorithm="sha1", encoding="hex", prefix="sha1=")


def test_hexadecimal_digits_may_be_in_upper_case():
    assert verify_github("sha256=" + GITHUB_SIGNATURE.removeprefix("sha256=").upper())


def test_each_secret_counts_while_they_are_rotated():
    assert verify_github(GITHUB_SIGNATURE, ("new", GITHUB_SECRET))
    assert verify_github(GITHUB_SIGNATURE, (GITHUB_SECRET, "old"))
    assert not verify_github(GITHUB_SIGNATURE, ("new", "old"))


def test_without_a_secret_nothing_is_authentic():
    assert not verify_github(GITHUB_SIGNATURE, ())
    assert not verify_token([], "Bearer ")


def test_an_empty_secret_is_none_as_anyone_could_sign_with_it():
    forged = "sha256=" + hmac.digest(b"", GITHUB_BODY, "sha256").hex()
    assert not verify_github(forged, ("",))
    assert not verify_token([""], "Bearer ")
    assert not verify_token([""], "Bearer")


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "sha256=",
        GITHUB_SIGNATURE.removeprefix("sha256="),
        GITHUB_SIGNATURE[:-1],
        GITHUB_SIGNATURE + "0",
        GITHUB_SIGNATURE.replace("sha256=", "SHA256="),
        GITHUB_SIGNATURE.replace("sha256=", "sha1="),
        GITHUB_SIGNATURE[:-1] + "g",
        GITHUB_SIGNATURE[:-1] + "é",
        GITHUB_SIGNATURE + "\n",
    ],
)
def test_a_malformed_signature_is_just_false(signature):
    assert verify_github(signature) is False


@pytest.mark.parametrize(
    "change", [str.lower, lambda s: s.rstrip("="), lambda s: s + "=", lambda s: "*" + s, lambda s: s[:8]]
)
def test_malformed_base64_is_just_false(change):
    signature = base64.b64encode(hmac.digest(b"secret", b"body", "sha256")).decode()
    options = {"algorithm": "sha256", "encoding": "base64", "prefix": ""}
    assert verify_hmac(["secret"], b"body", signature, **options) is True
    assert verify_hmac(["secret"], b"body", change(signature), **options) is False


@given(
    st.binary(), st.text(min_size=1), st.sampled_from(["sha1", "sha256", "sha512"]), st.sampled_from(["hex", "base64"])
)
def test_what_the_secret_signed_is_authentic_and_one_changed_bit_is_not(body, secret, algorithm, encoding):
    try:
        key = secret.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return  # no environment and no file can hold such a secret
    digest = hmac.new(key, body, getattr(hashlib, algorithm)).digest()
    for flipped in (0, 1):
        changed = bytes([digest[0] ^ flipped]) + digest[1:]
        signature = "v1," + (changed.hex() if encoding == "hex" else base64.b64encode(changed).decode())
        authentic = verify_hmac([secret], body, signature, algorithm=algorithm, encoding=encoding, prefix="v1,")
        assert authentic is (flipped == 0)


@given(st.none() | st.text(st.characters(max_codepoint=255)))
def test_no_header_makes_the_verification_fail_otherwise_than_by_false(value):
    assert verify_github(value) is False
    assert verify_token(["a secret that is not guessed"], value) is False


@pytest.mark.parametrize(
    "header", ["Bearer s3cret", "bearer s3cret", "BEARER s3cret", "Bearer  s3cret", "Bearer s3cret "]
)
def test_a_bearer_token_that_equals_a_secret_is_authentic(header):
    assert verify_token(["other", "s3cret"], header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "s3cret",
        "Basic s3cret",
        "Bearer S3CRET",
        "Bearer s3cre",
        "Bearer s3cret2",
        "Bearer é",
        "Bearers3cret",
    ],
)
def test_another_token_scheme_or_case_is_false(header):
    assert verify_token(["s3cret"], header) is False


def test_a_token_that_is_not_ascii_is_compared_as_the_bytes_it_is():
    assert verify_token(["é"], "Bearer " + "é".encode().decode("latin-1"))
    assert not verify_token(["é"], "Bearer é")
