"""Strict YAML: a text becomes nodes that know where they stand.

YAML 1.2's core schema, made narrower: `true` and `false` are the only booleans, numbers are decimal, a key stands once,
there are no tags and there is one document. PyYAML reads the tokens; what they mean is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from ssegate.errors import ConfigError, Problem

MAX_BYTES = 1024 * 1024
MAX_ALIASES = 1000
MAX_DEPTH = 50
MAX_NODES = 100_000
"""Values in a file, each alias counted with all it stands for: so a few aliases of aliases cannot fill the memory."""

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What PyYAML counts as the end of a line."""
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]{0,29})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_CONSTANTS: dict[str, object] = {"true": True, "false": False, "null": None, "~": None, "": None}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Span:
    """Where something stands: line and column counted from 1, and how many characters a caret underlines."""

    line: int
    column: int
    length: int = 1


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value, not resolved yet."""

    span: Span
    text: str
    is_plain: bool
    """Written without quotes, so it may be a number, a boolean or null."""
    size: int = 1


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    span: Span
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys with their values, merged ones included; a key's text is all there is to it, whatever it looks like."""

    span: Span
    entries: dict[str, tuple[Span, Node]]
    size: int
    is_flow: bool


Node = Scalar | Sequence | Mapping

Path = tuple[str | int, ...]
"""The keys and places that lead from the top to a value."""


def where(path: Path) -> str:
    """Write a path as people do: `routes[0].poll.every`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def lines_of(text: str) -> list[str]:
    """Cut a text into the lines that positions count."""
    return _BREAK.split(text)


def resolve(text: str) -> object:
    """What a plain scalar means: a boolean, a number, None, or else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return text if abs(number) == float("inf") else number
    return text


def read_document(text: str, source: str) -> tuple[Mapping, list[Problem]]:
    """Read one document whose top is a mapping.

    Keys set twice do not stop the reading: each place is in the problems returned, and the first value counts.
    Raises `ConfigError` for what cannot be read on.
    """
    _check_text(text, source)
    return _Composer(text, source).compose()


