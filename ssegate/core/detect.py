"""What changed between two bodies of the same upstream request, and the updates that say it.

A detector keeps the text of the last state that was sent, not its objects, which take four times the memory; on a change
that text is decoded once more. Whatever it raises, it stays as it was: the next body is compared with the last good one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from ssegate.core.diff import json_patch, merge_patch
from ssegate.core.document import (
    decode,
    decode_text,
    encode,
    encode_sorted,
    encoded_size,
    mend,
    pointer_tree,
    same,
    without,
)
from ssegate.core.event import Update
from ssegate.core.markup import Markup
from ssegate.errors import OversizeError, UndecodableError

Emit = Literal["snapshot", "patch", "merge", "items"]
Body = Literal["json", "text", "bytes"]
Search = Callable[[object], object]
"""An expression, applied to a decoded document or a part of it; None means nothing."""


class Detector(Protocol):
    """Finds what changed between two bodies."""

    def changes(self, body: bytes) -> Sequence[Update]:
        """Compare with the last body; the first one gives what a newcomer should see. Empty: nothing changed.

        Of several updates, which belong together, only the last carries the state. Raises `UndecodableError` when the body
        is not what the route says, `OversizeError` when the state is too large, for as long as such bodies come.
        """
        ...


def make_detector(
    topic: str,
    *,
    emit: Emit = "snapshot",
    body: Body = "json",
    select: Search | None = None,
    ignore: Sequence[str] = (),
    items_at: Search | None = None,
    items_key: Search | None = None,
    names: Mapping[str, str] | None = None,
    markup: Markup | None = None,
    max_event_size: int = 1 << 20,
) -> Detector:
    """Make the detector of one topic.

    `ignore` are JSON Pointers into what `select` gives. `items_at` is applied to that, `items_key` to each item. `names`
    maps the event types `snapshot`, `patch`, `merge`, `added`, `changed`, `removed` to those that are sent; with
    `emit="snapshot"` events have no type unless `snapshot` is named. With `markup` each state is told as HTML. Raises `ValueError` when the arguments do not fit
    together, or a pointer is none.
    """
    names = names or {}
    if emit == "items":
        if items_key is None:
            raise ValueError("items need a key")
    elif items_at is not None or items_key is not None:
        raise ValueError(f"a key of items, or where they are, means nothing with {emit!r}")
    if body != "json":
        if emit != "snapshot" or select is not None or ignore:
            raise ValueError(f"a body of {body} has snapshots only, and nothing to select or ignore")
        return _PlainDetector(topic, names.get("snapshot", ""), max_event_size, _PLAIN[body])
    reader = _Reader(select, ignore)
    if items_key is not None:
        return _ItemsDetector(topic, names, max_event_size, reader, items_at, items_key)
    detector = _DocumentDetector(topic, emit, names, max_event_size, reader)
    return detector if markup is None else _MarkupDetector(detector, markup, max_event_size)


# --- from bytes to a state -------------------------------------------------------------------------------------------


def _apply(search: Search, value: object, name: str) -> object:
    """Apply an expression; what its functions say about values of the wrong kind becomes an error of the body."""
    try:
        return search(value)
    except (ArithmeticError, TypeError, ValueError) as error:
        kind = type(error).__name__
        # Such an error quotes the values it met.
        raise UndecodableError(f"{name} does not fit the body: its expression failed with {kind}") from None


def _text(value: object, encoding: Callable[[object], str] = encode) -> str:
    try:
        return encoding(value)
    except (TypeError, ValueError):
        raise UndecodableError("an expression gives something that JSON does not have, such as NaN") from None


def _write(state: object) -> tuple[object, str, int]:
    """Write a state as text, and count its bytes; with the state again, because it may have been mended.

    Half of a surrogate pair cannot be sent: clients get U+FFFD for it. So it is made U+FFFD here already, or else two
    members could differ here that are one to a client.
    """
    text = _text(state)
    try:
        return state, text, encoded_size(text)
    except UnicodeEncodeError:
        return _write(mend(text))


class _Reader:
    """Reads the state out of a body, and what of it is compared."""

    __slots__ = ("_ignored", "_select")

    def __init__(self, select: Search | None, ignore: Sequence[str]) -> None:
        self._select = select
        self._ignored = pointer_tree(ignore)

    def read(self, body: bytes) -> tuple[bool, object]:
        """Say whether there is a state, and which: what is selected may be nothing, while a body may be `null`."""
        document = decode(body)
        if self._select is None:
            return True, document
        state = _apply(self._select, document, "select")
        return state is not None, state

    @property
    def ignores(self) -> bool:
        return bool(self._ignored)

    def compared(self, state: object) -> object:
        """The state without what is ignored."""
        return without(state, self._ignored)


def _hash(data: bytes) -> bytes:
    # Of 20 kB: blake2b 15 µs, sha256 10 µs but many times that on processors without it, `hash` 3 µs, but its
    # 64 bits can be aimed at. Beside the poll that fetched them 12 µs are nothing (benchmarks/detect.py).
    return hashlib.blake2b(data, digest_size=16).digest()


def _mark(values: Iterable[object]) -> bytes:
    """Make a short mark of values, the same for any order of them and of their members."""
    texts = sorted(_text(value, encode_sorted) for value in values)
    return _hash("\n".join(texts).encode("utf-8", "surrogatepass"))


# --- the detectors ---------------------------------------------------------------------------------------------------

_MIN_ROOM = 1024
"""Changes may always take this many bytes: below one packet nothing is saved by a snapshot instead."""
_EVENT_OVERHEAD = 40
"""About what the lines round an event's data take: its id, its type, the names of the fields."""


