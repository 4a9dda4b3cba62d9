"""One socket that takes connections: as many at a time as is good for those that are there, and again when it could not."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
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
        self._handshakes = _Handshakes(self._connect)
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
        self._handshakes.close()
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
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.UNSENT)
        except OSError:
            client.close()  # it has left again
            return
        if self._tls is None:
            self._connect(client)
        else:
            self._handshakes.add(client)

    def _connect(self, client: socket.socket) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._make_transport(client))
        self._accepting.add(task)
        task.add_done_callback(partial(self._connected, client))
        return task

    async def _make_transport(self, client: socket.socket) -> None:
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

    def _make_plain(self) -> Connection:
        return Http1Connection(self._edge)

    def _connected(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._accepting.discard(task)
        if task.cancelled() or task.exception() is not None:
            client.close()  # here, because one that is cancelled before its first step closes nothing itself
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection could not be served, which is a defect", exc_info=error)


class _Handshakes:
    """Clients that want TLS: each is waited for until it speaks, and then it is its turn, of so many at a time.

    A handshake's work is done when the client's first words are read, so a turn is short: were it as long as the client
    takes, thirty-two that are silent would keep out everybody else.
    """

    def __init__(self, begin: Callable[[socket.socket], asyncio.Task[None]]) -> None:
        self._begin = begin
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._waiting: deque[socket.socket] = deque()
        self._turns: dict[asyncio.Task[None], asyncio.TimerHandle] = {}

    def add(self, client: socket.socket) -> None:
        """One more. It is closed when it says nothing."""
        loop = asyncio.get_running_loop()
        loop.add_reader(client.fileno(), self._hear, client)
        self._silent[client] = loop.call_later(limits.HANDSHAKE_TIMEOUT, self._give_up, client)

    def close(self) -> None:
        """Close all whose turn has not come."""
        for client in tuple(self._silent):
            self._give_up(client)
        while self._waiting:
            self._waiting.popleft().close()

    def _give_up(self, client: socket.socket) -> None:
        self._forget(client)
        client.close()

    def _forget(self, client: socket.socket) -> None:
        self._silent.pop(client).cancel()
        asyncio.get_running_loop().remove_reader(client.fileno())

    def _hear(self, client: socket.socket) -> None:
        self._forget(client)
        self._waiting.append(client)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and len(self._turns) < limits.HANDSHAKES:
            task = self._begin(self._waiting.popleft())
            self._turns[task] = asyncio.get_running_loop().call_later(limits.HANDSHAKE_TURN, self._end, task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        timer = self._turns.pop(task, None)
        if timer is not None:
            timer.cancel()
            self._go_on()


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
