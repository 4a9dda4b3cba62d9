"""How one connection ends, whatever its client does in that moment."""

from __future__ import annotations

import asyncio
import socket
import struct

from ssegate.edge.exchange import Answer
from ssegate.edge.native.server import NativeServer


def test_a_connection_that_was_just_reset_is_finished_without_an_error() -> None:
    async def test() -> None:
        server = NativeServer(lambda request: Answer(204))
        port = await server.start("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        client = socket.socket()
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: gate.test\r\n\r\n")
        await loop.sock_recv(client, 1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        (connection,) = server._edge.connections
        connection.finish()  # the loop has not been told of the reset yet
        await server.aclose(5.0)
        assert not server._edge.connections

    asyncio.run(test())
