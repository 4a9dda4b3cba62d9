"""Where a client stands in each of the topics it reads as one stream, as one event id."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from hashlib import sha256

from ssegate.core.journal import Position

MAX_VECTOR = 4096
"""Bytes of such an id. A hundred topics with the largest offsets take 2,402."""

MAX_TOPICS = 100
"""How many topics one stream may join."""

BEGINNING = "-0"
"""What stands for a place before the first event of a topic that had had none."""

UNKNOWN = "?"
"""What stands for a cursor that is none of ours: the hub answers it with `reset`, `unknown-cursor`."""

_VERSION = "_1"  # no epoch begins like this, so the cursor of a single topic is not mistaken for a vector
_NAME_SIZE = 4
_HEAD_SIZE = _NAME_SIZE + 6
_TEXT = re.compile(r"_1((?:[A-Za-z0-9_-]{4})+)")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")

_OFFSET_SIZES = (2, 5, 8)
"""Bytes of an offset, whose two highest bits say which of these it is. With the digests before it an entry is a multiple of
three, and so a piece of base64 by itself: when a client has moved in one topic, the entries of the others stay as they are."""


class Places:
    """A client's places, which change one at a time, and the vector that says them all.

    A topic that has had no event yet stands in it with an empty epoch: a client that comes back wants all that came since.
    """

    __slots__ = ("_entries", "_epochs", "_heads")

    def __init__(self) -> None:
        self._entries = [_VERSION.encode()]  # as they stand in the vector; that of topic 0 is behind the version
        self._epochs: list[bytes | None] = []
        self._heads: list[bytes] = []  # of the entries: the digests, which an event does not change

    def add(self, name: str, entry: bytes = b"") -> int:
        """One more topic; returns its number here. `entry`: its place in a vector that came back (see `Vector.entry`)."""
        self._entries.append(entry)
        self._epochs.append(None)
        self._heads.append(_digest_of_name(name))
        return len(self._heads) - 1

    def move(self, number: int, epoch: bytes, offset: int) -> None:
        """The client stands behind this event of this topic; the epoch is empty before the first."""
        if epoch != self._epochs[number]:
            self._epochs[number] = epoch
            self._heads[number] = self._heads[number][:_NAME_SIZE] + _digest_of_epoch(epoch)
        self._entries[number + 1] = _encode(self._heads[number], offset)

    def encode(self) -> bytes:
        """The vector. Empty when there is no place to tell."""
        data = b"".join(self._entries)
        return data if len(data) > len(_VERSION) else b""

    def __str__(self) -> str:
        return self.encode().decode()


class Vector:
    """A client's places as they came back from it."""

    __slots__ = ("_offsets",)

    def __init__(self, offsets: dict[bytes, int]) -> None:
        """`offsets`: by the digests of a topic's name and epoch."""
        self._offsets = offsets

    def cursor(self, name: str, epoch: str) -> str | None:
        """The client's cursor in a topic, which has this epoch now, as `Hub.subscribe` takes it; None when it is new there.

        `UNKNOWN` when the place is one of another epoch; `BEGINNING`, which no hub knows, when it is before the first event.
        """
        digest = _digest_of_name(name)
        offset = self._offsets.get(digest + _digest_of_epoch(epoch.encode()))
        if digest + _NO_EPOCH in self._offsets:
            return BEGINNING
        if offset is not None:
            return str(Position(epoch, offset))
        return UNKNOWN if self.entry(name) else None

    def entry(self, name: str) -> bytes:
        """What this says of a topic, to be said again until the topic has been read; empty when it says nothing."""
        digest = _digest_of_name(name)
        return next((_encode(head, offset) for head, offset in self._offsets.items() if head.startswith(digest)), b"")

    def is_between(self, begin: Vector | None, end: Vector) -> bool:
        """Whether a client that was led from the one to the other may stand here. `begin`: None is the beginning of all."""
        names = {key[:_NAME_SIZE] for key in end._offsets}
        for key, offset in self._offsets.items():
            least = begin._offsets.get(key, 0) if begin is not None else 0
            most = end._offsets.get(key)
            if key[:_NAME_SIZE] not in names or offset < least:
                return False
            # Of an epoch that was over meanwhile nobody knows how far it had come.
            if offset > most if most is not None else begin is None or key not in begin._offsets:
                return False
        return bool(self._offsets)


def encode_vector(places: Iterable[tuple[str, Position]]) -> str:
    """Encode the places in topics, given by name, as one event id: letters, digits, `-` and `_`. Empty when there are none.

    The version, then base64url of: for each topic four bytes of its name's digest, six of its epoch's, and the offset.
    """
    vector = Places()
    for name, position in places:
        vector.move(vector.add(name), position.epoch.encode(), position.offset)
    return str(vector)


def decode_vector(text: str) -> Vector | None:
    """Read an id as it came back from a client; None when it cannot be one of ours."""
    if len(text) > MAX_VECTOR or (found := _TEXT.fullmatch(text)) is None:
        return None
    data = binascii.a2b_base64(found[1].encode().translate(_FROM_URL))
    offsets: dict[bytes, int] = {}
    at = 0
    while at < len(data):
        head = data[at : at + _HEAD_SIZE]
        offset, at = _read_offset(data, at + _HEAD_SIZE)
        if offset < 0 or head in offsets:
            return None
        offsets[head] = offset
    return Vector(offsets) if len(offsets) <= MAX_TOPICS else None


def _digest_of_name(name: str) -> bytes:
    return sha256(name.encode("utf-8", "surrogatepass")).digest()[:_NAME_SIZE]


def _digest_of_epoch(epoch: bytes) -> bytes:
    return sha256(epoch).digest()[: _HEAD_SIZE - _NAME_SIZE]


_NO_EPOCH = _digest_of_epoch(b"")


def _encode(head: bytes, offset: int) -> bytes:
    """One topic's part of a vector."""
    kind = _kind_of(offset)
    size = _OFFSET_SIZES[kind]
    data = head + (kind << 8 * size - 2 | offset).to_bytes(size, "big")
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL)


def _kind_of(offset: int) -> int:
    """Which of the sizes an offset takes; one is 18 digits at most, which are 60 bits."""
    return 0 if offset < 1 << 14 else 1 if offset < 1 << 38 else 2


def _read_offset(data: bytes, at: int) -> tuple[int, int]:
    """The offset that begins here, and where it ends; -1 when there is none, or it is not as we write it."""
    kind = data[at] >> 6 if at < len(data) else 3
    if kind >= len(_OFFSET_SIZES):
        return -1, at
    size = _OFFSET_SIZES[kind]
    offset = int.from_bytes(data[at : at + size], "big") & (1 << 8 * size - 2) - 1
    is_ours = at + size <= len(data) and kind == _kind_of(offset)
    return (offset if is_ours else -1), at + size
