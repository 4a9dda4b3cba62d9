"""A gate for a test: from YAML text, on a free port, in this process or in one of its own, asked over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from ssegate.config.load import parse_config
from ssegate.config.model import Config
from ssegate.service import Service
from tests.e2e.client import PATIENCE, Asking, Exchange, Pair, Reply, Viewer, exchange
from tests.ports import free_port as free_port
from tests.upstream.scripted import ScriptedUpstream

P = ParamSpec("P")


def story(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test be a coroutine, run on a loop of its own."""

    @wraps(test)
    def run(*arguments: P.args, **keywords: P.kwargs) -> None:
        asyncio.run(test(*arguments, **keywords))

    return run


def before(api: ScriptedUpstream, routes: str, *, upstream: str = "", read: str = "1s", more: str = "") -> str:
    """A configuration before this upstream, impatient enough for a test.

    `upstream` has further keys of it in flow style, without braces, `read` is its timeout, and `more` has further keys
    of the top.
    """
    keys = f"url: {api.url}, backoff: {{min: 50ms, max: 100ms}}, timeout: {{connect: 1s, read: {read}}}"
    if upstream:
        keys += f", {upstream}"
    return f"upstreams: {{api: {{{keys}}}}}\n{textwrap.dedent(more)}\nroutes:\n{textwrap.indent(textwrap.dedent(routes), '  ')}"


@dataclass(frozen=True)
class Edge:
    """One way in: which edge serves, and which version of HTTP its viewers speak."""

    id: str
    http: str
    """`1.1` or `2`."""
    server: str = ""
    """Keys of `server` that choose it, as YAML in flow style without the braces."""
    tls: bool = False
    """Whether its viewers come by TLS."""

    def yaml(self, port: int, text: str, *, server: str = "", admin: int | None = None) -> str:
        """A whole configuration: `text` without `version`, `server` and `admin`; `server` in flow style, without braces.

        `port` is the one that viewers come to.
        """
        listen = f'listen: "127.0.0.1:{port}"'
        if self.tls:
            listen = f'listen: "127.0.0.1:0", tls: {{{listen}, self_signed: true}}'
        keys = ", ".join(filter(None, (listen, self.server, server)))
        head = f"version: 1\nserver: {{{keys}}}\n"
        if admin is not None:
            head += f'admin: {{listen: "127.0.0.1:{admin}"}}\n'
        return head + textwrap.dedent(text)


class Door:
    """What a test asks: one port, by one version of HTTP."""

    def __init__(self, edge: Edge, port: int) -> None:
        self.edge = edge
        self.port = port

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        target: str,
        *headers: Pair,
        body: bytes = b"",
        has_more: bool = False,
        buffer: int | None = None,
    ) -> AsyncIterator[Exchange]:
        """Send a request and wait for the response's head."""
        asking = Asking(method, target, headers, body, has_more)
        async with exchange(self.edge.http, self.port, asking, buffer, tls=self.edge.tls) as it:
            yield it

    async def ask(self, method: str, target: str, *headers: Pair, body: bytes = b"") -> Reply:
        """A request with a response that ends by itself."""
        async with self.exchange(method, target, *headers, body=body) as it, asyncio.timeout(PATIENCE):
            parts = []
            while piece := await it.read():
                parts.append(piece)
            return Reply(it.status, it.headers, b"".join(parts))

    @asynccontextmanager
    async def watch(
        self, target: str, *headers: Pair, cursor: str | None = None, buffer: int | None = None
    ) -> AsyncIterator[Viewer]:
        """Open an event stream; its status is for the test to look at."""
        fields: list[Pair] = [("Accept", "text/event-stream"), *headers]
        if cursor is not None:
            fields.append(("Last-Event-ID", cursor))
        async with self.exchange("GET", target, *fields, buffer=buffer) as it:
            yield Viewer(it)


class RunningGate(Door):
    """A gate in this process."""

    def __init__(self, edge: Edge, service: Service, admin: bool) -> None:
        super().__init__(edge, service.tls_port or service.port)
        self.service = service
        if admin:
            assert service.admin_port is not None
            self.admin = Door(Edge("admin", "1.1"), service.admin_port)

    async def until_clients(self, count: int) -> None:
        """Wait until this many streams are open: a client that has left is noticed a moment later."""
        async with asyncio.timeout(PATIENCE):
            while self.service.gate.statistics().clients != count:
                await asyncio.sleep(0.01)  # figures tell nobody when they change


@asynccontextmanager
async def running_gate(
    edge: Edge, text: str, *, server: str = "", admin: bool = False, port: int = 0
) -> AsyncIterator[RunningGate]:
    """A gate in this process, gone without a drain at the end of the block."""
    service = Service(make_config(edge.yaml(port, text, server=server, admin=0 if admin else None)))
    await service.start()
    try:
        yield RunningGate(edge, service, admin)
    finally:
        await service.aclose()


def make_config(text: str) -> Config:
    """The configuration a text says."""
    return parse_config(text, source="test.yaml", environ=os.environ)


class GateProcess(Door):
    """`python -m ssegate serve` in a process of its own."""

    def __init__(self, edge: Edge, file: Path, port: int, admin_port: int) -> None:
        super().__init__(edge, port)
        self.file = file
        self.admin = Door(Edge("admin", "1.1"), admin_port)
        self.process: Process | None = None
        self.said: list[str] = []
        """What it wrote to its standard error so far."""
        self._reading: asyncio.Task[None] | None = None
        self._more = asyncio.Event()

    def configure(self, text: str, *, server: str = "") -> None:
        """Write the file anew; it is read at the next start or SIGHUP."""
        self.write(self.edge.yaml(self.port, text, server=server, admin=self.admin.port))

    def write(self, text: str) -> None:
        """Write the file, right or wrong."""
        self.file.write_text(text)

    async def start(self) -> None:
        """Start; returns when it says that it is up."""
        command = (sys.executable, "-m", "ssegate", "serve", "-c", str(self.file))
        self.process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, stdout=PIPE)
        assert self.process.stdout is not None
        self._reading = asyncio.create_task(self._listen(self.process))
        async with asyncio.timeout(PATIENCE):
            banner = await self.process.stdout.readline()
        assert banner, f"it did not start: {''.join(self.said)}"

    async def _listen(self, process: Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self.said.append(line.decode())
            self._more.set()

    async def until_said(self, text: str) -> str:
        """Wait for a line on its standard error with this text in it; returns the line."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._more.clear()
                for line in self.said:
                    if text in line:
                        return line
                await self._more.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def exit_code(self, patience: float = PATIENCE) -> int:
        """Wait for its end."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert self._reading is not None
        async with asyncio.timeout(patience):
            await asyncio.shield(self._reading)
            await self.process.stdout.read()
            return await self.process.wait()

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.exit_code()


@asynccontextmanager
async def gate_process(edge: Edge, directory: Path, text: str, *, server: str = "") -> AsyncIterator[GateProcess]:
    """A gate in a process of its own, killed at the end of the block if it has not ended."""
    gate = GateProcess(edge, directory / "ssegate.yaml", free_port(), free_port())
    gate.configure(text, server=server)
    try:
        await gate.start()
        yield gate
    finally:
        if gate.process is not None and gate.process.returncode is None:
            await gate.kill()


def said(data: bytes | str) -> Any:
    """JSON as a value."""
    return json.loads(data)
