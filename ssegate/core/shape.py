"""The shapes one journal is sent in: the event stream as it is kept, lines of JSON, a JSON text sequence, one JSON text.

A journal keeps its events encoded as `text/event-stream`. For clients that are no `EventSource` they are decoded and written
anew, once for all who read in the same shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import Enum

from ssegate.core.document import decode_text, encode
from ssegate.core.event import HEARTBEAT, EventStreamDecoder, encode_text
from ssegate.core.routing import parse_accept
from ssegate.errors import UndecodableError

_STRING = json.JSONEncoder(ensure_ascii=False).encode


class Shape(Enum):
    """How a stream's events are written, by its media type. The event stream itself is none: it needs no other."""

    NDJSON = "application/x-ndjson"
    """One object `{"id","event"?,"data"}` a line."""
    JSON_SEQ = "application/json-seq"
    """The same objects, each behind a record separator (RFC 7464)."""

    @property
    def heartbeat(self) -> bytes:
        """What is no event in this shape, and bytes nevertheless: an empty line, and a separator that nothing follows
        ("multiple consecutive RS octets do not denote empty sequence elements", RFC 7464, 2.1)."""
        return b"\n" if self is Shape.NDJSON else b"\x1e"

    def encode(self, data: bytes) -> bytes:
        """Write whole blocks of an event stream in this shape; comments and `retry` are left out."""
        mark = "" if self is Shape.NDJSON else "\x1e"
        return encode_text("".join([f"{mark}{text}\n" for text in json_events(data)]))


EVENT_STREAM = "text/event-stream"
JSON = "application/json"
OFFERED = (EVENT_STREAM, Shape.NDJSON.value, Shape.JSON_SEQ.value, JSON)


def heartbeat_of(shape: Shape | None) -> bytes:
    """What is sent into silence; None is the event stream itself."""
    return HEARTBEAT if shape is None else shape.heartbeat


def json_events(data: bytes) -> Iterator[str]:
    """The events in whole blocks of an event stream, each as a JSON object without a line end in it."""
    decoder = EventStreamDecoder()
    last = ""
    for event in decoder.receive(data):
        # The decoder goes on telling an id once there was one, as clients do; here a control event has none.
        id_ = event.id if event.id and event.id != last else None
        last = event.id or last
        members = [] if id_ is None else [f'"id":{_STRING(id_)}']
        if event.type:
            members.append(f'"event":{_STRING(event.type)}')
        members.append(f'"data":{json_value(event.data)}')
        yield "{" + ",".join(members) + "}"


def json_value(text: str) -> str:
    """A text as a JSON value on one line: itself when it is JSON, else as a string."""
    try:
        value = decode_text(text)
    except (ValueError, UndecodableError, RecursionError):
        return _STRING(text)
    return encode(value) if "\n" in text or "\r" in text else text.strip(" \t")


def choose(accept: str | None, offered: Sequence[str] = OFFERED) -> str | None:
    """The media type to answer in, or None when none is acceptable.

    Without `Accept`, the first that is offered. Else the one with the highest weight; "of equals the first named", and those
    that are only included by `*/*` after those that are named.
    """
    if accept == offered[0] or accept is None or not accept.strip():  # an `EventSource` says just that
        return offered[0]
    ranges = parse_accept(accept)
    names = list(ranges)
    best: tuple[float, int, int] | None = None
    chosen = None
    for number, media in enumerate(offered):
        named = next((name for name in (media, media.partition("/")[0] + "/*", "*/*") if name in ranges), None)
        if named is None or ranges[named] <= 0:
            continue
        place = names.index(named) if named == media else len(names)
        rank = (-ranges[named], place, number)
        if best is None or rank < best:
            best, chosen = rank, media
    return chosen
