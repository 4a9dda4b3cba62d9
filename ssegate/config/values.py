"""The small values a configuration is made of: durations, sizes, addresses, expressions, and how each is read.

Every reader takes what YAML gave, which may be an `Expanded`, and raises `ValueFault` with the mend. A message never
quotes a value that came from `${…}`.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jmespath
import jmespath.exceptions
import jmespath.functions

from ssegate.config.explain import did_you_mean
from ssegate.errors import UndecodableError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DURATION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]{1,12}(B|KiB|MiB|GiB)$"

DURATIONS = "500ms, 2s or 10m"
EVERY = "500ms, 2s or {min: 2s, max: 30s}"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_NEARLY_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-z]*)", re.IGNORECASE)
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_NEARLY_SIZE = re.compile(r"([0-9]{1,12}) *([KMG]?)i?B?", re.IGNORECASE)
_UNITS = {
    "": "s", "msec": "ms", "millis": "ms", "milliseconds": "ms", "sec": "s", "secs": "s", "second": "s", "seconds": "s",
    "min": "m", "mins": "m", "minute": "m", "minutes": "m", "hour": "h", "hours": "h", "day": "d", "days": "d",
}  # fmt: skip
HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")
_ADDRESS = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_LINE_END_OR_NUL = re.compile(r"[\r\n\0]")

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "http2-settings",
})  # fmt: skip
"""Header fields that belong to one connection and are never passed on."""

MAX_STREAMS = 10_000
"""The most that may be allowed on one HTTP/2 connection."""

_QUOTED_LENGTH = 60


class ValueFault(ValueError):
    """A value is wrong; `code` and `hint` are those of a `Problem`."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(message)


@dataclass(frozen=True, slots=True, repr=False)
class Expanded:
    """A scalar in which `${…}` was expanded: it may be a secret, so no message quotes it."""

    text: str
    value: object
    """What it means: resolved again when it was written without quotes, else the text."""

    def __repr__(self) -> str:
        return "Expanded(…)"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    """A name or an address, IPv6 without its brackets."""
    port: int
    """0 lets the system choose."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Every:
    """How often to poll, in seconds."""

    min: float
    max: float

    @property
    def is_adaptive(self) -> bool:
        """Whether the interval grows while nothing changes."""
        return self.min != self.max

    def __str__(self) -> str:
        low, high = format_duration(self.min), format_duration(self.max)
        return f"{{min: {low}, max: {high}}}" if self.is_adaptive else low


UNDECIDED = object()
"""What jmespath is asked for."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A JMESPath expression; call it with a document."""

    text: str
    compiled: Any = field(compare=False, repr=False)
    names: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The members it goes down through, one in another, when it does no more than that."""
    search: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    """The same without jmespath, where the expression is made of nothing but members."""
    decide: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)
    """The same for most documents, where it compares a member; `UNDECIDED` for the others."""

    def __call__(self, document: object) -> object:
        """What the expression finds; None is nothing. Raises `UndecodableError`, which quotes no data, when it fails."""
        if self.search is not None:
            return self.search(document)
        if self.decide is not None and (found := self.decide(document)) is not UNDECIDED:
            return found
        try:
            return self.compiled.search(document)
        except jmespath.exceptions.JMESPathTypeError as error:
            # Its own message quotes the value.
            fault = f"{error.function_name}() got {error.actual_type}"
            raise UndecodableError(f"expression `{self.text}`: {fault} where it cannot take it") from None
        except (jmespath.exceptions.JMESPathError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise UndecodableError(f"expression `{self.text}` fails: {type(error).__name__}") from None


def plain(value: object) -> object:
    """The value itself, out of an `Expanded`."""
    return value.value if isinstance(value, Expanded) else value


def said(value: object) -> str:
    """Name a value in a message: quoted and cut, or not at all when it came from `${…}`."""
    if isinstance(value, Expanded):
        return "what `${…}` gave here"
    if isinstance(value, str):
        return f'"{value if len(value) <= _QUOTED_LENGTH else value[:_QUOTED_LENGTH] + "…"}"'
    return kind_of(value) if isinstance(value, dict | tuple) or value is None else str(plain_text(value))


def plain_text(value: object) -> str:
    """A number or boolean as YAML writes it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def kind_of(value: object) -> str:
    """What sort of thing it is, without telling it."""
    match plain(value):
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
    return "a list"


def wrong_type(value: object, wanted: str) -> ValueFault:
    """The fault of a value that is of another sort than wanted."""
    # `{id}` without quotes is a mapping with an empty value: YAML's most frequent surprise here.
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        return ValueFault("type", f"a mapping, not {wanted}: quote values that contain {{ }}")
    if value is None:
        return ValueFault("type", f"empty; write {wanted}")
    mend = "; put it in quotes" if wanted == "text" and isinstance(plain(value), bool | int | float) else ""
    return ValueFault("type", f"{kind_of(value)}, not {wanted}{mend}")


