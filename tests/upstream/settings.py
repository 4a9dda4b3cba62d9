"""An upstream's settings as the configuration makes them, with short timeouts."""

from __future__ import annotations

from typing import Any

from ssegate.config.model import Upstream


def settings(url: str, *, connect: float = 1.0, read: float = 0.2, **others: Any) -> Upstream:
    """`others` as they stand in the YAML."""
    timeout = {"connect": f"{round(connect * 1000)}ms", "read": f"{round(read * 1000)}ms"}
    return Upstream.model_validate({"url": url, "timeout": timeout, **others})
