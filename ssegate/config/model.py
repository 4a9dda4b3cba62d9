"""What a configuration file may say: one class per mapping, one attribute per key, valid or not built at all.

A class holds what can be checked of one key by itself; what several keys have to do with each other is in `check.py`.
The docstring below a key is its description in the JSON Schema and in the manual.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from ssegate.config import values
from ssegate.config.asking import Feed, Poll, Stream, Task
from ssegate.config.auth import Auth as RouteAuth
from ssegate.config.auth import Guard
from ssegate.config.types import (
    SINGLE_FIELDS,
    TEXT_SCHEMA,
    Boolean,
    Cidr,
    Count,
    Duration,
    DurationOrZero,
    EventName,
    JMESPath,
    Listen,
    Model,
    Pattern,
    Rate,
    RoutePath,
    Rule,
    Secret,
    ShortForm,
    Size,
    StreamCount,
    Text,
    hidden,
    is_host,
    read_any_template,
    said_url,
)
from ssegate.config.values import (
    Address,
    Expanded,
    ValueFault,
    plain,
    said,
    wrong_type,
)
from ssegate.config.webhook import Webhook
from ssegate.core.event import RESERVED_TYPES
from ssegate.core.principal import is_of_viewer
from ssegate.core.template import Template


class Drain(Model):
    """How the gate goes down."""

    delay: DurationOrZero = 0.0
    """How long it goes on answering after readiness has failed, so that a load balancer notices."""
    timeout: DurationOrZero = 20.0
    """Streams are ended spread over this time."""


class ServerTls(Model):
    """A second public listener, with TLS: HTTP/2 and HTTP/1.1, by ALPN."""

    listen: Listen = Address("0.0.0.0", 8443)  # noqa: S104  (a gateway in a container is there to be reached)
    """Its address, `host:port`."""
    cert: Annotated[Path | None, PlainValidator(values.read_file_name), WithJsonSchema(TEXT_SCHEMA)] = None
    """A PEM file with the certificate and those between it and its authority; read again when it changes."""
    key: Annotated[Path | None, PlainValidator(values.read_file_name), WithJsonSchema(TEXT_SCHEMA)] = None
    """A PEM file with the certificate's private key, without a passphrase; read again when it changes."""
    self_signed: Boolean = False
    """Whether a certificate for this machine is made at each start, in place of `cert` and `key`; for development."""


def _read_tls(value: object, read: ValidatorFunctionWrapHandler) -> ServerTls | None:
    # `tls:` whose keys are all comments must not mean a gate without TLS.
    if value is None:
        raise wrong_type(value, "a mapping")
    tls: ServerTls | None = read(value)
    return tls


class Server(Model):
    """Where and how the gate listens."""

    listen: Listen = Address("0.0.0.0", 8080)  # noqa: S104  (a gateway in a container is there to be reached)
    """The public address, `host:port`. HTTP/1.1 and HTTP/2 with prior knowledge."""
    tls: Annotated[ServerTls | None, WrapValidator(_read_tls)] = None
    """A second public listener, with TLS. Without it there is none."""
    edge: Annotated[Literal["native", "hypercorn"], BeforeValidator(values.choice("native", "hypercorn"))] = "native"
    """What serves: the gate's own `native` edge, or `hypercorn` (ASGI), which is slower and knows HTTP/3."""
    http3: Boolean = False
    """Whether the TLS listener serves HTTP/3 as well, over UDP; with `edge: hypercorn` and `ssegate[http3]` only."""
    trusted_proxies: tuple[Cidr, ...] = ()
    """Networks whose `X-Forwarded-*` is believed; from others it is replaced."""
    keep_alive: Duration = 75.0
    """How long an idle connection stays; behind a load balancer longer than its own idle limit."""
    state_dir: Annotated[Path | None, PlainValidator(values.read_file_name), WithJsonSchema(TEXT_SCHEMA)] = None
    """A folder where the ids of webhook subscriptions, and where feeds have stopped, outlive a restart. Without it they are kept in
    memory."""
    drain: Drain = Drain()
    """What happens on SIGTERM."""


class Admin(Model):
    """The listener for health and metrics."""

    listen: Listen = Address("127.0.0.1", 9901)
    """Its address, `host:port`; never the public one. `none`: no admin listener."""


