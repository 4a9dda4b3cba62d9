"""What is allowed in a configuration and is still likely not meant."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ssegate.config import Config, Route
from ssegate.errors import Problem


def advise(config: Config) -> list[Problem]:
    """Everything worth a warning, in the file's order. No error: the gate runs with it."""
    advice = [*_on_upstreams(config)]
    for index, route in enumerate(config.routes):
        advice += _on_route(config, index, route)
    return sorted(advice, key=lambda each: each.line)


def place_of(advice: Problem) -> str:
    """The file, and the line of the route it is about."""
    return f"{advice.file}:{advice.line}" if advice.line else advice.file


def _on_upstreams(config: Config) -> Iterator[Problem]:
    for name, upstream in config.upstreams.items():
        if upstream.url.startswith("https:") and not upstream.tls.verify:
            message = "whoever is on the way can read and change everything; name the certificate's authority in `ca`"
            yield Problem(config.source, 0, 0, "unverified", f"upstreams.{name}.tls.verify", message)


def _on_route(config: Config, index: int, route: Route) -> Iterator[Problem]:
    if route.webhook is not None and route.webhook.verify.scheme == "none" and not _is_loopback(config):
        message = (
            f"anybody who reaches {config.server.listen} can make up events; verify by a token or an hmac, "
            "or listen on 127.0.0.1"
        )
        yield Problem(config.source, route.line, 1, "open-webhook", f"routes[{index}].webhook.verify", message)


def _is_loopback(config: Config) -> bool:
    host = config.server.listen.host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
