"""Path, method and Accept to Route.

A route is chosen by the raw target, and a proxied request is sent on with the raw target, so the two must mean the same:

1. Segments are compared percent-decoded: `%61` is `a` (RFC 3986, 6.2.2.2). A target with `\\`, `#`, a space, a control
   or a non-ASCII byte matches nothing.
2. A parameter takes one segment of 1 to 256 characters that is UTF-8. When it would have to take `.`, `..`, or a text
   with `/`, `\\` or a control character, encoded once or more often, the request matches nothing at all: it does not slip
   past the route to a proxy behind it.
3. A target that servers read differently (`.` and `..` segments, `//`, `%2f`, `%5c`, `;`) is matched as it came, and as
   it is after these have been resolved, one or more of them, in any order. If all readings lead to the same route, that
   answers; if not, none does. So `/public/../admin` never reaches by way of `/public/{rest:path}` what `/admin` stands
   for, while `/files/a%2Fb` still passes to the only proxy there is. More than 64 such places match nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from ssegate.core.template import fully_decoded

T = TypeVar("T")

MAX_PARAMETER_LENGTH = 256
"""The longest value of a path parameter, in characters."""

MAX_AMBIGUITIES = 64
"""How often a target may say what servers read differently; more is no honest request, and would cost milliseconds."""

MAX_AMBIGUOUS_SEGMENTS = 256
"""How many segments such a target may have, for the same reason."""

MAX_QUERY_FIELDS = 128
"""How many fields of a query are looked at."""

_PARAMETER = re.compile(r"\{([^{}]*)\}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_IN_LITERAL = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_MALFORMED = re.compile(rb"[^\x21-\x7e]|[\\#?]")
_UNUSUAL = re.compile(rb"[^\x21-\x7e]|[%\\#?;]|//|/\.")
"""Whatever wants a second look; most targets have none of it."""
_AMBIGUOUS = re.compile(r";|//|%2f|%5c|/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_ENCODED_SEPARATOR = re.compile(r"%2f|%5c", re.IGNORECASE)
_SEGMENT_PARAMETERS = re.compile(r";[^/]*")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_SEPARATORS = re.compile(r"/{2,}")
_DOT = re.compile(r"%2e", re.IGNORECASE)
_QVALUE = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


class PathPattern:
    """A route's path: `/orders/{id}/events`, or with `allow_rest` `/static/{rest:path}`, which takes all that follows.

    A slash at the end counts: `/orders` is not `/orders/`. The rest may be empty: `/{rest:path}` matches `/`.

    Raises `ValueError`, with the mend, for a text that is no such path.
    """

    __slots__ = ("has_rest", "parameters", "segments", "text")

    def __init__(self, text: str, allow_rest: bool = False) -> None:
        self.text = text
        self.segments = tuple(_parse_pattern(text))
        self.has_rest = self.segments[-1].kind == _REST
        self.parameters: tuple[str, ...] = tuple(segment.text for segment in self.segments if segment.kind != _LITERAL)
        """Their names, in order; that of the rest is the last."""
        if self.has_rest and not allow_rest:
            raise ValueError(
                f"`{{{self.parameters[-1]}:path}}` is for proxy routes only: write `{{name}}` for one segment"
            )
        for name in self.parameters:
            if self.parameters.count(name) > 1:
                raise ValueError(f"`{{{name}}}` stands twice in the path: give each parameter a name of its own")

    @property
    def specificity(self) -> tuple[int, ...]:
        """Sorts what is more specific first: literal before parameter before rest, segment by segment."""
        return tuple(segment.kind for segment in self.segments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathPattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"PathPattern({self.text!r})"


_LITERAL, _SINGLE, _REST = range(3)


class Segment(NamedTuple):
    """One segment of a pattern."""

    kind: int
    """0 a literal, 1 a parameter, 2 the rest; in order of specificity."""
    text: str
    """The literal, percent-decoded, or the parameter's name."""


