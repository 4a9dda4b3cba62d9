"""Viewers that watch an event stream over real connections, for the demo's page to send in by the hundred."""

from __future__ import annotations

import asyncio
import contextlib

LARGEST = 250
"""Each costs this process two file descriptors, and often it may have 1,024."""

PAUSE = 1.0
"""Seconds before a viewer that lost its stream comes back."""


class Crowd:
    """As many viewers of one stream as are asked for."""

    def __init__(self, host: str, path: str) -> None:
        self._host = host
        self._request = f"GET {path} HTTP/1.1\r\nHost: demo\r\nAccept: text/event-stream\r\n\r\n".encode()
        self._viewers: list[asyncio.Task[None]] = []
        self.port = 0
        """Where the gate is; set before anyone is sent in."""

    def __len__(self) -> int:
        return len(self._viewers)

    def resize(self, count: int) -> None:
        """Send viewers in, or home. Raises `ValueError` for more than `LARGEST`."""
        if not 0 <= count <= LARGEST:
            raise ValueError(f"a crowd has 0 to {LARGEST} viewers")
        while len(self._viewers) > count:
            self._viewers.pop().cancel()
        while len(self._viewers) < count:
            self._viewers.append(asyncio.get_running_loop().create_task(self._watch()))

    async def aclose(self) -> None:
        """Send all home, and wait until they have gone."""
        leaving, self._viewers = self._viewers, []
        for viewer in leaving:
            viewer.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)

    async def _watch(self) -> None:
        """Read the stream and forget it; begin again when it ends, as a browser does."""
        while True:
            with contextlib.suppress(OSError):
                await self._read_stream()
            await asyncio.sleep(PAUSE)

    async def _read_stream(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self.port)
        try:
            writer.write(self._request)
            while await reader.read(65536):
                pass
        finally:
            writer.close()
