"""Answers requests, and goes up, over to another configuration, and down."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from functools import partial

from ssegate.admin.diary import Diary, Entry
from ssegate.admin.metrics import GateFigures, SubscriptionFigures, UpstreamFigures
from ssegate.brokers.memory import MemoryBroker
from ssegate.config.model import Config, Route
from ssegate.core.event import encode_retry
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import Hub, Subscriber, Topic
from ssegate.core.lease import Standing
from ssegate.core.routing import accepted_query, accepts_event_stream, parse_query, split_path
from ssegate.edge.exchange import Answer, Relay, Reply, Request, Stream, problem
from ssegate.errors import ConfigError, Problem
from ssegate.gate.deliveries import Deliveries
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import PollRoute, ProxyRoute, Table, UpstreamSlot, WebhookRoute
from ssegate.gate.subscriptions import Subscriptions
from ssegate.gate.topics import Topics, Watch
from ssegate.interfaces import Broker
from ssegate.sources.subscription import TOKEN_LENGTH, Ledger
from ssegate.upstream.forwarded import client_address

OWN_PATHS = b"/_ssegate/"
"""Paths that begin so are the gate's own."""

CURSOR_HEADER = "last-event-id"
CURSOR_FIELDS = ("lastEventId", "last_event_id", "Last-Event-ID")
"""Query parameters that carry the cursor where a client cannot set the header, the best first."""

MAX_CURSOR = 256

COMEBACK = (5.0, 15.0)
"""Seconds within which a client that is turned away for now comes back, at random."""

DRAIN_PART = 0.75
"""The part of the drain's timeout over which streams are ended; the rest is for their last bytes."""

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})

