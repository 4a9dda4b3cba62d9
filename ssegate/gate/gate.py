"""Answers requests, and goes up, over to another configuration, and down."""

from __future__ import annotations

import asyncio
import random
import secrets
import string
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ssegate.admin.diary import Diary, Entry
from ssegate.admin.metrics import GateFigures, SubscriptionFigures, UpstreamFigures
from ssegate.brokers.memory import MemoryBroker
from ssegate.config.model import Config, Route
from ssegate.core.document import encode
from ssegate.core.event import Event, encode_event, encode_retry
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import Hub, Subscriber, Topic
from ssegate.core.journal import Position
from ssegate.core.lease import Standing
from ssegate.core.routing import accepted_query, parse_query, split_path
from ssegate.core.shape import EVENT_STREAM, JSON, OFFERED, Shape, choose
from ssegate.edge.exchange import Answer, Relay, Reply, Request, Stream, bad_gateway, problem
from ssegate.errors import ConfigError, Problem, RejectedError, UpstreamError
from ssegate.gate.client import client_answers
from ssegate.gate.deliveries import Deliveries
from ssegate.gate.hooks import Hook
from ssegate.gate.own import Asked, OwnStreams
from ssegate.gate.routes import EventRoute, NamesOf, ProxyRoute, Table, WebhookRoute
from ssegate.gate.subscriptions import Subscriptions
from ssegate.gate.topics import Topics, Watch
from ssegate.gate.watched import PollRoute, StreamRoute, TaskRoute, UpstreamSlot
from ssegate.gate.whole import answer_whole, read_wait
from ssegate.interfaces import Broker
from ssegate.sources.cursors import Cursors
from ssegate.sources.poll import PollSource
from ssegate.sources.subscription import TOKEN_LENGTH, Ledger
from ssegate.sources.telling import let_them_read
from ssegate.upstream.forwarded import client_address

OWN_PATHS = b"/_ssegate/"
"""Paths that begin so are the gate's own."""

CURSOR_HEADER = "last-event-id"
CURSOR_FIELDS = ("lastEventId", "last_event_id", "Last-Event-ID")
"""Query parameters that carry the cursor where a client cannot set the header, the best first."""

MAX_CURSOR = 256

_LETTERS = string.ascii_letters + string.digits

COMEBACK = (5.0, 15.0)
"""Seconds within which a client that is turned away for now comes back, at random."""

DRAIN_PART = 0.75
"""The part of the drain's timeout over which streams are ended; the rest is for their last bytes."""

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})

