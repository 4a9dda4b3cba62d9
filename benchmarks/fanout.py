"""One topic, many clients: what one second of the server's CPU delivers, how late, and what a client costs in memory.

    python benchmarks/fanout.py [--clients 1000] [--events 100] [--rounds 10] [--peer nchan]

Server and peer are both up with all their streams open, and take turns; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from load import Process, Streams, percentile, pin, show
from servers import fanout_gate, fanout_nchan

LOAD_CORE = 1
BASELINE = 50
"""Streams that are open before memory is counted, so that what a process loads once is charged to no stream."""


@dataclass
class Contender:
    """One server in the race."""

    name: str
    streams: Streams
    process: Process
    memory: float = 0.0
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def open(self, clients: int) -> None:
        self.streams.open(BASELINE)
        before = self.process.memory()
        self.streams.open(clients - BASELINE)
        self.memory = (self.process.memory() - before) / (clients - BASELINE)

    def race(self, events: int, size: int) -> None:
        """One turn: back to back, by CPU time."""
        before = self.process.cpu()
        self.streams.run(events, size)
        self.rates.append(events * len(self.streams) / (self.process.cpu() - before))

    def pace(self, events: int, size: int, per_second: float) -> None:
        """One turn at a fixed pace, for latency."""
        self.streams.run(events, size, interval=1 / per_second)
        self.latencies += self.streams.latencies


def main() -> None:
    parser = argparse.ArgumentParser(description="Fan-out of one topic, by CPU time of the server.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100, help="per turn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=200, help="bytes of an event")
    parser.add_argument("--pace", type=float, default=20, help="events per second when latency is measured")
    parser.add_argument("--peer", choices=["nchan"])
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(40000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    pin(LOAD_CORE)
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(contender("ssegate", fanout_gate()))]
        if options.peer:
            contenders.append(stack.enter_context(contender(options.peer, fanout_nchan())))
        for one in contenders:
            one.open(options.clients)
            one.streams.run(20, options.size)  # TCP acknowledges every segment for a while after it was idle
        for _ in range(options.rounds):
            for one in contenders:
                one.race(options.events, options.size)
        for one in contenders:
            one.pace(round(options.pace * 5), options.size, options.pace)
        report(contenders, options)


@contextlib.contextmanager
def contender(name: str, server: contextlib.AbstractContextManager[tuple[object, Process]]) -> Iterator[Contender]:
    with server as (place, process):
        streams = Streams(place)  # type: ignore[arg-type]  # every server's context gives a Place first
        try:
            yield Contender(name, streams, process)
        finally:
            streams.close()


def report(contenders: list[Contender], options: argparse.Namespace) -> None:
    print(
        f"{options.clients} clients, {options.size} bytes, {options.rounds} rounds of {options.events} events, HTTP/1.1\n"
    )
    rows: list[list[object]] = [["", "deliveries / CPU-s", "p50 ms", "p99 ms", "kB / client"]]
    for one in contenders:
        rate = statistics.median(one.rates)
        p50, p99 = (percentile(one.latencies, part) * 1000 for part in (0.5, 0.99))
        rows.append([one.name, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{one.memory / 1024:.1f}"])
    show(rows)
    if len(contenders) == 2:
        ratios = [a / b for a, b in zip(contenders[0].rates, contenders[1].rates, strict=True)]
        print(f"\nratio of deliveries per CPU-second, median of rounds: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
