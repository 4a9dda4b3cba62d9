"""What a page of another origin is told before it asks an event route."""

from __future__ import annotations

import pytest

from ssegate.config import parse_config
from ssegate.core.headers import Headers
from ssegate.edge.exchange import Answer, Request
from ssegate.gate import Gate

ORIGIN = "https://app.example.com"
POLL = "{path: /jobs, methods: [GET], poll: {get: /jobs}}"
OWN = "{path: /jobs, methods: [POST], stream: {post: /jobs, format: lines}}"


def preflight(*routes: str, path: str = "/jobs") -> dict[bytes, bytes]:
    listed = "".join(f"  - {route}\n" for route in routes)
    text = f"version: 1\nupstreams: {{api: http://localhost}}\ncors: {{origins: [{ORIGIN}]}}\nroutes:\n{listed}"
    gate = Gate(parse_config(text, source="f", environ={}))
    reply = gate.answer(
        Request("OPTIONS", path.encode(), Headers([(b"Origin", ORIGIN.encode())]), "1.1", "http", "", None)
    )
    assert isinstance(reply, Answer)
    assert reply.status == 204
    return dict(reply.headers)


@pytest.mark.parametrize(
    ("route", "path", "allowed"),
    [
        (POLL, "/jobs", b"GET, HEAD"),
        (OWN, "/jobs", b"POST"),
        (OWN.replace("methods: [POST], ", ""), "/jobs", b"POST"),
        (OWN.replace("[POST]", "[PUT, GET]"), "/jobs", b"GET, HEAD, PUT"),
        (OWN, "/jobs/s/AAAAAAAAAAAAAAAAAAAAAA", b"GET, HEAD"),
    ],
)
def test_a_page_may_ask_by_the_methods_that_open_the_stream(route: str, path: str, allowed: bytes) -> None:
    headers = preflight(route, path=path)
    assert headers[b"access-control-allow-methods"] == allowed
    assert headers[b"allow"] == allowed + b", OPTIONS"


@pytest.mark.parametrize("routes", [(POLL, OWN), (OWN, POLL)])
def test_a_page_may_ask_by_the_methods_of_all_routes_of_a_path(routes: tuple[str, str]) -> None:
    assert preflight(*routes)[b"access-control-allow-methods"] == b"GET, HEAD, POST"
