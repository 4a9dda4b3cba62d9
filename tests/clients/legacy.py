"""A legacy API of the smallest kind: one document that changes, told to whoever asks, and an empty page."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class LegacyApi:
    """Answers every GET with the document as it is now, and `/page` with an empty page for scripts to run in."""

    def __init__(self) -> None:
        self.document: dict[str, object] = {"version": 0}
        """May be set at any time, and so may `status`."""
        self.status = 200
        self.cookies: list[tuple[str, str | None]] = []
        """Of each request for the document: its path, and the cookies that came with it."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together, and do not wait for each other's acknowledgement

            def do_GET(self) -> None:
                if self.path == "/page":
                    self._answer(200, "text/html", b"<!doctype html><title>page</title>")
                else:
                    api.cookies.append((self.path, self.headers["cookie"]))
                    self._answer(api.status, "application/json", json.dumps(api.document).encode())

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """What was asked is the tests' business, not their output's."""

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def version(self) -> int:
        """The document's member of this name."""
        number = self.document["version"]
        assert isinstance(number, int)
        return number

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"
