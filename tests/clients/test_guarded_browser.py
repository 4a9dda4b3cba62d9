"""Chromium and guarded streams: a page of another origin comes by cookie, by ticket and by fetch, and a logout ends what it reads."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.clients.browser import Browser
from tests.clients.gate import Gate
from tests.clients.guarded_backend import GuardedBackend
from tests.tokens import AUDIENCE, ISSUER, Issuer

pytestmark = [pytest.mark.browser, pytest.mark.node]

ISSUES = Issuer("HS256", kid=None)

RECHECK = 0.5

CONFIG = """
auth:
  session: {{forward: {{url: "{backend}/whoami", send: [cookie], identity: x-user-id, cache: 0s, recheck: 500ms}}}}
  user: {{jwt: {{issuer: "{issuer}", audience: {audience}, keys: {{secret: {secret}}}, from: [header, ticket]}}}}
upstreams: {{backend: "{backend}"}}
cors: {{origins: ["{friend}", "{stranger}"], credentials: true}}
defaults: {{retry: 100ms}}
routes:
  - path: /me/notifications
    auth: session
    webhook: {{at: /hooks/me, verify: none, match: {{identity: body.to}}}}
  - path: /signed/{{id}}/events
    auth: user
    allow: "params.id == identity"
    webhook: {{at: /hooks/signed, verify: none, match: {{id: body.id}}}}
  - path: /short/{{id}}/events
    auth: user
    max_age: 400ms
    webhook: {{at: /hooks/signed, verify: none, match: {{id: body.id}}}}
  - path: /rooms/{{id}}/events
    auth: none
    webhook: {{at: /hooks/rooms, verify: none, match: {{id: body.id}}}}
  - path: /live
    topics: ["/rooms/{{id}}/events", /me/notifications]
  - path: /page
    proxy: {{}}
"""

FOLLOW = """(() => {{
  window.log ??= [];
  const source = window.source = new EventSource({url}, {options});
  const note = (event) => log.push({{type: event.type, id: event.lastEventId, data: event.data}});
  for (const type of ["message", "end", "expiring", "reset", "fault"]) source.addEventListener(type, note);
  source.onopen = () => log.push({{type: "open"}});
  source.onerror = () => log.push({{type: "error", state: source.readyState}});
}})()"""

BUY = """fetch({url!r}, {{
  method: "POST",
  headers: {{authorization: "Bearer {token}", "content-type": "application/json"}},
  body: JSON.stringify({{path: {path!r}}}),
}}).then(async (answer) => {{ window.bought = await answer.json(); return answer.status; }})"""

CONNECTING, OPEN, CLOSED = 0, 1, 2


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[GuardedBackend, GuardedBackend]]:
    """The backend, and a server of another origin."""
    with GuardedBackend() as backend, GuardedBackend() as friend:
        yield backend, friend


@pytest.fixture
def backend(servers: tuple[GuardedBackend, GuardedBackend]) -> GuardedBackend:
    """The backend, which knows two viewers."""
    backend = servers[0]
    backend.sessions = {"s1": "ada", "s2": "bob"}
    backend.targets.clear()
    return backend


@pytest.fixture
def friend(servers: tuple[GuardedBackend, GuardedBackend]) -> GuardedBackend:
    return servers[1]


@pytest.fixture(scope="module")
def gate(servers: tuple[GuardedBackend, GuardedBackend], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """One gate; each test has topics of its own."""
    backend, friend = servers
    config = CONFIG.format(
        backend=backend.url,
        friend=friend.url,
        stranger=friend.other_site,
        issuer=ISSUER,
        audience=AUDIENCE,
        secret=ISSUES.secret,
    )
    with Gate(tmp_path_factory.mktemp("guarded"), config) as gate:
        yield gate


def follow(browser: Browser, url: str, options: str = "{}") -> None:
    """Open an EventSource; `url` is an expression."""
    browser.evaluate("a", FOLLOW.format(url=url, options=options))


def log(browser: Browser, *types: str) -> list[dict[str, object]]:
    """What the page's EventSource dispatched so far, of these types; without any, all."""
    return [event for event in browser.evaluate("a", "log") if not types or event["type"] in types]


