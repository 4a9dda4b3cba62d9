"""`{name}` templates, percent-encoded where they meet a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import quote, unquote

Values = Callable[[str], str | None] | Mapping[str, str]
"""Where the values of a template come from; None, or a key that is not there, is a value that is absent."""

_Lookup = Callable[[str], str | None]
_Part = tuple[str, str | None]  # a literal, and the name that follows it; None behind the last literal

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+)*")
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PLAIN = re.compile(r"[A-Za-z0-9_~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SEPARATOR = re.compile(r"[/\\]")
_NOT_IN_URL = re.compile(r"[^\x21-\x7e]|[#\\]")
_MAX_DECODINGS = 4  # more than any chain does; without an end, `%252525…` would cost the square of its length
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Template:
    """A text with `{name}` in it. `{{` and `}}` are literal braces.

    A name is dotted: `id`, `query.status`, `headers.x-github-event`, `body.a.b`, `env.X`. Which names have a value is
    for the caller to say.

    Raises `ValueError` for a brace without its partner and for a name that is none; the message has the mend.
    """

    __slots__ = ("_parts", "_url", "names", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = tuple(_parse(text))
        self._url: _UrlPlan | None = None
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        """In order of appearance, each once."""

    def expand(self, values: Values) -> str:
        """Put the values in as they are: for strings that are no URL, such as event types.

        Raises `LookupError`, which names it, when a value is absent.
        """
        lookup = _lookup(values)
        return "".join(text for literal, name in self._parts for text in (literal, _value(name, lookup)))

    def check_url(self) -> None:
        """Raise `ValueError` unless this can be the path, and query, of an upstream URL.

        It begins with one `/`, so that no value reaches the host, and has no fragment, no dot segment and no broken
        `%`-escape. To be asked once, when the template is read; `expand_url` alone does not ask for the `/`.
        """
        if not self._parts[0][0].startswith("/"):
            raise ValueError("a URL template is a path: let it begin with `/`")
        if self.text.startswith("//"):
            raise ValueError("`//` at the beginning would name a host: write one `/`")
        self._plan()

    def expand_url(self, values: Values) -> str:
        """Put the values in percent-encoded, in path and query alike: only letters, digits and `-._~` stay themselves.

        In the query, a pair that is just `key={name}` is left out when its value is absent, with its `&`; when no pair
        is left the `?` goes too. A value that is absent elsewhere is a `LookupError`, which names it.

        Raises `ValueError` for a value with a control character, and for one that would make a path segment empty, `.`
        or `..`, or hides such a segment: encoding does not help there, as `%2E%2E` means `..` (RFC 3986, 6.2.2.2). The
        message names the name, never the value.
        """
        return self._plan().expand(_lookup(values))

    def _plan(self) -> _UrlPlan:
        if self._url is None:
            self._url = _UrlPlan(self._parts)
        return self._url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        """Without the query, where secrets are."""
        return f"Template({self.text.partition('?')[0]!r})"


def percent_encode(value: str) -> str:
    """Encode all but RFC 3986's unreserved characters, as UTF-8. Raises `ValueError` for a lone surrogate."""
    return quote(value, safe="")


def _parse(text: str) -> Iterator[_Part]:
    literal = ""
    end = 0
    for token in _TOKEN.finditer(text):
        literal += text[end : token.start()]
        end = token.end()
        found = token.group()
        if found in ("{{", "}}"):
            literal += found[0]
        elif len(found) == 1:
            raise ValueError(f"`{found}` without its partner: write `{{name}}`, or `{found * 2}` for the brace")
        else:
            yield literal, _checked_name(token.group(1))
            literal = ""
    yield literal + text[end:], None


def _checked_name(name: str) -> str:
    if not name:
        raise ValueError("`{}` without a name: write `{name}`, or `{{}}` for the braces")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"`{name}` is not a name; write letters, digits and `_`, with `.` between, such as `{{query.status}}`"
        )
    return name


def _lookup(values: Values) -> _Lookup:
    return values.get if isinstance(values, Mapping) else values


def _value(name: str | None, lookup: _Lookup) -> str:
    if name is None:
        return ""
    value = lookup(name)
    if value is None:
        raise LookupError(f"`{{{name}}}` has no value")
    return value


