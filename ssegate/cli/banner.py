"""What a gate says when it is up: lines on a terminal, one JSON line elsewhere."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from ssegate import __version__
from ssegate.cli.terminal import paint, printable
from ssegate.config import Address, Config, Route
from ssegate.service import Service

PROTOCOLS = ("HTTP/1.1", "h2c")
TLS_PROTOCOLS = ("h2", "HTTP/1.1")

_KINDS = ("poll", "stream", "task", "feed", "webhook", "topics", "proxy")
_TRIED = ("poll", "stream", "task", "feed", "webhook")
_ANYWHERE = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1"})  # noqa: S104  (looked for, not listened on)
_SAMPLES = ("1", "a", "abc", "open", "2024-01-01", "00000000-0000-4000-8000-000000000000")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gate has come to listen: the ports are those the system chose, where it was to choose."""

    public: Address
    tls: Address | None = None
    admin: Address | None = None


def show_banner(service: Service) -> None:
    """Print it for a service that has started."""
    config = service.gate.config
    addresses = addresses_of(service)
    print(banner_text(config, addresses) if sys.stdout.isatty() else banner_json(config, addresses), flush=True)


def addresses_of(service: Service) -> Addresses:
    """Where the listeners are that have started; the public one has port 0 before."""
    server, admin = service.gate.config.server, service.gate.config.admin
    return Addresses(
        Address(server.listen.host, service.port),
        Address(server.tls.listen.host, service.tls_port) if server.tls and service.tls_port is not None else None,
        Address(admin.listen.host, service.admin_port) if admin and service.admin_port is not None else None,
    )


def banner_text(config: Config, addresses: Addresses) -> str:
    """The lines for people."""
    head = f"{paint(f'ssegate {__version__}', 'bold', sys.stdout)} · config {printable(place_of(config))}"
    return "\n".join((head, *(f"  {label:<11} {printable(value)}" for label, value in _lines(config, addresses))))


def _lines(config: Config, addresses: Addresses) -> Iterable[tuple[str, str]]:
    yield "listening", "   ".join(f"{url} ({', '.join(protocols)})" for url, protocols in _listening(config, addresses))
    if addresses.admin is not None:
        yield "admin", f"http://{addresses.admin}"
    for name, upstream in config.upstreams.items():
        yield "upstream", f"{name} {upstream.url}"
    yield "routes", ", ".join(f"{count} {kind}" for kind, count in _counts(config).items()) or "none"
    command = try_command(config, addresses.public)
    if command:
        yield "try", command


def _listening(config: Config, addresses: Addresses) -> Iterable[tuple[str, tuple[str, ...]]]:
    yield f"http://{addresses.public}", PROTOCOLS
    if addresses.tls is not None:
        yield f"https://{addresses.tls}", (*TLS_PROTOCOLS, *(("h3",) if config.server.http3 else ()))


def banner_json(config: Config, addresses: Addresses) -> str:
    """The same facts in one line for programs."""
    facts = {
        "ssegate": __version__,
        "config": place_of(config),
        "listening": [{"url": url, "protocols": protocols} for url, protocols in _listening(config, addresses)],
        "admin": f"http://{addresses.admin}" if addresses.admin is not None else None,
        "upstreams": {name: upstream.url for name, upstream in config.upstreams.items()},
        "routes": _counts(config),
        "try": try_command(config, addresses.public) or None,
    }
    return json.dumps({name: value for name, value in facts.items() if value is not None})


def place_of(config: Config) -> str:
    """The file as it was found: `./ssegate.yaml` for the one in this directory."""
    source = config.source
    return source if source.startswith(("/", ".", "(")) else f"./{source}"


def _counts(config: Config) -> dict[str, int]:
    counted: Counter[str] = Counter(route.kind for route in config.routes)
    return {kind: counted[kind] for kind in _KINDS if counted[kind]}


def try_command(config: Config, public: Address) -> str:
    """A command that opens a stream here; empty when there is no route that takes made up parameters and no credential."""
    host = Address("localhost", public.port) if public.host in _ANYWHERE else public
    for kind in _TRIED:
        for route in config.routes:
            sample = _sample_target(route) if route.kind == kind and not route.auth else None
            if sample is not None:
                more = "-H 'Accept: text/event-stream' " if route.negotiate else ""
                if "GET" not in route.opened_by:
                    more += f"-X {route.opened_by[0]} -H 'Content-Type: application/json' -d '{{}}' "
                url = f"http://{host}{sample}"
                return f"curl -N {more}{_shell_quoted(url)}"
    return ""


def _shell_quoted(url: str) -> str:
    return url if re.fullmatch(r"[A-Za-z0-9:/.%_~-]+", url) else "'" + url.replace("'", "%27") + "'"


def _sample_target(route: Route) -> str | None:
    """A path and query that the route answers; None when none comes to mind."""
    query = {name: _sample_value(pattern) for name, pattern in route.query.items()}
    path = route.path
    for name in re.findall(r"\{(\w+)\}", path):
        value = _sample_value(route.params.get(name))
        if value is None:
            return None
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    if None in query.values():
        return None
    fields = "&".join(f"{name}={quote(value or '', safe='')}" for name, value in query.items())
    return f"{path}?{fields}" if fields else path


def _sample_value(pattern: re.Pattern[str] | None) -> str | None:
    """A value that matches; the pattern's own words are tried first, as in `open|paid|all`."""
    if pattern is None:
        return _SAMPLES[0]
    words = [word for word in pattern.pattern.split("|") if re.fullmatch(r"[\w-]+", word)]
    return next((value for value in (*words, *_SAMPLES) if pattern.fullmatch(value)), None)
