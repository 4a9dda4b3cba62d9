"""Asks a server something small every 2 ms and tells how long each answer took: a pause of its loop, seen from outside.

python benchmarks/prober.py PORT PATH     until standard input ends; then one JSON array of [asked at, seconds]
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time

from load import is_whole

PERIOD = 0.002


def main(port: int, path: str) -> None:
    # the load works on the same core; its turn must not be taken for a pause of the server
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    probe = socket.create_connection(("127.0.0.1", port), timeout=30)
    probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    answers = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        asked = time.monotonic()
        probe.sendall(request)
        answer = probe.recv(65536)
        while not is_whole(answer):
            answer += probe.recv(65536) or sys.exit("closed before it answered")
        assert answer.startswith(b"HTTP/1.1 404"), answer
        taken = time.monotonic() - asked
        answers.append((asked, taken))
        time.sleep(max(0.0, PERIOD - taken))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
