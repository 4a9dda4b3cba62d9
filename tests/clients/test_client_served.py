"""The gate's own client as the gate serves it: imported by pages of another origin, in Chromium."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import httpx
import pytest

from tests.clients.backend import Backend
from tests.clients.browser import Browser
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import Gate
from tests.clients.peers import HERE

CLIENT = HERE.parent.parent / "ssegate" / "client"

MAX_BYTES = 5000
"""Of the client, as it is served and gzipped."""

CONFIG = """
upstreams: {api: "%s"}
cors: {origins: ["%s"]}
defaults: {retry: 100ms}
routes:
  - path: "/orders/{id}/events"
    poll: {get: "/orders/{id}", every: 50ms}
    emit: {as: patch}
  - path: "/chat/{id}"
    methods: [POST]
    stream: {post: "/tapes/{id}", format: ndjson, forward: [authorization]}
  # By itself a client comes back after a minute at the earliest.
  - path: "/slow/{id}"
    methods: [POST]
    retry: 2m
    stream: {post: "/tapes/{id}", format: ndjson}
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """The API, and the server of the pages: an origin that is not the gate's."""
    with Backend() as backend:
        backend.put("/page", '<!doctype html><title>page</title><link rel="icon" href="data:,">')
        yield backend


@pytest.fixture(scope="module")
def gate(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG % (backend.url, backend.url)) as gate:
        yield gate


# As it is served


