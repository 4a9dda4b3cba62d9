"""Where tickets are sold: `POST /_ssegate/ticket` with a credential, for an `EventSource`, which can send none."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from ssegate.auth.guard import Down, Question, Refused, Verdict
from ssegate.core.document import decode, encode
from ssegate.core.headers import Pair
from ssegate.core.routing import accepted_query, parse_query
from ssegate.core.shape import EVENT_STREAM
from ssegate.core.tickets import LIFE
from ssegate.edge.exchange import Answer, Request, problem, read_whole
from ssegate.errors import RejectedError, UndecodableError
from ssegate.gate.door import Asked
from ssegate.gate.routes import AnyEventRoute, JoinedRoute, NamesOf, ProxyRoute, Table
from ssegate.gate.streams import Streams, guards_of
from ssegate.gate.visit import no_room
from ssegate.upstream.forwarded import client_address

PATH = b"/_ssegate/ticket"

MAX_BODY = 16 * 1024

_WANTED = 'send JSON such as {"path": "/orders/17/events"}'


class TicketDesk:
    """Sells tickets."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def answer(self, request: Request, table: Table) -> Answer | Awaitable[Answer]:
        """Answer a request to `PATH`."""
        shared = table.cors_headers(request.headers)
        if request.method == "OPTIONS":
            return table.preflight(request, shared, ("POST",))
        if request.method != "POST":
            return problem(405, f"{request.method} is not served here", ((b"allow", b"POST, OPTIONS"), *shared))
        return self._sell(request, table, shared)

    async def _sell(self, request: Request, table: Table, shared: tuple[Pair, ...]) -> Answer:
        address = client_address(request.peer, request.headers, table.config.server.trusted_proxies)
        if self._streams.is_draining or not self._streams.may_ask(address):
            return no_room(shared)
        try:
            target = _read_target(await read_whole(request.body, MAX_BODY, request.headers))
        except RejectedError as error:
            return problem(error.status, str(error), shared)
        path, _, query = target.partition("?")
        match = table.router.match("GET", path.encode(), EVENT_STREAM)
        if match is None or isinstance(match.target, ProxyRoute):
            return problem(404, "no event stream is at this path", shared)
        names = _sellers(match.target)
        if not names:
            return problem(400, "this path needs no ticket", shared)
        asked = Asked(path, address, shared)
        question = Question(request, "GET", target.encode(), table.config.server.trusted_proxies)
        verdict = self._streams.door.judge(names, question)
        judged: Verdict = await verdict if isinstance(verdict, Awaitable) else verdict
        if isinstance(judged, Down):
            return no_room(shared)
        seller = None if isinstance(judged, Refused) else self._streams.door.guards.get(judged.principal.guard)
        if not isinstance(judged, Refused) and (seller is None or not seller.sells_tickets):
            judged = Refused(403, "the guard sells no tickets: `ticket` is not in its `from`")
        if isinstance(judged, Refused):
            return self._streams.door.refuse(judged, names, asked)
        if not isinstance(match.target, JoinedRoute | NamesOf):
            fields = accepted_query(match.target.route.query, parse_query(query.encode())) or {}
            reason = self._streams.stays_out(match.target, match.params, fields, request.headers, judged.principal)
            if reason:
                return self._streams.door.refuse(Refused(403, reason), names, asked, judged.principal)
        text = self._streams.door.sell(path, judged)
        told = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), *shared)
        return Answer(200, told, encode({"ticket": text, "expires_in": round(LIFE)}).encode())


def _read_target(body: bytes) -> str:
    """The path, with its query if it has one. Raises `RejectedError` 400."""
    try:
        document = decode(body)
    except UndecodableError as error:
        raise RejectedError(400, f"{error}; {_WANTED}") from error
    path = document.get("path") if isinstance(document, dict) else None
    if (
        not isinstance(path, str)
        or not path.startswith("/")
        or not path.isascii()
        or not path.isprintable()
        or " " in path
    ):
        raise RejectedError(400, f"`path` is no path; {_WANTED}")
    return path


def _sellers(target: AnyEventRoute) -> Sequence[str]:
    return target.sellers if isinstance(target, JoinedRoute) else guards_of(target)
