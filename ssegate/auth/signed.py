"""A guard that reads signed tokens (RFC 7519, and RFC 8725 for what may go wrong with them).

Nothing that a token says of itself is followed: no `jku`, `x5u` or `jwk`; its `alg` has to be one that is configured, and its `kid`
names at most one of the keys that are there.
"""

from __future__ import annotations

import re
import time
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ssegate.auth.guard import Down, Granted, Guard, Question, Refused, Verdict, digest
from ssegate.auth.keyring import Keyring, make_keyring
from ssegate.config.auth import DEFAULT_ALGORITHMS, DEFAULT_SHARED, Jwt
from ssegate.config.keyset import Key
from ssegate.core.claims import ClaimRules, Fault, judge_claims, said
from ssegate.core.document import decode
from ssegate.core.headers import Headers
from ssegate.core.principal import Principal
from ssegate.core.signature import bearer_of
from ssegate.errors import UndecodableError

MAX_TOKEN = 16 * 1024
"""Bytes of a token; real ones have one or two thousand."""

MOST_KNOWN = 20_000
"""Tokens that are remembered as good. One takes about 2 kB."""

MAX_KNOWN_HEADER = 512
"""Characters of a token's header that is remembered."""

MOST_TRIED = 8
"""Keys that are tried on one token: of a set in which they have no ids."""

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_COOKIES = re.compile(r"(?:^|;)[ \t]*([^=;\s]+)=([^;]*)")


@dataclass(frozen=True, slots=True)
class Opened:
    """A token whose signature is good."""

    claims: object
    proof: bytes
    """A digest of what it is signed with, and how."""


class SignedTokenGuard:
    """Lets in who bears a token that its issuer has signed."""

    recheck = None
    challenge = b"Bearer"

    def __init__(self, name: str, settings: Jwt, keyring: Keyring) -> None:
        self.name = name
        self.keyring = keyring
        self.rules = ClaimRules(settings.issuer, settings.audience, settings.identity, settings.require)
        shared = settings.keys.secret is not None
        self.algorithms: tuple[str, ...] = settings.algorithms or (DEFAULT_SHARED if shared else DEFAULT_ALGORITHMS)
        self.settings = settings
        self._places = settings.from_
        self._ends = settings.at_expiry == "end"
        self._owns_keyring = True
        self._known: OrderedDict[bytes, tuple[Granted, float, int]] = OrderedDict()
        """What was found of a token, until when that holds, and under which keys."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """See `Guard`: fetches of the issuer's keys."""
        return self.keyring.outcomes

    @property
    def sells_tickets(self) -> bool:
        """See `Guard`."""
        return "ticket" in self._places

    def begin(self) -> None:
        """See `Guard`."""
        self.keyring.begin(time.monotonic())

    def recognises(self, headers: Headers) -> bool:
        """See `Guard`."""
        return next(self._shown(headers), None) is not None

    def judge(self, question: Question, wall: float) -> Verdict | Awaitable[Verdict]:
        """See `Guard`."""
        token = next(self._shown(question.headers), None)
        if token is None:
            places = " or ".join(place for place in self._places if place != "ticket")
            return Refused(401, f"there is no token in {places}", is_stranger=True)
        return self.examine(token, wall)

    def examine(self, token: str, wall: float) -> Verdict | Awaitable[Verdict]:
        """Say who bears this token."""
        if len(token) > MAX_TOKEN:
            return Refused(401, f"the token is larger than {MAX_TOKEN // 1024} KiB")
        now = time.monotonic()
        self.keyring.look(now)
        key = digest(self.name, token.encode("utf-8", "surrogatepass"))
        known = self._known.get(key)
        if known is not None and wall < known[1] and known[2] == self.keyring.generation:
            self._known.move_to_end(key)
            return known[0]
        header = _read_header(token)
        if isinstance(header, Refused):
            return header
        if self.keyring.keys is None or not self.keyring.keys.knows(_id_of(header)):
            if self.keyring.may_learn(now):
                return self._judge_later(token, key, header, wall)
            if self.keyring.keys is None:
                return Down(self.keyring.trouble or "the issuer's keys have not come yet")
        return self._judge(token, key, header, wall)

    async def _judge_later(self, token: str, key: bytes, header: Mapping[str, object], wall: float) -> Verdict:
        began = time.monotonic()
        await self.keyring.learn(began)
        wall += time.monotonic() - began  # it may have expired meanwhile
        if self.keyring.keys is None:
            return Down(self.keyring.trouble or "the issuer's keys have not come yet")
        return self._judge(token, key, header, wall)

    def _judge(self, token: str, key: bytes, header: Mapping[str, object], wall: float) -> Verdict:
        opened = self._open(token, header)
        if isinstance(opened, Refused):
            return opened
        found = judge_claims(opened.claims, self.rules, wall)
        if isinstance(found, Fault):
            return Refused(found.status, f"signature is good, {found.fact}", is_stranger=found.is_foreign)
        assert isinstance(opened.claims, dict), "it was judged"
        principal = Principal(
            self.name,
            key,
            found.identity,
            opened.claims,
            found.expires if self._ends else None,
            found.issued,
            opened.proof,
        )
        granted = Granted(principal)
        self._known[key] = (granted, found.expires, self.keyring.generation)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return granted

    def _open(self, token: str, header: Mapping[str, object]) -> Opened | Refused:
        """Check the signature. Which algorithm that is, the configuration says and the key."""
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            wanted = " or ".join(self.algorithms)
            return Refused(401, f"its algorithm is {said(algorithm)}, wanted {wanted}", is_stranger=True)
        if "crit" in header or header.get("b64", True) is not True or "enc" in header or "zip" in header:
            return Refused(401, "its header asks for what is not understood here")
        assert self.keyring.keys is not None, "there are keys"
        keys = self.keyring.keys.find(algorithm, _id_of(header))[:MOST_TRIED]
        if not keys:
            return Refused(401, f"no key of the issuer has its `kid` and is for {algorithm}", is_stranger=True)
        signed, _, signature = token.rpartition(".")
        try:
            key = next((key for key in keys if key.has_signed(algorithm, signed.encode(), _unpack(signature))), None)
            payload = _unpack(signed.partition(".")[2])
        except ValueError:
            return Refused(401, "the token is not of three parts in base64url", is_stranger=True)
        if key is None:
            return Refused(401, "its signature is not good", is_stranger=True)
        try:
            return Opened(decode(payload, is_strict=True), _proof(key, algorithm))
        except UndecodableError:
            return Refused(401, "signature is good, its payload is no JSON")

    def _shown(self, headers: Headers) -> Iterator[str]:
        """The tokens in the places where one may be, the first of them first."""
        for place in self._places:
            kind, _, name = place.partition(":")
            if kind == "header" and not name:
                token = bearer_of(headers.get("authorization")).decode("latin-1")
            elif kind == "header":
                token = (headers.get(name) or "").strip(" \t")
            elif kind == "cookie":
                token = _cookie(headers, name)
            else:
                continue
            if token:
                yield token

    def still_knows(self, principal: Principal, wall: float) -> bool | None:
        """See `Guard`. A key that the issuer publishes elsewhere now, or that has not come yet, is one that is not known."""
        keys = self.keyring.keys.keys if self.keyring.keys is not None else ()
        proofs = (_proof(key, name) for key in keys for name in key.by_algorithm if name in self.algorithms)
        if principal.proof not in proofs:
            return False
        if (principal.expires is not None) is not self._ends:
            return None  # the end of it is another now
        found = judge_claims(principal.claims, self.rules, min(wall, _just_before(principal)))
        return not isinstance(found, Fault) and found.identity == principal.identity

    def known_as(self, identity: str) -> Sequence[bytes]:
        """See `Guard`."""
        return [key for key, (granted, *_) in self._known.items() if granted.principal.identity == identity]

    def doubt(self) -> None:
        """See `Guard`; who somebody is, nobody is asked."""

    def give_way(self, successor: Guard) -> None:
        """See `Guard`."""
        if isinstance(successor, SignedTokenGuard) and successor.keyring is self.keyring:
            self._owns_keyring = False

    async def aclose(self) -> None:
        """See `Guard`."""
        if self._owns_keyring:
            await self.keyring.aclose()


