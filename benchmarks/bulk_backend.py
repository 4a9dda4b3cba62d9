"""A backend for large bodies: sends as many zeros as it is asked for, and says how many bytes it was sent.

python benchmarks/bulk_backend.py PORT      GET /COUNT; POST with a length or chunked is answered with the count
"""

from __future__ import annotations

import re
import socket
import sys
import threading

PIECE = memoryview(bytes(1 << 18))


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def serve(connection: socket.socket) -> None:
    """Answer until the other side hangs up. Requests are not pipelined."""
    with connection:
        rest = b""
        while True:
            while b"\r\n\r\n" not in rest:
                piece = connection.recv(65536)
                if not piece:
                    return
                rest += piece
            head, _, rest = rest.partition(b"\r\n\r\n")
            if head.startswith(b"GET "):
                send(connection, int(head.split(b" ", 2)[1].rpartition(b"/")[2] or b"0"))
            else:
                count = receive(connection, head, rest)
                rest = b""
                said = str(count).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))


def send(connection: socket.socket, count: int) -> None:
    """An answer with so many zeros."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    connection.sendall(f"{head}Content-Length: {count}\r\n\r\n".encode())
    while count:
        piece = PIECE[:count]
        connection.sendall(piece)
        count -= len(piece)


def receive(connection: socket.socket, head: bytes, first: bytes) -> int:
    """Take a body of zeros; how many there were. Zeros cannot be mistaken for the end of a chunked body."""
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    buffer = memoryview(bytearray(1 << 18))
    if length:
        count = len(first)
        while count < int(length[1]):
            count += connection.recv_into(buffer) or sys.exit("cut off")
        return count
    count, end = first.count(b"\0"), first[-5:]
    while end != b"0\r\n\r\n":
        size = connection.recv_into(buffer)
        piece = bytes(buffer[:size])
        assert piece, "cut off"
        count += piece.count(b"\0")
        end = (end + piece)[-5:]
    return count


if __name__ == "__main__":
    main(int(sys.argv[1]))
