"""Chromium's own EventSource: what it makes of the gate's answers, across origins, and when it gives up."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.clients.browser import Browser
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import EVENTS, Gate
from tests.clients.legacy import LegacyApi

pytestmark = [pytest.mark.browser, pytest.mark.node]

CONFIG = """
upstreams: {{api: "{api}"}}
cors: {{origins: ["{friend}"], credentials: true}}
defaults: {{retry: 100ms}}
routes:
  - path: "/documents/{{name}}/events"
    poll: {{get: "/documents/{{name}}", every: 100ms, forward: [cookie]}}
  - path: "/short/{{name}}/events"
    max_age: 1s
    poll: {{get: "/short/{{name}}", every: 100ms}}
  - path: /page
    proxy: {{}}
"""

FOLLOW = """(() => {{
  window.log = [];
  const source = window.source = new EventSource({url!r}, {options});
  const note = (event) => log.push({{type: event.type, id: event.lastEventId, data: event.data}});
  for (const type of ["message", "end", "reset", "fault"]) source.addEventListener(type, note);
  source.onopen = () => log.push({{type: "open"}});
  source.onerror = () => log.push({{type: "error", state: source.readyState}});
}})()"""

CONNECTING, CLOSED = 0, 2


@pytest.fixture(scope="module")
def apis() -> Iterator[tuple[LegacyApi, LegacyApi]]:
    """The API behind the gate, and a server of another origin."""
    with LegacyApi() as api, LegacyApi() as friend:
        yield api, friend


@pytest.fixture
def api(apis: tuple[LegacyApi, LegacyApi]) -> LegacyApi:
    """The API, as in the beginning."""
    api = apis[0]
    api.document, api.status = {"version": 0}, 200
    api.cookies.clear()
    return api


@pytest.fixture
def friend(apis: tuple[LegacyApi, LegacyApi]) -> LegacyApi:
    return apis[1]


@pytest.fixture(scope="module")
def gate(apis: tuple[LegacyApi, LegacyApi], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """One gate; each test has documents of its own."""
    api, friend = apis
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG.format(api=api.url, friend=friend.url) + EVENTS) as gate:
        yield gate


def follow(browser: Browser, page: str, url: str, options: str = "{}") -> None:
    browser.evaluate(page, FOLLOW.format(url=url, options=options))


def log(browser: Browser, page: str, *types: str) -> list[dict[str, object]]:
    """What the page's EventSource dispatched so far, of these types."""
    return [event for event in browser.evaluate(page, "log") if event["type"] in types]


# Losing and resuming


def test_a_page_that_loses_its_connections_misses_and_repeats_no_event(browser: Browser, gate: Gate) -> None:
    with CuttingProxy(gate.port, seed=5) as proxy:
        browser.open("a", f"{proxy.url}/page")
        follow(browser, "a", "/t/page/events")
        browser.wait("a", "log.length === 1")
        gate.post("page", 1)
        browser.wait("a", "log.length === 2")
        proxy.cut(Cuts(8))
        last = gate.post_until(proxy.is_spent, "page", after=1)
        browser.wait("a", f"JSON.parse(log.at(-1).data ?? '{{}}').n === {last}")
        events = log(browser, "a", "message", "reset", "fault", "end")
        assert [json.loads(str(event["data"]))["n"] for event in events] == list(range(1, last + 1))
        assert len(log(browser, "a", "open")) > 1
        browser.evaluate("a", "source.close()")


def test_six_tabs_are_served_over_one_browsers_six_connections(browser: Browser, api: LegacyApi, gate: Gate) -> None:
    tabs = [f"tab {number}" for number in range(6)]
    for tab in tabs:
        browser.open(tab, f"{gate.url}/page")
    for tab in tabs:
        follow(browser, tab, "/documents/shared/events")
    for tab in tabs:
        browser.wait(tab, "log.some(event => event.type === 'message')")
    api.document = {"version": 1}
    for tab in tabs:
        browser.wait(tab, "log.at(-1).data === '{\"version\":1}'")


