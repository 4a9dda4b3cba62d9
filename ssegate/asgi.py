"""The gate as an ASGI application for any ASGI server: `uvicorn ssegate.asgi:app`, `hypercorn ssegate.asgi:app`.

`app` reads the configuration that `ssegate` itself would find (`$SSEGATE_CONFIG`, `./ssegate.yaml` …) when the server
starts it; `create_app` takes one. `server.listen`, `tls`, `edge`, `http3`, `keep_alive`, `drain` and the admin listener are
the server's own business here, and WebSockets are answered 501.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

from ssegate.config.load import load_config
from ssegate.config.model import Config
from ssegate.edge.asgi import AsgiEdge, Receive, Send
from ssegate.errors import ConfigError
from ssegate.gate import Gate


class Application:
    """An ASGI application that owns a gate, from the server's `lifespan.startup` to its `lifespan.shutdown`."""

    def __init__(self, config: Config | None = None) -> None:
        """Without a configuration it is found and read at start-up; `ConfigError` makes the start fail."""
        self._config = config
        self._gate: Gate | None = None
        self._edge: AsgiEdge | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection scope of any type."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._edge is None:
            # A server without lifespan: the first request starts the gate.
            await self.start()
        assert self._edge is not None
        await self._edge(scope, receive, send)

    async def start(self) -> None:
        """Begin. Raises `ConfigError` and `BrokerError`."""
        config = self._config or load_config(environ=os.environ)
        self._gate = Gate(config)
        self._edge = AsgiEdge(self._gate.answer, stall=config.limits.stall, max_head=config.limits.request_head)
        await self._gate.start()
        self._gate.begin_subscriptions()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:  # whatever it is, the server is to be told, and stops
            await send({"type": "lifespan.startup.failed", "message": _in_full(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        assert self._gate is not None
        await self._gate.drain()
        await self._gate.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def _in_full(error: Exception) -> str:
    """All that is wrong with a configuration, not just the first of it."""
    if not isinstance(error, ConfigError):
        return str(error)
    return "\n".join(f"{each.file}:{each.line}:{each.column}: {each.where}: {each.message}" for each in error.problems)


def create_app(config: Config | None = None) -> Application:
    """Make an application; see `Application`."""
    return Application(config)


app = create_app()
