"""A gate with its listeners, as a process runs it: up, over to a new configuration, and down in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from ssegate.admin.endpoints import AdminEndpoints
from ssegate.admin.metrics import Metrics
from ssegate.config.model import Config
from ssegate.edge.asgi import AsgiEdge
from ssegate.edge.exchange import Answer
from ssegate.edge.hypercorn import HypercornServer
from ssegate.errors import ConfigError
from ssegate.gate import Gate

log = logging.getLogger(__name__)

LoadConfig = Callable[[], Config]
"""Reads the configuration again; raises `ConfigError`."""


class Service:
    """One process' gate on its public listener and, when there is one, its admin listener."""

    def __init__(self, config: Config, *, own: Mapping[bytes, Answer] | None = None) -> None:
        """`own` are answers to paths below `/_ssegate/`."""
        self.gate = Gate(config, own=own)
        self._edge = AsgiEdge(
            self.gate.answer, stall=config.limits.stall, max_head=config.limits.request_head, dates=True
        )
        self._public = self._make_server(self._edge)
        self._admin: HypercornServer | None = None
        self.port = 0
        """Where the public listener is; known after `start`."""
        self.admin_port: int | None = None

    def _make_server(self, edge: AsgiEdge) -> HypercornServer:
        config = self.gate.config
        return HypercornServer(edge, keep_alive=config.server.keep_alive, max_head=config.limits.request_head)

    async def start(self) -> None:
        """Listen and begin. Raises `OSError` when an address cannot be listened on, and `BrokerError`."""
        await self.gate.start()
        config = self.gate.config
        try:
            self.port = await self._public.start(config.server.listen.host, config.server.listen.port)
            if config.admin is not None:
                endpoints = AdminEndpoints(lambda: self.gate.is_ready, Metrics(self.gate.statistics, self._edge))
                self._admin = self._make_server(AsgiEdge(endpoints.answer, dates=True))
                self.admin_port = await self._admin.start(config.admin.listen.host, config.admin.listen.port)
        except OSError:
            await self.aclose()
            raise

    async def reload(self, load: LoadConfig) -> None:
        """Go over to the configuration as it is now; when it is wrong the old one stays, and the log says why."""
        try:
            config = load()
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
        before = self.gate.config
        self.gate.reload(config)
        for name, is_same in (
            ("server.listen", before.server.listen == config.server.listen),
            ("server.keep_alive", before.server.keep_alive == config.server.keep_alive),
            ("admin", before.admin == config.admin),
            ("limits.request_head", before.limits.request_head == config.limits.request_head),
            ("limits.stall", before.limits.stall == config.limits.stall),
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
