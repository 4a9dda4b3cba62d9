"""What a token's claims are worth: whose they are, for whom, and when (RFC 7519, 4.1). Its signature is another matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ssegate.core.follow import is_true
from ssegate.errors import UndecodableError

LEEWAY = 30.0
"""Seconds by which the issuer's clock may be ahead of ours: for `nbf` and `iat`, and never for `exp`."""

MAX_IDENTITY = 256
"""The longest identity, in characters."""

_SHOWN = 100

Search = Callable[[object], object]
"""An expression; None is nothing. Raises `UndecodableError`."""


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What a guard wants of tokens."""

    issuer: str
    audience: tuple[str, ...]
    """A token is for one of these."""
    identity: Search
    """Which of the claims names the viewer."""
    require: Search | None = None
    """What must be true of the claims."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why claims are not good enough."""

    status: int
    """401: this is no valid token for us; 403: it is, and its bearer may not."""
    fact: str
    """For the operator; nothing of the token is in it, but claims that say nothing of a secret."""
    is_foreign: bool = False
    """Whether it is somebody else's token: another guard may know it."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Of whom the claims speak, and until when."""

    identity: str
    expires: float
    issued: float | None


def judge_claims(claims: object, rules: ClaimRules, wall: float) -> Bearer | Fault:
    """Read claims whose signature is good; `wall` is the time of day, in seconds."""
    if not isinstance(claims, dict):
        return Fault(401, "its payload is no JSON object")
    fault = _of_issuer(claims, rules) or _of_audience(claims, rules) or _of_times(claims, wall)
    if fault is not None:
        return fault
    try:
        identity = identity_of(rules.identity(claims))
        if identity is None:
            return Fault(401, "it names nobody: `identity` finds no text of 1 to 256 characters in its claims")
        if rules.require is not None and not is_true(rules.require(claims)):
            return Fault(403, "`require` is not true of its claims")
    except UndecodableError as error:
        return Fault(403, str(error))
    return Bearer(identity, float(claims["exp"]), _number(claims.get("iat")))


def identity_of(value: object) -> str | None:
    """The name of a viewer out of a claim or a header: one line of text, or a whole number; None when it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**MAX_IDENTITY else None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_IDENTITY or value != value.strip():
        return None
    return value if value.isprintable() else None


def _of_issuer(claims: Mapping[str, object], rules: ClaimRules) -> Fault | None:
    if "iss" not in claims:
        return Fault(401, "it has no `iss`", is_foreign=True)
    if claims["iss"] != rules.issuer:
        return Fault(401, f"its issuer is {said(claims['iss'])}, wanted {said(rules.issuer)}", is_foreign=True)
    return None


def _of_audience(claims: Mapping[str, object], rules: ClaimRules) -> Fault | None:
    if "aud" not in claims:
        return Fault(401, "it has no `aud`", is_foreign=True)
    audience = claims["aud"]
    listed = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(each, str) for each in listed):
        return Fault(401, "its `aud` is no text and no list of texts")
    if not set(listed).intersection(rules.audience):
        shown = ", ".join(map(said, listed[:5])) or "nobody"
        wanted = " or ".join(map(said, rules.audience))
        return Fault(401, f"its audience is {shown}, wanted {wanted}", is_foreign=True)
    return None


def _of_times(claims: Mapping[str, object], wall: float) -> Fault | None:
    for name in ("exp", "nbf", "iat"):
        if name in claims and _number(claims[name]) is None:
            return Fault(401, f"its `{name}` is no time")
    expires = _number(claims.get("exp"))
    if expires is None:
        return Fault(401, "it has no `exp`")
    if wall >= expires:
        return Fault(401, f"it expired {_ago(wall - expires)} ago")
    for name in ("nbf", "iat"):
        begins = _number(claims.get(name))
        if begins is not None and begins > wall + LEEWAY:
            return Fault(401, f"its `{name}` is {_ago(begins - wall)} ahead")
    return None


def _number(value: object) -> float | None:
    """A NumericDate (RFC 7519, 2)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e12 else None


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "less than a second"


def said(value: object) -> str:
    """A claim in a message: quoted and cut, one line."""
    text = value if isinstance(value, str) else type(value).__name__
    text = "".join(char if char.isprintable() else "\ufffd" for char in text[:_SHOWN])
    return f"`{text}`" if isinstance(value, str) else f"a {text}"
