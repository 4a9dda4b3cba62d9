"""One client's connection, whatever it speaks: its bytes out, whether it takes them, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, cast

from ssegate.edge.native import limits
from ssegate.edge.wheel import OFF

if TYPE_CHECKING:
    from ssegate.edge.native.edge import NativeEdge

if sys.platform == "linux":
    import fcntl
    import termios

log = logging.getLogger(__name__)

NOT_DIRECT = -1
"""The descriptor of a connection whose socket only its transport may write to."""


class Connection(asyncio.Protocol):
    """What HTTP/1.1 and HTTP/2 have in common.

    While nothing is buffered, bytes go straight to the socket: the transport's own way costs a sixth of all deliveries
    (DESIGN.md, "The native edge"). What the socket does not take goes to the transport, and from then on everything, until
    that says it has all left (its high-water mark is 0).
    """

    __slots__ = (
        "_left",
        "_left_since",
        "edge",
        "fd",
        "has_ended",
        "is_lingering",
        "is_paused",
        "peer",
        "scheme",
        "slot",
        "transport",
    )

    def __init__(self, edge: NativeEdge) -> None:
        self.edge = edge
        self.fd = NOT_DIRECT
        self.is_paused = False
        """Whether the transport holds bytes that the client has not taken."""
        self.is_lingering = False
        """Whether all has been said, and what still comes is dropped."""
        self.has_ended = False
        """Whether the client sends no more, which only tunnels outlive."""
        self.slot = OFF
        self.peer = ""
        self.scheme = "http"
        self._left = 0  # bytes the client had not taken when that was looked at last
        self._left_since = 0.0  # when it last took some

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.attach(cast(asyncio.Transport, transport))
        self.edge.connections.add(self)
        self.begin()

    def attach(self, transport: asyncio.Transport) -> None:
        """Take over a transport, new or from a connection that found out that the client speaks something else."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
            transport.set_write_buffer_limits(high=1, low=0)  # TLS pauses at the mark, plain transports above it
            return
        transport.set_write_buffer_limits(high=0)
        if sys.platform != "win32":
            self.fd = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fd = NOT_DIRECT
        if isinstance(exc, TimeoutError):
            self.edge.counts["stalled"] += 1  # the system noticed first (TCP_USER_TIMEOUT)
        self.end()
        self.edge.wheel.remove(self)  # last: what ends may still have asked to be looked at
        self.edge.drop(self)

    def pause_writing(self) -> None:
        self.is_paused = True
        self._left, self._left_since = self._outstanding(), self.edge.loop.time()
        self.look_by(self._left_since + self.edge.stall)
        self.full()

    def resume_writing(self) -> None:
        self.is_paused = False
        self.drained()

    # What a protocol adds

    def begin(self) -> None:
        """The connection is there."""

    def end(self) -> None:
        """It is gone, whoever ended it."""

    def full(self) -> None:
        """The client does not take all that was written; `drained` follows, or the end."""

    def drained(self) -> None:
        """All that was written has left."""

    def due(self, now: float) -> float | None:
        """Do what is due, and say when to look again; None: never."""
        raise NotImplementedError

    def close_when_idle(self) -> None:
        """Take no more requests, and close when those under way are answered."""
        raise NotImplementedError

    # Bytes out

    @property
    def is_closed(self) -> bool:
        """Whether nothing written would arrive any more."""
        return self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send, or buffer. On a connection that is closed, or has been finished, it does nothing."""
        if self.is_lingering:
            return
        if self.fd == NOT_DIRECT or self.is_paused:
            if not self.transport.is_closing():
                self.transport.write(data)
            return
        try:
            sent = os.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < len(data):
            self.transport.write(data[sent:])

    def finish(self) -> None:
        """Close when all that was written has left, so that the client gets to read it.

        RFC 9112, 9.6: when the client still sends and we close, "the server's TCP stack will send a reset packet to the
        client, which could erase the client's unacknowledged input buffers before they can be read". So we send no more,
        but read on for a while.
        """
        if self.is_lingering or self.transport.is_closing():
            return
        self.is_lingering = True
        self.look_by(self.edge.loop.time() + limits.LINGER)
        self.transport.resume_reading()
        if not self.transport.can_write_eof() or self.has_ended:
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # it has just been reset from the other side, which `connection_lost` was about to tell
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is buffered. A second call does nothing."""
        self.fd = NOT_DIRECT
        self.transport.abort()

    def reset(self) -> None:
        """Close with RST instead of FIN, so that nobody can take what was sent for all there is."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    # Time

    def look_by(self, when: float) -> None:
        """Be looked at by then at the latest."""
        self.edge.wheel.add(self, when)

    def look(self, now: float) -> float | None:
        """See `wheel.Timed`."""
        if self.is_lingering:
            if now - self._left_since >= limits.CLOSE_TIMEOUT or not self.is_paused:
                self.abort()
                return None
            return self._left_since + limits.CLOSE_TIMEOUT
        if not self.is_paused:
            return self.due(now)
        left = self._outstanding()
        if left < self._left:
            self._left_since = now
        elif now - self._left_since >= self.edge.stall:
            self.edge.counts["stalled"] += 1
            self.abort()
            return None
        self._left = left
        return min(self.due(now) or now + self.edge.stall, self._left_since + self.edge.stall)

    def _outstanding(self) -> int:
        """Bytes that were written and that the client's system has not acknowledged."""
        left = self.transport.get_write_buffer_size()
        if sys.platform == "linux" and self.scheme == "http":
            with contextlib.suppress(OSError):  # it has just been closed, which `connection_lost` will tell
                unsent = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
                left += int.from_bytes(unsent, sys.byteorder)
        return left
