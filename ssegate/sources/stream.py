"""Reads an upstream that streams, and publishes its records as they come."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ssegate.core.event import Kind, Update
from ssegate.core.follow import Follower, FollowRules
from ssegate.core.headers import Headers, Pair
from ssegate.core.poll import LONGEST_WAIT, retry_after
from ssegate.errors import UndecodableError, UpstreamError
from ssegate.interfaces import Publish
from ssegate.sources.awaited import Awaited
from ssegate.sources.telling import PASSED_ON, AskingRecord, Telling, for_viewers
from ssegate.upstream import Upstream
from ssegate.upstream.fetch import MAX_REDIRECTS, REDIRECTS
from ssegate.upstream.intake import AnswerHead, Intake
from ssegate.upstream.websocket import WebSocketIntake

SHORTEST_PAUSE = 0.1
"""Seconds between two connections at least, whatever the upstream says: `retry: 0` is an upstream's mistake."""

ACCEPTS = {
    "sse": b"text/event-stream",
    "ndjson": b"application/x-ndjson, application/jsonl;q=0.9, application/json;q=0.8, */*;q=0.1",
    "json-seq": b"application/json-seq, */*;q=0.1",
}
"""What is asked for by the formats that have a media type of their own."""

_PAGES = frozenset({"text/html", "application/xhtml+xml"})
"""A login form, or an error page of something in between: nothing that a format which has to be JSON could be in."""


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """What is asked: everything that decides what the upstream answers."""

    method: str
    path_at: Callable[[str], str]
    """Path and query behind the upstream's URL, percent-encoded, by the cursor; that is empty at first."""
    headers: tuple[Pair, ...]
    """The viewer's headers that are sent along."""
    with_auth: bool = True
    """Whether the gate's own credentials for the upstream are sent. Never where the viewer's Authorization is to decide."""
    path: str = field(init=False)
    """Where it begins."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path_at(""))


def checked(path_at: Callable[[str], str], cursor: str) -> str:
    """The path for a cursor. Raises `UndecodableError` for one that can stand in no URL."""
    try:
        return path_at(cursor)
    except (ValueError, LookupError):
        raise UndecodableError("the upstream gave a cursor that cannot stand in its URL") from None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a route follows its upstream. Times are in seconds."""

    rules: FollowRules
    reconnects: bool
    """Whether it goes on with another connection when one was cut, or could not be made."""
    restarts: bool
    """The same when one has ended in good order."""
    batch: float = 0.0
    backoff_min: float = 1.0
    backoff_max: float = 60.0


class Pace(Protocol):
    """Keeps a source from running away from those who read it."""

    def portions(self, updates: Sequence[Update]) -> Iterable[Sequence[Update]]:
        """What may be told at a time."""
        ...

    async def keep(self) -> None:
        """Return when the next portion may be told."""
        ...


class Unhurried:
    """Nobody is waited for."""

    def portions(self, updates: Sequence[Update]) -> Iterable[Sequence[Update]]:
        """See `Pace`."""
        return (updates,)

    async def keep(self) -> None:
        """See `Pace`."""


