"""What a route makes of a webhook's message: does it concern the route, with which parameters, and what is the event."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ssegate.core.delivery import Message, write_json
from ssegate.core.event import RESERVED_TYPES, Update, encode_text
from ssegate.core.markup import plain, render
from ssegate.core.template import Template
from ssegate.errors import RejectedError, UndecodableError

Search = Callable[[object], object]
"""An expression: called with `{body, headers, params, query}`; None is nothing. Raises `UndecodableError`."""

TopicOf = Callable[[Mapping[str, str]], str | None]
"""The key of the topic with these parameters; None when no viewer could ask for them."""


_FORGING = re.compile(r"[\r\n\0]")


class Selection:
    """Which messages concern a route, and the route's parameters in them."""

    def __init__(self, match: Mapping[str, Search], when: Search | None = None) -> None:
        self._match = match
        self._when = when

    def params(self, message: Message) -> Mapping[str, str] | None:
        """The parameters that `match` finds; None when `when` leaves the message out.

        Raises `RejectedError`: 202 when a parameter is not in the message, 400 when an expression cannot take it.
        """
        found = {name: _segment(_search(expression, message.facts)) for name, expression in self._match.items()}
        if self._when is not None and not _is_true(_search(self._when, {**message.facts, "params": found})):
            return None
        params = {name: value for name, value in found.items() if value is not None}
        if len(params) < len(found):
            missing = " and no ".join(f"`{name}`" for name in found if name not in params)
            raise RejectedError(202, f"no event: the delivery has no {missing}")
        return params


class WebhookReceiver:
    """Turns messages into one route's events; see `interfaces.Receiver`."""

    def __init__(
        self,
        selection: Selection,
        *,
        topic_of: TopicOf,
        event: Template | None,
        data: Search | None,
        template: Template | None = None,
        max_event_size: int,
        environ: Mapping[str, str],
    ) -> None:
        """`event`, `data` and `template` are the route's `emit`; without `data` an event's data is the body as it came, and a
        template makes HTML of what `data` gives, or of the whole message.

        `environ` is what `{env.X}` in `event` and `template` stands for.
        """
        self._selection = selection
        self._topic_of = topic_of
        self._event = event
        self._data = data
        self._template = template
        self._max_event_size = max_event_size
        self._environ = environ

    def receive(self, message: Message) -> Sequence[Update]:
        """The message's event; none when `when` leaves it out or `emit.data` gives null.

        Raises `RejectedError`: 202 when it says nothing to this route, 400 when an expression cannot take it, 413 when the
        event would be too large.
        """
        params = self._selection.params(message)
        if params is None:
            return ()
        topic = self._topic_of(params)
        if topic is None:
            raise RejectedError(202, f"no event: no viewer can ask for {_listed(params)}")
        facts = {**message.facts, "params": params}
        data = self._make_data(facts, message, params)
        if data is None:
            return ()
        type_ = "" if self._event is None else self._make_type(self._event, facts, params)
        size = _size(data) + _size(type_)
        if size > self._max_event_size:
            raise RejectedError(413, f"the event is {size} bytes; limits.event_size is {self._max_event_size}")
        return (Update(topic, data, type=type_),)

    def _make_data(self, facts: Mapping[str, object], message: Message, params: Mapping[str, str]) -> str | None:
        if self._data is None and self._template is None:
            return message.text
        value = facts if self._data is None else _search(self._data, facts)
        if value is None:
            return None
        if self._template is not None:
            known = {**facts, **params, "env": self._environ} if self._data is None else value
            return render(self._template, known)
        return value if isinstance(value, str) else write_json(value, "what `emit.data` gives")

    def _make_type(self, event: Template, facts: Mapping[str, object], params: Mapping[str, str]) -> str:
        known = {**facts, **params, "env": self._environ}
        type_ = event.expand({name: plain(known, name) for name in event.names})
        if type_ in RESERVED_TYPES or _FORGING.search(type_):
            raise RejectedError(202, f"no event: {type_[:64]!r} cannot be an event's name")
        return type_


def _size(text: str) -> int:
    """Bytes in UTF-8; most texts are ASCII and know it."""
    return len(text) if text.isascii() else len(encode_text(text))


def _search(expression: Search, facts: object) -> object:
    try:
        return expression(facts)
    except UndecodableError as error:
        raise RejectedError(400, str(error)) from error


def _is_true(value: object) -> bool:
    """As JMESPath has it: false, null and what is empty are not."""
    return value is not None and value is not False and value not in ("", [], {})


def _segment(value: object) -> str | None:
    """A route parameter out of a message: text, or a whole number; None when it is none."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _listed(params: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value[:64]!r}" for name, value in params.items())
