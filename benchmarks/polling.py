"""Many topics, all answered 304: polls by one second of the gate's CPU, and how late they are."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from load import Streams
from process import LOAD_CORE, Process, allow_files, free_port, pinned
from report import Options, Row, percentile
from servers import Gate

TOPICS = 20_000
PER_CONNECTION = 80
"""Each topic has a viewer; over HTTP/2 they do not need 20,000 open files."""
EVERY = 5
"""Seconds: 4,000 polls a second."""
PER_CPU_SECOND = 10_000
UPSTREAM_AT_MOST = 0.7
"""Of a core. An upstream that is busier than that is what is being measured."""
VIEWERS = 1000
ROUTES = """
routes:
  - path: "/orders/{id}/events"
    poll: {get: "/orders/{id}", every: %ds}
"""

Asked = dict[str, list[float]]


def polling(options: Options) -> list[Row]:
    """20,000 topics with one viewer each, every 5 s. No heartbeats meanwhile: only polls are counted."""
    allow_files(TOPICS // PER_CONNECTION + 500)
    gate = Gate(options.edge, topics=2 * TOPICS, extra={"defaults": "{heartbeat: 1h}"})
    with (
        upstream() as (behind, its_process, asked),
        gate.up(ROUTES % EVERY, behind) as server,
        contextlib.closing(Streams(server.place, "h2c")) as streams,
    ):
        paths = (f"/orders/{number}/events" for number in range(TOPICS))
        streams.open(TOPICS // PER_CONNECTION, PER_CONNECTION, paths)
        time.sleep(1.5 * EVERY)
        cpu, its_cpu, start = server.process.cpu(), its_process.cpu(), time.monotonic()
        time.sleep((4 if options.rounds > 5 else 2) * EVERY)
        cpu, its_cpu, end = server.process.cpu() - cpu, its_process.cpu() - its_cpu, time.monotonic()
    busy = its_cpu / (end - start)
    assert busy < UPSTREAM_AT_MOST, f"the upstream was busy {busy:.0%} of the time: it is the bottleneck"
    return _rows(asked, start, end, cpu, busy)


def _rows(asked: Asked, start: float, end: float, cpu: float, busy: float) -> list[Row]:
    polls = sum(start <= moment < end for moments in asked.values() for moment in moments)
    due = TOPICS * (end - start) / EVERY
    assert len(asked) == TOPICS, f"{len(asked)} topics were polled"
    assert polls >= 0.95 * due, f"{polls} polls of {due:.0f} that were due"
    pairs = ((a, b) for moments in asked.values() for a, b in pairwise(moments) if start <= a and b < end)
    late = [later - earlier - EVERY for earlier, later in pairs]
    by_cpu = polls / cpu
    name = f"polls / CPU-s answered 304, {TOPICS:,} topics"
    used = f"{cpu / (end - start):.0%} of a core, the upstream {busy:.0%}"
    late_ms = f"{percentile(late, 0.99) * 1000:.0f} ms late at p99"
    return [
        Row(name, f"{by_cpu:,.0f}", bar=f"≥ {PER_CPU_SECOND:,}", reached=by_cpu >= PER_CPU_SECOND),
        Row("  at that", f"{polls / (end - start):,.0f} / s, {used}, {late_ms}"),
    ]


def one_resource(options: Options) -> list[Row]:
    """1,000 viewers of one resource polled every second: how many requests its API gets."""
    allow_files(VIEWERS + 500)
    with upstream() as (behind, _, asked):
        gate = Gate(options.edge).up(ROUTES % 1, behind, "/orders/1/events")
        with gate as server, contextlib.closing(Streams(server.place)) as streams:
            start = time.monotonic()
            streams.open(VIEWERS)
            time.sleep(max(0.0, start + 10 - time.monotonic()))
            end = time.monotonic()
    requests, seconds = sum(start <= moment < end for moment in asked["/orders/1"]), end - start
    assert requests <= 1.2 * seconds + 1, f"{requests} requests in {seconds:.1f} s"
    without = f"{VIEWERS * seconds:,.0f} had each polled"
    return [Row(f"upstream requests in {seconds:.0f} s, {VIEWERS:,} viewers of one resource", f"{requests}", without)]


@contextlib.contextmanager
def upstream() -> Iterator[tuple[int, Process, Asked]]:
    """The scripted upstream: its port, its process, and what it was asked, filled in when the block has ended."""
    asked: Asked = {}
    port, script = free_port(), Path(__file__).with_name("upstream.py")
    with pinned(LOAD_CORE):
        process = subprocess.Popen([sys.executable, str(script), str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the upstream did not start"
        yield port, Process(process.pid), asked
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    asked.update(json.loads(output))
