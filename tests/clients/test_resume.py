"""Clients that others wrote lose their connections at random, and have lost and repeated nothing at the end."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.children import Child, Line, wait_until
from tests.clients.cutting import Cuts, CuttingProxy
from tests.clients.gate import EVENTS, Gate
from tests.clients.legacy import LegacyApi
from tests.clients.peers import client

NODE_CLIENTS = {
    "eventsource": Cuts(8),
    # It gives up its EventSource at 503, and goes on with a new one that has the cursor in the query.
    "reconnecting_eventsource": Cuts(4, turned_away=2),
    # Its cursor moves when the `id` line has come, not when the event has: an event that is cut between that line and the
    # blank one is lost to it, whoever sends it.
    "fetch_event_source": Cuts(8, between_writes=True),
    # It never comes back before a second has passed.
    "event_source_polyfill": Cuts(2),
}
USUAL = ("eventsource", "fetch_event_source", "curl")

OTHER_CLIENTS = {"httpx-sse": Cuts(8), "curl": Cuts(8), "curl-h2c": Cuts(8)}

ALL = [
    *(pytest.param(name, cuts, id=name, marks=pytest.mark.node) for name, cuts in NODE_CLIENTS.items()),
    *(pytest.param(name, cuts, id=name) for name, cuts in OTHER_CLIENTS.items()),
]

SOME = [
    each if each.id in USUAL else pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.long])
    for each in ALL
]
"""The same, of which some run with the long ones: a newest state tries a client less than events of which none may be missed."""

HISTORY = "upstreams: {api: http://127.0.0.1:9}\ndefaults: {retry: 100ms}\nroutes:"


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> None:
    """npm packages, for those clients that are such."""
    if request.node.get_closest_marker("node"):
        request.getfixturevalue("node_packages")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate with a route of numbered events."""
    with Gate(tmp_path_factory.mktemp("gate"), HISTORY + EVENTS) as gate:
        yield gate


def is_event(line: Line) -> bool:
    return "type" in line


def numbers(lines: list[Line]) -> list[int]:
    """What the events say, all of which are plain messages."""
    events = [line for line in lines if is_event(line)]
    assert {line["type"] for line in events} == {"message"}, lines
    return [json.loads(line["data"])["n"] for line in events]


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize(("name", "cuts"), ALL)
def test_a_client_that_loses_its_connections_misses_and_repeats_no_event(
    name: str, cuts: Cuts, gate: Gate, tmp_path: Path
) -> None:
    with (
        CuttingProxy(gate.port, seed=17) as proxy,
        Child(client(name, f"{proxy.url}/t/{name}/events"), tmp_path / "log") as child,
    ):
        lines = child.until(lambda line: "open" in line)
        gate.post(name, 1)
        lines += child.until(is_event)
        proxy.cut(cuts)
        last = gate.post_until(proxy.is_spent, name, after=1)
        lines += child.until(lambda line: is_event(line) and json.loads(line["data"])["n"] == last)
        assert numbers(lines) == list(range(1, last + 1))
        assert sum("open" in line for line in lines) > 1


POLLED = """
upstreams: {{api: "{api}"}}
defaults: {{retry: 100ms}}
routes:
  - path: "/documents/{{name}}/events"
    poll: {{get: "/documents/{{name}}", every: 100ms}}
"""


@pytest.fixture(scope="module")
def api() -> Iterator[LegacyApi]:
    """An upstream with one document."""
    with LegacyApi() as api:
        yield api


@pytest.fixture(scope="module")
def polling_gate(api: LegacyApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate that polls it, each document for a topic of its own."""
    with Gate(tmp_path_factory.mktemp("polling"), POLLED.format(api=api.url)) as gate:
        yield gate


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize(("name", "cuts"), SOME)
def test_a_client_of_a_snapshot_route_ends_at_the_newest_state_and_never_goes_back(
    name: str, cuts: Cuts, api: LegacyApi, polling_gate: Gate, tmp_path: Path
) -> None:
    with (
        CuttingProxy(polling_gate.port, seed=23) as proxy,
        Child(client(name, f"{proxy.url}/documents/{name}/events"), tmp_path / "log") as child,
    ):
        lines = child.until(is_event)
        proxy.cut(Cuts(min(cuts.count, 4), 900, cuts.between_writes, min(cuts.turned_away, 2)))
        last = change_until_spent(api, proxy)
        lines += child.until(lambda line: is_event(line) and version(line) == last)
        versions = [version(line) for line in lines if is_event(line)]
        assert versions == sorted(set(versions)), "a state was repeated, or an older one came after a newer"
        assert {line["type"] for line in lines if is_event(line)} == {"message"}
        assert sum("open" in line for line in lines) > 1


def version(line: Line) -> int:
    number: int = json.loads(line["data"])["version"]
    return number


def change_until_spent(api: LegacyApi, proxy: CuttingProxy) -> int:
    """One version after the other until all cuts are made, and a last one; return its number."""
    end = time.monotonic() + 20
    for number in itertools.count(api.version + 1):
        is_last = proxy.is_spent.wait(0.03)
        assert time.monotonic() < end, "the proxy had nothing to cut"
        api.document = {"version": number, "padding": "x" * 100}
        if is_last:
            break
    return api.version


HEARTBEAT = "upstreams: {api: http://127.0.0.1:9}\ndefaults: {retry: 100ms, heartbeat: 1s}\nroutes:" + EVENTS


@pytest.mark.node
@pytest.mark.usefixtures("node_packages")
def test_heartbeats_are_no_messages_to_fetch_event_source(tmp_path: Path) -> None:
    with (
        Gate(tmp_path, HEARTBEAT) as gate,
        CuttingProxy(gate.port, seed=0) as proxy,
        Child(client("fetch_event_source", f"{proxy.url}/t/quiet/events"), tmp_path / "log") as child,
    ):
        lines = child.until(lambda line: "open" in line)
        # A chunk of two bytes, a colon and one line end.
        wait_until(lambda: proxy.seen.count(b"\r\n2\r\n:\n\r\n") >= 2, "two heartbeats")
        gate.post("quiet", 1)
        lines += child.until(is_event)
        assert numbers(lines) == [1]
        assert json.loads(lines[-1]["data"]) == {"id": "quiet", "n": 1}
