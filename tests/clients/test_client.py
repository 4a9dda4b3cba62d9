"""The gate's own client, `ssegate/client/client.js`: in Node against a scripted server, in Chromium against a gate."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.clients.browser import Browser
from tests.clients.children import PATIENCE, Child, Line
from tests.clients.gate import Gate
from tests.clients.legacy import LegacyApi
from tests.clients.peers import HERE, find_node

CLIENT = HERE.parent.parent / "ssegate" / "client" / "client.js"
SCENARIOS = HERE / "client_scenarios.mjs"

MAX_BYTES = 5000
"""Of the client, as it is read and gzipped."""


def test_the_client_is_small_as_it_is_read() -> None:
    assert len(gzip.compress(CLIENT.read_bytes(), 6)) <= MAX_BYTES


# In Node


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Line]]:
    """What came of each scenario; they run one after the other in one process."""
    with Child([find_node(), SCENARIOS], tmp_path_factory.mktemp("scenarios") / "node.log") as node:
        lines = node.until(lambda line: "count" in line, 4 * PATIENCE)
        yield {line["sentence"]: line for line in lines[:-1]}


def templates() -> list[str]:
    """The sentences of the scenarios as they are written; some have `${…}` in them, and stand for several."""
    return re.findall(r'\bscenario\(\s*["`](.+?)["`],', SCENARIOS.read_text())


@pytest.mark.node
@pytest.mark.parametrize("template", templates())
def test_in_node(template: str, told: dict[str, Line]) -> None:
    sentence = ".+".join(re.escape(part) for part in re.split(r"\$\{.+?\}", template))
    found = [line for name, line in told.items() if re.fullmatch(sentence, name)]
    assert found
    assert [line for line in found if line["error"]] == []


@pytest.mark.node
def test_in_node_it_leaves_nothing_behind_that_keeps_the_process(tmp_path: Path) -> None:
    script = f"""
        const source = await (await import("node:fs/promises")).readFile({str(CLIENT)!r}, "base64");
        const {{ subscribe }} = await import("data:text/javascript;base64," + source);
        const silent = () => new Promise(() => {{}});
        const none = () => Promise.reject(new Error("no network"));
        const streams = [silent, none].map((fetch) => subscribe("http://gate.invalid/", {{ fetch }}));
        await new Promise((resolve) => setTimeout(resolve, 20));
        console.log(JSON.stringify({{ statuses: streams.map((stream) => stream.status) }}));
        streams.forEach((stream) => stream.close());
    """
    with Child([find_node(), "--input-type=module", "--eval", script], tmp_path / "node.log") as node:
        assert node.next() == {"statuses": ["connecting", "waiting"]}
        assert node.leave(5) == 0


# In Chromium


LOAD = """(async () => {{
  window.module = await import(URL.createObjectURL(new Blob([{source}], {{type: "text/javascript"}})));
  window.statuses = [];
  window.events = [];
  window.follow = (url, options) => window.stream = module.subscribe(url, {{
    onStatus: (status, detail) => statuses.push([status, detail?.reason ?? detail?.status ?? null]),
    onEvent: (event) => events.push(event.data),
    onState: (state) => window.state = state,
    ...options,
  }});
}})()"""


def load(browser: Browser, url: str) -> None:
    """Open a page that has `follow`, and what it told."""
    browser.open("a", url)
    browser.evaluate("a", LOAD.format(source=json.dumps(CLIENT.read_text())))


CONFIG = """
upstreams: {{api: "{api}"}}
defaults: {{retry: 100ms}}
routes:
  - path: "/documents/{{name}}/events"
    poll: {{get: "/documents/{{name}}", every: 100ms}}
    emit: {{as: patch}}
  - path: /page
    proxy: {{}}
