"""Who asks for a stream, and what is kept of one that is open."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssegate.auth.guard import Granted
from ssegate.core.event import encode_retry
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import Subscriber
from ssegate.core.journal import Position
from ssegate.core.principal import Principal
from ssegate.core.routing import parse_query
from ssegate.core.shape import EVENT_STREAM
from ssegate.core.tickets import Ticket
from ssegate.edge.exchange import Answer, Request, problem
from ssegate.gate.door import TICKET_FIELD, Asked, Sold
from ssegate.gate.rights import Seat, Still
from ssegate.gate.routes import Table

if TYPE_CHECKING:
    from ssegate.gate.streams import Streams

CURSOR_HEADER = "last-event-id"
CURSOR_FIELDS = ("lastEventId", "last_event_id", "Last-Event-ID")
"""Query parameters that carry the cursor where a client cannot set the header, the best first."""

STREAM_HEADER = b"ssegate-stream"
"""The answer header that names a stream that belongs to one request."""

COMEBACK = (5.0, 15.0)
"""Seconds within which a client that is turned away for now comes back, at random."""

HasSent = Callable[[], Callable[[str], bool]]


@dataclass(slots=True)
class Viewer:
    """Who asks for an event route, and how. It is changed once, when it has been let in; being copied for that cost a tenth of what a
    guard costs (benchmarks/auth.py)."""

    request: Request
    address: str
    cursor: str | None
    """Where the client stood; None for a newcomer."""
    media: str
    """In which media type it is answered."""
    wait: float
    """Seconds for which it waits for news, where it wants them in one answer."""
    shared: tuple[Pair, ...]
    """Headers that go into whatever is answered."""
    table: Table
    """The configuration that was in force when it came."""
    granted: Granted | None = None
    """As whom it was let in, where a guard stands before the route."""
    ticket: Ticket[Sold] | None = None
    """By what it was let in, if it was that."""
    proven: str | None = None
    """The cursor by which a ticket was found to be good again."""
    since: Position | None = None
    """The place of the topic when the viewer came, where the upstream was waited for since then."""

    @property
    def is_event_source(self) -> bool:
        """Whether it may be an `EventSource`, which gives up for good on 5xx and comes back after a stream that has ended."""
        return self.media == EVENT_STREAM and self.request.method == "GET"

    @property
    def principal(self) -> Principal | None:
        """Who it is, where a guard stands before the route."""
        return None if self.granted is None else self.granted.principal

    @property
    def identity(self) -> str | None:
        """Who it is, where that is known."""
        return None if self.granted is None else self.granted.principal.identity

    @property
    def asked(self) -> Asked:
        """What is noted of it if it is refused."""
        path = self.request.target.partition(b"?")[0].decode("latin-1")
        # Whoever is refused is told of no stream, even where one was found before.
        shared = tuple(pair for pair in self.shared if pair[0] != STREAM_HEADER)
        return Asked(path, self.address, shared)


class Visit:
    """One client while its stream is open: what it counts for, what it reads, under which rights."""

    __slots__ = ("_address", "_identity", "_part", "_seats", "_streams", "_ticket", "has_sent")

    def __init__(self, streams: Streams, viewer: Viewer, part: Callable[[], None]) -> None:
        """`part` lets go of what it reads."""
        self.has_sent: HasSent | None = None
        """Made when it leaves, of what it has been sent then: by that its ticket is good again."""
        self._streams = streams
        self._address = viewer.address
        self._identity = viewer.identity
        self._ticket = viewer.ticket
        self._part = part
        self._seats: tuple[Seat, ...] = ()
        streams.enter(self._address, self._identity)

    def sit(self, granted: Granted, reader: Subscriber, stream: Subscriber, still: Still) -> None:
        """What is read by this reader is read under this right."""
        self._seats += (self._streams.rights.take(granted, reader, stream, still),)

    def close(self) -> None:
        """The stream is over; see `exchange.Stream.close`."""
        if self._ticket is not None:
            has_sent = nothing_sent if self.has_sent is None else self.has_sent()
            self._ticket.leave(has_sent, time.monotonic())
        for seat in self._seats:
            self._streams.rights.leave(seat)
        self._part()
        # An edge may hold its stream, and this with it, until the collector comes: its topic need not wait for that.
        self._part, self._seats, self.has_sent = _done, (), None
        self._streams.leave(self._address, self._identity)


def _done() -> None:
    """There is nothing left to let go of."""


def nothing_sent(cursor: str) -> bool:
    """Of a stream that no client can have a cursor of."""
    return False


def comeback() -> bytes:
    """What a client is told that is to come back, and when."""
    return encode_retry(round(random.uniform(*COMEBACK) * 1000))


def stream_headers(media: str) -> tuple[Pair, ...]:
    """What every stream's head says."""
    return (
        (b"content-type", media.encode()),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )


def no_room(shared: tuple[Pair, ...]) -> Answer:
    """What a client is told that is no `EventSource`."""
    again = (b"retry-after", b"%d" % random.uniform(*COMEBACK))
    return problem(503, "there is no room for this now; come back later", (again, *shared))


def read_cursor(headers: Headers, fields: list[tuple[str, str]], longest: int) -> str | None:
    """Where the client stood: the header, else the query; None for a newcomer."""
    values = headers.all(CURSOR_HEADER)
    cursor = values[-1] if values else ""
    for name in CURSOR_FIELDS:
        if not cursor:
            cursor = next((value for key, value in reversed(fields) if key == name), "")
    # What is too long is not ours, and is told so; `Position.parse` refuses it by its length too.
    return cursor[: longest + 1] or None


def without_ticket(target: bytes, mark: str = "") -> bytes:
    """A request's target as others may know it: without a ticket in its query, or one that begins with this mark."""
    path, sign, query = target.partition(b"?")
    if TICKET_FIELD.encode() not in query and b"%" not in query:
        return target
    kept = b"&".join(field for field in query.split(b"&") if not _is_ticket(field, mark))
    if len(kept) == len(query):
        return target
    return path + sign + kept if kept else path


def _is_ticket(field: bytes, mark: str) -> bool:
    """Also one that is written in another way: others decode it too."""
    length = len(field.partition(b"=")[0])
    if not len(TICKET_FIELD) <= length <= 3 * len(TICKET_FIELD):
        return False
    read = parse_query(field)
    return bool(read) and read[0][0] == TICKET_FIELD and read[0][1].startswith(mark)
