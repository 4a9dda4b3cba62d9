"""A backend that says who somebody is by a cookie, and has an empty page for scripts to run in."""

from __future__ import annotations

import threading
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class GuardedBackend:
    """Answers `/whoami` with `X-User-Id` for the cookie `session`, or 401, and everything else with an empty page."""

    def __init__(self) -> None:
        self.sessions: dict[str, str] = {}
        """Identities by the cookie's value. Taking one out is a logout."""
        self.targets: list[str] = []
        """All that was asked for."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together, and do not wait for each other's acknowledgement

            def do_GET(self) -> None:
                backend.targets += [self.path, self.headers.get("x-forwarded-uri", "")]
                if self.path != "/whoami":
                    self._answer(200, "text/html", b"<!doctype html><title>page</title>")
                    return
                cookie = SimpleCookie(self.headers.get("cookie", "")).get("session")
                identity = backend.sessions.get(cookie.value) if cookie is not None else None
                if identity is None:
                    self._answer(401, "application/json", b"{}")
                else:
                    self._answer(200, "application/json", b"{}", ("x-user-id", identity))

            def _answer(self, status: int, kind: str, body: bytes, *headers: tuple[str, str]) -> None:
                self.send_response(status)
                for name, value in (("content-type", kind), ("content-length", str(len(body))), *headers):
                    self.send_header(name, value)
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
    def url(self) -> str:
        """By its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def other_site(self) -> str:
        """By its name, which for a browser is another site: its cookies go nowhere else."""
        return f"http://localhost:{self._server.server_address[1]}"
