"""Upstreams that stream: what a record costs on its way to its readers, how late it is, and what an open stream holds."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Iterator

from load import Streams
from process import LOAD_CORE, allow_files, free_port, running
from report import Options, Row, percentile
from servers import HERE, Gate, Place, Server, nginx_proxy

READERS = 500
SHARED_RATE = 1_000
"""Records a second of the one upstream that all readers share."""
OWN_RATE = 100
"""Records a second of each upstream, where every reader has its own."""
IDLE_RATE = 20
"""Records a second, when it is measured how late they are: nothing else is to do then."""
FEW = 8
BASELINE, OPEN = 50, 1000
LATEST = 5.0
"""Milliseconds from the upstream's byte to the client's, at p99."""
MOST_KB = 40
QUIET = 1.0
ROUTES = """
routes:
  - path: "/shared/{rate}"
    stream: {get: "/records?rate={rate}", format: ndjson, first: nothing}
  - path: "/own/{rate}/{number}"
    stream: {get: "/records?rate={rate}", format: ndjson, forward: [cookie]}
"""


def streams(options: Options) -> list[Row]:
    """One upstream for 500 readers, 500 upstreams for one reader each, a few records for a few readers, and idle streams."""
    allow_files(4 * OPEN + 500)
    with _backend() as backend, Gate(options.edge, topics=4 * OPEN).up(ROUTES, backend) as gate:
        # Before the load: what nobody reads any more is not read from the backend either, which waits for that.
        late = [
            _latency("  p99 of a shared record, unloaded", gate, _shared(IDLE_RATE), options),
            _latency("  p99 of a record of one's own, unloaded", gate, _own(IDLE_RATE), options),
        ]
        cost = _cost(gate, _shared(SHARED_RATE), options)
        rows = [
            Row(f"1 upstream, {SHARED_RATE:,} records/s to {READERS} readers", cost),
            _beside_nginx(gate, backend, options),
        ]
    with _backend() as backend, Gate(options.edge, topics=4 * OPEN).up(ROUTES, backend) as gate:
        return [*rows, *late, _memory(gate)]


@contextlib.contextmanager
def _backend() -> Iterator[int]:
    port = free_port()
    with running([sys.executable, str(HERE / "stream_backend.py"), str(port)], port, core=LOAD_CORE):
        yield port


def _shared(rate: int) -> Iterator[str]:
    return itertools.repeat(f"/shared/{rate}")


def _own(rate: int) -> Iterator[str]:
    return (f"/own/{rate}/{number}" for number in itertools.count())


def _at(paths: Iterator[str]) -> Iterator[str]:
    """The same of the backend itself, for who passes them through."""
    return (f"/records?rate={path.split('/')[2]}" for path in paths)


@contextlib.contextmanager
def _opened(server: Server, paths: Iterator[str], count: int) -> Iterator[Streams]:
    with contextlib.closing(Streams(Place(server.place.ports), posters=0)) as opened:
        opened.open(count, paths=paths)
        opened.watch(QUIET)
        yield opened


def _until_it_flows(opened: Streams) -> None:
    """The backend begins when nobody has come for a while."""
    end = time.monotonic() + 15
    opened.watch(QUIET)
    while not opened.watch(0.3) and time.monotonic() < end:
        pass
    opened.watch(QUIET)


def _cost(server: Server, paths: Iterator[str], options: Options) -> str:
    """Microseconds of CPU for a record that has come to one reader."""
    with _opened(server, paths, READERS) as opened:
        _until_it_flows(opened)
        costs, rates = [], []
        for _ in range(options.rounds):
            before, start = server.process.cpu(), time.monotonic()
            count = opened.watch(options.seconds)
            costs.append((server.process.cpu() - before) / count)
            rates.append(count / (time.monotonic() - start))
        return f"{statistics.median(costs) * 1e6:.2f} µs of CPU a delivery, {statistics.median(rates):,.0f}/s"


def _beside_nginx(gate: Server, backend: int, options: Options) -> Row:
    name = f"{READERS} upstreams, {OWN_RATE} records/s to one reader each"
    ours = _cost(gate, _own(OWN_RATE), options)
    with nginx_proxy(backend) as nginx:
        return Row(name, ours, f"nginx, passed through: {_cost(nginx, _at(_own(OWN_RATE)), options)}")


def _latency(name: str, gate: Server, paths: Iterator[str], options: Options) -> Row:
    with _opened(gate, paths, FEW) as opened:
        _until_it_flows(opened)
        figures = []
        for _ in range(options.rounds):
            opened.latencies.clear()
            opened.watch(2 * options.seconds)
            figures.append(percentile(opened.latencies, 0.99) * 1000)
    ours = statistics.median(figures)
    return Row(name, f"{ours:.1f} ms", bar=f"≤ {LATEST:g} ms", reached=ours <= LATEST)


def _memory(gate: Server) -> Row:
    """Of streams of one's own that have had a record each, with their upstream connections."""
    with _opened(gate, _own(0), BASELINE) as opened:
        before = gate.process.memory()
        opened.open(OPEN, paths=_own(0))
        opened.watch(QUIET)
        ours = (gate.process.memory() - before) / OPEN / 1024
    name = "  memory of an open stream of one's own, with its upstream's connection"
    return Row(name, f"{ours:.1f} kB", bar=f"≤ {MOST_KB} kB", reached=ours <= MOST_KB)
