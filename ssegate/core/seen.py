"""Which deliveries have been taken already."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

MOST = 100_000
"""How many ids are remembered at most; the oldest give way."""


SHORT = 80
"""Characters of an id that is kept as it is: a UUID has 36."""


class Seen:
    """The ids of deliveries that were stored, for as long as a sender may repeat them.

    A long id is kept as a digest, so what a sender writes into it does not decide how much is kept.
    """

    __slots__ = ("_age", "_times")

    def __init__(self, age: float) -> None:
        """`age`: seconds an id is remembered."""
        self._age = age
        self._times: OrderedDict[str | bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def knows(self, id_: str, now: float) -> bool:
        """Whether it was taken, and not too long ago."""
        taken = self._times.get(_short(id_))
        return taken is not None and now - taken <= self._age

    def add(self, id_: str, now: float) -> None:
        """It has been taken."""
        key = _short(id_)
        self._times[key] = now
        self._times.move_to_end(key)
        while len(self._times) > MOST or now - next(iter(self._times.values())) > self._age:
            self._times.popitem(last=False)


def _short(id_: str) -> str | bytes:
    if len(id_) <= SHORT:
        return id_
    return blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=32).digest()