def decode(data: bytes, source: str) -> str:
    """Decode a file. Raises `ConfigError` when it is too large or not UTF-8."""
    if len(data) > MAX_BYTES:
        raise _failure(source, Span(0, 0), "the file is larger than 1 MiB")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _failure(source, Span(1, 1), "the file is UTF-16; save it as UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = lines_of(data[: error.start].decode())
        span = Span(len(before), len(before[-1]) + 1)
        raise _failure(source, span, f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8") from None


def _failure(source: str, span: Span, message: str) -> ConfigError:
    return ConfigError([Problem(source, span.line, span.column, "yaml", "", message, span.length)])


def _check_text(text: str, source: str) -> None:
    # Four bytes a character at most: most texts need not be encoded to be measured.
    if len(text) * 4 > MAX_BYTES and len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _failure(source, Span(0, 0), "the file is larger than 1 MiB")
    if text.startswith("\ufeff"):
        raise _failure(source, Span(1, 1), "the file begins with a byte order mark; save it as UTF-8 without one")


class _Composer:
    """Joins PyYAML's events into nodes."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._lines = lines_of(text)
        self._source = source
        self._anchors: dict[str, Node] = {}
        self._aliases = 0
        self._problems: list[Problem] = []
        self._told: set[Span] = set()  # places of keys that are set twice
        self._open: list[Any] = []  # where the brackets stand that are not closed yet

    def compose(self) -> tuple[Mapping, list[Problem]]:
        try:
            self._loader = yaml.SafeLoader(self._text)
        except yaml.reader.ReaderError as error:
            raise self._unreadable(error) from None
        try:
            return self._document(), self._problems
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None
        except (ValueError, OverflowError):
            # PyYAML's scanner does not check its numbers: "\UFFFFFFFF", or a %YAML directive of 5,000 digits.
            raise self._error(self._span(self._loader.get_mark()), "this escape names no character") from None

    def _document(self) -> Mapping:
        self._next()  # the start of the stream
        if isinstance(self._peek(), yaml.StreamEndEvent):
            raise self._error(Span(1, 1), "the file is empty; a configuration begins with `version: 1`")
        self._next()  # the start of the document
        root = self._node(self._next(), ())
        self._next()  # its end
        if not isinstance(event := self._peek(), yaml.StreamEndEvent):
            raise self._error(self._span(event.start_mark, 3), "a second document begins here; a file holds one")
        if not isinstance(root, Mapping):
            raise self._error(root.span, "the file is not a mapping; a configuration begins with `version: 1`")
        return root

    # PyYAML's stubs leave open which events have what, so events and marks are `Any` here.

    def _peek(self) -> Any:
        return self._loader.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs

    def _next(self) -> Any:
        return self._loader.get_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs

    def _node(self, event: Any, path: Path) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if len(path) > MAX_DEPTH:
            raise self._error(self._span(event.start_mark), f"more than {MAX_DEPTH} levels inside each other")
        if event.tag is not None:
            raise self._error(self._span(event.start_mark), "a tag (`!…`) has no meaning here; leave it out")
        is_bracket = bool(getattr(event, "flow_style", False))
        if is_bracket:
            self._open.append(event.start_mark)
        node = self._untagged(event, path)
        if is_bracket:
            self._open.pop()
        if node.size > MAX_NODES:
            raise self._error(node.span, f"more than {MAX_NODES:,} values, aliases counted with all they stand for")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _untagged(self, event: Any, path: Path) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(event, path)
        return self._mapping(event, path)

    def _alias(self, event: Any) -> Node:
        self._aliases += 1
        span = self._span(event.start_mark, event.end_mark)
        if self._aliases > MAX_ALIASES:
            raise self._error(span, f"more than {MAX_ALIASES:,} aliases")
        # An anchor is known once its node is complete, so nothing can contain itself.
        node = self._anchors.get(event.anchor)
        if node is None:
            raise self._error(span, "this alias names no anchor (`&…`) above it; put text that begins with * in quotes")
        return node

    def _scalar(self, event: Any) -> Scalar:
        span = self._span(event.start_mark, event.end_mark)
        if _SURROGATE.search(event.value):
            raise self._error(span, "this text holds half a surrogate pair, which is no character")
        return Scalar(span, event.value, is_plain=not event.style)

    def _sequence(self, event: Any, path: Path) -> Sequence:
        items: list[Node] = []
        while not isinstance(self._peek(), yaml.SequenceEndEvent):
            items.append(self._node(self._next(), (*path, len(items))))
        end = self._next()
        span = self._span(event.start_mark, end.end_mark) if event.flow_style else self._span(event.start_mark)
        return Sequence(span, tuple(items), 1 + sum(item.size for item in items))

    def _mapping(self, event: Any, path: Path) -> Mapping:
        entries: dict[str, tuple[Span, Node]] = {}
        merged: list[Mapping] = []
        first = None
        while not isinstance(self._peek(), yaml.MappingEndEvent):
            key = self._key(self._next())
            value = self._node(self._next(), (*path, key.text))
            first = first or key.span
            if key.text == "<<" and key.is_plain:
                merged.extend(self._merges(value))
            elif key.text in entries:
                self._set_twice(key, entries[key.text][0], path)
            else:
                entries[key.text] = (key.span, value)
        end = self._next()
        # "keys in the mapping override merged ones, and earlier mappings of a list override later ones"
        for mapping in merged:
            for name, entry in mapping.entries.items():
                entries.setdefault(name, entry)
        flow = bool(event.flow_style)
        span = self._span(event.start_mark, end.end_mark) if flow else first or self._span(event.start_mark)
        return Mapping(span, entries, 1 + sum(1 + value.size for _, value in entries.values()), flow)

    def _key(self, event: Any) -> Scalar:
        node = self._node(event, ()) if isinstance(event, yaml.AliasEvent | yaml.ScalarEvent) else None
        if isinstance(node, Scalar):
            return node
        raise self._error(self._span(event.start_mark), "a key must be text; quote values that contain { } or [ ]")

    def _merges(self, node: Node) -> Iterator[Mapping]:
        for item in node.items if isinstance(node, Sequence) else (node,):
            if not isinstance(item, Mapping):
                raise self._error(item.span, "`<<` merges mappings: write `<<: *name`")
            yield item

    def _set_twice(self, key: Scalar, first: Span, path: Path) -> None:
        for span, other in ((first, key.span), (key.span, first)):
            message = f"`{key.text}` is set twice; the other is on line {other.line}"
            problem = Problem(self._source, span.line, span.column, "duplicate-key", where(path), message, span.length)
            if span not in self._told:
                self._told.add(span)
                self._problems.append(problem)

    def _span(self, start: Any, end: Any = 1) -> Span:
        """To the end of the token, or of its first line."""
        if isinstance(end, int):
            return Span(start.line + 1, start.column + 1, end)
        stop = end.column if end.line == start.line else len(self._line(start.line).rstrip())
        return Span(start.line + 1, start.column + 1, max(1, stop - start.column))

    def _line(self, index: int) -> str:
        return self._lines[index] if index < len(self._lines) else ""

    def _error(self, span: Span, message: str) -> ConfigError:
        first = [Problem(self._source, span.line, span.column, "yaml", "", message, span.length)]
        return ConfigError(sorted(self._problems + first, key=lambda problem: (problem.line, problem.column)))

    def _unreadable(self, error: yaml.reader.ReaderError) -> ConfigError:
        before = lines_of(self._text[: error.position])
        code = ord(self._text[error.position])
        return self._error(
            Span(len(before), len(before[-1]) + 1), f"character U+{code:04X} may not stand in a YAML file"
        )

    def _syntax_error(self, error: Any) -> ConfigError:
        mark = error.problem_mark or error.context_mark or self._loader.get_mark()
        if characters := self._unquoted(error, mark):
            return self._error(self._span(mark), f"quote values that contain {characters}")
        if opened := self._never_closed(error):
            return self._error(self._span(opened), "what is opened here is never closed")
        return self._error(self._span(mark), _sentence(error))

    def _never_closed(self, error: Any) -> Any:
        """The mark of the quote or bracket that was open when the text came to its end; None if none was."""
        if "end of stream" in error.problem:
            return error.context_mark
        return self._open[-1] if self._open and "<stream end>" in error.problem else None

    def _unquoted(self, error: Any, mark: Any) -> str:
        """Which characters end a value here that was meant to go on; empty when it is something else."""
        line = self._line(mark.line)
        found = line[mark.column : mark.column + 1]
        if "expected ',' or" in error.problem and found in ("{", "}"):
            return "{ }"
        # In brackets PyYAML ends a value at `?`, as YAML 1.1 did.
        if "expected ',' or" in error.problem and found == "?":
            return "? inside { } or [ ]"
        return "{ }" if "expected <block end>" in error.problem and line[: mark.column].endswith("}") else ""


def _sentence(error: Any) -> str:
    """Say in this package's words what PyYAML says in those of its scanner."""
    problem: str = error.problem
    for part, sentence in _SENTENCES:
        if part in problem:
            return sentence
    return f"{problem} {error.context}" if error.context else problem


_SENTENCES = (
    ("found character '\\t'", "a tab may not indent; use spaces"),
    ("that cannot start any token", "a value cannot begin with this character; put the value in quotes"),
    ("mapping values are not allowed", "a `:` that no key may have here; look at the indentation, or quote the value"),
    ("expected <block end>", "this does not line up with what is above it; look at the indentation and the quotes"),
    ("could not find expected ':'", "a key without its `:`"),
    ("expected ',' or", "a `,` or a closing bracket is missing before this; or quote the value"),
    ("expected the node content", "a value is missing here; quote values that contain brackets or colons"),
    ("found unknown escape character", "no such escape; in double quotes a backslash is written \\\\"),
)
