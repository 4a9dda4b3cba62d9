"""Events on the wire: an update becomes bytes of `text/event-stream` once, and such bytes become events again.

The format is the WHATWG HTML standard's, 9.2.5 and 9.2.6. Data is split at CR LF, CR and LF and at nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

HEARTBEAT = b":\n"
"""A comment and ONE newline: a blank line would make some clients deliver an empty message."""

RESERVED_TYPES = frozenset({"reset", "fault", "recovered", "expiring", "end", "error"})
"""Event types that are the gate's own, and `error`, which would fire `onerror` in a browser."""

MAX_ID_LENGTH = 64

_LINE_END = re.compile(r"\r\n|\r|\n")
_FORGING = re.compile(r"[\r\n\0]")
_DIGITS = re.compile(r"[0-9]+")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Kind(Enum):
    """What an update is to the gate."""

    EVENT = "event"
    """A change, or a message: stored, numbered, replayed."""
    END = "end"
    """The topic is over for good: stored, numbered, replayed; its data says why."""
    FAULT = "fault"
    """Trouble upstream; not stored, takes no offset. A second one before a `RECOVERED` is not told."""
    RECOVERED = "recovered"
    """The trouble is over; not stored, takes no offset."""
    REVOKED = "revoked"
    """The right to watch has ended for every reader of this topic: they get an `end` without id, and the topic is
    forgotten, so that whoever comes back is asked for a right anew."""
    RESET = "reset"
    """What comes cannot be joined to what was: every reader is told `reset`. Not stored, takes no offset; the broker gives it
    the place before the first event of a new epoch."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a source says happened; it has no place in a topic yet."""

    topic: str
    """The topic's key."""
    data: str
    """The event's data; for a control update the data of the control event."""
    type: str = ""
    """The event's type; empty is an unnamed event, a `message`."""
    state: str | None = None
    """On a state topic the whole document after this update, as JSON text: what a newcomer gets. None on an event topic."""
    kind: Kind = Kind.EVENT

    @property
    def is_numbered(self) -> bool:
        """Whether it takes an offset and is stored."""
        return self.kind is Kind.EVENT or self.kind is Kind.END


@dataclass(frozen=True, slots=True)
class Event:
    """What an `EventSource` dispatches."""

    data: str
    type: str = ""
    """Empty is `message`."""
    id: str | None = None
    """None: the event has no id and leaves the client's cursor where it is."""


def encode_event(event: Event) -> bytes:
    """Encode as one block of an event stream, ended by its blank line.

    Lone surrogates in the data become U+FFFD.

    Raises `ValueError` when the type or the id holds CR, LF or NUL, or the id is empty or longer than 64 bytes: such a
    value could forge a field, or could not be sent back as a header.
    """
    lines = []
    if event.type:
        if _FORGING.search(event.type):
            raise ValueError("an event's type has no CR, LF or NUL")
        lines.append(f"event: {event.type}\n")
    data = event.data
    if "\n" in data or "\r" in data:
        lines.extend(f"data: {line}\n" for line in _LINE_END.split(data))
    else:
        lines.append(f"data: {data}\n")
    if event.id is not None:
        if not event.id or len(event.id.encode()) > MAX_ID_LENGTH or _FORGING.search(event.id):
            raise ValueError("an event's id is 1 to 64 bytes without CR, LF and NUL")
        # Last: @microsoft/fetch-event-source takes its cursor from this line when it comes, and not when the event is
        # dispatched. A connection cut behind an `id` that stood first lost it the event (16 of 289; now the blank line
        # alone is left to be cut off).
        lines.append(f"id: {event.id}\n")
    lines.append("\n")
    return encode_text("".join(lines))


def place(id_: str) -> bytes:
    """A block that dispatches nothing and moves the client's cursor."""
    return f"id: {id_}\n\n".encode()


