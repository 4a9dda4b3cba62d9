"""How often somebody may come: so many times a second, and as many at once."""

from __future__ import annotations

MOST = 100_000
"""How many are remembered; those who have been quiet give way."""


class Rates:
    """What each has used up, by name."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        """When each would have all it may have again."""

    def allow(self, name: str, rate: float, now: float) -> bool:
        """Count one more, and say whether that is not too often. `rate` in times a second; `now`: monotonic, seconds."""
        burst = max(1.0, rate)
        full_at = max(self._full_at.get(name, now), now)
        if full_at - now > (burst - 1) / rate + 1e-9:
            return False
        if len(self._full_at) >= MOST:
            self._forget(now)
        self._full_at[name] = full_at + 1 / rate
        return True

    def _forget(self, now: float) -> None:
        self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        if len(self._full_at) >= MOST:
            self._full_at.clear()  # a hundred thousand addresses at once: no one of them is too fast
