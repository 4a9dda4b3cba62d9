"""Everything this package raises on purpose, named by whose fault it is and what can be done.

SsegateError
├── ConfigError      the configuration is wrong; carries every problem found, with file, line and column
├── UpstreamError    the API did not answer as HTTP should; retried, never fatal
│   ├── UpstreamUnreachableError   no connection (refused, unknown name, TLS)
│   ├── UpstreamTimeoutError       connected, then silent for too long
│   ├── UndecodableError           the body is not what the route says it is
│   └── OversizeError              the state is larger than `limits.event_size`
├── RejectedError    a request we refuse; carries the status to answer
└── BrokerError      a publish did not happen
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SsegateError(Exception):
    """The root of the tree; never raised itself."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration file, and where."""

    file: str
    """The file's name as the user gave it."""
    line: int
    """Counted from 1; 0 when the problem is the file as a whole."""
    column: int
    """Counted from 1, in characters."""
    code: str
    """A short stable name: `unknown-key`, `duration`, `route-conflict` …"""
    where: str
    """The path to the key, `routes[0].poll.every`; empty for the file as a whole."""
    message: str
    """The fact and the mend, one line."""
    length: int = 1
    """How many characters the caret underlines."""
    hint: str = ""
    """What stands beside the caret, such as "did you mean `every`?"; empty is none."""


class ConfigError(SsegateError):
    """The configuration is wrong; `problems` has all that was found, in the file's order, never empty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{first.file}:{first.line}:{first.column}: {first.message}{more}")


class UpstreamError(SsegateError):
    """The upstream did not answer as HTTP should. The message names no secret and no query string."""


class UpstreamUnreachableError(UpstreamError):
    """No connection came about: refused, unknown name, TLS failed, or none of the pool became free."""


class UpstreamTimeoutError(UpstreamError):
    """The upstream was connected and then silent for longer than its `timeout.read`."""


class UndecodableError(UpstreamError):
    """The body is not what the route says it is: not JSON, or no list where `items` wants one. The message quotes no data."""


class OversizeError(UpstreamError):
    """The state, or a body that is still being read, is larger than `limits.event_size`."""


class RejectedError(SsegateError):
    """A request we refuse. The message may be shown to whoever sent it, so it tells no secret."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class BrokerError(SsegateError):
    """A publish did not happen; the update is not stored and reached nobody."""