class StreamSource(Awaited):
    """Follows the upstream of one topic.

    A shared one opens its connections itself. One that belongs to a request is given the connection which that request has
    opened, has no other, and is over with it.
    """

    def __init__(
        self,
        topic: str,
        target: StreamTarget,
        upstream: Upstream,
        settings: StreamSettings,
        record: AskingRecord,
        *,
        opened: Intake | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`opened`: a connection whose head has been asked for and says yes, or has not come yet."""
        self.topic = topic
        self.target = target
        self.is_over = False
        self._upstream = upstream
        self._settings = settings
        self._record = record
        self._intake = opened
        self._is_own = opened is not None
        self._pace = pace or Unhurried()
        self._follower = Follower(topic, settings.rules)
        self._telling = Telling(self._name)
        self._failures = 0
        self._wait = 0.0  # what the upstream itself asked for
        self._flush_at: float | None = None  # when what is held is to leave
        self._has_opened = False
        self._is_noted = False  # the log has been told of trouble, and not of its end

    async def run(self, publish: Publish) -> None:
        """Follow until cancelled, or until the topic is over."""
        try:
            if self._has_opened and not self._is_own and not self._follower.cursor:
                # What came while it was stopped is not known, and cannot be asked for.
                self._telling.add(self._follower.restart())
            await self._telling.say(publish)
            while True:
                await self._connect(publish)
                await self._telling.say(publish)
                self.answer_first(None)
                if self.is_over:
                    return
                await asyncio.sleep(self._pause())
        finally:
            self._record.drop(self.topic)

    def farewell(self) -> Sequence[Update]:
        """See `WatchedSource`: what belongs to one request is over when nobody has come back to it."""
        if not self._is_own or self.is_over:
            return ()
        self.is_over = True
        return self._follower.end("timeout")

    @property
    def _name(self) -> str:
        return self._upstream.address.label(self.target.method, self.target.path.encode())

    async def _tell(self, publish: Publish, updates: list[Update]) -> None:
        if self._follower.is_troubled != self._is_noted:
            self._note(updates)
        for portion in self._pace.portions(updates):
            await self._pace.keep()
            self._telling.add(portion)
            await self._telling.say(publish)

    def _note(self, updates: list[Update]) -> None:
        """Trouble with a record, or its end, for the log."""
        self._is_noted = self._follower.is_troubled
        if not self._is_noted:
            self._record.end_failure(self.topic)
        for update in updates:
            if update.kind is Kind.FAULT:
                self._record.begin_failure(self.topic, f"stream {self._name}: {update.data}")

    # One connection

    async def _connect(self, publish: Publish) -> None:
        """Open a connection and follow it to its end."""
        if self._intake is None and self._is_own and not self._settings.reconnects:
            # Begun again after a defect: what one request has asked is not asked a second time.
            self._end("failed", {"status": None, "message": "the upstream's answer is lost"})
            return
        try:
            if self._intake is None:
                self._open(checked(self.target.path_at, self._follower.cursor))
            head = await self._read_head()
            self._record.count_opening(str(head.status))
            if self._is_taken(head):
                self._has_opened = True
                self._recover()
                self.answer_first(None)
                await self._telling.say(publish)
                await self._follow(publish)
        except UpstreamError as error:
            if self._intake is None or self._intake.head is None:
                self._record.count_opening("failed")
            reason, message = for_viewers(error)
            self._wait = 0.0
            self._trouble(reason, message, None, str(error))
        finally:
            self._close()

    def _open(self, path: str | bytes) -> None:
        rules, target, upstream = self._settings.rules, self.target, self._upstream
        headers = target.headers
        if self._follower.cursor:
            headers = (*headers, (b"Last-Event-ID", self._follower.cursor.encode()))
        self._close()
        if rules.format == "websocket":
            size = rules.max_record_size
            self._intake = WebSocketIntake.open(upstream, path, headers, with_auth=target.with_auth, max_size=size)
            return
        intake = self._intake = Intake()
        accept = ACCEPTS.get(rules.format, b"*/*")
        intake.relaying = upstream.open(
            path, headers, intake, method=target.method, accept=accept, with_auth=target.with_auth
        )

    def _close(self) -> None:
        if self._intake is not None:
            self._intake.cancel()
            self._intake = None

    async def _read_head(self) -> AnswerHead:
        """The head of the answer, behind redirects to the same origin; another one is returned as it is, and so is what is
        behind too many. Who has asked for its own stream has followed them already."""
        assert self._intake is not None, "it was opened"
        is_followed = self._is_own and not self._has_opened
        head = await self._intake.read_head()
        target = self._upstream.address.target(self.target.path.encode())
        for _ in range(0 if is_followed else MAX_REDIRECTS):
            location = Headers(head.headers).get("location")
            onward = None if location is None else self._upstream.address.follow(target, location)
            if head.status not in REDIRECTS or onward is None:
                break
            target = onward
            self._open(target)
            head = await self._intake.read_head()
        return head

    def _is_taken(self, head: AnswerHead) -> bool:
        """Whether there is something to follow; if not, all there is to say of it is said."""
        status, headers = head.status, Headers(head.headers)
        self._wait = min(retry_after(headers, time.time()), LONGEST_WAIT)
        if status == 204:
            self._end("done")  # "if the server wants a client to stop reconnecting" (HTML standard, 9.2.3)
            return False
        is_websocket = self._settings.rules.format == "websocket"
        if status == 101 if is_websocket else 200 <= status < 300:
            if (fact := misfit(self._settings.rules.format, headers)) is None:
                return True
            self._trouble("undecodable", fact, status, f"{self._name}: {fact}")
            return False
        if status in PASSED_ON and self.is_awaited and not (self._has_opened or self._is_own):
            self.is_over = True
            self.answer_first(status)
            return False
        if status in (404, 410) and self._has_opened:
            self._end("gone")
            return False
        self._trouble("upstream", f"the upstream answered {status}", status, f"{self._name}: {status}")
        return False

    async def _follow(self, publish: Publish) -> None:
        """Publish what comes, until it ends in good order. Raises `UpstreamError` when it is cut."""
        follower, intake = self._follower, self._intake
        assert intake is not None, "it was opened"
        follower.begin()
        while (piece := await self._next(intake)) is None or piece:
            updates = follower.flush() if piece is None else follower.receive(piece)
            if updates:
                self._failures = 0
                await self._tell(publish, updates)
            if follower.is_done:
                self.is_over = True
                return
        self._telling.add([*follower.finish(), *follower.flush()])
        if follower.is_done:
            self.is_over = True
        elif not self._settings.restarts:
            self._end("done")

    async def _next(self, intake: Intake) -> bytes | None:
        """The next piece; empty at the end, None when what is held is to leave before it comes."""
        if self._settings.batch and self._follower.is_holding:
            return await self._next_in_time(intake)
        self._flush_at = None
        piece = intake.take()
        return piece if piece is not None else await intake.read()

    async def _next_in_time(self, intake: Intake) -> bytes | None:
        now = asyncio.get_running_loop().time()
        if self._flush_at is None:
            self._flush_at = now + self._settings.batch
        if self._flush_at <= now:
            return None
        try:
            async with asyncio.timeout_at(self._flush_at):
                return await intake.read()
        except TimeoutError:
            return None

    # Its end

    def _trouble(self, reason: str, message: str, status: int | None, report: str) -> None:
        """What belongs to one request has failed with it; what is shared is asked for again."""
        if not self._settings.reconnects and (self._is_own or self._has_opened):
            self._end("failed", {"status": status, "message": message})
            return
        self._is_noted = True
        self._record.begin_failure(self.topic, f"stream {report}")
        self._telling.add(self._follower.fault(reason, message, status))

    def _recover(self) -> None:
        if self._follower.is_troubled:
            self._is_noted = False
            self._record.end_failure(self.topic)
            self._telling.add(self._follower.recover())

    def _end(self, reason: str, result: object = None) -> None:
        self.is_over = True
        self._telling.add(self._follower.end(reason, result))

    def _pause(self) -> float:
        """How long to wait for the next connection: what the upstream asked for, else with full jitter (a random part of a
        bound that doubles with each that brought nothing)."""
        settings = self._settings
        bound = min(settings.backoff_max, settings.backoff_min * 2 ** min(self._failures, 32))
        self._failures += 1
        asked = self._wait or min(self._follower.retry or 0.0, LONGEST_WAIT)
        return max(SHORTEST_PAUSE, asked or bound * random.random())


def misfit(format_: str, headers: Headers) -> str | None:
    """Why an answer with these headers cannot be in this format; None when it can."""
    media = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    coding = (headers.get("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        return "the upstream's answer is compressed, which was not asked for"
    if format_ == "sse" and media != "text/event-stream":
        return f"the upstream answered with {_shown(media)}, and not with text/event-stream"
    if format_ in ("ndjson", "json-seq") and media in _PAGES:
        return f"the upstream answered with {_shown(media)}, and not with JSON"
    return None


def _shown(media: str) -> str:
    return media if media and len(media) < 60 and media.isascii() and media.isprintable() else "no media type"
