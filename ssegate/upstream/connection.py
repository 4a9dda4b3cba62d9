"""HTTP/1.1 with an upstream over one connection: a request out, its answer in, both at the same time.

h11 reads and writes the protocol. A client that sends the whole request before it reads cannot hand on an answer that
comes early, and a client that reuses a connection with bytes left over would give them to the next viewer as an answer;
so both are done here, and nothing above knows h11.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field

import h11

from ssegate.core.headers import Headers, Pair
from ssegate.errors import UpstreamError, UpstreamTimeoutError
from ssegate.upstream.line import Endpoint, Line, open_line

MAX_HEAD = 100 * 1024
"""Bytes of an answer's head, and of a chunk's first line."""


class ClosedUnansweredError(UpstreamError):
    """The upstream closed the connection before the first byte of its answer."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes over the wire."""

    label: str
    """What messages call it: method and URL, without query and userinfo."""
    method: bytes
    target: bytes = field(repr=False)
    headers: Sequence[Pair] = field(repr=False)
    """Complete: with Host, and with Content-Length or `Transfer-Encoding: chunked` exactly when there is a body."""
    body: AsyncIterable[bytes] | None = None
    """It may still be read after the head of the answer has come. What it raises is raised to whoever reads the answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: Headers


class Connection:
    """One connection to an upstream; one request at a time. Whoever holds it calls `abort` or puts it back.

    Silence is bounded by the `patience` of a request, in seconds. While the request's own body is waited for, the
    upstream is not the silent one and nothing is counted.
    """

    __slots__ = (
        "_failure", "_first_piece", "_http", "_is_ambiguous", "_is_answered", "_is_complete", "_is_waiting_for_body",
        "_label", "_line", "_sending", "_timer", "_was_early", "body_was_read", "idle_since", "patience", "requests",
    )  # fmt: skip

    def __init__(self, line: Line) -> None:
        self.requests = 0
        """How many were sent over it."""
        self.idle_since = 0.0
        self.patience: float | None = None
        """The longest silence in seconds, None is any; may be changed once the head has come."""
        self.body_was_read = False
        """Whether the request's body was begun: then the request cannot be repeated."""
        self._line = line
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._label = ""
        self._sending: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._timer: asyncio.Timeout | None = None
        self._is_waiting_for_body = False
        self._is_answered = False
        self._is_ambiguous = False
        self._was_early = False
        self._is_complete = True
        self._first_piece = b""

    @classmethod
    async def open(cls, endpoint: Endpoint, timeout: float, label: str) -> Connection:
        """Connect within `timeout` seconds. Raises `UpstreamUnreachableError`."""
        return cls(await open_line(endpoint, timeout, label))

    @property
    def is_open(self) -> bool:
        """Whether an idle connection can be used: it was not closed meanwhile, and nothing came that nobody asked for."""
        return self._line.is_silent

    def make_reusable(self) -> bool:
        """Get ready for another request; false when this one was not sent and answered whole, or something is left over."""
        http = self._http
        both_done = http.our_state is h11.DONE and http.their_state is h11.DONE
        surplus, _ = http.trailing_data
        is_doubtful = self._is_ambiguous or self._was_early
        if is_doubtful or not (self._is_complete and both_done and not surplus and self._line.is_silent):
            return False
        http.start_next_cycle()
        return True

    def abort(self) -> None:
        """Close at once, and stop sending. May be called twice."""
        if self._sending is not None:
            self._sending.cancel()
        self._line.abort()

    # Sending

    async def request(self, outgoing: Outgoing, patience: float) -> Head:
        """Send, and return when the head of the answer has come, which may be before the body was sent.

        Raises `UpstreamTimeoutError`, `ClosedUnansweredError`, `UpstreamError`, and what the body raises. After an
        exception, a cancellation too, the connection is only good to be aborted.
        """
        self.requests += 1
        self.patience = patience
        self.body_was_read = self._is_answered = self._is_complete = self._is_ambiguous = self._was_early = False
        self._label = outgoing.label
        self._sending, self._failure, self._first_piece = None, None, b""
        self._send_head(outgoing)
        if outgoing.body is not None:
            self._sending = asyncio.create_task(self._send_body(outgoing.body))
        head = await self._read_head()
        self._look_ahead()
        return head

    def _send_head(self, outgoing: Outgoing) -> None:
        try:
            data = self._http.send(
                h11.Request(method=outgoing.method, target=outgoing.target, headers=list(outgoing.headers))
            )
            if outgoing.body is None:
                data += self._http.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            # h11 quotes what it refuses, which may be a secret, so its message goes no further.
            raise UpstreamError(f"{outgoing.label}: the request has a header or a target HTTP/1.1 cannot say") from None
        self._line.write(data)

    async def _send_body(self, body: AsyncIterable[bytes]) -> None:
        """The task beside the reading. It ends the line when it fails, so that the reader wakes and tells."""
        try:
            self._wait_for_body(True)
            self.body_was_read = True
            async for piece in body:
                self._wait_for_body(False)
                self._line.write(self._http.send(h11.Data(data=piece)))
                await self._line.drain()
                self._wait_for_body(True)
            self._line.write(self._http.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            self._fail(UpstreamError(f"{self._label}: the request's body is not as long as its content-length"))
        except Exception as error:
            self._fail(error)
        finally:
            self._wait_for_body(False)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._line.abort()

    # Reading

    async def read_body(self) -> bytes:
        """The next piece of the answer's body, raw; empty at its end.

        Raises `UpstreamTimeoutError`, `UpstreamError` when it is cut or not framed as it says, and what the request's
        body raises.
        """
        if self._first_piece:
            piece, self._first_piece = self._first_piece, b""
            return piece
        while not self._is_complete:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            self._is_complete = isinstance(event, h11.EndOfMessage)
        return b""

    async def _read_head(self) -> Head:
        """Informational answers before it (100, 103) are passed over."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                # Who answers before the request was whole often closes without reading the rest of it.
                self._was_early = self._http.our_state is not h11.DONE
                names = {name for name, _ in event.headers}
                # "ought to be handled as an error" (RFC 9112, 6.3): what comes after such an answer is anyone's guess.
                self._is_ambiguous = b"transfer-encoding" in names and b"content-length" in names
                return Head(event.status_code, Headers(event.headers.raw_items()))

    def _look_ahead(self) -> None:
        """Take what came with the head, so that an answer without a body is complete at once."""
        event = self._parse()
        if isinstance(event, h11.Data):
            self._first_piece = bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            self._is_complete = True

    async def _next_event(self) -> object:
        while (event := self._parse()) is h11.NEED_DATA:
            data = await self._read()
            if not data and not self._is_answered:
                raise ClosedUnansweredError(f"{self._label}: closed the connection without an answer")
            self._is_answered = True
            self._http.receive_data(data)
        return event

    def _parse(self) -> object:
        """The next event of the answer, or `NEED_DATA`."""
        state = self._http.their_state
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            is_large = error.error_status_hint == 431
            fact = _broken_head(is_large) if state is h11.SEND_RESPONSE else "its answer's body was cut or is malformed"
        # h11 quotes the line it refuses, which may be a Set-Cookie, so its exception goes no further.
        raise UpstreamError(f"{self._label}: {fact}")

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(None) as self._timer:
                self._rearm()
                data = await self._line.read()
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"{self._label}: {self._silence()}") from error
        except OSError as error:
            self._raise_failure()
            if not self._is_answered:
                raise ClosedUnansweredError(f"{self._label}: the connection broke before an answer") from error
            raise UpstreamError(f"{self._label}: the connection broke in its answer") from error
        finally:
            self._timer = None
        if not data:
            self._raise_failure()
        return data

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _silence(self) -> str:
        where = "its answer stopped for" if self._is_answered else "no answer in"
        return f"{where} {self.patience:g} s"

    # Whose silence it is

    def _wait_for_body(self, is_waiting: bool) -> None:
        self._is_waiting_for_body = is_waiting
        self._rearm()

    def _rearm(self) -> None:
        """Count the silence from now, or not at all."""
        if self._timer is None or self._timer.expired():
            return
        is_counted = self.patience is not None and not self._is_waiting_for_body
        self._timer.reschedule(asyncio.get_running_loop().time() + (self.patience or 0.0) if is_counted else None)


def _broken_head(is_large: bool) -> str:
    return (
        f"the head of its answer is over {MAX_HEAD // 1024} KiB"
        if is_large
        else "the head of its answer is cut or is not HTTP/1.1"
    )
