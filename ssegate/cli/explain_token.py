"""`ssegate explain-token`: what the guards make of a token, and why."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ssegate.auth.guard import Down, Granted, Refused, Verdict
from ssegate.cli.loading import load
from ssegate.cli.options import add_config
from ssegate.cli.terminal import complain, paint, printable
from ssegate.config import Config
from ssegate.config.explain import did_you_mean
from ssegate.core.claims import said
from ssegate.core.document import decode, encode
from ssegate.errors import SsegateError, UndecodableError
from ssegate.gate.routes import Table

if TYPE_CHECKING:
    from ssegate.auth.signed import SignedTokenGuard
    from ssegate.config.keyset import Key

REFUSED = 1
USAGE = 2
UNREACHABLE = 69

MAX_INPUT = 1024 * 1024
"""Bytes of standard input that are read; a guard takes far less."""

MOST_NAMES = 30
"""Names of claims, or of members of the header, that are listed; more are counted."""

LONGEST_VALUE = 200
"""Characters of a value that is shown unasked."""

_TIMES = ("iat", "nbf", "exp")
_NOTABLE = ("iss", "aud", "sub", *_TIMES)
_NOTABLE_IN_HEADER = ("alg", "kid", "typ")
_LEADS_ELSEWHERE = {"jku", "jwk", "x5u", "x5c"}

_SILENT = logging.NullHandler()

_BEFORE_IT = re.compile(r"(?:authorization:\s*)?(?:bearer\s+)?", re.IGNORECASE)
_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class UsageError(SsegateError):
    """What was asked for makes no sense with this configuration. Never leaves the commands about tokens."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "explain-token",
        help="tell what the guards make of a token, and why",
        description="Read a token from standard input and tell what each guard that reads tokens makes of it, by the keys "
        "it has: those that an issuer publishes are fetched. What a running gate has been told to revoke is not known here. "
        "Exits with 1 when no guard lets it in, and with 69 when that depends on keys that cannot be fetched.",
        epilog="ssegate token --sub u1 | ssegate explain-token",
    )
    parser.add_argument("--guard", metavar="NAME", help="ask this one only")
    parser.add_argument("--claims", action="store_true", help="show the values of all claims")
    add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain; return the exit code. Raises `ConfigError`."""
    config = load(arguments.config)
    try:
        names = token_guards(config, arguments.guard)
        token = _read_token()
    except UsageError as error:
        complain(str(error))
        return USAGE
    return asyncio.run(_explain(signed_guards(config, names), token, has_values=arguments.claims))


# Which guards


def token_guards(config: Config, name: str | None) -> list[str]:
    """The guards that read tokens, or the one of this name. Raises `UsageError` when there is none."""
    readers = [each for each, guard in config.auth.items() if guard.jwt is not None]
    if not readers:
        raise UsageError("no guard reads tokens; write one: `auth: {NAME: {jwt: …}}`")
    if name is None:
        return readers
    if name in readers:
        return [name]
    if name in config.auth:
        kind = config.auth[name].kind
        raise UsageError(f"guard `{name}` is of the kind `{kind}`, which reads no tokens; name {listed(readers, 'or')}")
    hint = did_you_mean(name, readers) or f"name {listed(readers, 'or')}"
    raise UsageError(f"no guard is `{name}`; {hint}")


def signed_guards(config: Config, names: Sequence[str]) -> list[SignedTokenGuard]:
    """Those of these names, as a gate would make them. Raises `ConfigError`."""
    from ssegate.auth.signed import SignedTokenGuard  # PyJWT is an extra

    guards = Table(config).guards
    return [guard for name in names if isinstance(guard := guards[name], SignedTokenGuard)]


def listed(names: Sequence[str], joint: str) -> str:
    """Names one after the other, the last behind `joint`."""
    quoted = [f"`{name}`" for name in names]
    return f" {joint} ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


# Which token


def _read_token() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        # Typed or pasted it would stand on the screen, and terminals cut lines at 4096 bytes.
        raise UsageError("a token comes on standard input; pipe it in: `ssegate explain-token < FILE`")
    text = sys.stdin.buffer.read(MAX_INPUT).decode("utf-8", "replace").strip()
    found = _BEFORE_IT.match(text)
    words = text[found.end() if found else 0 :].split()
    if not words or words[0].lower() == "bearer":
        raise UsageError("there is no token on standard input; pipe one in: `ssegate explain-token < FILE`")
    if len(words) > 1:
        raise UsageError(f"there are {len(words)} words on standard input; give one token, in one piece")
    return words[0]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a token says of itself, before anybody has vouched for it."""

    header: Mapping[str, object] | None
    """None: it cannot be read."""
    claims: Mapping[str, object] | None

    @classmethod
    def of(cls, token: str) -> _Parts:
        found = _PARTS.fullmatch(token)
        return cls(None, None) if found is None else cls(_object(found[1]), _object(found[2]))


