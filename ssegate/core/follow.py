"""What the records of a streaming upstream say: an event, nothing, trouble, or the end."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssegate.core.document import decode_text, encode, encoded_size
from ssegate.core.event import RESERVED_TYPES, Kind, Update, encode_text
from ssegate.core.markup import event_type, render
from ssegate.core.records import Record, RecordDecoder, make_decoder
from ssegate.core.template import Template
from ssegate.errors import UndecodableError

Search = Callable[[object], object]

_UNSAYABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

JSON_FORMATS = frozenset({"ndjson", "json-seq"})
"""Formats whose records have to be JSON."""

MAYBE_JSON = frozenset({"sse", "websocket"})
"""Formats whose records are JSON where they can be read as such, and text where not."""


_FAULTS = {
    "oversize": ("oversize", "a record of the upstream is too large"),
    "truncated": ("undecodable", "a record of the upstream is cut"),
}


@dataclass(frozen=True, slots=True)
class FollowRules:
    """What a route says about an upstream's records. Expressions are searched in a record, or are None."""

    format: str
    """`sse`, `ndjson`, `json-seq`, `lines`, `bytes` or `websocket`."""
    max_event_size: int
    """Bytes."""
    data: Search | None = None
    event: Template | None = None
    id: Search | None = None
    done: Search | None = None
    when: Search | None = None
    template: Template | None = None
    batches: bool = False
    """Whether records are held until `Follower.flush`, and joined."""

    @property
    def looks_inside(self) -> bool:
        """Whether a record's value is asked for, and not just its text."""
        named = self.event is not None and bool(self.event.names)
        return named or any(each is not None for each in (self.data, self.id, self.done, self.when, self.template))

    @property
    def max_record_size(self) -> int:
        """Bytes of a record: `data` may leave most of it out."""
        return self.max_event_size * (8 if self.data is not None else 1)


