"""Who was not let in lately, and why: what an operator needs to find out what is wrong with a credential. No credential is in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

MOST = 200
"""How many are kept."""

_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Denial:
    """One request that was refused."""

    at: float
    """The time of day, in seconds."""
    status: int
    path: str
    """Without the query."""
    guard: str
    """Which guard decided; empty where none did."""
    reason: str
    address: str
    """Where the viewer is."""
    identity: str | None = None
    """Who it was, where that was found out."""

    def shown(self) -> dict[str, object]:
        """As JSON has it, without what there is not."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts: dict[str, object] = {
            "at": at,
            "status": self.status,
            "path": self.path[:_LONGEST],
            "guard": self.guard or None,
            "reason": self.reason,
            "address": self.address or None,
            "identity": self.identity,
        }
        return {name: value for name, value in facts.items() if value is not None}


class Denials:
    """A ring of them."""

    def __init__(self) -> None:
        self._ring: deque[Denial] = deque(maxlen=MOST)
        self.counts: dict[tuple[str, int], int] = {}
        """Since the start, by guard and status."""

    def add(self, denial: Denial) -> None:
        """Note one."""
        self._ring.append(denial)
        key = (denial.guard, denial.status)
        self.counts[key] = self.counts.get(key, 0) + 1

    def __iter__(self) -> Iterator[Denial]:
        """The newest first."""
        return reversed(self._ring)