def _read_admin(value: object, read: ValidatorFunctionWrapHandler) -> Admin | None:
    if plain(value) == "none":
        return None
    if isinstance(value, dict) and plain(value.get("listen")) == "none":
        read({key: item for key, item in value.items() if key != "listen"})
        return None
    if value is None:
        raise wrong_type(value, "a mapping, or none")
    admin: Admin | None = read(value)
    return admin


class Timeout(Model):
    """How long to wait for an upstream."""

    connect: Duration = 2.0
    """To get a connection."""
    read: Duration = 10.0
    """The longest silence while an answer is awaited or read."""


class Backoff(Model):
    """How failing polls are spaced; with full jitter, and `Retry-After` wins."""

    min: Duration = 1.0
    """The first wait."""
    max: Duration = 60.0
    """The longest wait."""

    @model_validator(mode="after")
    def _in_order(self) -> Backoff:
        if self.min > self.max:
            raise ValueFault("value", "`min` is longer than `max`; swap them")
        return self


def _read_user(value: object) -> str:
    user = values.read_line(value)
    if ":" in user:
        raise ValueFault("value", "a user name has no `:`; the password has a key of its own")
    return user


class Basic(Model):
    """A name and a password (RFC 7617)."""

    stand_ins = {"user": "x", "password": "x"}

    user: Annotated[str, PlainValidator(_read_user), WithJsonSchema(TEXT_SCHEMA)]
    """The name; it has no colon."""
    password: Secret
    """The password."""


class Auth(Model):
    """How the gate shows an upstream who it is."""

    bearer: Secret | None = None
    """A token, sent as `Authorization: Bearer …`."""
    basic: Basic | None = None
    """A name and a password, sent as `Authorization: Basic …`."""

    @model_validator(mode="after")
    def _just_one(self) -> Auth:
        if (self.bearer is None) == (self.basic is None):
            raise ValueFault("value", "write either `bearer` or `basic`")
        return self


def _read_file_name(value: object) -> str:
    text = values.read_line(value)
    if not Path(text).is_file():
        raise ValueFault("value", f"{said(value)} is not a file that is there")
    return text


class Tls(Model):
    """How an upstream's certificate is checked."""

    ca: Annotated[str | None, PlainValidator(_read_file_name), WithJsonSchema(TEXT_SCHEMA)] = None
    """A file with the certificates of authorities to trust in place of the system's."""
    verify: Boolean = True
    """Whether the certificate is checked at all."""


def _read_sent_header(value: str) -> str:
    if values.read_header_name(value) in SINGLE_FIELDS:
        raise ValueFault("value", f"`{value}` is a header the gate makes itself; leave it out")
    return value


def _read_header_value(value: object) -> str:
    # A header may carry a token, so its value is never quoted.
    text = values.read_any_text(hidden(value))
    if re.search(r"[^\t\x20-\x7e\x80-\xff]", text):
        raise ValueFault("value", "a header's value holds no line end, control character or other script")
    if is_personal(text):
        _check_personal(text)
    return text


def is_personal(value: str) -> bool:
    """Whether a header's value is a template that names what is known of the viewer; any other is meant as it stands."""
    return "{identity}" in value or "{claims." in value


def _check_personal(text: str) -> None:
    try:
        names = Template(text).names
    except ValueError:
        names = ("",)
    if any(not is_of_viewer(name) and not name.startswith("env.") for name in names):
        raise ValueFault(
            "template",
            "names the viewer, so it is a template; it may name `{identity}`, `{claims.x}` and `{env.X}` only, "
            "and a brace that is meant as it stands is written twice",
        )


def _read_url(value: object) -> str:
    """An origin, with a path prefix that does not end with a slash."""
    text = values.read_line(value)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueFault("value", f"{said_url(value)} is not a URL; write http://host:port") from None
    if "@" in parts.netloc:
        raise ValueFault("value", "a URL holds no user or password; use auth: basic")
    if parts.scheme not in ("http", "https") or "://" not in text:
        raise ValueFault("value", f"{said_url(value)} is not a URL; let it begin with http:// or https://")
    if "?" in text or "#" in text:
        raise ValueFault("value", f"{said_url(value)}: an upstream has no query and no fragment; leave them out")
    host = parts.hostname or ""
    if port == 0 or parts.netloc.endswith(":") or not is_host(parts.netloc, host):
        raise ValueFault("value", f"{said_url(value)} names no host; write http://host:port")
    return _checked_prefix(value, text.removesuffix("/"), parts.path)


