"""The records of an upstream's stream, cut out of its bytes wherever those are cut."""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ssegate.core.document import decode_text
from ssegate.core.event import BYTE_ORDER_MARK, EventReader, LineCutter
from ssegate.errors import UndecodableError


class Record(NamedTuple):
    """One of the things a stream is made of."""

    # A frozen dataclass takes 1.1 µs to be made, a tuple 0.5 µs (timeit, CPython 3.11); all of a record may take 20 µs.

    text: str
    """Its text; of bytes their base64."""
    type: str = ""
    """Of an SSE event: its type; empty is unnamed."""
    id: str = ""
    """Of an SSE event: the id that is valid for it, its own or an earlier one; empty is none."""
    fault: str = ""
    """`oversize`: it was larger than allowed. `truncated`: it may be the beginning of something longer. The text is left
    out then. Empty: it is as it came."""


OVERSIZE = Record("", fault="oversize")
TRUNCATED = Record("", fault="truncated")


class RecordDecoder(Protocol):
    """Cuts the records of one format out of a stream. What is kept is bounded by twice the size of one and a piece."""

    retry_ms: int | None
    """Of an event stream: the last reconnection time it asked for, in milliseconds; None if it has not."""
    last_event_id: str
    """Of an event stream: where to go on after this; also an event without data moves it. Empty is nowhere in particular."""

    def receive(self, data: bytes) -> list[Record]:
        """Take the next piece of the stream; return the records it completed. Never raises for what comes."""
        ...

    def finish(self) -> list[Record]:
        """Return what is left. To be called when the stream ended in good order, and not when it was cut."""
        ...


def make_decoder(format: str, max_size: int) -> RecordDecoder:  # noqa: A002  (so it is called in the configuration)
    """Make the decoder of `sse`, `ndjson`, `json-seq`, `lines`, `bytes` or `websocket`. `max_size` is in bytes and of one record."""
    return _DECODERS[format](max_size)


_BLANK = b" \t\n\r"
"""What JSON takes for whitespace."""


class LineRecords:
    """Every line is a record, empty ones too."""

    __slots__ = ("_lines", "_max_size", "last_event_id", "retry_ms")

    def __init__(self, max_size: int) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self._lines = LineCutter(max_size)
        self._max_size = max_size

    def receive(self, data: bytes) -> list[Record]:
        """Return the lines that were completed. What is no UTF-8 becomes U+FFFD; NUL stays."""
        limit = self._max_size
        return [
            Record(line.decode("utf-8", "replace")) if len(line) <= limit else OVERSIZE
            for line in self._lines.cut(data)
        ]  # fmt: skip

    def finish(self) -> list[Record]:
        """Return the line that has not ended, if there is something in it."""
        rest = self._lines.finish()
        return [Record(rest.decode("utf-8", "replace"))] if rest else []


class JsonLineRecords(LineRecords):
    """Every line is a record, but for blank ones. Whether it is JSON is for others to say."""

    __slots__ = ()

    def receive(self, data: bytes) -> list[Record]:
        """Return the lines that were completed, without the whitespace around them."""
        limit = self._max_size
        return [
            Record(text.decode("utf-8", "replace")) if len(line) <= limit else OVERSIZE
            for line in self._lines.cut(data)
            if (text := line.strip(_BLANK)) or len(line) > limit
        ]

    def finish(self) -> list[Record]:
        """Return the line that has not ended, if it is not blank."""
        rest = self._lines.finish().strip(_BLANK)
        return [Record(rest.decode("utf-8", "replace"))] if rest else []


_BEGIN = b"\x1e"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SELF_DELIMITED = (b"{", b"[", b'"')


