"""What a webhook's delivery says: its body read as its content type has it, and a message for each event in it.

CloudEvents come in three modes (CloudEvents HTTP binding 1.0, 3.1 to 3.3): an expression sees the attributes as headers
(`ce-type`, `ce-subject` …) and the data as `data` in each of them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from ssegate.core.document import decode, encode
from ssegate.core.headers import Headers
from ssegate.errors import RejectedError, UndecodableError

MAX_FIELDS = 1000
"""How many fields a form may have."""

_EVENT = "application/cloudevents+json"
_FORM = "application/x-www-form-urlencoded"
_ESCAPED = re.compile(r"\\(.)")
_BATCH = "application/cloudevents-batch+json"
_NO_QUERY: Mapping[str, str] = {}
_CREDENTIALS = frozenset((b"authorization", b"cookie", b"proxy-authorization", b"x-gitlab-token"))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as it came: nothing of it is proven, and nothing decoded."""

    headers: Headers
    body: bytes
    query: Mapping[str, str] = field(default_factory=lambda: _NO_QUERY)
    """Decoded; of a repeated name the last value."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a delivery."""

    facts: Mapping[str, object]
    """What an expression sees: `body`, `headers` (names in lower case), `params`, `query`, and `data` of a CloudEvent."""
    text: str
    """What its data is where nothing else is said: the body as it came, base64 when it is not text."""

    def header(self, name: str) -> str:
        """A header's value, `name` in lower case; empty when it is absent."""
        headers: Mapping[str, str] = self.facts["headers"]  # type: ignore[assignment]  # see `message_facts`
        return headers.get(name, "")

    def member(self, name: str) -> str:
        """A member of the body that is text; empty when there is none, or the body is no object."""
        body = self.facts["body"]
        value = body.get(name) if isinstance(body, Mapping) else None
        return value if isinstance(value, str) else ""


def read_messages(delivery: Delivery) -> Sequence[Message]:
    """Read a delivery that has been found authentic: one message, or one for each event of a batch.

    Raises `RejectedError`: 415 when the body is compressed, 400 when it is not what its content type says. Nothing of it is
    quoted.
    """
    named, body, query = read_headers(delivery), delivery.body, read_query(delivery)
    kind = media_type(named.get("content-type", ""))
    if kind == _EVENT:
        return (_cloud_event(read_json(body), named, query, as_text(body)),)
    if kind == _BATCH:
        return _batch(read_json(body), named, query)
    if "ce-specversion" in named:
        value = _read(kind, body) if body else None
        facts = message_facts("" if value is None else value, {**named, **_attributes(named)}, query)
        return (Message({**facts, "data": value}, as_text(body)),)
    value = _read(kind, body)
    return (Message(message_facts(value, named, query), as_text(body)),)


def read_headers(delivery: Delivery) -> dict[str, str]:
    """The headers as an expression sees them: all but those by which a sender proves itself, since an event may be made of them.

    Raises `RejectedError` 415 when they say that the body is compressed.
    """
    if (delivery.headers.get("content-encoding") or "").strip().lower() not in ("", "identity"):
        raise RejectedError(415, "the body is compressed; send it as it is")
    headers = delivery.headers
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, (_, value) in zip(headers.names, headers.raw, strict=True)
        if name not in _CREDENTIALS
    }


def read_query(delivery: Delivery) -> Mapping[str, str]:
    """The query as an expression sees it."""
    query = delivery.query
    return query if "access_token" not in query else {k: v for k, v in query.items() if k != "access_token"}


def message_facts(body: object, headers: Mapping[str, str], query: Mapping[str, str]) -> dict[str, object]:
    """What an expression sees before a route has found its parameters."""
    return {"body": body, "headers": headers, "params": {}, "query": query}


def media_type(content_type: str) -> str:
    """Without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a media type is JSON (RFC 8259; RFC 6839, 3.1)."""
    return kind == "application/json" or kind.endswith("+json")


def _read(kind: str, body: bytes) -> object:
    if is_json(kind):
        return read_json(body)
    if kind == _FORM:
        return _read_form(body)
    return as_text(body)


def read_json(body: bytes) -> object:
    """Decode a body that says it is JSON. Raises `RejectedError` 400."""
    try:
        return decode(body)
    except UndecodableError as error:
        raise RejectedError(400, str(error)) from error
    except RecursionError:
        raise RejectedError(400, "the body is not JSON that can be kept: it is nested too deeply") from None


def _read_form(body: bytes) -> object:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise RejectedError(400, f"the body is not a form of at most {MAX_FIELDS} fields in UTF-8") from None
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def as_text(body: bytes) -> str:
    """The body as it came, base64 when it is not text."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


def write_json(value: object, what: str) -> str:
    """Encode what came out of a body. Raises `RejectedError` 400 when that cannot be."""
    try:
        return encode(value)
    except (ValueError, TypeError, RecursionError):
        raise RejectedError(400, f"{what} cannot be written as JSON") from None


# CloudEvents


def _attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of an event in binary mode, decoded (HTTP binding 1.0, 3.1.3.2); the data's type is in `content-type` there."""
    found = {name: _header_text(value) for name, value in headers.items() if name.startswith("ce-")}
    if "content-type" in headers:
        found["ce-datacontenttype"] = headers["content-type"]
    return found


def _header_text(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    return unquote(value)


def _batch(events: object, headers: Mapping[str, str], query: Mapping[str, str]) -> Sequence[Message]:
    if not isinstance(events, list):
        raise RejectedError(400, "the body is no batch of CloudEvents: not a list")
    return [_cloud_event(event, headers, query, write_json(event, "an event of the batch")) for event in events]


def _cloud_event(event: object, headers: Mapping[str, str], query: Mapping[str, str], text: str) -> Message:
    """An event in structured mode, with its attributes as headers beside those that came."""
    if not isinstance(event, dict):
        raise RejectedError(400, "the body is no CloudEvent: not an object")
    for name in ("specversion", "id", "source", "type"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise RejectedError(400, f"the body is no CloudEvent: `{name}` is missing or no text")
    attributes = {
        f"ce-{name.lower()}": _attribute(value)
        for name, value in event.items()
        if name not in ("data", "data_base64") and isinstance(value, str | int | bool)
    }
    facts = message_facts(event, {**headers, **attributes}, query)
    return Message({**facts, "data": _event_data(event)}, text)


def _attribute(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _event_data(event: Mapping[str, object]) -> object:
    packed, data = event.get("data_base64"), event.get("data")
    kind = media_type(str(event.get("datacontenttype") or ""))
    if packed is None:
        # JSON is itself here, any other type a text
        return _read(kind, data.encode("utf-8", "replace")) if isinstance(data, str) and kind == _FORM else data
    try:
        unpacked = base64.b64decode(packed if isinstance(packed, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise RejectedError(400, "the body is no CloudEvent: `data_base64` is not base64") from None
    return _read(kind, unpacked)
