"""What is allowed in a configuration and is still likely not meant."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime

from ssegate.config import Address, Config, Route
from ssegate.config.auth import Jwt
from ssegate.config.guards import algorithms_of
from ssegate.errors import Problem

_HASHES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""How long a hash is, in bytes."""


def advise(config: Config) -> list[Problem]:
    """Everything worth a warning, in the file's order. No error: the gate runs with it."""
    advice = [*_on_certificate(config), *_on_upstreams(config), *_on_guards(config)]
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


def _on_guards(config: Config) -> Iterator[Problem]:
    used = {name for names in (config.defaults.auth, *(route.auth for route in config.routes)) for name in names or ()}
    for name, guard in config.auth.items():
        if name not in used:
            message = (
                f"no route asks this guard; name it by `auth: {name}` on a route or in `defaults`, or leave it out"
            )
            yield Problem(config.source, 0, 0, "unused-guard", f"auth.{name}", message)
        if guard.jwt is not None:
            yield from _on_secret(config, f"auth.{name}.jwt.keys.secret", guard.jwt)


def _on_secret(config: Config, where: str, jwt: Jwt) -> Iterator[Problem]:
    """ "A key of the same size as the hash output or larger MUST be used" (RFC 7518, 3.2)."""
    name = max(algorithms_of(jwt), key=lambda each: _HASHES.get(each, 0))
    secrets = [secret.get_secret_value().encode("utf-8", "surrogateescape") for secret in jwt.keys.secret or ()]
    if any(len(secret) < _HASHES[name] for secret in secrets):
        message = (
            f"too short: {name} wants at least {_HASHES[name]} bytes (RFC 7518, 3.2), and who has one token may find out a shorter one; "
            "make one by `openssl rand -hex 32`"
        )
        yield Problem(config.source, 0, 0, "short-secret", where, message)


def _on_route(config: Config, index: int, route: Route) -> Iterator[Problem]:
    if route.webhook is not None and route.webhook.scheme == "none" and _public(config):
        message = (
            f"anybody who reaches {', '.join(map(str, _public(config)))} can make up events; "
            "let `verify` name the sender, an hmac or a token, or listen on 127.0.0.1"
        )
        yield Problem(config.source, route.line, 1, "open-webhook", f"routes[{index}].webhook.verify", message)
    if route.auth is None and _feeds_anybody(route):
        source = "webhook" if route.webhook is not None else "stream"
        message = (
            "whoever reaches the gate can read what comes here, as nothing says who may; "
            "name a guard by `auth`, or write `auth: none` if everybody may"
        )
        yield Problem(config.source, route.line, 1, "open-route", f"routes[{index}].{source}", message)
    subscribe = None if route.webhook is None else route.webhook.subscribe
    if subscribe is not None and subscribe.keep and config.server.state_dir is None:
        message = "what is kept at the backend is forgotten here when the gate goes down; name a `server.state_dir`"
        yield Problem(config.source, route.line, 1, "forgotten", f"routes[{index}].webhook.subscribe.keep", message)


def _feeds_anybody(route: Route) -> bool:
    """Whether its events come without the backend being asked whether this viewer may have them."""
    if route.poll is not None and route.poll.forward:
        return False
    return route.webhook is not None or (route.stream is not None and not route.stream.forward)


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
