"""What a client may cost: sizes and times that no user needs to change."""

from __future__ import annotations

HEAD_TIMEOUT = 10.0
"""Seconds from a request's first byte to the end of its head."""

BODY_SILENCE = 30.0
"""Seconds a client may be silent in the middle of its request's body."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds a client of the TLS port may take for its first byte, and its handshake after that."""

HANDSHAKES = 32
"""TLS handshakes begun at a time, each about a millisecond of CPU: those behind them wait, and live streams do not."""

HANDSHAKE_TURN = 0.25
"""Seconds after which a handshake that waits for its client no longer keeps others from beginning theirs."""

LINGER = 2.0
"""Seconds a connection that we close is still read from, so that the client gets to read why."""

CLOSE_TIMEOUT = 5.0
"""Seconds a closing connection may take to send what was written to it; then it is cut."""

PIECE = 16 * 1024
"""Bytes of a document that are written at once: what a client that does not read holds of it in this process."""

UNSENT = 128 * 1024
"""Bytes that the system takes for a client beyond what is on its way to it: by itself Linux takes megabytes, which a client
that does not read would cost, and with 500 of them the loop would be busy for seconds with filling these."""

MAX_UNREAD = 64 * 1024
"""Bytes of a request's body, or of requests behind it, that wait to be taken; then the socket is not read."""

ACCEPTS = 64
"""Connections accepted in one turn of the loop."""

BACKLOG = 4096

FULL_PAUSE = 0.25
"""Seconds before the next attempt to accept when there was no file descriptor for another connection."""

CONTINUE_AFTER = 1.0
"""Seconds after which a client that waits for `100 Continue` gets it from us, when the upstream has not spoken."""

MAX_REMEMBERED = 2048
"""Bytes of a request's fields that are remembered while its connection is idle, because the next request mostly has the same."""

MAX_DROPPED = 64 * 1024
"""Bytes of a body nobody wants that are read all the same, so that its connection can be used again; above, it is closed."""

REQUESTS_AT_ONCE = 32
"""Pipelined requests answered in one turn of the loop."""

MAX_LOOSE = 16 * 1024
"""Bytes of extensions and size lines between two pieces of a chunked body, and of the trailers behind it."""