class _HashingDetector(ABC):
    """Looks only at bodies that differ from the last accepted one."""

    __slots__ = ("_digest", "_max_size", "_topic")

    def __init__(self, topic: str, max_size: int) -> None:
        self._topic = topic
        self._max_size = max_size
        self._digest = b""

    def changes(self, body: bytes) -> Sequence[Update]:
        digest = _hash(body)
        if digest == self._digest:
            return ()
        try:
            updates = self._detect(body)
        except RecursionError:
            raise UndecodableError("the body is nested too deeply") from None
        self._digest = digest
        return updates

    @abstractmethod
    def _detect(self, body: bytes) -> Sequence[Update]:
        """Find what changed. Changes the detector only when nothing can go wrong any more."""

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            raise OversizeError(f"the state is {size:,} bytes; limits.event_size is {self._max_size:,}")

    def _update(self, type_: str, data: str, state: str | None) -> Update:
        return Update(self._topic, data, type_, state)


class _PlainDetector(_HashingDetector):
    """Each body that differs is the state."""

    __slots__ = ("_read", "_text", "_type")

    def __init__(self, topic: str, type_: str, max_size: int, read: Callable[[bytes], str]) -> None:
        super().__init__(topic, max_size)
        self._type = type_
        self._read = read
        self._text: str | None = None

    def _detect(self, body: bytes) -> Sequence[Update]:
        text = self._read(body)
        if text == self._text:
            return ()  # the bytes differ where both are not UTF-8
        self._check_size(len(text.encode()))
        self._text = text
        return (self._update(self._type, text, text),)


