"""A guard that asks the backend who somebody is; the contract of nginx' `auth_request` and Traefik's `forwardAuth`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from urllib.parse import urlsplit

from ssegate.auth.guard import Down, Granted, Guard, Question, Refused, Verdict, digest
from ssegate.config.auth import Forward, HeaderClaims
from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.core.claims import identity_of
from ssegate.core.document import decode
from ssegate.core.headers import Headers, Pair
from ssegate.core.principal import Principal
from ssegate.errors import UndecodableError, UpstreamError
from ssegate.upstream import FetchAnswer, Upstream
from ssegate.upstream.forwarded import told_of

log = logging.getLogger(__name__)

MAX_ANSWER = 256 * 1024
"""Bytes of a guard's answer."""

MOST_KNOWN = 20_000
"""Answers that are remembered."""

RECHECKS_AT_ONCE = 25
"""Half of the connections are for those who are new."""

_PASSED_ON = ("content-type", "content-language", "www-authenticate", "retry-after")
"""Of a refusal. No cookies: those who ask with the same credential get the same answer."""


class ForwardGuard:
    """Lets in whom the backend knows."""

    challenge = b"Cookie"
    sells_tickets = True

    def __init__(self, name: str, settings: Forward) -> None:
        self.name = name
        self._settings = settings
        parts = urlsplit(settings.url)
        self._upstream = Upstream(name, UpstreamSettings(url=f"{parts.scheme}://{parts.netloc}"))
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._label = self._upstream.address.label("GET", self._path.encode())
        self._known: OrderedDict[bytes, tuple[Granted, float]] = OrderedDict()
        """A yes, and until when it holds by the monotonic clock."""
        self._asking: dict[bytes, asyncio.Task[Verdict]] = {}
        self._doubts = 0  # how often something that was known turned out to be wrong
        self._rechecks = asyncio.Semaphore(RECHECKS_AT_ONCE)
        self._is_down = False
        self.outcomes: dict[str, int] = {}
        """Answers by status, and `failed` for none."""

    @property
    def recheck(self) -> float:
        """See `Guard`."""
        return self._settings.recheck

    def begin(self) -> None:
        """See `Guard`."""

    def recognises(self, headers: Headers) -> bool:
        """See `Guard`."""
        return any(name in headers for name in self._settings.send)

    def judge(self, question: Question, wall: float) -> Verdict | Awaitable[Verdict]:
        """See `Guard`. Whoever asks with one credential at the same time gets the same answer."""
        sent = self._sent(question.headers)
        key = self._key(sent, question)
        known = self._known.get(key)
        if known is not None:
            if time.monotonic() < known[1]:
                self._known.move_to_end(key)
                return known[0]
            del self._known[key]
        return self._join(key, sent, question)

    def _sent(self, headers: Headers) -> tuple[Pair, ...]:
        names = self._settings.send
        return tuple((name.encode(), value.encode("latin-1")) for name in names for value in headers.all(name))

    def _key(self, sent: tuple[Pair, ...], question: Question) -> bytes:
        """What the answer depends on: the credential; where it is asked for each stream, also what for."""
        asked = () if self._settings.cache else (question.method.encode("latin-1"), question.uri)
        return digest(self.name, (question.headers.get("host") or "").encode("latin-1"), self._credential(sent), *asked)

    def _credential(self, sent: tuple[Pair, ...]) -> bytes:
        return digest(self.name, *(part for pair in sent for part in pair))

    async def _join(self, key: bytes, sent: tuple[Pair, ...], question: Question) -> Verdict:
        task = self._asking.get(key)
        if task is None:
            told = told_of(question.request, question.trusted)
            told += (
                (b"X-Forwarded-Method", question.method.encode("latin-1")),
                (b"X-Forwarded-Uri", question.uri),
            )
            asking = self._ask(key, self._credential(sent), (*sent, *told))
            task = asyncio.get_running_loop().create_task(asking)
            self._asking[key] = task
            task.add_done_callback(partial(self._asked, key))
        await asyncio.wait((task,))  # whoever leaves takes nobody's answer along
        return Down("the gate is closing") if task.cancelled() else task.result()

    def _asked(self, key: bytes, task: asyncio.Task[Verdict]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]

    async def _ask(self, key: bytes, credential: bytes, headers: tuple[Pair, ...]) -> Verdict:
        doubts = self._doubts
        try:
            answer = await self._upstream.fetch(
                self._path, headers, reads_refusals=True, follows=False, max_body=MAX_ANSWER
            )
        except UpstreamError as error:
            self._count("failed")
            return self._note(Down(str(error)))
        self._count(str(answer.status))
        verdict = self._note(self._read(key, credential, headers, answer))
        if isinstance(verdict, Granted) and self._settings.cache and doubts == self._doubts:
            self._remember(verdict)
        return verdict

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _read(self, key: bytes, credential: bytes, headers: tuple[Pair, ...], answer: FetchAnswer) -> Verdict:
        if answer.status in (401, 403):
            passed = tuple(
                (name.encode(), value.encode("latin-1")) for name in _PASSED_ON for value in answer.headers.all(name)
            )
            reason = f"the guard answered {answer.status}"
            return Refused(answer.status, reason, answer.status == 401, passed, answer.body)
        if not 200 <= answer.status < 300:
            return Down(f"{self._label}: answered {answer.status}, wanted 2xx, 401 or 403")
        name = self._settings.identity
        identity = None if name is None else self._identity(answer.headers.all(name))
        if name is not None and identity is None:
            return Down(f"{self._label}: answered {answer.status} without `{name}`, which would say who it is")
        claims = self._claims(answer)
        if claims is None:
            return Down(f"{self._label}: answered {answer.status} without a JSON object, wanted claims")
        again = partial(self._ask_again, key, credential, headers)
        return Granted(Principal(self.name, key, identity, claims, credential=credential), again)

    def _remember(self, granted: Granted) -> None:
        self._known[granted.principal.key] = (granted, time.monotonic() + self._settings.cache)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _identity(self, values: list[str]) -> str | None:
        if len(values) != 1:
            return None
        return identity_of(_text(values[0]))

    def _claims(self, answer: FetchAnswer) -> Mapping[str, object] | None:
        claims = self._settings.claims
        if claims is None:
            return {}
        if isinstance(claims, HeaderClaims):
            return {name: _text(value) for name in claims.headers if (value := answer.headers.get(name)) is not None}
        try:
            document = decode(answer.body)
        except UndecodableError:
            return None
        return document if isinstance(document, dict) else None

    async def _ask_again(self, key: bytes, credential: bytes, headers: tuple[Pair, ...]) -> Verdict:
        async with self._rechecks:
            verdict = await self._ask(key, credential, headers)
        if not isinstance(verdict, Granted):
            self._known.pop(key, None)
            self.doubt()
        return verdict

    def _note(self, verdict: Verdict) -> Verdict:
        """Say once that it is down, and once that it is back."""
        if isinstance(verdict, Down) != self._is_down:
            self._is_down = isinstance(verdict, Down)
            if isinstance(verdict, Down):
                log.warning(
                    "guard %s: %s; nobody new is let in by it, and who is in is asked about again",
                    self.name,
                    verdict.reason,
                )
            else:
                log.info("guard %s: it answers again", self.name)
        return verdict

    def still_knows(self, principal: Principal, wall: float) -> None:
        """See `Guard`. It has to be asked, with a credential that is not kept."""

    def known_as(self, identity: str) -> Sequence[bytes]:
        """See `Guard`."""
        known = (granted.principal for granted, _ in self._known.values())
        return [principal.shown for principal in known if principal.identity == identity]

    def doubt(self) -> None:
        """See `Guard`."""
        self._doubts += 1
        self._asking.clear()

    def give_way(self, successor: Guard) -> None:
        """See `Guard`; they have nothing in common."""

    async def aclose(self) -> None:
        """See `Guard`."""
        for task in self._asking.values():
            task.cancel()
        await self._upstream.aclose()


def _text(value: str) -> str:
    """A header's value as text: UTF-8 where it is that."""
    raw = value.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return value