def _checked_prefix(value: object, url: str, path: str) -> str:
    try:
        if path not in ("", "/"):
            Template(path.replace("{", "{{").replace("}", "}}")).check_url()
            if "//" in path or path.endswith("//") or "{" in path or "}" in path:
                raise ValueError("write single slashes and no { }")
    except ValueError as error:
        reason = "" if isinstance(value, Expanded) else f": {error}"
        raise ValueFault("value", f"{said_url(value)} has a path that cannot be a prefix{reason}") from None
    return url


class Upstream(Model):
    """An HTTP API that the gate asks."""

    stand_ins = {"url": "http://localhost"}

    url: Annotated[str, PlainValidator(_read_url), WithJsonSchema({"type": "string", "pattern": r"^https?://|\$\{"})]
    """Scheme, host, port if need be, and a path prefix if all of the API is below one."""
    timeout: Timeout = Timeout()
    """How long to wait."""
    connections: Count = 50
    """The most connections at once."""
    requests_per_second: Rate | None = None
    """A budget for polls, shared fairly between topics; pass-through traffic does not count. Without it there is none."""
    backoff: Backoff = Backoff()
    """How polls that fail are spaced."""
    headers: dict[
        Annotated[str, AfterValidator(_read_sent_header)],
        Annotated[str, PlainValidator(_read_header_value), WithJsonSchema({"type": "string"})],
    ] = Field(default={}, repr=False)
    """Headers added to every request. One whose value names `{identity}` or `{claims.x}` is a template, and tells the upstream who the
    viewer is: it is sent with what a route with a guard asks, and left out where that is not known of the viewer. A header of that
    name which the viewer itself sends never goes through."""
    host: Annotated[str, PlainValidator(values.read_host_name), WithJsonSchema(TEXT_SCHEMA)] = "preserve"
    """The `Host` of proxied requests: the viewer's (`preserve`), or a name of its own. Polls use the URL's."""
    auth: Auth | None = None
    """The gate's own credentials, sent with polls; not where a route forwards `authorization`, nor with what passes through."""
    tls: Tls = Tls()
    """How the certificate is checked."""

    @property
    def personal_headers(self) -> dict[str, str]:
        """Those of `headers` that tell who the viewer is: the templates of their values."""
        return {name: value for name, value in self.headers.items() if is_personal(value)}

    @property
    def plain_headers(self) -> dict[str, str]:
        """Those of `headers` that are sent as they stand."""
        return {name: value for name, value in self.headers.items() if not is_personal(value)}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"url": value} if isinstance(plain(value), str) else value


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\*\.)?(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def _read_origin(value: object) -> str:
    text = values.read_text(value)
    if text == "*" or _ORIGIN.fullmatch(text):
        return text
    mend = "write scheme://host[:port] in lower case, without a path; one `*.` may stand before the host"
    likely = text.lower().rstrip("/")
    if not isinstance(value, Expanded) and _ORIGIN.fullmatch(likely):
        mend = f"write {likely}"
    raise ValueFault("value", f"{said(value)} is not an origin; {mend}")


class Cors(Model):
    """Which pages of other origins may read."""

    stand_ins = {"origins": ("https://localhost",)}

    origins: Annotated[
        tuple[Annotated[str, PlainValidator(_read_origin), WithJsonSchema(TEXT_SCHEMA)], ...], Field(min_length=1)
    ]
    """Origins, exact or with `*.` before the host, such as `https://*.example.com`; or `"*"` for all."""
    credentials: Boolean = False
    """Whether cookies and `Authorization` may be sent; not together with `"*"`."""


class History(Model):
    """What is kept of a topic for those who come back."""

    events: Count = 1000
    """The most events. Of streams that belong to one request 100,000, where nothing else is said."""
    size: Size = 16 * 1024 * 1024
    """The most bytes of one topic; its newest event is kept in any case."""
    age: Duration = 600.0
    """The longest time."""


class Defaults(Model):
    """What holds for each route that does not say otherwise."""

    heartbeat: Duration = 15.0
    """A comment line is sent when a stream has been idle that long."""
    retry: Duration = 3.0
    """How long a client waits before it reconnects; jittered by half for each."""
    max_age: DurationOrZero = 0.0
    """A stream is ended after this long, give or take a fifth, and the client reconnects. `0s`: never."""
    history: History = History()
    """What is kept for those who come back."""
    auth: RouteAuth = None
    """Which guards say who may subscribe, on each event route that does not say otherwise. Requests that pass through are not meant."""


class Limits(Model):
    """What the gate takes on at most."""

    clients: Count = 10_000
    """Streams at once; more are told to come back later."""
    clients_per_ip: Count | None = None
    """Streams at once from one address. Without it there is no such limit."""
    clients_per_user: Count | None = None
    """Streams at once of one identity, where a guard names it. Without it there is no such limit."""
    requests_per_second: Rate | None = None
    """How many streams, and tickets, one address may ask for in a second, and at once. Without it there is no such limit."""
    streams_per_connection: StreamCount = 250
    """Requests and event streams at once on one HTTP/2 connection; more are refused."""
    topics: Count = 10_000
    """Topics at once."""
    event_size: Size = 1024 * 1024
    """The largest event, or state of a poll."""
    webhook_body: Size = 1024 * 1024
    """The largest body of a webhook."""
    stream_body: Size = 16 * 1024 * 1024
    """The largest body of a request that opens a stream or starts a job."""
    request_head: Size = 32 * 1024
    """The largest head of a request."""
    stall: Duration = 30.0
    """A client that takes nothing for this long is dropped."""


def _read_event_name(value: object) -> str:
    name = values.read_line(value)
    if name in RESERVED_TYPES:
        raise ValueFault("value", f"{said(value)} is a name of the gate's own; take another")
    return name


_EventName = Annotated[str, PlainValidator(_read_event_name), WithJsonSchema(TEXT_SCHEMA)]


class Names(Model):
    """What the events of a form are called, where that is not the usual name."""

    snapshot: _EventName | None = None
    """The whole state."""
    patch: _EventName | None = None
    """A JSON Patch (RFC 6902)."""
    merge: _EventName | None = None
    """A JSON Merge Patch (RFC 7396)."""
    added: _EventName | None = None
    """An entry that was not there before."""
    changed: _EventName | None = None
    """An entry that has changed."""
    removed: _EventName | None = None
    """An entry that is gone."""


def _read_markup(value: object) -> str:
    """Text of one or more lines with `{name}` in it."""
    text = values.read_text(value)
    if "\0" in text or "\r" in text:
        raise ValueFault("value", "holds CR or NUL; write lines that end with LF alone")
    return read_any_template(value, text)


class Emit(Model):
    """In which form changes are told."""

    as_: Annotated[
        Literal["snapshot", "patch", "merge", "items"],
        BeforeValidator(values.choice("snapshot", "patch", "merge", "items")),
    ] = Field(default="snapshot", alias="as")
    """`snapshot`: the whole state; `patch`: RFC 6902; `merge`: RFC 7396; `items`: entries added, changed and removed."""
    names: Names = Names()
    """Other names for the events of the form."""
    event: EventName | None = None
    """The event's name, a template; on webhook and stream routes, and beside a `template`. A feed has an `event` of its own."""
    data: JMESPath | None = None
    """What is the event's data: of `{body, headers, params, query}` on webhook routes, where it is the body as it came without
    this; of the item on feed routes."""
    template: Annotated[str | None, PlainValidator(_read_markup), WithJsonSchema(TEXT_SCHEMA)] = None
    """The event's data as HTML, a template over the state, record or item; values are made harmless. Events are then unnamed,
    unless `event` names them."""


class Proxy(Model):
    """Requests that pass to an upstream untouched."""

    upstream: Text = ""
    """Which upstream gets them; may be left out when there is only one."""


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_Method = Annotated[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], BeforeValidator(values.choice(*_METHODS))]
_SOURCES = ("poll", "stream", "task", "feed", "webhook", "topics")


