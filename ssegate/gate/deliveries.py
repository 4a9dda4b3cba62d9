"""Takes webhooks' deliveries: proven, read, told to every route they concern, answered and noted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from ssegate.admin.diary import Diary, Entry, Outcome
from ssegate.core.delivery import Delivery, Message
from ssegate.core.routing import parse_query
from ssegate.core.scheme import Greeting, Scheme
from ssegate.edge.exchange import Answer, Request, problem, read_whole
from ssegate.errors import BrokerError, RejectedError
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import WebhookRoute
from ssegate.gate.topics import Topics
from ssegate.gate.watched import PollRoute
from ssegate.sources.subscription import Keeper

log = logging.getLogger(__name__)

AT_ONCE = 50
"""Events of a batch that are told before others have their turn: some milliseconds."""

RETRY_AFTER = 5
"""Seconds after which a sender is asked to try again."""

_GREETED = "asked whether we are there, and answered"
_NO_QUERY: Mapping[str, str] = {}
_NOT_AUTHENTIC = "the delivery is not authentic; the reason is at /webhooks on the gate's admin listener"


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
        query = request.target.partition(b"?")[2]
        fields = dict(parse_query(query)) if query else _NO_QUERY
        if query or request.method != "POST":  # what asks whether we are there is known by one or the other
            asked = Delivery(request.headers, b"", fields)
            if (greeting := hook.scheme.greet(request.method, asked)) is not None:
                self._note(hook, time.time(), Outcome(said=_GREETED), 0)
                return Answer(200, greeting.headers, greeting.body)
            if request.method != "POST":
                allow = (b"allow", ", ".join(hook.scheme.methods).encode())
                return problem(405, "a webhook is delivered by POST", (allow,), close=True)
        arrived = time.time()
        try:
            body = await read_whole(request.body, limit, request.headers, "limits.webhook_body")
        except RejectedError as error:
            self._note(hook, arrived, Outcome(error.status, str(error)), 0)
            return problem(error.status, str(error), close=True)
        delivery = Delivery(request.headers, body, fields)
        outcome, answer = await self._judge(hook, delivery, arrived)
        self._note(hook, arrived, outcome, len(body), delivery)
        return answer

    async def redeliver(self, entry: Entry, delivery: Delivery, hook: Hook) -> Entry:
        """Take a delivery once more, as if it came for the first time; it has to prove itself as of when it came."""
        outcome, _ = await self._judge(hook, delivery, entry.at, is_repeated=True)
        return self.diary.add(time.time(), hook.at, outcome, len(delivery.body), delivery, entry.id)

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
        scheme, outcome = hook.scheme, Outcome()
        if fault := scheme.fault(delivery, wall):
            if scheme.is_silent:
                outcome.status, outcome.said = 202, f"dropped: {fault}"
                return outcome, Answer(202, _figures(outcome))
            outcome.status, outcome.said = 401, fault
            return outcome, problem(401, _NOT_AUTHENTIC)
        try:
            greeting = await self._tell_all(hook, scheme.messages(delivery), outcome, is_repeated=is_repeated)
        except RejectedError as error:
            outcome.status, outcome.said = error.status, str(error)
            return outcome, problem(error.status, str(error))
        except BrokerError as error:
            outcome.status, outcome.said = 503, f"{error}; the sender is asked to try again"
            again = (b"retry-after", b"%d" % RETRY_AFTER)
            return outcome, problem(503, "the event could not be stored; send it again", (again,))
        if greeting is not None:
            return outcome, Answer(200, (*greeting.headers, *_figures(outcome)), greeting.body)
        if outcome.status != 200:
            told = _figures(outcome) if outcome.status < 300 else ()
            return outcome, problem(outcome.status, outcome.said, told)
        return outcome, Answer(200, _figures(outcome))

    async def _tell_all(
        self, hook: Hook, messages: Sequence[Message], outcome: Outcome, *, is_repeated: bool
    ) -> Greeting | None:
        """Tell each route of each message; the answer where it only asks whether we are there.

        What one route cannot take is no matter to the others; if none takes anything, the first reason is the outcome.
        """
        scheme = hook.scheme
        rejections: list[RejectedError] = []
        for number, message in enumerate(messages, 1):
            outcome.kind, outcome.id = scheme.kind_of(message), scheme.id_of(message)
            if (greeting := scheme.welcome(message)) is not None:
                outcome.said = _GREETED
                return greeting
            if self._is_of_subscription(hook, message):
                outcome.said = f"of the subscription itself: {outcome.kind!r}"
                continue
            for route in hook.routes:
                try:
                    await self._tell(scheme, route, message, outcome, is_repeated=is_repeated)
                except RejectedError as error:
                    rejections.append(error)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        if rejections:
            outcome.said = "; ".join(dict.fromkeys(map(str, rejections)))
            if not outcome.is_taken:
                outcome.status = rejections[0].status
        return None

    def _is_of_subscription(self, hook: Hook, message: Message) -> bool:
        """Whether it says something of the subscription itself, and nothing of what is watched."""
        if hook.record is None or hook.record.kind != "msgraph":
            return False
        keeper, event = self._keepers.get(hook.at), message.member("lifecycleEvent")
        if keeper is None or not event:
            return False
        keeper.receive_lifecycle(event)
        return True

    async def _tell(
        self, scheme: Scheme, route: PollRoute | WebhookRoute, message: Message, outcome: Outcome, *, is_repeated: bool
    ) -> None:
        """Unless the route has taken it before. One that is just being stored is waited for: that may fail."""
        inlet = route.inlet
        assert inlet is not None
        id_ = inlet.id_of(scheme, message)
        if not id_:
            await self._publish(route, message, outcome)
            return
        while id_ in inlet.pending:
            await inlet.wait(id_)
        if inlet.seen.knows(id_, time.monotonic()) and not is_repeated:
            outcome.duplicates += 1
            return
        inlet.begin(id_)
        try:
            await self._publish(route, message, outcome)
            inlet.seen.add(id_, time.monotonic())
        finally:
            inlet.end(id_)

    async def _publish(self, route: PollRoute | WebhookRoute, message: Message, outcome: Outcome) -> None:
        if isinstance(route, PollRoute):
            self._poll(route, message, outcome)
            return
        updates = route.receiver.receive(message)
        if not updates:
            outcome.left_out += 1
        for update in updates:
            topic = await self._topics.publish(update, route)
            if topic is None:
                raise BrokerError("there is no room for another topic (limits.topics)")
            outcome.events += 1
            outcome.streams += len(topic.subscribers)

    def _poll(self, route: PollRoute, message: Message, outcome: Outcome) -> None:
        assert route.inlet is not None
        params = route.inlet.selection.params(message)
        if params is None:
            outcome.left_out += 1
            return
        watches = self._topics.hint_route(route, params)
        outcome.polls += len(watches)
        outcome.streams += sum(len(watch.topic.subscribers) for watch in watches)


def _figures(outcome: Outcome) -> tuple[tuple[bytes, bytes], ...]:
    return (b"ssegate-events", b"%d" % outcome.events), (b"ssegate-streams", b"%d" % outcome.streams)
