"""`ssegate match`: which route answers a request, what it asks of the upstream, and why the others do not answer."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from ssegate.cli.loading import load
from ssegate.cli.options import add_config
from ssegate.cli.shown import masked, shown_request
from ssegate.cli.terminal import paint, printable
from ssegate.config import Config, Route
from ssegate.config.check import name_path
from ssegate.core.routing import accepted_query, parse_query
from ssegate.core.shape import OFFERED, choose
from ssegate.gate.gate import OWN_PATHS
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import AnyRoute, NamesOf, ProxyRoute, Table, WebhookRoute
from ssegate.gate.watched import PollRoute, WatchedRoute


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "match",
        help="tell which route answers a request, and why not the others",
        description="Tell which route answers a request, what it asks of the upstream, and why the others do not answer. "
        "Exits with 1 if none does.",
    )
    parser.add_argument("method", metavar="METHOD", type=str.upper, help="GET, POST …")
    parser.add_argument("target", metavar="PATH", type=_target, help="path and query: /orders/17/events")
    parser.add_argument("--accept", metavar="VALUE", help="the request's Accept header (default: none)")
    add_config(parser)
    parser.set_defaults(run=run)


def _target(text: str) -> bytes:
    """A raw target: of a whole URL its path and query, with what no target may hold percent-encoded, as browsers do."""
    text = re.sub(r"^https?://[^/?#]*", "", text).partition("#")[0]
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no path; let it begin with /")
    return quote(text, safe="%/?:@!$&'()*+,;=~-._[]\\").encode()


def run(arguments: argparse.Namespace) -> int:
    """Explain; 0 when a route answers. Raises `ConfigError`."""
    config = load(arguments.config)
    request = _Request(Table(config), arguments.method, arguments.target, arguments.accept)
    for line in request.explain(config):
        print(line)
    return 0 if request.is_answered else 1


class _Request:
    """A request that is made up, and who would answer it."""

    def __init__(self, table: Table, method: str, target: bytes, accept: str | None) -> None:
        self._table = table
        self._method = method
        self._path, _, self._query = target.partition(b"?")
        self._accept = accept
        self._target = target
        self._found = table.router.match(method, self._path, accept)
        self.is_answered = False

    def explain(self, config: Config) -> Iterator[str]:
        accept = "" if self._accept is None else f" (Accept: {self._accept})"
        yield paint(printable(f"{self._method} {masked(self._target.decode('ascii'))}{accept}"), "bold", sys.stdout)
        if (hook := self._table.hooks.get(self._path)) is not None:
            yield from self._explain_delivery(config, hook)
        elif self._path.startswith(OWN_PATHS):
            self.is_answered = True
            yield f"  Paths that begin with {OWN_PATHS.decode()} are the gate's own; no route gets them."
        else:
            yield from self._explain_routes(config)

    def _explain_delivery(self, config: Config, hook: Hook) -> Iterator[str]:
        self.is_answered = self._method == "POST"
        if not self.is_answered:
            yield "  405: deliveries come here, by POST."
        for route in hook.routes:
            yield self._head(config, route, self.is_answered)
            if self.is_answered:
                does = "polls at once what they name" if isinstance(route, PollRoute) else "makes events of them"
                yield f"      It takes deliveries here (verify {hook.scheme.name}) and {does}."

    def _explain_routes(self, config: Config) -> Iterator[str]:
        for each in self._table.router.explain(self._method, self._path, self._accept, self._query):
            self.is_answered = self.is_answered or each.matched
            yield self._head(config, each.target, each.matched)
            yield f"      {printable(each.reason)}"
            if each.matched:
                yield from (f"      {printable(line)}" for line in self._consequences(config, each.target))
        if self._found is None:
            yield f"  {self._refusal()}"

    def _head(self, config: Config, target: AnyRoute | NamesOf, is_it: bool) -> str:
        route = target.route.route if isinstance(target, NamesOf) else target.route
        path = name_path(route.path) if isinstance(target, NamesOf) else route.path
        mark = paint("✓", "green", sys.stdout) if is_it else "·"
        place = paint(printable(f"({config.source}:{route.line})"), "dim", sys.stdout)
        return f"  {mark} {route.kind:<7} {printable(path)} {place}"

    def _refusal(self) -> str:
        allowed = self._table.router.allowed(self._path)
        if allowed and self._method not in allowed:
            return f"405: nobody answers {self._method} here; allowed: {', '.join(sorted(allowed))}."
        return "404: no route answers."

    def _consequences(self, config: Config, target: AnyRoute | NamesOf) -> Iterator[str]:
        assert self._found is not None
        params = self._found.params
        yield from (f"{name} = {value}" for name, value in params.items())
        if not isinstance(target, NamesOf):
            yield from _guarded(target.route)
        if isinstance(target, ProxyRoute):
            url = target.slot.settings.url + masked(self._target.decode("ascii"))
            yield f"upstream: {self._method} {url}"
        elif choose(self._accept) is None and self._method != "OPTIONS":
            yield f"406: its Accept names none of {', '.join(OFFERED)}."
        elif isinstance(target, NamesOf):
            yield "a stream that a request has opened is found again here by its name"
        elif isinstance(target, WebhookRoute):
            assert target.route.webhook is not None
            yield f"events come by POST {target.route.webhook.at}"
        elif isinstance(target, WatchedRoute):
            yield from self._asked(config, target, params)
        else:
            yield from self._joined(target.route)

    def _asked(self, config: Config, target: WatchedRoute, params: dict[str, str]) -> Iterator[str]:
        query = accepted_query(target.route.query, parse_query(self._query)) or {}
        yield from (f"query.{name} = {value}" for name, value in query.items())
        try:
            asked = shown_request(config, target.route, params, query)
        except (ValueError, LookupError) as error:
            yield f"404: {error.args[0]}"
            return
        forward = target.forward
        yield f"upstream: {asked}" + (f" with the viewer's {', '.join(forward)}" if forward else "")

    def _joined(self, route: Route) -> Iterator[str]:
        """Where the topics lead that the query names."""
        asked = [value for name, value in parse_query(self._query) if name == "topic"]
        if not asked:
            yield f"its query names no topic; write ?topic=…, with paths of {', '.join(route.topics or ())}"
        for topic in asked:
            yield f"topic={masked(topic)}: {self._leads_to(route, topic)}"

    def _leads_to(self, route: Route, topic: str) -> str:
        path, _, query = topic.partition("?")
        found = self._table.router.match("GET", path.encode("utf-8", "surrogateescape"), "text/event-stream")
        if found is None or isinstance(found.target, NamesOf) or found.target.route.path not in (route.topics or ()):
            return "none of the routes that are joined here answers; it gets its own `end`"
        joined = found.target.route
        if accepted_query(joined.query, parse_query(query.encode("utf-8", "surrogateescape"))) is None:
            return f"{joined.path}, but its query does not match; it gets its own `end`"
        return "; ".join((f"{joined.kind} {joined.path}", *_guarded(joined)))


def _guarded(route: Route) -> Iterator[str]:
    """Who is asked whether the viewer may."""
    if route.auth:
        one, *more = route.auth
        listed = f"guards {', '.join(route.auth)}: the first that recognises the viewer decides"
        yield listed if more else f"guard {one} decides"
    elif route.auth is not None:
        yield "public: no guard is asked"
    if route.allow is not None:
        yield f"allowed if {route.allow.text}, else 403"
