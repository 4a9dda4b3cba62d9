"""Turbo, Datastar and htmx in Chromium, against an API that has nothing but JSON: the gate makes the HTML.

Whatever a value holds, the page shows it as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.clients.backend import Backend
from tests.clients.browser import Browser
from tests.clients.children import PATIENCE
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import Gate
from tests.clients.peers import NODE_MODULES, datastar

pytestmark = [pytest.mark.browser, pytest.mark.node]

CONFIG = """
upstreams: {api: "%s"}
defaults: {retry: 100ms}
routes:
  - path: "/turbo/{id}"
    poll: {get: "/orders/{id}", every: 50ms}
    emit:
      template: |
        <turbo-stream action="replace" target="order"><template>
          <p id="order" title="{status}">{status}</p>
        </template></turbo-stream>
  - path: "/datastar/{id}"
    poll: {get: "/orders/{id}", every: 50ms}
    emit:
      event: datastar-patch-elements
      template: elements <p id="order" title="{status}">{status}</p>
  - path: "/short/{id}"
    max_age: 1s
    poll: {get: "/orders/{id}", every: 50ms}
    emit: {event: datastar-patch-elements, template: 'elements <p id="order" title="{status}">{status}</p>'}
  - path: "/htmx/{id}"
    poll: {get: "/orders/{id}", every: 50ms}
    emit: {template: '<p id="order" title="{status}">{status}</p>'}
  - path: "/named/{id}"
    poll: {get: "/orders/{id}", every: 50ms}
    emit: {event: order, template: '<p id="order" title="{status}">{status}</p>'}
  - path: "/{rest:path}"
    proxy: {}
"""

PAGE = '<!doctype html><title>orders</title><link rel="icon" href="data:,">'
EMPTY = '<p id="order"></p>'

PAGES = {
    "turbo": f"""{PAGE}<script type="module" src="/lib/turbo.js"></script>
        {EMPTY}<turbo-stream-source src="/turbo/ID"></turbo-stream-source>""",
    "datastar": f"""{PAGE}<script type="module" src="/lib/datastar.js"></script>
        <main data-init="@get('/datastar/ID')">{EMPTY}</main>""",
    "htmx": f"""{PAGE}<script src="/lib/htmx.js"></script><script src="/lib/htmx-sse.js"></script>
        <main hx-ext="sse" sse-connect="/htmx/ID" sse-swap="message">{EMPTY}</main>""",
    "htmx-named": f"""{PAGE}<script src="/lib/htmx.js"></script><script src="/lib/htmx-sse.js"></script>
        <main hx-ext="sse" sse-connect="/named/ID" sse-swap="order">{EMPTY}</main>""",
    "htmx4": f"""{PAGE}<script src="/lib/htmx4.js"></script><script src="/lib/htmx4-sse.js"></script>
        <main hx-sse:connect="/htmx/ID">{EMPTY}</main>""",
}

ALWAYS = f"""{PAGE}<script type="module" src="/lib/datastar.js"></script>
    <main data-init="@get('/short/ID', {{retry: 'always'}})">{EMPTY}</main>"""
"""Without `always` Datastar takes an end in good order for final, as `@microsoft/fetch-event-source` does."""

SCRIPTS = {
    "/lib/turbo.js": "@hotwired/turbo/dist/turbo.es2017-esm.js",
    "/lib/htmx.js": "htmx.org/dist/htmx.js",
    "/lib/htmx-sse.js": "htmx-ext-sse/sse.js",
    "/lib/htmx4.js": "htmx4/dist/htmx.js",
    "/lib/htmx4-sse.js": "htmx4/dist/ext/hx-sse.js",
}


@pytest.fixture(scope="module")
def backend(node_packages: None) -> Iterator[Backend]:
    """The API, which has the pages and the libraries too."""
    with Backend() as backend:
        for path, file in SCRIPTS.items():
            backend.put(path, (NODE_MODULES / file).read_text(), "text/javascript")
        yield backend


@pytest.fixture(scope="module")
def gate(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG % backend.url) as gate:
        yield gate


HOSTILE = {
    "an element": """<img src="/none" onerror="hits.push('img')">""",
    "a script": "</p></template><script>hits.push('script')</script>",
    "quotes": """" onmouseover="hits.push('quote')" x=' & &amp; &#39; `${1}` {{1}} {status}""",
    "line ends": "one\ntwo\n\nevent: x\ndata: elements <img src=/none onerror=\"hits.push('line')\">\r\nid: 7\r\rthree",
    "no ends of lines": "U+2028 \u2028 U+2029 \u2029 NEL \u0085 VT \v FF \f end",
    "expressions": "{{7*7}} ${7*7} @get('/none') $status data-on:click",
    "other scripts": "größer 日本語 👩‍🚀 \u202e right to left",
    "no text": "NUL \0 and half a character \ud800",
}

