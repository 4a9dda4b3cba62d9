"""Channels and their readers without sockets: whatever happens in whatever order, every reader gets its topic as it was."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from ssegate.core.event import Kind, Update
from ssegate.core.hub import Hub, Topic, TopicSettings
from ssegate.core.journal import Form, Position
from ssegate.edge.exchange import Stream
from ssegate.edge.latency import Latency
from ssegate.edge.native import fanout
from ssegate.edge.native.fanout import Channel, DirectReader, Parcel, Reader, chunk

PIECE = 256
"""What is written at once here; larger documents go to each reader in pieces."""

HEARTBEAT = 15.0
AGE = 3600.0
FAREWELL = b"retry: 7000\n\n"
PLENTY = 10**9


class Turns:
    """An event loop of which a test takes one callback at a time."""

    def __init__(self) -> None:
        self.now = 100.0
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self._ready.append((callback, arguments))

    def step(self) -> bool:
        """Run the next callback; False when there is none."""
        if not self._ready:
            return False
        callback, arguments = self._ready.popleft()
        callback(*arguments)
        return True

    @contextmanager
    def running(self) -> Iterator[None]:
        asyncio._set_running_loop(self)  # type: ignore[arg-type]  # the little of a loop that is used here
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Wire:
    """What a client takes: `room` bytes at once, and what is more waits in a transport until there is room again."""

    def __init__(self, room: int, full: Callable[[], None], drained: Callable[[], None]) -> None:
        self.room = room
        self.buffered = 0
        self.is_broken = False
        self._full = full
        self._drained = drained

    @property
    def is_paused(self) -> bool:
        return self.buffered > 0

    def put(self, size: int) -> int:
        """As the socket does: how much of it was taken."""
        assert not self.buffered, "bytes have overtaken those that wait in the transport"
        taken = min(size, self.room)
        self.room -= taken
        return taken

    def hand(self, size: int) -> None:
        """As the transport does."""
        was_paused = self.is_paused
        self.buffered += size if was_paused else size - self.put(size)
        if self.buffered and not was_paused:
            self._full()

    def open(self, size: int) -> None:
        """The client takes so much more."""
        left = min(self.buffered, size)
        self.buffered -= left
        self.room += size - left
        if left and not self.buffered:
            self._drained()


class Told:
    """What one reader was sent, and whether it makes sense."""

    def __init__(self, model: Model, at: int | None) -> None:
        self.data = bytearray()
        self.is_ended = False
        self._model = model
        self._first = at
        """Where it stood; None: it was to be told."""

    def add(self, data: bytes) -> None:
        assert not self.is_ended, "something was written behind the end"
        self.data += data

    def check(self) -> tuple[int | None, bool, bool]:
        """Where it stands now, whether it was told of trouble, and whether of the end. Fails when it was told nonsense."""
        at, is_in_trouble, is_over = self._first, False, False
        highest = at or 0
        for block in self._blocks():
            if block == FAREWELL.decode().strip():
                is_over = True  # also behind an `end` that was still being written when the drain began
                continue
            assert not is_over, f"{block!r} came behind the end"
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            match fields.get("event"):
                case "reset":
                    at = None
                case "fault":
                    assert not is_in_trouble
                    is_in_trouble = True
                case "recovered":
                    assert is_in_trouble
                    is_in_trouble = False
                case "end" if "id" not in fields:
                    is_over = True
                case kind:
                    at = self._model.check(fields, at, highest)
                    highest, is_over = at, kind == "end"
        return at, is_in_trouble, is_over

    def _blocks(self) -> Iterator[str]:
        *blocks, rest = self.data.decode().split("\n\n")
        assert not rest.replace(":\n", ""), f"an event was cut: {rest!r}"
        for block in blocks:
            while block.startswith(":\n"):
                block = block[2:]
            assert "\n:" not in block, "a heartbeat in the middle of an event"
            yield block


class Model:
    """What a topic's readers must be told."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.data: list[str] = [""]
        self.states: list[str | None] = [None]

    @property
    def head(self) -> int:
        return len(self.data) - 1

    def check(self, fields: dict[str, str], at: int | None, highest: int) -> int:
        """Whether this numbered event may come now; where its reader stands behind it."""
        offset = int(fields["id"].rpartition("-")[2])
        if fields.get("event") == "snapshot":
            assert (fields["data"], self.form) == (self.states[offset], Form.CHANGES)
            assert at is None or offset > at
            return offset
        assert fields["data"] == self.data[offset]
        assert offset > highest or at is None
        if at is not None and (self.form is not Form.STATES or fields.get("event") == "end"):
            assert offset == at + 1 or self.form is Form.STATES
        return offset