def test_a_page_catches_up_when_the_gate_was_killed_and_started_again(
    browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{gate.url}/page")
    follow(browser, "a", "/documents/one/events")
    browser.wait("a", "log.some(event => event.type === 'message')")
    gate.kill()
    browser.wait("a", "log.some(event => event.type === 'error')")
    api.document = {"version": 2}
    gate.start()
    browser.wait("a", "log.at(-1).data === '{\"version\":2}'")
    # The new process has other epochs: it says that it cannot lead on, and sends what is so now.
    assert [event["data"] for event in log(browser, "a", "reset")] == ['{"reason":"unknown-cursor"}']


# Across origins


def test_a_page_of_an_allowed_origin_sees_events_and_sends_its_cookies_when_it_wants_to(
    browser: Browser, api: LegacyApi, friend: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    browser.evaluate("a", "document.cookie = 'who=ada'")
    follow(browser, "a", f"{gate.url}/documents/mine/events", "{withCredentials: true}")
    browser.wait("a", "log.some(event => event.type === 'message')")
    browser.evaluate("a", "source.close()")
    follow(browser, "a", f"{gate.url}/documents/anyone/events")
    browser.wait("a", "log.some(event => event.type === 'message')")
    browser.evaluate("a", "source.close()")
    assert {asked for asked in api.cookies if asked[0] in ("/documents/mine", "/documents/anyone")} == {
        ("/documents/mine", "who=ada"),
        ("/documents/anyone", None),
    }


def test_a_page_of_a_foreign_origin_sees_nothing(
    browser: Browser, api: LegacyApi, friend: LegacyApi, gate: Gate
) -> None:
    browser.open("a", friend.url.replace("127.0.0.1", "localhost") + "/page")
    follow(browser, "a", f"{gate.url}/documents/foreign/events")
    browser.wait("a", "log.length > 0")
    assert log(browser, "a", "message", "open", "error") == [{"type": "error", "state": CLOSED}]
    refusal = browser.evaluate("a", f"fetch('{gate.url}/documents/foreign/events').catch((error) => error.name)")
    assert refusal == "TypeError"


@pytest.mark.parametrize("path", ["/documents/missing/events", "/no/such/route"])
def test_a_404_can_be_read_by_a_script_of_another_origin(
    path: str, browser: Browser, api: LegacyApi, friend: LegacyApi, gate: Gate
) -> None:
    api.status = 404
    browser.open("a", f"{friend.url}/page")
    told = browser.evaluate(
        "a",
        f"fetch('{gate.url}{path}', {{credentials: 'include'}}).then(async (answer) => "
        "({status: answer.status, type: answer.headers.get('content-type'), problem: await answer.json()}))",
    )
    assert (told["status"], told["type"], told["problem"]["status"]) == (404, "application/problem+json", 404)


def test_a_script_of_another_origin_may_ask_with_a_cursor_and_a_token(
    browser: Browser, api: LegacyApi, friend: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    answer = browser.evaluate(
        "a",
        f"fetch('{gate.url}/documents/asked/events', {{headers: {{authorization: 'Bearer x', 'last-event-id': 'earliest', "
        "accept: 'text/event-stream'}}).then(async (answer) => "
        "[answer.status, new TextDecoder().decode((await answer.body.getReader().read()).value).startsWith('retry: ')])",
    )
    assert answer == [200, True]


# Giving up, and not


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_event_source_that_is_refused_gives_up_for_good(
    status: int, browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    api.status = status
    browser.open("a", f"{gate.url}/page")
    follow(browser, "a", f"/documents/refused-{status}/events")
    browser.wait("a", "log.length > 0")
    assert browser.evaluate("a", "log") == [{"type": "error", "state": CLOSED}]


def test_an_event_source_whose_topic_has_ended_is_told_so_and_gives_up_for_good(
    browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{gate.url}/page")
    follow(browser, "a", "/documents/ended/events")
    browser.wait("a", "log.some(event => event.type === 'message')")
    api.status = 404
    browser.wait("a", f"source.readyState === {CLOSED}")
    assert [event["type"] for event in browser.evaluate("a", "log")] == ["open", "message", "end", "error", "error"]


def test_an_event_source_whose_stream_grew_too_old_comes_back_and_goes_on_across_origins_too(
    browser: Browser, api: LegacyApi, friend: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    follow(browser, "a", f"{gate.url}/short/lived/events")
    browser.wait("a", "log.filter(event => event.type === 'open').length === 2")
    api.document = {"version": 1}
    browser.wait("a", "log.at(-1).data === '{\"version\":1}'")
    assert [event["data"] for event in log(browser, "a", "message", "reset")] == ['{"version":0}', '{"version":1}']


def test_an_event_source_that_a_draining_gate_sends_away_means_to_come_back(
    browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    browser.open("a", f"{gate.url}/page")
    follow(browser, "a", "/documents/drained/events")
    browser.wait("a", "log.some(event => event.type === 'message')")
    gate.stop()
    browser.wait("a", "log.at(-1).type === 'error'")
    assert log(browser, "a", "error") == [{"type": "error", "state": CONNECTING}]
    gate.start()


def test_an_outage_of_the_api_is_no_outage_of_the_stream(browser: Browser, api: LegacyApi, gate: Gate) -> None:
    browser.open("a", f"{gate.url}/page")
    follow(browser, "a", "/documents/shaky/events")
    browser.wait("a", "log.some(event => event.type === 'message')")
    api.status = 503
    browser.wait("a", "log.at(-1).type === 'fault'")
    api.document, api.status = {"version": 1}, 200
    browser.wait("a", "log.at(-1).data === '{\"version\":1}'")
    assert log(browser, "a", "error") == []
