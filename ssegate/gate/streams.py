"""How a viewer comes to a stream: who that is, which topic, what is said instead of it; and what happens when it leaves."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ssegate.auth.guard import Down, Granted, Question, Refused, Verdict
from ssegate.config.model import Route
from ssegate.core.document import encode
from ssegate.core.event import Event, encode_event, encode_retry, place
from ssegate.core.headers import Headers
from ssegate.core.hub import EARLIEST, Subscriber, Topic
from ssegate.core.joined import Join
from ssegate.core.journal import Position
from ssegate.core.principal import Principal
from ssegate.core.rate import Rates
from ssegate.core.routing import accepted_query, parse_query
from ssegate.core.shape import EVENT_STREAM, JSON, OFFERED, Shape, choose
from ssegate.core.tickets import BLANK, Span
from ssegate.core.vector import MAX_TOPICS, MAX_VECTOR
from ssegate.edge.exchange import Answer, Reply, Request, Stream, bad_gateway, problem
from ssegate.errors import RejectedError, UpstreamError
from ssegate.gate.door import TICKET_FIELD, Door
from ssegate.gate.joined import JoinedOpening
from ssegate.gate.own import Asked as Opened
from ssegate.gate.own import OwnStreams
from ssegate.gate.rights import Rights, Seat, Still
from ssegate.gate.routes import AnyEventRoute, EventRoute, JoinedRoute, NamesOf, Table, WebhookRoute
from ssegate.gate.topics import Topics, Watch
from ssegate.gate.visit import (
    STREAM_HEADER,
    Viewer,
    Visit,
    comeback,
    no_room,
    nothing_sent,
    read_cursor,
    stream_headers,
    without_ticket,
)
from ssegate.gate.watched import StreamRoute, TaskRoute
from ssegate.gate.whole import answer_whole, read_wait
from ssegate.upstream.forwarded import client_address

MAX_CURSOR = 256

Proceed = Callable[[Viewer], Reply | Awaitable[Reply]]

_UNACCEPTABLE = "this is an event stream; let Accept name one of {}"
_NO_SUCH_STREAM = "there is no stream with this name, or it is not yours"
_NOTHING = Headers()
_FORGING = re.compile(r"[\r\n\0]")
_STREAMING = tuple(media for media in OFFERED if media != JSON)


class Streams:
    """All streams that are open, and how they are opened."""

    def __init__(self, topics: Topics, door: Door, table: Table) -> None:
        self.topics = topics
        self.door = door
        self.table = table
        """The configuration in force, made ready; replaced with it."""
        self.own = OwnStreams(topics)
        self.rights = Rights(lambda name: door.guards.get(name), comeback, door.tickets.void)
        self.is_draining = False
        self.clients = 0
        """How many are open."""
        self.joined: dict[Join, Route] = {}
        """Those of them that join several topics, and by which route."""
        self.refusals: Counter[str] = Counter()
        """How many were turned away, by reason."""
        self._by_ip: Counter[str] = Counter()
        self._by_user: Counter[str] = Counter()
        self._rates = Rates()

    # A request

    def answer(
        self, target: AnyEventRoute, params: Mapping[str, str], request: Request, query: bytes
    ) -> Reply | Awaitable[Reply]:
        """Answer a request to an event route."""
        route = target.route.route if isinstance(target, NamesOf) else target.route
        shared = self.table.shared_headers(route, request.headers)
        if request.method == "OPTIONS":
            return self.table.preflight(request, shared)
        fields = parse_query(query)
        asked = accepted_query({} if isinstance(target, NamesOf) else route.query, fields)
        if asked is None:
            return problem(404, "a query parameter does not have the form this route accepts", shared)
        offered = _offered(target, route)
        media = choose(request.headers.get("accept"), offered)
        if media is None:
            return problem(406, _UNACCEPTABLE.format(", ".join(offered)), shared)
        try:
            wait = read_wait(None if media != JSON or "wait" in asked else dict(fields).get("wait"))
        except RejectedError as error:
            return problem(error.status, str(error), shared)
        address = client_address(request.peer, request.headers, self.table.config.server.trusted_proxies)
        longest = MAX_VECTOR if isinstance(target, JoinedRoute) else MAX_CURSOR
        cursor = read_cursor(request.headers, fields, longest)
        viewer = Viewer(request, address, cursor, media, wait, shared, self.table)
        if (reason := self.refusal(viewer)) is not None or (reason := self._hurry(address)) is not None:
            return self.turn_away(reason, viewer)
        if isinstance(target, JoinedRoute):
            topics = tuple(dict.fromkeys(value for name, value in fields if name == "topic"))
            proceed: Proceed = partial(self._open_joined, target, topics)
        else:
            proceed = partial(self._open, target, params, asked)
        return self._admit(target, dict(fields).get(TICKET_FIELD), viewer, proceed)

    # Who it is

    def _admit(
        self,
        target: AnyEventRoute,
        ticket: str | None,
        viewer: Viewer,
        proceed: Proceed,
    ) -> Reply | Awaitable[Reply]:
        """Let the viewer in, by its ticket or by its own credential, and go on; or not."""
        names = guards_of(target)
        sellers = target.sellers if isinstance(target, JoinedRoute) else names
        if ticket and sellers:
            return self._admit_by_ticket(ticket, sellers, viewer, proceed)
        if not names:
            return proceed(viewer)
        verdict = self.door.judge(names, self.question(viewer.request))
        if isinstance(verdict, Awaitable):
            return self._admit_later(verdict, names, viewer, proceed)
        return self._admitted(verdict, names, viewer, proceed)

    def question(self, request: Request) -> Question:
        """What a guard is asked about a request."""
        return Question(
            request, request.method, without_ticket(request.target), self.table.config.server.trusted_proxies
        )

    async def _admit_later(
        self,
        verdict: Awaitable[Verdict],
        names: Sequence[str],
        viewer: Viewer,
        proceed: Proceed,
    ) -> Reply:
        reply = self._admitted(await verdict, names, viewer, proceed)
        return await reply if isinstance(reply, Awaitable) else reply

    def _admitted(
        self,
        verdict: Verdict,
        names: Sequence[str],
        viewer: Viewer,
        proceed: Proceed,
    ) -> Reply | Awaitable[Reply]:
        if isinstance(verdict, Down):
            return self.turn_away("guard", viewer)
        if isinstance(verdict, Refused):
            return self.door.refuse(verdict, names, viewer.asked)
        viewer.granted = verdict
        if (reason := self.refusal(viewer)) is not None:
            return self.turn_away(reason, viewer)
        return proceed(viewer)

    async def _admit_by_ticket(
        self,
        text: str,
        sellers: Sequence[str],
        viewer: Viewer,
        proceed: Proceed,
    ) -> Reply:
        ticket, verdict = self.door.take(text, viewer.asked.path, viewer.cursor, sellers)
        if ticket is None:
            reply = self._admitted(verdict, sellers, viewer, proceed)
            return await reply if isinstance(reply, Awaitable) else reply
        viewer = replace(viewer, ticket=ticket, proven=viewer.cursor if ticket.is_used else None)
        if viewer.cursor == BLANK:  # its topic had no event then: it gets all that came since
            viewer = replace(viewer, cursor=None, since=Position("", 0))
        is_used = False
        try:
            reply = self._admitted(verdict, sellers, viewer, proceed)
            reply = await reply if isinstance(reply, Awaitable) else reply
            is_used = isinstance(reply, Stream) and reply.subscriber is not None
            if isinstance(reply, Answer) and reply.status < 300 and viewer.request.method != "HEAD":
                ticket.leave(nothing_sent, time.monotonic())  # it had its one answer
                is_used = True
        finally:
            if not is_used:
                ticket.put_back()
        return reply

    def stays_out(
        self,
        target: EventRoute | NamesOf,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        headers: Headers,
        principal: Principal | None,
    ) -> str:
        """Why the route is not for this viewer, for the operator; empty when it is."""
        event_route = target.route if isinstance(target, NamesOf) else target
        for name in event_route.needs:
            if principal is None or principal.value(name) is None:
                return f"the credential has no `{name}`, which the route wants"
        if event_route.route.allow is None:
            return ""
        if isinstance(target, NamesOf):
            params = {name: value for name, value in params.items() if name in event_route.parameters}
        return self.door.allows(event_route.route, principal, params, asked, headers)

    # Which topic

    def _open(
        self, target: EventRoute | NamesOf, params: Mapping[str, str], asked: Mapping[str, str], viewer: Viewer
    ) -> Reply | Awaitable[Reply]:
        headers = viewer.request.headers
        principal = viewer.principal
        if reason := self.stays_out(target, params, asked, headers, principal):
            return self.door.refuse(Refused(403, reason), guards_of(target), viewer.asked, principal)
        if viewer.request.method == "HEAD":
            if isinstance(target, NamesOf) and self.own.find(target.route, params, headers, principal) is None:
                return problem(404, _NO_SUCH_STREAM, viewer.shared)
            return Answer(200, (*stream_headers(viewer.media), *viewer.shared))
        if isinstance(target, NamesOf):
            watch = self.own.find(target.route, params, headers, principal)
            if watch is None:
                return problem(404, _NO_SUCH_STREAM, viewer.shared)
            return self._show_own(watch, viewer, self.still(target.route, params, asked, headers, watch))
        if isinstance(target, StreamRoute | TaskRoute) and target.is_own:
            watch = self.own.resumed(target, viewer.cursor, headers, principal)
            if watch is None:
                return self._open_own(target, params, asked, viewer)
            return self._show_own(watch, viewer, self.still(target, params, asked, headers, watch))
        found = self.find(target, params, asked, headers, principal)
        if isinstance(found, int):
            return problem(found, "the path or the query does not make a resource", viewer.shared)
        if found is None:
            return self.turn_away("topics", viewer)
        still = None if principal is None else self.still(target, params, asked, headers, found)
        if isinstance(found, Watch) and found.is_cold:
            return self._show_cold(found, viewer, still)
        return self._show(found.topic if isinstance(found, Watch) else found, target.route, viewer, still)

    def find(
        self,
        target: EventRoute,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        headers: Headers,
        principal: Principal | None,
    ) -> Watch | Topic | int | None:
        """The topic that this viewer means, watched if it is to be; a status where there can be none; None when there is no room.

        Whoever gets it uses it in the same turn of the loop; see `Topics.watch`."""
        if isinstance(target, WebhookRoute):
            return self.topics.open(target.key(target.values(params, principal)), target)
        try:
            wanted = target.target(params, asked, headers, principal)
        except (ValueError, LookupError):
            return 404
        values = params if principal is None else {**params, **principal.values(target.needs)}
        return self.topics.watch(target, target.key(wanted), partial(target.make_source, target=wanted), values)

    def still(
        self,
        target: EventRoute,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        headers: Headers,
        found: Watch | Topic,
    ) -> Still:
        """Whether the viewer, when more is known of it, would be shown the same.

        What it holds lives as long as the stream: the viewer's headers only where they matter."""
        watched = None if isinstance(target, WebhookRoute) else target
        matter = target.route.allow is not None or (watched is not None and bool(watched.forward))
        kept = headers if matter else _NOTHING
        owner = found.owner if isinstance(found, Watch) else b""
        key = found.topic.key if isinstance(found, Watch) else found.key
        return partial(self._is_same, target, params, asked, kept, key, owner)

    def _is_same(
        self,
        target: EventRoute,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        headers: Headers,
        key: str,
        owner: bytes,
        principal: Principal,
    ) -> bool:
        if self.stays_out(target, params, asked, headers, principal):
            return False
        if isinstance(target, WebhookRoute):
            return target.key(target.values(params, principal)) == key
        if target.is_own:
            return target.owner(headers, principal) == owner
        try:
            return target.key(target.target(params, asked, headers, principal)) == key
        except ValueError:  # who it is now makes no URL
            return False

    # What it is shown

    async def _show_cold(self, watch: Watch, viewer: Viewer, still: Still | None) -> Reply:
        """Wait for the first answer of the upstream; what it says may be ours."""
        journal = watch.topic.journal
        viewer = replace(viewer, since=viewer.since or Position(journal.epoch, journal.head))
        status = await self.topics.first_answer(watch)
        if status is not None:
            self.note_upstream(status, watch.route.route, viewer)
            return problem(status, f"the upstream answered {status}", viewer.shared)
        topic = self.topics.hub.get(watch.topic.key)  # it may have had to give way meanwhile
        if (reason := self.refusal(viewer)) is not None:
            return self.turn_away(reason, viewer)
        shown = self._show(topic, watch.route.route, viewer, still)
        return await shown if isinstance(shown, Awaitable) else shown

    async def _open_own(
        self, target: StreamRoute | TaskRoute, params: Mapping[str, str], asked: Mapping[str, str], viewer: Viewer
    ) -> Reply:
        """Open a stream that belongs to this request; what the upstream says before it begins may be our answer."""
        principal = viewer.principal
        opening = Opened(viewer.request, params, asked, self.table.config.limits.stream_body, principal, viewer.shared)
        try:
            opened = await self.own.open(target, opening)
        except UpstreamError as error:
            answer = bad_gateway(error)
            opened = Answer(answer.status, (*answer.headers, *viewer.shared), answer.body)
        if opened is None:
            return self.turn_away("topics", viewer)
        if isinstance(opened, Answer):
            self.note_upstream(opened.status, target.route, viewer)
            is_trouble = opened.status >= 500 and viewer.is_event_source
            return self._turn_back(opened.status, viewer) if is_trouble else opened
        still = self.still(target, params, asked, viewer.request.headers, opened)
        shown = self._show_own(opened, viewer, still)
        return await shown if isinstance(shown, Awaitable) else shown

    def note_upstream(self, status: int, route: Route, viewer: Viewer) -> None:
        """The upstream says what the viewer is told; where that is a refusal, an operator may want to know why."""
        if status in (401, 403):
            refused = Refused(status, f"the upstream answered {status}")
            self.door.note(refused, route.auth or (), viewer.asked, viewer.principal)

    def _show_own(self, watch: Watch, viewer: Viewer, still: Still | None) -> Reply | Awaitable[Reply]:
        self.topics.go_on(watch)
        viewer = replace(viewer, shared=(*viewer.shared, (STREAM_HEADER, watch.name.encode())))
        if isinstance(watch.route, TaskRoute) and watch.is_cold:
            return self._show_cold(watch, viewer, still)
        return self._show(watch.topic, watch.route.route, viewer, still)

    def _show(self, topic: Topic | None, route: Route, viewer: Viewer, still: Still | None) -> Reply | Awaitable[Reply]:
        """Let the viewer read the topic, in the shape that was asked for."""
        if topic is None:
            return self.turn_away("topics", viewer)
        if (fault := self.fault(viewer.granted)) is not None:  # it may have been revoked while somebody was asked
            self.topics.let_go(topic)
            return self.door.refuse(fault, route.auth or (), viewer.asked, viewer.principal)
        if viewer.media == JSON:
            seats: list[Seat] = []

            def sit(reader: Subscriber) -> None:
                if viewer.granted is not None and still is not None:
                    seats.append(self.rights.take(viewer.granted, reader, reader, still))

            answer = answer_whole(self.topics, topic, viewer.cursor, viewer.wait, viewer.shared, sit)
            return answer if isinstance(answer, Answer) else self._hold(answer, seats, viewer)
        return self._stream(topic, route, viewer, still)

    async def _hold(self, answer: Awaitable[Answer], seats: Sequence[Seat], viewer: Viewer) -> Answer:
        """A client that waits for news counts like one that reads a stream, and so does its right, which may end meanwhile."""
        self.enter(viewer.address, viewer.identity)
        try:
            held = await answer
        finally:
            self.leave(viewer.address, viewer.identity)
            for seat in seats:
                self.rights.leave(seat)
        fault = self.fault(viewer.granted)
        if any(seat.is_over for seat in seats):
            fault = fault or Refused(401, "the right has ended while the request waited")
        if viewer.granted is not None and fault is not None:
            return self.door.refuse(fault, (viewer.granted.principal.guard,), viewer.asked, viewer.principal)
        return held

    def fault(self, granted: Granted | None) -> Refused | None:
        """Why a right that was granted a while ago is good no more; None when it is."""
        return None if granted is None else self.door.has_ended(granted)

    def _stream(self, topic: Topic, route: Route, viewer: Viewer, still: Still | None) -> Answer | Stream:
        shape = None if viewer.media == EVENT_STREAM else Shape(viewer.media)
        opening = self.topics.subscribe(topic, viewer.cursor, shape, viewer.since)
        if opening.is_finished:
            return Answer(204, viewer.shared)
        subscriber, state = opening.subscriber, opening.data
        visit = Visit(self, viewer, partial(self.topics.unsubscribe, subscriber))
        if viewer.granted is not None and still is not None:
            visit.sit(viewer.granted, subscriber, subscriber, still)
        if viewer.ticket is not None and shape is None:
            begin, proven = subscriber.position, viewer.proven
            if viewer.cursor == EARLIEST and begin.epoch:
                begin = Position(begin.epoch, topic.journal.first - 1)  # the opening has told what the reader is behind
            visit.has_sent = lambda: _sent_by(subscriber, begin, proven)
            state = place(str(begin) if begin.epoch else BLANK) + state if b"\nid: " not in state else state
        return self.begin(route, viewer, visit, subscriber, state, is_resumed=opening.is_resumed)

    def begin(
        self, route: Route, viewer: Viewer, visit: Visit, subscriber: Subscriber, state: bytes, *, is_resumed: bool
    ) -> Stream:
        """The stream of somebody who has come in. Neither the opening, which has the document, nor the request lives as long."""
        resumed = (b"ssegate-resumed", b"yes" if is_resumed else b"no")
        retry = round(route.retry * 1000 * random.uniform(0.5, 1.5))
        shape = subscriber.shape
        return Stream(
            (*stream_headers(viewer.media), resumed, *viewer.shared),
            encode_retry(retry) if shape is None else shape.heartbeat,
            subscriber,
            state=state,
            heartbeat=route.heartbeat,
            max_age=route.max_age * random.uniform(0.8, 1.2) if route.max_age else None,
            close=visit.close,
        )

    # Several topics on one stream

    async def _open_joined(self, target: JoinedRoute, names: Sequence[str], viewer: Viewer) -> Reply:
        """Open what can be opened of the topics that are named, for this viewer, on one stream."""
        principal = viewer.principal
        if fault := self.door.allows(target.route, principal, {}, {}, viewer.request.headers):
            return self.door.refuse(Refused(403, fault), guards_of(target), viewer.asked, principal)
        if not 0 < len(names) <= MAX_TOPICS or any(not name or _FORGING.search(name) for name in names):
            return problem(400, f"name 1 to {MAX_TOPICS} topics: ?topic=/path&topic=/path", viewer.shared)
        opening = JoinedOpening(self, target, viewer)
        if viewer.request.method == "HEAD":
            return await opening.head(names)
        reason = await opening.find(names)
        viewer = opening.viewer
        if reason is not None or (reason := self.refusal(viewer)) is not None:
            return self.turn_away(reason, viewer)
        return opening.answer()

    def part(self, join: Join) -> None:
        """A joined stream is over."""
        del self.joined[join]
        join.leave()

    def end_joined(self, routes: Sequence[Route]) -> None:
        """Let the streams come back whose joined route is none of these any more."""
        for join in [join for join, route in self.joined.items() if route not in routes]:
            join.close(comeback())

    # Coming and going

    def enter(self, address: str, identity: str | None) -> None:
        """A client has a stream."""
        self.clients += 1
        self._by_ip[address] += 1
        if identity is not None:
            self._by_user[identity] += 1

    def leave(self, address: str, identity: str | None) -> None:
        """It has it no more."""
        self.clients -= 1
        _uncount(self._by_ip, address)
        if identity is not None:
            _uncount(self._by_user, identity)

    def refusal(self, viewer: Viewer) -> str | None:
        """Why there is no stream for this viewer now; None when there is. Asked again whenever something was waited for."""
        limits, identity = self.table.config.limits, viewer.identity
        if viewer.request.method == "HEAD":
            return None
        if self.is_draining:
            return "draining"
        if self.clients >= limits.clients:
            return "clients"
        if limits.clients_per_ip is not None and self._by_ip[viewer.address] >= limits.clients_per_ip:
            return "clients_per_ip"
        most = limits.clients_per_user
        if most is not None and identity is not None and self._by_user[identity] >= most:
            return "clients_per_user"
        if viewer.granted is not None and viewer.table is not self.table:
            return "reloaded"  # what it was let in by, and to, may be others now
        return None

    def _hurry(self, address: str) -> str | None:
        """Count a request; why it is one too many, if it is."""
        return None if self.may_ask(address) else "requests_per_second"

    def may_ask(self, address: str) -> bool:
        """Whether this address does not ask for streams and tickets too often; it is counted."""
        rate = self.table.config.limits.requests_per_second
        return rate is None or self._rates.allow(address, rate, time.monotonic())

    def turn_away(self, reason: str, viewer: Viewer) -> Answer | Stream:
        """An `EventSource` gives up for good on 503 or 502; a stream that has ended makes it come back. Others are told."""
        self.refusals[reason] += 1
        if not viewer.is_event_source:
            return no_room(viewer.shared)
        return Stream((*stream_headers(EVENT_STREAM), *viewer.shared), comeback(), None)

    def _turn_back(self, status: int, viewer: Viewer) -> Stream:
        """The upstream cannot open a stream of its own for this viewer now, who is told so and comes back."""
        fact = {"reason": "upstream", "status": status, "message": "the upstream cannot be asked now"}
        fault = encode_event(Event(encode(fact), "fault"))
        return Stream((*stream_headers(EVENT_STREAM), *viewer.shared), comeback() + fault, None)


def guards_of(target: AnyEventRoute) -> tuple[str, ...]:
    """The names of the guards that stand before it."""
    route = target.route.route if isinstance(target, NamesOf) else target.route
    return route.auth or ()


def _offered(target: AnyEventRoute, route: Route) -> Sequence[str]:
    if route.negotiate:
        return (EVENT_STREAM,)
    return _STREAMING if isinstance(target, JoinedRoute) else OFFERED


def _sent_by(reader: Subscriber, begin: Position, proven: str | None) -> Callable[[str], bool]:
    """By what a ticket is good again: what its reader has been sent, and what it came with, if that was found good before."""
    end = reader.position
    span = Span(begin if begin.epoch else Position(end.epoch, 0), end)
    return lambda cursor: (
        cursor == proven or (cursor == BLANK and not begin.epoch) or (bool(end.epoch) and span.covers(cursor))
    )


def _uncount(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