class JsonSequenceRecords:
    """Records begin with RS (RFC 7464). One is whole with the next RS, or when it is whole JSON and a piece ends behind its LF.

    What comes before the first RS is a record too, for an upstream that has forgotten it.
    """

    __slots__ = (
        "_depth",
        "_is_first",
        "_is_passing",
        "_mark",
        "_max_size",
        "_rest",
        "_weighed",
        "last_event_id",
        "retry_ms",
    )

    def __init__(self, max_size: int) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self._max_size = max_size
        self._rest = bytearray()  # of a record that has not ended
        self._is_first = True  # a byte order mark may be coming, or be here in part
        self._mark = b""
        self._is_passing = False
        self._weighed = 0  # so much of the rest has been looked at, in vain, for the end of its JSON
        self._depth = 0  # of brackets that are open there; negative: it is no JSON and waits for the next RS

    def receive(self, data: bytes) -> list[Record]:
        """Return the records that were completed, without the whitespace around them; "multiple consecutive RS octets do not
        denote empty sequence elements"."""
        if self._is_first and (data := self._without_mark(data)) == b"":
            return []
        *ended, rest = data.split(_BEGIN)
        records: list[Record] = []
        for text in ended:
            self._end(text, records)
        self._keep(rest, records)
        if rest.endswith(b"\n") and self._rest and self._is_whole():
            self._end(b"", records)
        return records

    def finish(self) -> list[Record]:
        """Return the record that has not ended, if it is not blank."""
        records: list[Record] = []
        self._end(self._mark, records)
        return records

    def _without_mark(self, data: bytes) -> bytes:
        """Pass over a byte order mark at the beginning, wherever it is cut."""
        data = self._mark + data
        self._mark = b""
        if len(data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(data):
            self._mark = data
            return b""
        self._is_first = False
        return data.removeprefix(BYTE_ORDER_MARK)

    def _end(self, text: bytes, records: list[Record]) -> None:
        """End the record whose last bytes these are."""
        if self._rest:
            text = bytes(self._rest) + text
        if not self._is_passing and (stripped := text.strip(_BLANK)):
            records.append(self._record(text, stripped))
        self._forget()

    def _record(self, text: bytes, stripped: bytes) -> Record:
        if len(stripped) > self._max_size:
            return OVERSIZE
        # "Parsers MUST drop JSON-text sequence elements consisting of non-self-delimited top-level values that may have been
        # truncated (that are not delimited by whitespace)": 12 may be the beginning of 123.
        if text[-1] not in _BLANK and not stripped.startswith(_SELF_DELIMITED):
            return TRUNCATED
        return Record(stripped.decode("utf-8", "replace"))

    def _keep(self, rest: bytes, records: list[Record]) -> None:
        if self._is_passing:
            return
        # Without the whitespace before it: otherwise line ends sent as heartbeats would add up.
        self._rest += rest if self._rest else rest.lstrip(_BLANK)
        if len(self._rest) <= self._max_size:
            return
        if self._rest[self._max_size :].strip(_BLANK):
            records.append(OVERSIZE)
            self._forget()
            self._is_passing = True
        else:
            # One byte of the whitespace behind it says as much as all of it.
            del self._rest[self._max_size + 1 :]

    def _forget(self) -> None:
        self._rest.clear()
        self._is_passing = False
        self._weighed = self._depth = 0

    def _is_whole(self) -> bool:
        """Whether the rest, whose last byte is LF, is whole JSON.

        A record that comes in many pieces is not parsed again with each: after the first attempt brackets are counted.
        """
        if self._weighed:
            self._weigh()
        if self._depth:
            return False
        try:
            decode_text(self._rest.decode("utf-8", "replace"))
        except (UndecodableError, ValueError, RecursionError):
            if not self._weighed:
                self._weigh()
            # What is no JSON though its brackets are even will not become any.
            self._depth = self._depth or -1
            return False
        return True

    def _weigh(self) -> None:
        if self._depth < 0:
            return
        # There is no LF in a string of JSON, so none is open where this begins and where it ends.
        new = _STRING.sub(b"", self._rest[self._weighed :])
        self._weighed = len(self._rest)
        self._depth += new.count(b"{") + new.count(b"[") - new.count(b"}") - new.count(b"]")


class ByteRecords:
    """Every piece is a record, in base64; one that would be too large is several."""

    __slots__ = ("_max_bytes", "last_event_id", "retry_ms")

    def __init__(self, max_size: int) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self._max_bytes = max(max_size // 4, 1) * 3

    def receive(self, data: bytes) -> list[Record]:
        """Return the piece."""
        step = self._max_bytes
        return [
            Record(b2a_base64(data[start : start + step], newline=False).decode())
            for start in range(0, len(data), step)
        ]  # fmt: skip

    def finish(self) -> list[Record]:
        """Return nothing: nothing is kept."""
        return []


class MessageRecords:
    """Every piece is a whole message, in UTF-8: who brings a WebSocket has cut it, and has seen to its size."""

    __slots__ = ("last_event_id", "retry_ms")

    def __init__(self, max_size: int) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""

    def receive(self, data: bytes) -> list[Record]:
        """See `RecordDecoder`."""
        return [Record(data.decode("utf-8", "replace"))]

    def finish(self) -> list[Record]:
        """See `RecordDecoder`."""
        return []


class EventRecords(EventReader):
    """Every event of an event stream is a record. Its size is that of its data lines, with their names.

    Of an event that is too large the id counts nevertheless: asked for from before, it would come again and again.
    """

    __slots__ = ("_is_passing", "_lines", "_max_size")

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self._lines = LineCutter(max_size)
        self._max_size = max_size
        self._is_passing = False  # the event that is being read is too large, and that has been told

    def receive(self, data: bytes) -> list[Record]:
        """Return the events that were completed, and in the place of one that is too large, as soon as it is, a fault."""
        records: list[Record] = []
        for line in self._lines.cut(data):
            if len(line) > self._max_size:
                if not line.startswith(b":"):
                    self._pass_over(records)
                continue
            event = self.receive_line(line)
            if event is not None:
                records.append(Record(event.data, event.type, event.id or ""))
            elif self.size > self._max_size:
                self._pass_over(records)
            elif self._is_passing:
                self._is_passing = bool(line)
                self.drop_data()
        return records

    def finish(self) -> list[Record]:
        """Return nothing: "once the end of the file is reached, any pending data must be discarded"."""
        self._lines.finish()
        return []

    def _pass_over(self, records: list[Record]) -> None:
        if not self._is_passing:
            records.append(OVERSIZE)
        self._is_passing = True
        self.drop_data()


_DECODERS: dict[str, Callable[[int], RecordDecoder]] = {
    "sse": EventRecords,
    "ndjson": JsonLineRecords,
    "json-seq": JsonSequenceRecords,
    "lines": LineRecords,
    "bytes": ByteRecords,
    "websocket": MessageRecords,
}
