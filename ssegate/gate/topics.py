"""Which topics there are, which of them are watched at an upstream, and when they are let go of."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence

from ssegate.core.event import Kind, Update
from ssegate.core.hub import Hub, Opening, Subscriber, Topic
from ssegate.core.journal import Position
from ssegate.core.shape import Shape
from ssegate.errors import BrokerError
from ssegate.gate.routes import EventRoute
from ssegate.gate.watched import PollRoute, WatchedRoute
from ssegate.interfaces import Broker
from ssegate.sources.awaited import WatchedSource
from ssegate.sources.poll import PollSource

log = logging.getLogger(__name__)

FIRST_ANSWER = 3.0
"""Seconds a viewer waits for the first poll of a cold topic before the stream opens without a word."""

SWEEP = 2.0
"""Seconds between looks for topics that have been quiet for longer than their history is kept."""

RESTART = 5.0
"""Seconds before a source that failed in a way it should not is started again."""


_BEGINNINGS = frozenset({Kind.EVENT, Kind.END, Kind.RESET})
"""Updates whose position is the topic's; others before the first event have one that counts for nothing."""

Meant = tuple[WatchedRoute, tuple[str | None, ...]]
"""A route and the values of the parameters that decide what it asks."""

MakeSource = Callable[[Topic], WatchedSource]


