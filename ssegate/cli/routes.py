"""`ssegate routes`: what the gate understood of a configuration, the most specific route first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ssegate.cli.loading import load
from ssegate.cli.options import add_config
from ssegate.cli.shown import first_request, masked, shown_auth, shown_every, shown_form, shown_source
from ssegate.cli.terminal import paint, printable
from ssegate.config import Config, Route
from ssegate.config.asking import Feed, Stream
from ssegate.config.check import has_names
from ssegate.config.values import format_duration, format_size
from ssegate.gate.routes import NamesOf, Table

COLUMNS = ("PATH", "KIND", "FROM", "EVERY", "EMITS", "KEEPS", "RULES")


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "routes",
        help="show what the gate understood",
        description="Show every route as the gate understood it, the most specific first: the order in which they are tried.",
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or JSON. Raises `ConfigError`."""
    routes = in_order(load(arguments.config))
    if arguments.json:
        print(json.dumps([_facts(route) for route in routes], indent=2, ensure_ascii=False))
        return 0
    for line in _table([COLUMNS, *(_row(route) for route in routes)]):
        print(line)
    return 0


def in_order(config: Config) -> list[Route]:
    """The routes as the router tries them."""
    explained = Table(config).router.explain("GET", b"/", None)
    return [each.target.route for each in explained if not isinstance(each.target, NamesOf)]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield line if number else paint(line, "bold", sys.stdout)


def _row(route: Route) -> tuple[str, ...]:
    return (
        route.path,
        route.kind,
        shown_source(route),
        shown_every(route) or "-",
        shown_form(route) or "-",
        "-"
        if route.proxy is not None or route.topics is not None
        else f"{route.history.events} events, {format_duration(route.history.age)}",
        "; ".join(_rules(route)) or "-",
    )


def _rules(route: Route) -> Iterator[str]:
    """What else limits it."""
    if auth := shown_auth(route):
        yield auth
    if route.allow is not None:
        yield f"allowed if {route.allow.text}"
    if route.negotiate:
        yield "only if Accept names text/event-stream"
    for name, pattern in route.params.items():
        yield f"{name}: {pattern.pattern}"
    for name, pattern in route.query.items():
        yield f"?{name}: {pattern.pattern}"
    asks = route.poll or route.stream or route.task or route.feed
    if asks is not None and asks.forward:
        yield f"private to {', '.join(asks.forward)}"
    if has_names(route):
        yield f"a stream for each request, by {', '.join(route.opened_by)}"
    if route.poll is not None and route.webhook is not None:
        yield f"at once on POST {route.webhook.at} (verify {route.webhook.scheme})"
    if route.max_age:
        yield f"ends after {format_duration(route.max_age)}"


def _facts(route: Route) -> dict[str, object]:
    facts: dict[str, object] = {
        "path": route.path,
        "kind": route.kind,
        "line": route.line,
        "negotiate": route.negotiate,
    }
    # None where nothing says who may subscribe, empty where everybody may.
    facts["auth"] = None if route.auth is None else list(route.auth)
    facts["allow"] = None if route.allow is None else route.allow.text
    facts["params"] = {name: pattern.pattern for name, pattern in route.params.items()}
    if route.proxy is not None:
        return {**facts, "upstream": route.proxy.upstream}
    if route.poll is not None:
        facts |= _poll_facts(route)
    elif route.topics is not None:
        facts["topics"] = list(route.topics)
    elif route.webhook is None:
        facts |= _asking_facts(route)
    if route.webhook is not None:
        facts |= {"at": route.webhook.at, "verify": route.webhook.scheme, "emit": shown_form(route)}
        if route.poll is not None:
            facts["then"] = route.webhook.then
        if route.webhook.subscribe is not None:
            facts["subscribe"] = route.webhook.subscribe.kind
    facts |= {
        "heartbeat": format_duration(route.heartbeat),
        "retry": format_duration(route.retry),
        "max_age": format_duration(route.max_age),
    }
    if route.topics is not None:
        return facts  # each of them has its own
    return {
        **facts,
        "history": {
            "events": route.history.events,
            "size": format_size(route.history.size),
            "age": format_duration(route.history.age),
        },
    }


def _asking_facts(route: Route) -> dict[str, object]:
    """Of a stream, a task or a feed."""
    asks = route.stream or route.task or route.feed
    assert asks is not None
    method, path = first_request(route)
    facts: dict[str, object] = {
        "methods": list(route.opened_by),
        "query": {name: pattern.pattern for name, pattern in route.query.items()},
        "upstream": asks.upstream,
        "asks": f"{method} {masked(path)}",
        "own": has_names(route),
        "emit": shown_form(route),
        "forward": list(asks.forward),
        "linger": format_duration(asks.linger),
    }
    if isinstance(asks, Stream):
        return {**facts, "format": asks.format, "first": asks.first}
    facts["every"] = {"min": format_duration(asks.every.min), "max": format_duration(asks.every.max)}
    return {**facts, "first": asks.first} if isinstance(asks, Feed) else {**facts, "follows": masked(asks.get)}


def _poll_facts(route: Route) -> dict[str, object]:
    poll = route.poll
    assert poll is not None
    return {
        "query": {name: pattern.pattern for name, pattern in route.query.items()},
        "upstream": poll.upstream,
        "get": masked(poll.get),
        "every": {"min": format_duration(poll.every.min), "max": format_duration(poll.every.max)},
        "emit": shown_form(route),
        "forward": list(poll.forward),
        "gone": list(poll.gone),
        "linger": format_duration(poll.linger),
    }
