"""What is allowed in a configuration and is still likely not meant."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime

from ssegate.config import Address, Config, Route
from ssegate.errors import Problem


def advise(config: Config) -> list[Problem]:
    """Everything worth a warning, in the file's order. No error: the gate runs with it."""
    advice = [*_on_certificate(config), *_on_upstreams(config)]
    for index, route in enumerate(config.routes):
        advice += _on_route(config, index, route)
    return sorted(advice, key=lambda each: each.line)


def place_of(advice: Problem) -> str:
    """The file, and the line of the route it is about."""
    return f"{advice.file}:{advice.line}" if advice.line else advice.file


def _on_certificate(config: Config) -> Iterator[Problem]:
    tls = config.server.tls
    if tls is None or tls.cert is None:
        return
    # A tenth of a second, and most configurations have no certificate.
    from cryptography import x509

    try:
        until = x509.load_pem_x509_certificate(tls.cert.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return  # OpenSSL has read it a moment ago, so it is being replaced, or in a form that this does not know
    if until <= datetime.now(UTC):
        message = f"the certificate ended on {until:%Y-%m-%d}; browsers refuse it. Put a new one in its place"
        yield Problem(config.source, 0, 0, "expired", "server.tls.cert", message)


def _on_upstreams(config: Config) -> Iterator[Problem]:
    for name, upstream in config.upstreams.items():
        if upstream.url.startswith("https:") and not upstream.tls.verify:
            message = "whoever is on the way can read and change everything; name the certificate's authority in `ca`"
            yield Problem(config.source, 0, 0, "unverified", f"upstreams.{name}.tls.verify", message)


def _on_route(config: Config, index: int, route: Route) -> Iterator[Problem]:
    if route.webhook is not None and route.webhook.scheme == "none" and _public(config):
        message = (
            f"anybody who reaches {', '.join(map(str, _public(config)))} can make up events; "
            "let `verify` name the sender, an hmac or a token, or listen on 127.0.0.1"
        )
        yield Problem(config.source, route.line, 1, "open-webhook", f"routes[{index}].webhook.verify", message)
    subscribe = None if route.webhook is None else route.webhook.subscribe
    if subscribe is not None and subscribe.keep and config.server.state_dir is None:
        message = "what is kept at the backend is forgotten here when the gate goes down; name a `server.state_dir`"
        yield Problem(config.source, route.line, 1, "forgotten", f"routes[{index}].webhook.subscribe.keep", message)


def _public(config: Config) -> list[Address]:
    """Where others than this machine itself reach the gate."""
    server = config.server
    return [
        each for each in (server.listen, *([server.tls.listen] if server.tls else ())) if not _is_loopback(each.host)
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
