"""Chromium, as the tests lead it: pages by name, and expressions that are waited for."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.clients.children import PATIENCE, Child
from tests.clients.peers import HERE, find_chromium, find_node


class Browser:
    """One Chromium. `reset` before each test gives it an empty memory."""

    def __init__(self, folder: Path) -> None:
        self._child = Child([find_node(), HERE / "browser.mjs", find_chromium()], folder / "browser.log")

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._child.leave()
        finally:
            self._child.kill()

    def _take(self) -> Any:
        # The driver gives up first, and then says what it waited for.
        line = self._child.next(2 * PATIENCE)
        assert "error" not in line, line["error"]
        return line["value"]

    def _ask(self, op: str, **what: object) -> Any:
        self._child.say({"op": op, **what})
        return self._take()

    def reset(self) -> None:
        """Close all pages; forget cookies and connections."""
        self._ask("reset")

    def open(self, page: str, url: str) -> None:
        """Load a page into a tab, a new one if there is none of this name."""
        self._ask("open", page=page, url=url)

    def evaluate(self, page: str, script: str) -> Any:
        """The value of an expression; a promise is awaited."""
        return self._ask("evaluate", page=page, script=script)

    def wait(self, page: str, script: str) -> None:
        """Return when the expression is true; fail when it does not come to that."""
        self._ask("wait", page=page, script=script)

    def set_offline(self, offline: bool) -> None:
        """Take the network away from all pages, or give it back. What is open already stays open."""
        self._ask("offline", offline=offline)

    def click(self, page: str, selector: str) -> None:
        self._ask("click", page=page, selector=selector)

    def texts(self, page: str, selector: str) -> list[str]:
        """What stands on the screen in each element that matches."""
        texts: list[str] = self._ask("texts", page=page, selector=selector)
        return texts
