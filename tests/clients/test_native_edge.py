"""Tools that are in use, over every protocol of the native edge: curl, nghttp, h2load, and Chromium with twenty streams in a page."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.clients.browser import Browser
from tests.clients.gate import Gate
from tests.clients.legacy import LegacyApi
from tests.clients.peers import find_curl, find_nghttp2

CONFIG = """
upstreams: {{api: "{api}"}}
defaults: {{retry: 100ms}}
routes:
  - path: "/documents/{{name}}/events"
    poll: {{get: "/documents/{{name}}", every: 100ms}}
  - path: "/{{rest:path}}"
    proxy: {{}}
"""
TLS = 'tls: {listen: "127.0.0.1:0", self_signed: true}'

SOURCES = 20
BROWSERS_LIMIT = 6
"""Connections a browser opens to one origin over HTTP/1.1."""

OPEN_SOURCES = f"""(() => {{
  window.versions = Array({SOURCES}).fill(null);
  window.sources = versions.map((_, n) => {{
    const source = new EventSource(`/documents/${{n}}/events`);
    source.onmessage = (event) => versions[n] = JSON.parse(event.data).version;
    return source;
  }});
}})()"""
COUNT_OPEN = "sources.filter((source) => source.readyState === EventSource.OPEN).length"
FETCHES = "Promise.all(Array.from({length: 10}, (_, n) => fetch(`/things/${n}`).then((it) => it.status)))"
PROTOCOLS = "[...new Set(performance.getEntriesByType('resource').map((entry) => entry.nextHopProtocol))]"


@pytest.fixture(scope="module")
def api() -> Iterator[LegacyApi]:
    with LegacyApi() as api:
        yield api


@pytest.fixture(scope="module")
def gate(api: LegacyApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG.format(api=api.url), server=TLS) as gate:
        yield gate
        gate.stop()


def url_of(gate: Gate, scheme: str) -> str:
    return f"{scheme}://localhost:{gate.tls_port if scheme == 'https' else gate.port}"


def run(*command: str, status: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.browser
@pytest.mark.node
def test_a_page_has_twenty_event_sources_and_its_fetches_on_one_connection_of_http2(
    browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    api.document = {"version": 1}
    browser.open("a", url_of(gate, "https") + "/page")
    browser.evaluate("a", OPEN_SOURCES)
    browser.wait("a", f"{COUNT_OPEN} === {SOURCES} && versions.every((version) => version === 1)")
    for _ in range(3):
        assert browser.evaluate("a", FETCHES) == [200] * 10
    api.document = {"version": 2}
    browser.wait("a", "versions.every((version) => version === 2)")
    assert browser.evaluate("a", COUNT_OPEN) == SOURCES
    assert browser.evaluate("a", PROTOCOLS) == ["h2"]
    browser.evaluate("a", "sources.forEach((source) => source.close())")


@pytest.mark.browser
@pytest.mark.node
def test_over_http1_the_same_page_has_six_open_and_everything_else_waits(
    browser: Browser, api: LegacyApi, gate: Gate
) -> None:
    api.document = {"version": 1}
    browser.open("a", url_of(gate, "http") + "/page")
    browser.evaluate("a", OPEN_SOURCES)
    browser.wait("a", f"{COUNT_OPEN} === {BROWSERS_LIMIT}")
    waiting = "fetch('/things/1', {signal: AbortSignal.timeout(500)}).then(() => 'done', (error) => error.name)"
    assert browser.evaluate("a", waiting) == "TimeoutError"
    assert browser.evaluate("a", COUNT_OPEN) == BROWSERS_LIMIT
    browser.evaluate("a", "sources.filter((it) => it.readyState === EventSource.OPEN).forEach((it) => it.close())")
    browser.wait("a", f"{COUNT_OPEN} === {BROWSERS_LIMIT}")
    browser.evaluate("a", "sources.forEach((source) => source.close())")
    assert browser.evaluate("a", FETCHES) == [200] * 10


CURLS = {
    "HTTP/1.1": ("http", "1.1", "--http1.1"),
    "HTTP/1.0": ("http", "1.1", "--http1.0"),
    "h2c": ("http", "2", "--http2-prior-knowledge"),
    "upgrade to h2c, which is not followed": ("http", "1.1", "--http2"),
    "TLS, HTTP/1.1": ("https", "1.1", "--http1.1"),
    "TLS, h2": ("https", "2", "--http2"),
    "TLS 1.2": ("https", "2", "--tls-max", "1.2"),
}


@pytest.mark.parametrize("name", CURLS)
def test_curl_reads_documents_and_events(api: LegacyApi, gate: Gate, name: str) -> None:
    scheme, version, *options = CURLS[name]
    api.document = {"version": 7}
    curl = (find_curl(), "-sSk", *options)
    said = run(*curl, "-w", "\n%{http_version} %{http_code}", f"{url_of(gate, scheme)}/things/1")
    assert said == f'{{"version": 7}}\n{version} 200'
    head = run(*curl, "-I", f"{url_of(gate, scheme)}/documents/1/events")
    assert re.search(r"(?i)^content-type: text/event-stream", head, re.MULTILINE)
    events = run(*curl, "-N", "--max-time", "1", f"{url_of(gate, scheme)}/documents/1/events", status=28)
    assert 'data: {"version":7}\n' in events


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nghttp_gets_documents_on_one_connection(gate: Gate, scheme: str) -> None:
    urls = [f"{url_of(gate, scheme)}/things/{number}" for number in range(20)]
    said = run(find_nghttp2("nghttp"), "-nv", "--no-verify-peer", *urls)
    assert said.count(":status: 200") == 20
    assert "RST_STREAM" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize("options", [(), ("--h1",)], ids=["h2", "h1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_h2load_gets_an_answer_to_every_request(gate: Gate, scheme: str, options: tuple[str, ...]) -> None:
    said = run(
        find_nghttp2("h2load"), "-n", "1000", "-c", "8", "-m", "10", *options, f"{url_of(gate, scheme)}/things/1"
    )
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert "status codes: 1000 2xx" in said
