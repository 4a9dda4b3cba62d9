"""Requests passed through to a backend that answers 1 kB: how many one second of the server's CPU carries."""

from __future__ import annotations

import http.client
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from process import LOAD_CORE, SERVER_CORE, needs, pinned
from report import Options, Row, against
from servers import SMALL_BODY, Gate, Place, Server, kilobyte_backend, nginx_proxy, script

CLIENTS = 32
TURN = 1
"""Seconds: wrk and h2load count in whole ones."""
PER_CPU_SECOND_H2C = 4000

SLOW_ROUNDS = 5
"""At most, beside those that are slower by factors: the figure is a rough one."""

Load = Callable[[Server], int]
"""Runs one turn, checks that every answer was right, and says how many there were."""


def proxy_h1(options: Options) -> list[Row]:
    """32 kept connections beside nginx."""
    with kilobyte_backend() as backend, Gate(options.edge).proxy(backend) as ours, nginx_proxy(backend) as peer:
        figures = _race([ours, peer], _load(), options)
    name = "pass-through / CPU-s, 1 kB, HTTP/1.1, 32 connections"
    return [against(name, figures[0], ("nginx", figures[1]), least=0.5)]


def proxy_asgi(options: Options) -> list[Row]:
    """32 kept connections beside our own ASGI edge."""
    with (
        kilobyte_backend() as backend,
        Gate(options.edge).proxy(backend) as ours,
        Gate("hypercorn").proxy(backend) as asgi,
    ):
        figures = _race([ours, asgi], _load(), replace(options, rounds=min(options.rounds, SLOW_ROUNDS)))
    return [against("  the same beside our ASGI edge", figures[0], ("asgi", figures[1]), least=None)]


def proxy_httpx(options: Options) -> list[Row]:
    """32 kept connections beside a proxy made of Hypercorn and httpx, as one would write it in an evening."""
    with kilobyte_backend() as backend, script("httpx_proxy.py", str(backend), core=SERVER_CORE) as (port, process):
        plain = Server("httpx", Place({"h1": port}), process)
        with Gate(options.edge).proxy(backend) as ours:
            figures = _race([ours, plain], _load(), replace(options, rounds=min(options.rounds, SLOW_ROUNDS)))
    return [against("  the same beside an ASGI app with httpx", figures[0], ("httpx", figures[1]), least=20)]


def proxy_h2c(options: Options) -> list[Row]:
    """8 connections of 10 streams at a time, HTTP/2 without TLS; nginx's figure beside it."""
    needs("h2load", "nghttp2-client")
    with kilobyte_backend() as backend, Gate(options.edge).proxy(backend) as ours, nginx_proxy(backend) as peer:
        figures = _race([ours, peer], h2load, options)
    row = against("pass-through / CPU-s, 1 kB, h2c, 8 connections of 10", figures[0], ("nginx", figures[1]), least=None)
    reached = float(row.ours.replace(",", "")) >= PER_CPU_SECOND_H2C
    return [replace(row, bar=f"≥ {PER_CPU_SECOND_H2C:,}", reached=reached)]


def _load() -> Load:
    return wrk if shutil.which("wrk") else own_load


def _race(servers: list[Server], load: Load, options: Options) -> list[list[float]]:
    """Each server's requests per second of CPU, round by round, strictly in turn; the first round warms up."""
    figures: list[list[float]] = [[] for _ in servers]
    for server in servers:
        _check(server)
    for _ in range(options.rounds + 1):
        for server, its in zip(servers, figures, strict=True):
            before = server.process.cpu()
            answered = load(server)
            its.append(answered / (server.process.cpu() - before))
    return [its[1:] for its in figures]


def _check(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.place.ports["h1"], timeout=10)
    connection.request("GET", "/thing")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert (answer.status, body) == (200, SMALL_BODY), f"{server.name}: {answer.status}, {len(body)} bytes"


def wrk(server: Server) -> int:
    """One turn of wrk: one thread, 32 kept connections."""
    said = _output(["wrk", "-t1", f"-c{CLIENTS}", f"-d{TURN}s", f"http://127.0.0.1:{server.place.ports['h1']}/thing"])
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])


def h2load(server: Server) -> int:
    """One turn of h2load: 8 connections, 10 streams on each at a time."""
    url = f"http://127.0.0.1:{server.place.ports['h2c']}/thing"
    said = _output(["h2load", "-t1", "-c8", "-m10", f"-D{TURN}", url])
    found = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    assert found, said
    done, succeeded, *wrong = map(int, found.groups())
    assert done == succeeded > 0, said
    assert wrong == [0, 0, 0], said
    return done


def _output(command: list[str]) -> str:
    with pinned(LOAD_CORE):
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def own_load(server: Server) -> int:
    """One turn without wrk: the same in Python. It keeps a server less busy, which costs it more CPU for each request."""
    request = b"GET /thing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.place.ports["h1"])) for _ in range(CLIENTS)]
    poll, by_fd = select.epoll(), {one.fileno(): one for one in clients}
    received = dict.fromkeys(by_fd, b"")
    for fd, one in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        one.sendall(request)
    answered, end = 0, time.monotonic() + TURN
    while received and time.monotonic() < end + 10:
        for fd, _ in poll.poll(1):
            received[fd] += by_fd[fd].recv(65536)
            if not received[fd].endswith(SMALL_BODY):
                continue
            assert received[fd].startswith(b"HTTP/1.1 200"), received[fd]
            answered += 1
            if time.monotonic() < end:
                received[fd] = b""
                by_fd[fd].sendall(request)
            else:
                del received[fd]
    assert not received, f"{len(received)} requests were not answered"
    poll.close()
    for one in clients:
        one.close()
    return answered