def _parse_pattern(text: str) -> Iterable[Segment]:
    if not text.startswith("/"):
        raise ValueError(f"`{text}` is no path: let it begin with `/`")
    for mark, what in (("?", "query"), ("#", "fragment")):
        if mark in text:
            raise ValueError(f"a route's path has no {what}: leave out what follows `{mark}`")
    pieces = text[1:].split("/")
    for number, piece in enumerate(pieces, 1):
        segment = _parse_segment(piece)
        if not piece and number < len(pieces):
            raise ValueError(f"`{text}` has an empty segment (`//`): write one `/`")
        if segment.kind == _REST and number < len(pieces):
            raise ValueError(f"`{piece}` takes all that follows: let it be the last segment")
        yield segment


def _parse_segment(piece: str) -> Segment:
    found = _PARAMETER.fullmatch(piece)
    if found is None:
        return Segment(_LITERAL, _parse_literal(piece))
    name, colon, suffix = found.group(1).partition(":")
    if colon and suffix != "path":
        raise ValueError(f"`{piece}`: only `:path` may follow a name; a pattern for `{name}` stands in `params`")
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"`{piece}`: a parameter's name is letters, digits and `_`, not beginning with a digit")
    return Segment(_REST if colon else _SINGLE, name)


def _parse_literal(piece: str) -> str:
    if ";" in piece:
        raise ValueError(
            f"`{piece}`: servers read what follows `;` in different ways, so no route has it: leave it out"
        )
    if "{" in piece or "}" in piece:
        raise ValueError(f"`{piece}`: a parameter takes a whole segment: write `{{name}}` between two `/`")
    if _BROKEN_ESCAPE.search(piece.encode()):
        raise ValueError(f"`{piece}` has a `%` that two hexadecimal digits do not follow: write `%25`")
    if _NOT_IN_LITERAL.search(piece):
        raise ValueError(f"`{piece}` has a space, a `\\` or a control character, which no path carries")
    literal = _decode_segment(piece.encode())
    if fully_decoded(literal) in (".", "..") or _FORBIDDEN.search(fully_decoded(literal)):
        raise ValueError(
            f"`{piece}` is a dot segment, or no text, or hides a separator: such a target is never matched"
        )
    return literal


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A way to a target."""

    pattern: PathPattern
    target: T
    params: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Patterns of path parameters, matched in full; a request that breaks one goes on to the next entry."""
    query: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """The only query parameters accepted, and their patterns. They do not choose the entry; see `accepted_query`."""
    negotiate: bool = False
    """Whether it answers only if `Accept` names `text/event-stream`."""
    methods: frozenset[str] | None = None
    """None is all."""

    def __post_init__(self) -> None:
        for name in self.params:
            if name not in self.pattern.parameters:
                raise ValueError(
                    f"`{name}` is not a parameter of `{self.pattern.text}`: write `{{{name}}}` in the path"
                )


class Match(NamedTuple, Generic[T]):
    """Which target answers, and the values of its path parameters."""

    target: T
    params: dict[str, str]
    """Percent-decoded; but a rest is as it came. Not to be changed: others get the same."""


class Explanation(NamedTuple, Generic[T]):
    """What one entry has to do with a request."""

    target: T
    matched: bool
    """Whether it is the one that answers."""
    reason: str
    """A sentence."""


MAX_KNOWN = 1024
"""How many answers a router remembers: paths are asked for again and again."""

MAX_KNOWN_LENGTH = 512
"""Bytes of a path and its `Accept` that are remembered."""


