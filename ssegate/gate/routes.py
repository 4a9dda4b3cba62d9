"""The configuration, made ready to answer: each route with its templates, its topics' rules and its upstream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import environ
from typing import TypeVar

from ssegate.auth import make_guard
from ssegate.auth.guard import Guard
from ssegate.config.check import name_path
from ssegate.config.model import Config, Route
from ssegate.config.webhook import Webhook
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import TopicSettings
from ssegate.core.journal import Form
from ssegate.core.principal import Principal, is_of_viewer
from ssegate.core.routing import Entry, PathPattern, Router
from ssegate.core.template import Template
from ssegate.edge.cors import Cors
from ssegate.edge.exchange import Answer, Request
from ssegate.errors import ConfigError, Problem
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
        self.parameters = self.pattern.parameters
        named = (name for name in route.webhook.match if name not in self.parameters)
        self.needs = tuple(sorted(name for name in named if is_of_viewer(name)))
        """What has to be known of a viewer: `identity`, or `claims.x`. The topic is then the viewer's own."""
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
        """The topic that these parameters, and what is known of the viewer, name."""
        names = (*self.parameters, *self.needs)
        return " ".join((self.route.path, *(params[name].replace("%", "%25").replace(" ", "%20") for name in names)))

    def values(self, params: Mapping[str, str], principal: Principal | None) -> Mapping[str, str]:
        """What decides the topic. Raises `LookupError` when something of the viewer is not known."""
        if not self.needs:
            return params
        return {**params, **(principal or Principal("", b"")).values(self.needs)}

    def _topic_of(self, params: Mapping[str, str]) -> str | None:
        for name, value in params.items():
            pattern = self.route.params.get(name)
            if not value or len(value) > 256 or not value.isprintable():
                return None
            if name not in self.needs and ("/" in value or "\\" in value):
                return None
            if pattern is not None and pattern.fullmatch(value) is None:
                return None
        return self.key(params)


@dataclass(frozen=True, slots=True)
class ProxyRoute:
    """A route that passes to an upstream."""

    route: Route
    slot: UpstreamSlot


class JoinedRoute:
    """A route whose streams join topics of others."""

    def __init__(self, route: Route, routes: Iterable[Route]) -> None:
        """`routes` are all there are."""
        assert route.topics is not None
        self.route = route
        self.paths = frozenset(route.topics)
        guards = dict.fromkeys(name for each in routes if each.path in self.paths for name in each.auth or ())
        self.sellers: tuple[str, ...] = route.auth or tuple(guards)
        """The guards whose tickets open it: its own, or else those of the routes that it joins."""


@dataclass(frozen=True, slots=True)
class NamesOf:
    """The paths below a route's own where its requests' streams are found by their names."""

    route: WatchedRoute


EventRoute = WatchedRoute | WebhookRoute
AnyEventRoute = EventRoute | NamesOf | JoinedRoute
AnyRoute = EventRoute | JoinedRoute | ProxyRoute


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
        self.guards = self._make_guards(before)
        """By name."""
        self.routes: tuple[AnyRoute, ...] = tuple(self._make(route, before) for route in config.routes)
        self.router: Router[AnyRoute | NamesOf] = Router(self._entries())
        self.hooks: dict[bytes, Hook] = {}
        """By the path that takes deliveries."""
        ledger = ledger or Ledger()
        for route in self.routes:
            if isinstance(route, PollRoute | WebhookRoute) and route.route.webhook is not None:
                self._add_to_hook(route, route.route.webhook, ledger)
        headers = [name for guard in config.auth.values() for name in guard.headers]
        self.cors = (
            Cors(config.cors.origins, credentials=config.cors.credentials, headers=headers) if config.cors else None
        )

    # What says who may read

    def cors_headers(self, headers: Headers, *, vary: tuple[bytes, ...] = ()) -> tuple[Pair, ...]:
        """What says who may read this answer, and of what its caches must know that it depends on."""
        if self.cors is not None:
            vary = (*vary, b"Origin")
        told = ((b"vary", b", ".join(vary)),) if vary else ()
        return (*self.cors.headers(headers), *told) if self.cors is not None else told

    def shared_headers(self, route: Route, headers: Headers) -> tuple[Pair, ...]:
        """What every answer of an event route carries."""
        return self.cors_headers(headers, vary=(b"Accept",) if route.negotiate else ())

    def preflight(self, request: Request, shared: tuple[Pair, ...], methods: Iterable[str] | None = None) -> Answer:
        """Answer OPTIONS. `methods`: those that are served at this path; None: those of its routes."""
        served = self.router.allowed(request.target.partition(b"?")[0]) if methods is None else methods
        listed = b", ".join(name.encode() for name in sorted(served) if name != "OPTIONS")
        told = self.cors.preflight(request.headers, listed) if self.cors is not None else ()
        return Answer(204, ((b"allow", listed + b", OPTIONS"), *shared, *told))

    # How it is made

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

    def _make_guards(self, before: Table | None) -> dict[str, Guard]:
        """Those whose settings are the same stay as they are, with all they remember."""
        guards: dict[str, Guard] = {}
        for name, settings in self.config.auth.items():
            old = before.guards.get(name) if before is not None else None
            is_same = before is not None and before.config.auth.get(name) == settings
            try:
                guards[name] = make_guard(name, settings, old, is_same=is_same)
            except ValueError as fault:  # `config.keyset.KeyFault`; a file that was read a moment ago is another now
                where = f"auth.{name}.jwt.keys"
                raise ConfigError([Problem(self.config.source, 0, 0, "keys", where, str(fault))]) from None
        return guards

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
        if route.topics is not None:
            return JoinedRoute(route, self.config.routes)
        assert route.proxy is not None
        return ProxyRoute(route, self.slots[route.proxy.upstream])

    def _has_same_ground(self, old: AnyRoute, before: Table | None) -> bool:
        """Whether what a route that reads the same stands on is the same too."""
        assert before is not None
        if before.config.limits.event_size != self.config.limits.event_size:
            return False
        if isinstance(old, JoinedRoute):
            return tuple(before.config.routes) == tuple(self.config.routes)
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
