"""Who has been put out: what they showed until then is good no more, what they are given afterwards is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ssegate.core.principal import Principal

MOST = 100_000
"""Viewers, and credentials, that are remembered; the oldest give way."""


class Revocations:
    """What has been revoked since the process began."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, int] = OrderedDict()
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self.number = 0
        """How many there have been."""

    def revoke(self, identity: str, keys: Iterable[bytes], wall: float) -> None:
        """Put somebody out. `keys` are digests of the credentials that are known to be theirs; `wall` is the time of day."""
        self.number += 1
        self._numbers[identity] = self.number
        self._numbers.move_to_end(identity)
        self._times[identity] = max(int(wall), self._times.get(identity, 0))
        self._times.move_to_end(identity)
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        for known in (self._times, self._keys, self._numbers):
            while len(known) > MOST:
                known.popitem(last=False)

    def covers(self, principal: Principal) -> bool:
        """Whether this credential was revoked: it is one of the known ones, or was issued before.

        Times of issue are whole seconds: one issued in the same second, and not known, was issued afterwards. So is one that does
        not say when.
        """
        if principal.shown in self._keys:
            return True
        if principal.identity is None or principal.issued is None:
            return False
        time = self._times.get(principal.identity)
        return time is not None and principal.issued < time

    def catch_up(self, principal: Principal, number: int) -> None:
        """This was found out by somebody who was asked when there had been so many revocations: if its bearer was put out since,
        it was one of the credentials that were shown before."""
        if principal.identity is not None and self._numbers.get(principal.identity, 0) > number:
            self._keys[principal.shown] = None