def _unpacked(part: str) -> bytes:
    """Raises `ValueError` when it is not as `base64url` writes it."""
    data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64url(data) != part.encode():
        raise ValueError("not as it would be encoded")
    return data


def base64url(data: bytes) -> bytes:
    """Encode without padding (RFC 7515, 2)."""
    return urlsafe_b64encode(data).rstrip(b"=")


def _object(part: str) -> Mapping[str, object] | None:
    try:
        value = decode(_unpacked(part), is_strict=True)
    except (ValueError, UndecodableError):
        return None
    return value if isinstance(value, dict) else None


# What they make of it


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one guard makes of the token."""

    guard: SignedTokenGuard
    verdict: Verdict
    key: Key | None
    """The one that it is signed with; None where there is none."""


async def _explain(guards: Sequence[SignedTokenGuard], token: str, *, has_values: bool) -> int:
    # A guard without its keys is told of in its verdict.
    logging.getLogger("ssegate.auth").addHandler(_SILENT)
    parts = _Parts.of(token)
    try:
        await asyncio.gather(*(guard.keyring.learn(time.monotonic()) for guard in guards))
        wall = time.time()
        findings = [await _find(guard, token, parts, wall) for guard in guards]
    finally:
        await asyncio.gather(*(guard.aclose() for guard in guards))
    _tell_header(parts)
    _tell_claims(parts, findings, wall, has_values=has_values)
    for finding in findings:
        _tell_verdict(finding, parts, wall)
    return _code([finding.verdict for finding in findings])


async def _find(guard: SignedTokenGuard, token: str, parts: _Parts, wall: float) -> _Finding:
    verdict = guard.examine(token, wall)
    if not isinstance(verdict, Granted | Refused | Down):
        verdict = await verdict
    return _Finding(guard, verdict, _fitting(guard, token, parts.header or {}))


def _fitting(guard: SignedTokenGuard, token: str, header: Mapping[str, object]) -> Key | None:
    """The key of the guard that the token is signed with, whatever its claims are worth."""
    from ssegate.auth.signed import MAX_TOKEN, MOST_TRIED

    algorithm, keys = header.get("alg"), guard.keyring.keys
    if keys is None or not isinstance(algorithm, str) or algorithm not in guard.algorithms or len(token) > MAX_TOKEN:
        return None
    signed, _, signature = token.rpartition(".")
    try:
        proof = _unpacked(signature)
    except ValueError:
        return None
    tried = keys.find(algorithm, _text(header.get("kid")))[:MOST_TRIED]
    return next((key for key in tried if key.has_signed(algorithm, signed.encode(), proof)), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _code(verdicts: Sequence[Verdict]) -> int:
    if any(isinstance(verdict, Granted) for verdict in verdicts):
        return 0
    return UNREACHABLE if any(isinstance(verdict, Down) for verdict in verdicts) else REFUSED


# What is told: never the token, and of claims that are nobody's business the names


def _tell_header(parts: _Parts) -> None:
    if parts.header is None:
        _tell("header", ["cannot be read: this is no signed token (JWT)"])
        return
    header = parts.header
    shown = [f"{name} {_value(header[name])}" if name in header else f"no {name}" for name in _NOTABLE_IN_HEADER]
    lines = [", ".join(shown)]
    if others := [name for name in header if name not in _NOTABLE_IN_HEADER]:
        ignored = " (a guard never follows where they lead)" if _LEADS_ELSEWHERE.intersection(others) else ""
        lines.append(f"also {_names(others)}{ignored}")
    _tell("header", lines)


def _tell_claims(parts: _Parts, findings: Sequence[_Finding], wall: float, *, has_values: bool) -> None:
    if parts.claims is None:
        if parts.header is not None:
            _tell("claims", ["cannot be read: its payload is no JSON object"])
        return
    lines = list(_claim_lines(parts.claims, findings, wall, has_values=has_values))
    if not any(finding.key for finding in findings):
        lines.append("(nobody vouches for them: no key that is known here fits the signature)")
    _tell("claims", lines or ["none"])


def _claim_lines(
    claims: Mapping[str, object], findings: Sequence[_Finding], wall: float, *, has_values: bool
) -> Iterator[str]:
    identities = [name for finding in findings for name in finding.guard.settings.identity.names[:1]]
    notable = [name for name in dict.fromkeys((*_NOTABLE[:3], *identities, *_TIMES)) if name in claims]
    for name in notable:
        value = claims[name]
        yield f"{printable(name)} {moment(value, wall) if name in _TIMES else _value(value)}"
    others = [name for name in claims if name not in notable]
    if has_values:
        yield from (printable(f"{name} {_as_json(claims[name])}") for name in others)
    elif others:
        yield f"also {_names(others)}; --claims shows them"


def _tell_verdict(finding: _Finding, parts: _Parts, wall: float) -> None:
    guard, verdict = finding.guard, finding.verdict
    match verdict:
        case Granted():
            principal = verdict.principal
            until = moment(principal.claims.get("exp"), wall)
            further = "" if principal.expires is not None else "; open streams go on after that (`at_expiry: ignore`)"
            told = f"{_painted('yes', 'green')}, identity {printable(principal.identity or '')}, until {until}{further}"
        case Refused():
            told = f"{_painted('no', 'red')} ({verdict.status}): {printable(verdict.reason)}"
        case Down():
            told = f"{_painted('cannot say', 'yellow')} without its keys: {printable(verdict.reason)}"
    print(f"{_painted(printable(guard.name), 'bold')}: {told}")
    if finding.key is not None:
        print(_painted(f"  signed with {_named(finding.key, guard)}", "dim"))
    elif isinstance(verdict, Refused) and (known := _other_keys(guard, parts)):
        print(_painted(f"  {known}", "dim"))


def _named(key: Key, guard: SignedTokenGuard) -> str:
    keys = guard.keyring.keys.keys if guard.keyring.keys is not None else (key,)
    kind = "secret" if guard.settings.keys.secret is not None else "key"
    if key.id is not None:
        return f"its {kind} {said(key.id)}"
    return f"its {kind}" if len(keys) == 1 else f"its {kind} {keys.index(key) + 1} of {len(keys)}"


def _other_keys(guard: SignedTokenGuard, parts: _Parts) -> str:
    """Which keys there are, where the token names one that is not there; else empty."""
    keys, id_ = guard.keyring.keys, _text((parts.header or {}).get("kid"))
    if keys is None or id_ is None or keys.knows(id_):
        return ""
    return f"its keys are {_names([key.id for key in keys.keys if key.id is not None])}"


def _tell(label: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        print(f"{_painted(label, 'bold') if number == 0 else ' ' * len(label)}  {line}")


def _painted(text: str, style: str) -> str:
    return paint(text, style, sys.stdout)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(said, names[:MOST_NAMES])) + more


def _value(value: object) -> str:
    """A value on one line, cut."""
    if isinstance(value, str):
        return said(value)
    text = _as_json(value)
    return printable(text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…")


def _as_json(value: object) -> str:
    try:
        return encode(value)
    except RecursionError:  # what can just be read is not always to be written
        return "(nested too deeply)"


def moment(value: object, wall: float) -> str:
    """Say a time of day in words, as it is seen at the time `wall`: `2026-03-01 12:00:00 UTC (in 4 min)`; both in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{_value(value)}, which is no time"
    try:
        text = datetime.fromtimestamp(value, UTC).replace(tzinfo=None).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{_value(value)}, which is in no calendar"
    seconds = round(value - wall)
    when = "now" if seconds == 0 else f"in {_span(seconds)}" if seconds > 0 else f"{_span(-seconds)} ago"
    return f"{text} UTC ({when})"


def _span(seconds: int) -> str:
    """In the largest unit and the one below it."""
    for (size, unit), (less, lesser) in pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // less
            return f"{seconds // size} {unit} {rest} {lesser}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"
