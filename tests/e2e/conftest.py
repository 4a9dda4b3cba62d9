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


NOT_ABOUT_TLS = ("test_own_streams", "test_cursor", "test_slow", "test_statuses", "test_webhook", "test_joined_edges")
"""Modules whose matter is not how bytes are carried: over TLS they run with the long ones, HTTP/2 they meet without it."""

NOT_ABOUT_HTTP = (
    "test_convergence", "test_lifecycle", "test_polling", "test_shared_streams", "test_bad_streams", "test_tasks", "test_feeds",
    "test_shapes", "test_deliveries", "test_jwt", "test_tickets", "test_joined", "test_guards", "test_rights", "test_own_streams",
    "test_cursor", "test_statuses", "test_joined_edges",
)  # fmt: skip
"""Modules whose matter is the gate behind the edges: HTTP/2 they meet with the long ones."""


MET_OVER_TLS = ("test_stream",)
"""Modules that meet HTTP/2 over TLS, and without it with the long ones."""

NOT_ABOUT_EDGES = (
    "test_convergence", "test_lifecycle", "test_polling", "test_jwt", "test_tickets", "test_joined", "test_guards", "test_rights",
    "test_shapes", "test_shared_streams", "test_feeds", "test_tasks", "test_deliveries", "test_bad_streams",
)  # fmt: skip
"""Modules that take a minute on each edge, or whose matter is none of theirs, and meet all but the first with the long ones."""


def is_elsewhere(item: pytest.Item) -> bool:
    """Whether a test runs with the long ones, for the edge it is on."""
    module, name = item.path.stem, item.name
    if "asgi" in name:
        return module in NOT_ABOUT_EDGES
    if "native-h2" in name:
        return module in (*NOT_ABOUT_HTTP, *MET_OVER_TLS)
    return "native-tls" in name and module in (*NOT_ABOUT_TLS, *NOT_ABOUT_HTTP)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those be long before they are chosen by their marks."""
    for item in items:
        if is_elsewhere(item):
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=EDGES, ids=lambda edge: edge.id)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn. This is the only place that knows which there are."""
    chosen: Edge = request.param
    return chosen
