"""Events as HTML, out of `{name}` templates: for Turbo, htmx, Datastar and all that put what comes into a page."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ssegate.core.document import encode
from ssegate.core.event import RESERVED_TYPES
from ssegate.core.template import Template

_FORGING = re.compile(r"[\r\n\0]")

_ESCAPES = str.maketrans({
    "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;",
    # Datastar reads an event line by line: a line end in a value could forge a line.
    "\n": "&#10;", "\r": "&#13;", "\0": "\ufffd",
})  # fmt: skip


class Markup:
    """How a state is told as HTML, and what such an event is called."""

    def __init__(self, template: str, event: str | None = None) -> None:
        """Both are templates; without `event` events are unnamed."""
        self._template = Template(template)
        self._event = None if event is None else Template(event)

    def write(self, value: object) -> tuple[str, str]:
        """The type and the data of the event that tells this."""
        return "" if self._event is None else event_type(self._event, value), render(self._template, value)


def event_type(template: Template, facts: object) -> str:
    """An event's type out of a template over a document: what could forge a field is left out, and a name that is the gate's
    own gets `upstream-` before it."""
    type_ = _FORGING.sub("", template.expand(lambda name: plain(facts, name)))
    return f"upstream-{type_}" if type_ in RESERVED_TYPES else type_


def render(template: Template, facts: object) -> str:
    """Put the values in, each made harmless: in text and in a quoted attribute it is read as what it was.

    Text stays text; numbers and booleans are written as JSON has them, objects and lists as their JSON; what is absent, or
    null, is empty.
    """
    return template.expand(lambda name: escape(_text(find(facts, name))))


def escape(text: str) -> str:
    """Write a text so that HTML reads it as text (HTML standard, 13.1.2.4 and 13.2.5)."""
    return text.translate(_ESCAPES)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else encode(value)


def find(facts: object, name: str) -> object:
    """What a dotted name stands for in a document; None when it is absent."""
    value = facts
    for part in name.split("."):
        if isinstance(value, list) and part.isascii() and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def plain(facts: object, name: str) -> str:
    """The same as a text, for an event's name; empty when it is absent or no plain value."""
    value = find(facts, name)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else ""
