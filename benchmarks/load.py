"""Many event streams in one loop: opens them on any protocol, posts events, and counts what arrives.

An event carries a marker, `~~` and the 19 digits of the monotonic clock in nanoseconds when it was posted. A delivery is a
marker seen on a connection, counted for each. Everything runs in one thread on raw sockets: what it costs is not the server's.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from itertools import islice

import http2
from http2 import MARKER
from servers import Place

STAMPED = re.compile(rb"~~(\d{19})")
STAMP = 21
SAMPLED = 8
"""Latency is read on every so many connections."""
BEHIND = 8
"""So many events may be on their way before the next is posted: the server is measured, not a full socket."""
EVENT = 200
"""Bytes of a posted body."""


class Connection:
    """One connection and how many deliveries it has seen."""

    __slots__ = ("count", "half", "sampled", "socket", "streams", "tail")

    def __init__(self, opened: socket.socket, sampled: bool) -> None:
        self.socket = opened
        self.streams = 0
        self.count = 0
        self.sampled = sampled
        self.tail = b""
        self.half = 0  # of a marker, seen so far

    def take(self, latencies: list[float]) -> int:
        """Read what is there; how many deliveries it was. Raises `AssertionError` when the server has closed."""
        piece = _read(self.socket)
        if self.sampled:
            # a stamp may be cut in two: what is kept is one byte shorter than what is looked for
            data = self.tail + piece
            self.tail = data[1 - STAMP :]
            now = time.monotonic_ns()
            # one that the framing of chunks cuts is not read, but it is counted below
            latencies += [(now - int(stamp)) / 1e9 for stamp in STAMPED.findall(data)]
        # single bytes, as the framing may come between the two of a marker
        self.half += piece.count(MARKER[:1])
        found, self.half = divmod(self.half, 2)
        self.count += found
        return found


def _read(connection: socket.socket) -> bytes:
    """What is there; nothing when it was only a record of TLS's own."""
    try:
        # larger pieces would be mapped and unmapped by the allocator each time
        piece = connection.recv(1 << 16)
    except (ssl.SSLWantReadError, BlockingIOError):
        return b""
    assert piece, "a stream was closed"
    return piece


class Poster:
    """Posts events over one kept connection, one at a time."""

    def __init__(self, place: Place) -> None:
        self.path = place.publish_path
        self.socket = socket.create_connection(("127.0.0.1", place.ports["h1"]))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.waiting = False
        self._buffer = b""
        self._head = (
            f"POST {place.publish_path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {EVENT}\r\n\r\n"
        ).encode()

    def post(self) -> None:
        """Send one event; `waiting` until its answer has come."""
        self.socket.sendall(self._request(f"{MARKER.decode()}{time.monotonic_ns():019d}"))
        self.waiting = True

    def _request(self, mark: str) -> bytes:
        body = f'{{"id":"bench","m":"{mark}'
        return self._head + (body + "x" * (EVENT - len(body) - 2) + '"}').encode()

    def receive(self) -> None:
        """Take the answer. Raises `AssertionError` if it is not 2xx."""
        self._buffer += self.socket.recv(65536)
        if is_whole(self._buffer):
            assert self._buffer.startswith(b"HTTP/1.1 2"), self._buffer
            self._buffer = b""
            self.waiting = False


