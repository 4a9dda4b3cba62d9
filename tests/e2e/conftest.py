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


@pytest.fixture(params=EDGES, ids=lambda edge: edge.id)
def edge(request: pytest.FixtureRequest) -> Edge:
    """Each edge in turn. This is the only place that knows which there are."""
    chosen: Edge = request.param
    return chosen
