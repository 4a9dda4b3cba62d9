"""What a route may ask of its upstream: a resource to poll, a stream to follow, a job, a feed.

The docstring below a key is its description in the JSON Schema and in the manual.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, PlainValidator, WithJsonSchema, model_validator

from ssegate.config import values
from ssegate.config.types import (
    DURATION_SCHEMA,
    SINGLE_FIELDS,
    TEXT_SCHEMA,
    Boolean,
    Duration,
    DurationOrZero,
    EventName,
    GoneStatus,
    JMESPath,
    Keys,
    Line,
    Model,
    Pointer,
    Text,
    UrlTemplate,
    read_path,
    read_url_template,
)
from ssegate.config.values import Every, ValueFault, plain, said

_OWN_FIELDS = SINGLE_FIELDS | {"accept-encoding", "if-none-match", "if-modified-since", "range", "last-event-id"}


class EveryKeys(Model):
    """An interval that adapts."""

    stand_ins = {"min": "1s", "max": "1s"}

    model_config = ConfigDict(title="Every")

    min: Duration
    """While the resource changes."""
    max: Duration
    """While it does not."""

    @model_validator(mode="after")
    def _in_order(self) -> EveryKeys:
        if self.min > self.max:
            raise ValueFault("value", "`min` is longer than `max`; swap them")
        return self


def _read_every(value: object) -> Every:
    if isinstance(value, dict):
        keys = EveryKeys.model_validate(value)
        return Every(keys.min, keys.max)
    seconds = values.read_duration(value, values.EVERY)
    return Every(seconds, seconds)


_EveryValue = Annotated[
    Every,
    Keys(EveryKeys),
    PlainValidator(_read_every),
    WithJsonSchema({"anyOf": [DURATION_SCHEMA, EveryKeys.model_json_schema()]}),
]


class Items(Model):
    """Where the entries of a list are, and what tells them apart."""

    stand_ins = {"key": "id"}

    at: JMESPath | None = None
    """Where in the state the list is; without it the state itself is the list."""
    key: JMESPath
    """What identifies an entry."""


def _read_forwarded(value: object) -> str:
    name = values.read_header_name(value)
    if name in _OWN_FIELDS:
        raise ValueFault("value", f"{said(value)} cannot be forwarded; the gate sets it itself")
    return name


_Forward = tuple[Annotated[str, PlainValidator(_read_forwarded), WithJsonSchema(TEXT_SCHEMA)], ...]


def _read_after_write(value: object) -> bool | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(read_path(item) for item in value)
    found = plain(value)
    if not isinstance(found, bool):
        raise ValueFault(
            "type", f"{said(value)} is not known here; write true, or a list of paths such as [/orders/{{id}}]"
        )
    return found


class Poll(Model):
    """A resource that is asked for again and again while someone watches."""

    stand_ins = {"get": "/"}

    upstream: Text = ""
    """Which upstream is asked; may be left out when there is only one."""
    get: UrlTemplate
    """The path and query to ask for, a template: `/orders/{id}?status={query.status}`."""
    every: _EveryValue = Every(5.0, 5.0)
    """How often: `2s`, or `{min: 2s, max: 30s}`, which slows down while nothing changes."""
    linger: DurationOrZero = 30.0
    """How long polling goes on after the last viewer has left."""
    conditional: Boolean = True
    """Whether `If-None-Match` and `If-Modified-Since` are sent."""
    forward: _Forward = ()
    """Headers of the viewer that are sent along; the topic is then private to their values."""
    select: JMESPath | None = None
    """What of the JSON body is the state. Without it all of it is."""
    ignore: tuple[Pointer, ...] = ()
    """Parts of the state that are left out when states are compared, as JSON Pointers."""
    gone: tuple[GoneStatus, ...] = (404, 410)
    """Statuses that end the stream for good."""
    body: Annotated[Literal["json", "text", "bytes"], BeforeValidator(values.choice("json", "text", "bytes"))] = "json"
    """What the body is. `bytes` are sent as base64."""
    after_write: Annotated[
        bool | tuple[str, ...],
        PlainValidator(_read_after_write),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "array", "items": TEXT_SCHEMA}]}),
    ] = False
    """Whether to poll at once after a successful write through the gate: `true` for its own path, or a list of paths."""
    items: Items | None = None
    """For `emit: {as: items}`: where the list is."""


METHODS = ("get", "post", "put", "patch", "delete")

_Newcomers = Annotated[Literal["nothing", "last", "kept"], BeforeValidator(values.choice("nothing", "last", "kept"))]
_FORMATS = ("sse", "ndjson", "json-seq", "lines", "bytes", "websocket")


class Request(Model):
    """A method and a path."""

    get: UrlTemplate | None = None
    """The path and query to `GET`, a template."""
    post: UrlTemplate | None = None
    """The path and query to `POST` to, a template."""
    put: UrlTemplate | None = None
    """The path and query to `PUT` to, a template."""
    patch: UrlTemplate | None = None
    """The path and query to `PATCH`, a template."""
    delete: UrlTemplate | None = None
    """The path and query to `DELETE`, a template."""

    @property
    def method(self) -> str:
        """In capitals."""
        return next(name for name in METHODS if getattr(self, name) is not None).upper()

    @property
    def path(self) -> str:
        """The template."""
        path: str = getattr(self, self.method.lower())
        return path

    @model_validator(mode="after")
    def _just_one(self) -> Request:
        if len([name for name in METHODS if getattr(self, name) is not None]) != 1:
            raise ValueFault("value", f"write one of {', '.join(METHODS)}, with the path")
        return self


class Stream(Request):
    """An answer of the upstream that goes on and on, read as it comes. With `post`, `put` and `patch` the viewer's body goes along."""

    stand_ins = {"get": "/"}

    upstream: Text = ""
    """Which upstream is asked; may be left out when there is only one."""
    format: Annotated[
        Literal["sse", "ndjson", "json-seq", "lines", "bytes", "websocket"], BeforeValidator(values.choice(*_FORMATS))
    ] = "sse"
    """What it is made of: `sse`, `ndjson`, `json-seq`, `lines`, `bytes` (sent as base64) or `websocket`."""
    forward: _Forward = ()
    """Headers of the viewer that are sent along; each request then has a stream of its own."""
    data: JMESPath | None = None
    """What of a record is the event's data; null is no event. Without it the record itself."""
    event: EventName | None = None
    """The event's name, a template over the record. Without it, of `sse` the upstream's own, else none."""
    id: JMESPath | None = None
    """Where in a record its id is, for `Last-Event-ID` and `{cursor}` when the upstream is asked again; `sse` has its own."""
    done: JMESPath | None = None
    """What is true of the last record."""
    when: JMESPath | None = None
    """What must be true of a record to become an event."""
    reconnect: Boolean | None = None
    """Whether the upstream is asked again when its answer ends. Without it: after a cut, where viewers share it; after an end in good
    order, if it is `sse` or `websocket`; not where each request has a stream of its own."""
    linger: DurationOrZero = 30.0
    """How long it goes on after the last viewer has left."""
    first: _Newcomers = "kept"
    """What a newcomer gets of what came before: `nothing`, `last` or all that is `kept`."""
    batch: DurationOrZero = 0.0
    """Records that come within this time are joined to one event. `0ms`: each leaves at once."""

    @property
    def is_shared(self) -> bool:
        """Whether all viewers who ask for the same have one upstream connection together."""
        return self.get is not None and not self.forward


