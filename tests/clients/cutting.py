"""A TCP proxy that breaks connections where a seed says: between events, inside them, in the head, or at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.upstream.scripted import stop_accepting, turn_over

_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Cuts:
    """What is to be broken."""

    count: int
    """How many connections; those after them are left alone."""
    longest: int = 1500
    """Bytes of an answer that pass at most before its connection is cut."""
    between_writes: bool = False
    """Cut only where the gate's own write ended."""
    turned_away: int = 0
    """How many connections besides get 503 instead of the gate: an `EventSource` gives up at that."""


class CuttingProxy:
    """Stands between a client and the gate, in a thread of its own. Nothing is cut before `cut`."""

    def __init__(self, target: int, seed: int) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._cuts = Cuts(0)
        self._cuts_left = self._turns_left = 0
        self.is_spent = threading.Event()
        """Set when all that was asked for has been broken."""
        self.port = 0
        self.seen = bytearray()
        """All that came from the gate, whether it was passed on or not."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._call(self._listen()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self, cuts: Cuts) -> None:
        """Break connections from now on; those that are open too."""
        self._cuts, self._turns_left, self._cuts_left = cuts, cuts.turned_away, cuts.count

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await turn_over()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._join(reader, writer)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._turns_left and self._random.random() < 0.5:
            await self._turn_away(reader, writer)
            return
        gate_reader, gate_writer = await asyncio.open_connection("127.0.0.1", self._target)
        pumps = [
            asyncio.create_task(_pump(reader, gate_writer)),
            asyncio.create_task(self._deliver(gate_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate_writer.transport.abort()  # first: what follows may itself be cancelled, when the proxy closes
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self._turns_left -= 1
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.write_eof()
        await reader.read()
        self._look()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the gate's bytes on, up to the one where this connection is cut."""
        room: int | None = None
        while data := await reader.read(65536):
            self.seen += data
            if room is None and self._cuts_left:
                room = self._random.randrange(self._cuts.longest)
            if room is not None and self._cuts_left and room < len(data):
                writer.write(data if self._cuts.between_writes else data[:room])
                await writer.drain()
                self._break(writer)
                return
            writer.write(data)
            await writer.drain()
            room = None if room is None else room - len(data)
        writer.write_eof()

    def _break(self, writer: asyncio.StreamWriter) -> None:
        """By FIN or by RST; the latter throws away what the client has not read yet."""
        if self._random.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        else:
            writer.write_eof()
        self._cuts_left -= 1
        self._look()

    def _look(self) -> None:
        if not self._cuts_left and not self._turns_left:
            self.is_spent.set()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