def _just_before(principal: Principal) -> float:
    """A moment at which it had not expired: that is looked after elsewhere, or of no consequence."""
    expires = principal.claims.get("exp")
    return float(expires) - 1e-3 if isinstance(expires, int | float) else 0.0


def _read_header(token: str) -> Mapping[str, object] | Refused:
    if _SHAPE.fullmatch(token) is None:
        return Refused(401, "the token is not of three parts in base64url", is_stranger=True)
    part = token.partition(".")[0]
    return _known_header(part) if len(part) <= MAX_KNOWN_HEADER else _decoded_header(part)


def _decoded_header(part: str) -> Mapping[str, object] | Refused:
    try:
        header = decode(_unpack(part), is_strict=True)
    except (ValueError, UndecodableError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("kid", ""), str):
        return Refused(401, "the token's header is no JSON object, or its `kid` no text", is_stranger=True)
    return header


_FROM_URL = bytes.maketrans(b"-_", b"+/")


def _unpack(part: str) -> bytes:
    """Decode base64url without padding (RFC 7515, 2). Raises `ValueError`, also where its last bits say nothing: two texts would be
    one token."""
    text = part.encode().translate(_FROM_URL)
    data = a2b_base64(text + b"=" * (-len(text) % 4))
    if b2a_base64(data, newline=False).rstrip(b"=") != text:
        raise ValueError("not as it would be encoded")
    return data


_known_header = lru_cache(maxsize=256)(_decoded_header)
"""The tokens of one issuer have one header, mostly: it is not read again for each."""


def _proof(key: Key, algorithm: str) -> bytes:
    return _digest_of_proof(algorithm, key.proof)


_digest_of_proof = lru_cache(maxsize=256)(digest)


def _id_of(header: Mapping[str, object]) -> str | None:
    id_ = header.get("kid")
    return id_ if isinstance(id_, str) else None


def _cookie(headers: Headers, name: str) -> str:
    for value in headers.all("cookie"):
        for found in _COOKIES.finditer(value):
            if found[1] == name:
                return found[2].strip().strip('"')
    return ""


def make_signed(name: str, settings: Jwt, before: object = None, *, is_same: bool = False) -> SignedTokenGuard:
    """See `make_guard`. Keys that are fetched stay, if they come from where they came; a file is read anew, for it may have changed."""
    old = before if isinstance(before, SignedTokenGuard) else None
    if old is not None and old.settings.keys == settings.keys and settings.keys.file is None:
        return old if is_same else SignedTokenGuard(name, settings, old.keyring)
    keyring = make_keyring(name, settings.keys)
    if old is not None and is_same and keyring.keys is not None and keyring.keys.is_same(old.keyring.keys):
        return old
    return SignedTokenGuard(name, settings, keyring)
