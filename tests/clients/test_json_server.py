"""npm `json-server` as the legacy API: records are changed through the gate's own pass-through, and viewers see it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.children import Child, wait_until
from tests.clients.gate import Gate
from tests.clients.peers import HERE, client, find_node

pytestmark = pytest.mark.node

CONFIG = """
upstreams: {{api: "http://127.0.0.1:{port}"}}
defaults: {{retry: 100ms}}
routes:
  - path: "/orders/{{id}}/events"
    poll: {{get: "/orders/{{id}}", every: 200ms}}
  - path: "/orders/{{id}}/patches"
    poll: {{get: "/orders/{{id}}", every: 200ms}}
    emit: {{as: patch}}
  # An hour is longer than any test: what comes here comes because of the write.
  - path: "/notes/{{id}}/events"
    poll: {{get: "/notes/{{id}}", every: 1h, after_write: true}}
  - path: /open-tasks/events
    poll:
      get: /tasks?status=open
      every: 1h
      items: {{key: id}}
      after_write: [/tasks, "/tasks/{{id}}"]
    emit: {{as: items}}
  - path: "/{{rest:path}}"
    proxy: {{}}
"""

RECORDS = {
    "orders": [{"id": number, "status": "open", "note": "x" * 40} for number in range(1, 40)],
    "notes": [{"id": 1, "text": "old"}],
    "tasks": [{"id": 1, "status": "open"}, {"id": 2, "status": "open"}],
}


@pytest.fixture(scope="module")
def json_server(node_packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Its port."""
    command: list[str | Path] = [find_node(), HERE / "json_server.mjs", json.dumps(RECORDS)]
    with Child(command, tmp_path_factory.mktemp("json-server") / "log") as child:
        yield child.next()["port"]


@pytest.fixture(scope="module")
def gate(json_server: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """The gate before it."""
    with Gate(tmp_path_factory.mktemp("gate"), CONFIG.format(port=json_server)) as gate:
        yield gate


def viewer(gate: Gate, path: str, folder: Path, name: str = "eventsource") -> Child:
    return Child(client(name, gate.url + path), folder / "log")


def next_event(child: Child) -> tuple[str, Any]:
    """The type and the document of the next event."""
    line = child.until(lambda line: "type" in line)[-1]
    return line["type"], json.loads(line["data"])


def test_a_record_changed_through_the_gate_is_seen_by_its_viewers(gate: Gate, tmp_path: Path) -> None:
    with viewer(gate, "/orders/1/events", tmp_path) as child:
        assert next_event(child) == ("message", RECORDS["orders"][0])
        changed = gate.request("PATCH", "/orders/1", {"status": "paid"})
        assert changed == RECORDS["orders"][0] | {"status": "paid"}
        assert next_event(child) == ("message", changed)
        replaced = gate.request("PUT", "/orders/1", {"status": "shipped"})
        assert replaced == {"id": 1, "status": "shipped"}
        assert next_event(child) == ("message", replaced)


def test_a_record_changed_behind_the_gate_is_seen_as_a_patch(gate: Gate, json_server: int, tmp_path: Path) -> None:
    with viewer(gate, "/orders/2/patches", tmp_path) as child:
        assert next_event(child) == ("snapshot", RECORDS["orders"][1])
        httpx.patch(f"http://127.0.0.1:{json_server}/orders/2", json={"status": "paid"}).raise_for_status()
        assert next_event(child) == ("patch", [{"op": "replace", "path": "/status", "value": "paid"}])


def test_a_write_through_the_gate_is_seen_at_once_where_the_route_says_after_write(gate: Gate, tmp_path: Path) -> None:
    with viewer(gate, "/notes/1/events", tmp_path) as child:
        assert next_event(child) == ("message", {"id": 1, "text": "old"})
        gate.request("PATCH", "/notes/1", {"text": "new"})
        assert next_event(child) == ("message", {"id": 1, "text": "new"})
        gate.request("PUT", "/notes/1", {"text": "newer"})
        assert next_event(child) == ("message", {"id": 1, "text": "newer"})


def test_writes_to_records_are_seen_in_a_filtered_list_of_them(gate: Gate, tmp_path: Path) -> None:
    with viewer(gate, "/open-tasks/events", tmp_path) as child:
        assert next_event(child) == ("snapshot", RECORDS["tasks"])
        gate.request("POST", "/tasks", {"status": "open"})
        assert next_event(child) == ("added", {"id": 3, "status": "open"})
        gate.request("PATCH", "/tasks/1", {"who": "Ada"})
        assert next_event(child) == ("changed", {"id": 1, "status": "open", "who": "Ada"})
        gate.request("PATCH", "/tasks/2", {"status": "done"})
        assert next_event(child)[0] == "removed"
        gate.request("DELETE", "/tasks/1")
        assert next_event(child)[0] == "removed"


def test_the_stream_of_a_deleted_record_ends_for_good(gate: Gate, tmp_path: Path) -> None:
    with viewer(gate, "/orders/3/events", tmp_path) as child:
        next_event(child)
        gate.request("DELETE", "/orders/3")
        kind, data = next_event(child)
        assert (kind, data["reason"]) == ("end", "gone")
        # It comes back with the end's id, is answered 204, and gives up.
        assert any(line.get("closed") for line in child.until(lambda line: line.get("closed", False)))


def test_polls_of_an_unchanged_record_cost_the_api_a_304(gate: Gate, tmp_path: Path) -> None:
    with viewer(gate, "/orders/4/events", tmp_path) as child:
        next_event(child)
        gate.request("PATCH", "/orders/4", {"status": "paid"})
        next_event(child)
        wait_until(lambda: unchanged_polls(gate) > 0, "a poll that is answered 304")


def unchanged_polls(gate: Gate) -> float:
    metrics = httpx.get(f"http://127.0.0.1:{gate.admin_port}/metrics").text
    found = re.search(r'^ssegate_polls_total\{[^}]*status="304"[^}]*\} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_the_api_compresses_passes_byte_for_byte(gate: Gate, json_server: int) -> None:
    direct, through = (fetch(f"http://127.0.0.1:{port}/orders?_limit=30&_start=8") for port in (json_server, gate.port))
    assert through[0]["content-encoding"] == "gzip"
    assert through[1] == direct[1]
    assert through[0]["etag"] == direct[0]["etag"]


def fetch(url: str) -> tuple[dict[str, str], bytes]:
    """Headers, and the body as it is on the wire."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return {name.lower(): value for name, value in response.headers.items()}, response.read()
