"""Turns a webhook's delivery into an update: is it authentic, which topic is meant, what is the event."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

from ssegate.core.document import decode, encode
from ssegate.core.event import RESERVED_TYPES, Update, encode_text
from ssegate.core.headers import Headers
from ssegate.core.template import Template
from ssegate.errors import RejectedError, UndecodableError

Verify = Callable[[Headers, bytes], bool]
"""Whether a delivery is authentic, by its headers and raw body."""

TopicOf = Callable[[Mapping[str, str]], str | None]
"""The key of the topic with these parameters; None when no viewer could ask for them."""

_FORGING = re.compile(r"[\r\n\0]")


class WebhookReceiver:
    """One route's view of the deliveries to its webhook."""

    def __init__(
        self,
        *,
        verify: Verify,
        match: Mapping[str, Callable[[object], object]],
        topic_of: TopicOf,
        event: Template | None,
        data: Callable[[object], object] | None,
        max_event_size: int,
    ) -> None:
        """`match` gives each of the route's parameters out of `{body, headers, params, query}`."""
        self._verify = verify
        self._match = match
        self._topic_of = topic_of
        self._event = event
        self._data = data
        self._max_event_size = max_event_size

    def receive(self, headers: Headers, body: bytes) -> Sequence[Update]:
        """Turn one delivery into its event, or none when `emit.data` gives null.

        Raises `RejectedError`: 401 when it is not authentic (nothing of it has been looked at then), 400 when it is not
        readable, 415 when it is compressed, 202 when it is genuine but says nothing to this route, 413 when the event
        would be too large.
        """
        if not self._verify(headers, body):
            raise RejectedError(401, "the signature is missing or wrong")
        if (headers.get("content-encoding") or "").strip().lower() not in ("", "identity"):
            raise RejectedError(415, "the body is compressed; send it as it is")
        facts = _facts(headers, body)
        topic = self._find_topic(facts)
        data = self._make_data(facts, body)
        if data is None:
            return ()
        type_ = self._make_type(facts)
        size = len(encode_text(data)) + len(encode_text(type_))
        if size > self._max_event_size:
            raise RejectedError(413, f"the event is {size} bytes; limits.event_size is {self._max_event_size}")
        return (Update(topic, data, type=type_),)

    def _find_topic(self, facts: Mapping[str, object]) -> str:
        params = {name: _segment(name, _search(expression, facts)) for name, expression in self._match.items()}
        topic = self._topic_of(params)
        if topic is None:
            raise RejectedError(202, f"no event: no viewer can ask for {_listed(params)}")
        return topic

    def _make_data(self, facts: Mapping[str, object], body: bytes) -> str | None:
        if self._data is None:
            return _as_text(body)
        value = _search(self._data, facts)
        if value is None or isinstance(value, str):
            return value
        try:
            return encode(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise RejectedError(400, "what `emit.data` gives cannot be written as JSON") from error

    def _make_type(self, facts: Mapping[str, object]) -> str:
        if self._event is None:
            return ""
        type_ = self._event.expand({name: _look_up(facts, name) for name in self._event.names})
        if type_ in RESERVED_TYPES or _FORGING.search(type_):
            raise RejectedError(202, f"no event: {type_[:64]!r} cannot be an event's name")
        return type_


def _facts(headers: Headers, body: bytes) -> dict[str, object]:
    """What an expression sees."""
    named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    return {"body": _parse(headers.get("content-type") or "", body), "headers": named, "params": {}, "query": {}}


def _parse(content_type: str, body: bytes) -> object:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _parse_json(body)
    if kind == "application/x-www-form-urlencoded":
        return _parse_form(body)
    return _as_text(body)


def _parse_json(body: bytes) -> object:
    try:
        return decode(body)
    except UndecodableError as error:
        raise RejectedError(400, str(error)) from error
    except RecursionError as error:
        raise RejectedError(400, "the body is not JSON that can be kept: it is nested too deeply") from error


def _parse_form(body: bytes) -> object:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise RejectedError(400, "the body is not a form") from error
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _as_text(body: bytes) -> str:
    """The body as it came, base64 when it is not text."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


def _search(expression: Callable[[object], object], facts: object) -> object:
    try:
        return expression(facts)
    except UndecodableError as error:
        raise RejectedError(400, str(error)) from error


def _segment(name: str, value: object) -> str:
    """A route parameter out of a delivery: text, or a whole number."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RejectedError(202, f"no event: the delivery has no `{name}`")


def _listed(params: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value[:64]!r}" for name, value in params.items())


def _look_up(facts: Mapping[str, object], name: str) -> str:
    """What a dotted name of a template stands for; empty when it is absent or no plain value."""
    value: object = facts
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else ""
