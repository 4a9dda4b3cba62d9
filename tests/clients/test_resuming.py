"""Clients that others wrote follow streaming upstreams; cut off in the middle, each gets every record once, and ends by itself.

However often a client asks again, the upstream is asked once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.backend import Backend
from tests.clients.browser import Browser
from tests.clients.children import Child, Line
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import Gate
from tests.clients.peers import HERE, NODE_MODULES, find_node

pytestmark = pytest.mark.node

CONFIG = """
upstreams: {api: "%s"}
defaults: {retry: 100ms}
routes:
  - path: "/shared/{id}"
    stream: {get: "/tapes/{id}", format: ndjson, done: last}
  - path: "/mine/{id}"
    stream: {get: "/tapes/{id}", format: ndjson, forward: [authorization]}
  - path: "/cookies/{id}"
    stream: {get: "/tapes/{id}", format: ndjson, forward: [cookie]}
  - path: "/chat/{id}"
    methods: [POST]
    stream: {post: "/tapes/{id}", format: ndjson}
  - path: "/{rest:path}"
    proxy: {}
"""

SHARED = "shared", {}
MINE = "mine", {"headers": {"authorization": "Bearer t"}}
COOKIES = "cookies", {"headers": {"cookie": "session=t"}}
CHAT = "chat", {"method": "POST", "body": '{"ask": "all"}', "headers": {"content-type": "application/json"}}

# `@microsoft/fetch-event-source` moves its cursor when the `id` line has come: see `test_resume.py`.
CASES = [
    ("eventsource", SHARED, False),
    ("eventsource", MINE, False),
    ("eventsource", CHAT, False),
    ("eventsource-client", SHARED, False),
    ("eventsource-client", COOKIES, False),
    ("eventsource-client", CHAT, False),
    ("fetch-event-source", CHAT, True),
]


@pytest.fixture(scope="module")
def backend(node_packages: None) -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def gate(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Before the backend, with a route of each kind."""
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG % backend.url) as gate:
        yield gate


def is_event(line: Line) -> bool:
    return "type" in line


def check_events(events: list[Line], last: int) -> None:
    """Each record once and in order, and the end behind them."""
    *records, end = events
    assert [(record["type"], json.loads(record["data"])["n"]) for record in records] == [
        ("message", number) for number in range(1, last + 1)
    ]
    assert (end["type"], json.loads(end["data"])) == ("end", {"reason": "done"})
    assert len({event["id"] for event in events}) == len(events)


@pytest.mark.parametrize(
    ("library", "route", "between_writes"), CASES, ids=[f"{name}-{route[0]}" for name, route, _ in CASES]
)
def test_a_client_that_is_cut_off_gets_each_record_once_and_ends_by_itself(
    library: str,
    route: tuple[str, dict[str, object]],
    between_writes: bool,
    backend: Backend,
    gate: Gate,
    tmp_path: Path,
) -> None:
    name, options = route
    tape = f"/tapes/{library}-{name}"
    with CuttingProxy(gate.port, seed=31) as proxy:
        url = f"{proxy.url}/{name}/{library}-{name}"
        command: list[str | Path] = [find_node(), HERE / "resuming.mjs", library, url, json.dumps(options)]
        with Child(command, tmp_path / "log") as child:
            lines = child.until(lambda line: "open" in line)
            backend.tell(tape, {"n": 1})
            lines += child.until(is_event)
            proxy.cut(Cuts(3, between_writes=between_writes))
            last = backend.tell_until(proxy.is_spent, tape, after=1) + 1
            backend.tell(tape, {"n": last, "last": True})
            backend.finish(tape)
            lines += child.until(lambda line: "over" in line)
    check_events([line for line in lines if is_event(line)], last)
    assert sum("open" in line for line in lines) > 1
    (asked,) = backend.asked(tape)
    assert (asked.method, asked.body.decode()) == (options.get("method", "GET"), options.get("body", ""))
    assert "last-event-id" not in asked.headers


SSE_JS = """(() => {{
  window.log = [];
  const source = window.source = new SSE({url!r}, {{payload: '{{"ask": "all"}}', autoReconnect: true, start: false}});
  for (const type of ["message", "reset", "fault", "end"]) {{
    source.addEventListener(type, (event) => log.push({{type, id: event.lastEventId, data: event.data}}));
  }}
  source.addEventListener("open", () => log.push({{open: true}}));
  source.addEventListener("end", () => source.close());  // it would come back for ever, 204 or not
  source.stream();
}})()"""


@pytest.mark.browser
def test_sse_js_posts_again_when_it_is_cut_off_and_the_post_is_not_run_again(
    browser: Browser, backend: Backend, gate: Gate
) -> None:
    tape = "/tapes/sse.js"
    backend.put("/sse.js", (NODE_MODULES / "sse.js/lib/sse.js").read_text(), "text/javascript")
    backend.put("/page", '<!doctype html><script type="module">import {SSE} from "/sse.js"; window.SSE = SSE;</script>')
    with CuttingProxy(gate.port, seed=31) as proxy:
        browser.open("a", f"{proxy.url}/page")
        browser.wait("a", "'SSE' in window")
        browser.evaluate("a", SSE_JS.format(url="/chat/sse.js"))
        browser.wait("a", "log.length === 1")
        backend.tell(tape, {"n": 1})
        browser.wait("a", "log.length === 2")
        proxy.cut(Cuts(3))
        last = backend.tell_until(proxy.is_spent, tape, after=1)
        backend.finish(tape)
        browser.wait("a", "log.at(-1).type === 'end'")
        lines = browser.evaluate("a", "log")
    check_events([line for line in lines if is_event(line)], last)
    assert sum("open" in line for line in lines) > 1
    (asked,) = backend.asked(tape)
    assert (asked.method, asked.body) == ("POST", b'{"ask": "all"}')