class Plain(DirectReader):
    """An HTTP/1.1 reader in plain text."""

    def __init__(self, stream: Stream, now: float, told: Told, fd: int, room: int) -> None:
        super().__init__(stream, now)
        self.fd = fd
        self.told = told
        self.wire = Wire(room, self.fall_behind, self.pump)

    def is_clogged(self) -> bool:
        return self.wire.is_paused

    def room(self) -> int:
        return 0 if self.wire.is_paused else PIECE

    def write(self, data: bytes) -> None:
        self.told.add(data)
        self.wire.hand(len(chunk(data)))

    def write_end(self) -> None:
        self.told.is_ended = True

    def hand_rest(self, rest: bytes) -> None:
        assert self.wire.room == 0
        self.wire.hand(len(rest))

    def break_off(self) -> None:
        asyncio.get_running_loop().call_soon(self.close)

    def enter(self, channel: Channel) -> None:
        assert not self.wire.is_paused, "a live reader whose client does not take what is written"
        channel.enter_direct(self)

    def leave(self, channel: Channel) -> None:
        channel.leave_direct(self.fd)


class Sole(Reader):
    """A reader that is its own target, as over TLS."""

    def __init__(self, stream: Stream, now: float, told: Told, room: int) -> None:
        super().__init__(stream, now)
        self.told = told
        self.wire = Wire(room, self.fall_behind, self.pump)

    def is_clogged(self) -> bool:
        return self.wire.is_paused

    def room(self) -> int:
        return 0 if self.wire.is_paused else PIECE

    def write(self, data: bytes) -> None:
        self.told.add(data)
        self.wire.hand(len(data))

    def write_end(self) -> None:
        self.told.is_ended = True

    def enter(self, channel: Channel) -> None:
        channel.enter_target(self)

    def leave(self, channel: Channel) -> None:
        channel.leave_target(self)

    def deliver(self, parcel: Parcel) -> int:
        self.write(parcel.data)
        return 1

    def readers(self) -> list[Reader]:
        return [self]


class Secured(Sole):
    """A reader whose transport the channel writes to: HTTP/1.1 over TLS."""

    def __init__(self, stream: Stream, now: float, told: Told, room: int) -> None:
        super().__init__(stream, now, told, room)
        self.transport = cast(asyncio.Transport, SimpleTransport(self))

    def enter(self, channel: Channel) -> None:
        assert not self.wire.is_paused, "a live reader whose client does not take what is written"
        channel.enter_transport(self.transport, self)

    def leave(self, channel: Channel) -> None:
        channel.leave_transport(self.transport)


class SimpleTransport:
    """The little of a transport that a channel knows."""

    def __init__(self, reader: Secured) -> None:
        self._reader = reader

    def write(self, data: bytes) -> None:
        self._reader.write(_unchunked(data))


class Shared:
    """A connection of many streams, with a window for each and one for all."""

    def __init__(self, room: int) -> None:
        self.wire = Wire(room, self._full, self._drained)
        self.window = 500
        self.streams: list[Streamed] = []
        self.bundles: dict[Channel, Together] = {}
        self._out = 0  # what leaves at the end of the turn

    def send(self, size: int, *, at_once: bool) -> None:
        """Behind what is to leave at the end of the turn, if there is such."""
        if at_once and not self._out and len(self.bundles) == 1:
            self.wire.hand(size)
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += size

    def _flush(self) -> None:
        size, self._out = self._out, 0
        self.wire.hand(size)

    def _full(self) -> None:
        for bundle in tuple(self.bundles.values()):
            for reader in bundle.readers():
                reader.fall_behind()

    def _drained(self) -> None:
        for reader in tuple(self.streams):
            reader.pump()

    def open(self, size: int) -> None:
        self.window += size
        self._drained()


