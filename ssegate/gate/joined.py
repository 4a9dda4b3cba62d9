"""Several topics on one stream: each is found, guarded and opened for itself, and what cannot be opened says so in its own `end`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ssegate.auth.guard import Down, Granted, Refused, Verdict
from ssegate.core.document import encode
from ssegate.core.event import place
from ssegate.core.hub import EARLIEST, Subscriber, Topic
from ssegate.core.joined import Join
from ssegate.core.journal import Position
from ssegate.core.principal import Principal
from ssegate.core.routing import accepted_query, parse_query
from ssegate.core.shape import EVENT_STREAM, Shape
from ssegate.core.tickets import BLANK
from ssegate.core.vector import BEGINNING, UNKNOWN, decode_vector
from ssegate.edge.exchange import Answer, Stream, problem
from ssegate.gate.rights import Still
from ssegate.gate.routes import JoinedRoute, WebhookRoute
from ssegate.gate.topics import Watch
from ssegate.gate.visit import Viewer, Visit, no_room, stream_headers
from ssegate.gate.watched import WatchedRoute

if TYPE_CHECKING:
    from ssegate.gate.streams import Streams


_OPENABLE = 200
"""Of a topic that is not opened, but might be."""


@dataclass(frozen=True, slots=True)
class Found:
    """A topic that this viewer may read."""

    topic: Topic
    granted: Granted | None
    """Under which right; None where everybody may."""
    still: Still
    since: Position


class TurnedAwayError(Exception):
    """There is nothing for this viewer now; it is to come back. Its message is the reason. Never leaves this module."""


class JoinedOpening:
    """One request for several topics, on its way to a stream."""

    def __init__(self, streams: Streams, target: JoinedRoute, viewer: Viewer) -> None:
        self._streams = streams
        self._target = target
        self.viewer = viewer
        """Also as whom it was let in, when topics have been found."""
        self._verdicts: dict[tuple[str, ...], Verdict] = {}
        self._found: dict[str, Found | int] = {}
        """By the topic's name: the topic, or the status that a request for it alone would get."""
        self._noted: set[tuple[str, ...]] = set()
        self._is_head = False
        self._refused: Refused | None = None
        self._readers: list[tuple[Subscriber, Found]] = []

    async def head(self, names: Sequence[str]) -> Answer:
        """What a request would get that asks for the head alone: no topic is opened for it."""
        self._is_head = True
        try:
            statuses = {await self._find(name) for name in names}
        except TurnedAwayError:
            return no_room(self.viewer.shared)
        if _OPENABLE in statuses:
            return Answer(200, (*stream_headers(self.viewer.media), *self.viewer.shared))
        return self._refuse({status for status in statuses if isinstance(status, int)})

    async def find(self, names: Sequence[str]) -> str | None:
        """Find the topics, in their order. Returns why the viewer is to come back later, if it is."""
        reason: str | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._find(name)) for name in names]
        except* TurnedAwayError as turned_away:
            reason = str(turned_away.exceptions[0])
        else:
            self._found = {name: task.result() for name, task in zip(names, tasks, strict=True)}
            self._find_out_who()
        return reason

    def _find_out_who(self) -> None:
        """Where the joined route has no guard, its topics say who the viewer is."""
        if self.viewer.granted is None:
            known = (found.granted for found in self._found.values() if isinstance(found, Found))
            self.viewer = replace(self.viewer, granted=next((each for each in known if each is not None), None))

    async def _find(self, name: str) -> Found | int:
        path, _, query = name.partition("?")
        if not name.isascii() or not name.isprintable() or " " in name or "#" in name:
            return 404
        match = self.viewer.table.router.match("GET", path.encode(), EVENT_STREAM)
        if match is None or not isinstance(match.target, WatchedRoute | WebhookRoute):
            return 404
        target = match.target
        asked = accepted_query(target.route.query, parse_query(query.encode()))
        if target.route.path not in self._target.paths or asked is None:
            return 404
        granted = await self._judge(target.route.auth or (), path)
        if isinstance(granted, int):
            return granted
        return await self._watch(target, path, match.params, asked, granted)

    async def _judge(self, names: tuple[str, ...], path: str) -> Granted | int | None:
        """As whom the viewer is let in by these guards; None where there are none, and a status where it is not."""
        if not names:
            return None
        granted = self.viewer.granted
        if granted is not None and granted.principal.guard in names:
            return granted
        if names not in self._verdicts:
            verdict = self._streams.door.judge(names, self._streams.question(self.viewer.request))
            judged = verdict if isinstance(verdict, Granted | Refused | Down) else await verdict
            self._verdicts.setdefault(names, judged)
        judged = self._verdicts[names]
        if isinstance(judged, Down):
            raise TurnedAwayError("guard")
        if not isinstance(judged, Refused):
            return judged
        if names not in self._noted:  # once for all topics with these guards: there may be a hundred
            self._noted.add(names)
            self._note(judged, names, path)
        return judged.status

    def _note(self, refused: Refused, names: Sequence[str], path: str, principal: Principal | None = None) -> int:
        self._refused = self._refused or refused
        self._streams.door.note(refused, names, replace(self.viewer.asked, path=path), principal)
        return refused.status

    async def _watch(
        self,
        target: WatchedRoute | WebhookRoute,
        path: str,
        params: Mapping[str, str],
        asked: Mapping[str, str],
        granted: Granted | None,
    ) -> Found | int:
        streams, headers = self._streams, self.viewer.request.headers
        principal = None if granted is None else granted.principal
        if reason := streams.stays_out(target, params, asked, headers, principal):
            return self._note(Refused(403, reason), target.route.auth or (), path, principal)
        if self._is_head:
            return _OPENABLE
        if self.viewer.table is not streams.table:
            raise TurnedAwayError("reloaded")  # the guard was waited for, and its route may be another now
        found = streams.find(target, params, asked, headers, principal)
        if isinstance(found, int):
            return found
        if found is None:
            raise TurnedAwayError("topics")
        topic = found.topic if isinstance(found, Watch) else found
        still = streams.still(target, params, asked, headers, found)
        since = self.viewer.since or Position(topic.journal.epoch, topic.journal.head)
        if isinstance(found, Watch) and found.is_cold:
            status = await streams.topics.first_answer(found)
            if status is not None:
                streams.note_upstream(status, target.route, self.viewer)
                return status
            if streams.topics.hub.get(topic.key) is not topic:
                raise TurnedAwayError("topics")  # it had to give way meanwhile
        if (fault := streams.fault(granted)) is not None:  # it may have been revoked meanwhile
            return self._note(fault, target.route.auth or (), path, principal)
        return Found(topic, granted, still, since)

    # The answer

    def answer(self) -> Answer | Stream:
        """The stream of all that was found; or the status, where nothing was."""
        viewer, statuses = self.viewer, {found for found in self._found.values() if isinstance(found, int)}
        if len(statuses) > 0 and all(isinstance(found, int) for found in self._found.values()):
            return self._refuse(statuses)
        shape = None if viewer.media == EVENT_STREAM else Shape(viewer.media)
        join, is_resumed = self._join()
        join.subscriber.shape = shape
        if not join.members:  # of what it may read it has had every end
            join.leave()
            return Answer(204, viewer.shared)
        self._streams.joined[join] = self._target.route
        visit = Visit(self._streams, viewer, partial(self._streams.part, join))
        self._sit(visit, join)
        begin = join.vector
        state = join.opening()
        if viewer.ticket is not None and shape is None:
            proven = viewer.proven  # and not the request
            visit.has_sent = lambda: _sent_by(join, begin, proven)
            state = place(begin or BLANK) + state  # before it, as an opening may go on in what is read
        return self._streams.begin(self._target.route, viewer, visit, join.subscriber, state, is_resumed=is_resumed)

    def _refuse(self, statuses: set[int]) -> Answer:
        """Nothing of it is for this viewer: 403 if anything is for others, 401 if it has shown nothing, else 404."""
        viewer = self.viewer
        for status in (403, 401):
            if status in statuses:
                refused = self._refused if self._refused is not None and self._refused.status == status else None
                return self._streams.door.answer_refused(
                    refused or Refused(status, ""), self._target.sellers, viewer.asked
                )
        return problem(404, "there is nothing at these paths", viewer.shared)

    def _join(self) -> tuple[Join, bool]:
        """Read all that was found. Second: whether each of them goes on exactly where the client stood."""
        viewer, streams = self.viewer, self._streams
        vector = None if viewer.cursor is None else decode_vector(viewer.cursor)
        join = Join(vector, leave=streams.topics.unsubscribe, schedule=asyncio.get_running_loop().call_soon)
        is_resumed = True
        for name, found in self._found.items():
            if isinstance(found, int):
                join.refuse(name, encode({"reason": "refused" if found in (401, 403) else "unknown", "status": found}))
                continue
            cursor: str | None
            if viewer.cursor is None or viewer.cursor == EARLIEST:
                cursor = viewer.cursor
            else:
                cursor = UNKNOWN if vector is None else vector.cursor(name, found.topic.journal.epoch)
            since = found.since
            if cursor == BEGINNING:  # it had had no event: the client gets all that came since
                cursor, since = None, Position("", 0)
            opening = streams.topics.subscribe(found.topic, cursor, None, since)
            join.add(name, opening)
            is_resumed = is_resumed and (opening.is_resumed or opening.is_finished)
            if not opening.is_finished:
                self._readers.append((opening.subscriber, found))
        return join, is_resumed

    def _sit(self, visit: Visit, join: Join) -> None:
        for reader, found in self._readers:
            if found.granted is not None:
                visit.sit(found.granted, reader, join.subscriber, found.still)


def _sent_by(join: Join, begin: str, proven: str | None) -> Callable[[str], bool]:
    """By what a ticket is good again; the join itself is not kept for that."""
    begun, ended = decode_vector(begin), decode_vector(join.vector)

    def has_sent(cursor: str) -> bool:
        if cursor == proven or (cursor == BLANK and begun is None):
            return True
        place = decode_vector(cursor)
        return place is not None and ended is not None and place.is_between(begun, ended)

    return has_sent
