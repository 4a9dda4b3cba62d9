"""A guard that knows some API keys."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

from ssegate.auth.guard import Granted, Guard, Question, Refused, digest
from ssegate.config.auth import ApiKeys
from ssegate.core.headers import Headers
from ssegate.core.principal import Principal
from ssegate.core.signature import bearer_of, key_of


class ApiKeyGuard:
    """Lets in who shows one of the keys."""

    recheck = None
    challenge = b"ApiKey"
    sells_tickets = True

    def __init__(self, name: str, settings: ApiKeys) -> None:
        self.name = name
        self.outcomes: Mapping[str, int] = {}
        self._header = settings.header
        self._known: list[tuple[bytes, str]] = [
            (digest(name, key_of(secret.get_secret_value())), identity)
            for identity, secrets in settings.values.items()
            for secret in secrets
        ]

    def begin(self) -> None:
        """See `Guard`."""

    def recognises(self, headers: Headers) -> bool:
        """See `Guard`."""
        return bool(self._shown(headers))

    def judge(self, question: Question, wall: float) -> Granted | Refused:
        """See `Guard`."""
        shown = self._shown(question.headers)
        if not shown:
            return Refused(401, f"there is no key in `{self._header}`", is_stranger=True)
        key = digest(self.name, shown)
        identity = self._find(key)
        if identity is None:
            return Refused(401, f"the key in `{self._header}` is none of the guard's", is_stranger=True)
        return Granted(Principal(self.name, key, identity, proof=key))

    def _shown(self, headers: Headers) -> bytes:
        if self._header == "authorization":
            return bearer_of(headers.get("authorization"))
        return (headers.get(self._header) or "").strip(" \t").encode("latin-1")

    def _find(self, key: bytes) -> str | None:
        """Whose key it is. All are compared, in constant time: the time does not tell which one was near, or whether one was."""
        found = None
        for known, identity in self._known:
            if hmac.compare_digest(known, key):
                found = identity
        return found

    def still_knows(self, principal: Principal, wall: float) -> bool:
        """See `Guard`."""
        return self._find(principal.proof) == principal.identity

    def known_as(self, identity: str) -> Sequence[bytes]:
        """See `Guard`."""
        return [key for key, name in self._known if name == identity]

    def doubt(self) -> None:
        """See `Guard`; nobody is asked."""

    def give_way(self, successor: Guard) -> None:
        """See `Guard`; they have nothing in common."""

    async def aclose(self) -> None:
        """See `Guard`."""