class Route(Model):
    """A public path, and where its events or answers come from."""

    stand_ins = {"path": "/"}

    path: RoutePath
    """The path: `/orders/{id}/events`. A parameter is one whole segment; `{rest:path}` ends a proxy route."""
    params: dict[str, Pattern] = {}
    """Regular expressions that parameters match in full; anything else is 404."""
    query: dict[str, Pattern] = {}
    """The only query parameters that count, each with a regular expression it matches in full."""
    methods: Annotated[tuple[_Method, ...], Field(min_length=1)] | None = None
    """Which methods open its stream. Without it `GET`; `POST`, where it takes a body to the upstream or starts a job."""
    negotiate: Boolean = False
    """Whether it answers only if `Accept` names `text/event-stream`; otherwise the next match does."""
    poll: Poll | None = None
    """Events come from a resource that is polled."""
    stream: Stream | None = None
    """Events come from an answer of the upstream that goes on and on."""
    task: Task | None = None
    """Events come from a job that is followed to its end."""
    feed: Feed | None = None
    """Events come from a list that grows, asked for behind a cursor."""
    webhook: Webhook | None = None
    """Events come from deliveries."""
    topics: Annotated[tuple[RoutePath, ...], Field(min_length=1)] | None = None
    """Events come from other routes, those with these paths, up to 100 topics on one stream: `?topic=/orders/17/events&topic=…`."""
    proxy: Proxy | None = None
    """No events: requests pass to an upstream."""
    auth: RouteAuth = None
    """The guards that say who may subscribe: a name below the top `auth`, a list of which the first that recognises the viewer decides,
    or `none` for everybody."""
    allow: Rule = None
    """What must be true of `{params, query, claims, identity, headers}`; else the viewer gets 403."""
    emit: Emit = Emit()
    """In which form events are sent."""
    heartbeat: Duration = 15.0
    """As in `defaults`, for this route."""
    retry: Duration = 3.0
    """As in `defaults`, for this route."""
    max_age: DurationOrZero = 0.0
    """As in `defaults`, for this route."""
    history: History = History()
    """As in `defaults`, for this route; a key that is left out is the default's."""

    _line: int = PrivateAttr(default=0)

    @property
    def line(self) -> int:
        """The line its `path` stands on."""
        return self._line

    @property
    def kind(self) -> str:
        """Where its events or answers come from: the name of the key."""
        return next((name for name in _SOURCES if getattr(self, name) is not None), "proxy")

    @property
    def asks(self) -> Poll | Stream | Task | Feed | Proxy | None:
        """What it asks of an upstream, if it does."""
        return self.poll or self.stream or self.task or self.feed or self.proxy

    @property
    def opened_by(self) -> tuple[str, ...]:
        """The methods that open its stream."""
        if self.methods is not None:
            return self.methods
        request = self.stream or (self.task.start if self.task is not None else None)
        return ("GET",) if request is None or request.method == "GET" else ("POST",)

    def __eq__(self, other: object) -> bool:
        """Whether it does the same, wherever it stands in the file."""
        return isinstance(other, Route) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # as for any value that holds dictionaries


