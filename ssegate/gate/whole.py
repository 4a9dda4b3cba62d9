"""A topic in one JSON answer: its state, or what is kept of its events; as it is, or as soon as there is something new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from ssegate.config.values import DURATIONS, ValueFault, read_duration_or_zero
from ssegate.core.event import encode_text
from ssegate.core.headers import Pair
from ssegate.core.hub import EARLIEST, Subscriber, Topic
from ssegate.core.journal import Form, Position
from ssegate.core.shape import json_events, json_value
from ssegate.edge.exchange import Answer, problem
from ssegate.errors import RejectedError
from ssegate.gate.topics import Topics

LONGEST_WAIT = 60.0
"""Seconds a request is held at most, however long it asks for: networks in between give up on longer ones."""

_HEADERS: tuple[Pair, ...] = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


def read_wait(text: str | None) -> float:
    """Seconds, out of `?wait=30s`; 0 when it is not asked for. Raises `RejectedError` 400."""
    if text is None:
        return 0.0
    try:
        return min(read_duration_or_zero(text), LONGEST_WAIT)
    except ValueFault:
        raise RejectedError(400, f"`wait` is not a duration; write {DURATIONS}") from None


def answer_whole(
    topics: Topics,
    topic: Topic,
    cursor: str | None,
    wait: float,
    shared: tuple[Pair, ...],
    sit: Callable[[Subscriber], None],
) -> Answer | Awaitable[Answer]:
    """What there is behind the cursor. With `wait` seconds it is waited for, and 204 when nothing came. `sit` is told of the reader
    that waits."""
    if topic.settings.form is Form.EVENTS:
        reader: _Whole = _Events(topics, topic, cursor or EARLIEST, shared)
    else:
        reader = _State(topics, topic, cursor, shared)
    if wait and not reader.has_news and not topic.is_over:
        return reader.wait(wait, sit)
    return reader.answer_now(is_long_poll=wait > 0)


class _Whole:
    """One reader, for one answer."""

    def __init__(self, topics: Topics, topic: Topic, cursor: str | None, shared: tuple[Pair, ...]) -> None:
        self._topics = topics
        self._topic = topic
        self._cursor = cursor
        self._shared = shared
        self._news = asyncio.Event()

    @property
    def has_news(self) -> bool:
        """Whether there is anything the client has not got yet."""
        raise NotImplementedError

    def answer(self) -> Answer:
        """What there is."""
        raise NotImplementedError

    def answer_now(self, *, is_long_poll: bool) -> Answer:
        """What there is; 204 for who has all of it and waits for more, and for what has ended without a state."""
        if is_long_poll and not self.has_news:
            return Answer(204, (*self._told(), *self._shared))
        return self.answer()

    async def wait(self, seconds: float, sit: Callable[[Subscriber], None]) -> Answer:
        """Wait until there is something new, or it is over, or the gate closes its streams."""
        subscriber = self._join()
        sit(subscriber)
        subscriber.wake = self._news.set
        try:
            async with asyncio.timeout(seconds):
                while not (self.has_news or self._topic.is_over or subscriber.is_closed):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass  # what has come in this moment is told all the same
        finally:
            self._topics.unsubscribe(subscriber)
        if subscriber.is_closed and not self.has_news:
            return problem(503, "this is closing; come back later", ((b"retry-after", b"5"), *self._shared))
        return self.answer_now(is_long_poll=True)

    def _join(self) -> Subscriber:
        """Be somebody for whom the topic is watched."""
        return self._topics.subscribe(self._topic, None).subscriber

    def _told(self) -> tuple[Pair, ...]:
        """Where the client stands now, and whether anything will ever follow."""
        epoch = self._topic.journal.epoch
        cursor = ((b"ssegate-cursor", f"{epoch}-{self._place}".encode()),) if epoch else ()
        return (*cursor, (b"ssegate-ended", b"yes")) if self._topic.is_over else cursor

    @property
    def _place(self) -> int:
        """The offset of the last event that is in the answer."""
        return self._topic.journal.head

    @property
    def _has_all(self) -> bool:
        """Whether the client's cursor is where the answer would end."""
        position = None if self._cursor is None else Position.parse(self._cursor)
        journal = self._topic.journal
        return (
            position is not None and position.epoch == journal.epoch and self._place <= position.offset <= journal.head
        )


class _State(_Whole):
    """The state of a topic that has one."""

    @property
    def has_news(self) -> bool:
        return self._topic.journal.has_state and not self._has_all

    @property
    def _place(self) -> int:
        # An event stream that is opened here gets what follows the state: changes whose state has not come yet, and the end.
        return self._topic.journal.state_offset

    def answer(self) -> Answer:
        journal = self._topic.journal
        if not journal.has_state and self._topic.is_over:
            return Answer(204, (*self._told(), *self._shared))
        if not journal.has_state:
            again = (b"retry-after", b"2")
            fact = "the upstream is in trouble" if self._topic.fault is not None else "the upstream has not answered"
            return problem(503, f"there is no state yet: {fact}", (again, *self._shared))
        return Answer(200, (*_HEADERS, *self._told(), *self._shared), encode_text(json_value(journal.state)))


class _Events(_Whole):
    """The events of a topic, in a list."""

    @property
    def has_news(self) -> bool:
        journal = self._topic.journal
        if self._cursor == EARLIEST:
            return len(journal) > 0
        return not self._has_all and bool(journal.epoch)

    def answer(self) -> Answer:
        opening = self._topics.subscribe(self._topic, self._cursor)
        try:
            parts = [opening.data, *iter(partial(opening.subscriber.read, 1 << 30), b"")]
        finally:
            self._topics.unsubscribe(opening.subscriber)
        body = f"[{','.join(json_events(b''.join(parts)))}]"
        return Answer(200, (*_HEADERS, *self._told(), *self._shared), encode_text(body))
