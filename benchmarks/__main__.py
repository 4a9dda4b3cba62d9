"""Run benchmarks by name and print what they found beside what was to be reached: `python benchmarks all`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import auth
import bulk
import connects
import crowd
import fanout
import memory
import polling
import proxying
import streams
import webhooks
from process import LOAD_CORE, run_here
from report import FAILURES, HEAD, Options, Row, missing, show

BENCHMARKS: dict[str, Callable[[Options], list[Row]]] = {
    "fanout-h1": fanout.fanout_h1,
    "fanout-h2c": fanout.fanout_h2c,
    "fanout-h2c-10": fanout.fanout_h2c_10,
    "fanout-tls-h1": fanout.fanout_tls_h1,
    "fanout-tls-h2": fanout.fanout_tls_h2,
    "latency": fanout.latency,
    "crowd": crowd.crowd,
    "memory": memory.memory,
    "connects": connects.connects,
    "proxy-h1": proxying.proxy_h1,
    "proxy-asgi": proxying.proxy_asgi,
    "proxy-httpx": proxying.proxy_httpx,
    "proxy-h2c": proxying.proxy_h2c,
    "bulk": bulk.bulk,
    "polling": polling.polling,
    "webhooks": webhooks.webhooks,
    "streams": streams.streams,
    "auth": auth.auth,
}
FURTHER: dict[str, Callable[[Options], list[Row]]] = {"one-resource": polling.one_resource}
"""Those without a bar: not part of `all`."""


def main() -> None:
    run_here()
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measures the gate beside its peers.")
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        choices=["all", *BENCHMARKS, *FURTHER],
        help=", ".join(["all", *BENCHMARKS, *FURTHER]),
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first look, not a figure to quote")
    parser.add_argument("--rounds", type=int, help="12, or 3 with --quick")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one turn")
    parser.add_argument("--edge", choices=["native", "hypercorn"], help="the gate's edge; its default otherwise")
    arguments = parser.parse_args()
    options = Options(arguments.rounds or (3 if arguments.quick else 12), arguments.seconds, arguments.edge)
    chosen = list(BENCHMARKS) if "all" in arguments.names else arguments.names
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {LOAD_CORE})
    print_rows([row for name in chosen for row in measure(name, options)])


def measure(name: str, options: Options) -> list[Row]:
    """One benchmark's rows; one that says why if it cannot run or its result is wrong, so that the others still do."""
    start = time.monotonic()
    try:
        rows = (BENCHMARKS | FURTHER)[name](options)
    except FAILURES as why:
        rows = [missing(name, why)]
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for row in rows:
        print("   " + "  ".join(filter(None, row.cells())), flush=True)
    return rows


def print_rows(rows: list[Row]) -> None:
    print()
    show([HEAD, *(row.short() for row in rows)])


if __name__ == "__main__":
    main()
