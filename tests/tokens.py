"""Who issues tokens in tests: keys, and JWTs made with them by libraries that the gate does not use."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwk, jwt
from joserfc.errors import SecurityWarning
from joserfc.jws import JWSRegistry

with warnings.catch_warnings():
    # In 2.0 it is to be joserfc; until then it is a second opinion. The first import sets a filter of its own.
    from authlib.deprecate import AuthlibDeprecationWarning

    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.jose import JsonWebKey, JsonWebToken

ISSUER = "https://login.example.com/"
AUDIENCE = "orders-ui"
SUBJECT = "u1"
LIFETIME = 300
"""Seconds."""

Maker = Literal["joserfc", "authlib"]
MAKERS: tuple[Maker, ...] = ("joserfc", "authlib")

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Those that a guard takes when nothing is said of them."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_CURVES: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


class Issuer:
    """Somebody with one key: `Issuer("ES256").token(sub="ada", scope="orders:read")`.

    Keys are made once per process: issuers of one kind of algorithm with the same `kid` have the same key, unless `key` names another.
    """

    def __init__(
        self,
        alg: str = "RS256",
        kid: str | None = "k1",
        maker: Maker = "joserfc",
        *,
        key: str | None = None,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
        wall: float | None = None,
    ) -> None:
        """`wall` is the time of day when its tokens are issued, in seconds; None is now."""
        self.alg = alg
        self.kid = kid
        self.maker = maker
        self.issuer = issuer
        self.audience = audience
        self._name = key or kid or ""
        self._wall = wall

    def __repr__(self) -> str:
        return f"{self.alg}-{self.kid}-{self.maker}"

    @property
    def wall(self) -> float:
        """The time of day at which it issues, in seconds."""
        return time.time() if self._wall is None else self._wall

    def like(self, *, alg: str | None = None, key: str | None = None) -> Issuer:
        """One that says of itself what this one says, with another algorithm or the key of another name."""
        return Issuer(
            alg or self.alg,
            self.kid,
            self.maker,
            key=key or self._name,
            issuer=self.issuer,
            audience=self.audience,
            wall=self._wall,
        )

    # Tokens

    def claims(self, **claims: object) -> dict[str, object]:
        """The claims of a good token, with these in the place of its own; what is None is left out."""
        now = int(self.wall)
        usual = {"iss": self.issuer, "aud": self.audience, "sub": SUBJECT, "iat": now, "exp": now + LIFETIME}
        return {name: value for name, value in {**usual, **claims}.items() if value is not None}

    def header(self, **members: object) -> dict[str, object]:
        """The same for the header."""
        usual = {"alg": self.alg, "kid": self.kid, "typ": "JWT"}
        return {name: value for name, value in {**usual, **members}.items() if value is not None}

    def token(self, header: Mapping[str, object] | None = None, /, **claims: object) -> str:
        """A token as its maker makes it; `header` has further members of the header."""
        return _MAKERS[self.maker](self, self.header(**(header or {})), self.claims(**claims))

    def sign(self, header: object, payload: object) -> str:
        """A token that no library would make: bytes are signed as they are, anything else as JSON."""
        signed = b".".join(base64url(part if isinstance(part, bytes) else as_json(part)) for part in (header, payload))
        return (signed + b"." + base64url(self.signature(signed))).decode()

    def signature(self, data: bytes) -> bytes:
        """What stands, in base64url, behind the last dot. The algorithm is the issuer's, whatever a header says."""
        if self.alg.startswith("HS"):
            mac = hmac.HMAC(secret(self._name), self.hash)
            mac.update(data)
            return mac.finalize()
        key = self.private_key
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, self._padding(), self.hash)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            size = (key.key_size + 7) // 8
            return b"".join(
                number.to_bytes(size) for number in decode_dss_signature(key.sign(data, ec.ECDSA(self.hash)))
            )
        return key.sign(data)

    @property
    def private_key(self) -> PrivateKey:
        """Of one with a pair of keys."""
        return private_key(family(self.alg), self._name)

    @property
    def hash(self) -> hashes.HashAlgorithm:
        """What the algorithm hashes by."""
        return {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}.get(
            self.alg[-3:], hashes.SHA256()
        )

    def _padding(self) -> padding.AsymmetricPadding:
        if self.alg.startswith("PS"):
            return padding.PSS(padding.MGF1(self.hash), self.hash.digest_size)
        return padding.PKCS1v15()

    # Keys

    @property
    def secret(self) -> str:
        """Of an issuer with HS256 and the like: what goes behind `keys: {secret: …}`."""
        return secret(self._name).decode()

    @property
    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        """Of one with a pair of keys."""
        return self.private_key.public_key()

    @property
    def pem(self) -> bytes:
        """The public key as a PEM file has it."""
        return self.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def der(self) -> bytes:
        """The same without its armour."""
        return self.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def jwk(self) -> dict[str, Any]:
        """The key that others need to read its tokens: the public one, or with HS256 and the like the secret."""
        if self.alg.startswith("HS"):
            numbers = jwk.OctKey.import_key(self.secret).as_dict()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # of the weak one
                numbers = jwk.import_key(self.pem, _KINDS[self.alg[:2]]).as_dict(private=False)
        named = {} if self.kid is None else {"kid": self.kid}
        return {**numbers, **named, "use": "sig", "alg": self.alg}


