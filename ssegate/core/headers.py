"""HTTP header fields as they came, with look-up by name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

Pair = tuple[bytes, bytes]


_KEYS: dict[str, bytes] = {}
"""Names that are looked up as they are compared. They are those in the code and in the configuration."""

_MOST_KEYS = 1000
_NONE: list[bytes] = []


def _key(name: str) -> bytes:
    key = name.lower().encode("latin-1")
    if len(_KEYS) < _MOST_KEYS:
        _KEYS[name] = key
    return key


class Headers:
    """Immutable header fields in their order and case; names are looked up without regard to case (RFC 9110, 5.1).

    Values are bytes on the wire and `str` by latin-1 when looked up, so that no byte is lost.
    """

    __slots__ = ("_index", "_names", "derived", "raw")

    def __init__(self, raw: Iterable[Pair] = ()) -> None:
        self.raw: tuple[Pair, ...] = tuple(raw)
        self.derived: dict[Hashable, Any] = {}
        """What others have worked out of these fields, by keys of their own. A client mostly repeats its fields, and an edge
        that notices gives the same object for them: what is asked of every request is worked out once."""
        self._index: dict[bytes, list[bytes]] | None = None
        self._names: list[bytes] | None = None

    @property
    def names(self) -> list[bytes]:
        """The names in lower case, in their order."""
        if self._names is None:
            self._names = [name.lower() for name, _ in self.raw]
        return self._names

    def _lookup(self, name: str) -> list[bytes]:
        if self._index is None:
            index: dict[bytes, list[bytes]] = {}
            for key, (_, value) in zip(self.names, self.raw, strict=True):
                index.setdefault(key, []).append(value)
            self._index = index
        return self._index.get(_KEYS.get(name) or _key(name), _NONE)

    def get(self, name: str) -> str | None:
        """The value of the field; of several their list, joined by ", " (RFC 9110, 5.3). None when it is absent."""
        values = self._lookup(name)
        return b", ".join(values).decode("latin-1") if values else None

    def all(self, name: str) -> list[str]:
        """Each value of a repeated field, in order; empty when it is absent."""
        return [value.decode("latin-1") for value in self._lookup(name)]

    def __contains__(self, name: str) -> bool:
        return bool(self._lookup(name))

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        """Names only: values may be secrets."""
        return f"Headers({', '.join(name.decode('latin-1') for name, _ in self.raw)})"
