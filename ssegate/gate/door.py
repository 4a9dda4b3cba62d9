"""Who is let in: a route's guards are asked in turn, `allow` is looked at, and whoever is turned down is noted with the reason."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace

from ssegate.admin.denials import Denial, Denials
from ssegate.auth.guard import Granted, Guard, Question, Refused, Verdict
from ssegate.config.model import Route
from ssegate.core.follow import is_true
from ssegate.core.headers import Headers, Pair
from ssegate.core.principal import Principal
from ssegate.core.revocation import Revocations
from ssegate.core.tickets import Ticket, TicketOffice
from ssegate.edge.exchange import Answer, problem
from ssegate.errors import UndecodableError

log = logging.getLogger(__name__)

TICKET_FIELD = "ticket"
"""The query parameter that carries a ticket."""

TICKET_MARK = "sst_"
"""What tickets begin with, so that one that strays can be told from a backend's own."""

_CREDENTIAL = re.compile(rf"(?<![\w-])(?:eyJ[\w-]{{8,}}(?:\.[\w-]*){{1,2}}|{TICKET_MARK}[\w-]{{8,}})")
"""What stands in the wrong place when it stands in a path: a JWT, or a ticket."""

_NO_CREDENTIAL = "a credential is needed, and there is none, or it is not good any more"
_NOT_ALLOWED = "this is not for you"


@dataclass(frozen=True, slots=True)
class Asked:
    """Where somebody wants in."""

    path: str
    """Of the request, for the log."""
    address: str
    shared: tuple[Pair, ...]
    """Headers that go into whatever is answered."""


@dataclass(frozen=True, slots=True)
class Sold:
    """What a ticket stands for."""

    granted: Granted
    guard: Guard | None
    """Who sold it: the configuration may have another of this name when it is used."""


class Door:
    """Lets viewers in, or not."""

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        self.guards = guards
        """By name; replaced with the configuration."""
        self.revocations = Revocations()
        self.tickets: TicketOffice[Sold] = TicketOffice()
        self.denials = Denials()

    # Guards

    def judge(self, names: Sequence[str], question: Question) -> Verdict | Awaitable[Verdict]:
        """Ask these guards, in turn, who it is. Awaited only where somebody else has to be asked."""
        guards = [self.guards[name] for name in names]
        if len(guards) > 1:
            guards = [guard for guard in guards if guard.recognises(question.headers)]
        return _Round(guards, question, names, self).ask()

    def checked(self, verdict: Verdict) -> Verdict:
        """What a guard said, unless that has been revoked here."""
        if isinstance(verdict, Granted) and self.revocations.covers(verdict.principal):
            return Refused(401, "the credential has been revoked", is_stranger=False)
        return verdict

    # Tickets

    def sell(self, path: str, granted: Granted) -> str:
        """A ticket for the stream at this path."""
        text = TICKET_MARK + secrets.token_urlsafe(24)
        principal = granted.principal
        guard = self.guards.get(principal.guard)
        self.tickets.sell(text, path, Sold(granted, guard), principal.key, time.monotonic())
        return text

    def take(
        self, text: str, path: str, cursor: str | None, names: Sequence[str]
    ) -> tuple[Ticket[Sold] | None, Verdict]:
        """Let somebody in by a ticket that one of these guards has sold; it is open until it is put back or left."""
        ticket = self.tickets.take(text, path, cursor, time.monotonic())
        if isinstance(ticket, str):
            return None, Refused(401, ticket)
        verdict = self._of_ticket(ticket.right, names)
        if not isinstance(verdict, Granted):
            ticket.put_back()
            return None, verdict
        return ticket, verdict

    def _of_ticket(self, sold: Sold, names: Sequence[str]) -> Verdict:
        principal = sold.granted.principal
        guard = self.guards.get(principal.guard)
        if principal.guard not in names or guard is None:
            return Refused(401, "the ticket was sold by a guard that the route does not have")
        if guard is not sold.guard and not guard.still_knows(principal, time.time()):
            return Refused(401, "the ticket was sold before the guard was changed, which does not know its buyer now")
        return self.has_ended(sold.granted) or sold.granted

    def has_ended(self, granted: Granted) -> Refused | None:
        """Why a right that was granted a while ago is good no more; None when it is, as far as is known."""
        expires = granted.principal.expires
        if expires is not None and time.time() >= expires:
            return Refused(401, "the credential has expired")
        checked = self.checked(granted)
        return checked if isinstance(checked, Refused) else None

    # What a route itself says

    def allows(
        self,
        route: Route,
        principal: Principal | None,
        params: Mapping[str, str],
        query: Mapping[str, str],
        headers: Headers,
    ) -> str:
        """Why `allow` keeps this viewer out, for the operator; empty when it does not."""
        if route.allow is None:
            return ""
        facts = {
            "params": dict(params),
            "query": dict(query),
            "claims": {} if principal is None else dict(principal.claims),
            "identity": None if principal is None else principal.identity,
            "headers": {
                name.decode("latin-1"): value.decode("latin-1")
                for name, (_, value) in zip(headers.names, headers.raw, strict=True)
            },
        }
        try:
            return "" if is_true(route.allow(facts)) else "`allow` is not true"
        except UndecodableError as error:
            return f"`allow`: {error}"

    # Refusals

    def refuse(
        self, refused: Refused, names: Sequence[str], asked: Asked, principal: Principal | None = None
    ) -> Answer:
        """Answer somebody who is not let in, and note why."""
        self.note(refused, names, asked, principal)
        return self.answer_refused(refused, names, asked)

    def answer_refused(self, refused: Refused, names: Sequence[str], asked: Asked) -> Answer:
        """What somebody is told who is not let in: nothing of why."""
        if refused.body is not None:
            headers = refused.headers
            if refused.status == 401 and not any(name.lower() == b"www-authenticate" for name, _ in headers):
                headers = (*headers, *self._challenges(names))
            return Answer(refused.status, (*headers, _UNCACHED, *asked.shared), refused.body)
        if refused.status == 403:
            return problem(403, _NOT_ALLOWED, (_UNCACHED, *asked.shared))
        return problem(refused.status, _NO_CREDENTIAL, (*self._challenges(names), _UNCACHED, *asked.shared))

    def note(self, refused: Refused, names: Sequence[str], asked: Asked, principal: Principal | None = None) -> None:
        """Note that somebody was not let in."""
        guard = names[0] if len(names) == 1 else ", ".join(names)
        path = _CREDENTIAL.sub("***", asked.path)
        if principal is not None and principal.guard:
            guard = principal.guard
        identity = None if principal is None else principal.identity
        self.denials.add(Denial(time.time(), refused.status, path, guard, refused.reason, asked.address, identity))
        log.info(
            "%d for %s from %s: guard %s: %s",
            refused.status,
            path,
            asked.address or "-",
            guard or "-",
            refused.reason,
        )

    def _challenges(self, names: Sequence[str]) -> list[Pair]:
        """How somebody may prove who it is, once each (RFC 9110, 11.6.1)."""
        known = dict.fromkeys(self.guards[name].challenge for name in names if name in self.guards)
        return [(b"www-authenticate", challenge) for challenge in known]

    # Revocation

    def revoke(self, identity: str, further: Sequence[bytes]) -> None:
        """What this viewer has shown until now is good no more. `further`: credentials that are in use."""
        known = [key for guard in self.guards.values() for key in guard.known_as(identity)]
        sold = [ticket.right.granted.principal for ticket in self.tickets]
        known += [principal.shown for principal in sold if principal.identity == identity]
        self.revocations.revoke(identity, (*known, *further), time.time())
        for guard in self.guards.values():
            guard.doubt()


