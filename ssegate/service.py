"""A gate with its listeners, as a process runs it: up, over to a new configuration, and down in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from ssegate.admin.endpoints import AdminEndpoints
from ssegate.admin.metrics import Metrics
from ssegate.config.model import Config
from ssegate.config.values import Address
from ssegate.edge.asgi import AsgiEdge
from ssegate.edge.exchange import Answer, Answering
from ssegate.edge.latency import Latency
from ssegate.edge.native.listener import Context
from ssegate.edge.native.memory import lower_mmap_threshold
from ssegate.edge.native.server import NativeServer
from ssegate.edge.native.tls import ServerCertificate
from ssegate.errors import ConfigError
from ssegate.gate import Gate

log = logging.getLogger(__name__)

LoadConfig = Callable[[], Config]
"""Reads the configuration again; raises `ConfigError`."""


class Server(Protocol):
    """What serves a gate's replies on sockets; the native edge, or Hypercorn."""

    @property
    def latency(self) -> Latency: ...
    def statistics(self) -> Mapping[str, float]: ...
    async def start(self, host: str, port: int, tls: Context | None = None) -> int: ...
    def stop_listening(self) -> None: ...
    async def aclose(self, grace: float = 3.0) -> None: ...


class Service:
    """One process' gate on its public listeners and, when there is one, its admin listener."""

    def __init__(self, config: Config, *, own: Mapping[bytes, Answer] | None = None) -> None:
        """`own` are answers to paths below `/_ssegate/`. Raises `ConfigError` when the certificate cannot be used."""
        self.gate = Gate(config, own=own)
        self._certificate = ServerCertificate(config.server.tls) if config.server.tls is not None else None
        self._public = make_server(config, self.gate.answer, self._certificate if config.server.http3 else None)
        self._admin: Server | None = None
        self.port = 0
        """Where the public listener is; known after `start`."""
        self.tls_port: int | None = None
        """Where the one with TLS is, when there is one."""
        self.admin_port: int | None = None

    async def start(self) -> None:
        """Listen and begin. Raises `OSError` when an address cannot be listened on, and `BrokerError`."""
        await self.gate.start()
        try:
            await self._listen(self.gate.config)
        except OSError:
            await self.aclose()
            raise
        self.gate.begin_subscriptions()

    async def _listen(self, config: Config) -> None:
        server = config.server
        self.port = await self._public.start(server.listen.host, server.listen.port)
        if server.tls is not None and self._certificate is not None:
            lower_mmap_threshold()
            listen = server.tls.listen
            self.tls_port = await self._public.start(listen.host, listen.port, self._certificate.context)
        if config.admin is not None:
            endpoints = AdminEndpoints(self.gate, Metrics(self.gate.statistics, self._public))
            self._admin = make_server(config, endpoints.answer)
            self.admin_port = await self._admin.start(config.admin.listen.host, config.admin.listen.port)

    async def reload(self, load: LoadConfig) -> None:
        """Go over to the configuration as it is now; when it is wrong the old one stays, and the log says why."""
        before = self.gate.config
        try:
            config = load()
            self.gate.reload(config)
        except ConfigError as error:
            for problem in error.problems:
                log.error(
                    "reload: %s:%d:%d: %s: %s",
                    problem.file,
                    problem.line,
                    problem.column,
                    problem.where,
                    problem.message,
                )
            log.error("reload: the configuration is wrong; the old one stays in force")
            return
        if self._certificate is not None and config.server.tls is not None:
            self._certificate.use(config.server.tls)
        for name, is_same in (
            ("server.listen", before.server.listen == config.server.listen),
            ("server.tls.listen", _tls_address(before) == _tls_address(config)),
            ("server.edge", before.server.edge == config.server.edge),
            ("server.http3", before.server.http3 == config.server.http3),
            ("server.state_dir", before.server.state_dir == config.server.state_dir),
            ("server.keep_alive", before.server.keep_alive == config.server.keep_alive),
            ("admin", before.admin == config.admin),
            ("limits.request_head", before.limits.request_head == config.limits.request_head),
            ("limits.stall", before.limits.stall == config.limits.stall),
            (
                "limits.streams_per_connection",
                before.limits.streams_per_connection == config.limits.streams_per_connection,
            ),
        ):
            if not is_same:
                log.warning("reload: %s has changed; it stays as it was until a restart", name)
        log.info("reload: the new configuration is in force")

    async def drain(self) -> None:
        """Go down in order: readiness fails, streams end, requests under way are completed, then everything closes."""
        timeout = self.gate.config.server.drain.timeout
        started = asyncio.get_running_loop().time()
        await self.gate.drain()
        self._public.stop_listening()
        spent = asyncio.get_running_loop().time() - started - self.gate.config.server.drain.delay
        await self.aclose(grace=max(0.5, timeout - spent))

    async def aclose(self, grace: float = 0.0) -> None:
        """Close; requests under way get `grace` seconds. Streams end without a word."""
        if not grace:
            await self.gate.aclose()
        await self._public.aclose(grace)
        if grace:
            await self.gate.aclose()
        if self._admin is not None:
            await self._admin.aclose(0.0)  # last, so that readiness is told as long as anybody is served


def make_server(config: Config, answering: Answering, http3: ServerCertificate | None = None) -> Server:
    """A server of the kind that `server.edge` names, which listens to nothing yet; with HTTP/3 by this certificate.

    Raises `ConfigError` when HTTP/3 cannot use it.
    """
    server, limits = config.server, config.limits
    if server.edge == "native":
        return NativeServer(
            answering,
            stall=limits.stall,
            max_head=limits.request_head,
            keep_alive=server.keep_alive,
            max_streams=limits.streams_per_connection,
        )
    from ssegate.edge.hypercorn import HypercornServer  # a tenth of a second that the native edge does without

    edge = AsgiEdge(answering, stall=limits.stall, max_head=limits.request_head, dates=True)
    return HypercornServer(
        edge,
        keep_alive=server.keep_alive,
        max_head=limits.request_head,
        max_streams=limits.streams_per_connection,
        http3=http3,
    )


def _tls_address(config: Config) -> Address | None:
    return None if config.server.tls is None else config.server.tls.listen
