"""The routes whose topics are asked for at an upstream while somebody watches: polls, jobs, feeds and streams."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import environ

from ssegate.config.asking import Feed, Poll, Stream, Task
from ssegate.config.model import Route
from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.core.detect import Detector, make_detector
from ssegate.core.event import Update, encode_text
from ssegate.core.feed import FeedReader, FeedRules
from ssegate.core.follow import FollowRules
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import First, Topic, TopicSettings
from ssegate.core.journal import Form
from ssegate.core.markup import Markup, find, plain
from ssegate.core.poll import PollSettings
from ssegate.core.principal import Principal, is_of_viewer
from ssegate.core.routing import Entry, PathPattern, Router, split_path
from ssegate.core.task import TaskReader, TaskRules
from ssegate.core.template import Template
from ssegate.gate.hooks import Inlet
from ssegate.sources.awaited import WatchedSource
from ssegate.sources.cursors import Cursors
from ssegate.sources.feed import FeedSource
from ssegate.sources.poll import PollSource, PollTarget
from ssegate.sources.stream import StreamSettings, StreamSource, StreamTarget
from ssegate.sources.task import TaskSource
from ssegate.sources.telling import AskingRecord, let_them_read
from ssegate.upstream import Upstream
from ssegate.upstream.intake import Intake

BODY_FACTOR = 8
"""How much larger than an event an answer may be: it may be indented, and `select` may leave most of it out."""

_FORMS = {"snapshot": Form.STATES, "patch": Form.CHANGES, "merge": Form.CHANGES, "items": Form.CHANGES}

_CREDENTIALS = frozenset({b"authorization", b"cookie"})

Target = PollTarget | StreamTarget


class UpstreamSlot:
    """An upstream in use, and what is known of what it is asked."""

    def __init__(self, name: str, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.upstream = Upstream(name, settings)
        self.record = AskingRecord(name)


class WatchedRoute(ABC):
    """A route with a topic for each thing that is asked of the upstream."""

    inlet: Inlet | None = None
    follows_own_writes = False
    is_own = False
    """Whether each request has a topic of its own, which has a name."""
    topic_settings: TopicSettings

    def __init__(self, route: Route, slot: UpstreamSlot, asks: Poll | Stream | Task | Feed, get: str) -> None:
        """`get` is the template of what is asked; `asks` has what it needs of the viewer."""
        self.route = route
        self.slot = slot
        self.linger = asks.linger
        self.forward = asks.forward
        self.template = Template(get)
        self.parameters = parameters = PathPattern(route.path).parameters
        asked = dict.fromkeys(name for text in self._texts(get) for name in Template(text).names)
        self.needs = tuple(name for name in asked if is_of_viewer(name) and name not in parameters)
        """What has to be known of a viewer: `identity`, or `claims.x`."""
        self.deciding = tuple(name for name in self.template.names if name in parameters or name in self.needs)
        """The path's parameters, and what is known of the viewer, that decide what is asked of the upstream."""
        self._forwards_authorization = any(name.lower() == "authorization" for name in asks.forward)

    def _texts(self, get: str) -> Iterator[str]:
        """The templates of whatever it asks."""
        yield get

    @property
    def is_private(self) -> bool:
        """Whether what it asks is asked in the name of a viewer, whose right to it may end."""
        return bool(self.forward or self.needs or (self.route.auth and self.slot.upstream.personal_names))

    @property
    def uses_own_credentials(self) -> bool:
        """Whether the gate's own are sent. Never where the viewer's Authorization is to decide."""
        return not self._forwards_authorization

    def target(
        self, params: Mapping[str, str], query: Mapping[str, str], headers: Headers, principal: Principal | None = None
    ) -> Target:
        """What is asked of the upstream for this viewer. Raises `ValueError` or `LookupError` when no URL comes out."""
        path = self.expand(self.values(params, query, principal))
        return PollTarget(path, self.forwarded(headers, principal), with_auth=self.uses_own_credentials)

    def values(self, params: Mapping[str, str], query: Mapping[str, str], principal: Principal | None) -> Values:
        """What its templates may name. Raises `LookupError` when something of the viewer is not known."""
        if self.needs:
            principal = principal or Principal("", b"")
            return {**values_of(params, query), **principal.values(self.needs)}
        return values_of(params, query)

    def expand(self, values: Mapping[str, str]) -> str:
        """The path and query for these values. Raises as `target` does."""
        return self._expanded(self.template, values)

    def _expanded(self, template: Template, values: Mapping[str, str]) -> str:
        return template.expand_url(lambda name: values.get(name, environ.get(name.removeprefix("env."))))

    def forwarded(self, headers: Headers, principal: Principal | None = None) -> tuple[Pair, ...]:
        """The viewer's headers that are sent along, and what the upstream is told of who that is: that is never the viewer's word."""
        personal = self.slot.upstream.personal_names
        pairs = [(name.encode(), value.encode("latin-1")) for name in self.forward for value in headers.all(name)]
        if personal:
            pairs = [pair for pair in pairs if pair[0].lower().replace(b"_", b"-") not in personal]
            pairs += () if principal is None else self.slot.upstream.personal(principal)
        return tuple(pairs)

    def key(self, target: Target) -> str:
        """The topic: every byte that decides what the upstream answers, hashed, since headers may be credentials."""
        digest = hashlib.sha256(f"GET {target.path}\n".encode())
        digest.update(_digestible(target.headers))
        return f"{self.route.path} {digest.hexdigest()[:32]}"

    def owner(self, headers: Headers, principal: Principal | None = None) -> bytes:
        """Whose a stream of its own is: a digest of the viewer's headers that opened it, and of who that is.

        Where a guard says who, the credentials themselves do not count: the same viewer comes back with a fresh one."""
        if principal is None or principal.identity is None:
            return hashlib.sha256(_digestible(self.forwarded(headers))).digest()
        rest = [pair for pair in self.forwarded(headers) if pair[0].lower() not in _CREDENTIALS]
        return hashlib.sha256(_digestible([(b"identity", encode_text(principal.identity)), *rest])).digest()

    @abstractmethod
    def make_source(self, topic: Topic, target: Target) -> WatchedSource:
        """A source for one topic, that has not begun."""

    def _poll_settings(self, every_min: float, every_max: float, **more: object) -> PollSettings:
        backoff = self.slot.settings.backoff
        return PollSettings(
            every_min, every_max, backoff_min=backoff.min, backoff_max=backoff.max, **more,  # type: ignore[arg-type]  # see its fields
        )  # fmt: skip

    def _topic_settings(self, form: Form, *, snapshot_type: str = "", first: str = "nothing") -> TopicSettings:
        history = self.route.history
        return TopicSettings(
            form,
            max_events=history.events,
            max_age=history.age,
            max_size=history.size,
            snapshot_type=snapshot_type,
            first=First(first),
        )


