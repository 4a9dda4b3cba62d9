"""Is this webhook authentic: tokens and signatures, compared in constant time."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Sequence
from typing import Literal

Algorithm = Literal["sha256", "sha512", "sha1"]
Encoding = Literal["hex", "base64"]


def verify_token(secrets: Sequence[str], authorization: str | None) -> bool:
    """Whether an `Authorization` value is `Bearer` and one of the secrets. The scheme's case does not matter."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    return _is_one_of(token.strip(" "), [_key(secret) for secret in secrets if secret])


def verify_hmac(
    secrets: Sequence[str], body: bytes, signature: str | None, *, algorithm: Algorithm, encoding: Encoding, prefix: str
) -> bool:
    """Whether the signature is the prefix and the HMAC of the raw body under one of the secrets.

    The prefix is compared exactly, hexadecimal digits without regard to case, base64 with its padding.
    """
    if signature is None or not signature.startswith(prefix):
        return False
    given = signature[len(prefix) :]
    digests = [hmac.digest(_key(secret), body, algorithm) for secret in secrets if secret]
    if encoding == "hex":
        return _is_one_of(given.lower(), [digest.hex().encode() for digest in digests])
    return _is_one_of(given, [b64encode(digest) for digest in digests])


def _key(secret: str) -> bytes:
    # A secret from the environment that is not UTF-8 has its bytes as lone surrogates.
    return secret.encode("utf-8", "surrogateescape")


def _is_one_of(given: str, expected: Sequence[bytes]) -> bool:
    """Compare with each, without an early exit: the time does not tell which one was near.

    The texts are compared, not the decoded bytes, so whatever is malformed is simply different. An empty secret never
    gets here: anyone could sign with it.
    """
    if not given.isascii():
        return False
    raw = given.encode()
    found = False
    for each in expected:
        found |= hmac.compare_digest(raw, each)
    return found
