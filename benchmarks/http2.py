"""The client's half of HTTP/2, as little as it takes to open streams, check their status and then only count bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import hpack

MARKER = b"~~"
"""What deliveries are recognised by; no frame's head can hold it."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
WIDEST = 2**31 - 1
FIRST_WINDOW = 65535


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def hello() -> bytes:
    """Preface, and windows so wide that the client never has to open them again."""
    settings = (2).to_bytes(2, "big") + (0).to_bytes(4, "big")  # no push
    settings += (4).to_bytes(2, "big") + WIDEST.to_bytes(4, "big")
    window = (WIDEST - FIRST_WINDOW).to_bytes(4, "big")
    return PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)


class Opening:
    """One connection while its streams are being opened."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._pseudo = [(":method", "GET"), (":scheme", scheme), (":authority", authority)]
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._buffer = b""
        self._next = 1
        self.waiting: set[int] = set()
        """Streams that were asked for and have not been answered."""
        self.found: Counter[int] = Counter()
        """How often `MARKER` was seen in the data of each stream."""

    def request(self, path: str) -> bytes:
        """The frame that asks for one more stream."""
        stream, self._next = self._next, self._next + 2
        self.waiting.add(stream)
        block = self._encoder.encode([*self._pseudo, (":path", path), ("accept", "text/event-stream")])
        return frame(HEADERS, END_STREAM | END_HEADERS, stream, block)

    def receive(self, data: bytes) -> bytes:
        """Take bytes; what to send back. Raises `AssertionError` if a stream is refused or not answered 200."""
        back = b""
        self._buffer += data
        for kind, flags, stream, payload in self._frames():
            if kind == SETTINGS and not flags & ACK:
                back += frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                back += frame(PING, ACK, 0, payload)
            elif kind == HEADERS and stream in self.waiting:
                self._check(stream, flags, payload)
            elif kind == DATA:
                self.found[stream] += payload.count(MARKER)
            assert kind not in (RST_STREAM, GOAWAY), f"frame {kind} on stream {stream}: {payload!r}"
        return back

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._buffer) >= 9:
            head, size = self._buffer[:9], int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            yield head[3], head[4], int.from_bytes(head[5:], "big") & WIDEST, payload

    def _check(self, stream: int, flags: int, block: bytes) -> None:
        assert flags & END_HEADERS, "a response head in several frames"
        if flags & PADDED:
            block = block[1 : len(block) - block[0]]
        if flags & PRIORITY:
            block = block[5:]
        headers = dict(self._decoder.decode(block))
        assert headers[":status"] == "200", headers
        assert headers["content-type"].startswith("text/event-stream"), headers
        self.waiting.discard(stream)
