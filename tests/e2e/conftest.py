"""Which edges the end-to-end suite runs on."""

from __future__ import annotations

import pytest

from tests.e2e.gate import Edge

EDGES = (
    Edge("native-h1", "1.1"),
    Edge("native-h2", "2"),
    Edge("native-tls", "2", tls=True),
    Edge("asgi", "1.1", "edge: hypercorn"),
)


NOT_ABOUT_TLS = (
    "test_convergence", "test_lifecycle", "test_polling", "test_shared_streams", "test_own_streams", "test_bad_streams", "test_tasks",
    "test_feeds", "test_shapes",
)  # fmt: skip
"""Modules whose matter is not how bytes are carried: over TLS they run with the long ones, HTTP/2 they meet without it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those be long before they are chosen by their marks."""
    for item in items:
        if item.path.stem in NOT_ABOUT_TLS and "native-tls" in item.name:
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=EDGES, ids=lambda edge: edge.id)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn. This is the only place that knows which there are."""
    chosen: Edge = request.param
    return chosen
