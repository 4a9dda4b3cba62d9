"""A TCP proxy before an upstream, through which an event stream comes event by event, each when the test lets it."""

from __future__ import annotations

import asyncio
import http.client
import io
import math
from typing import Any

from tests.clients.cutting import CuttingProxy

_END = b"\n\n"


class SteppingProxy(CuttingProxy):
    """Cuts nothing. Holds each event of an answer back until `step` or `flow`; what is between events passes."""

    def __init__(self, target: int) -> None:
        super().__init__(target, seed=0)
        self._steps = 0.0
        self._stepped = asyncio.Event()

    def hold(self) -> None:
        """Let nothing more through, and forget what came."""
        self._call(self._set(0.0)).result()
        self.seen.clear()

    def step(self) -> None:
        """Let one event more through."""
        self._call(self._set(self._steps + 1)).result()

    def flow(self) -> None:
        """Let everything through from now on."""
        self._call(self._set(math.inf)).result()

    @property
    def answer(self) -> bytes:
        """The last answer, as it came over the wire."""
        return bytes(self.seen[self.seen.rindex(b"HTTP/1.1 ") :])

    async def _set(self, steps: float) -> None:
        self._steps = steps
        self._stepped.set()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.seen += data
            *events, rest = data.split(_END)
            for event in events:
                await self._take_step()
                writer.write(event + _END)
            writer.write(rest)
        writer.write_eof()

    async def _take_step(self) -> None:
        while self._steps < 1:
            self._stepped.clear()
            await self._stepped.wait()
        self._steps -= 1


def body_of(answer: bytes) -> bytes:
    """The body of an answer, out of its bytes on the wire."""

    class Wire:
        def makefile(self, *_: Any) -> io.BytesIO:
            return io.BytesIO(answer)

    response = http.client.HTTPResponse(Wire())  # type: ignore[arg-type]  # it asks for no more
    response.begin()
    return response.read()
