"""Topics of each kind before /live, which joins them, and a client that comes and goes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from ssegate.core.event import Event
from tests.e2e.client import Pair, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said
from tests.guards import WhoAmI
from tests.tokens import AUDIENCE, ISSUER, Issuer

ISSUES = Issuer("HS256", kid=None)

AUTH = """
auth:
  session: {{forward: {{url: "{who}", send: [cookie], identity: x-user-id, cache: 30s, recheck: {recheck}}}}}
  user: {{jwt: {{issuer: "{issuer}", audience: {audience}, keys: {{secret: {secret}}}}}}}
"""

ROUTES = """
- path: /orders/{id}/events
  auth: none
  poll: {get: "/orders/{id}", every: 20ms}
- path: /patched/{id}/events
  auth: none
  poll: {get: "/orders/{id}", every: 20ms}
  emit: {as: patch}
- path: /orders/events
  auth: none
  query: {status: "open|paid", page: "[0-9]+"}
  poll: {get: "/orders?status={query.status}", every: 20ms}
- path: /jobs/{id}/progress
  auth: none
  task: {get: "/jobs/{id}", every: 20ms, progress: n, done: "state == 'done'", result: n}
- path: /rooms/{id}/events
  auth: none
  webhook: {at: /hooks/rooms, verify: none, match: {id: body.id}}
- path: /kinds/{id}/events
  auth: none
  webhook: {at: /hooks/kinds, verify: none, match: {id: body.id}}
  emit: {event: "{headers.x-kind}"}
- path: /users/{id}/notifications
  auth: session
  allow: "params.id == identity"
  webhook: {at: /hooks/users, verify: none, match: {id: body.to}}
- path: /me/notifications
  auth: session
  webhook: {at: /hooks/me, verify: none, match: {identity: body.to}}
- path: /signed/{id}/events
  auth: user
  webhook: {at: /hooks/signed, verify: none, match: {id: body.id}}
- path: /alone/{id}/events
  auth: none
  webhook: {at: /hooks/rooms, verify: none, match: {id: body.id}}
- path: /live
  topics: [
    "/orders/{id}/events", "/patched/{id}/events", /orders/events, "/jobs/{id}/progress", "/rooms/{id}/events", "/kinds/{id}/events",
    "/users/{id}/notifications", /me/notifications, "/signed/{id}/events"]
- path: /{rest:path}
  proxy: {}
"""

ADA = ("Cookie", "session=s1")
BOB = ("Cookie", "session=s2")
JSON = ("Content-Type", "application/json")


def configuration(api: LegacyApi, who: WhoAmI, *, recheck: str = "60s", more: str = "", routes: str = ROUTES) -> str:
    """Topics of each kind, and /live, which joins them."""
    auth = AUTH.format(who=who.url, recheck=recheck, issuer=ISSUER, audience=AUDIENCE, secret=ISSUES.secret)
    return before(api, routes, more=auth + more)


@asynccontextmanager
async def joining(
    edge: Edge, *, recheck: str = "60s", more: str = "", server: str = "", routes: str = ROUTES
) -> AsyncIterator[tuple[RunningGate, LegacyApi, WhoAmI]]:
    """A gate that knows ada and bob by their sessions."""
    async with LegacyApi() as api, WhoAmI({"s1": "ada", "s2": "bob"}) as who:
        text = configuration(api, who, recheck=recheck, more=more, routes=routes)
        async with running_gate(edge, text, admin=True, server=server) as gate:
            yield gate, api, who


def live(*topics: str) -> str:
    """The URL of a stream of these."""
    return "/live?" + "&".join(f"topic={quote(topic, safe='/')}" for topic in topics)


async def post(gate: RunningGate, hook: str, headers: tuple[Pair, ...] = (), **body: object) -> None:
    reply = await gate.ask("POST", f"/hooks/{hook}", JSON, *headers, body=json.dumps(body).encode())
    assert reply.status in (200, 202), reply.body


async def happened(viewer: Viewer, count: int) -> list[tuple[str, object]]:
    """The next events: what each is called, and what its data says."""
    events = [await viewer.event() for _ in range(count)]
    return [(event.type, said(event.data)) for event in events]


async def events(viewer: Viewer, count: int) -> list[Event]:
    """The next events."""
    return [await viewer.event() for _ in range(count)]


async def end_of(viewer: Viewer) -> bytes:
    """Read to the end of the stream; its last bytes."""
    size = len(viewer.raw)
    await viewer.rest()
    return bytes(viewer.raw[size:])


def refused(topic: str, status: int) -> tuple[str, object]:
    """How it is told that a topic is not read."""
    reason = "refused" if status in (401, 403) else "unknown"
    return f"{topic}#end", {"reason": reason, "status": status}


class Listener:
    """A client that comes and goes: what it has been given of each topic, in order."""

    def __init__(self, *topics: str) -> None:
        self.topics = topics
        self.cursor: str | None = None
        self.seen: dict[str, list[int]] = {topic: [] for topic in topics}

    async def take(self, viewer: Viewer, count: int) -> None:
        """Take this many events, and stand behind them."""
        for event in await events(viewer, count):
            assert event.type in self.seen, event
            self.seen[event.type].append(said(event.data)["n"])
            self.cursor = event.id

    @property
    def total(self) -> int:
        return sum(map(len, self.seen.values()))