def _read_text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _read_bytes(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


_PLAIN: Mapping[str, Callable[[bytes], str]] = {"text": _read_text, "bytes": _read_bytes}


class _Saying(Protocol):
    def __call__(self, old: object, new: object, *, size: int, max_size: int) -> str | None: ...


_SAYINGS: Mapping[str, _Saying] = {"patch": json_patch, "merge": merge_patch}


class _DocumentDetector(_HashingDetector):
    """Says each change as a whole document, or as a patch of the last one that was sent."""

    __slots__ = ("_compared", "_reader", "_say", "_snapshot_type", "_text", "_type")

    def __init__(self, topic: str, emit: Emit, names: Mapping[str, str], max_size: int, reader: _Reader) -> None:
        super().__init__(topic, max_size)
        self._reader = reader
        self._say = _SAYINGS.get(emit)
        self._snapshot_type = names.get("snapshot", "snapshot" if self._say else "")
        self._type = names.get(emit, emit)
        self._text: str | None = None
        self._compared = b""

    def _detect(self, body: bytes) -> Sequence[Update]:
        there, state = self._reader.read(body)
        if not there:
            return ()
        compared = _mark([self._reader.compared(state)]) if self._reader.ignores else b""
        if compared and compared == self._compared:
            return ()
        state, text, size = _write(state)
        self._check_size(size)
        update = self._compare(state, text, size)
        if update is None:
            return ()
        self._text, self._compared = text, compared
        return (update,)

    def _compare(self, state: object, text: str, size: int) -> Update | None:
        last = self._text
        if last is None:
            return self._snapshot(text)
        # The order of members changes the text of a state, but never its length; so two lengths are two states.
        may_be_same = len(text) == len(last)
        if self._say is None and not may_be_same:
            return self._snapshot(text)
        if text == last:
            return None
        old = decode_text(last)
        if may_be_same and same(old, state):
            return None
        return self._change(old, state, text, size) or self._snapshot(text)

    def _change(self, old: object, state: object, text: str, size: int) -> Update | None:
        if self._say is None:
            return None
        room = min(max(size, _MIN_ROOM), self._max_size)
        change = self._say(old, state, size=size, max_size=room)
        return None if change is None else self._update(self._type, change, text)

    def _snapshot(self, text: str) -> Update:
        return self._update(self._snapshot_type, text, text)


class _MarkupDetector:
    """Says each state as HTML; states that look the same are one."""

    __slots__ = ("_detector", "_markup", "_max_size", "_told")

    def __init__(self, detector: Detector, markup: Markup, max_size: int) -> None:
        self._detector = detector
        self._markup = markup
        self._max_size = max_size
        self._told: tuple[str, str] | None = None

    def changes(self, body: bytes) -> Sequence[Update]:
        updates = self._detector.changes(body)
        if not updates:
            return ()
        told = self._markup.write(decode_text(updates[-1].data))
        if told == self._told:
            return ()
        type_, text = told
        if (size := len(text.encode("utf-8", "surrogatepass"))) > self._max_size:
            raise OversizeError(f"its HTML is {size:,} bytes; limits.event_size is {self._max_size:,}")
        self._told = told
        return (Update(updates[-1].topic, text, type_, state=text),)


class _ItemsDetector(_HashingDetector):
    """Says which items of a list came, changed and went."""

    __slots__ = ("_at", "_compared", "_items", "_key", "_names", "_reader")

    def __init__(
        self, topic: str, names: Mapping[str, str], max_size: int, reader: _Reader, at: Search | None, key: Search
    ) -> None:
        super().__init__(topic, max_size)
        self._names = names
        self._reader = reader
        self._at = at
        self._key = key
        self._items: dict[str, str] | None = None  # the texts by key, in the list's order; joined they are the state
        self._compared = b""

    def _detect(self, body: bytes) -> Sequence[Update]:
        there, state = self._reader.read(body)
        if not there:
            return ()
        compared = _mark(self._list(self._reader.compared(state))) if self._reader.ignores else b""
        if compared and compared == self._compared:
            return ()
        items, texts = _write_items(self._list(state))
        state_text = f"[{','.join(texts)}]"
        self._check_size(encoded_size(state_text))
        now = dict(zip(self._keys(items), texts, strict=True))
        updates = self._compare(now, state_text)
        if updates:
            self._items, self._compared = now, compared
        return updates

    def _list(self, state: object) -> list[object]:
        found = state if self._at is None else _apply(self._at, state, "items.at")
        if not isinstance(found, list):
            what = _KINDS.get(type(found), "a number")
            raise UndecodableError(f"items.at gives no list but {what}; it must lead to the list in the body")
        return found

    def _keys(self, items: list[object]) -> list[str]:
        keys: dict[str, None] = {}
        for index, item in enumerate(items):
            value = _apply(self._key, item, "items.key")
            if value is None:
                raise UndecodableError(
                    f"items.key gives nothing for the item at index {index:,}; every item needs a key"
                )
            key = _key_text(value)
            if key in keys:
                raise UndecodableError(f"two items have the key {_quote(value)}; items.key must tell them apart")
            keys[key] = None
        return list(keys)

    def _compare(self, now: Mapping[str, str], state: str) -> Sequence[Update]:
        if self._items is None:
            return (self._named("snapshot", state, state),)
        changes = [*_item_changes(self._items, now)]
        room = max(encoded_size(state), _MIN_ROOM)
        if sum(encoded_size(item) + _EVENT_OVERHEAD for _, item in changes) > room:
            return (self._named("snapshot", state, state),)
        last = len(changes) - 1
        return [self._named(name, item, state if i == last else None) for i, (name, item) in enumerate(changes)]

    def _named(self, name: str, data: str, state: str | None) -> Update:
        return self._update(self._names.get(name, name), data, state)


_KINDS = {dict: "an object", str: "a string", bool: "true or false", type(None): "null"}


def _write_items(items: list[object]) -> tuple[list[object], list[str]]:
    """Write each item as `_write` does; all are mended when one must be."""
    texts = [_text(item) for item in items]
    try:
        for text in texts:
            encoded_size(text)
    except UnicodeEncodeError:
        mended = [mend(text) for text in texts]
        return mended, [encode(item) for item in mended]
    return items, texts


def _key_text(key: object) -> str:
    """A text that is the same for equal keys only; `1`, `1.0`, `true` and `"1"` are four keys."""
    if type(key) is str:
        return "=" + key  # which begins no other JSON text
    if type(key) is int:
        return str(key)
    return _text(key, encode_sorted)


def _quote(key: object) -> str:
    text = json.dumps(key)
    return text if len(text) <= 40 else text[:39] + "…"


def _item_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, text in old.items():
        if key not in new:
            yield "removed", text
    for key, text in new.items():
        if key in old and _is_other(old[key], text):
            yield "changed", text
    for key, text in new.items():
        if key not in old:
            yield "added", text


def _is_other(old: str, new: str) -> bool:
    # As with documents: what only has its members in another order is as long as before.
    return old != new and (len(old) != len(new) or not same(decode_text(old), decode_text(new)))
