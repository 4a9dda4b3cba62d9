"""The configuration, made ready to answer: each route with its templates, its topics' rules and its upstream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import environ
from typing import TypeVar

from ssegate.config.check import name_path
from ssegate.config.model import Config, Route
from ssegate.config.webhook import Webhook
from ssegate.core.hub import TopicSettings
from ssegate.core.journal import Form
from ssegate.core.routing import Entry, PathPattern, Router
from ssegate.core.template import Template
from ssegate.edge.cors import Cors
from ssegate.gate.hooks import Hook, Inlet
from ssegate.gate.watched import FeedRoute, PollRoute, StreamRoute, TaskRoute, UpstreamSlot, WatchedRoute
from ssegate.sources.cursors import Cursors
from ssegate.sources.subscription import Ledger
from ssegate.sources.webhook import WebhookReceiver

T = TypeVar("T")

TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
"""What nobody can guess of a stream's name: 128 bits."""


class WebhookRoute:
    """A route whose topics are fed by deliveries."""

    def __init__(self, route: Route, *, max_event_size: int, before: WebhookRoute | None = None) -> None:
        """`before`: as for a `PollRoute`."""
        assert route.webhook is not None
        self.route = route
        self.pattern = PathPattern(route.path)
        self.inlet: Inlet = Inlet(route.webhook, before.inlet if before else None)
        history = route.history
        self.topic_settings = TopicSettings(
            Form.EVENTS, max_events=history.events, max_age=history.age, max_size=history.size
        )
        self.receiver = WebhookReceiver(
            self.inlet.selection,
            topic_of=self._topic_of,
            event=Template(route.emit.event) if route.emit.event else None,
            data=route.emit.data,
            template=Template(route.emit.template) if route.emit.template else None,
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


@dataclass(frozen=True, slots=True)
class NamesOf:
    """The paths below a route's own where its requests' streams are found by their names."""

    route: WatchedRoute


EventRoute = WatchedRoute | WebhookRoute
AnyRoute = WatchedRoute | WebhookRoute | ProxyRoute


class Table:
    """Everything a request is looked up in. Built whole from a configuration, and replaced whole by the next."""

    def __init__(
        self,
        config: Config,
        before: Table | None = None,
        ledger: Ledger | None = None,
        cursors: Cursors | None = None,
    ) -> None:
        """What is the same as `before` is taken from there, so that its topics and connections go on.

        `ledger` has the secrets of subscriptions; without it each gets a new one. `cursors` says where feeds have stopped.
        """
        self.config = config
        self._cursors = cursors or Cursors()
        self.slots = self._make_slots(before)
        self.routes: tuple[AnyRoute, ...] = tuple(self._make(route, before) for route in config.routes)
        self.router: Router[AnyRoute | NamesOf] = Router(self._entries())
        self.hooks: dict[bytes, Hook] = {}
        """By the path that takes deliveries."""
        ledger = ledger or Ledger()
        for route in self.routes:
            if isinstance(route, PollRoute | WebhookRoute) and route.route.webhook is not None:
                self._add_to_hook(route, route.route.webhook, ledger)
        self.cors = Cors(config.cors.origins, credentials=config.cors.credentials) if config.cors else None

    def _entries(self) -> Iterator[Entry[AnyRoute | NamesOf]]:
        for route in self.routes:
            yield route_entry(route.route, route)
            if isinstance(route, WatchedRoute) and route.is_own:
                yield names_entry(route)

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
        if route.stream is not None:
            return StreamRoute(route, self.slots[route.stream.upstream], max_event_size=size)
        if route.task is not None:
            return TaskRoute(route, self.slots[route.task.upstream], max_event_size=size)
        if route.feed is not None:
            slot = self.slots[route.feed.upstream]
            return FeedRoute(route, slot, max_event_size=size, cursors=self._cursors)
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
        methods=None if route.kind == "proxy" else served_methods(route),
    )


def served_methods(route: Route) -> frozenset[str]:
    """The methods an event route answers."""
    opened_by = frozenset(route.opened_by)
    return opened_by | ({"HEAD", "OPTIONS"} if "GET" in opened_by else {"OPTIONS"})


def names_entry(route: WatchedRoute) -> Entry[AnyRoute | NamesOf]:
    """How the streams of a route's requests are found."""
    pattern = PathPattern(name_path(route.route.path))
    params = {**route.route.params, pattern.parameters[-1]: TOKEN}
    return Entry(pattern, NamesOf(route), params=params, methods=frozenset({"GET", "HEAD", "OPTIONS"}))
