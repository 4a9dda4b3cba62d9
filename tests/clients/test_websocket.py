"""PyPI `websockets` as the upstream: what it says is read by npm `eventsource`, before and after a restart."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.clients.children import PATIENCE, Child, Line
from tests.clients.gate import Gate
from tests.clients.peers import client
from tests.ports import free_port

pytestmark = [pytest.mark.node, pytest.mark.usefixtures("node_packages")]

CONFIG = """
upstreams: {api: {url: "http://127.0.0.1:%d", backoff: {min: 100ms, max: 200ms}}}
defaults: {retry: 100ms}
routes:
  - path: /ticks
    stream: {get: "/ticks?from=1", format: websocket}
  - path: /prices/{symbol}
    stream: {get: "/{symbol}", format: websocket, data: price, done: last}
"""


class Server:
    """A WebSocket server whose connections a test takes one after the other."""

    def __init__(self, port: int) -> None:
        self._connected: queue.SimpleQueue[ServerConnection] = queue.SimpleQueue()
        self._server = serve(self._handle, "127.0.0.1", port)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def _handle(self, connection: ServerConnection) -> None:
        self._connected.put(connection)
        for _ in connection:
            pass  # until it is closed, from either side

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all connections, and listen no more."""
        self._server.shutdown()
        self._thread.join()

    def connection(self) -> ServerConnection:
        """The next one."""
        return self._connected.get(timeout=PATIENCE)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def gate(port: int, tmp_path: Path) -> Iterator[Gate]:
    """Before a server that is not there yet."""
    with Gate(tmp_path, CONFIG % port) as gate:
        yield gate


def next_event(child: Child) -> tuple[str, str]:
    line = child.until(lambda line: "type" in line)[-1]
    return line["type"], line["data"]


def test_an_eventsource_stays_open_while_the_server_behind_the_gate_is_restarted(
    port: int, gate: Gate, tmp_path: Path
) -> None:
    with Server(port) as server, Child(client("eventsource", f"{gate.url}/ticks"), tmp_path / "log") as child:
        connection = server.connection()
        assert connection.request is not None
        assert connection.request.path == "/ticks?from=1"
        assert child.next() == {"open": True}
        for sent, received in [
            ('{"n": 1}', '{"n": 1}'),
            ("two\nlines", "two\nlines"),
            (b"\x00\xff", base64.b64encode(b"\x00\xff").decode()),
            (["in ", "three ", "fragments"], "in three fragments"),
        ]:
            connection.send(sent)
            assert next_event(child) == ("message", received)
        assert connection.ping().wait(PATIENCE), "a pong came"
        connection.close(1012, "service restart")
        server.stop()
        assert next_event(child)[0] == "fault"
        with Server(port) as restarted:
            restarted.connection().send("behind it")
            assert [next_event(child) for _ in range(2)] == [("recovered", "{}"), ("message", "behind it")]


def test_an_eventsource_ends_by_itself_when_a_message_says_that_it_was_the_last(
    port: int, gate: Gate, tmp_path: Path
) -> None:
    with Server(port) as server, Child(client("eventsource", f"{gate.url}/prices/tea"), tmp_path / "log") as child:
        connection = server.connection()
        connection.send(json.dumps({"price": 3.5}))
        connection.send(json.dumps({"volume": 7}))
        connection.send(json.dumps({"price": 4, "last": True}))
        lines: list[Line] = child.until(lambda line: line.get("closed", False))
        events = [(line["type"], line["data"]) for line in lines if "type" in line]
        assert events == [("message", "3.5"), ("message", "4"), ("end", '{"reason":"done"}')]
