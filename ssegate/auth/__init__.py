"""Who may subscribe: guards, each with its own way to find out who a viewer is."""

from __future__ import annotations

from ssegate.auth.forward import ForwardGuard
from ssegate.auth.guard import Guard
from ssegate.auth.keys import ApiKeyGuard
from ssegate.config.auth import Guard as Settings


def make_guard(name: str, settings: Settings, before: Guard | None = None, *, is_same: bool = False) -> Guard:
    """The guard that these settings describe. `before` is the one with this name in the configuration before, `is_same` if its
    settings are the same: it is kept then, and what it knows with it. Raises `config.keyset.KeyFault` for a file without keys."""
    if settings.jwt is not None:
        from ssegate.auth.signed import make_signed  # PyJWT is an extra

        return make_signed(name, settings.jwt, before, is_same=is_same)
    if before is not None and is_same:
        return before
    if settings.forward is not None:
        return ForwardGuard(name, settings.forward)
    assert settings.keys is not None, "the configuration knows three kinds of guards"
    return ApiKeyGuard(name, settings.keys)
