"""Tokens that a guard must refuse, each with a single fault that its name tells, and tokens beside them that it must accept.

What is in `HOSTILE` is made with any issuer that the guard trusts; what is in `HOSTILE_BY_ALGORITHM` with one of that algorithm.
Where the fault is not the signature, the signature is the trusted issuer's own, over just these bytes.
"""

from __future__ import annotations

import datetime
import re
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from joserfc import jwe
from joserfc.jwk import OctKey, RSAKey

from tests.tokens import WEAK, Issuer, as_json, base64url

Make = Callable[[Issuer], str]

HUGE = 100_000
"""Bytes of what is too long."""

NOWHERE = "http://127.0.0.1:9/"
"""Nobody listens there."""


def hostile_to(issuer: Issuer) -> dict[str, Make]:
    """All that a guard must refuse that trusts this issuer and takes its algorithm only."""
    return {**HOSTILE, **HOSTILE_BY_ALGORITHM[issuer.alg]}


def is_sendable(token: str) -> bool:
    """Whether it can be sent in a header as it is: others are for who calls the guard by itself, or have it read from a file."""
    return re.fullmatch(r"[\x21-\x7e]+([ \t]+[\x21-\x7e]+)*", token) is not None


# Parts


def parts(token: str) -> list[str]:
    return token.split(".")


