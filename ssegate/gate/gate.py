"""Answers requests, and goes up, over to another configuration, and down."""

from __future__ import annotations

import asyncio
import random
import secrets
import string
from collections.abc import Awaitable, Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import unquote

from ssegate.admin.denials import Denials
from ssegate.admin.diary import Diary, Entry
from ssegate.admin.metrics import GateFigures, SubscriptionFigures, UpstreamFigures
from ssegate.auth.guard import Down, Guard, Refused, Verdict
from ssegate.brokers.memory import MemoryBroker
from ssegate.config.model import Config
from ssegate.core.hub import Hub, Topic
from ssegate.core.lease import Standing
from ssegate.core.principal import Principal
from ssegate.core.routing import has_one_reading, parse_query, split_path
from ssegate.core.shape import OFFERED
from ssegate.edge.exchange import Answer, Relay, Reply, Request, problem
from ssegate.errors import ConfigError, Problem
from ssegate.gate.client import client_answers
from ssegate.gate.deliveries import Deliveries
from ssegate.gate.door import TICKET_MARK, Asked, Door
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import JoinedRoute, ProxyRoute, Table
from ssegate.gate.streams import Streams
from ssegate.gate.subscriptions import Subscriptions
from ssegate.gate.tickets import PATH as TICKET_PATH
from ssegate.gate.tickets import TicketDesk
from ssegate.gate.topics import Topics, Watch
from ssegate.gate.visit import comeback, no_room, without_ticket
from ssegate.gate.watched import PollRoute, UpstreamSlot
from ssegate.interfaces import Broker
from ssegate.sources.cursors import Cursors
from ssegate.sources.poll import PollSource
from ssegate.sources.subscription import TOKEN_LENGTH, Ledger
from ssegate.sources.telling import let_them_read
from ssegate.upstream.forwarded import client_address

OWN_PATHS = b"/_ssegate/"
"""Paths that begin so are the gate's own."""

_LETTERS = string.ascii_letters + string.digits

DRAIN_PART = 0.75
"""The part of the drain's timeout over which streams are ended; the rest is for their last bytes."""

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})

