"""A backend that a test fills as it goes: documents, pages and scripts, and answers that go on until they are ended."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.clients.children import PATIENCE


@dataclass(frozen=True)
class Asked:
    """One request for a tape."""

    method: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class Tape:
    """What the answers under one path say, each from the beginning."""

    lines: list[bytes] = field(default_factory=list)
    is_over: bool = False
    asked: list[Asked] = field(default_factory=list)


class Backend:
    """Answers with what was put under a path; under all others, to requests of any kind, with the lines told there."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, bytes]] = {}
        self._tapes: dict[str, Tape] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # Files

    def put(self, path: str, text: str, media: str = "text/html; charset=utf-8") -> None:
        """A file, in the place of what was there."""
        self._files[path] = media, text.encode()

    def put_json(self, path: str, document: object) -> None:
        """A document, in the place of what was there."""
        self.put(path, json.dumps(document), "application/json")

    # Tapes

    def tell(self, path: str, record: object) -> None:
        """One line of JSON more, to all who listen now and who ask later."""
        line = json.dumps(record).encode() + b"\n"
        with self._changed:
            self._tape(path).lines.append(line)
            self._changed.notify_all()

    def tell_until(self, is_spent: threading.Event, path: str, *, after: int) -> int:
        """One numbered record after the other until this is set, and a last one; return its number."""
        number = after
        is_last = False
        while not is_last:
            is_last = is_spent.wait(0.01)
            number += 1
            assert number < after + PATIENCE * 100, "the proxy had nothing to cut"
            self.tell(path, {"n": number})
        return number

    def finish(self, path: str) -> None:
        """Let the answers under this path end in good order."""
        with self._changed:
            self._tape(path).is_over = True
            self._changed.notify_all()

    def asked(self, path: str) -> list[Asked]:
        """The requests for this path so far."""
        with self._changed:
            return list(self._tape(path).asked)

    def _tape(self, path: str) -> Tape:
        return self._tapes.setdefault(path, Tape())

    def _open(self, path: str, asked: Asked) -> Tape:
        with self._changed:
            tape = self._tape(path)
            tape.asked.append(asked)
            return tape

    def _next(self, tape: Tape, told: int) -> list[bytes]:
        """The lines behind those that were told; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(tape.lines) > told or tape.is_over or self._is_closing)
            return tape.lines[told:]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                file = backend._files.get(self.path)
                if file is None:
                    self._follow(b"")
                else:
                    media, body = file
                    self._begin(media, "content-length", str(len(body)))
                    self.wfile.write(body)

            def do_POST(self) -> None:
                self._follow(self._read_chunks() if self.headers["transfer-encoding"] else self._read_all())

            def _read_all(self) -> bytes:
                return self.rfile.read(int(self.headers["content-length"] or 0))

            def _read_chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _begin(self, media: str, name: str, value: str) -> None:
                self.send_response(200)
                self.send_header("content-type", media)
                self.send_header(name, value)
                self.end_headers()

            def _follow(self, body: bytes) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                tape = backend._open(self.path, Asked(self.command, headers, body))
                self.close_connection = True
                with contextlib.suppress(OSError):  # who asked may leave at any time
                    self._begin("application/x-ndjson", "transfer-encoding", "chunked")
                    told = 0
                    while lines := backend._next(tape, told):
                        told += len(lines)
                        text = b"".join(lines)
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: Any) -> None:
                """What was asked is the tests' business, not their output's."""

        return Handler
