"""Takes webhooks' deliveries: proven, read, told to every route they concern, answered and noted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from ssegate.admin.diary import Diary, Entry, Outcome
from ssegate.core.delivery import Delivery, Message
from ssegate.core.headers import Headers
from ssegate.core.routing import parse_query
from ssegate.core.scheme import Greeting, Scheme
from ssegate.edge.exchange import Answer, Body, Request, problem
from ssegate.errors import BrokerError, RejectedError
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import PollRoute, WebhookRoute
from ssegate.gate.topics import Topics
from ssegate.sources.subscription import Keeper
from ssegate.sources.webhook import LEFT_OUT

log = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which a sender is asked to try again."""

_NOT_AUTHENTIC = "the delivery is not authentic; the reason is at /webhooks on the gate's admin listener"


class _Reach:
    """What the messages of a delivery have become so far."""

    def __init__(self) -> None:
        self.events = 0
        self.streams = 0
        self.polls = 0
        self.duplicates = 0
        self.left_out = 0
        self.rejections: list[RejectedError] = []

    def words(self) -> str:
        """For an operator."""
        said = []
        if self.polls:
            said.append(f"{_counted(self.polls, 'topic')} polled at once")
        if self.events:
            said.append(f"{_counted(self.events, 'event')}")
        if self.events or self.polls:
            said.append(f"to {_counted(self.streams, 'open stream')}")
        if self.duplicates:
            said.append("taken before: no event of it" if self.duplicates == 1 else f"{self.duplicates} taken before")
        if self.left_out:
            said.append(LEFT_OUT if self.left_out == 1 else f"{self.left_out} {LEFT_OUT}")
        said += dict.fromkeys(str(error) for error in self.rejections)
        return "; ".join(said) or "no event"