def _read_version(value: object) -> int:
    if type(plain(value)) is not int or plain(value) != 1:
        raise ValueFault("value", f"{said(value)} is not a version this program knows; write 1")
    return 1


_Version = Annotated[Literal[1], BeforeValidator(_read_version), WithJsonSchema({"const": 1})]


class Config(Model):
    """A whole configuration, every default in its place."""

    stand_ins = {"version": 1, "routes": ()}

    version: _Version
    """The version of this format: 1."""
    server: Server = Server()
    """Where and how the gate listens."""
    admin: Annotated[Admin | None, WrapValidator(_read_admin), ShortForm({"const": "none"})] = None
    """The listener for health and metrics. Without it, or `none`, there is none."""
    upstreams: dict[str, Annotated[Upstream, ShortForm({"type": "string", "pattern": r"^https?://|\$\{"})]] = {}
    """The HTTP APIs behind the gate, by name. `api: http://localhost:8000` is the short form."""
    cors: Cors | None = None
    """Which pages of other origins may read. Without it none."""
    auth: dict[str, Guard] = {}
    """Guards, by name: ways to find out who a viewer is."""
    defaults: Defaults = Defaults()
    """What holds for each route that does not say otherwise."""
    limits: Limits = Limits()
    """What the gate takes on at most."""
    routes: tuple[Route, ...]
    """The public paths. The most specific one answers, whatever the order."""

    _source: str = PrivateAttr(default="")

    @property
    def source(self) -> str:
        """The file's name as people know it."""
        return self._source
