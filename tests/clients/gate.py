"""A gate in a process of its own, which tests start, kill and start again on the same port."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.clients.children import PATIENCE, Child

HERE = Path(__file__).parent

HEAD = """
version: 1
server: {{listen: "127.0.0.1:{port}", drain: {{timeout: 2s}}{server}}}
admin: {{listen: "127.0.0.1:0"}}
"""

EVENTS = """
  - path: "/t/{id}/events"
    webhook:
      at: /hooks/t
      verify: none
      match: {id: body.id}
      then: emit
"""
"""A route whose events are what is posted, for `Gate.post`."""


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None, url
    return port


class Gate:
    """A gate and the folder of its files. `config` is YAML without `version` and `server`; of that, `server` has more keys."""

    def __init__(self, folder: Path, config: str, *, server: str = "") -> None:
        self._folder = folder
        self._config = config
        self._server = server and f", {server}"
        self._child: Child | None = None
        self.port = 0
        """Chosen by the system at the first start, and kept."""
        self.tls_port = 0
        """Where it listens with TLS, if `server` says that it does."""
        self.admin_port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
        if error is None:
            self.check_log()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self._folder / "gate.log"

    def start(self) -> None:
        """Start it, and return when it listens."""
        file = self._folder / "ssegate.yaml"
        file.write_text(HEAD.format(port=self.port, server=self._server) + self._config)
        command: list[str | Path] = [sys.executable, "-m", "ssegate", "serve", "-c", file]
        self._child = Child(command, self.log, env={"PYTHONPATH": str(HERE.parent.parent)})
        try:
            banner = self._child.next()
            self.port = port_of(banner["listening"][0]["url"])
            self.tls_port = port_of(banner["listening"][-1]["url"])
            self.admin_port = port_of(banner["admin"])
        except BaseException:
            self._child.kill()
            raise

    def kill(self) -> None:
        """`kill -9`."""
        assert self._child is not None
        self._child.kill()

    def stop(self) -> None:
        """SIGTERM, and the drain that follows from it."""
        assert self._child is not None
        status = self._child.terminate()
        assert status == 0, f"the gate ended with {status}: {self.log.read_text()[-2000:]}"

    def check_log(self) -> None:
        """Fail if the gate met something that it did not expect."""
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "ERROR" not in log, log

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Send JSON, and return the JSON that comes back; None when the answer has no body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {} if text is None else {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            assert 200 <= response.status < 300, f"{method} {path}: {response.status} {answer!r}"
            return json.loads(answer) if answer else None
        finally:
            connection.close()

    def post(self, id_: str, number: int) -> None:
        """Make one numbered event on a route of `EVENTS`."""
        self.request("POST", "/hooks/t", {"id": id_, "n": number})

    def post_until(self, is_spent: threading.Event, id_: str, *, after: int) -> int:
        """Make one event after the other until this is set, and a last one; return its number."""
        end = time.monotonic() + 20
        number = after
        is_last = False
        while not is_last:
            is_last = is_spent.wait(0.01)
            assert time.monotonic() < end, "the proxy had nothing to cut"
            number += 1
            self.post(id_, number)
        return number
