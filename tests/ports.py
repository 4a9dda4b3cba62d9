"""Ports that nobody listens on, for whoever must know one before it listens."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, LAST = 12_000, 32_000
"""Below those that systems give to connections by themselves, which would now and then be quicker than the test."""

SHARE = 2_500
"""Of each process that runs tests beside others."""


def _candidates() -> itertools.cycle[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % ((LAST - FIRST) // SHARE)
    first = FIRST + worker * SHARE
    start = os.getpid() % SHARE  # another run may just have used the first of them
    return itertools.cycle([*range(first + start, first + SHARE), *range(first, first + start)])


_ports = _candidates()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that is not given again soon."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("a cycle has no end")