_UNACCEPTABLE = f"this is an event stream; let Accept name one of {', '.join(OFFERED)}"


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
        self.door = Door(self.table.guards)
        self.streams = Streams(self.topics, self.door, self.table)
        self._desk = TicketDesk(self.streams)
        self.subscriptions = Subscriptions(self._ledger, lambda: self.table)
        self.deliveries = Deliveries(self.topics, Diary(secrets.token_hex(4)), self.subscriptions.keepers)
        self._own = {**client_answers(), **(own or {})}
        self._is_started = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.table.config

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way down."""
        return self.streams.is_draining

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

    @property
    def denials(self) -> Denials:
        """The last viewers who were not let in."""
        return self.door.denials

    def revoke(self, identity: str) -> int:
        """Put a viewer out: end all of its streams, and take nothing any more that it has shown. Returns how many streams that were."""
        self.door.revoke(identity, self.streams.rights.shown_by(identity))
        return self.streams.rights.revoke(identity)

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
        for guard in self.table.guards.values():
            guard.begin()
        self._is_started = True

    def begin_subscriptions(self) -> None:
        """Ask the backends for their webhooks. They call back at once, so it is listened before that."""
        self.subscriptions.begin()

    def reload(self, config: Config) -> None:
        """Go over to another configuration. Streams of routes that are the same in both stay open."""
        before = self.table
        self.table = Table(config, before=before, ledger=self._ledger, cursors=self._cursors)
        self.streams.table = self.table
        self._change_guards(before.guards, self.table.guards)
        self.streams.end_joined(config.routes)
        self.subscriptions.begin()
        self.topics.max_topics = config.limits.topics
        gone = [
            route
            for route in before.routes
            if not isinstance(route, ProxyRoute | JoinedRoute) and route not in self.table.routes
        ]
        leaving = self.topics.owned_by(gone)
        for topic in leaving:
            self.topics.forget(topic.key, for_good=False)
        slots = [slot for slot in before.slots.values() if slot not in self.table.slots.values()]
        self._spawn(self._retire(leaving, slots, config.server.drain.timeout))

    def _change_guards(self, before: Mapping[str, Guard], after: Mapping[str, Guard]) -> None:
        self.door.guards = after
        self.streams.rights.go_over(before, after)
        kept = set(after.values())
        for guard in after.values():
            guard.begin()
        for name, guard in before.items():
            if guard not in kept:
                if name in after:
                    guard.give_way(after[name])
                self._spawn(guard.aclose())

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
        self.streams.is_draining = True
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
            subscriber.close(comeback())

    async def aclose(self) -> None:
        """Stop polling and let go of everything. Streams that are still open end without a word."""
        self._is_started = False
        for task in self._tasks:
            task.cancel()
        for topic in self.topics:
            for subscriber in tuple(topic.subscribers):
                subscriber.close()
        await self.streams.rights.aclose()
        await self.subscriptions.aclose()
        await self.topics.aclose()
        for guard in self.table.guards.values():
            await guard.aclose()
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
            return self._relay(match.target, match.params, request, path)
        return self.streams.answer(match.target, match.params, request, query)

    def _answer_own(self, path: bytes, request: Request) -> Answer | Awaitable[Answer]:
        """The gate's own things; what the client has already is not sent again (RFC 9110, 13.1.2)."""
        if path == TICKET_PATH:
            return self._desk.answer(request, self.table)
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
        shared = self.table.cors_headers(request.headers)
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

    # Pass-through

    def _relay(
        self, target: ProxyRoute, params: Mapping[str, str], request: Request, path: bytes
    ) -> Relay | Answer | Awaitable[Relay | Answer]:
        if b"?" in request.target:
            shown = without_ticket(request.target, TICKET_MARK)  # it is nobody else's business
            request = request if shown is request.target else replace(request, target=shown)
        names = target.route.auth
        if not names or _is_preflight(request):
            return self._pass_on(target, params, request, path, None)
        verdict = self.door.judge(names, self.streams.question(request))
        if isinstance(verdict, Awaitable):
            return self._relay_later(verdict, target, params, request, path)
        return self._relay_judged(verdict, target, params, request, path)

    async def _relay_later(
        self, verdict: Awaitable[Verdict], target: ProxyRoute, params: Mapping[str, str], request: Request, path: bytes
    ) -> Relay | Answer:
        return self._relay_judged(await verdict, target, params, request, path)

    def _relay_judged(
        self, verdict: Verdict, target: ProxyRoute, params: Mapping[str, str], request: Request, path: bytes
    ) -> Relay | Answer:
        if isinstance(verdict, Down):
            return no_room(())
        if isinstance(verdict, Refused):
            return self.door.refuse(verdict, target.route.auth or (), self._asked(request, path))
        return self._pass_on(target, params, request, path, verdict.principal)

    def _pass_on(
        self,
        target: ProxyRoute,
        params: Mapping[str, str],
        request: Request,
        path: bytes,
        principal: Principal | None,
    ) -> Relay | Answer:
        if target.route.allow is not None and not _is_preflight(request):
            if not has_one_reading(path):  # `allow` would judge another path than the upstream serves
                return problem(404, "the path can be read in more than one way")
            params = {name: unquote(value) for name, value in params.items()}
            query = dict(parse_query(request.target.partition(b"?")[2]))
            if reason := self.door.allows(target.route, principal, params, query, request.headers):
                return self.door.refuse(
                    Refused(403, reason), target.route.auth or (), self._asked(request, path), principal
                )
        upstream = target.slot.upstream
        more = () if principal is None else upstream.personal(principal)
        begin = partial(upstream.relay, request, self.config.server.trusted_proxies, more=more)
        done = partial(self._follow_write, target.slot, path) if request.method in _WRITES else None
        return Relay(begin, done)

    def _asked(self, request: Request, path: bytes) -> Asked:
        address = client_address(request.peer, request.headers, self.config.server.trusted_proxies)
        return Asked(path.decode("latin-1"), address, ())

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
            clients=self.streams.clients,
            topics=len(self.hub),
            topics_watched=sum(topic.is_watched for topic in self.hub),
            events=tally.events,
            resets=tally.resets,
            faults=tally.faults,
            refused=dict(self.streams.refusals),
            denied=dict(self.denials.counts),
            ended=dict(self.streams.rights.ended),
            rights=len(self.streams.rights),
            questions={name: outcomes for name, guard in self.table.guards.items() if (outcomes := guard.outcomes)},
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


def _is_preflight(request: Request) -> bool:
    """Whether a browser asks what another origin's page may send: such a request never has a credential (Fetch, 3.2.5)."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


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


def _make_epoch() -> str:
    """65 bits in eleven letters and digits: by its epoch a client that cannot read the name of its stream finds it again."""
    return "".join(secrets.choice(_LETTERS) for _ in range(11))
