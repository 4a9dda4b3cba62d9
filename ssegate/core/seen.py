"""Which deliveries have been taken already."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

MOST = 100_000
"""How many ids are remembered at most; the oldest give way."""


class Seen:
    """The ids of deliveries that were stored, for as long as a sender may repeat them.

    An id is kept as a digest of 16 bytes, so what a sender writes into it does not decide how much is kept.
    """

    __slots__ = ("_age", "_times")

    def __init__(self, age: float) -> None:
        """`age`: seconds an id is remembered."""
        self._age = age
        self._times: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def knows(self, id_: str, now: float) -> bool:
        """Whether it was taken, and not too long ago."""
        taken = self._times.get(_digest(id_))
        return taken is not None and now - taken <= self._age

    def add(self, id_: str, now: float) -> None:
        """It has been taken."""
        digest = _digest(id_)
        self._times[digest] = now
        self._times.move_to_end(digest)
        while len(self._times) > MOST or now - next(iter(self._times.values())) > self._age:
            self._times.popitem(last=False)


def _digest(id_: str) -> bytes:
    return blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest()
