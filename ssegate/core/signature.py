"""Is this webhook authentic: tokens and signatures, made and compared in constant time."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Literal

Algorithm = Literal["sha256", "sha512", "sha384", "sha1"]
Encoding = Literal["hex", "base64"]


def key_of(secret: str) -> bytes:
    """The bytes of a secret. One from the environment that is not UTF-8 has its bytes as lone surrogates."""
    return secret.encode("utf-8", "surrogateescape")


def sign(key: bytes, payload: bytes, algorithm: Algorithm = "sha256", encoding: Encoding = "hex") -> str:
    """The HMAC of the payload (RFC 2104), written in hexadecimal digits or in base64."""
    digest = hmac.digest(key, payload, algorithm)
    return digest.hex() if encoding == "hex" else b64encode(digest).decode()


def is_signed(
    keys: Iterable[bytes],
    payload: bytes,
    signatures: Sequence[str],
    algorithm: Algorithm = "sha256",
    encoding: Encoding = "hex",
) -> bool:
    """Whether one of the signatures is the HMAC of the payload under one of the keys. An empty key signs nothing.

    Hexadecimal digits count without regard to case, base64 with its padding. What has other than ASCII is no signature.
    """
    given = [each.lower() if encoding == "hex" else each for each in signatures if each.isascii()]
    digests = [sign(key, payload, algorithm, encoding).encode() for key in keys if key]
    return is_one_of([each.encode() for each in given], digests)


def bearer_of(authorization: str | None) -> bytes:
    """The token of an `Authorization: Bearer …`; empty when it is none. The scheme's case does not matter."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip(" ").encode("latin-1") if scheme.lower() == "bearer" else b""


def is_one_of(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Compare each with each, without an early exit: the time does not tell which one was near.

    Signatures are compared as they are written, so whatever is malformed is simply different. What is empty is equal to
    nothing: anyone could send that.
    """
    found = False
    known = [each for each in expected if each]
    for text in given:
        for each in known:
            found |= hmac.compare_digest(text, each)
    return found
