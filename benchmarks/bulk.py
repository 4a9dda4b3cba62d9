"""Large bodies passed through: bytes by one second of the server's CPU and by the clock, and that memory stays flat."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from process import LOAD_CORE, Process
from report import Options, Row
from servers import Gate, Server, nginx_proxy, script

TURN_BYTES = 1 << 28
WHOLE_BYTES = 1 << 30
PIECE = memoryview(bytes(1 << 18))
LEAST = 0.5
FLAT = 8 << 20
"""Bytes of growth that still count as flat: the buffers of one connection, and an allocator's habits."""

Transfer = Callable[[Server, int], None]
"""Moves so many bytes through a server and checks that all arrived."""


@dataclass(frozen=True)
class Figures:
    """One transfer."""

    by_cpu: float
    """Bytes per second of the server's CPU."""
    by_clock: float
    """Bytes per second."""


def bulk(options: Options) -> list[Row]:
    """Both ways in turns of 256 MiB beside nginx; then 1 GiB in one piece, for memory."""
    rows = []
    with (
        script("bulk_backend.py", core=LOAD_CORE) as (backend, _),
        Gate(options.edge).proxy(backend) as ours,
        nginx_proxy(backend) as peer,
    ):
        for name, transfer in (("download", download), ("upload", upload)):
            rounds = [(_measure(ours, transfer), _measure(peer, transfer)) for _ in range(options.rounds + 1)][1:]
            rows += _rows(name, rounds)
            growth, its_growth = (_growth(server, transfer) for server in (ours, peer))
            rows.append(
                Row(
                    f"  memory during a {name} of 1 GiB, at most",
                    f"+{growth / 2**20:.1f} MiB",
                    f"nginx +{its_growth / 2**20:.1f} MiB",
                    bar=f"flat (+{FLAT >> 20} MiB)",
                    reached=growth <= FLAT,
                )
            )
    return rows


def _rows(name: str, rounds: list[tuple[Figures, Figures]]) -> list[Row]:
    rows = []
    for label, of in (
        (f"{name} of large bodies, MB / CPU-s", attrgetter("by_cpu")),
        ("  by the clock, MB / s", attrgetter("by_clock")),
    ):
        mine, its = (statistics.median(of(turn[who]) for turn in rounds) / 1e6 for who in (0, 1))
        ratio = statistics.median(of(turn[0]) / of(turn[1]) for turn in rounds)
        bar = f"≥ {LEAST:g} × nginx"
        rows.append(Row(label, f"{mine:,.0f}", f"nginx {its:,.0f}", f"{ratio:.2f}", bar, ratio >= LEAST))
    return rows


def _measure(server: Server, transfer: Transfer) -> Figures:
    cpu, start = server.process.cpu(), time.monotonic()
    transfer(server, TURN_BYTES)
    return Figures(TURN_BYTES / (server.process.cpu() - cpu), TURN_BYTES / (time.monotonic() - start))


def _growth(server: Server, transfer: Transfer) -> int:
    """By how many bytes resident memory was above its start, at most, while 1 GiB went through."""
    before = server.process.memory()
    with watched(server.process) as seen:
        transfer(server, WHOLE_BYTES)
    return max(seen) - before


@contextlib.contextmanager
def watched(process: Process) -> Iterator[list[int]]:
    """Its resident memory, every 20 ms."""
    seen = [process.memory()]
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            seen.append(process.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stopped.set()
        watcher.join()
        seen.append(process.memory())


def download(server: Server, count: int) -> None:
    """GET so many bytes."""
    with _connected(server) as connection:
        connection.sendall(f"GET /{count} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, first = _head(connection)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert f"content-length: {count}".encode() in head.lower(), head
        got, buffer = len(first), memoryview(bytearray(1 << 20))
        while got < count:
            size = connection.recv_into(buffer)
            assert size, f"cut off after {got} bytes of {count}"
            got += size
        assert got == count, f"{got} bytes instead of {count}"


def upload(server: Server, count: int) -> None:
    """POST so many bytes; the backend says how many it got."""
    with _connected(server) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {count}\r\n\r\n".encode())
        for _ in range(count // len(PIECE)):
            connection.sendall(PIECE)
        head, body = _head(connection)
        while len(body) < len(str(count)):
            body += connection.recv(100)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert str(count).encode() in body, f"the backend got {body!r} of {count}"


def _connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.place.ports["h1"]), timeout=60)


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of the answer, and what has come of the body."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, f"closed before it answered: {received!r}"
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body