NO_TEXT = str.maketrans({"\0": "\ufffd", "\ud800": "\ufffd"})
"""Neither HTML nor UTF-8 can say them."""

ORDER = "document.querySelector('#order')"


def shows(text: str) -> str:
    """An expression: whether the page shows just this text, in the element and in its attribute."""
    wanted = json.dumps(text.translate(NO_TEXT))
    return f"{ORDER}?.textContent === {wanted} && {ORDER}.title === {wanted} && !{ORDER}.children.length"


@dataclass(frozen=True)
class Shown:
    """A page that shows an order."""

    browser: Browser
    backend: Backend
    order: str

    def set(self, status: str) -> None:
        """Change the order, and wait until the page shows it."""
        self.backend.put_json(f"/orders/{self.order}", {"status": status})
        self.browser.wait("a", shows(status))


def open_page(html: str, browser: Browser, backend: Backend, origin: str, order: str) -> Shown:
    """A page that shows the order by its own name."""
    if "datastar.js" in html:
        backend.put("/lib/datastar.js", datastar(), "text/javascript")
    shown = Shown(browser, backend, order)
    backend.put_json(f"/orders/{order}", {"status": "open"})
    backend.put(f"/pages/{order}", html.replace("ID", order))
    browser.open("a", f"{origin}/pages/{order}")
    browser.evaluate("a", "window.hits = []")
    browser.wait("a", shows("open"))
    return shown


@pytest.mark.parametrize("library", PAGES)
def test_a_page_shows_a_value_and_its_changes_and_a_hostile_one_as_text(
    library: str, browser: Browser, backend: Backend, gate: Gate
) -> None:
    page = open_page(PAGES[library], browser, backend, gate.url, f"{library}-1")
    page.set("paid")
    for status in HOSTILE.values():
        page.set(status)
    page.set("shipped")
    assert browser.evaluate("a", "hits") == []
    assert browser.evaluate("a", "document.querySelectorAll('img').length") == 0
    assert browser.evaluate("a", "document.querySelectorAll('#order').length") == 1


@pytest.mark.parametrize("library", ["turbo", "datastar", "htmx4"])  # each has another way to connect
def test_a_page_whose_connection_is_cut_shows_the_newest_value(
    library: str, browser: Browser, backend: Backend, gate: Gate
) -> None:
    with CuttingProxy(gate.port, seed=3) as proxy:
        page = open_page(PAGES[library], browser, backend, proxy.url, f"{library}-2")
        proxy.cut(Cuts(1, longest=60))
        backend.put_json(f"/orders/{page.order}", {"status": "paid"})
        assert proxy.is_spent.wait(PATIENCE)
        page.set("shipped")


def test_datastar_goes_on_after_an_end_in_good_order_when_it_is_told_to(
    browser: Browser, backend: Backend, gate: Gate
) -> None:
    page = open_page(ALWAYS, browser, backend, gate.url, "always")
    browser.wait("a", "performance.getEntriesByType('resource').some(({name}) => name.includes('/short/'))")
    page.set("paid")
