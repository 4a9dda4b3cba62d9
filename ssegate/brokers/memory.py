"""The default broker: orders updates within this process and stores nothing beyond it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ssegate.core.event import Kind, Update
from ssegate.core.journal import Position
from ssegate.errors import BrokerError
from ssegate.interfaces import Deliver


class MemoryBroker:
    """Numbers each topic's updates; nothing here suspends, so an update reaches its readers in the same loop turn.

    What is kept for replay is the journals' alone: after a restart every topic has a new epoch.
    """

    def __init__(self, make_epoch: Callable[[], str]) -> None:
        """`make_epoch` gives a new random name of letters and digits each time."""
        self._make_epoch = make_epoch
        self._heads: dict[str, Position] = {}
        self._deliver: Deliver | None = None

    async def start(self, deliver: Deliver) -> None:
        """See `interfaces.Broker`."""
        self._deliver = deliver

    async def publish(self, update: Update) -> Position:
        """See `interfaces.Broker`."""
        if self._deliver is None:
            raise BrokerError(f"publish to {update.topic}: the broker is not started, or is closed")
        head = self._heads.get(update.topic)
        if head is None or update.kind is Kind.RESET:
            head = Position(self._make_epoch(), 0)
        if update.is_numbered:
            head = Position(head.epoch, head.offset + 1)
        if update.is_numbered or update.kind is Kind.RESET:
            self._heads[update.topic] = head
        self._deliver(update, head)
        return head

    async def replay(self, topic: str, after: Position, limit: int) -> Sequence[tuple[Update, Position]]:
        """Always empty: see the class."""
        return ()

    def forget(self, topic: str) -> None:
        """See `interfaces.Forgets`."""
        self._heads.pop(topic, None)

    async def aclose(self) -> None:
        """See `interfaces.Broker`."""
        self._deliver = None
