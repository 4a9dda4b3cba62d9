"""Backends that say who somebody is, and issuers that publish their keys: honest, slow, broken or away, as a test wants."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

from tests.ports import free_port
from tests.tokens import Issuer, jwks
from tests.upstream.scripted import Asked, Call, Pair, ScriptedUpstream, answer

PATIENCE = 10.0
"""Seconds after which a test that waits for a request has failed."""

JSON: Pair = (b"Content-Type", b"application/json")


class Guard(ScriptedUpstream):
    """A server at a port of its own, which can be taken away and brought back."""

    def __init__(self, handler: Callable[[Call], Awaitable[None]], port: int = 0) -> None:
        # Not one that the system gives: while the server is away, that could be given to somebody else.
        super().__init__(handler, port=port or free_port())

    async def go_down(self) -> None:
        """From now on the port refuses; what was open is cut. What a handler raised before is raised here."""
        await self.__aexit__(None, None, None)

    async def come_back(self) -> None:
        """Listen again, at the same port."""
        await self.__aenter__()

    async def wait_for(self, fact: Callable[[], bool], what: str) -> None:
        """Wait until something is true of its requests or connections."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.until(lambda _: fact())
        except TimeoutError:
            raise AssertionError(f"the guard waits for {what}; it was asked {len(self.requests)} times") from None


# Forward auth


Plan = Callable[["WhoAmI", Call], Awaitable[None]]
"""How one request is answered."""


class WhoAmI(Guard):
    """`async with WhoAmI() as who: who.sessions["s1"] = "ada"`: asked at `who.url`, with the cookie `session=s1` or the bearer token `s1`.

    Yes is 200 with `X-User-Id` and the identity's claims in JSON; no is 401. All that it was asked is in `requests`.
    """

    COOKIE = "session"
    IDENTITY = "X-User-Id"
    PATH = "/internal/whoami"

    def __init__(self, sessions: Mapping[str, str] | None = None, *, port: int = 0) -> None:
        super().__init__(self._answer, port)
        self.sessions: dict[str, str] = dict(sessions or {})
        """Identities, by the value of the cookie or the token. Taking one out is a logout."""
        self.claims: dict[str, dict[str, object]] = {}
        """What else is said of an identity, in the body."""
        self.headers: dict[str, list[Pair]] = {}
        """Further headers of the answer, by identity."""
        self._plans: deque[Plan] = deque()
        self._usual: Plan = says_who
        self._held: asyncio.Event | None = None
        self._unanswered = 0
        self.most_at_once = 0
        """How many requests there ever were that had no answer yet."""

    @property
    def url(self) -> str:
        """What goes behind `forward: {url: …}`."""
        return super().url + self.PATH

    # What a test arranges

    def plan(self, *plans: Plan) -> None:
        """Answer the next requests so, one each; then as usual."""
        self._plans.extend(plans)

    def usually(self, plan: Plan) -> None:
        """Answer so what has no plan of its own; `says_who` is what it does by itself."""
        self._usual = plan

    def hold(self) -> asyncio.Event:
        """Answer nothing until the event that is returned is set. What comes after that is answered at once again."""
        self._held = asyncio.Event()
        return self._held

    # What a test looks at

    def credential(self, asked: Asked) -> str | None:
        """The session or token of a request; the token counts where both are there. None when neither is."""
        if bearer := re.fullmatch(r"(?i)bearer +(\S+)", asked.get("authorization") or ""):
            return bearer[1]
        cookies = (pair.strip().partition("=") for pair in (asked.get("cookie") or "").split(";"))
        return next((value for name, _, value in cookies if name == self.COOKIE), None)

    def asked_for(self, credential: str | None) -> list[Asked]:
        """The requests with this session or token so far."""
        return [asked for asked in self.requests if self.credential(asked) == credential]

    async def until_asked(self, count: int = 1, credential: str | None = None) -> Asked:
        """Wait until it has been asked so often in all, or for this session or token; the last of those requests."""

        def found() -> list[Asked]:
            return self.requests if credential is None else self.asked_for(credential)

        await self.wait_for(lambda: len(found()) >= count, f"{count} requests")
        return found()[count - 1]

    async def until_asked_again(self, times: int = 1) -> Asked:
        """Wait for this many further requests; the last of them."""
        return await self.until_asked(len(self.requests) + times)

    async def _answer(self, call: Call) -> None:
        self._unanswered += 1
        self.most_at_once = max(self.most_at_once, self._unanswered)
        try:
            plan = self._plans.popleft() if self._plans else self._usual
            if self._held is not None:
                await self._held.wait()
            await plan(self, call)
        finally:
            self._unanswered -= 1


async def says_who(who: WhoAmI, call: Call) -> None:
    """Yes to whom it knows at this moment, else 401."""
    identity = who.sessions.get(who.credential(call.asked) or "")
    if identity is None:
        await refuses(401, (b"WWW-Authenticate", b"Bearer"))(who, call)
    else:
        await knows(identity, *who.headers.get(identity, ()), claims=who.claims.get(identity, {}))(who, call)


def knows(identity: str | bytes, *headers: Pair, claims: object = None, status: int = 200) -> Plan:
    """Yes, and it is this one, whoever asks."""
    name = identity.encode() if isinstance(identity, str) else identity
    return replies(json.dumps(claims or {}).encode(), (WhoAmI.IDENTITY.encode(), name), JSON, *headers, status=status)


def nameless(claims: object = None, *, status: int = 200) -> Plan:
    """Yes, without the header that says who it is."""
    return replies(json.dumps(claims or {}).encode(), JSON, status=status)