class Deliveries:
    """All webhooks' deliveries, and the diary of them."""

    def __init__(self, topics: Topics, diary: Diary, keepers: Mapping[str, Keeper]) -> None:
        """`keepers` of subscriptions by the path of their webhook, as they are at any time."""
        self.diary = diary
        self._keepers = keepers
        self.counts: Counter[tuple[str, int]] = Counter()
        """Deliveries by path and by the status they were answered with."""
        self.duplicates: Counter[str] = Counter()
        """Events that had been taken before, by path."""
        self._topics = topics
        self._refusing: set[str] = set()

    async def take(self, hook: Hook, request: Request, limit: int) -> Answer:
        """Answer a request to a webhook's path; `limit` in bytes of its body."""
        scheme = hook.scheme
        delivery = Delivery(request.headers, b"", _query(request.target))
        if (greeting := scheme.greet(request.method, delivery)) is not None:
            return self._greeted(hook, delivery, greeting)
        if request.method != "POST":
            allow = (b"allow", ", ".join(scheme.methods).encode())
            return problem(405, "a webhook is delivered by POST", (allow,), close=True)
        arrived = time.time()
        try:
            body = await _read(request.body, limit, request.headers)
        except RejectedError as error:
            self._note(hook, arrived, Outcome(error.status, str(error)), 0)
            return problem(error.status, str(error), close=True)
        delivery = Delivery(request.headers, body, delivery.query)
        outcome, answer = await self._judge(hook, delivery, arrived)
        self._note(hook, arrived, outcome, len(body), delivery)
        return answer

    async def redeliver(self, entry: Entry, delivery: Delivery, hook: Hook) -> Entry:
        """Take a delivery once more, as if it came for the first time; it has to prove itself as of when it came."""
        outcome, _ = await self._judge(hook, delivery, entry.at, is_repeated=True)
        return self.diary.add(time.time(), hook.at, outcome, len(delivery.body), delivery, entry.id)

    def _greeted(self, hook: Hook, delivery: Delivery, greeting: Greeting) -> Answer:
        self._note(hook, time.time(), Outcome(200, "asked whether we are there, and answered"), len(delivery.body))
        return Answer(200, greeting.headers, greeting.body)

    def _note(self, hook: Hook, at: float, outcome: Outcome, size: int, delivery: Delivery | None = None) -> None:
        self.diary.add(at, hook.at, outcome, size, delivery)
        self.counts[hook.at, outcome.status] += 1
        if outcome.duplicates:
            self.duplicates[hook.at] += outcome.duplicates
        is_refused = outcome.status >= 400
        if is_refused and hook.at not in self._refusing:
            self._refusing.add(hook.at)
            log.warning("webhook %s: %d: %s; what follows is in the diary", hook.at, outcome.status, outcome.words)
        elif not is_refused and hook.at in self._refusing:
            self._refusing.discard(hook.at)
            log.info("webhook %s: deliveries are taken again", hook.at)

    async def _judge(
        self, hook: Hook, delivery: Delivery, wall: float, *, is_repeated: bool = False
    ) -> tuple[Outcome, Answer]:
        scheme = hook.scheme
        if fault := scheme.fault(delivery, wall):
            if scheme.is_silent:
                return Outcome(202, f"dropped: {fault}"), _taken(202, 0, 0)
            return Outcome(401, fault), problem(401, _NOT_AUTHENTIC)
        reach, kind, id_ = _Reach(), "", ""
        try:
            messages = scheme.messages(delivery)
            if len(messages) == 1:
                kind, id_ = scheme.kind_of(messages[0]), scheme.id_of(messages[0])
            if messages and (greeting := scheme.welcome(messages[0])) is not None:
                return Outcome(200, "asked whether we are there, and answered", kind=kind, id=id_), Answer(
                    200, (*greeting.headers, *_figures(0, 0)), greeting.body
                )
            for message in messages:
                if not self._is_of_subscription(hook, message):
                    await self._tell(hook, message, reach, is_repeated=is_repeated)
        except RejectedError as error:
            return Outcome(error.status, str(error), kind=kind, id=id_), problem(error.status, str(error))
        except BrokerError as error:
            again = (b"retry-after", b"%d" % RETRY_AFTER)
            fact = "the event could not be stored; send it again"
            return Outcome(503, f"{error}; the sender is asked to try again", kind=kind, id=id_), problem(
                503, fact, (again,)
            )
        return self._concluded(reach, kind, id_)

    def _is_of_subscription(self, hook: Hook, message: Message) -> bool:
        """Whether it says something of the subscription itself, and nothing of what is watched."""
        keeper, event = self._keepers.get(hook.at), message.member("lifecycleEvent")
        if keeper is None or not event or hook.scheme.name != "msgraph":
            return False
        keeper.receive_lifecycle(event)
        return True

    def _concluded(self, reach: _Reach, kind: str, id_: str) -> tuple[Outcome, Answer]:
        words, rejections = reach.words(), reach.rejections
        if rejections and not (reach.events or reach.polls or reach.duplicates or reach.left_out):
            error = rejections[0]
            told = _figures(0, 0) if error.status < 300 else ()
            return Outcome(error.status, words, kind=kind, id=id_), problem(error.status, str(error), told)
        outcome = Outcome(200, words, reach.events, reach.streams, reach.duplicates, kind, id_)
        return outcome, _taken(200, reach.events, reach.streams)

    async def _tell(self, hook: Hook, message: Message, reach: _Reach, *, is_repeated: bool) -> None:
        """Tell each route of a message; what one of them cannot take is no matter to the others."""
        for route in hook.routes:
            try:
                await self._tell_once(hook.scheme, route, message, reach, is_repeated=is_repeated)
            except RejectedError as error:
                reach.rejections.append(error)

    async def _tell_once(
        self, scheme: Scheme, route: PollRoute | WebhookRoute, message: Message, reach: _Reach, *, is_repeated: bool
    ) -> None:
        """Unless the route has taken it before. One that is just being stored is waited for: it may fail."""
        inlet = route.inlet
        assert inlet is not None
        id_ = inlet.id_of(scheme, message)
        if not id_:
            await self._publish(route, message, reach)
            return
        while (under_way := inlet.pending.get(id_)) is not None:
            await asyncio.wait((under_way,))
        if inlet.seen.knows(id_, time.monotonic()) and not is_repeated:
            reach.duplicates += 1
            return
        stored = inlet.pending[id_] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(route, message, reach)
            inlet.seen.add(id_, time.monotonic())
        finally:
            del inlet.pending[id_]
            stored.set_result(None)

    async def _publish(self, route: PollRoute | WebhookRoute, message: Message, reach: _Reach) -> None:
        if isinstance(route, PollRoute):
            self._poll(route, message, reach)
            return
        updates = route.receiver.receive(message)
        reach.left_out += not updates
        for update in updates:
            if not await self._topics.publish(update, route):
                raise BrokerError("there is no room for another topic (limits.topics)")
            reach.events += 1
            topic = self._topics.hub.get(update.topic)
            reach.streams += len(topic.subscribers) if topic is not None else 0

    def _poll(self, route: PollRoute, message: Message, reach: _Reach) -> None:
        assert route.inlet is not None
        params = route.inlet.selection.params(message)
        if params is None:
            reach.left_out += 1
            return
        watches = self._topics.hint_route(route, params)
        reach.polls += len(watches)
        reach.streams += sum(len(watch.topic.subscribers) for watch in watches)


def _query(target: bytes) -> Mapping[str, str]:
    query = target.partition(b"?")[2]
    return dict(parse_query(query)) if query else {}


def _figures(events: int, streams: int) -> tuple[tuple[bytes, bytes], ...]:
    return (b"ssegate-events", b"%d" % events), (b"ssegate-streams", b"%d" % streams)


def _taken(status: int, events: int, streams: int) -> Answer:
    return Answer(status, _figures(events, streams))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


async def _read(body: Body | None, limit: int, headers: Headers) -> bytes:
    """Read a whole body. Raises `RejectedError` 413 as soon as it is too large, by its own word or in fact."""
    too_large = f"the body is larger than {limit} bytes (limits.webhook_body)"
    length = headers.get("content-length") or "0"
    if length.isdigit() and int(length[:20]) > limit:
        raise RejectedError(413, too_large)
    parts: list[bytes] = []
    size = 0
    async for part in body if body is not None else _no_body():
        size += len(part)
        if size > limit:
            raise RejectedError(413, too_large)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _no_body() -> AsyncIterator[bytes]:
    return
    yield b""