_STREAM_HEADERS: tuple[Pair, ...] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Gate:
    """One gateway, whatever serves it: `start`, then `answer` each request, then `drain` and `aclose`."""

    def __init__(
        self, config: Config, *, broker: Broker | None = None, own: Mapping[bytes, Answer] | None = None
    ) -> None:
        """`own` are answers to paths below `/_ssegate/`.

        Raises `ConfigError` when `server.state_dir` is needed and cannot be used.
        """
        self._ledger = _open_ledger(config)
        self.table = Table(config, ledger=self._ledger)
        self.hub = Hub()
        self.topics = Topics(self.hub, broker or MemoryBroker(_make_epoch), max_topics=config.limits.topics)
        self.subscriptions = Subscriptions(self._ledger, lambda: self.table)
        self.deliveries = Deliveries(self.topics, Diary(secrets.token_hex(4)), self.subscriptions.keepers)
        self.is_draining = False
        self._own = dict(own or {})
        self._is_started = False
        self._clients = 0
        self._clients_by_ip: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.table.config

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self._is_started and not self.is_draining

    @property
    def troubles(self) -> list[str]:
        """What does not work though the gate does: the subscriptions that are not granted, a line each."""
        return [
            f"subscription of {each.path}: {each.trouble or 'asked for, not granted yet'}"
            for each in self.subscriptions.statuses()
            if each.trouble or each.standing is not Standing.ACTIVE
        ]

    @property
    def diary(self) -> Diary:
        """The last deliveries of webhooks."""
        return self.deliveries.diary

    async def redeliver(self, entry: Entry) -> Entry | None:
        """Take a delivery once more, as the configuration is now; None when nothing takes deliveries at its path any more."""
        hook = self.table.hooks.get(entry.path.encode())
        if hook is None or entry.delivery is None:
            return None
        return await self.deliveries.redeliver(entry, entry.delivery, hook)

    # Life

    async def start(self) -> None:
        """Begin; raises `BrokerError` when the broker cannot be reached."""
        await self.topics.start()
        self._is_started = True

    def begin_subscriptions(self) -> None:
        """Ask the backends for their webhooks. They call back at once, so it is listened before that."""
        self.subscriptions.begin()

    def reload(self, config: Config) -> None:
        """Go over to another configuration. Streams of routes that are the same in both stay open."""
        before, self.table = self.table, Table(config, before=self.table, ledger=self._ledger)
        self.subscriptions.begin()
        self.topics.max_topics = config.limits.topics
        gone = [
            route for route in before.routes if not isinstance(route, ProxyRoute) and route not in self.table.routes
        ]
        leaving = self.topics.owned_by(gone)
        for topic in leaving:
            self.topics.forget(topic.key)
        slots = [slot for slot in before.slots.values() if slot not in self.table.slots.values()]
        self._spawn(self._retire(leaving, slots, config.server.drain.timeout))

    async def _retire(self, topics: Iterable[Topic], slots: Iterable[UpstreamSlot], timeout: float) -> None:
        """End what the new configuration has no place for; requests under way get the drain's time."""
        await self._close(topics, timeout * DRAIN_PART)
        await asyncio.sleep(timeout * (1 - DRAIN_PART))
        for slot in slots:
            await slot.upstream.aclose()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Fail readiness, then end every stream, spread over the drain's timeout, each told when to come back."""
        self.is_draining = True
        drain = self.config.server.drain
        await asyncio.sleep(drain.delay)
        leaving = asyncio.ensure_future(self.subscriptions.leave(drain.timeout))
        await self._close(self.topics, drain.timeout * DRAIN_PART)
        await leaving

    async def _close(self, topics: Iterable[Topic], seconds: float) -> None:
        """End the streams of these topics, spread over this time, so that not all come back at once."""
        subscribers = [subscriber for topic in topics for subscriber in topic.subscribers]
        random.shuffle(subscribers)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, subscriber in enumerate(subscribers):
            wait = start + seconds * number / len(subscribers) - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            subscriber.close(_comeback())

    async def aclose(self) -> None:
        """Stop polling and let go of everything. Streams that are still open end without a word."""
        self._is_started = False
        for task in self._tasks:
            task.cancel()
        for topic in self.topics:
            for subscriber in tuple(topic.subscribers):
                subscriber.close()
        await self.subscriptions.aclose()
        await self.topics.aclose()
        for slot in self.table.slots.values():
            await slot.upstream.aclose()

    # Requests

    def answer(self, request: Request) -> Reply | Awaitable[Reply]:
        """See `edge.exchange.Answering`."""
        path, _, query = request.target.partition(b"?")
        if (hook := self.table.hooks.get(path)) is not None:
            return self.deliveries.take(hook, request, self.config.limits.webhook_body)
        if self.subscriptions.below and path[:-TOKEN_LENGTH] in self.subscriptions.below:
            return self._answer_callback(request, path, query)
        if path.startswith(OWN_PATHS):
            return self._own.get(path) or problem(404, "there is nothing at this path")
        match = self.table.router.match(request.method, path, request.headers.get("accept"))
        if match is None:
            return self._answer_unmatched(request, path)
        if isinstance(match.target, ProxyRoute):
            return self._relay(match.target, request, path)
        return self._answer_event_route(match.target, match.params, request, query)

    def _answer_unmatched(self, request: Request, path: bytes) -> Answer:
        shared = self._cors(request.headers)
        allowed = self.table.router.allowed(path)
        if request.method in allowed:
            return problem(406, "this is an event stream; let Accept name text/event-stream", shared)
        if allowed:
            allow = (b"allow", ", ".join(sorted(allowed)).encode())
            return problem(405, f"{request.method} is not served here", (allow, *shared))
        return problem(404, "no route matches this path", shared)

    def _answer_callback(self, request: Request, path: bytes, query: bytes) -> Answer | Awaitable[Answer]:
        """A hub calls where only it knows that there is something."""
        found = self.subscriptions.answer(request.method, path, dict(parse_query(query)))
        if isinstance(found, Hook):
            return self.deliveries.take(found, request, self.config.limits.webhook_body)
        return found

    # Event streams

    def _answer_event_route(
        self, target: PollRoute | WebhookRoute, params: Mapping[str, str], request: Request, query: bytes
    ) -> Reply | Awaitable[Reply]:
        route, shared = target.route, self._shared_headers(target.route, request.headers)
        if request.method == "OPTIONS":
            return self._preflight(request.headers, shared)
        fields = parse_query(query)
        asked = accepted_query(route.query, fields)
        if asked is None:
            return problem(404, "a query parameter does not have the form this route accepts", shared)
        if not accepts_event_stream(request.headers.get("accept")):
            return problem(406, "this is an event stream; let Accept name text/event-stream", shared)
        if request.method == "HEAD":
            return Answer(200, (*_STREAM_HEADERS, *shared))
        viewer = client_address(request.peer, request.headers, self.config.server.trusted_proxies)
        if (reason := self._refusal(viewer)) is not None:
            return self._turn_away(reason, shared)
        cursor = _cursor(request.headers, fields)
        return self._open_stream(target, params, asked, cursor, viewer, request, shared)

    def _open_stream(
        self,
        target: PollRoute | WebhookRoute,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        cursor: str | None,
        viewer: str,
        request: Request,
        shared: tuple[Pair, ...],
    ) -> Reply | Awaitable[Reply]:
        if isinstance(target, WebhookRoute):
            topic = self.topics.open(target.key(params), target)
            return self._stream(topic, target.route, cursor, viewer, shared)
        try:
            poll = target.target(params, asked, request.headers)
        except (ValueError, LookupError):
            return problem(404, "the path or the query does not make a resource", shared)
        watch = self.topics.watch(target, poll, params)
        if watch is None:
            return self._turn_away("topics", shared)
        if watch.is_cold:
            return self._open_cold_stream(watch, cursor, viewer, shared)
        return self._stream(watch.topic, target.route, cursor, viewer, shared)

    async def _open_cold_stream(
        self, watch: Watch, cursor: str | None, viewer: str, shared: tuple[Pair, ...]
    ) -> Answer | Stream:
        """Wait for the first poll; what it says may be the answer."""
        status = await self.topics.first_answer(watch)
        if status is not None:
            return problem(status, f"the upstream answered {status}", shared)
        topic = self.hub.get(watch.topic.key)  # it may have had to give way meanwhile
        if (reason := self._refusal(viewer)) is not None:
            return self._turn_away(reason, shared)
        return self._stream(topic, watch.route.route, cursor, viewer, shared)

    def _stream(
        self, topic: Topic | None, route: Route, cursor: str | None, viewer: str, shared: tuple[Pair, ...]
    ) -> Answer | Stream:
        if topic is None:
            return self._turn_away("topics", shared)
        opening = self.topics.subscribe(topic, cursor)
        if opening.is_finished:
            return Answer(204, shared)
        self._clients += 1
        self._clients_by_ip[viewer] += 1
        resumed = (b"ssegate-resumed", b"yes" if opening.is_resumed else b"no")
        retry = round(route.retry * 1000 * random.uniform(0.5, 1.5))
        subscriber = opening.subscriber  # not the opening, which has the document, for as long as the stream lives
        return Stream(
            (*_STREAM_HEADERS, resumed, *shared),
            encode_retry(retry),
            subscriber,
            state=opening.data,
            heartbeat=route.heartbeat,
            max_age=route.max_age * random.uniform(0.8, 1.2) if route.max_age else None,
            close=lambda: self._leave(subscriber, viewer),
        )

    def _leave(self, subscriber: Subscriber, viewer: str) -> None:
        self.topics.unsubscribe(subscriber)
        self._clients -= 1
        self._clients_by_ip[viewer] -= 1
        if not self._clients_by_ip[viewer]:
            del self._clients_by_ip[viewer]

    def _refusal(self, viewer: str) -> str | None:
        """Why there is no stream for this viewer now; None when there is."""
        limits = self.config.limits
        if self.is_draining:
            return "draining"
        if self._clients >= limits.clients:
            return "clients"
        if limits.clients_per_ip is not None and self._clients_by_ip[viewer] >= limits.clients_per_ip:
            return "clients_per_ip"
        return None

    def _turn_away(self, reason: str, shared: tuple[Pair, ...]) -> Stream:
        """An `EventSource` gives up for good on 503 or 502; this it takes for a stream that ended, and comes back."""
        self._refusals[reason] += 1
        return Stream((*_STREAM_HEADERS, *shared), _comeback(), None)

    # CORS

    def _cors(self, headers: Headers, *, vary: tuple[bytes, ...] = ()) -> tuple[Pair, ...]:
        """What says who may read this answer, and of what its caches must know that it depends on."""
        cors = self.table.cors
        if cors is not None:
            vary = (*vary, b"Origin")
        told = ((b"vary", b", ".join(vary)),) if vary else ()
        return (*cors.headers(headers), *told) if cors is not None else told

    def _shared_headers(self, route: Route, headers: Headers) -> tuple[Pair, ...]:
        """What every answer of an event route carries."""
        return self._cors(headers, vary=(b"Accept",) if route.negotiate else ())

    def _preflight(self, headers: Headers, shared: tuple[Pair, ...]) -> Answer:
        allow = (b"allow", b"GET, HEAD, OPTIONS")
        cors = self.table.cors
        return Answer(204, (allow, *shared, *(cors.preflight(headers, b"GET, HEAD") if cors is not None else ())))

    # Pass-through

    def _relay(self, target: ProxyRoute, request: Request, path: bytes) -> Relay:
        begin = partial(target.slot.upstream.relay, request, self.config.server.trusted_proxies)
        done = partial(self._follow_write, target.slot, path) if request.method in _WRITES else None
        return Relay(begin, done)

    def _follow_write(self, slot: UpstreamSlot, path: bytes, status: int) -> None:
        """A write has been passed on. If it succeeded, the topics that say `after_write` of it poll at once."""
        if not 200 <= status < 400:
            return
        segments = split_path(path)
        followed = {route: route.follows(path) for route in self.table.routes if isinstance(route, PollRoute)}

        def is_touched(watch: Watch) -> bool:
            if watch.route.follows_own_writes:
                read = watch.source.target.path.partition("?")[0].encode()
                return watch.route.slot is slot and split_path(read) == segments
            shared = followed.get(watch.route)
            return shared is not None and all(watch.params.get(name, value) == value for name, value in shared.items())

        self.topics.hint(is_touched)

    # Figures

    def statistics(self) -> GateFigures:
        """How things stand, for `/metrics`."""
        tally = self.hub.tally
        return GateFigures(
            clients=self._clients,
            topics=len(self.hub),
            topics_watched=sum(topic.is_watched for topic in self.hub),
            events=tally.events,
            resets=tally.resets,
            faults=tally.faults,
            refused=dict(self._refusals),
            webhooks=dict(self.deliveries.counts),
            duplicates=dict(self.deliveries.duplicates),
            subscriptions=tuple(
                SubscriptionFigures(
                    each.path, each.kind, each.standing is Standing.ACTIVE, failures=each.failures, seconds=each.seconds
                )
                for each in self.subscriptions.statuses()
            ),
            upstreams=tuple(
                UpstreamFigures(
                    name,
                    polls=dict(slot.record.outcomes),
                    failing=slot.record.failing,
                    avoided=slot.record.avoided,
                    connections=slot.upstream.statistics(),
                )
                for name, slot in self.table.slots.items()
            ),
        )


