"""HTTP/1.1 with an upstream over one connection: a request out, its answer in, both at the same time.

Everything happens in the callbacks of the event loop; there is no task, and one timer. A client that sends the whole request
before it reads cannot hand on an answer that comes early, and one that reuses a connection with bytes left over would give
them to the next viewer as an answer; so both are done here, and nothing above reads a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, cast

from ssegate.errors import UpstreamError, UpstreamTimeoutError, UpstreamUnreachableError
from ssegate.upstream.answer import AnswerReader, BrokenAnswerError
from ssegate.upstream.endpoint import probe
from ssegate.upstream.fields import answer_fields, trailer_fields

if TYPE_CHECKING:
    from ssegate.core.headers import Pair
    from ssegate.upstream.errand import Errand

READ_SIZE = 64 * 1024
"""The most of an answer that is handed over at once."""
WRITE_HIGH = 64 * 1024
"""Bytes of a request that may wait to leave; above it `send` says so."""
MAX_INFORMATIONAL = 32
"""Answers before the answer, of one request."""
_MOST_SALVAGED = 256 * 1024


class ClosedUnansweredError(UpstreamError):
    """The upstream closed the connection before the first byte of its answer."""


class Space:
    """Where the bytes of all connections of a pool arrive. One is enough: they are consumed before the next read."""

    __slots__ = ("buffer", "view")

    def __init__(self) -> None:
        self.buffer = bytearray(READ_SIZE)
        self.view = memoryview(self.buffer)


class Connection(asyncio.BufferedProtocol):
    """One connection to an upstream; one errand at a time. It tells the errand's viewer what comes, and the errand how it
    ended.

    Silence is bounded by `patience` seconds, or by the errand's own. It does not count while the request's own body is waited for, while the viewer
    takes nothing, while the answer is of a kind that may be silent, and behind a 101.
    """

    __slots__ = (
        "_errand", "_has_asked_for_room", "_has_ended", "_informational", "_is_body_sent", "_is_full", "_is_held",
        "_is_tunnel", "_limit", "_loop", "_patience", "_reader", "_since", "_space", "_timer", "_transport", "_was_early", "idle_since",
        "requests",
    )  # fmt: skip

    def __init__(self, space: Space, patience: float) -> None:
        self.requests = 0
        """How many were sent over it."""
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._space = space
        self._patience = self._limit = patience
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._errand: Errand | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._informational = 0
        self._is_body_sent = True
        self._is_full = False
        self._has_asked_for_room = False
        self._is_held = False
        self._is_tunnel = False
        self._has_ended = False
        self._was_early = False

    def is_open(self) -> bool:
        """Whether an idle connection can be used: it was not closed meanwhile, and all that was written has left."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()

    # What the errand asks for

    def start(self, errand: Errand, data: bytes, *, is_body_sent: bool) -> None:
        """Send the head of a request, with what there is of its body."""
        assert self._errand is None, "one errand at a time"
        self.requests += 1
        self._errand = errand
        self._limit = errand.patience or self._patience
        self._reader.expect(is_to_head=errand.method == "HEAD")
        self._informational = 0
        self._was_early = self._has_asked_for_room = False
        self._is_body_sent = is_body_sent
        transport = self._transport
        if transport is None or transport.is_closing():
            self._loop.call_soon(self._lose, errand, None)
            return
        transport.write(data)
        if is_body_sent:
            self._count()

    def send(self, pieces: list[bytes]) -> bool:
        """Send of the request's body, framed. False when the errand is to wait: it is told by `make_room`."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return True  # reading tells of it
        # Joined: asyncio's `writelines` never calls `pause_writing` on Python 3.12 and 3.13.
        transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._is_full:
            if not self._has_asked_for_room:
                self._has_asked_for_room = True
                self._count()
            return False
        return True

    def send_end(self) -> None:
        """The request's body is whole: from now on the upstream is the silent one."""
        self._is_body_sent = True
        if not self._is_tunnel:
            self._count()
            return
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if self._has_ended:
                transport.close()
            elif transport.can_write_eof():
                transport.write_eof()
        if self._has_ended or transport is None or not transport.can_write_eof():
            self._count()  # what is left is to be brought to an end, and over TLS the upstream cannot be told

    def hold(self) -> None:
        """Read no more for now."""
        if not self._is_held and self._transport is not None and not self._transport.is_closing():
            self._is_held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._is_held:
            self._is_held = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
            self._count()

    def abort(self) -> None:
        """Close at once, dropping what is buffered; nobody is told. May be called twice."""
        self._errand = None
        self._stop_counting()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close at once, and tell the errand."""
        errand, self._errand = self._errand, None
        self.abort()
        if errand is not None and self._has_ended:
            errand.close_tunnel()
        elif errand is not None:
            errand.lose(UpstreamUnreachableError(f"{errand.label}: the gate has closed its connections"))

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        probe(self._transport.get_extra_info("socket"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space.view

    def buffer_updated(self, nbytes: int) -> None:
        errand = self._errand
        if errand is None:
            self.abort()  # nobody has asked for anything
            return
        self._since = self._loop.time()
        if self._is_tunnel:
            errand.viewer.receive_data(bytes(self._space.view[:nbytes]))
            return
        try:
            self._read(errand, nbytes)
        except BrokenAnswerError as broken:
            self._fail(errand, str(broken))
        if self._errand is errand:
            errand.viewer.flush()

    def eof_received(self) -> bool:
        """Returns whether to keep the other direction open."""
        errand = self._errand
        if errand is None:
            return False
        if self._is_tunnel:
            return self._end_tunnel(errand)
        self._meet_end(errand)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._errand is not None and not self._is_tunnel:
            self._salvage()
        self._transport = None
        self._stop_counting()
        errand = self._errand
        if errand is not None:
            self._lose(errand, exc)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._has_asked_for_room:
            self._has_asked_for_room = False
            if self._errand is not None:
                self._errand.make_room()

    # Reading

    def _read(self, errand: Errand, end: int) -> None:
        reader, space, position = self._reader, self._space, 0
        while not reader.has_head:
            position = reader.read_head(space.buffer, space.view, position, end)
            if not reader.has_head:
                return
            if not self._tell_head(errand, position, end):
                return
        if position < end and not reader.is_complete:
            data = reader.read_body(space.view[position:end])
            if data:
                errand.viewer.receive_data(data)
            if self._errand is not errand:
                return
            if reader.fault is not None:
                raise BrokenAnswerError(reader.fault)
        elif position < end:
            reader.has_surplus = True
        if reader.is_complete:
            self._finish(errand)

    def _tell_head(self, errand: Errand, position: int, end: int) -> bool:
        """Returns whether to go on reading."""
        reader = self._reader
        status = reader.status
        fields = answer_fields(status, reader.fields, reader.names)
        if status >= 200:
            # Who answers before the request was whole often closes without reading the rest of it.
            self._was_early = not self._is_body_sent
            errand.viewer.receive_head(status, fields)
        elif status == 101:
            self._switch(errand, fields, position, end)
            return False
        else:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise BrokenAnswerError("its answer does not come to its head")
            reader.expect(is_to_head=errand.method == "HEAD")
            errand.viewer.receive_informational(status, fields)
        return self._errand is errand

    def _finish(self, errand: Errand) -> None:
        """The answer is whole. The connection may be given to another errand before this returns."""
        reader = self._reader
        trailers: tuple[Pair, ...] = trailer_fields(reader.trailers) if reader.trailers else ()
        is_clean = (
            reader.is_persistent
            and self._is_body_sent
            and not (reader.has_surplus or self._was_early or self._is_tunnel)
            and self.is_open()
        )
        if self._is_held:
            self.go_on()
        self._errand = None
        errand.finish(trailers, is_clean=is_clean)

    def _fail(self, errand: Errand, fact: str) -> None:
        self._errand = None
        errand.lose(UpstreamError(f"{errand.label}: {fact}"))

    def _meet_end(self, errand: Errand) -> None:
        """The upstream sends no more: the end of an answer that has no other, or a cut."""
        reader = self._reader
        if reader.ends_with_connection:
            reader.is_persistent = False
            self._finish(errand)
        elif reader.has_begun or self._informational:
            self._fail(errand, reader.cut_fact())
        else:
            self._errand = None
            errand.lose(ClosedUnansweredError(f"{errand.label}: closed the connection without an answer"))

    def _lose(self, errand: Errand, error: Exception | None) -> None:
        """The connection is no more."""
        if self._errand is not errand:
            return
        if self._is_tunnel:
            self._errand = None
            if not self._has_ended:
                errand.end_tunnel(None if error is None else self._broken(errand, error))
            errand.close_tunnel()
        elif error is None:
            self._meet_end(errand)
        else:
            self._errand = None
            errand.lose(self._broken(errand, error))

    def _broken(self, errand: Errand, cause: Exception) -> UpstreamError:
        if self._reader.has_begun or self._informational:
            error = UpstreamError(f"{errand.label}: the connection broke in its answer")
        else:
            error = ClosedUnansweredError(f"{errand.label}: the connection broke before an answer")
        error.__cause__ = cause
        return error

    def _salvage(self) -> None:
        """Take what had come when writing met a reset: often the answer that explains it, such as an early 413.

        The transport gives up without reading it. With TLS what is left cannot be read past the transport.
        """
        assert self._transport is not None, "it was made before it is lost"
        if self._transport.get_extra_info("sslcontext") is not None:
            return
        taken = 0
        with contextlib.suppress(OSError):
            number = self._transport.get_extra_info("socket").fileno()
            while self._errand is not None and taken < _MOST_SALVAGED and (data := os.read(number, READ_SIZE)):
                taken += len(data)
                self._space.view[: len(data)] = data
                self.buffer_updated(len(data))

    # Behind a 101

    def _switch(self, errand: Errand, fields: tuple[Pair, ...], position: int, end: int) -> None:
        """All that follows is bytes of another protocol."""
        reader = self._reader
        chosen = [value for (_, value), name in zip(reader.fields, reader.names, strict=True) if name == b"upgrade"]
        if errand.upgrade is None or [value.lower() for value in chosen] != [errand.upgrade.lower()]:
            raise BrokenAnswerError("switched to a protocol nobody asked for, in the head of its answer")
        if not self._is_body_sent:
            raise BrokenAnswerError("switched protocols before the request was whole")
        self._is_tunnel = True
        self._is_body_sent = False
        early = bytes(self._space.view[position:end])
        errand.viewer.receive_head(101, (*fields, (b"Connection", b"Upgrade"), (b"Upgrade", chosen[0])))
        if early and self._errand is errand:
            errand.viewer.receive_data(early)
        if self._errand is errand:
            errand.open_tunnel()

    def _end_tunnel(self, errand: Errand) -> bool:
        """The upstream sends no more, but it may still read. Over TLS there is no such half."""
        assert self._transport is not None, "it was made before it ends"
        is_over = self._is_body_sent or not self._transport.can_write_eof()
        self._has_ended = True
        errand.viewer.receive_end(())
        if is_over and self._errand is errand:
            self._count()
        return not is_over

    # Silence

    def _is_counting(self) -> bool:
        if self._errand is None or self._is_held:
            return False
        if self._is_tunnel:
            return self._is_body_sent
        if not (self._is_body_sent or self._has_asked_for_room):
            return False
        return not (self._reader.has_head and self._errand.may_be_silent(self._reader.fields))

    def _count(self) -> None:
        """From now on silence counts. The timer that runs may be too early; it looks again then."""
        self._since = now = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._limit, self._on_time)

    def _stop_counting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        errand, now = self._errand, self._loop.time()
        if errand is None or not self._is_counting():
            return
        due = self._since + self._limit
        if errand.deadline is not None and errand.deadline <= now:
            self._expire(errand, errand.late_fact)
        elif due <= now:
            self._expire(errand, self._silence())
        else:
            due = due if errand.deadline is None else min(due, errand.deadline)
            self._timer = self._loop.call_at(due, self._on_time)

    def _expire(self, errand: Errand, fact: str) -> None:
        self._errand = None
        if self._has_ended:
            errand.close_tunnel()
        else:
            errand.lose(UpstreamTimeoutError(f"{errand.label}: {fact}"))

    def _silence(self) -> str:
        where = "its answer stopped for" if self._reader.has_begun else "no answer in"
        return f"{where} {self._limit:g} s"
