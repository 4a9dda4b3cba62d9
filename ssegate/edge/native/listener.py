"""One socket that takes connections: as many at a time as is good for those that are there, and again when it could not."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from typing import cast

from ssegate.edge.native import limits
from ssegate.edge.native.connection import Connection
from ssegate.edge.native.edge import NativeEdge
from ssegate.edge.native.http1 import Http1Connection
from ssegate.edge.native.http2 import Http2Connection

log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Context = Callable[[], ssl.SSLContext]
"""Gives the TLS settings for a new connection; asked anew for each, because certificates change."""


class Listener:
    """Listens on one address, in plain text or with TLS, and gives connections to an edge."""

    def __init__(self, edge: NativeEdge, tls: Context | None = None) -> None:
        self._edge = edge
        self._tls = tls
        self._socket: socket.socket | None = None
        self._accepting: set[asyncio.Task[None]] = set()
        self._is_full = False
        self._retry: asyncio.TimerHandle | None = None
        self._is_listening = False

    def start(self, host: str, port: int) -> int:
        """Listen; return the port, which is chosen by the system when 0 was asked for. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server(
                (host, port), family=family, backlog=limits.BACKLOG, dualstack_ipv6=host == "::"
            )
        except OSError as error:
            # Its message repeats the address; ours says it in its own place.
            fact = os.strerror(error.errno) if error.errno is not None else str(error)
            raise OSError(error.errno, fact.lower()) from error
        self._socket.setblocking(False)
        self._listen()
        return cast(int, self._socket.getsockname()[1])

    def stop(self) -> None:
        """Take no new connections. A second call does nothing."""
        self._rest()
        if self._retry is not None:
            self._retry.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def aclose(self) -> None:
        """Stop, and give up handshakes under way."""
        self.stop()
        tasks = tuple(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listen(self) -> None:
        if self._socket is not None and not self._is_listening:
            self._is_listening = True
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _rest(self) -> None:
        if self._socket is not None and self._is_listening:
            self._is_listening = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        """Take what has come, a bounded number in one turn of the loop, so that a storm does not starve live streams."""
        assert self._socket is not None
        for _ in range(limits.ACCEPTS):
            if self._tls is not None and len(self._accepting) >= limits.HANDSHAKES:
                self._rest()  # those behind wait in the kernel; the next handshake that ends lets them in
                return
            try:
                client, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._wait_for_room(error)
                return
            if self._is_full:
                self._is_full = False
                log.info("connections are accepted again")
            self._take(client)

    def _wait_for_room(self, error: OSError) -> None:
        """The connection stays in the kernel's queue; tried again in a moment, and told once."""
        if not self._is_full:
            self._is_full = True
            log.error(
                "no connection can be accepted: %s; those that come wait until others end. Raise the limit "
                "(ulimit -n, LimitNOFILE) or lower limits.clients",
                error.strerror,
            )
        self._rest()
        self._retry = asyncio.get_running_loop().call_later(limits.FULL_PAUSE, self._listen)

    def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux":
                # A client that has vanished takes nothing, and nothing in this process would tell: the kernel does.
                patience = round(self._edge.stall * 1500)  # in milliseconds, and longer than ours, which says why
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, patience))
        except OSError:
            client.close()  # it has left again
            return
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._accepting.add(task)
        task.add_done_callback(self._connected)

    async def _connect(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._tls is None:
                await loop.connect_accepted_socket(self._make_plain, client)
            else:
                await loop.connect_accepted_socket(
                    lambda: _ByAlpn(self._edge),
                    client,
                    ssl=self._tls(),
                    ssl_handshake_timeout=limits.HANDSHAKE_TIMEOUT,
                    ssl_shutdown_timeout=limits.LINGER,
                )
        except OSError as error:  # ssl.SSLError and timeouts are kinds of it
            log.debug("a connection did not come about: %s", type(error).__name__)
            client.close()
        except BaseException:
            client.close()
            raise

    def _make_plain(self) -> Connection:
        return Http1Connection(self._edge)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._accepting.discard(task)
        if self._tls is not None and not self._is_full:
            self._listen()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection could not be served, which is a defect", exc_info=error)


class _ByAlpn(asyncio.Protocol):
    """Stands in until the handshake has told what the client speaks."""

    __slots__ = ("_edge",)

    def __init__(self, edge: NativeEdge) -> None:
        self._edge = edge

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        is_http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        connection = Http2Connection(self._edge) if is_http2 else Http1Connection(self._edge)
        cast(asyncio.Transport, transport).set_protocol(connection)
        connection.connection_made(transport)
