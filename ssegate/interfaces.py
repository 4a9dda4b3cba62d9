"""What may be plugged into the gate: sources, receivers, brokers and detectors. Read this file first.

    legacy API ─▶ Source ──Update──▶ Broker ──Update at a Position──▶ Hub ──bytes──▶ Edge ─▶ browsers

A `Source` or a `Receiver` says what happened (`Update`), a `Broker` puts it in order (`Position`), the hub's journals
keep it encoded, an edge writes it out. These protocols do not grow: further powers are further protocols of one method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from ssegate.core.delivery import Message
from ssegate.core.detect import Detector as Detector
from ssegate.core.event import Update
from ssegate.core.journal import Position

Publish = Callable[[Update], Awaitable[None]]
"""Given to a source. Returns once the broker has accepted the update; raises `BrokerError` when it did not."""

Deliver = Callable[[Update, Position], None]
"""Given to a broker. Called in topic order, on the event loop; never blocks and never raises."""


class Source(Protocol):
    """Watches one upstream by itself, for one topic."""

    async def run(self, publish: Publish) -> None:
        """Watch until cancelled, or until the topic is over.

        A misbehaving upstream is this method's own business: it backs off, says so with a `fault`, and tries again. What
        escapes from here is a defect. A `BrokerError` from `publish` is retried here too: the change is not forgotten.
        """
        ...


class Receiver(Protocol):
    """A source that is called: a webhook."""

    def receive(self, message: Message) -> Sequence[Update]:
        """Turn one message of a delivery that has been found authentic into updates; none is one that matters to nobody.

        Pure. Raises `RejectedError` with the status to answer; nothing was published then.
        """
        ...


class Broker(Protocol):
    """Orders, stores and spreads updates."""

    async def start(self, deliver: Deliver) -> None:
        """Connect; from now on `deliver` is called for each update of every topic, in the topic's order.

        Called once, before any other method. Raises `BrokerError` when the engine behind it cannot be reached.
        """
        ...

    async def publish(self, update: Update) -> Position:
        """Store the update and give it its place; it is stored and ordered before this returns.

        An update that takes no offset (`is_numbered` is false) is spread in order too and gets the head's position; a `RESET`
        gets the place before the first event of a new epoch, and what was stored of the topic before is no longer replayed.
        Raises `BrokerError` when it could not be stored: then it was delivered to nobody.
        """
        ...

    async def replay(self, topic: str, after: Position, limit: int) -> Sequence[tuple[Update, Position]]:
        """The stored updates of a topic behind a position, oldest first, at most `limit`; empty when there are none."""
        ...

    async def aclose(self) -> None:
        """Let go of everything. No `deliver` comes after this."""
        ...


class Forgets(Protocol):
    """An optional power of a broker: it may drop what it keeps of a topic that no one needs any more."""

    def forget(self, topic: str) -> None:
        """Drop the topic's numbering; if it is published to again it begins with a new epoch. Unknown topics are fine."""
        ...


class Statistics(Protocol):
    """An optional power of anything: figures for metrics, read when asked for."""

    def statistics(self) -> Mapping[str, float]:
        """Names and current values."""
        ...