def read_text(value: object) -> str:
    """Text that is not empty. What `${…}` gave is text whatever it looks like: a token may be digits only."""
    text = value.text if isinstance(value, Expanded) else value
    if not isinstance(text, str):
        raise wrong_type(value, "text")
    if not text:
        raise ValueFault("value", "empty; write some text")
    return text


def read_any_text(value: object) -> str:
    """Text, which may be empty."""
    return "" if value == "" or (isinstance(value, Expanded) and not value.text) else read_text(value)


def read_line(value: object) -> str:
    """Text for one line of a header or an event."""
    text = read_text(value)
    if _LINE_END_OR_NUL.search(text):
        raise ValueFault("value", "holds a line end or NUL; write one line")
    return text


def read_boolean(value: object) -> bool:
    """`true` or `false` and nothing like them."""
    found = plain(value)
    if not isinstance(found, bool):
        raise ValueFault("type", f"{said(value)} is not a boolean; write true or false")
    return found


def read_count(value: object) -> int:
    """A whole number of at least 1."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise _not_a_number(value, "whole number")
    if not 1 <= number <= 10**12:
        raise ValueFault("value", f"{said(value)} is out of range; write 1 or more")
    return number


def read_stream_count(value: object) -> int:
    """How many streams one HTTP/2 connection may have."""
    count = read_count(value)
    if count > MAX_STREAMS:
        raise ValueFault("value", f"{said(value)} is out of range; write 1 to {MAX_STREAMS}")
    return count


def read_file_name(value: object) -> Path:
    """A file's name; whether there is one shows where it is used."""
    return Path(read_line(value))


def read_rate(value: object) -> float:
    """A number above 0."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _not_a_number(value, "number")
    if not 0 < number <= 10**12:
        raise ValueFault("value", f"{said(value)} is out of range; write a number above 0")
    return float(number)


def read_gone_status(value: object) -> int:
    """A status that may end a stream."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise _not_a_number(value, "whole number")
    if not 201 <= number <= 599 or number == 304:
        raise ValueFault(
            "value", f"{said(value)} cannot mean that a resource is gone; write statuses such as [404, 410]"
        )
    return number


