"""What a guard is asked, and what it may say. Read this file first."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from ssegate.core.headers import Headers, Pair
from ssegate.core.principal import Principal
from ssegate.upstream.forwarded import Networks
from ssegate.upstream.relay import Passable


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks for what."""

    request: Passable
    """What has the credential."""
    method: str
    """Of the request that is guarded."""
    uri: bytes
    """Its target, without what is nobody's business: a ticket."""
    trusted: Networks = ()
    """Proxies whose word counts for where a request comes from."""

    @property
    def headers(self) -> Headers:
        """The request's."""
        return self.request.headers


@dataclass(frozen=True, slots=True)
class Granted:
    """Yes, and who it is."""

    principal: Principal
    again: Callable[[], Awaitable[Verdict]] | None = None
    """Asks once more, past what is remembered, whether that is still so; None where only time, or the configuration, changes it."""
    number: int = field(default_factory=count().__next__, compare=False)
    """Of two the larger is the later."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No."""

    status: int
    """401 or 403."""
    reason: str
    """For the operator, never for the viewer; no credential is in it."""
    is_stranger: bool = False
    """Whether there was nothing that this guard knows: another one may know the viewer."""
    headers: tuple[Pair, ...] = ()
    """Of the backend's own answer, where that is passed on."""
    body: bytes | None = None
    """The backend's own words; None where there are none."""


@dataclass(frozen=True, slots=True)
class Down:
    """The guard cannot say at the moment: nobody new is let in, and who is in is not put out yet."""

    reason: str
    """For the operator."""


Verdict = Granted | Refused | Down


class Guard(Protocol):
    """One way to find out who a viewer is."""

    name: str

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Questions to somebody else, by the answer's status, and `failed` for none."""
        ...

    def begin(self) -> None:
        """It will be asked soon: have at hand what that takes."""
        ...

    @property
    def recheck(self) -> float | None:
        """Seconds between two questions about a stream that is open; None: it is never asked again."""
        ...

    @property
    def challenge(self) -> bytes:
        """The `WWW-Authenticate` of a 401 (RFC 9110, 11.6.1)."""
        ...

    @property
    def sells_tickets(self) -> bool:
        """Whether whom it lets in may have a ticket."""
        ...

    def recognises(self, headers: Headers) -> bool:
        """Whether there is anything of the kind it looks at."""
        ...

    def judge(self, question: Question, wall: float) -> Verdict | Awaitable[Verdict]:
        """Say who it is; `wall` is the time of day. Awaited only where somebody has to be asked. Never raises."""
        ...

    def still_knows(self, principal: Principal, wall: float) -> bool | None:
        """Whether somebody whom a guard of this name has let in, under another configuration, would still be; None: only by asking
        anew, with the credential."""
        ...

    def known_as(self, identity: str) -> Sequence[bytes]:
        """Digests of the credentials that are known to be this viewer's."""
        ...

    def doubt(self) -> None:
        """What is being asked at this moment may be answered as of before: remember nothing of it, and let nobody else wait for it."""
        ...

    def give_way(self, successor: Guard) -> None:
        """Another configuration has a guard of this name in its place: what both use is the other's to close."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and questions under way."""
        ...


def digest(name: str, *parts: bytes) -> bytes:
    """By what a credential is remembered: never by itself."""
    hashed = hashlib.sha256(name.encode())
    for part in parts:
        hashed.update(b"\n%d\n%b" % (len(part), part))
    return hashed.digest()
