"""Guards that read tokens, made as the gate makes them of a configuration, and the questions they are asked."""

from __future__ import annotations

from typing import TypeVar

from ssegate.auth.guard import Granted, Question, Refused, Verdict
from ssegate.auth.keyring import Keyring
from ssegate.auth.signed import SignedTokenGuard, make_signed
from ssegate.config import parse_config
from ssegate.config.auth import Jwt
from ssegate.config.keyset import read_jwks
from ssegate.core.headers import Headers
from ssegate.edge.exchange import Request
from tests.tokens import AUDIENCE, ISSUER, Issuer, jwks

NOW = 1_800_000_000.0
"""The time of day in tests of guards that are told it."""

V = TypeVar("V", Granted, Refused)


def settings(text: str, *, issuer: str = ISSUER, audience: str = AUDIENCE) -> Jwt:
    """What a file says of such a guard; `text` is its further keys, `keys` among them, in flow style without braces."""
    guard = f"{{jwt: {{issuer: {issuer!r}, audience: {audience}, {text}}}}}"
    whole = f"version: 1\nupstreams: {{api: http://h}}\nauth: {{user: {guard}}}\nroutes: []\n"
    found = parse_config(whole, source="test.yaml", environ={}).auth["user"].jwt
    assert found is not None
    return found


def guard_by(keyring: Keyring, more: str = "", *, name: str = "user", audience: str = AUDIENCE) -> SignedTokenGuard:
    """A guard with these keys, wherever its configuration says that they are."""
    text = f"keys: https://login.example.com/jwks.json, {more}"
    return SignedTokenGuard(name, settings(text, audience=audience), keyring)


def guard_of(*issuers: Issuer, more: str = "", audience: str = AUDIENCE) -> SignedTokenGuard:
    """A guard that trusts these keys, of one kind, and takes their algorithms."""
    algorithms = ", ".join(dict.fromkeys(issuer.alg for issuer in issuers))
    text = f"algorithms: [{algorithms}], {more}"
    if issuers[0].alg.startswith("HS"):
        secrets = ", ".join(issuer.secret for issuer in issuers)
        return make_signed("user", settings(f"keys: {{secret: [{secrets}]}}, {text}", audience=audience))
    return guard_by(Keyring(read_jwks(jwks(*issuers))), text, audience=audience)


def question(*fields: tuple[str, str]) -> Question:
    """A request with these headers."""
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in fields)
    request = Request("GET", b"/orders/17/events", Headers(raw), "1.1", "http", "127.0.0.1", None)
    return Question(request, "GET", request.target)


def bearing(token: str) -> Question:
    """A request with the token where tokens mostly are."""
    return question(("Authorization", f"Bearer {token}"))


def at_once(verdict: object, kind: type[V]) -> V:
    """A verdict for which nobody was asked, and which is of this kind."""
    assert isinstance(verdict, kind), verdict
    return verdict


def granted(guard: SignedTokenGuard, token: str, wall: float = NOW) -> Granted:
    """What a guard with its keys at hand says of a token that is good."""
    return at_once(guard.judge(bearing(token), wall), Granted)


def refused(guard: SignedTokenGuard, token: str, wall: float = NOW) -> Refused:
    """The same of one that is not."""
    return at_once(guard.judge(bearing(token), wall), Refused)


async def answered(guard: SignedTokenGuard, token: str, wall: float = NOW) -> Verdict:
    """What a guard says that may have to fetch its keys first."""
    verdict = guard.judge(bearing(token), wall)
    return verdict if isinstance(verdict, Verdict) else await verdict
