"""Many topics that one client reads as one stream: every event is called by its topic, and every id tells all places."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ssegate.core.event import Event, encode_event, encode_text
from ssegate.core.hub import READ_BYTES, Opening, Subscriber, Tally, Topic, TopicSettings
from ssegate.core.journal import Form
from ssegate.core.shape import Shape
from ssegate.core.vector import Places, Vector

TURN_BYTES = 4 * 1024
"""How much of one topic is taken before it is another's turn. The ids of a hundred topics make ten times as much of it."""

SLICE_BYTES = 16 * 1024
"""An event that is larger is given in slices: renamed whole, a document that all readers share would be copied for each."""

_END_TYPE = "end"
_NO_JOURNAL = TopicSettings(Form.EVENTS, max_events=1, max_age=0.0)


def rename(name: str, type_: str) -> str:
    """The type of a topic's event in a stream that joins several: the topic's name, and behind `#` the type if there is one."""
    return f"{name}#{type_}" if type_ else name


def _sleep_on() -> None:
    """What wakes nobody: there is nobody yet, or nobody any more."""


def _at_once(call: Callable[[], None]) -> None:
    call()


class Junction(Topic):
    """What an edge takes for the topic of a joined stream. It has one reader and no events of its own."""

    __slots__ = ("_join",)

    def __init__(self, join: Join) -> None:
        super().__init__("", _NO_JOURNAL, 0.0, Tally())
        self._join = join

    def lead(self, wake: Callable[[], None], shape: Shape | None = None) -> Subscriber:
        """See `Topic.lead`."""
        leader = _Leader(self._join, self, wake, shape)
        self.waiting.add(leader)
        return leader


class JoinedSubscriber(Subscriber):
    """The reading place of a joined stream, as an edge knows it: there are many behind it."""

    __slots__ = ("_join",)

    def __init__(self, join: Join, topic: Junction, wake: Callable[[], None], shape: Shape | None = None) -> None:
        super().__init__(topic, 0, wake, shape)
        self._join = join

    @property
    def is_closed(self) -> bool:
        """Whether the whole stream is to end though its topics go on; see `close`."""
        return self._join.is_closed

    @property
    def is_over(self) -> bool:
        """Whether nothing will ever come after what has been read."""
        return self._join.is_over

    def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """See `Subscriber.read`. A large event comes in several pieces, and nothing between them."""
        while (data := self._join.read(max_bytes)) and self.shape is not None:
            if encoded := self.shape.encode(data):
                return encoded
        return data

    def follow(self, leader: Subscriber) -> None:
        """See `Subscriber.follow`: both read from one place."""
        self.leader = None

    def is_beside(self, other: Subscriber) -> bool:
        """See `Subscriber.is_beside`: both read from one place."""
        return True

    def say(self, data: bytes) -> None:
        """Tell the client something between two events, as it is: it is of no topic, and has no id."""
        self._join.say(data)

    def close(self, farewell: bytes = b"") -> None:
        """End the whole stream, with these last bytes as they are. A second call does nothing."""
        self._join.close(farewell)


class _Leader(JoinedSubscriber):
    """Reads for the client while it is live. There is one place: what this took while it lags would be written to nobody."""

    __slots__ = ()

    def read(self, max_bytes: int = READ_BYTES) -> bytes:
        return b"" if self._join.subscriber.leader is None else super().read(max_bytes)


class _Member:
    """One of the topics: who reads it, and what its events are called."""

    __slots__ = ("_join", "has_ended", "is_ready", "named", "number", "plain", "reader")

    def __init__(self, join: Join, name: str, number: int, reader: Subscriber) -> None:
        self.reader = reader
        self.number = number
        """Among the places."""
        self.plain = encode_text(f"event: {name}\n")
        """The line that names an event that had no name."""
        self.named = encode_text(f"event: {rename(name, '_')}")[:-1]
        """What stands before the name of one that had."""
        self.is_ready = True
        """Whether there may be something to read."""
        self.has_ended = False
        """Whether this reader was closed and its `end` has been told."""
        self._join = join

    def wake(self) -> None:
        """There is something to read."""
        self._join.mark(self)