def _encoded(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if _CONTROL.search(value):
        raise ValueError(f"the value of `{{{name}}}` has a control character, which no URL may carry")
    try:
        return percent_encode(value)
    except UnicodeEncodeError:
        # The error itself would carry the value.
        raise ValueError(f"the value of `{{{name}}}` is not Unicode text") from None


class _UrlPlan:
    """A template taken apart for URLs: the segments of the path, and the pairs of the query."""

    __slots__ = ("_pairs", "_segments")

    def __init__(self, parts: Iterable[_Part]) -> None:
        path: list[_Part] = []
        query: list[_Part] | None = None
        for literal, name in parts:
            _check_literal(literal)
            if query is None and "?" in literal:
                before, _, literal = literal.partition("?")
                path.append((before, None))
                query = []
            (path if query is None else query).append((literal, name))
        self._segments = _split(path, "/")
        self._pairs = None if query is None else _split(query, "&")
        for segment in self._segments:
            if "." in segment[0][0] or "%" in segment[0][0]:
                _check_literal_segment(segment)

    def expand(self, lookup: _Lookup) -> str:
        path = "/".join([_expand_segment(segment, lookup) for segment in self._segments])
        if self._pairs is None:
            return path
        pairs = [text for pair in self._pairs if (text := _expand_pair(pair, lookup)) is not None]
        return f"{path}?{'&'.join(pairs)}" if pairs else path


def _check_literal(literal: str) -> None:
    if found := _NOT_IN_URL.search(literal):
        raise ValueError(f"no URL may carry {found.group()!r} as it is: percent-encode it")
    if _BROKEN_ESCAPE.search(literal):
        raise ValueError("a `%` that two hexadecimal digits do not follow: write `%25`")


def _check_literal_segment(segment: tuple[_Part, ...]) -> None:
    if len(segment) == 1 and segment[0][1] is None and _hides_dots(segment[0][0]):
        raise ValueError("a `.` or `..` segment: write the path it leads to")


def _split(parts: Iterable[_Part], separator: str) -> tuple[tuple[_Part, ...], ...]:
    """Cut at the separators of the literals. No piece is without a part."""
    pieces: list[list[_Part]] = [[("", None)]]
    for literal, name in parts:
        first, *others = literal.split(separator)
        pieces[-1].append((first, None))
        pieces.extend([(other, None)] for other in others)
        pieces[-1].append(("", name))
    return tuple(_joined(piece) for piece in pieces)


def _joined(parts: Iterable[_Part]) -> tuple[_Part, ...]:
    """The same parts with as few literals as can be."""
    joined: list[_Part] = []
    literal = ""
    for text, name in parts:
        literal += text
        if name is not None:
            joined.append((literal, name))
            literal = ""
    if literal or not joined:
        joined.append((literal, None))
    return tuple(joined)


def _expand_pair(pair: tuple[_Part, ...], lookup: _Lookup) -> str | None:
    literal, name = pair[0]
    if len(pair) == 1 and name is not None and literal.endswith("="):
        value = lookup(name)
        return None if value is None else literal + _encoded(name, value)
    return _expand_parts(pair, lookup)


def _expand_segment(segment: tuple[_Part, ...], lookup: _Lookup) -> str:
    text = _expand_parts(segment, lookup)
    name = segment[0][1]
    # A literal was checked when it was read, and most values need no second look.
    if name is None or _PLAIN.fullmatch(text):
        return text
    if not text:
        raise ValueError(f"the value of `{{{name}}}` is empty, and would leave an empty segment in the path")
    if _hides_dots(text):
        raise ValueError(f"the value of `{{{name}}}` would make a `.` or `..` segment in the path")
    if _CONTROL.search(fully_decoded(text)):
        raise ValueError(f"the value of `{{{name}}}` has an encoded control character, which no path may carry")
    return text


def _expand_parts(parts: tuple[_Part, ...], lookup: _Lookup) -> str:
    text = ""
    for literal, name in parts:
        text += literal
        if name is not None:
            text += _encoded(name, _value(name, lookup))
    return text


def _hides_dots(segment: str) -> bool:
    return any(piece in (".", "..") for piece in _SEPARATOR.split(fully_decoded(segment)))


def fully_decoded(text: str) -> str:
    """Percent-decode, and decode the result again: what the most eager chain of servers could make of it."""
    for _ in range(_MAX_DECODINGS):
        if "%" not in text:
            break
        text = unquote(text)
    return text
