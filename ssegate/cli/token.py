"""`ssegate token`: a token for trying out a guard whose secret stands in the configuration."""

from __future__ import annotations

import argparse
import hmac
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssegate.auth.guard import Granted, Refused
from ssegate.cli.explain_token import UsageError, base64url, listed, moment, signed_guards, token_guards
from ssegate.cli.loading import load
from ssegate.cli.options import add_config, duration, pair
from ssegate.cli.terminal import complain, paint, printable, say
from ssegate.config import Config
from ssegate.config.auth import Jwt
from ssegate.config.guards import algorithms_of
from ssegate.core.document import decode
from ssegate.core.signature import key_of
from ssegate.errors import UndecodableError

if TYPE_CHECKING:
    from ssegate.auth.signed import SignedTokenGuard

USAGE = 2

USUAL_LIFE = 3600.0
"""Seconds."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "token",
        help="make a development token for a guard with a `secret`",
        description="Make a token as the issuer of a guard with `jwt: {keys: {secret: …}}` would, and print it. "
        "It is made also when the guard would refuse it, which is told. It is as good as any other: "
        "whoever has it is let in until it expires.",
        epilog='curl -N -H "Authorization: Bearer $(ssegate token --sub u1 --claim scope=orders:read)" '
        "http://localhost:8080/orders/17/events",
    )
    parser.add_argument("--sub", metavar="ID", help="who bears it; also put where the guard's `identity` looks")
    parser.add_argument(
        "--claim",
        metavar="NAME=VALUE",
        type=pair,
        action="append",
        default=[],
        help="a claim, in the place of what would stand there; JSON, or text",
    )
    parser.add_argument("--guard", metavar="NAME", help="for this guard, where there are several with a `secret`")
    parser.add_argument(
        "--expires", metavar="1h", type=duration, default=USUAL_LIFE, help="how long it is good (default: 1h)"
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make one; return the exit code. Raises `ConfigError`, also where PyJWT is missing."""
    config = load(arguments.config)
    try:
        name = _choose(config, arguments.guard)
    except UsageError as error:
        complain(str(error))
        return USAGE
    (guard,) = signed_guards(config, [name])
    wall = time.time()
    token = _sign(guard.settings, _claims(guard.settings, arguments, wall))
    print(token)
    _tell(guard, token, wall)
    return 0


def _choose(config: Config, name: str | None) -> str:
    """The guard of this name, or the only one with a secret."""
    readers = token_guards(config, name)
    fit = [each for each in readers if (jwt := config.auth[each].jwt) is not None and jwt.keys.secret is not None]
    if not fit:
        which, has = (f"guard {listed(readers, 'and')}", "has") if len(readers) == 1 else ("the guards", "have")
        raise UsageError(
            f"{which} {has} the public keys of an issuer, and only that makes tokens; take one of its tokens, or for development "
            "let a guard have `keys: {secret: …}`"
        )
    if len(fit) > 1:
        raise UsageError(f"there are several guards with a secret; name one by --guard: {listed(fit, 'or')}")
    return fit[0]


def _claims(settings: Jwt, arguments: argparse.Namespace, wall: float) -> dict[str, Any]:
    claims: dict[str, Any] = {"iss": settings.issuer, "aud": settings.audience[0]}
    if arguments.sub is not None:
        claims["sub"] = arguments.sub
    claims |= {"iat": math.floor(wall), "exp": math.ceil(wall) + math.ceil(arguments.expires)}
    claims |= {name: _value(text) for name, text in arguments.claim}
    if arguments.sub is not None:
        _put(claims, settings.identity.names, arguments.sub)
    return claims


def _value(text: str) -> object:
    """What a claim is: JSON where it is JSON, else the text."""
    try:
        return decode(text.encode("utf-8", "surrogateescape"), is_strict=True)
    except UndecodableError:
        return text


def _put(claims: dict[str, Any], place: Sequence[str], value: str) -> None:
    """Let it be found at a plain place, if nothing else is there."""
    for name in place[:-1]:
        inner = claims.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        claims = inner
    for name in place[-1:]:
        claims.setdefault(name, value)


def _sign(settings: Jwt, claims: dict[str, Any]) -> str:
    """By the first secret and the first algorithm (RFC 7515, 3.1)."""
    algorithm = algorithms_of(settings)[0]
    assert settings.keys.secret is not None, "it was chosen for that"
    key = key_of(settings.keys.secret[0].get_secret_value())
    signed = b".".join(base64url(_as_json(part)) for part in ({"alg": algorithm, "typ": "JWT"}, claims))
    signature = hmac.digest(key, signed, algorithm.replace("HS", "sha"))
    return b".".join((signed, base64url(signature))).decode()


def _as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# What is told


def _tell(guard: SignedTokenGuard, token: str, wall: float) -> None:
    """For which guard it is, until when, and whether that would take it."""
    verdict = guard.examine(token, wall)
    if isinstance(verdict, Granted):
        principal = verdict.principal
        until = moment(principal.claims.get("exp"), math.ceil(wall))
        told = f"guard {guard.name}: identity {principal.identity}, until {until}"
        say(paint(printable(told), "dim", sys.stderr))
        return
    assert isinstance(verdict, Refused), "keys that are at hand are never down"
    fact = verdict.reason.removeprefix("signature is good, ")
    told = f"guard {guard.name} would not let it in ({verdict.status}): {fact}{_mend(guard, verdict)}"
    say(f"{paint('note:', 'yellow', sys.stderr)} {printable(told)}")


def _mend(guard: SignedTokenGuard, verdict: Refused) -> str:
    settings = guard.settings
    if "names nobody" in verdict.reason:
        way = "--sub" if settings.identity.names else "--claim"
        return f"; give by {way} what `identity: {settings.identity.text}` looks for"
    if verdict.status == 403 and settings.require is not None:
        return f"; give by --claim what `require: {settings.require.text}` wants"
    return ""