class PollRoute(WatchedRoute):
    """A route whose topics are polled resources; a webhook beside it says when one has changed."""

    def __init__(
        self, route: Route, slot: UpstreamSlot, *, max_event_size: int, before: PollRoute | None = None
    ) -> None:
        """`before`: the route with the same path and webhook that this one takes the place of."""
        assert route.poll is not None
        super().__init__(route, slot, route.poll, route.poll.get)
        self._poll = route.poll
        self._max_event_size = max_event_size
        emit = route.emit
        names = {name: value for name, value in emit.names if value is not None}
        self._markup = None if emit.template is None else Markup(emit.template, emit.event)
        self._names: dict[str, str] = names
        self.topic_settings = self._topic_settings(
            _FORMS[emit.as_], snapshot_type="" if emit.as_ == "snapshot" else names.get("snapshot", "snapshot")
        )
        every = route.poll.every
        self.poll_settings = self._poll_settings(
            every.min,
            every.max,
            conditional=route.poll.conditional,
            gone=frozenset(route.poll.gone),
            is_private=self.is_private,
        )
        after = route.poll.after_write
        self._after = tuple(PathPattern(text, allow_rest=True) for text in after) if isinstance(after, tuple) else ()
        self.follows_own_writes = after is True
        if route.webhook is not None:
            self.inlet = Inlet(route.webhook, before.inlet if before else None)

    def make_source(self, topic: Topic, target: Target) -> PollSource:
        """See `WatchedRoute`."""
        assert isinstance(target, PollTarget)
        return PollSource(
            topic.key,
            target,
            self.slot.upstream,
            self.poll_settings,
            self.make_detector(topic.key),
            self.slot.record,
            viewers=_count(topic),
            max_body=BODY_FACTOR * self._max_event_size,
        )

    def make_detector(self, key: str) -> Detector:
        """A detector that has seen nothing."""
        poll, items = self._poll, self._poll.items
        return make_detector(
            key,
            emit=self.route.emit.as_,
            body=poll.body,
            select=poll.select,
            ignore=poll.ignore,
            items_at=items.at if items else None,
            items_key=items.key if items else None,
            names=self._names,
            markup=self._markup,
            max_event_size=self._max_event_size,
        )

    def follows(self, path: bytes) -> Mapping[str, str] | None:
        """The parameters that a written path shares with this route's topics, when `after_write` lists it; None if not."""
        segments = split_path(path)
        for pattern in self._after if segments is not None else ():
            matched = Router([Entry(pattern, pattern)]).match("POST", path, None)
            if matched is not None:
                return matched.params
        return None