"""


@pytest.mark.browser
@pytest.mark.node
def test_a_page_keeps_the_state_of_a_gate_that_sends_patches_and_is_killed(browser: Browser, tmp_path: Path) -> None:
    with LegacyApi() as api:
        api.document = {"version": 1, "same": {"a": [1]}}
        with Gate(tmp_path, CONFIG.format(api=api.url)) as gate:
            load(browser, f"{gate.url}/page")
            browser.evaluate("a", "follow('/documents/1/events'), null")
            browser.wait("a", "window.state?.version === 1")
            browser.evaluate("a", "window.same = state.same, null")
            api.document = {**api.document, "version": 2}
            browser.wait("a", "state.version === 2")
            assert browser.evaluate("a", "same === state.same")
            gate.kill()
            browser.wait("a", "stream.status === 'waiting'")
            api.document = {"version": 3}
            gate.start()
            browser.wait("a", "state.version === 3")
            assert ["reset", "unknown-cursor"] in browser.evaluate("a", "statuses")
            api.status = 404
            browser.wait("a", "stream.status === 'ended'")
            assert browser.evaluate("a", "stream.end.reason") == "gone"


class ScriptedServer(ThreadingHTTPServer):
    """Answers `/page`, preflights, and by the path what a test needs of a gate; to pages of every origin."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, str | None]] = []
        """Method, path, body and cursor of each request for a stream."""
        self.may_break = threading.Event()
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class ScriptedHandler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_OPTIONS(self) -> None:
        self._answer(204, "text/plain", b"")

    def do_POST(self) -> None:
        self._stream(self.rfile.read(int(self.headers["content-length"])).decode())

    def do_GET(self) -> None:
        if self.path == "/page":
            self._answer(200, "text/html", b'<!doctype html><link rel="icon" href="data:,"><title>page</title>')
        else:
            self._stream("")

    def _stream(self, body: str) -> None:
        self.server.asked.append((self.command, self.path, body, self.headers["last-event-id"]))
        if self.path == "/chat":
            # More is announced than comes: the connection breaks. A browser throws away what it has not given out by then.
            events = b"retry: 10\n:\ndata: 1\nid: e-1\n\n"
            self._answer(200, "text/event-stream", events, ("ssegate-stream", "/chat/s/7"), ("content-length", "1000"))
            self.server.may_break.wait(PATIENCE)
        elif self.path == "/chat/s/7":
            self._answer(200, "text/event-stream", b'data: 2\nid: e-2\n\nevent: end\ndata: {"reason": "done"}\n\n')
        elif len(self.server.asked) == 1:
            self._answer(200, "text/event-stream", b"retry: 600000\n:\ndata: 1\nid: e-1\n\n")
        else:
            self._answer(204, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes, *more: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("access-control-allow-origin", "*")
        self.send_header("access-control-allow-headers", "authorization, last-event-id, cache-control, content-type")
        self.send_header("access-control-expose-headers", "ssegate-resumed, ssegate-stream")
        for name, value in more:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """What was asked is the tests' business, not their output's."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.browser
@pytest.mark.node
@pytest.mark.parametrize("event", ["online", "pageshow", "visibilitychange"])
def test_a_page_that_waits_comes_back_at_once_when_it_is(event: str, browser: Browser, server: ScriptedServer) -> None:
    load(browser, f"{server.url}/page")
    browser.evaluate("a", "follow('/stream'), null")
    browser.wait("a", "stream.status === 'waiting'")
    target = "document" if event == "visibilitychange" else "window"
    browser.evaluate("a", f"{target}.dispatchEvent(new Event('{event}'))")
    browser.wait("a", "stream.status === 'ended'")
    assert server.asked == [("GET", "/stream", "", None), ("GET", "/stream", "", "e-1")]


@pytest.mark.browser
@pytest.mark.node
def test_a_page_of_another_origin_resumes_by_name_what_it_began_with_a_post(
    browser: Browser, server: ScriptedServer
) -> None:
    load(browser, server.url.replace("127.0.0.1", "localhost") + "/page")
    options = "{body: '{}', headers: {'content-type': 'application/json'}, token: 't'}"
    browser.evaluate("a", f"follow('{server.url}/chat', {options}), null")
    browser.wait("a", "events.length === 1")
    server.may_break.set()
    browser.wait("a", "stream.status === 'ended'")
    assert browser.evaluate("a", "events") == [1, 2]
    assert browser.evaluate("a", "stream.end") == {"reason": "done"}
    assert server.asked == [("POST", "/chat", "{}", None), ("GET", "/chat/s/7", "", "e-1")]
