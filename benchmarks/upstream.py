"""A scripted upstream that answers 304 to whoever names its ETag, and tells when it was asked for what.

python benchmarks/upstream.py PORT      prints `ready`; when it is told to stop, one JSON object: {path: [seconds, …]}
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import defaultdict
from typing import cast

import uvloop

ASKED: defaultdict[str, list[float]] = defaultdict(list)
BODY = b'{"id":1,"status":"open"}'
FULL = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' % (
    len(BODY),
    BODY,
)
SAME = b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n'


class Upstream(asyncio.Protocol):
    """One connection. Requests have no bodies and are not pipelined."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's classes
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer.endswith(b"\r\n\r\n"):
            return
        request, self._buffer = self._buffer, b""
        ASKED[request.split(b" ", 2)[1].decode()].append(time.monotonic())
        self._transport.write(SAME if b"if-none-match" in request.lower() else FULL)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    server.close()
    json.dump(ASKED, sys.stdout)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
