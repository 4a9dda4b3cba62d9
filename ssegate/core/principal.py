"""Who a viewer has been found to be: by which guard, under which name, with which claims, and until when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ssegate.core.markup import plain

IDENTITY = "identity"
CLAIMS = "claims."
"""How templates and `match` name what is known of the viewer: `identity`, and `claims.` with a dotted name behind it."""


def is_of_viewer(name: str) -> bool:
    """Whether a name stands for something that is known of the viewer, and not of the request."""
    return name == IDENTITY or name.startswith(CLAIMS)


@dataclass(frozen=True, slots=True)
class Principal:
    """A viewer whom a guard has let in. Nothing of the credential is in it, but a digest."""

    guard: str
    """The guard's name."""
    key: bytes
    """By what a verdict is remembered: a digest of the credential, and of whatever else it depends on."""
    identity: str | None = None
    """None where the guard names nobody."""
    claims: Mapping[str, object] = field(default_factory=dict)
    expires: float | None = None
    """When the credential expires, as the time of day in seconds; None when it does not, or when that ends nothing."""
    issued: float | None = None
    """When it was issued, as the time of day; None where that is not said."""
    proof: bytes = b""
    """By what it was found good, a digest: it stands as long as the guard still knows that. Empty where it is asked again."""
    credential: bytes = b""
    """A digest of the credential alone; empty where that is `key`."""

    @property
    def shown(self) -> bytes:
        """A digest of what the viewer has shown."""
        return self.credential or self.key

    def value(self, name: str) -> str | None:
        """What `identity` or `claims.x` stands for, as text; None when there is no such thing, or it is no plain value."""
        if name == IDENTITY:
            return self.identity or None
        return plain(self.claims, name.removeprefix(CLAIMS)) or None

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Those of these names that stand for something known of the viewer, with their values.

        Raises `LookupError`, which names it, when one has none: of what is left out of a query a backend would show all.
        """
        found = {}
        for name in names:
            if is_of_viewer(name):
                value = self.value(name)
                if value is None:
                    raise LookupError(f"the credential has no `{name}`")
                found[name] = value
        return found
