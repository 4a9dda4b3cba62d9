"""The keys that tokens are signed with: out of a JWKS (RFC 7517), a PEM file, or a shared secret.

A key is good for the algorithms that fit its kind, and for no other: what a token says of itself never chooses how it is
checked (RFC 8725, 3.1). PyJWT reads keys and checks signatures; it is an extra, so this module is imported where a guard needs it.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt import PyJWK, PyJWTError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from ssegate.core.document import decode
from ssegate.errors import UndecodableError

MAX_KEYS = 100
"""Keys of one set that are looked at."""

MAX_BYTES = 512 * 1024
"""The most that a set may be."""

_OF_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_SHARED = ("HS256", "HS384", "HS512")

MIN_RSA_BITS = 2048
""""A key of size 2048 bits or larger MUST be used" (RFC 7518, 3.3)."""


class KeyFault(ValueError):
    """This holds no keys that can be used. The message is the fact, and quotes none of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    id: str | None
    """By what a token may name it."""
    by_algorithm: Mapping[str, PyJWK]
    """The same key for each algorithm that it is good for."""
    proof: bytes
    """A digest of it."""

    def has_signed(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether this is a signature of that by this key."""
        # Not by PyJWT's JWS, which looks at each character of a token in Python: more than half of the 230 µs that a new token
        # took (benchmarks/auth.py).
        key = self.by_algorithm[algorithm]
        return key.Algorithm.verify(signed, key.key, signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one issuer."""

    keys: tuple[Key, ...]

    def is_same(self, other: KeySet | None) -> bool:
        """Whether it has the same keys, with the same ids, for the same algorithms."""
        return other is not None and self._essence() == other._essence()

    def _essence(self) -> list[tuple[str, bytes, tuple[str, ...]]]:
        return sorted((key.id or "", key.proof, tuple(key.by_algorithm)) for key in self.keys)

    def find(self, algorithm: str, id_: str | None) -> Sequence[Key]:
        """Those that a token with this algorithm and key id may be signed with. A key without an id fits every id."""
        fit = [key for key in self.keys if algorithm in key.by_algorithm]
        return fit if id_ is None else [key for key in fit if key.id is None or key.id == id_]

    def knows(self, id_: str | None) -> bool:
        """Whether a key with this id may be among them."""
        return id_ is None or any(key.id is None or key.id == id_ for key in self.keys)


def read_key_file(path: Path) -> KeySet:
    """Read a JWKS, or a PEM public key or certificate. Raises `KeyFault`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFault(f"cannot be read: {(error.strerror or 'no reason given').lower()}") from None
    if b"PRIVATE KEY-----" in data:
        raise KeyFault("holds a private key; the gate wants the public one")
    return _read_pem(data) if data.lstrip().startswith(b"-----BEGIN") else read_jwks(data)


def read_jwks(data: bytes) -> KeySet:
    """Read a JWK Set. Keys that cannot be used are left out (RFC 7517, 5). Raises `KeyFault` when none is left."""
    if len(data) > MAX_BYTES:
        raise KeyFault(f"is larger than {MAX_BYTES // 1024} KiB, too large for a JWKS")
    try:
        document = decode(data)
    except UndecodableError:
        raise KeyFault("is not a JWKS and not a PEM public key") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise KeyFault("is not a JWKS: it has no list `keys`")
    keys = [key for each in listed[:MAX_KEYS] if (key := _read_jwk(each)) is not None]
    if not keys:
        raise KeyFault("has no key that signatures can be checked with")
    return KeySet(tuple(keys))


def shared_keys(secrets: Iterable[bytes]) -> KeySet:
    """Keys of secrets that are shared with the issuer."""
    return KeySet(tuple(_shared(secret) for secret in secrets))


def _shared(secret: bytes) -> Key:
    jwk = {"kty": "oct", "k": urlsafe_b64encode(secret).rstrip(b"=").decode()}
    by_algorithm = {name: PyJWK(jwk, name) for name in _SHARED}
    return Key(None, by_algorithm, hashlib.sha256(b"oct " + secret).digest())


def _read_jwk(jwk: object) -> Key | None:
    """A public key, for signatures; None for any other, and for one that is broken."""
    if not isinstance(jwk, dict) or jwk.get("kty") == "oct" or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    id_, said = jwk.get("kid"), jwk.get("alg")
    if not isinstance(id_, str | None) or not isinstance(said, str | None):
        return None
    algorithms = [
        name for name in _algorithms_of(jwk) if said in (None, name) or (said == "Ed25519" and name == "EdDSA")
    ]
    try:
        keys = {name: PyJWK(jwk, name) for name in algorithms}
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if any(isinstance(each.key, RSAPublicKey) and each.key.key_size < MIN_RSA_BITS for each in keys.values()):
        return None
    proof = hashlib.sha256(json.dumps(_essence(jwk), sort_keys=True).encode()).digest()
    return Key(id_, keys, proof) if keys else None


def _algorithms_of(jwk: Mapping[str, object]) -> tuple[str, ...]:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "RSA":
        return _OF_RSA
    if kind == "EC" and isinstance(curve, str) and curve in _OF_CURVE:
        return (_OF_CURVE[curve],)
    return ("EdDSA",) if kind == "OKP" and curve == "Ed25519" else ()


def _essence(jwk: Mapping[str, object]) -> dict[str, object]:
    """What makes it this key (RFC 7638, 3.2)."""
    return {name: jwk.get(name) for name in ("kty", "crv", "x", "y", "n", "e") if name in jwk}


def _read_pem(data: bytes) -> KeySet:
    try:
        if b"BEGIN CERTIFICATE" in data:
            key: object = load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except ValueError:
        raise KeyFault("is not a PEM public key or certificate") from None
    jwk: object = None
    if isinstance(key, RSAPublicKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
        jwk = ECAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, Ed25519PublicKey):
        jwk = OKPAlgorithm.to_jwk(key, as_dict=True)
    read = _read_jwk(jwk)
    if read is None:
        raise KeyFault("is no key for signatures: RSA from 2048 bits, EC on P-256, P-384 or P-521, or Ed25519")
    return KeySet((read,))