class Join:
    """Several topics read as one, by one client.

    `add` and `refuse` topics, each name once, then give `opening` and `subscriber` to an edge. When the stream is over,
    `leave`. It has a reading place in each topic and no queue.
    """

    __slots__ = (
        "_aside", "_cursor", "_farewell", "_held", "_is_behind", "_is_refusing", "_is_waking", "_leave", "_members", "_open", "_openings",
        "_pieces", "_places", "_ready", "_schedule", "_topic", "is_closed", "subscriber",
    )  # fmt: skip

    def __init__(
        self,
        cursor: Vector | None = None,
        *,
        leave: Callable[[Subscriber], None] | None = None,
        schedule: Callable[[Callable[[], None]], object] = _at_once,
    ) -> None:
        """`cursor`: what the client came back with. `leave` is given each reader once, when it is over or the stream is; without
        it the `members` are all still there to be unsubscribed. `schedule` is given what wakes the client, to call it when all
        topics that have something have said so."""
        self.is_closed = False
        """Whether the stream is to end though its topics go on."""
        self._topic = Junction(self)
        self.subscriber = JoinedSubscriber(self, self._topic, _sleep_on)
        """The reading place that an edge is given. Its `shape` may be set before anything is read."""
        self._topic.waiting.add(self.subscriber)
        self._cursor = cursor
        self._leave = leave
        self._schedule = schedule
        self._members: dict[_Member, None] = {}
        self._places = Places()
        self._openings: deque[tuple[_Member | None, bytes]] = deque()  # still to be sent; of none: as it is
        self._ready: deque[_Member] = deque()
        self._pieces: Iterator[bytes] = iter(())  # of what has been taken of a topic and not been sent
        self._held = b""  # the piece that was too much for the last read
        self._aside = b""
        self._farewell = b""
        self._open = 0  # members that are not over
        self._is_behind = False  # whether there may be something to read
        self._is_refusing = False
        self._is_waking = False

    # The topics

    def add(self, name: str, opening: Opening) -> None:
        """Read a topic; `name` is what its events are called by. The opening is in the shape of an event stream.

        Raises `ValueError` when the name could forge a field: it is empty, or has CR, LF or NUL.
        """
        _check(name)
        reader = opening.subscriber
        assert reader.shape is None, "the joined stream is what has a shape"
        # Until its opening has been sent, the client stands there where it stood when it came.
        number = self._places.add(name, b"" if self._cursor is None else self._cursor.entry(name))
        if not opening.data:
            self._settle(number, reader)
        if opening.is_finished:
            return
        member = _Member(self, name, number, reader)
        reader.wake = member.wake
        self._members[member] = None
        self._ready.append(member)
        self._open += 1
        self._is_behind = True
        if opening.data:
            self._openings.append((member, opening.data))

    def refuse(self, name: str, data: str) -> None:
        """Tell that a topic is not read, by its own `end` with this data. Its place is kept for one who may read it again.

        Raises `ValueError` as `add` does.
        """
        _check(name)
        self._places.add(name, b"" if self._cursor is None else self._cursor.entry(name))
        self._openings.append((None, encode_event(Event(data, rename(name, _END_TYPE)))))
        self._is_behind = self._is_refusing = True

    def _settle(self, number: int, reader: Subscriber) -> None:
        """All up to this reader's place has been told. The epoch is the reader's own: its topic may have begun anew."""
        self._places.move(number, reader._epoch.encode(), reader.offset if reader._epoch else 0)

    @property
    def vector(self) -> str:
        """Where the client stands, as the id of an event; empty when no topic has had one."""
        return str(self._places)

    @property
    def members(self) -> Sequence[Subscriber]:
        """Those who read the topics; without those that have been given to `leave`."""
        return [member.reader for member in self._members]

    @property
    def is_finished(self) -> bool:
        """Whether the client has had the `end` of every topic: there is nothing to open a stream for."""
        return not self._members and not self._is_refusing

    def leave(self) -> None:
        """Let go of all topics: the stream is over. A second call does nothing."""
        members, self._members = self._members, {}
        leave, self._leave = self._leave, None
        self._openings.clear()
        self._ready.clear()
        self._pieces, self._held = iter(()), b""
        self._is_behind, self._open = False, 0
        for member in members:
            member.reader.wake = _sleep_on  # it and we hold each other, and its topic's history with us
            if leave is not None:
                leave(member.reader)

    # Waking

    def mark(self, member: _Member) -> None:
        """A topic has something to read, or its reader alone has."""
        if self.is_closed:
            return
        if not member.is_ready:
            member.is_ready = True
            self._ready.append(member)
        self._is_behind = True
        if member.reader.is_closed or member.reader._aside:
            self.subscriber.wake()  # as an edge is told by `close`: this is no event, and not late when its topic was quiet for hours
        elif not self._is_waking:
            self._is_waking = True
            self._schedule(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self._topic.wake()

    def say(self, data: bytes) -> None:
        """See `JoinedSubscriber.say`."""
        self._aside += data
        self._is_behind = True
        self.subscriber.wake()

    def close(self, farewell: bytes = b"") -> None:
        """See `JoinedSubscriber.close`."""
        if not self.is_closed:
            self._end(farewell)
            self.subscriber.wake()

    def _end(self, farewell: bytes) -> None:
        self.is_closed = self._is_behind = True
        self._farewell = farewell
        self._openings.clear()
        self._ready.clear()

    # Reading

    @property
    def is_over(self) -> bool:
        """Whether all topics are over, or the stream is closed, and everything has been read."""
        return not self._is_behind and (self.is_closed or not self._open)

    def opening(self, max_bytes: int = READ_BYTES) -> bytes:
        """What the topics' openings say, in the order they were added; asked for once. What is too much is read afterwards."""
        data = self._collect(max_bytes, self._next_opening)
        shape = self.subscriber.shape
        return data if shape is None else shape.encode(data)

    def read(self, max_bytes: int) -> bytes:
        """Take what comes next, as it is in an event stream; empty when there is nothing for now. See `JoinedSubscriber.read`."""
        if not self._is_behind:
            return b""
        data = self._collect(max_bytes, self._next)
        self._is_behind = bool(self._held or self._ready)
        return data

    def _collect(self, max_bytes: int, supply: Callable[[], Iterator[bytes] | None]) -> bytes:
        """Put pieces together: at least one if there is one, and if more then no more than `max_bytes`."""
        parts: list[bytes] = []
        size = 0
        while True:
            piece = self._held or next(self._pieces, b"")
            self._held = b""
            if not piece:
                pieces = supply()
                if pieces is None:
                    break
                self._pieces = pieces
            elif parts and size + len(piece) > max_bytes:
                self._held = piece
                break
            else:
                parts.append(piece)
                size += len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next(self) -> Iterator[bytes] | None:
        if self.is_closed:
            farewell, self._farewell = self._farewell, b""
            return iter((farewell,)) if farewell else None
        if self._aside:
            aside, self._aside = self._aside, b""
            return iter((aside,))
        return self._next_opening() or self._next_news()

    def _next_opening(self) -> Iterator[bytes] | None:
        if not self._openings:
            return None
        member, data = self._openings.popleft()
        return iter((data,)) if member is None else self._renamed(member, data)

    def _next_news(self) -> Iterator[bytes] | None:
        """What the topic whose turn it is has to tell; None when none has."""
        while self._ready:
            member = self._ready.popleft()
            member.is_ready = False
            if data := member.reader.read(TURN_BYTES):
                return self._take(member, data)
            if member.reader.is_over:
                self._part(member)
                if member.reader.is_closed and not member.has_ended:
                    self._end(b"")
                    return None
        return None

    def _take(self, member: _Member, data: bytes) -> Iterator[bytes]:
        reader = member.reader
        if reader.is_closed:
            member.has_ended = _tells_end(data)
            if not member.has_ended:
                # It is to come back (a drain, a guard that is down), and can only with the whole stream.
                self._end(b"")
                return iter((data,))
        self._topic.moved_at = max(self._topic.moved_at, reader.topic.moved_at)
        member.is_ready = True  # it may have more
        self._ready.append(member)
        return self._renamed(member, data)

    def _part(self, member: _Member) -> None:
        """Nothing comes of this topic any more. It is let go of at once, for the others may go on for days."""
        member.reader.wake = _sleep_on  # its topic may begin anew: for this client it has ended
        self._open -= 1
        if self._leave is not None:
            del self._members[member]
            self._leave(member.reader)

    def _renamed(self, member: _Member, data: bytes) -> Iterator[bytes]:
        """The blocks in this, each named by its topic and with the vector for its id. One that is large comes in slices.

        A block is as `encode_event` makes it: the type, the data, the id, and no empty line but the last.
        """
        end = data.find(b"\n\n")
        if end == len(data) - 2 and end < SLICE_BYTES and data.startswith((b"data: ", b"event: ")):
            # One event that has just come is what is read mostly.
            head, start, stop, tail = self._rename(member, data, 0, end)
            if not tail:
                self._settle(member.number, member.reader)
            return iter((b"%b%b%b" % (head, data[start:stop], tail),))
        return self._renamed_one_by_one(member, data)

    def _renamed_one_by_one(self, member: _Member, data: bytes) -> Iterator[bytes]:
        slice_bytes = (
            SLICE_BYTES if self.subscriber.shape is None else len(data)
        )  # another shape is made of whole blocks
        at = 0
        tail = b""
        while (end := data.find(b"\n\n", at)) >= 0:
            if (start := _behind_comments(data, at, end)) > at:
                yield data[at:start]
                at = start
                continue
            head, start, stop, tail = self._rename(member, data, at, end)
            if stop - start > slice_bytes:
                yield from _slices(head, data, start, stop)
                if tail:
                    yield tail
            else:
                yield b"%b%b%b" % (head, data[start:stop], tail)
            at = end + 2
        if at < len(data):
            yield data[at:]
        if not tail:  # else the last id has said it
            self._settle(member.number, member.reader)

    def _rename(self, member: _Member, data: bytes, at: int, end: int) -> tuple[bytes, int, int, bytes]:
        """What a block becomes: a head, what stays of it, from where to where, and a tail. The client is led behind its id."""
        if data.startswith(b"data: ", at):
            head, start = member.plain, at
        elif data.startswith(b"event: ", at):
            head, start = member.named, at + 7
        else:
            head, start = b"", at
        last = data.rfind(b"\n", start, end) + 1 or start
        if not data.startswith(b"id: ", last):
            return head, start, end + 2, b""
        epoch, _, offset = data[last + 4 : end].rpartition(b"-")
        self._places.move(member.number, epoch, int(offset))
        return head, start, last, b"id: %b\n\n" % self._places.encode()


def _check(name: str) -> None:
    if not name or any(character in name for character in "\r\n\0"):
        raise ValueError("a topic's name is not empty, and without CR, LF and NUL")


def _behind_comments(data: bytes, at: int, end: int) -> int:
    """Where the first field begins of a block that ends there, behind comments and `retry`."""
    while data.startswith((b":", b"retry:"), at):
        at = data.index(b"\n", at) + 1
    return at if at < end else end + 2


def _slices(head: bytes, data: bytes, start: int, stop: int) -> Iterator[bytes]:
    """What stands from here to there, and the head before it: no slice is larger than an edge writes at once."""
    first = start + SLICE_BYTES - len(head)
    yield head + data[start:first]
    for at in range(first, stop, SLICE_BYTES):
        yield data[at : min(at + SLICE_BYTES, stop)]


def _tells_end(data: bytes) -> bool:
    return data.startswith(b"event: end\n") or b"\n\nevent: end\n" in data
