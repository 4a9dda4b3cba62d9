"""A hub that nobody here wrote: PyPI `flask-websub`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.clients.children import Child, Line, wait_until
from tests.clients.gate import Gate
from tests.clients.peers import client, websub_hub
from tests.ports import free_port

ROUTES = """
routes:
  - path: /feed/events
    webhook:
      at: /hooks/feed
      callback: http://127.0.0.1:{port}/hooks/feed
      subscribe: {{websub: {{topic: "{topic}", lease: 10m}}}}
"""


def is_call(mode: str) -> Any:
    """Whether a line of the hub's says that it has asked a subscriber for this."""
    return lambda line: "call" in line and parse_qs(urlsplit(line["url"]).query).get("hub.mode") == [mode]


def subscribers(hub: Child) -> list[dict[str, str]]:
    """Who the hub says they are."""
    hub.say({"subscribers": None})
    found: list[dict[str, str]] = hub.until(lambda line: "subscribers" in line)[-1]["subscribers"]
    return found


def until_subscribers(hub: Child, count: int) -> list[dict[str, str]]:
    """The hub writes down what it has asked for a moment after it has been answered."""
    wait_until(lambda: len(subscribers(hub)) == count, f"{count} subscribers")
    return subscribers(hub)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_gate_subscribes_gets_signed_content_and_unsubscribes_when_it_goes_down(
    algorithm: str, tmp_path: Path
) -> None:
    command, env = websub_hub(algorithm)
    with Child(command, tmp_path / "hub.log", env=env) as hub:
        topic = hub.next()["topic"]
        port = free_port()
        gate = Gate(tmp_path, ROUTES.format(port=port, topic=topic))
        gate.port = port
        with gate:
            asked = hub.until(is_call("subscribe"))[-1]
            assert asked["status"] == 200
            (subscriber,) = until_subscribers(hub, 1)
            assert subscriber["callback"].startswith(f"{gate.url}/hooks/feed/")
            with Child(client("httpx-sse", f"{gate.url}/feed/events"), tmp_path / "client.log") as reader:
                reader.until(lambda line: "open" in line)
                for number in (1, 2):
                    body = json.dumps({"n": number, "text": "é"}, ensure_ascii=False)
                    hub.say({"publish": body})
                    delivered = hub.until(lambda line: line.get("call") == "POST")[-1]
                    assert (delivered["url"], delivered["signature"]) == (subscriber["callback"], algorithm)
                    assert 200 <= delivered["status"] < 300
                    event = reader.until(is_event)[-1]
                    assert (event["type"], event["data"]) == ("message", body)
            gate.stop()
            assert hub.until(is_call("unsubscribe"))[-1]["status"] == 200
            assert until_subscribers(hub, 0) == []


def is_event(line: Line) -> bool:
    return "type" in line
