"""What may be shown of routes and of their upstream requests: everything but secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ssegate.config import Address, Config, Route
from ssegate.config.values import format_duration
from ssegate.core.principal import Principal, is_of_viewer
from ssegate.core.template import Template, percent_encode

HIDDEN = "***"

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (looked for, not listened on)

_SECRET_FIELD = re.compile(
    r"(?<=[?&])([^=&]*(?:token|key|secret|passw|signature|auth|ticket)[^=&]*)=[^&]*", re.IGNORECASE
)


def from_here(address: Address) -> Address:
    """Where a listener is reached from this machine, also one that listens everywhere."""
    return Address(_ANYWHERE.get(address.host, address.host), address.port)


def masked(target: str) -> str:
    """A path and query in which the values of fields that are named like secrets are hidden."""
    return _SECRET_FIELD.sub(rf"\1={HIDDEN}", target)


def shown_request(
    config: Config,
    route: Route,
    params: Mapping[str, str],
    query: Mapping[str, str],
    principal: Principal | None = None,
) -> str:
    """The request to the upstream, without what came from the environment; what is not known of the viewer stays as it is named.

    Raises `ValueError` or `LookupError` as the template."""
    method, text = first_request(route)
    template = Template(text)
    values = {**params, **{f"query.{name}": value for name, value in query.items()}}
    shown = [HIDDEN]
    for name in template.names:
        if is_of_viewer(name) and name not in values:
            known = None if principal is None else principal.value(name)
            values[name] = known or f"{{{name}}}"
            shown += [] if known else [values[name]]
    path = template.expand_url(lambda name: values.get(name, HIDDEN if name.startswith("env.") else None))
    for each in shown:
        path = path.replace(percent_encode(each), each)
    assert route.asks is not None
    return f"{method} {config.upstreams[route.asks.upstream].url}{masked(path)}"


def first_request(route: Route) -> tuple[str, str]:
    """What a route asks of the upstream when its stream is opened: the method, and the template of the path."""
    if route.task is not None and route.task.start is not None:
        return route.task.start.method, route.task.start.path
    if route.stream is not None:
        return route.stream.method, route.stream.path
    asks = route.poll or route.task or route.feed
    assert asks is not None, "a route that asks"
    return "GET", asks.get


def shown_source(route: Route) -> str:
    """Where a route's events or answers come from, in a few words."""
    if route.kind in ("poll", "stream", "task", "feed"):
        assert route.asks is not None
        method, path = first_request(route)
        followed = f", then GET {masked(route.task.get)}" if route.task is not None and route.task.start else ""
        form = f" ({route.stream.format})" if route.stream is not None else ""
        return f"{route.asks.upstream} {method} {masked(path)}{followed}{form}"
    if route.webhook is not None:
        asks = "" if route.webhook.subscribe is None else f", subscribed by {route.webhook.subscribe.kind}"
        return f"POST {route.webhook.at} (verify {route.webhook.scheme}{asks})"
    if route.topics is not None:
        return f"topics of {', '.join(route.topics)}"
    assert route.proxy is not None
    return route.proxy.upstream


def shown_auth(route: Route) -> str:
    """Who may subscribe, in a few words; empty where nothing says so."""
    if route.auth is None:
        return ""
    return f"for {', '.join(route.auth)}" if route.auth else "public"


def shown_form(route: Route) -> str:
    """What a route emits."""
    if route.proxy is not None or route.topics is not None:
        return ""
    if route.emit.template is not None:
        return f"HTML as {route.emit.event or 'message'}"
    if route.poll is not None:
        return route.emit.as_
    if route.task is not None:
        return "progress"
    own = route.stream.event if route.stream is not None else route.feed.event if route.feed is not None else None
    return own or route.emit.event or ("as the upstream" if _has_own_names(route) else "message")


def _has_own_names(route: Route) -> bool:
    return route.stream is not None and route.stream.format == "sse"


def shown_every(route: Route) -> str:
    """How often it is asked; empty where nothing is."""
    asks = route.poll or route.task or route.feed
    if asks is None:
        return ""
    every = asks.every
    return f"{format_duration(every.min)} to {format_duration(every.max)}" if every.is_adaptive else str(every)