class Router(Generic[T]):
    """Finds the entry that answers a request. The order of the entries does not matter, unless they conflict."""

    def __init__(self, entries: Iterable[Entry[T]]) -> None:
        rules = [_Rule(entry) for entry in entries]
        self._rules: list[_Rule[T]] = sorted(rules, key=lambda rule: rule.order)
        self._depth = max((len(rule.entry.pattern.segments) for rule in rules), default=0)
        self._root: _Node[T] = _Node()
        self._known: dict[tuple[str, bytes, str | None], Match[T] | None] = {}  # what was asked lately
        for rule in self._rules:
            self._root.add(rule)

    def match(self, method: str, path: bytes, accept: str | None) -> Match[T] | None:
        """Find who answers; `path` is the raw target up to its `?`. None: nobody does; ask `allowed` whether it is 405."""
        asked = (method, path, accept)
        try:
            return self._known[asked]
        except KeyError:
            pass
        found = self._find(method, path, names_event_stream(accept))
        match = Match(found[0].entry.target, found[1]) if found else None
        if len(path) + len(accept or "") <= MAX_KNOWN_LENGTH:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[asked] = match
        return match

    def allowed(self, path: bytes) -> frozenset[str]:
        """The methods that are answered on this path, with a fitting `Accept`; empty is 404.

        When `match` found nothing and the method is not among these, the answer is 405, and they are its `Allow`. When
        it is among these, only `Accept` was in the way. Entries for all methods add none.
        """
        known = {method for rule in self._rules for method in rule.methods or ()}
        return frozenset(
            method for method in known if self._find(method, path, True) or self._find(method, path, False)
        )

    def explain(self, method: str, path: bytes, accept: str | None, query: bytes = b"") -> list[Explanation[T]]:
        """Say of each entry whether it answers, and why not; the most specific first. At most one answers."""
        streams = names_event_stream(accept)
        found = self._find(method, path, streams)
        readings = _readings(path, self._depth)
        explanations = []
        for rule in self._rules:
            if found is not None and rule is found[0]:
                broken = _broken_field(rule.entry.query, parse_query(query))
                reason = "It answers." if broken is None else _say_broken(broken, rule.entry.query)
                explanations.append(Explanation(rule.entry.target, broken is None, reason))
            else:
                reason = rule.why_not(method, streams, readings) or _say_matched(found is not None, len(readings) > 1)
                explanations.append(Explanation(rule.entry.target, False, reason))
        return explanations

    def _find(self, method: str, path: bytes, streams: bool) -> _Found[T] | None:
        try:
            if _UNUSUAL.search(path) is None and path.startswith(b"/"):
                return self._walk(self._root, 0, _usual(path, self._depth), method, streams)
            return self._agree(
                [self._walk(self._root, 0, each, method, streams) for each in _readings(path, self._depth)]
            )
        except _RefusedError:
            return None

    def _agree(self, found: Sequence[_Found[T] | None]) -> _Found[T] | None:
        """What every reading of the path leads to; the first reading is the path as it came."""
        if not found or found[0] is None:
            return None
        first = found[0][0]
        values = first.identity(found[0][1])
        same = all(each is not None and each[0] is first and first.identity(each[1]) == values for each in found)
        return found[0] if same else None

    def _walk(self, node: _Node[T], depth: int, path: _Path, method: str, streams: bool) -> _Found[T] | None:
        """Try the literal before the parameter before the rest, and come back from where it leads nowhere.

        No deeper than the patterns, and no wider than there are patterns, whatever the path is.
        """
        segments = path.segments
        if depth == len(segments):
            return _take(node.rules, path, method, streams)
        segment = segments[depth]
        child = node.literals.get(segment)
        if child is not None and (found := self._walk(child, depth + 1, path, method, streams)):
            return found
        # A parameter is never empty.
        if node.single is not None and segment and (found := self._walk(node.single, depth + 1, path, method, streams)):
            return found
        return _take(node.rest, path, method, streams) if node.rest else None


