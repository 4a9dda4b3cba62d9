"""HTTP/2 by h2, completed for servers: what is wrong with one stream ends that stream alone, and floods end the connection.

h2 4.4 takes the whole connection down for a length that does not match, a malformed head or one stream too many, and with
it every other viewer behind the same proxy; and it answers any number of frames that cost their sender nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, PriorityFrame, RstStreamFrame, SettingsFrame

FLOOD_BURST = 400
"""Frames that ask for work and give none which a client may send at once: a browser that closes resets all its streams."""

FLOOD_RATE = 50.0
"""Such frames a second that are nothing unusual."""

_NO_WORK = (PingFrame, PriorityFrame, RstStreamFrame, SettingsFrame)


class FloodError(h2.exceptions.ProtocolError):
    """The client sends more frames without purpose than anybody needs (RFC 9113, 10.5)."""

    error_code = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


class ServerConnection(h2.connection.H2Connection):
    """The server's side of one connection. Streams it resets by itself are told as `StreamReset`, like the client's own."""

    def __init__(
        self, *, max_streams: int, max_header_list: int, clock: Callable[[], float], takes_connect: bool = False
    ) -> None:
        """`max_header_list` in bytes; `clock` gives seconds that only grow; `takes_connect`: clients are told that CONNECT
        may name a protocol (RFC 8441).
        """
        super().__init__(h2.config.H2Configuration(client_side=False, header_encoding=None))
        values = {SettingCodes.MAX_CONCURRENT_STREAMS: max_streams, SettingCodes.MAX_HEADER_LIST_SIZE: max_header_list}
        if takes_connect:
            values[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        self.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self._max_streams = max_streams
        self._clock = clock
        self._calm = float(FLOOD_BURST)
        self._calmed_at = clock()

    @property
    def open_inbound_streams(self) -> int:
        """None, as far as h2 needs to know: it would end the connection. `_receive_frame` counts and refuses."""
        return 0

    def refuse_rest(self, stream_id: int) -> None:
        """After a whole response, when the client still sends: "without error", so that it does not take it for a failure."""
        stream = self.streams.get(stream_id)
        if stream is not None and stream.state_machine.state is h2.stream.StreamState.HALF_CLOSED_LOCAL:
            self.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)

    def _receive_frame(self, frame: Frame) -> list[h2.events.Event]:
        if isinstance(frame, _NO_WORK) or _is_empty(frame):
            self._count()
        is_new = isinstance(frame, HeadersFrame) and frame.stream_id not in self.streams
        try:
            events = super()._receive_frame(frame)
        except h2.exceptions.ProtocolError as error:
            if not self._is_of_one_stream(frame, error, is_new):
                raise
            return self._end_stream(frame, h2.errors.ErrorCodes.PROTOCOL_ERROR)
        if is_new and super().open_inbound_streams > self._max_streams:
            return self._end_stream(frame, h2.errors.ErrorCodes.REFUSED_STREAM)
        return events

    def _is_of_one_stream(self, frame: Frame, error: Exception, is_new: bool) -> bool:
        """A head is decompressed before its stream is made: if the stream is there, the compression is in step."""
        if is_new:
            return frame.stream_id in self.streams
        return isinstance(frame, DataFrame) and isinstance(error, h2.exceptions.InvalidBodyLengthError)

    def _end_stream(self, frame: Frame, code: h2.errors.ErrorCodes) -> list[h2.events.Event]:
        self._count()
        if isinstance(frame, DataFrame) and frame.flow_controlled_length:
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
        self.reset_stream(frame.stream_id, code)
        return [h2.events.StreamReset(stream_id=frame.stream_id, error_code=code, remote_reset=False)]

    def _count(self) -> None:
        now = self._clock()
        self._calm = min(FLOOD_BURST, self._calm + (now - self._calmed_at) * FLOOD_RATE) - 1.0
        self._calmed_at = now
        if self._calm < 0:
            raise FloodError("too many frames without purpose")


def _is_empty(frame: Frame) -> bool:
    return isinstance(frame, DataFrame) and not frame.data and "END_STREAM" not in frame.flags