def _not_a_number(value: object, wanted: str) -> ValueFault:
    text = plain(value)
    is_quoted = isinstance(text, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is not None
    return ValueFault("type", f"{said(value)} is not a {wanted}{'; leave out the quotes' if is_quoted else ''}")


def read_duration(value: object, forms: str = DURATIONS) -> float:
    """Seconds, of a duration above zero."""
    seconds = read_duration_or_zero(value, forms)
    if seconds == 0:
        raise ValueFault("duration", f"{said(value)} is too short; write a duration above zero")
    return seconds


def read_duration_or_zero(value: object, forms: str = DURATIONS) -> float:
    """Seconds, of a duration with its unit."""
    text = plain(value)
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueFault("duration", f"{said(value)} is not a duration; write {_likely_duration(value) or forms}")
    return float(found[1]) * _SECONDS[found[2]]


def _likely_duration(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    found = _NEARLY_DURATION.fullmatch(str(value))
    if found is None:
        return ""
    unit = found[2].lower()
    unit = unit if unit in _SECONDS else _UNITS.get(unit, "")
    return found[1] + unit if unit else ""


def format_duration(seconds: float) -> str:
    """As it would be written: `90s`, `2m`, `500ms`."""
    if seconds == 0:
        return "0s"
    for unit, factor in reversed(_SECONDS.items()):
        if seconds >= factor and (seconds / factor).is_integer():
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds * 1000:.9f}".rstrip("0").rstrip(".") + "ms"


def read_size(value: object) -> int:
    """Bytes, of a size above zero with its unit."""
    text = plain(value)
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueFault("size", f"{said(value)} is not a size; write {_likely_size(value) or '64KiB or 1MiB'}")
    if int(found[1]) == 0:
        raise ValueFault("size", f"{said(value)} is too small; write a size above zero")
    return int(found[1]) * _BYTES[found[2]]


def _likely_size(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    found = _NEARLY_SIZE.fullmatch(str(value))
    if found is None:
        return ""
    letter = found[2].upper()
    return f"{found[1]}{letter}iB" if letter else format_size(int(found[1]))


def format_size(size: int) -> str:
    """As it would be written: `1MiB`, `1000B`."""
    for unit, factor in reversed(_BYTES.items()):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def read_address(value: object) -> Address:
    """`host:port`, an IPv6 address in brackets."""
    text = plain(value)
    if isinstance(text, int) and not isinstance(text, bool) and not isinstance(value, Expanded):
        raise ValueFault("value", f"{text} is not an address; write 0.0.0.0:{text}")
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None or int(found[3]) > 65535:
        raise ValueFault(
            "value", f"{said(value)} is not an address; write host:port, such as 0.0.0.0:8080 or [::]:8080"
        )
    return Address(_checked_host(value, found[1], found[2]), int(found[3]))


def _checked_host(value: object, bracketed: str | None, name: str) -> str:
    if bracketed is None:
        if not HOST.fullmatch(name):
            raise ValueFault("value", f"{said(value)} names no host; write host:port, such as 0.0.0.0:8080")
        return name
    try:
        return str(ipaddress.IPv6Address(bracketed))
    except ValueError:
        raise ValueFault("value", f"{said(value)} has no IPv6 address in its brackets; write [::1]:8080") from None


def read_host_name(value: object) -> str:
    """A host name, with a port if need be."""
    text = read_text(value)
    name, colon, port = text.partition(":")
    if not HOST.fullmatch(name) or (colon and not re.fullmatch(r"[0-9]{1,5}", port)):
        raise ValueFault(
            "value", f"{said(value)} is not a host name; write preserve, or a name such as api.example.com"
        )
    return text


def read_network(value: object) -> Network:
    """A network in CIDR form, or a single address."""
    text = read_text(value)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        likely = f"; write {ipaddress.ip_network(text, strict=False)}" if not isinstance(value, Expanded) else ""
    except ValueError:
        likely = "; write one such as 10.0.0.0/8"
    raise ValueFault("value", f"{said(value)} is not a network{likely}")


def read_header_name(value: object) -> str:
    """A header field's name, in lower case."""
    text = read_text(value)
    if not _TOKEN.fullmatch(text):
        raise ValueFault("value", f"{said(value)} is not the name of a header")
    return text.lower()


def read_pattern(value: object) -> re.Pattern[str]:
    """A regular expression, to be matched in full."""
    text = read_text(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(text)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        reason = "" if isinstance(value, Expanded) else f": {error.msg}{place}"
        raise ValueFault("value", f"{said(value)} is not a regular expression{reason}") from None
    except (OverflowError, RecursionError):
        raise ValueFault("value", f"{said(value)} is too large for a regular expression") from None


def read_pointer(value: object) -> str:
    """A JSON Pointer (RFC 6901)."""
    text = read_any_text(value)
    if text and not text.startswith("/"):
        raise ValueFault("value", f"{said(value)} is not a JSON Pointer; let it begin with `/`")
    if not _POINTER.fullmatch(text):
        raise ValueFault("value", f"{said(value)} is not a JSON Pointer; `~` is written ~0, and `/` in a name ~1")
    return text


def read_expression(value: object) -> Expression:
    """A JMESPath expression whose functions exist."""
    text = read_text(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jmespath deprecates literals that are no JSON, and goes on taking them
            compiled = jmespath.compile(text)
        _check_functions(compiled.parsed, value)
        _check_literals(compiled.parsed, value)
    except jmespath.exceptions.ParseError as error:
        raise ValueFault("expression", f"{said(value)} is not JMESPath: {_jmespath_fault(value, error)}") from None
    except (jmespath.exceptions.JMESPathError, ValueError, RecursionError) as error:
        if isinstance(error, ValueFault):
            raise
        raise ValueFault("expression", f"{said(value)} is not JMESPath") from None
    parsed = compiled.parsed
    return Expression(text, compiled, _member_names(parsed), _member_search(parsed), _decision(parsed))


def _member_search(parsed: dict[str, Any]) -> Callable[[Any], Any] | None:
    """`a.b` and `a.{x: b.c, y: d}` as functions: most expressions are no more, and jmespath takes 5 µs for four members where
    this takes 0.4. None for anything else."""
    if names := _member_names(parsed):
        return partial(_go_down, names)
    if parsed["type"] not in ("subexpression", "multi_select_dict"):
        return None
    pairs = parsed["type"] == "multi_select_dict"
    parts = [_member_search(child["children"][0] if pairs else child) for child in parsed["children"]]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return (
        partial(_pick, {child["value"]: part for child, part in zip(parsed["children"], known, strict=True)})
        if pairs
        else partial(_chain, known)
    )


def _decision(parsed: dict[str, Any]) -> Callable[[Any], Any] | None:
    """`contains(scope, 'orders:read')` and `params.id == identity` as functions: guards ask them for each stream, and jmespath takes
    15 µs for one (benchmarks/auth.py). Of texts alone, so that nothing of its rules for other types is said here."""
    kind, children = parsed["type"], parsed["children"]
    is_contains = kind == "function_expression" and parsed["value"] == "contains"
    if not is_contains and (kind != "comparator" or parsed["value"] != "eq"):
        return None
    one, other = (_operand(child) for child in children)
    if one is None or other is None:
        return None

    def decide(document: Any) -> Any:
        left, right = one(document), other(document)
        if not isinstance(right, str):
            return UNDECIDED
        if is_contains:
            return right in left if isinstance(left, str) else UNDECIDED
        return left == right if isinstance(left, str) else UNDECIDED

    return decide


def _operand(parsed: dict[str, Any]) -> Callable[[Any], Any] | None:
    if parsed["type"] == "literal":
        return partial(_same, parsed["value"])
    names = _member_names(parsed)
    return partial(_go_down, names) if names else None


def _same(value: Any, document: Any) -> Any:
    return value


def _chain(parts: Iterable[Callable[[Any], Any]], document: Any) -> Any:
    for search in parts:
        document = search(document)
    return document


def _go_down(names: Iterable[str], document: Any) -> Any:
    for name in names:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _pick(parts: Mapping[str, Callable[[Any], Any]], document: Any) -> Any:
    return None if document is None else {name: search(document) for name, search in parts.items()}


def _member_names(parsed: dict[str, Any]) -> tuple[str, ...]:
    """The names of `a.b.c`; empty when the expression is anything else."""
    if parsed["type"] == "field":
        return (parsed["value"],)
    if parsed["type"] != "subexpression":
        return ()
    parts = [_member_names(child) for child in parsed["children"]]
    return tuple(name for part in parts for name in part) if all(parts) else ()


def _jmespath_fault(value: object, error: jmespath.exceptions.ParseError) -> str:
    place = error.lex_position + 1
    if isinstance(value, Expanded):
        return f"look at character {place}"
    if isinstance(error, jmespath.exceptions.IncompleteExpressionError):
        return f"it ends too early, at character {place}"
    if isinstance(error, jmespath.exceptions.LexerError):
        said_so = str(error.message).replace("Unknown token", "no meaning for")
        return f"{said_so} at character {place}; names with other than letters, digits and _ want double quotes"
    return f"`{error.token_value}` is not expected at character {place}"


def _check_literals(parsed: dict[str, Any], value: object) -> None:
    """`done == true` compares with a member of the name `true`, which is hardly ever there and never meant. (Of the name `null` there
    is none either, and that is meant.)"""
    if parsed["type"] == "field" and parsed["value"] in ("true", "false"):
        name = parsed["value"]
        raise ValueFault("expression", f"{said(value)}: `{name}` is a member's name in JMESPath; write `` `{name}` ``")
    for child in parsed["children"]:
        if isinstance(child, dict):
            _check_literals(child, value)


def _check_functions(parsed: dict[str, Any], value: object) -> None:
    """JMESPath itself asks only when a document is searched."""
    if parsed["type"] == "function_expression":
        _check_function(parsed["value"], len(parsed["children"]), value)
    for child in parsed["children"]:
        if isinstance(child, dict):
            _check_functions(child, value)


def _check_function(name: str, arguments: int, value: object) -> None:
    known = jmespath.functions.Functions.FUNCTION_TABLE.get(name)
    called = "a function in it" if isinstance(value, Expanded) else f"`{name}()`"
    if known is None:
        hint = "" if isinstance(value, Expanded) else did_you_mean(name, jmespath.functions.Functions.FUNCTION_TABLE)
        raise ValueFault("expression", f"{said(value)}: {called} does not exist in JMESPath", hint)
    wanted = len(known["signature"])
    is_variadic = wanted > 0 and bool(known["signature"][-1].get("variadic"))
    if arguments < wanted or (arguments > wanted and not is_variadic):
        count = f"{wanted} argument{'' if wanted == 1 else 's'}"
        raise ValueFault("expression", f"{said(value)}: {called} takes {count}, not {arguments}")


def choice(*options: str) -> Callable[[object], object]:
    """A reader of one of a few words."""

    def read(value: object) -> object:
        text = plain(value)
        if text not in options:
            listed = ", ".join(options[:-1]) + f" or {options[-1]}" if len(options) > 1 else options[0]
            hint = did_you_mean(value, options) if isinstance(value, str) else ""
            raise ValueFault("value", f"{said(value)} is not known here; write {listed}", hint)
        return text

    return read


def is_ipv6(text: str) -> bool:
    """Whether it is an IPv6 address, without brackets."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
