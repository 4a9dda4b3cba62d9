"""One request from its first byte to the last of its answer: it waits for a connection, is sent, and once repeated if need be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssegate.errors import UpstreamError
from ssegate.upstream.connection import WRITE_HIGH, ClosedUnansweredError, Connection
from ssegate.upstream.fields import CHUNKED, UnsayableError, last_chunk

if TYPE_CHECKING:
    from ssegate.core.headers import Pair
    from ssegate.upstream.address import Address
    from ssegate.upstream.pool import Pool
    from ssegate.upstream.relay import Viewer

_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods that do no more when they are done twice (RFC 9110, 9.2.2)."""

_OPEN_ENDED = frozenset(
    {
        b"text/event-stream",
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/json-seq",
        b"application/stream+json",
        b"multipart/x-mixed-replace",
    }
)
"""Media types of bodies that may be silent for as long as they like."""

_JOINED = 16 * 1024
"""Up to this size a piece is copied into one write with its framing; above, it is handed over beside it."""


class Errand:
    """The `relay.Relaying` of one request. `begin` it; the viewer is told what comes, never before that has returned."""

    # What few errands change is said once, for all: there are tens of thousands of them in a second.
    upgrade: bytes | None = None
    """The protocol that a 101 may switch to."""
    deadline: float | None = None
    """When, by the loop's clock, the answer must be whole."""
    late_fact = ""
    """What to say when it is not."""
    patience: float | None = None
    """Seconds of silence that are borne, where they are others than the pool's."""
    is_endless = False
    """Whether the answer, once it has begun, may be silent for as long as it likes, whatever its type."""
    is_repeated = False
    _connection: Connection | None = None
    _unsent: Sequence[bytes] = ()
    """Of the body what came before there was a connection, or a tunnel."""
    _unsent_size = 0
    _is_body_begun = False
    _is_over = False
    _is_paused = False
    _is_told_to_wait = False
    _is_tunnel = False

    def __init__(
        self,
        pool: Pool,
        viewer: Viewer,
        address: Address,
        method: str,
        target: bytes,
        head: bytes,
        framing: int,
        is_ended: bool,
    ) -> None:
        """`is_ended`: there is no body to come. `framing`: see `fields.framing_of`."""
        self.viewer = viewer
        self.method = method
        self._pool = pool
        self._address = address
        self._target = target
        self._head = head
        self._framing = self._remaining = framing
        self._is_ended = is_ended

    @property
    def label(self) -> str:
        """What messages call it: method and URL, without query and userinfo."""
        return self._address.label(self.method, self._target)

    def begin(self) -> None:
        """Send it over an idle connection at once, or over the next there is."""
        if self._is_ended and self._framing > 0:
            self._fail_soon(self._wrong_length())
        else:
            self._pool.ask(self)

    def fail_soon(self, fact: str) -> None:
        """Do not begin it at all."""
        self._fail_soon(UpstreamError(f"{self.label}: {fact}"))

    # relay.Relaying

    def send(self, data: bytes) -> bool:
        if self._is_over or not data:
            return True
        if self._is_ended:
            return True if self._is_tunnel or self.upgrade is None else self._keep([data])
        if self._is_tunnel:
            pieces = [data]
        elif self._framing == CHUNKED:
            pieces = _chunk(data)
        else:
            self._remaining -= len(data)
            if self._remaining < 0:
                self._break_off(self._wrong_length())
                return True
            pieces = [data]
        if self._connection is None:
            return self._keep(pieces)
        self._is_body_begun = True
        if not self._connection.send(pieces):
            self._is_told_to_wait = True
        return not self._is_told_to_wait

    def send_end(self, trailers: tuple[Pair, ...] = ()) -> None:
        if self._is_over or self._is_ended:
            return
        self._is_ended = True
        if self._framing > 0 and self._remaining and not self._is_tunnel:
            self._break_off(self._wrong_length())
        elif self._is_tunnel or self._framing != CHUNKED:
            self._send_rest([])
        else:
            self._send_last_chunk(trailers)

    def pause(self) -> None:
        self._is_paused = True
        if self._connection is not None:
            self._connection.hold()

    def resume(self) -> None:
        self._is_paused = False
        if self._connection is not None:
            self._connection.go_on()

    def cancel(self) -> None:
        if not self._is_over:
            self._end()
            self._let_go()

    # Sending

    def _send_last_chunk(self, trailers: tuple[Pair, ...]) -> None:
        try:
            end = last_chunk(trailers)
        except UnsayableError:
            self._break_off(UpstreamError(f"{self.label}: the request has a trailer HTTP/1.1 cannot say"))
        else:
            self._send_rest([end])

    def _send_rest(self, pieces: list[bytes]) -> None:
        if self._connection is None:
            self._keep(pieces)
            return
        self._is_body_begun = True
        if pieces:
            self._connection.send(pieces)
        self._connection.send_end()

    def _keep(self, pieces: list[bytes]) -> bool:
        self._unsent = (*self._unsent, *pieces)
        self._unsent_size += sum(map(len, pieces))
        self._is_told_to_wait = self._unsent_size >= WRITE_HIGH
        return not self._is_told_to_wait

    def _take_unsent(self) -> bytes:
        pieces, self._unsent, self._unsent_size = self._unsent, (), 0
        return b"".join(pieces)

    def _wrong_length(self) -> UpstreamError:
        return UpstreamError(f"{self.label}: the request's body is not as long as its content-length")

    def _break_off(self, error: UpstreamError) -> None:
        """Never a whole request: the connection is closed. The viewer is told when it has returned from its own call."""
        self._let_go()
        self._fail_soon(error)

    def _fail_soon(self, error: UpstreamError) -> None:
        asyncio.get_running_loop().call_soon(self.fail, error)

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            self._pool.leave(self)
        else:
            self._pool.release(connection, is_clean=False)

    def _end(self) -> Viewer:
        """Let go of the viewer, who may still have to be told of the end; both know each other, and would wait to be collected."""
        self._is_over = True
        viewer, self.viewer = self.viewer, _NOBODY
        self._unsent = ()
        return viewer

    # What the pool and the connection tell

    def take(self, connection: Connection) -> None:
        """The connection is this errand's; it goes back to the pool with the end."""
        self._connection = connection
        if self._is_paused:
            connection.hold()
        data = self._head
        if self._unsent and self.upgrade is None:
            self._is_body_begun = True
            data += self._take_unsent()
        connection.start(self, data, is_body_sent=self._is_ended)
        if self._is_told_to_wait:
            self.make_room()

    def make_room(self) -> None:
        """There is room for more of the body."""
        if self._is_told_to_wait:
            self._is_told_to_wait = False
            self.viewer.resume_sending()

    def may_be_silent(self, fields: list[Pair]) -> bool:
        """Whether an answer with this head may be silent for as long as it likes."""
        if self.deadline is not None or self.is_endless:
            return self.is_endless
        for name, value in fields:
            if name.lower() == b"content-type":
                return value.partition(b";")[0].strip().lower() in _OPEN_ENDED
        return False

    def finish(self, trailers: tuple[Pair, ...], *, is_clean: bool) -> None:
        """The answer is whole."""
        connection, self._connection = self._connection, None
        assert connection is not None, "an answer comes over a connection"
        viewer = self._end()
        # Before the viewer is told: the next request of its connection finds this one idle.
        self._pool.release(connection, is_clean=is_clean)
        viewer.receive_end(trailers)

    def lose(self, error: UpstreamError) -> None:
        """The answer is cut, or none came.

        A kept connection that the upstream closed just as it was used again is nobody's fault: the request is repeated
        once, over a new one, if doing it twice does no harm and nothing of its body was sent.
        """
        connection = self._connection
        assert connection is not None, "an answer is lost with a connection"
        is_kept = connection.requests > 1
        self._let_go()
        is_harmless = self.method in _REPEATABLE and not self._is_body_begun
        if isinstance(error, ClosedUnansweredError) and is_kept and is_harmless and not self.is_repeated:
            self.is_repeated = True
            self._pool.ask(self)
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self._is_over:
            self._end().fail(error)

    # Behind a 101

    def open_tunnel(self) -> None:
        """From now on what is sent goes as it is."""
        self._is_tunnel, self._is_ended = True, False
        assert self._connection is not None, "a tunnel is a connection"
        if self._unsent and self._connection.send([self._take_unsent()]):
            self.make_room()

    def end_tunnel(self, error: UpstreamError | None) -> None:
        """The connection ended without a word, or broke."""
        if error is None:
            self.viewer.receive_end(())
        else:
            self.fail(error)

    def close_tunnel(self) -> None:
        """Both directions are over."""
        if not self._is_over:
            self._end()
        if self._connection is not None:
            self._let_go()


class _Nobody:
    """The viewer of an errand that is over."""

    def receive_informational(self, status: int, headers: tuple[Pair, ...]) -> None: ...

    def receive_head(self, status: int, headers: tuple[Pair, ...]) -> None: ...

    def receive_data(self, data: bytes) -> None: ...

    def receive_end(self, trailers: tuple[Pair, ...]) -> None: ...

    def flush(self) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def resume_sending(self) -> None: ...


_NOBODY = _Nobody()


def _chunk(data: bytes) -> list[bytes]:
    if len(data) <= _JOINED:
        return [b"%x\r\n%b\r\n" % (len(data), data)]
    return [b"%x\r\n" % len(data), data, b"\r\n"]
