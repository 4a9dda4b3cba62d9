"""A gate to be harmed from outside, and clients of raw bytes and hand-made frames to harm it with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from hyperframe.frame import Frame, GoAwayFrame

from tests.ports import free_port

PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""

Pair = tuple[bytes, bytes]


class GateProcess:
    """A gate in a process of its own."""

    def __init__(self, config: str, directory: Path, edge: str = "native", *, files: int | None = None) -> None:
        """`config` is YAML; `{upstream}` in it is the URL where tests put their scripted upstream, `EDGE` the `edge`.

        `files`: how many descriptors it may have.
        """
        self.edge = edge
        self.upstream_port = free_port()
        url = f"http://127.0.0.1:{self.upstream_port}"
        file = directory / "ssegate.yaml"
        file.write_text(config.replace("{upstream}", url).replace("EDGE", edge))
        self._log = directory / "log"
        script = Path(__file__).with_name("gate_process.py")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(script), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=script.parents[2],
                env={**os.environ, "PYTHONPATH": str(script.parents[2]), "OPEN_FILES": str(files or "")},
                text=True,
            )
        facts = self._hear()
        self.port: int = facts["port"]
        self.admin: int = facts["admin"]
        self.tls: int = facts["tls"]
        """The port with TLS; 0 when there is none."""

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _hear(self) -> dict[str, int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        facts: dict[str, int] = json.loads(line)
        return facts

    def stop(self) -> None:
        self._stdin.close()
        assert self.process.wait(20) == 0, self.log()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tasks(self) -> int:
        """How many tasks there are in the gate right now."""
        self._stdin.write("tasks\n")
        self._stdin.flush()
        return self._hear()["tasks"]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        body = (await ask(self.admin, get("/metrics"))).body.decode()
        values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", body, re.MULTILINE)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    async def settled(self, before: Counts) -> None:
        """Wait until there are no more tasks, descriptors and streams than before; fails after a while."""
        await until(lambda: self._is_settled(before), f"back to {before}")
        assert await self.metric("ssegate_streams") == 0

    def _is_settled(self, before: Counts) -> bool:
        return self.descriptors() <= before.descriptors and self.tasks() <= before.tasks

    def counts(self) -> Counts:
        return Counts(self.tasks(), self.descriptors())

    @asynccontextmanager
    async def leaves_nothing(self) -> AsyncIterator[None]:
        """What happens in here leaves no task, connection or descriptor, and no traceback in the log."""
        before, logged = self.counts(), len(self.log())
        yield
        await self.settled(before)
        said = self.log()[logged:]
        assert "Traceback" not in said, said
        assert self.is_alive


@dataclass(frozen=True)
class Counts:
    tasks: int
    descriptors: int


async def until(fact: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Look again and again: what a process has in `/proc` cannot be awaited."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.02)


def trusting(*protocols: str) -> ssl.SSLContext:
    """A client's TLS settings that take any certificate, and offer these protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def get(target: str, *headers: str, host: str = "gate.test") -> bytes:
    """A GET as bytes, that asks for the connection to be closed behind it."""
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


@dataclass(frozen=True)
class Response:
    """A response as it came over HTTP/1.1."""

    status: int
    headers: list[Pair]
    body: bytes
    is_whole: bool
    """Whether its own framing says that nothing is missing. A body that ends with the connection never is."""

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return ", ".join(values) if values else None

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name.lower().encode()]


class Client:
    """One TCP connection that sends what it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None) -> Self:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        name = None if tls is None else "localhost"
        return cls(*await asyncio.open_connection(sock=connection, limit=2**22, ssl=tls, server_hostname=name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def stop_reading(self) -> None:
        self.writer.transport.pause_reading()

    async def read_until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(mark)

    async def read_to_end(self) -> bytes:
        """All until the other side closes; a reset is an end too."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                pass
        return data

    async def read_response(self, method: str = "GET") -> Response:
        """One response; informational ones before it are passed over."""
        while True:
            head = await self.read_until(b"\r\n\r\n")
            status, headers = parse_head(head)
            if status >= 200:
                break
        response = Response(status, headers, b"", True)
        if method == "HEAD" or status in (204, 304):
            return response
        async with asyncio.timeout(PATIENCE):
            try:
                return Response(status, headers, await self._read_body(response), True)
            except asyncio.IncompleteReadError as error:
                return Response(status, headers, error.partial, False)

    async def _read_body(self, head: Response) -> bytes:
        if (length := head.get("content-length")) is not None:
            return await self.reader.readexactly(int(length))
        if head.get("transfer-encoding") != "chunked":
            raise asyncio.IncompleteReadError(await self.reader.read(-1), None)
        body = b""
        while True:
            try:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                piece = await self.reader.readexactly(size + 2)
            except asyncio.IncompleteReadError as error:
                raise asyncio.IncompleteReadError(body + error.partial, None) from error
            if not size:
                return body
            body += piece[:-2]


