"""Who reads what: the topics of this process, and every client's reading place in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from ssegate.core.event import Event, Kind, Update, encode_event
from ssegate.core.journal import Form, Journal, Position
from ssegate.core.shape import Shape

EARLIEST = "earliest"
"""The cursor that stands before all that is kept."""

READ_BYTES = 64 * 1024
"""How much a reader that is behind is given at once, so that a slow one holds no more than this."""

_RECOVERED = encode_event(Event("{}", "recovered"))
_END_TYPE = "end"


def encode_reset(reason: str) -> bytes:
    """Encode the control event that tells a client its cursor does not lead on from here."""
    return encode_event(Event(json.dumps({"reason": reason}, separators=(",", ":")), "reset"))


_RESET_GAP = encode_reset("gap")
_RESET_UNKNOWN = encode_reset("unknown-cursor")


class First(Enum):
    """What a newcomer to a topic of events gets of those that came before."""

    NOTHING = "nothing"
    LAST = "last"
    """The newest of them."""
    KEPT = "kept"
    """All that are kept."""


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What a topic's route says about its journal."""

    form: Form
    max_events: int
    max_age: float
    """Seconds."""
    max_size: int = 1 << 60
    """Bytes of all events together."""
    snapshot_type: str = ""
    """The type of the snapshot event on a topic of changes."""
    first: First = First.NOTHING
    """On a topic of events; on others a newcomer gets the state."""


@dataclass(slots=True)
class Tally:
    """What has happened on all topics of a hub since it began."""

    events: int = 0
    """Numbered events that came."""
    resets: int = 0
    """Readers told that they cannot be led on from where they stood."""
    faults: int = 0
    """Outages told."""