def jwks(*issuers: Issuer) -> bytes:
    """The set of their keys, as it is published."""
    return as_json({"keys": [issuer.jwk for issuer in issuers]})


def base64url(data: bytes) -> bytes:
    """Without padding, as in RFC 7515, 2."""
    return urlsafe_b64encode(data).rstrip(b"=")


def as_json(value: object) -> bytes:
    """As short as can be."""
    return json.dumps(value, separators=(",", ":")).encode()


# Keys

_KINDS: dict[str, Literal["oct", "RSA", "EC", "OKP"]] = {"HS": "oct", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


WEAK = "weak"
"""The name of a key that, with RSA, is shorter than RFC 7518, 3.3 allows."""


def family(alg: str) -> str:
    """What algorithms must share to work with one key."""
    return alg if alg in _CURVES else alg[:2].replace("PS", "RS")


@cache
def private_key(family: str, name: str) -> PrivateKey:
    """The key of this name, made when it is asked for first."""
    if family == "RS":
        return rsa.generate_private_key(65537, 1024 if name == WEAK else 2048)
    if family == "Ed":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[family])


def secret(name: str) -> bytes:
    """The secret of this name, the same in each process, long enough for each HMAC."""
    return hashlib.sha512(b"a secret for tests: " + name.encode()).hexdigest().encode()


def _key_material(alg: str, name: str) -> bytes:
    """What libraries make their keys from: a secret, or a private key in PEM."""
    if alg.startswith("HS"):
        return secret(name)
    return private_key(family(alg), name).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# Makers


@cache
def _joserfc_key(alg: str, name: str) -> jwk.Key:
    return jwk.import_key(_key_material(alg, name), _KINDS[alg[:2]])


def _by_joserfc(issuer: Issuer, header: dict[str, Any], claims: dict[str, Any]) -> str:
    with warnings.catch_warnings():
        # RFC 9864 calls EdDSA with the curve of Ed25519 by that name; OpenID providers do not yet.
        warnings.simplefilter("ignore", SecurityWarning)
        # Not strict: members of the header that no standard knows are what some issuers have.
        registry = JWSRegistry(algorithms=[issuer.alg], strict_check_header=False)
        return jwt.encode(header, claims, _joserfc_key(issuer.alg, issuer._name), registry=registry)


@cache
def _authlib_key(alg: str, name: str) -> Any:
    return JsonWebKey.import_key(_key_material(alg, name), {"kty": _KINDS[alg[:2]]})


def _by_authlib(issuer: Issuer, header: dict[str, Any], claims: dict[str, Any]) -> str:
    made: bytes = JsonWebToken([issuer.alg]).encode(header, claims, _authlib_key(issuer.alg, issuer._name))
    return made.decode()


_MAKERS = {"joserfc": _by_joserfc, "authlib": _by_authlib}
