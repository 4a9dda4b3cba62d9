"""9,000 clients and one event: when the last of them has it, and how long the server answers nobody else meanwhile.

The pause is measured from outside: a prober asks for something that is not there every 2 ms, on a connection of its own; the
figure is the longest that an answer took while the event went out, so it holds the question's own way too.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from load import Streams
from process import LOAD_CORE, allow_files, pinned
from report import Options, Row
from servers import Gate, Server, certificate, nchan

CLIENTS = 9000
LONGEST_PAUSE_MS = 20
NOWHERE = {"ssegate": "/_ssegate/nothing", "nchan": "/nothing"}

Answers = list[tuple[float, float]]


@dataclass
class Crowd:
    """One server with everybody connected."""

    server: Server
    streams: Streams
    times: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """One event: milliseconds from the post to the last delivery, and the longest answer to the prober in them."""
        self.streams.start()
        answers: Answers = []
        with probed(self.server, answers):
            time.sleep(0.1)
            start = time.monotonic()
            self.streams.run(60, most=1)
            end = self.streams.last_delivery
            time.sleep(0.1)
        during = [taken for asked, taken in answers if asked < end and asked + taken > start]
        assert during, "nothing was asked while the event went out"
        self.times.append((end - start) * 1000)
        self.pauses.append(max(during) * 1000)


def crowd(options: Options) -> list[Row]:
    """Both with 9,000 streams open, in turn."""
    allow_files(2 * CLIENTS + 500)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Gate(options.edge).fanout())]
        servers.append(stack.enter_context(nchan(stack.enter_context(certificate()))))
        ours, peer = (Crowd(server, Streams(server.place)) for server in servers)
        for one in (ours, peer):
            stack.callback(one.streams.close)
            one.streams.open(CLIENTS)
        for _ in range(options.rounds + 1):
            for one in (ours, peer):
                one.turn()
        return _rows(ours, peer)


def _rows(ours: Crowd, peer: Crowd) -> list[Row]:
    # the first turn warms up, for time and pause alike
    mine, its = ours.times[1:], peer.times[1:]
    ratio = statistics.median(a / b for a, b in zip(mine, its, strict=True))
    longest, theirs = max(ours.pauses[1:]), max(peer.pauses[1:])
    return [
        Row(
            "9,000 clients, one event: time to the last",
            f"{statistics.median(mine):.0f} ms",
            f"nchan {statistics.median(its):.0f} ms",
            f"{ratio:.2f}",
            "≤ nchan",
            ratio <= 1,
        ),
        Row(
            f"  longest wait of another client, of {len(mine)} events",
            f"{longest:.1f} ms",
            f"nchan {theirs:.1f} ms",
            f"{longest / theirs:.2f}",
            f"≤ {LONGEST_PAUSE_MS} ms",
            longest <= LONGEST_PAUSE_MS,
        ),
    ]


@contextlib.contextmanager
def probed(server: Server, answers: Answers) -> Iterator[None]:
    """A prober at work; its answers are filled in when the block has ended."""
    script = Path(__file__).with_name("prober.py")
    command = [sys.executable, str(script), str(server.place.ports["h1"]), NOWHERE[server.name]]
    with pinned(LOAD_CORE):
        prober = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert prober.stdout is not None
    try:
        assert prober.stdout.readline() == "ready\n", "the prober could not connect"
        yield
    finally:
        output, _ = prober.communicate(timeout=30)
    assert prober.returncode == 0, "the prober failed"
    answers += json.loads(output)