def _open_ledger(config: Config) -> Ledger:
    ledger = Ledger(config.server.state_dir)
    try:
        ledger.load()
        if any(route.webhook is not None and route.webhook.subscribe is not None for route in config.routes):
            ledger.prepare()  # else there is nothing to write, and the folder need not be there
    except (OSError, ValueError) as error:
        fact = f"{error.strerror or error}" if isinstance(error, OSError) else "its subscriptions.json is damaged"
        message = f"{config.server.state_dir}: {fact[:1].lower()}{fact[1:]}; name a folder that the gate may write to"
        raise ConfigError([Problem(config.source, 0, 0, "value", "server.state_dir", message)]) from error
    return ledger


def _make_epoch() -> str:
    return secrets.token_hex(5)


def _comeback() -> bytes:
    return encode_retry(round(random.uniform(*COMEBACK) * 1000))


def _cursor(headers: Headers, fields: list[tuple[str, str]]) -> str | None:
    """Where the client stood: the header, else the query; None for a newcomer."""
    values = headers.all(CURSOR_HEADER)
    cursor = values[-1] if values else ""
    for name in CURSOR_FIELDS:
        if not cursor:
            cursor = next((value for key, value in reversed(fields) if key == name), "")
    # What is too long is not ours, and is told so; `Position.parse` refuses it by its length too.
    return cursor[: MAX_CURSOR + 1] or None
