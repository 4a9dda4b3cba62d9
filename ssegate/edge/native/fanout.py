"""One event to many clients: a topic's live readers are written to in one loop, those that lag read for themselves.

A reader at the head of its topic is *live*: that it stands in the channel is its position, and the loop that writes an
event touches nothing else of it. One whose client did not take all of a write, or has more to read, is *lagging*: it has a
place of its own and writes piece by piece when there is room, until it stands at the head again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from ssegate.core.hub import Subscriber, Topic
from ssegate.core.shape import Shape, heartbeat_of
from ssegate.edge.exchange import Stream
from ssegate.edge.latency import Latency
from ssegate.edge.native.limits import PIECE

SLICE = 0.008
"""Seconds for which one event's fan-out may hold the loop; the rest of it comes in the loop's next turns."""

BATCH = 64
"""Clients written to between two looks at the clock: half a millisecond."""


class Parcel:
    """The bytes of one write to all live readers, in each of the forms they are sent in, made once."""

    __slots__ = ("_chunk", "_frames", "data", "size")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self._chunk = b""
        self._frames: dict[tuple[int, ...], bytes] = {}

    @property
    def chunk(self) -> bytes:
        """As a chunk of HTTP/1.1 (RFC 9112, 7.1)."""
        if not self._chunk:
            self._chunk = chunk(self.data)
        return self._chunk

    def frames(self, streams: tuple[int, ...]) -> bytes:
        """As DATA frames of HTTP/2, for each of these streams in turn."""
        frames = self._frames.get(streams)
        if frames is None:
            frames = self._frames[streams] = b"".join(data_frame(stream, self.data) for stream in streams)
        return frames


def chunk(data: bytes) -> bytes:
    """Frame a piece of a body (RFC 9112, 7.1). Not empty: that would be the end of the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def data_frame(stream: int, data: bytes) -> bytes:
    """Frame at most 16,384 bytes for a stream (RFC 9113, 6.1)."""
    return b"%b\0\0%b%b" % (len(data).to_bytes(3, "big"), stream.to_bytes(4, "big"), data)


def sleep_on() -> None:
    """What wakes nobody: there is nobody any more."""


class Target(Protocol):
    """What a channel writes to that is not just a socket."""

    def deliver(self, parcel: Parcel) -> int:
        """Write it to every reader here, and return how many they are. Those that cannot take it all fall behind."""
        ...

    def readers(self) -> list[Reader]:
        """All readers here."""
        ...


