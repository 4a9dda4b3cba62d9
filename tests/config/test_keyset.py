"""The keys that tokens are signed with: which of them count, for what, and what is said of those that do not."""

from __future__ import annotations

import datetime
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config.keyset import (
    MAX_BYTES,
    MAX_KEYS,
    KeyFault,
    KeySet,
    read_jwks,
    read_key_file,
    shared_keys,
)
from tests.guards import GARBAGE, huge
from tests.hostile_tokens import crowd, decoded
from tests.tokens import WEAK, Issuer, as_json, jwks

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


def proofs(keys: KeySet) -> set[bytes]:
    return {key.proof for key in keys.keys}


def key_set(*members: object) -> KeySet:
    return read_jwks(as_json({"keys": members}))


def fact_of(data: bytes) -> str:
    with pytest.raises(KeyFault) as caught:
        read_jwks(data)
    assert caught.value.__cause__ is None
    return str(caught.value)


def opens(keys: KeySet, issuer: Issuer) -> bool:
    """Whether a token of this issuer can be read by the keys that are found for it."""
    signed, _, signature = issuer.token().rpartition(".")
    (key,) = keys.find(issuer.alg, issuer.kid)
    return key.has_signed(issuer.alg, signed.encode(), decoded(signature))


# Sets


@pytest.mark.parametrize("alg", ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"])
def test_a_key_is_good_for_the_algorithm_it_is_said_to_be_for(alg: str) -> None:
    issuer = Issuer(alg)
    keys = read_jwks(jwks(issuer))
    assert [tuple(key.by_algorithm) for key in keys.keys] == [(alg,)]
    assert opens(keys, issuer)


@pytest.mark.parametrize(
    ("alg", "algorithms"),
    [("RS256", RSA), ("ES256", ("ES256",)), ("ES384", ("ES384",)), ("ES512", ("ES512",)), ("EdDSA", ("EdDSA",))],
)
def test_a_key_that_does_not_say_is_good_for_what_fits_its_kind(alg: str, algorithms: tuple[str, ...]) -> None:
    (key,) = key_set({**Issuer(alg).jwk, "alg": None}).keys
    assert tuple(key.by_algorithm) == algorithms


def test_the_newer_name_of_eddsa_is_understood() -> None:
    """RFC 9864, 2.2."""
    keys = key_set({**Issuer("EdDSA").jwk, "alg": "Ed25519"})
    assert opens(keys, Issuer("EdDSA"))


@pytest.mark.parametrize(
    "members",
    [
        {"alg": "HS256"}, {"alg": "RS384x"}, {"alg": "none"}, {"alg": ""}, {"alg": "ES256"}, {"alg": ["RS256"]}, {"alg": 5},
        {"use": "enc"}, {"use": None}, {"use": ["sig"]}, {"key_ops": ["encrypt"]}, {"key_ops": "verify"}, {"key_ops": []},
        {"kid": 5}, {"kid": ["k1"]}, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "EC"}, {"kty": None}, {"kty": ["RSA"]}, {"d": "AQAB"},
        {"n": ""}, {"n": "!"}, {"n": 5}, {"n": None}, {"e": "AA"}, {"e": "Ag"}, {"e": []}, {"n": "AQAB"},
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_used_is_left_out(members: dict[str, Any]) -> None:
    good = Issuer("ES256", "good")
    bad = {**Issuer("RS256").jwk, **members}
    assert [key.id for key in key_set(bad, good.jwk, bad).keys] == ["good"]
    assert fact_of(as_json({"keys": [bad]})) == "has no key that signatures can be checked with"


def test_of_a_crowd_those_that_are_for_this_are_found() -> None:
    issuers = [Issuer(alg, alg) for alg in ("RS256", "ES256", "EdDSA")]
    keys = read_jwks(crowd(*issuers))
    assert [key.id for key in keys.keys] == ["p-384", "RS256", "ES256", "EdDSA"]
    assert all(opens(keys, issuer) for issuer in issuers)


def test_a_private_key_and_a_secret_are_never_taken_out_of_a_set() -> None:
    private = json.loads(as_json({**Issuer("ES256").jwk, "d": "AAAA"}))
    for member in (private, Issuer("HS256").jwk):
        assert fact_of(as_json({"keys": [member]})) == "has no key that signatures can be checked with"


def test_rsa_keys_have_2048_bits_or_more() -> None:
    """RFC 7518, 3.3."""
    assert "no key" in fact_of(jwks(Issuer("RS256", WEAK)))


def test_only_the_first_hundred_keys_are_looked_at() -> None:
    jwk = Issuer("EdDSA").jwk
    keys = key_set(*({**jwk, "kid": str(number)} for number in range(MAX_KEYS + 1)))
    assert len(keys.keys) == MAX_KEYS == 100
    assert not keys.knows("100")


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_set_is_refused_and_not_quoted(what: str) -> None:
    assert fact_of(GARBAGE[what]) in (
        "is not a JWKS and not a PEM public key",
        "is not a JWKS: it has no list `keys`",
        "has no key that signatures can be checked with",
    )


def test_what_is_too_large_is_refused() -> None:
    assert fact_of(huge(MAX_BYTES + 1)) == "is larger than 512 KiB, too large for a JWKS"
    assert fact_of(huge(MAX_BYTES)) == "has no key that signatures can be checked with"


# Which key


def test_a_key_is_found_by_its_id_and_its_algorithm() -> None:
    one, other, third = Issuer("RS256", "a"), Issuer("RS256", "b"), Issuer("ES256", "a")
    keys = read_jwks(jwks(one, other, third))
    assert [key.id for key in keys.find("RS256", "a")] == ["a"]
    assert [key.id for key in keys.find("RS256", None)] == ["a", "b"]
    assert [tuple(key.by_algorithm) for key in keys.find("ES256", "a")] == [("ES256",)]
    assert keys.find("RS256", "c") == keys.find("RS256", "A") == keys.find("RS256", "") == []
    assert keys.find("HS256", "a") == keys.find("none", None) == []
    assert [keys.knows(id_) for id_ in ("a", "b", "c", "", None)] == [True, True, False, False, True]


def test_a_key_without_an_id_fits_every_id() -> None:
    keys = read_jwks(jwks(Issuer("RS256", None, key="k"), Issuer("RS256", "a")))
    assert [key.id for key in keys.find("RS256", "a")] == [None, "a"]
    assert [key.id for key in keys.find("RS256", "b")] == [None]
    assert keys.knows("b")


def test_two_keys_may_have_the_same_id() -> None:
    keys = read_jwks(jwks(Issuer("RS256", "a", key="x"), Issuer("RS256", "a", key="y")))
    assert len(keys.find("RS256", "a")) == 2


def test_a_key_is_known_by_what_it_is_and_not_by_what_is_said_of_it() -> None:
    jwk = Issuer("RS256").jwk
    same = key_set({**jwk, "kid": "other", "alg": None, "x5t": "x"})
    assert proofs(same) == proofs(key_set(jwk))
    assert len(proofs(key_set(jwk)) | proofs(read_jwks(jwks(Issuer("RS256", "k2"))))) == 2


# Secrets


def test_a_secret_is_good_for_hmac_alone() -> None:
    issuer = Issuer("HS256")
    keys = shared_keys([issuer.secret.encode()])
    assert tuple(keys.keys[0].by_algorithm) == ("HS256", "HS384", "HS512")
    assert keys.find("RS256", None) == keys.find("none", None) == []
    assert opens(keys, issuer)


@pytest.mark.parametrize(
    "secret", [b"s", b"x" * 31, b"x" * 64, b"x" * 65, b"x" * 127, b"x" * 128, b"x" * 129, b"x" * 1000, b"\0\xff"]
)
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_secret_of_any_length_reads_what_was_signed_by_it_without_a_warning(secret: bytes, alg: str) -> None:
    signature = hmac.digest(secret, b"signed", alg.replace("HS", "sha"))
    (key,) = shared_keys([secret]).find(alg, "any")
    assert key.has_signed(alg, b"signed", signature)
    assert not key.has_signed(alg, b"signed too", signature)
    assert not key.has_signed(alg, b"signed", b"")


def test_two_secrets_are_two_keys() -> None:
    keys = shared_keys([b"one" * 20, b"two" * 20])
    assert len(proofs(keys)) == 2
    assert len(keys.find("HS256", "k1")) == 2


# Files


def pem_of(key: Any) -> bytes:
    made: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return made


def certificate_of(key: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "login.example.com")])
    begins = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(begins).not_valid_after(begins + datetime.timedelta(days=1))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)


