"""Signed webhooks: how many one second of the gate's CPU verifies, matches and sends to a hundred streams, how late, and none lost."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import statistics
from collections.abc import Iterator

from load import Poster, Streams
from process import allow_files
from report import Options, Row, percentile
from servers import Gate, Place, Server

STREAMS = 100
SENDERS = 32
BODY = 2000
"""Bytes of a delivery's body."""
PER_CPU_SECOND = 5_000
PACE = 500
"""Deliveries a second, when latency is measured."""
LATEST = 20.0
"""Milliseconds from the post to the client's read, at p99."""
BURST = 10_000
BURST_SECONDS = 2.0
SECRET = b"not-a-secret"
ROUTE = """
routes:
  - path: "/repos/{owner}/{repo}/events"
    webhook:
      at: /hooks/git
      verify: {github: {secret: not-a-secret}}
      match: {owner: body.repository.owner.login, repo: body.repository.name}
    emit: {event: "{headers.x-github-event}"%s}
    history: {events: 20000}
"""
PART = ", data: 'body.{ref: ref, note: note}'"
_ids = itertools.count()


class Sender(Poster):
    """Posts what GitHub would, signed."""

    def _request(self, mark: str) -> bytes:
        first = f'{{"ref":"refs/heads/main","note":"{mark}","repository":{{"name":"tea","owner":{{"login":"ann"}}}},"commits":["'
        body = (first + "x" * (BODY - len(first) - 3) + '"]}').encode()
        signature = hmac.digest(SECRET, body, "sha256").hex()
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: bench-{next(_ids)}\r\n"
            f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def webhooks(options: Options) -> list[Row]:
    """The body as the event, and a part of it: each delivery to 100 streams."""
    name = f"signed deliveries of 2 kB / CPU-s to {STREAMS} streams"
    rows = []
    with _up(options, "") as (server, streams):
        rows.append(_by_cpu(name, server, streams, options))
        rows.append(_latency(streams, options))
        rows.append(_burst(streams))
    with _up(options, PART) as (server, streams):
        rows.append(_by_cpu("  the same, a part of the body as the event", server, streams, options))
    return rows


@contextlib.contextmanager
def _up(options: Options, more: str) -> Iterator[tuple[Server, Streams]]:
    allow_files(STREAMS + SENDERS + 500)
    gate = Gate(options.edge).up(ROUTE % more, path="/repos/ann/tea/events", publish_path="/hooks/git")
    with gate as server, contextlib.closing(Streams(server.place, "h1", _sender, SENDERS)) as streams:
        streams.open(STREAMS)
        streams.start()
        streams.run(1)
        yield server, streams


def _sender(place: Place) -> Sender:
    return Sender(place)


def _by_cpu(name: str, server: Server, streams: Streams, options: Options) -> Row:
    figures = []
    for _ in range(options.rounds):
        streams.start()
        before = server.process.cpu()
        figures.append(streams.run_in_waves(options.seconds) / (server.process.cpu() - before))
    ours = statistics.median(figures)
    return Row(name, f"{ours:,.0f}", bar=f"≥ {PER_CPU_SECOND:,}", reached=ours >= PER_CPU_SECOND)


def _latency(streams: Streams, options: Options) -> Row:
    figures = []
    for _ in range(options.rounds):
        streams.start()
        streams.run(2 * options.seconds, interval=1 / PACE)
        figures.append(percentile(streams.latencies, 0.99) * 1000)
    ours = statistics.median(figures)
    return Row(
        f"  p99 from POST to client at {PACE} / s", f"{ours:.1f} ms", bar=f"< {LATEST:.0f} ms", reached=ours < LATEST
    )


def _burst(streams: Streams) -> Row:
    """All in two seconds, or as fast as this load can; each stream must have had each of them once."""
    streams.start()
    sent = streams.run(60, interval=BURST_SECONDS / BURST, most=BURST)
    return Row(
        f"  a burst of {BURST:,} in {BURST_SECONDS:.0f} s: lost", f"{BURST - sent}", bar="0", reached=sent == BURST
    )
