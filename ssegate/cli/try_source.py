"""What `ssegate try` does with a stream, a task or a feed: it is opened as for a viewer, and the first events are shown."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial

from ssegate.brokers.memory import MemoryBroker
from ssegate.cli.shown import shown_request
from ssegate.cli.terminal import paint, printable, say
from ssegate.config import Config
from ssegate.config.values import format_duration
from ssegate.core.event import EventStreamDecoder
from ssegate.core.headers import Headers
from ssegate.core.hub import Hub
from ssegate.core.journal import Position
from ssegate.core.principal import Principal
from ssegate.edge.exchange import Answer, Request
from ssegate.errors import SsegateError, UpstreamTimeoutError, UpstreamUnreachableError
from ssegate.gate.own import Asked, OwnStreams
from ssegate.gate.topics import Topics, Watch
from ssegate.gate.watched import StreamRoute, TaskRoute, WatchedRoute
from ssegate.sources.telling import for_viewers

PATIENCE = 10.0
"""Seconds of silence after which no more is waited for."""


_UNANSWERED = [for_viewers(error)[1] for error in (UpstreamUnreachableError(), UpstreamTimeoutError())]
"""What a `fault` says where there was no answer at all."""


class RefusedError(SsegateError):
    """The upstream has been reached, and a viewer would get its refusal."""


def _fact(fault: bytes) -> str:
    """What an encoded `fault` says."""
    (event,) = EventStreamDecoder().receive(fault)
    message: str = json.loads(event.data)["message"]
    return message


class _Data:
    """A body that is given whole."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data

    def take_whole(self) -> bytes:
        return self._data


class SourceTrial:
    """One stream, opened and shown."""

    def __init__(
        self,
        config: Config,
        route: WatchedRoute,
        params: Mapping[str, str],
        query: Mapping[str, str],
        headers: Headers,
        principal: Principal | None,
        *,
        data: str | None,
        events: int,
        tell: Callable[[Sequence[str]], None],
    ) -> None:
        """`tell` shows the lines of an event; `data` is the body where one goes to the upstream."""
        self._config = config
        self._route = route
        self._params = params
        self._query = query
        self._headers = headers
        self._principal = principal
        self._data = data
        self._events = events
        self._tell = tell
        self._topics = Topics(Hub(), MemoryBroker(partial(secrets.token_hex, 2)), max_topics=1)

    async def run(self) -> int:
        """Show what comes, up to so many events. Raises `RefusedError` and `UpstreamError`."""
        asked = shown_request(self._config, self._route.route, self._params, self._query, self._principal)
        print(paint(printable(asked), "bold", sys.stdout))
        await self._topics.start()
        log, level = logging.getLogger("ssegate.sources"), logging.getLogger("ssegate.sources").level
        log.setLevel(logging.ERROR)  # what goes wrong is told here
        try:
            await self._show(await self._open())
        finally:
            log.setLevel(level)
            await self._topics.aclose()
            await self._route.slot.upstream.aclose()
        return 0

    async def _open(self) -> Watch:
        route = self._route
        if isinstance(route, StreamRoute | TaskRoute) and route.is_own:
            opened = await OwnStreams(self._topics).open(route, self._asked())
            if isinstance(opened, Answer):
                raise RefusedError(f"a viewer gets {opened.status}: {opened.body.decode(errors='replace')[:400]}")
            assert opened is not None, "there is room for one topic"
            return opened
        target = route.target(self._params, self._query, self._headers, self._principal)
        watch = self._topics.watch(route, "try", partial(route.make_source, target=target), self._params)
        assert watch is not None, "there is room for one topic"
        status = await self._topics.first_answer(watch)
        if status is not None:
            raise RefusedError(f"the upstream answered {status}, and so a viewer gets {status}; ask another path")
        return watch

    def _asked(self) -> Asked:
        body = None if self._data is None else self._data.encode()
        length = () if body is None else ((b"content-length", b"%d" % len(body)),)
        headers = Headers((*self._headers.raw, *length))
        method = self._route.route.opened_by[0]
        request = Request(method, b"/", headers, "1.1", "http", "", None if body is None else _Data(body))
        return Asked(request, self._params, self._query, self._config.limits.stream_body, self._principal, ())

    def _refuse(self, fault: bytes) -> None:
        """Nothing comes but trouble. Raises `UpstreamUnreachableError` when there was no answer at all, else `RefusedError`."""
        fact = _fact(fault)
        told = (
            f"{self._route.slot.settings.url}: {fact}; a viewer's stream opens with this `fault`, and it is asked again"
        )
        raise UpstreamUnreachableError(told) if fact in _UNANSWERED else RefusedError(told)

    async def _show(self, watch: Watch) -> None:
        opening = self._topics.subscribe(watch.topic, None, since=Position("", 0))
        subscriber, news = opening.subscriber, asyncio.Event()
        subscriber.wake = news.set
        data, count = opening.data, 0
        while True:
            if not len(watch.topic.journal) and watch.topic.fault is not None:
                self._refuse(watch.topic.fault)
            if data and not count:
                print(paint("a newcomer gets", "bold", sys.stdout))
            for block in data.decode().split("\n\n")[:-1]:
                self._tell([*block.split("\n"), ""])
                count += 1
            if count >= self._events:
                break
            data = subscriber.read(1)
            if data:
                continue
            if subscriber.is_over:
                return
            news.clear()
            try:
                async with asyncio.timeout(PATIENCE):
                    await news.wait()
            except TimeoutError:
                say(f"nothing more in {format_duration(PATIENCE)}; what comes later would be sent")
                return
        if not subscriber.is_over:
            say(f"and so on; --events {2 * self._events} shows more")
