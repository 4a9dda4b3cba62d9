"""What a gate says when it is up: lines on a terminal, one JSON line elsewhere."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from urllib.parse import quote

from ssegate import __version__
from ssegate.cli.terminal import paint, printable
from ssegate.config import Address, Config, Route
from ssegate.service import Service

PROTOCOLS = ("HTTP/1.1", "h2c")

_KINDS = ("poll", "webhook", "proxy")
_ANYWHERE = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1"})  # noqa: S104  (looked for, not listened on)
_SAMPLES = ("1", "a", "abc", "open", "2024-01-01", "00000000-0000-4000-8000-000000000000")


def show_banner(service: Service) -> None:
    """Print it for a service that has started."""
    config = service.gate.config
    public = Address(config.server.listen.host, service.port)
    admin = None
    if config.admin is not None and service.admin_port is not None:
        admin = Address(config.admin.listen.host, service.admin_port)
    text = banner_text(config, public, admin) if sys.stdout.isatty() else banner_json(config, public, admin)
    print(text, flush=True)


def banner_text(config: Config, public: Address, admin: Address | None) -> str:
    """The lines for people."""
    head = f"{paint(f'ssegate {__version__}', 'bold', sys.stdout)} · config {printable(place_of(config))}"
    return "\n".join((head, *(f"  {label:<11} {printable(value)}" for label, value in _lines(config, public, admin))))


def _lines(config: Config, public: Address, admin: Address | None) -> Iterable[tuple[str, str]]:
    yield "listening", f"http://{public} ({', '.join(PROTOCOLS)})"
    if admin is not None:
        yield "admin", f"http://{admin}"
    for name, upstream in config.upstreams.items():
        yield "upstream", f"{name} {upstream.url}"
    yield "routes", ", ".join(f"{count} {kind}" for kind, count in _counts(config).items()) or "none"
    command = try_command(config, public)
    if command:
        yield "try", command


def banner_json(config: Config, public: Address, admin: Address | None) -> str:
    """The same facts in one line for programs."""
    facts = {
        "ssegate": __version__,
        "config": place_of(config),
        "listening": [{"url": f"http://{public}", "protocols": PROTOCOLS}],
        "admin": f"http://{admin}" if admin is not None else None,
        "upstreams": {name: upstream.url for name, upstream in config.upstreams.items()},
        "routes": _counts(config),
        "try": try_command(config, public) or None,
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
    """A command that opens a stream here; empty when there is no route whose parameters can be made up."""
    host = Address("localhost", public.port) if public.host in _ANYWHERE else public
    for kind in ("poll", "webhook"):
        for route in config.routes:
            sample = _sample_target(route) if route.kind == kind else None
            if sample is not None:
                accept = "-H 'Accept: text/event-stream' " if route.negotiate else ""
                url = f"http://{host}{sample}"
                return f"curl -N {accept}{_shell_quoted(url)}"
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