class Together:
    """The live streams of one topic on a `Shared`."""

    def __init__(self, connection: Shared) -> None:
        self.connection = connection
        self.live: list[Streamed] = []

    def deliver(self, parcel: Parcel) -> int:
        live, connection = list(self.live), self.connection
        if min(connection.window // len(live), *(each.window for each in live)) < parcel.size:
            for each in live:
                each.fall_behind(parcel.data)
                each.pump()
        else:
            for each in live:
                each.debit(parcel.data)
            connection.send(parcel.size * len(live), at_once=True)
        return len(live)

    def readers(self) -> list[Reader]:
        return list(self.live)


class Streamed(Reader):
    """A stream of HTTP/2."""

    def __init__(self, stream: Stream, now: float, told: Told, connection: Shared) -> None:
        super().__init__(stream, now)
        self.told = told
        self.window = 200
        self.connection = connection
        connection.streams.append(self)

    def is_clogged(self) -> bool:
        return self.connection.wire.is_paused

    def room(self) -> int:
        return 0 if self.connection.wire.is_paused else max(0, min(self.window, self.connection.window))

    def debit(self, data: bytes) -> None:
        self.told.add(data)
        self.window -= len(data)
        self.connection.window -= len(data)
        assert min(self.window, self.connection.window) >= 0, "more was sent than the window allows"

    def write(self, data: bytes) -> None:
        self.debit(data)
        self.connection.send(len(data), at_once=False)

    def write_end(self) -> None:
        self.told.is_ended = True

    def close(self) -> None:
        if self in self.connection.streams:
            self.connection.streams.remove(self)
        super().close()

    def enter(self, channel: Channel) -> None:
        bundles = self.connection.bundles
        if channel not in bundles:
            bundles[channel] = Together(self.connection)
            channel.enter_target(bundles[channel])
        bundles[channel].live.append(self)

    def leave(self, channel: Channel) -> None:
        bundle = self.connection.bundles[channel]
        bundle.live.remove(self)
        if not bundle.live:
            del self.connection.bundles[channel]
            channel.leave_target(bundle)

    def open(self, size: int) -> None:
        self.window += size
        self.pump()


Any = Plain | Sole | Streamed


class Bed:
    """Two topics, their channels and readers, as an edge keeps them."""

    def __init__(self, forms: tuple[Form, ...], max_events: int) -> None:
        self.turns = Turns()
        self.hub = Hub()
        self.models = [Model(form) for form in forms]
        self.topics = [self._open(number, form, max_events) for number, form in enumerate(forms)]
        self.channels: dict[Topic, Channel] = {}
        self.counts = {"bytes": 0, "deliveries": 0}
        self.latency = Latency()
        self.shared = [Shared(300), Shared(PLENTY)]
        self.readers: list[Any] = []
        self.plain: dict[int, Plain] = {}

    def _open(self, number: int, form: Form, max_events: int) -> Topic:
        settings = TopicSettings(form, max_events, 1e6, snapshot_type="snapshot" if form is Form.CHANGES else "")
        return self.hub.open(f"topic-{number}", settings, 0.0)

    # In place of `os.write`

    def write(self, fd: int, data: bytes) -> int:
        reader = self.plain[fd]
        if reader.wire.is_broken:
            raise BrokenPipeError
        if not (taken := reader.wire.put(len(data))):
            reader.told.add(_unchunked(data))
            raise BlockingIOError
        reader.told.add(_unchunked(data))  # the rest of it must be handed over at once
        return taken

    # What happens

    def channel(self, topic: Topic) -> Channel:
        if topic not in self.channels:
            self.channels[topic] = Channel(topic, None, self.counts, self.latency, partial(self.channels.pop, topic))
        return self.channels[topic]

    def join(self, number: int, kind: str, cursor: int | None, room: int, *, is_early: bool) -> Any:
        topic, model = self.topics[number], self.models[number]
        now = self.turns.now
        text = None if cursor is None else f"{topic.journal.epoch or 'e'}-{cursor}"
        opening = self.hub.subscribe(topic, text, now, lambda: None)
        subscriber = opening.subscriber
        at = subscriber.offset if opening.is_resumed or (model.form is Form.EVENTS and cursor is None) else None
        told = Told(model, at)
        stream = Stream((), b"", subscriber, HEARTBEAT, max_age=AGE)
        stream.close = lambda: self.hub.unsubscribe(subscriber, self.turns.now)
        reader = self._make(kind, stream, told, room)
        self.readers.append(reader)
        begun = b""
        if len(opening.data) > PIECE:
            stream.state = opening.data
        elif is_early or kind == "streamed":
            begun = opening.data
        elif opening.data:
            reader.write(opening.data)  # with the head, whether there is room or not
        if opening.is_finished:
            stream.subscriber = reader.subscriber = None
            reader.begin(None, begun)
        else:
            reader.begin(self.channel(topic), begun)
        return reader

    def _make(self, kind: str, stream: Stream, told: Told, room: int) -> Any:
        now = self.turns.now
        if kind == "plain":
            reader = Plain(stream, now, told, len(self.plain), room)
            self.plain[reader.fd] = reader
            return reader
        if kind in ("sole", "secured"):
            return (Sole if kind == "sole" else Secured)(stream, now, told, room)
        return Streamed(stream, now, told, self.shared[room % len(self.shared)])

    def publish(self, number: int, size: int, kind: Kind = Kind.EVENT) -> None:
        topic, model = self.topics[number], self.models[number]
        if topic.is_over or topic.is_revoked:
            return
        offset = model.head + 1
        name = {Kind.EVENT: "patch" if model.form is Form.CHANGES else "", Kind.END: "end"}[kind]
        data = f"{offset}".ljust(size, "x")
        state = None
        if kind is Kind.EVENT and model.form is not Form.EVENTS:
            state = data if model.form is Form.STATES else f"state of {offset}"
        model.data.append(data)
        model.states.append(state)
        self._receive(topic, Update(topic.key, data, name, state, kind), Position("e", offset))

    def control(self, number: int, kind: Kind) -> None:
        topic = self.topics[number]
        if not topic.is_over and not topic.is_revoked:
            self._receive(topic, Update(topic.key, "{}", kind=kind), Position("e", 0))

    def _receive(self, topic: Topic, update: Update, position: Position) -> None:
        if topic.receive(update, position, self.turns.now):
            self.turns.call_soon(topic.wake)

    # The end

    def settle(self) -> None:
        """Let everybody take everything, until nothing happens any more."""
        for _ in range(3):
            while self.turns.step():
                pass
            for connection in self.shared:
                connection.wire.open(PLENTY)
                connection.open(PLENTY)
            for reader in self.readers:
                if isinstance(reader, Streamed):
                    reader.open(PLENTY)
                else:
                    reader.wire.open(PLENTY)
        while self.turns.step():
            pass

    def check_all(self, gone: set[Any], dismissed: set[Any]) -> None:
        """Whether every reader that is still there has been told all, and every other nothing wrong."""
        for reader in self.readers:
            is_broken = not isinstance(reader, Streamed) and reader.wire.is_broken
            if reader in gone or is_broken:
                continue
            at, is_in_trouble, is_over = reader.told.check()
            assert reader.is_over == reader.told.is_ended
            if reader in dismissed:
                assert reader.is_over
                continue
            assert is_over == reader.is_over or reader.subscriber is None
            if reader.subscriber is None:
                continue
            topic, model = reader.subscriber.topic, self.models[self.topics.index(reader.subscriber.topic)]
            if not topic.is_revoked or not is_over:
                assert (at or 0) == model.head or (at is None and not topic.journal.has_state)
            if not is_over:
                assert reader.is_live
                assert is_in_trouble == (topic.fault is not None)
            else:
                assert topic.is_over or topic.is_revoked

    def leave_all(self) -> None:
        for reader in self.readers:
            reader.close()
        while self.turns.step():
            pass
        assert not self.channels
        for topic in self.topics:
            assert not topic.waiting
            assert not topic.subscribers
        for connection in self.shared:
            assert not connection.bundles
            assert not connection.streams


def _unchunked(data: bytes) -> bytes:
    size, _, rest = data.partition(b"\r\n")
    assert rest[-2:] == b"\r\n"
    assert int(size, 16) == len(rest) - 2 > 0
    return rest[:-2]


@contextmanager
def small_steps(bed: Bed, batch: int) -> Iterator[None]:
    """Every batch is interrupted, documents are large from a few bytes on, and the sockets are those of the bed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "SLICE", 0.0)
        patch.setattr(fanout, "BATCH", batch)
        patch.setattr(fanout, "PIECE", PIECE)
        patch.setattr(fanout, "os", SimpleNamespace(write=bed.write))
        yield


NUMBERS = st.integers(0, 1)
SIZES = st.sampled_from([8, 60, 700])
ROOMS = st.sampled_from([0, 1, 150, 2000, PLENTY])
KINDS = st.sampled_from(["plain", "plain", "sole", "secured", "streamed"])


class Fanout(RuleBasedStateMachine):
    """Anything that may happen, in any order."""

    readers = Bundle("readers")

    @initialize(
        forms=st.tuples(st.sampled_from(list(Form)), st.sampled_from(list(Form))),
        batch=st.sampled_from([1, 2, 64]),
        max_events=st.sampled_from([3, 100]),
    )
    def begin(self, forms: tuple[Form, Form], batch: int, max_events: int) -> None:
        self.bed = Bed(forms, max_events)
        self.gone: set[Any] = set()
        self.dismissed: set[Any] = set()
        self._steps = small_steps(self.bed, batch)
        self._steps.__enter__()

    @rule(target=readers, number=NUMBERS, kind=KINDS, room=ROOMS, is_early=st.booleans(), count=st.integers(1, 4))
    def join(self, number: int, kind: str, room: int, is_early: bool, count: int) -> object:
        with self.bed.turns.running():
            return multiple(
                *[self.bed.join(number, kind, None, room + each, is_early=is_early) for each in range(count)]
            )

    @rule(target=readers, number=NUMBERS, kind=KINDS, room=ROOMS, back=st.integers(-1, 6))
    def come_back(self, number: int, kind: str, room: int, back: int) -> object:
        with self.bed.turns.running():
            cursor = max(0, self.bed.models[number].head - back)
            return self.bed.join(number, kind, cursor, room, is_early=True)

    @rule(number=NUMBERS, size=SIZES, count=st.integers(1, 4))
    def publish(self, number: int, size: int, count: int) -> None:
        for _ in range(count):
            with self.bed.turns.running():
                self.bed.publish(number, size)

    @rule(number=NUMBERS, kind=st.sampled_from([Kind.FAULT, Kind.RECOVERED, Kind.FAULT, Kind.RECOVERED, Kind.REVOKED]))
    def control(self, number: int, kind: Kind) -> None:
        with self.bed.turns.running():
            self.bed.control(number, kind)

    @rule(number=NUMBERS)
    def end_topic(self, number: int) -> None:
        with self.bed.turns.running():
            self.bed.publish(number, 8, Kind.END)

    @rule(count=st.integers(1, 6))
    def turn(self, count: int) -> None:
        with self.bed.turns.running():
            for _ in range(count):
                self.bed.turns.step()

    @rule(reader=readers, size=st.sampled_from([1, 100, 1000, PLENTY]))
    def make_room(self, reader: Any, size: int) -> None:
        with self.bed.turns.running():
            wire = reader.connection.wire if isinstance(reader, Streamed) else reader.wire
            wire.open(size)

    @rule(reader=readers, size=st.sampled_from([1, 100, 1000, PLENTY]), is_all=st.booleans())
    def open_window(self, reader: Any, size: int, is_all: bool) -> None:
        if isinstance(reader, Streamed) and reader not in self.gone:
            with self.bed.turns.running():
                (reader.connection if is_all else reader).open(size)

    @rule(reader=readers)
    def clog(self, reader: Any) -> None:
        wire = reader.connection.wire if isinstance(reader, Streamed) else reader.wire
        wire.room = 0

    @rule(reader=consumes(readers))
    def leave(self, reader: Any) -> None:
        self.gone.add(reader)
        with self.bed.turns.running():
            reader.close()

    @rule(reader=consumes(readers), farewell=st.sampled_from([b"", FAREWELL]))
    def dismiss(self, reader: Any, farewell: bytes) -> None:
        if reader.subscriber is not None and not reader.is_over:
            self.dismissed.add(reader)
            with self.bed.turns.running():
                reader.subscriber.close(farewell)

    @rule(reader=consumes(readers))
    def break_wire(self, reader: Any) -> None:
        if isinstance(reader, Plain):
            reader.wire.is_broken = True

    @rule(reader=readers, seconds=st.sampled_from([1.0, HEARTBEAT]))
    def beat(self, reader: Any, seconds: float) -> None:
        self.bed.turns.now += seconds
        if not reader.is_over:
            with self.bed.turns.running():
                due = reader.beat(self.bed.turns.now)
                assert due is not None
                assert due >= self.bed.turns.now

    @rule(reader=consumes(readers))
    def grow_old(self, reader: Any) -> None:
        if not reader.is_over:
            self.dismissed.add(reader)
            with self.bed.turns.running():
                # What was being written is cut: the connection of HTTP/1.1 ends the body, the client comes back.
                self.gone.add(reader)
                assert reader.beat(self.bed.turns.now + AGE) is None
                assert reader.told.is_ended

    def teardown(self) -> None:
        if not hasattr(self, "bed"):
            return
        try:
            with self.bed.turns.running():
                self.bed.settle()
                self.bed.check_all(self.gone, self.dismissed)
                self.bed.leave_all()
        finally:
            self._steps.__exit__(None, None, None)


TestFanout = Fanout.TestCase
TestFanout.settings = settings(stateful_step_count=40, deadline=None)
