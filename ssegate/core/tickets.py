"""Tickets: a right to open one stream, once, for clients that can show no other credential.

An `EventSource` reconnects with the same URL, so a used ticket is good again for who can say what its stream was sent last; nobody
else can, and not while that stream is open.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from ssegate.core.journal import Position

R = TypeVar("R")

BLANK = "0-0"
"""The id that a stream begins with whose topic has had no event yet: it is the cursor of nobody else."""

LIFE = 30.0
"""Seconds within which a ticket is used first."""

GONE = 300.0
"""Seconds for which a stream may have been gone before its ticket is no good any more."""

MOST = 100_000
"""Tickets at once; the oldest gives way."""


class Ticket(Generic[R]):
    """One ticket that was sold."""

    __slots__ = ("_has_sent", "_until", "is_open", "key", "number", "path", "right")

    def __init__(self, path: str, right: R, key: bytes, number: int, until: float) -> None:
        self.key = key
        """Of the right."""
        self.number = number
        """Grows from ticket to ticket."""
        self.path = path
        """The path whose stream it opens."""
        self.right = right
        """What it stands for."""
        self.is_open = False
        """Whether its stream is open, or is being opened."""
        self._until = until
        self._has_sent: Callable[[str], bool] | None = None

    def is_over(self, now: float) -> bool:
        """Whether it will never be good again."""
        return not self.is_open and now >= self._until

    @property
    def is_used(self) -> bool:
        """Whether a stream has been opened with it."""
        return self._has_sent is not None

    def fault(self, path: str, cursor: str | None, now: float) -> str:
        """Why it opens no stream at this path now, for the operator; empty when it does."""
        if path != self.path:
            return "the ticket is for another path"
        if self.is_open:
            return "the ticket's stream is open"
        if self.is_over(now):
            return "the ticket has run out"
        if self._has_sent is not None and (cursor is None or not self._has_sent(cursor)):
            return "the ticket was used, and its stream has not been sent this Last-Event-ID"
        return ""

    def put_back(self) -> None:
        """No stream came of it."""
        self.is_open = False

    def leave(self, has_sent: Callable[[str], bool], now: float) -> None:
        """Its stream has ended; `has_sent` says of a cursor whether it was sent there."""
        self.is_open = False
        self._has_sent = has_sent
        self._until = now + GONE


class TicketOffice(Generic[R]):
    """All tickets that may still be good. They are known by a digest."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[bytes, Ticket[R]] = OrderedDict()
        self._numbers = count(1)
        self._void: OrderedDict[bytes, int] = OrderedDict()
        """By the key of a right that has ended: up to which number its tickets are good no more."""

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket[R]]:
        return iter(self._tickets.values())

    def sell(self, text: str, path: str, right: R, key: bytes, now: float) -> None:
        """Sell a ticket; `text` is random, and told to the buyer alone. `key`: of the right. `now`: monotonic, seconds."""
        self._sweep(now)
        self._tickets[_digest(text)] = Ticket(path, right, key, next(self._numbers), now + LIFE)

    def void(self, key: bytes) -> None:
        """A right has ended: no ticket that was sold for it is good any more."""
        self._void[key] = next(self._numbers)
        self._void.move_to_end(key)
        if len(self._void) > MOST:
            self._void.popitem(last=False)

    def _sweep(self, now: float) -> None:
        """Let go of some that are over; there are never many more than are good."""
        for _ in range(4):
            if not self._tickets:
                return
            key, oldest = next(iter(self._tickets.items()))
            if oldest.is_over(now) or (len(self._tickets) >= MOST and not oldest.is_open):
                del self._tickets[key]
            else:
                self._tickets.move_to_end(key)

    def take(self, text: str, path: str, cursor: str | None, now: float) -> Ticket[R] | str:
        """The ticket, which is open from now on, until `put_back` or `leave`; or why it is not good."""
        ticket = self._tickets.get(_digest(text))
        if ticket is None:
            return "the ticket is not known, or has run out"
        if ticket.number < self._void.get(ticket.key, 0):
            return "the right that the ticket was bought for has ended"
        if fault := ticket.fault(path, cursor, now):
            return fault
        ticket.is_open = True
        return ticket


@dataclass(frozen=True, slots=True)
class Span:
    """What one reader has been sent of a topic: from where it began to where it stood at last."""

    begin: Position
    end: Position

    def covers(self, cursor: str) -> bool:
        """Whether this is the id of something in it, or of where it began."""
        position = Position.parse(cursor)
        if position is None:
            return False
        if self.begin.epoch == self.end.epoch:
            return position.epoch == self.end.epoch and self.begin.offset <= position.offset <= self.end.offset
        # The numbering began anew meanwhile, and nobody knows how far it had come.
        if position.epoch == self.begin.epoch:
            return position.offset >= self.begin.offset
        return position.epoch == self.end.epoch and position.offset <= self.end.offset


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
