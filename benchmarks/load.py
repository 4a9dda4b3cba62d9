"""Many event streams in one loop: opens them, posts events, counts what arrives, and reads what servers cost.

An event carries a marker, `~` and the 19 digits of the monotonic clock in nanoseconds when it was posted. A delivery is a
marker seen on a stream. Everything runs in one thread on raw sockets: what this costs is not the server's.
"""

from __future__ import annotations

import http.client
import os
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MARKER = b"~"
SAMPLED = 20
"""Latency is read on every so many streams."""


@dataclass
class Place:
    """Where a server's streams are and where events for them are posted."""

    port: int
    path: str
    publish_path: str


class Streams:
    """Open HTTP/1.1 event streams of one server."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.deliveries = 0
        self.latencies: list[float] = []
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._poster = http.client.HTTPConnection("127.0.0.1", place.port)

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, count: int, *, at_once: int = 64, path: str | None = None) -> None:
        """Open more streams, `at_once` unanswered at a time; each must be answered 200."""
        request = (
            f"GET {path or self.place.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        for start in range(0, count, at_once):
            batch = [self._connect(request) for _ in range(min(at_once, count - start))]
            for connection in batch:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(4096)
                    assert piece, f"closed before it answered: {head!r}"
                    head += piece
                assert head.startswith(b"HTTP/1.1 200"), head
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, len(self._sockets) % SAMPLED == 0)
                self._sockets.append(connection)

    def _connect(self, request: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.place.port))
        connection.sendall(request)
        return connection

    def receive(self, seconds: float) -> None:
        """Take what has come; wait at most so long for the first of it."""
        for key, _ in self._selector.select(seconds):
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 18)
            assert data, "a stream was closed"
            self.deliveries += data.count(MARKER)
            if key.data and (found := data.rfind(MARKER)) >= 0 and len(data) >= found + 20:
                self.latencies.append((time.monotonic_ns() - int(data[found + 1 : found + 20])) / 1e9)

    def drain(self) -> None:
        """Take what is still on its way."""
        self.receive(0.3)
        while self._selector.select(0.1):
            self.receive(0)
        self.deliveries = 0
        self.latencies.clear()

    def publish(self, size: int) -> None:
        """Post one event of this many bytes and wait for the answer."""
        body = f'{{"id":"bench","m":"{MARKER.decode()}{time.monotonic_ns():019d}"}}'
        body = body[:-2] + "x" * (size - len(body)) + body[-2:]
        self._poster.request("POST", self.place.publish_path, body, {"Content-Type": "application/json"})
        answer = self._poster.getresponse()
        answer.read()
        assert answer.status < 300, answer.status

    def run(self, events: int, size: int, *, interval: float = 0.0, timeout: float = 60.0) -> None:
        """Publish, back to back or paced, until each stream has had each event. Raises `AssertionError` if one has not."""
        self.deliveries = 0
        self.latencies.clear()
        due = time.monotonic()
        for _ in range(events):
            while (wait := due - time.monotonic()) > 0:
                self.receive(wait)
            self.publish(size)
            self.receive(0)
            due += interval
        end = time.monotonic() + timeout
        while self.deliveries < events * len(self) and time.monotonic() < end:
            self.receive(0.2)
        assert self.deliveries == events * len(self), f"{self.deliveries} deliveries of {events * len(self)}"

    def close(self) -> None:
        """Close every stream."""
        self._selector.close()
        for connection in self._sockets:
            connection.close()
        self._poster.close()


@dataclass
class Process:
    """A server, for what it costs: all its processes together."""

    pids: Sequence[int] = field(default_factory=list)

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return sum(_cpu(pid) for pid in self._family())

    def memory(self) -> int:
        """Resident bytes."""
        return sum(_resident(pid) for pid in self._family())

    def _family(self) -> list[int]:
        family = list(self.pids)
        for pid in family:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            family += map(int, children.read_text().split()) if children.exists() else []
        return family


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def pin(cpu: int, pid: int = 0) -> None:
    """Keep a process on one core, where the system lets us and there is more than one."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(pid, {cpu})


def show(rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
