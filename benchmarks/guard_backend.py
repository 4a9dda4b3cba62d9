"""A guard's backend: it takes its time, says who somebody is by the cookie, and tells how often it was asked.

python benchmarks/guard_backend.py PORT DELAY      DELAY in seconds; `GET /count` answers how many questions came until then
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

COOKIE = re.compile(rb"\r\ncookie: *sid=([0-9a-z-]+)", re.IGNORECASE)


class Backend(asyncio.Protocol):
    """One connection. Requests have no bodies and are not pipelined."""

    asked = 0

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's classes
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer.endswith(b"\r\n\r\n"):
            return
        request, self._buffer = self._buffer, b""
        if request.startswith(b"GET /count "):
            self._answer(b"200 OK", b"", b"%d" % Backend.asked)
            return
        Backend.asked += 1
        found = COOKIE.search(request)
        status = b"401 Unauthorized" if found is None else b"200 OK"
        who = b"" if found is None else b"X-User-Id: " + found[1] + b"\r\n"
        asyncio.get_running_loop().call_later(self._delay, self._answer, status, who, b"")

    def _answer(self, status: bytes, headers: bytes, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body))


async def main(port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Backend(delay), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