_UNACCEPTABLE = f"this is an event stream; let Accept name one of {', '.join(OFFERED)}"
_NO_SUCH_STREAM = "there is no stream with this name, or it is not yours"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks for an event route, and how."""

    request: Request
    address: str
    cursor: str | None
    """Where the client stood; None for a newcomer."""
    media: str
    """In which media type it is answered."""
    wait: float
    """Seconds for which it waits for news, where it wants them in one answer."""
    shared: tuple[Pair, ...]
    """Headers that go into whatever is answered."""
    since: Position | None = None
    """The place of the topic when the viewer came, where the upstream was waited for since then."""

    @property
    def is_event_source(self) -> bool:
        """Whether it may be an `EventSource`, which gives up for good on 5xx and comes back after a stream that has ended."""
        return self.media == EVENT_STREAM and self.request.method == "GET"


class Gate:
    """One gateway, whatever serves it: `start`, then `answer` each request, then `drain` and `aclose`."""

    def __init__(
        self, config: Config, *, broker: Broker | None = None, own: Mapping[bytes, Answer] | None = None
    ) -> None:
        """`own` are further answers to paths below `/_ssegate/`.

        Raises `ConfigError` when `server.state_dir` is needed and cannot be used.
        """
        self._ledger, self._cursors = Ledger(config.server.state_dir), Cursors(config.server.state_dir)
        _open_state(config, self._ledger, self._cursors)
        self.table = Table(config, ledger=self._ledger, cursors=self._cursors)
        self.hub = Hub()
        self.topics = Topics(self.hub, broker or MemoryBroker(_make_epoch), max_topics=config.limits.topics)
        self.own = OwnStreams(self.topics)
        self.subscriptions = Subscriptions(self._ledger, lambda: self.table)
        self.deliveries = Deliveries(self.topics, Diary(secrets.token_hex(4)), self.subscriptions.keepers)
        self.is_draining = False
        self._own = {**client_answers(), **(own or {})}
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
        before = self.table
        self.table = Table(config, before=before, ledger=self._ledger, cursors=self._cursors)
        self.subscriptions.begin()
        self.topics.max_topics = config.limits.topics
        gone = [
            route for route in before.routes if not isinstance(route, ProxyRoute) and route not in self.table.routes
        ]
        leaving = self.topics.owned_by(gone)
        for topic in leaving:
            self.topics.forget(topic.key, for_good=False)
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
        await let_them_read()  # what they are told leaves before their connections are told to close
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
            return self._answer_own(path, request)
        match = self.table.router.match(request.method, path, request.headers.get("accept"))
        if match is None:
            return self._answer_unmatched(request, path)
        if isinstance(match.target, ProxyRoute):
            return self._relay(match.target, request, path)
        return self._answer_event_route(match.target, match.params, request, query)

    def _answer_own(self, path: bytes, request: Request) -> Answer:
        """The gate's own things; what the client has already is not sent again (RFC 9110, 13.1.2)."""
        answer = self._own.get(path)
        if answer is None:
            return problem(404, "there is nothing at this path")
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{request.method} is not served here", ((b"allow", b"GET, HEAD"),))
        etag = dict(answer.headers).get(b"etag")
        known = request.headers.get("if-none-match")
        if etag is not None and known is not None and etag.decode() in known:
            return Answer(304, tuple(pair for pair in answer.headers if pair[0] != b"content-type"))
        return answer

    def _answer_unmatched(self, request: Request, path: bytes) -> Answer:
        shared = self._cors(request.headers)
        allowed = self.table.router.allowed(path)
        if request.method in allowed:
            return problem(406, _UNACCEPTABLE, shared)
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
        self, target: EventRoute | NamesOf, params: Mapping[str, str], request: Request, query: bytes
    ) -> Reply | Awaitable[Reply]:
        route = target.route.route if isinstance(target, NamesOf) else target.route
        shared = self._shared_headers(route, request.headers)
        if request.method == "OPTIONS":
            return self._preflight(request, shared)
        fields = parse_query(query)
        asked = accepted_query({} if isinstance(target, NamesOf) else route.query, fields)
        if asked is None:
            return problem(404, "a query parameter does not have the form this route accepts", shared)
        media = choose(request.headers.get("accept"), (EVENT_STREAM,) if route.negotiate else OFFERED)
        if media is None:
            return problem(406, _UNACCEPTABLE, shared)
        if request.method == "HEAD":
            if isinstance(target, NamesOf) and self.own.find(target.route, params, request.headers) is None:
                return problem(404, _NO_SUCH_STREAM, shared)
            return Answer(200, (*_stream_headers(media), *shared))
        try:
            wait = read_wait(None if media != JSON or "wait" in asked else dict(fields).get("wait"))
        except RejectedError as error:
            return problem(error.status, str(error), shared)
        address = client_address(request.peer, request.headers, self.config.server.trusted_proxies)
        viewer = Viewer(request, address, _cursor(request.headers, fields), media, wait, shared)
        if (reason := self._refusal(address)) is not None:
            return self._turn_away(reason, viewer)
        return self._open(target, params, asked, viewer)

    def _open(
        self, target: EventRoute | NamesOf, params: Mapping[str, str], asked: Mapping[str, str], viewer: Viewer
    ) -> Reply | Awaitable[Reply]:
        headers = viewer.request.headers
        if isinstance(target, NamesOf):
            watch = self.own.find(target.route, params, headers)
            return self._show_own(watch, viewer) if watch is not None else problem(404, _NO_SUCH_STREAM, viewer.shared)
        if isinstance(target, WebhookRoute):
            return self._show(self.topics.open(target.key(params), target), target.route, viewer)
        if isinstance(target, StreamRoute | TaskRoute) and target.is_own:
            watch = self.own.resumed(target, viewer.cursor, headers)
            return self._show_own(watch, viewer) if watch is not None else self._open_own(target, params, asked, viewer)
        try:
            wanted = target.target(params, asked, headers)
        except (ValueError, LookupError):
            return problem(404, "the path or the query does not make a resource", viewer.shared)
        watch = self.topics.watch(target, target.key(wanted), partial(target.make_source, target=wanted), params)
        if watch is None:
            return self._turn_away("topics", viewer)
        if watch.is_cold:
            return self._show_cold(watch, viewer)
        return self._show(watch.topic, target.route, viewer)

    async def _show_cold(self, watch: Watch, viewer: Viewer) -> Reply:
        """Wait for the first answer of the upstream; what it says may be ours."""
        journal = watch.topic.journal
        viewer = replace(viewer, since=Position(journal.epoch, journal.head))
        status = await self.topics.first_answer(watch)
        if status is not None:
            return problem(status, f"the upstream answered {status}", viewer.shared)
        topic = self.hub.get(watch.topic.key)  # it may have had to give way meanwhile
        if (reason := self._refusal(viewer.address)) is not None:
            return self._turn_away(reason, viewer)
        shown = self._show(topic, watch.route.route, viewer)
        return await shown if isinstance(shown, Awaitable) else shown

    async def _open_own(
        self, target: StreamRoute | TaskRoute, params: Mapping[str, str], asked: Mapping[str, str], viewer: Viewer
    ) -> Reply:
        """Open a stream that belongs to this request; what the upstream says before it begins may be our answer."""
        opening = Asked(viewer.request, params, asked, self.config.limits.stream_body, viewer.shared)
        try:
            opened = await self.own.open(target, opening)
        except UpstreamError as error:
            answer = bad_gateway(error)
            opened = Answer(answer.status, (*answer.headers, *viewer.shared), answer.body)
        if opened is None:
            return self._turn_away("topics", viewer)
        if isinstance(opened, Answer):
            is_trouble = opened.status >= 500 and viewer.is_event_source
            return self._turn_back(opened.status, viewer) if is_trouble else opened
        shown = self._show_own(opened, viewer)
        return await shown if isinstance(shown, Awaitable) else shown

    def _show_own(self, watch: Watch, viewer: Viewer) -> Reply | Awaitable[Reply]:
        self.topics.go_on(watch)
        viewer = replace(viewer, shared=(*viewer.shared, (b"ssegate-stream", watch.name.encode())))
        if isinstance(watch.route, TaskRoute) and watch.is_cold:
            return self._show_cold(watch, viewer)
        return self._show(watch.topic, watch.route.route, viewer)

    def _show(self, topic: Topic | None, route: Route, viewer: Viewer) -> Reply | Awaitable[Reply]:
        """Let the viewer read the topic, in the shape that was asked for."""
        if topic is None:
            return self._turn_away("topics", viewer)
        if viewer.media == JSON:
            answer = answer_whole(self.topics, topic, viewer.cursor, viewer.wait, viewer.shared)
            return answer if isinstance(answer, Answer) else self._hold(answer, viewer.address)
        return self._stream(topic, route, viewer)

    async def _hold(self, answer: Awaitable[Answer], address: str) -> Answer:
        """A client that waits for news counts like one that reads a stream."""
        self._enter(address)
        try:
            return await answer
        finally:
            self._leave(address)

    def _stream(self, topic: Topic, route: Route, viewer: Viewer) -> Answer | Stream:
        shape = None if viewer.media == EVENT_STREAM else Shape(viewer.media)
        opening = self.topics.subscribe(topic, viewer.cursor, shape, viewer.since)
        if opening.is_finished:
            return Answer(204, viewer.shared)
        self._enter(viewer.address)
        resumed = (b"ssegate-resumed", b"yes" if opening.is_resumed else b"no")
        retry = round(route.retry * 1000 * random.uniform(0.5, 1.5))
        subscriber = opening.subscriber  # not the opening, which has the document, for as long as the stream lives
        address = viewer.address  # nor the request
        return Stream(
            (*_stream_headers(viewer.media), resumed, *viewer.shared),
            encode_retry(retry) if shape is None else shape.heartbeat,
            subscriber,
            state=opening.data,
            heartbeat=route.heartbeat,
            max_age=route.max_age * random.uniform(0.8, 1.2) if route.max_age else None,
            close=lambda: self._part(subscriber, address),
        )

    def _part(self, subscriber: Subscriber, address: str) -> None:
        self.topics.unsubscribe(subscriber)
        self._leave(address)

    def _enter(self, address: str) -> None:
        self._clients += 1
        self._clients_by_ip[address] += 1

    def _leave(self, address: str) -> None:
        self._clients -= 1
        self._clients_by_ip[address] -= 1
        if not self._clients_by_ip[address]:
            del self._clients_by_ip[address]

    def _refusal(self, address: str) -> str | None:
        """Why there is no stream for this viewer now; None when there is."""
        limits = self.config.limits
        if self.is_draining:
            return "draining"
        if self._clients >= limits.clients:
            return "clients"
        if limits.clients_per_ip is not None and self._clients_by_ip[address] >= limits.clients_per_ip:
            return "clients_per_ip"
        return None

    def _turn_away(self, reason: str, viewer: Viewer) -> Answer | Stream:
        """An `EventSource` gives up for good on 503 or 502; a stream that has ended makes it come back. Others are told."""
        self._refusals[reason] += 1
        if not viewer.is_event_source:
            again = (b"retry-after", b"%d" % random.uniform(*COMEBACK))
            return problem(503, "there is no room for this now; come back later", (again, *viewer.shared))
        return Stream((*_stream_headers(EVENT_STREAM), *viewer.shared), _comeback(), None)

    def _turn_back(self, status: int, viewer: Viewer) -> Stream:
        """The upstream cannot open a stream of its own for this viewer now, who is told so and comes back."""
        fact = {"reason": "upstream", "status": status, "message": "the upstream cannot be asked now"}
        fault = encode_event(Event(encode(fact), "fault"))
        return Stream((*_stream_headers(EVENT_STREAM), *viewer.shared), _comeback() + fault, None)

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

    def _preflight(self, request: Request, shared: tuple[Pair, ...]) -> Answer:
        served = self.table.router.allowed(request.target.partition(b"?")[0])
        listed = b", ".join(name.encode() for name in sorted(served) if name != "OPTIONS")
        cors = self.table.cors
        told = cors.preflight(request.headers, listed) if cors is not None else ()
        return Answer(204, ((b"allow", listed + b", OPTIONS"), *shared, *told))

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
            if not isinstance(watch.route, PollRoute) or not isinstance(watch.source, PollSource):
                return False
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
                    streams=dict(slot.record.openings),
                )
                for name, slot in self.table.slots.items()
            ),
        )


def _open_state(config: Config, ledger: Ledger, cursors: Cursors) -> None:
    """Read what an earlier process has left, and see that it can be written where there will be something to write."""
    try:
        ledger.load()
        if any(route.webhook is not None and route.webhook.subscribe is not None for route in config.routes):
            ledger.prepare()  # else there is nothing to write, and the folder need not be there
        if any(route.feed is not None for route in config.routes):
            cursors.prepare()
    except (OSError, ValueError) as error:
        fact = f"{error.strerror or error}" if isinstance(error, OSError) else "its subscriptions.json is damaged"
        message = f"{config.server.state_dir}: {fact[:1].lower()}{fact[1:]}; name a folder that the gate may write to"
        raise ConfigError([Problem(config.source, 0, 0, "value", "server.state_dir", message)]) from error


def _stream_headers(media: str) -> tuple[Pair, ...]:
    return (
        (b"content-type", media.encode()),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    )


def _make_epoch() -> str:
    """65 bits in eleven letters and digits: by its epoch a client that cannot read the name of its stream finds it again."""
    return "".join(secrets.choice(_LETTERS) for _ in range(11))


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