def clients(gate: Gate) -> int:
    """How many streams are open."""
    with urllib.request.urlopen(f"http://127.0.0.1:{gate.admin_port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return round(float(next(line.split()[1] for line in lines if line.startswith("ssegate_streams "))))


def no_clients_left(gate: Gate) -> None:
    """Return when the streams of earlier pages have been noticed to be gone."""
    end = time.monotonic() + 10
    while clients(gate):
        assert time.monotonic() < end, "somebody stays"
        time.sleep(0.02)  # figures tell nobody when they change


# By cookie


def test_a_page_of_another_origin_is_known_by_its_cookie_when_it_sends_it(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    browser.evaluate("a", "document.cookie = 'session=s1'")
    follow(browser, repr(f"{gate.url}/me/notifications"), "{withCredentials: true}")
    browser.wait("a", "log.some(event => event.type === 'open')")
    gate.request("POST", "/hooks/me", {"to": "bob", "n": 1})
    gate.request("POST", "/hooks/me", {"to": "ada", "n": 2})
    browser.wait("a", "log.some(event => event.type === 'message')")
    assert [json.loads(str(event["data"])) for event in log(browser, "message")] == [{"to": "ada", "n": 2}]
    browser.evaluate("a", "source.close(); log.length = 0")
    follow(browser, repr(f"{gate.url}/me/notifications"))
    browser.wait("a", "log.length > 0")
    assert log(browser) == [{"type": "error", "state": CLOSED}], "without its cookies it is nobody"


def test_a_logout_ends_the_stream_within_recheck_and_the_reconnect_is_final(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    browser.evaluate("a", "document.cookie = 'session=s2'")
    follow(browser, repr(f"{gate.url}/me/notifications"), "{withCredentials: true}")
    browser.wait("a", "log.some(event => event.type === 'open')")
    asked = backend.targets.count("/whoami")
    del backend.sessions["s2"]
    began = time.monotonic()
    browser.wait("a", "log.some(event => event.type === 'end')")
    assert time.monotonic() - began < RECHECK + 1, "a second is for a machine that has much to do"
    browser.wait("a", f"source.readyState === {CLOSED}")
    assert [json.loads(str(event["data"])) for event in log(browser, "end")] == [{"reason": "revoked"}]
    assert log(browser, "error") == [{"type": "error", "state": CONNECTING}, {"type": "error", "state": CLOSED}]
    assert backend.targets.count("/whoami") >= asked + 2, "for the stream, and for the reconnect"
    gate.request("POST", "/hooks/me", {"to": "bob", "n": 3})
    assert not log(browser, "message")


def test_a_refusal_can_be_read_by_a_script_of_an_allowed_origin(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.url}/page")
    statuses = browser.evaluate(
        "a",
        f"Promise.all(['/me/notifications', '/signed/u1/events', '/live?topic=/me/notifications'].map(path => "
        f"fetch('{gate.url}' + path).then(answer => answer.status)))",
    )
    assert statuses == [401, 401, 401]


# By ticket


def test_a_page_of_another_site_buys_a_ticket_and_comes_back_with_it_whenever_its_stream_is_cut(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.other_site}/page")
    url, path = f"{gate.url}/_ssegate/ticket", "/short/u1/events"
    assert browser.evaluate("a", BUY.format(url=url, path=path, token=ISSUES.token())) == 200
    assert browser.evaluate("a", "bought.expires_in") == 30
    browser.evaluate("a", f"window.target = '{gate.url}{path}?ticket=' + bought.ticket")
    follow(browser, "target")
    browser.wait("a", "log.some(event => event.type === 'open')")
    opened, n = 1, 0
    while opened < 4:
        n += 1
        gate.request("POST", "/hooks/signed", {"id": "u1", "n": n})
        opened = len(log(browser, "open"))
    gate.request("POST", "/hooks/signed", {"id": "u1", "n": n + 1})
    browser.wait("a", f"JSON.parse(log.findLast(event => event.type === 'message').data).n === {n + 1}")
    seen = [json.loads(str(event["data"]))["n"] for event in log(browser, "message")]
    assert seen == list(range(1, n + 2)), "each once, and in order"
    assert {event["state"] for event in log(browser, "error")} == {CONNECTING}
    # A second one with the same URL is turned away, whether the first is open or not.
    browser.evaluate(
        "a", "window.second = new EventSource(target); second.onerror = () => { window.state = second.readyState }"
    )
    browser.wait("a", f"window.state === {CLOSED}")
    browser.evaluate("a", "source.close()")
    assert not [target for target in backend.targets if "sst_" in target]
    assert "sst_" not in gate.log.read_text()


def test_a_page_is_sold_no_ticket_for_what_its_token_does_not_open(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.other_site}/page")
    url, token = f"{gate.url}/_ssegate/ticket", ISSUES.token()
    for path, status in ("/signed/u1/events", 200), ("/signed/u2/events", 403), ("/rooms/1/events", 400), ("/no", 404):
        assert browser.evaluate("a", BUY.format(url=url, path=path, token=token)) == status
    assert browser.evaluate("a", BUY.format(url=url, path="/signed/u1/events", token=token[:-4])) == 401


# By fetch


def test_a_page_of_another_site_shows_its_token_in_a_header_by_fetch(
    browser: Browser, backend: GuardedBackend, friend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{friend.other_site}/page")
    browser.evaluate(
        "a",
        f"""fetch('{gate.url}/signed/u1/events', {{
          headers: {{accept: 'text/event-stream', authorization: 'Bearer {ISSUES.token()}'}},
        }}).then(async (answer) => {{
          window.text = '';
          window.status_ = answer.status;
          const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
          (async () => {{ for (let it; !(it = await reader.read()).done; ) text += it.value; }})();
        }})""",
    )
    browser.wait("a", "window.status_ === 200 && text.startsWith('retry: ')")
    gate.request("POST", "/hooks/signed", {"id": "u1", "n": "by fetch"})
    browser.wait("a", "text.includes('by fetch')")


# Several topics


def test_ten_topics_come_over_one_of_the_six_connections_of_http_1_1(
    browser: Browser, backend: GuardedBackend, gate: Gate
) -> None:
    rooms = [f"/rooms/{number}/events" for number in range(9)]
    topics = [*rooms, "/me/notifications"]
    browser.open("a", f"{gate.url}/page")
    no_clients_left(gate)
    browser.evaluate("a", "document.cookie = 'session=s1'")
    browser.evaluate(
        "a",
        f"""(() => {{
          window.log = [];
          const topics = {json.dumps(topics)};
          const query = new URLSearchParams(topics.map(topic => ['topic', topic]));
          const source = window.source = new EventSource('/live?' + query);
          source.onopen = () => log.push({{type: 'open'}});
          for (const topic of topics) {{
            for (const type of [topic, topic + '#end']) {{
              source.addEventListener(type, event => log.push({{type: event.type, data: event.data}}));
            }}
          }}
        }})()""",
    )
    browser.wait("a", "log.some(event => event.type === 'open')")
    for n in (1, 2):
        for number in range(9):
            gate.request("POST", "/hooks/rooms", {"id": str(number), "n": n})
        gate.request("POST", "/hooks/me", {"to": "ada", "n": n})
    browser.wait("a", "log.length >= 21")
    seen = [(event["type"], json.loads(str(event["data"]))["n"]) for event in log(browser)[1:]]
    assert sorted(seen) == sorted((topic, n) for topic in topics for n in (1, 2))
    assert clients(gate) == 1
    used = browser.evaluate(
        "a", "Promise.all(Array.from({length: 5}, () => fetch('/page'))).then(answers => answers.map(it => it.status))"
    )
    assert used == [200] * 5, "the other five are free"
    # A logout ends the topic that is for its viewer, and leaves the others.
    del backend.sessions["s1"]
    browser.wait("a", "log.at(-1).type === '/me/notifications#end'")
    gate.request("POST", "/hooks/rooms", {"id": "3", "n": 3})
    browser.wait("a", "log.at(-1).type === '/rooms/3/events'")
    assert browser.evaluate("a", "source.readyState") == OPEN


def test_a_joined_event_source_goes_on_in_every_topic_when_the_gate_has_sent_it_away(
    browser: Browser, backend: GuardedBackend, gate: Gate
) -> None:
    browser.open("a", f"{gate.url}/page")
    follow(browser, "'/live?topic=/rooms/x/events&topic=/rooms/y/events'")
    browser.evaluate(
        "a",
        "for (const id of 'xy') for (const type of ['', '#reset']) source.addEventListener(`/rooms/${id}/events${type}`, "
        "event => log.push({type: event.type, data: event.data}))",
    )
    browser.wait("a", "log.some(event => event.type === 'open')")
    for id_ in "xy":
        gate.request("POST", "/hooks/rooms", {"id": id_, "n": 1})
    browser.wait("a", "log.length >= 3")
    gate.kill()
    browser.wait("a", "log.some(event => event.type === 'error')")
    gate.start()
    browser.wait("a", "log.filter(event => event.type === 'open').length === 2")
    for id_ in "xy":
        gate.request("POST", "/hooks/rooms", {"id": id_, "n": 2})
    browser.wait("a", "log.filter(event => event.data?.endsWith('2}')).length === 2")
    resets = log(browser, "/rooms/x/events#reset", "/rooms/y/events#reset")
    # The new process numbers anew, and says so of each topic.
    assert [event["data"] for event in resets] == ['{"reason":"unknown-cursor"}'] * 2
