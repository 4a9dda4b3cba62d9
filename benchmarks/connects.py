"""New streams: how many one second of the server's CPU opens, over HTTP/1.1, from the SYN to the whole answer head."""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import time
from collections.abc import Sequence

from process import allow_files
from report import Options, Row
from servers import Gate, Server, certificate, nchan

STREAMS = 2000
AT_ONCE = 256
"""Connections that were begun and not yet answered: the accept queue must not overflow, a lost SYN costs a second."""
PER_CPU_SECOND = 10_000
QUIET = 0.2
"""Seconds for what closing costs, which is not counted."""


def connects(options: Options) -> list[Row]:
    """Ours and nchan's in turn: opened, counted, closed."""
    allow_files(STREAMS + 500)
    with certificate() as made, Gate(options.edge).fanout() as ours, nchan(made) as peer:
        turns = [(_turn(ours), _turn(peer)) for _ in range(options.rounds + 1)][1:]
    mine, its = ([turn[who] for turn in turns] for who in (0, 1))
    by_cpu, by_wall = (statistics.median(one[kind] for one in mine) for kind in (0, 1))
    peer_cpu, peer_wall = (statistics.median(one[kind] for one in its) for kind in (0, 1))
    ratio = statistics.median(a[0] / b[0] for a, b in zip(mine, its, strict=True))
    bar = f"≥ {PER_CPU_SECOND:,}"
    return [
        Row(
            "new streams / CPU-s, HTTP/1.1",
            f"{by_cpu:,.0f}",
            f"nchan {peer_cpu:,.0f}",
            f"{ratio:.2f}",
            bar,
            by_cpu >= PER_CPU_SECOND,
        ),
        Row("  by the clock", f"{by_wall:,.0f} / s", f"nchan {peer_wall:,.0f} / s", f"{by_wall / peer_wall:.2f}"),
    ]


def _turn(server: Server) -> tuple[float, float]:
    """Streams per second of CPU, and per second by the clock."""
    with contextlib.closing(Storm(server)) as storm:
        cpu, start = server.process.cpu(), time.monotonic()
        storm.run()
        figures = STREAMS / (server.process.cpu() - cpu), STREAMS / (time.monotonic() - start)
    time.sleep(QUIET)
    return figures


class Storm:
    """Everybody comes at once, some at a time."""

    def __init__(self, server: Server, requests: Sequence[bytes] = (), per_second: float | None = None) -> None:
        """`requests`: one for each; without them all ask for the server's stream. `per_second`: no more than that begin."""
        place = server.place
        self._at = ("127.0.0.1", place.ports["h1"])
        usual = f"GET {place.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        self._requests = requests or [usual] * STREAMS
        self._per_second = per_second
        self._asks: dict[int, bytes] = {}
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._heads: dict[int, bytes] = {}
        """What has come of the answers that are not whole yet."""

    def run(self) -> None:
        """Open them all. Raises `AssertionError` unless each is answered 200."""
        start, count = time.monotonic(), len(self._requests)
        while len(self._sockets) < count or self._heads:
            spent = time.monotonic() - start
            assert spent < 60, f"{len(self._heads)} of {count} were not answered"
            due = count if self._per_second is None else min(count, int(spent * self._per_second) + 1)
            for _ in range(min(AT_ONCE - len(self._heads), due - len(self._sockets))):
                self._begin()
            for fd, what in self._poll.poll(1 if self._per_second is None else 0.002):
                if what & select.EPOLLOUT:
                    self._sockets[fd].sendall(self._asks.pop(fd))
                    self._poll.modify(fd, select.EPOLLIN)
                elif fd in self._heads:
                    self._receive(fd)

    def _begin(self) -> None:
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(self._at)
        self._asks[one.fileno()] = self._requests[len(self._sockets)]
        self._sockets[one.fileno()] = one
        self._heads[one.fileno()] = b""
        self._poll.register(one.fileno(), select.EPOLLOUT)

    def _receive(self, fd: int) -> None:
        piece = self._sockets[fd].recv(4096)
        assert piece, "closed before it answered"
        self._heads[fd] += piece
        if b"\r\n\r\n" in self._heads[fd]:
            assert self._heads[fd].startswith(b"HTTP/1.1 200"), self._heads[fd]
            del self._heads[fd]
            self._poll.unregister(fd)

    def close(self) -> None:
        """Hang up on every stream."""
        self._poll.close()
        for one in self._sockets.values():
            one.close()