_UNCACHED: Pair = (b"cache-control", b"no-store")


class _Round:
    """One question, put to several guards in turn: who does not know the viewer leaves it to the next."""

    __slots__ = ("_door", "_guards", "_names", "_question", "_said")

    def __init__(self, guards: Sequence[Guard], question: Question, names: Sequence[str], door: Door) -> None:
        """`names` are those of all that might have been asked."""
        self._guards = iter(guards)
        self._question = question
        self._names = names
        self._door = door
        self._said: Refused | None = None  # by those who have left it to others

    def ask(self) -> Verdict | Awaitable[Verdict]:
        """Go on with the next guard."""
        for guard in self._guards:
            judged = guard.judge(self._question, time.time())
            if isinstance(judged, Awaitable):
                return self._ask_on(guard, judged)
            if (verdict := self._hear(guard, judged)) is not None:
                return verdict
        return self._said or Refused(401, f"there is no credential for {' or '.join(self._names)}")

    async def _ask_on(self, guard: Guard, judged: Awaitable[Verdict]) -> Verdict:
        revocations = self._door.revocations
        number = revocations.number
        answer = await judged
        if isinstance(answer, Granted):
            revocations.catch_up(answer.principal, number)
        verdict = self._hear(guard, answer)
        if verdict is not None:
            return verdict
        following = self.ask()
        return await following if isinstance(following, Awaitable) else following

    def _hear(self, guard: Guard, judged: Verdict) -> Verdict | None:
        """What it decides; None when it leaves it to others. What a backend says of that is what the viewer is told."""
        verdict = self._door.checked(judged)
        if not (isinstance(verdict, Refused) and verdict.is_stranger):
            return verdict
        reason = f"{guard.name}: {verdict.reason}" if len(self._names) > 1 else verdict.reason
        before = self._said
        if before is None:
            self._said = replace(verdict, reason=reason)
        else:
            told = before if before.body is not None else verdict
            self._said = replace(told, reason=f"{before.reason}; {reason}")
        return None