def is_whole(answer: bytes) -> bool:
    """Is this a whole HTTP/1.1 answer."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if length := re.search(rb"(?i)content-length: *(\d+)", head):
        return len(body) >= int(length[1])
    return b"chunked" not in head.lower() or body.endswith(b"0\r\n\r\n")


class Streams:
    """Open event streams of one server, over one protocol: h1, h2c, tls-h1 or tls-h2."""

    def __init__(
        self, place: Place, protocol: str = "h1", make_poster: Callable[[Place], Poster] = Poster, posters: int = 1
    ) -> None:
        """Events are posted by so many posters, each over its own connection."""
        self.place = place
        self._make_poster = make_poster
        self._wanted = posters
        self.latencies: list[float] = []
        """Of deliveries on the sampled connections, in seconds."""
        self.last_delivery = 0.0
        """When the latest delivery was read, on the monotonic clock."""
        self._protocol = protocol
        self._is_http2 = protocol.endswith(("h2", "h2c"))
        self._tls = _tls_client("h2" if self._is_http2 else "http/1.1") if protocol.startswith("tls") else None
        self._deliveries = 0
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._openings: dict[int, http2.Opening] = {}
        self._posters: dict[int, Poster] = {}

    def __len__(self) -> int:
        return sum(connection.streams for connection in self._connections.values())

    def open(self, connections: int, streams: int = 1, paths: Iterator[str] | None = None) -> None:
        """Open further connections with so many streams each; every stream must be answered 200."""
        for _ in range(connections):
            connection = Connection(self._connect(), len(self._connections) % SAMPLED == 0)
            self._connections[connection.socket.fileno()] = connection
            self._ask(connection, streams, paths)
            connection.socket.setblocking(False)
            self._poll.register(connection.socket.fileno(), select.EPOLLIN)

    def open_further(self, streams: int) -> None:
        """Open so many more streams on each connection there is (HTTP/2)."""
        for connection in self._connections.values():
            connection.socket.setblocking(True)
            self._ask(connection, streams, None)
            connection.socket.setblocking(False)

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.place.ports[self._protocol]), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        secured = self._tls.wrap_socket(plain)
        wanted = "h2" if self._is_http2 else ("http/1.1", None)
        assert secured.selected_alpn_protocol() in wanted, secured.selected_alpn_protocol()
        return secured

    def _ask(self, connection: Connection, streams: int, paths: Iterator[str] | None) -> None:
        asked = list(islice(paths, streams)) if paths else [self.place.path] * streams
        if self._is_http2:
            self._ask_http2(connection.socket, asked)
        else:
            assert streams == 1, "HTTP/1.1 has one stream on a connection"
            _ask_http1(connection.socket, asked[0])
        connection.streams += streams

    def _ask_http2(self, on: socket.socket, paths: list[str]) -> None:
        opening = self._openings.get(on.fileno())
        first = b""
        if opening is None:
            opening = self._openings[on.fileno()] = http2.Opening("localhost", "https" if self._tls else "http")
            first = http2.hello()
        on.sendall(first + b"".join(map(opening.request, paths)))
        while opening.waiting:
            piece = on.recv(65536)
            assert piece, "closed before it answered"
            if back := opening.receive(piece):
                on.sendall(back)

    def receive(self, seconds: float) -> None:
        """Take what has come; wait at most so long for the first of it. Some only, so that the next post is not late."""
        connections, posters = self._connections, self._posters
        before = self._deliveries
        for fd, _ in self._poll.poll(seconds, 128):
            if connection := connections.get(fd):
                self._deliveries += connection.take(self.latencies)
            else:
                posters[fd].receive()
        if self._deliveries > before:
            self.last_delivery = time.monotonic()

    def _open_posters(self) -> list[Poster]:
        while len(self._posters) < self._wanted:
            poster = self._make_poster(self.place)
            self._posters[poster.socket.fileno()] = poster
            self._poll.register(poster.socket.fileno(), select.EPOLLIN)
        return list(self._posters.values())

    def prove(self) -> None:
        """Post one event and look, frame by frame, whether each HTTP/2 stream had it once; later only bytes are counted.

        To be called once, before anything else is received.
        """
        (poster, *_), end = self._open_posters(), time.monotonic() + 30
        poster.post()
        found = 0
        while (poster.waiting or found < len(self)) and time.monotonic() < end:
            for fd, _ in self._poll.poll(0.2):
                if fd in self._openings:
                    self._openings[fd].receive(_read(self._connections[fd].socket))
                else:
                    poster.receive()
            found = sum(opening.found.total() for opening in self._openings.values())
        for fd, opening in self._openings.items():
            once = dict.fromkeys(range(1, 2 * self._connections[fd].streams, 2), 1)
            assert +opening.found == once, f"one event came to streams {dict(opening.found)}"

    def start(self) -> None:
        """Take what is still on its way from before, and count from here."""
        self._open_posters()
        end = time.monotonic() + 10
        while self._poll.poll(0.02, 1) and time.monotonic() < end:
            self.receive(0)
        self.latencies.clear()
        self._deliveries = 0
        for connection in self._connections.values():
            connection.count = 0

    def watch(self, seconds: float) -> int:
        """Read what comes by itself, for so long; return the number of deliveries."""
        before, end = self._deliveries, time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.receive(left)
        return self._deliveries - before

    def run_in_waves(self, seconds: float) -> int:
        """Let all posters post at once, and again when all is delivered, for so long; return the number of events.

        So the server is never waited for by a load that is slower than it is.
        Raises `AssertionError` as `run` does.
        """
        posters, posted, end = list(self._posters.values()), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for poster in posters:
                poster.post()
            posted += len(posters)
            self._collect(posted * len(self))
        self._check(posted)
        return posted

    def run(self, seconds: float, *, interval: float = 0.0, most: int | None = None) -> int:
        """Post events for so long, back to back or paced, at most so many; return their number once all are delivered.

        Raises `AssertionError` unless each stream has had each event exactly once.
        """
        posters = list(self._posters.values())
        assert posters, "start() comes first"
        width, posted = len(self), 0
        behind = max(BEHIND, 2 * len(posters)) * width
        due = time.monotonic()
        end = due + seconds
        while (now := time.monotonic()) < end and posted != most:
            poster = next((each for each in posters if not each.waiting), None)
            if poster is None or now < due or posted * width - self._deliveries > behind:
                self.receive(min(max(due - now, 0.0), 0.05) if interval and poster is not None else 0.05)
                continue
            poster.post()
            posted += 1
            due += interval
        self._collect(posted * width)
        self._check(posted)
        return posted

    def _check(self, posted: int) -> None:
        short = sum(one.count != posted * one.streams for one in self._connections.values())
        assert short == 0, f"{short} of {len(self._connections)} connections did not have each of {posted} events once"

    def _collect(self, expected: int, timeout: float = 30.0) -> None:
        end = time.monotonic() + timeout
        while self._deliveries < expected or any(each.waiting for each in self._posters.values()):
            if time.monotonic() > end:
                break
            self.receive(0.2)
        assert self._deliveries == expected, f"{self._deliveries} deliveries of {expected}"

    def close(self) -> None:
        """Close every connection."""
        self._poll.close()
        for connection in self._connections.values():
            connection.socket.close()
        for poster in self._posters.values():
            poster.socket.close()


def _tls_client(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def _ask_http1(on: socket.socket, path: str) -> None:
    on.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = on.recv(4096)
        assert piece, f"closed before it answered: {head!r}"
        head += piece
    assert head.startswith(b"HTTP/1.1 200"), head
    assert b"text/event-stream" in head, head