def parse_head(head: bytes) -> tuple[int, list[Pair]]:
    first, *lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert first.startswith(b"HTTP/1.1 "), first
    fields = (line.partition(b":") for line in lines)
    return int(first.split()[1]), [(name, value.strip()) for name, _, value in fields]


async def ask(port: int, data: bytes, *, method: str = "") -> Response:
    """Send these bytes over a new connection and read the response."""
    async with await Client.connect(port) as client:
        await client.send(data)
        return await client.read_response(method or data.split(b" ", 1)[0].decode("latin-1"))


async def ask_closed(port: int, data: bytes) -> Response:
    """The same, and the connection must be closed behind the response with nothing more on it."""
    async with await Client.connect(port) as client:
        await client.send(data)
        response = await client.read_response()
        assert await client.read_to_end() == b""
        return response


class Http2Client(Client):
    """One HTTP/2 connection with prior knowledge, that neither checks nor mends what it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        config = h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self.is_ended = False
        self.is_generous = True
        """Whether what came is acknowledged, which opens the window again."""

    @classmethod
    async def begin(cls, port: int, *, window: int | None = None, tls: ssl.SSLContext | None = None) -> Self:
        """Connect and exchange settings; `window` is what each stream may be sent at first."""
        client = await cls.connect(port, tls=tls)
        if window is not None:
            client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
            client.h2.clear_outbound_data_buffer()
            client.h2 = h2.connection.H2Connection(client.h2.config)
            client.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        client.h2.initiate_connection()
        await client.flush()
        await client.until(lambda event: isinstance(event, h2.events.SettingsAcknowledged))
        return client

    async def flush(self) -> None:
        await self.send(self.h2.data_to_send())

    async def send_frames(self, *frames: Frame) -> None:
        await self.send(b"".join(frame.serialize() for frame in frames))

    async def request(
        self,
        path: bytes,
        *headers: Pair,
        method: bytes = b"GET",
        end: bool = True,
        pseudo: tuple[Pair, ...] | None = None,
    ) -> int:
        """Send a request's head; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        usual = ((b":method", method), (b":scheme", b"http"), (b":authority", b"gate.test"), (b":path", path))
        self.h2.send_headers(stream, [*(usual if pseudo is None else pseudo), *headers], end_stream=end)
        await self.flush()
        return stream

    async def send_data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        await self.flush()

    async def receive(self) -> list[h2.events.Event]:
        """The events of what comes next; empty at the end."""
        try:
            data = await self.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.is_ended = True
            return []
        events = self.h2.receive_data(data)
        self.events += events
        for event in events:
            if isinstance(event, h2.events.DataReceived) and self.is_generous and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        await self.flush()
        return events

    async def until(self, is_it: Callable[[h2.events.Event], bool], seconds: float = PATIENCE) -> h2.events.Event:
        """Wait for such an event, seen before or not."""
        async with asyncio.timeout(seconds):
            while not any(map(is_it, self.events)):
                assert not self.is_ended, f"the connection ended; there came {self.events}"
                await self.receive()
        return next(filter(is_it, self.events))

    async def outcome(self, stream: int) -> int | h2.errors.ErrorCodes:
        """The status of a stream's whole response, or the code it was reset with."""
        ends = (h2.events.StreamEnded, h2.events.StreamReset)
        await self.until(lambda event: isinstance(event, ends) and event.stream_id == stream)
        for event in self.events:
            is_cut = isinstance(event, h2.events.StreamReset) and event.error_code != h2.errors.ErrorCodes.NO_ERROR
            if is_cut and event.stream_id == stream:
                return h2.errors.ErrorCodes(event.error_code)
        return self.status(stream)

    def status(self, stream: int) -> int:
        heads = [e for e in self.events if isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream]
        return int(dict(heads[0].headers)[b":status"])

    def body(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream)

    async def farewell(self) -> h2.errors.ErrorCodes:
        """Why the gate ends the connection, which it must do. Frames of streams that h2 knows nothing of may come before."""
        data = await self.read_to_end()
        code = None
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            if isinstance(frame, GoAwayFrame):
                frame.parse_body(memoryview(data[9 : 9 + length]))
                code = h2.errors.ErrorCodes(frame.error_code)
            data = data[9 + length :]
        assert code is not None, "no GOAWAY"
        return code


def run(test: Awaitable[None]) -> None:
    """Run one test's coroutine, with a bound."""
    run_for(40, test)


def run_for(seconds: float, test: Awaitable[None]) -> None:
    """Run one that may take so long."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())
