"""A document on its way to a model: `${…}` expanded, each value with its place, and what was found wrong with it."""

from __future__ import annotations

from collections.abc import Mapping as Environ
from pathlib import Path as FilePath
from typing import Literal

from ssegate.config import document
from ssegate.config.document import Mapping, Node, Path, Scalar, Sequence, Span
from ssegate.config.environment import ExpansionError, expand, has_reference
from ssegate.config.values import Expanded
from ssegate.errors import Problem

Part = Literal["key", "value"]


class Tree:
    """The values of a document, without those that have been found wrong, and the problems.

    Whatever is wrong is taken out and the rest looked at again, so that one fault does not hide another.
    """

    def __init__(self, root: Mapping, source: str, environ: Environ[str, str]) -> None:
        self.problems: list[Problem] = []
        self._root = root
        self._source = source
        self._environ = environ
        self._removed: set[Path] = set()
        self._supplied: dict[Path, dict[str, object]] = {}
        self._broken: set[Path] = set()
        self._above_broken: set[Path] = set()
        self._known: set[tuple[int, int, str, str]] = set()
        self._expanded: dict[int, Expanded | ExpansionError] = {}
        self._origins: dict[Path, Path] = {}

    @property
    def folder(self) -> FilePath:
        """Where the configuration stands; files it names are relative to it."""
        return FilePath(self._source).parent

    def data(self) -> dict[str, object]:
        """What is left, as plain values; lists are tuples."""
        self._origins = {}
        top: dict[str, object] = {}
        for name, (_, node) in self._root.entries.items():
            if not name.startswith("x-") and self._is_kept((name,)):
                self._put(top, name, node, (name,), (name,))
        return top | self._supplied.get((), {})

    def _put(self, into: dict[str, object], name: str, node: Node, path: Path, origin: Path) -> None:
        value = self._value(node, path, origin)
        if self._is_kept(origin):
            into[name] = value

    def _value(self, node: Node, path: Path, origin: Path) -> object:
        self._origins[path] = origin
        if isinstance(node, Scalar):
            return self._scalar(node, origin)
        if isinstance(node, Sequence):
            return self._sequence(node, path, origin)
        mapping: dict[str, object] = {}
        for name, (_, child) in node.entries.items():
            if self._is_kept((*origin, name)):
                self._put(mapping, name, child, (*path, name), (*origin, name))
        return mapping | self._supplied.get(origin, {})

    def _sequence(self, node: Sequence, path: Path, origin: Path) -> tuple[object, ...]:
        items: list[object] = []
        for index, child in enumerate(node.items):
            if self._is_kept((*origin, index)):
                value = self._value(child, (*path, len(items)), (*origin, index))
                if self._is_kept((*origin, index)):
                    items.append(value)
        return tuple(items)

    def _scalar(self, node: Scalar, origin: Path) -> object:
        if not has_reference(node.text):
            return document.resolve(node.text) if node.is_plain else node.text
        found = self._expansion(node)
        if isinstance(found, Expanded):
            return found
        for message, hint in found.faults:
            self.add(origin, "env", message, hint)
        self.remove(origin)
        return None

    def _expansion(self, node: Scalar) -> Expanded | ExpansionError:
        """Once for each scalar: a file is not read twice, and an alias is the same value."""
        if id(node) not in self._expanded:
            try:
                text = expand(node.text, self._environ)
                self._expanded[id(node)] = Expanded(text, document.resolve(text) if node.is_plain else text)
            except ExpansionError as error:
                self._expanded[id(node)] = error
        return self._expanded[id(node)]

    def _is_kept(self, origin: Path) -> bool:
        return origin not in self._removed

    def origin(self, path: Path) -> Path:
        """Where in the file a place of the last `data()` came from; the nearest one above it that is in the file."""
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, ())

    def remove(self, path: Path) -> None:
        """Leave a value out from now on, and believe no complaint that it is not there."""
        self._removed.add(path)
        self.doubt(path)

    def drop(self, path: Path) -> None:
        """Leave a key out that should not be there; nothing misses it."""
        self._removed.add(path)

    def supply(self, path: Path, value: object) -> None:
        """Put a value where a required one is missing or was taken out; believe no complaint about it."""
        self._supplied.setdefault(path[:-1], {})[str(path[-1])] = value
        self.doubt(path)

    def doubt(self, path: Path) -> None:
        """Believe no complaint that this is not there: what is wrong with it has been said."""
        self._broken.add(path)
        self._above_broken.update(path[:length] for length in range(len(path) + 1))

    def is_broken(self, path: Path) -> bool:
        """Whether it, something in it, or something it stands in, has been found wrong."""
        return path in self._above_broken or self.is_gone(path)

    def is_gone(self, path: Path) -> bool:
        """Whether it, or something it stands in, is wrong; something in it may be wrong as well."""
        return any(path[:length] in self._broken for length in range(len(path) + 1))

    def is_expanded(self, path: Path) -> bool:
        """Whether the value came from `${…}`, and may not be quoted."""
        found = self.find(path)
        return found is not None and isinstance(found[1], Scalar) and has_reference(found[1].text)

    def find(self, path: Path) -> tuple[Span, Node] | None:
        """A key's place and its value; an item of a list has its value's place for a key."""
        found: tuple[Span, Node] = (self._root.span, self._root)
        for part in path:
            entry = _child(found[1], part)
            if entry is None:
                return None
            found = entry
        return found

    def keys(self, path: Path) -> list[str]:
        """The keys of the mapping there, right or wrong; none when there is no mapping."""
        found = self.find(path)
        return list(found[1].entries) if found is not None and isinstance(found[1], Mapping) else []

    def span(self, path: Path, part: Part = "value") -> Span:
        """Where it stands; of what is not in the file, where the nearest thing above it does."""
        while (found := self.find(path)) is None:
            path, part = path[:-1], "key"
        return found[0] if part == "key" else found[1].span

    def add(
        self, path: Path, code: str, message: str, hint: str = "", part: Part = "value", about: Path | None = None
    ) -> None:
        """Note a problem at a path of the file; `about` is the path to name, if it is another."""
        span = self.span(path, part)
        name = document.where(path if about is None else about)
        problem = Problem(self._source, span.line, span.column, code, name, message, span.length, hint)
        # A mapping that stands in several places by an alias has its problems once.
        identity = (span.line, span.column, code, message)
        if identity not in self._known:
            self._known.add(identity)
            self.problems.append(problem)


def _child(node: Node, part: str | int) -> tuple[Span, Node] | None:
    if isinstance(node, Mapping) and isinstance(part, str):
        return node.entries.get(part)
    if isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
        return node.items[part].span, node.items[part]
    return None
