"""What may be shown of routes and of their upstream requests: everything but secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ssegate.config import Address, Config, Route
from ssegate.config.values import format_duration
from ssegate.core.template import Template, percent_encode

HIDDEN = "***"

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (looked for, not listened on)

_SECRET_FIELD = re.compile(r"(?<=[?&])([^=&]*(?:token|key|secret|passw|signature|auth)[^=&]*)=[^&]*", re.IGNORECASE)


def from_here(address: Address) -> Address:
    """Where a listener is reached from this machine, also one that listens everywhere."""
    return Address(_ANYWHERE.get(address.host, address.host), address.port)


def masked(target: str) -> str:
    """A path and query in which the values of fields that are named like secrets are hidden."""
    return _SECRET_FIELD.sub(rf"\1={HIDDEN}", target)


def shown_request(config: Config, route: Route, params: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The URL a poll asks for, without what came from the environment. Raises `ValueError` or `LookupError` as the template."""
    assert route.poll is not None
    values = {**params, **{f"query.{name}": value for name, value in query.items()}}
    path = Template(route.poll.get).expand_url(
        lambda name: values.get(name, HIDDEN if name.startswith("env.") else None)
    )
    return config.upstreams[route.poll.upstream].url + masked(path.replace(percent_encode(HIDDEN), HIDDEN))


def shown_source(route: Route) -> str:
    """Where a route's events or answers come from, in a few words."""
    if route.poll is not None:
        return f"{route.poll.upstream} GET {masked(route.poll.get)}"
    if route.webhook is not None:
        asks = "" if route.webhook.subscribe is None else f", subscribed by {route.webhook.subscribe.kind}"
        return f"POST {route.webhook.at} (verify {route.webhook.scheme}{asks})"
    assert route.proxy is not None
    return route.proxy.upstream


def shown_form(route: Route) -> str:
    """What a route emits."""
    if route.proxy is not None:
        return ""
    return route.emit.as_ if route.poll is not None else route.emit.event or "message"


def shown_every(route: Route) -> str:
    """How often it is polled; empty where nothing is."""
    if route.poll is None:
        return ""
    every = route.poll.every
    return f"{format_duration(every.min)} to {format_duration(every.max)}" if every.is_adaptive else str(every)