class Reader:
    """One client's event stream. How bytes are framed, and whether there is room for them, is for a protocol to say."""

    __slots__ = ("_at", "_data", "_deadline", "_stream", "channel", "is_live", "is_over", "subscriber", "written_at")

    def __init__(self, stream: Stream, now: float) -> None:
        self.channel: Channel | None = None
        """None once it is over, and for a stream that ends with its opening."""
        self.is_live = False
        """Whether the channel writes to it."""
        self.is_over = False
        self.subscriber = stream.subscriber
        self.written_at = now
        """When it was last written to by itself."""
        self._stream = stream
        self._data = b""  # what is being written, shared with others
        self._at = 0  # how much of it has been
        self._deadline = None if stream.max_age is None else now + stream.max_age

    # What a protocol adds

    def room(self) -> int:
        """How many bytes may be written now."""
        raise NotImplementedError

    def is_clogged(self) -> bool:
        """Whether bytes wait in the transport: what is written past it would overtake them."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Frame and write this many bytes, no more than there was room for."""
        raise NotImplementedError

    def write_end(self) -> None:
        """Nothing more comes: end the body, and see to what comes after it."""
        raise NotImplementedError

    def enter(self, channel: Channel) -> None:
        """Stand among the channel's targets."""
        raise NotImplementedError

    def leave(self, channel: Channel) -> None:
        """Stand there no more."""
        raise NotImplementedError

    # Reading

    def begin(self, channel: Channel | None, opening: bytes = b"") -> None:
        """Write the opening, unless that has been done, and go on behind it."""
        self.channel = channel
        if channel is not None:
            channel.admit()
        self._data = opening
        if self.subscriber is not None:
            self.subscriber.topic.waiting.discard(self.subscriber)  # the channel's leader is woken
            self.subscriber.wake = self.wake
        self.pump()

    def pump(self) -> None:
        """Write what there is, as far as there is room; when there is no more, be live, or end.

        For one that is live it does nothing: the channel reads for it, and its own place is where it stood when it joined.
        """
        while not self.is_over and not self.is_live:
            if self._at < len(self._data):
                if not self._write_piece():
                    return
            elif not self._read():
                self._data, self._at = b"", 0
                if self.subscriber is None or self.subscriber.is_over or self.channel is None:
                    self.finish()
                elif not self.is_clogged():  # else `drained` comes, and then this again
                    self.channel.join(self)
                return

    def _write_piece(self) -> bool:
        room = min(self.room(), PIECE)
        if room <= 0:
            return False
        piece = self._data[self._at : self._at + room] if self._at or room < len(self._data) else self._data
        self._at += len(piece)
        self.written_at = asyncio.get_running_loop().time()
        self._count(len(piece))
        self.write(piece)
        return True

    def _count(self, size: int) -> None:
        if self.channel is not None:
            self.channel.counts["bytes"] += size

    def _read(self) -> bool:
        if self._stream.state:
            self._data, self._at = self._stream.take_state(), 0
            return True
        if self.subscriber is None:
            return False
        self._data, self._at = self.subscriber.read(), 0
        if self._data and self.channel is not None:
            self.channel.counts["deliveries"] += 1
        return bool(self._data)

    @property
    def is_waiting_for_room(self) -> bool:
        """Whether there is something to write that the client gives no room for."""
        return self._at < len(self._data)

    def fall_behind(self, data: bytes = b"") -> None:
        """Be live no more, with this still to be written, or else what the channel still owes."""
        if self.is_live and self.channel is not None and self.subscriber is not None:
            owed = self.channel.remove(self)
            self.subscriber.follow(self.channel.leader)
            self._data, self._at = data or owed, 0
            self.written_at = asyncio.get_running_loop().time()

    def wake(self) -> None:
        """This reader is to end by itself (`Subscriber.close`)."""
        self.fall_behind()
        self.pump()

    def beat(self, now: float) -> float | None:
        """Send the heartbeat, or end the stream, if that is due; return when to be asked again, None when it is over."""
        if self._deadline is not None and now >= self._deadline:
            self.fall_behind()
            self._data = b""
            self.finish()
            return None
        last = self.written_at
        if self.is_live and self.channel is not None:
            last = max(last, self.channel.written_at)
        beat = heartbeat_of(None if self.subscriber is None else self.subscriber.shape)
        if now - last >= self._stream.heartbeat and not self.is_waiting_for_room and self.room() >= len(beat):
            self.written_at = last = now
            self._count(len(beat))
            self.write(beat)
        due = max(last + self._stream.heartbeat, now)
        return due if self._deadline is None else min(due, self._deadline)

    # The end

    def finish(self) -> None:
        """End the stream in good order."""
        self.close()
        self.write_end()

    def close(self) -> None:
        """Let go of everything; the connection may be gone. A second call does nothing."""
        if self.is_over:
            return
        self.is_over = True
        if self.channel is not None:
            if self.is_live:
                self.channel.remove(self)
            self.channel.dismiss()
            self.channel = None
        if self.subscriber is not None:
            self.subscriber.wake = sleep_on  # it and we hold each other, and its topic's history with us
        self._stream.close()


class DirectReader(Reader):
    """A reader whose socket may be written to without asking anyone: HTTP/1.1 in plain text.

    The channel's loop writes to it itself.
    """

    __slots__ = ("fd",)

    fd: int
    """Its socket, while it is live."""

    def hand_rest(self, rest: bytes) -> None:
        """The socket did not take all of a write: hand this to the transport."""
        raise NotImplementedError

    def break_off(self) -> None:
        """The socket is broken."""
        raise NotImplementedError