class TaskRoute(WatchedRoute):
    """A route whose topics are jobs; each is over when its job is."""

    def __init__(self, route: Route, slot: UpstreamSlot, *, max_event_size: int) -> None:
        assert route.task is not None
        task = route.task
        super().__init__(route, slot, task, task.get)
        self.is_own = task.start is not None
        self.start = task.start
        self.start_template = None if task.start is None else Template(task.start.path)
        self.topic_settings = self._topic_settings(Form.STATES)
        self._give_up = task.give_up
        self._max_event_size = max_event_size
        emit = route.emit
        markup = None if emit.template is None else Markup(emit.template, emit.event)
        self._rules = TaskRules(max_event_size, task.progress, task.done, task.failed, task.result, markup)
        self._settings = self._poll_settings(task.every.min, task.every.max, is_private=self.is_private)

    def make_source(self, topic: Topic, target: Target) -> TaskSource:
        """See `WatchedRoute`."""
        assert isinstance(target, PollTarget)
        return TaskSource(
            topic.key,
            target,
            self.slot.upstream,
            self._settings,
            TaskReader(topic.key, self._rules),
            self.slot.record,
            viewers=_count(topic),
            max_body=BODY_FACTOR * self._max_event_size,
            give_up=self._give_up,
            is_own=self.is_own,
        )

    def _texts(self, get: str) -> Iterator[str]:
        yield get
        assert self.route.task is not None
        if self.route.task.start is not None:
            yield self.route.task.start.path

    def expand_start(self, values: Mapping[str, str]) -> str:
        """The path that starts a job. Raises as `target` does."""
        assert self.start_template is not None, "it has a start"
        return self._expanded(self.start_template, values)

    def status_path(self, asked: str, answer: Headers, body: object, values: Mapping[str, str]) -> str:
        """Where the status of a job is that a request to `asked` has started. Raises `LookupError` or `ValueError`."""
        facts = {"start": {"body": body, "headers": {name.lower(): answer.get(name) for name in _names(answer)}}}
        text = self.template.text
        if text.startswith("{start.") and text.endswith("}") and len(self.template.names) == 1:
            location = plain(facts, self.template.names[0])
            path = self.slot.upstream.address.onward(asked, location) if location else None
            if path is None:
                raise LookupError(f"`{text}` of the answer names nothing of this upstream")
            return path
        started = {name: plain(facts, name) for name in self.template.names if find(facts, name) is not None}
        return self.expand({**values, **started})


class FeedRoute(WatchedRoute):
    """A route whose topics are feeds, each behind a cursor of its own."""

    def __init__(self, route: Route, slot: UpstreamSlot, *, max_event_size: int, cursors: Cursors) -> None:
        assert route.feed is not None
        feed = route.feed
        super().__init__(route, slot, feed, feed.get)
        self.topic_settings = self._topic_settings(Form.EVENTS, first=feed.first)
        self._feed = feed
        self._cursors = cursors
        self._max_event_size = max_event_size
        emit = route.emit
        self._rules = FeedRules(
            feed.items,
            feed.next,
            feed.start,
            max_event_size,
            event=None if feed.event is None else Template(feed.event),
            data=emit.data,
            template=None if emit.template is None else Template(emit.template),
        )
        self._settings = self._poll_settings(
            feed.every.min, feed.every.max, conditional=False, gone=(), is_private=self.is_private
        )

    def target(
        self, params: Mapping[str, str], query: Mapping[str, str], headers: Headers, principal: Principal | None = None
    ) -> StreamTarget:
        """See `WatchedRoute`."""
        return _target_at(self, params, query, headers, principal, "GET")

    def make_source(self, topic: Topic, target: Target) -> FeedSource:
        """See `WatchedRoute`."""
        assert isinstance(target, StreamTarget)
        return FeedSource(
            topic.key,
            PollTarget(target.path, target.headers, with_auth=target.with_auth),
            self.slot.upstream,
            self._settings,
            FeedReader(topic.key, self._rules, self._cursors.get(topic.key)),
            self.slot.record,
            path_at=target.path_at,
            cursors=self._cursors,
            forgotten=frozenset(self._feed.forgotten),
            long=self._feed.long,
            viewers=_count(topic),
            max_body=BODY_FACTOR * self._max_event_size,
        )