class _Rule(Generic[T]):
    """An entry made ready for matching."""

    __slots__ = ("entry", "fields", "methods", "negotiate", "order", "places", "rest")

    def __init__(self, entry: Entry[T]) -> None:
        pattern = entry.pattern
        self.entry = entry
        self.methods = entry.methods
        self.negotiate = entry.negotiate
        self.order = (pattern.specificity, not entry.negotiate)
        names = [(place, segment.text) for place, segment in enumerate(pattern.segments) if segment.kind == _SINGLE]
        self.fields = tuple((place, name, entry.params.get(name)) for place, name in names)
        self.places = frozenset(place for place, _ in names)
        self.rest = len(pattern.segments) - 1 if pattern.has_rest else None

    def params(self, path: _Path) -> dict[str, str] | None:
        """The values, given that the path has the pattern's shape; None when one breaks its pattern."""
        if path.forbidden and not path.forbidden.isdisjoint(self.places):
            raise _RefusedError
        params = {}
        for place, name, pattern in self.fields:
            value = path.segments[place]
            if pattern is not None and pattern.fullmatch(value) is None:
                return None
            params[name] = value
        if self.rest is not None:
            params[self.entry.pattern.parameters[-1]] = path.text.split("/", self.rest + 1)[-1]
        return params

    def identity(self, params: dict[str, str]) -> list[str]:
        """What two readings must have in common: the parameters, but not the rest, nor what a `;` adds."""
        return [params[name].partition(";")[0] for _, name, _ in self.fields]

    def why_not(self, method: str, streams: bool, readings: Sequence[_Path]) -> str:
        """Say why this cannot answer the path as it came; empty when it could."""
        if not readings:
            return (
                "No route takes such a path: it does not begin with `/`, has a character that none has, or is too odd."
            )
        if difference := self._difference(readings[0].segments):
            return difference
        if self.methods is not None and method not in self.methods:
            return f"Its methods are {', '.join(sorted(self.methods))}, not {method}."
        if self.negotiate and not streams:
            return "It answers only if Accept names text/event-stream."
        place = min(self.places & readings[0].forbidden, default=None)
        if place is not None:
            return f"{readings[0].segments[place]!r} is nothing that a parameter may be."
        for place, name, pattern in self.fields:
            if pattern is not None and pattern.fullmatch(readings[0].segments[place]) is None:
                return f"`{name}` is {readings[0].segments[place]!r}, which does not match {pattern.pattern}."
        return ""

    def _difference(self, segments: Sequence[str]) -> str:
        """Where the path and the pattern part; empty when they do not."""
        pattern = self.entry.pattern
        for segment, given in zip(pattern.segments, segments, strict=False):
            if segment.kind == _REST:
                return ""
            if segment.kind == _LITERAL and segment.text != given:
                return f"The path has {given!r} where {pattern.text} has {segment.text!r}."
            if segment.kind == _SINGLE and not given:
                return f"The path has an empty segment where {pattern.text} has {{{segment.text}}}."
        if len(segments) != len(pattern.segments):
            return (
                f"The path is {'longer' if len(segments) > len(pattern.segments) else 'shorter'} than {pattern.text}."
            )
        return ""


_Found = tuple[_Rule[T], dict[str, str]]


class _RefusedError(Exception):
    """A parameter would have to take what no parameter may be; never leaves this module."""


class _Node(Generic[T]):
    """A place in the tree of patterns."""

    __slots__ = ("literals", "rest", "rules", "single")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.single: _Node[T] | None = None
        self.rest: list[_Rule[T]] = []
        self.rules: list[_Rule[T]] = []

    def add(self, rule: _Rule[T]) -> None:
        """Put the rule at the end of its path. Rules that come before others are added before them."""
        node = self
        for segment in rule.entry.pattern.segments:
            if segment.kind == _REST:
                node.rest.append(rule)
                return
            node = node._child(segment)
        node.rules.append(rule)

    def _child(self, segment: Segment) -> _Node[T]:
        if segment.kind == _LITERAL:
            return self.literals.setdefault(segment.text, _Node())
        if self.single is None:
            self.single = _Node()
        return self.single


def _take(rules: Sequence[_Rule[T]], path: _Path, method: str, streams: bool) -> _Found[T] | None:
    for rule in rules:
        if rule.methods is not None and method not in rule.methods:
            continue
        if rule.negotiate and not streams:
            continue
        params = rule.params(path)
        if params is not None:
            return rule, params
    return None


