"""`ssegate try`: one poll of a route now, and all that would follow from it; or the first events of a stream."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from ssegate.cli.loading import load
from ssegate.cli.options import add_config, header, pair
from ssegate.cli.shown import masked, shown_request
from ssegate.cli.terminal import complain, paint, printable, say
from ssegate.cli.try_source import RefusedError, SourceTrial
from ssegate.config import Config
from ssegate.config.explain import did_you_mean
from ssegate.config.values import format_duration
from ssegate.core.headers import Headers
from ssegate.core.hub import Hub, Subscriber
from ssegate.core.journal import Position
from ssegate.core.poll import Meaning, Poller
from ssegate.core.principal import CLAIMS, IDENTITY, Principal
from ssegate.core.routing import Router, accepted_query, parse_query
from ssegate.errors import (
    OversizeError,
    SsegateError,
    UndecodableError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from ssegate.gate.routes import Table, route_entry
from ssegate.gate.watched import BODY_FACTOR, PollRoute, WatchedRoute
from ssegate.sources.poll import PollTarget
from ssegate.sources.telling import PASSED_ON
from ssegate.upstream import FetchAnswer
from ssegate.upstream.fetch import REDIRECTS, fetch_headers

UNUSABLE = 1
USAGE = 2
UNREACHABLE = 69

LONGEST_LINE = 400
"""Characters of a line of the state or of an event; more is counted."""

_NOTABLE = ("content-type", "etag", "last-modified", "cache-control", "age", "retry-after", "date")


class _UsageError(SsegateError):
    """What was asked for cannot be tried. Never leaves this module."""


class _UnusableError(SsegateError):
    """The poll works, but nothing comes of it; the message says what to change. Never leaves this module."""


def register(commands: Any) -> None:
    """Add the command to argparse's sub-parsers."""
    parser = commands.add_parser(
        "try",
        help="poll a route once, or open its stream: request, answer, state, the events it would send",
        description="Poll a route once and show the request, the answer, the state and the events it would send; a stream, "
        "a task and a feed are opened for real, jobs are started, and the first events are shown. "
        "Exits with 69 when the upstream cannot be reached, and with 1 when nothing comes of it.",
        epilog="ssegate try '/orders/{id}/events' --param id=17, or ssegate try /orders/17/events",
    )
    parser.add_argument("route", metavar="ROUTE", help="its path as in the file, or a path that it answers")
    parser.add_argument(
        "--param", metavar="NAME=VALUE", type=pair, action="append", default=[], help="a parameter of the path"
    )
    parser.add_argument(
        "--query", metavar="NAME=VALUE", type=pair, action="append", default=[], help="a query parameter of the viewer"
    )
    parser.add_argument(
        "--header", "-H", metavar="'N: v'", type=header, action="append", default=[], help="a header of the viewer"
    )
    parser.add_argument("--identity", metavar="ID", help="who the viewer is, where a guard would say so")
    parser.add_argument(
        "--claim",
        metavar="NAME=VALUE",
        type=pair,
        action="append",
        default=[],
        help="a claim of the viewer; JSON, or text",
    )
    parser.add_argument("--twice", action="store_true", help="poll again after the interval, and show what has changed")
    parser.add_argument(
        "--data", "-d", metavar="TEXT", help="the viewer's body, where one goes to the upstream (a stream or a task)"
    )
    parser.add_argument(
        "--events",
        metavar="N",
        type=int,
        default=5,
        help="show so many events of a stream, a task or a feed (default: 5)",
    )
    parser.add_argument(
        "--lines", metavar="N", type=int, default=20, help="show so much of state and events (default: 20; 0: all)"
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Try it; return the exit code. Raises `ConfigError`."""
    config = load(arguments.config)
    try:
        trial = _prepare(config, arguments)
        if isinstance(trial, SourceTrial):
            return asyncio.run(trial.run())
        return asyncio.run(trial.run(2 if arguments.twice else 1))
    except _UsageError as error:
        complain(str(error))
        return USAGE
    except (UpstreamUnreachableError, UpstreamTimeoutError) as error:
        complain(f"{error}")
        return UNREACHABLE
    except (_UnusableError, RefusedError, UpstreamError) as error:
        complain(str(error))
        return UNUSABLE


# What is asked


def _prepare(config: Config, arguments: argparse.Namespace) -> _Trial | SourceTrial:
    target, params, query = _find(Table(config), arguments.route)
    params |= dict(arguments.param)
    query += arguments.query
    _check_params(target, params)
    asked = accepted_query(target.route.query, query)
    if asked is None:
        raise _UsageError(f"a viewer would get 404: {_broken_query(target, query)}")
    for name in dict(query).keys() - asked.keys():
        say(f"note: the route does not name `{name}` in `query`, so it is ignored")
    headers = Headers((name.encode(), value.encode("latin-1")) for name, value in arguments.header)
    principal = _principal(arguments)
    _check_needs(target, principal)
    _note_unsent(target, headers)
    try:
        url = shown_request(config, target.route, params, asked, principal)
        if not isinstance(target, PollRoute):
            tell = partial(_tell_lines, most=arguments.lines)
            data, events = arguments.data, arguments.events
            return SourceTrial(config, target, params, asked, headers, principal, data=data, events=events, tell=tell)
        poll = target.target(params, asked, headers, principal)
    except (ValueError, LookupError) as error:
        raise _UsageError(f"no request comes out: {error.args[0]}; --query NAME=VALUE gives one") from None
    assert isinstance(poll, PollTarget)
    return _Trial(config, target, poll, url, arguments.lines)


def _principal(arguments: argparse.Namespace) -> Principal | None:
    """Whom a guard would have let in; None when nothing is said of the viewer."""
    if arguments.identity is None and not arguments.claim:
        return None
    claims: dict[str, Any] = {}
    for name, value in arguments.claim:
        *outer, last = name.removeprefix(CLAIMS).split(".")
        inner = claims
        for each in outer:
            inner = inner.setdefault(each, {})
            if not isinstance(inner, dict):
                raise _UsageError(f"`{each}` in --claim {name}=… is a claim of its own already")
        inner[last] = _value(value)
    return Principal(guard="try", key=b"", identity=arguments.identity, claims=claims)


def _value(text: str) -> object:
    """What a claim is: JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_needs(target: WatchedRoute, principal: Principal | None) -> None:
    known = principal or Principal(guard="try", key=b"")
    missing = [name for name in target.needs if known.value(name) is None]
    if missing:
        wanted = ["--identity …" if name == IDENTITY else f"--claim {name.removeprefix(CLAIMS)}=…" for name in missing]
        raise _UsageError(f"{target.route.path} asks in the name of a viewer; it wants {' '.join(wanted)}")


def _find(table: Table, text: str) -> tuple[WatchedRoute, dict[str, str], list[tuple[str, str]]]:
    """The route of that path that asks an upstream, or the one that answers it, with what the path then says."""
    asking = [route for route in table.routes if isinstance(route, WatchedRoute)]
    for route in asking:
        if route.route.path == text:
            return route, {}, []
    path, _, query = text.partition("?")
    raw = quote(path, safe="%/~:@!$&'()*+,;=").encode()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        found = table.router.match(method, raw, "text/event-stream")
        if found is not None and isinstance(found.target, WatchedRoute):
            return found.target, dict(found.params), parse_query(query.encode())
    raise _UsageError(_no_route(text, [route.route.path for route in asking], table))


def _no_route(text: str, known: Sequence[str], table: Table) -> str:
    for route in table.routes:
        if route.route.path == text and route.route.topics is not None:
            return f"`{text}` joins topics; try one of its routes: {', '.join(route.route.topics)}"
        if route.route.path == text:
            return f"`{text}` is a {route.route.kind} route: there is nothing to ask for"
    if not known:
        return "no route asks for anything; `ssegate routes` shows what there is"
    hint = did_you_mean(text, known)
    return f"no route is `{text}`; {hint or 'there are ' + ', '.join(f'`{path}`' for path in known)}"


def _check_params(target: WatchedRoute, params: dict[str, str]) -> None:
    wanted = route_entry(target.route, target).pattern.parameters
    for name in params:
        if name not in wanted:
            raise _UsageError(
                f"`{name}` is not a parameter of {target.route.path}; {did_you_mean(name, wanted)}".rstrip("; ")
            )
    missing = [name for name in wanted if name not in params]
    if missing:
        raise _UsageError(f"{target.route.path} wants {' '.join(f'--param {name}=…' for name in missing)}")
    path = re.sub(r"\{(\w+)\}", lambda found: quote(params[found[1]], safe=""), target.route.path)
    router = Router([route_entry(target.route, target)])
    method = target.route.opened_by[0]
    if router.match(method, path.encode(), "text/event-stream") is None:
        reason = router.explain(method, path.encode(), "text/event-stream")[0].reason
        raise _UsageError(f"a viewer of {path} would get 404: {reason}")


def _broken_query(target: WatchedRoute, query: Iterable[tuple[str, str]]) -> str:
    for name, value in query:
        pattern = target.route.query.get(name)
        if pattern is not None and accepted_query({name: pattern}, [(name, value)]) is None:
            return f"the query's `{name}` does not match {pattern.pattern}"
    raise AssertionError("some field was refused")


def _note_unsent(target: WatchedRoute, headers: Headers) -> None:
    sent = {*target.forward, "content-type"} if target.is_own else set(target.forward)
    for name, _ in headers:
        if name.decode().lower() not in sent:
            say(f"note: the route does not name `{name.decode()}` in `forward`, so it is not sent")


# What comes of it


@dataclass(frozen=True, slots=True)
class _Polled:
    """One answer, and when the next would be asked for."""

    answer: FetchAnswer
    meaning: Meaning
    seconds: float
    """How long it took."""


class _Trial:
    """A poll as the gate would make it, told step by step."""

    def __init__(self, config: Config, route: PollRoute, target: PollTarget, url: str, lines: int) -> None:
        assert route.route.poll is not None
        self._route = route
        self._settings = route.route.poll
        self._target = target
        self._url = url
        self._lines = lines
        self._upstream = route.slot.upstream
        self._max_body = BODY_FACTOR * config.limits.event_size
        self._key = route.key(target)
        self._detector = route.make_detector(self._key)
        self._hub = Hub()
        self._topic = self._hub.open(self._key, route.topic_settings, 0.0)
        self._viewer: Subscriber | None = None
        self._offset = 0
        self._poller = _make_poller(route)
        self._poller.resume(0.0)

    async def run(self, times: int) -> int:
        try:
            for number in range(times):
                if number:
                    await self._pause()
                await self._poll_once()
        finally:
            await self._upstream.aclose()
        return 0

    async def _pause(self) -> None:
        say(f"waiting {format_duration(self._settings.every.min)} …")
        await asyncio.sleep(self._settings.every.min)
        print()

    async def _poll_once(self) -> None:
        conditional = self._poller.headers()
        self._tell_request(conditional)
        polled = await self._ask(conditional)
        self._tell_answer(polled)
        match polled.meaning:
            case Meaning.BODY:
                self._examine(polled.answer)
            case Meaning.SAME:
                self._tell_schedule(polled.answer)
                self._tell_same(polled.answer)
            case _:
                if polled.meaning is Meaning.TROUBLE:
                    self._tell_schedule(polled.answer)
                raise _UnusableError(_said_refusal(self._route, polled))

    async def _ask(self, conditional: Sequence[tuple[bytes, bytes]]) -> _Polled:
        started = time.perf_counter()
        headers = (*self._target.headers, *conditional)
        try:
            answer = await self._upstream.fetch(
                self._target.path, headers, first=True, with_auth=self._target.with_auth, max_body=self._max_body
            )
        except OversizeError as error:
            raise _UnusableError(f"{error}; raise `limits.event_size`, or ask for less") from error
        seconds = time.perf_counter() - started
        self._poller.resume(0.0)  # so that `due` is the wait itself
        meaning = self._poller.receive(answer.status, answer.headers, now=0.0, wall=time.time())
        return _Polled(answer, meaning, seconds)

    # Request and answer

    def _tell_request(self, conditional: Sequence[tuple[bytes, bytes]]) -> None:
        print(paint(printable(self._url), "bold", sys.stdout))
        print(f"  sends  {', '.join(self._sent(conditional))}")

    def _sent(self, conditional: Sequence[tuple[bytes, bytes]]) -> list[str]:
        """Names only: values may be secrets."""
        settings = self._route.slot.settings
        configured = [(name.encode("latin-1"), b"") for name in settings.plain_headers]
        fields = fetch_headers("", configured, b"" if settings.auth else None, (*self._target.headers, *conditional))
        return [name.decode("latin-1") for name, _ in fields]

    def _tell_answer(self, polled: _Polled) -> None:
        answer = polled.answer
        size = f" · {len(answer.body)} bytes" if answer.body else ""
        colour = "green" if answer.status < 400 else "red"
        status = paint(f"{answer.status} {_phrase(answer.status)}".rstrip(), colour, sys.stdout)
        print(f"{status}{size} · {polled.seconds * 1000:.0f} ms")
        for name in _NOTABLE:
            if (value := answer.headers.get(name)) is not None:
                print(f"  {name}: {printable(value)}")
        if answer.status in REDIRECTS and (location := answer.headers.get("location")) is not None:
            print(f"  location: {printable(masked(location))}")

    def _tell_schedule(self, answer: FetchAnswer) -> None:
        print(f"  next poll {self._reason(answer)}")
        validators = [name.decode() for name, _ in self._poller.headers()]
        if validators:
            print(f"  it will ask with {', '.join(validators)}")
        elif self._settings.conditional and "last-modified" in answer.headers and 200 <= answer.status < 300:
            print("  its Last-Modified is no older than the answer and may hide a second change: not asked with")

    def _reason(self, answer: FetchAnswer) -> str:
        """When it is, and why."""
        wait = _seconds(self._poller.due)
        for name, shown in (("retry-after", "Retry-After"), ("cache-control", "Cache-Control")):
            if _wait(answer, self._route) > _wait(answer, self._route, without=name):
                age = answer.headers.get("age")
                less = f", less Age {age}" if age and name == "cache-control" else ""
                return printable(f"in {wait}: {shown} {answer.headers.get(name)}{less}")
        if self._poller.is_failing:
            return f"within {wait}: the back-off after a failure, at random"
        return f"in {wait}: every {self._settings.every}"

    # State and events

    def _examine(self, answer: FetchAnswer) -> None:
        try:
            updates = self._detector.changes(answer.body)
        except OversizeError as error:
            raise _UnusableError(f"{error}; raise `limits.event_size`, or let `select` take less") from error
        except UndecodableError as error:
            raise _UnusableError(_said_undecodable(self._route, answer, error)) from error
        self._poller.settle(changed=bool(updates), now=0.0)
        self._tell_schedule(answer)
        if not updates:
            self._tell_nothing(answer)
            return
        for update in updates:
            self._offset += 1
            self._hub.deliver(update, Position("try", self._offset), 0.0)
        self._tell_state(updates[-1].state)
        self._tell_events()

    def _tell_nothing(self, answer: FetchAnswer) -> None:
        if self._viewer is None:
            raise _UnusableError(_said_null(self._route, answer))
        print("The state is as before; nothing is sent.")

    def _tell_same(self, answer: FetchAnswer) -> None:
        if self._viewer is None:
            raise _UnusableError(
                f"{answer.status} has no state: a viewer gets nothing until there is one; ask another path"
            )
        print("The upstream says that nothing has changed; nothing is sent.")

    def _tell_state(self, state: str | None) -> None:
        if state is None:
            return
        print(f"{paint('state', 'bold', sys.stdout)} ({len(state.encode(errors='replace'))} bytes)")
        self._tell_lines(_pretty(state).split("\n"))

    def _tell_events(self) -> None:
        if self._viewer is None:
            opening = self._hub.subscribe(self._topic, None, 0.0, lambda: None)
            self._viewer, data = opening.subscriber, opening.data
            print(paint("a newcomer gets", "bold", sys.stdout))
        else:
            data = self._viewer.read()
            print(paint("viewers get", "bold", sys.stdout))
        self._tell_lines(data.decode().removesuffix("\n\n").split("\n"))

    def _tell_lines(self, lines: Sequence[str]) -> None:
        _tell_lines(lines, self._lines)


def _tell_lines(lines: Sequence[str], most: int) -> None:
    shown = lines[:most] if most > 0 else lines
    for line in shown:
        print(f"  {_cut(line, most)}".rstrip())
    if len(shown) < len(lines):
        print(paint(f"  … {len(lines) - len(shown)} more lines (--lines 0 shows all)", "dim", sys.stdout))


def _cut(line: str, most: int) -> str:
    if len(line) <= LONGEST_LINE or most <= 0:
        return printable(line)
    return printable(line[:LONGEST_LINE]) + paint(f" … {len(line) - LONGEST_LINE} more characters", "dim", sys.stdout)


def _make_poller(route: PollRoute) -> Poller:
    """A schedule like the one the gate would keep, without its jitter."""
    return Poller(route.poll_settings, random=lambda: 1.0)


def _wait(answer: FetchAnswer, route: PollRoute, without: str = "") -> float:
    """How long a first answer makes the gate wait, if it had not said one of these things."""
    poller = _make_poller(route)
    headers = Headers(field for field in answer.headers if field[0].lower() != without.encode())
    if poller.receive(answer.status, headers, now=0.0, wall=time.time()) is Meaning.BODY:
        poller.settle(changed=True, now=0.0)
    return poller.due


def _pretty(state: str) -> str:
    """Indented, where it is JSON."""
    try:
        return json.dumps(json.loads(state), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return state


def _seconds(wait: float) -> str:
    return f"{round(wait, 1):g} s"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


# What to change


def _said_refusal(route: PollRoute, polled: _Polled) -> str:
    """What is wrong with an answer that has no state, what a viewer sees of it, and the mend."""
    status = polled.answer.status
    told = f"a viewer would get {status} too" if status in PASSED_ON else "a viewer's stream opens with a `fault`"
    if polled.meaning is Meaning.GONE and status not in PASSED_ON:
        told = "a viewer's stream ends at once (`gone`)"
    return f"{status}: {told}; {_mend(route, status)}"


def _mend(route: PollRoute, status: int) -> str:
    upstream, poll = route.route.poll.upstream if route.route.poll else "", route.route.poll
    if status in (401, 403):
        if poll is not None and "authorization" in poll.forward:
            return "give the viewer's credentials by --header 'Authorization: …'"
        return f"let the route `forward: [authorization]`, or give upstreams.{upstream} an `auth`"
    if status in (404, 410):
        return "look whether `get` and the parameters name something that is there"
    if status in REDIRECTS:
        return f"only redirects to the same origin are followed: write the other one into upstreams.{upstream}.url"
    if status == 304:
        return "the upstream says `not modified` though nobody asked whether"
    if status == 429:
        return "ask less often (`every`), or set the upstream's `requests_per_second`"
    return "the upstream itself is in trouble, or `get` is not what it takes"


def _said_undecodable(route: PollRoute, answer: FetchAnswer, error: UndecodableError) -> str:
    kind = (answer.headers.get("content-type") or "no content-type").partition(";")[0].strip()
    poll = route.route.poll
    if poll is not None and poll.body == "json" and "json" not in kind.lower():
        return f"{error}; it is {kind}: write `body: text` (or bytes), or ask for JSON by the upstream's headers: {{Accept: application/json}}"
    return str(error)


def _said_null(route: PollRoute, answer: FetchAnswer) -> str:
    poll = route.route.poll
    assert poll is not None
    text = poll.select.text if poll.select is not None else ""
    return f"`select: {text}` gave null, so there is no state and nothing is sent; {_members(answer.body)}"


def _members(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return "the body is not JSON"
    if isinstance(document, dict):
        names = list(_first(document, 12))
        return f"the body's members are {', '.join(names)}" if names else "the body is an empty object"
    return f"the body is {'a list' if isinstance(document, list) else 'a single value'}"


def _first(names: Iterable[str], count: int) -> Iterator[str]:
    for number, name in enumerate(names):
        yield name if number < count else "…"
        if number == count:
            return
