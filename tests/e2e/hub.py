"""A WebSub hub and the topics it serves, made from the W3C Recommendation alone: strict with subscribers, and as odd as a test wants.

Section numbers in brackets are those of the Recommendation of 23 January 2018.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.e2e.client import PATIENCE, Asking, Reply, exchange
from tests.upstream.scripted import Asked, Call, Pair, ScriptedUpstream, answer

FORM = "application/x-www-form-urlencoded"

MAX_SECRET = 199
"""Bytes: "MUST be less than 200 bytes in length" (5.1)."""


@dataclass(frozen=True)
class Wish:
    """A subscriber's request (5.1)."""

    mode: str
    topic: str
    callback: str
    lease: int
    """Seconds; 0 is not said."""
    secret: str
    at: float
    """When it came, on the loop's clock."""
    target: str
    """The path it was posted to."""


@dataclass(frozen=True)
class Subscription:
    """A wish that was found to be meant."""

    wish: Wish
    until: float
    """When its lease ends, on the loop's clock."""


@dataclass(frozen=True)
class Called:
    """A request of the hub's to a callback, and what came back."""

    mode: str
    callback: str
    reply: Reply


Plan = Callable[["Hub", Call, Wish], Awaitable[None]]
"""What the hub does with one wish: its answer, and what comes of it."""

Page = bytes | Callable[[Asked], bytes]