class Topic:
    """One ordered sequence of events, what is known of its upstream, and its readers."""

    __slots__ = (
        "_is_dirty", "_revocation", "_serial", "fault", "is_over", "is_watched", "journal", "key", "left_at", "moved_at", "quiet_since",
        "relief", "settings", "subscribers", "tally", "waiting",
    )  # fmt: skip

    def __init__(self, key: str, settings: TopicSettings, now: float, tally: Tally) -> None:
        self.key = key
        self.settings = settings
        self.tally = tally
        self.journal = Journal(
            settings.form, max_events=settings.max_events, max_age=settings.max_age, max_size=settings.max_size
        )
        self.subscribers: set[Subscriber] = set()
        """All clients that read this."""
        self.waiting: set[Subscriber] = set()
        """The reading places that are woken: those of all clients, but for those that have a leader, and the leaders."""
        self.fault: bytes | None = None
        """The encoded `fault` while the upstream is in trouble, else None."""
        self.is_over = False
        """Whether the last event is the topic's `end`."""
        self.is_watched = False
        """Whether a source is at work for it. Set by whoever starts and stops sources."""
        self.quiet_since = now
        """When the last event came or the last reader left."""
        self.moved_at = now
        """When the last update of any kind came."""
        self.left_at = 0
        """The offset up to which those who have left had read, at the furthest."""
        self.relief: Callable[[], None] | None = None
        """Called when somebody has read, for a source that has run ahead of its readers and waits."""
        self._serial = 0  # counts faults, so that a reader knows whether it was told of this one
        self._revocation: bytes | None = None
        self._is_dirty = False

    @property
    def ahead(self) -> int:
        """How many events the head is before the reader that is furthest, or was when the last one left."""
        return self.journal.head - max((reader.place for reader in self.subscribers), default=self.left_at)

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads it and nothing feeds it."""
        return not self.subscribers and not self.is_watched

    @property
    def is_revoked(self) -> bool:
        """Whether all its readers have lost their right to it."""
        return self._revocation is not None

    def receive(self, update: Update, position: Position, now: float) -> bool:
        """Take an update at its place; return whether the readers are to be woken, which is once until `wake`."""
        self.moved_at = now
        match update.kind:
            case Kind.FAULT:
                if self.fault is not None:
                    return False
                self._serial += 1
                self.tally.faults += 1
                self.fault = encode_event(Event(update.data, "fault"))
            case Kind.RECOVERED:
                if self.fault is None:
                    return False
                self.fault = None
            case Kind.REVOKED:
                self._revocation = encode_event(Event(update.data, _END_TYPE))
            case Kind.RESET:
                self.journal.restart(position)
            case Kind.EVENT | Kind.END:
                self.journal.append(update, position, now, self.settings.snapshot_type)
                self.tally.events += 1
                self.is_over = update.kind is Kind.END
                self.quiet_since = now
        was_dirty, self._is_dirty = self._is_dirty, True
        return not was_dirty

    def wake(self) -> None:
        """Tell everyone who waits that there is something to read."""
        self._is_dirty = False
        for subscriber in tuple(self.waiting):
            subscriber.wake()

    def lead(self, wake: Callable[[], None], shape: Shape | None = None) -> Subscriber:
        """A reading place at the head that stands for many: it reads once what all who follow it are sent.

        It is no client and not counted as one. Whoever made it takes it out of `waiting`.
        """
        leader = Subscriber(self, self.journal.head, wake, shape)
        self.waiting.add(leader)
        return leader


class Subscriber:
    """One client's reading place.

    `read` until it returns nothing; then, if `is_over`, the stream has ended, else `wake` is called when there is more.
    Whoever subscribed unsubscribes.
    """

    __slots__ = ("_aside", "_epoch", "_farewell", "_is_closed", "_told", "leader", "offset", "shape", "topic", "wake")

    def __init__(self, topic: Topic, offset: int, wake: Callable[[], None], shape: Shape | None = None) -> None:
        """`shape`: what is read is in; None is the event stream as it is kept."""
        self.topic = topic
        self.offset = offset
        """Everything up to this offset has been read; while there is a leader, its own offset counts."""
        self.wake = wake
        self.shape = shape
        self.leader: Subscriber | None = None
        """Who reads for this client at the moment."""
        self._epoch = topic.journal.epoch
        self._told = 0  # the serial of the fault this reader has been told of and not yet of its end; 0 is none
        self._aside = b""  # what is told to this reader alone
        self._farewell: bytes | None = None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether its stream is to end though the topic goes on; see `close`."""
        return self._is_closed

    @property
    def place(self) -> int:
        """The offset up to which everything has been read, by itself or by its leader."""
        return self.offset if self.leader is None else self.leader.offset

    @property
    def position(self) -> Position:
        """The same with the topic's numbering as this reader knows it; of a topic without an event its epoch is empty."""
        return Position(self._epoch if self.leader is None else self.leader._epoch, self.place)

    def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """Take what comes next, at least one event if there is one; empty when there is nothing for now."""
        data = self._read(max_bytes)
        if self.topic.relief is not None:
            self.topic.relief()
        return data if self.shape is None or not data else self.shape.encode(data)

    def _read(self, max_bytes: int) -> bytes:
        if self._is_closed:
            farewell, self._farewell = self._farewell, None
            return farewell or b""
        if self._aside:
            aside, self._aside = self._aside, b""
            return aside
        topic = self.topic
        if self._told == 0 and topic.fault is None and not topic.is_revoked:
            return self._read_events(max_bytes)
        return self._read_in_trouble(max_bytes)

    def _read_events(self, max_bytes: int) -> bytes:
        journal = self.topic.journal
        if self._epoch != journal.epoch or not journal.keeps(self.offset):
            return self._start_over(max_bytes)
        data, self.offset = journal.read(self.offset, max_bytes)
        return data

    def _start_over(self, max_bytes: int) -> bytes:
        """The ring has passed this reader: it is told so, and gets the state, or goes on with what is kept."""
        journal = self.topic.journal
        came_before_the_first = not self._epoch and journal.keeps(journal.origin)
        self._epoch = journal.epoch
        if came_before_the_first:
            self.offset = journal.origin
            return self._read_events(max_bytes)
        self.topic.tally.resets += 1
        self.offset = journal.state_offset if journal.has_state else journal.first - 1
        return _RESET_GAP + journal.snapshot()

    def _read_in_trouble(self, max_bytes: int) -> bytes:
        """Read while the upstream is, or was, in trouble: `recovered` before what came after it, `fault` at the head."""
        topic = self.topic
        parts = []
        if self._told and (topic.fault is None or self._told != topic._serial):
            self._told = 0
            parts.append(_RECOVERED)
        parts.append(self._read_events(max_bytes))
        if self.offset == topic.journal.head:
            if topic.fault is not None and not self._told and not topic.is_over:  # behind an `end` there is nothing
                self._told = topic._serial
                parts.append(topic.fault)
            if topic._revocation is not None:
                parts.append(topic._revocation)
                self._is_closed = True
        return b"".join(parts)

    def follow(self, leader: Subscriber) -> None:
        """Stand where the leader stands, who has read for this client so far; from now on it reads by itself."""
        self.leader = None
        self.offset, self._epoch, self._told = leader.offset, leader._epoch, leader._told
        self._is_closed = self._is_closed or leader._is_closed  # it has read the end of their right to this

    def is_beside(self, other: Subscriber) -> bool:
        """Whether both have been given the same of their topic, so that one may read for the other."""
        return (self.offset, self._epoch, self._told) == (other.offset, other._epoch, other._told)

    @property
    def is_over(self) -> bool:
        """Whether nothing will ever come after what has been read."""
        if self._is_closed:
            return self._farewell is None
        return self.topic.is_over and self.offset == self.topic.journal.head

    def say(self, data: bytes) -> None:
        """Tell this reader alone something, between two events: whole blocks without an id."""
        self._aside += data
        self.wake()

    def close(self, farewell: bytes = b"") -> None:
        """End this reader's stream, with these last bytes; the topic goes on for others. A second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._farewell = self._aside + farewell or None
            self._aside = b""
            self.wake()


@dataclass(frozen=True, slots=True)
class Opening:
    """How a new reader begins."""

    subscriber: Subscriber
    data: bytes
    """What it is sent before it begins to read."""
    is_resumed: bool
    """Whether it goes on exactly where its cursor stood."""
    is_finished: bool
    """Whether the cursor is the `end` of a topic that is over: there is nothing to open a stream for."""


class Hub:
    """The topics of this process by key, and who reads them."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self.tally = Tally()

    def __len__(self) -> int:
        return len(self._topics)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def get(self, key: str) -> Topic | None:
        """The topic, if it is known here."""
        return self._topics.get(key)

    def open(self, key: str, settings: TopicSettings, now: float) -> Topic:
        """The topic; made if it is not known."""
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(key, settings, now, self.tally)
        return topic

    def drop(self, key: str) -> None:
        """Forget a topic. Its readers, if any, must have been closed."""
        self._topics.pop(key, None)

    def deliver(self, update: Update, position: Position, now: float) -> Topic | None:
        """Take an update from the broker; return the topic when its readers are to be woken.

        An update of a topic nobody opened here is dropped: it has no reader and no journal.
        """
        topic = self._topics.get(update.topic)
        return topic if topic is not None and topic.receive(update, position, now) else None

    def subscribe(
        self,
        topic: Topic,
        cursor: str | None,
        now: float,
        wake: Callable[[], None],
        shape: Shape | None = None,
        since: Position | None = None,
    ) -> Opening:
        """Give a client its reading place: behind its cursor where that is possible, else from the start, told by `reset`.

        `cursor` is the last event id as the client sent it, `earliest`, or None for a newcomer. What the opening has, and
        what is read, is in this shape. A newcomer who has been here `since` a place gets the events that came meanwhile.
        """
        journal = topic.journal
        journal.expire(now)
        if cursor is None:
            opening = self._welcome(topic, wake, since=since)
        elif cursor == EARLIEST:
            opening = self._walk(topic, wake)
        else:
            opening = self._resume(topic, cursor, wake)
        opening.subscriber.shape = shape
        if shape is not None and opening.data:
            opening = replace(opening, data=shape.encode(opening.data))
        if not opening.is_finished:
            topic.subscribers.add(opening.subscriber)
            topic.waiting.add(opening.subscriber)
        return opening

    def _welcome(
        self, topic: Topic, wake: Callable[[], None], told: bytes = b"", *, since: Position | None = None
    ) -> Opening:
        """A newcomer: the state if there is one; of events as many as the topic says; the `end` if it is over."""
        journal, first = topic.journal, topic.settings.first
        if first is First.KEPT and topic.settings.form is Form.EVENTS:
            return self._walk(topic, wake, told)
        news = journal.head - 1 if topic.is_over else journal.head
        if first is First.LAST:
            news = max(journal.first, news) - 1 if len(journal) else news
        if since is not None:
            seen = since.offset if since.epoch == journal.epoch else journal.origin if not since.epoch else news
            news = max(journal.first - 1, min(news, seen))
        offset = journal.state_offset if journal.has_state else news
        return Opening(Subscriber(topic, offset, wake), told + journal.snapshot(), is_resumed=False, is_finished=False)

    def _walk(self, topic: Topic, wake: Callable[[], None], told: bytes = b"") -> Opening:
        """All that is kept. On a topic of changes that needs an unbroken row from the first."""
        journal, form = topic.journal, topic.settings.form
        if form is Form.CHANGES and not journal.keeps(journal.origin):
            return self._welcome(topic, wake, told)
        offset = journal.first - 1
        if form is not Form.EVENTS and journal.size <= READ_BYTES + len(journal.snapshot()):
            # Read one by one, states and changes would be replaced by the newest state.
            told += journal.kept()
            offset = journal.head
        return Opening(Subscriber(topic, offset, wake), told, is_resumed=False, is_finished=False)

    def _resume(self, topic: Topic, cursor: str, wake: Callable[[], None]) -> Opening:
        journal = topic.journal
        position = Position.parse(cursor)
        if position is None or position.epoch != journal.epoch or position.offset > journal.head:
            return self._reset(topic, _RESET_UNKNOWN, wake)
        if not journal.keeps(position.offset):
            return self._reset(topic, _RESET_GAP, wake)
        is_finished = topic.is_over and position.offset == journal.head
        return Opening(Subscriber(topic, position.offset, wake), b"", is_resumed=True, is_finished=is_finished)

    def _reset(self, topic: Topic, told: bytes, wake: Callable[[], None]) -> Opening:
        self.tally.resets += 1
        if topic.settings.form is Form.EVENTS:
            return self._walk(topic, wake, told)
        return self._welcome(topic, wake, told)

    def unsubscribe(self, subscriber: Subscriber, now: float) -> None:
        """Take a reader away; calling it twice does nothing."""
        topic = subscriber.topic
        if subscriber in topic.subscribers:
            topic.subscribers.remove(subscriber)
            topic.waiting.discard(subscriber)
            topic.quiet_since = now
            topic.left_at = max(topic.left_at, subscriber.place)

    def expired(self, now: float) -> list[Topic]:
        """The topics that are idle and have been quiet for longer than their history is kept."""
        return [t for t in self if t.is_idle and now - t.quiet_since > t.settings.max_age]

    def longest_idle(self) -> Topic | None:
        """The idle topic that has been quiet longest, to make room; None when all are in use."""
        return min((t for t in self if t.is_idle), key=lambda t: t.quiet_since, default=None)