def decoded(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def signed_by(signature: Callable[[bytes], bytes], header: object, payload: object) -> str:
    """A token with the signature that is made of its first two parts."""
    start = b".".join(base64url(as_json(part)) for part in (header, payload))
    return (start + b"." + base64url(signature(start))).decode()


def with_signature(issuer: Issuer, change: Callable[[bytes], bytes]) -> str:
    """A good token, but for its signature."""
    header, payload, signature = parts(issuer.token())
    return f"{header}.{payload}.{base64url(change(decoded(signature))).decode()}"


def with_text(issuer: Issuer, number: int, change: Callable[[str], str]) -> str:
    """A good token, but for the text of one of its parts."""
    pieces = parts(issuer.token())
    pieces[number] = change(pieces[number])
    return ".".join(pieces)


def with_claims(**claims: object) -> Make:
    """Claims other than those of a good token; None leaves one out."""
    return lambda issuer: issuer.sign(issuer.header(), issuer.claims(**claims))


def with_raw(name: str, value: str) -> Make:
    """A claim whose value stands there as it is, JSON or not."""

    def make(issuer: Issuer) -> str:
        rest = as_json(issuer.claims(**{name: None}))
        return issuer.sign(issuer.header(), rest[:-1] + f',"{name}":{value}}}'.encode())

    return make


def with_time(name: str, seconds: float) -> Make:
    """A claim that is a time, so many seconds from now."""
    return lambda issuer: issuer.sign(issuer.header(), issuer.claims(**{name: int(issuer.wall) + seconds}))


def with_payload(change: Callable[[bytes], bytes]) -> Make:
    """A payload other than that of a good token."""
    return lambda issuer: issuer.sign(issuer.header(), change(as_json(issuer.claims())))


def with_header(**members: object) -> Make:
    """Members of the header other than those of a good token, or beside them; None leaves one out."""
    return lambda issuer: issuer.sign(issuer.header(**members), issuer.claims())


def with_null(name: str) -> Make:
    """A member of the header that is null."""
    return lambda issuer: issuer.sign({**issuer.header(), name: None}, issuer.claims())


def with_raw_header(change: Callable[[bytes], bytes]) -> Make:
    return lambda issuer: issuer.sign(change(as_json(issuer.header())), issuer.claims())


# What is wrong with the claims, whoever reads them


CLAIMS: dict[str, Make] = {
    "exp is missing": with_claims(exp=None),
    "aud is missing": with_claims(aud=None),
    "iss is missing": with_claims(iss=None),
    "exp is now": with_time("exp", 0),
    "exp was a second ago": with_time("exp", -1),
    "exp was a second ago, as a float": with_time("exp", -1.0),
    "exp is negative": with_claims(exp=-1),
    "exp is zero": with_claims(exp=0),
    "exp is a string": lambda issuer: with_claims(exp=str(int(issuer.wall) + 300))(issuer),
    "exp is a date": with_claims(exp="2999-01-01T00:00:00Z"),
    "exp is true": with_claims(exp=True),
    "exp is null": with_raw("exp", "null"),
    "exp is a list": lambda issuer: with_claims(exp=[int(issuer.wall) + 300])(issuer),
    "exp is an object": with_claims(exp={}),
    "exp is NaN": with_raw("exp", "NaN"),
    "exp is Infinity": with_raw("exp", "Infinity"),
    "exp is 1e400": with_raw("exp", "1e400"),
    "exp has 401 digits": with_claims(exp=10**400),
    "exp has 5001 digits": with_raw("exp", "1" + "0" * 5000),
    "exp is said twice": with_payload(lambda payload: b'{"exp":1,' + payload[1:]),
    "nbf is in 31 s": with_time("nbf", 31),
    "nbf is a string": with_claims(nbf="1"),
    "nbf is true": with_claims(nbf=True),
    "nbf is a list": with_claims(nbf=[1]),
    "nbf is NaN": with_raw("nbf", "NaN"),
    "nbf is Infinity": with_raw("nbf", "Infinity"),
    "nbf is -Infinity": with_raw("nbf", "-Infinity"),
    "nbf has 401 digits": with_claims(nbf=10**400),
    "iat is in 31 s": with_time("iat", 31),
    "iat is a string": with_claims(iat="1"),
    "iat is true": with_claims(iat=True),
    "iat is a list": with_claims(iat=[1]),
    "iat is NaN": with_raw("iat", "NaN"),
    "iat has 401 digits": with_claims(iat=10**400),
    "aud is another": with_claims(aud="orders-admin"),
    "aud begins alike": with_claims(aud="orders-ui-admin"),
    "aud is ours in part": with_claims(aud="orders"),
    "aud is ours in capitals": with_claims(aud="ORDERS-UI"),
    "aud is ours and a space": with_claims(aud="orders-ui "),
    "aud is empty": with_claims(aud=""),
    "aud is null": with_raw("aud", "null"),
    "aud is a list of others": with_claims(aud=["orders-admin", "orders"]),
    "aud is an empty list": with_claims(aud=[]),
    "aud is a list in a list": lambda issuer: with_claims(aud=[[issuer.audience]])(issuer),
    "aud is a list with a number": lambda issuer: with_claims(aud=[issuer.audience, 5])(issuer),
    "aud is an object": lambda issuer: with_claims(aud={issuer.audience: issuer.audience})(issuer),
    "aud is a number": with_claims(aud=5),
    "iss is another": with_claims(iss="https://login.attacker.example/"),
    "iss lacks its slash, or has one": lambda issuer: with_claims(iss=other_slash(issuer.issuer))(issuer),
    "iss is ours in capitals": lambda issuer: with_claims(iss=issuer.issuer.upper())(issuer),
    "iss begins with ours": lambda issuer: with_claims(iss=issuer.issuer + "x")(issuer),
    "iss is a list": lambda issuer: with_claims(iss=[issuer.issuer])(issuer),
    "iss is an object": lambda issuer: with_claims(iss={issuer.issuer: 1})(issuer),
    "iss is null": with_raw("iss", "null"),
    "iss is empty": with_claims(iss=""),
    "sub is a list": with_claims(sub=["u1"]),
    "sub is an object": with_claims(sub={"id": "u1"}),
    "sub is true": with_claims(sub=True),
    "sub is empty": with_claims(sub=""),
    "sub has a line end": with_claims(sub="u1\nu2"),
    "sub has a CR": with_claims(sub="u1\rX-User: u2"),
    "sub has a NUL": with_claims(sub="u1\0"),
    "sub has a DEL": with_claims(sub="u1\x7f"),
    "sub has a lone surrogate": with_raw("sub", '"u1\\ud800"'),
    "sub is said twice": with_payload(lambda payload: b'{"sub":"u2",' + payload[1:]),
    "a claim is NaN": with_raw("level", "NaN"),
    "a claim has a number of 5001 digits": with_raw("level", "1" + "0" * 5000),
}
"""The signatures are good."""


def other_slash(url: str) -> str:
    return url.removesuffix("/") if url.endswith("/") else url + "/"


PAYLOADS: dict[str, Make] = {
    "the payload is empty": with_payload(lambda payload: b""),
    "the payload is an empty object": with_payload(lambda payload: b"{}"),
    "the payload is a list": with_payload(lambda payload: b"[" + payload + b"]"),
    "the payload is a list of pairs": lambda issuer: issuer.sign(
        issuer.header(), [list(pair) for pair in issuer.claims().items()]
    ),
    "the payload is a string": lambda issuer: issuer.sign(issuer.header(), as_json(issuer.claims()).decode()),
    "the payload is a number": with_payload(lambda payload: b"17"),
    "the payload is null": with_payload(lambda payload: b"null"),
    "the payload is true": with_payload(lambda payload: b"true"),
    "the payload is NaN": with_payload(lambda payload: b"NaN"),
    "the payload is cut": with_payload(lambda payload: payload[:-1]),
    "the payload is two": with_payload(lambda payload: payload + payload),
    "the payload goes on behind its end": with_payload(lambda payload: payload + b"\0"),
    "the payload ends with a comma": with_payload(lambda payload: payload[:-1] + b",}"),
    "the payload has a comment": with_payload(lambda payload: b"/**/" + payload),
    "the payload has a line end in a string": with_payload(lambda payload: payload[:-1] + b',"x":"\n"}'),
    "the payload is not UTF-8": with_payload(lambda payload: payload.replace(b'"sub":"u1"', b'"sub":"u1\xff"')),
    "the payload is UTF-8 of a surrogate": with_payload(
        lambda payload: payload.replace(b'"sub":"u1"', b'"sub":"u1\xed\xa0\x80"')
    ),
    "the payload is UTF-16": with_payload(lambda payload: payload.decode().encode("utf-16")),
    "the payload is UTF-16 without a mark": with_payload(lambda payload: payload.decode().encode("utf-16-le")),
    "the payload is UTF-32": with_payload(lambda payload: payload.decode().encode("utf-32")),
    "the payload is compressed": lambda issuer: issuer.sign(issuer.header(zip="DEF"), b"x\x9c\x03\0\0\0\0\x01"),
    "the payload is a JWT": lambda issuer: issuer.sign(issuer.header(cty="JWT"), issuer.token().encode()),
    "the payload is a JWT as a string": lambda issuer: issuer.sign(issuer.header(cty="JWT"), issuer.token()),
    "the token has 100 kB": with_claims(groups="x" * HUGE),
}
"""The signatures are good here too."""


# What is wrong with the header


def unsigned(alg: object) -> Make:
    """Without any signature."""
    return lambda issuer: signed_by(lambda _: b"", issuer.header(alg=alg), issuer.claims())


def none_but_signed(issuer: Issuer) -> str:
    return issuer.sign(issuer.header(alg="none"), issuer.claims())


def not_encoded(issuer: Issuer) -> str:
    """RFC 7797, 5.1: the payload as it is. It has no dot, so that the token has three parts."""
    header = base64url(as_json(issuer.header(b64=False, crit=["b64"]))).decode()
    payload = as_json({name: value for name, value in issuer.claims().items() if name != "iss"}).decode()
    start = f"{header}.{payload}"
    return f"{start}.{base64url(issuer.signature(start.encode())).decode()}"


HEADERS: dict[str, Make] = {
    **{f"alg is {alg!r}, without signature": unsigned(alg) for alg in ("none", "None", "NONE", "nOnE", "none ", "")},
    "alg is none, with a signature": none_but_signed,
    "alg is none, kid is missing": lambda issuer: signed_by(lambda _: b"", {"alg": "none"}, issuer.claims()),
    "alg is missing": with_header(alg=None),
    "alg is missing, without signature": unsigned(None),
    "alg is null": with_null("alg"),
    "alg is a list": lambda issuer: with_header(alg=[issuer.alg])(issuer),
    "alg is an object": lambda issuer: with_header(alg={issuer.alg: 1})(issuer),
    "alg is a number": with_header(alg=256),
    "alg is unknown": with_header(alg="XS256"),
    "alg is in the other case": lambda issuer: with_header(alg=issuer.alg.swapcase())(issuer),
    "alg has a space behind it": lambda issuer: with_header(alg=issuer.alg + " ")(issuer),
    "alg is said twice": with_raw_header(lambda header: b'{"alg":"none",' + header[1:]),
    "alg has 100 kB": with_header(alg="x" * HUGE),
    "kid has 100 kB": with_header(kid="k" * HUGE),
    "kid is null": with_null("kid"),
    "kid is a number": with_header(kid=1),
    "kid is true": with_header(kid=True),
    "kid is a list": lambda issuer: with_header(kid=[issuer.kid])(issuer),
    "kid is an object": lambda issuer: with_header(kid={"k1": issuer.kid})(issuer),
    "crit names what nobody knows": with_header(crit=["x-roles"], **{"x-roles": 1}),
    "crit names exp": with_header(crit=["exp"], exp=1),
    "crit names alg": with_header(crit=["alg"]),
    "crit names what is not there": with_header(crit=["x-roles"]),
    "crit is empty": with_header(crit=[]),
    "crit is a string": with_header(crit="exp", exp=1),
    "crit is null": with_null("crit"),
    "crit is an object": with_header(crit={"exp": 1}, exp=1),
    "crit has a number": with_header(crit=[1]),
    "b64 is false": with_header(b64=False, crit=["b64"]),
    "b64 is false, and not in crit": with_header(b64=False),
    "b64 is false, and the payload not encoded": not_encoded,
    "the header is empty": lambda issuer: issuer.sign(b"", issuer.claims()),
    "the header is a list": with_raw_header(lambda header: b"[" + header + b"]"),
    "the header is a string": lambda issuer: issuer.sign(as_json(issuer.header()).decode(), issuer.claims()),
    "the header is null": with_raw_header(lambda header: b"null"),
    "the header is NaN": with_raw_header(lambda header: b"NaN"),
    "the header is cut": with_raw_header(lambda header: header[:-1]),
    "the header is two": with_raw_header(lambda header: header + header),
    "the header is not UTF-8": with_raw_header(lambda header: header[:-1] + b',"x":"\xff"}'),
    "the header is UTF-16": with_raw_header(lambda header: header.decode().encode("utf-16")),
    "the header has a number of 5001 digits": with_raw_header(lambda header: header[:-1] + b',"x":1' + b"0" * 5000 + b"}"),
}  # fmt: skip


# What is wrong with the signature, and with the text


def unused_bits(part: str) -> str:
    """Another text of the same bytes: what is left over in the last letter is not zero (RFC 4648, 3.5)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4, "there are no bits left over"
    return part[:-1] + alphabet[alphabet.index(part[-1]) | 1]


def other_alphabet(issuer: Issuer) -> str:
    """The signature in the alphabet of base64. One without its two letters is signed again."""
    for number in range(1000):
        start, _, signature = issuer.sign(issuer.header(), issuer.claims(jti=str(number))).rpartition(".")
        if re.search("[-_]", signature):
            return f"{start}.{signature.replace('-', '+').replace('_', '/')}"
    raise AssertionError("a thousand signatures without - and _")


def inside(part: int, text: str) -> Make:
    """Something in the middle of one of the three parts."""
    return lambda issuer: with_text(issuer, part, lambda it: it[: len(it) // 2] + text + it[len(it) // 2 :])


def mixed(first: int) -> Make:
    """Of two good tokens, the parts up to this one of the one, and those behind it of the other."""

    def make(issuer: Issuer) -> str:
        one, other = parts(issuer.token()), parts(issuer.token(sub="u2"))
        return ".".join(one[:first] + other[first:])

    return make


def by_another(issuer: Issuer) -> Issuer:
    """Who says to be this issuer, and has another key."""
    return issuer.like(key="of an attacker")


PARTS = ("header", "payload", "signature")

SIGNATURES: dict[str, Make] = {
    "the signature is another's": lambda issuer: by_another(issuer).token(),
    "the signature is empty": lambda issuer: with_signature(issuer, lambda _: b""),
    "the signature lacks its last byte": lambda issuer: with_signature(issuer, lambda it: it[:-1]),
    "the signature lacks its first byte": lambda issuer: with_signature(issuer, lambda it: it[1:]),
    "the signature is half": lambda issuer: with_signature(issuer, lambda it: it[: len(it) // 2]),
    "the signature is twice": lambda issuer: with_signature(issuer, lambda it: it + it),
    "the signature has a byte more": lambda issuer: with_signature(issuer, lambda it: it + b"\0"),
    "the signature has a byte more before it": lambda issuer: with_signature(issuer, lambda it: b"\0" + it),
    "the signature's first bit is another": lambda issuer: with_signature(
        issuer, lambda it: bytes((it[0] ^ 0x80,)) + it[1:]
    ),
    "the signature's last bit is another": lambda issuer: with_signature(
        issuer, lambda it: it[:-1] + bytes((it[-1] ^ 1,))
    ),
    "the signature is zeros": lambda issuer: with_signature(issuer, lambda it: bytes(len(it))),
    "the signature is ones": lambda issuer: with_signature(issuer, lambda it: b"\xff" * len(it)),
    "the signature is of another token": mixed(2),
    "the payload is of another token": lambda issuer: ".".join(
        (parts(issuer.token())[0], parts(issuer.token(sub="u2"))[1], parts(issuer.token())[2])
    ),
    "the signature is in hexadecimal": lambda issuer: with_text(issuer, 2, lambda it: decoded(it).hex()),
}
"""The signatures are bad."""

TEXTS: dict[str, Make] = {
    "the signature has bits left over": lambda issuer: with_text(issuer, 2, unused_bits),
    "the signature is in the alphabet of base64": other_alphabet,
    **{
        f"the {name} is padded": lambda issuer, number=number: with_text(  # type: ignore[misc]
            issuer, number, lambda it: it + "=" * (-len(it) % 4 or 4)
        )
        for number, name in enumerate(PARTS)
    },
    **{
        f"the {name} has {what} in it": inside(number, text)
        for number, name in enumerate(PARTS)
        for what, text in (
            ("a space", " "), ("a tab", "\t"), ("a line end", "\n"), ("a CR LF", "\r\n"), ("a NUL", "\0"),
            ("an exclamation mark", "!"), ("a percent escape", "%2e"), ("a letter beyond ASCII", "é"), ("a wide letter", "Ａ"),
            ("a lone surrogate", "\ud800"), ("a soft hyphen", "\xad"),
        )
    },
    "there is a space before it": lambda issuer: " " + issuer.token(),
    "there is a space behind it": lambda issuer: issuer.token() + " ",
    "there is a line end behind it": lambda issuer: issuer.token() + "\n",
    "there is a NUL behind it": lambda issuer: issuer.token() + "\0",
    "there is a lone surrogate behind it": lambda issuer: issuer.token() + "\udfff",
    "there is a letter beyond ASCII behind it": lambda issuer: issuer.token() + "é",
    "there is a dot before it": lambda issuer: "." + issuer.token(),
    "there is a dot behind it": lambda issuer: issuer.token() + ".",
    "there are two dots in it": lambda issuer: issuer.token().replace(".", "..", 1),
    "there is a fourth part": lambda issuer: issuer.token() + ".e30",
    "there is a thousand of dots": lambda issuer: "." * 1000,
    "there is no signature": lambda issuer: issuer.token().rpartition(".")[0],
    "there is a header only": lambda issuer: parts(issuer.token())[0],
    "there is no header": lambda issuer: issuer.token().partition(".")[2],
    "there is a payload only": lambda issuer: f".{parts(issuer.token())[1]}.",
    "there are dots only": lambda issuer: "..",
    "there is nothing": lambda issuer: "",
    "there are two": lambda issuer: f"{issuer.token()} {issuer.token()}",
    "there are two with a comma": lambda issuer: f"{issuer.token()},{issuer.token()}",
    "it says Bearer once more": lambda issuer: f"Bearer {issuer.token()}",
    "it is in quotation marks": lambda issuer: f'"{issuer.token()}"',
    "it is a JWS in JSON": lambda issuer: as_json(
        dict(zip(("protected", "payload", "signature"), parts(issuer.token()), strict=True))
    ).decode(),
    "its dots are escaped": lambda issuer: issuer.token().replace(".", "%2e"),
    "it has five parts, encrypted": lambda issuer: jwe.encrypt_compact(
        issuer.header(alg="dir", enc="A256GCM"), as_json(issuer.claims()), OctKey.import_key(b"k" * 32)
    ),
    "it has five parts, encrypted, and a token in it": lambda issuer: jwe.encrypt_compact(
        issuer.header(alg="dir", enc="A256GCM", cty="JWT"), issuer.token().encode(), OctKey.import_key(b"k" * 32)
    ),
}  # fmt: skip


HOSTILE: dict[str, Make] = {**CLAIMS, **PAYLOADS, **HEADERS, **SIGNATURES, **TEXTS}


# What is wrong with the algorithm and its key


_HASHES = {"HS256": hashes.SHA256(), "HS512": hashes.SHA512()}


def hmac_by(key: Callable[[Issuer], bytes], alg: str = "HS256", **members: object) -> Make:
    """An HMAC by something that everybody knows, as if it were a secret."""

    def make(issuer: Issuer) -> str:
        def signature(data: bytes) -> bytes:
            mac = hmac.HMAC(key(issuer), _HASHES[alg])
            mac.update(data)
            return mac.finalize()

        return signed_by(signature, issuer.header(alg=alg, **members), issuer.claims())

    return make


def bare_jwk(issuer: Issuer) -> dict[str, Any]:
    """A public key's own numbers."""
    return {name: value for name, value in issuer.jwk.items() if name in ("kty", "crv", "n", "e", "x", "y")}


def sibling(alg: str) -> Make:
    """The issuer's own key, or where that is of another kind one of an attacker's, with another algorithm, and said so."""

    def make(issuer: Issuer) -> str:
        other = issuer.like(alg=alg)
        return other.sign(other.header(), other.claims())

    return make


def pretended(alg: str) -> Make:
    """The same, but the header says the issuer's algorithm."""
    return lambda issuer: issuer.like(alg=alg).sign(issuer.header(), issuer.claims())


def carrying(kid: Callable[[Issuer], str | None], **members: Callable[[Issuer], object]) -> Make:
    """An attacker's token, whose header has, or tells where to fetch, the key that it is good by."""

    def make(issuer: Issuer) -> str:
        attacker = by_another(issuer)
        told = {name: make(attacker) for name, make in members.items()}
        return attacker.sign(attacker.header(kid=kid(issuer), **told), attacker.claims())

    return make


def certificate(issuer: Issuer) -> list[str]:
    """A chain of one, signed by itself, as `x5c` has it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "login.example.com")])
    begins = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(issuer.public_key)
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=36_500))
        .sign(issuer.private_key, None if issuer.alg == "EdDSA" else hashes.SHA256())
    )
    return [b64encode(made.public_bytes(serialization.Encoding.DER)).decode()]


_KIDS: Mapping[str, Callable[[Issuer], str | None]] = {
    "the kid of ours": lambda issuer: issuer.kid,
    "no kid": lambda issuer: None,
    "a kid of its own": lambda issuer: "attacker",
}


def attackers_keys(where: str = NOWHERE) -> dict[str, Make]:
    """Tokens that bring their own key; `where` is the URL that some of them want it fetched from."""
    return {
        f"{what} of an attacker, and {kid}": carrying(make, **members)
        for kid, make in _KIDS.items()
        for what, members in {
            "jku": {"jku": lambda _: where + "jwks.json"},
            "x5u": {"x5u": lambda _: where + "chain.pem"},
            "jwk": {"jwk": lambda attacker: attacker.jwk},
            "x5c": {"x5c": certificate},
        }.items()
    }


FOREIGN_KIDS = {
    "a path": "../../../../dev/null",
    "a path of its own": "/dev/null",
    "SQL": "x' UNION SELECT 'key' -- ",
    "a command": "|/bin/sleep 10",
    "a URL": NOWHERE + "key.pem",
    "a file URL": "file:///etc/hostname",
    "a NUL": "k1\0",
    "a line end": "k1\nlevel=info",
    "a terminal's escape": "\x1b[2J",
    "a lone surrogate": "k1\ud800",
    "a template": "{{7*7}}${env.HOME}",
    "spaces": " k1 ",
    "nothing": "",
    "capitals": "K1",
    "another's": "k2",
}
"""None of them is in a set of keys. They are not in the way of a guard that has a secret, which needs no `kid`."""


PAIRS: dict[str, Make] = {
    **{f"kid is {what}": with_header(kid=kid) for what, kid in FOREIGN_KIDS.items()},
    **attackers_keys(),
    "HMAC by the public key's PEM": hmac_by(lambda issuer: issuer.pem),
    "HMAC by the public key's PEM without its last line end": hmac_by(lambda issuer: issuer.pem.rstrip()),
    "HMAC by the public key's PEM with CR LF": hmac_by(lambda issuer: issuer.pem.replace(b"\n", b"\r\n")),
    "HMAC by the public key's PEM, SHA-512": hmac_by(lambda issuer: issuer.pem, "HS512"),
    "HMAC by the public key's DER": hmac_by(lambda issuer: issuer.der),
    "HMAC by the public key's JWK": hmac_by(lambda issuer: as_json(issuer.jwk)),
    "HMAC by the public key's JWK in order": hmac_by(lambda issuer: as_json(dict(sorted(bare_jwk(issuer).items())))),
    "HMAC by the public key's number": hmac_by(
        lambda issuer: decoded(issuer.jwk["n" if issuer.alg == "RS256" else "x"])
    ),
    "HMAC by its PEM, without kid": hmac_by(lambda issuer: issuer.pem, kid=None),
    "HMAC by an empty secret": hmac_by(lambda issuer: b""),
    "HMAC by an empty secret, kid is a path": hmac_by(lambda issuer: b"", kid="../../../../dev/null"),
    "HMAC by the kid": hmac_by(lambda issuer: (issuer.kid or "").encode()),
}
"""With whatever pair of keys."""


def rs(numbers: Callable[[int, int], tuple[int, int]]) -> Make:
    """A signature of ES256 whose two numbers are others."""

    def change(signature: bytes) -> bytes:
        r, s = numbers(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        return r.to_bytes(32) + s.to_bytes(32)

    return lambda issuer: with_signature(issuer, change)


P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def as_der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))


def plus_order(signature: bytes) -> bytes:
    """RFC 8032, 5.1.7: S is less than the order, or else a signature could be written in more than one way."""
    return signature[:32] + (int.from_bytes(signature[32:], "little") + ED25519_ORDER).to_bytes(32, "little")


def encrypted_to(issuer: Issuer) -> str:
    """What its own private key would open, and anybody can make."""
    header = issuer.header(alg="RSA-OAEP-256", enc="A256GCM")
    return jwe.encrypt_compact(header, as_json(issuer.claims()), RSAKey.import_key(issuer.pem), ["RSA-OAEP-256", "A256GCM"])  # fmt: skip


HOSTILE_BY_ALGORITHM: dict[str, dict[str, Make]] = {
    "RS256": {
        **PAIRS,
        **{f"alg is {alg}, by the same key": sibling(alg) for alg in ("RS384", "RS512", "PS256", "PS512")},
        **{f"alg is said to be RS256 and is {alg}": pretended(alg) for alg in ("RS384", "RS512", "PS256")},
        "alg is ES256, by no key of theirs": sibling("ES256"),
        "it is encrypted to the public key": encrypted_to,
    },
    "ES256": {
        **PAIRS,
        "alg is ES384, by a key of P-384": sibling("ES384"),
        "alg is ES512, by a key of P-521": sibling("ES512"),
        "alg is said to be ES256 and is ES384": pretended("ES384"),
        "alg is said to be ES256 and is ES512": pretended("ES512"),
        "alg is RS256, by no key of theirs": sibling("RS256"),
        "the signature is DER": lambda issuer: with_signature(issuer, as_der),
        "r is zero": rs(lambda r, s: (0, s)),
        "s is zero": rs(lambda r, s: (r, 0)),
        "r and s are zero": rs(lambda r, s: (0, 0)),
        "r and s are the order": rs(lambda r, s: (P256_ORDER, P256_ORDER)),
        "r and s are one": rs(lambda r, s: (1, 1)),
        "r and s are exchanged": rs(lambda r, s: (s, r)),
    },
    "EdDSA": {
        **PAIRS,
        "alg is ES256, by no key of theirs": sibling("ES256"),
        "alg is said to be EdDSA and is ES256": pretended("ES256"),
        "s has the order added": lambda issuer: with_signature(issuer, plus_order),
        "R and s are of the neutral point": lambda issuer: with_signature(issuer, lambda _: b"\x01" + bytes(63)),
    },
    "HS256": {
        "alg is HS384, by the same secret": sibling("HS384"),
        "alg is HS512, by the same secret": sibling("HS512"),
        "alg is said to be HS256 and is HS512": pretended("HS512"),
        "alg is RS256, by a key of an attacker": sibling("RS256"),
        "alg is EdDSA, by a key of an attacker": sibling("EdDSA"),
        "HMAC by an empty secret": hmac_by(lambda issuer: b""),
        "HMAC by the kid": hmac_by(lambda issuer: (issuer.kid or "").encode()),
        "HMAC by the secret and a line end": hmac_by(lambda issuer: issuer.secret.encode() + b"\n"),
        "HMAC by half the secret": hmac_by(lambda issuer: issuer.secret.encode()[:64]),
        **{
            f"jwk of an attacker, and {kid}": carrying(make, jwk=lambda attacker: attacker.jwk)
            for kid, make in _KIDS.items()
        },
    },
}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


DEEP: dict[str, Make] = {
    "a claim is nested deep": with_raw("groups", nested(4000)),
    "the header is nested deep": with_raw_header(lambda header: header[:-1] + f',"x":{nested(4000)}}}'.encode()),
}
"""These may be refused or accepted, which for some readers of JSON depends on the version of Python; nothing else may come of them."""

CASES = [(alg, name) for alg, more in HOSTILE_BY_ALGORITHM.items() for name in (*HOSTILE, *more)]
"""All of them, for `parametrize`: the algorithm of the trusted issuer, and the name."""


# A set of keys in which some are not for this


_ENCRYPTING = Issuer("RS256", "for-encryption")
_P384 = Issuer("ES384", "p-384")
_WEAK = Issuer("RS256", WEAK)
_SHARED = Issuer("HS256", "shared")
_OPERATED = Issuer("ES256", "for-agreement")


def _p384_sha256(data: bytes) -> bytes:
    """ES256 as it would be with a key of another curve."""
    key = _P384.private_key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return b"".join(number.to_bytes(48) for number in decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256()))))


def _without(issuer: Issuer, *names: str, **members: object) -> dict[str, object]:
    return {name: value for name, value in {**issuer.jwk, **members}.items() if name not in names}


def crowd(*issuers: Issuer) -> bytes:
    """The set of these issuers' keys and of others that a guard for RS256, ES256 and EdDSA has no use for."""
    others = [
        _without(_ENCRYPTING, "alg", use="enc"),
        _without(_OPERATED, "alg", "use", key_ops=["deriveBits"]),
        _without(_P384, "alg"),
        _without(_SHARED, "alg", "use"),
        _without(_WEAK, "use"),
        {"kty": "XX", "kid": "unknown"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kid": "empty"},
    ]
    return as_json({"keys": [*others, *(issuer.jwk for issuer in issuers)]})


HOSTILE_IN_A_CROWD: dict[str, Callable[[], str]] = {
    "by a key for encryption": lambda: _ENCRYPTING.token(),
    "by a key for agreement": lambda: _OPERATED.token(),
    "by a key of P-384, as ES384": lambda: _P384.token(),
    "by a key of P-384, as ES256": lambda: _P384.sign(_P384.header(alg="ES256"), _P384.claims()),
    "by a key of P-384, hashed as ES256": lambda: signed_by(_p384_sha256, _P384.header(alg="ES256"), _P384.claims()),
    "by a secret in the set": lambda: _SHARED.token(),
    "by a key of 1024 bits": lambda: _WEAK.sign(_WEAK.header(), _WEAK.claims()),
    **{
        f"by the key that is {kid}": lambda kid=kid: Issuer("RS256", kid, key="of an attacker").token()  # type: ignore[misc]
        for kid in ("unknown", "broken", "empty")
    },
}
"""Each is signed by the key of the `crowd` that it names."""


# What is good


GOOD: dict[str, Make] = {
    "as it comes": lambda issuer: issuer.token(),
    "signed by hand": with_claims(),
    "exp is in a minute, as a float": with_time("exp", 60.5),
    "exp is far away": with_claims(exp=32503680000),
    "nbf is in 29 s": with_time("nbf", 29),
    "nbf is in 28.5 s": with_time("nbf", 28.5),
    "nbf was yesterday": with_time("nbf", -86_400),
    "iat is in 29 s": with_time("iat", 29),
    "iat is a float": with_time("iat", -0.5),
    "iat is missing": with_claims(iat=None),
    "aud is a list of ours": lambda issuer: with_claims(aud=[issuer.audience])(issuer),
    "aud is a list with ours": lambda issuer: with_claims(aud=["orders-admin", issuer.audience])(issuer),
    "sub is a URL": with_claims(sub="https://id.example.com/u/1?x=é"),
    "sub is beyond ASCII": with_claims(sub="żółw 🐢"),
    "claims are objects and lists": with_claims(groups=["a", "b"], address={"city": "Łódź"}, level=1.5, active=True),
    "kid is missing": lambda issuer: issuer.token({"kid": None}),
    "typ is at+jwt": lambda issuer: issuer.token({"typ": "at+jwt"}),
    "typ is missing": with_header(typ=None),
    "a member of the header that nobody knows": lambda issuer: issuer.token({"x-tenant": {"name": "acme"}}),
    "the payload has blanks and line ends": with_payload(lambda payload: b"\n" + payload.replace(b",", b" ,\r\n\t") + b" "),
}  # fmt: skip
"""Where `kid` is missing, the set has one key that fits."""
