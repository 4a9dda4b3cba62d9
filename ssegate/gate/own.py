"""Streams that belong to one request: opened with it, named, and found again by the name or by a cursor."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from ssegate.core.document import decode
from ssegate.core.headers import Headers, Pair
from ssegate.core.hub import Topic
from ssegate.core.journal import Position
from ssegate.core.principal import Principal
from ssegate.edge.exchange import Answer, Body, Relay, Request, problem
from ssegate.edge.passage import Passage
from ssegate.errors import RejectedError, UndecodableError, UpstreamError
from ssegate.gate.topics import FIRST_ANSWER, Topics, Watch
from ssegate.gate.watched import StreamRoute, TaskRoute, WatchedRoute
from ssegate.sources.awaited import WatchedSource
from ssegate.sources.poll import PollTarget
from ssegate.sources.stream import ACCEPTS, StreamTarget, misfit
from ssegate.upstream.fetch import MAX_REDIRECTS, REDIRECTS
from ssegate.upstream.fields import CHUNKED, NO_BODY
from ssegate.upstream.intake import AnswerHead, Intake
from ssegate.upstream.websocket import WebSocketIntake

MAX_REFUSAL = 1 << 20
"""Bytes of an upstream's refusal that are passed on."""

REFUSAL_SECONDS = 5.0
"""How long the rest of a refusal is waited for; without it its status is told."""

START_SECONDS = 60.0
"""How long the answer to a task's `start` may take from its head to its end."""

