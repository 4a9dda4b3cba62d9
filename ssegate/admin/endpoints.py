"""The admin listener's answers: is it alive, should it get requests, how is it doing."""

from __future__ import annotations

from collections.abc import Callable

from ssegate.admin.metrics import CONTENT_TYPE, Metrics
from ssegate.edge.exchange import Answer, Request, problem

_TEXT = ((b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"))


class AdminEndpoints:
    """Answers `/livez`, `/readyz` and `/metrics`."""

    def __init__(self, is_ready: Callable[[], bool], metrics: Metrics) -> None:
        self._is_ready = is_ready
        self._metrics = metrics

    def answer(self, request: Request) -> Answer:
        """See `edge.exchange.Answering`."""
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{request.method} is not served here", ((b"allow", b"GET, HEAD"),))
        match request.target.partition(b"?")[0]:
            case b"/livez":
                return Answer(200, _TEXT, b"alive\n")
            case b"/readyz":
                return Answer(200, _TEXT, b"ready\n") if self._is_ready() else Answer(503, _TEXT, b"not ready\n")
            case b"/metrics":
                return Answer(200, ((b"content-type", CONTENT_TYPE), *_TEXT[1:]), self._metrics.render())
        return problem(404, "here are /livez, /readyz and /metrics")