class Channel:
    """The live readers of one topic in one shape, and the leader that reads for them."""

    __slots__ = (
        "_direct", "_drop", "_is_interrupted", "_is_sliced", "_joining", "_latency", "_loop", "_owed", "_parcel", "_pass", "_readers", "_targets",
        "_transports", "_unreached",
        "counts", "leader", "topic", "written_at",
    )  # fmt: skip

    def __init__(
        self,
        topic: Topic,
        shape: Shape | None,
        counts: dict[str, int],
        latency: Latency,
        drop: Callable[[], object],
    ) -> None:
        """`drop` is called when the last reader has left."""
        self.topic = topic
        self.counts = counts
        self.written_at = 0.0
        """When the last write to all began."""
        self.leader: Subscriber = topic.lead(self.flush, shape)
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call on Python 3.11, for each event
        self._latency = latency
        self._drop = drop
        self._readers = 0  # live and lagging
        self._direct: dict[int, DirectReader] = {}
        self._transports: dict[asyncio.Transport, Reader] = {}
        self._targets: dict[Target, None] = {}
        self._joining: dict[Reader, None] = {}  # those that came while a pass was under way
        # A pass: what is new is written to everybody, in slices.
        self._pass: Iterator[None] | None = None
        self._parcel = Parcel(b"")
        self._is_sliced = False  # it has been interrupted before
        self._is_interrupted = False  # it is now
        self._unreached: Callable[[], list[Reader]] = list  # those the pass has still to come to
        self._owed: set[Reader] | None = None  # the same, made when somebody asks for it

    def __len__(self) -> int:
        """How many read here."""
        return self._readers

    # Who is here

    def admit(self) -> None:
        """One more reads here."""
        self._readers += 1

    def dismiss(self) -> None:
        """One reads no more; after the last the channel is over."""
        self._readers -= 1
        if not self._readers:
            self.topic.waiting.discard(self.leader)
            self.leader.wake = sleep_on  # as with a reader
            self._drop()

    def join(self, reader: Reader) -> None:
        """It has read all there is for now: write to it from here."""
        assert reader.subscriber is not None, "a stream without a topic has no channel"
        if self._pass is None and not reader.subscriber.is_beside(self.leader):
            self.flush()  # it was quicker than the leader
        if self._pass is not None:
            self._joining[reader] = None
            return
        assert reader.subscriber.is_beside(self.leader), "both have read all there is"
        reader.is_live = True
        reader.subscriber.leader = self.leader
        reader.enter(self)

    def remove(self, reader: Reader) -> bytes:
        """Write to it no more. Returns what the pass under way has not written to it."""
        if self._is_interrupted and self._owed is None:
            self._owed = set(self._unreached())  # while this one still stands among them
        reader.is_live = False
        reader.leave(self)
        return self._parcel.data if self._owed is not None and reader in self._owed else b""

    def enter_direct(self, reader: DirectReader) -> None:
        """See `Reader.enter`."""
        self._direct[reader.fd] = reader

    def leave_direct(self, fd: int) -> None:
        """See `Reader.leave`."""
        del self._direct[fd]

    def enter_transport(self, transport: asyncio.Transport, reader: Reader) -> None:
        """See `Reader.enter`: chunks are written to the transport, which says to its protocol when that is too much."""
        self._transports[transport] = reader

    def leave_transport(self, transport: asyncio.Transport) -> None:
        """See `Reader.leave`."""
        del self._transports[transport]

    def enter_target(self, target: Target) -> None:
        """See `Reader.enter`."""
        self._targets[target] = None

    def leave_target(self, target: Target) -> None:
        """See `Reader.leave`."""
        self._targets.pop(target, None)

    # Writing

    def flush(self) -> None:
        """Write what is new to all live readers."""
        if self._pass is None:
            self._pass = self._write_news()
            self._go_on()

    def _go_on(self) -> None:
        assert self._pass is not None
        until = time.monotonic() + SLICE
        self._is_interrupted, self._owed = False, None
        for _ in self._pass:
            if time.monotonic() >= until:
                self._is_sliced = self._is_interrupted = True
                self._owed = None
                self._loop.call_soon(self._go_on)
                return
        self._pass = None
        self._is_sliced, self._owed, self._unreached = False, None, list
        joining, self._joining = self._joining, {}
        for reader in joining:
            reader.pump()

    def _write_news(self) -> Iterator[None]:
        """Yields where it may be interrupted."""
        # No more at once than one write may hold: of many events that have come together each reader has a place between them.
        while data := self.leader.read(PIECE):
            self.written_at = self._loop.time()
            self._parcel = Parcel(data)
            if len(data) > PIECE:
                yield from self._let_them_read()
            else:
                yield from self._write_direct(self._parcel)
                yield from self._write_transports(self._parcel)
                yield from self._write_targets(self._parcel)
        if self.leader.is_over:
            yield from self._end_all()

    def _write_direct(self, parcel: Parcel) -> Iterator[None]:
        write, data = os.write, parcel.chunk
        size, readers = len(data), list(self._direct.items())
        for start in range(0, len(readers), BATCH):
            batch = readers[start : start + BATCH]
            if self._is_sliced:
                batch = [item for item in batch if self._direct.get(item[0]) is item[1]]
            for fd, reader in batch:
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    reader.break_off()
                    continue
                if sent < size:
                    self._lag(reader, data[sent:])
            self._count(len(batch), parcel.size)
            self._unreached = partial(self._behind_direct, readers, start + BATCH)
            yield

    def _behind_direct(self, readers: list[tuple[int, DirectReader]], reached: int) -> list[Reader]:
        behind = [reader for _, reader in readers[reached:]]
        return [*behind, *self._transports.values(), *_readers_of(self._targets)]

    def _write_transports(self, parcel: Parcel) -> Iterator[None]:
        data, readers = parcel.chunk, list(self._transports.items())
        for start in range(0, len(readers), BATCH):
            batch = readers[start : start + BATCH]
            if self._is_sliced:
                batch = [item for item in batch if self._transports.get(item[0]) is item[1]]
            for transport, _ in batch:
                transport.write(data)
            self._count(len(batch), parcel.size)
            self._unreached = partial(self._behind_transports, readers, start + BATCH)
            yield

    def _behind_transports(self, readers: list[tuple[asyncio.Transport, Reader]], reached: int) -> list[Reader]:
        return [*(reader for _, reader in readers[reached:]), *_readers_of(self._targets)]

    def _lag(self, reader: DirectReader, rest: bytes) -> None:
        assert reader.subscriber is not None
        reader.is_live = False
        del self._direct[reader.fd]
        reader.subscriber.follow(self.leader)
        reader.hand_rest(rest)

    def _write_targets(self, parcel: Parcel) -> Iterator[None]:
        targets = list(self._targets)
        for start in range(0, len(targets), BATCH):
            batch = targets[start : start + BATCH]
            reached = 0
            for target in batch:
                if not self._is_sliced or target in self._targets:
                    reached += target.deliver(parcel)
            self._count(reached, parcel.size)
            self._unreached = partial(_readers_of, targets[start + BATCH :])
            yield

    def _count(self, readers: int, size: int) -> None:
        self.counts["deliveries"] += readers
        self.counts["bytes"] += readers * size
        self._latency.observe(time.monotonic() - self.topic.moved_at, readers)

    def _live(self) -> list[Reader]:
        return [*self._direct.values(), *self._transports.values(), *_readers_of(self._targets)]

    def _let_them_read(self) -> Iterator[None]:
        """A large document is written by each reader itself, in pieces: what a client does not take would be held whole."""
        data, readers = self._parcel.data, self._live()
        self._unreached = partial(list, readers)
        for number, reader in enumerate(readers):
            if reader.is_live:
                reader.fall_behind(data)
                reader.pump()
            if number % BATCH == BATCH - 1:
                yield

    def _end_all(self) -> Iterator[None]:
        self._unreached = list  # all have been written all there was
        for number, reader in enumerate(self._live()):
            if reader.is_live:
                reader.wake()
            if number % BATCH == BATCH - 1:
                yield


def _readers_of(targets: Iterable[Target]) -> list[Reader]:
    return [reader for target in targets for reader in target.readers()]