@pytest.mark.parametrize(
    ("name", "media"),
    [("client.js", "text/javascript; charset=utf-8"), ("client.d.ts", "text/plain; charset=utf-8")],
)
def test_the_client_is_served_to_every_origin(name: str, media: str, gate: Gate) -> None:
    answer = httpx.get(f"{gate.url}/_ssegate/{name}", headers={"origin": "https://unknown.example"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media)
    assert answer.content == (CLIENT / name).read_bytes()
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["cache-control"] == "public, max-age=3600"


def test_the_client_is_small_as_it_is_served(gate: Gate) -> None:
    assert len(gzip.compress(httpx.get(f"{gate.url}/_ssegate/client.js").content, 6)) <= MAX_BYTES


def test_head_is_answered_as_get_is_but_for_the_body(gate: Gate) -> None:
    url = f"{gate.url}/_ssegate/client.js"
    got, head = httpx.get(url), httpx.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert [head.headers[name] for name in ("content-type", "content-length", "etag")] == [
        got.headers[name] for name in ("content-type", "content-length", "etag")
    ]


def test_a_client_that_is_still_the_same_is_not_sent_again(gate: Gate) -> None:
    url = f"{gate.url}/_ssegate/client.js"
    etag = httpx.get(url).headers["etag"]
    again = httpx.get(url, headers={"if-none-match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_client_is_there_to_be_read_and_for_nothing_else(method: str, gate: Gate) -> None:
    answer = httpx.request(method, f"{gate.url}/_ssegate/client.js")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


# In a page

LOAD = """import({url!r}).then(({{subscribe}}) => {{
  window.statuses = [];
  window.states = [];
  window.events = [];
  window.follow = (url, options) => window.stream = subscribe(url, {{
    onStatus: (status) => statuses.push(status),
    onState: (state) => states.push(state),
    onEvent: ({{type, data, id}}) => events.push({{type, data, id}}),
    ...options,
  }});
}})"""


def load(browser: Browser, backend: Backend, gate_url: str) -> None:
    """Open a page of the other origin that imports the client from the gate."""
    browser.open("a", f"{backend.url}/page")
    browser.evaluate("a", LOAD.format(url=f"{gate_url}/_ssegate/client.js"))


def check_records(browser: Browser, last: int) -> None:
    """Each record once and in order."""
    events = browser.evaluate("a", "events")
    assert [(event["type"], event["data"]) for event in events] == [
        ("message", {"n": number}) for number in range(1, last + 1)
    ]
    assert len({event["id"] for event in events}) == last


@pytest.mark.browser
@pytest.mark.node
def test_a_page_imports_it_and_keeps_the_state_of_a_resource(browser: Browser, backend: Backend, gate: Gate) -> None:
    backend.put_json("/orders/1", {"status": "open", "lines": [{"id": 1, "text": "tea"}, {"id": 2, "text": "milk"}]})
    load(browser, backend, gate.url)
    browser.evaluate("a", f"follow('{gate.url}/orders/1/events'), null")
    browser.wait("a", "states.at(-1)?.status === 'open'")
    backend.put_json(
        "/orders/1", {"status": "paid", "lines": [{"id": 1, "text": "tea"}, {"id": 2, "text": "oat milk"}]}
    )
    browser.wait("a", "states.at(-1)?.status === 'paid'")
    assert browser.evaluate("a", "events.map((event) => event.type)") == ["snapshot", "patch"]
    assert browser.evaluate("a", "stream.state") == {
        "status": "paid",
        "lines": [{"id": 1, "text": "tea"}, {"id": 2, "text": "oat milk"}],
    }
    assert browser.evaluate("a", "states[0].lines[0] === states[1].lines[0]"), "what has not changed is the same object"
    browser.evaluate("a", "stream.close()")


@pytest.mark.browser
@pytest.mark.node
def test_what_a_page_began_with_a_post_is_resumed_by_name_when_it_is_cut_off(
    browser: Browser, backend: Backend, gate: Gate
) -> None:
    with CuttingProxy(gate.port, seed=11) as proxy:
        load(browser, backend, proxy.url)
        options = "{body: '{\"ask\": 1}', headers: {'content-type': 'application/json'}, token: () => 'sesame'}"
        browser.evaluate("a", f"follow('{proxy.url}/chat/1', {options}), null")
        browser.wait("a", "stream.status === 'open'")
        backend.tell("/tapes/1", {"n": 1})
        browser.wait("a", "events.length === 1")
        proxy.cut(Cuts(3))
        last = backend.tell_until(proxy.is_spent, "/tapes/1", after=1)
        backend.finish("/tapes/1")
        browser.wait("a", "stream.status === 'ended'")
    check_records(browser, last)
    assert browser.evaluate("a", "stream.end") == {"reason": "done"}
    assert browser.evaluate("a", "statuses.filter((status) => status === 'open').length") > 1
    assert browser.evaluate(
        "a", "performance.getEntriesByType('resource').some(({name}) => name.includes('/chat/1/s/'))"
    )
    (asked,) = backend.asked("/tapes/1")
    assert (asked.method, asked.body) == ("POST", b'{"ask": 1}')
    assert (asked.headers["authorization"], asked.headers["content-type"]) == ("Bearer sesame", "application/json")


def come_online(browser: Browser) -> None:
    """Give the page its network back. Chromium may say `online` a moment before requests get through; then it is said again."""
    browser.set_offline(False)
    browser.wait("a", "fetch('/page').then(() => true, () => false)")
    browser.wait("a", "stream.status !== 'connecting'")
    browser.evaluate("a", "stream.status === 'waiting' && dispatchEvent(new Event('online'))")


@pytest.mark.browser
@pytest.mark.node
def test_a_page_that_was_offline_goes_on_as_soon_as_it_is_online(
    browser: Browser, backend: Backend, gate: Gate
) -> None:
    with CuttingProxy(gate.port, seed=0) as proxy:
        load(browser, backend, proxy.url)
        browser.evaluate("a", f"follow('{proxy.url}/slow/2', {{body: 'x'}}), null")
        browser.wait("a", "stream.status === 'open'")
        backend.tell("/tapes/2", {"n": 1})
        browser.wait("a", "events.length === 1")
        browser.set_offline(True)
        proxy.cut(Cuts(1, longest=1))  # Chromium leaves alone what is open already
        backend.tell("/tapes/2", {"n": 2})
        browser.wait("a", "stream.status === 'waiting'")
        come_online(browser)
        browser.wait("a", "events.length === 2")
        backend.tell("/tapes/2", {"n": 3})
        browser.wait("a", "events.length === 3")
        browser.evaluate("a", "stream.close()")
    check_records(browser, 3)
    assert browser.evaluate("a", "statuses.filter((status) => status === 'open').length") == 2
    assert len(backend.asked("/tapes/2")) == 1
