"""The demo as a newcomer meets it: one command, and its page in Chromium."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.clients.browser import Browser
from tests.clients.children import Child
from tests.clients.gate import HERE
from tests.ports import free_port

pytestmark = [pytest.mark.browser, pytest.mark.node]

IS_LIVE = "document.querySelector('#state').dataset.state === 'live'"

SHOWS_WHAT_THE_API_HAS = """fetch('/orders').then(answer => answer.json()).then(({data}) => {
  const rows = [...document.querySelectorAll('#orders tr:not(.leaving)')];
  const shown = rows.map(row => row.dataset.id + row.innerText.replace(/\\s+/g, ' ')).sort();
  return data.length === rows.length && data.every(({id, customer, status}) =>
    shown.some(text => text.startsWith(String(id)) && text.includes(customer) && text.includes(status)));
})"""


class Demo:
    """`ssegate demo`, which may be killed and started again where it was."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "demo.log"
        self._ports = (free_port(), free_port())
        self._child: Child | None = None
        self.urls: dict[str, str] = {}
        """What it said: where the page, the API and the stream are."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is None:
            assert "Traceback" not in self._log.read_text(), self._log.read_text()

    def start(self) -> None:
        port, api_port = map(str, self._ports)
        command = [sys.executable, "-m", "ssegate", "demo", "--port", port, "--api-port", api_port, "--every", "0.5"]
        self._child = Child(
            command,
            self._log,
            env={"PYTHONPATH": str(HERE.parent.parent), "NO_COLOR": "1"},
            parse=lambda line: {"text": line.decode()},
        )
        words = [line["text"].split() for line in self._child.until(lambda line: "stream" in line["text"].split())]
        self.urls = {line[0]: line[1] for line in words if len(line) == 2}

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()

    def write(self, method: str, path: str, document: object = None) -> Any:
        """A write through the gate."""
        answer = httpx.request(method, httpx.URL(self.urls["page"]).join(path), json=document)
        answer.raise_for_status()
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


def row(text: str) -> str:
    """An expression: is there a row with this text?"""
    return f"[...document.querySelectorAll('#orders tr:not(.leaving)')].some(row => row.innerText.includes({text!r}))"


def test_changes_of_the_list_appear_on_the_screen(browser: Browser, demo: Demo) -> None:
    browser.open("a", demo.urls["page"])
    browser.wait("a", IS_LIVE)
    order = demo.write("POST", "/orders", {"customer": "Zaphod", "total": 42})
    browser.wait("a", row("Zaphod"))
    demo.write("PATCH", f"/orders/{order['id']}", {"customer": "Trillian"})
    browser.wait("a", f"{row('Trillian')} && !{row('Zaphod')}")
    demo.write("DELETE", f"/orders/{order['id']}")
    browser.wait("a", f"!{row('Trillian')}")
    browser.wait("a", SHOWS_WHAT_THE_API_HAS)


def test_orders_change_by_themselves(browser: Browser, demo: Demo) -> None:
    browser.open("a", demo.urls["page"])
    browser.wait("a", "document.querySelectorAll('#orders tr').length > 0")
    browser.evaluate("a", "void (window.before = document.querySelector('#orders').innerText)")
    browser.wait("a", "document.querySelector('#orders').innerText !== before")


def test_the_button_moves_the_order_on(browser: Browser, demo: Demo) -> None:
    browser.open("a", demo.urls["page"])
    browser.wait("a", "!document.querySelector('#advance').disabled")
    browser.click("a", "#advance")
    browser.wait("a", "/On every screen \\d+ ms/.test(document.querySelector('#told').innerText)")


def test_the_page_catches_up_when_the_gate_was_killed_and_started_again(browser: Browser, demo: Demo) -> None:
    browser.open("a", demo.urls["page"])
    browser.wait("a", IS_LIVE)
    demo.kill()
    browser.wait("a", f"!({IS_LIVE})")
    demo.start()
    browser.wait("a", IS_LIVE)
    demo.write("POST", "/orders", {"customer": "Marvin", "total": 7})
    browser.wait("a", row("Marvin"))
    browser.wait("a", SHOWS_WHAT_THE_API_HAS)


@pytest.mark.long
def test_six_tabs_show_the_same(browser: Browser, demo: Demo) -> None:
    tabs = [f"tab {number}" for number in range(6)]
    for tab in tabs:
        browser.open(tab, demo.urls["page"])
    for tab in tabs:
        browser.wait(tab, IS_LIVE)
    demo.write("POST", "/orders", {"customer": "Slartibartfast", "total": 1})
    for tab in tabs:
        browser.wait(tab, row("Slartibartfast"))
    browser.wait(tabs[-1], SHOWS_WHAT_THE_API_HAS)
