"""What the demo's page asks of the gate's own process: figures, and a crowd of viewers."""

from __future__ import annotations

import json
from collections.abc import Callable

from ssegate.admin.metrics import GateFigures
from ssegate.demo.crowd import Crowd
from ssegate.edge.exchange import Answer, Request, problem

FIGURES = b"/demo/figures"
VIEWERS = b"/demo/viewers"
MAX_BODY = 1024


class Desk:
    """Answers the page's requests."""

    def __init__(self, figures: Callable[[], GateFigures], crowd: Crowd) -> None:
        self._figures = figures
        self._crowd = crowd

    async def answer(self, request: Request) -> Answer:
        """See `edge.exchange.Answering`."""
        match request.method, request.target.partition(b"?")[0]:
            case (("GET" | "HEAD"), path) if path == FIGURES:
                return _answer(self._told())
            case "POST", path if path == VIEWERS:
                return await self._resize(request)
            case _, path if path in (FIGURES, VIEWERS):
                return problem(405, f"{request.method} is not served here")
        return problem(404, "here are /demo/figures and /demo/viewers")

    def _told(self) -> dict[str, int]:
        figures = self._figures()
        api = next(each for each in figures.upstreams if each.name == "api")
        return {
            "viewers": figures.clients,
            "crowd": len(self._crowd),
            "topics": figures.topics_watched,
            "polls": sum(api.polls.values()),
            "polls_unchanged": api.polls.get("304", 0),
        }

    async def _resize(self, request: Request) -> Answer:
        # This type makes a browser ask first (CORS), so that a page from elsewhere cannot send a crowd in.
        if request.headers.get("content-type") != "application/json":
            return problem(415, "send application/json")
        body = await _read(request)
        try:
            count = json.loads(body)["count"]
            if type(count) is not int:
                raise ValueError("`count` is not a whole number")
            self._crowd.resize(count)
        except (ValueError, KeyError, TypeError) as error:
            return problem(400, f'send {{"count": 100}}: {error}')
        return _answer(self._told())


def _answer(document: object) -> Answer:
    headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
    return Answer(200, headers, json.dumps(document).encode())


async def _read(request: Request) -> bytes:
    """Read the body; of one that is too large only so much that it cannot be what was asked for."""
    body = b""
    if request.body is not None:
        async for part in request.body:
            body += part
            if len(body) > MAX_BODY:
                break
    return body[: MAX_BODY + 1]
