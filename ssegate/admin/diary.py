"""The last deliveries of webhooks and what became of them, in words for an operator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

from ssegate.core.delivery import Delivery

MOST = 200
"""How many deliveries are remembered."""

MOST_BYTES = 8 * 1024 * 1024
"""How much of them is kept for being delivered again, headers and bodies; the oldest give way."""

_LONGEST = 200
"""Characters of what a sender says of itself."""


@dataclass(slots=True)
class Outcome:
    """What becomes of a delivery. Made for each of thousands a second, so its words are put together when somebody reads them."""

    status: int = 200
    """What its sender is answered."""
    said: str = ""
    """Why it is no event, or was refused."""
    events: int = 0
    """How many events it became."""
    streams: int = 0
    """How many open streams it reached."""
    polls: int = 0
    """How many topics it made poll at once."""
    duplicates: int = 0
    """How many of its events had been taken before."""
    left_out: int = 0
    """How many of its events a route does not want."""
    kind: str = ""
    """What kind of event it is, in its sender's words."""
    id: str = ""
    """Its id, in its sender's words."""

    @property
    def is_taken(self) -> bool:
        """Whether a route has taken anything of it, now or before, or has chosen not to."""
        return bool(self.events or self.polls or self.duplicates or self.left_out)

    @property
    def words(self) -> str:
        """All of it for an operator."""
        parts = []
        if self.polls:
            parts.append(f"{_counted(self.polls, 'topic')} polled at once, for {_counted(self.streams, 'open stream')}")
        elif self.events:
            parts.append(f"{_counted(self.events, 'event')} to {_counted(self.streams, 'open stream')}")
        if self.duplicates:
            parts.append(f"taken before: {_counted(self.duplicates, 'event')} left out")
        if self.left_out:
            parts.append(
                f"{_counted(self.left_out, 'event')} left out: `when` is not true of it, or `emit.data` gives null"
            )
        if self.said:
            parts.append(self.said)
        return "; ".join(parts) or "it names nothing that is polled at the moment, and no event came of it"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(slots=True)
class Entry:
    """One delivery."""

    diary: str
    number: int
    at: float
    """When it came, in seconds since 1970."""
    path: str
    """The webhook's `at`."""
    outcome: Outcome
    size: int
    """Bytes of its body, as far as they were read."""
    delivery: Delivery | None
    """For being delivered again; None when it was never whole, is no delivery, or has given way."""
    repeats: str = ""
    """The entry it is a redelivery of."""

    @property
    def id(self) -> str:
        """By which it is asked for."""
        return f"{self.diary}-{self.number}"

    def shown(self) -> dict[str, object]:
        """As JSON, without anything secret: of headers, query and body nothing but what is named."""
        outcome = self.outcome
        facts: dict[str, object] = {
            "id": self.id,
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "webhook": self.path,
            "status": outcome.status,
            "outcome": outcome.words,
            "bytes": self.size,
            "event": outcome.kind or None,
            "delivery": outcome.id or None,
            "events": outcome.events,
            "streams": outcome.streams,
            "duplicates": outcome.duplicates,
            "redelivery_of": self.repeats or None,
            "can_be_redelivered": self.delivery is not None,
        }
        return {name: value for name, value in facts.items() if value is not None}


class Diary:
    """A ring of entries. What is needed to deliver one again is let go of sooner, where it is much."""

    def __init__(self, name: str) -> None:
        """`name` is random: an id of another process' diary is none of this one."""
        self._name = name
        self._count = 0
        self._entries: deque[Entry] = deque(maxlen=MOST)
        self._whole: deque[tuple[Entry, int]] = deque()
        """Those that can be delivered again, and how much of them is kept for that."""
        self._kept = 0

    def add(
        self, at: float, path: str, outcome: Outcome, size: int, delivery: Delivery | None = None, repeats: str = ""
    ) -> Entry:
        """Note a delivery; `at` is the time of day."""
        self._count += 1
        outcome.kind, outcome.id = outcome.kind[:_LONGEST], outcome.id[:_LONGEST]
        entry = Entry(self._name, self._count, at, path, outcome, size, delivery, repeats)
        self._entries.append(entry)
        if delivery is not None:
            weight = size + sum(map(len, chain.from_iterable(delivery.headers.raw)))
            self._whole.append((entry, weight))
            self._kept += weight
        while len(self._whole) > MOST or self._kept > MOST_BYTES:
            oldest, weight = self._whole.popleft()
            oldest.delivery = None
            self._kept -= weight
        return entry

    def get(self, id_: str) -> Entry | None:
        """The entry with this id, if it is still there."""
        return next((entry for entry in self._entries if entry.id == id_), None)

    def __iter__(self) -> Iterator[Entry]:
        """The newest first."""
        return reversed(self._entries)
