"""A gate with guards before its routes, between a legacy API and a backend that says who somebody is."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ssegate.core.event import Event
from tests.e2e.client import PATIENCE, Pair, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, make_config, running_gate, said
from tests.guards import WhoAmI
from tests.tokens import Issuer

ADA: Pair = ("Cookie", "session=s1")
GRACE: Pair = ("Cookie", "session=s2")
SESSIONS = {"s1": "ada", "s2": "grace"}

HS = Issuer("HS256")


def bearer(token: str) -> Pair:
    return ("Authorization", f"Bearer {token}")


def session(who: WhoAmI, *more: str, name: str = "session", cache: str = "30s", recheck: str = "60s") -> str:
    """A guard that asks `who`; `more` are further keys of it."""
    keys = [f"url: {who.url}", "identity: x-user-id", "claims: json", f"cache: {cache}", f"recheck: {recheck}", *more]
    return f"{name}: {{forward: {{{', '.join(keys)}}}}}"


def user(*more: str, name: str = "user", issuer: Issuer = HS) -> str:
    """A guard that reads tokens of this issuer."""
    keys = [f'issuer: "{issuer.issuer}"', f"audience: {issuer.audience}", f"keys: {{secret: {issuer.secret}}}", *more]
    return f"{name}: {{jwt: {{{', '.join(keys)}}}}}"


def partner(*keys: str, name: str = "partner", header: str = "x-api-key") -> str:
    """A guard that knows some keys: `acme: k-acme`."""
    return f"{name}: {{keys: {{header: {header}, values: {{{', '.join(keys)}}}}}}}"


def guarding(api: LegacyApi, routes: str, guards: Sequence[str], *, more: str = "", upstream: str = "") -> str:
    """A configuration with these guards."""
    auth = "auth:\n" + "".join(f"  {guard}\n" for guard in guards)
    return before(api, routes, more=auth + textwrap.dedent(more), upstream=upstream)


@asynccontextmanager
async def guarded(
    edge: Edge, routes: str, *guards: str, api: LegacyApi, more: str = "", upstream: str = "", server: str = ""
) -> AsyncIterator[RunningGate]:
    """A gate with these guards before the routes."""
    async with running_gate(
        edge, guarding(api, routes, guards, more=more, upstream=upstream), admin=True, server=server
    ) as gate:
        yield gate


def reload(gate: RunningGate, edge: Edge, text: str) -> None:
    """Go over to another configuration, as SIGHUP does."""
    gate.service.gate.reload(make_config(edge.yaml(0, text, admin=0)))


async def revoke(gate: RunningGate, identity: str) -> int:
    """Put somebody out, by the admin listener; how many streams that ended."""
    reply = await gate.admin.ask("POST", "/revoke", body=b'{"identity": "%b"}' % identity.encode())
    assert reply.status == 200, reply
    streams: int = said(reply.body)["streams"]
    return streams


async def status(gate: RunningGate, target: str, *headers: Pair, cursor: str | None = None) -> int:
    """How a request for a stream is answered, whether it opens one or not."""
    async with gate.watch(target, *headers, cursor=cursor) as viewer:
        return viewer.status


async def denials(gate: RunningGate) -> list[dict[str, Any]]:
    """What operators see of those who were not let in, the newest first."""
    found: list[dict[str, Any]] = said((await gate.admin.ask("GET", "/denials")).body)
    return found


async def ended(viewer: Viewer, reason: str, patience: float = PATIENCE) -> list[Event]:
    """Read to the end of the stream, which says why it has ended; all before that."""
    events = await viewer.rest(patience)
    # Without an id: what the client has of the topic is what it had before.
    last = b'\nevent: end\ndata: {"reason":"%b"}\n\n' % reason.encode()
    assert bytes(viewer.raw).endswith((b"\n" + last, b"\n:" + last)), bytes(viewer.raw)[-300:]
    return events[:-1]