class Follower:
    """Reads one topic's upstream, through all its connections: bytes in, updates out.

    `begin` with each connection, `receive` what comes, `finish` at an end in good order. Trouble is told once until a record
    can be read again.
    """

    def __init__(self, topic: str, rules: FollowRules) -> None:
        self.cursor = ""
        """The upstream's own id of the last record that had one: where it is asked to go on."""
        self.is_done = False
        """Whether a record has said that it was the last. Nothing is to be received after it."""
        self._topic = topic
        self._rules = rules
        self._looks_inside = rules.looks_inside or rules.format in JSON_FORMATS
        self._decoder: RecordDecoder | None = None
        self._is_troubled = False
        self._is_repeat_likely = False
        self._held: list[tuple[bool, str]] = []  # texts, and whether each is JSON
        self._held_size = 0
        self._held_type = ""

    @property
    def retry(self) -> float | None:
        """Seconds after which the upstream itself wants to be asked again; None if it has not said so."""
        milliseconds = None if self._decoder is None else self._decoder.retry_ms
        return None if milliseconds is None else milliseconds / 1000

    @property
    def is_holding(self) -> bool:
        """Whether there are records that wait to be joined with others."""
        return bool(self._held)

    @property
    def is_troubled(self) -> bool:
        """Whether trouble has been told and not its end."""
        return self._is_troubled

    def begin(self) -> None:
        """A connection begins; what was cut of the last one is forgotten."""
        self._decoder = make_decoder(self._rules.format, self._rules.max_record_size)
        self._is_repeat_likely = bool(self.cursor)

    def receive(self, data: bytes) -> list[Update]:
        """Take the next piece of the upstream's answer; of a WebSocket a message."""
        decoder = self._decoder
        assert decoder is not None, "a connection begins first"
        updates = self._read_all(decoder.receive(data))
        self.cursor = word(decoder.last_event_id) or self.cursor  # an event without data moves it too
        return updates

    def finish(self) -> list[Update]:
        """The answer has come to an end in good order."""
        return [] if self._decoder is None else self._read_all(self._decoder.finish())

    def flush(self) -> list[Update]:
        """Give out what is held, joined to one event."""
        if not self._held:
            return []
        held, self._held, self._held_size = self._held, [], 0
        return [Update(self._topic, self._join(held), type=self._held_type)]

    def end(self, reason: str, result: object = None) -> list[Update]:
        """The topic is over."""
        data = {"reason": reason} if result is None else {"reason": reason, "result": result}
        return [*self.flush(), Update(self._topic, encode(data), type="end", kind=Kind.END)]

    def fault(self, reason: str, message: str, status: int | None = None) -> list[Update]:
        """There is trouble; nothing if that has been told."""
        if self._is_troubled:
            return []
        self._is_troubled = True
        data = encode({"reason": reason, "status": status, "message": message})
        return [*self.flush(), Update(self._topic, data, kind=Kind.FAULT)]

    def restart(self) -> list[Update]:
        """What comes cannot be joined to what was."""
        self._held.clear()
        return [Update(self._topic, encode({"reason": "gap"}), kind=Kind.RESET)]

    def recover(self) -> list[Update]:
        """The trouble is over; nothing if there was none."""
        if not self._is_troubled:
            return []
        self._is_troubled = False
        return [Update(self._topic, "{}", kind=Kind.RECOVERED)]

    # One record

    def _read_all(self, records: Sequence[Record]) -> list[Update]:
        updates: list[Update] = []
        for record in records:
            updates += self._read(record)
            if self.is_done:
                return updates + self.end("done")
        return updates

    def _read(self, record: Record) -> list[Update]:
        if record.fault:
            return self.fault(*_FAULTS[record.fault])
        rules = self._rules
        try:
            value = self._value(record.text) if self._looks_inside else record.text
            id_ = word(record.id if rules.id is None else rules.id(value))
            is_repeated = self._is_repeat_likely and bool(id_) and id_ == self.cursor
            self._is_repeat_likely = self._is_repeat_likely and not id_
            self.cursor = id_ or self.cursor
            if is_repeated:
                return []  # where it was asked to go on behind this one, it began with it
            self.is_done = rules.done is not None and is_true(rules.done(value))
            if rules.when is not None and not is_true(rules.when(value)):
                return self.recover()
            found = value if rules.data is None else rules.data(value)
            # For `data` nothing is nothing to say.
            return self.recover() if found is None else self._tell(record, value, found)
        except (UndecodableError, ValueError, TypeError, RecursionError) as error:
            fact = str(error) if isinstance(error, UndecodableError) else "it is not JSON"
            return self.fault("undecodable", f"a record of the upstream cannot be read: {fact}")

    def _value(self, text: str) -> object:
        format_ = self._rules.format
        if format_ in JSON_FORMATS:
            return decode_text(text)
        if format_ in MAYBE_JSON:
            try:
                return decode_text(text)
            except (ValueError, UndecodableError, RecursionError):
                return text
        return text

    def _tell(self, record: Record, value: object, found: object) -> list[Update]:
        rules = self._rules
        if rules.template is not None:
            is_json, text = False, render(rules.template, found)
        elif rules.data is None:
            is_json, text = rules.format in JSON_FORMATS, record.text
        else:
            is_json = not isinstance(found, str)
            text = encode(found) if is_json else str(found)
        if rules.event is not None:
            type_ = event_type(rules.event, value)
        else:
            type_ = record.type if record.type not in RESERVED_TYPES else f"upstream-{record.type}"
            type_ = type_.replace("\0", "")
        size = _size(text) + len(type_)
        if size > rules.max_event_size:
            return self.fault("oversize", "a record of the upstream is too large for an event")
        recovered = self.recover()
        if rules.batches:
            size = size if rules.data is None else max(size, _size(encode(text)))  # in a list it is written so
            return [*recovered, *self._hold(is_json, text, type_, size)]
        return [*recovered, Update(self._topic, text, type=type_)]

    # Joining

    def _hold(self, is_json: bool, text: str, type_: str, size: int) -> list[Update]:
        is_apart = type_ != self._held_type or self._held_size + size > self._rules.max_event_size
        given = self.flush() if is_apart else []
        self._held.append((is_json, text))
        self._held_size += size + 3
        self._held_type = type_
        return given

    def _join(self, held: Sequence[tuple[bool, str]]) -> str:
        """Lines as lines; bytes and pieces of text one behind the other; anything else in a list."""
        texts = [text for _, text in held]
        if any(is_json for is_json, _ in held):
            return f"[{','.join(text if is_json else encode(text) for is_json, text in held)}]"
        if self._rules.format == "bytes":
            return base64.b64encode(b"".join(map(base64.b64decode, texts))).decode()
        is_pieces = self._rules.data is not None and self._rules.template is None
        return ("" if is_pieces else "\n").join(texts)


def word(value: object) -> str:
    """An id or a cursor out of a document: text, or a number; empty when it is none, or could stand in no URL and no header."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = str(value)
    return "" if _UNSAYABLE.search(text) else text


def is_true(value: object) -> bool:
    """As JMESPath has it: false, null and what is empty are not."""
    return value is not None and value is not False and value not in ("", [], {})


def _size(text: str) -> int:
    try:
        return encoded_size(text)
    except UnicodeEncodeError:
        return len(encode_text(text))