class Watch:
    """One topic that is watched at an upstream: its source, and the task that runs it while somebody wants it."""

    def __init__(
        self,
        route: WatchedRoute,
        make_source: MakeSource,
        params: Mapping[str, str],
        topic: Topic,
        name: str,
        owner: bytes,
    ) -> None:
        self.route = route
        self.params = params
        """The path's parameters of the viewer that came first."""
        self.meant: Meant = (route, tuple(params.get(name) for name in route.deciding))
        self.topic = topic
        self.name = name
        """The path by which it is found again, where it belongs to one request; else empty."""
        self.owner = owner
        """Whose it is then: see `WatchedRoute.owner`."""
        self.source: WatchedSource = make_source(topic)
        self.task: asyncio.Task[None] | None = None
        self.running = asyncio.Lock()
        """Held while the source runs, and until it has unwound: it never runs twice at a time."""
        self.waiting = 0
        """Viewers that wait for the first answer."""
        self.linger: asyncio.TimerHandle | None = None
        """Set while it goes on though nobody reads."""

    @property
    def is_cold(self) -> bool:
        """Whether its first poll has something to say that a viewer is to be told before, or instead of, a stream."""
        answer = self.source.awaited
        return answer is not None and not self.topic.is_over and not (answer.done() and answer.result() is None)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody reads, or is about to."""
        return bool(self.topic.subscribers) or self.waiting > 0


class Topics:
    """The hub's topics in the service of the gate: opened for viewers, fed through the broker, dropped in time."""

    def __init__(self, hub: Hub, broker: Broker, *, max_topics: int) -> None:
        self.hub = hub
        self.max_topics = max_topics
        self._broker = broker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owners: dict[str, EventRoute] = {}
        self._watches: dict[str, Watch] = {}
        self._alike: dict[Meant, dict[Watch, None]] = {}
        """The same by what a webhook can name of them."""
        self._epochs: dict[str, Watch] = {}
        """Those that belong to one request, by the epoch of their cursors."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Every task that has not come to its end: the sweeper, and sources, stopped ones too."""

    async def start(self) -> None:
        """Connect to the broker. Raises `BrokerError`."""
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call on Python 3.11, for each event
        await self._broker.start(self._deliver)
        self._spawn(self._sweep())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Stop every source and let the broker go."""
        for watch in self._watches.values():
            self._stop(watch)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._broker.aclose()

    def __len__(self) -> int:
        return len(self.hub)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self.hub)

    # Events

    def _deliver(self, update: Update, position: Position) -> None:
        """See `interfaces.Deliver`. All that comes in one turn of the loop leaves in one."""
        topic = self.hub.deliver(update, position, time.monotonic())
        if position.offset <= 1 and update.kind in _BEGINNINGS:
            self._note_epoch(update.topic, position.epoch)
        if topic is not None:
            assert self._loop is not None, "it was started"
            self._loop.call_soon(topic.wake)

    def _note_epoch(self, key: str, epoch: str) -> None:
        watch = self._watches.get(key)
        if watch is not None and watch.name:
            self._epochs[epoch] = watch

    async def publish(self, update: Update, route: EventRoute) -> Topic | None:
        """Publish an update of a topic that may have no viewer; the topic, or None when there is no room for another.

        Raises `BrokerError`.
        """
        topic = self.open(update.topic, route)
        if topic is not None:
            await self._broker.publish(update)
        return topic

    # Viewers

    def watch(
        self,
        route: WatchedRoute,
        key: str,
        make_source: MakeSource,
        params: Mapping[str, str],
        *,
        name: str = "",
        owner: bytes = b"",
    ) -> Watch | None:
        """Watch this from now on. None when there is no room for another topic.

        Whoever gets it looks whether it `is_cold` and then waits for its `first_answer`, or subscribes to its topic in the
        same turn of the loop.
        """
        topic = self.open(key, route)
        if topic is None:
            return None
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = Watch(route, make_source, params, topic, name, owner)
            self._alike.setdefault(watch.meant, {})[watch] = None
        self.go_on(watch)
        return watch

    def go_on(self, watch: Watch) -> None:
        """Somebody is here for it: if it has been stopped meanwhile, and is not over, it is watched again."""
        if not watch.topic.is_over and watch.task is None and not watch.source.is_over:
            self._begin(watch)

    def get(self, key: str) -> Watch | None:
        """The topic with this key, if it is or was watched here."""
        return self._watches.get(key)

    def of_epoch(self, epoch: str) -> Watch | None:
        """The topic of one request whose cursors begin so."""
        return self._epochs.get(epoch)

    async def first_answer(self, watch: Watch) -> int | None:
        """Wait a while for the first poll: its status where the viewer is to be told that instead of a stream."""
        answer = watch.source.awaited
        if answer is None:
            return None
        watch.waiting += 1
        try:
            await asyncio.wait((answer,), timeout=FIRST_ANSWER)
        finally:
            watch.waiting -= 1
            self._linger(watch)
        if not answer.done():
            answer.set_result(None)
        status = answer.result()
        if status is not None:
            self._forget_refused(watch)
        return status

    def subscribe(
        self, topic: Topic, cursor: str | None, shape: Shape | None = None, since: Position | None = None
    ) -> Opening:
        """Give a viewer its reading place; see `Hub.subscribe`. The edge sets `wake` when it begins to read."""
        return self.hub.subscribe(topic, cursor, time.monotonic(), _nothing, shape, since)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Take a viewer away. After the last one it is watched for the route's `linger`."""
        topic = subscriber.topic
        self.hub.unsubscribe(subscriber, time.monotonic())
        self.let_go(topic)

    def let_go(self, topic: Topic) -> None:
        """Whoever it was opened for does not come: it is watched for the route's `linger`, if nobody else reads it."""
        watch = self._watches.get(topic.key)
        if watch is not None and not watch.is_wanted:
            self._linger(watch)

    def _linger(self, watch: Watch) -> None:
        """Stop watching after a while, unless somebody comes back."""
        if watch.linger is not None:
            watch.linger.cancel()
        watch.linger = asyncio.get_running_loop().call_later(watch.route.linger, self._end_linger, watch)

    def _end_linger(self, watch: Watch) -> None:
        watch.linger = None
        if not watch.is_wanted:
            self._stop(watch)
            if last := watch.source.farewell():
                self._spawn(self._part_from(watch, last))

    async def _part_from(self, watch: Watch, last: Sequence[Update]) -> None:
        """It cannot be watched again: say so, behind all it has said."""
        async with watch.running:
            try:
                for update in last:
                    await self._broker.publish(update)
            except BrokerError as error:
                log.warning("publish %s: %s; who comes back to it gets no end", watch.topic.key, error)

    # Sources

    def _begin(self, watch: Watch) -> None:
        watch.topic.is_watched = True
        if not watch.topic.subscribers:
            watch.source.await_answer()  # those who read already would not be told what it answers instead of a stream
        watch.task = self._spawn(self._run(watch))
        watch.task.add_done_callback(lambda task: self._ended(watch, task))

    async def _run(self, watch: Watch) -> None:
        async with watch.running:
            await watch.source.run(self._publish)

    async def _publish(self, update: Update) -> None:
        await self._broker.publish(update)

    def _stop(self, watch: Watch) -> None:
        if watch.linger is not None:
            watch.linger.cancel()
            watch.linger = None
        if watch.task is not None:
            watch.task.cancel()
            watch.task = None
            self._rest(watch)

    def _rest(self, watch: Watch) -> None:
        watch.topic.is_watched = False
        watch.topic.quiet_since = time.monotonic()

    def _ended(self, watch: Watch, task: asyncio.Task[None]) -> None:
        """A source has come to its end by itself: its topic is over, its viewers' right is, or it has a defect."""
        if watch.task is not task or task.cancelled():
            return  # it was stopped, or everything is
        watch.task = None
        self._rest(watch)
        if watch.topic.is_revoked:
            self.forget(watch.topic.key)
        elif (error := task.exception()) is not None:
            log.error("watching %s stopped on a defect; it is started again", watch.topic.key, exc_info=error)
            asyncio.get_running_loop().call_later(RESTART, self._restart, watch)
        else:
            self._forget_refused(watch)

    def _restart(self, watch: Watch) -> None:
        if watch.task is None and watch.is_wanted and self._is_current(watch):
            self._begin(watch)

    def _forget_refused(self, watch: Watch) -> None:
        """Let go of what the upstream refused to show, as soon as nobody is left to be told so: it is asked anew then."""
        is_refused = watch.source.is_over and not watch.topic.is_over
        if is_refused and not watch.is_wanted and self._is_current(watch):
            self.forget(watch.topic.key)

    def _is_current(self, watch: Watch) -> bool:
        return self._watches.get(watch.topic.key) is watch

    def hint(self, matches: Callable[[Watch], bool]) -> int:
        """Make the topics that match poll at once; return how many."""
        hinted = [watch for watch in self._watches.values() if watch.task is not None and matches(watch)]
        for watch in hinted:
            _hint(watch)
        return len(hinted)

    def hint_route(self, route: PollRoute, params: Mapping[str, str]) -> list[Watch]:
        """A webhook says that what these parameters name has changed: make its topics poll, of a burst just once more.

        Parameters that are not given may have any value. Returns those that are polled at the moment.
        """
        values = [params.get(name) for name in route.deciding]
        if None in values:
            alike = [watch for watch in self._watches.values() if watch.route is route and _is_alike(watch, params)]
        else:
            alike = list(self._alike.get((route, tuple(values)), ()))
        hinted = [watch for watch in alike if watch.task is not None]
        for watch in hinted:
            _hint(watch, gather=True)
        return hinted

    # Room

    @property
    def has_room(self) -> bool:
        """Whether there is room for another topic, at the cost of one that nobody needs."""
        return len(self.hub) < self.max_topics or self.hub.longest_idle() is not None

    def open(self, key: str, route: EventRoute) -> Topic | None:
        """The topic, made if it is not there; None when there is no room for another."""
        topic = self.hub.get(key)
        if topic is not None:
            return topic
        if len(self.hub) >= self.max_topics and not self._make_room():
            return None
        self._owners[key] = route
        return self.hub.open(key, route.topic_settings, time.monotonic())

    def _make_room(self) -> bool:
        """Let go of the history nobody has asked for longest, if there is one that nobody reads and nothing polls."""
        idle = self.hub.longest_idle()
        if idle is None:
            return False
        self.forget(idle.key)
        return True

    def forget(self, key: str, *, for_good: bool = True) -> None:
        """Drop a topic, its source and its numbering. Readers it still has get nothing more, and are for the caller to close.

        Unless `for_good`, what its source remembers beyond itself stays: the next one goes on there."""
        self._owners.pop(key, None)
        watch = self._watches.pop(key, None)
        if watch is not None:
            self._stop(watch)
            self._part(watch)
            if for_good:
                watch.source.forget()
        self.hub.drop(key)
        forget = getattr(self._broker, "forget", None)  # interfaces.Forgets
        if forget is not None:
            forget(key)

    def _part(self, watch: Watch) -> None:
        alike = self._alike[watch.meant]
        del alike[watch]
        if not alike:
            del self._alike[watch.meant]
        if self._epochs.get(watch.topic.journal.epoch) is watch:
            del self._epochs[watch.topic.journal.epoch]

    def owned_by(self, routes: Collection[EventRoute]) -> list[Topic]:
        """The topics of these routes."""
        return [topic for topic in self.hub if self._owners.get(topic.key) in routes]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            for topic in self.hub.expired(time.monotonic()):
                self.forget(topic.key)


def _hint(watch: Watch, *, gather: bool = False) -> None:
    if isinstance(watch.source, PollSource):
        watch.source.hint(gather=gather)


def _is_alike(watch: Watch, params: Mapping[str, str]) -> bool:
    return all(params.get(name, watch.params.get(name)) == watch.params.get(name) for name in watch.route.deciding)


def _nothing() -> None:
    """What a reader is woken by until the edge reads: it reads first and waits then."""