def write(folder: Path, data: bytes) -> Path:
    file = folder / "keys"
    file.write_bytes(data)
    return file


def file_fact(folder: Path, data: bytes) -> str:
    with pytest.raises(KeyFault) as caught:
        read_key_file(write(folder, data))
    return str(caught.value)


@pytest.mark.parametrize("alg", ["RS256", "PS384", "ES256", "ES384", "ES512", "EdDSA"])
def test_a_file_has_a_set_or_a_public_key_or_a_certificate(tmp_path: Path, alg: str) -> None:
    issuer = Issuer(alg)
    for data in (jwks(issuer), issuer.pem, b"\n\n" + issuer.pem, certificate_of(issuer.private_key)):
        keys = read_key_file(write(tmp_path, data))
        assert opens(keys, issuer)
        assert proofs(keys) == proofs(read_jwks(jwks(issuer))), "it is the same key, wherever it is found"


def test_a_key_out_of_a_pem_file_fits_every_id(tmp_path: Path) -> None:
    keys = read_key_file(write(tmp_path, Issuer("RS256").pem))
    assert keys.knows("whatever")
    assert tuple(keys.keys[0].by_algorithm) == RSA


def test_a_private_key_in_a_file_is_refused(tmp_path: Path) -> None:
    for kind, password in (
        (serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        (serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()),
        (serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")),
    ):
        private = Issuer("ES256").private_key.private_bytes(serialization.Encoding.PEM, kind, password)
        for data in (private, Issuer("ES256").pem + private):
            assert file_fact(tmp_path, data) == "holds a private key; the gate wants the public one"


def test_a_file_that_is_not_there_or_is_a_folder_cannot_be_read(tmp_path: Path) -> None:
    for file, fact in ((tmp_path / "none", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(KeyFault, match=f"^cannot be read: {fact}$"):
            read_key_file(file)


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----",
        b"-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n",
        b"-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n",
        Issuer("RS256").pem[:-60],
    ],
)
def test_a_broken_pem_file_is_refused_and_not_quoted(tmp_path: Path, data: bytes) -> None:
    assert file_fact(tmp_path, data) == "is not a PEM public key or certificate"


UNFIT = {
    "RSA of 1024 bits": lambda: pem_of(rsa.generate_private_key(65537, 1024).public_key()),
    "EC on secp256k1": lambda: pem_of(ec.generate_private_key(ec.SECP256K1()).public_key()),
    "EC on brainpool": lambda: pem_of(ec.generate_private_key(ec.BrainpoolP256R1()).public_key()),
    "X25519": lambda: pem_of(x25519.X25519PrivateKey.generate().public_key()),
    "Ed448": lambda: pem_of(ed448.Ed448PrivateKey.generate().public_key()),
    "DSA": lambda: pem_of(dsa.generate_private_key(1024).public_key()),
    "a certificate on secp256k1": lambda: certificate_of(ec.generate_private_key(ec.SECP256K1())),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, what: str) -> None:
    fact = "is no key for signatures: RSA from 2048 bits, EC on P-256, P-384 or P-521, or Ed25519"
    assert file_fact(tmp_path, UNFIT[what]()) == fact


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    assert "larger than 512 KiB" in file_fact(tmp_path, huge(MAX_BYTES + 1))


# Whatever there is in them

VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8),
    st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "P-384", "Ed25519", "X25519", "secp256k1", "sig", "AQAB", "RS256", "ES256", "EdDSA", "AA", "A" * 43, "_" * 342]),
    st.lists(st.sampled_from(["verify", "sign", 5]), max_size=2), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=1),
)  # fmt: skip
NAME = st.sampled_from(
    ["kty", "kid", "alg", "use", "key_ops", "crv", "x", "y", "n", "e", "d", "k", "oth", "x5c", "x5u"]
)


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_a_changed_key_is_used_or_left_out(alg: str) -> None:
    jwk = Issuer(alg).jwk

    @given(st.dictionaries(NAME, VALUE, max_size=4))
    def check(changes: dict[str, object]) -> None:
        try:
            keys = key_set({**jwk, **changes})
        except KeyFault:
            return
        assert not any(name.startswith(("HS", "none")) for key in keys.keys for name in key.by_algorithm)

    check()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_set_or_are_refused(data: bytes) -> None:
    for each in (data, b'{"keys":[' + data + b"]}"):
        with pytest.raises(KeyFault):
            read_jwks(each)


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA", "HS256"])
def test_any_bytes_are_no_signature(alg: str) -> None:
    issuer = Issuer(alg)
    keys = shared_keys([issuer.secret.encode()]) if alg == "HS256" else read_jwks(jwks(issuer))
    good = issuer.signature(b"signed")

    @given(st.binary(max_size=140) | st.sampled_from([good[:-1], good + b"\0", bytes(len(good)), b"\xff" * len(good)]))
    def check(signature: bytes) -> None:
        assert not keys.keys[0].has_signed(alg, b"signed", signature)

    assert keys.keys[0].has_signed(alg, b"signed", good)
    check()