class _Path(NamedTuple):
    """One reading of a request's path."""

    text: str
    segments: Sequence[str]
    """Percent-decoded. Those that no pattern is deep enough for are one, the last."""
    forbidden: frozenset[int]
    """The places of segments that no parameter takes."""


_NONE_FORBIDDEN: frozenset[int] = frozenset()


def _usual(path: bytes, depth: int) -> _Path:
    """Read a path in which nothing is encoded or unusual."""
    text = path.decode("ascii")
    segments = text[1:].split("/", depth)
    forbidden = _NONE_FORBIDDEN
    if len(text) > MAX_PARAMETER_LENGTH:
        forbidden = frozenset(place for place, each in enumerate(segments) if len(each) > MAX_PARAMETER_LENGTH)
    return _Path(text, segments, forbidden)


def _readings(path: bytes, depth: int) -> list[_Path]:
    """Read a path in every way an upstream could; as it came first. Empty when no route takes it."""
    if not path.startswith(b"/") or _MALFORMED.search(path):
        return []
    text = path.decode("ascii")
    if _AMBIGUOUS.search(text) is None:
        return [_read(text, depth)]
    if text.count("/") > MAX_AMBIGUOUS_SEGMENTS or len(_AMBIGUOUS.findall(text)) > MAX_AMBIGUITIES:
        return []
    return [_read(each, depth) for each in _follow(text)]


def _follow(text: str) -> list[str]:
    """The path as it came, and all that servers can make of it, one step behind the other in any order."""
    texts = [text]
    for each in texts:
        for step in (_drop_segment_parameters, _decode_separators, _merge, _remove_dots):
            changed = step(each)
            if changed not in texts:
                texts.append(changed)
    return texts


def _read(text: str, depth: int) -> _Path:
    pieces = text[1:].split("/", depth)
    segments = [_decode_segment(piece.encode()) if "%" in piece else piece for piece in pieces[:depth]] + pieces[depth:]
    forbidden = frozenset(place for place, each in enumerate(segments[:depth]) if not _may_be_parameter(each))
    return _Path(text, segments, forbidden)


def _drop_segment_parameters(text: str) -> str:
    """Leave out what follows a `;` in its segment, as servlet containers do."""
    return _SEGMENT_PARAMETERS.sub("", text)


def _decode_separators(text: str) -> str:
    return _ENCODED_SEPARATOR.sub("/", text)


def _merge(text: str) -> str:
    """Take several `/` for one, as nginx does."""
    return _SEPARATORS.sub("/", text)


def _remove_dots(text: str) -> str:
    """Follow `.` and `..`, encoded or not (RFC 3986, 5.2.4)."""
    if _DOT_SEGMENT.search(text) is None:
        return text
    kept: list[str] = []
    segment = ""
    for raw in text[1:].split("/"):
        segment = _DOT.sub(".", raw)
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(raw)
    if segment in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _decode_segment(raw: bytes) -> str:
    """Percent-decode. What is no escape or no UTF-8 becomes lone surrogates, which equal no literal and no parameter."""
    if b"%" not in raw:
        return raw.decode("utf-8", "surrogateescape")
    return unquote_to_bytes(_BROKEN_ESCAPE.sub(b"\xff", raw)).decode("utf-8", "surrogateescape")


def _may_be_parameter(segment: str) -> bool:
    if len(segment) > MAX_PARAMETER_LENGTH or segment in (".", "..") or _FORBIDDEN.search(segment):
        return False
    if "%" not in segment:
        return True
    decoded = fully_decoded(segment)
    return decoded not in (".", "..") and not _FORBIDDEN.search(decoded)


def split_path(raw: bytes) -> tuple[str, ...] | None:
    """The segments of a raw path, percent-decoded; `/` has one, which is empty. None when no route takes such a path.

    Lone surrogates stand for bytes that are no UTF-8 and for a `%` that begins no escape.
    """
    if not raw.startswith(b"/") or _MALFORMED.search(raw):
        return None
    return tuple(_decode_segment(segment) for segment in raw[1:].split(b"/"))