_FROM_START = re.compile(r"\{start\.(headers\.[A-Za-z0-9-]+|body(\.[A-Za-z0-9_-]+)+)\}")


def _read_task_get(value: object) -> str:
    """A path and query, or the place in the answer to `start` where there is one."""
    text = plain(value)
    return text if isinstance(text, str) and _FROM_START.fullmatch(text) else read_url_template(value)


class Task(Model):
    """A job at the upstream that is followed to its end."""

    stand_ins = {"get": "/"}

    upstream: Text = ""
    """Which upstream is asked; may be left out when there is only one."""
    get: Annotated[
        str, PlainValidator(_read_task_get), WithJsonSchema({"type": "string", "pattern": r"^/|^\{start\.|\$\{"})
    ]
    """The path and query of the job's status, a template; behind a `start` also `"{start.headers.location}"`."""
    start: Request | None = None
    """A request that starts the job when a viewer opens the stream; `{start.headers.x}` and `{start.body.x}` are its answer."""
    every: _EveryValue = Every(1.0, 10.0)
    """How often: `2s`, or `{min: 500ms, max: 5s}`, which slows down while nothing changes."""
    forward: _Forward = ()
    """Headers of the viewer that are sent along; the topic is then private to their values."""
    progress: JMESPath | None = None
    """What of the status is told while the job is at work; null is nothing. Without it all of it."""
    done: JMESPath | None = None
    """What is true of the status of a job that is done. Without it, any answer but 202 says so."""
    failed: JMESPath | None = None
    """What is true of the status of a job that has failed."""
    result: JMESPath | None = None
    """What of the last status is the result. Without it all of it."""
    give_up: Duration | None = None
    """How long a job may take; then it is given up. Without it there is no end to that."""
    linger: DurationOrZero = 30.0
    """How long it is followed after the last viewer has left."""

    @property
    def is_shared(self) -> bool:
        """Whether all viewers who ask for the same follow the same job."""
        return self.start is None


class Feed(Model):
    """A list that grows, asked for what is new since a cursor."""

    stand_ins = {"get": "/?after={cursor}", "next": "next"}

    upstream: Text = ""
    """Which upstream is asked; may be left out when there is only one."""
    get: UrlTemplate
    """The path and query, a template; `{cursor}` is where the last page ended, and is left out at the beginning."""
    items: JMESPath | None = None
    """Where in a page its items are; each is one event. Without it the page is the list."""
    next: JMESPath
    """Where in a page the cursor of the next request is. Null, or the same as before: there is no further page yet."""
    start: Line = "now"
    """Where it begins: `now` (what is there already is passed over), `beginning`, or a cursor."""
    every: _EveryValue = Every(5.0, 5.0)
    """How often it is asked when there is no further page: `2s`, or `{min: 2s, max: 30s}`."""
    long: DurationOrZero = 0.0
    """How long the backend may hold a request until there is something (long poll)."""
    event: EventName | None = None
    """The event's name, a template over the item. Without it events are unnamed."""
    first: _Newcomers = "kept"
    """What a newcomer gets of what came before: `nothing`, `last` or all that is `kept`."""
    linger: DurationOrZero = 30.0
    """How long it is asked after the last viewer has left."""
    forward: _Forward = ()
    """Headers of the viewer that are sent along; the topic is then private to their values."""
    forgotten: tuple[GoneStatus, ...] = (410,)
    """Statuses that say that the backend knows the cursor no more: viewers get a `reset`, and it begins anew."""
