"""The configuration, made ready to answer: each route with its templates, its topics' rules and its upstream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import environ
from typing import TypeVar

from pydantic import SecretStr

from ssegate.config.model import Config, Route
from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.core import signature
from ssegate.core.detect import Detector, make_detector
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import TopicSettings
from ssegate.core.journal import Form
from ssegate.core.poll import PollSettings
from ssegate.core.routing import Entry, PathPattern, Router, split_path
from ssegate.core.template import Template
from ssegate.edge.cors import Cors
from ssegate.sources.poll import PollRecord, PollSource, PollTarget
from ssegate.sources.webhook import Verify, WebhookReceiver
from ssegate.upstream import Upstream

T = TypeVar("T")

READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""The methods an event route answers."""

BODY_FACTOR = 8
"""How much larger than an event an answer may be: it may be indented, and `select` may leave most of it out."""

_FORMS = {"snapshot": Form.STATES, "patch": Form.CHANGES, "merge": Form.CHANGES, "items": Form.CHANGES}


class UpstreamSlot:
    """An upstream in use, and what is known of its polls."""

    def __init__(self, name: str, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.upstream = Upstream(name, settings)
        self.record = PollRecord(name)


class PollRoute:
    """A route whose topics are polled resources."""

    def __init__(self, route: Route, slot: UpstreamSlot, *, max_event_size: int) -> None:
        assert route.poll is not None
        self.route = route
        self.slot = slot
        self._poll = route.poll
        self._template = Template(route.poll.get)
        self._max_event_size = max_event_size
        emit = route.emit
        names = {name: value for name, value in emit.names if value is not None}
        self._names: dict[str, str] = names
        self.topic_settings = TopicSettings(
            _FORMS[emit.as_],
            max_events=route.history.events,
            max_age=route.history.age,
            snapshot_type="" if emit.as_ == "snapshot" else names.get("snapshot", "snapshot"),
        )
        self.poll_settings = PollSettings(
            route.poll.every.min,
            route.poll.every.max,
            conditional=route.poll.conditional,
            gone=frozenset(route.poll.gone),
            backoff_min=slot.settings.backoff.min,
            backoff_max=slot.settings.backoff.max,
            is_private=bool(route.poll.forward),
        )
        self._forwards_authorization = any(name.lower() == "authorization" for name in route.poll.forward)
        self.linger = route.poll.linger
        after = route.poll.after_write
        self._after = tuple(PathPattern(text, allow_rest=True) for text in after) if isinstance(after, tuple) else ()
        self.follows_own_writes = after is True

    def target(self, params: Mapping[str, str], query: Mapping[str, str], headers: Headers) -> PollTarget:
        """What is asked of the upstream for this viewer. Raises `ValueError` or `LookupError` when no URL comes out."""
        values: dict[str, str] = {**params, **{f"query.{name}": value for name, value in query.items()}}
        path = self._template.expand_url(lambda name: values.get(name, environ.get(name.removeprefix("env."))))
        forwarded: list[Pair] = [
            (name.encode(), value.encode("latin-1")) for name in self._poll.forward for value in headers.all(name)
        ]
        return PollTarget(path, tuple(forwarded), with_auth=not self._forwards_authorization)

    def key(self, target: PollTarget) -> str:
        """The topic: every byte that decides what the upstream answers, hashed, since headers may be credentials."""
        digest = hashlib.sha256(f"GET {target.path}\n".encode())
        for name, value in target.headers:
            digest.update(b"%s: %d\n%s\n" % (name, len(value), value))
        return f"{self.route.path} {digest.hexdigest()[:32]}"

    def make_source(self, key: str, target: PollTarget, viewers: Callable[[], int]) -> PollSource:
        """A source for one topic, that has not begun."""
        return PollSource(
            key,
            target,
            self.slot.upstream,
            self.poll_settings,
            self.make_detector(key),
            self.slot.record,
            viewers=viewers,
            max_body=BODY_FACTOR * self._max_event_size,
        )

    def make_detector(self, key: str) -> Detector:
        """A detector that has seen nothing."""
        poll, items = self._poll, self._poll.items
        return make_detector(
            key,
            emit=self.route.emit.as_,
            body=poll.body,
            select=poll.select,
            ignore=poll.ignore,
            items_at=items.at if items else None,
            items_key=items.key if items else None,
            names=self._names,
            max_event_size=self._max_event_size,
        )

    def follows(self, path: bytes) -> Mapping[str, str] | None:
        """The parameters that a written path shares with this route's topics, when `after_write` lists it; None if not."""
        segments = split_path(path)
        for pattern in self._after if segments is not None else ():
            matched = Router([Entry(pattern, pattern)]).match("POST", path, None)
            if matched is not None:
                return matched.params
        return None


class WebhookRoute:
    """A route whose topics are fed by deliveries."""

    def __init__(self, route: Route, *, max_event_size: int) -> None:
        assert route.webhook is not None
        self.route = route
        self.pattern = PathPattern(route.path)
        self.topic_settings = TopicSettings(Form.EVENTS, max_events=route.history.events, max_age=route.history.age)
        self.receiver = WebhookReceiver(
            verify=_make_verify(route),
            match=route.webhook.match,
            topic_of=self._topic_of,
            event=Template(route.emit.event) if route.emit.event else None,
            data=route.emit.data,
            max_event_size=max_event_size,
        )

    def key(self, params: Mapping[str, str]) -> str:
        """The topic these parameters name."""
        return " ".join(
            (
                self.route.path,
                *(params[name].replace("%", "%25").replace(" ", "%20") for name in self.pattern.parameters),
            )
        )

    def _topic_of(self, params: Mapping[str, str]) -> str | None:
        for name, value in params.items():
            pattern = self.route.params.get(name)
            if not value or len(value) > 256 or not value.isprintable() or "/" in value or "\\" in value:
                return None
            if pattern is not None and pattern.fullmatch(value) is None:
                return None
        return self.key(params)


@dataclass(frozen=True, slots=True)
class ProxyRoute:
    """A route that passes to an upstream."""

    route: Route
    slot: UpstreamSlot


AnyRoute = PollRoute | WebhookRoute | ProxyRoute


class Table:
    """Everything a request is looked up in. Built whole from a configuration, and replaced whole by the next."""

    def __init__(self, config: Config, before: Table | None = None) -> None:
        """What is the same as `before` is taken from there, so that its topics and connections go on."""
        self.config = config
        self.slots = self._make_slots(before)
        self.routes: tuple[AnyRoute, ...] = tuple(self._make(route, before) for route in config.routes)
        self.router: Router[AnyRoute] = Router(route_entry(route.route, route) for route in self.routes)
        self.webhooks: dict[bytes, list[WebhookRoute]] = {}
        for route in self.routes:
            if isinstance(route, WebhookRoute) and route.route.webhook is not None:
                self.webhooks.setdefault(route.route.webhook.at.encode(), []).append(route)
        self.cors = Cors(config.cors.origins, credentials=config.cors.credentials) if config.cors else None

    def _make_slots(self, before: Table | None) -> dict[str, UpstreamSlot]:
        slots = {}
        for name, settings in self.config.upstreams.items():
            if before is not None and before.config.upstreams.get(name) == settings:
                slots[name] = before.slots[name]
            else:
                slots[name] = UpstreamSlot(name, settings)
        return slots

    def _make(self, route: Route, before: Table | None) -> AnyRoute:
        for old in before.routes if before is not None else ():
            if old.route == route and self._has_same_ground(old, before):
                return old
        size = self.config.limits.event_size
        if route.poll is not None:
            return PollRoute(route, self.slots[route.poll.upstream], max_event_size=size)
        if route.webhook is not None:
            return WebhookRoute(route, max_event_size=size)
        assert route.proxy is not None
        return ProxyRoute(route, self.slots[route.proxy.upstream])

    def _has_same_ground(self, old: AnyRoute, before: Table | None) -> bool:
        """Whether what a route that reads the same stands on is the same too."""
        assert before is not None
        if before.config.limits.event_size != self.config.limits.event_size:
            return False
        return isinstance(old, WebhookRoute) or old.slot in self.slots.values()


def route_entry(route: Route, target: T) -> Entry[T]:
    """How a route is found."""
    return Entry(
        PathPattern(route.path, allow_rest=route.kind == "proxy"),
        target,
        params=route.params,
        query=route.query,
        negotiate=route.negotiate,
        methods=None if route.kind == "proxy" else READS,
    )


def _make_verify(route: Route) -> Verify:
    assert route.webhook is not None
    verify = route.webhook.verify
    if verify.token is not None:
        tokens = _texts(verify.token)
        return lambda headers, body: signature.verify_token(tokens, headers.get("authorization"))
    if verify.hmac is not None:
        rule, secrets = verify.hmac, _texts(verify.hmac.secret)
        return lambda headers, body: signature.verify_hmac(
            secrets,
            body,
            headers.get(rule.header),
            algorithm=rule.algorithm,
            encoding=rule.encoding,
            prefix=rule.prefix,
        )
    return lambda headers, body: True


def _texts(secrets: tuple[SecretStr, ...]) -> tuple[str, ...]:
    return tuple(secret.get_secret_value() for secret in secrets)
