"""Many topics, each polled every second, all answered 304: polls per second of the gate's CPU, and how late they are.

python benchmarks/polling.py [--topics 2000] [--seconds 10]
python benchmarks/polling.py --one-resource     1,000 viewers of one resource: how many requests the upstream gets
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from load import Place, Streams, percentile, pin, show
from servers import free_port, gate

LOAD_CORE = 1

YAML = """
version: 1
server: {{listen: "127.0.0.1:{port}"}}
upstreams: {{api: {{url: "http://127.0.0.1:{upstream}", connections: 50}}}}
limits: {{clients: 100000, topics: 100000}}
routes:
  - path: "/orders/{{id}}/events"
    poll: {{get: "/orders/{{id}}", every: 1s}}
"""

Asked = dict[str, list[float]]


@contextlib.contextmanager
def upstream(port: int) -> Iterator[Asked]:
    """The scripted upstream; what it was asked is filled in when the block has ended."""
    asked: Asked = {}
    script = Path(__file__).with_name("upstream.py")
    process = subprocess.Popen([sys.executable, str(script), str(port)], stdout=subprocess.PIPE)
    try:
        pin(LOAD_CORE, process.pid)
        yield asked
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
        asked.update(json.loads(output))


def main() -> None:
    parser = argparse.ArgumentParser(description="Polls by CPU time of the gate.")
    parser.add_argument("--topics", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--one-resource", action="store_true")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(40000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    pin(LOAD_CORE)
    if options.one_resource:
        one_resource(options.seconds)
    else:
        many_topics(options.topics, options.seconds)


def many_topics(topics: int, seconds: float) -> None:
    port, behind = free_port(), free_port()
    with upstream(behind) as asked, gate(YAML.format(port=port, upstream=behind), port) as process:
        streams = Streams(Place(port, "", ""))
        for number in range(topics):
            streams.open(1, path=f"/orders/{number}/events")
        time.sleep(2)  # the first polls are spread
        cpu, start = process.cpu(), time.monotonic()
        time.sleep(seconds)
        cpu, end = process.cpu() - cpu, time.monotonic()
        streams.close()
    polls = sum(start <= moment < end for moments in asked.values() for moment in moments)
    late = [
        later - earlier - 1
        for moments in asked.values()
        for earlier, later in pairwise(moments)
        if start <= earlier and later < end
    ]
    assert len(asked) == topics, f"{len(asked)} topics were polled"
    assert polls >= 0.95 * topics * (end - start), f"only {polls} polls"
    show(
        [
            ["topics", "polls / s", "polls / CPU-s", "CPU", "late p50 ms", "late p99 ms"],
            [
                topics,
                f"{polls / (end - start):,.0f}",
                f"{polls / cpu:,.0f}",
                f"{cpu / (end - start):.0%}",
                f"{percentile(late, 0.5) * 1000:.1f}",
                f"{percentile(late, 0.99) * 1000:.1f}",
            ],
        ]
    )


def one_resource(seconds: float) -> None:
    port, behind = free_port(), free_port()
    with upstream(behind) as asked, gate(YAML.format(port=port, upstream=behind), port):
        streams = Streams(Place(port, "/orders/1/events", ""))
        start = time.monotonic()
        streams.open(1000)
        opened = time.monotonic() - start
        time.sleep(max(0.0, seconds - opened))
        end = time.monotonic()
        streams.close()
    requests = sum(start <= moment < end for moment in asked["/orders/1"])
    show(
        [
            ["viewers", "seconds", "upstream requests", "had each polled"],
            [1000, f"{end - start:.1f}", requests, f"{1000 * (end - start):,.0f}"],
        ]
    )
    assert requests <= 1.2 * (end - start), f"{requests} requests in {end - start:.1f} s"


if __name__ == "__main__":
    main()
