"""Signed webhooks: how many one second of the gate's CPU verifies, matches and sends to a hundred streams, how late, and none lost."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import statistics
from dataclasses import replace

from load import Poster, Streams
from process import allow_files
from report import Options, Row, against, percentile
from servers import Gate, Place, Server, certificate, nchan

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
    """The body as the event, and a part of it: each delivery to 100 streams; beside nchan, which verifies nothing."""
    allow_files(2 * (STREAMS + SENDERS) + 500)
    with contextlib.ExitStack() as stack:
        gate, made = Gate(options.edge), stack.enter_context(certificate())
        whole, part = (
            gate.up(ROUTE % more, path="/repos/ann/tea/events", publish_path="/hooks/git") for more in ("", PART)
        )
        ours, less, peer = (_Contender(stack.enter_context(server), stack) for server in (whole, part, nchan(made)))
        for _ in range(options.rounds):
            for each in (ours, less, peer):
                each.take_turn(options.seconds)
        name = f"signed deliveries of 2 kB / CPU-s to {STREAMS} streams"
        its = ("nchan, unsigned", peer.figures)
        return [
            _with_bar(against(name, ours.figures, its, least=None), ours.figures),
            _with_bar(
                against("  the same, a part of the body as the event", less.figures, its, least=None), less.figures
            ),
            _latency(ours.streams, options),
            _burst(ours.streams),
        ]


class _Contender:
    """A server with its streams open, and warm."""

    def __init__(self, server: Server, stack: contextlib.ExitStack) -> None:
        self.streams = stack.enter_context(contextlib.closing(Streams(server.place, "h1", _sender, SENDERS)))
        self.figures: list[float] = []
        self._server = server
        self.streams.open(STREAMS)
        self.streams.start()
        self.streams.run_in_waves(1)

    def take_turn(self, seconds: float) -> None:
        """Deliveries by one second of CPU."""
        self.streams.start()
        before = self._server.process.cpu()
        self.figures.append(self.streams.run_in_waves(seconds) / (self._server.process.cpu() - before))


def _with_bar(row: Row, figures: list[float]) -> Row:
    reached = statistics.median(figures) >= PER_CPU_SECOND
    return replace(row, bar=f"≥ {PER_CPU_SECOND:,}", reached=reached)


def _sender(place: Place) -> Sender:
    return Sender(place)


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