def encode_text(text: str) -> bytes:
    """Encode as UTF-8; a lone surrogate, which UTF-8 cannot say, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A pair of surrogates is one character and is joined; one alone is replaced.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def encode_retry(milliseconds: int) -> bytes:
    """Encode the reconnection time, with a comment behind it and no blank line, which some clients take for a message."""
    return b"retry: %d\n:\n" % milliseconds


class LineCutter:
    """Cuts the lines out of a stream, wherever that is cut. Their ends, CR LF, CR and LF, are left out.

    A line that is longer than `max_size` bytes is told as soon as it is, as much as there is of it, and known by its length;
    the rest of it is passed over. So not more than that and one piece is kept.
    """

    __slots__ = ("_is_first", "_is_passing", "_max_size", "_rest", "_skip_lf")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._rest = bytearray()  # of a line that has not ended: what comes byte by byte is not searched again
        self._is_first = True
        self._is_passing = False
        self._skip_lf = False

    def cut(self, data: bytes) -> list[bytes]:
        """Take the next piece; return the lines it completed."""
        if self._is_first:
            data = self._without_mark(data)
        if self._skip_lf and data:
            self._skip_lf = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        # Of bytes, and not of text, `splitlines` takes just CR LF, CR and LF for ends.
        lines = data.splitlines()
        # A CR ends a line at once; the LF that may come with the next piece belongs to it.
        self._skip_lf = data.endswith(b"\r")
        rest = b"" if data.endswith((b"\n", b"\r")) else lines.pop()
        if lines and (self._rest or self._is_passing):
            self._complete(lines)
        if rest and not self._is_passing:
            self._keep(rest, lines)
        return lines

    @property
    def rest_size(self) -> int:
        """Bytes of the line that has not ended."""
        return len(self._rest)

    def finish(self) -> bytes:
        """Take the line that has not ended; empty if there is none, or a leading part of it has been told."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest

    def _without_mark(self, data: bytes) -> bytes:
        # "strip one leading U+FEFF BYTE ORDER MARK character, if any"
        data = self.finish() + data
        if len(data) < 3 and BYTE_ORDER_MARK.startswith(data):
            self._rest += data
            return b""
        self._is_first = False
        return data.removeprefix(BYTE_ORDER_MARK)

    def _complete(self, lines: list[bytes]) -> None:
        if self._is_passing:
            self._is_passing = False
            del lines[0]
        else:
            lines[0] = self.finish() + lines[0]

    def _keep(self, rest: bytes, lines: list[bytes]) -> None:
        self._rest += rest
        if len(self._rest) > self._max_size:
            lines.append(self.finish())
            self._is_passing = True


class EventReader:
    """Reads lines of an event stream, which others have cut, into events."""

    __slots__ = ("_data", "_id", "_type", "last_event_id", "retry_ms", "size")

    def __init__(self) -> None:
        self.last_event_id = ""
        """The client's cursor: it moves when a block with an id has come whole; empty before the first."""
        self.retry_ms: int | None = None
        """The last reconnection time the server asked for, in milliseconds; None if it has not."""
        self.size = 0
        """Bytes of the data lines of the block that is being read."""
        self._data: list[str] = []
        self._type = ""
        self._id: str | None = None  # of the block that is being read

    def receive_line(self, line: bytes) -> Event | None:
        """Take the next line, whole and without its end; return the event it completed."""
        if not line:
            return self._dispatch()
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                self._data.append(value)
                self.size += len(line)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if _DIGITS.fullmatch(value):
                self.retry_ms = int(value.lstrip("0")[:12] or "0")
        return None

    def drop_data(self) -> None:
        """Forget the data of the block that is being read; its id still moves the cursor when it has come whole."""
        self._data = []
        self.size = 0

    def _dispatch(self) -> Event | None:
        if self._id is not None:
            # Not before: the id of a block that is cut would make the client pass over that event.
            self.last_event_id, self._id = self._id, None
        data, type_ = self._data, self._type
        self._data, self._type, self.size = [], "", 0
        if not data:
            return None  # an id-only block dispatches nothing, but has moved the cursor
        return Event("\n".join(data), type_, self.last_event_id or None)


class EventStreamDecoder(EventReader):
    """Turns the bytes of an event stream into events, wherever they are cut.

    An unfinished block at the end of the stream is discarded, as the standard says.
    """

    __slots__ = ("_is_too_large", "_limit", "_lines")

    def __init__(self, max_event_size: int = 64 * 1024 * 1024) -> None:
        super().__init__()
        self._lines = LineCutter(max_event_size)
        self._limit = max_event_size
        self._is_too_large = False

    def receive(self, data: bytes) -> list[Event]:
        """Take the next piece of the stream; return the events it completed, usually none or one.

        Raises `ValueError` when a single event grows beyond `max_event_size` bytes: at once, or with the next piece if
        there were events before it to return. Nothing can be received after that.
        """
        events = [] if self._is_too_large else self._receive_events(data)
        if self._is_too_large and not events:
            raise ValueError(f"one event is larger than {self._limit} bytes")
        return events

    def _receive_events(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for line in self._lines.cut(data):
            self._is_too_large = self.size + len(line) > self._limit
            if self._is_too_large:
                return events
            if (event := self.receive_line(line)) is not None:
                events.append(event)
        self._is_too_large = self.size + self._lines.rest_size > self._limit
        return events
