"""The native edge as a service runs it: one edge, a listener for each address, up and down in order."""

from __future__ import annotations

from ssegate.edge.exchange import Answering
from ssegate.edge.latency import Latency
from ssegate.edge.native.edge import NativeEdge
from ssegate.edge.native.listener import Context, Listener


class NativeServer:
    """Serves a gate's replies on any number of addresses. `start` each, then `aclose`."""

    def __init__(
        self,
        answering: Answering,
        *,
        stall: float = 30.0,
        max_head: int = 32 * 1024,
        keep_alive: float = 75.0,
        max_streams: int = 250,
    ) -> None:
        """See `NativeEdge`."""
        self._edge = NativeEdge(
            answering, stall=stall, max_head=max_head, keep_alive=keep_alive, max_streams=max_streams
        )
        self._listeners: list[Listener] = []

    async def start(self, host: str, port: int, tls: Context | None = None) -> int:
        """Listen; return the port, which is chosen by the system when 0 was asked for. Raises `OSError`."""
        listener = Listener(self._edge, tls)
        chosen = listener.start(host, port)
        self._listeners.append(listener)
        return chosen

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._edge.connections)

    @property
    def latency(self) -> Latency:
        """See `admin.metrics.EdgeFigures`."""
        return self._edge.latency

    def statistics(self) -> dict[str, float]:
        """See `admin.metrics.EdgeFigures`."""
        return self._edge.statistics()

    def stop_listening(self) -> None:
        """Take no new connections. Those that are open go on."""
        for listener in self._listeners:
            listener.stop()

    async def aclose(self, grace: float = 3.0) -> None:
        """Close: idle connections at once, busy ones when their response is complete or after `grace` seconds."""
        for listener in self._listeners:
            await listener.aclose()
        await self._edge.aclose(grace)
