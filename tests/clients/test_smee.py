"""npm `smee-client` reads a stream of deliveries in its own format, made by an expression, and posts them on."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ssegate.core.delivery import Delivery
from ssegate.core.headers import Headers
from ssegate.core.scheme import GitHub
from tests.clients.children import PATIENCE, Child
from tests.clients.gate import Gate
from tests.clients.peers import HERE, find_node

CONFIG = """
routes:
  - path: /smee/{channel}
    webhook:
      at: /hooks/smee
      verify: {github: {secret: octo}}
      match: {channel: body.repository.name}
    emit: {data: "merge(headers, {body: body, query: query})"}
"""

Posted = tuple[str, dict[str, str], bytes]


class Target:
    """The developer's own server."""

    def __init__(self) -> None:
        posted: queue.SimpleQueue[Posted] = queue.SimpleQueue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()
                posted.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))

            def log_message(self, *arguments: object) -> None: ...

        self.posted = posted
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhook"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def target() -> Iterator[Target]:
    server = Target()
    yield server
    server.close()


@pytest.mark.node
def test_smee_client_posts_what_was_delivered_with_its_headers_and_its_query(
    node_packages: None, target: Target, tmp_path: Path
) -> None:
    with Gate(tmp_path, CONFIG) as gate:
        command = [find_node(), HERE / "smee.mjs", f"{gate.url}/smee/tea", target.url]
        with Child(command, tmp_path / "smee.log", env={"NO_PROXY": "127.0.0.1"}) as client:
            client.until(lambda line: "open" in line)
            # Written as JavaScript writes it, so that the signature still holds when the client has written it anew.
            body = json.dumps({"repository": {"name": "tea"}, "text": "é"}, separators=(",", ":"), ensure_ascii=False)
            signed = GitHub(["octo"]).sample(body.encode(), event="push", id_="d-1", wall=0.0)
            connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=PATIENCE)
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/hooks/smee?channel=7", signed.body, kind | dict(signed.headers))
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("ssegate-streams")) == (200, "1")
            connection.close()
            path, headers, received = target.posted.get(timeout=PATIENCE)
            assert path == "/webhook?channel=7"
            assert (headers["x-github-event"], headers["x-github-delivery"]) == ("push", "d-1")
            assert json.loads(received) == json.loads(body)
            again = Headers((name.encode(), value.encode("latin-1")) for name, value in headers.items())
            assert GitHub(["octo"]).fault(Delivery(again, received), 0.0) == ""