def conflicts(entries: Sequence[Entry[T]]) -> list[tuple[int, int]]:
    """Pairs of entries, by index, that answer the same requests: nothing says which of the two is meant.

    Patterns in `params` do not keep two entries apart, nor do the names of parameters; methods do, where they have none
    in common but OPTIONS, and `negotiate` does.
    """
    seen: dict[object, list[int]] = {}
    pairs = []
    for index, entry in enumerate(entries):
        same = seen.setdefault((_shape(entry.pattern), entry.negotiate), [])
        pairs += [(other, index) for other in same if _share_a_method(entries[other].methods, entry.methods)]
        same.append(index)
    return sorted(pairs)


def _shape(pattern: PathPattern) -> tuple[tuple[int, str], ...]:
    return tuple((kind, text if kind == _LITERAL else "") for kind, text in pattern.segments)


def _share_a_method(a: frozenset[str] | None, b: frozenset[str] | None) -> bool:
    """OPTIONS does not count: a preflight asks for another method and gets the same answer from either."""
    if a is None or b is None:
        return True
    return bool((a & b) - {"OPTIONS"})


def names_event_stream(accept: str | None) -> bool:
    """Whether `text/event-stream` is asked for by its name; `text/*` and `*/*` do not count, and `q=0` is a refusal."""
    # Nearly every request ends here, and parsing a browser's list costs 3 µs.
    if accept is None or "text/event-stream" not in accept.lower():
        return False
    return parse_accept(accept).get("text/event-stream", 0) > 0


def parse_accept(accept: str) -> dict[str, float]:
    """Media ranges and their weights; of a range named twice the higher one. A weight that is none counts as 1."""
    ranges: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip(" \t") for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "q" and _QVALUE.fullmatch(value):
                weight = float(value)
        ranges[name] = max(weight, ranges.get(name, 0.0))
    return ranges


def has_one_reading(path: bytes) -> bool:
    """Whether all servers read a raw path alike, however often they decode it: nothing in it is a dot segment, an empty segment,
    a separator or a segment's parameter for some of them."""
    text = path.decode("latin-1")
    decoded = fully_decoded(text)
    return _ENCODED_SEPARATOR.search(text) is None and "\\" not in decoded and _AMBIGUOUS.search(decoded) is None


def parse_query(raw: bytes) -> list[tuple[str, str]]:
    """Names and values, decoded, in order; at most 128 fields are looked at.

    Forgiving: `+` is a space, what is no escape stays, what is no UTF-8 becomes U+FFFD. `a` alone is an empty value.
    """
    fields = []
    for field_ in raw.split(b"&", MAX_QUERY_FIELDS)[:MAX_QUERY_FIELDS]:
        if field_:
            name, _, value = field_.partition(b"=")
            fields.append((_decode_query(name), _decode_query(value)))
    return fields


def _decode_query(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


def accepted_query(patterns: Mapping[str, re.Pattern[str]], fields: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """The query parameters that have a pattern; others are left out, and of repeated ones the last counts.

    None, which is 404, when any value breaks its pattern or has a control character.
    """
    fields = list(fields)
    if _broken_field(patterns, fields) is not None:
        return None
    return {name: value for name, value in fields if name in patterns}


def _broken_field(patterns: Mapping[str, re.Pattern[str]], fields: Iterable[tuple[str, str]]) -> str | None:
    for name, value in fields:
        pattern = patterns.get(name)
        if pattern is not None and (pattern.fullmatch(value) is None or _CONTROL.search(value)):
            return name
    return None


def _say_matched(is_answered: bool, is_ambiguous: bool) -> str:
    if is_answered:
        return "It matches, but a more specific route answers."
    if is_ambiguous:
        return "It matches, but an upstream could read this path as that of another route, so nobody answers."
    return (
        "It matches, but a more specific route has a parameter where this path has what none may be, so nobody answers."
    )


def _say_broken(name: str, patterns: Mapping[str, re.Pattern[str]]) -> str:
    return f"It is the one, but the query's `{name}` does not match {patterns[name].pattern}: 404."
