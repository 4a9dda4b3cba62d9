"""The configuration, made ready to answer: each route with its templates, its topics' rules and its upstream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import environ
from typing import TypeVar

from ssegate.config.model import Config, Route
from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.config.webhook import Webhook
from ssegate.core.detect import Detector, make_detector
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import TopicSettings
from ssegate.core.journal import Form
from ssegate.core.poll import PollSettings
from ssegate.core.routing import Entry, PathPattern, Router, split_path
from ssegate.core.template import Template
from ssegate.edge.cors import Cors
from ssegate.gate.hooks import Hook, Inlet
from ssegate.sources.poll import PollRecord, PollSource, PollTarget
from ssegate.sources.subscription import Ledger
from ssegate.sources.webhook import WebhookReceiver
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
    """A route whose topics are polled resources; a webhook beside it says when one has changed."""

    def __init__(
        self, route: Route, slot: UpstreamSlot, *, max_event_size: int, before: PollRoute | None = None
    ) -> None:
        """`before`: the route with the same path and webhook that this one takes the place of."""
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
        self.inlet: Inlet | None = (
            None if route.webhook is None else Inlet(route.webhook, before.inlet if before else None)
        )
        asked = self._template.names
        self.deciding = tuple(name for name in PathPattern(route.path).parameters if name in asked)
        """The path's parameters that decide what is asked of the upstream."""

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

    def __init__(self, route: Route, *, max_event_size: int, before: WebhookRoute | None = None) -> None:
        """`before`: as for a `PollRoute`."""
        assert route.webhook is not None
        self.route = route
        self.pattern = PathPattern(route.path)
        self.inlet: Inlet = Inlet(route.webhook, before.inlet if before else None)
        self.topic_settings = TopicSettings(Form.EVENTS, max_events=route.history.events, max_age=route.history.age)
        self.receiver = WebhookReceiver(
            self.inlet.selection,
            topic_of=self._topic_of,
            event=Template(route.emit.event) if route.emit.event else None,
            data=route.emit.data,
            max_event_size=max_event_size,
            environ=environ,
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

    def __init__(self, config: Config, before: Table | None = None, ledger: Ledger | None = None) -> None:
        """What is the same as `before` is taken from there, so that its topics and connections go on.

        `ledger` has the secrets of subscriptions; without it each gets a new one.
        """
        self.config = config
        self.slots = self._make_slots(before)
        self.routes: tuple[AnyRoute, ...] = tuple(self._make(route, before) for route in config.routes)
        self.router: Router[AnyRoute] = Router(route_entry(route.route, route) for route in self.routes)
        self.hooks: dict[bytes, Hook] = {}
        """By the path that takes deliveries."""
        ledger = ledger or Ledger()
        for route in self.routes:
            if not isinstance(route, ProxyRoute) and route.route.webhook is not None:
                self._add_to_hook(route, route.route.webhook, ledger)
        self.cors = Cors(config.cors.origins, credentials=config.cors.credentials) if config.cors else None

    def _add_to_hook(self, route: PollRoute | WebhookRoute, webhook: Webhook, ledger: Ledger) -> None:
        path = webhook.at.encode()
        if path not in self.hooks:
            self.hooks[path] = Hook(webhook, self.config, ledger)
        self.hooks[path].routes.append(route)

    def _make_slots(self, before: Table | None) -> dict[str, UpstreamSlot]:
        slots = {}
        for name, settings in self.config.upstreams.items():
            if before is not None and before.config.upstreams.get(name) == settings:
                slots[name] = before.slots[name]
            else:
                slots[name] = UpstreamSlot(name, settings)
        return slots

    def _make(self, route: Route, before: Table | None) -> AnyRoute:
        earlier: AnyRoute | None = None
        for old in before.routes if before is not None else ():
            if old.route == route and self._has_same_ground(old, before):
                return old
            if old.route.path == route.path and old.route.webhook and route.webhook:
                earlier = old if old.route.webhook.at == route.webhook.at else earlier
        size = self.config.limits.event_size
        if route.poll is not None:
            slot = self.slots[route.poll.upstream]
            return PollRoute(
                route, slot, max_event_size=size, before=earlier if isinstance(earlier, PollRoute) else None
            )
        if route.webhook is not None:
            return WebhookRoute(
                route, max_event_size=size, before=earlier if isinstance(earlier, WebhookRoute) else None
            )
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