class StreamRoute(WatchedRoute):
    """A route whose topics are answers of the upstream that go on and on: one for all, or one for each request."""

    def __init__(self, route: Route, slot: UpstreamSlot, *, max_event_size: int) -> None:
        assert route.stream is not None
        stream = route.stream
        super().__init__(route, slot, stream, stream.path)
        self.is_own = not stream.is_shared
        self.method = stream.method
        self.topic_settings = self._topic_settings(Form.EVENTS, first="kept" if self.is_own else stream.first)
        backoff = slot.settings.backoff
        event = stream.event or route.emit.event
        has_no_end = stream.format in (
            "sse",
            "websocket",
        )  # an answer that ends in order says only that it may be asked again
        self.settings = StreamSettings(
            FollowRules(
                stream.format,
                max_event_size,
                data=stream.data,
                event=None if event is None else Template(event),
                id=stream.id,
                done=stream.done,
                when=stream.when,
                template=None if route.emit.template is None else Template(route.emit.template),
                batches=stream.batch > 0,
            ),
            reconnects=stream.is_shared if stream.reconnect is None else stream.reconnect,
            restarts=stream.is_shared and has_no_end if stream.reconnect is None else stream.reconnect,
            batch=stream.batch,
            backoff_min=backoff.min,
            backoff_max=backoff.max,
        )

    def target(
        self, params: Mapping[str, str], query: Mapping[str, str], headers: Headers, principal: Principal | None = None
    ) -> StreamTarget:
        """See `WatchedRoute`."""
        return _target_at(self, params, query, headers, principal, self.method)

    def make_source(self, topic: Topic, target: Target, opened: Intake | None = None) -> StreamSource:
        """See `WatchedRoute`; `opened` is the connection of the request that the topic belongs to."""
        assert isinstance(target, StreamTarget)
        return StreamSource(
            topic.key,
            target,
            self.slot.upstream,
            self.settings,
            self.slot.record,
            opened=opened,
            pace=Turns(topic) if opened is None else Pace(topic),
        )


AHEAD = 1 << 20
"""Bytes of events, about, by which an upstream may be ahead of the one who reads its answer."""


_OVERHEAD = 40
"""About what the lines round an event's data take."""


class Turns:
    """Lets those read who keep up, where an upstream sends more at once than the ring holds. Who does not is not waited for."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._most = max(1, topic.settings.max_events // 4)
        self._most_bytes = topic.settings.max_size // 4
        self._at = 0  # how far the topic was when its readers were last let to read
        self._size = 0  # bytes that were told since

    def portions(self, updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
        """See `sources.stream.Pace`: a quarter of what is kept."""
        start = size = 0
        for end, update in enumerate(updates):
            if end > start and (end - start >= self._most or size + len(update.data) + _OVERHEAD > self._most_bytes):
                self._size += size
                yield updates[start:end]
                start, size = end, 0
            size += len(update.data) + _OVERHEAD
        self._size += size
        yield updates[start:]

    async def keep(self) -> None:
        """See `sources.stream.Pace`."""
        if self._topic.journal.head - self._at >= self._most or self._size > self._most_bytes:
            self._at, self._size = self._topic.journal.head, 0
            await let_them_read()


class Pace(Turns):
    """Keeps the answer to one request from running away from its reader, who would find a gap: the ring is only so long."""

    def __init__(self, topic: Topic) -> None:
        super().__init__(topic)
        self._farthest = max(1, topic.settings.max_events // 2)
        self._farthest_bytes = min(AHEAD, topic.settings.max_size // 2)

    async def keep(self) -> None:
        """See `sources.stream.Pace`."""
        while self._is_too_far:
            relieved = asyncio.Event()
            self._topic.relief = relieved.set
            try:
                await relieved.wait()
            finally:
                self._topic.relief = None

    @property
    def _is_too_far(self) -> bool:
        topic = self._topic
        ahead = topic.ahead
        if ahead >= self._farthest:
            return True
        return ahead > 0 and ahead * topic.journal.size > len(topic.journal) * self._farthest_bytes


Values = dict[str, str]


def values_of(params: Mapping[str, str], query: Mapping[str, str]) -> Values:
    """What a URL template may name of a request."""
    return {**params, **{f"query.{name}": value for name, value in query.items()}}


def _target_at(
    route: WatchedRoute,
    params: Mapping[str, str],
    query: Mapping[str, str],
    headers: Headers,
    principal: Principal | None,
    method: str,
) -> StreamTarget:
    values = route.values(params, query, principal)

    def path_at(cursor: str) -> str:
        return route.expand({**values, "cursor": cursor} if cursor else values)

    return StreamTarget(method, path_at, route.forwarded(headers, principal), with_auth=route.uses_own_credentials)


def _digestible(headers: Sequence[Pair]) -> bytes:
    return b"".join(b"%b: %d\n%b\n" % (name, len(value), value) for name, value in headers)


def _names(headers: Headers) -> list[str]:
    return [name.decode("latin-1") for name in headers.names]


def _count(topic: Topic) -> Callable[[], int]:
    return lambda: len(topic.subscribers)