class Hub(ScriptedUpstream):
    """`async with Hub() as hub:` a hub at `hub.url + "/hub"`. Every path below `/topics/` is a topic whose Link headers name it."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(self._handle, port=port)
        self.wishes: list[Wish] = []
        self.called: list[Called] = []
        self.subscriptions: dict[tuple[str, str], Subscription] = {}
        """By topic and callback, "a unique key" (5.1)."""
        self.lease: int | None = None
        """What is granted; None is what was asked for."""
        self._pages: dict[str, Page] = {}
        self._plans: dict[str, deque[Plan]] = {}
        self._default: Plan = verifies_after

    # What a test arranges

    def topic(self, name: str = "feed") -> str:
        """The URL of a topic."""
        return f"{self.url}/topics/{name}"

    def serve(self, path: str, page: Page) -> None:
        """Answer GET of this path with these bytes, head and all, or with what the function makes of the request."""
        self._pages[path] = page

    def plan(self, topic: str, *plans: Plan) -> None:
        """Answer the next wishes for this topic so, one each; then as usual."""
        self._plans.setdefault(topic, deque()).extend(plans)

    def usually(self, plan: Plan) -> None:
        """Answer so what has no plan of its own."""
        self._default = plan

    # What a test waits for

    def asked_to(self, mode: str, topic: str | None = None) -> list[Wish]:
        """The wishes of this mode so far."""
        return [wish for wish in self.wishes if wish.mode == mode and topic in (None, wish.topic)]

    async def until_asked_to(self, mode: str, count: int = 1, topic: str | None = None) -> Wish:
        """Wait until it has been asked so often; the last wish."""
        await self._until(lambda: len(self.asked_to(mode, topic)) >= count, f"{count} times {mode}")
        return self.asked_to(mode, topic)[count - 1]

    def callbacks(self, topic: str | None = None) -> list[str]:
        """Who is subscribed, to this topic or any."""
        return [callback for known, callback in self.subscriptions if topic in (None, known)]

    async def until_subscribed(self, topic: str | None = None, count: int = 1) -> Subscription:
        """Wait until so many subscriptions hold; the newest."""
        await self._until(lambda: len(self.callbacks(topic)) >= count, f"{count} subscriptions")
        return [kept for (known, _), kept in self.subscriptions.items() if topic in (None, known)][-1]

    async def until_called(self, mode: str, count: int = 1) -> Reply:
        """Wait until the hub has called back so often, and has been answered; the last answer."""
        await self._until(lambda: len(self._called_to(mode)) >= count, f"{count} calls for {mode}")
        return self._called_to(mode)[count - 1].reply

    async def until_empty(self, topic: str | None = None) -> None:
        """Wait until nobody is subscribed."""
        await self._until(lambda: not self.callbacks(topic), "no subscription")

    def _called_to(self, mode: str) -> list[Called]:
        return [called for called in self.called if called.mode == mode]

    async def _until(self, fact: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self.until(lambda _: fact())
        except TimeoutError:
            raise AssertionError(f"the hub waits for {what}; it has {self.wishes} and {self.called}") from None

    # Requests to the hub

    async def _handle(self, call: Call) -> None:
        path = call.asked.target.partition("?")[0]
        if call.asked.method == "GET":
            page = self._pages.get(path) or topic_page
            await call.send(page if isinstance(page, bytes) else page(call.asked))
        elif (page := self._pages.get(path)) is not None:
            await call.read_body()
            await call.send(page if isinstance(page, bytes) else page(call.asked))
        else:
            await self._take(call)

    async def _take(self, call: Call) -> None:
        """Section 5.1."""
        assert call.asked.method == "POST"
        assert (call.asked.get("content-type") or "").partition(";")[0] == FORM
        fields = parse_qsl((await call.read_body()).decode("ascii"), strict_parsing=True)
        form = dict(fields)
        assert len(form) == len(fields), "a parameter came twice"
        secret = form.pop("hub.secret", "")
        assert len(secret.encode()) <= MAX_SECRET
        wish = Wish(
            form.pop("hub.mode"),
            form.pop("hub.topic"),
            form.pop("hub.callback"),
            int(form.pop("hub.lease_seconds", "0")),
            secret,
            asyncio.get_running_loop().time(),
            call.asked.target,
        )
        assert not form, f"unknown to the hub: {form}"
        self.wishes.append(wish)
        self._tell()
        plans = self._plans.get(wish.topic)
        await (plans.popleft() if plans else self._default)(self, call, wish)

    # Calls of the hub

    async def verify(self, wish: Wish, *, challenge: str | None = None, topic: str | None = None) -> Reply:
        """Ask the subscriber whether it is meant (5.3), and go by what it says. Also for what nobody has asked for."""
        challenge = challenge or secrets.token_urlsafe(16)
        lease = self.lease or wish.lease or 864000
        told = {"hub.mode": wish.mode, "hub.topic": topic or wish.topic, "hub.challenge": challenge}
        if wish.mode == "subscribe":
            told["hub.lease_seconds"] = str(lease)
        asked_at = asyncio.get_running_loop().time()
        reply = await self._call("GET", wish.mode, wish.callback, told)
        if 200 <= reply.status < 300 and reply.body == challenge.encode():
            key = (wish.topic, wish.callback)
            if wish.mode == "subscribe":
                self.subscriptions[key] = Subscription(wish, asked_at + lease)
            else:
                self.subscriptions.pop(key, None)
            self._tell()
        return reply

    async def deny(self, wish: Wish, reason: str = "") -> Reply:
        """Tell the subscriber that it gets nothing, or nothing any more (5.2)."""
        self.subscriptions.pop((wish.topic, wish.callback), None)
        told = {"hub.mode": "denied", "hub.topic": wish.topic, **({"hub.reason": reason} if reason else {})}
        return await self._call("GET", "denied", wish.callback, told)

    async def publish(
        self,
        topic: str,
        body: bytes,
        *,
        kind: str = "application/json",
        algorithm: str = "sha256",
        signature: str | None = None,
    ) -> list[Reply]:
        """Tell all whose lease has not ended (7). `signature` is sent instead of the right one; empty is none."""
        now = asyncio.get_running_loop().time()
        alive = [kept for (known, _), kept in self.subscriptions.items() if known == topic and now < kept.until]
        return [await self.deliver(kept.wish, body, kind, algorithm, signature) for kept in alive]

    async def deliver(
        self,
        wish: Wish,
        body: bytes,
        kind: str = "application/json",
        algorithm: str = "sha256",
        signature: str | None = None,
    ) -> Reply:
        """Tell one, whether it is subscribed or not."""
        if signature is None and wish.secret:
            signature = f"{algorithm}={hmac.new(wish.secret.encode(), body, getattr(hashlib, algorithm)).hexdigest()}"
        links = f'<{self.url}/hub>; rel="hub", <{wish.topic}>; rel="self"'
        fields = [("Content-Type", kind), ("Link", links)]
        if signature:
            fields.append(("X-Hub-Signature", signature))
        return await self._call("POST", "content", wish.callback, {}, tuple(fields), body)

    async def _call(
        self,
        method: str,
        mode: str,
        callback: str,
        told: dict[str, str],
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
    ) -> Reply:
        """The callback's own query stays as it is (5.3)."""
        parts = urlsplit(callback)
        query = "&".join(filter(None, (parts.query, urlencode(told))))
        asking = Asking(method, parts.path + (f"?{query}" if query else ""), headers, body)
        assert parts.port is not None
        async with (
            asyncio.timeout(PATIENCE),
            exchange("1.1", parts.port, asking, tls=parts.scheme == "https") as it,
        ):
            pieces = []
            while piece := await it.read():
                pieces.append(piece)
            reply = Reply(it.status, it.headers, b"".join(pieces))
        self.called.append(Called(mode, callback, reply))
        self._tell()
        return reply

    def later(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do this when the answer that is just made has left. What it raises is raised at the end, but not that nobody was there."""

        async def run() -> None:
            try:
                await work()
            except OSError:
                pass
            except Exception as error:
                self._errors.append(error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


# Pages of topics


def topic_page(asked: Asked) -> bytes:
    """What names its hub and itself by Link headers, two fields of them."""
    host = asked.get("host") or ""
    own = asked.target.partition("?")[0]
    hub, self_ = f'<http://{host}/hub>; rel="hub"', f'<http://{host}{own}>; rel="self"'
    return answer(b"{}", json_, (b"Link", hub.encode()), (b"Link", self_.encode()))


json_: Pair = (b"Content-Type", b"application/json")


def page(body: str, kind: str, *headers: Pair) -> bytes:
    """What names them in its body."""
    return answer(body.encode(), (b"Content-Type", kind.encode()), *headers)


# Plans


ACCEPTED = answer(status=202)


async def verifies_after(hub: Hub, call: Call, wish: Wish) -> None:
    """As most do: 202, and then the call."""
    await call.send(ACCEPTED)
    hub.later(lambda: hub.verify(wish))


async def verifies_before(hub: Hub, call: Call, wish: Wish) -> None:
    """The call, and then 202."""
    await hub.verify(wish)
    await call.send(ACCEPTED)


async def denies_after(hub: Hub, call: Call, wish: Wish) -> None:
    """202, and then `denied`."""
    await call.send(ACCEPTED)
    hub.later(lambda: hub.deny(wish, "you are not on the list"))


async def denies_before(hub: Hub, call: Call, wish: Wish) -> None:
    """`denied`, and then 202."""
    await hub.deny(wish)
    await call.send(ACCEPTED)


async def never_calls(_: Hub, call: Call, wish: Wish) -> None:
    """202, and nothing."""
    await call.send(ACCEPTED)


def refuses(status: int, *headers: Pair, body: bytes = b"not this one") -> Plan:
    """An answer that is none of those that are hoped for; also a redirect."""

    async def plan(_: Hub, call: Call, wish: Wish) -> None:
        await call.send(answer(body, (b"Content-Type", b"text/plain"), *headers, status=status))

    return plan
