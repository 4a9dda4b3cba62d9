"""A small legacy API for a test: documents by path, with ETags, that can be changed, slowed, broken and taken away."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable

from tests.upstream.scripted import Asked, Call, Pair, ScriptedUpstream, answer

Make = Callable[[Asked], bytes]


class LegacyApi(ScriptedUpstream):
    """`async with LegacyApi() as api: api.put("/orders/17", {...})`; what is not there is 404.

    PUT and PATCH (shallow) over HTTP change documents too, and DELETE takes them away.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(self._handle, port=port)
        self._answers: dict[str, Make] = {}
        self._documents: dict[str, object] = {}
        self._held: dict[str, asyncio.Event] = {}

    def put(self, path: str, document: object, *headers: Pair, etag: bool = True) -> None:
        """Answer this path, whatever its query, with a JSON document from now on."""
        self._documents[path] = document
        body = json.dumps(document).encode()
        tag = b'"%b"' % hashlib.sha1(body).hexdigest().encode() if etag else b""
        tagged = (*headers, (b"ETag", tag)) if etag else headers

        def make(asked: Asked) -> bytes:
            if tag and (asked.get("if-none-match") or "") == tag.decode():
                return b"HTTP/1.1 304 Not Modified\r\nETag: " + tag + b"\r\n\r\n"
            return answer(body, (b"Content-Type", b"application/json"), *tagged)

        self._answers[path] = make

    def serve(self, path: str, data: bytes | Make) -> None:
        """Answer this path with these bytes from now on, head and all, or with what the function makes of the request."""
        self._answers[path] = (lambda _: data) if isinstance(data, bytes) else data

    def fail(self, path: str, status: int, *headers: Pair) -> None:
        """Answer this path with this status from now on."""
        self.serve(path, answer(b'{"secret": "of the upstream"}', *headers, status=status))

    def hold(self, path: str) -> asyncio.Event:
        """Answer this path only when the event that is returned is set."""
        event = self._held[path] = asyncio.Event()
        return event

    def asked_for(self, path: str) -> list[Asked]:
        """The requests for this path so far, whatever their query."""
        return [asked for asked in self.requests if asked.target.partition("?")[0] == path]

    async def until_asked(self, path: str, count: int) -> None:
        """Wait until this path has been asked for this often."""
        async with asyncio.timeout(10):
            await self.until(lambda _: len(self.asked_for(path)) >= count)

    async def until_asked_again(self, path: str, times: int = 1) -> None:
        """Wait for this many further requests."""
        await self.until_asked(path, len(self.asked_for(path)) + times)

    async def _handle(self, call: Call) -> None:
        path = call.asked.target.partition("?")[0]
        if (held := self._held.get(path)) is not None and call.asked.method == "GET":
            await held.wait()
        if call.asked.method in ("PUT", "PATCH"):
            await self._write(call, path)
        elif call.asked.method == "DELETE":
            self._answers.pop(path, None)
            await call.send(b"HTTP/1.1 204 Gone\r\n\r\n")
        else:
            make = self._answers.get(path)
            await call.send(answer(status=404) if make is None else make(call.asked))

    async def _write(self, call: Call, path: str) -> None:
        given = json.loads(await call.read_body())
        before = self._documents.get(path)
        if call.asked.method == "PATCH" and isinstance(before, dict):
            given = {**before, **given}
        self.put(path, given)
        await call.send(answer(json.dumps(given).encode(), (b"Content-Type", b"application/json")))