def refuses(status: int, *headers: Pair, body: bytes = b'{"error":"who are you"}') -> Plan:
    """No, or any other status; with a 5xx it is a guard that is down."""
    return replies(body, JSON, *headers, status=status)


def redirects(location: str, status: int = 302) -> Plan:
    """What a login page does to those it does not know."""
    return replies(b"", (b"Location", location.encode()), status=status)


def replies(body: bytes, *headers: Pair, status: int = 200) -> Plan:
    """A whole answer."""
    has_body = status not in (204, 304)
    made = answer(body, *headers, status=status) if has_body else bare(status, headers)
    return sends(made)


def bare(status: int, headers: Iterable[Pair]) -> bytes:
    """An answer of a status that has no body."""
    return b"HTTP/1.1 %d Scripted\r\n%b\r\n" % (status, b"".join(b"%b: %b\r\n" % pair for pair in headers))


def sends(data: bytes) -> Plan:
    """These bytes, head and all."""

    async def plan(_: WhoAmI, call: Call) -> None:
        await call.send(data)

    return plan


def held(event: asyncio.Event, then: Plan = says_who) -> Plan:
    """The answer comes when the event is set."""

    async def plan(who: WhoAmI, call: Call) -> None:
        await event.wait()
        await then(who, call)

    return plan


async def hangs(_: WhoAmI, call: Call) -> None:
    """No answer, until the other side has given up."""
    await call.closed()


async def closes(_: WhoAmI, call: Call) -> None:
    """The connection ends without an answer."""
    call.close()


async def resets(_: WhoAmI, call: Call) -> None:
    """The same, with RST."""
    call.reset()


async def cuts(_: WhoAmI, call: Call) -> None:
    """A yes that breaks off in its body."""
    await call.send(answer(b'{"groups":', (WhoAmI.IDENTITY.encode(), b"ada"), JSON, length=100))
    call.close()


async def cuts_in_the_head(_: WhoAmI, call: Call) -> None:
    """A yes that breaks off before its headers are whole."""
    await call.send(b"HTTP/1.1 200 OK\r\nX-User-Id: ada\r\nContent-Le")
    call.close()


# Published keys


class JwksServer(Guard):
    """`async with JwksServer(issuer) as keys:` the issuers' keys, published at `keys.url`."""

    PATH = "/.well-known/jwks.json"

    def __init__(self, *issuers: Issuer, port: int = 0) -> None:
        super().__init__(self._answer, port)
        self._held: asyncio.Event | None = None
        self._make: Callable[[Asked], bytes]
        self._ends = False
        self.publish(*issuers)

    @property
    def url(self) -> str:
        """What goes behind `keys:`."""
        return super().url + self.PATH

    # What a test arranges

    def publish(self, *issuers: Issuer, headers: Iterable[Pair] = ()) -> None:
        """Publish these issuers' keys from now on, with such headers as `(b"Cache-Control", b"max-age=60")`."""
        self.serve(jwks(*issuers), *headers)

    def serve(self, body: bytes, *headers: Pair, status: int = 200) -> None:
        """Answer with this body from now on, keys or not. With an `ETag` among the headers who knows it is told 304."""
        tag = next((value for name, value in headers if name.lower() == b"etag"), None)
        whole, same = answer(body, JSON, *headers, status=status), bare(304, headers)

        def make(asked: Asked) -> bytes:
            return same if tag and (asked.get("if-none-match") or "").encode() == tag else whole

        self._make = make
        self._ends = False

    def fail(self, status: int = 503, *headers: Pair) -> None:
        """Answer with this status from now on."""
        self.serve(b'{"error":"not now"}', *headers, status=status)

    def serve_raw(self, data: bytes) -> None:
        """Answer with these bytes from now on, head and all, and end the connection: half an answer, or none."""
        self._make = lambda _: data
        self._ends = True

    def hold(self) -> asyncio.Event:
        """Answer nothing until the event that is returned is set. What comes after that is answered at once again."""
        self._held = asyncio.Event()
        return self._held

    # What a test looks at

    @property
    def fetches(self) -> int:
        """How often the keys have been asked for."""
        return len([asked for asked in self.requests if asked.target == self.PATH])

    async def until_fetched(self, count: int = 1) -> None:
        """Wait until they have been asked for this often."""
        await self.wait_for(lambda: self.fetches >= count, f"{count} fetches")

    async def until_fetched_again(self, times: int = 1) -> None:
        """Wait for this many further requests."""
        await self.until_fetched(self.fetches + times)

    async def _answer(self, call: Call) -> None:
        if self._held is not None:
            await self._held.wait()
        if call.asked.target != self.PATH:
            await call.send(answer(status=404))
            return
        await call.send(self._make(call.asked))
        if self._ends:
            call.close()


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "HTML": b"<!doctype html><title>Log in</title>",
    "no JSON": b'{"keys": [',
    "no UTF-8": b'{"keys": ["\xff"]}',
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"keys": NaN}',
    "without keys": b"{}",
    "keys that are an object": b'{"keys": {"k1": {}}}',
    "keys that are null": b'{"keys": null}',
    "keys that are texts": b'{"keys": ["k1"]}',
    "an error with status 200": b'{"error": "not now"}',
    "what is nested too deep": b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5001 digits": b'{"keys": [], "x": 1' + b"0" * 5000 + b"}",
}
"""Bodies that are no set of keys."""


def huge(size: int = 10_000_000) -> bytes:
    """A set that is right, but for its size in bytes."""
    start, end = b'{"keys":[],"x":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end
