"""An upstream's WebSocket as a coroutine reads it: message after message (RFC 6455, by `websockets`)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import DATA_OPCODES, Close, Frame, Opcode
from websockets.uri import parse_uri

from ssegate.core.headers import Pair
from ssegate.errors import OversizeError, UpstreamError
from ssegate.upstream.intake import Intake

if TYPE_CHECKING:
    from ssegate.upstream.upstream import Upstream

_IN_ORDER = frozenset({1000, 1001, 1005})
"""Codes of a close that is no failure: done, going away, none given."""

_TOO_BIG = 1009
_NO_CLOSE = Close(1006, "")


class WebSocketIntake(Intake):
    """Each piece is one message: a text as UTF-8, a binary one in base64. Empty ones are left out; pings are answered."""

    def __init__(self, label: str, max_size: int) -> None:
        """`label` is what messages call it; `max_size` in bytes of one message."""
        super().__init__()
        self._label = label
        # Of the address only the handshake is made, and that goes by `Upstream.open`.
        self._protocol = ClientProtocol(parse_uri("ws://upstream/"), max_size=max_size)
        self._is_binary = False
        self._parts: list[bytes] = []

    @classmethod
    def open(
        cls, upstream: Upstream, path: str | bytes, headers: Sequence[Pair], *, with_auth: bool, max_size: int
    ) -> WebSocketIntake:
        """Ask for a WebSocket at this path; see `Upstream.open`. The head's status is 101 when there is one."""
        label = upstream.address.label("GET", path if isinstance(path, bytes) else path.encode())
        intake = cls(label, max_size)
        asked = intake._protocol.connect()
        intake._protocol.send_request(asked)
        intake._protocol.data_to_send()  # it is the upstream's connection that sends it
        own = [
            (name.encode(), value.encode())
            for name, value in asked.headers.raw_items()
            if name.startswith("Sec-WebSocket-")
        ]
        intake.relaying = upstream.open(path, (*headers, *own), intake, with_auth=with_auth, upgrade=b"websocket")
        return intake

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None:
        """See `relay.Viewer`."""
        if status != 101:
            super().receive_head(status, headers)
            return
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        self._protocol.receive_data(b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % lines)
        self._protocol.events_received()
        if isinstance(self._protocol.handshake_exc, InvalidHandshake):
            self.fail(UpstreamError(f"{self._label}: its WebSocket handshake is wrong"))
            self.cancel()
            return
        super().receive_head(status, headers)

    def receive_data(self, data: bytes) -> None:
        """See `relay.Viewer`."""
        if self.head is not None and self.head.status != 101:
            super().receive_data(data)
            return
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._receive_frame(event)
        self._reply()
        if protocol.close_rcvd is not None or protocol.parser_exc is not None:
            self._close()

    def _reply(self) -> None:
        for data in self._protocol.data_to_send():
            if data and self.relaying is not None:
                self.relaying.send(data)

    def _receive_frame(self, frame: Frame) -> None:
        if frame.opcode not in DATA_OPCODES:
            return
        if frame.opcode is not Opcode.CONT:
            self._is_binary = frame.opcode is Opcode.BINARY
        self._parts.append(bytes(frame.data))
        if frame.fin:
            message, self._parts = b"".join(self._parts), []
            if message:
                super().receive_data(base64.b64encode(message) if self._is_binary else message)

    def _close(self) -> None:
        """The upstream has said that it is over, or something that is no WebSocket."""
        received, sent = self._protocol.close_rcvd, self._protocol.close_sent
        code = (received or sent or _NO_CLOSE).code
        if sent is not None and sent.code == _TOO_BIG:
            self.fail(OversizeError(f"{self._label}: a message is too large"))
        elif code in _IN_ORDER:
            super().receive_end(())
        else:
            self.fail(UpstreamError(f"{self._label}: the WebSocket was closed with code {code}"))
        self.cancel()

    def receive_end(self, trailers: tuple[Pair, ...]) -> None:
        """See `relay.Viewer`."""
        if self.head is not None and self.head.status == 101:
            self.fail(UpstreamError(f"{self._label}: the WebSocket broke off"))
            self.cancel()
        else:
            super().receive_end(trailers)
