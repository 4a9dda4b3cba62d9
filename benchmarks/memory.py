"""What an idle stream costs in resident memory, by protocol, counted from the first 50 streams on."""

from __future__ import annotations

import contextlib
import time

from load import Streams
from process import Process, allow_files
from report import FAILURES, Options, Row, missing
from servers import Certificate, Gate, Server, certificate, nchan

BASELINE = 50
"""Streams that are open before memory is counted, so that what a process loads once is charged to no stream."""
STREAMS = 2000
FURTHER = 9
"""More streams on each connection, when those are counted."""
QUIET = 0.5
"""Seconds before memory is read."""

MOST_KB = {"h1": 4, "h2c": 22, "tls-h1": 32, "tls-h2": 32}
MOST_KB_FURTHER = 3
NAMES = {"h1": "HTTP/1.1", "h2c": "h2c connection", "tls-h1": "TLS HTTP/1.1", "tls-h2": "TLS HTTP/2 connection"}


def memory(options: Options) -> list[Row]:
    """Each protocol on a fresh server, so that no stream gets the memory of one that is gone."""
    allow_files(STREAMS + 500)
    rows = []
    with certificate() as made:
        for protocol, most in MOST_KB.items():
            try:
                rows += _protocol(options, protocol, most, made)
            except FAILURES as why:
                rows.append(missing(f"memory of an idle stream, {NAMES[protocol]}", why))
    return rows


def _protocol(options: Options, protocol: str, most: float, made: Certificate) -> list[Row]:
    gate = Gate(options.edge, made if protocol.startswith("tls") else None)
    with gate.fanout() as ours, nchan(made) as peer:
        rows = [
            _row(
                f"memory of an idle stream, {NAMES[protocol]}",
                most,
                _per_stream(ours, protocol),
                _per_stream(peer, protocol),
            )
        ]
    if protocol == "h2c":
        with gate.fanout() as ours, nchan(made) as peer:
            rows.append(_row("  a further stream on it", MOST_KB_FURTHER, _per_further(ours), _per_further(peer)))
    return rows


def _row(name: str, most: float, ours: float, peer: float) -> Row:
    ratio = f"{ours / peer:.2f}" if peer > 0 else ""
    return Row(name, f"{ours:.1f} kB", f"nchan {peer:.1f} kB", ratio, f"≤ {most} kB", ours <= most)


def _per_stream(server: Server, protocol: str) -> float:
    with contextlib.closing(Streams(server.place, protocol)) as streams:
        streams.open(BASELINE)
        before = _at_rest(server.process)
        streams.open(STREAMS - BASELINE)
        return (_at_rest(server.process) - before) / (STREAMS - BASELINE) / 1024


def _per_further(server: Server) -> float:
    connections = STREAMS // (FURTHER + 1)
    with contextlib.closing(Streams(server.place, "h2c")) as streams:
        streams.open(1, BASELINE)
        streams.open(connections)
        before = _at_rest(server.process)
        streams.open_further(FURTHER)
        return (_at_rest(server.process) - before) / (connections * FURTHER) / 1024


def _at_rest(process: Process) -> int:
    time.sleep(QUIET)
    return process.memory()
