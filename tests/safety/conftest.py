"""One gate of each edge for the whole folder: what one test does to it must not be seen by the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.safety.harness import GateProcess

CONFIG = """
version: 1
server: {edge: EDGE, listen: "127.0.0.1:0", keep_alive: 20s, trusted_proxies: [127.0.0.2/32]}
admin: {listen: "127.0.0.1:0"}
upstreams:
  api: {url: "{upstream}", timeout: {connect: 500ms, read: 600ms}, backoff: {min: 100ms, max: 200ms}}
limits: {stall: 1s, webhook_body: 64KiB, event_size: 4MiB, topics: 400}
defaults: {history: {events: 50, age: 1m}}
routes:
  - path: /orders/{id}/events
    params: {id: "[0-9a-z-]{1,40}"}
    poll: {get: "/orders/{id}", every: 100ms, linger: 0s}
  - path: /private/{id}/events
    poll: {get: "/private/{id}", every: 100ms, linger: 0s, forward: [authorization, cookie]}
  - path: /any/{id}/events
    poll: {get: "/any/{id}", every: 1s, linger: 0s}
  - path: /tickets/{id}/events
    webhook: {at: /hooks/tickets, verify: none, match: {id: body.id}, then: emit}
    emit: {event: "{body.type}", data: body.text}
  - path: /signed/events
    webhook: {at: /hooks/signed, verify: {standard: {secret: whsec_c2VjcmV0LW9mLXRlc3Rz}}}
    emit: {event: "{body.type}"}
  - path: /cloud/events
    webhook: {at: /hooks/cloud, verify: {cloudevents: {token: sesame}}}
    emit: {event: "{headers.ce-type}", data: data}
  - path: /{rest:path}
    proxy: {}
"""


NOT_ABOUT_THE_EDGE = ("test_slow_readers", "test_upstreams", "test_webhooks", "test_hostile_values", "test_relay")
"""Modules that run on the other edge with the long ones: what they are about is behind it, or takes half a minute."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those be long before they are chosen by their marks."""
    for item in items:
        if item.path.stem in NOT_ABOUT_THE_EDGE and "hypercorn" in item.name:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", params=["native", "hypercorn"])
def gate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    process = GateProcess(CONFIG, tmp_path_factory.mktemp("gate"), request.param)
    yield process
    process.stop()
    said = process.log()
    assert "Traceback" not in said, said


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    """A gate of the native edge with a TLS port too, for what only that edge does."""
    tls = 'keep_alive: 20s, tls: {listen: "127.0.0.1:0", self_signed: true}'
    process = GateProcess(CONFIG.replace("keep_alive: 20s", tls), tmp_path_factory.mktemp("native"))
    yield process
    process.stop()
    said = process.log()
    assert "Traceback" not in said, said