_NO_RESOURCE = "the path or the query does not make a resource"
_WITH_A_BODY = frozenset({"POST", "PUT", "PATCH"})
_KEPT_TO_OURSELVES = frozenset({b"content-length", b"date", b"vary"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that opens a stream of its own, and what its route makes of it."""

    request: Request
    params: Mapping[str, str]
    query: Mapping[str, str]
    max_body: int
    """Bytes of its body."""
    principal: Principal | None
    """Who the viewer is, where a guard says so."""
    shared: tuple[Pair, ...]
    """Headers that go into whatever is answered."""


class OwnStreams:
    """All streams of single requests."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    def find(
        self, route: WatchedRoute, params: Mapping[str, str], headers: Headers, principal: Principal | None
    ) -> Watch | None:
        """The stream with this name; None when there is none, or it is somebody else's."""
        *others, token = params.values()
        watch = self._topics.get(_key(route, token))
        if watch is None or watch.owner != route.owner(headers, principal):
            return None
        return watch if list(watch.params.values()) == others else None

    def resumed(
        self, route: WatchedRoute, cursor: str | None, headers: Headers, principal: Principal | None
    ) -> Watch | None:
        """The stream that this cursor comes from: a client that cannot read the name asks again as it did first."""
        position = None if cursor is None else Position.parse(cursor)
        watch = None if position is None else self._topics.of_epoch(position.epoch)
        if watch is None or watch.route is not route or watch.owner != route.owner(headers, principal):
            return None
        return watch

    async def open(self, route: StreamRoute | TaskRoute, asked: Asked) -> Watch | Answer | None:
        """Ask the upstream, and open the stream when it says yes; else what it says. None when there is no room for a topic.

        Raises `UpstreamError` when it says nothing, and `ClientGoneError` out of the request's body.
        """
        if not self._topics.has_room:
            return None
        try:
            if isinstance(route, TaskRoute):
                return await self._start(route, asked)
            return await self._begin(route, asked)
        except RejectedError as error:
            return problem(error.status, str(error), asked.shared, close=True)
        except UpstreamError:
            route.slot.record.count_opening("failed")
            raise

    # Streams

    async def _begin(self, route: StreamRoute, asked: Asked) -> Watch | Answer | None:
        try:
            target = route.target(asked.params, asked.query, asked.request.headers, asked.principal)
        except (ValueError, LookupError):
            return problem(404, _NO_RESOURCE, asked.shared)
        if route.settings.rules.format == "websocket":
            return await self._begin_websocket(route, asked, target)
        accept = ACCEPTS.get(route.settings.rules.format, b"*/*")
        here = route.slot.upstream.address.target(target.path.encode())
        passage = _passage(route, asked, target.method, here, accept)
        try:
            head = await _head(passage)
            for _ in range(MAX_REDIRECTS if target.method == "GET" else 0):
                onward = None if head is None else _onward(route, here, head)
                if onward is None:
                    break
                await passage.aclose()
                here = onward
                passage = _passage(route, asked, target.method, here, accept)
                head = await _head(passage)
            refusal = None if head is None else await _refusal(passage, head, route.settings.rules.format, asked.shared)
            if refusal is not None:
                await passage.aclose()
                return refusal
            return self._follow(route, asked, target, passage)
        except BaseException:
            await passage.aclose()
            raise

    async def _begin_websocket(self, route: StreamRoute, asked: Asked, target: StreamTarget) -> Watch | Answer | None:
        intake = WebSocketIntake.open(
            route.slot.upstream,
            target.path,
            target.headers,
            with_auth=target.with_auth,
            max_size=route.settings.rules.max_record_size,
        )
        try:
            head = await _head_in_time(intake, FIRST_ANSWER)
            if head is None or head.status == 101:
                return self._follow(route, asked, target, intake)
            refusal = await _refusal(intake, head, "websocket", asked.shared)
        except BaseException:
            intake.cancel()
            raise
        intake.cancel()
        return refusal or problem(502, "the upstream did not open a WebSocket", asked.shared)

    def _follow(self, route: StreamRoute, asked: Asked, target: StreamTarget, opened: Intake) -> Watch | None:
        watch = self._watch(route, asked, lambda topic: route.make_source(topic, target, opened))
        if watch is None:
            opened.cancel()
        return watch

    # Tasks

    async def _start(self, route: TaskRoute, asked: Asked) -> Watch | Answer | None:
        assert route.start is not None
        try:
            values = route.values(asked.params, asked.query, asked.principal)
            path = route.expand_start(values)
        except (ValueError, LookupError):
            return problem(404, _NO_RESOURCE, asked.shared)
        passage = _passage(route, asked, route.start.method, path, b"*/*")
        try:
            head = await _head(passage, patience=None)
            assert head is not None, "it was waited for"
            if not 200 <= head.status < 300:
                return await _passed_on(passage, head, asked.shared)
            async with asyncio.timeout(START_SECONDS):
                body = await _read(passage, MAX_REFUSAL)
        except TimeoutError:
            return problem(504, "the upstream did not answer in time", asked.shared)
        finally:
            await passage.aclose()
        try:
            where = route.status_path(path, Headers(head.headers), _json(body), values)
        except (ValueError, LookupError) as error:
            return problem(502, f"the job was started, but not where its status is: {error.args[0]}", asked.shared)
        headers = route.forwarded(asked.request.headers, asked.principal)
        target = PollTarget(where, headers, with_auth=route.uses_own_credentials)
        return self._watch(route, asked, lambda topic: route.make_source(topic, target))

    def _watch(self, route: WatchedRoute, asked: Asked, make: Callable[[Topic], WatchedSource]) -> Watch | None:
        """The request has a topic now, with a name that nobody can guess."""
        token = secrets.token_urlsafe(16)
        path = asked.request.target.partition(b"?")[0].decode("ascii").rstrip("/")
        return self._topics.watch(
            route,
            _key(route, token),
            make,
            asked.params,
            name=f"{path}/s/{token}",
            owner=route.owner(asked.request.headers, asked.principal),
        )


def _key(route: WatchedRoute, token: str) -> str:
    return f"{route.route.path} s/{token}"


# The request to the upstream


def _passage(route: StreamRoute | TaskRoute, asked: Asked, method: str, path: str | bytes, accept: bytes) -> Passage:
    request = asked.request
    body = request.body if method in _WITH_A_BODY else None
    length = request.headers.get("content-length")
    if body is not None and length is not None and int(length) > asked.max_body:
        raise _too_large(asked.max_body)
    headers = list(route.forwarded(request.headers, asked.principal))
    if body is not None:
        headers += [
            (b"Content-Type", value.encode("latin-1"))
            for value in request.headers.all("content-type")
            if "content-type" not in route.forward
        ]

    def begin(viewer: Passage, has_body: bool) -> object:
        framing = (
            (CHUNKED if length is None else int(length)) if has_body else (0 if method in _WITH_A_BODY else NO_BODY)
        )
        return route.slot.upstream.open(
            path,
            headers,
            viewer,
            method=method,
            framing=framing,
            accept=accept,
            with_auth=route.uses_own_credentials,
        )

    limited = None if body is None else _limited(body, asked.max_body)
    is_announced = length is not None or "transfer-encoding" in request.headers
    return Passage(Relay(begin), limited, is_announced=is_announced)  # type: ignore[arg-type]  # it is its own viewer


async def _limited(body: Body, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for piece in body:
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        yield piece


def _too_large(limit: int) -> RejectedError:
    return RejectedError(413, f"the body is larger than {limit} bytes (limits.stream_body)")


async def _head(passage: Passage, patience: float | None = FIRST_ANSWER) -> AnswerHead | None:
    """The head of the answer, once the request is whole or has been refused; None when it takes longer than `patience`
    seconds after that. Raises what the request's body raises, and `UpstreamError`."""
    await passage.begin()
    if passage.sending is not None:
        reading = asyncio.ensure_future(passage.read_head())
        try:
            await asyncio.wait((reading, passage.sending), return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and reading.result().status < 300:
                await asyncio.wait((passage.sending,))
            passage.check()
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
    return await _head_in_time(passage, patience)


async def _head_in_time(intake: Intake, patience: float | None) -> AnswerHead | None:
    try:
        async with asyncio.timeout(patience):
            return await intake.read_head()
    except TimeoutError:
        return None


def _onward(route: StreamRoute, here: bytes, head: AnswerHead) -> bytes | None:
    """Where a redirect leads to within the same origin."""
    location = Headers(head.headers).get("location")
    if head.status not in REDIRECTS or location is None:
        return None
    return route.slot.upstream.address.follow(here, location)


async def _refusal(intake: Intake, head: AnswerHead, format_: str, shared: tuple[Pair, ...]) -> Answer | None:
    """What is answered when the upstream has nothing to follow."""
    if head.status == 204:
        return Answer(204, shared)
    if 300 <= head.status < 400:
        return problem(502, f"the upstream answered {head.status}, a redirect that is not followed", shared)
    if head.status >= 400:
        return await _passed_on(intake, head, shared)
    fact = misfit(format_, Headers(head.headers))
    return None if fact is None else problem(502, fact, shared)


async def _passed_on(intake: Intake, head: AnswerHead, shared: tuple[Pair, ...]) -> Answer:
    """The upstream's own answer, but for what says which pages may read it."""
    if 300 <= head.status < 400:
        return problem(502, f"the upstream answered {head.status}, a redirect that is not followed", shared)
    try:
        async with asyncio.timeout(REFUSAL_SECONDS):
            body = await _read(intake, MAX_REFUSAL)
    except (TimeoutError, UpstreamError):
        return problem(head.status, f"the upstream answered {head.status}", shared)
    headers = [
        pair
        for pair in head.headers
        if pair[0].lower() not in _KEPT_TO_OURSELVES and not pair[0].lower().startswith(b"access-control-")
    ]
    return Answer(head.status, (*headers, *shared), body)


async def _read(intake: Intake, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while piece := await intake.read():
        size += len(piece)
        if size > limit:
            raise UpstreamError(f"its answer is larger than {limit} bytes")
        parts.append(piece)
    return b"".join(parts)


def _json(body: bytes) -> object:
    try:
        return decode(body)
    except UndecodableError:
        return None
