"""A proxy as one would write it in an evening: an ASGI app on Hypercorn that passes every request on with httpx.

python benchmarks/httpx_proxy.py PORT BACKEND
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.config

HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"host"}


class Proxy:
    """The application."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=64, max_keepalive_connections=64))

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [pair for pair in scope["headers"] if pair[0] not in HOP_BY_HOP]
        url = self._backend + scope["raw_path"].decode()
        request = self._client.build_request(scope["method"], url, headers=headers)
        answer = await self._client.send(request, stream=True)
        try:
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


def main(port: int, backend: int) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_max_requests = 1_000_000_000
    asyncio.run(hypercorn.asyncio.serve(Proxy(f"http://127.0.0.1:{backend}"), config))  # type: ignore[arg-type]  # an ASGI app


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
