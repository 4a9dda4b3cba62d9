"""One topic, many clients: deliveries by one second of the server's CPU, and how late they are at a fixed pace."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from load import Streams
from process import allow_files
from report import Options, Row, against, percentile
from servers import Gate, Server, certificate, nchan, send_loop

PER_SECOND = 100
"""Events, when latency is measured."""
WARM_UP = 20
"""Events before each turn that are not counted: TCP acknowledges every segment for a while after a connection was idle, and
whoever sends fewer events in a turn would pay for that with more of them."""


@dataclass
class Contender:
    """One server in the race, with its streams open."""

    server: Server
    streams: Streams
    figures: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.server.name

    def race(self, seconds: float) -> float:
        """One turn, back to back: deliveries per second of CPU."""
        self.streams.start()
        self.streams.run(10, most=WARM_UP)
        self.streams.start()
        before = self.server.process.cpu()
        events = self.streams.run(seconds)
        return events * len(self.streams) / (self.server.process.cpu() - before)

    def pace(self, seconds: float) -> float:
        """One turn at a fixed pace: p99 of the latency, in milliseconds."""
        self.streams.start()
        self.streams.run(seconds, interval=1 / PER_SECOND)
        return percentile(self.streams.latencies, 0.99) * 1000


def fanout_h1(options: Options) -> list[Row]:
    """1,000 clients over HTTP/1.1 beside nchan and the C loop."""
    with contenders(options, "h1", 1000, limit=True) as (ours, peer, limit):
        take_turns((ours, peer, limit), options)
        name = "deliveries / CPU-s, HTTP/1.1, 1,000 clients"
        return [
            against(name, ours.figures, ("nchan", peer.figures), least=1.25),
            against("  the same beside a C loop of send", ours.figures, ("C", limit.figures), least=0.70),
        ]


def fanout_h2c(options: Options) -> list[Row]:
    """1 stream on each of 1,000 connections, HTTP/2 without TLS."""
    return _beside_nchan(options, "h2c", 1000, 1, "deliveries / CPU-s, h2c, 1,000 connections", 1.25)


def fanout_h2c_10(options: Options) -> list[Row]:
    """10 streams on each of 100 connections, HTTP/2 without TLS."""
    return _beside_nchan(options, "h2c", 100, 10, "deliveries / CPU-s, h2c, 100 connections of 10", 7)


def fanout_tls_h1(options: Options) -> list[Row]:
    """1,000 clients over TLS and HTTP/1.1."""
    return _beside_nchan(options, "tls-h1", 1000, 1, "deliveries / CPU-s, TLS HTTP/1.1, 1,000 clients", 0.95)


def fanout_tls_h2(options: Options) -> list[Row]:
    """1,000 clients over TLS and HTTP/2."""
    return _beside_nchan(options, "tls-h2", 1000, 1, "deliveries / CPU-s, TLS HTTP/2, 1,000 clients", 0.95)


def latency(options: Options) -> list[Row]:
    """1,000 clients over HTTP/1.1, 100 events a second: p99 from the post to the client's read."""
    with contenders(options, "h1", 1000) as (ours, peer):
        for _ in range(options.rounds):
            for one in (ours, peer):
                one.figures.append(one.pace(2 * options.seconds))
    mine, its = (statistics.median(one.figures) for one in (ours, peer))
    ratio = statistics.median(a / b for a, b in zip(ours.figures, peer.figures, strict=True))
    name = "latency p99, 1,000 clients, 100 events / s"
    return [Row(name, f"{mine:.1f} ms", f"nchan {its:.1f} ms", f"{ratio:.2f}", "≤ nchan", ratio <= 1)]


def _beside_nchan(
    options: Options, protocol: str, connections: int, streams: int, name: str, least: float
) -> list[Row]:
    with contenders(options, protocol, connections, streams) as (ours, peer):
        take_turns((ours, peer), options)
        return [against(name, ours.figures, ("nchan", peer.figures), least=least)]


def take_turns(all_of_them: Sequence[Contender], options: Options) -> None:
    """Strictly in turn, so that a noisy neighbour or a warm cache is shared by all."""
    for _ in range(options.rounds):
        for one in all_of_them:
            one.figures.append(one.race(options.seconds))


@contextlib.contextmanager
def contenders(
    options: Options, protocol: str, connections: int, streams: int = 1, *, limit: bool = False
) -> Iterator[list[Contender]]:
    """The gate, nchan and perhaps the C loop, all up with their streams open, and warm."""
    allow_files(4 * connections + 1000)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(certificate())
        gate = Gate(options.edge, made if protocol.startswith("tls") else None)
        servers = [stack.enter_context(gate.fanout()), stack.enter_context(nchan(made))]
        if limit:
            servers.append(stack.enter_context(send_loop()))
        found = [Contender(server, Streams(server.place, protocol)) for server in servers]
        for one in found:
            stack.callback(one.streams.close)
            one.streams.open(connections, streams)
            if protocol.endswith(("h2", "h2c")):
                one.streams.prove()
        for one in found:
            one.race(1)
        yield found
