"""PyPI `httpx-sse`, with the few lines round it that resume, as its manual has them."""

from __future__ import annotations

import json
import sys
import time

import httpx
from httpx_sse import connect_sse


def report(**line: object) -> None:
    print(json.dumps(line), flush=True)


def follow(client: httpx.Client, url: str, cursor: str) -> str:
    """Read one stream to its end; return the cursor to come back with."""
    headers = {"last-event-id": cursor} if cursor else {}
    try:
        with connect_sse(client, "GET", url, headers=headers) as source:
            source.response.raise_for_status()
            report(open=True)
            for event in source.iter_sse():
                cursor = event.id or cursor
                report(type=event.event, id=event.id, data=event.data)
    except httpx.TransportError as error:
        report(error=repr(error))
    return cursor


def main(url: str) -> None:
    cursor = ""
    with httpx.Client(timeout=30) as client:
        while True:
            cursor = follow(client, url, cursor)
            time.sleep(0.1)


main(sys.argv[1])
